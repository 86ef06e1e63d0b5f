"""How long a thread of the recorder works before other threads get the interpreter; the clock is given, or calls count."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from agentlightning._turn import WORK_SECONDS, Turn, turn_of_thread
from agentlightning.recorder.settings import WriterSettings
from agentlightning.store import LightningStore, open_store
from agentlightning.tracer import OtelTracer

FORCED = sys.getswitchinterval()
SPANS = 300
MOST_CALLS = 200
"""Python functions that a thread calls before it looks whether its turn is over; one span takes some 100."""
MOST_CALLS_FOR_A_SPAN = 8
"""What is done to all spans of a batch in one step, as under a lock or between calls of SQLite, which let other threads
run, takes no more for each."""
ATTRIBUTES: dict[str, Any] = {f"agent.detail.{number}": "some text" for number in range(25)}


class Threads:
    """A clock, and other threads, each of which keeps the interpreter for so long."""

    def __init__(self, *kept: float) -> None:
        self.now = 0.0
        self._kept = list(kept)
        self.waits: list[float] = []
        """When the thread gave way."""

    def sleep(self, seconds: float) -> None:
        self.waits.append(self.now)
        self.now += max(seconds, self._kept.pop(0) if self._kept else 0.0)


def given(threads: Threads, works: int, is_urgent: Callable[[], bool] = lambda: False) -> list[float]:
    """Work so many times for a tenth of a millisecond, and return for how long without giving way."""
    turn = Turn(is_urgent, clock=lambda: threads.now, sleep=threads.sleep)
    began, lengths = 0.0, []
    for _ in turn.over(range(works)):
        if threads.waits and began != threads.waits[-1]:
            began = threads.waits[-1]
        threads.now += 0.0001
    ends = threads.waits
    lengths = [after - before for before, after in zip([0.0, *ends], ends, strict=False)]
    return lengths


def test_a_turn_is_half_a_millisecond_where_others_let_go_themselves() -> None:
    threads = Threads(*[0.004] * 10)
    lengths = given(threads, 60)
    assert len(lengths) == 10
    assert max(lengths[1:]) <= 0.004 + WORK_SECONDS + 0.0002


def test_a_turn_is_as_long_as_the_other_was_where_the_interpreter_was_taken_from_it() -> None:
    threads = Threads(FORCED, 0.0)
    lengths = given(threads, 120)
    assert lengths[0] <= WORK_SECONDS + 0.0002
    assert FORCED + FORCED <= lengths[1] <= FORCED + FORCED + 0.0002
    assert lengths[2] <= WORK_SECONDS + 0.0002, "and then short again"


def test_urgent_work_gives_no_way() -> None:
    assert given(Threads(), 100, lambda: True) == []


def test_each_thread_has_one_turn() -> None:
    others: list[Turn] = []
    thread = threading.Thread(target=lambda: others.extend([turn_of_thread(), turn_of_thread()]))
    thread.start()
    thread.join()
    assert others[0] is others[1]
    assert turn_of_thread() is turn_of_thread()
    assert others[0] is not turn_of_thread()


class Looks:
    """How many Python functions a thread of ours calls before it looks whether its turn is over, or waits."""

    def __init__(self) -> None:
        self.longest = 0
        self.where = ""
        self.looks = 0
        self._calls: Counter[int] = Counter()
        """Thread → how many since it looked."""

    def note(self, frame: FrameType, event: str, _: Any) -> None:
        if event != "call":
            return
        thread, name = threading.get_ident(), frame.f_code.co_name
        if name in {"give_way", "wait", "select"}:
            self.looks += 1
            self._calls[thread] = 0
            return
        self._calls[thread] += 1
        if self._calls[thread] > self.longest:
            self.longest = self._calls[thread]
            self.where = f"{frame.f_code.co_filename}:{name}"


@pytest.fixture(params=["memory", "sqlite"])
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LightningStore]:
    store = open_store("memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/store.db")
    yield store
    asyncio.run(store.close())


@pytest.mark.parametrize("ends", [True, False], ids=["ended", "open"])
def test_threads_of_ours_look_at_their_turn_after_each_span(kept: LightningStore, ends: bool) -> None:
    looks = Looks()
    tracer = OtelTracer(settings=WriterSettings(batch_size=10_000, flush_interval=60_000))
    threading.setprofile(lambda *event: looks.note(*event))
    try:
        with tracer.lifespan(kept):
            with tracer.trace_context("first") as handle:  # what is made once
                handle.start_span("call", attributes=ATTRIBUTES).end()
            looks = Looks()
            with tracer.trace_context("rollout") as handle:
                spans = [handle.start_span("call", attributes=ATTRIBUTES) for _ in range(SPANS)]
                if not ends:
                    tracer.processor.force_flush()
                for span in spans:
                    span.end()
            assert handle.receipt().stored == SPANS + 1
    finally:
        threading.setprofile(None)
    assert looks.looks > 2 * SPANS
    assert looks.longest <= MOST_CALLS + MOST_CALLS_FOR_A_SPAN * SPANS, looks.where


def test_no_model_is_built_while_an_agent_runs() -> None:
    source = (
        "from pydantic._internal import _model_construction as construction\n"
        "from agentlightning import OtelTracer\n"
        "from agentlightning.store import open_store\n"
        "built, build = [], construction.complete_model_class\n"
        "construction.complete_model_class = lambda cls, *a, **k: (built.append(cls.__name__), build(cls, *a, **k))[1]\n"
        "with OtelTracer().lifespan(open_store('memory://')) as tracer:\n"
        "    built.clear()\n"
        "    with tracer.trace_context('rollout') as handle:\n"
        "        handle.start_span('call').end()\n"
        "    assert handle.receipt().stored == 2\n"
        "print(built)\n"
    )
    done = subprocess.run([sys.executable, "-c", source], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
