"""A rollout worker for TRL's ``AsyncGRPOTrainer``: rows of recorded rollouts, with advantages, versions and counts."""

from __future__ import annotations

import asyncio
import math
import queue
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from ...errors import MissingExtra, NotExportable
from ...exporters.checks import Weights, numbers, refuse_steps, sampled_at, shares
from ...exporters.trl import Rollouts, check_tokens, id_of, rows_of, why_none
from ...rows.advantage import AdvantageFunction, Formula, group_advantages
from ...rows.policy import RowPolicy
from ...rows.sealed import RefusedAttempt, SealedAttempt
from ...rows.training import TrainingRow, group_of

OPEN_GROUPS = 1024
"""Groups that may be incomplete at a time; of more, the oldest goes on without those that are missing."""

_LOOK_SECONDS = 0.02  # between two looks at a queue that is full


@dataclass(slots=True)
class _Group:
    number: int
    rollouts: list[Sequence[TrainingRow]] = field(default_factory=list)
    """One per rollout; without rows where it was refused."""
    reasons: Counter[str] = field(default_factory=Counter)
    """Codes of those that were refused."""


class _NothingToTrain(NotExportable):
    """What the worker gives up with; an error of the source may be a ``NotExportable``, too."""


class TraceRolloutWorker:
    """A ``rollout_worker`` for TRL's ``AsyncGRPOTrainer`` that takes rollouts from recorded traces.

    Rollouts are grouped by their explicit group id. When all of a group are there, each gets its advantage among
    them, and gives a ``RolloutSample`` for each of its rows. Unscored ones take no part. Rows that are too old by
    then are dropped, and count in the baseline all the same, as in TRL itself. Everything that is left out is
    counted in ``counts``, and in TRL's log as ``trace/<name>_total``.

    TRL reads ahead by a step and blocks on an empty queue: give it a source that does not end before it. Where one
    ends, or fails, or stays away, or has nothing to train for ``give_up_after`` rollouts, the trainer stops with an
    error that says so.

    Args:
        source: Rollouts as they come, such as :func:`~agentlightning.training.rollout_source` yields them.
        group_size: Rollouts of one group.
        policy: Which calls of sealed attempts are trained.
        reward: What a rollout was worth, given its rows; default: what the trace says. ``None`` = unscored.
        version_of: The version of the weights that sampled a row, counted as TRL does: 1 is served when it starts.
            Default: the oldest that the engine named for a trained token of the row.
        max_staleness: Rows of weights that are older than so many updates are dropped when they would be handed
            over; ``None`` leaves it to the trainer, which has a ``max_staleness`` of its own.
        advantage: A formula, or a function of the rewards of a group.
        max_queued: Rows that may wait for the trainer. The source is not asked for more meanwhile.
        give_up_after: Rollouts of complete groups, one after the other, that were all refused or unscored, after which
            the training ends; ``None`` = go on for ever.
        patience: Seconds without any rollout after which a trainer that waits is told so; not less than TRL's own
            ``heartbeat_stale_after_s``.
        temperature: The ``temperature`` of ``AsyncGRPOConfig``, at which the trainer computes log-probabilities; a row
            that was sampled otherwise ends the source with an error. ``None`` compares nothing.
        weights: ``rows`` gives each row the advantage of its rollout: right for TRL's loss, a mean over all tokens of a
            step, in which its rows weigh what one long row would. ``rollouts`` divides it by the number of rows.

    Raises:
        MissingExtra: TRL is not installed.
        ValueError: A number is out of range, or ``weights`` is unknown.
    """

    def __init__(
        self,
        source: AsyncIterable[Rollouts] | Iterable[Rollouts],
        *,
        group_size: int,
        policy: RowPolicy | None = None,
        reward: Callable[[Sequence[TrainingRow]], float | None] | None = None,
        version_of: Callable[[TrainingRow], int | None] | None = None,
        max_staleness: int | None = None,
        advantage: Formula | str | AdvantageFunction = Formula.TRL_ASYNC,
        max_queued: int = 256,
        give_up_after: int | None = 64,
        patience: float = 600.0,
        temperature: float | None = 1.0,
        weights: Weights = "rows",
    ) -> None:
        if group_size < 1 or max_queued < 1 or (max_staleness or 0) < 0 or give_up_after == 0:
            raise ValueError(
                "group_size, max_queued and give_up_after are at least 1, max_staleness at least 0"
            )
        shares((), weights)
        self._weights = weights
        self._new_sample = _sample_class()
        self._source = source
        self._group_size = group_size
        self._policy = policy
        self._reward = reward or _reward_of
        self._version_of = version_of or _oldest
        self._max_staleness = max_staleness
        self._advantage = advantage
        self._patience = patience
        self._temperature = temperature
        self._give_up_after = math.inf if give_up_after is None else give_up_after
        self._untrained: Counter[str] = Counter()
        """Why, of the groups since the last one that could be trained."""
        self._barren = 0
        """Their rollouts."""
        self.rollout_buffer: queue.Queue[Any] = queue.Queue(max_queued)
        """What the trainer takes."""
        self.metrics_queue: queue.Queue[dict[str, Any]] = queue.Queue()
        """What the trainer logs."""
        self.model_version = 0
        """The version that the trainer has sent to the engine last."""
        self.counts: Counter[str] = Counter()
        """``rollouts`` and ``rows`` handed over; ``refused``, ``unscored``, ``stale_rows``, ``short_groups``."""
        self.reasons: Counter[str] = Counter()
        """Code → refused rollouts that have it; a rollout may have several."""
        self._groups: OrderedDict[str, _Group] = OrderedDict()
        self._started = 0
        self._heard = time.monotonic()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._ended = False
        self._error: BaseException | None = None

    # -- what the trainer calls

    def start(self) -> None:
        """Begin to take rollouts from the source."""
        if self._thread is not None:
            return
        self._heard = time.monotonic()
        ready = threading.Event()
        self._thread = threading.Thread(
            target=self._work, args=(ready,), name="agl-rollout-worker", daemon=True
        )
        self._thread.start()
        ready.wait()

    def stop(self) -> None:
        """Stop, and let the rollouts that are under way be cancelled; twice is fine."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        loop, task = self._loop, self._task
        if loop is not None and task is not None and thread.is_alive():
            with suppress(RuntimeError):  # it has ended meanwhile, and its loop with it
                loop.call_soon_threadsafe(task.cancel)
        thread.join()

    def update_model_version(self, model_version: int) -> None:
        """Take note that the engine serves another version of the weights."""
        self.model_version = model_version

    def check_health(self, stale_after_s: float) -> None:
        """Say why no row comes, where none will; the trainer asks while it waits.

        Raises:
            NotExportable: Nothing could be trained of the last rollouts.
            RuntimeError: The source has ended or failed, or nothing has come from it for too long.
        """
        if isinstance(self._error, _NothingToTrain):
            if self.rollout_buffer.empty():
                raise self._error
            return
        if self._error is not None:
            raise RuntimeError(
                "the source of rollouts failed; see the error before this one"
            ) from self._error
        if not self.rollout_buffer.empty():
            return
        if self._ended:
            raise RuntimeError(
                f"the source of rollouts has ended, and the trainer wants more: {self._told()}. Give it a "
                "source that goes on, or fewer steps (it reads ahead by one)"
            )
        silent = time.monotonic() - self._heard
        if silent > max(stale_after_s, self._patience):
            raise RuntimeError(f"no row to train has come from the source for {silent:.0f} s: {self._told()}")

    def _told(self) -> str:
        why = f", refused because of {dict(self.reasons)}" if self.reasons else ""
        return f"{dict(self.counts)}{why}"

    # -- the thread

    def _work(self, ready: threading.Event) -> None:
        async def main() -> None:
            self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
            ready.set()
            await self._take()

        try:
            asyncio.run(main())
        except asyncio.CancelledError:
            pass
        except BaseException as error:  # noqa: BLE001 - check_health hands it to the trainer
            self._error = error
        finally:
            self._ended = True
            ready.set()

    async def _take(self) -> None:
        source = _iterated(self._source)
        try:
            async for rollout in source:
                await self._add(rollout)
        finally:
            await source.aclose()
        while self._groups:
            await self._finish(next(iter(self._groups)))

    async def _add(self, rollout: Rollouts) -> None:
        rows = rows_of(rollout, self._policy)
        group_id = _group_of(rollout, rows)
        group = self._groups.get(group_id)
        if group is None:
            group = self._groups[group_id] = _Group(self._started)
            self._started += 1
        group.rollouts.append(rows)
        if not rows:
            codes = why_none(rollout, rows)
            group.reasons.update(codes)
            self.reasons.update(codes)
            self._count("refused")
        if len(group.rollouts) >= self._group_size:
            await self._finish(group_id)
        elif len(self._groups) > OPEN_GROUPS:
            await self._finish(next(iter(self._groups)))

    async def _finish(self, group_id: str) -> None:
        group = self._groups.pop(group_id)
        if len(group.rollouts) < self._group_size:
            self._count("short_groups")
        rewards = [_finite(self._reward(rows)) if rows else None for rows in group.rollouts]
        formula = self._advantage
        advantages = formula(rewards) if callable(formula) else group_advantages(rewards, formula)
        scored = [reward for reward in rewards if reward is not None]
        mean = math.fsum(scored) / len(scored) if scored else 0.0
        spread = math.sqrt(math.fsum((each - mean) ** 2 for each in scored) / len(scored)) if scored else 0.0
        trained = False
        for rows, reward, advantage in zip(group.rollouts, rewards, advantages, strict=True):
            if not rows:
                continue
            if reward is None or advantage is None:
                self._count("unscored")
                group.reasons["unscored"] += 1
                continue
            trained = True
            self._count("rollouts")
            metrics = {"reward": reward, "reward_std": spread}
            for row, share in zip(rows, shares(rows, self._weights), strict=True):
                await self._hand_over(row, group.number, advantage * share, metrics)
        self._give_up_if_barren(group, trained=trained)

    def _give_up_if_barren(self, group: _Group, *, trained: bool) -> None:
        """End the source where nothing could be trained for too long: TRL would wait for a row without end."""
        if trained:
            self._untrained = Counter()
            self._barren = 0
            return
        self._untrained.update(group.reasons)
        self._barren += len(group.rollouts)
        if self._barren >= self._give_up_after:
            raise _NothingToTrain(
                f"none of the last {self._barren} rollouts can be trained: {dict(self._untrained)}"
            )

    async def _hand_over(
        self, row: TrainingRow, group: int, advantage: float, metrics: dict[str, float]
    ) -> None:
        check_tokens(row)
        sampled_at([row], self._temperature)
        version = self._version_of(row)
        if version is None:
            raise NotExportable(
                f"row {row.index} of rollout {row.rollout_id} names no version of the weights; let the engine "
                "report them (weight_versions), or pass version_of"
            )
        sample = self._sample(row, group, advantage, version, metrics)
        while self.rollout_buffer.full():
            self._heard = time.monotonic()
            await asyncio.sleep(_LOOK_SECONDS)
        if self._max_staleness is not None and self.model_version - version > self._max_staleness:
            self._count("stale_rows")
            return
        self._heard = time.monotonic()
        self.rollout_buffer.put(sample)
        self._count("rows")

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

    def _count(self, name: str) -> None:
        self.counts[name] += 1
        if name not in {"rollouts", "rows"}:
            self.metrics_queue.put({f"trace/{name}_total": 1.0})


def _sample_class() -> Any:
    try:
        from trl.experimental.async_grpo.async_rollout_worker import RolloutSample
    except ImportError as error:
        raise MissingExtra("trl", "trl") from error
    return RolloutSample


async def _iterated(source: AsyncIterable[Rollouts] | Iterable[Rollouts]) -> Any:
    if not isinstance(source, AsyncIterable):
        for rollout in source:
            yield rollout
            await asyncio.sleep(0)  # stop() gets its turn
        return
    found = aiter(source)
    try:
        async for rollout in found:
            yield rollout
    finally:
        if hasattr(found, "aclose"):
            await found.aclose()


def _group_of(rollout: Rollouts, rows: Sequence[TrainingRow]) -> str:
    kept = isinstance(rollout, (SealedAttempt, RefusedAttempt))
    found = group_of(rollout.rollout) if kept else rows[0].group_id if rows else None  # type: ignore[union-attr]
    if found is None:
        name = id_of(rollout) or (rows[0].rollout_id if rows else "without rows")
        raise NotExportable(
            f"rollout {name} has no group: enqueue it with metadata={{'group_id': …}}, the same for all samples "
            "of one task"
        )
    return found


def _reward_of(rows: Sequence[TrainingRow]) -> float | None:
    refuse_steps(rows)
    return rows[0].reward


def _finite(reward: float | None) -> float | None:
    return reward if reward is not None and math.isfinite(reward) else None


def _oldest(row: TrainingRow) -> int | None:
    versions: tuple[int, int] | None = row.versions
    return None if versions is None else versions[0]
