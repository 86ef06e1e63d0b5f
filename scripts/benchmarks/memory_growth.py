"""Whether memory grows: sequential contexts, and very many small rollouts into SQLite."""

from __future__ import annotations

import asyncio
import gc
import os
from pathlib import Path
from typing import Any

from harness import Aim, Figure, Line, Sample, Size, Subject

SPANS_A_CONTEXT = 10
PAGE_CACHE_MB = 16
_PAGE = os.sysconf("SC_PAGE_SIZE")


def resident_mb() -> float:
    """Return the resident memory of this process in MB, after a collection (proc_pid_statm(5))."""
    # What cycles hold is freed at some time: it has not grown.
    gc.collect()
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * _PAGE / 1e6


async def _fill_page_cache(tracer: Any) -> None:
    """Store as much as SQLite's cache of pages holds, in few large spans."""
    async with tracer.trace_context("fill") as trace:
        for number in range(PAGE_CACHE_MB * 4):
            # Each another text: what one begins with that another has is stored once.
            trace.start_span("step", attributes={"text": f"{number:06}" * 50_000}).end()
            # The queue is bounded in bytes: what comes faster than it is written would be dropped.
            await asyncio.sleep(0.01)


async def _context(tracer: Any, spans: int) -> None:
    async with tracer.trace_context("rollout") as trace:
        for number in range(spans):
            trace.start_span("step", attributes={"number": number, "text": "x" * 200}).end()


def contexts(size: Size) -> Sample:
    """Contexts one after the other, into SQLite, after as many as a warm-up."""
    from agentlightning import OtelTracer
    from agentlightning.store import open_store

    async def work() -> Sample:
        store = open_store(f"sqlite:///{size['folder']}/spans.db")
        with OtelTracer(max_wait_time=60_000).lifespan(store) as tracer:
            await _fill_page_cache(tracer)
            # Bounded caches fill, and the allocator takes what it will use: that is no growth.
            for _ in range(size["contexts"]):
                await _context(tracer, SPANS_A_CONTEXT)
            before = resident_mb()
            for _ in range(size["contexts"]):
                await _context(tracer, SPANS_A_CONTEXT)
            after = resident_mb()
        await store.close()
        return {"before": before, "after": after, "growth": after - before}

    return asyncio.run(work())


def rollouts(size: Size) -> Sample:
    """Small rollouts, each claimed from the queue, traced and finished; memory after a tenth and at the end."""
    from agentlightning import OtelTracer
    from agentlightning.store import open_store

    async def work() -> Sample:
        store = open_store(f"sqlite:///{size['folder']}/spans.db")
        early = 0.0
        numbers = iter(range(size["rollouts"]))
        with OtelTracer(max_wait_time=60_000).lifespan(store) as tracer:
            await _fill_page_cache(tracer)

            async def worker() -> None:
                nonlocal early
                for number in numbers:
                    await store.enqueue_rollout({"task": number})
                    claimed = await store.dequeue_rollout()
                    assert claimed is not None
                    rollout, attempt = claimed.rollout_id, claimed.attempt.attempt_id
                    async with tracer.trace_context(
                        "rollout", rollout_id=rollout, attempt_id=attempt
                    ) as trace:
                        trace.start_span("step", attributes={"text": "x" * 200}).end()
                    await store.update_attempt(rollout, attempt, status="succeeded")
                    # After a tenth every cache is full: what comes later grows with the number of rollouts.
                    if number == size["rollouts"] // 10:
                        early = resident_mb()

            await asyncio.gather(*(worker() for _ in range(16)))
        late = resident_mb()
        await store.close()
        return {"early": early, "late": late}

    return asyncio.run(work())


FIGURE = Figure(
    name="memory_growth",
    title="Memory that stays",
    how=(
        "Resident memory after a collection, once SQLite's page cache (16 MB) is full. Sequential `trace_context`s of "
        "ten spans: growth after a warm-up of as many. Small rollouts through the queue, 16 at a time: at the end, "
        "beside after the first tenth."
    ),
    subjects=(Subject("contexts"), Subject("rollouts")),
    lines=(
        Line("growth over sequential contexts", "contexts", "growth", "MB", aim=Aim("<=", 5.0)),
        Line("rollouts: at the end", "rollouts", "late", "MB", "rollouts", "early", aim=Aim("<=", 1.1)),
    ),
    sizes={
        "tiny": {"contexts": 20, "rollouts": 40},
        "quick": {"contexts": 1000, "rollouts": 5000},
        "normal": {"contexts": 1000, "rollouts": 20_000},
        "full": {"contexts": 1000, "rollouts": 100_000},
    },
    rounds={"tiny": 1, "quick": 1, "normal": 3, "full": 1},
)
