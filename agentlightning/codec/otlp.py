"""OTLP/HTTP trace export requests → spans.

One way in for every door that takes OTLP: protobuf or JSON, plain, gzip or deflate. Both encodings are read into
the same plain values first, so a span means the same whichever way it came, and the same as
``Span.from_opentelemetry`` would have made of it in the process that recorded it. What is no request is refused as a
whole; a span without valid ids is left out and told, as OTLP's partial success has it.

Format: OpenTelemetry protocol 1.x, ``opentelemetry/proto/trace/v1/trace.proto`` and the JSON mapping of its
specification (ids in hexadecimal, 64-bit integers as text or number, enumerations as numbers).
"""

from __future__ import annotations

import json
import re
import zlib
from base64 import b64decode, b64encode
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from ..errors import MissingExtra, NotAnExportRequest
from ..semconv import LightningResourceAttributes, SpanFlagAttributes
from ..types.tracer import Event, Link, OtelResource, Span, SpanContext, TraceStatus, build

try:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
except Exception:  # noqa: BLE001 - absent, or generated for another protobuf, which has several errors for that
    ExportTraceServiceRequest = None  # type: ignore[assignment, misc]

DEFAULT_LIMIT = 64 * 1024 * 1024
"""Bytes of a request after decompression; collectors take 20 MiB by default."""

_NS_PER_SECOND = 1_000_000_000
_HAS_IS_REMOTE, _IS_REMOTE = 0x100, 0x200
"""``SpanFlags`` of trace.proto."""
_STATUS = ("UNSET", "OK", "ERROR")
_ROLLOUT_ID = LightningResourceAttributes.ROLLOUT_ID.value
_ATTEMPT_ID = LightningResourceAttributes.ATTEMPT_ID.value
_SEQUENCE_ID = LightningResourceAttributes.SPAN_SEQUENCE_ID.value


class DecodedRequest(NamedTuple):
    """What an export request held."""

    spans: list[Span]
    rejected: list[str]
    """One sentence for each span that was left out."""


def decode_request(
    body: bytes,
    content_type: str = "application/x-protobuf",
    content_encoding: str = "",
    *,
    limit: int = DEFAULT_LIMIT,
) -> DecodedRequest:
    """Return the spans of an export request, in its order.

    ``rollout_id`` and ``attempt_id`` come from the attributes of the span; where these name neither, from those of its
    resource; else they are empty. ``sequence_id`` likewise, else 0.

    Args:
        body: The body as it came.
        content_type: JSON where it says so, else protobuf.
        content_encoding: Empty, ``identity``, ``gzip`` or ``deflate``.
        limit: Bytes after decompression.

    Raises:
        NotAnExportRequest: The bytes are no such request, are cut off, or are too many.
        MissingExtra: The request is protobuf, and ``opentelemetry-proto`` is not installed.
    """
    plain = decompressed(body, content_encoding.strip().lower(), limit)
    media_type = content_type.partition(";")[0].strip().lower()
    is_json = media_type == "application/json" or media_type.endswith("+json")
    found: list[Span] = []
    rejected: list[str] = []
    for raw, resource in _from_json(plain) if is_json else _from_protobuf(plain):
        fault = _fault(raw)
        if fault:
            rejected.append(f"span {raw.name[:100]!r}: {fault}")
        else:
            found.append(_span(raw, resource))
    return DecodedRequest(found, rejected)


def decode_spans(
    body: bytes,
    content_type: str = "application/x-protobuf",
    content_encoding: str = "",
    *,
    limit: int = DEFAULT_LIMIT,
) -> list[Span]:
    """Return only the spans of :func:`decode_request`, which says what is raised."""
    return decode_request(body, content_type, content_encoding, limit=limit).spans


def can_decode_protobuf() -> bool:
    """Whether ``opentelemetry-proto`` is installed: by the extra ``otlp``, ``agentops`` or the OTLP exporter."""
    return ExportTraceServiceRequest is not None


# ---------------------------------------------------------------------- compression


def decompressed(body: bytes, encoding: str, limit: int) -> bytes:
    """Undo the encoding; unlike ``content_encoding.undo``, a cut body is refused: its tail would be lost silently.

    Raises:
        NotAnExportRequest: The encoding is unknown, the bytes do not fit it, or they are more than ``limit``.
    """
    if encoding in {"", "identity"}:
        return _within(body, limit)
    if encoding in {"gzip", "x-gzip"}:
        return _inflated(body, zlib.MAX_WBITS | 16, limit)
    if encoding == "deflate":
        # RFC 9110 means zlib's format; some senders use bare deflate.
        is_zlib = len(body) > 1 and body[0] & 0x0F == 8 and int.from_bytes(body[:2], "big") % 31 == 0
        return _inflated(body, zlib.MAX_WBITS if is_zlib else -zlib.MAX_WBITS, limit)
    raise NotAnExportRequest(
        f"content encoding {encoding[:40]!r} is not supported; use gzip, deflate or none"
    )


def _inflated(body: bytes, wbits: int, limit: int) -> bytes:
    decompressor = zlib.decompressobj(wbits)
    try:
        plain = decompressor.decompress(body, limit + 1)
    except zlib.error as error:
        raise NotAnExportRequest(f"the body is not compressed as its header says: {error}") from error
    _within(plain, limit)
    if not decompressor.eof:
        raise NotAnExportRequest("the compressed body is cut off")
    return plain


def _within(plain: bytes, limit: int) -> bytes:
    if len(plain) > limit:
        raise NotAnExportRequest(f"the request is larger than {limit:,} bytes; send smaller batches")
    return plain


# ---------------------------------------------------------------------- plain values → span


class _Event(NamedTuple):
    name: str
    time: int
    attributes: dict[str, Any]


class _Link(NamedTuple):
    trace_id: str
    span_id: str
    trace_state: str
    flags: int
    attributes: dict[str, Any]


class _Raw(NamedTuple):
    """A span as both encodings have it: ids in lower-case hex, times in ns, 0 = not set."""

    trace_id: str
    span_id: str
    parent_id: str
    trace_state: str
    flags: int
    name: str
    start: int
    end: int
    attributes: dict[str, Any]
    dropped_attributes: int
    events: list[_Event]
    links: list[_Link]
    status: int
    message: str


def _fault(raw: _Raw) -> str | None:
    """Return why a span cannot be told from others, or ``None``."""
    if not _is_id(raw.trace_id, 32):
        return f"its trace id is {raw.trace_id[:40]!r}, not 16 bytes that are not all zero"
    if not _is_id(raw.span_id, 16):
        return f"its span id is {raw.span_id[:40]!r}, not 8 bytes that are not all zero"
    if raw.parent_id.strip("0") and not _is_id(raw.parent_id, 16):
        return f"its parent span id is {raw.parent_id[:40]!r}, not 8 bytes"
    return None


def _is_id(text: str, digits: int) -> bool:
    return len(text) == digits and set(text) <= _HEX and bool(text.strip("0"))


_MAX_DEPTH = 50
"""As ``types.tracer.to_attribute_value``; protobuf itself goes no deeper than 100 messages."""
_HEX = frozenset("0123456789abcdef")


def _span(raw: _Raw, resource: OtelResource) -> Span:
    attributes = raw.attributes
    rollout_id, attempt_id = _ids(attributes, resource.attributes)
    sequence_id = _sequence_id(attributes) or _sequence_id(resource.attributes)
    if raw.dropped_attributes:
        attributes.setdefault(SpanFlagAttributes.DROPPED_ATTRIBUTES.value, raw.dropped_attributes)
    parent_id = raw.parent_id if raw.parent_id.strip("0") else None
    return build(
        Span,
        {
            "rollout_id": rollout_id,
            "attempt_id": attempt_id,
            "sequence_id": sequence_id,
            "trace_id": raw.trace_id,
            "span_id": raw.span_id,
            "parent_id": parent_id,
            "name": raw.name,
            "status": build(
                TraceStatus,
                {
                    # A code that trace.proto does not have yet says nothing.
                    "status_code": _STATUS[raw.status] if 0 <= raw.status < len(_STATUS) else "UNSET",
                    "description": raw.message or None,
                },
            ),
            "attributes": attributes,
            "events": [_event(event) for event in raw.events],
            "links": [_link(link) for link in raw.links],
            "start_time": _seconds(raw.start),
            "end_time": _seconds(raw.end),
            "context": _context(raw.trace_id, raw.span_id, raw.trace_state, 0),
            "parent": _context(raw.trace_id, parent_id, "", raw.flags) if parent_id else None,
            "resource": resource,
        },
    )


def _ids(*levels: Mapping[str, Any]) -> tuple[str, str]:
    """Return both ids from the first level that has one: half of each would name an attempt that never was."""
    for attributes in levels:
        found = [attributes.get(name) for name in (_ROLLOUT_ID, _ATTEMPT_ID)]
        rollout_id, attempt_id = (value if isinstance(value, str) else "" for value in found)
        if rollout_id or attempt_id:
            return rollout_id, attempt_id
    return "", ""


def _sequence_id(attributes: Mapping[str, Any]) -> int:
    value = attributes.get(_SEQUENCE_ID)
    return value if type(value) is int and value > 0 else 0


def _event(event: _Event) -> Event:
    return build(
        Event, {"name": event.name, "attributes": event.attributes, "timestamp": _seconds(event.time)}
    )


def _link(link: _Link) -> Link:
    context = _context(link.trace_id, link.span_id, link.trace_state, link.flags)
    return build(Link, {"context": context, "attributes": link.attributes})


def _context(trace_id: str, span_id: str, trace_state: str, flags: int) -> SpanContext:
    return build(
        SpanContext,
        {
            "trace_id": trace_id,
            "span_id": span_id,
            "is_remote": bool(flags & _HAS_IS_REMOTE and flags & _IS_REMOTE),
            "trace_state": _trace_state(trace_state),
        },
    )


def _trace_state(text: str) -> dict[str, str]:
    members = (member.strip().partition("=") for member in text.split(",")) if text else ()
    return {key: value for key, equals, value in members if equals}


def _seconds(nanoseconds: int) -> float | None:
    return nanoseconds / _NS_PER_SECOND if nanoseconds else None


# ---------------------------------------------------------------------- protobuf


def _from_protobuf(plain: bytes) -> Iterator[tuple[_Raw, OtelResource]]:
    if ExportTraceServiceRequest is None:
        raise MissingExtra("opentelemetry-proto", "otlp")
    request = ExportTraceServiceRequest()
    try:
        request.ParseFromString(plain)
    except Exception as error:  # each implementation of protobuf has errors of its own
        raise NotAnExportRequest(f"not an OTLP trace request in protobuf: {error}") from error
    for group in request.resource_spans:
        resource = build(
            OtelResource,
            {"attributes": _pairs(group.resource.attributes), "schema_url": group.schema_url},
        )
        for scope in group.scope_spans:
            for span in scope.spans:
                yield _raw_of_protobuf(span), resource


def _raw_of_protobuf(span: Any) -> _Raw:
    return _Raw(
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        trace_state=span.trace_state,
        # Messages of the protocol before 1.1 have no flags.
        flags=getattr(span, "flags", 0),
        name=span.name,
        start=span.start_time_unix_nano,
        end=span.end_time_unix_nano,
        attributes=_pairs(span.attributes),
        dropped_attributes=span.dropped_attributes_count,
        events=[_Event(event.name, event.time_unix_nano, _pairs(event.attributes)) for event in span.events],
        links=[
            _Link(
                link.trace_id.hex(),
                link.span_id.hex(),
                link.trace_state,
                getattr(link, "flags", 0),
                _pairs(link.attributes),
            )
            for link in span.links
        ],
        status=span.status.code,
        message=span.status.message,
    )


def _pairs(pairs: Iterable[Any]) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind is None:
        return None
    if kind == "array_value":
        return [_value(item) for item in value.array_value.values]
    if kind == "kvlist_value":
        return _pairs(value.kvlist_value.values)
    if kind == "bytes_value":
        return b64encode(value.bytes_value).decode("ascii")
    return getattr(value, kind)


# ---------------------------------------------------------------------- JSON


def _from_json(plain: bytes) -> Iterator[tuple[_Raw, OtelResource]]:
    try:
        request = json.loads(plain)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise NotAnExportRequest(f"not JSON: {error}") from error
    yield from _json_spans(request)


def _json_spans(request: Any) -> Iterator[tuple[_Raw, OtelResource]]:
    if not isinstance(request, dict):
        raise NotAnExportRequest("not an OTLP trace request: the JSON value is no object")
    for group in _objects(request, "resourceSpans"):
        attributes = _json_pairs(_object(group, "resource"))
        resource = build(OtelResource, {"attributes": attributes, "schema_url": _text(group, "schemaUrl")})
        for scope in _objects(group, "scopeSpans"):
            for span in _objects(scope, "spans"):
                yield _raw_of_json(span), resource


def _raw_of_json(span: dict[str, Any]) -> _Raw:
    status = _object(span, "status")
    return _Raw(
        trace_id=_text(span, "traceId").lower(),
        span_id=_text(span, "spanId").lower(),
        parent_id=_text(span, "parentSpanId").lower(),
        trace_state=_text(span, "traceState"),
        flags=_integer(span.get("flags"), "flags", 0, 2**32),
        name=_text(span, "name"),
        start=_nanoseconds(span, "startTimeUnixNano"),
        end=_nanoseconds(span, "endTimeUnixNano"),
        attributes=_json_pairs(span),
        dropped_attributes=_integer(span.get("droppedAttributesCount"), "droppedAttributesCount", 0, 2**32),
        events=[
            _Event(_text(event, "name"), _nanoseconds(event, "timeUnixNano"), _json_pairs(event))
            for event in _objects(span, "events")
        ],
        links=[
            _Link(
                _text(link, "traceId").lower(),
                _text(link, "spanId").lower(),
                _text(link, "traceState"),
                _integer(link.get("flags"), "flags", 0, 2**32),
                _json_pairs(link),
            )
            for link in _objects(span, "links")
        ],
        status=_status(status.get("code")),
        message=_text(status, "message"),
    )


def _status(code: Any) -> int:
    if isinstance(code, str):  # the names are protobuf's own JSON mapping; OTLP asks for numbers
        name = code.removeprefix("STATUS_CODE_")
        return _STATUS.index(name) if name in _STATUS else 0
    return _integer(code, "code", -(2**31), 2**31)


def _json_pairs(owner: dict[str, Any]) -> dict[str, Any]:
    return _json_map(owner, "attributes", 0)


def _json_map(owner: dict[str, Any], key: str, depth: int) -> dict[str, Any]:
    return {_text(pair, "key"): _json_value(_object(pair, "value"), depth) for pair in _objects(owner, key)}


def _json_value(value: dict[str, Any], depth: int) -> Any:
    if depth > _MAX_DEPTH:
        return "[too deep]"
    kind = next((kind for kind in _JSON_KINDS if value.get(kind) is not None), None)
    if kind is None:
        return None
    if kind == "stringValue":
        return _text(value, kind)
    if kind == "boolValue":
        if not isinstance(value[kind], bool):
            raise _wrong(kind, "true or false")
        return value[kind]
    if kind == "intValue":
        return _integer(value[kind], kind, -(2**63), 2**63)
    if kind == "doubleValue":
        return _double(value[kind])
    if kind == "bytesValue":
        return _base64(_text(value, kind))
    inner = _object(value, kind)
    if kind == "arrayValue":
        return [_json_value(item, depth + 1) for item in _objects(inner, "values")]
    return _json_map(inner, "values", depth + 1)


_JSON_KINDS = (
    "stringValue",
    "boolValue",
    "intValue",
    "doubleValue",
    "arrayValue",
    "kvlistValue",
    "bytesValue",
)


def _objects(owner: dict[str, Any], key: str) -> list[dict[str, Any]]:
    found = owner.get(key)
    if found is None:
        return []
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise _wrong(key, "a list of objects")
    return found


def _object(owner: dict[str, Any], key: str) -> dict[str, Any]:
    found = owner.get(key)
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise _wrong(key, "an object")
    return found


def _text(owner: dict[str, Any], key: str) -> str:
    found = owner.get(key)
    if found is None:
        return ""
    if not isinstance(found, str):
        raise _wrong(key, "text")
    return found


_INTEGER = re.compile(r"-?[0-9]+")


def _nanoseconds(owner: dict[str, Any], key: str) -> int:
    return _integer(owner.get(key), key, 0, 2**64)


def _integer(found: Any, key: str, low: int, high: int) -> int:
    if found is None:
        return 0
    try:
        is_whole = isinstance(found, float) and found.is_integer()
        is_number = (type(found) is int or is_whole) or (isinstance(found, str) and _INTEGER.fullmatch(found))
        value = int(found) if is_number else None
    except ValueError:  # more digits than Python reads
        value = None
    if value is None or not low <= value < high:
        raise _wrong(key, "an integer in its range")
    return value


def _double(found: Any) -> float:
    try:
        if isinstance(found, (int, float, str)) and not isinstance(found, bool):
            return float(found)  # "NaN", "Infinity" and "-Infinity" are texts
    except (ValueError, OverflowError):
        pass
    raise _wrong("doubleValue", "a number")


def _base64(text: str) -> str:
    standard = text.replace("+", "-").replace("/", "_").rstrip("=")
    try:
        plain = b64decode(standard + "=" * (-len(standard) % 4), altchars=b"-_", validate=True)
    except ValueError as error:
        raise _wrong("bytesValue", "base64") from error
    return b64encode(plain).decode("ascii")


def _wrong(key: str, wanted: str) -> NotAnExportRequest:
    return NotAnExportRequest(f"not an OTLP trace request: {key!r} is not {wanted}")
