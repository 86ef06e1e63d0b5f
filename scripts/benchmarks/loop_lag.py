"""How late an event loop runs while it traces into a store that takes 100 ms a write, beside the same without us.

Twenty tasks make 1,000 spans between them, with pauses, as agents do. One more task sleeps for a millisecond again
and again; how much later than that it wakes up is the lag.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any, Self

from harness import Aim, Figure, Line, Sample, Size, Subject, percentile
from workload import Workload

TASKS = 20
TICK = 0.001
PAUSE = 0.005
WRITE_SECONDS = 0.1


class Watch:
    """Watches the loop from entering to leaving it, and knows which of that the agents were at work."""

    def __init__(self) -> None:
        self.late: list[float] = []
        """Milliseconds, one for each tick."""
        self.at_work = 0
        """Number of ticks until the last agent was done."""
        self._done = False

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._tick())
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        # Until now: leaving the trace_contexts flushes, and a loop that is held up then is late, too.
        self._done = True
        await self._task

    async def _tick(self) -> None:
        while not self._done:
            began = time.perf_counter()
            await asyncio.sleep(TICK)
            # Only what exceeds the pause: a loop with nothing else to do has a lag of the timer's precision.
            self.late.append((time.perf_counter() - began - TICK) * 1000)

    async def agent(self, tracer: Any, spans: int, workload: Workload) -> None:
        """Make spans, each with something in it that takes a while."""
        for number in range(spans):
            attributes = workload.attributes[number % len(workload.attributes)]
            with tracer.start_as_current_span("step", attributes=attributes):
                await asyncio.sleep(PAUSE)
        # Set by each agent: the last of them to end leaves the number that counts.
        self.at_work = len(self.late)

    def sample(self) -> Sample:
        """Return the lag while agents were at work, and the worst until all was flushed."""
        # Of the flush only the worst counts: its many quiet ticks would hide the lag of the agents' time.
        late = self.late[: self.at_work]
        return {"p50": percentile(late, 50), "p99": percentile(late, 99), "worst": max(self.late)}


def without(size: Size) -> Sample:
    """The SDK without any processor."""
    from opentelemetry.sdk.trace import TracerProvider

    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("agent")
    workload = Workload()

    async def work() -> Sample:
        async with Watch() as watch:
            await asyncio.gather(
                *(watch.agent(tracer, size["spans"] // TASKS, workload) for _ in range(TASKS))
            )
        return watch.sample()

    return asyncio.run(work())


def ours(size: Size) -> Sample:
    """Each task under a ``trace_context`` of its own; the loop is watched until the last of them is flushed."""
    from agentlightning import OtelTracer
    from agentlightning.store import open_store
    from agentlightning.testing import FaultyStore

    workload = Workload()

    async def work() -> Sample:
        inner = open_store("memory://")
        store = FaultyStore(inner, delay=WRITE_SECONDS)
        with OtelTracer(max_wait_time=60_000).lifespan(store) as tracer:
            watch = Watch()

            async def rollout() -> None:
                async with tracer.trace_context("rollout") as trace:
                    await watch.agent(trace, size["spans"] // TASKS, workload)

            async with watch:
                await asyncio.gather(*(rollout() for _ in range(TASKS)))
        # A root span for each rollout. A run that lost spans would have been faster for it.
        stored = (await inner.statistics())["total_spans"]
        assert stored == TASKS * (size["spans"] // TASKS + 1), stored
        await store.close()
        return watch.sample()

    return asyncio.run(work())


FIGURE = Figure(
    name="loop_lag",
    title="Lag of the event loop",
    how=(
        "1,000 spans by twenty tasks, each under `async with trace_context()`, into a store that takes 100 ms a write. "
        "Lag: how much later than asked a sleep of 1 ms ends, while agents are at work; `worst` also counts the flush. "
        "Beside it: the same tasks with the SDK and no processor."
    ),
    subjects=(Subject("without"), Subject("ours")),
    lines=(
        Line("p99", "ours", "p99", "ms", "without", by="difference", aim=Aim("<=", 2.0)),
        Line("p50", "ours", "p50", "ms", "without", by="difference"),
        Line("worst", "ours", "worst", "ms", "without", by="difference"),
    ),
    sizes={
        "tiny": {"spans": 100},
        "quick": {"spans": 1000},
        "normal": {"spans": 1000},
        "full": {"spans": 1000},
    },
    rounds={"tiny": 1, "quick": 5, "normal": 11, "full": 21},
)
