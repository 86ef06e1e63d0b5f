"""Spans that are built only where somebody asks: the same columns and the same values, whoever makes them."""

from __future__ import annotations

import asyncio
import pickle
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.trace import Link, SpanContext, TraceFlags, TraceState
from opentelemetry.trace.status import Status, StatusCode

from agentlightning import OtelTracer, Span
from agentlightning.codec.recorded_span import RecordedSpan, SpanList
from agentlightning.codec.rows import decode_span, encode_span
from agentlightning.recorder.sizes import kept_of
from agentlightning.store import open_store
from agentlightning.types.attributes import attributes_of

IDS = tuple(range(100))
CONTEXT = SpanContext(7, 8, is_remote=False)
REMOTE = SpanContext(7, 9, is_remote=True, trace_flags=TraceFlags(1), trace_state=TraceState([("a", "b")]))


class Text(str):
    """A text of a class of its own."""

    __slots__ = ()


def ended(**given: Any) -> ReadableSpan:
    """Return a finished span as an exporter may see it."""
    return ReadableSpan(
        **{"name": "call", "context": CONTEXT, "start_time": 1_500_000_000, "end_time": 3, **given}
    )


SPANS = {
    "bare": ended(),
    "no context": ended(context=None),
    "no times": ended(start_time=None, end_time=None),
    "scalars": ended(attributes={"a": "x", "b": 1, "c": 0.5, "d": True, "e": None}),
    "numbers without a name in JSON": ended(attributes={"a": float("nan"), "b": float("-inf"), "c": -0.0}),
    "ids": ended(attributes={"ids": IDS, "text": "x"}),
    "ids of 64 bits": ended(attributes={"ids": (2**40, *IDS)}),
    "ids of more bits": ended(attributes={"ids": (2**70, *IDS)}),
    "booleans among ids": ended(attributes={"ids": (True, *IDS)}),
    "floats": ended(attributes={"logprobs": tuple(-each / 7 for each in IDS)}),
    "floats and ids": ended(attributes={"mixed": (0.5, *IDS)}),
    "a long list of texts": ended(attributes={"texts": ("x",) * 30}),
    "short lists": ended(attributes={"a": (1, 2), "b": ("x",), "c": (), "d": (True, False), "e": [1, 2]}),
    "a long text": ended(attributes={"text": "y" * 5000, "ids": IDS}),
    "long together": ended(attributes={f"text.{number}": "y" * 90 for number in range(60)}),
    "messages with ids and a long text among them": ended(
        attributes={
            "gen_ai.choice.0.content": "y" * 5000,
            "gen_ai.choice.0.token_ids": IDS,
            "gen_ai.choice.1.content": "z" * 5000,
            "gen_ai.choice.1.logprobs": tuple(-each / 7 for each in IDS),
            "texts": ("x",),
        }
    ),
    "messages": ended(attributes={f"gen_ai.prompt.{number}.content": "y" * 900 for number in range(9)}),
    "very many": ended(attributes={**{f"key.{number}": number for number in range(300)}, "ids": IDS}),
    "what is no JSON": ended(
        attributes={"a": b"x", "b": {1: (2, b"y")}, "c": {"x"}, "d": Text("t"), "e": Path("p")}
    ),
    "keys that are no text": ended(attributes={1: "x", Text("key"): IDS}),
    "lone surrogates": ended(name="\ud800", attributes={"a": "\ud800", "\ud801": (1, 2)}),
    "a status": ended(status=Status(StatusCode.ERROR, "\ud800 failed")),
    "a parent": ended(parent=SpanContext(7, 5, is_remote=False)),
    "a parent of another trace": ended(parent=SpanContext(6, 5, is_remote=False)),
    "a remote parent": ended(parent=REMOTE),
    "a state": ended(context=REMOTE),
    "a resource": ended(resource=Resource({"service.name": "x", "list": ["a", "b"]}, "https://schema")),
    "links": ended(links=[Link(REMOTE, {"a": (1, 2)}), Link(CONTEXT)]),
}


def recorded(readable: ReadableSpan) -> RecordedSpan:
    return RecordedSpan(readable, "ro", "at")


@pytest.mark.parametrize("name", SPANS)
def test_columns_are_those_of_the_span_that_would_be_built(name: str) -> None:
    made = recorded(SPANS[name])
    for packed in (True, False):
        row = encode_span(made, packed=packed)
        expected = encode_span(made.build(), packed=packed)
        assert row._replace(attributes="", packed=()) == expected._replace(attributes="", packed=())
        assert [*row.packed] == [*expected.packed]
        assert repr(decode_span("ro", "at", 0, row)) == repr(made.build())


def test_a_built_span_is_that_of_from_opentelemetry() -> None:
    provider = TracerProvider(shutdown_on_exit=False)
    span: Any = provider.get_tracer("x").start_span("call", attributes={"ids": IDS, "a": [True, False]})
    span.add_event("seen", {"at": (1, 2)})
    span.set_status(trace.StatusCode.OK)
    span.end()
    made = recorded(span)
    assert made.build() == Span.from_opentelemetry(span, "ro", "at")
    assert decode_span("ro", "at", 0, encode_span(made)) == made.build()
    assert made.numbered(3).build() == Span.from_opentelemetry(span, "ro", "at", 3)


def test_what_was_added_is_in_the_span_and_not_in_the_recorded_one() -> None:
    readable = ended(attributes={"a": 1, "ids": IDS})
    made = recorded(readable)
    made.add({"b": [1, 2], "a": 2})
    made.status_code, made.status_description = "ERROR", "why"
    span = made.build()
    span.attributes["b"].append(3)
    assert span.attributes == {"a": 2, "ids": [*IDS], "b": [1, 2, 3]}
    assert (span.status.status_code, span.status.description) == ("ERROR", "why")
    assert made.build().attributes["b"] == [1, 2]
    assert dict(readable.attributes or {}) == {"a": 1, "ids": IDS}
    assert decode_span("ro", "at", 0, encode_span(made)) == made.build()


def test_a_list_of_spans_builds_each_once_and_is_pickled_as_a_list() -> None:
    spans = SpanList([recorded(SPANS["ids"]), recorded(SPANS["bare"])])
    assert spans[0] is spans[0]
    assert spans[-1] is spans[1]
    assert spans[:1] == [spans[0]]
    assert [*spans] == spans
    assert pickle.loads(pickle.dumps(spans)) == [*spans]


@pytest.mark.parametrize("url", ["sqlite:///{}/store.db", "memory://"])
def test_no_span_is_built_on_the_way_into_sqlite(url: str, tmp_path: Path) -> None:
    """Building one, and taking it apart again, was the half of what recording costs."""
    built: list[str] = []

    def note(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code is RecordedSpan.build.__code__:
            built.append(threading.current_thread().name)

    threading.setprofile(note)  # of the threads that start from now on: the recorder's and the store's
    store = open_store(url.format(tmp_path))
    try:
        with OtelTracer().lifespan(store) as tracer:
            with tracer.trace_context("watched") as handle, handle.start_as_current_span("inner"):
                pass
            assert bool(built) == (url == "memory://")
            spans = handle.spans()
            assert [(span.name, span.sequence_id) for span in spans] == [("inner", 1), ("watched", 2)]
            assert all(one is again for one, again in zip(spans, handle.spans(), strict=True))
    finally:
        asyncio.run(store.close())
        threading.setprofile(None)


def test_attributes_that_wait_are_a_dict_which_is_encoded_without_a_copy() -> None:
    """The view of the SDK's property is no dict, and JSON of it is made line by line of Python."""
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("test")
    span = tracer.start_span("call", attributes={"a": "x", "ids": IDS})
    span.end()
    assert isinstance(span, ReadableSpan)

    kept, _ = kept_of(span, None)

    assert type(attributes_of(kept)) is dict
    assert attributes_of(kept) is attributes_of(span)
