"""What is recorded at the very end of an interpreter is not lost, also where it gives no more threads, as 3.12.1 does.

``as 3.12.1``: the programs get a ``Thread.start`` that behaves as that one's (gh-104690), whatever Python it is.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tracer_sample import new_attempt
from warm import Warm

from agentlightning.store import open_store
from agentlightning.types import Receipt

LIKE_3121 = """
import _thread, functools, threading

def unless_it_ends(start):
    @functools.wraps(start)
    def start_or_refuse(*args):
        if not threading.main_thread().is_alive():
            raise RuntimeError("can't create new thread at interpreter shutdown")
        return start(*args)

    return start_or_refuse

threading.Thread.start = unless_it_ends(threading.Thread.start)
_thread.start_new_thread = unless_it_ends(_thread.start_new_thread)
"""

EXPORTED = """
import atexit
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from agentlightning.tracer import LightningSpanExporter

provider = TracerProvider(shutdown_on_exit={own_exit})
provider.add_span_processor({processor}(LightningSpanExporter()))

def work():
    with provider.get_tracer("program").start_as_current_span("outer"):
        with provider.get_tracer("program").start_as_current_span("inner"):
            pass

{calls}
"""

TRACED = """
import atexit, os
from agentlightning.store import open_store
from agentlightning.tracer import OtelTracer

ids = os.environ["IDS"].split()
tracer = OtelTracer()
tracer.init()
tracer.init_worker(0, open_store())

@atexit.register
def work():
    with tracer.trace_context("work", rollout_id=ids[0], attempt_id=ids[1]) as handle:
        for number in range(3):
            handle.start_span(f"s{number}").end()
    tracer.teardown_worker(0)
"""

STARTS = """
import atexit
from agentlightning.store import open_store
from agentlightning.tracer import OtelTracer

tracer = OtelTracer()
tracer.init()
tracer.init_worker(0, open_store())

@atexit.register
def work():
    with tracer.trace_context("started at the end"):
        pass
    tracer.teardown_worker(0)
"""

HELD = """
import os
from agentlightning.store import open_store
from agentlightning.testing import FaultyStore
from agentlightning.tracer import LightningSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

store = FaultyStore(open_store(), only={{"add_many_spans"}})
provider = TracerProvider()
provider.add_span_processor(BatchSpanProcessor(LightningSpanExporter(store)))
for number in range({taken}):
    provider.get_tracer("program").start_span("taken").end()
provider.force_flush()
store.{how}()
for number in range({left}):
    provider.get_tracer("program").start_span("left").end()
"""

DELIVERS = "from agentlightning.tracer import LightningSpanExporter; LightningSpanExporter().shutdown()"
"""A start, which sends what waits on disk."""


@pytest.fixture(params=["as it is", "as 3.12.1"])
def interpreter(request: pytest.FixtureRequest) -> str:
    """Return the ``sitecustomize`` of the programs."""
    return LIKE_3121 if request.param == "as 3.12.1" else ""


@pytest.fixture
def place(interpreter: str, tmp_path: Path) -> dict[str, str]:
    """Return the environment of a program, which names a store with one attempt in it."""
    return place_in(tmp_path, interpreter)


def place_in(folder: Path, interpreter: str) -> dict[str, str]:
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(interpreter)
    environment = {
        "AGL_STORE": f"sqlite:///{folder / 'store.db'}",
        "AGL_SPOOL_DIR": str(folder / "spool"),
        "PYTHONPATH": str(folder),
    }
    ids = asyncio.run(started(environment["AGL_STORE"]))
    return {**environment, "IDS": " ".join(ids), "AGL_ROLLOUT_ID": ids[0], "AGL_ATTEMPT_ID": ids[1]}


async def started(url: str) -> tuple[str, str]:
    async with open_store(url) as store:
        return await new_attempt(store)


async def found(place: dict[str, str]) -> tuple[list[str], Receipt]:
    ids = place["IDS"].split()
    async with open_store(place["AGL_STORE"]) as store:
        spans = await store.query_spans(ids[0], ids[1])
        return sorted(span.name for span in spans), await store.get_receipt(ids[0], ids[1])


def run(recording: Warm, program: str, place: dict[str, str]) -> str:
    """Run a program to its end; return what it says of trouble."""
    begins = (Path(place["PYTHONPATH"]) / "sitecustomize.py").read_text()
    done = recording.run(
        ["-c", begins + textwrap.dedent(program)],
        env={**os.environ, **place},
        timeout=120,  # says that a program which hangs at its end has failed; it should take 3 seconds
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def run_in_a_new_interpreter(program: str, place: dict[str, str]) -> str:
    """Likewise, with all that it imports."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env={**os.environ, **place},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.parametrize("when", ["before the end", "at the end"])
@pytest.mark.parametrize("processor", ["SimpleSpanProcessor", "BatchSpanProcessor"])
def test_a_short_program_that_exports_is_recorded(
    recording: Warm, processor: str, when: str, place: dict[str, str]
) -> None:
    late = when == "at the end"
    calls = "atexit.register(provider.shutdown)\natexit.register(work)" if late else "work()"
    said = run(recording, EXPORTED.format(processor=processor, own_exit=not late, calls=calls), place)
    if said:  # the store was not through in the second that an end waits for it
        assert place["AGL_SPOOL_DIR"] in said
        run(recording, DELIVERS, place)
    names, receipt = asyncio.run(found(place))
    assert names == ["inner", "outer"]
    assert receipt.whole


def test_an_exit_handler_may_trace_and_use_the_store(place: dict[str, str]) -> None:
    assert run_in_a_new_interpreter(TRACED, place) == ""
    names, receipt = asyncio.run(found(place))
    assert names == ["s0", "s1", "s2", "work"]
    assert receipt.whole


def test_an_exit_handler_may_start_a_rollout(recording: Warm, place: dict[str, str]) -> None:
    assert run(recording, STARTS, place) == ""

    async def names() -> list[str]:
        async with open_store(place["AGL_STORE"]) as store:
            rollouts = await store.query_rollouts(status_in=["succeeded"])
            return [span.name for each in rollouts for span in await store.query_spans(each.rollout_id)]

    assert asyncio.run(names()) == ["started at the end"]


LEFT = {"a span": (0, 1), "an account": (3, 0), "several batches": (0, 11)}
"""What is left at the end → spans that the store has taken before, spans that it has not."""


@pytest.mark.parametrize("how", ["hold", "fail_for_ever"])
def test_what_the_store_does_not_take_at_the_end_waits_for_the_next_start(
    recording: Warm, how: str, interpreter: str, tmp_path: Path
) -> None:
    def end_and_start_again(case: str) -> None:
        taken, left = LEFT[case]
        place = place_in(tmp_path / case.replace(" ", "-"), interpreter)
        said = run(recording, HELD.format(how=how, taken=taken, left=left), {**place, "AGL_BATCH_SIZE": "4"})
        assert place["AGL_SPOOL_DIR"] in said, case
        assert asyncio.run(found(place))[0] == ["taken"] * taken, case

        run(recording, DELIVERS, place)
        names, receipt = asyncio.run(found(place))
        assert names == ["left"] * left + ["taken"] * taken, case
        assert receipt.whole, case

    # Each program waits for its store as long as the end of a process may: all of them do it at once.
    with ThreadPoolExecutor(len(LEFT)) as pool:
        for ended in [pool.submit(end_and_start_again, case) for case in LEFT]:
            ended.result()
