"""Calls are filed under the rollout that made them, or under none and counted; never under another one."""

from __future__ import annotations

import asyncio
import contextvars
import http.client
import queue
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from multiprocessing.pool import ThreadPool

import pytest
from opentelemetry import trace
from tracer_sample import ask, new_attempt, read, spans_in

from agentlightning.rows import build_rows
from agentlightning.rows import explain as explain_trace
from agentlightning.store import LightningStore
from agentlightning.tracer import OtelTracer
from agentlightning.types import Receipt

Ids = tuple[str, str]


def call(name: str) -> None:
    """An agent knows nothing of us: it uses the global API."""
    trace.get_tracer("agent").start_span(name).end()


def attempts(store: LightningStore, number: int) -> list[Ids]:
    async def all_of_them() -> list[Ids]:
        return [await new_attempt(store, index) for index in range(number)]

    return asyncio.run(all_of_them())


def names(store: LightningStore, ids: Ids) -> list[str]:
    return [span.name for span in spans_in(store, ids) if span.name != "rollout"]


def receipt(store: LightningStore, ids: Ids) -> Receipt:
    return asyncio.run(_receipt(store, ids))


async def _receipt(store: LightningStore, ids: Ids) -> Receipt:
    return await store.get_receipt(*ids)


# ---------------------------------------------------------------------- what starts late


@pytest.mark.asyncio
async def test_what_starts_after_its_context_has_closed_belongs_to_no_attempt(
    store: LightningStore, tracer: OtelTracer, caplog: pytest.LogCaptureFixture
) -> None:
    ids = await new_attempt(store)
    gate = asyncio.Event()

    async def straggler() -> None:
        await gate.wait()
        call("late")
        call("later")

    async with tracer.trace_context(store=store, rollout_id=ids[0], attempt_id=ids[1]):
        task = asyncio.create_task(straggler())
    gate.set()
    await task
    assert tracer.processor.force_flush(5000)
    assert [span.name for span in await read(store, ids)] == ["rollout"]
    assert [span.name for span in tracer.processor.unattributed] == ["late", "later"]
    found = await store.get_receipt(*ids)
    assert (found.late, found.unattributed, found.started, found.balanced) == (2, 0, 1, True)
    assert "spans_late" in explain_trace(await read(store, ids), receipt=found).codes
    assert sum("had closed" in record.message for record in caplog.records) == 1


@pytest.mark.asyncio
async def test_an_explicit_attribute_files_what_starts_late(
    store: LightningStore, tracer: OtelTracer
) -> None:
    ids = await new_attempt(store)
    gate = asyncio.Event()

    async def straggler() -> None:
        await gate.wait()
        named = {"agentlightning.rollout_id": ids[0], "agentlightning.attempt_id": ids[1]}
        trace.get_tracer("agent").start_span("named", attributes=named).end()

    async with tracer.trace_context(store=store, rollout_id=ids[0], attempt_id=ids[1]):
        task = asyncio.create_task(straggler())
    gate.set()
    await task
    assert tracer.processor.force_flush(5000)
    assert [span.name for span in await read(store, ids)] == ["rollout", "named"]
    found = await store.get_receipt(*ids)
    assert (found.late, found.whole) == (0, True)


def test_a_worker_that_was_started_in_the_first_rollout_serves_no_later_one(
    store: LightningStore, tracer: OtelTracer
) -> None:
    handed: list[tuple[str, threading.Event]] = []
    ready = threading.Semaphore(0)

    def worker() -> None:
        for _ in range(3):
            ready.acquire()
            name, done = handed.pop()
            call(name)
            done.set()

    thread = threading.Thread(target=worker, daemon=True)
    ids = attempts(store, 3)
    for number, (rollout_id, attempt_id) in enumerate(ids):
        with tracer.trace_context(store=store, rollout_id=rollout_id, attempt_id=attempt_id):
            if not number:
                thread.start()
            done = threading.Event()
            handed.append((f"call-{number}", done))
            ready.release()
            assert done.wait(120)
    thread.join()
    assert tracer.processor.force_flush(20_000)
    assert [names(store, each) for each in ids] == [["call-0"], [], []]
    counted = [receipt(store, each) for each in ids]
    assert [each.late for each in counted] == [2, 0, 0]
    assert [each.unattributed for each in counted] == [0, 1, 1]  # each could have made it


# ---------------------------------------------------------------------- generators


def agent(tracer: OtelTracer, store: LightningStore, ids: Ids, name: str, steps: int = 3) -> Iterator[str]:
    with tracer.trace_context(store=store, rollout_id=ids[0], attempt_id=ids[1]):
        for step in range(steps):
            call(f"{name}-{step}")
            yield name


async def async_agent(
    tracer: OtelTracer, store: LightningStore, ids: Ids, name: str, steps: int = 3
) -> AsyncIterator[str]:
    async with tracer.trace_context(store=store, rollout_id=ids[0], attempt_id=ids[1]):
        for step in range(steps):
            await asyncio.gather(as_task(f"{name}-{step}"))
            yield name


async def as_task(name: str) -> None:
    await asyncio.sleep(0)
    call(name)


@pytest.mark.parametrize("order", ["first in, first out", "last in, first out"])
def test_interleaved_generators_keep_their_spans_apart(
    store: LightningStore, tracer: OtelTracer, order: str
) -> None:
    ids = attempts(store, 3)
    running = [agent(tracer, store, each, "abc"[number]) for number, each in enumerate(ids)]
    for _ in range(3):
        for generator in running:
            next(generator)
    for generator in running if order.startswith("first") else reversed(running):
        assert next(generator, None) is None
    call("after")
    assert tracer.processor.rollout_id is None
    assert tracer.processor.force_flush(20_000)
    assert [names(store, each) for each in ids] == [[f"{name}-{step}" for step in range(3)] for name in "abc"]
    assert [receipt(store, each).late for each in ids] == [0, 0, 0]
    assert [span.name for span in tracer.processor.unattributed] == ["after"]


@pytest.mark.asyncio
async def test_interleaved_asynchronous_generators_file_nothing_under_another(
    store: LightningStore, tracer: OtelTracer
) -> None:
    ids = [await new_attempt(store, number) for number in range(2)]
    running = [async_agent(tracer, store, each, "ab"[number]) for number, each in enumerate(ids)]
    for _ in range(3):
        for generator in running:
            await anext(generator)
    for generator in running:
        assert await anext(generator, None) is None
    assert tracer.processor.rollout_id is None
    assert tracer.processor.force_flush(20_000)
    found = [[span.name for span in await read(store, each)] for each in ids]
    for number, each in enumerate(found):
        assert {name[0] for name in each if name != "rollout"} <= {"ab"[number]}
    placed = sum(len(each) - 1 for each in found)
    assert placed + tracer.processor.unattributed_count == 6


def test_a_generator_that_is_abandoned_leaves_no_context_of_a_closed_rollout(
    store: LightningStore, tracer: OtelTracer
) -> None:
    first, second = attempts(store, 2)
    abandoned, other = agent(tracer, store, first, "a"), agent(tracer, store, second, "b")
    next(abandoned)
    next(other)
    del abandoned  # its trace_context is left here, while that of the other one is current
    assert [*other] == ["b", "b"]
    assert tracer.processor.rollout_id is None
    call("after")
    assert tracer.processor.force_flush(20_000)
    assert names(store, first) == ["a-0"]
    assert names(store, second) == ["b-0", "b-1", "b-2"]


def test_what_the_driver_of_a_generator_does_meanwhile_is_not_its_rollouts(
    store: LightningStore, tracer: OtelTracer
) -> None:
    (ids,) = attempts(store, 1)
    for name in agent(tracer, store, ids, "a"):
        call(f"judge of {name}")
    assert tracer.processor.force_flush(20_000)
    assert names(store, ids) == ["a-0", "a-1", "a-2"]
    found = receipt(store, ids)
    assert (found.unattributed, found.whole) == (3, True)
    assert "spans_unattributed" in explain_trace(spans_in(store, ids), receipt=found).codes


def test_a_context_manager_that_is_made_of_a_generator_is_its_callers(
    store: LightningStore, tracer: OtelTracer
) -> None:
    (ids,) = attempts(store, 1)

    @contextmanager
    def rollout() -> Iterator[None]:
        with tracer.trace_context(store=store, rollout_id=ids[0], attempt_id=ids[1]):
            yield

    with rollout():
        call("inside")
    assert names(store, ids) == ["inside"]


def test_a_rollout_that_a_generator_calls_is_the_inner_one(store: LightningStore, tracer: OtelTracer) -> None:
    outer, inner = attempts(store, 2)

    def nested() -> Iterator[None]:
        with tracer.trace_context(store=store, rollout_id=outer[0], attempt_id=outer[1]):
            call("before")
            with tracer.trace_context(store=store, rollout_id=inner[0], attempt_id=inner[1]):
                call("inside")
                yield
                call("still inside")
            call("behind")
            yield

    for _ in nested():
        pass
    assert names(store, outer) == ["before", "behind"]
    assert names(store, inner) == ["inside", "still inside"]


def test_rollouts_that_alternate_in_one_context_are_both_marked(
    store: LightningStore, tracer: OtelTracer
) -> None:
    ids = attempts(store, 2)
    contexts = [
        tracer.trace_context(store=store, rollout_id=rollout_id, attempt_id=attempt_id)
        for rollout_id, attempt_id in ids
    ]
    for context in contexts:
        context.__enter__()
    call("of whom?")
    for context in contexts:  # the outer one is left first: they are no nesting
        context.__exit__(None, None, None)
    assert tracer.processor.rollout_id is None
    assert tracer.processor.force_flush(20_000)
    for each in ids:
        (root,) = [span for span in spans_in(store, each) if span.name == "rollout"]
        assert root.attributes["agentlightning.alternates"] is True


def test_calls_of_rollouts_that_alternate_in_one_context_are_in_no_row(
    store: LightningStore, tracer: OtelTracer
) -> None:
    ids = attempts(store, 2)
    outer, inner = (
        tracer.trace_context(store=store, rollout_id=rollout_id, attempt_id=attempt_id)
        for rollout_id, attempt_id in ids
    )
    outer.__enter__()
    ask(7)
    inner.__enter__()
    ask(8)
    outer.__exit__(None, None, None)  # the outer one is left first: they are no nesting
    ask(9)
    inner.__exit__(None, None, None)
    assert tracer.processor.force_flush(20_000)
    found = [build_rows(spans_in(store, each)) for each in ids]
    assert [each.rows for each in found] == [(), ()]
    assert [each.counts for each in found] == [{"alternates": 1}, {"alternates": 2}]


# ---------------------------------------------------------------------- handed work


def test_a_worker_of_one_rollout_that_works_for_another_open_one_is_nobodys(
    store: LightningStore, tracer: OtelTracer
) -> None:
    ids = attempts(store, 3)
    work: queue.Queue[tuple[str, threading.Event] | None] = queue.Queue()

    def worker() -> None:
        while (item := work.get()) is not None:
            call(item[0])
            item[1].set()

    thread = threading.Thread(target=worker, daemon=True)
    with ExitStack() as rollouts:  # all are open at once, so that closing settles nothing
        go: list[queue.Queue[str]] = []
        for number, each in enumerate(ids):
            go.append(queue.Queue())
            rollouts.callback(_rollout_thread(tracer, store, each, go[-1], work, thread).join)
            _ask(go[-1], f"first-{number}")
        for number in range(3):
            _ask(go[number], f"second-{number}")
        for asked in go:
            asked.put("")
    work.put(None)
    thread.join()
    assert tracer.processor.force_flush(20_000)
    # The worker is the first one's, or the item's, and both are open: only where they agree is it known.
    assert [names(store, each) for each in ids] == [["first-0", "second-0"], [], []]
    assert [receipt(store, each).unattributed for each in ids] == [4, 4, 3]


def _ask(go: queue.Queue[str], name: str) -> None:
    go.put(name)
    go.join()


def _rollout_thread(
    tracer: OtelTracer,
    store: LightningStore,
    ids: Ids,
    go: queue.Queue[str],
    work: queue.Queue[tuple[str, threading.Event] | None],
    worker: threading.Thread,
) -> threading.Thread:
    """Start a rollout that hands each name that it is given to the shared worker, which the first one starts."""

    def rollout() -> None:
        with tracer.trace_context(store=store, rollout_id=ids[0], attempt_id=ids[1]):
            if worker.ident is None:
                worker.start()
            while name := go.get():
                done = threading.Event()
                work.put((name, done))
                assert done.wait(120)
                go.task_done()

    thread = threading.Thread(target=rollout)
    thread.start()
    return thread


def test_a_worker_that_lives_on_does_the_work_of_whoever_put_it_on_the_queue(
    store: LightningStore, tracer: OtelTracer
) -> None:
    ids = attempts(store, 3)
    work: queue.Queue[str] = queue.Queue()

    def worker() -> None:
        for _ in range(4):
            call(work.get())
            work.task_done()

    thread = threading.Thread(target=worker)
    for number, (rollout_id, attempt_id) in enumerate(ids):
        with tracer.trace_context(store=store, rollout_id=rollout_id, attempt_id=attempt_id):
            if not number:
                thread.start()
            work.put(f"call-{number}")
            work.join()
    work.put("nobody's")
    thread.join()
    assert tracer.processor.force_flush(20_000)
    assert [names(store, each) for each in ids] == [["call-0"], ["call-1"], ["call-2"]]
    assert [receipt(store, each).late for each in ids] == [1, 0, 0]


@pytest.mark.asyncio
async def test_an_asynchronous_worker_that_lives_on_does_the_work_of_whoever_put_it_on_the_queue(
    store: LightningStore, tracer: OtelTracer
) -> None:
    ids = [await new_attempt(store, number) for number in range(3)]
    work: asyncio.Queue[str] = asyncio.Queue()
    workers: list[asyncio.Task[None]] = []

    async def worker() -> None:
        while True:
            call(await work.get())
            work.task_done()

    for number, (rollout_id, attempt_id) in enumerate(ids):
        async with tracer.trace_context(store=store, rollout_id=rollout_id, attempt_id=attempt_id):
            if not workers:
                workers.append(asyncio.create_task(worker()))
            await work.put(f"call-{number}")
            await work.join()
            call(f"own-{number}")
    workers[0].cancel()
    assert tracer.processor.force_flush(20_000)
    found = [sorted(span.name for span in await read(store, each)) for each in ids]
    assert found == [[f"call-{number}", f"own-{number}", "rollout"] for number in range(3)]


@pytest.mark.parametrize("kind", [queue.Queue, queue.LifoQueue, queue.PriorityQueue])
def test_a_worker_of_an_open_rollout_does_nothing_for_it_that_others_have_put(
    store: LightningStore, tracer: OtelTracer, kind: Callable[[], queue.Queue[tuple[int, str]]]
) -> None:
    ids = attempts(store, 2)
    work = kind()

    def serve() -> None:
        for _ in range(4):
            call(work.get()[1])
            work.task_done()

    def ask(number: int, name: str) -> None:
        work.put((number, name))
        work.join()

    def other() -> None:
        with tracer.trace_context(store=store, rollout_id=ids[1][0], attempt_id=ids[1][1]):
            ask(2, "of the other one")

    outside = contextvars.copy_context()
    with tracer.trace_context(store=store, rollout_id=ids[0][0], attempt_id=ids[0][1]):
        worker = threading.Thread(target=serve)
        worker.start()
        ask(1, "own")
        outside.run(other)
        outside.run(ask, 3, "of nobody")
        ask(4, "own again")
        worker.join()
    assert tracer.processor.force_flush(20_000)
    assert [names(store, each) for each in ids] == [["own", "own again"], []]
    assert [receipt(store, each).unattributed for each in ids] == [2, 1]


@pytest.mark.asyncio
@pytest.mark.parametrize("kind", [asyncio.Queue, asyncio.LifoQueue, asyncio.PriorityQueue])
async def test_a_task_of_an_open_rollout_does_nothing_for_it_that_others_have_put(
    store: LightningStore, tracer: OtelTracer, kind: Callable[[], asyncio.Queue[tuple[int, str]]]
) -> None:
    ids = [await new_attempt(store, number) for number in range(2)]
    work = kind()

    async def serve() -> None:
        while True:
            call((await work.get())[1])
            work.task_done()

    async def ask(number: int, name: str) -> None:
        await work.put((number, name))
        await work.join()

    async def other() -> None:
        async with tracer.trace_context(store=store, rollout_id=ids[1][0], attempt_id=ids[1][1]):
            await ask(2, "of the other one")

    outside = contextvars.copy_context()
    async with tracer.trace_context(store=store, rollout_id=ids[0][0], attempt_id=ids[0][1]):
        worker = asyncio.create_task(serve())
        await ask(1, "own")
        await asyncio.create_task(other(), context=outside)
        await asyncio.create_task(ask(3, "of nobody"), context=outside.copy())
        await ask(4, "own again")
    worker.cancel()
    assert tracer.processor.force_flush(20_000)
    found = [[span.name for span in await read(store, each) if span.name != "rollout"] for each in ids]
    assert found == [["own", "own again"], []]


def test_what_lay_on_a_queue_before_the_rollout_says_nothing_of_whose_work_it_is(
    store: LightningStore, tracer: OtelTracer
) -> None:
    (ids,) = attempts(store, 1)
    clients: queue.Queue[str] = queue.Queue()
    clients.put("a client")

    def helper() -> None:
        call(f"with {clients.get()}")

    with tracer.trace_context(store=store, rollout_id=ids[0], attempt_id=ids[1]):
        thread = threading.Thread(target=helper)
        thread.start()
        thread.join()
    assert names(store, ids) == ["with a client"]


def test_a_connection_of_a_pool_says_nothing_of_whose_work_it_is(
    store: LightningStore, tracer: OtelTracer
) -> None:
    """As urllib3 keeps connections: ``None`` stands for one that is yet to be made."""
    ids = attempts(store, 2)
    pool: queue.LifoQueue[object] = queue.LifoQueue()
    pool.put(None)

    def request(name: str) -> None:
        connection = pool.get() or http.client.HTTPConnection("localhost")
        call(name)
        pool.put(connection)

    def rollout(number: int) -> None:
        with tracer.trace_context(store=store, rollout_id=ids[number][0], attempt_id=ids[number][1]):
            thread = threading.Thread(target=request, args=(f"request {number}",))
            thread.start()
            thread.join()
            if not number:
                contextvars.Context().run(rollout, 1)

    rollout(0)
    assert [names(store, each) for each in ids] == [["request 0"], ["request 1"]]


def test_what_a_worker_borrows_from_a_queue_says_nothing_of_whose_work_it_does(
    store: LightningStore, tracer: OtelTracer
) -> None:
    ids = attempts(store, 2)
    clients: queue.Queue[object] = queue.Queue()
    clients.put(object())

    def helper(name: str) -> None:
        client = clients.get()
        call(name)
        clients.put(client)

    with ThreadPoolExecutor(1) as pool:
        with tracer.trace_context(store=store, rollout_id=ids[0][0], attempt_id=ids[0][1]):
            pool.submit(helper, "first").result()
            with tracer.trace_context(store=store, rollout_id=ids[1][0], attempt_id=ids[1][1]):
                pool.submit(helper, "second").result()
            pool.submit(helper, "third").result()
    assert tracer.processor.force_flush(20_000)
    assert [names(store, each) for each in ids] == [["first", "third"], ["second"]]


def test_a_job_that_a_worker_puts_back_is_of_the_rollout_that_it_works_for(
    store: LightningStore, tracer: OtelTracer
) -> None:
    ids = attempts(store, 2)
    work: queue.Queue[str] = queue.Queue()
    work.put("job")

    def retry() -> None:
        work.put(work.get())

    outside = contextvars.copy_context()
    with tracer.trace_context(store=store, rollout_id=ids[0][0], attempt_id=ids[0][1]):
        thread = threading.Thread(target=retry)
        thread.start()
        thread.join()
        outside.run(_call_for_each_item_in_a_thread, tracer, store, ids[1], work)
    assert tracer.processor.force_flush(20_000)
    assert [names(store, each) for each in ids] == [[], []]


def _call_for_each_item_in_a_thread(
    tracer: OtelTracer, store: LightningStore, ids: Ids, work: queue.Queue[str]
) -> None:
    with tracer.trace_context(store=store, rollout_id=ids[0], attempt_id=ids[1]):
        thread = threading.Thread(target=lambda: call(work.get()))
        thread.start()
        thread.join()


def test_one_object_that_several_rollouts_put_is_of_nobody(store: LightningStore, tracer: OtelTracer) -> None:
    ids = attempts(store, 2)
    work: queue.Queue[str] = queue.Queue()
    for rollout_id, attempt_id in ids:
        with tracer.trace_context(store=store, rollout_id=rollout_id, attempt_id=attempt_id):
            work.put("the same")

    def worker() -> None:
        for _ in range(2):
            call(work.get())

    thread = threading.Thread(target=worker)
    thread.start()
    thread.join()
    assert [names(store, each) for each in ids] == [[], []]
    assert tracer.processor.unattributed_count == 2


class OwnRun(threading.Thread):
    """A thread as agents write them."""

    def run(self) -> None:
        call("own run")


def test_a_thread_with_a_run_of_its_own_has_its_starters_context(
    store: LightningStore, tracer: OtelTracer
) -> None:
    (ids,) = attempts(store, 1)
    thread = OwnRun()
    with tracer.trace_context(store=store, rollout_id=ids[0], attempt_id=ids[1]):
        thread.start()
        thread.join()
    assert names(store, ids) == ["own run"]
    assert "run" not in vars(thread)


def test_a_pool_of_threads_that_lives_on_serves_each_rollout_as_its_own(
    store: LightningStore, tracer: OtelTracer
) -> None:
    ids = attempts(store, 3)
    with ExitStack() as undo:
        pool = None
        for number, (rollout_id, attempt_id) in enumerate(ids):
            with tracer.trace_context(store=store, rollout_id=rollout_id, attempt_id=attempt_id):
                if pool is None:
                    pool = undo.enter_context(ThreadPool(2))
                pool.map(call, [f"map-{number}"])
                pool.apply(call, (f"apply-{number}",))
                list(pool.imap(call, [f"imap-{number}"]))
    assert tracer.processor.force_flush(20_000)
    assert [names(store, each) for each in ids] == [
        [f"map-{number}", f"apply-{number}", f"imap-{number}"] for number in range(3)
    ]
