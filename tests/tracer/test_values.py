"""The fast way of building values gives what pydantic gives."""

from __future__ import annotations

import copy
import pickle
from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider

from agentlightning.types import OtelResource, Span, SpanContext
from agentlightning.types.tracer import build


def test_a_built_model_is_what_pydantic_constructs() -> None:
    values: dict[str, Any] = {
        "trace_id": "1" * 32,
        "span_id": "2" * 16,
        "is_remote": False,
        "trace_state": {"a": "b"},
    }
    built, constructed = build(SpanContext, dict(values)), SpanContext.model_construct(**values)
    assert built == constructed == SpanContext(**values)
    assert built.model_dump() == constructed.model_dump()
    assert built.model_fields_set == constructed.model_fields_set
    assert built.model_copy(update={"is_remote": True}).is_remote
    assert repr(built) == repr(constructed)


def test_built_models_share_no_change() -> None:
    values: dict[str, Any] = {"attributes": {"a": 1}, "schema_url": ""}
    one, other = build(OtelResource, dict(values)), build(OtelResource, dict(values))
    one.schema_url = "changed"
    assert other.schema_url == ""
    assert one.model_fields_set == other.model_fields_set == set(OtelResource.model_fields)
    assert pickle.loads(pickle.dumps(one)) == copy.deepcopy(one) == one != other


class Renamed(ReadableSpan):
    """A program's own span, which shows another name than the SDK's fields hold."""

    def __init__(self, of: ReadableSpan) -> None:
        vars(self).update(vars(of))

    @property
    def name(self) -> str:
        """The name."""
        return "masked"


def test_the_name_of_a_strangers_span_is_the_one_that_it_shows() -> None:
    span: Any = TracerProvider(shutdown_on_exit=False).get_tracer("t").start_span("a secret")
    span.end()
    assert Span.from_opentelemetry(Renamed(span), "ro", "at").name == "masked"


def test_a_copied_span_survives_validation_unchanged() -> None:
    provider = TracerProvider(resource=Resource.create({"service.name": "s"}), shutdown_on_exit=False)
    tracer = provider.get_tracer("t")
    parent = tracer.start_span("parent")
    link = trace.Link(parent.get_span_context(), {"why": "because"})
    span = tracer.start_span(
        "child", context=trace.set_span_in_context(parent), attributes={"a": (1, 2), "b": True}, links=[link]
    )
    span.add_event("event", {"k": "v"})
    span.set_status(trace.Status(trace.StatusCode.ERROR, "broken"))
    span.end()
    copied = Span.from_opentelemetry(span, "ro", "at", 3)  # type: ignore[arg-type]
    assert Span(**copied.model_dump()) == copied
    assert copied.attributes == {"a": [1, 2], "b": True}
    assert copied.parent_id == copied.links[0].context.span_id
    assert copied.links[0].attributes == {"why": "because"}
    assert (copied.status.status_code, copied.status.description) == ("ERROR", "broken")
    assert copied.resource.attributes["service.name"] == "s"
    assert (copied.end_time or 0) >= (copied.start_time or 0) > 1_700_000_000


def test_copies_of_a_resource_share_no_change() -> None:
    for value in ("a", ["a", "b"]):
        resource = Resource({"service.name": value})
        one = OtelResource.from_opentelemetry(resource)
        held = one.attributes["service.name"]
        held.append("c") if isinstance(held, list) else one.attributes.update({"service.name": "changed"})
        other = OtelResource.from_opentelemetry(resource)
        assert other.attributes["service.name"] == value
        assert OtelResource.from_opentelemetry(Resource({"service.name": 1})).attributes["service.name"] == 1


def test_copies_of_a_parent_share_no_change() -> None:
    provider = TracerProvider(shutdown_on_exit=False)
    tracer = provider.get_tracer("t")
    copies = []
    for _ in range(2):  # parents in turns
        root = tracer.start_span("root")
        inside = trace.set_span_in_context(root)
        for name in ("first", "second"):
            span = tracer.start_span(name, context=inside)
            copied = Span.from_opentelemetry(span, "ro", "at")  # type: ignore[arg-type]
            assert copied.parent is not None
            assert copied.parent.span_id == copied.parent_id == f"{root.get_span_context().span_id:016x}"
            assert copied.parent.trace_state == {}
            copied.parent.span_id = "changed"
            copied.parent.trace_state["a"] = "b"
            copies.append(copied)
    assert len({copied.parent_id for copied in copies}) == 2
    provider.shutdown()
