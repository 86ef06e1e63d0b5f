"""What one span costs the agent's thread, counted and not timed: calls of functions, and locks that are waited for."""

from __future__ import annotations

import gc
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Self

import httpx
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from tracer_sample import model_call, new_attempt, read

import agentlightning
from agentlightning.recorder.settings import WriterSettings
from agentlightning.store import LightningStore
from agentlightning.testing import FaultyStore, wait_until_async
from agentlightning.tracer import OtelTracer

PACKAGE = str(Path(agentlightning.__file__).parent)
PLAIN: dict[str, Any] = {}
TOOL = {f"agent.detail.{number}": "some text" for number in range(25)}
MODEL_CALL = {"gen_ai.operation.name": "chat", **TOOL}
TOKENS = model_call(*range(100))

MOST_CALLS = 48
"""Calls of Python functions that a span makes beyond those of the SDK.

With Python 3.11 and OpenTelemetry 1.45 there are 38 to 40, and 47 where token ids are attributes.
"""
MOST_LOCKS = 2
"""One when it starts, one when it ends."""
MOST_OBJECTS = 8
"""Objects of a span that waits for the writer, as far as the garbage collector visits them; 5, and 13 in the SDK."""


class Counted:
    """What the present thread calls inside of a ``with``."""

    def __init__(self) -> None:
        self.calls = 0
        self.ours = 0
        """Those of functions of the package."""
        self.locks = 0

    def __enter__(self) -> Self:
        sys.setprofile(self._note)
        return self

    def __exit__(self, *exc_info: object) -> None:
        sys.setprofile(None)

    def _note(self, frame: FrameType, event: str, arg: Any) -> None:
        if event == "call":
            self.calls += 1
            self.ours += frame.f_code.co_filename.startswith(PACKAGE)
        elif event == "c_call" and getattr(arg, "__qualname__", "") == "RLock.__exit__":
            # The SDK's own locks are of another kind.
            self.locks += frame.f_code.co_filename.startswith(PACKAGE)


class Pieces(httpx.SyncByteStream):
    """An answer in so many pieces."""

    def __init__(self, number: int) -> None:
        self._number = number

    def __iter__(self) -> Iterator[bytes]:
        return iter([b'data: {"choices":[]}\n\n'] * self._number)


def objects() -> int:
    """Return how many objects the garbage collector visits."""
    gc.collect()
    return len(gc.get_objects())


def counted(make: Callable[[], None]) -> Counted:
    """Count what a span costs: the least of some, for one may have to wake the writer up, or a finalizer runs in it."""
    counts = []
    for _ in range(8):
        with Counted() as count:
            make()
        counts.append(count)
    return min(counts, key=lambda count: count.calls)


def one_span(tracer: trace.Tracer, attributes: dict[str, Any]) -> Callable[[], None]:
    """Return what starts and ends a span."""
    return lambda: tracer.start_span("call", attributes=attributes).end()


def current_span(tracer: trace.Tracer, attributes: dict[str, Any]) -> Callable[[], None]:
    """Return what starts and ends a span that is current in between."""

    def make() -> None:
        with tracer.start_as_current_span("call", attributes=attributes):
            pass

    return make


@pytest.mark.parametrize("make", [one_span, current_span])
@pytest.mark.parametrize(
    "attributes", [PLAIN, TOOL, MODEL_CALL, TOKENS], ids=["plain", "tool", "call", "tokens"]
)
@pytest.mark.asyncio
async def test_a_span_makes_few_calls_and_takes_two_locks(
    store: LightningStore, make: Callable[..., Callable[[], None]], attributes: dict[str, Any]
) -> None:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SpanProcessor())
    floor = counted(make(provider.get_tracer("agent"), attributes))
    ids = await new_attempt(store)
    faulty = FaultyStore(store, only={"add_many_spans"})
    tracer = OtelTracer()
    with tracer.lifespan(faulty):
        async with tracer.trace_context(rollout_id=ids[0], attempt_id=ids[1]) as handle:
            faulty.hold()  # the writer has something to do, and none of these spans has to wake it up
            handle.start_span("before").end()
            await wait_until_async(lambda: faulty.held == 1)
            by_handle = counted(make(handle, attributes))
            by_global = counted(make(trace.get_tracer("agent"), attributes))
            with handle.start_as_current_span("around", attributes=TOOL):
                inside = counted(make(handle, attributes))
            faulty.release()
    for count in (by_handle, by_global, inside):
        assert count.calls - floor.calls <= MOST_CALLS
        assert count.locks <= MOST_LOCKS


@pytest.mark.asyncio
async def test_a_span_that_waits_for_the_writer_is_few_objects(store: LightningStore) -> None:
    ids = await new_attempt(store)
    tracer = OtelTracer(settings=WriterSettings(batch_size=10_000, flush_interval=60_000))
    with tracer.lifespan(store):
        async with tracer.trace_context(rollout_id=ids[0], attempt_id=ids[1]) as handle:
            make = one_span(handle, MODEL_CALL)
            make()
            before = objects()
            for _ in range(200):
                make()
            assert (objects() - before) / 200 <= MOST_OBJECTS


@pytest.mark.asyncio
async def test_what_a_span_says_is_whole_while_it_waits(store: LightningStore) -> None:
    ids = await new_attempt(store)
    tracer = OtelTracer()
    with tracer.lifespan(store):
        async with tracer.trace_context(rollout_id=ids[0], attempt_id=ids[1]) as handle:
            other = handle.start_span("other")
            span = handle.start_span("call", attributes=TOOL, links=[trace.Link(other.get_span_context())])
            span.add_event("seen", {"what": "a page"})
            span.set_status(trace.Status(trace.StatusCode.ERROR, "it failed"))
            span.end()
            other.end()
    found = next(each for each in await read(store, ids) if each.name == "call")
    assert found.attributes == TOOL
    assert [(event.name, event.attributes) for event in found.events] == [("seen", {"what": "a page"})]
    assert [link.context.span_id for link in found.links] == [f"{other.get_span_context().span_id:016x}"]
    assert (found.status.status_code, found.status.description) == ("ERROR", "it failed")
    assert found.parent_id is not None
    assert found.resource.attributes["telemetry.sdk.name"] == "opentelemetry"


def test_a_rollout_makes_one_context_where_no_server_is_to_be_named() -> None:
    made: Counter[str] = Counter()

    def note(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(PACKAGE):
            made[frame.f_code.co_name] += 1

    tracer = OtelTracer()
    with tracer.lifespan():
        sys.setprofile(note)
        try:
            with tracer.trace_context():
                pass
        finally:
            sys.setprofile(None)
    assert made["trace_context"] == made["context_with_scope"] == 1


def test_a_piece_of_a_stream_makes_two_calls_of_ours() -> None:
    tracer = OtelTracer()
    counts = []
    with tracer.lifespan(), tracer.trace_context() as handle:
        for number in (10, 110):
            answer = httpx.Response(200, stream=Pieces(number), headers={"content-type": "text/event-stream"})
            transport = httpx.MockTransport(lambda _request, answer=answer: answer)
            with (
                httpx.Client(transport=transport) as client,
                client.stream(
                    "POST", "http://127.0.0.1/v1/chat/completions", json={"model": "m", "stream": True}
                ) as response,
                Counted() as count,
            ):
                assert sum(1 for _ in response.iter_raw()) == number
            counts.append(count)
    assert len(handle.spans()) == 3
    assert counts[1].ours - counts[0].ours <= 2 * 100 + 10
