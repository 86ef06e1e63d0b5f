from __future__ import annotations

import asyncio
import gc
import os
import signal
import threading
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from tracer_sample import new_attempt, read

from agentlightning.store import InMemoryLightningStore, LightningStore, open_store
from agentlightning.tracer import LightningSpanProcessor, OtelTracer
from agentlightning.tracer.provider import own_provider


def processors_of(provider: Any) -> list[Any]:
    return list(provider._active_span_processor._span_processors)


def global_state() -> dict[str, Any]:
    """What a tracer might leave changed in a process."""
    import concurrent.futures

    return {
        "provider": trace._TRACER_PROVIDER,
        "once": trace._TRACER_PROVIDER_SET_ONCE._done,
        "set_tracer_provider": trace.set_tracer_provider,
        "Thread.start": threading.Thread.start,
        "Thread.run": threading.Thread.run,
        "Timer.start": threading.Timer.start,
        "submit": concurrent.futures.ThreadPoolExecutor.submit,
        "sigterm": signal.getsignal(signal.SIGTERM),
        "environ": dict(os.environ),
        "threads": {thread for thread in threading.enumerate() if not thread.name.startswith("asyncio_")},
        "files": {
            str(link.readlink())
            for link in Path("/proc/self/fd").iterdir()
            if link.exists() and link.is_symlink()
        },
        "sys.meta_path": list(__import__("sys").meta_path),
        "handlers": list(__import__("logging").getLogger().handlers),
    }


def test_fifty_rounds_leave_nothing_behind(store: LightningStore) -> None:
    first = OtelTracer()
    with first.lifespan(store):  # the first round imports what later rounds find
        pass
    before = global_state()
    held = trace.get_tracer("obtained before any round")
    for _ in range(50):
        ids = asyncio.run(new_attempt(store))
        tracer = OtelTracer()
        tracer.init()
        tracer.init_worker(0, store)
        ours = [
            each
            for each in processors_of(trace.get_tracer_provider())
            if isinstance(each, LightningSpanProcessor)
        ]
        assert ours == [tracer.processor]
        with tracer.trace_context(rollout_id=ids[0], attempt_id=ids[1]):
            held.start_span("by an old tracer").end()
            trace.get_tracer("agent").start_span("by a new tracer").end()
        tracer.teardown_worker(0)
        tracer.teardown()
        assert processors_of(own_provider()) == []
        names = [span.name for span in asyncio.run(read(store, ids))]
        assert names == ["by an old tracer", "by a new tracer", "rollout"]
    gc.collect()
    assert global_state() == before


@pytest.fixture
def foreign() -> Any:
    """A provider that the user installed, with an exporter of theirs; the global is put back afterwards."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    before, done = trace._TRACER_PROVIDER, trace._TRACER_PROVIDER_SET_ONCE._done
    trace._TRACER_PROVIDER, trace._TRACER_PROVIDER_SET_ONCE._done = provider, True
    yield provider, exporter
    trace._TRACER_PROVIDER, trace._TRACER_PROVIDER_SET_ONCE._done = before, done
    provider.shutdown()


def test_a_foreign_exporter_sees_every_span_once_in_fifty_rounds(store: LightningStore, foreign: Any) -> None:
    provider, exporter = foreign
    for number in range(50):
        ids = asyncio.run(new_attempt(store))
        tracer = OtelTracer()
        with tracer.lifespan(store):
            assert sum(isinstance(each, LightningSpanProcessor) for each in processors_of(provider)) == 1
            with tracer.trace_context(rollout_id=ids[0], attempt_id=ids[1]):
                trace.get_tracer("agent").start_span(f"step-{number}").end()
        assert [span.name for span in asyncio.run(read(store, ids))] == [f"step-{number}", "rollout"]
    assert trace.get_tracer_provider() is provider
    assert len(processors_of(provider)) == 1
    names = [span.name for span in exporter.get_finished_spans()]
    assert sorted(names) == sorted([f"step-{number}" for number in range(50)] + ["rollout"] * 50)


def test_a_program_that_installs_its_own_provider_later_keeps_it_and_is_recorded(
    store: LightningStore,
) -> None:
    ids = asyncio.run(new_attempt(store))
    exporter = InMemorySpanExporter()
    theirs = TracerProvider(shutdown_on_exit=False)
    theirs.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = OtelTracer()
    with tracer.lifespan(store), tracer.trace_context(rollout_id=ids[0], attempt_id=ids[1]):
        trace.get_tracer("agent").start_span("before").end()
        trace.set_tracer_provider(theirs)
        assert trace.get_tracer_provider() is theirs
        trace.get_tracer("agent").start_span("after").end()
    assert trace.get_tracer_provider() is theirs
    assert {span.name for span in asyncio.run(read(store, ids))} == {"before", "after", "rollout"}
    assert [span.name for span in exporter.get_finished_spans()] == ["after"]
    assert len(processors_of(theirs)) == 1
    trace._TRACER_PROVIDER, trace._TRACER_PROVIDER_SET_ONCE._done = None, False
    theirs.shutdown()


def test_two_tracers_in_one_process_record_side_by_side(store: LightningStore) -> None:
    with InMemoryContext() as other:
        first, second = OtelTracer(), OtelTracer()
        with first.lifespan(store), second.lifespan(other):
            with first.trace_context("one") as one:
                one.start_span("a").end()
            with second.trace_context("two") as two:
                two.start_span("b").end()
        for opened, handle, names in ((store, one, ["a", "one"]), (other, two, ["b", "two"])):
            ids = handle.rollout_id, handle.attempt_id
            assert [span.name for span in asyncio.run(read(opened, ids))] == names
            receipt = asyncio.run(opened.get_receipt(*ids))
            assert (receipt.started, receipt.whole) == (2, True)


class InMemoryContext:
    """A memory store for synchronous code."""

    def __enter__(self) -> LightningStore:
        self.store = InMemoryLightningStore()
        return self.store

    def __exit__(self, *exc: object) -> None:
        asyncio.run(self.store.close())


def test_a_users_sigterm_handler_is_never_replaced(store: LightningStore) -> None:
    def theirs(number: int, frame: Any) -> None:
        raise AssertionError

    before = signal.signal(signal.SIGTERM, theirs)
    try:
        with OtelTracer().lifespan(store):
            assert signal.getsignal(signal.SIGTERM) is theirs
        assert signal.getsignal(signal.SIGTERM) is theirs
    finally:
        signal.signal(signal.SIGTERM, before)


def rss() -> int:
    gc.collect()
    return int(psutil.Process().memory_info().rss)


@contextmanager
def recording_into(path: Path) -> Iterator[OtelTracer]:
    """A tracer that records into a file; the file is closed afterwards."""
    store = open_store(f"sqlite:///{path}")
    tracer = OtelTracer()
    try:
        with tracer.lifespan(store):
            yield tracer
    finally:
        asyncio.run(store.close())


def run_contexts(tracer: OtelTracer, count: int) -> None:
    """Contexts with two long spans each; the store forgets nothing, so it is not the one that is measured."""
    for _ in range(count):
        with tracer.trace_context() as handle:
            for number in range(2):
                handle.start_span(f"s{number}", attributes={"body": "x" * 5000}).end()


@pytest.mark.soak
def test_a_thousand_contexts_do_not_grow_the_process(tmp_path: Path) -> None:
    with recording_into(tmp_path / "store.db") as tracer:
        run_contexts(tracer, 1200)  # SQLite's page cache and the memory of past traces reach their bounds
        before = rss()
        run_contexts(tracer, 1000)
        assert rss() - before < 5_000_000


def test_a_context_leaves_no_memory_behind(tmp_path: Path) -> None:
    """No body of a span stays in Python's memory; what libraries written in C keep, only the long form sees."""
    with recording_into(tmp_path / "store.db") as tracer:
        run_contexts(tracer, 50)
        tracemalloc.start()
        try:
            run_contexts(tracer, 50)
            gc.collect()
            left, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert (
        left < 50 * 7000
    )  # 3000 are what is remembered of a trace, up to a bound that the long form reaches
