"""Finding one attempt's spans among a million in SQLite, beside a raw ``SELECT`` of the same rows.

The file is made once per run, through ``add_many_spans``; it is larger than SQLite's cache and lies in the page cache
of the system where there is room. Each run asks for attempts in random order, none of them twice.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from random import Random

import made_once
from harness import Figure, Line, Sample, Size, Subject, percentile

SPANS_AN_ATTEMPT = 50


def fill(size: Size) -> Sample:
    """Make the file; return how long that took."""
    from agentlightning.types import OtelResource, Span, SpanContext, TraceStatus

    resource = OtelResource(attributes={"service.name": "agent"})
    status = TraceStatus(status_code="OK")
    text = "an answer of some words, as short as the answers of an agent are that calls tools. " * 3

    def spans_of(number: int, rollout_id: str, attempt_id: str) -> list[Span]:
        trace_id = f"{number + 1:032x}"
        return [
            Span.model_construct(
                rollout_id=rollout_id,
                attempt_id=attempt_id,
                sequence_id=0,
                trace_id=trace_id,
                span_id=f"{number * SPANS_AN_ATTEMPT + place + 1:016x}",
                parent_id=None,
                name="chat policy-7b",
                status=status,
                attributes={
                    "gen_ai.operation.name": "chat",
                    "gen_ai.usage.output_tokens": place,
                    "text": text,
                },
                events=[],
                links=[],
                start_time=1000.0 + place,
                end_time=1000.5 + place,
                context=SpanContext.model_construct(
                    trace_id=trace_id,
                    span_id=f"{number * SPANS_AN_ATTEMPT + place + 1:016x}",
                    is_remote=False,
                    trace_state={},
                ),
                parent=None,
                resource=resource,
            )
            for place in range(SPANS_AN_ATTEMPT)
        ]

    return made_once.fill(size, size["spans"] // SPANS_AN_ATTEMPT, spans_of)


def _attempts(size: Size) -> list[list[str]]:
    everything = made_once.attempts_of(size)
    return Random().sample(everything, min(size["questions"] + 1, len(everything)))


class Questions:
    """Times of questions; the first, which opens the connection, is left out."""

    def __init__(self) -> None:
        self._seconds: list[float] = []
        self._cpu = 0.0

    @contextmanager
    def asked(self) -> Iterator[None]:
        """Take the time of one question."""
        began, cpu = time.perf_counter(), time.process_time()
        yield
        self._seconds.append(time.perf_counter() - began)
        self._cpu += time.process_time() - cpu if len(self._seconds) > 1 else 0.0

    def sample(self) -> Sample:
        """Return milliseconds."""
        seconds = self._seconds[1:]
        return {
            "p50": percentile(seconds, 50) * 1000,
            "p99": percentile(seconds, 99) * 1000,
            "cpu": self._cpu / len(seconds) * 1000,
        }


def ours(size: Size) -> Sample:
    """``query_spans`` of one attempt."""
    from agentlightning.store import open_store

    async def work() -> Sample:
        store = open_store(made_once.url(size))
        questions = Questions()
        for rollout_id, attempt_id in _attempts(size):
            with questions.asked():
                found = await store.query_spans(rollout_id, attempt_id)
            assert len(found) == SPANS_AN_ATTEMPT
        await store.close()
        return questions.sample()

    return asyncio.run(work())


def floor_select(size: Size) -> Sample:
    """The same rows as tuples, in order, by one ``SELECT``."""
    select = (
        "SELECT spans.*, resource FROM attempts JOIN spans USING (attempt_key) JOIN resources_otel USING (resource_key)"
        " WHERE rollout_id = ? AND attempt_id = ? ORDER BY spans.sequence_id"
    )
    questions = Questions()
    with closing(sqlite3.connect(f"{size['shared']}/spans.db")) as connection:
        for ids in _attempts(size):
            with questions.asked():
                found = connection.execute(select, ids).fetchall()
            assert len(found) == SPANS_AN_ATTEMPT
    return questions.sample()


FIGURE = Figure(
    name="find_attempt",
    title="One attempt's spans among all",
    how=(
        "`query_spans` of one attempt (50 spans, as `Span` values) among all spans of a SQLite file, random attempts, "
        "none twice. Beside it: one `SELECT` of the same rows, as tuples."
    ),
    subjects=(Subject("floor_select"), Subject("ours")),
    lines=(
        Line("`query_spans`, p50", "ours", "p50", "ms", "floor_select"),
        Line("`query_spans`, p99", "ours", "p99", "ms", "floor_select"),
        Line("`query_spans`, processor time", "ours", "cpu", "ms", "floor_select"),
    ),
    sizes={
        "tiny": {"spans": 500, "questions": 5},
        "quick": {"spans": 20_000, "questions": 200},
        "normal": {"spans": 1_000_000, "questions": 1000},
        "full": {"spans": 1_000_000, "questions": 3000},
    },
    rounds={"tiny": 1, "quick": 3, "normal": 5, "full": 9},
    prepare=made_once.filled_by("find_attempt"),
)
