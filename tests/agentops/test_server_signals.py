"""OTLP metrics and logs are kept decoded, one record each; what is none is refused and kept as it came."""

from __future__ import annotations

import base64
import gzip
import json
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from server_sample import JSON, PROTOBUF, otlp

from agentlightning.integrations.agentops.server import Recorder, create_app
from agentlightning.testing.agentops_server import AgentOpsServer

SECOND = 10**9
SIGNALS = ("metrics", "logs")


def metrics() -> ExportMetricsServiceRequest:
    """A counter with one point."""
    request = ExportMetricsServiceRequest()
    group = request.resource_metrics.add()
    group.resource.attributes.add(key="service.name").value.string_value = "agent"
    scope = group.scope_metrics.add()
    scope.scope.name = "steps"
    metric = scope.metrics.add(name="tokens", unit="1", description="sampled")
    metric.sum.aggregation_temporality = 2
    metric.sum.is_monotonic = True
    point = metric.sum.data_points.add(
        as_int=42, start_time_unix_nano=10 * SECOND, time_unix_nano=11 * SECOND
    )
    point.attributes.add(key="model").value.string_value = "m"
    return request


def logs() -> ExportLogsServiceRequest:
    """A line of text and one of values."""
    request = ExportLogsServiceRequest()
    group = request.resource_logs.add()
    group.resource.attributes.add(key="service.name").value.string_value = "agent"
    scope = group.scope_logs.add()
    scope.scope.name = "steps"
    line = scope.log_records.add(
        time_unix_nano=10 * SECOND,
        severity_number=9,
        severity_text="INFO",
        trace_id=b"\xab" * 16,
        span_id=b"\xcd" * 8,
    )
    line.body.string_value = "sampled"
    line.attributes.add(key="n").value.int_value = 2**62
    values = scope.log_records.add(observed_time_unix_nano=11 * SECOND, severity_number=17)
    pair = values.body.kvlist_value.values.add(key="all")
    pair.value.array_value.values.add().double_value = 0.5
    pair.value.array_value.values.add().bytes_value = b"\xff"
    return request


METRIC: dict[str, Any] = {
    "name": "tokens",
    "description": "sampled",
    "unit": "1",
    "kind": "sum",
    "temporality": "cumulative",
    "monotonic": True,
    "points": [{"attributes": {"model": "m"}, "start_time": 10.0, "time": 11.0, "value": 42}],
    "scope": "steps",
    "resource": {"service.name": "agent"},
}
LINES: list[dict[str, Any]] = [
    {
        "trace_id": "ab" * 16,
        "text": "sampled",
        "span_id": "cd" * 8,
        "time": 10.0,
        "severity": "INFO",
        "event": "",
        "attributes": {"n": 2**62},
        "scope": "steps",
        "resource": {"service.name": "agent"},
    },
    {
        "trace_id": "",
        "text": '{"all":[0.5,"/w=="]}',
        "span_id": "",
        "time": 11.0,
        "severity": 17,
        "event": "",
        "attributes": {},
        "scope": "steps",
        "resource": {"service.name": "agent"},
    },
]
# As OpenTelemetry's specification shows them: ids in hexadecimal, 64 bits as text, enumerations as numbers.
METRICS_JSON = {
    "resourceMetrics": [
        {
            "resource": {"attributes": [{"key": "service.name", "value": {"stringValue": "agent"}}]},
            "scopeMetrics": [
                {
                    "scope": {"name": "steps"},
                    "metrics": [
                        {
                            "name": "tokens",
                            "unit": "1",
                            "description": "sampled",
                            "sum": {
                                "aggregationTemporality": 2,
                                "isMonotonic": True,
                                "dataPoints": [
                                    {
                                        "asInt": "42",
                                        "startTimeUnixNano": "10000000000",
                                        "timeUnixNano": "11000000000",
                                        "attributes": [{"key": "model", "value": {"stringValue": "m"}}],
                                    }
                                ],
                            },
                        }
                    ],
                }
            ],
        }
    ]
}
LOGS_JSON = {
    "resourceLogs": [
        {
            "resource": {"attributes": [{"key": "service.name", "value": {"stringValue": "agent"}}]},
            "scopeLogs": [
                {
                    "scope": {"name": "steps"},
                    "logRecords": [
                        {
                            "timeUnixNano": "10000000000",
                            "severityNumber": 9,
                            "severityText": "INFO",
                            "traceId": "AB" * 16,
                            "spanId": "cd" * 8,
                            "body": {"stringValue": "sampled"},
                            "attributes": [{"key": "n", "value": {"intValue": str(2**62)}}],
                        },
                        {
                            "observedTimeUnixNano": "11000000000",
                            "severityNumber": 17,
                            "body": {
                                "kvlistValue": {
                                    "values": [
                                        {
                                            "key": "all",
                                            "value": {
                                                "arrayValue": {
                                                    "values": [{"doubleValue": 0.5}, {"bytesValue": "/w=="}]
                                                }
                                            },
                                        }
                                    ]
                                }
                            },
                        },
                    ],
                }
            ],
        }
    ]
}
FORMS = {
    "metrics": (metrics().SerializeToString(), METRICS_JSON, [METRIC]),
    "logs": (logs().SerializeToString(), LOGS_JSON, LINES),
}


def post(signal: str, body: bytes, headers: dict[str, str]) -> tuple[int, list[dict[str, Any]], list[str]]:
    """Return the status, what was kept, and what was unreadable."""
    recorder = Recorder()
    with create_app(recorder).test_client() as client:
        status = client.post(f"/v1/{signal}", data=body, headers=headers).status_code
    errors = [json.loads(text)["reason"] for text in recorder.read("errors")]
    return status, [json.loads(text) for text in recorder.read(signal)], errors


@pytest.mark.parametrize("encoding", ["", "gzip", "deflate"])
@pytest.mark.parametrize("form", ["protobuf", "json"])
@pytest.mark.parametrize("signal", SIGNALS)
def test_both_encodings_mean_the_same(signal: str, form: str, encoding: str) -> None:
    protobuf, value, expected = FORMS[signal]
    plain = protobuf if form == "protobuf" else json.dumps(value).encode()
    body = {"": plain, "gzip": gzip.compress(plain), "deflate": zlib.compress(plain)}[encoding]
    headers = {**(PROTOBUF if form == "protobuf" else JSON), "Content-Encoding": encoding}
    status, kept, errors = post(signal, body, headers)
    assert (status, errors) == (200, [])
    assert all(each.pop("received") for each in kept)
    assert kept == expected


@pytest.mark.parametrize("compression", [Compression.NoCompression, Compression.Gzip])
def test_what_opentelemetry_measures_arrives(
    agentops_server: AgentOpsServer, compression: Compression
) -> None:
    exporter = OTLPMetricExporter(f"{agentops_server.url}/v1/metrics", compression=compression)
    provider = MeterProvider(
        [PeriodicExportingMetricReader(exporter)], resource=Resource({"service.name": "agent"})
    )
    meter = provider.get_meter("steps")
    meter.create_counter("tokens", unit="1").add(3, {"model": "m"})
    meter.create_histogram("seconds").record(0.25)
    provider.shutdown()
    found = {metric["name"]: metric for metric in agentops_server.recorded("metrics")}
    assert found["tokens"]["points"][0]["value"] == 3
    assert found["tokens"]["points"][0]["attributes"] == {"model": "m"}
    (histogram,) = found["seconds"]["points"]
    assert (found["seconds"]["kind"], histogram["count"], histogram["sum"]) == ("histogram", 1, 0.25)
    assert agentops_server.recorded("errors") == []


def wrong(signal: str) -> Iterator[tuple[bytes, dict[str, str]]]:
    protobuf, value, _ = FORMS[signal]
    yield b"\x01\xff", PROTOBUF
    yield protobuf[:-3], PROTOBUF
    yield gzip.compress(protobuf)[:-6], {**PROTOBUF, "Content-Encoding": "gzip"}
    yield protobuf, {**PROTOBUF, "Content-Encoding": "zstd"}
    yield protobuf, {**PROTOBUF, "Content-Encoding": "gzip"}
    for text in ("", "{", "[]", "null", "[" * 100_000, f'{{"resource{signal.title()}": [3]}}'):
        yield text.encode(), JSON
    for old, new in ('"10000000000"', "1.5"), ('"10000000000"', '"soon"'), ('"steps"', "3"):
        yield json.dumps(value).replace(old, new, 1).encode(), JSON


@pytest.mark.parametrize("signal", SIGNALS)
def test_what_is_none_is_refused_and_kept_as_it_came(signal: str) -> None:
    for body, headers in wrong(signal):
        status, kept, errors = post(signal, body, headers)
        assert (status, len(errors)) == (400, 1), body[:200]
        assert [base64.b64decode(each["body_base64"]) for each in kept] == [body[: 16 * 1024]]
        assert kept[0]["size"] == len(body)


def test_a_request_of_another_signal_adds_nothing() -> None:
    for signal in SIGNALS:
        assert post(signal, json.dumps({"resourceSpans": [{}]}).encode(), JSON) == (200, [], [])
        assert post(signal, otlp("a"), PROTOBUF)[0] in {200, 400}


keys = [
    *(
        "resourceMetrics",
        "scopeMetrics",
        "metrics",
        "name",
        "sum",
        "gauge",
        "histogram",
        "dataPoints",
        "asInt",
    ),
    *("resourceLogs", "scopeLogs", "logRecords", "traceId", "body", "stringValue", "arrayValue", "values"),
    *("attributes", "key", "value", "intValue", "timeUnixNano", "aggregationTemporality", "isMonotonic"),
]


@given(
    signal=st.sampled_from(SIGNALS),
    form=st.sampled_from([PROTOBUF, JSON, {**PROTOBUF, "Content-Encoding": "gzip"}]),
    body=st.binary(max_size=60)
    | st.recursive(
        st.none() | st.floats() | st.integers() | st.booleans() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(keys), inner | st.lists(inner, max_size=2), max_size=4),
        max_leaves=12,
    ).map(lambda value: json.dumps(value).encode())
    | st.tuples(
        st.sampled_from([form[0] for form in FORMS.values()]), st.integers(0, 80), st.binary(max_size=3)
    ).map(lambda parts: parts[0][: parts[1]] + parts[2] + parts[0][parts[1] + len(parts[2]) :]),
)
def test_no_body_gives_a_500_or_breaks_the_page(signal: str, form: dict[str, str], body: bytes) -> None:
    with create_app().test_client() as client:
        for sent in (body, gzip.compress(body)):
            assert client.post(f"/v1/{signal}", data=sent, headers=form).status_code in {200, 400}
        assert client.get("/").status_code == 200
        json.loads(client.get("/_recorded").get_data())
