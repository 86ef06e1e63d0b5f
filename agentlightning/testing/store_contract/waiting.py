"""Waiting, and use from many threads, loops and handles at once."""

from __future__ import annotations

import asyncio
import math
import threading
from functools import partial
from typing import Any

import pytest

from ...errors import InvalidArgument, RolloutNotFound
from ...store.base import LightningStore
from ...store.registry import open_store
from ...types import AttemptedRollout, Rollout
from ..clock import ManualClock
from ..values import span_of
from .attempts import rollout_of
from .base import ContractBase, in_threads
from .rollouts import requests

PATIENCE = 20.0
"""Seconds after which a wait that ought to have ended is a failure; 200 waits of 0.5 s, one by one, take 100."""


async def finished(store: LightningStore, value: Any = "x") -> Rollout:
    """Make a rollout that has succeeded."""
    rollout = await store.start_rollout(value)
    await store.update_attempt(rollout.rollout_id, "latest", status="succeeded")
    return await rollout_of(store, rollout)


class WaitContract(ContractBase):
    """``wait_for_rollouts``."""

    async def test_what_is_finished_is_returned_at_once(self, store: LightningStore) -> None:
        one, two = await finished(store, 1), await finished(store, 2)
        wanted = [two.rollout_id, one.rollout_id, two.rollout_id]
        # Nothing is waited for, so the limit does not matter; each id once, in the order of the first
        # mention.
        for patience in (None, 0, 0.0, 1000.0):
            found = await asyncio.wait_for(
                store.wait_for_rollouts(rollout_ids=wanted, timeout=patience), PATIENCE
            )
            assert isinstance(found, list)
            assert found == [two, one]

    async def test_waiting_for_nothing_ends_at_once(self, store: LightningStore) -> None:
        assert await asyncio.wait_for(store.wait_for_rollouts(rollout_ids=[]), PATIENCE) == []

    async def test_zero_looks_once(self, store: LightningStore) -> None:
        done, waiting = await finished(store), await store.enqueue_rollout("x")
        wanted = [waiting.rollout_id, done.rollout_id]
        assert await store.wait_for_rollouts(rollout_ids=wanted, timeout=0) == [done]

    async def test_a_timeout_returns_what_is_finished(self, store: LightningStore) -> None:
        done, waiting = await finished(store), await store.enqueue_rollout("x")
        wanted = [waiting.rollout_id, done.rollout_id]
        assert await store.wait_for_rollouts(rollout_ids=wanted, timeout=0.05) == [done]

    async def test_it_waits_for_the_last(self, store: LightningStore) -> None:
        started = [await store.start_rollout(value) for value in range(3)]
        wanted = [rollout.rollout_id for rollout in started]
        wait = asyncio.create_task(store.wait_for_rollouts(rollout_ids=wanted))
        for number, rollout in enumerate(reversed(started)):
            await _let_others_run()
            # Finished in the reverse order, so that the first of the list is the last to end.
            assert not wait.done(), f"ended with {number} of 3 finished"
            await store.update_attempt(rollout.rollout_id, "latest", status="succeeded")
        found = await asyncio.wait_for(wait, PATIENCE)
        assert [rollout.rollout_id for rollout in found] == wanted
        assert all(rollout.status == "succeeded" for rollout in found)

    @pytest.mark.parametrize("verdict", ["succeeded", "failed", "cancelled"])
    async def test_every_end_is_an_end(self, store: LightningStore, verdict: Any) -> None:
        rollout = await store.enqueue_rollout("x")
        wait = asyncio.create_task(store.wait_for_rollouts(rollout_ids=[rollout.rollout_id]))
        await _let_others_run()
        await store.update_rollout(rollout.rollout_id, status=verdict)
        (found,) = await asyncio.wait_for(wait, PATIENCE)
        assert found.status == verdict

    async def test_another_thread_and_loop_may_finish_it(self, store: LightningStore) -> None:
        rollout = await store.start_rollout("x")
        wait = asyncio.create_task(store.wait_for_rollouts(rollout_ids=[rollout.rollout_id]))
        await _let_others_run()
        await in_threads([lambda: store.update_attempt(rollout.rollout_id, "latest", status="succeeded")])
        (found,) = await asyncio.wait_for(wait, PATIENCE)
        assert found.status == "succeeded"

    async def test_another_handle_on_the_same_data_may_finish_it(self, store: LightningStore) -> None:
        if store.url is None:
            pytest.skip("this store declares no url: nobody else can open its data")
        rollout = await store.start_rollout("x")
        wait = asyncio.create_task(store.wait_for_rollouts(rollout_ids=[rollout.rollout_id]))
        await _let_others_run()
        async with open_store(store.url) as other:
            await other.update_attempt(rollout.rollout_id, "latest", status="succeeded")
            (found,) = await asyncio.wait_for(wait, PATIENCE)
            assert found == await rollout_of(other, rollout)

    async def test_an_unknown_id_is_refused(self, store: LightningStore) -> None:
        done = await finished(store)
        for patience in (None, 0, 5.0):
            with pytest.raises(RolloutNotFound):
                await store.wait_for_rollouts(rollout_ids=[done.rollout_id, "ro-unknown"], timeout=patience)

    @pytest.mark.parametrize("bad", [-1, -0.001, math.nan, "long"])
    async def test_a_timeout_that_is_no_time_is_refused(self, store: LightningStore, bad: Any) -> None:
        done = await finished(store)
        with pytest.raises(InvalidArgument):
            await store.wait_for_rollouts(rollout_ids=[done.rollout_id], timeout=bad)

    async def test_two_hundred_waits_end_together_and_cost_no_threads(self, store: LightningStore) -> None:
        queued = await store.enqueue_many_rollouts(requests(*range(200)))
        before = threading.active_count()
        waits = [
            asyncio.create_task(store.wait_for_rollouts(rollout_ids=[rollout.rollout_id], timeout=0.5))
            for rollout in queued
        ]
        # The waits are under way by now; a store that holds a thread for each shows some two hundred.
        await asyncio.sleep(0.2)
        threads = threading.active_count() - before
        assert await asyncio.wait_for(asyncio.gather(*waits), PATIENCE) == [[]] * 200
        assert threads <= 10, "a wait must not hold a thread"

    async def test_a_wait_can_be_cancelled(self, store: LightningStore) -> None:
        rollout = await store.start_rollout("x")
        wait = asyncio.create_task(store.wait_for_rollouts(rollout_ids=[rollout.rollout_id]))
        await _let_others_run()
        # Whoever stops waiting leaves nothing behind that keeps the store busy or unusable.
        wait.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(wait, PATIENCE)
        await store.update_attempt(rollout.rollout_id, "latest", status="succeeded")
        found = await store.wait_for_rollouts(rollout_ids=[rollout.rollout_id], timeout=0)
        assert len(found) == 1


class ConcurrencyContract(ContractBase):
    """Any thread, any loop."""

    async def test_no_rollout_is_claimed_twice(self, store: LightningStore) -> None:
        await store.enqueue_many_rollouts(requests(*range(120)))

        async def claim() -> list[AttemptedRollout]:
            mine: list[AttemptedRollout] = []
            while claimed := await store.dequeue_many_rollouts(limit=3):
                mine += claimed
            return mine

        claims = await in_threads([claim] * 6)
        assert sorted(rollout.input for mine in claims for rollout in mine) == list(range(120))
        for mine in claims:
            values = [rollout.input for rollout in mine]
            # First in, first out also holds among several workers: each sees rising numbers.
            assert values == sorted(values)

    async def test_no_update_is_lost(self, store: LightningStore) -> None:
        rollout = await store.start_rollout("x")

        async def work(number: int) -> None:
            for step in range(10):
                await store.add_span(span_of(rollout, f"{number}"))
                await store.update_worker(f"w{number}", {"step": step})
                # One row that all threads write, beside rows of their own: a read and a write that
                # are two steps lose versions.
                await store.update_resources("shared", {})
                own = await store.start_rollout([number, step], worker_id=f"w{number}")
                await store.update_attempt(own.rollout_id, "latest", status="succeeded")

        await in_threads([partial(work, number) for number in range(6)])
        spans = await store.query_spans(rollout.rollout_id)
        assert [span.sequence_id for span in spans] == list(range(1, 61))
        shared = await store.get_resources_by_id("shared")
        assert shared is not None
        assert shared.version == 60
        assert len(await store.query_rollouts(status_in=["succeeded"])) == 60
        workers = await store.query_workers()
        assert {worker.status for worker in workers} == {"idle"}
        assert [worker.heartbeat_stats for worker in workers] == [{"step": 9}] * 6

    async def test_one_loop_may_have_many_calls_under_way(self, store: LightningStore) -> None:
        rollout = await store.start_rollout("x")
        stored = await asyncio.gather(*(store.add_span(span_of(rollout)) for _ in range(100)))
        assert sorted(span.sequence_id for span in stored if span) == list(range(1, 101))

    async def test_a_loop_that_is_gone_takes_nothing_along(
        self, store: LightningStore, clock: ManualClock
    ) -> None:
        for value in range(3):
            # The loop of each call has ended when the next one comes: nothing may wait for it.
            await in_threads([partial(store.enqueue_rollout, value)])
            clock.shift(1.0)
        assert [rollout.input for rollout in await store.query_rollouts()] == [0, 1, 2]

    async def test_a_cancelled_call_leaves_the_store_usable(self, store: LightningStore) -> None:
        rollout = await store.start_rollout("x")
        # The write is cancelled at several points of its way.
        for steps in range(5):
            batch = [span_of(rollout) for _ in range(20)]
            (write,) = {asyncio.create_task(store.add_many_spans(batch))}
            for _ in range(steps):
                await asyncio.sleep(0)
            write.cancel()
            await asyncio.gather(write, return_exceptions=True)
        stored = await store.add_span(span_of(rollout, "after"))
        spans = await store.query_spans(rollout.rollout_id)
        assert stored is not None
        assert len(spans) % 20 == 1, "a batch is stored whole or not at all"
        assert [span.sequence_id for span in spans] == list(range(1, len(spans) + 1))


# A wait has no sign by which a test could see that it waits, so it gets time for that. Too little of it only makes
# such a test weaker: it never fails for that.
async def _let_others_run() -> None:
    for _ in range(10):
        await asyncio.sleep(0.002)
