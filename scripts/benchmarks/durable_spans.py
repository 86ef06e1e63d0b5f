"""Spans per second from ``trace_context`` to rows in SQLite that survive ``kill -9``, beside raw inserts.

The clock runs from entering the first ``trace_context`` until the last one has been left, which means that every span
has been acknowledged; a run that stores fewer spans than it made fails. The floor inserts the very bytes that our
store keeps of the same spans, made beforehand, with ``executemany``, 256 rows a transaction, under two indexes.

The floor makes no spans. What the OpenTelemetry SDK takes for making them stands beside it: under one interpreter lock
the agent, the SDK, our writer and the store take turns, so nobody can be faster than the SDK alone, whose processor
does nothing. The rest of our processor time is ours.
"""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

from harness import Aim, Figure, Line, Sample, Size, Subject
from span_cost import raw_call
from workload import WITH_IDS, Workload

MakeSpan = Callable[[Any, int], None]
ROWS_A_TRANSACTION = 256


def _maker(kind: str, tracer: Any) -> MakeSpan:
    """Return what makes the ``n``-th span of the workload on a trace; without ``tracer`` no response is attached."""
    workload = Workload()
    attributes, with_ids = workload.attributes, workload.with_ids
    if kind == "lists":

        def lists(trace: Any, number: int) -> None:
            # Also in the interpreter of 0.3, whose trace has the same method and knows no responses.
            source = attributes if number % WITH_IDS else with_ids
            trace.start_span("call", attributes=source[number % len(source)]).end()

        return lists
    bodies = workload.responses if kind == "bytes" else workload.responses_with_logprobs
    # Parsed by our writer, in its own thread: the time for that is part of what is measured.
    calls = [raw_call(body) for body in bodies]

    def response(trace: Any, number: int) -> None:
        span = trace.start_span("call", attributes=attributes[number % len(attributes)])
        if tracer is not None and number % WITH_IDS == 0:
            tracer.processor.attach_call(span, calls[number % len(calls)])
        span.end()

    return response


class Stopwatch:
    """Time by the clock and of the processor (all threads) since the last answer."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def rate(self, name: str, spans: int) -> dict[str, float]:
        """Return spans per second, and microseconds of processor time per span."""
        wall, cpu = time.perf_counter(), time.process_time()
        found = {name: spans / (wall - self._wall), f"{name}_cpu": (cpu - self._cpu) / spans * 1e6}
        # Read again: what computing the answer took is in no answer.
        self._wall, self._cpu = time.perf_counter(), time.process_time()
        return found


# ---------------------------------------------------------------------- ours


def ours_lists(size: Size) -> Sample:
    """Ids as attributes."""
    return _ours(size, "lists")


def ours_bytes(size: Size) -> Sample:
    """Ids in the response's bytes."""
    return _ours(size, "bytes")


def ours_logprobs(size: Size) -> Sample:
    """Ids and log-probabilities in the response's bytes."""
    return _ours(size, "logprobs")


def _ours(size: Size, kind: str) -> Sample:
    from agentlightning import OtelTracer
    from agentlightning.store import open_store

    store = open_store(f"sqlite:///{size['folder']}/spans.db")
    with OtelTracer(max_wait_time=600_000).lifespan(store) as tracer:
        make = _maker(kind, tracer)
        stopwatch = Stopwatch()
        # Leaving a trace_context waits until its spans are acknowledged: the time of the last write is in it.
        one = stopwatch.rate("one", _one_context(tracer, make, size["spans"]))
        many = stopwatch.rate("many", asyncio.run(_many_contexts(tracer, make, size)))
    stored = asyncio.run(_close(store))
    # Each rollout has a root span beside those that are counted.
    rollouts = 1 + size["spans"] // size["spans_a_rollout"]
    expected = size["spans"] + size["spans"] // size["spans_a_rollout"] * size["spans_a_rollout"] + rollouts
    assert stored == expected, f"{stored} of {expected} spans stored"
    return one | many


def _one_context(tracer: Any, make: MakeSpan, count: int) -> int:
    with tracer.trace_context("rollout") as trace:
        for number in range(count):
            make(trace, number)
    return count


async def _many_contexts(tracer: Any, make: MakeSpan, size: Size) -> int:
    """Record rollouts of a few spans, several at a time, as a worker does."""
    # One iterator for all workers: whoever is free takes the next rollout.
    rollouts = iter(range(size["spans"] // size["spans_a_rollout"]))

    async def worker() -> int:
        made = 0
        for _ in rollouts:
            async with tracer.trace_context("rollout") as trace:
                for number in range(size["spans_a_rollout"]):
                    make(trace, number)
                    # Lets the other rollouts go on, so that spans of several attempts are mixed in one batch.
                    await asyncio.sleep(0)
                    made += 1
        return made

    return sum(await asyncio.gather(*(worker() for _ in range(size["at_a_time"]))))


async def _close(store: Any) -> int:
    total: int = (await store.statistics())["total_spans"]
    await store.close()
    return total


def ours_store(size: Size) -> Sample:
    """The store alone: spans that are already values, 256 a call."""
    from agentlightning.store import open_store

    spans = _spans_of("lists")

    async def work() -> Sample:
        store = open_store(f"sqlite:///{size['folder']}/spans.db")
        rollout = await store.start_rollout(input={})
        ids = {"rollout_id": rollout.rollout_id, "attempt_id": rollout.attempt.attempt_id, "sequence_id": 0}
        source = itertools.cycle(spans)
        # Made before the clock runs: copies of a model take longer than the store does.
        made = [
            next(source).model_copy(update={**ids, "span_id": f"{number:016x}"})
            for number in range(size["spans"])
        ]
        stopwatch = Stopwatch()
        for start in range(0, len(made), ROWS_A_TRANSACTION):
            await store.add_many_spans(made[start : start + ROWS_A_TRANSACTION])
        sample = stopwatch.rate("one", len(made))
        assert await _close(store) == len(made)
        return sample

    return asyncio.run(work())


# ---------------------------------------------------------------------- the SDK


def sdk_lists(size: Size) -> Sample:
    """The SDK makes and ends the spans of ``ours_lists``; its processor does nothing."""
    return _sdk(size, "lists")


def sdk_bytes(size: Size) -> Sample:
    """The same for ``ours_bytes`` and ``ours_logprobs``, whose responses the SDK never sees."""
    return _sdk(size, "bytes")


def _sdk(size: Size, kind: str) -> Sample:
    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider

    # shutdown_on_exit registers a handler, which would keep the provider to the end of the process.
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SpanProcessor())
    tracer = provider.get_tracer("bench")
    make = _maker(kind, None)
    with tracer.start_as_current_span("rollout"):
        stopwatch = Stopwatch()
        for number in range(size["spans"]):
            make(tracer, number)
        sample = stopwatch.rate("one", size["spans"])
    provider.shutdown()
    return sample


# ---------------------------------------------------------------------- the floor


def floor_lists(size: Size) -> Sample:
    """Raw inserts of the rows that ``ours_lists`` stores."""
    return _floor(size, "lists")


def floor_bytes(size: Size) -> Sample:
    """Raw inserts of the rows that ``ours_bytes`` stores."""
    return _floor(size, "bytes")


def floor_logprobs(size: Size) -> Sample:
    """Raw inserts of the rows that ``ours_logprobs`` stores."""
    return _floor(size, "logprobs")


def _spans_of(kind: str) -> list[Any]:
    """Return one of each span of the workload, as our store gives it back."""
    from agentlightning import OtelTracer
    from agentlightning.store import open_store

    store = open_store("memory://")
    with OtelTracer().lifespan(store) as tracer:
        make = _maker(kind, tracer)
        with tracer.trace_context("rollout") as trace:
            # Until each text of the workload has been the one with ids.
            for number in range(64 * WITH_IDS):
                make(trace, number)
    spans = asyncio.run(_read_all(store, trace.rollout_id))
    return [span for span in spans if span.name == "call"]


async def _read_all(store: Any, rollout_id: str) -> list[Any]:
    found = list(await store.query_spans(rollout_id))
    await store.close()
    return found


def _rows(kind: str, count: int) -> Iterator[tuple[Any, ...]]:
    from agentlightning.codec.rows import encode_span

    encoded = []
    for span in _spans_of(kind):
        row = encode_span(span)
        # Packed lists of ids stand in a table of their own in our store; here they are one more column.
        encoded.append((row[0], *row[2:12], b"".join(value.data for value in row.packed)))
    for number in range(count):
        trace_id, *rest = encoded[number % len(encoded)]
        yield number + 1, 1 + number // 1000, number, trace_id, f"{number:016x}", *rest


def _floor(size: Size, kind: str) -> Sample:
    from agentlightning.store.sqlite.connection import CHECKPOINT_PAGES, PAGE_SIZE

    # A list, so that encoding is over before the clock runs.
    rows = list(_rows(kind, size["spans"]))
    with closing(sqlite3.connect(f"{size['folder']}/floor.db", isolation_level=None)) as connection:
        # The settings of our own connection, in the order in which SQLite takes them: a page size after the first
        # table would be ignored.
        connection.execute(f"PRAGMA page_size = {PAGE_SIZE}")
        connection.execute("PRAGMA journal_mode = wal")
        connection.execute("PRAGMA synchronous = normal")
        connection.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
        connection.execute(
            "CREATE TABLE spans (span_key INTEGER PRIMARY KEY, attempt, sequence_id, trace_id, span_id, parent_id,"
            " name, status_code, status_description, start_time, end_time, attributes, events, links, extra, arrays)"
        )
        connection.execute("CREATE UNIQUE INDEX by_attempt ON spans (attempt, span_id)")
        connection.execute("CREATE INDEX by_sequence ON spans (attempt, sequence_id)")
        insert = "INSERT INTO spans VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
        stopwatch = Stopwatch()
        for start in range(0, len(rows), ROWS_A_TRANSACTION):
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany(insert, rows[start : start + ROWS_A_TRANSACTION])
            connection.execute("COMMIT")
        return stopwatch.rate("one", len(rows))


# ---------------------------------------------------------------------- the peer


def peer_lists(size: Size) -> Sample:
    """Agent Lightning 0.3 into its store in memory: readable, not durable."""
    from agentlightning.store.memory import InMemoryLightningStore
    from agentlightning.tracer.otel import OtelTracer

    async def work() -> Sample:
        # 0.3 writes from another thread than the one that reads.
        store = InMemoryLightningStore(thread_safe=True)
        tracer = OtelTracer()
        tracer.init()
        tracer.init_worker(0, store)
        make = _maker("lists", tracer)
        stopwatch = Stopwatch()
        made = 0
        for _ in range(max(1, size["peer_spans"] // size["spans_a_rollout"])):
            rollout = await store.start_rollout(input={})
            ids = {"rollout_id": rollout.rollout_id, "attempt_id": rollout.attempt.attempt_id}
            async with tracer.trace_context("rollout", store=store, **ids) as trace:
                for number in range(size["spans_a_rollout"]):
                    make(trace, number)
                    made += 1
        sample = stopwatch.rate("many", made)
        tracer.teardown_worker(0)
        tracer.teardown()
        return sample

    return asyncio.run(work())


_WORDS = {
    "lists": "ids as lists on a third",
    "bytes": "ids in the response's bytes on a third",
    "logprobs": "ids and log-probabilities in the response's bytes on a third",
}
# Set for a machine of two cores on which half of what the SDK alone reaches with lists is 8,000 spans a second.
_SPANS_A_SECOND = {"lists": 8000, "bytes": 8000, "logprobs": 4500}
_PROCESSOR_TIME = {"lists": 60, "bytes": 80, "logprobs": 160}
_SDK = {"lists": "sdk_lists", "bytes": "sdk_bytes", "logprobs": "sdk_bytes"}

FIGURE = Figure(
    name="durable_spans",
    title="From `trace_context` to durable rows",
    how=(
        "25 attributes, 2 KB of text, two times 512 token ids on every third span. From entering `trace_context` until "
        "all spans are acknowledged by SQLite; the agent, the writer and the store share one process. Beside it: "
        "`executemany` of the same bytes, made beforehand, two indexes, 256 a transaction. The SDK alone makes and "
        "ends the same spans with a processor that does nothing: under one interpreter lock nobody can be faster, and "
        "the time beyond it is ours. 0.3 writes to its store in memory, one rollout after the other."
    ),
    subjects=(
        *(Subject(f"{who}_{kind}") for kind in _WORDS for who in ("floor", "ours")),
        Subject("ours_store"),
        *(Subject(name) for name in ("sdk_lists", "sdk_bytes")),
        Subject("peer_lists", peer="0.3.0"),
    ),
    lines=(
        *(
            Line(
                f"{words}: one context",
                f"ours_{kind}",
                "one",
                "spans/s",
                aim=Aim(">=", _SPANS_A_SECOND[kind]),
            )
            for kind, words in _WORDS.items()
        ),
        Line(
            f"{_WORDS['lists']}: one context, beside the SDK alone",
            "ours_lists",
            "one",
            "spans/s",
            "sdk_lists",
            aim=Aim(">=", 0.5),
        ),
        *(
            Line(
                f"{words}: rollouts of 50, 16 at a time",
                f"ours_{kind}",
                "many",
                "spans/s",
                f"floor_{kind}",
                "one",
            )
            for kind, words in _WORDS.items()
        ),
        *(
            Line(f"{words}: processor time", f"ours_{kind}", "one_cpu", "µs/span", f"floor_{kind}")
            for kind, words in _WORDS.items()
        ),
        *(
            Line(
                f"{_WORDS[kind]}: processor time beyond the SDK's",
                f"ours_{kind}",
                "one_cpu",
                "µs/span",
                sdk,
                by="difference",
                aim=Aim("<=", _PROCESSOR_TIME[kind]),
            )
            for kind, sdk in _SDK.items()
        ),
        *(
            Line(
                f"{_WORDS[kind]}: the SDK alone, the ceiling",
                f"sdk_{kind}",
                "one",
                "spans/s",
                f"floor_{kind}",
            )
            for kind in ("lists", "bytes")
        ),
        Line("the store alone, 256 spans a call", "ours_store", "one", "spans/s", "floor_lists"),
        Line(
            "ours (durable) beside 0.3 (memory), rollouts of 50",
            "ours_lists",
            "many",
            "spans/s",
            "peer_lists",
        ),
    ),
    sizes={
        "tiny": {"spans": 100, "spans_a_rollout": 50, "at_a_time": 2, "peer_spans": 50},
        "quick": {"spans": 2000, "spans_a_rollout": 50, "at_a_time": 16, "peer_spans": 500},
        "normal": {"spans": 5000, "spans_a_rollout": 50, "at_a_time": 16, "peer_spans": 1000},
        "full": {"spans": 5000, "spans_a_rollout": 50, "at_a_time": 16, "peer_spans": 2000},
    },
    rounds={"tiny": 1, "quick": 3, "normal": 7, "full": 15},
)
