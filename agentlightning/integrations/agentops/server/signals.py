"""OTLP metrics and logs → one plain record per metric and per log record.

Protobuf is turned into the protocol's JSON form first, so both encodings are read by the same lines. A request of
another shape is refused as a whole. Only this part of the server needs protobuf for them; it is loaded when they come.

Format: OpenTelemetry protocol 1.x, ``metrics.proto`` and ``logs.proto``, and the JSON mapping of its specification.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator
from math import isfinite
from typing import Any

from ....codec.otlp import decompressed
from ....errors import MissingExtra, NotAnExportRequest
from .recorder import from_text, to_text
from .wsgi import MAX_BODY

try:
    from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
except Exception:  # noqa: BLE001 - absent, or generated for another protobuf, which has several errors for that
    ExportLogsServiceRequest = ExportMetricsServiceRequest = None  # type: ignore[assignment, misc]

Json = dict[str, Any]

_KINDS = ("sum", "gauge", "histogram", "exponentialHistogram", "summary")
_TEMPORALITY = {
    "1": "delta",
    "2": "cumulative",
    # Protobuf's own JSON mapping has names; OTLP asks for numbers.
    "AGGREGATION_TEMPORALITY_DELTA": "delta",
    "AGGREGATION_TEMPORALITY_CUMULATIVE": "cumulative",
}
_OF_EACH_POINT = frozenset(
    {"attributes", "timeUnixNano", "startTimeUnixNano", "asInt", "asDouble", "exemplars"}
)


def records(signal: str, body: bytes, content_type: str, content_encoding: str) -> list[Json]:
    """Return the ``metrics`` or ``logs`` of an export request, in its order; times are seconds since the epoch.

    Raises:
        NotAnExportRequest: The body is no such request.
        MissingExtra: It is protobuf, and ``opentelemetry-proto`` is not installed.
    """
    plain = decompressed(body, content_encoding.strip().lower(), MAX_BODY)
    media_type = content_type.partition(";")[0].strip().lower()
    is_json = media_type == "application/json" or media_type.endswith("+json")
    try:
        request = from_text(plain) if is_json else _from_protobuf(signal, plain)
        if not isinstance(request, dict):
            raise _Wrong("the value", "an object")
        return list(_metrics(request) if signal == "metrics" else _logs(request))
    except (ValueError, RecursionError) as error:
        raise NotAnExportRequest(f"not an OTLP request for {signal}: {error}") from error


def _from_protobuf(signal: str, plain: bytes) -> Any:
    kind = ExportMetricsServiceRequest if signal == "metrics" else ExportLogsServiceRequest
    if kind is None:
        raise MissingExtra("opentelemetry-proto", "otlp")
    request = kind()
    try:
        request.ParseFromString(plain)
    except Exception as error:  # each implementation of protobuf has errors of its own
        raise ValueError(str(error)) from error
    return _plain(request)


def _plain(message: Any) -> Json:
    """Return a message in OTLP's JSON form: ids in hexadecimal, other bytes in base64, what is no number as text."""
    found: Json = {}
    for field, value in message.ListFields():
        is_id = field.name in {"trace_id", "span_id"}
        is_repeated = hasattr(value, "extend")
        found[field.json_name] = (
            [_plain_value(item, is_id=is_id) for item in value]
            if is_repeated
            else _plain_value(value, is_id=is_id)
        )
    return found


def _plain_value(value: Any, *, is_id: bool) -> Any:
    if hasattr(value, "ListFields"):
        return _plain(value)
    if isinstance(value, bytes):
        return value.hex() if is_id else b64encode(value).decode("ascii")
    return value if not isinstance(value, float) or isfinite(value) else str(value)


# ---------------------------------------------------------------------- metrics


def _metrics(request: Json) -> Iterator[Json]:
    for group in _objects(request, "resourceMetrics"):
        resource = _attributes(_object(group, "resource"))
        for scope in _objects(group, "scopeMetrics"):
            for metric in _objects(scope, "metrics"):
                yield {**_metric(metric), "scope": _scope(scope), "resource": resource}


def _metric(metric: Json) -> Json:
    kind = next((kind for kind in _KINDS if metric.get(kind) is not None), "")
    data = _object(metric, kind)
    return {
        "name": _text(metric, "name"),
        "description": _text(metric, "description"),
        "unit": _text(metric, "unit"),
        "kind": kind,
        "temporality": _TEMPORALITY.get(str(data.get("aggregationTemporality")), ""),
        "monotonic": data.get("isMonotonic") is True,
        "points": [_point(point) for point in _objects(data, "dataPoints")],
    }


def _point(point: Json) -> Json:
    found: Json = {
        "attributes": _attributes(point),
        "start_time": _seconds(point, "startTimeUnixNano"),
        "time": _seconds(point, "timeUnixNano"),
    }
    if "asInt" in point:
        found["value"] = _whole(point["asInt"])
    elif "asDouble" in point:
        found["value"] = point["asDouble"]
    # What histograms and summaries have, under the protocol's own names.
    found.update((name, value) for name, value in point.items() if name not in _OF_EACH_POINT)
    if "count" in found:
        found["count"] = _whole(found["count"])
    return found


# ---------------------------------------------------------------------- logs


def _logs(request: Json) -> Iterator[Json]:
    for group in _objects(request, "resourceLogs"):
        resource = _attributes(_object(group, "resource"))
        for scope in _objects(group, "scopeLogs"):
            for line in _objects(scope, "logRecords"):
                yield {**_log(line), "scope": _scope(scope), "resource": resource}


def _log(line: Json) -> Json:
    """Return a log record with the fields of an upload, ``trace_id`` and ``text``, first."""
    said = _value(_object(line, "body"))
    return {
        "trace_id": _text(line, "traceId").lower(),
        "text": said if isinstance(said, str) else to_text(said),
        "span_id": _text(line, "spanId").lower(),
        "time": _seconds(line, "timeUnixNano") or _seconds(line, "observedTimeUnixNano"),
        "severity": _text(line, "severityText") or line.get("severityNumber"),
        "event": _text(line, "eventName"),
        "attributes": _attributes(line),
    }


# ---------------------------------------------------------------------- values


class _Wrong(ValueError):
    def __init__(self, key: str, wanted: str) -> None:
        super().__init__(f"{key!r} is not {wanted}")


def _scope(owner: Json) -> str:
    return _text(_object(owner, "scope"), "name")


def _attributes(owner: Json, key: str = "attributes") -> Json:
    return {_text(pair, "key"): _value(_object(pair, "value")) for pair in _objects(owner, key)}


def _value(value: Json) -> Any:
    if "arrayValue" in value:
        return [_value(item) for item in _objects(_object(value, "arrayValue"), "values")]
    if "kvlistValue" in value:
        return _attributes(_object(value, "kvlistValue"), "values")
    if "intValue" in value:
        return _whole(value["intValue"])
    return next(
        (value[kind] for kind in ("stringValue", "boolValue", "doubleValue", "bytesValue") if kind in value),
        None,
    )


def _whole(found: Any) -> int:
    """Return an integer; 64 bits of them are text in JSON."""
    if isinstance(found, str) and len(found) <= 20:
        return int(found)
    if type(found) is not int:
        raise _Wrong(str(found)[:40], "an integer")
    return found


def _seconds(owner: Json, key: str) -> float | None:
    nanoseconds = _whole(owner.get(key, 0))
    return nanoseconds / 1_000_000_000 if 0 < nanoseconds < 2**64 else None


def _objects(owner: Json, key: str) -> list[Json]:
    found = owner.get(key) or []
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise _Wrong(key, "a list of objects")
    return found


def _object(owner: Json, key: str) -> Json:
    found = owner.get(key) or {}
    if not isinstance(found, dict):
        raise _Wrong(key, "an object")
    return found


def _text(owner: Json, key: str) -> str:
    found = owner.get(key) or ""
    if not isinstance(found, str):
        raise _Wrong(key, "text")
    return found
