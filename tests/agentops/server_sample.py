"""What the tests of the local AgentOps server send: OTLP requests, and plain HTTP without any client's help."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

PROTOBUF = {"Content-Type": "application/x-protobuf"}
JSON = {"Content-Type": "application/json"}


def otlp(*names: str) -> bytes:
    """An export request with a span of each name."""
    request = ExportTraceServiceRequest()
    spans = request.resource_spans.add().scope_spans.add().spans
    for index, name in enumerate(names):
        span = spans.add(
            name=name,
            trace_id=b"\x01" * 16,
            span_id=(index + 1).to_bytes(8, "big"),
            start_time_unix_nano=10**18,
            end_time_unix_nano=10**18 + 250_000_000,
        )
        span.attributes.add(key="answer").value.int_value = 42
    return bytes(request.SerializeToString())


def send(
    url: str, method: str, target: str, body: bytes | None = None, headers: Mapping[str, str] = JSON
) -> tuple[int, dict[str, str], bytes]:
    """One request on a connection of its own: status, headers, body."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=120)
    try:
        connection.request(method, target, body, dict(headers))
        response = connection.getresponse()
        return response.status, dict(response.getheaders()), response.read()
    finally:
        connection.close()


def ask(url: str, method: str, target: str, value: Any = None) -> tuple[int, Any]:
    """Send JSON, get JSON."""
    body = None if value is None else json.dumps(value).encode()
    status, _, answer = send(url, method, target, body)
    return status, json.loads(answer)


def send_bytes(url: str, data: bytes, *, hang_up: bool = True) -> bytes:
    """Send bytes that may be no HTTP at all; return what comes until the server closes."""
    parts = urlsplit(url)
    received: list[bytes] = []
    with socket.create_connection((parts.hostname or "", parts.port or 0), timeout=120) as connection:
        try:
            connection.sendall(data)
            if hang_up:
                connection.shutdown(socket.SHUT_WR)
            while part := connection.recv(65536):
                received.append(part)
        except TimeoutError:
            raise
        except OSError:  # the server had enough before it had all; a reset socket is "not connected" too
            pass
    return b"".join(received)
