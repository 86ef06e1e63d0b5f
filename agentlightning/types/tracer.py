"""Spans: what happened, in OpenTelemetry's terms, and where it belongs.

``Span`` adds ``rollout_id``, ``attempt_id`` and ``sequence_id`` to an OpenTelemetry span. Times are seconds
since the epoch. Attribute values are JSON values; what is not is turned into one, never refused: the
OpenTelemetry SDK keeps ``None``, maps and mixed lists since 1.45, and a telemetry value must not raise. Fields that
a span does not know are kept, as in 0.3, and become JSON values in a store.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from enum import Enum
from functools import cache
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    Protocol,
    TypeVar,
    Union,
    runtime_checkable,
)

from pydantic import BaseModel, BeforeValidator, Field

from ._model import Model, OpenModel
from .attributes import (
    AttributeValue,
    attributes_of,
    description_of,
    events_of,
    is_plain,
    links_of,
    name_of,
    to_attributes,
)
from .ids import generate_id

if TYPE_CHECKING:
    from opentelemetry import trace as trace_api
    from opentelemetry.sdk.resources import Resource as OtelSdkResource
    from opentelemetry.sdk.trace import Event as OtelSdkEvent
    from opentelemetry.sdk.trace import ReadableSpan

StatusCode = Literal["UNSET", "OK", "ERROR"]
_NS_PER_SECOND = 1_000_000_000

T_model = TypeVar("T_model", bound=BaseModel)


@cache
def _fields_of(cls: type[BaseModel]) -> tuple[set[str], bool]:
    """Return the names of a class's fields, and whether it keeps others."""
    return set(cls.model_fields), issubclass(cls, OpenModel)


def build(cls: type[T_model], values: dict[str, Any], unknown: dict[str, Any] | None = None) -> T_model:
    """Return a model with these values for all of its fields, unvalidated; ``model_construct`` in a tenth of the time.

    ``unknown`` are the fields beyond those, of a class that keeps any; the dict becomes the model's own.

    The slots are those that ``BaseModel`` documents for ``model_construct``; a test compares both. All models of a
    class share the set of names of their fields: pydantic only adds names of fields to it, and it has them all.
    """
    fields, is_open = _fields_of(cls)
    model = cls.__new__(cls)
    put = object.__setattr__
    put(model, "__dict__", values)
    put(model, "__pydantic_fields_set__", fields)
    put(model, "__pydantic_extra__", (unknown or {}) if is_open else None)
    put(model, "__pydantic_private__", None)
    return model


Attributes = Annotated[dict[str, AttributeValue], BeforeValidator(to_attributes)]
TraceState = dict[str, str]


def _seconds(nanoseconds: int | None) -> float | None:
    return None if nanoseconds is None else nanoseconds / _NS_PER_SECOND


class SpanContext(OpenModel):
    """The identity of a span."""

    trace_id: str
    """32 lower-case hex digits."""
    span_id: str
    """16 lower-case hex digits."""
    is_remote: bool
    trace_state: TraceState

    @classmethod
    def from_opentelemetry(cls, src: trace_api.SpanContext) -> SpanContext:
        """Copy an OpenTelemetry span context."""
        return build(
            cls,
            {
                "trace_id": f"{src.trace_id:032x}",
                "span_id": f"{src.span_id:016x}",
                "is_remote": src.is_remote,
                "trace_state": dict(state) if (state := src.trace_state) else {},
            },
        )


def _parent_context(src: trace_api.SpanContext) -> SpanContext:
    """Copy the context of a parent, which is that of the span before for most spans."""
    global _last_parent  # noqa: PLW0603 - replaced as a whole, so threads need no lock
    last, fields = _last_parent
    if src is not last:
        fields = SpanContext.from_opentelemetry(src).__dict__
        _last_parent = src, fields
    return build(SpanContext, {**fields, "trace_state": dict(fields["trace_state"])})


_last_parent: tuple[Any, dict[str, Any]] = (None, {})
"""The parent's context that was copied last, which OpenTelemetry never changes, and the fields of its copy."""


class TraceStatus(OpenModel):
    """Status of a span."""

    status_code: StatusCode
    description: str | None = None

    @classmethod
    def from_opentelemetry(cls, src: trace_api.Status) -> TraceStatus:
        """Copy an OpenTelemetry status."""
        return build(cls, {"status_code": src.status_code._name_, "description": description_of(src)})


class Event(OpenModel):
    """Something that happened at one moment of a span."""

    name: str
    attributes: Attributes = Field(default_factory=dict)
    timestamp: float | None = None
    """Seconds since the epoch."""

    @classmethod
    def from_opentelemetry(cls, src: OtelSdkEvent) -> Event:
        """Copy an OpenTelemetry event."""
        return build(
            cls,
            {
                "name": src.name,
                "attributes": to_attributes(attributes_of(src)),
                "timestamp": _seconds(src.timestamp),
            },
        )


class Link(OpenModel):
    """A reference to a span that is not the parent."""

    context: SpanContext
    attributes: Attributes | None = None

    @classmethod
    def from_opentelemetry(cls, src: trace_api.Link) -> Link:
        """Copy an OpenTelemetry link."""
        return build(
            cls,
            {
                "context": SpanContext.from_opentelemetry(src.context),
                "attributes": to_attributes(attributes_of(src)),
            },
        )


class OtelResource(Model):
    """What produced a span."""

    attributes: Attributes = Field(default_factory=dict)
    schema_url: str = ""

    @classmethod
    def from_opentelemetry(cls, src: OtelSdkResource) -> OtelResource:
        """Copy an OpenTelemetry resource."""
        global _last_resource  # noqa: PLW0603 - replaced as a whole, so threads need no lock
        last, attributes = _last_resource
        if src is not last:
            attributes = to_attributes(attributes_of(src))
            if is_plain(attributes.values()):
                _last_resource = src, attributes
        return build(cls, {"attributes": dict(attributes), "schema_url": src.schema_url or ""})


_last_resource: tuple[Any, dict[str, AttributeValue]] = (None, {})
"""The resource that was copied last, which OpenTelemetry never changes, and its attributes: all spans of a process have
one."""


class SpanCoreFields(Model):
    """The part of a span that its author decides."""

    name: str
    status: TraceStatus
    attributes: Attributes
    start_time: float | None = None
    """Seconds since the epoch."""
    end_time: float | None = None
    """Seconds since the epoch."""


class Span(OpenModel):
    """A span under its attempt."""

    rollout_id: str
    attempt_id: str
    sequence_id: int = 0
    """Place within the attempt, 1..n; 0 = none yet, the store gives one."""
    trace_id: str
    """32 lower-case hex digits."""
    span_id: str
    """16 lower-case hex digits; a store keeps one span of an attempt with this id."""
    parent_id: str | None = None
    """Span id of the parent, of whatever attempt it is; ``None`` = a root."""
    name: str
    status: TraceStatus
    attributes: Attributes
    events: list[Event] = Field(default_factory=list)
    links: list[Link] = Field(default_factory=list)
    start_time: float | None = None
    """Seconds since the epoch."""
    end_time: float | None = None
    """Seconds since the epoch; ``None`` = it has not ended."""
    context: SpanContext | None = None
    """The span's own identity as OpenTelemetry has it."""
    parent: SpanContext | None = None
    """The parent's identity, which says whether it is of another process."""
    resource: OtelResource = Field(default_factory=OtelResource)

    @classmethod
    def from_opentelemetry(
        cls, src: ReadableSpan, rollout_id: str, attempt_id: str, sequence_id: int = 0
    ) -> Span:
        """Copy an OpenTelemetry span; nothing is validated, values that are not JSON are turned into JSON."""
        context, parent = src.get_span_context(), src.parent
        own = SpanContext.from_opentelemetry(context) if context else None
        above = _parent_context(parent) if parent else None
        return build(
            cls,
            {
                "rollout_id": rollout_id,
                "attempt_id": attempt_id,
                "sequence_id": sequence_id,
                "trace_id": own.trace_id if own else "0" * 32,
                "span_id": own.span_id if own else "0" * 16,
                "parent_id": above.span_id if above else None,
                "name": name_of(src),
                "status": TraceStatus.from_opentelemetry(src.status),
                "attributes": to_attributes(attributes_of(src)),
                "events": [Event.from_opentelemetry(event) for event in events_of(src)],
                "links": [Link.from_opentelemetry(link) for link in links_of(src)],
                "start_time": _seconds(src.start_time),
                "end_time": _seconds(src.end_time),
                "context": own,
                "parent": above,
                "resource": OtelResource.from_opentelemetry(src.resource),
            },
        )

    @classmethod
    def from_attributes(
        cls,
        *,
        attributes: Mapping[str, Any],
        rollout_id: str | None = None,
        attempt_id: str | None = None,
        sequence_id: int | None = None,
        name: str | None = None,
        trace_id: str | None = None,
        span_id: str | None = None,
        parent_id: str | None = None,
        start_time: float | None = None,
        end_time: float | None = None,
        resource: OtelResource | None = None,
        status: TraceStatus | None = None,
    ) -> Span:
        """Build a span from attributes; ids that are not given are new, times that are not given are now."""
        trace_id, span_id = trace_id or generate_id(32), span_id or generate_id(16)
        start = time.time() if start_time is None else start_time
        return cls(
            rollout_id=rollout_id or "",
            attempt_id=attempt_id or "",
            sequence_id=sequence_id or 0,
            trace_id=trace_id,
            span_id=span_id,
            parent_id=parent_id,
            name=name or SpanNames.VIRTUAL.value,
            status=status or TraceStatus(status_code="OK"),
            attributes=dict(attributes),
            start_time=start,
            end_time=start if end_time is None else end_time,
            context=SpanContext(trace_id=trace_id, span_id=span_id, is_remote=False, trace_state={}),
            parent=(
                SpanContext(trace_id=trace_id, span_id=parent_id, is_remote=False, trace_state={})
                if parent_id
                else None
            ),
            resource=resource or OtelResource(),
        )

    @classmethod
    def from_core_fields(
        cls,
        core: SpanCoreFields,
        *,
        rollout_id: str | None = None,
        attempt_id: str | None = None,
        sequence_id: int | None = None,
    ) -> Span:
        """Build a span from its core fields, with new trace and span ids."""
        return cls.from_attributes(
            attributes=core.attributes,
            rollout_id=rollout_id,
            attempt_id=attempt_id,
            sequence_id=sequence_id,
            name=core.name,
            start_time=core.start_time,
            end_time=core.end_time,
            status=core.status,
        )


class SpanNames(str, Enum):
    """Names of the spans that emitters make, and of the ids on a span (0.2)."""

    REWARD = "agentlightning.reward"
    MESSAGE = "agentlightning.message"
    OBJECT = "agentlightning.object"
    EXCEPTION = "agentlightning.exception"
    VIRTUAL = "agentlightning.virtual"
    ROLLOUT_ID = "agentlightning.rollout_id"
    ATTEMPT_ID = "agentlightning.attempt_id"
    SPAN_SEQUENCE_ID = "agentlightning.span_sequence_id"


class SpanAttributeNames(str, Enum):
    """Attribute names of emitted spans (0.2)."""

    MESSAGE = "message"
    OBJECT = "object"


SpanLike = Union["ReadableSpan", Span]
"""Anything with ``name`` and ``attributes``: an OpenTelemetry span or ours."""


@runtime_checkable
class SpanRecordingContext(Protocol):
    """What ``operation_context`` yields: a span that is being recorded."""

    def record_attributes(self, attributes: Attributes) -> None:
        """Set attributes."""

    def record_exception(self, exception: BaseException) -> None:
        """Record an exception and the status ERROR."""

    def record_status(self, status_code: StatusCode, description: str | None = None) -> None:
        """Set the status."""

    def get_recorded_span(self) -> SpanCoreFields:
        """Return what is recorded so far."""
        ...
