"""What a span costs the thread of the agent, from its start to its end.

The agent's thread makes spans as fast as it can, inside ``trace_context``, while the writer's thread stores them.
`thread` is the processor time of the agent's thread: what our code does there. `wall` includes the turns at the
interpreter lock that the writer takes, which an agent that waits for a model does not notice; `typical` is the
median of single spans.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from harness import Aim, Figure, Line, Sample, Size, Subject, percentile
from workload import WITH_IDS, Workload

if TYPE_CHECKING:
    from collections.abc import Iterator

    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.trace import Tracer

MakeSpan = Callable[[int], None]
WARM_UP = 100


def clock(make: MakeSpan, count: int, shape: str) -> Sample:
    """Make ``count`` spans and return microseconds per span."""
    for number in range(min(WARM_UP, count)):
        make(number)
    now = time.perf_counter_ns
    stamps = [0] * (count + 1)
    thread = time.thread_time_ns()
    stamps[0] = now()
    for number in range(count):
        make(number)
        stamps[number + 1] = now()
    thread = time.thread_time_ns() - thread
    single = [(after - before) / 1000 for before, after in pairwise(stamps)]
    return {
        f"{shape}_thread": thread / count / 1000,
        f"{shape}_wall": (stamps[-1] - stamps[0]) / count / 1000,
        f"{shape}_typical": percentile(single, 50),
        f"{shape}_p99": percentile(single, 99),
    }


def shapes(tracer: Tracer, workload: Workload) -> dict[str, MakeSpan]:
    """Return the kinds of spans that everybody can make."""
    start = tracer.start_span
    attributes, with_ids = workload.attributes, workload.with_ids

    def plain(_: int) -> None:
        start("call").end()

    def rich(number: int) -> None:
        start("call", attributes=attributes[number % len(attributes)]).end()

    def lists(number: int) -> None:
        kind = attributes if number % WITH_IDS else with_ids
        start("call", attributes=kind[number % len(kind)]).end()

    return {"plain": plain, "rich": rich, "lists": lists}


def null_processor() -> BatchSpanProcessor:
    """Return OpenTelemetry's batch processor with an exporter that does nothing."""
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

    class Null(SpanExporter):
        def export(self, spans: object) -> SpanExportResult:
            del spans
            return SpanExportResult.SUCCESS

    return BatchSpanProcessor(Null())


def floor_null(size: Size) -> Sample:
    """OpenTelemetry's batch processor with an exporter that does nothing."""
    return _sdk(size, null_processor())


def floor_bare(size: Size) -> Sample:
    """The SDK without any processor."""
    return _sdk(size, None)


def _sdk(size: Size, processor: Any) -> Sample:
    from opentelemetry.sdk.trace import TracerProvider

    provider = TracerProvider(shutdown_on_exit=False)
    if processor is not None:
        provider.add_span_processor(processor)
    tracer = provider.get_tracer("bench")
    sample: dict[str, float] = {}
    for shape, make in shapes(tracer, Workload()).items():
        with tracer.start_as_current_span("rollout"):
            sample |= clock(make, size["spans"], shape)
        provider.force_flush()
    provider.shutdown()
    return sample


def ours_memory(size: Size) -> Sample:
    """Our processor, spans into memory."""
    return _ours(size, "memory://")


def ours_sqlite(size: Size) -> Sample:
    """Our processor, spans into SQLite."""
    return _ours(size, f"sqlite:///{size['folder']}/spans.db")


def _ours(size: Size, url: str) -> Sample:
    from agentlightning import OtelTracer
    from agentlightning.store import open_store

    workload = Workload()
    store = open_store(url)
    sample: dict[str, float] = {}
    with OtelTracer(max_wait_time=60_000).lifespan(store) as tracer:

        @contextmanager
        def recorded() -> Iterator[Any]:
            with tracer.trace_context("rollout") as trace:
                yield trace
            receipt = trace.receipt()
            assert receipt.stored == receipt.started, receipt

        for shape in ("plain", "rich", "lists"):
            with recorded() as trace:
                sample |= clock(shapes(trace, workload)[shape], size["spans"], shape)
        with recorded() as trace:
            sample |= clock(side_channel(trace, tracer, workload), size["spans"], "channel")
    _close(store)
    return sample


def side_channel(trace: Any, tracer: Any, workload: Workload) -> MakeSpan:
    """Return what makes the mix with ids as our capture does: the response goes along as bytes."""
    attach = tracer.processor.attach_call
    calls = [raw_call(body) for body in workload.responses]
    attributes = workload.attributes

    def make(number: int) -> None:
        span = trace.start_span("call", attributes=attributes[number % len(attributes)])
        if number % WITH_IDS == 0:
            attach(span, calls[number % len(calls)])
        span.end()

    return make


def raw_call(response: bytes) -> Any:
    """Return a chat call as it is seen on the wire."""
    from agentlightning.dialects.raw_call import CallStart, RawCall

    return RawCall(
        start=CallStart("chat", "http://127.0.0.1:8000/v1/chat/completions", "policy-7b", stream=False),
        request_body=b'{"model":"policy-7b","messages":[{"role":"user","content":"go"}],"temperature":1.0}',
        status=200,
        content_type="application/json",
        response_body=response,
        complete=True,
        started_ns=1,
        ended_ns=2,
    )


def _close(store: Any) -> None:
    import asyncio

    asyncio.run(store.close())


def peer_memory(size: Size) -> Sample:
    """Agent Lightning 0.3, its tracer, its store in memory."""
    import asyncio

    from agentlightning.store.memory import InMemoryLightningStore
    from agentlightning.tracer.otel import OtelTracer

    workload = Workload()
    sample: dict[str, float] = {}

    async def work() -> None:
        store = InMemoryLightningStore(thread_safe=True)
        tracer = OtelTracer()
        tracer.init()
        tracer.init_worker(0, store)
        for shape in ("plain", "rich", "lists"):
            rollout = await store.start_rollout(input={})
            ids = {"rollout_id": rollout.rollout_id, "attempt_id": rollout.attempt.attempt_id}
            async with tracer.trace_context("rollout", store=store, **ids) as trace:
                sample.update(clock(shapes(trace, workload)[shape], size["peer_spans"], shape))
        tracer.teardown_worker(0)
        tracer.teardown()

    asyncio.run(work())
    return sample


def _beside_floor(
    what: str, subject: str, shape: str, aim: Aim | None, floor: str = "floor_null"
) -> list[Line]:
    beside_shape = "lists" if shape == "channel" else shape
    return [
        Line(
            f"{what}: {label}",
            subject,
            f"{shape}_{metric}",
            "µs",
            floor,
            f"{beside_shape}_{metric}",
            aim=wanted,
        )
        for label, metric, wanted in (
            ("thread", "thread", aim),
            ("wall", "wall", None),
            ("typical", "typical", None),
        )
        if label != "typical" or shape in {"plain", "rich"}
    ]


_WORDS = {
    "rich": "25 attributes",
    "plain": "plain span",
    "lists": "25 attributes, ids as lists on a third",
    "channel": "25 attributes, ids in the response's bytes on a third",
}

FIGURE = Figure(
    name="span_cost",
    title="What a span costs the agent's thread",
    how=(
        "Start and end of a span inside `trace_context`, flat out, while the writer stores. Beside it: the "
        "OpenTelemetry SDK with `BatchSpanProcessor` and a null exporter. `thread` is processor time of the agent's "
        "thread; `wall` includes the writer's turns at the interpreter lock; `typical` is the median of single spans. "
        "Ids in the response's bytes stand beside ids as lists, which is how others carry them."
    ),
    subjects=(
        Subject("floor_null"),
        Subject("floor_bare"),
        Subject("ours_memory"),
        Subject("ours_sqlite"),
        Subject("peer_memory", peer="0.3.0"),
    ),
    lines=(
        *[
            line
            for shape, words in _WORDS.items()
            for store in ("sqlite", "memory")
            for line in _beside_floor(
                f"{words}, {store}", f"ours_{store}", shape, Aim("<=", 1.35) if shape == "rich" else None
            )
        ],
        *[
            Line(
                f"ours beside 0.3, memory, {_WORDS[shape]}: {metric}",
                "ours_memory",
                f"{shape}_{metric}",
                "µs",
                "peer_memory",
            )
            for shape in ("plain", "rich", "lists")
            for metric in ("thread", "wall")
        ],
        Line(
            "the null exporter beside no processor, 25 attributes: thread",
            "floor_null",
            "rich_thread",
            "µs",
            "floor_bare",
        ),
    ),
    sizes={
        "tiny": {"spans": 60, "peer_spans": 30},
        "quick": {"spans": 2000, "peer_spans": 300},
        "normal": {"spans": 4000, "peer_spans": 1000},
        "full": {"spans": 4000, "peer_spans": 2000},
    },
    rounds={"tiny": 1, "quick": 5, "normal": 11, "full": 21},
)
