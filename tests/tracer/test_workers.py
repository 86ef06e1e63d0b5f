"""What a worker did that outlived its rollout is trained only where no other rollout can have wanted it."""

from __future__ import annotations

import asyncio
import contextvars
import queue
import sys
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from types import ModuleType
from typing import Any

import pytest
from opentelemetry import context as otel_context
from tracer_sample import ask, new_attempt, read, spans_in

from agentlightning.rows import build_rows
from agentlightning.rows import explain as explain_trace
from agentlightning.store import InMemoryLightningStore, LightningStore
from agentlightning.tracer import OtelTracer
from agentlightning.types import Span

Ids = tuple[str, str]
Work = Callable[[], None]


def attempts(store: LightningStore, number: int) -> list[Ids]:
    async def all_of_them() -> list[Ids]:
        return [await new_attempt(store, index) for index in range(number)]

    return asyncio.run(all_of_them())


def trained(spans: list[Span]) -> list[tuple[int, ...]]:
    """Return the tokens of each answer that is in a row."""
    return [row.token_ids[row.prompt_length :] for row in build_rows(spans).rows]


def named(spans: list[Span]) -> Any:
    (root,) = (span for span in spans if span.name == "rollout")
    return root.attributes.get("agentlightning.shared_workers")


class Server:
    """A thread that takes its work from a queue that cannot be watched."""

    def __init__(self) -> None:
        self.work: queue.SimpleQueue[tuple[Work, threading.Event] | None] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self.serve, name="server")

    def serve(self) -> None:
        while (item := self.work.get()) is not None:
            item[0]()
            item[1].set()

    def do(self, work: Work) -> None:
        if self.thread.ident is None:
            self.thread.start()
        done = threading.Event()
        self.work.put((work, done))
        assert done.wait(120)

    def end(self) -> None:
        self.work.put(None)
        self.thread.join()


def test_calls_of_a_thread_that_serves_two_open_rollouts_are_in_no_row(
    store: LightningStore, tracer: OtelTracer, caplog: pytest.LogCaptureFixture
) -> None:
    ids = attempts(store, 2)
    server = Server()

    first = ExitStack()
    inside = contextvars.copy_context()
    inside.run(
        first.enter_context, tracer.trace_context(store=store, rollout_id=ids[0][0], attempt_id=ids[0][1])
    )
    inside.run(server.do, lambda: ask(11))  # nobody else's
    with tracer.trace_context(store=store, rollout_id=ids[1][0], attempt_id=ids[1][1]):
        server.do(lambda: ask(21))
        inside.run(first.close)
        ask(22)
    server.end()
    assert tracer.processor.force_flush(20_000)
    one, two = (spans_in(store, each) for each in ids)
    assert (named(one), named(two)) == (["server"], None)
    assert (trained(one), trained(two)) == ([(11,)], [(22,)])
    assert build_rows(one).counts == {"shared_worker": 1}
    assert asyncio.run(store.get_receipt(*ids[1])).unattributed == 1
    assert "spans_unattributed" in explain_trace(two, receipt=asyncio.run(store.get_receipt(*ids[1]))).codes
    assert sum("lived longer" in record.message for record in caplog.records) == 1


class JobList:
    """Tasks of an agent framework: one hands out what is on a list, and starts another one for each piece of it."""

    def __init__(self) -> None:
        self.jobs: deque[tuple[Work, asyncio.Event]] = deque()
        self.some = asyncio.Condition()
        self.runner: asyncio.Task[None] | None = None

    async def run(self) -> None:
        while True:
            async with self.some:
                await self.some.wait_for(lambda: self.jobs)
            await asyncio.create_task(self.one(*self.jobs.popleft()))

    async def one(self, work: Work, done: asyncio.Event) -> None:
        work()
        done.set()

    async def do(self, work: Work) -> None:
        if self.runner is None:
            self.runner = asyncio.create_task(self.run(), name="runner")
        done = asyncio.Event()
        self.jobs.append((work, done))
        async with self.some:
            self.some.notify()
        await done.wait()


@pytest.mark.asyncio
async def test_calls_of_tasks_that_a_shared_task_starts_are_in_no_row(
    store: LightningStore, tracer: OtelTracer
) -> None:
    ids = [await new_attempt(store, number) for number in range(2)]
    jobs = JobList()
    first_is_there, second_is_done = asyncio.Event(), asyncio.Event()

    async def first() -> None:
        async with tracer.trace_context(store=store, rollout_id=ids[0][0], attempt_id=ids[0][1]):
            await jobs.do(lambda: ask(11))
            first_is_there.set()
            await second_is_done.wait()
            await jobs.do(lambda: ask(12))
            ask(13)

    async def second() -> None:
        await first_is_there.wait()
        async with tracer.trace_context(store=store, rollout_id=ids[1][0], attempt_id=ids[1][1]):
            await jobs.do(lambda: ask(21))
            ask(22)
        second_is_done.set()

    await asyncio.gather(first(), second())
    one, two = [await read(store, each) for each in ids]
    assert named(one) == ["runner"]
    assert sorted(trained(one)) == [(11,), (12,), (13,)]  # 12 was made when no other one was open
    assert trained(two) == [(22,)]
    assert build_rows(one).counts == {"shared_worker": 1}
    assert jobs.runner is not None
    jobs.runner.cancel()


async def streamed() -> None:
    """A producer that ends a turn after its last piece was read, as in streaming agents."""
    pieces: asyncio.Queue[int] = asyncio.Queue()

    async def produce() -> None:
        ask(1)
        pieces.put_nowait(1)
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    task = asyncio.create_task(produce())
    await pieces.get()
    assert not task.done()


async def cancelled() -> None:
    async def loser() -> None:
        ask(1)
        await asyncio.Event().wait()

    task = asyncio.create_task(loser())
    await asyncio.sleep(0)
    task.cancel()


async def gathered() -> None:
    async def one() -> None:
        await asyncio.to_thread(ask, 1)

    async with asyncio.TaskGroup() as group:
        group.create_task(one())


async def joined() -> None:
    thread = threading.Thread(target=asyncio.run, args=(gathered(),))
    thread.start()
    await asyncio.to_thread(thread.join)


@pytest.mark.asyncio
@pytest.mark.parametrize("agent", [streamed, cancelled, gathered, joined])
async def test_what_is_over_when_its_rollout_ends_was_its_own(
    store: LightningStore, tracer: OtelTracer, agent: Callable[[], Coroutine[Any, Any, None]]
) -> None:
    ids = [await new_attempt(store, number) for number in range(2)]

    async def rollout(each: Ids) -> None:
        async with tracer.trace_context(store=store, rollout_id=each[0], attempt_id=each[1]):
            async with both:
                pass
            await agent()
            async with both:
                pass

    both = Together(2)
    await asyncio.gather(*(rollout(each) for each in ids))
    for each in ids:
        spans = await read(store, each)
        assert (named(spans), trained(spans)) == (None, [(1,)])


class Together:
    """Those who enter leave together."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.inside = 0
        self.full = asyncio.Condition()

    async def __aenter__(self) -> None:
        async with self.full:
            self.inside += 1
            target = -(-self.inside // self.number) * self.number
            self.full.notify_all()
            await self.full.wait_for(lambda: self.inside >= target)

    async def __aexit__(self, *exc_info: object) -> None:
        pass


def attach(work: Work) -> Work:
    """Carry the context along, as the documentation says."""
    carried = otel_context.get_current()

    def attached() -> None:
        token = otel_context.attach(carried)
        try:
            work()
        finally:
            otel_context.detach(token)

    return attached


def test_a_worker_that_is_told_for_whom_it_works_is_not_in_question(
    store: LightningStore, tracer: OtelTracer
) -> None:
    ids = attempts(store, 2)
    server = Server()

    def other() -> None:
        with tracer.trace_context(store=store, rollout_id=ids[1][0], attempt_id=ids[1][1]):
            server.do(attach(lambda: ask(21)))
            server.do(own)

    def own() -> None:
        with tracer.trace_context(store=store, rollout_id=ids[1][0], attempt_id=ids[1][1]):
            ask(22)

    outside = contextvars.copy_context()
    with tracer.trace_context(store=store, rollout_id=ids[0][0], attempt_id=ids[0][1]):
        server.do(attach(lambda: ask(11)))
        outside.run(other)
        server.do(attach(lambda: ask(12)))
    server.end()
    assert tracer.processor.force_flush(20_000)
    one, two = (spans_in(store, each) for each in ids)
    assert (trained(one), sorted(trained(two))) == ([(11,), (12,)], [(21,), (22,)])
    assert named(one) is None


def test_what_a_worker_got_from_a_queue_that_is_watched_is_not_in_question(
    store: LightningStore, tracer: OtelTracer
) -> None:
    ids = attempts(store, 2)
    work: queue.Queue[int] = queue.Queue()

    def serve() -> None:
        while token := work.get():
            ask(token)
            work.task_done()

    def do(token: int) -> None:
        work.put(token)
        work.join()

    def other() -> None:
        with tracer.trace_context(store=store, rollout_id=ids[1][0], attempt_id=ids[1][1]):
            inside.run(do, 12)

    outside = contextvars.copy_context()
    worker = threading.Thread(target=serve)
    with tracer.trace_context(store=store, rollout_id=ids[0][0], attempt_id=ids[0][1]):
        worker.start()
        inside = contextvars.copy_context()
        do(11)
        outside.run(other)
    work.put(0)
    worker.join()
    assert tracer.processor.force_flush(20_000)
    spans = spans_in(store, ids[0])
    assert (trained(spans), named(spans)) == ([(11,), (12,)], None)


def test_gevent_in_the_place_of_threads_is_said(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    patched = ModuleType("gevent.monkey")
    patched.is_module_patched = lambda name: name == "threading"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "gevent.monkey", patched)
    with OtelTracer().lifespan(InMemoryLightningStore()):
        pass
    assert [record for record in caplog.records if record.getMessage().startswith("gevent has put greenlets")]
