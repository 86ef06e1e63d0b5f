"""OTLP requests read back are the spans that were sent, whichever encoding and compression carried them.

OpenTelemetry's own encoder is the oracle: what it writes must come back as what we make of the span directly.
"""

from __future__ import annotations

import gzip
import json
import logging
import subprocess
import sys
import textwrap
import zlib
from base64 import b64decode
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict  # type: ignore[import-untyped]
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from agentlightning.codec.otlp import decode_request, decode_spans
from agentlightning.errors import NotAnExportRequest
from agentlightning.types import Span

JSON = "application/json"

TEXT = st.text(max_size=12)  # hypothesis leaves surrogates out; protobuf has none
SCALARS = st.one_of(
    TEXT, st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False), st.binary(max_size=8)
)
NESTED = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXT, inner, max_size=3)),
    max_leaves=8,
)
ATTRIBUTES = st.dictionaries(TEXT.filter(bool), NESTED, max_size=5)
TIMES = st.integers(1, 2**63 - 1)
STATES = st.dictionaries(st.from_regex(r"[a-z][a-z0-9]{0,5}", fullmatch=True), st.just("v1"), max_size=2)


@st.composite
def contexts(draw: st.DrawFn, *, state: bool = True) -> SpanContext:
    return SpanContext(
        trace_id=draw(st.integers(1, 2**128 - 1)),
        span_id=draw(st.integers(1, 2**64 - 1)),
        is_remote=draw(st.booleans()) if not state else False,
        trace_flags=TraceFlags(1),
        trace_state=TraceState(list(draw(STATES).items())) if state else TraceState(),
    )


@st.composite
def readable_spans(draw: st.DrawFn) -> ReadableSpan:
    context = draw(contexts())
    parent = draw(st.none() | contexts(state=False))
    if parent is not None:
        parent = SpanContext(context.trace_id, parent.span_id, parent.is_remote, TraceFlags(1))
    code = draw(st.sampled_from(StatusCode))
    description = draw(st.none() | TEXT.filter(bool)) if code is StatusCode.ERROR else None
    return ReadableSpan(
        name=draw(TEXT),
        context=context,
        parent=parent,
        resource=Resource(draw(st.dictionaries(TEXT.filter(bool), TEXT, max_size=2)), draw(TEXT)),
        attributes=draw(ATTRIBUTES),
        events=[Event(draw(TEXT), draw(ATTRIBUTES), draw(TIMES)) for _ in range(draw(st.integers(0, 2)))],
        links=[Link(draw(contexts(state=False)), draw(ATTRIBUTES)) for _ in range(draw(st.integers(0, 2)))],
        kind=draw(st.sampled_from(SpanKind)),
        status=Status(code, description),
        start_time=draw(TIMES),
        end_time=draw(TIMES),
    )


def expected(spans: list[ReadableSpan]) -> list[Span]:
    """What we make of the same spans directly, in the order in which the encoder groups them by resource."""
    groups: dict[Any, list[Span]] = {}
    for span in spans:
        groups.setdefault(span.resource, []).append(Span.from_opentelemetry(span, "", ""))
    return [span for group in groups.values() for span in group]


def hexadecimal(value: Any) -> Any:
    """Protobuf's JSON → OTLP's: ids are hexadecimal, enumerations are numbers already."""
    if isinstance(value, list):
        return [hexadecimal(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: b64decode(item).hex() if key in {"traceId", "spanId", "parentSpanId"} else hexadecimal(item)
        for key, item in value.items()
    }


def as_json(request: ExportTraceServiceRequest) -> bytes:
    return json.dumps(hexadecimal(MessageToDict(request, use_integers_for_enums=True))).encode()


@given(st.lists(readable_spans(), max_size=3))
def test_what_opentelemetry_encodes_comes_back_as_the_span_itself(spans: list[ReadableSpan]) -> None:
    request = encode_spans(spans)
    decoded = decode_request(request.SerializeToString())
    assert decoded.rejected == []
    assert decoded.spans == expected(spans)


@given(st.lists(readable_spans(), max_size=3))
def test_json_means_the_same_as_protobuf(spans: list[ReadableSpan]) -> None:
    request = encode_spans(spans)
    plain = request.SerializeToString()
    assert decode_spans(as_json(request), "application/json; charset=utf-8") == decode_spans(plain)


@given(readable_spans(), st.sampled_from(["gzip", "deflate", "bare deflate", "", "identity", " GZIP "]))
def test_compression_changes_nothing(span: ReadableSpan, how: str) -> None:
    plain = encode_spans([span]).SerializeToString()
    bare = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    bodies = {
        "gzip": gzip.compress(plain),
        "deflate": zlib.compress(plain),
        "bare deflate": bare.compress(plain) + bare.flush(),
    }
    body = bodies.get(how.strip().lower(), plain)
    assert decode_spans(body, content_encoding=how.removeprefix("bare ")) == decode_spans(plain)


def refusal(body: bytes, content_type: str, encoding: str = "") -> str | None:
    """Return what the one allowed error says, or ``None`` where there is none; any other error comes out."""
    try:
        decode_request(body, content_type, encoding)
    except NotAnExportRequest as error:
        return str(error)
    return None


@given(st.binary(max_size=60), st.sampled_from(["", JSON, "text/html"]), st.sampled_from(["", "gzip", "br"]))
def test_any_bytes_are_spans_or_one_clear_error(body: bytes, content_type: str, encoding: str) -> None:
    refusal(body, content_type, encoding)


JSON_KEYS = (
    "resourceSpans resource scopeSpans spans attributes key value values stringValue intValue doubleValue bytesValue "
    "arrayValue kvlistValue traceId spanId name startTimeUnixNano flags status code events links"
).split()
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.one_of(
        st.lists(inner, max_size=2),
        st.dictionaries(
            st.sampled_from(JSON_KEYS),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=20,
)


@given(JSON_VALUES)
def test_any_json_is_spans_or_one_clear_error(value: Any) -> None:
    for shape in (value, {"resourceSpans": [{"scopeSpans": [{"spans": [value]}]}]}):
        refusal(json.dumps(shape).encode(), JSON)


def span_json(**changes: Any) -> bytes:
    span = {"traceId": "0af7651916cd43dd8448eb211c80319c", "spanId": "b7ad6b7169203331", "name": "call"}
    return json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": [{**span, **changes}]}]}]}).encode()


def attribute(key: str, **value: Any) -> dict[str, Any]:
    return {"key": key, "value": value}


@pytest.mark.parametrize(
    ("value", "read"),
    [
        ({"intValue": "-5"}, -5),
        ({"intValue": 7}, 7),
        ({"intValue": 7.0}, 7),
        ({"doubleValue": "Infinity"}, float("inf")),
        ({"doubleValue": 2}, 2.0),
        ({"bytesValue": "_-8"}, "/+8="),
        ({"boolValue": False}, False),
        ({"stringValue": ""}, ""),
        ({"stringValue": None}, None),
        ({"someLaterValue": 1}, None),
        ({}, None),
        ({"arrayValue": {}}, []),
        (
            {"kvlistValue": {"values": [attribute("a", arrayValue={"values": [{}, {"intValue": 1}]})]}},
            {"a": [None, 1]},
        ),
    ],
)
def test_values_of_json(value: dict[str, Any], read: Any) -> None:
    (span,) = decode_spans(span_json(attributes=[{"key": "x", "value": value}]), JSON)
    assert span.attributes == {"x": read}
    assert type(span.attributes["x"]) is type(read)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"name": 3}, "'name' is not text"),
        ({"attributes": {}}, "'attributes' is not a list of objects"),
        ({"attributes": [attribute("x", intValue="1_0")]}, "'intValue' is not an integer"),
        ({"attributes": [attribute("x", intValue=2**63)]}, "'intValue' is not an integer"),
        ({"attributes": [attribute("x", intValue="9" * 5000)]}, "'intValue' is not an integer"),
        ({"attributes": [attribute("x", boolValue=1)]}, "'boolValue' is not true or false"),
        ({"attributes": [attribute("x", doubleValue="ten")]}, "'doubleValue' is not a number"),
        ({"attributes": [attribute("x", bytesValue="!!!!")]}, "'bytesValue' is not base64"),
        ({"startTimeUnixNano": -1}, "'startTimeUnixNano' is not an integer"),
        ({"startTimeUnixNano": True}, "'startTimeUnixNano' is not an integer"),
        ({"status": []}, "'status' is not an object"),
    ],
)
def test_json_of_another_shape_is_refused_by_name(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(NotAnExportRequest, match=complaint):
        decode_request(span_json(**changes), JSON)


def test_null_and_unknown_fields_of_json_are_absent() -> None:
    (span,) = decode_spans(span_json(attributes=None, kind=None, events=None, somethingNew={"a": 1}), JSON)
    assert (span.attributes, span.events, span.start_time, span.parent_id) == ({}, [], None, None)


def test_the_names_of_status_codes_are_read_too() -> None:
    (span,) = decode_spans(span_json(status={"code": "STATUS_CODE_ERROR", "message": "no"}), JSON)
    assert (span.status.status_code, span.status.description) == ("ERROR", "no")
    (span,) = decode_spans(span_json(status={"code": 9}), JSON)
    assert span.status.status_code == "UNSET"


def test_a_span_without_valid_ids_is_left_out_and_told_and_its_neighbours_stay() -> None:
    request = json.loads(span_json())
    spans = request["resourceSpans"][0]["scopeSpans"][0]["spans"]
    good = spans[0]
    spans += [
        {**good, "name": "short", "traceId": "abc"},
        {**good, "name": "zero", "spanId": "0" * 16},
        {**good, "name": "base64", "traceId": "CvdlGRbNQ92ESOshHIAxnA=="},
        {**good, "name": "lost", "parentSpanId": "12"},
        {**good, "name": "root", "parentSpanId": "0" * 16},
    ]
    decoded = decode_request(json.dumps(request).encode(), JSON)
    assert [span.name for span in decoded.spans] == ["call", "root"]
    assert [reason.partition(":")[0] for reason in decoded.rejected] == [
        "span 'short'",
        "span 'zero'",
        "span 'base64'",
        "span 'lost'",
    ]


@pytest.mark.parametrize(
    ("own", "of_resource", "ids"),
    [
        (
            {"rollout_id": "ro-1", "attempt_id": "at-1"},
            {"rollout_id": "ro-2", "attempt_id": "at-2"},
            ("ro-1", "at-1", 0),
        ),
        ({}, {"rollout_id": "ro-2", "attempt_id": "at-2", "span_sequence_id": 4}, ("ro-2", "at-2", 4)),
        # Half from here and half from there would be an attempt that never was.
        ({"rollout_id": "ro-1"}, {"rollout_id": "ro-2", "attempt_id": "at-2"}, ("ro-1", "", 0)),
        ({"span_sequence_id": 3}, {"rollout_id": "ro-2"}, ("ro-2", "", 3)),
        ({"rollout_id": 5, "span_sequence_id": -1}, {}, ("", "", 0)),
    ],
)
def test_where_a_span_belongs(own: dict[str, Any], of_resource: dict[str, Any], ids: Any) -> None:
    def pairs(values: dict[str, Any]) -> list[KeyValue]:
        return [
            KeyValue(
                key=f"agentlightning.{key}",
                value=AnyValue(string_value=value) if isinstance(value, str) else AnyValue(int_value=value),
            )
            for key, value in values.items()
        ]

    request = ExportTraceServiceRequest()
    group = request.resource_spans.add()
    group.resource.attributes.extend(pairs(of_resource))
    group.scope_spans.add().spans.add(
        trace_id=b"\x01" * 16, span_id=b"\x02" * 8, attributes=pairs(own), dropped_attributes_count=0
    )
    (span,) = decode_spans(request.SerializeToString())
    assert (span.rollout_id, span.attempt_id, span.sequence_id) == ids


def test_attributes_that_a_limit_dropped_are_told() -> None:
    (span,) = decode_spans(span_json(droppedAttributesCount=3), JSON)
    assert span.attributes == {"agentlightning.dropped_attributes": 3}


def test_nested_maps_lists_and_nothing_survive_protobuf() -> None:
    request = ExportTraceServiceRequest()
    span = (
        request.resource_spans.add().scope_spans.add().spans.add(trace_id=b"\x01" * 16, span_id=b"\x02" * 8)
    )
    entry = span.attributes.add(key="deep")
    inner = entry.value.kvlist_value.values.add(key="list")
    inner.value.array_value.values.add()
    inner.value.array_value.values.add(bytes_value=b"\xff")
    inner.value.array_value.values.add(double_value=float("inf"))
    span.attributes.add(key="nothing")
    (read,) = decode_spans(request.SerializeToString())
    assert read.attributes == {"deep": {"list": [None, "/w==", float("inf")]}, "nothing": None}


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_cut_or_swollen_body_is_refused(encoding: str) -> None:
    plain = b"\x00" * 1_000_000
    packed = gzip.compress(plain) if encoding == "gzip" else zlib.compress(plain)
    with pytest.raises(NotAnExportRequest, match="cut off"):
        decode_request(packed[:-5], content_encoding=encoding)
    with pytest.raises(NotAnExportRequest, match="larger than 1,000 bytes"):
        decode_request(packed, content_encoding=encoding, limit=1000)
    with pytest.raises(NotAnExportRequest, match="not compressed as its header says"):
        decode_request(b"\x1f\x8b\xff\xff\xff\xff" * 4, content_encoding=encoding)


@pytest.mark.parametrize("depth", [200, 5000, 200_000])
def test_deep_nesting_is_spans_or_one_clear_error(depth: int) -> None:
    text = '{"arrayValue":{"values":[' * depth + '{"intValue":1}' + "]}}" * depth
    body = span_json(attributes=[{"key": "x", "value": 0}]).replace(
        b'"value": 0', b'"value": ' + text.encode()
    )
    complaint = refusal(body, JSON)
    if complaint is None:
        (span,) = decode_spans(body, JSON)
        assert "[too deep]" in str(span.attributes["x"])
    else:
        assert "not JSON" in complaint


def test_without_the_protobuf_package_json_works_and_protobuf_names_the_cure() -> None:
    code = """
        import sys
        sys.modules["opentelemetry.proto"] = None
        from agentlightning.codec.otlp import can_decode_protobuf, decode_spans
        assert not can_decode_protobuf()
        assert decode_spans(b'{"resourceSpans": []}', "application/json") == []
        try:
            decode_spans(b"")
        except ImportError as error:
            print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "opentelemetry-proto is not installed; run: pip install" in done.stdout


def test_the_encoder_that_serves_as_oracle_drops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """It logs what it cannot encode and leaves it out; then the property above would compare less than it says."""
    attributes: dict[str, Any] = {
        "text": "a",
        "list": ["a", 1, 2.5, True],
        "map": {"a": {"b": b"\x01"}},
        "bytes": b"\x00",
    }
    context = SpanContext(1, 2, is_remote=False)
    with caplog.at_level(logging.WARNING):
        request = encode_spans([ReadableSpan("x", context, attributes=attributes, start_time=1, end_time=2)])
    (span,) = decode_spans(request.SerializeToString())
    assert set(span.attributes) == set(attributes)
    assert caplog.records == []
