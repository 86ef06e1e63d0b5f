"""Spans → OTLP trace export requests in protobuf, which ``codec.otlp`` reads back; events → requests of log records.

Format: OpenTelemetry protocol 1.x, ``opentelemetry/proto/trace/v1/trace.proto`` and ``…/logs/v1/logs.proto``.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import MissingExtra
from ..semconv import ModelCallAttributes
from .json_text import is_utf8

if TYPE_CHECKING:
    from ..types import Span, SpanContext

try:
    from opentelemetry.proto.collector.logs.v1 import logs_service_pb2
    from opentelemetry.proto.collector.trace.v1 import trace_service_pb2
    from opentelemetry.proto.common.v1 import common_pb2
    from opentelemetry.proto.logs.v1 import logs_pb2
    from opentelemetry.proto.resource.v1 import resource_pb2
    from opentelemetry.proto.trace.v1 import trace_pb2

    can_encode = True
except Exception:  # noqa: BLE001 - absent, or generated for another protobuf, which has several errors for that
    can_encode = False

SCOPE = "agentlightning"
_HAS_IS_REMOTE, _IS_REMOTE = 0x100, 0x200
_LATEST = 1e11
"""Seconds; more nanoseconds than 64 bits hold."""
_TRACE_ID, _SPAN_ID = re.compile(r"[0-9a-fA-F]{32}"), re.compile(r"[0-9a-fA-F]{16}")


def encode_request(spans: Sequence[Span]) -> bytes:
    """Return the export request that holds these spans, in their order; ids and times are the spans' own.

    Args:
        spans: Spans for which :func:`has_ids_of_otlp` is true.

    Raises:
        MissingExtra: ``opentelemetry-proto`` is not installed.
    """
    if not can_encode:
        raise MissingExtra("opentelemetry-proto", "otlp")
    request = trace_service_pb2.ExportTraceServiceRequest()
    before, group = None, None
    for span in spans:
        if group is None or span.resource != before:
            before = span.resource
            found = request.resource_spans.add()
            found.resource.CopyFrom(resource_pb2.Resource(attributes=_pairs(span.resource.attributes)))
            found.schema_url = _text(span.resource.schema_url)
            group = found.scope_spans.add()
            group.scope.name = SCOPE
        group.spans.append(_span(span))
    return bytes(request.SerializeToString())


class LogEvent(NamedTuple):
    """An event of OpenTelemetry's: a log record with a name, beneath a span."""

    name: str
    attributes: Mapping[str, Any]
    trace_id: str
    span_id: str
    time: float | None
    """Seconds since the epoch."""


def encode_events(events: Sequence[LogEvent]) -> bytes:
    """Return the export request of log records that holds these events, in their order.

    Raises:
        MissingExtra: ``opentelemetry-proto`` is not installed.
    """
    if not can_encode:
        raise MissingExtra("opentelemetry-proto", "otlp")
    request = logs_service_pb2.ExportLogsServiceRequest()
    group = request.resource_logs.add().scope_logs.add()
    group.scope.name = SCOPE
    for event in events:
        group.log_records.append(
            logs_pb2.LogRecord(
                event_name=_text(event.name),
                severity_number=logs_pb2.SEVERITY_NUMBER_INFO,
                time_unix_nano=_nanoseconds(event.time),
                observed_time_unix_nano=_nanoseconds(event.time),
                trace_id=bytes.fromhex(event.trace_id),
                span_id=bytes.fromhex(event.span_id),
                attributes=_pairs(event.attributes),
            )
        )
    return bytes(request.SerializeToString())


def has_ids_of_otlp(span: Span) -> bool:
    """Whether the ids of a span are of 16 and 8 bytes in hexadecimal digits: others have no form in a request."""
    pairs = [
        (span.trace_id, span.span_id),
        *((each.context.trace_id, each.context.span_id) for each in span.links),
    ]
    parent = not span.parent_id or _SPAN_ID.fullmatch(span.parent_id)
    return bool(parent) and all(
        _TRACE_ID.fullmatch(trace) and _SPAN_ID.fullmatch(one) for trace, one in pairs
    )


def read_partial_success(body: bytes) -> tuple[int, str]:
    """Return how many spans or log records an answer to a request says were rejected, and why.

    Raises:
        ValueError: The answer is none of OTLP.
    """
    # The answers of both signals have the same fields under the same numbers.
    answer = trace_service_pb2.ExportTraceServiceResponse()
    try:
        answer.ParseFromString(body)
    except Exception as error:  # each implementation of protobuf has errors of its own
        raise ValueError("this is no answer of OTLP") from error
    return answer.partial_success.rejected_spans, answer.partial_success.error_message


def read_partial_success_json(body: bytes) -> tuple[int, str]:
    """Return the same of an answer in JSON (OTLP/HTTP's mapping: camel case, whole numbers as text or as numbers).

    What is other JSON says nothing of a partial success: ``(0, "")``.

    Raises:
        ValueError: It is no JSON, or what it says was rejected is no number.
    """
    answer = json.loads(body or b"{}")
    found = answer.get("partialSuccess") if isinstance(answer, dict) else None
    if not isinstance(found, dict):
        return 0, ""
    rejected = found.get("rejectedSpans", found.get("rejectedLogRecords")) or 0
    try:
        number = int(rejected)
    except (TypeError, OverflowError) as error:
        raise ValueError("this is no answer of OTLP") from error
    return number, str(found.get("errorMessage") or "")


def _span(span: Span) -> Any:
    remote = span.parent is not None and span.parent.is_remote
    is_call = ModelCallAttributes.TOKEN_CAPTURE.value in span.attributes
    return trace_pb2.Span(
        trace_id=bytes.fromhex(span.trace_id),
        span_id=bytes.fromhex(span.span_id),
        parent_span_id=bytes.fromhex(span.parent_id or ""),
        trace_state=_trace_state(span.context),
        flags=_HAS_IS_REMOTE | (_IS_REMOTE if remote else 0),
        name=_text(span.name),
        kind=trace_pb2.Span.SPAN_KIND_CLIENT if is_call else trace_pb2.Span.SPAN_KIND_INTERNAL,
        start_time_unix_nano=_nanoseconds(span.start_time),
        end_time_unix_nano=_nanoseconds(span.end_time),
        attributes=_pairs(span.attributes),
        events=[
            trace_pb2.Span.Event(
                name=_text(event.name),
                time_unix_nano=_nanoseconds(event.timestamp),
                attributes=_pairs(event.attributes),
            )
            for event in span.events
        ],
        links=[
            trace_pb2.Span.Link(
                trace_id=bytes.fromhex(link.context.trace_id),
                span_id=bytes.fromhex(link.context.span_id),
                trace_state=_trace_state(link.context),
                attributes=_pairs(link.attributes or {}),
            )
            for link in span.links
        ],
        status=trace_pb2.Status(
            code=trace_pb2.Status.StatusCode.Value(f"STATUS_CODE_{span.status.status_code}"),
            message=_text(span.status.description or ""),
        ),
    )


def _trace_state(context: SpanContext | None) -> str:
    members = context.trace_state if context is not None else {}
    return _text(",".join(f"{key}={value}" for key, value in (members or {}).items()))


def _nanoseconds(seconds: float | None) -> int:
    """Return a time as protobuf has it: 64 bits without a sign, 0 where it is unknown."""
    if seconds is None or not math.isfinite(seconds):
        return 0
    return min(round(min(max(seconds, 0.0), _LATEST) * 1e9), 2**64 - 1)


def _pairs(attributes: Mapping[str, Any]) -> list[Any]:
    return [common_pb2.KeyValue(key=_text(key), value=_value(value)) for key, value in attributes.items()]


def _value(value: Any) -> Any:
    if isinstance(value, bool):
        return common_pb2.AnyValue(bool_value=value)
    if isinstance(value, int):
        if not -(2**63) <= value < 2**63:
            return common_pb2.AnyValue(string_value=str(value))
        return common_pb2.AnyValue(int_value=value)
    if isinstance(value, float):
        return common_pb2.AnyValue(double_value=value)
    if isinstance(value, str):
        return common_pb2.AnyValue(string_value=_text(value))
    if isinstance(value, Mapping):
        return common_pb2.AnyValue(kvlist_value=common_pb2.KeyValueList(values=_pairs(value)))
    if isinstance(value, Sequence):
        return common_pb2.AnyValue(array_value=common_pb2.ArrayValue(values=[_value(each) for each in value]))
    return common_pb2.AnyValue()


def _text(text: str) -> str:
    """Return a text that protobuf takes: a lone surrogate becomes a question mark."""
    return text if is_utf8(text) else text.encode("utf-8", "replace").decode()
