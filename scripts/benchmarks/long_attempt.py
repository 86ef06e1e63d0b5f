"""One long attempt into SQLite: each call says again all that was said before, as messages and as token ids.

A call adds an answer with log-probabilities and what the environment says to it; its prompt is the whole conversation.
The floor inserts the same bytes whole for each call: messages as text, ids packed. Reading is done by a process of its
own; its peak is that of resident memory.
"""

from __future__ import annotations

import asyncio
import resource
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from random import Random
from typing import Any

import made_once
from harness import Aim, Figure, Line, Sample, Size, Subject

_WORDS = (
    "the",
    "agent",
    "reads",
    "one",
    "file,",
    "calls",
    "a",
    "tool",
    "and",
    "waits;",
    '"quoted"',
    "naïve",
    "line\n",
)


def spans_of(size: Size, rollout_id: str, attempt_id: str) -> Iterator[Any]:
    """Yield the spans of the calls, as our capture writes them."""
    from agentlightning.dialects.model_call import Choice, ModelCall, Usage
    from agentlightning.dialects.spans.genai import call_attributes
    from agentlightning.types import Span

    chance = Random(7)
    turn = size["tokens"] // size["calls"]
    sampled = turn // 3

    def tokens(count: int) -> list[int]:
        return [chance.randrange(150_000) for _ in range(count)]

    def text(count: int) -> str:
        return " ".join(chance.choice(_WORDS) for _ in range(count * 3 // 4))

    prompt = tokens(turn - sampled)
    messages = [{"role": "user", "content": text(turn - sampled)}]
    for number in range(size["calls"]):
        answer, said = tokens(sampled), text(sampled)
        choice = Choice(
            content=said,
            finish_reason="stop",
            token_ids=tuple(answer),
            logprobs=tuple(-chance.expovariate(1.0) for _ in answer),
            token_capture="valid",
        )
        call = ModelCall(
            request_model="policy-7b",
            response_id=f"chatcmpl-{number}",
            request_messages=tuple(messages),
            choices=(choice,),
            prompt_token_ids=tuple(prompt),
            usage=Usage(len(prompt), len(answer)),
            sampling_effective={"temperature": 1.0},
            sampling_defaults={},
            logprob_kind="processed",
            token_capture="valid",
            http_status=200,
        )
        times: dict[str, Any] = {"start_time": 1000.0 + number, "end_time": 1000.5 + number}
        yield Span.from_attributes(
            attributes=call_attributes(call),
            name="chat policy-7b",
            rollout_id=rollout_id,
            attempt_id=attempt_id,
            trace_id=f"{1:032x}",
            span_id=f"{number + 1:016x}",
            **times,
        )
        heard = turn - sampled
        prompt += answer + tokens(heard)
        messages += [{"role": "assistant", "content": said}, {"role": "user", "content": text(heard)}]


def ours(size: Size) -> Sample:
    """The store, a call at a time."""
    from agentlightning.store import open_store

    path = Path(size["folder"], "spans.db")

    async def work() -> float:
        store = open_store(f"sqlite:///{path}")
        rollout = await store.start_rollout(input={})
        spans = list(spans_of(size, rollout.rollout_id, rollout.attempt.attempt_id))
        began = time.process_time()
        for span in spans:
            await store.add_many_spans([span])
        seconds = time.process_time() - began
        await store.close()
        return seconds

    seconds = asyncio.run(work())
    return {"cpu": seconds / size["calls"] * 1000, "megabytes": path.stat().st_size / 1e6}


def floor_whole(size: Size) -> Sample:
    """Raw inserts of the same bytes, each call whole."""
    from agentlightning.codec.rows import encode_span
    from agentlightning.store.sqlite.connection import PAGE_SIZE

    path = Path(size["folder"], "floor.db")
    rows = []
    for span in spans_of(size, "ro", "at"):
        row = encode_span(span)
        rows.append((row.span_id, row.attributes, b"".join(value.data for value in row.packed)))
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(f"PRAGMA page_size = {PAGE_SIZE}")
        connection.execute("PRAGMA journal_mode = wal")
        connection.execute("PRAGMA synchronous = normal")
        connection.execute("CREATE TABLE spans (span_id TEXT, attributes TEXT, packed BLOB)")
        began = time.process_time()
        for values in rows:
            connection.execute("INSERT INTO spans VALUES (?, ?, ?)", values)
        seconds = time.process_time() - began
    return {"cpu": seconds / size["calls"] * 1000, "megabytes": path.stat().st_size / 1e6}


def fill(size: Size) -> Sample:
    """Make the file that is read."""
    return made_once.fill(size, 1, lambda _, *ids: list(spans_of(size, *ids)))


def read(size: Size) -> Sample:
    """``query_spans(packed=True)`` of the attempt, as whatever builds rows reads it."""
    return _read(size, lambda _: None)


def read_lists(size: Size) -> Sample:
    """``query_spans`` of the attempt: each prompt is a list."""
    return _read(size, lambda _: None, packed=False)


def rows(size: Size) -> Sample:
    """``query_spans(packed=True)`` of the attempt, and the rows of it."""
    from agentlightning.rows import build_rows

    def use(spans: Sequence[Any]) -> None:
        (row,) = build_rows(spans)
        assert row.trained_tokens == size["calls"] * (size["tokens"] // size["calls"] // 3)

    return _read(size, use)


def _read(size: Size, use: Callable[[Sequence[Any]], None], *, packed: bool = True) -> Sample:
    from agentlightning.store import open_store

    ((rollout_id, attempt_id),) = made_once.attempts_of(size)

    async def work() -> Sample:
        store = open_store(made_once.url(size))
        began = time.process_time()
        spans = await store.query_spans(rollout_id, attempt_id, packed=packed)
        assert len(spans) == size["calls"]
        use(spans)
        cpu = time.process_time() - began
        await store.close()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000  # KiB on Linux
        return {"cpu": cpu / size["calls"] * 1000, "peak": peak}

    return asyncio.run(work())


FIGURE = Figure(
    name="long_attempt",
    title="A long attempt",
    how=(
        "One attempt whose last prompt has as many tokens as the size says; each call's prompt, as messages and ids, "
        "is the whole conversation; answers have log-probabilities. `add_many_spans` into SQLite, a call at a time; "
        "beside it: raw inserts of the same bytes, each call whole. `query_spans(packed=True)` of it in a process of "
        "its own, in another one this and `build_rows`, and in a third one `query_spans`, which gives lists."
    ),
    subjects=(
        Subject("floor_whole"),
        Subject("ours"),
        Subject("read"),
        Subject("rows"),
        Subject("read_lists"),
    ),
    lines=(
        Line("the file", "ours", "megabytes", "MB", aim=Aim("<=", 20.0)),
        Line("the file, beside each call whole", "ours", "megabytes", "MB", "floor_whole"),
        Line("storing: processor time", "ours", "cpu", "ms/call", "floor_whole"),
        Line("reading: processor time", "read", "cpu", "ms/call"),
        Line("reading: peak memory of the process", "read", "peak", "MB", aim=Aim("<=", 150.0)),
        Line("reading lists: processor time", "read_lists", "cpu", "ms/call", "read"),
        Line("reading lists: peak memory of the process", "read_lists", "peak", "MB"),
        Line("reading and rows: processor time", "rows", "cpu", "ms/call", "read"),
        Line("reading and rows: peak memory of the process", "rows", "peak", "MB", aim=Aim("<=", 150.0)),
    ),
    sizes={
        "tiny": {"calls": 12, "tokens": 6_000},
        "quick": {"calls": 240, "tokens": 132_000},
        "normal": {"calls": 240, "tokens": 132_000},
        "full": {"calls": 240, "tokens": 132_000},
    },
    rounds={"tiny": 1, "quick": 1, "normal": 3, "full": 5},
    prepare=made_once.filled_by("long_attempt"),
)
