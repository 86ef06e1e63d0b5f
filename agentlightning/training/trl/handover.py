"""Rows on their way to the trainer, which takes them out of a queue in a thread of its own."""

from __future__ import annotations

import asyncio
import queue
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from ...errors import MissingExtra, NotExportable
from ...exporters.checks import numbers, sampled_at
from ...exporters.trl import check_tokens
from ...rows.training import TrainingRow

_LOOK_SECONDS = 0.02  # between two looks at a queue that is full


class Tally:
    """Counts of what was handed over and left out, and TRL's log of the latter."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.log: queue.Queue[dict[str, Any]] = queue.Queue()
        """What the trainer logs."""

    def count(self, name: str) -> None:
        """Count one more."""
        self.counts[name] += 1
        if name not in {"rollouts", "rows"}:
            self.log.put({f"trace/{name}_total": 1.0})

    def refuse(self, codes: Iterable[str]) -> None:
        """Count a refused rollout and the reasons."""
        self.reasons.update(codes)
        self.count("refused")

    def __str__(self) -> str:
        why = f", refused because of {dict(self.reasons)}" if self.reasons else ""
        return f"{dict(self.counts)}{why}"


class Handover:
    """Makes ``RolloutSample`` of rows and puts them where the trainer takes them.

    Args:
        tally: Counts the rows.
        max_queued: Rows that may wait for the trainer.
        version_of: The version of the weights that sampled a row.
        max_staleness: Rows of weights that are older than so many updates are dropped; ``None`` drops none.
        temperature: At which the trainer computes log-probabilities; ``None`` compares nothing.

    Raises:
        MissingExtra: TRL is not installed.
    """

    def __init__(
        self,
        tally: Tally,
        *,
        max_queued: int,
        version_of: Callable[[TrainingRow], int | None],
        max_staleness: int | None,
        temperature: float | None,
    ) -> None:
        self._new_sample = _sample_class()
        self._tally = tally
        self._version_of = version_of
        self._max_staleness = max_staleness
        self._temperature = temperature
        self.buffer: queue.Queue[Any] = queue.Queue(max_queued)
        self.model_version = 0
        """The version that the trainer has sent to the engine last; its thread sets it."""
        self._last = time.monotonic()

    def hear(self) -> None:
        """Take note that the source is at work: from now on :meth:`silence` counts anew."""
        self._last = time.monotonic()

    def silence(self) -> float:
        """Return the seconds since the last row, or since a row last waited for room."""
        return time.monotonic() - self._last

    async def put(self, row: TrainingRow, group: int, advantage: float, metrics: dict[str, float]) -> None:
        """Wait for room, and hand a row over unless it is too old by then.

        Raises:
            NotExportable: TRL would train it wrongly, or nobody knows which weights sampled it.
        """
        check_tokens(row)
        sampled_at([row], self._temperature)
        version = self._version_of(row)
        if version is None:
            raise NotExportable(
                f"row {row.index} of rollout {row.rollout_id} names no version of the weights; let the engine "
                "report them (weight_versions), or pass version_of"
            )
        sample = self._sample(row, group, advantage, version, metrics)
        while self.buffer.full():
            self.hear()
            await asyncio.sleep(_LOOK_SECONDS)
        if self._max_staleness is not None and self.model_version - version > self._max_staleness:
            self._tally.count("stale_rows")
            return
        self.hear()
        self.buffer.put(sample)
        self._tally.count("rows")

    def _sample(
        self, row: TrainingRow, group: int, advantage: float, version: int, metrics: dict[str, float]
    ) -> Any:
        import numpy as np

        first = row.segments[0].call.record
        asked = () if first is None else first.request_messages
        messages = list(row.messages)
        return self._new_sample(
            prompt=messages[: len(asked)],
            completion=messages[len(asked) :],
            input_ids=np.asarray(row.token_ids, dtype=np.int64),
            completion_mask=np.asarray(row.loss_mask, dtype=np.int64),
            old_log_probs=np.asarray(numbers(row), dtype=np.float32),
            advantage=float(advantage),
            model_version=version,
            group_id=group,
            metrics={**metrics, "rewards/trace_reward": metrics["reward"]},
            enqueued_at=time.time(),
        )


def _sample_class() -> Any:
    try:
        from trl.experimental.async_grpo.async_rollout_worker import RolloutSample
    except ImportError as error:
        raise MissingExtra("trl", "trl") from error
    return RolloutSample
