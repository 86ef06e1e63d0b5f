"""A memory store that is given a limit keeps to it, and says what it gave up."""

from __future__ import annotations

from typing import Any

import pytest

from agentlightning.errors import InvalidArgument
from agentlightning.store import InMemoryLightningStore
from agentlightning.store.memory import estimate_model_size
from agentlightning.testing import ManualClock, span_of
from agentlightning.types import Rollout, Span


def one_each(span: Span) -> int:
    """Count spans instead of bytes."""
    del span
    return 1


async def filled(
    store: InMemoryLightningStore, clock: ManualClock, rollouts: int, spans: int
) -> list[Rollout]:
    made: list[Rollout] = []
    for number in range(rollouts):
        rollout = await store.start_rollout(number)
        await store.add_many_spans([span_of(rollout) for _ in range(spans)])
        await store.update_attempt(rollout.rollout_id, "latest", status="succeeded")
        clock.shift(1.0)
        made.append(rollout)
    return made


@pytest.mark.asyncio
async def test_the_spans_of_what_finished_first_go_first() -> None:
    clock = ManualClock()
    async with InMemoryLightningStore(
        eviction_memory_threshold=10, safe_memory_threshold=6, span_size_estimator=one_each, clock=clock
    ) as store:
        rollouts = await filled(store, clock, rollouts=4, spans=3)
        kept = [len(await store.query_spans(rollout.rollout_id)) for rollout in rollouts]
        counts = await store.statistics()

    assert kept == [0, 0, 3, 3]
    assert (counts["total_spans"], counts["total_evicted_spans"], counts["total_span_bytes"]) == (6, 6, 6)
    assert (counts["eviction_threshold_bytes"], counts["safe_threshold_bytes"]) == (10, 6)


@pytest.mark.asyncio
async def test_a_receipt_says_what_was_given_up_and_a_repeat_stays_one() -> None:
    clock = ManualClock()
    async with InMemoryLightningStore(
        eviction_memory_threshold=2, span_size_estimator=one_each, clock=clock
    ) as store:
        rollout = await store.start_rollout("first")
        span = span_of(rollout)
        late = span_of(rollout, attributes={"agentlightning.late_of": rollout.attempt.attempt_id})
        await store.add_span(span)
        await store.add_span(late)
        await store.update_attempt(rollout.rollout_id, "latest", status="succeeded")
        await filled(store, clock, rollouts=1, spans=2)

        receipt = await store.get_receipt(rollout.rollout_id, "latest")
        assert (receipt.started, receipt.stored, receipt.dropped) == (1, 0, {"evicted": 1})
        assert (receipt.late_stored, receipt.late_dropped) == (0, {"evicted": 1})
        assert receipt.balanced
        assert not receipt.whole
        assert await store.add_span(span) is None


@pytest.mark.asyncio
async def test_what_is_not_finished_is_never_given_up() -> None:
    async with InMemoryLightningStore(eviction_memory_threshold=1, span_size_estimator=one_each) as store:
        rollout = await store.start_rollout("running")
        await store.add_many_spans([span_of(rollout) for _ in range(5)])

        assert len(await store.query_spans(rollout.rollout_id)) == 5


@pytest.mark.parametrize(
    "limits",
    [
        {"eviction_memory_threshold": 0},
        {"eviction_memory_threshold": 1.5},
        {"eviction_memory_threshold": -1.0},
        {"safe_memory_threshold": 10},
        {"eviction_memory_threshold": 10, "safe_memory_threshold": 11},
    ],
)
def test_limits_out_of_range_are_refused(limits: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        InMemoryLightningStore(**limits)


@pytest.mark.asyncio
async def test_a_share_is_one_of_the_memory_of_the_machine() -> None:
    async with InMemoryLightningStore(eviction_memory_threshold=0.5) as store:
        counts = await store.statistics()

    assert counts["eviction_threshold_bytes"] == counts["memory_capacity_bytes"] // 2
    assert counts["safe_threshold_bytes"] == int(counts["eviction_threshold_bytes"] * 0.8)


def test_the_estimate_grows_with_what_a_span_holds() -> None:
    small = Span.from_attributes(attributes={})
    large = Span.from_attributes(attributes={"text": "x" * 10_000, "ids": list(range(1_000))})

    assert estimate_model_size(large) - estimate_model_size(small) > 10_000 + 8 * 1_000
