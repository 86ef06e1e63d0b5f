"""Finished spans of OpenTelemetry on their way into a store, of which a ``Span`` is built only where somebody asks.

A store that keeps columns takes them from the SDK's own span (``codec.rows.encode_span``). Everybody else sees a
sequence of ``Span`` (:class:`SpanList`), each built when it is looked at for the first time. Loads no pydantic.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Union, cast, overload

from .. import types
from ..types.attributes import attributes_of, description_of, to_attributes

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

    from ..types import Span, StatusCode


class RecordedSpan:
    """A span as the SDK has ended it, under its attempt.

    It has the fields of a ``Span`` by which one is filed; the others are taken from ``readable`` when they are needed.
    ``readable`` and its attributes are never changed. Whoever has made this object may set its fields until it is
    handed to a store; from then on it stays as it is.
    """

    __slots__ = (
        "attempt_id",
        "attributes",
        "parent_id",
        "readable",
        "rollout_id",
        "sequence_id",
        "span_id",
        "status_code",
        "status_description",
        "trace_id",
    )

    def __init__(self, readable: ReadableSpan, rollout_id: str, attempt_id: str) -> None:
        context, parent, status = readable.get_span_context(), readable.parent, readable.status
        self.readable = readable
        self.rollout_id = rollout_id
        self.attempt_id = attempt_id
        self.sequence_id = 0
        self.trace_id = f"{context.trace_id:032x}" if context else "0" * 32
        self.span_id = f"{context.span_id:016x}" if context else "0" * 16
        self.parent_id = f"{parent.span_id:016x}" if parent else None
        # ``name`` is a property that calls two functions.
        self.status_code = cast("StatusCode", status.status_code._name_)
        self.status_description = description_of(status)
        self.attributes: Mapping[str, Any] = attributes_of(readable)
        """To be read only, and as OpenTelemetry has them: a list is a tuple, for example."""

    def add(self, attributes: Mapping[str, Any]) -> None:
        """Give it further attributes, which take the place of those with the same keys."""
        self.attributes = {**self.attributes, **attributes}

    def numbered(self, sequence_id: int) -> RecordedSpan:
        """Return a copy with its place in the attempt; what is inside is shared."""
        copy = RecordedSpan.__new__(RecordedSpan)
        copy.readable = self.readable
        copy.rollout_id = self.rollout_id
        copy.attempt_id = self.attempt_id
        copy.sequence_id = sequence_id
        copy.trace_id = self.trace_id
        copy.span_id = self.span_id
        copy.parent_id = self.parent_id
        copy.status_code = self.status_code
        copy.status_description = self.status_description
        copy.attributes = self.attributes
        return copy

    def build(self) -> Span:
        """Return it as a ``Span``, which shares nothing that can be changed with it."""
        span = types.Span.from_opentelemetry(
            self.readable, self.rollout_id, self.attempt_id, self.sequence_id
        )
        if self.attributes is not attributes_of(self.readable):
            span.attributes = to_attributes(self.attributes)
        if self.parent_id != span.parent_id:
            span.parent_id = self.parent_id
            if span.parent is not None and self.parent_id is not None:
                span.parent.span_id = self.parent_id
        span.status.status_code = self.status_code
        span.status.description = self.status_description
        return span


AnySpan = Union["Span", RecordedSpan]
"""A span that is built, or is not yet."""


def built(span: AnySpan) -> Span:
    """Return a span as a ``Span``: the very same, or a new one of what was recorded."""
    return span.build() if isinstance(span, RecordedSpan) else span


class SpanList(Sequence["Span"]):
    """A sequence of spans, of which each is built when it is first looked at, and then stays the same object."""

    def __init__(self, spans: list[AnySpan]) -> None:
        """Prepare; the list becomes this object's own, and has the built spans in it."""
        self.unbuilt = spans
        """The spans as they are; to be read only."""

    def __len__(self) -> int:
        return len(self.unbuilt)

    @overload
    def __getitem__(self, index: int) -> Span: ...

    @overload
    def __getitem__(self, index: slice) -> list[Span]: ...

    def __getitem__(self, index: int | slice) -> Span | list[Span]:
        if isinstance(index, slice):
            return [self[place] for place in range(len(self))[index]]
        span = self.unbuilt[index]
        if isinstance(span, RecordedSpan):
            span = self.unbuilt[index] = span.build()
        return span

    def __eq__(self, other: object) -> bool:
        return list(self) == list(other) if isinstance(other, (list, SpanList)) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # as a list

    def __repr__(self) -> str:
        return repr(list(self))

    def __reduce__(self) -> tuple[type[list[Span]], tuple[list[Span]]]:
        return list, (list(self),)


def unbuilt(spans: Sequence[Span]) -> Sequence[AnySpan]:
    """Return spans as they are, without building any."""
    return spans.unbuilt if isinstance(spans, SpanList) else spans
