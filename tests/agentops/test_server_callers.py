"""Programs of this machine may call the server; a page of another site may not, by no route."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest
from server_sample import JSON, send, send_bytes

from agentlightning.integrations.agentops.server import AgentOpsServerManager, create_app
from agentlightning.integrations.agentops.server.wsgi import WsgiServer
from agentlightning.testing import wait_until

POSTED = (
    "/v1/traces",
    "/v1/metrics",
    "/v1/logs",
    "/v2/create_session",
    "/v2/update_session",
    "/v2/reauthorize_jwt",
    "/v2/create_events",
    "/v2/create_agent",
    "/v2/developer_errors",
    "/v2/get_ttd",
    "/v3/auth/token",
    "/v4/logs/upload/",
    "/v4/objects/upload/",
    "/_fail",
    "/anything",
)
READ = ("/", "/health", "/_recorded", "/_fail", "/v2/ttd/x", "/v3/auth/token", "/anything")
EVENTS = json.dumps({"session_id": "s", "events": [{"event_type": "llms", "returns": "evil"}]}).encode()


@pytest.fixture(scope="module")
def running() -> Iterator[AgentOpsServerManager]:
    with AgentOpsServerManager() as manager:
        yield manager


@pytest.fixture
def server(running: AgentOpsServerManager) -> AgentOpsServerManager:
    running.recover()
    running.clear()
    return running


def _foreign(url: str) -> list[dict[str, str]]:
    port = urlsplit(url).port
    return [
        {"Host": f"evil.example:{port}"},
        {"Host": "["},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": f"https://127.0.0.1:{port}"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
    ]


@pytest.mark.parametrize("path", POSTED)
def test_a_page_of_another_site_posts_nothing(server: AgentOpsServerManager, path: str) -> None:
    for headers in _foreign(server.url):
        for kind in ("application/json", "text/plain"):
            status, _, body = send(server.url, "POST", path, EVENTS, {**headers, "Content-Type": kind})
            assert status == 403
            assert json.loads(body)["error"]
    recorded = json.loads(send(server.url, "GET", "/_recorded")[2])
    assert [kind for kind in recorded["counts"] if recorded["counts"][kind]["received"]] == ["errors"]


@pytest.mark.parametrize("path", READ)
def test_a_page_of_another_site_reads_nothing(server: AgentOpsServerManager, path: str) -> None:
    for headers in _foreign(server.url):
        assert send(server.url, "GET", path, None, headers)[0] == 403
        assert send(server.url, "DELETE", path, None, headers)[0] == 403


def test_a_person_may_follow_a_link_and_the_page_may_ask_its_own_server(
    server: AgentOpsServerManager,
) -> None:
    visit = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert send(server.url, "GET", "/", None, visit)[0] == 200
    assert send(server.url, "GET", "/_recorded", None, visit)[0] == 403
    own = {"Sec-Fetch-Site": "same-origin", "Origin": server.url}
    assert send(server.url, "GET", "/_recorded", None, own)[0] == 200


def test_text_is_refused_where_json_is_due(server: AgentOpsServerManager) -> None:
    for path in ("/v2/create_session", "/v2/create_events", "/v2/get_ttd", "/v3/auth/token"):
        for kind in ("text/plain", "text/plain;charset=UTF-8", "application/x-www-form-urlencoded"):
            assert send(server.url, "POST", path, EVENTS, {"Content-Type": kind})[0] == 415
    assert send(server.url, "GET", "/v2/ttd/s")[2].strip() == b"[]"
    for kind in ("application/json", "application/json; charset=UTF-8"):
        assert send(server.url, "POST", "/v2/create_events", EVENTS, {"Content-Type": kind})[0] == 200


def test_no_answer_may_be_taken_for_something_else(server: AgentOpsServerManager) -> None:
    for path in READ:
        assert send(server.url, "GET", path)[1]["X-Content-Type-Options"] == "nosniff"
    refused = b"POST /v1/traces HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n"
    assert b"nosniff" in send_bytes(server.url, refused)


def test_where_others_may_call_a_page_of_another_site_still_may_not() -> None:
    client: Any = create_app(local_only=False).test_client()
    assert client.get("/health", headers={"Host": "tracing.example:4318"}).status_code == 200
    foreign = {"Host": "tracing.example:4318", "Origin": "http://evil.example"}
    assert client.post("/v2/create_events", data=EVENTS, headers={**JSON, **foreign}).status_code == 403


@contextmanager
def _small(body_seconds: float = 600.0, max_connections: int = 100) -> Iterator[WsgiServer]:
    listener = socket.create_server(("127.0.0.1", 0))
    server = WsgiServer(
        listener,
        create_app(),
        max_bodies=100_000,
        body_seconds=body_seconds,
        max_connections=max_connections,
    )
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def _half_sent(server: WsgiServer) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", server.server_address[1]), timeout=120) as connection:
        connection.sendall(b"POST /v1/traces HTTP/1.1\r\nHost: localhost\r\nContent-Length: 90000\r\n\r\n")
        connection.sendall(b"x" * 80_000)
        yield connection


def _url(server: WsgiServer) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}"


def _post(server: WsgiServer, size: int) -> int:
    return send(_url(server), "POST", "/v4/logs/upload/", b"x" * size, {"Content-Type": "application/json"})[
        0
    ]


def test_bodies_are_bounded_in_sum() -> None:
    with _small() as server:
        with _half_sent(server):
            wait_until(lambda: _post(server, 50_000) == 503)
            assert _post(server, 1_000) == 200
        wait_until(lambda: _post(server, 90_000) == 200)  # a client that went away gives its room back


def test_a_body_that_does_not_come_is_given_up() -> None:
    with _small(0.2) as server, _half_sent(server) as connection:
        assert connection.recv(1000).startswith(b"HTTP/1.1 408 ")
    with _small() as server:
        assert _post(server, 90_000) == 200


def test_connections_are_bounded_in_number_and_said(caplog: pytest.LogCaptureFixture) -> None:
    with _small(max_connections=3) as server, ExitStack() as idle:
        for _ in range(3):
            idle.enter_context(socket.create_connection(("127.0.0.1", server.server_address[1]), timeout=120))
        for _ in range(5):
            wait_until(lambda: b" 503 " in send_bytes(_url(server), b"", hang_up=False))
        assert threading.active_count() < 20
        idle.close()

        def is_answered() -> bool:
            try:
                return _post(server, 10) == 200
            except OSError:  # it was answered 503 and closed before all was sent
                return False

        wait_until(is_answered)  # whoever goes gives its place back
    assert [record.getMessage() for record in caplog.records].count(
        "too many connections are open at one moment; more are answered 503 and closed"
    ) == 1
