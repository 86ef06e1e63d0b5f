"""What a forked child may say of an attempt: what it did itself, and nothing in its parent's name."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tracer_sample import new_attempt
from warm import Warm

from agentlightning.store import open_store
from agentlightning.types import Receipt, RolloutStatus, Span


async def outcome(url: str, ids: tuple[str, str]) -> tuple[list[Span], list[Span], Receipt, RolloutStatus]:
    async with open_store(url) as store:
        rollout = await store.get_rollout_by_id(ids[0])
        assert rollout is not None
        return (
            list(await store.query_spans(*ids)),
            list(await store.query_open_spans(*ids)),
            await store.get_receipt(*ids),
            rollout.status,
        )


def attempt_in(url: str) -> tuple[str, str]:
    async def start() -> tuple[str, str]:
        async with open_store(url) as store:
            return await new_attempt(store)

    return asyncio.run(start())


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'store.db'}"


UNWINDING = """
import os, sys, warnings
from opentelemetry import trace
from agentlightning.store import open_store
from agentlightning.tracer import OtelTracer

warnings.simplefilter("ignore", DeprecationWarning)  # 3.12: fork beside threads
store = open_store(args["url"])
tracer = OtelTracer()
tracer.init_worker(0, store)
handle = None
with tracer.trace_context("work") as handle:
    with handle.start_as_current_span("outer"):
        handle.start_span("before").end()
        if args["flush"]:
            assert tracer.processor.force_flush(10_000)
        pid = os.fork()
        if pid == 0:
            if args["records"]:
                handle.start_span("in the child").end()
            sys.exit(0)  # unwinds through both with blocks, and through atexit
        assert os.waitpid(pid, 0)[1] == 0
        handle.start_span("after").end()
        report([handle.rollout_id, handle.attempt_id])
"""


@pytest.mark.parametrize("flush", [False, True])
@pytest.mark.parametrize("records", [False, True])
def test_a_child_that_leaves_its_parents_blocks_ends_nothing_of_its_parents(
    recording: Warm, url: str, records: bool, flush: bool
) -> None:
    with recording.start_child(UNWINDING, args={"url": url, "records": records, "flush": flush}) as child:
        (reported,) = child.finish()
    ids = reported[0], reported[1]
    stored, still_open, receipt, status = asyncio.run(outcome(url, ids))
    names = ["before", *(["in the child"] if records else []), "after", "outer", "work"]
    assert sorted(span.name for span in stored) == sorted(names)
    outer = next(span for span in stored if span.name == "outer")
    after = next(span for span in stored if span.name == "after")
    assert outer.end_time is not None
    assert after.end_time is not None
    assert outer.end_time >= after.end_time  # the parent's end, not the child's
    assert still_open == []
    assert receipt.whole, receipt
    assert receipt.started == len(names)
    assert status == "succeeded"


FALLBACK = """
import os, sys, warnings
from opentelemetry import trace
from agentlightning.store import open_store
from agentlightning.tracer import OtelTracer

warnings.simplefilter("ignore", DeprecationWarning)
store = open_store(args["url"])
tracer = OtelTracer(fallback_attempt=tuple(args["ids"]))
tracer.init_worker(0, store)
agent = trace.get_tracer("agent")
agent.start_span("one").end()
still = agent.start_span("still open at the fork")
assert tracer.processor.force_flush(10_000)
pid = os.fork()
if pid == 0:
    sys.exit(0)
assert os.waitpid(pid, 0)[1] == 0
agent.start_span("two").end()
still.end()
"""


def test_a_child_that_records_nothing_says_nothing(recording: Warm, url: str) -> None:
    ids = attempt_in(url)
    with recording.start_child(FALLBACK, args={"url": url, "ids": ids}) as child:
        child.finish()
    stored, still_open, receipt, _ = asyncio.run(outcome(url, ids))
    assert sorted(span.name for span in stored) == ["one", "still open at the fork", "two"]
    assert still_open == []
    assert receipt.whole, receipt
    assert receipt.started == 3
