"""Spans ⇄ rows: the columns in which a database keeps a span, as pure functions.

A row is made to be read with any tool: one column per field, JSON text for what is nested, and beside it long lists of
numbers (token ids, log-probabilities), packed little-endian, four to ten times smaller than as text, long texts, and
messages that are nested values or an attribute each.
What the columns cannot say exactly (a remote parent, NaN as a time, a lone surrogate in a name, fields that a span
does not know) stands in ``extra``, which is ``None`` for almost every span.
``decode_span(encode_span(span)) == span`` for every span whose attribute values are JSON values.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from operator import is_
from typing import Any, Final, Literal, NamedTuple

import msgspec

from ..types import Event, Link, OtelResource, Span, SpanContext, StatusCode, TraceStatus
from ..types.attributes import events_of, links_of, name_of, to_attribute_value, to_attributes
from ..types.tracer import build
from .json_text import Slot, dump_bytes, dumps, is_utf8, loads
from .numbered import Gathered, gather, is_numbered, spread
from .recorded_span import AnySpan, RecordedSpan
from .token_ids import TokenIds

NumberKind = Literal["int32", "int64", "float64"]
ValueKind = Literal["int32", "int64", "float64", "text", "json", "attributes"]

PACKED_LENGTH = 16
"""Lists of numbers from this length on are packed; shorter ones are as small as text."""
PACKED_CHARACTERS = 4096
"""Texts from this length on stand beside the row, and nested values whose JSON text has as many."""
MOST_PACKED = 256
"""Values of one span that stand beside its row; more stay in the text. A database may number them within a byte."""

WIDTHS: dict[ValueKind, int] = {"int32": 4, "int64": 8, "float64": 8, "text": 1, "json": 1, "attributes": 1}
"""Bytes of an element; a text may be cut at any byte, and put together again."""
_MANY: Final = 64
"""Attributes of a span from which on it is not tried whether they are short together: a message has two or more."""
_PACKED_FROM: dict[type, int] = {
    list: PACKED_LENGTH,
    tuple: PACKED_LENGTH,
    TokenIds: PACKED_LENGTH,
    str: PACKED_CHARACTERS,
}
_TEXT = frozenset({str})
_SCALARS = frozenset({str, int, float, bool, type(None)})
_AS_THEY_ARE = _SCALARS | {Slot}
"""Types of values that need not be made JSON values."""
_INTEGERS = tuple[int, ...]
_NS_PER_SECOND: Final = 1_000_000_000
_FORMATS: dict[NumberKind, str] = {"int32": "i", "int64": "q", "float64": "d"}


class PackedValue(NamedTuple):
    """A value that stands at ``key`` of the attributes."""

    key: str
    """Of several attributes, the beginning of their names: ``gen_ai.prompt.``."""
    kind: ValueKind
    data: bytes
    """Numbers little-endian, without gaps; a text in UTF-8; of a nested value its JSON text, and of several attributes
    the members of a JSON object without its braces: so what a call says begins with what the call before it said."""


class SpanRow(NamedTuple):
    """The columns of a span, apart from where it belongs."""

    trace_id: str
    span_id: str
    parent_id: str | None
    name: str
    status_code: StatusCode
    status_description: str | None
    start_time: float | None
    end_time: float | None
    attributes: str
    """JSON object; ``{"$array": n}`` stands for the ``n``-th of ``packed``."""
    events: str
    """JSON list of ``{"name", "attributes", "timestamp"}``, and fields that an event does not know."""
    links: str
    """JSON list of ``{"context", "attributes"}``, and fields that a link does not know."""
    extra: str | None
    """JSON object of the fields that the columns do not say exactly."""
    resource: str
    """JSON object ``{"attributes", "schema_url"}``; the same for most spans of a process."""
    packed: Sequence[PackedValue] = ()


def pack(key: str, values: Sequence[Any]) -> PackedValue | None:
    """Pack a list that is not empty; ``None`` unless all are integers of at most 64 bits, or all are floats."""
    if type(values) is TokenIds:
        return PackedValue(key, "int32", values.tobytes())
    kind = type(values[0])
    if kind is float:
        if [*map(type, values)].count(float) != len(values):
            return None
        return PackedValue(key, "float64", struct.pack(f"<{len(values)}d", *values))
    if kind is not int:
        return None
    try:
        # Refuses bools and floats, which ``struct`` takes for numbers, without a line of Python for each element.
        values = msgspec.convert(values, _INTEGERS)
    except msgspec.ValidationError:
        return None
    try:
        return PackedValue(key, "int32", struct.pack(f"<{len(values)}i", *values))
    except struct.error:
        pass
    try:
        return PackedValue(key, "int64", struct.pack(f"<{len(values)}q", *values))
    except struct.error:
        return None


def unpack(kind: NumberKind, data: bytes) -> list[int | float]:
    """Return the numbers of a packed list."""
    return list(struct.unpack(f"<{len(data) // WIDTHS[kind]}{_FORMATS[kind]}", data))


def to_value(kind: ValueKind, data: bytes) -> Any:
    """Return what a :class:`PackedValue` was made of."""
    if kind == "text":
        return data.decode()
    if kind == "json":
        return loads(data.decode())
    if kind == "attributes":
        return Gathered(loads(f"{{{data.decode()}}}"))
    return unpack(kind, data)


def _packed(key: str, value: Any) -> PackedValue | None:
    """Return what stands beside the row, of a list or a text; ``None`` for one that stays in it."""
    if not is_utf8(key):
        return None
    if type(value) is not str:
        return pack(key, value)
    try:
        return PackedValue(key, "text", value.encode())
    except UnicodeEncodeError:  # lone surrogates
        return None


def _shareable(
    attributes: dict[str, Any], beside: list[PackedValue]
) -> tuple[dict[str, Any], list[PackedValue]]:
    """Return what stands in the row and what beside it, for attributes that are long together.

    The messages of a conversation, each an attribute or a nested value: of what stands beside the row, a database
    stores once what a later call says again.

    Args:
        attributes: JSON values, and a :class:`Slot` for each of ``beside``.
        beside: What stands beside the row already; not changed.
    """
    kept, beside = gather(attributes), [*beside]
    for key, value in kept.items():
        found = None
        if len(beside) < MOST_PACKED:
            kind = type(value)
            if kind is Gathered:
                found = PackedValue(key, "attributes", dump_bytes(value.members)[1:-1])
            elif kind in _PACKED_FROM and len(value) >= _PACKED_FROM[kind]:
                found = _packed(key, value)
            if found is None and kind in (list, dict) and is_utf8(key):
                data = dump_bytes(value)
                found = PackedValue(key, "json", data) if len(data) >= PACKED_CHARACTERS else None
        if found is not None:
            kept[key] = Slot(len(beside))
            beside.append(found)
    return spread(kept), beside


def _is_message(beside: list[PackedValue]) -> bool:
    """Whether a long text is that of a message which has attributes of its own; they are stored together."""
    return any(kind == "text" and is_numbered(key) for key, kind, _ in beside)


def _encode_attributes(
    attributes: Mapping[str, Any], *, are_json: bool = True
) -> tuple[str, list[PackedValue]]:
    """Return the JSON text of attributes, and what stands beside it.

    Args:
        attributes: They are not changed.
        are_json: Whether all are JSON values; else they are as OpenTelemetry has them.
    """
    beside = list[PackedValue]()
    if _SCALARS.issuperset(map(type, attributes.values())):
        # Most spans have texts and numbers alone: no line of Python looks at each of them. No text is longer than all.
        text = dumps(attributes)
        if len(text) < PACKED_CHARACTERS:
            return text, beside
    is_long = len(attributes) > _MANY
    changed: dict[str, Any] | None = None
    if not is_long:
        for key, value in attributes.items():
            least = _PACKED_FROM.get(type(value))
            if least is not None and len(value) >= least and len(beside) < MOST_PACKED:
                found = _packed(key, value)
                if found is not None:
                    if changed is None:
                        changed = dict(attributes)
                    changed[key] = Slot(len(beside))
                    beside.append(found)
                elif type(value) is not str:  # a list of messages, more likely than not
                    is_long = True
    # What is packed by now was packed from the SDK's own tuples; only what is left is made JSON values.
    kept: Mapping[str, Any] = attributes if changed is None else changed
    text = "" if is_long else dumps(kept if are_json else _as_json(kept))
    if is_long or len(text) >= PACKED_CHARACTERS or _is_message(beside):
        # Numbers stay packed. Long texts go back to where they stood: one of them may be that of a message.
        numbers = [value for value in beside if value.kind != "text"]
        places = {value.key: Slot(number) for number, value in enumerate(numbers)}
        kept = {key: places.get(key, value) for key, value in attributes.items()}
        kept, beside = _shareable(dict(kept) if are_json else dict(_as_json(kept)), numbers)
        text = dumps(kept)
    return text, beside


def _as_json(attributes: Mapping[str, Any]) -> Mapping[str, Any]:
    if _AS_THEY_ARE.issuperset(map(type, attributes.values())):
        return attributes
    return {
        key: value if type(value) in _AS_THEY_ARE else to_attribute_value(value)
        for key, value in attributes.items()
    }


def encode_span(span: AnySpan, *, packed: bool = True) -> SpanRow:
    """Return the columns of a span; without ``packed`` all of it is in the row, and nothing beside it."""
    return _encode_recorded(span, packed) if isinstance(span, RecordedSpan) else _encode_built(span, packed)


def _encode_recorded(span: RecordedSpan, packed: bool) -> SpanRow:
    """Return the columns of a span as the SDK has it: the same as of the ``Span`` that would be built of it."""
    source, extra = span.readable, dict[str, Any]()
    attributes = span.attributes
    if not _TEXT.issuperset(map(type, attributes)):
        attributes = to_attributes(attributes)
    text, beside = (
        _encode_attributes(attributes, are_json=False) if packed else (dumps(to_attributes(attributes)), ())
    )
    context, parent = source.get_span_context(), source.parent
    if context is None or context.is_remote or context.trace_state:
        extra["context"] = _context(SpanContext.from_opentelemetry(context)) if context else None
    if parent and (
        parent.is_remote or parent.trace_state or context is None or parent.trace_id != context.trace_id
    ):
        extra["parent"] = {**_context(SpanContext.from_opentelemetry(parent)), "span_id": span.parent_id}
    events = [_event(Event.from_opentelemetry(event)) for event in events_of(source)]
    links = [_link(Link.from_opentelemetry(link)) for link in links_of(source)]
    start, end = source.start_time, source.end_time
    return SpanRow(
        span.trace_id,
        span.span_id,
        span.parent_id,
        _text("name", name_of(source), extra) or "",
        span.status_code,
        _text("status_description", span.status_description, extra),
        None if start is None else start / _NS_PER_SECOND,
        None if end is None else end / _NS_PER_SECOND,
        text,
        dumps(events) if events else "[]",
        dumps(links) if links else "[]",
        dumps(extra) if extra else None,
        _recorded_resource(source.resource),
        beside,
    )


def _recorded_resource(resource: Any) -> str:
    """Return the JSON text of a resource of OpenTelemetry, which never changes; all spans of a process have one."""
    global _last_recorded_resource  # noqa: PLW0603 - replaced as a whole, so threads need no lock
    last, text = _last_recorded_resource
    if resource is not last:
        text = encode_resource(OtelResource.from_opentelemetry(resource))
        _last_recorded_resource = resource, text
    return text


_last_recorded_resource: tuple[Any, str] = (None, "")


def _encode_built(span: Span, packed: bool) -> SpanRow:
    extra: dict[str, Any] = {}
    attributes, beside = _encode_attributes(span.attributes) if packed else (dumps(span.attributes), ())
    _note_contexts(span, extra)
    status = span.status
    # As ``model_extra``, without the call of a property for each model of a span.
    if span.__pydantic_extra__:
        extra["unknown"] = span.__pydantic_extra__
    if status.__pydantic_extra__:
        extra["unknown_of_status"] = status.__pydantic_extra__
    return SpanRow(
        span.trace_id,
        span.span_id,
        _text("parent_id", span.parent_id, extra),
        _text("name", span.name, extra) or "",
        status.status_code,
        _text("status_description", status.description, extra),
        _time("start_time", span.start_time, extra),
        _time("end_time", span.end_time, extra),
        attributes,
        dumps([_event(event) for event in span.events]) if span.events else "[]",
        dumps([_link(link) for link in span.links]) if span.links else "[]",
        dumps(extra) if extra else None,
        encode_resource(span.resource),
        beside,
    )


def decode_span(
    rollout_id: str,
    attempt_id: str,
    sequence_id: int,
    row: SpanRow,
    values: Sequence[Any] | Mapping[int, Any] | None = None,
) -> Span:
    """Return the span of a row; nothing is validated.

    Args:
        rollout_id: The rollout that it belongs to.
        attempt_id: The attempt that it belongs to.
        sequence_id: Its place there.
        row: Its columns.
        values: By their numbers, what stands beside the row, where that is unpacked already; else ``row.packed`` is.
    """
    extra: dict[str, Any] = loads(row.extra) if row.extra else {}
    if values is None:
        values = [to_value(value.kind, value.data) for value in row.packed]
    attributes = loads(row.attributes, values)
    if Gathered in map(type, values.values() if isinstance(values, Mapping) else values):
        attributes = spread(attributes)
    trace_id, parent_id = row.trace_id, extra.get("parent_id", row.parent_id)
    description = extra.get("status_description", row.status_description)
    return build(
        Span,
        {
            "rollout_id": rollout_id,
            "attempt_id": attempt_id,
            "sequence_id": sequence_id,
            "trace_id": trace_id,
            "span_id": row.span_id,
            "parent_id": parent_id,
            "name": extra.get("name", row.name),
            "status": build(
                TraceStatus,
                {"status_code": row.status_code, "description": description},
                extra.get("unknown_of_status"),
            ),
            "attributes": attributes,
            "events": [] if row.events == "[]" else [_to_event(event) for event in loads(row.events)],
            "links": [] if row.links == "[]" else [_to_link(link) for link in loads(row.links)],
            "start_time": extra.get("start_time", row.start_time),
            "end_time": extra.get("end_time", row.end_time),
            "context": (
                _to_context(extra["context"]) if "context" in extra else _local(trace_id, row.span_id)
            ),
            "parent": (
                _to_context(extra["parent"])
                if "parent" in extra
                else None
                if parent_id is None
                else _local(trace_id, parent_id)
            ),
            "resource": decode_resource(row.resource),
        },
        extra.get("unknown"),
    )


def encode_resource(resource: OtelResource) -> str:
    """Return the JSON text of what produced a span."""
    global _last_resource  # noqa: PLW0603 - replaced as a whole, so threads need no lock
    attributes, schema_url = resource.attributes, resource.schema_url
    names, values, last_url, text = _last_resource
    if (
        schema_url is last_url
        and len(attributes) == len(names)
        and all(map(is_, attributes, names))
        and all(map(is_, attributes.values(), values))
    ):
        return text
    text = dumps({"attributes": attributes, "schema_url": schema_url})
    if _UNCHANGING.issuperset(map(type, attributes.values())):
        _last_resource = tuple(attributes), tuple(attributes.values()), schema_url, text
    return text


_UNCHANGING = frozenset({str, int, float, bool, type(None)})
_last_resource: tuple[tuple[str, ...], tuple[Any, ...], str | None, str] = ((), (), None, "")
"""Names, values and URL of the resource that was encoded last, and its text: all spans of a process have one, and the
same objects that never change are the same text."""


def decode_resource(text: str) -> OtelResource:
    """Return the resource of a JSON text."""
    return OtelResource.model_construct(**loads(text))


# ---------------------------------------------------------------------- what a column cannot say


def _text(name: str, value: str | None, extra: dict[str, Any]) -> str | None:
    if value is None or is_utf8(value):
        return value
    extra[name] = value
    return value.encode("utf-8", "replace").decode()


def _time(name: str, value: float | None, extra: dict[str, Any]) -> float | None:
    # A database keeps NaN as NULL, and SQLite -0.0 as 0.
    if value is None or (value == value and (value or math.copysign(1.0, value) > 0)):  # noqa: PLR0124 - NaN
        return value
    extra[name] = value
    return None if value != value else 0.0  # noqa: PLR0124 - NaN


def _note_contexts(span: Span, extra: dict[str, Any]) -> None:
    context, parent = span.context, span.parent
    if context is None or not _is_local(context, span.trace_id, span.span_id):
        extra["context"] = None if context is None else _context(context)
    if parent is None:
        if span.parent_id is not None:
            extra["parent"] = None
    elif span.parent_id is None or not _is_local(parent, span.trace_id, span.parent_id):
        extra["parent"] = _context(parent)


def _is_local(context: SpanContext, trace_id: str, span_id: str) -> bool:
    return (
        context.span_id == span_id
        and context.trace_id == trace_id
        and context.is_remote is False
        and not context.trace_state
        and not context.__pydantic_extra__
    )


def _local(trace_id: str, span_id: str) -> SpanContext:
    return build(
        SpanContext, {"trace_id": trace_id, "span_id": span_id, "is_remote": False, "trace_state": {}}
    )


def _context(context: SpanContext) -> dict[str, Any]:
    return {
        "trace_id": context.trace_id,
        "span_id": context.span_id,
        "is_remote": context.is_remote,
        "trace_state": dict(context.trace_state),
        **(context.model_extra or {}),
    }


def _to_context(value: dict[str, Any] | None) -> SpanContext | None:
    if value is None:
        return None
    return build(SpanContext, _fields(value, "trace_id", "span_id", "is_remote", "trace_state"), value)


def _event(event: Event) -> dict[str, Any]:
    return {
        "name": event.name,
        "attributes": event.attributes,
        "timestamp": event.timestamp,
        **(event.model_extra or {}),
    }


def _to_event(value: dict[str, Any]) -> Event:
    return build(Event, _fields(value, "name", "attributes", "timestamp"), value)


def _link(link: Link) -> dict[str, Any]:
    return {
        "context": _context(link.context),
        "attributes": link.attributes,
        **(link.model_extra or {}),
    }


def _to_link(value: dict[str, Any]) -> Link:
    value["context"] = _to_context(value["context"])
    return build(Link, _fields(value, "context", "attributes"), value)


def _fields(value: dict[str, Any], *names: str) -> dict[str, Any]:
    """Take the fields of these names out of a value, in which unknown ones are left."""
    return {name: value.pop(name) for name in names}
