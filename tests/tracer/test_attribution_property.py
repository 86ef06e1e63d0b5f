"""Programs drawn at random: no call is ever filed under a rollout that did not make it, and none is lost uncounted."""

from __future__ import annotations

import asyncio
import multiprocessing
import queue
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Generator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack
from multiprocessing.pool import ThreadPool
from typing import Any

import anyio
import anyio.from_thread
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry import trace

from agentlightning.semconv import SpanFlagAttributes
from agentlightning.store import InMemoryLightningStore, LightningStore, open_store
from agentlightning.tracer import OtelTracer

NOBODY = "nobody"
SHARED_WORKER_SPANS = SpanFlagAttributes.SHARED_WORKER_SPANS.value
CHANNELS = ("asyncio", "trio")
QUEUES: dict[str, Callable[[], Any]] = {
    "queue": queue.Queue,
    "queue, last first": queue.LifoQueue,
    "queue by priority": queue.PriorityQueue,
}
IN_OTHER_PROCESSES = "process pool"
ACTIONS = (
    *("call", "executor", "pool", "thread", "late", "nested", "task", "open the gate"),
    *QUEUES,
    *(f"channel of {backend}" for backend in CHANNELS),
    *("leave a nested one open", "drop a nested one", "unseen", IN_OTHER_PROCESSES),
)
MOVES = ("step", "step", "step", "leave", "abandon", "driver")


def call(owner: str) -> None:
    trace.get_tracer("agent").start_span(f"call of {owner}").end()


class Server:
    """A thread that is started by whoever comes first, and does what it finds on its queue."""

    def __init__(self, work: Any) -> None:
        self.work = work
        self.thread = threading.Thread(target=self.serve)

    def serve(self) -> None:
        while (item := self.work.get())[0]:
            call(item[0])
            item[1].set()

    def do(self, owner: str) -> None:
        if self.thread.ident is None:
            self.thread.start()
        done = Done()
        self.work.put((owner, done))
        assert done.wait(60)

    def end(self) -> None:
        if self.thread.ident is not None:
            self.work.put(("", Done()))
            self.thread.join()


class Done(threading.Event):
    """May stand in a queue that sorts."""

    def __lt__(self, other: object) -> bool:
        return id(self) < id(other)


class Channel:
    """The same as a task, in an event loop of a thread of its own."""

    def __init__(self, backend: str) -> None:
        self.backend = backend
        self.opened = ExitStack()
        self.portal: anyio.from_thread.BlockingPortal | None = None
        self.served: Future[None] | None = None

    async def open(self) -> None:
        self.send, self.receive = anyio.create_memory_object_stream[tuple[str, anyio.Event]](0)

    async def serve(self) -> None:
        async with self.receive:
            async for owner, done in self.receive:
                call(owner)
                done.set()

    async def ask(self, owner: str) -> None:
        done = anyio.Event()
        await self.send.send((owner, done))
        await done.wait()

    def do(self, owner: str) -> None:
        if self.portal is None:
            self.portal = self.opened.enter_context(anyio.from_thread.start_blocking_portal(self.backend))
            self.portal.call(self.open)
            self.served = self.portal.start_task_soon(self.serve)
        self.portal.call(self.ask, owner)

    def end(self) -> None:
        if self.portal is not None and self.served is not None:
            self.portal.call(self.send.aclose)
            self.served.result(60)
        self.opened.close()


class Program:
    """Runs one program, and knows who makes each call: its name says it."""

    def __init__(self, tracer: OtelTracer) -> None:
        self.tracer = tracer
        self.made: Counter[str] = Counter()
        self.ids: dict[str, tuple[str, str]] = {}
        self.gate = threading.Event()
        self.stragglers: list[threading.Thread] = []
        self.servers: dict[str, Server | Channel] = {
            **{name: Server(kind()) for name, kind in QUEUES.items()},
            **{f"channel of {backend}": Channel(backend) for backend in CHANNELS},
            "unseen": Server(queue.SimpleQueue()),
        }
        self.executor: ThreadPoolExecutor | None = None
        self.pool: ThreadPool | None = None
        self.processes: ProcessPoolExecutor | None = None
        self.over: set[str] = set()
        self.made_when_over: Counter[str] = Counter()
        self.jobs = 0
        """How many were handed to other processes."""
        self.left_open: list[Generator[None, None, None]] = []

    def call(self, owner: str) -> None:
        self.made[owner] += 1
        call(owner)

    def rollout(self, owner: str, actions: list[str]) -> Generator[None, None, None]:
        """One rollout that takes a step for each action, and waits for its driver behind each."""
        with self.tracer.trace_context(owner) as handle:
            self.ids[owner] = handle.rollout_id, handle.attempt_id
            try:
                for action in actions:
                    self.act(action, owner)
                    yield
            finally:
                self.over.add(owner)

    def act(self, action: str, owner: str) -> None:
        if action == "executor":
            self.executor = self.executor or ThreadPoolExecutor(2)
            self.executor.submit(self.call, owner).result()
        elif action == "pool":
            self.pool = self.pool or ThreadPool(1)
            self.pool.apply(self.call, (owner,))
        elif action == "thread":
            thread = threading.Thread(target=self.call, args=(owner,))
            thread.start()
            thread.join()
        elif action in self.servers:
            self.made[owner] += 1
            self.servers[action].do(owner)
        elif action == IN_OTHER_PROCESSES:
            self.made[owner] += 1
            self.jobs += 1
            context = multiprocessing.get_context("fork")
            self.processes = self.processes or ProcessPoolExecutor(1, mp_context=context)
            self.processes.submit(call, owner).result()
        elif action == "late":
            self.stragglers.append(threading.Thread(target=self.straggle, args=(owner,)))
            self.stragglers[-1].start()
        elif action == "nested":
            inner = f"{owner} inside {len(self.ids)}"
            for _ in self.rollout(inner, ["call", "thread"]):
                self.call(owner)
        elif action in {"leave a nested one open", "drop a nested one"}:
            nested = self.rollout(f"{owner} inside {len(self.ids)}", ["call", "thread"])
            next(nested)
            if action == "leave a nested one open":
                self.left_open.append(nested)
            del nested
            self.call(owner)
        elif action == "open the gate":
            self.open_the_gate()
        elif action == "task":
            asyncio.run(self.in_task(owner))
        else:
            self.call(owner)

    async def in_task(self, owner: str) -> None:
        async def work() -> None:
            self.call(owner)

        await asyncio.gather(work(), asyncio.to_thread(self.call, owner))

    def straggle(self, owner: str) -> None:
        assert self.gate.wait(60)
        if owner in self.over:
            self.made_when_over[owner] += 1
        self.call(owner)

    def open_the_gate(self) -> None:
        """Let the stragglers make their calls, whoever is at work now."""
        self.gate.set()
        for thread in self.stragglers:
            thread.join()
        self.stragglers.clear()
        self.gate.clear()

    def end(self) -> None:
        self.open_the_gate()
        for generator in self.left_open:
            generator.close()
        for server in self.servers.values():
            server.end()
        if self.executor is not None:
            self.executor.shutdown()
        if self.pool is not None:
            self.pool.terminate()
            self.pool.join()
        if self.processes is not None:
            self.processes.shutdown()


plans = st.lists(st.lists(st.sampled_from(ACTIONS), min_size=1, max_size=4), min_size=1, max_size=3)
schedules = st.lists(st.tuples(st.sampled_from((*MOVES, "open the gate")), st.integers(0, 2)), max_size=16)


def run(plan: list[list[str]], schedule: list[tuple[str, int]]) -> Counter[str]:
    """Run one program; returns how many calls it made, and where they were found."""
    with ExitStack() as ends:
        store: LightningStore = InMemoryLightningStore()
        if any(IN_OTHER_PROCESSES in actions for actions in plan):
            store = open_store(f"sqlite:///{ends.enter_context(tempfile.TemporaryDirectory())}/s.db")
            ends.callback(lambda: asyncio.run(store.close()))
        tracer = OtelTracer(instrument_llm_calls=False)
        ends.enter_context(tracer.lifespan(store))
        program = Program(tracer)
        running = {number: program.rollout(f"r{number}", actions) for number, actions in enumerate(plan)}
        try:
            for move, number in schedule:
                take(program, running, move, number)
            for generator in running.values():
                generator.close()
        finally:
            program.end()
        assert tracer.processor.force_flush(60_000)
        return asyncio.run(check(store, program, tracer.processor.unattributed_count))


def take(program: Program, running: dict[int, Generator[None, None, None]], move: str, number: int) -> None:
    if move == "step" and number in running:
        next(running[number], None)
    elif move == "leave" and number in running:
        for _ in running.pop(number):
            pass
    elif move == "abandon":
        running.pop(number, None)
    elif move == "driver":
        program.call(NOBODY)
    elif move == "open the gate":
        program.open_the_gate()


async def check(store: LightningStore, program: Program, unattributed: int) -> Counter[str]:
    receipts = {owner: await store.get_receipt(*ids) for owner, ids in program.ids.items()}
    # What a generator starts in the context of another one is late of that one, once both are over.
    late = sum(receipt.late for receipt in receipts.values())
    found: dict[str, int] = {}
    named: Counter[str] = Counter()  # on a root span, as those of a worker that lived on
    for owner, ids in program.ids.items():
        spans = await store.query_spans(*ids)
        in_question = {each for span in spans for each in span.attributes.get(SHARED_WORKER_SPANS, ())}
        calls = [span for span in spans if span.name.startswith("call of ")]
        named.update(span.name for span in calls if span.span_id in in_question)
        names = [span.name for span in calls if span.span_id not in in_question]
        assert set(names) <= {f"call of {owner}"}, (owner, names)
        found[owner] = len(names)
    for owner, receipt in receipts.items():
        assert receipt.whole, receipt
        missing = program.made[owner] - found[owner] - program.made_when_over[owner]
        assert missing <= late + receipt.unattributed + named[f"call of {owner}"], (owner, missing, receipt)
    calls_made, attributed = sum(program.made.values()), sum(found.values())
    # Those of other processes whose rollout was not known are counted on the receipts alone.
    elsewhere = calls_made - attributed - named.total() - unattributed
    assert 0 <= elsewhere <= program.jobs
    return Counter(
        programs=1,
        calls=calls_made,
        attributed=attributed,
        named=named.total(),
        unattributed=unattributed + elsewhere,
    )


@settings(max_examples=15)
@given(plans, schedules)
def test_no_call_is_filed_under_a_rollout_that_did_not_make_it(
    plan: list[list[str]], schedule: list[tuple[str, int]]
) -> None:
    run(plan, schedule)


@pytest.mark.soak
def test_no_call_is_filed_under_a_rollout_that_did_not_make_it_in_a_thousand_programs() -> None:
    counted: Counter[str] = Counter()

    @settings(max_examples=1_000)
    @given(plans, schedules)
    def programs(plan: list[list[str]], schedule: list[tuple[str, int]]) -> None:
        counted.update(run(plan, schedule))

    programs()
    print(dict(counted))
