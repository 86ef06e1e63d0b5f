"""Complete attempts for trainers: wait until an attempt is whole, seal it, and read exactly what was sealed.

Whole means that its receipt adds up and no writer has anything of it under way (the store's word), and that it has an
answer that can be trained and its reward is known (``rows.completeness``). What cannot be sealed comes with the
reasons; single calls that cannot be trained are in ``rows().counts``.

>>> batch = await wait_sealed(store, rollout_ids, timeout=600)
>>> rows = [row for attempt in batch.sealed for row in attempt.rows()]
>>> batch.refused, batch.unfinished
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ..errors import AlreadySealed, NotSealable, RolloutNotFound
from ..rows.completeness import RewardRule, incomplete
from ..rows.policy import RowPolicy
from ..rows.reasons import Code, TraceReason, explained
from ..rows.sealed import RefusedAttempt, SealedAttempt
from ..rows.training import build_rows
from ..types import Attempt, NamedResources, Rollout, Span
from .base import LATEST, LightningStore, receipt_of
from .lifecycle import LIVE_ATTEMPT
from .primitives import packed_spans

SETTLE_SECONDS = 10.0
"""So long after its rollout has finished, spans of an attempt may still be under way."""

_LOOK_SECONDS = 0.05  # between two looks at an attempt that is not settled


class Sealing(NamedTuple):
    """What it takes to seal an attempt: the arguments of the same names of :func:`wait_sealed`."""

    policy: RowPolicy | None = None
    reward: RewardRule = "required"
    settle: float = SETTLE_SECONDS


@dataclass(frozen=True, slots=True)
class SealedBatch:
    """What became of the rollouts that were waited for, each in exactly one of the three."""

    sealed: tuple[SealedAttempt, ...] = ()
    refused: tuple[RefusedAttempt, ...] = ()
    unfinished: tuple[str, ...] = ()
    """Rollouts that had not finished when the time was up, and those that were tried again meanwhile."""

    @property
    def counts(self) -> dict[str, int]:
        """Code → attempts that are refused because of it."""
        counts: dict[str, int] = {}
        for each in self.refused:
            for code in each.codes:
                counts[code] = counts.get(code, 0) + 1
        return counts


async def wait_sealed(
    store: LightningStore,
    rollout_ids: Sequence[str],
    *,
    timeout: float | None = None,
    policy: RowPolicy | None = None,
    reward: RewardRule = "required",
    settle: float = SETTLE_SECONDS,
) -> SealedBatch:
    """Wait until the rollouts have finished, and seal the latest attempt of each where it is complete.

    Args:
        store: Where they are.
        rollout_ids: Rollouts, in the order in which the answer names them.
        timeout: Seconds to wait for them to finish; ``None`` = for ever.
        policy: Which calls are trained: an attempt that gives no row by it is refused.
        reward: ``required``: an attempt needs a scored reward for the rollout; ``steps``: one for an answer that is
            trained will do, for a trainer that takes rewards per step; ``optional``: it needs none.
        settle: Seconds to wait, once it has finished, for spans of an attempt that are still under way.

    Raises:
        RolloutNotFound: A rollout is unknown.
        InvalidArgument: ``timeout`` is negative.
    """
    wanted = list(dict.fromkeys(rollout_ids))
    finished = await store.wait_for_rollouts(rollout_ids=wanted, timeout=timeout)
    sealing = Sealing(policy, reward, settle)
    found = await asyncio.gather(*(_latest_sealed(store, rollout, sealing) for rollout in finished))
    by_id = {each.rollout.rollout_id: each for each in found if each is not None}
    in_order = [by_id[rollout_id] for rollout_id in wanted if rollout_id in by_id]
    return SealedBatch(
        tuple(each for each in in_order if isinstance(each, SealedAttempt)),
        tuple(each for each in in_order if isinstance(each, RefusedAttempt)),
        tuple(rollout_id for rollout_id in wanted if rollout_id not in by_id),
    )


async def seal(
    store: LightningStore,
    rollout_id: str,
    attempt_id: str = LATEST,
    *,
    policy: RowPolicy | None = None,
    reward: RewardRule = "required",
) -> SealedAttempt | RefusedAttempt:
    """Seal one attempt if it is complete, and return it, or why it is not. A sealed attempt is only read.

    Raises:
        RolloutNotFound: The rollout is unknown.
    """
    rollout = await store.get_rollout_by_id(rollout_id)
    if rollout is None:
        raise RolloutNotFound(rollout_id)
    attempt = await _attempt(store, rollout_id, attempt_id)
    if attempt is None:
        return RefusedAttempt(rollout, None, (explained(TraceReason.NO_SPANS.code),))
    spans = tuple(await packed_spans(store, rollout_id, attempt.attempt_id))
    late = tuple(await store.query_late_spans(rollout_id, attempt.attempt_id))
    resources = await resources_of(store, rollout)
    if attempt.seal is not None:
        return _as_sealed(rollout, attempt, spans, late, resources)
    rows = build_rows((*spans, *late), policy, rollout=rollout, resources=resources)
    reasons: list[Code] = incomplete(rows, reward)
    if reasons:
        return RefusedAttempt(rollout, attempt, tuple(reasons))
    try:
        sealed = await store.seal_attempt(
            rollout_id, attempt.attempt_id, spans=len(spans), unproven=rows.unproven
        )
    except AlreadySealed:  # by somebody else, meanwhile
        return await seal(store, rollout_id, attempt.attempt_id, policy=policy, reward=reward)
    except NotSealable as error:
        why = explained(TraceReason.NOT_SEALABLE.code)
        return RefusedAttempt(rollout, attempt, (Code(why.code, str(error), why.cure),))
    if sealed.seal is not None and sealed.seal.late != len(late):  # more of them came meanwhile
        late = tuple(await store.query_late_spans(rollout_id, attempt.attempt_id))
    return _as_sealed(rollout, sealed, spans, late, resources)


async def resources_of(store: LightningStore, rollout: Rollout) -> NamedResources | None:
    """Return the resources of a rollout; ``None`` where it has none."""
    if rollout.resources_id is None:
        return None
    update = await store.get_resources_by_id(rollout.resources_id)
    return None if update is None else update.resources


def _as_sealed(
    rollout: Rollout,
    attempt: Attempt,
    spans: Sequence[Span],
    late: Sequence[Span],
    resources: NamedResources | None,
) -> SealedAttempt | RefusedAttempt:
    assert attempt.seal is not None
    # Spans that were stored after the seal are no part of what it covers.
    covered = tuple(span for span in spans if span.sequence_id <= attempt.seal.sequence_id)
    if len(covered) != attempt.seal.spans:
        return RefusedAttempt(rollout, attempt, (explained(TraceReason.CHANGED_AFTER_SEAL.code),))
    return SealedAttempt(rollout, attempt, covered, resources, tuple(late[: attempt.seal.late]))


async def seal_settled(
    store: LightningStore, rollout_id: str, attempt_id: str, sealing: Sealing
) -> SealedAttempt | RefusedAttempt:
    """Seal one attempt as soon as nothing of it is under way, at the latest when the time is up; see :func:`seal`.

    Raises:
        RolloutNotFound: The rollout is unknown.
    """
    deadline = asyncio.get_running_loop().time() + sealing.settle
    while True:
        over = asyncio.get_running_loop().time() >= deadline
        settled = await _is_settled(
            store, rollout_id, attempt_id
        )  # before it is read: what is read then is all
        found = await seal(store, rollout_id, attempt_id, policy=sealing.policy, reward=sealing.reward)
        # Refused and not settled: what is missing may still be under way.
        if isinstance(found, SealedAttempt) or over or settled:
            return found
        await asyncio.sleep(_LOOK_SECONDS)


async def _latest_sealed(
    store: LightningStore, rollout: Rollout, sealing: Sealing
) -> SealedAttempt | RefusedAttempt | None:
    """Seal the latest attempt when it is settled; ``None`` where the rollout is at work again."""
    found = await seal_settled(store, rollout.rollout_id, LATEST, sealing)
    return found if await _is_latest(store, found) else None


async def _is_latest(store: LightningStore, found: SealedAttempt | RefusedAttempt) -> bool:
    latest = await store.get_latest_attempt(found.rollout.rollout_id)
    return latest is None or (found.attempt is not None and latest.attempt_id == found.attempt.attempt_id)


async def _is_settled(store: LightningStore, rollout_id: str, attempt_id: str) -> bool:
    attempt = await _attempt(store, rollout_id, attempt_id)
    if attempt is None:
        return True
    if attempt.status in LIVE_ATTEMPT:
        return False
    receipt = await receipt_of(store, rollout_id, attempt.attempt_id)
    return receipt is None or receipt.settled


async def _attempt(store: LightningStore, rollout_id: str, attempt_id: str) -> Attempt | None:
    if attempt_id == LATEST:
        return await store.get_latest_attempt(rollout_id)
    attempts = await store.query_attempts(rollout_id)
    return next((attempt for attempt in attempts if attempt.attempt_id == attempt_id), None)
