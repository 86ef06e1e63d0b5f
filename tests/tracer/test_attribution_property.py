"""Programs drawn at random: no call is ever filed under a rollout that did not make it, and none is lost uncounted."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections import Counter
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.pool import ThreadPool
from typing import Dict, List, Tuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry import trace

from agentlightning.store import InMemoryLightningStore
from agentlightning.tracer import OtelTracer

NOBODY = "nobody"
ACTIONS = ("call", "executor", "pool", "thread", "queue", "late", "nested", "task", "open the gate")
MOVES = ("step", "step", "step", "leave", "abandon", "driver")


class Program:
    """Runs one program, and knows who makes each call: its name says it."""

    def __init__(self, tracer: OtelTracer) -> None:
        self.tracer = tracer
        self.made: Counter[str] = Counter()
        self.ids: Dict[str, Tuple[str, str]] = {}
        self.gate = threading.Event()
        self.stragglers: List[threading.Thread] = []
        self.work: queue.Queue[str | None] = queue.Queue()
        self.worker: threading.Thread | None = None
        self.executor: ThreadPoolExecutor | None = None
        self.pool: ThreadPool | None = None

    def call(self, owner: str) -> None:
        self.made[owner] += 1
        trace.get_tracer("agent").start_span(f"call of {owner}").end()

    def rollout(self, owner: str, actions: List[str]) -> Generator[None, None, None]:
        """One rollout that takes a step for each action, and waits for its driver behind each."""
        with self.tracer.trace_context(owner) as handle:
            self.ids[owner] = handle.rollout_id, handle.attempt_id
            for action in actions:
                self.act(action, owner)
                yield

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
        elif action == "queue":
            if self.worker is None:
                self.worker = threading.Thread(target=self.serve)
                self.worker.start()
            self.work.put(owner)
            self.work.join()
        elif action == "late":
            self.stragglers.append(threading.Thread(target=self.straggle, args=(owner,)))
            self.stragglers[-1].start()
        elif action == "nested":
            inner = f"{owner} inside {len(self.ids)}"
            for _ in self.rollout(inner, ["call", "thread"]):
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

    def serve(self) -> None:
        while (owner := self.work.get()) is not None:
            self.call(owner)
            self.work.task_done()

    def straggle(self, owner: str) -> None:
        assert self.gate.wait(60)
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
        if self.worker is not None:
            self.work.put(None)
            self.worker.join()
        if self.executor is not None:
            self.executor.shutdown()
        if self.pool is not None:
            self.pool.terminate()
            self.pool.join()


plans = st.lists(st.lists(st.sampled_from(ACTIONS), min_size=1, max_size=4), min_size=1, max_size=3)
schedules = st.lists(st.tuples(st.sampled_from((*MOVES, "open the gate")), st.integers(0, 2)), max_size=16)


def run(plan: List[List[str]], schedule: List[Tuple[str, int]]) -> None:
    store = InMemoryLightningStore()
    tracer = OtelTracer(instrument_llm_calls=False)
    with tracer.lifespan(store):
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
        asyncio.run(check(store, program, tracer.processor.unattributed_count))


def take(program: Program, running: Dict[int, Generator[None, None, None]], move: str, number: int) -> None:
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


async def check(store: InMemoryLightningStore, program: Program, unattributed: int) -> None:
    found = 0
    receipts = {owner: await store.get_receipt(*ids) for owner, ids in program.ids.items()}
    # What a generator starts in the context of another one is late of that one, once both are over.
    late = sum(receipt.late for receipt in receipts.values())
    for owner, ids in program.ids.items():
        names = [span.name for span in await store.query_spans(*ids) if span.name.startswith("call of ")]
        assert set(names) <= {f"call of {owner}"}, (owner, names)
        receipt = receipts[owner]
        assert receipt.whole, receipt
        missing = program.made[owner] - len(names)
        assert missing <= late + receipt.unattributed, (owner, missing, receipt)
        found += len(names)
    assert found + unattributed == sum(program.made.values())


@settings(max_examples=15)
@given(plans, schedules)
def test_no_call_is_filed_under_a_rollout_that_did_not_make_it(
    plan: List[List[str]], schedule: List[Tuple[str, int]]
) -> None:
    run(plan, schedule)


@pytest.mark.soak
@settings(max_examples=1_000)
@given(plans, schedules)
def test_no_call_is_filed_under_a_rollout_that_did_not_make_it_in_a_thousand_programs(
    plan: List[List[str]], schedule: List[Tuple[str, int]]
) -> None:
    run(plan, schedule)
