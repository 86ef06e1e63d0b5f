"""Each route answers as the clients of agentops need it, and keeps what came."""

from __future__ import annotations

import gzip
import http.client
import json
import socket
import subprocess
import sys
import textwrap
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from server_sample import JSON, PROTOBUF, ask, otlp, send

from agentlightning.integrations.agentops.server import AgentOpsServerManager, Recorder, create_app
from agentlightning.integrations.agentops.server.recorder import LIMITS, MIB
from agentlightning.types import Span

SESSION = "11111111-2222-4333-8444-555555555555"
CONTROL = {"/", "/_recorded", "/_fail"}


@pytest.fixture(scope="module")
def running() -> Iterator[AgentOpsServerManager]:
    with AgentOpsServerManager() as manager:
        yield manager


@pytest.fixture
def server(running: AgentOpsServerManager) -> AgentOpsServerManager:
    running.recover()
    running.clear()
    return running


# ---------------------------------------------------------------------- 0.4


def test_auth_gives_token_project_and_plan(server: AgentOpsServerManager) -> None:
    status, answer = ask(server.url, "POST", "/v3/auth/token", {"api_key": "x"})
    assert status == 200
    assert answer == {"token": "dummy", "project_id": "dummy", "project_prem_status": "pro"}
    assert ask(server.url, "GET", "/v3/auth/token")[0] == 200


def test_auth_without_a_json_object_is_refused_in_json(server: AgentOpsServerManager) -> None:
    for body in (b"", b"[]", b"not json", b"[" * 100_000, b"9" * 10_000):
        status, headers, answer = send(server.url, "POST", "/v3/auth/token", body)
        assert (status, headers["Content-Type"]) == (400, "application/json")
        found = json.loads(answer)
        assert found["error"] == found["message"] != ""


@pytest.mark.parametrize("encoding", ["", "gzip", "deflate"])
@pytest.mark.parametrize("token", [None, "Bearer None", "Bearer dummy"])
def test_spans_arrive_decoded_whatever_the_token_and_the_compression(
    server: AgentOpsServerManager, encoding: str, token: str
) -> None:
    plain = otlp("first", "second")
    body = {"": plain, "gzip": gzip.compress(plain), "deflate": zlib.compress(plain)}[encoding]
    headers = {**PROTOBUF, "Content-Encoding": encoding, **({"Authorization": token} if token else {})}
    status, answered, answer = send(server.url, "POST", "/v1/traces", body, headers)
    assert (status, answered["Content-Type"], answer) == (200, "application/x-protobuf", b"")
    spans = server.spans()
    assert [type(span) for span in spans] == [Span, Span]
    assert [(span.name, span.attributes) for span in spans] == [
        ("first", {"answer": 42}),
        ("second", {"answer": 42}),
    ]
    assert spans[0].end_time == 1e9 + 0.25
    (request,) = server.recorded("requests")
    assert request["headers"].get("Authorization") == token


def test_spans_as_json_arrive_too(server: AgentOpsServerManager) -> None:
    span = {
        "traceId": "1" * 32,
        "spanId": "2" * 16,
        "name": "é",
        "attributes": [{"key": "x", "value": {"doubleValue": "NaN"}}],
    }
    body = {"resourceSpans": [{"scopeSpans": [{"spans": [span, {**span, "spanId": "zz"}]}]}]}
    status, answer = ask(server.url, "POST", "/v1/traces", body)
    assert (status, answer) == (200, {})
    (recorded,) = server.recorded("spans")
    assert (recorded["name"], recorded["attributes"]) == ("é", {"x": {"$float": "nan"}})
    (read,) = server.spans()
    assert read.attributes["x"] != read.attributes["x"]
    (error,) = server.recorded("errors")
    assert "span id" in error["reason"]


@pytest.mark.parametrize("path", ["/v4/logs/upload/", "/v4/logs/upload"])
@pytest.mark.parametrize("value", ["printed", {"body": "printed"}])
def test_uploaded_logs_are_read_in_both_forms(server: AgentOpsServerManager, path: str, value: Any) -> None:
    body = json.dumps(value).encode()
    status, _, answer = send(server.url, "POST", path, body, {**JSON, "Trace-Id": str(0xABC)})
    found = json.loads(answer)
    assert (status, found["size"]) == (200, len(body))
    assert found["url"].startswith(server.url)
    (kept,) = server.recorded("logs")
    assert (kept["text"], kept["trace_id"]) == ("printed", f"{0xABC:032x}")


def test_uploaded_objects_are_kept(server: AgentOpsServerManager) -> None:
    assert ask(server.url, "POST", "/v4/objects/upload/", {"body": "speech"})[0] == 200
    assert [each["text"] for each in server.recorded("objects")] == ["speech"]


# ---------------------------------------------------------------------- 0.2 and 0.3


def test_a_legacy_session_from_start_to_end(server: AgentOpsServerManager) -> None:
    first = {"session": {"session_id": SESSION, "tags": ["a"], "end_state": None, "jwt": None, "lock": ""}}
    status, answer = ask(server.url, "POST", "/v2/create_session", first)
    assert status == 200
    assert answer["status"] == "Success"
    jwt = {**JSON, "Authorization": f"Bearer {answer['jwt']}"}
    events = {"events": [{"event_type": "llms", "model": "m"}, {"event_type": "tools", "name": "add"}, 3]}
    assert send(server.url, "POST", "/v2/create_events", json.dumps(events).encode(), jwt)[0] == 200
    assert send(server.url, "POST", "/v2/create_agent", b'{"id": "a1", "name": "worker"}', jwt)[0] == 200
    last = {"session": {"session_id": SESSION, "end_state": "Success"}}
    status, answer = ask(server.url, "POST", "/v2/update_session", last)
    assert (status, answer["token_cost"]) == (200, "0.00")
    found = server.recorded()
    (session,) = found["sessions"]
    assert (session["end_state"], session["tags"]) == ("Success", ["a"])
    assert [event.get("event_type") for event in found["events"]] == ["llms", "tools", None]
    assert {event["session_id"] for event in [*found["events"], *found["agents"]]} == {SESSION}


def test_an_inherited_session_gets_a_token_of_its_own(server: AgentOpsServerManager) -> None:
    status, answer = ask(server.url, "POST", "/v2/reauthorize_jwt", {"session_id": SESSION})
    assert status == 200
    headers = {**JSON, "Authorization": f"Bearer {answer['jwt']}"}
    send(server.url, "POST", "/v2/create_events", b'{"events": [{}]}', headers)
    assert server.recorded("events")[0]["session_id"] == SESSION


def test_time_travel_answers_a_list(server: AgentOpsServerManager) -> None:
    assert ask(server.url, "GET", f"/v2/ttd/{SESSION}") == (200, [])
    assert ask(server.url, "POST", "/v2/get_ttd", {"ttd_id": SESSION}) == (200, [])


def test_errors_that_clients_report_are_kept(server: AgentOpsServerManager) -> None:
    assert ask(server.url, "POST", "/v2/developer_errors", {"type": "KeyError"})[0] == 200
    assert server.recorded("errors")[0]["type"] == "KeyError"


@pytest.mark.parametrize("path", ["create_session", "update_session", "create_events"])
def test_a_legacy_request_of_another_shape_is_refused_in_json(
    server: AgentOpsServerManager, path: str
) -> None:
    for body in (b"", b"{}", b'{"session": 3, "events": {}}', b"\xff"):
        status, headers, answer = send(server.url, "POST", f"/v2/{path}", body)
        assert (status, headers["Content-Type"]) == (400, "application/json")
        assert json.loads(answer)["message"].startswith("the body is a JSON object with")


# ---------------------------------------------------------------------- the rest


@pytest.mark.parametrize("path", ["/v9/later", "/public/v1/traces/1", "/%00%ff", "//v3/unknown"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_an_unknown_path_is_answered_and_kept(server: AgentOpsServerManager, method: str, path: str) -> None:
    body = b"x" if method == "POST" else None
    assert ask_bytes(server, method, path, body) == (200, {"status": "success"})
    (kept,) = server.recorded("requests")
    assert (kept["method"], kept["status"], kept["body"]) == (method, 200, "x" if body else "")


def ask_bytes(server: AgentOpsServerManager, method: str, path: str, body: bytes | None) -> tuple[int, Any]:
    status, _, answer = send(server.url, method, path, body)
    return status, json.loads(answer)


def test_a_base_url_with_a_slash_at_its_end_works(server: AgentOpsServerManager) -> None:
    assert ask(server.url, "POST", "//v3/auth/token", {})[0] == 200


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE"])
def test_other_methods_are_refused_in_json(server: AgentOpsServerManager, method: str) -> None:
    status, answer = ask(server.url, method, "/v2/sessions", {})
    assert status == 405
    assert answer["error"] == answer["message"]


def test_health_and_the_routes_of_this_server_are_not_recorded(server: AgentOpsServerManager) -> None:
    for path in ("/health", *CONTROL):
        send(server.url, "GET", path)
    assert server.recorded("requests") == []


def test_recorded_gives_kinds_what_is_new_and_counts(server: AgentOpsServerManager) -> None:
    send(server.url, "POST", "/v1/traces", otlp("a", "b", "c"), PROTOBUF)
    last = ask(server.url, "GET", "/_recorded?kind=spans")[1]
    assert set(last) == {"last", "spans", "counts"}
    assert last["counts"]["spans"]["received"] == last["counts"]["spans"]["kept"] == 3
    send(server.url, "POST", "/v1/traces", otlp("d"), PROTOBUF)
    assert [span["name"] for span in server.recorded("spans", after=last["last"])] == ["d"]
    newest = ask(server.url, "GET", "/_recorded?kind=spans&kind=logs&newest=2")[1]
    assert [span["name"] for span in newest["spans"]] == ["c", "d"]
    assert newest["logs"] == []
    for query in ("kind=all", "after=-1", "newest=x", "newest=1e9"):
        assert ask(server.url, "GET", f"/_recorded?{query}")[0] == 400


def test_clear_forgets_counts_too(server: AgentOpsServerManager) -> None:
    send(server.url, "POST", "/v1/traces", otlp("a"), PROTOBUF)
    server.clear()
    found = server.recorded()
    assert all(
        count == {"received": 0, "kept": 0, "dropped": 0, "bytes": 0} for count in found["counts"].values()
    )


def test_the_page_is_one_piece_escaped_and_shows_no_key(server: AgentOpsServerManager) -> None:
    send(server.url, "POST", "/v1/traces", otlp("<script>alert(1)</script>"), PROTOBUF)
    send(server.url, "POST", "/v1/traces", b"{", {**JSON, "X-Agentops-Api-Key": "secret-key"})
    ask(server.url, "POST", "/v2/create_session", {"session": {"session_id": "<b>s"}})
    ask(server.url, "POST", "/v4/logs/upload/", "a \ud800 <i>line")
    ask(server.url, "POST", "/v3/auth/token", {"api_key": "secret-key"})
    status, headers, body = send(server.url, "GET", "/")
    page = body.decode()
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert "&lt;script&gt;alert(1)" in page
    assert "<script>alert" not in page
    assert "<b>s" not in page
    assert "<i>line" not in page
    assert "secret-key" not in page
    assert "http://" not in page
    assert "https://" not in page
    assert "default-src 'none'" in headers["Content-Security-Policy"]


@pytest.mark.parametrize("path", sorted(CONTROL))
def test_pages_of_other_sites_cannot_reach_the_record(server: AgentOpsServerManager, path: str) -> None:
    port = urlsplit(server.url).port
    for headers in (
        {"Host": f"evil.example:{port}"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Host": "["},
    ):
        assert send(server.url, "GET", path, None, headers)[0] == 403
    assert send(server.url, "GET", path, None, {"Host": f"localhost:{port}"})[0] == 200
    assert send(server.url, "GET", path, None, {"Origin": server.url})[0] == 200


def test_a_connection_is_kept_open_over_many_requests(server: AgentOpsServerManager) -> None:
    parts = urlsplit(server.url)
    connection = http.client.HTTPConnection("127.0.0.1", parts.port, timeout=120)
    connection.connect()
    before = connection.sock
    for path, body in (
        ("/v1/traces", otlp("a")),
        ("/v3/auth/token", b"{}"),
        ("/v2/create_session", b"bad"),
        ("/", b""),
    ):
        connection.request("POST" if body else "GET", path, body, PROTOBUF)
        connection.getresponse().read()
        assert connection.sock is before
    connection.request(
        "POST", "/v3/auth/token", iter([b"{", b"}"]), {"Transfer-Encoding": "chunked"}, encode_chunked=True
    )
    assert connection.getresponse().read()
    connection.request("HEAD", "/health")
    answer = connection.getresponse()
    assert (answer.status, answer.read()) == (200, b"")
    assert connection.sock is before
    connection.close()


def test_a_client_that_waits_before_it_sends_its_body_is_told_to_go_on(server: AgentOpsServerManager) -> None:
    with socket.create_connection(("127.0.0.1", server.get_port() or 0), timeout=120) as connection:
        head = "POST /v3/auth/token HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n"
        connection.sendall(head.encode())
        assert connection.recv(1000).startswith(b"HTTP/1.1 100 ")
        connection.sendall(b"{}")
        assert connection.recv(1000).startswith(b"HTTP/1.1 200 ")


def test_without_the_protobuf_package_clients_are_answered_and_the_cure_is_told() -> None:
    code = """
        import sys
        sys.modules["opentelemetry.proto"] = None
        from agentlightning.integrations.agentops.server import create_app
        client = create_app().test_client()
        print(client.post("/v1/traces", data=b"", headers={"Content-Type": "application/x-protobuf"}).status_code)
        print(client.post("/v1/traces", json={"resourceSpans": []}).status_code)
        print(client.get("/_recorded?kind=errors").get_json()["errors"][0]["reason"])
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    first, second, reason = done.stdout.splitlines()
    assert (first, second) == ("200", "200")
    assert reason.startswith("opentelemetry-proto is not installed; run: pip install")


def test_the_application_works_under_any_wsgi_server() -> None:
    recorder = Recorder()
    with create_app(recorder).test_client() as client:
        assert client.post("/v1/traces", data=otlp("a"), headers=PROTOBUF).status_code == 200
        assert client.get("/_recorded?kind=spans").json["spans"][0]["name"] == "a"  # type: ignore[index]
    assert recorder.counts()["spans"]["kept"] == 1


def test_the_reference_names_every_route_and_every_limit() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "reference" / "agentops-server.md").read_text(
        "utf-8"
    )
    for rule in create_app().url_map.iter_rules():
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}:
            assert f"{method} {rule.rule}`" in page or f"`{rule.rule}`" in page
    for kind, limit in LIMITS.items():
        assert f"| `{kind}` | {limit.most:,} | {limit.size // MIB} |" in page
