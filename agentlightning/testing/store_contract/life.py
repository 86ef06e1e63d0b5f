"""The life of a store: what it declares, what it counts, what survives it, how it ends."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from ...errors import StoreClosed, StoreError
from ...store.base import LightningStore, LightningStoreCapabilities, new_writer_id
from ...store.registry import open_store
from ...types import EnqueueRolloutRequest, PromptTemplate, Span
from ..clock import ManualClock
from ..processes import gone_writer_id
from ..values import account_of, ended, open_span_of, span_of
from .base import RETRYING, ContractBase
from .rollouts import drain, requests

# Of no attempt: after ``close()`` no call gets as far as to notice that.
STRAY = Span.from_attributes(attributes={}, rollout_id="ro", attempt_id="at")

CALLS: dict[str, Callable[[LightningStore], Awaitable[Any]]] = {
    "statistics": lambda store: store.statistics(),
    "start_rollout": lambda store: store.start_rollout("x"),
    "enqueue_rollout": lambda store: store.enqueue_rollout("x"),
    "enqueue_many_rollouts": lambda store: store.enqueue_many_rollouts([EnqueueRolloutRequest(input=1)]),
    "dequeue_rollout": lambda store: store.dequeue_rollout(),
    "dequeue_many_rollouts": lambda store: store.dequeue_many_rollouts(limit=2),
    "start_attempt": lambda store: store.start_attempt("ro"),
    "update_rollout": lambda store: store.update_rollout("ro", status="cancelled"),
    "get_rollout_by_id": lambda store: store.get_rollout_by_id("ro"),
    "query_rollouts": lambda store: store.query_rollouts(),
    "wait_for_rollouts": lambda store: store.wait_for_rollouts(rollout_ids=["ro"], timeout=0),
    "update_attempt": lambda store: store.update_attempt("ro", "latest", status="running"),
    "seal_attempt": lambda store: store.seal_attempt("ro", "latest", spans=0),
    "get_latest_attempt": lambda store: store.get_latest_attempt("ro"),
    "query_attempts": lambda store: store.query_attempts("ro"),
    "add_span": lambda store: store.add_span(STRAY),
    "add_many_spans": lambda store: store.add_many_spans([STRAY]),
    "query_spans": lambda store: store.query_spans("ro"),
    "query_open_spans": lambda store: store.query_open_spans("ro"),
    "query_late_spans": lambda store: store.query_late_spans("ro"),
    "get_receipt": lambda store: store.get_receipt("ro", "latest"),
    "get_next_span_sequence_id": lambda store: store.get_next_span_sequence_id("ro", "at"),
    "get_many_span_sequence_ids": lambda store: store.get_many_span_sequence_ids([("ro", "at")]),
    "add_resources": lambda store: store.add_resources({}),
    "update_resources": lambda store: store.update_resources("rs", {}),
    "get_resources_by_id": lambda store: store.get_resources_by_id("rs"),
    "get_latest_resources": lambda store: store.get_latest_resources(),
    "query_resources": lambda store: store.query_resources(),
    "update_worker": lambda store: store.update_worker("w"),
    "get_worker_by_id": lambda store: store.get_worker_by_id("w"),
    "query_workers": lambda store: store.query_workers(),
}
"""One call of every method that reaches the data."""


async def populate(store: LightningStore, clock: ManualClock) -> None:
    """Put something of every kind into a store."""
    prompt = await store.add_resources({"p": PromptTemplate(template="é {x}", engine="f-string")})
    await store.update_resources(prompt.resources_id, {})
    await store.enqueue_many_rollouts(requests("first", {"second": [None, float("inf")]}))
    clock.shift(1.0)
    done = await store.start_rollout("done", mode="train", metadata={"a": 1}, worker_id="w1")
    await store.add_many_spans(
        [span_of(done, attributes={"n": [1, 2]}), span_of(done)],
        opened=[open_span_of(done)],
        # Of a writer that is gone: ``interrupted`` has to be found again after reopening, too.
        accounts=[account_of(done, gone_writer_id(), revision=3, started=4, dropped={"queue_full": 1})],
    )
    await store.update_attempt(done.rollout_id, "latest", status="succeeded", metadata={"m": 1})
    clock.shift(1.0)
    again = await store.start_rollout("again", config=RETRYING, worker_id="w2")
    # Reserved and never used: a counter that is kept only with spans would forget it.
    await store.get_next_span_sequence_id(again.rollout_id, again.attempt.attempt_id)
    await store.update_attempt(again.rollout_id, "latest", status="failed")
    await store.update_worker("w3", {"cpu": 1})


async def everything(store: LightningStore) -> dict[str, Any]:
    """Read all that can be read."""
    rollouts = list(await store.query_rollouts())
    attempts = [attempt for rollout in rollouts for attempt in await store.query_attempts(rollout.rollout_id)]
    counts = await store.statistics()
    return {
        "rollouts": rollouts,
        "attempts": attempts,
        "spans": [list(await store.query_spans(rollout.rollout_id)) for rollout in rollouts],
        "open": [list(await store.query_open_spans(rollout.rollout_id)) for rollout in rollouts],
        "receipts": [await store.get_receipt(at.rollout_id, at.attempt_id) for at in attempts],
        "resources": list(await store.query_resources(sort_by="resources_id")),
        "latest": await store.get_latest_resources(),
        "workers": list(await store.query_workers()),
        # Without ``uptime`` and the size of files, which differ from opening to opening.
        "counts": {key: value for key, value in counts.items() if key.startswith(("total_", "rollouts_"))},
    }


class CapabilitiesContract(ContractBase):
    """What is declared is true."""

    async def test_every_capability_is_declared(self, store: LightningStore) -> None:
        declared = store.capabilities
        assert set(declared) == set(LightningStoreCapabilities.__annotations__)
        assert all(isinstance(value, bool) for value in declared.values())

    async def test_durable_means_that_all_is_there_again(
        self, store: LightningStore, clock: ManualClock
    ) -> None:
        if not store.capabilities.get("durable"):
            pytest.skip("this store declares that it is not durable")
        await populate(store, clock)
        before = await everything(store)
        await store.close()
        async with await self.reopen(clock) as reopened:
            assert await everything(reopened) == before
            # The order of the queue survives, with what was queued again at its end.
            assert await drain(reopened) == ["first", {"second": [None, float("inf")]}, "again"]
            (done,) = await reopened.query_rollouts(status_in=["succeeded"])
            attempt = await reopened.get_latest_attempt(done.rollout_id)
            assert attempt is not None
            stored = await reopened.add_span(span_of(attempt))
            assert stored is not None
            assert stored.sequence_id == 3

    async def test_durable_means_that_repeats_stay_repeats(
        self, store: LightningStore, clock: ManualClock
    ) -> None:
        if not store.capabilities.get("durable"):
            pytest.skip("this store declares that it is not durable")
        rollout = await store.start_rollout("x")
        span, begun = span_of(rollout), open_span_of(rollout)
        account = account_of(rollout, new_writer_id(7), revision=2, started=2)
        await store.add_many_spans([span], opened=[begun], accounts=[account])
        await store.close()
        async with await self.reopen(clock) as reopened:
            assert await reopened.add_span(span) is None
            older = account.model_copy(update={"revision": 1, "started": 99})
            stored = await reopened.add_many_spans([ended(begun)], opened=[begun], accounts=[older])
            assert [stored_span.sequence_id for stored_span in stored] == [2]
            receipt = await reopened.get_receipt(rollout.rollout_id, "latest")
            assert (receipt.started, receipt.stored, receipt.open) == (2, 2, 0)

    async def test_a_url_opens_the_same_data(self, store: LightningStore, clock: ManualClock) -> None:
        if store.url is None:
            pytest.skip("this store declares no url")
        await populate(store, clock)
        async with open_store(store.url) as other:
            assert await everything(other) == await everything(store)
            claimed = await other.dequeue_rollout()
            assert claimed is not None
            assert await store.get_rollout_by_id(claimed.rollout_id) == claimed
            # What one handle has claimed, the other does not get.
            rest = [*await drain(store), *await drain(other)]
            assert rest == [{"second": [None, float("inf")]}, "again"]

    async def test_zero_copy_means_that_a_pickle_reaches_the_same_data(
        self, store: LightningStore, clock: ManualClock
    ) -> None:
        if not store.capabilities.get("zero_copy"):
            pytest.skip("this store declares that it cannot be pickled")
        await populate(store, clock)
        copy: LightningStore = pickle.loads(pickle.dumps(store))  # noqa: S301 - our own bytes
        async with copy:
            assert await everything(copy) == await everything(store)
            rollout = await copy.start_rollout("from the copy")
        assert await store.get_rollout_by_id(rollout.rollout_id) == rollout

    async def test_an_otlp_endpoint_is_there_or_refused(self, store: LightningStore) -> None:
        if store.capabilities.get("otlp_traces"):
            assert store.otlp_traces_endpoint().startswith(("http://", "https://"))
        else:
            with pytest.raises(StoreError):
                store.otlp_traces_endpoint()


class StatisticsContract(ContractBase):
    """``statistics``."""

    async def test_an_empty_store_counts_nothing(self, store: LightningStore) -> None:
        counts = await store.statistics()
        assert counts["name"]
        assert counts["uptime"] >= 0
        for key in ("rollouts", "attempts", "spans", "resources", "workers", "open_spans"):
            assert counts[f"total_{key}"] == 0  # type: ignore[literal-required]
        assert not any(counts["rollouts_by_status"].values())

    async def test_everything_is_counted(self, store: LightningStore, clock: ManualClock) -> None:
        await populate(store, clock)
        counts = await store.statistics()
        assert counts["total_rollouts"] == 4
        assert counts["total_attempts"] == 2
        assert counts["total_spans"] == 2
        assert counts["total_open_spans"] == 1
        assert counts["total_resources"] == 1
        assert counts["total_workers"] == 3
        present = {status: count for status, count in counts["rollouts_by_status"].items() if count}
        assert present == {"queuing": 2, "succeeded": 1, "requeuing": 1}


class CloseContract(ContractBase):
    """``close``."""

    async def test_every_method_of_the_contract_is_known_here(self, store: LightningStore) -> None:
        methods = {
            name
            for name in dir(LightningStore)
            if not name.startswith(("_", "do_")) and callable(getattr(LightningStore, name))
        }
        # Whoever adds a method to the contract has to say here what it does after ``close()``.
        assert methods - set(CALLS) == {"close", "otlp_traces_endpoint", "add_otel_span", "has_copy_at"}
        assert store.capabilities is not None

    async def test_a_closed_store_says_so(self, store: LightningStore) -> None:
        await store.start_rollout("x")
        await store.close()
        for method, call in CALLS.items():
            try:
                await call(store)
            except StoreClosed:
                continue
            pytest.fail(f"{method} after close() does not raise StoreClosed")

    async def test_closing_again_is_harmless(self, store: LightningStore) -> None:
        await store.close()
        await store.close()
        await asyncio.gather(store.close(), store.close())

    async def test_a_store_that_was_never_used_can_be_closed(self, store: LightningStore) -> None:
        await store.close()

    async def test_leaving_the_block_closes(self, store: LightningStore) -> None:
        async with store as entered:
            assert entered is store
            await entered.start_rollout("x")
        with pytest.raises(StoreClosed):
            await store.query_rollouts()

    async def test_calls_under_way_finish_first(self, store: LightningStore, clock: ManualClock) -> None:
        rollout = await store.start_rollout("x")
        writes = [asyncio.create_task(store.add_span(span_of(rollout))) for _ in range(50)]
        # So that each write has begun; ``close`` may let it finish or refuse it, and must not lose it in
        # between.
        await asyncio.sleep(0)
        await store.close()
        outcomes: list[Any] = await asyncio.gather(*writes, return_exceptions=True)
        refused = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        assert all(isinstance(outcome, StoreClosed) for outcome in refused), refused
        if store.capabilities.get("durable"):
            async with await self.reopen(clock) as reopened:
                kept = await reopened.query_spans(rollout.rollout_id)
                # Acknowledged is stored, refused is not: nothing else.
                assert len(kept) == len(outcomes) - len(refused)
