"""Opening a trace_context has a deadline, never raises what a store raises, and leaves no rollout half begun."""

from __future__ import annotations

import asyncio
import functools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from agentlightning.store import InMemoryLightningStore, LightningStore
from agentlightning.testing import FaultyStore, wait_until
from agentlightning.tracer import OtelTracer
from agentlightning.tracer.questions import BEGIN_TIMEOUT, THREAD_NAME


def statuses(store: LightningStore) -> list[str]:
    async def read() -> list[str]:
        return [rollout.status for rollout in await store.query_rollouts()]

    return asyncio.run(read())


@contextmanager
def interrupted(when: Callable[[], bool]) -> Iterator[None]:
    """Raise KeyboardInterrupt in this thread, once, soon after ``when`` is true."""

    def interrupt(*_: object) -> None:
        if when():
            signal.setitimer(signal.ITIMER_REAL, 0)
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_store_that_fails_does_not_fail_the_agent(caplog: pytest.LogCaptureFixture) -> None:
    faulty = FaultyStore(InMemoryLightningStore())
    faulty.fail_for_ever(lambda: OSError(28, "No space left on device"))
    tracer = OtelTracer()
    with tracer.lifespan(faulty):
        with tracer.trace_context("task") as handle, handle.start_as_current_span("step"):
            pass
        faulty.heal()
    receipt = handle.receipt()
    assert handle.rollout_id
    assert (receipt.started, receipt.dropped, receipt.balanced) == (2, {"no_rollout": 2}, True)
    assert any("No space left" in record.message for record in caplog.records)


def test_a_store_that_hangs_keeps_the_agent_for_its_deadline_only() -> None:
    inner = InMemoryLightningStore()
    faulty = FaultyStore(inner)
    tracer = OtelTracer()
    with tracer.lifespan(faulty):
        faulty.hold()
        began = time.monotonic()
        with tracer.trace_context("task") as handle:
            took = time.monotonic() - began
            faulty.release()
        assert took >= 5
        assert handle.receipt().dropped == {"no_rollout": 1}
        wait_until(lambda: statuses(inner) == ["cancelled"])


class Blocking(FaultyStore):
    """Blocks the thread on which it is asked to start a rollout of this name."""

    def __init__(self, name: str) -> None:
        super().__init__(InMemoryLightningStore())
        self.name = name
        self.is_asked = threading.Event()
        self.may_go_on = threading.Event()

    async def start_rollout(self, input: Any, *others: Any, **more: Any) -> Any:  # noqa: A002 - the contract's name
        if input["name"] == self.name:
            self.is_asked.set()
            self.may_go_on.wait()
        return await super().start_rollout(input, *others, **more)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_store_that_blocks_its_thread_keeps_no_other_context_waiting(asynchronous: bool) -> None:
    store = Blocking("blocks")
    tracer = OtelTracer()

    def opened(name: str) -> str:
        with tracer.trace_context(name) as handle:
            return handle.rollout_id

    async def opened_in_loop(name: str) -> str:
        async with tracer.trace_context(name) as handle:
            return handle.rollout_id

    with tracer.lifespan(store):
        blocked = threading.Thread(target=opened, args=("blocks",))
        blocked.start()
        store.is_asked.wait()
        ids = {
            asyncio.run(opened_in_loop("goes on")) if asynchronous else opened("goes on") for _ in range(3)
        }
        started = {each.rollout_id for each in asyncio.run(store.query_rollouts())}
        store.may_go_on.set()
        blocked.join()
    assert len(ids) == 3
    assert started == ids


class NeverInTime(InMemoryLightningStore):
    """Answers just when those who ask look whether anybody has begun to."""

    async def start_rollout(self, *args: Any, **more: Any) -> Any:
        began = await super().start_rollout(*args, **more)
        await asyncio.sleep(BEGIN_TIMEOUT)
        return began


def test_an_answer_that_comes_between_two_looks_is_not_lost() -> None:
    store = NeverInTime()
    tracer = OtelTracer()
    is_over = threading.Event()

    def compute() -> None:
        while not is_over.is_set():
            sum(range(1000))

    # Who has waited long enough gets the interpreter back late, when the answer may have come.
    computing = threading.Thread(target=compute)
    computing.start()
    try:
        with tracer.lifespan(store):
            for _ in range(100):
                with tracer.trace_context("task") as handle:
                    pass
                assert handle.receipt().dropped == {}
    finally:
        is_over.set()
        computing.join()
    assert len(statuses(store)) == 100


def test_threads_that_open_their_first_contexts_at_one_moment_leave_none_behind(
    store: LightningStore,
) -> None:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(20):
            tracer = OtelTracer()
            at_once = threading.Barrier(8)

            def agent(tracer: OtelTracer = tracer, at_once: threading.Barrier = at_once) -> None:
                at_once.wait()
                with tracer.trace_context("task"):
                    pass

            with tracer.lifespan(store):
                agents = [threading.Thread(target=agent) for _ in range(8)]
                for each in agents:
                    each.start()
                for each in agents:
                    each.join()
    finally:
        sys.setswitchinterval(interval)
    assert statuses(store) == ["succeeded"] * 160
    wait_until(lambda: THREAD_NAME not in {each.name for each in threading.enumerate()})


def test_a_forked_child_opens_contexts_of_its_own(store: LightningStore, tracer: OtelTracer) -> None:
    with tracer.trace_context("in the parent"):
        pass
    child = os.fork()
    if child == 0:
        try:
            with tracer.trace_context("in the child") as handle:
                is_known = bool(asyncio.run(store.query_rollouts(rollout_id_in=[handle.rollout_id])))
            os._exit(0 if is_known else 3)
        finally:
            os._exit(4)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.asyncio
async def test_cancelling_the_entering_cancels_the_rollout() -> None:
    inner = InMemoryLightningStore()
    faulty = FaultyStore(inner)
    tracer = OtelTracer()

    async def agent() -> None:
        async with tracer.trace_context("task"):
            raise AssertionError("it was entered")

    with tracer.lifespan(faulty):
        faulty.hold()
        task = asyncio.create_task(agent())
        await asyncio.to_thread(wait_until, lambda: faulty.held == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        faulty.release()
        await asyncio.to_thread(wait_until, lambda: statuses(inner) == ["cancelled"])


def test_interrupting_the_entering_cancels_the_rollout() -> None:
    inner = InMemoryLightningStore()
    faulty = FaultyStore(inner)
    tracer = OtelTracer()
    with tracer.lifespan(faulty):
        faulty.hold()
        with pytest.raises(KeyboardInterrupt), interrupted(lambda: faulty.held == 1):
            with tracer.trace_context("task"):
                pass
        faulty.release()
        wait_until(lambda: statuses(inner) == ["cancelled"])


def test_a_context_can_be_opened_in_a_signal_handler(store: LightningStore, tracer: OtelTracer) -> None:
    opened: list[str] = []

    def handler(*_: object) -> None:
        with tracer.trace_context("in the handler") as handle:
            opened.append(handle.rollout_id)

    before = signal.signal(signal.SIGALRM, handler)
    try:
        with tracer.trace_context("around"):
            signal.raise_signal(signal.SIGALRM)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert tracer.processor.force_flush(20_000)
    assert len(opened) == 1
    assert statuses(store) == ["succeeded", "succeeded"]
    assert threading.current_thread() is threading.main_thread()


class Handler:
    """A signal's handler that is an object."""

    def __init__(self, tracer: OtelTracer) -> None:
        self.tracer = tracer
        self.took: list[float] = []

    def __call__(self, *_: object) -> None:
        began = time.monotonic()
        with self.tracer.trace_context("in the handler"):
            pass
        self.took.append(time.monotonic() - began)

    def method(self, *_: object) -> None:
        self()


@pytest.mark.parametrize("kind", ["function", "method", "object", "partial"])
def test_a_context_in_a_signal_handler_does_not_wait_for_a_store_that_is_blocked(
    tracer: OtelTracer, kind: str
) -> None:
    handler = Handler(tracer)
    kinds: dict[str, Callable[..., None]] = {
        "function": lambda *_: handler(),
        "method": handler.method,
        "object": handler,
        "partial": functools.partial(handler.method, "more"),
    }
    faulty = FaultyStore(InMemoryLightningStore())
    faulty.hold()
    tracer.teardown_worker(0)
    tracer.init_worker(0, faulty)
    before = signal.signal(signal.SIGALRM, kinds[kind])
    try:
        signal.raise_signal(signal.SIGALRM)
    finally:
        signal.signal(signal.SIGALRM, before)
        faulty.release()
    assert 0 < handler.took[0] < 4  # outside of a handler it waits for 5 s


def test_a_context_works_in_trio(store: LightningStore, tracer: OtelTracer) -> None:
    trio = pytest.importorskip("trio")

    async def agent() -> None:
        async with tracer.trace_context("in trio") as handle:
            handle.start_span("step").end()

    trio.run(agent)
    assert tracer.processor.force_flush(20_000)
    assert statuses(store) == ["succeeded"]
