"""Spans and exceptions at their worst, and the bounds that hold all the same."""

from __future__ import annotations

import asyncio
import gc
import threading
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from tracer_sample import assert_balanced, new_attempt, read

from agentlightning.instrumentation.guard import reraise
from agentlightning.pipeline.chain import Chain
from agentlightning.recorder.settings import WriterSettings
from agentlightning.store import LightningStore, open_store
from agentlightning.testing import FaultyStore
from agentlightning.tracer import OtelTracer
from agentlightning.types import Span


class Mute(Exception):
    """An exception that cannot be printed."""

    def __str__(self) -> str:
        raise RuntimeError("no words")

    __repr__ = __str__


@pytest.mark.asyncio
async def test_an_exception_without_words_reaches_the_caller_as_itself(store: LightningStore) -> None:
    ids = await new_attempt(store)
    tracer = OtelTracer()
    with tracer.lifespan(store):

        async def agent() -> None:
            async with tracer.trace_context(rollout_id=ids[0], attempt_id=ids[1]):
                with tracer.operation_context("inner"):
                    raise Mute

        with pytest.raises(Mute):
            await agent()
        assert not trace.get_current_span().get_span_context().is_valid
    spans = await read(store, ids)
    assert [(span.name, span.status.status_code) for span in spans] == [
        ("inner", "ERROR"),
        ("rollout", "ERROR"),
    ]
    assert (await store.get_receipt(*ids)).whole


@pytest.mark.parametrize("scheme", ["memory", "sqlite"])
@pytest.mark.asyncio
async def test_whatever_a_span_carries_is_stored_or_counted(
    scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGL_SPOOL_DIR", str(tmp_path / "spool"))
    url = "memory://" if scheme == "memory" else f"sqlite:///{tmp_path / 'store.db'}"
    async with open_store(url) as store:
        ids = await new_attempt(store)
        tracer = OtelTracer(policy=reraise, max_wait_time=60_000)
        with tracer.lifespan(store):
            async with tracer.trace_context(rollout_id=ids[0], attempt_id=ids[1]) as handle:
                link = trace.Link(trace.get_current_span().get_span_context(), {"why": "x" * 100})
                handle.start_span("\ud800 lone \x00 nul").end()
                handle.start_span("n" * 3_000_000).end()
                handle.start_span("numbers", attributes={"nan": float("nan"), "inf": float("-inf")}).end()
                handle.start_span("links", links=[link] * 5000).end()
                busy = handle.start_span("events")
                for number in range(5000):
                    busy.add_event(f"e{number}", {"body": "y" * 100})
                busy.end()
                handle.start_span("clock", start_time=2_000_000_000).end(1_000_000_000)
                handle.start_span("before the epoch", start_time=-5).end(-3)
                handle.start_span("far", start_time=2**63).end(2**64)
                handle.start_span("", attributes={"": "empty", "list": ["a", "b"] * 50_000}).end()
                handle.start_span("\ud800", attributes={"\udfff": "\udfff"}).end()
        receipt = await store.get_receipt(*ids)
        assert_balanced(receipt)
        assert receipt.started == 11
        spans = {span.name: span for span in await read(store, ids)}
        assert len(spans["links"].links) == 5000
        assert len(spans["events"].events) == 5000
        assert spans["clock"].start_time == 2.0
        assert spans["clock"].end_time == 1.0
        assert receipt.stored == 11, receipt


@pytest.mark.asyncio
async def test_the_queue_counts_the_bytes_of_all_that_a_span_carries(store: LightningStore) -> None:
    stuck = FaultyStore(store, only={"add_many_spans"})
    ids = await new_attempt(store)
    tracer = OtelTracer(max_wait_time=10, settings=WriterSettings(max_queue_bytes=3_000_000))
    big = "x" * 1_000_000
    with tracer.lifespan(stuck):
        stuck.hold()
        async with tracer.trace_context(rollout_id=ids[0], attempt_id=ids[1]) as handle:
            link = trace.Link(trace.get_current_span().get_span_context(), {"body": big})
            for _ in range(5):
                handle.start_span(big).end()
                handle.start_span("list", attributes={"parts": [big]}).end()
                handle.start_span("link", links=[link]).end()
        stuck.release()
    receipt = await store.get_receipt(*ids)
    assert_balanced(receipt)
    assert receipt.dropped["queue_full"] > 8


@pytest.mark.asyncio
async def test_spans_can_be_read_while_the_writer_settles_them(store: LightningStore) -> None:
    ids = await new_attempt(store)
    tracer = OtelTracer(policy=reraise, settings=WriterSettings(flush_interval=0.1, batch_size=3))
    errors: list[BaseException] = []
    over = threading.Event()
    with tracer.lifespan(store):
        async with tracer.trace_context(rollout_id=ids[0], attempt_id=ids[1]) as handle:

            def look() -> None:
                try:
                    while not over.is_set():
                        handle.spans()
                except BaseException as error:
                    errors.append(error)

            reader = threading.Thread(target=look)
            reader.start()
            for number in range(1500):
                trace.get_tracer("agent").start_span(f"s{number}").end()
                if number % 50 == 0:
                    await asyncio.sleep(0)
            over.set()
            await asyncio.to_thread(reader.join)
    assert errors == []
    assert len(handle.spans()) == 1501


@pytest.mark.asyncio
async def test_a_stage_that_fails_costs_its_span_and_not_the_reader(store: LightningStore) -> None:
    def broken(span: Span) -> Span:
        if span.name == "bad":
            raise KeyError(span.name)
        return span

    ids = await new_attempt(store)
    tracer = OtelTracer(chain=Chain([broken]), policy=reraise)
    with tracer.lifespan(store):
        async with tracer.trace_context(rollout_id=ids[0], attempt_id=ids[1]) as handle:
            for name in ("good", "bad", "good"):
                trace.get_tracer("agent").start_span(name).end()
            handle.spans()
    assert [span.name for span in handle.spans()] == ["good", "good", "rollout"]
    receipt = await store.get_receipt(*ids)
    assert_balanced(receipt)
    assert receipt.dropped == {"pipeline": 1}


class Cyclic:
    """Ends a span when the garbage collector finds it, on whatever thread that is."""

    def __init__(self, span: trace.Span) -> None:
        self.span, self.me = span, self

    def __del__(self) -> None:
        self.span.end()


@pytest.mark.asyncio
async def test_spans_that_the_garbage_collector_ends_on_the_writers_thread_are_stored(
    store: LightningStore,
) -> None:
    class Collecting(FaultyStore):
        async def add_many_spans(self, spans: Any, **more: Any) -> Any:
            gc.collect()
            return await super().add_many_spans(spans, **more)

    def chain_collects(span: Span) -> Span:
        if span.name == "outer":
            gc.collect()
        return span

    ids = await new_attempt(store)
    tracer = OtelTracer(chain=Chain([chain_collects]), max_wait_time=60_000)
    before = gc.get_threshold()
    gc.set_threshold(3, 2, 2)  # also inside the writer's own critical sections
    try:
        with tracer.lifespan(Collecting(store)):
            async with tracer.trace_context(rollout_id=ids[0], attempt_id=ids[1]):
                for number in range(20):
                    Cyclic(trace.get_tracer("agent").start_span(f"s{number}"))
                    trace.get_tracer("agent").start_span("outer").end()
            gc.collect()
            assert await asyncio.to_thread(tracer.processor.force_flush, 60_000)
    finally:
        gc.set_threshold(*before)
    assert len(await read(store, ids)) == 41
    assert (await store.get_receipt(*ids)).whole


@pytest.mark.asyncio
async def test_spans_without_an_attempt_are_bounded_by_bytes(store: LightningStore) -> None:
    tracer = OtelTracer()
    with tracer.lifespan(store):
        for number in range(200):
            trace.get_tracer("agent").start_span(f"s{number}", attributes={"body": "x" * 1_000_000}).end()
        kept = tracer.processor.unattributed
        assert tracer.processor.unattributed_count == 200
        assert 0 < len(kept) <= 64
        assert kept[-1].name == "s199"


def test_what_is_dropped_is_named_to_the_store_only_until_it_knows(store: LightningStore) -> None:
    """An attempt that drops for hours must not carry the names of all of its losses in every batch."""
    longest = 0

    class Looking(FaultyStore):
        async def add_many_spans(self, spans: Any, **more: Any) -> Any:
            nonlocal longest
            longest = max([longest, *(len(account.unstored) for account in more["accounts"])])
            return await super().add_many_spans(spans, **more)

    def nothing(span: Span) -> Any:
        return span if span.name == "rollout" else None

    ids = asyncio.run(new_attempt(store))
    tracer = OtelTracer(chain=Chain([nothing]))
    with tracer.lifespan(Looking(store)):
        with tracer.trace_context(rollout_id=ids[0], attempt_id=ids[1]) as handle:
            for _ in range(30):
                spans = [handle.start_span("announced") for _ in range(10)]
                assert tracer.processor.force_flush(20_000)
                for span in spans:
                    span.end()
                assert tracer.processor.force_flush(20_000)
    receipt = asyncio.run(store.get_receipt(*ids))
    assert_balanced(receipt)
    assert receipt.dropped == {"pipeline": 300}
    assert longest <= 20
