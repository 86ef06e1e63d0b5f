"""Faults that are asked for happen, and no others."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from agentlightning.errors import StoreUnavailable
from agentlightning.store import InMemoryLightningStore
from agentlightning.testing import FaultyStore, span_of, wait_until_async
from agentlightning.types import AttemptedRollout


@pytest_asyncio.fixture
async def store() -> AsyncIterator[FaultyStore]:
    async with FaultyStore(InMemoryLightningStore(), only={"add_many_spans"}) as faulty:
        yield faulty


async def write(store: FaultyStore, rollout: AttemptedRollout) -> str:
    try:
        await store.add_span(span_of(rollout))
    except StoreUnavailable:
        return "failed"
    return "worked"


async def stored(store: FaultyStore, rollout: AttemptedRollout) -> int:
    return len(await store.query_spans(rollout.rollout_id))


@pytest.mark.asyncio
async def test_every_nth_write_is_refused_and_writes_nothing(store: FaultyStore) -> None:
    rollout = await store.start_rollout("x")
    store.fail_every = 3
    outcomes = [await write(store, rollout) for _ in range(6)]
    assert outcomes == ["worked", "worked", "failed"] * 2
    assert (store.writes, store.faults, await stored(store, rollout)) == (6, 2, 4)


@pytest.mark.asyncio
async def test_a_lost_acknowledgement_was_written(store: FaultyStore) -> None:
    rollout = await store.start_rollout("x")
    store.lose_every = 2
    assert [await write(store, rollout) for _ in range(4)] == ["worked", "failed"] * 2
    assert await stored(store, rollout) == 4


@pytest.mark.asyncio
async def test_a_script_goes_first() -> None:
    async with FaultyStore(
        InMemoryLightningStore(), script=["refuse", "work", "lose"], only={"add_many_spans"}
    ) as store:
        rollout = await store.start_rollout("x")
        outcomes = [await write(store, rollout) for _ in range(4)]
        assert outcomes == ["failed", "worked", "failed", "worked"]
        assert await stored(store, rollout) == 3


@pytest.mark.asyncio
async def test_a_broken_store_fails_until_it_is_healed(store: FaultyStore) -> None:
    rollout = await store.start_rollout("x")
    store.fail_for_ever(lambda: StoreUnavailable("out of order"))
    for _ in range(3):
        with pytest.raises(StoreUnavailable, match="out of order"):
            await store.add_span(span_of(rollout))
    store.heal()
    assert await write(store, rollout) == "worked"


@pytest.mark.asyncio
async def test_held_writes_wait_in_any_loop_until_they_are_released(store: FaultyStore) -> None:
    rollout = await store.start_rollout("x")
    store.hold()
    here = asyncio.create_task(write(store, rollout))
    elsewhere = threading.Thread(target=lambda: asyncio.run(write(store, rollout)))
    elsewhere.start()
    await wait_until_async(lambda: store.held == 2)
    assert await stored(store, rollout) == 0
    assert not here.done()
    store.release()
    assert await here == "worked"
    await asyncio.to_thread(elsewhere.join)
    assert await stored(store, rollout) == 2
    assert await write(store, rollout) == "worked"


@pytest.mark.asyncio
async def test_a_held_write_can_be_cancelled(store: FaultyStore) -> None:
    rollout = await store.start_rollout("x")
    store.hold()
    held = asyncio.create_task(write(store, rollout))
    await wait_until_async(lambda: store.held == 1)
    held.cancel()
    with pytest.raises(asyncio.CancelledError):
        await held
    assert store.held == 0
    store.release()
    assert await stored(store, rollout) == 0


@pytest.mark.asyncio
async def test_a_slow_store_is_slow_for_each_write(store: FaultyStore) -> None:
    rollout = await store.start_rollout("x")
    store.delay = 0.02
    loop = asyncio.get_running_loop()
    before = loop.time()
    await asyncio.gather(*(write(store, rollout) for _ in range(50)))
    assert loop.time() - before >= 0.02
    assert await stored(store, rollout) == 50


@pytest.mark.asyncio
async def test_methods_that_were_not_named_have_no_faults(store: FaultyStore) -> None:
    store.fail_for_ever()
    rollout = await store.enqueue_rollout("x")
    assert (await store.get_rollout_by_id(rollout.rollout_id)) == rollout
    assert store.writes == 0
