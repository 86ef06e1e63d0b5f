"""Workers that end in every way; spans are stored or in the spool, and the next start delivers the spool."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import time
from pathlib import Path

import pytest
from tracer_sample import assert_balanced, new_attempt
from warm import Warm

from agentlightning.store import open_store
from agentlightning.testing import ChildProcess, StartMethod, start_child
from agentlightning.tracer import OtelTracer
from agentlightning.types import Receipt, Span

pytestmark = pytest.mark.long

SPANS = 200

WORKER = """
import asyncio, signal, sys, threading
from opentelemetry import trace
from agentlightning.store import open_store
from agentlightning.tracer import OtelTracer

store = open_store(args["url"])
tracer = OtelTracer()
tracer.init()
tracer.init_worker(0, store)
context = tracer.trace_context("work", rollout_id=args["ids"][0], attempt_id=args["ids"][1])
handle = context.__enter__()
for number in range(args["spans"]):
    handle.start_span(f"s{number}").end()
report("traced")
if args["end"] == "exception":
    raise RuntimeError("the worker failed")
if args["end"] == "sigterm":
    threading.Event().wait()
# "return": the worker forgets to leave its context and to tear down
"""


async def outcome(url: str, ids: tuple[str, str]) -> tuple[list[Span], list[Span], Receipt]:
    async with open_store(url) as store:
        tracer = OtelTracer()
        with tracer.lifespan(store):  # what a busy machine had no time for waits in the spool
            tracer.processor.force_flush()
        return (
            list(await store.query_spans(*ids)),
            list(await store.query_open_spans(*ids)),
            await store.get_receipt(*ids),
        )


def attempt_in(url: str) -> tuple[str, str]:
    async def start() -> tuple[str, str]:
        async with open_store(url) as store:
            return await new_attempt(store)

    return asyncio.run(start())


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'store.db'}"


@pytest.mark.parametrize("end", ["return", "exception", "sigterm"])
@pytest.mark.parametrize(
    "method",
    [
        "fork",
        "spawn",
        # A child of a fork server ends as a fork does, and one of subprocess as a spawned one.
        pytest.param("forkserver", marks=pytest.mark.soak),
        pytest.param("subprocess", marks=pytest.mark.soak),
    ],
)
def test_a_worker_loses_no_span_however_it_ends(url: str, method: StartMethod, end: str) -> None:
    ids = attempt_in(url)
    with start_child(
        WORKER, args={"url": url, "ids": ids, "spans": SPANS, "end": end}, method=method
    ) as child:
        assert child.next_report() == "traced"
        if end == "sigterm":
            child.signal(signal.SIGTERM)
        code = child.wait()
    assert code == {"return": 0, "exception": 1, "sigterm": -signal.SIGTERM}[end]
    stored, still_open, receipt = asyncio.run(outcome(url, ids))
    assert [span.name for span in stored] == [f"s{number}" for number in range(SPANS)]
    assert [span.name for span in still_open] == ["work"]
    assert_balanced(receipt)
    assert not receipt.interrupted


INTERRUPTED = """
import os, signal, sys, threading
from agentlightning.store import open_store
from agentlightning.tracer import OtelTracer

seen = 0

def at_the_moment(frame, event, argument):
    global seen
    if not frame.f_code.co_filename.endswith(args["files"]):
        return None
    seen += 1
    if seen == args["moment"]:
        os.kill(os.getpid(), signal.SIGTERM)
    return at_the_moment

tracer = OtelTracer()
tracer.init_worker(0, open_store(args["url"]))
context = tracer.trace_context("work", rollout_id=args["ids"][0], attempt_id=args["ids"][1])
handle = context.__enter__()
for number in range(5):
    handle.start_span(f"s{number}").end()
if args["idle"]:
    tracer.processor.force_flush()
sys.settrace(at_the_moment)
span = handle.start_span("interrupted")
span.set_attribute("step", 1)
span.end()
helper = threading.Thread(target=int)
helper.start()
helper.join()
sys.settrace(None)
report(seen)
threading.Event().wait(120 if 0 < args["moment"] <= seen else 0)
"""


@pytest.mark.parametrize("idle", [True, False])
@pytest.mark.parametrize("files", ["recorder/writer.py", "sdk/trace/__init__.py", "threading.py"])
def test_sigterm_in_the_middle_of_code_that_holds_a_lock_loses_no_span(
    recording: Warm, url: str, files: str, idle: bool
) -> None:
    moment, step = 0, 1
    while True:
        ids = attempt_in(url)
        arguments = {"url": url, "ids": ids, "files": files, "moment": moment, "idle": idle}
        with recording.start_child(INTERRUPTED, args=arguments) as child:
            code = child.wait()
        stored, _, receipt = asyncio.run(outcome(url, ids))
        assert [span.name for span in stored][:5] == [f"s{number}" for number in range(5)], moment
        assert_balanced(receipt)
        if code == 0:
            moments = child.reports[0]
            if moment > moments:
                return
            assert moment == 0, "the signal was lost"
            step = 1 + moments // 15
        else:
            assert code == -signal.SIGTERM
        moment += step


HANGING = """
import os, signal, sys, threading
from agentlightning.store import open_store
from agentlightning.testing import FaultyStore
from agentlightning.tracer import OtelTracer

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for what runs in the background
store = FaultyStore(open_store(args["url"]), only={"add_many_spans"})
tracers = [OtelTracer(max_wait_time=50) for _ in range(args["tracers"])]
for number, tracer in enumerate(tracers):
    tracer.init_worker(number, store)
store.hold()
with tracers[-1].trace_context("work", rollout_id=args["ids"][0], attempt_id=args["ids"][1]) as handle:
    for number in range(args["spans"]):
        handle.start_span(f"s{number}").end()

def interrupt():
    while not args["when"](tracers[-1]):
        pass
    os.kill(os.getpid(), args["signal"])

def in_shutdown(tracer):
    return any(
        frame.f_code.co_name == "shutdown" and "recorder/writer" in frame.f_code.co_filename
        for frame in walk(sys._current_frames()[threading.main_thread().ident])
    )

def walk(frame):
    while frame is not None:
        yield frame
        frame = frame.f_back

args["when"] = in_shutdown if args["where"] == "teardown" else lambda tracer: True
threading.Thread(target=interrupt, daemon=True).start()
if args["where"] == "teardown":
    tracers[-1].teardown_worker(0)
threading.Event().wait(120)
"""


@pytest.mark.parametrize("where", ["work", "teardown"])
@pytest.mark.parametrize(
    ("number", "tracers"), [(signal.SIGTERM, 1), (signal.SIGTERM, 2), (signal.SIGINT, 1)]
)
def test_a_signal_while_the_store_hangs_loses_no_span(
    recording: Warm, url: str, number: signal.Signals, tracers: int, where: str, tmp_path: Path
) -> None:
    ids = attempt_in(url)
    arguments = {"url": url, "ids": ids, "spans": SPANS, "signal": number, "tracers": tracers, "where": where}
    spool = {"AGL_SPOOL_DIR": str(tmp_path / "spool")}
    with recording.start_child(HANGING, args=arguments, env=spool) as child:
        assert child.wait() != 0
    again = {"url": url, "ids": attempt_in(url), "spans": 1, "end": "return"}
    with recording.start_child(WORKER, args=again, env=spool) as child:
        child.finish()
    stored, _, receipt = asyncio.run(outcome(url, ids))
    assert sorted(span.name for span in stored) == sorted(
        [*(f"s{number}" for number in range(SPANS)), "work"]
    )
    assert_balanced(receipt)


FORKING = """
import multiprocessing
from opentelemetry import trace
from agentlightning.store import open_store
from agentlightning.tracer import OtelTracer

def work(number):
    with trace.get_tracer("child").start_as_current_span(f"child-{number}"):
        pass

store = open_store(args["url"])
tracer = OtelTracer()
with tracer.lifespan(store):
    with tracer.trace_context("parent", rollout_id=args["ids"][0], attempt_id=args["ids"][1]) as handle:
        handle.start_span("before").end()
        context = multiprocessing.get_context("fork")
        children = [context.Process(target=work, args=(number,)) for number in range(4)]
        for child in children:
            child.start()
        for child in children:
            child.join()
        report([child.exitcode for child in children])
        handle.start_span("after").end()
"""


def test_children_forked_inside_a_context_record_under_its_attempt(recording: Warm, url: str) -> None:
    ids = attempt_in(url)
    with recording.start_child(FORKING, args={"url": url, "ids": ids}) as child:
        assert child.finish() == [[0, 0, 0, 0]]
    stored, still_open, receipt = asyncio.run(outcome(url, ids))
    assert sorted(span.name for span in stored) == [
        "after",
        "before",
        *(f"child-{n}" for n in range(4)),
        "parent",
    ]
    assert still_open == []
    assert receipt.whole


DEAD_STORE = """
import asyncio
from agentlightning.store import open_store
from agentlightning.testing import FaultyStore
from agentlightning.tracer import OtelTracer

store = FaultyStore(open_store(args["url"]), only={"add_many_spans"})
tracer = OtelTracer(max_wait_time=50)
tracer.init_worker(0, store)
if args["how"] == "hangs":
    store.hold()
else:
    store.fail_for_ever()
context = tracer.trace_context("work", rollout_id=args["ids"][0], attempt_id=args["ids"][1])
with context as handle:
    for number in range(args["spans"]):
        handle.start_span(f"s{number}").end()
report("traced")
"""


@pytest.mark.parametrize("how", ["hangs", "fails"])
def test_a_process_whose_store_died_ends_soon_and_the_next_start_delivers(
    recording: Warm, url: str, how: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    ids = attempt_in(url)
    spool = tmp_path / "spool"
    arguments = {"url": url, "ids": ids, "spans": SPANS, "how": how}
    with recording.start_child(DEAD_STORE, args=arguments, env={"AGL_SPOOL_DIR": str(spool)}) as child:
        assert child.next_report() == "traced"
        began = time.monotonic()
        assert child.wait() == 0
        assert time.monotonic() - began < 120  # aim 2 s; the bound here only says that it does not hang
    assert str(spool) in capfd.readouterr().err
    assert asyncio.run(outcome(url, ids))[0] == []
    healthy = {"url": url, "ids": attempt_in(url), "spans": 1, "end": "return"}
    with recording.start_child(WORKER, args=healthy, env={"AGL_SPOOL_DIR": str(spool)}) as child:
        child.finish()
    stored, still_open, receipt = asyncio.run(outcome(url, ids))
    assert sorted(span.name for span in stored) == sorted(
        [f"s{number}" for number in range(SPANS)] + ["work"]
    )
    assert still_open == []
    assert_balanced(receipt)
    assert receipt.started == receipt.stored == SPANS + 1
    assert not spool.exists()


KILLED = """
import itertools
from agentlightning.store import open_store
from agentlightning.tracer import OtelTracer
from agentlightning.recorder.settings import WriterSettings

store = open_store(args["url"])
tracer = OtelTracer(settings=WriterSettings(flush_interval=10))
tracer.init_worker(0, store)
with tracer.trace_context("work", rollout_id=args["ids"][0], attempt_id=args["ids"][1]) as handle:
    for number in itertools.count():
        with handle.start_as_current_span(f"outer-{number}"):
            for inner in range(20):
                span = handle.start_span(f"inner-{number}-{inner}")
                span.end()
            if number % 3 == 0 and tracer.processor.force_flush(10_000):
                report([span.span_id for span in handle.spans()])
"""


def kill_and_check(recording: Warm, url: str, reports: int) -> None:
    ids = attempt_in(url)
    with recording.start_child(KILLED, args={"url": url, "ids": ids}) as child:
        acknowledged = kill_when(child, reports)
    stored, still_open, receipt = asyncio.run(outcome(url, ids))
    found = [span.span_id for span in stored]
    assert len(found) == len(set(found))
    assert acknowledged <= set(found)
    assert [span.sequence_id for span in stored] == list(range(1, len(stored) + 1))
    assert "work" in {span.name for span in still_open}
    assert not set(found) & {span.span_id for span in still_open}
    assert receipt.interrupted
    assert_balanced(receipt)
    with sqlite3.connect(url.removeprefix("sqlite:///")) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()


def kill_when(child: ChildProcess, reports: int) -> set[str]:
    child.kill(when=lambda: len(child.reports) >= reports)
    return set(child.reports[-1])


@pytest.mark.parametrize("reports", [1, 3, 7])
def test_after_kill_minus_9_what_was_acknowledged_is_there_and_the_rest_is_open(
    recording: Warm, url: str, reports: int
) -> None:
    kill_and_check(recording, url, reports)


@pytest.mark.soak
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("round_", range(50))
def test_fifty_kills_at_random_moments(recording: Warm, url: str, round_: int) -> None:
    kill_and_check(recording, url, 1 + round_ % 10)


def test_a_killed_process_leaves_a_store_that_the_next_one_uses(recording: Warm, url: str) -> None:
    kill_and_check(recording, url, 1)
    ids = attempt_in(url)
    with recording.start_child(WORKER, args={"url": url, "ids": ids, "spans": 5, "end": "return"}) as child:
        child.finish()
    assert len(asyncio.run(outcome(url, ids))[0]) == 5
