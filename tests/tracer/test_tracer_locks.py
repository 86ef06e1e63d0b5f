"""Each lock of the tracer keeps what it guards, where threads change places after each instruction."""

from __future__ import annotations

import asyncio
import importlib.util
import pickle
import queue
import signal
import sys
import threading
from collections import deque
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from races import THREADS, together
from tracer_sample import new_attempt, spans_in

from agentlightning import _handover
from agentlightning._handover import ReentrantEvent
from agentlightning.recorder.scope import scope_in
from agentlightning.store import InMemoryLightningStore, LightningStore, open_store
from agentlightning.store.primitives import Primitive
from agentlightning.store.wrapper import StoreWrapper
from agentlightning.tracer import (
    LightningSpanExporter,
    OtelTracer,
    handed_items,
    handed_work,
    other_processes,
    provider,
)
from agentlightning.tracer import exporter as exporter_module
from agentlightning.tracer.base import get_active_tracer
from agentlightning.tracer.handed_work import carry_handed_work
from agentlightning.tracer.other_processes import Arrived, Handed, arrive
from agentlightning.tracer.provider import ProviderSession

LOOK = 20.0
"""Seconds after which a test gives up to wait for what a lost change would have brought about."""

# ---------------------------------------------------------------------- wake-ups


@pytest.mark.lock("_handover:ReentrantEvent._silent")
def test_no_wake_up_is_lost_however_many_ring() -> None:
    event = ReentrantEvent()
    work: deque[int] = deque()
    done: list[int] = []

    def race(role: int) -> None:
        if role:
            for index in range(10):
                work.append(index)
                event.set()
            return
        while len(done) < 10 * (THREADS - 1):
            assert event.wait(LOOK)
            while work:
                done.append(work.popleft())

    together(race, slow=(_handover,))
    assert not work


@pytest.mark.lock("_handover:ReentrantEvent._silent")
def test_what_several_ring_at_one_moment_is_one_wake_up() -> None:
    for _ in range(5):
        event = ReentrantEvent()
        assert not event.wait(0)
        together(lambda _, event=event: event.set(), slow=(_handover,))  # type: ignore[misc]
        assert event.is_set()
        assert event.wait(0)
        assert not event.wait(0)


# ---------------------------------------------------------------------- the provider


@pytest.fixture
def fresh_provider(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module as a process has it that has recorded nothing yet."""
    spec = importlib.util.spec_from_file_location(
        "agentlightning.tracer.provider_of_this_test", provider.__file__
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


@pytest.mark.lock("tracer.provider:_lock")
def test_threads_that_ask_for_our_provider_first_get_the_same_one(fresh_provider: ModuleType) -> None:
    found: list[Any] = []
    together(lambda _: found.append(fresh_provider.own_provider()), slow=(fresh_provider,))
    assert len(set(map(id, found))) == 1


@pytest.mark.lock("tracer.provider:_lock")
def test_after_recorders_that_come_and_go_at_one_moment_the_api_is_as_it_was() -> None:
    setter = trace.set_tracer_provider
    processors: Any = provider.own_provider()._active_span_processor

    def recorder(_number: int) -> None:
        for _ in range(2):
            session = ProviderSession(SpanProcessor())
            assert session.provider is provider.own_provider()
            session.close()

    together(recorder, 4, slow=(provider,))
    assert trace.set_tracer_provider is setter
    assert isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)
    assert processors._span_processors == ()


# ---------------------------------------------------------------------- the exporter


def ended_span(name: str = "step") -> ReadableSpan:
    span = TracerProvider(shutdown_on_exit=False).get_tracer("program").start_span(name)
    span.end()
    assert isinstance(span, ReadableSpan)
    return span


@pytest.mark.lock("tracer.exporter:LightningSpanExporter._lock")
def test_threads_that_export_first_start_one_rollout() -> None:
    store = InMemoryLightningStore()
    exporter = LightningSpanExporter(store)
    together(lambda _: exporter.export([ended_span()]), slow=(exporter_module,))
    exporter.shutdown()
    (rollout,) = asyncio.run(store.query_rollouts())
    assert len(asyncio.run(store.query_spans(rollout.rollout_id))) == THREADS
    asyncio.run(store.close())


class Interrupting(StoreWrapper):
    """A store that sends the main thread a signal when it starts its first rollout, and waits until it is handled."""

    def __init__(self) -> None:
        super().__init__(InMemoryLightningStore())
        self.handled = threading.Event()
        self.interrupts = True

    async def handle(self, primitive: Primitive, value: Any) -> Any:
        if primitive.name == "start_rollout" and self.interrupts:
            self.interrupts = False
            main = threading.main_thread().ident
            assert main is not None
            signal.pthread_kill(main, signal.SIGUSR1)
            assert self.handled.wait(LOOK)
        return await super().handle(primitive, value)


@pytest.mark.lock("tracer.exporter:LightningSpanExporter._lock")
def test_a_signal_handler_may_export_while_its_thread_starts_the_rollout() -> None:
    store = Interrupting()
    exporter = LightningSpanExporter(store)

    def handler(*_: object) -> None:
        exporter.export([ended_span("in the handler")])
        store.handled.set()

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        exporter.export([ended_span("in the program")])
    finally:
        signal.signal(signal.SIGUSR1, before)
    exporter.shutdown()
    rollouts = asyncio.run(store.query_rollouts())
    kept = [rollout.rollout_id for rollout in rollouts if rollout.status == "succeeded"]
    assert sorted(rollout.status for rollout in rollouts) == ["cancelled", "succeeded"]
    spans = asyncio.run(store.query_spans(kept[0]))
    assert sorted(span.name for span in spans) == ["in the handler", "in the program"]
    asyncio.run(store.close())


# ---------------------------------------------------------------------- handed work


@pytest.mark.lock("tracer.handed_work:_lock")
def test_after_recorders_that_come_and_go_at_one_moment_threads_start_as_they_did() -> None:
    start = vars(threading.Thread)["start"]

    def recorder(_number: int) -> None:
        for _ in range(2):
            leave = carry_handed_work()
            leave()

    together(recorder, 4, slow=(handed_work,))
    assert vars(threading.Thread)["start"] is start


@pytest.mark.lock("tracer.handed_work:_lock")
def test_a_recorder_that_stays_keeps_what_others_leave() -> None:
    start = vars(threading.Thread)["start"]
    leaves: list[Any] = []

    def recorder(number: int) -> None:
        leave = carry_handed_work()
        if number:
            leave()
        else:
            leaves.append(leave)

    together(recorder, 4, slow=(handed_work,))
    assert vars(threading.Thread)["start"] is not start
    for leave in leaves:
        leave()
    assert vars(threading.Thread)["start"] is start


# ---------------------------------------------------------------------- what other processes hand on


def handed_by_another_process(path: Path, attempts: int) -> list[Handed]:
    """What items take along that a process of which this one knows nothing has put."""
    url = f"sqlite:///{path}"

    async def start() -> list[tuple[str, str]]:
        async with open_store(url) as store:
            return [await new_attempt(store, number) for number in range(attempts)]

    configuration = pickle.dumps(OtelTracer(instrument_llm_calls=False))
    return [
        Handed("another process", configuration, url, ids, None, (1, 1, 1)) for ids in asyncio.run(start())
    ]


def stop_recording(arrived: list[Arrived]) -> None:
    """Undo what began here for the sake of what was handed, as the end of the process does."""
    for tracer in {get_active_tracer_in(each) for each in arrived}:
        tracer.teardown()
    other_processes._recorders.pop("another process", None)
    for store in other_processes._stores.values():
        asyncio.run(store.close())
    other_processes._stores.clear()


def get_active_tracer_in(arrived: Arrived) -> Any:
    token = otel_context.attach(arrived.context)
    try:
        return get_active_tracer()
    finally:
        otel_context.detach(token)


@pytest.mark.lock("tracer.other_processes:_lock")
def test_threads_that_are_handed_items_at_one_moment_have_one_recorder(tmp_path: Path) -> None:
    handed = handed_by_another_process(tmp_path / "store.db", THREADS)
    arrived: list[Any] = []
    together(lambda number: arrived.append(arrive(handed[number])), slow=(other_processes,))
    try:
        assert len(set(map(get_active_tracer_in, arrived))) == 1
    finally:
        stop_recording(arrived)


@pytest.mark.lock("tracer.other_processes:_lock")
def test_threads_that_are_handed_items_at_one_moment_open_their_store_once(tmp_path: Path) -> None:
    handed = handed_by_another_process(tmp_path / "store.db", 3)
    arrived: list[Any] = []
    scopes: list[Any] = []

    def worker(number: int) -> None:
        arrived.append(arrive(handed[number]))
        scopes.append(scope_in(arrived[-1].context))

    together(worker, 3, slow=(other_processes,))
    try:
        assert len({id(scope.store) for scope in scopes}) == 1
        assert sorted(scope.rollout_id for scope in scopes) == sorted(
            each.ids[0] for each in handed if each.ids
        )
    finally:
        stop_recording(arrived)


# ---------------------------------------------------------------------- handed items


@pytest.mark.lock("tracer.handed_items:_lock")
def test_equal_items_that_come_and_go_at_one_moment_all_arrive(
    store: LightningStore, tracer: OtelTracer
) -> None:
    items: queue.Queue[str] = queue.Queue()
    ids = asyncio.run(new_attempt(store))
    taken: list[str] = []

    def worker(number: int) -> None:
        for _ in range(5):
            if number % 2:
                with tracer.trace_context(store=store, rollout_id=ids[0], attempt_id=ids[1]):
                    items.put("item")
            else:
                taken.append(items.get(timeout=LOOK))

    together(worker, slow=(handed_items,))
    assert taken == ["item"] * 15


@pytest.mark.lock("tracer.handed_items:_lock")
def test_items_that_are_put_first_at_one_moment_are_worked_on_under_their_own_rollouts(
    store: LightningStore, tracer: OtelTracer
) -> None:
    for _ in range(3):
        attempts = [asyncio.run(new_attempt(store, number)) for number in range(THREADS)]
        items: queue.Queue[tuple[int]] = queue.Queue()
        all_put, all_done = threading.Barrier(THREADS + 1), threading.Event()

        def agent(
            number: int, attempts: Any = attempts, items: Any = items, wait: Any = (all_put, all_done)
        ) -> None:
            rollout_id, attempt_id = attempts[number]
            with tracer.trace_context(store=store, rollout_id=rollout_id, attempt_id=attempt_id):
                items.put((number,))
                for each in wait:
                    each.wait()

        def work(items: Any = items, all_put: Any = all_put, all_done: Any = all_done) -> None:
            all_put.wait()
            for _ in range(THREADS):
                (number,) = items.get(timeout=LOOK)
                trace.get_tracer("worker").start_span(f"{number}").end()
            all_done.set()

        worker = threading.Thread(target=work)
        worker.start()
        together(agent, slow=(handed_items,))
        worker.join()
        for number, ids in enumerate(attempts):
            assert [span.name for span in spans_in(store, ids) if span.name != "rollout"] == [str(number)]
