"""How a rollout ends that no block is left for: with a future, with what everybody forgets, and with the recording."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor

from agentlightning.store import InMemoryLightningStore, LightningStore
from agentlightning.store.sealing import Sealing
from agentlightning.testing import FakeOpenAI, FaultyStore, wait_until
from agentlightning.tracer import OtelTracer, workers
from agentlightning.tracer.event_loops import run_sync
from agentlightning.tracer.provider import own_provider, remove_processor


def ended(store: LightningStore) -> dict[str, str]:
    """Return what each rollout is about, and its status."""
    return {str(each.input): each.status for each in run_sync(store.query_rollouts())}


def counted(store: LightningStore) -> list[tuple[int, int, int]]:
    """Return how many spans of each rollout were started, are stored, and are open."""
    ids = [each.rollout_id for each in run_sync(store.query_rollouts())]
    receipts = [run_sync(store.get_receipt(each, "latest")) for each in ids]
    return [(each.started, each.stored, each.open) for each in receipts]


class OnEnd(SpanProcessor):
    """Another exporter of the program."""

    def __init__(self, do: Callable[[str], None]) -> None:
        self._do = do

    def on_end(self, span: ReadableSpan) -> None:
        self._do(span.name)


@contextmanager
def exporting(do: Callable[[str], None]) -> Iterator[None]:
    """Have another exporter on the provider that the tracer will join, and before it."""
    processor = OnEnd(do)
    own_provider().add_span_processor(processor)
    try:
        yield
    finally:
        remove_processor(own_provider(), processor)


def test_who_resolves_a_future_or_forgets_it_does_not_wait_for_the_store(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = FaultyStore(InMemoryLightningStore(), only={"add_many_spans"})
    tracer = OtelTracer(max_wait_time=50)
    with tracer.lifespan(store):
        futures: list[Any] = [tracer.rollout(task)(Future)() for task in ("done", "forgotten")]
        store.hold()
        futures[0].set_result(None)
        futures.clear()
        wait_until(lambda: store.held)
        store.release()
        wait_until(lambda: ended(store) == {"done": "succeeded", "forgotten": "cancelled"})
    assert counted(store) == [(1, 1, 0)] * 2
    assert [record.message for record in caplog.records] == []  # such as that the flush took too long


def test_an_attempt_is_sealed_before_the_line_after_the_one_that_resolves_its_future() -> None:
    store, tracer = InMemoryLightningStore(), OtelTracer(capture_tokens="request")
    with FakeOpenAI() as server, server.client() as client, tracer.lifespan(store):
        server.enqueue("one")

        @tracer.rollout("sealed", seal=Sealing(reward="optional"))
        def agent() -> Any:
            client.chat.completions.create(model="policy", messages=[{"role": "user", "content": "1?"}])
            return Future[None]()

        agent().set_result(None)
        (rollout,) = run_sync(store.query_rollouts())
        (attempt,) = run_sync(store.query_attempts(rollout.rollout_id))
    assert (attempt.status, attempt.seal is not None) == ("succeeded", True)


def test_calls_of_a_thread_that_is_about_to_end_when_its_future_is_done_are_not_in_doubt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(workers, "JOIN_SECONDS", 60.0)  # a busy machine may not come to the thread any sooner
    store, tracer = InMemoryLightningStore(), OtelTracer()

    handed: list[Future[None]] = []
    is_returned, is_called, is_done = threading.Event(), threading.Event(), threading.Event()

    def call() -> None:
        with trace.get_tracer("agent").start_as_current_span("helper's"):
            pass
        is_called.set()
        is_done.wait(60)

    def work() -> None:
        threading.Thread(target=call).start()
        is_called.wait(60)
        is_returned.wait(60)
        handed.pop().set_result(None)  # nobody has it after that
        is_done.set()

    @tracer.rollout("helped")
    def agent() -> Any:
        handed.append(Future())
        threading.Thread(target=work).start()
        return handed[0]

    with tracer.lifespan(store), tracer.rollout("another"):
        agent()
        is_returned.set()
        wait_until(lambda: ended(store)["helped"] == "succeeded")
        (rollout,) = [each for each in run_sync(store.query_rollouts()) if each.input == "helped"]
        spans = run_sync(store.query_spans(rollout.rollout_id))
    assert sorted(span.name for span in spans) == ["agent", "helper's"]
    assert not [name for span in spans for name in span.attributes if "shared_worker" in name]


def test_what_is_not_sealed_where_a_future_ends_in_an_event_loop_is_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store, tracer = InMemoryLightningStore(), OtelTracer()

    with tracer.lifespan(store), closing(asyncio.new_event_loop()) as loop:
        future = loop.create_future()
        tracer.rollout("asked for", seal=Sealing(reward="optional"))(lambda: future)()
        future.set_result(None)
        loop.run_until_complete(asyncio.sleep(0))
    assert ended(store) == {"asked for": "succeeded"}
    assert "is not sealed as seal= asks" in caplog.text


def test_a_log_filter_that_raises_holds_up_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("AGL_SPOOL_DIR", str(tmp_path / "spool"))

    def refuse(record: logging.LogRecord) -> bool:
        if "spans stored" in record.msg:
            raise ValueError("of the program")
        return True

    log = logging.getLogger("agentlightning.tracer.otel")
    log.addFilter(refuse)
    try:
        store, tracer = InMemoryLightningStore(), OtelTracer()
        refusing = FaultyStore(
            store, fail_every=1, only={"add_many_spans"}, error=lambda: ValueError("refused")
        )
        with tracer.lifespan(refusing):

            @tracer.rollout
            def agent() -> Any:
                return future

            future: Future[None] = Future()
            agent()
            future.set_result(None)
            wait_until(lambda: "reporting what is stored failed with ValueError" in caplog.text)
            refusing.fail_every = 0
            with tracer.rollout("next"):
                pass
            assert counted(store)[-1] == (1, 1, 0)
        assert ended(store) == {"{}": "succeeded", "next": "succeeded"}
    finally:
        log.removeFilter(refuse)


def test_a_future_that_the_garbage_collector_finds_is_no_work_of_the_thread_that_it_interrupts() -> None:
    store, inside, is_interrupted = InMemoryLightningStore(), list[str](), list[str]()

    def export(name: str) -> None:
        here = threading.current_thread().name
        if here in inside:  # with a lock, it would wait for itself
            is_interrupted.append(name)
        inside.append(here)
        if name == "agent's":
            gc.collect()
        inside.remove(here)

    tracer = OtelTracer()
    with exporting(export), tracer.lifespan(store):
        for make in (Future, lambda: (letter for letter in "ab")):
            forgotten: Any = tracer.rollout("forgotten")(make)()
            cycle = [forgotten]
            cycle.append(cycle)
            del forgotten, cycle
        with trace.get_tracer("agent").start_as_current_span("agent's"):
            pass
        wait_until(lambda: ended(store) == {"forgotten": "cancelled"})
    assert is_interrupted == []
    assert counted(store) == [(1, 1, 0)] * 2


def test_a_future_that_its_function_keeps_in_a_context_variable_is_forgotten_with_the_context() -> None:
    variable: contextvars.ContextVar[Any] = contextvars.ContextVar("variable")
    store, tracer = InMemoryLightningStore(), OtelTracer()

    @tracer.rollout("kept in its context")
    def agent() -> Any:
        future: Future[None] = Future()
        variable.set(future)
        return future

    with tracer.lifespan(store):
        contextvars.copy_context().run(agent)
        gc.collect()
        wait_until(lambda: ended(store) == {"kept in its context": "cancelled"})


class Alike:
    """A future by ``asyncio.isfuture``, of another library."""

    _asyncio_future_blocking = False

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self.callbacks: list[Any] = []

    def done(self) -> bool:
        return self.error is not None

    def cancelled(self) -> bool:
        return False

    def exception(self) -> BaseException | None:
        return self.error

    def add_done_callback(self, callback: Any) -> None:
        self.callbacks.append(callback)


class Slotted:
    """One that nothing can refer to weakly."""

    __slots__ = ()
    _asyncio_future_blocking = False


def test_futures_of_other_libraries_end_their_rollout_or_are_said_not_to(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store, tracer = InMemoryLightningStore(), OtelTracer()
    with tracer.lifespan(store):
        future, slotted = Alike(), Slotted()
        assert tracer.rollout("fails")(lambda: future)() is future
        assert tracer.rollout("slotted")(lambda: slotted)() is slotted
        assert not trace.get_current_span().get_span_context().is_valid
        future.error = ValueError("failed")
        for callback in future.callbacks:
            callback(future)
    assert ended(store) == {"fails": "failed", "slotted": "succeeded"}
    (said,) = [record.message for record in caplog.records]
    assert "returned a test_rollouts_without_a_block.Slotted" in said


def test_recording_that_ends_while_another_thread_ends_a_rollout_waits_for_its_last_span(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store, tracer = InMemoryLightningStore(), OtelTracer()
    is_ending, is_torn_down = threading.Event(), threading.Event()
    future: Future[None] = Future()

    def export(name: str) -> None:
        if name == "agent":
            is_ending.set()
            is_torn_down.wait(60)

    @tracer.rollout
    def agent() -> Any:
        return future

    def leave(*_: Any) -> None:
        is_torn_down.set()

    with exporting(export):
        resolving = threading.Thread(target=future.set_result, args=(None,))
        with tracer.lifespan(store):
            agent()
            resolving.start()
            is_ending.wait(60)
            # Recording ends other rollouts, too; this one lets the thread go on, while the end of recording is under way.
            with exporting(leave):
                unread = tracer.rollout("unread")(lambda: (letter for letter in "ab"))()
                tracer.teardown_worker(0)
        resolving.join()
    del unread
    assert counted(store) == [(1, 1, 0)] * 2
    assert ended(store) == {"{}": "succeeded", "unread": "cancelled"}
    assert [record.message for record in caplog.records] == []
