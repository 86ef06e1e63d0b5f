"""Stores that hang, lie, raise what they must not, and call back; and what a flush may claim about them."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import context as otel_context
from opentelemetry import trace
from tracer_sample import assert_balanced, new_attempt, read

from agentlightning.pipeline.chain import Chain
from agentlightning.recorder.scope import context_with_scope
from agentlightning.recorder.settings import WriterSettings
from agentlightning.recorder.thread import THREAD_NAME
from agentlightning.store import InMemoryLightningStore, LightningStore
from agentlightning.testing import FaultyStore, wait_until, wait_until_async
from agentlightning.tracer import OtelTracer
from agentlightning.tracer.provider import own_provider
from agentlightning.types import Span


@pytest.fixture(autouse=True)
def spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AGL_SPOOL_DIR", str(tmp_path / "spool"))
    return tmp_path / "spool"


def step(name: str = "step") -> None:
    trace.get_tracer("agent").start_span(name).end()


@pytest.mark.asyncio
async def test_a_store_that_hangs_costs_another_store_no_span(store: LightningStore) -> None:
    async with InMemoryLightningStore() as inner:
        stuck, healthy = FaultyStore(inner, only={"add_many_spans"}), FaultyStore(store)
        held, other = await new_attempt(stuck), await new_attempt(healthy)
        tracer = OtelTracer(max_wait_time=10)
        tracer.init_worker(0)
        stuck.hold()
        # Both attempts are in one batch of the writer; the store that hangs is asked first.
        async with tracer.trace_context(store=stuck, rollout_id=held[0], attempt_id=held[1]) as first:
            pass
        async with tracer.trace_context(store=healthy, rollout_id=other[0], attempt_id=other[1]) as second:
            step()
        await wait_until_async(lambda: stuck.held > 0)
        writer = tracer.processor.writer
        await asyncio.to_thread(writer.shutdown, 0.05)  # the store still hangs
        next_start = OtelTracer()
        with next_start.lifespan(healthy):  # what was not written waits in the spool
            assert await asyncio.to_thread(next_start.processor.force_flush, 10_000)
        assert sorted(span.name for span in await read(store, other)) == ["rollout", "step"]
        assert_balanced(await store.get_receipt(*other))
        stuck.release()
        tracer.teardown_worker(0)
        for handle in (first, second):
            assert_balanced(handle.receipt())


@pytest.mark.asyncio
async def test_a_writer_that_was_stopped_with_two_stores_in_hand_ends_when_the_first_answers(
    store: LightningStore,
) -> None:
    async with InMemoryLightningStore() as inner:
        stuck = FaultyStore(inner, only={"add_many_spans"})
        held, other = await new_attempt(stuck), await new_attempt(store)
        tracer = OtelTracer(max_wait_time=10, settings=WriterSettings(flush_interval=60_000))
        tracer.init_worker(0)
        stuck.hold()
        # The end of the inner context makes a batch of its span, and of the outer one's start.
        async with tracer.trace_context(store=store, rollout_id=other[0], attempt_id=other[1]):
            async with tracer.trace_context(store=stuck, rollout_id=held[0], attempt_id=held[1]):
                pass
            await wait_until_async(lambda: stuck.held > 0)
            await asyncio.to_thread(tracer.processor.writer.shutdown, 0.05)
        stuck.release()
        tracer.teardown_worker(0)
        await wait_until_async(lambda: THREAD_NAME not in {each.name for each in threading.enumerate()})


class Strange(FaultyStore):
    """Does something that the contract forbids, once."""

    def __init__(self, inner: LightningStore, how: str) -> None:
        super().__init__(inner)
        self.how = how
        self.times = 1

    async def add_many_spans(self, spans: Any, **more: Any) -> Any:
        if spans and self.times:
            self.times -= 1
            if self.how == "cancelled":
                raise asyncio.CancelledError
            if self.how == "exit":
                raise SystemExit(3)
            await super().add_many_spans(spans, **more)
            return None
        return await super().add_many_spans(spans, **more)


@pytest.mark.parametrize("how", ["cancelled", "exit", "none"])
@pytest.mark.asyncio
async def test_a_store_that_breaks_the_contract_does_not_stop_the_writer(
    store: LightningStore, how: str
) -> None:
    ids = await new_attempt(store)
    strange = Strange(store, how)
    tracer = OtelTracer(max_wait_time=30_000)
    with tracer.lifespan(strange):
        async with tracer.trace_context(rollout_id=ids[0], attempt_id=ids[1]) as handle:
            step("one")
            await asyncio.to_thread(tracer.processor.force_flush, 10_000)
            step("two")
        assert await asyncio.to_thread(tracer.processor.force_flush, 10_000)
    assert strange.times == 0
    assert [span.name for span in await read(store, ids)] == ["one", "two", "rollout"]
    receipt = await store.get_receipt(*ids)
    assert receipt.whole, receipt
    assert_balanced(handle.receipt())


@pytest.mark.asyncio
async def test_leaving_does_not_claim_what_was_spooled_before(
    store: LightningStore, caplog: pytest.LogCaptureFixture
) -> None:
    ids = await new_attempt(store)
    faulty = FaultyStore(store, only={"add_many_spans"})
    tracer = OtelTracer()
    with tracer.lifespan(faulty):
        async with tracer.trace_context(rollout_id=ids[0], attempt_id=ids[1]) as handle:
            faulty.fail_for_ever()
            step("spooled")
            assert not await asyncio.to_thread(tracer.processor.force_flush, 60_000)
            faulty.heal()
            step("stored")
            caplog.clear()
        assert handle.receipt().dropped == {"spooled": 1}
        assert "dropped {'spooled': 1}" in caplog.text


@pytest.mark.asyncio
async def test_a_flush_does_not_claim_what_had_no_room(store: LightningStore) -> None:
    ids = await new_attempt(store)
    stuck = FaultyStore(store, only={"add_many_spans"})
    tracer = OtelTracer(settings=WriterSettings(max_queue_size=2, batch_size=1))
    with tracer.lifespan(stuck):
        async with tracer.trace_context(rollout_id=ids[0], attempt_id=ids[1]) as handle:
            stuck.hold()
            for number in range(20):
                step(f"s{number}")
            assert handle.receipt().dropped["queue_full"] > 0
            stuck.release()
            assert await asyncio.to_thread(tracer.processor.force_flush, 10_000) is False
            assert await asyncio.to_thread(tracer.processor.force_flush, 10_000) is True  # told once
    assert_balanced(await store.get_receipt(*ids))


@pytest.mark.asyncio
async def test_rollouts_end_while_others_keep_the_queue_full(store: LightningStore) -> None:
    """The writer never finds an empty queue: each write brings the next span."""
    busy = await new_attempt(store)
    done = asyncio.Event()
    loop = asyncio.get_running_loop()

    class Busy(FaultyStore):
        async def add_many_spans(self, spans: Any, **more: Any) -> Any:
            if not done.is_set() and spans:
                trace.get_tracer("agent").start_span("busy", context=inside_busy).end()
            return await super().add_many_spans(spans, **more)

        async def update_attempt(self, *args: Any, **more: Any) -> Any:
            loop.call_soon_threadsafe(done.set)
            return await super().update_attempt(*args, **more)

    tracer = OtelTracer(settings=WriterSettings(flush_interval=1))
    busy_store = Busy(store)
    with tracer.lifespan(busy_store):
        scope = tracer.processor.new_scope(busy_store, *busy)
        inside_busy = context_with_scope(scope, otel_context.get_current())
        async with tracer.trace_context("short") as handle:
            step()
        await asyncio.wait_for(done.wait(), 20)
        tracer.processor.close_scope(scope)
    rollout = await store.get_rollout_by_id(handle.rollout_id)
    assert rollout is not None
    assert rollout.status == "succeeded"


@pytest.mark.asyncio
async def test_after_leaving_the_rollout_has_ended(store: LightningStore) -> None:
    tracer = OtelTracer(settings=WriterSettings(batch_size=3))
    with tracer.lifespan(store):
        async with tracer.trace_context() as handle:
            for number in range(20):
                step(f"s{number}")
        rollout = await store.get_rollout_by_id(handle.rollout_id)
        assert rollout is not None
        assert rollout.status == "succeeded"


@pytest.mark.asyncio
async def test_the_end_of_a_rollout_is_tried_again(store: LightningStore) -> None:
    faulty = FaultyStore(store, only={"update_attempt"}, script=["refuse", "refuse"])
    tracer = OtelTracer()
    with tracer.lifespan(faulty):
        async with tracer.trace_context() as handle:
            step()
    assert faulty.faults == 2
    rollout = await store.get_rollout_by_id(handle.rollout_id)
    assert rollout is not None
    assert rollout.status == "succeeded"


@pytest.mark.asyncio
async def test_an_end_that_the_store_never_takes_is_said(
    store: LightningStore, caplog: pytest.LogCaptureFixture
) -> None:
    faulty = FaultyStore(store, only={"update_attempt"})
    tracer = OtelTracer()
    with tracer.lifespan(faulty):
        faulty.fail_for_ever()
        async with tracer.trace_context() as handle:
            step()
    assert handle.attempt_id in caplog.text
    assert "could not be marked succeeded" in caplog.text


@pytest.mark.asyncio
async def test_a_flush_on_the_writers_own_thread_returns_at_once(store: LightningStore) -> None:
    answers: list[bool] = []

    class Flushing(FaultyStore):
        async def add_many_spans(self, spans: Any, **more: Any) -> Any:
            if not answers:
                answers.append(tracer.processor.force_flush(60_000_000))
            return await super().add_many_spans(spans, **more)

    ids = await new_attempt(store)
    tracer = OtelTracer()
    with tracer.lifespan(Flushing(store)):
        async with tracer.trace_context(rollout_id=ids[0], attempt_id=ids[1]):
            step()
    assert answers == [False]
    assert (await store.get_receipt(*ids)).whole


@pytest.mark.asyncio
async def test_asking_for_tokens_never_fails_an_agent(store: LightningStore) -> None:
    class Unreadable(FaultyStore):
        async def get_rollout_by_id(self, rollout_id: str) -> Any:
            raise ConnectionError("no")

    ids = await new_attempt(store)
    tracer = OtelTracer(capture_tokens="request")
    with tracer.lifespan(Unreadable(store)):
        async with tracer.trace_context(rollout_id=ids[0], attempt_id=ids[1]):
            step()
    assert len(await read(store, ids)) == 2


@pytest.mark.asyncio
async def test_asking_for_tokens_never_hangs_an_agent(store: LightningStore) -> None:
    class Hanging(FaultyStore):
        async def get_rollout_by_id(self, rollout_id: str) -> Any:
            await asyncio.Event().wait()

    ids = await new_attempt(store)
    tracer = OtelTracer(capture_tokens="request", max_wait_time=200)
    with tracer.lifespan(Hanging(store)):
        async with asyncio.timeout(30):
            async with tracer.trace_context(rollout_id=ids[0], attempt_id=ids[1]):
                step()


def test_sixteen_flushes_keep_their_deadlines_while_a_store_blocks_its_thread(store: LightningStore) -> None:
    entered, let_go = threading.Event(), threading.Event()

    class Blocking(FaultyStore):
        async def add_many_spans(self, spans: Any, **more: Any) -> Any:
            entered.set()
            let_go.wait()
            return await super().add_many_spans(spans, **more)

    ids = asyncio.run(new_attempt(store))
    tracer = OtelTracer(max_wait_time=10)
    with tracer.lifespan(Blocking(store)):
        with tracer.trace_context(rollout_id=ids[0], attempt_id=ids[1]):
            step()
        entered.wait()
        answers: list[bool] = []
        threads = [
            threading.Thread(target=lambda: answers.append(tracer.processor.force_flush(10)))
            for _ in range(16)
        ]
        for thread in threads:
            thread.start()
        wait_until(lambda: len(answers) == 16)  # the store still blocks
        assert not any(answers)
        let_go.set()
        for thread in threads:
            thread.join()
    assert len(asyncio.run(read(store, ids))) == 2


@pytest.mark.asyncio
async def test_what_is_not_for_the_store_is_not_in_it_while_the_span_is_open(store: LightningStore) -> None:
    def hide(span: Span) -> Span:
        return span.model_copy(
            update={"attributes": dict.fromkeys(span.attributes, "hidden"), "name": "hidden"}
        )

    ids = await new_attempt(store)
    tracer = OtelTracer(chain=Chain([hide]))
    with tracer.lifespan(store):
        async with tracer.trace_context(rollout_id=ids[0], attempt_id=ids[1]) as handle:
            handle.start_span("secret", attributes={"key": "sk-secret"}).end()
            opened = handle.start_span("secret", attributes={"key": "sk-secret"})
            assert await asyncio.to_thread(tracer.processor.force_flush, 10_000)
            text = repr(await store.query_open_spans(*ids)) + repr(await store.query_spans(*ids))
            opened.end()
    assert "secret" not in text
    assert "hidden" in text


@pytest.mark.asyncio
async def test_a_stage_that_takes_spans_out_leaves_a_balanced_receipt_while_they_are_open(
    store: LightningStore,
) -> None:
    def without_secrets(span: Span) -> Any:
        return None if span.name.startswith("secret") else span

    ids = await new_attempt(store)
    tracer = OtelTracer(chain=Chain([without_secrets]))
    with tracer.lifespan(store):
        async with tracer.trace_context(rollout_id=ids[0], attempt_id=ids[1]) as handle:
            opened = handle.start_span("secret", attributes={"key": "sk-secret"})
            assert await asyncio.to_thread(tracer.processor.force_flush, 10_000)
            assert_balanced(await store.get_receipt(*ids))
            assert "sk-secret" not in repr(await store.query_open_spans(*ids))
            opened.end()
        handle.start_span("secret, never ended")
    receipt = await store.get_receipt(*ids)
    assert_balanced(receipt)
    assert receipt.dropped == {"pipeline": 1}


def test_an_init_that_fails_half_way_leaves_nothing_behind(store: LightningStore) -> None:
    class Nameless(FaultyStore):
        @property
        def local_path(self) -> str:
            raise OSError("no path today")

    os.environ.pop("AGL_SPOOL_DIR")
    before = trace._TRACER_PROVIDER, trace.set_tracer_provider, signal.getsignal(signal.SIGTERM)
    tracer = OtelTracer()
    with pytest.raises(OSError, match="no path today"):
        tracer.init_worker(0, Nameless(store))
    assert before == (trace._TRACER_PROVIDER, trace.set_tracer_provider, signal.getsignal(signal.SIGTERM))
    assert own_provider()._active_span_processor._span_processors == ()
    with tracer.lifespan(store):
        pass
