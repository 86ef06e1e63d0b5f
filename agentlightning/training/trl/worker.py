"""A rollout worker for TRL's ``AsyncGRPOTrainer``: rows of recorded rollouts, with advantages, versions and counts."""

from __future__ import annotations

import asyncio
import queue
from collections import Counter
from collections.abc import AsyncIterable, Callable, Iterable, Sequence
from typing import Any

from ...errors import NotExportable
from ...exporters.checks import Weights, refuse_steps, shares
from ...exporters.trl import Rollouts, id_of, rows_of, why_none
from ...rows.advantage import AdvantageFunction, Formula
from ...rows.policy import RowPolicy
from ...rows.sealed import RefusedAttempt, SealedAttempt
from ...rows.training import TrainingRow, group_of
from ..background import BackgroundTask
from .groups import Barren, Group, Groups, NothingToTrain, Scoring
from .handover import Handover, Tally


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
        self._source = source
        self._policy = policy
        self._patience = patience
        self._groups = Groups(group_size)
        self._scoring = Scoring(reward or _reward_of, advantage, weights)
        self._barren = Barren(give_up_after)
        self._tally = Tally()
        self._handover = Handover(
            self._tally,
            max_queued=max_queued,
            version_of=version_of or _oldest,
            max_staleness=max_staleness,
            temperature=temperature,
        )
        self._task = BackgroundTask("agl-rollout-worker")
        self.rollout_buffer: queue.Queue[Any] = self._handover.buffer
        """What the trainer takes."""
        self.metrics_queue: queue.Queue[dict[str, Any]] = self._tally.log
        """What the trainer logs."""
        self.counts: Counter[str] = self._tally.counts
        """``rollouts`` and ``rows`` handed over; ``refused``, ``unscored``, ``stale_rows``, ``short_groups``."""
        self.reasons: Counter[str] = self._tally.reasons
        """Code → refused rollouts that have it; a rollout may have several."""

    @property
    def model_version(self) -> int:
        """The version that the trainer has sent to the engine last."""
        return self._handover.model_version

    @property
    def ended(self) -> bool:
        """Whether nothing more comes: the source has ended or failed, or the worker was stopped."""
        return self._task.ended

    # -- what the trainer calls

    def start(self) -> None:
        """Begin to take rollouts from the source."""
        if not self._task.started:
            self._handover.hear()
            self._task.start(self._take)

    def stop(self) -> None:
        """Stop, and let the rollouts that are under way be cancelled; twice is fine."""
        self._task.stop()

    def update_model_version(self, model_version: int) -> None:
        """Take note that the engine serves another version of the weights."""
        self._handover.model_version = model_version

    def check_health(self, stale_after_s: float) -> None:
        """Say why no row comes, where none will; the trainer asks while it waits.

        Raises:
            NotExportable: Nothing could be trained of the last rollouts.
            RuntimeError: The source has ended or failed, or nothing has come from it for too long.
        """
        # A source that failed is said at once; that nothing can be trained, when the last row is taken.
        error = self._task.error
        if error is not None and not isinstance(error, NothingToTrain):
            raise RuntimeError("the source of rollouts failed; see the error before this one") from error
        if not self.rollout_buffer.empty():
            return
        if error is not None:
            raise error
        if self._task.ended:
            raise RuntimeError(
                f"the source of rollouts has ended, and the trainer wants more: {self._tally}. Give it a "
                "source that goes on, or fewer steps (it reads ahead by one)"
            )
        silent = self._handover.silence()
        if silent > max(stale_after_s, self._patience):
            raise RuntimeError(f"no row to train has come from the source for {silent:.0f} s: {self._tally}")

    # -- in the thread of the task

    async def _take(self) -> None:
        source = _iterated(self._source)
        try:
            async for rollout in source:
                await self._add(rollout)
        finally:
            await source.aclose()
        # The source has ended: what is left is scored as it is, and counted as short.
        for group in self._groups.take_all():
            await self._finish(group)

    async def _add(self, rollout: Rollouts) -> None:
        rows = rows_of(rollout, self._policy)
        group_id = _group_of(rollout, rows)
        group = self._groups.add(group_id, rows)
        # A refused rollout counts in its group: without it the group would never be whole.
        if not rows:
            codes = why_none(rollout, rows)
            group.reasons.update(codes)
            self._tally.refuse(codes)
        due = self._groups.take_due(group_id)
        if due is not None:
            await self._finish(due)

    async def _finish(self, group: Group) -> None:
        if len(group.rollouts) < self._groups.size:
            self._tally.count("short_groups")
        rollouts, spread = self._scoring.score(group)
        trained = False
        for rollout in rollouts:
            if rollout.reward is None:
                self._tally.count("unscored")
                group.reasons["unscored"] += 1
                continue
            trained = True
            self._tally.count("rollouts")
            metrics = {"reward": rollout.reward, "reward_std": spread}
            for row, advantage in rollout.rows:
                await self._handover.put(row, group.number, advantage, metrics)
        self._barren.note(group, trained=trained)


async def _iterated(source: AsyncIterable[Rollouts] | Iterable[Rollouts]) -> Any:
    # A plain iterable would keep the event loop to itself.
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


def _oldest(row: TrainingRow) -> int | None:
    versions: tuple[int, int] | None = row.versions
    return None if versions is None else versions[0]
