"""What a span costs the thread of the agent in bursts, beside OpenTelemetry's own processor in the same process.

Both make the same bursts in turns on one thread, so that a processor whose clock changes, or a neighbour on the
machine, is in both. Between two bursts of 5,000 the queues are emptied, outside of what is measured.
"""

from __future__ import annotations

import asyncio
import time
from statistics import median
from typing import TYPE_CHECKING

from harness import Aim, Figure, Line, Sample, Size, Subject
from span_cost import MakeSpan, null_processor, shapes
from workload import Workload

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

WAYS = {
    "plain": "plain span",
    "start": "25 attributes, `start_span`",
    "current": "25 attributes, `start_as_current_span`",
    "global": "25 attributes, the global tracer",
}
LENGTHS = {"short": 50, "long": 5000}
"""Spans of a burst; a tiny run makes fewer."""


def ways(tracer: Tracer, global_tracer: Tracer, workload: Workload) -> dict[str, MakeSpan]:
    """Return the ways in which an agent makes a span."""
    attributes, current = workload.attributes, tracer.start_as_current_span
    own, of_global = shapes(tracer, workload), shapes(global_tracer, workload)

    def as_current(number: int) -> None:
        with current("call", attributes=attributes[number % len(attributes)]):
            pass

    return {"plain": own["plain"], "start": own["rich"], "current": as_current, "global": of_global["rich"]}


def burst(make: MakeSpan, count: int) -> float:
    """Make ``count`` spans and return microseconds of the thread's processor time for each."""
    began = time.thread_time_ns()
    for number in range(count):
        make(number)
    return (time.thread_time_ns() - began) / count / 1000


def in_memory(size: Size) -> Sample:
    """Our processor, spans into memory, and the batch processor."""
    return _in_turns(size, "memory://")


def in_sqlite(size: Size) -> Sample:
    """Our processor, spans into SQLite, and the batch processor."""
    return _in_turns(size, f"sqlite:///{size['folder']}/spans.db")


def _in_turns(size: Size, url: str) -> Sample:
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider

    from agentlightning import OtelTracer
    from agentlightning.store import open_store

    workload, store = Workload(), open_store(url)
    floor = TracerProvider(shutdown_on_exit=False)
    floor.add_span_processor(null_processor())
    beside = floor.get_tracer("bench")
    found: dict[str, float] = {}
    tracer = OtelTracer(max_wait_time=60_000)
    with tracer.lifespan(store):
        for length, full in LENGTHS.items():
            count = min(full, size["spans"])
            for way in WAYS:
                with tracer.trace_context("rollout") as rollout:
                    ours = ways(rollout, trace.get_tracer("bench"), workload)[way]
                    theirs = ways(beside, beside, workload)[way]
                    times: tuple[list[float], list[float]] = ([], [])
                    for _ in range(size[length]):
                        times[0].append(burst(ours, count))
                        times[1].append(burst(theirs, count))
                        if length == "long":
                            tracer.processor.force_flush()
                            floor.force_flush()
                receipt = rollout.receipt()
                assert receipt.stored == receipt.started, receipt
                found[f"{way}_{length}"], found[f"floor_{way}_{length}"] = map(median, times)
    floor.shutdown()
    asyncio.run(store.close())
    return found


FIGURE = Figure(
    name="span_bursts",
    title="What a span costs the agent's thread, in bursts",
    how=(
        "Start and end of a span inside `trace_context`, in bursts of 50 and of 5,000, in turns with the OpenTelemetry "
        "SDK's `BatchSpanProcessor` and a null exporter on the same thread of one process: processor time of that "
        "thread for a span, median of the bursts."
    ),
    subjects=(Subject("in_memory"), Subject("in_sqlite")),
    lines=tuple(
        Line(
            f"{words}, {store}, bursts of {count:,}",
            f"in_{store}",
            f"{way}_{length}",
            "µs",
            f"in_{store}",
            f"floor_{way}_{length}",
            aim=None if way == "plain" else Aim("<=", 1.35),
        )
        for length, count in LENGTHS.items()
        for store in ("sqlite", "memory")
        for way, words in WAYS.items()
    ),
    sizes={
        "tiny": {"short": 2, "long": 1, "spans": 100},
        "quick": {"short": 40, "long": 3, "spans": 5000},
        "normal": {"short": 100, "long": 5, "spans": 5000},
        "full": {"short": 200, "long": 11, "spans": 5000},
    },
    rounds={"tiny": 1, "quick": 3, "normal": 7, "full": 11},
)
