"""Garbage gets an answer that is no 500, ends no server, and pushes out no recorded span."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from server_sample import JSON, PROTOBUF, ask, otlp, send, send_bytes

from agentlightning.integrations.agentops.server import AgentOpsServerManager, Faults, Recorder, create_app

ROUTES = (
    "/v1/traces",
    "/v1/metrics",
    "/v1/logs",
    "/v2/create_session",
    "/v2/update_session",
    "/v2/reauthorize_jwt",
    "/v2/create_events",
    "/v2/create_agent",
    "/v2/developer_errors",
    "/v2/ttd/x",
    "/v2/get_ttd",
    "/v3/auth/token",
    "/v4/logs/upload/",
    "/v4/objects/upload/",
    "/_recorded",
    "/_fail",
    "/health",
    "/",
    "/anything",
)
METHODS = ("GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD")

VALID = otlp("a", "b")
CORPUS: dict[str, bytes] = {
    "nothing": b"",
    "nul": b"\x00" * 100,
    "text": b"hello",
    "html": b"<html>",
    "half json": b'{"resourceSpans": [',
    "null": b"null",
    "number": b"1e999",
    "NaN": b"NaN",
    "deep": b"[" * 50_000,
    "deep objects": b'{"a":' * 50_000,
    "long number": b"9" * 100_000,
    "surrogate": b'{"session": {"session_id": "\\ud800"}, "events": ["\\udfff"], "body": "\\ud800"}',
    "wrong kinds": b'{"session": [], "events": {"a": 1}, "session_id": {"a": []}, "body": 1}',
    "not UTF-8": b'{"session": "\xff\xfe"}',
    "half protobuf": VALID[: len(VALID) // 2],
    "bit flipped": VALID[:20] + bytes([VALID[20] ^ 0xFF]) + VALID[21:],
    "half gzip": gzip.compress(VALID)[:-6],
    "bomb": gzip.compress(b"\x00" * 80_000_000),
    "wrong spans": b'{"resourceSpans": [{"scopeSpans": [{"spans": [{"name": 1}]}]}]}',
    "no ids": b'{"resourceSpans": [{"scopeSpans": [{"spans": [{"name": "x"}]}]}]}',
    "odd session": b'{"session": {"session_id": 5, "tags": {"a": NaN}, "end_state": 1e999}}',
}
RAW: dict[str, bytes] = {
    "no http": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 50,
    "old http": b"GET /\r\n",
    "wrong version": b"GET / HTTP/9.9\r\n\r\n",
    "unknown method": b"BREW /pot HTTP/1.1\r\nHost: x\r\n\r\n",
    "do_GET": b"do_GET / HTTP/1.1\r\n\r\n",
    "long line": b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
    "many headers": b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 500 + b"\r\n",
    "length that is none": b"POST /v1/traces HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
    "two lengths": b"POST /v1/traces HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    "length and chunks": b"POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "unknown coding": b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n",
    "large": b"POST /v1/traces HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n",
    "short body": b"POST /v1/traces HTTP/1.1\r\nContent-Length: 5000\r\n\r\n" + VALID,
    "odd chunk": b"POST /v1/traces HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    "huge chunk": b"POST /v1/traces HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nffffffff\r\n",
    "cut chunk": b"POST /v1/traces HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n10\r\nabc",
    "endless trailers": b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + b"X: y\r\n" * 300,
    "odd target": b"GET http://[::1/v1 HTTP/1.1\r\n\r\n",
    "odd path": b"GET /%zz%00%ff\xff HTTP/1.1\r\n\r\n",
    "odd header": b"GET / HTTP/1.1\r\nHost: \xff\xfe\r\nno colon\r\n: empty\r\n\r\n",
}


@pytest.fixture(scope="module")
def server() -> Iterator[AgentOpsServerManager]:
    with AgentOpsServerManager() as manager:
        yield manager


@pytest.fixture
def kept(server: AgentOpsServerManager) -> Iterator[AgentOpsServerManager]:
    """A server with one span, which must be there afterwards."""
    server.clear()
    assert send(server.url, "POST", "/v1/traces", otlp("kept"), PROTOBUF)[0] == 200
    yield server
    server.recover()
    assert server.is_alive()
    assert server.recorded("spans")[0]["name"] == "kept"


@pytest.mark.parametrize("name", CORPUS)
def test_no_body_gives_a_500(kept: AgentOpsServerManager, name: str) -> None:
    headers: Any = [
        JSON,
        PROTOBUF,
        {"Content-Type": "", "Content-Encoding": "gzip"},
        {**JSON, "Content-Encoding": "deflate", "Authorization": "Bearer local.!!!", "Trace-Id": "9" * 60},
        {**PROTOBUF, "Content-Encoding": "zstd", "Authorization": "Bearer local.gA=="},
    ]
    for path in ROUTES:
        for each in headers:
            status, _, answer = send(kept.url, "POST", path, CORPUS[name], each)
            assert status < 500, (path, each)
            if path.startswith(("/v2", "/v3", "/v4", "/_")):
                json.loads(answer)


@pytest.mark.parametrize("path", ["/v2/create_session", "/v1/logs"])
def test_what_is_kept_however_deep_is_shown(path: str) -> None:
    heads = {
        "/v2/create_session": '{"session":{"session_id":"s","deep":',
        "/v1/logs": '{"resourceLogs":[{"scopeLogs":[{"logRecords":[{"severityNumber":',
    }
    closing = {"{": "}", "[": "]"}
    # Somewhere between is what Python still reads and does not write, or reads here and not there.
    for depth in range(940, 1000):
        with create_app().test_client() as client:
            text = heads[path] + "[" * depth
            body = text + "".join(closing[each] for each in reversed(text) if each in closing)
            for sent in (body, heads[path] + "0" + body[len(text) + depth :]):
                assert client.post(path, data=sent, headers=JSON).status_code < 500
                assert client.get("/").status_code == 200


@pytest.mark.parametrize("name", RAW)
def test_what_is_no_proper_request_is_refused_and_nothing_of_it_is_kept(
    kept: AgentOpsServerManager, name: str
) -> None:
    answer = send_bytes(kept.url, RAW[name])
    status = answer.split(b" ", 2)[1:2] if answer.startswith(b"HTTP/") else []
    # 501 and 505 are the right words for a method and a version of HTTP that nobody knows.
    assert status in ([], [b"501"], [b"505"]) or status[0].startswith((b"2", b"4"))
    assert [span["name"] for span in kept.recorded("spans")] == ["kept"]


def test_garbage_on_the_way_of_the_spans_pushes_no_span_out(kept: AgentOpsServerManager) -> None:
    dice = random.Random(1)
    for _ in range(300):
        send(kept.url, "POST", "/v1/traces", dice.randbytes(dice.randrange(200)), PROTOBUF)
    assert ask(kept.url, "GET", "/_recorded?kind=spans")[1]["counts"]["spans"]["dropped"] == 0


keys = st.sampled_from(
    [
        *("session", "session_id", "events", "event_type", "prompt", "returns", "ttd_id", "api_key", "body"),
        *("resourceSpans", "resourceMetrics", "resourceLogs", "status", "n", "delay"),
    ]
)
json_bodies = st.recursive(
    st.none() | st.floats() | st.integers() | st.text(max_size=5) | st.sampled_from(["llms", "x"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(keys | st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
).map(lambda value: json.dumps(value).encode())
requests = st.fixed_dictionaries(
    {
        "method": st.sampled_from(METHODS),
        "path": st.sampled_from(ROUTES)
        | st.text(st.characters(codec="utf-8"), max_size=30).map(lambda text: f"/{text.replace('?', '')}"),
        "query_string": st.dictionaries(
            st.sampled_from(["kind", "after", "newest", "status", "n", "cut", "path", "content_type", "x"]),
            st.sampled_from(["spans", "0", "-1", "503", "1", "/v1", "text/html"]) | st.text(max_size=5),
            max_size=3,
        ),
        "headers": st.dictionaries(
            st.sampled_from(
                ["Content-Type", "Content-Encoding", "Authorization", "Trace-Id", "Host", "Origin", "X-Y"]
            ),
            st.sampled_from(
                ["application/json", "application/x-protobuf", "gzip", "deflate", "Bearer local.eA==", "12"]
            )
            | st.text(st.characters(codec="latin-1", exclude_categories=["Cc"]), max_size=10),
            max_size=4,
        ),
        "data": st.binary(max_size=80)
        | st.sampled_from([*CORPUS.values()]).filter(lambda body: len(body) < 1000)
        | json_bodies,
    }
)


@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(st.lists(requests, min_size=1, max_size=4))
def test_no_requests_give_a_500_or_lose_a_span(asked: list[dict[str, Any]]) -> None:
    recorder, faults = Recorder(), Faults()
    with create_app(recorder, faults).test_client() as client:
        client.post("/v1/traces", data=otlp("kept"), headers=PROTOBUF)
        was_emptied = False
        for request in asked:
            answer = client.open(**request)
            assert answer.status_code < 500, (request, answer.get_data())
            faults.clear()  # an order to fail, which the next request would obey
            was_emptied |= (request["method"], request["path"]) == ("DELETE", "/_recorded")
        spans = [json.loads(text)["name"] for text in recorder.read("spans")]
        assert was_emptied or spans[:1] == ["kept"]
        assert client.get("/").status_code == client.get("/v2/ttd/x").status_code == 200
        assert client.get("/_recorded").get_json()["spans"] is not None


def test_every_route_is_among_those_that_get_garbage() -> None:
    for rule in create_app().url_map.iter_rules():
        known = [route for route in ROUTES if route.rstrip("/") == rule.rule.rstrip("/")]
        assert known or rule.rule in {"/v2/ttd/<path:branch>", "/<path:unknown>"}, rule.rule
    assert {"/v2/ttd/x", "/anything"} < {*ROUTES}
