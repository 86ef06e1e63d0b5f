"""What is done in another process is filed under the rollout that handed it on, or under none."""

from __future__ import annotations

import asyncio
import contextvars
import multiprocessing
import os
import queue
from collections.abc import Generator, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from tracer_sample import new_attempt, spans_in

from agentlightning.rows import explain_rows
from agentlightning.store import LightningStore, open_store
from agentlightning.tracer import OtelTracer
from agentlightning.types import Receipt

pytestmark = pytest.mark.long


def call(name: str) -> int:
    """An agent knows nothing of us: it uses the global API."""
    trace.get_tracer("agent").start_span(name).end()
    return os.getpid()


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[LightningStore]:
    opened = open_store(f"sqlite:///{tmp_path}/s.db")
    yield opened
    asyncio.run(opened.close())


@pytest.fixture
def recorder(kept: LightningStore) -> Iterator[OtelTracer]:
    with OtelTracer(max_wait_time=60_000).lifespan(kept) as tracer:
        assert isinstance(tracer, OtelTracer)
        yield tracer


def names(store: LightningStore, ids: Any) -> list[str]:
    return [span.name for span in spans_in(store, ids) if span.name != "rollout"]


async def receipt(store: LightningStore, ids: Any) -> Receipt:
    return await store.get_receipt(*ids)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_pool_of_processes_that_lives_on_serves_each_rollout_as_its_own(
    kept: LightningStore, recorder: OtelTracer, method: str
) -> None:
    processes = multiprocessing.get_context(method)
    ids = [asyncio.run(new_attempt(kept, number)) for number in range(2)]
    done: list[int] = []
    with ExitStack() as undo:
        executor = pool = None
        for number, (rollout_id, attempt_id) in enumerate(ids):
            with recorder.trace_context(store=kept, rollout_id=rollout_id, attempt_id=attempt_id):
                executor = executor or undo.enter_context(ProcessPoolExecutor(1, mp_context=processes))
                pool = pool or undo.enter_context(processes.Pool(1))
                done.append(executor.submit(call, f"executor {number}").result())
                done += [pool.apply(call, (f"pool {number}",)), *pool.imap(call, [f"imap {number}"])]
                # What a job has recorded is stored when its result is there.
                assert len(names(kept, ids[number])) == 3
        assert executor is not None
        done.append(executor.submit(call, "of nobody").result())
    assert os.getpid() not in done
    assert [names(kept, each) for each in ids] == [
        [f"executor {number}", f"pool {number}", f"imap {number}"] for number in range(2)
    ]
    for each in ids:
        spans = spans_in(kept, each)
        root = next(span for span in spans if span.name == "rollout")
        assert {span.parent_id for span in spans} == {None, root.span_id}
        assert asyncio.run(receipt(kept, each)).whole


def test_a_job_of_a_generator_is_of_the_rollout_that_the_generator_has_opened(
    kept: LightningStore, recorder: OtelTracer
) -> None:
    ids = [asyncio.run(new_attempt(kept, number)) for number in range(2)]

    def agent(number: int) -> Generator[None, None, None]:
        rollout_id, attempt_id = ids[number]
        with recorder.trace_context(store=kept, rollout_id=rollout_id, attempt_id=attempt_id):
            yield
            executor.submit(call, f"job of {number}").result()
            yield

    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as executor:
        agents = [agent(number) for number in range(2)]
        for each in [*agents, *agents]:
            next(each)
        executor.submit(call, "job of their driver").result()
        for each in agents:
            each.close()
    assert [names(kept, each) for each in ids] == [["job of 0"], ["job of 1"]]
    assert [asyncio.run(receipt(kept, each)).unattributed for each in ids] == [1, 1]


def straggle(go: Connection) -> None:
    call("in time")
    go.send("begun")
    go.recv()
    call("late")


def test_what_a_forked_process_inherits_ends_with_its_rollout(
    kept: LightningStore, recorder: OtelTracer
) -> None:
    ids = asyncio.run(new_attempt(kept))
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=straggle, args=(there,))
    with recorder.trace_context(store=kept, rollout_id=ids[0], attempt_id=ids[1]):
        process.start()
        here.recv()
    here.send("go on")
    process.join(120)
    assert process.exitcode == 0
    assert names(kept, ids) == ["in time"]
    assert [span.name for span in asyncio.run(late(kept, ids))] == ["late"]
    found = asyncio.run(receipt(kept, ids))
    assert (found.late, found.late_stored, found.whole, found.under_way) == (1, 1, True, False)


async def late(store: LightningStore, ids: Any) -> Any:
    return await store.query_late_spans(*ids)


def serve(work: Any, results: Any) -> None:
    while name := work.get():
        call(name)
        results.put([name])


@pytest.mark.parametrize("kind", ["Queue", "JoinableQueue", "SimpleQueue"])
def test_a_process_that_lives_on_does_the_work_of_whoever_put_it_on_the_queue(
    kept: LightningStore, recorder: OtelTracer, kind: str
) -> None:
    processes = multiprocessing.get_context("fork")
    ids = [asyncio.run(new_attempt(kept, number)) for number in range(3)]
    work, results = (getattr(processes, kind)() for _ in range(2))
    process = processes.Process(target=serve, args=(work, results))
    for number, (rollout_id, attempt_id) in enumerate(ids):
        with recorder.trace_context(store=kept, rollout_id=rollout_id, attempt_id=attempt_id):
            if not number:
                process.start()
            for turn in "ab":
                work.put(f"{number}{turn}")
                assert results.get() == [f"{number}{turn}"]
        # What it did is stored before its result is there.
        assert names(kept, ids[number]) == [f"{number}a", f"{number}b"] or not number
    work.put("")
    process.join(120)
    assert process.exitcode == 0
    assert [names(kept, each) for each in ids] == [[f"{number}a", f"{number}b"] for number in range(3)]
    for each in ids:
        spans = spans_in(kept, each)
        root = next(span for span in spans if span.name == "rollout")
        assert {span.parent_id for span in spans} == {None, root.span_id}
        assert asyncio.run(receipt(kept, each)).whole


def test_a_process_of_an_open_rollout_does_nothing_for_it_that_others_have_put(
    kept: LightningStore, recorder: OtelTracer
) -> None:
    processes = multiprocessing.get_context("fork")
    ids, others = (asyncio.run(new_attempt(kept, number)) for number in range(2))
    work, results = processes.Queue(), processes.Queue()
    process = processes.Process(target=serve, args=(work, results))

    def ask(name: str) -> None:
        work.put(name)
        results.get()

    def other() -> None:
        with recorder.trace_context(store=kept, rollout_id=others[0], attempt_id=others[1]):
            ask("of the other one")

    outside = contextvars.copy_context()
    with recorder.trace_context(store=kept, rollout_id=ids[0], attempt_id=ids[1]):
        process.start()
        ask("own")
        outside.run(other)
        outside.run(ask, "of nobody")
        ask("own again")
        work.put("")
        process.join(120)
    assert [names(kept, each) for each in (ids, others)] == [["own", "own again"], []]
    assert asyncio.run(receipt(kept, ids)).unattributed == 2
    assert asyncio.run(receipt(kept, others)).unattributed == 1


class Thing:
    """Something that a program puts on a queue."""

    def __init__(self, name: str) -> None:
        self.name = name


def answer_each(work: Any, results: Any) -> None:
    while (thing := work.get()) is not None:
        results.put((type(thing).__name__, thing.name))


def test_an_item_comes_out_as_it_was_put_also_where_nothing_is_recorded(
    kept: LightningStore, recorder: OtelTracer
) -> None:
    processes = multiprocessing.get_context("spawn")
    work, results = processes.Queue(), processes.Queue()
    with recorder.trace_context():
        process = processes.Process(target=answer_each, args=(work, results))
        process.start()
        work.put(Thing("a thing"))
        assert results.get() == ("Thing", "a thing")
        work.put(None)
        process.join(120)
    assert process.exitcode == 0


def twice(number: int) -> int:
    call("a call")
    return 2 * number


def test_jobs_are_done_where_their_store_cannot_be_reached(store: LightningStore, tracer: OtelTracer) -> None:
    """A store in memory is not there in a process that was spawned."""
    with (
        ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor,
        tracer.trace_context(),
    ):
        assert list(executor.map(twice, [1, 2])) == [2, 4]


def answer(go: Connection) -> None:
    call("while both are open")
    go.send("done")


def test_a_forked_process_tells_its_rollout_from_others_that_are_open(
    kept: LightningStore, recorder: OtelTracer
) -> None:
    """However many numbers are given out meanwhile, for items on queues."""
    ids, other = (asyncio.run(new_attempt(kept, number)) for number in range(2))
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=answer, args=(there,))
    work: queue.Queue[object] = queue.Queue()
    items = [object() for _ in range(511)]
    with recorder.trace_context(store=kept, rollout_id=ids[0], attempt_id=ids[1]):
        context = contextvars.copy_context()
        for item in items:
            work.put(item)
            work.get()
        with recorder.trace_context(store=kept, rollout_id=other[0], attempt_id=other[1]):
            context.run(process.start)
            here.recv()
            process.join(120)
    assert [names(kept, each) for each in (ids, other)] == [["while both are open"], []]


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_process_that_records_nothing_is_named(
    kept: LightningStore, recorder: OtelTracer, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    processes: Any = multiprocessing.get_context(method)
    rollout_id, attempt_id = ids = asyncio.run(new_attempt(kept))
    with recorder.trace_context(store=kept, rollout_id=rollout_id, attempt_id=attempt_id):
        process = processes.Process(target=call, args=("in a process",), name="helper")
        process.start()
        process.join()
        with ProcessPoolExecutor(1, mp_context=processes) as executor:
            executor.submit(call, "in a pool").result()
    assert process.exitcode == 0
    spans = spans_in(kept, ids)
    (root,) = (span for span in spans if span.name == "rollout")
    named = root.attributes.get("agentlightning.unrecorded_processes")
    said = {reason.code for reason in explain_rows(spans).reasons}
    if method == "fork":
        assert sorted(names(kept, ids)) == ["in a pool", "in a process"]
        assert (named, "unrecorded_process" in said) == (None, False)
        return
    assert names(kept, ids) == ["in a pool"]
    assert (named, "unrecorded_process" in said) == (["helper"], True)
    assert [record.getMessage() for record in caplog.records if "records nothing" in record.getMessage()]
