"""Each fault that ``/_fail`` orders is seen by a real client, hits as many requests as it was told, and no others."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import requests
from server_sample import PROTOBUF, ask, otlp, send

from agentlightning.errors import AgentOpsServerError
from agentlightning.integrations.agentops.server import AgentOpsServerManager
from agentlightning.testing import wait_until


@pytest.fixture(scope="module")
def running() -> Iterator[AgentOpsServerManager]:
    with AgentOpsServerManager() as manager:
        yield manager


@pytest.fixture
def server(running: AgentOpsServerManager) -> AgentOpsServerManager:
    running.recover()
    running.clear()
    return running


def export(server: AgentOpsServerManager, name: str = "call") -> int:
    return send(server.url, "POST", "/v1/traces", otlp(name), PROTOBUF)[0]


def test_a_status_hits_n_requests_by_query(server: AgentOpsServerManager) -> None:
    assert ask(server.url, "POST", "/_fail?status=503&n=2")[0] == 200
    assert [export(server, str(number)) for number in range(4)] == [503, 503, 200, 200]
    assert [span["name"] for span in server.recorded("spans")] == ["2", "3"]
    assert [request["fault"] for request in server.recorded("requests")] == [True, True, False, False]


def test_a_status_is_told_in_json_under_both_names(server: AgentOpsServerManager) -> None:
    server.fail(401)
    status, answer = ask(server.url, "POST", "/v3/auth/token", {"api_key": "x"})
    assert status == 401
    assert answer["error"] == answer["message"] == "this answer was ordered by /_fail"


def test_orders_are_used_up_one_after_the_other(server: AgentOpsServerManager) -> None:
    server.fail(500)
    server.fail(404, n=2)
    assert [export(server) for _ in range(4)] == [500, 404, 404, 200]


def test_a_path_spares_other_requests(server: AgentOpsServerManager) -> None:
    server.fail(500, path="/v3/")
    assert export(server) == 200
    assert ask(server.url, "POST", "/v3/auth/token", {})[0] == 500
    assert ask(server.url, "POST", "/v3/auth/token", {})[0] == 200


def test_health_and_the_control_routes_are_spared_unless_health_is_named(
    server: AgentOpsServerManager,
) -> None:
    server.fail(500, n=-1)
    for path in ("/health", "/", "/_recorded", "/_fail"):
        assert send(server.url, "GET", path)[0] == 200
    server.recover()
    server.fail(500, path="/health")
    assert send(server.url, "GET", "/health")[0] == 500


def test_without_end_until_it_is_taken_back(server: AgentOpsServerManager) -> None:
    server.fail(503, n=-1)
    assert {export(server) for _ in range(5)} == {503}
    assert ask(server.url, "GET", "/_fail")[1]["open"][0]["n"] == -1
    server.recover()
    assert ask(server.url, "GET", "/_fail")[1] == {"open": []}
    assert export(server) == 200


def test_a_delay_makes_a_client_give_up_and_the_request_counts_all_the_same(
    server: AgentOpsServerManager,
) -> None:
    server.fail(delay=600)
    with pytest.raises(requests.exceptions.ReadTimeout):
        requests.post(f"{server.url}/v1/traces", otlp("late"), headers=PROTOBUF, timeout=0.3)
    assert server.recorded("spans") == []
    server.recover()
    wait_until(lambda: server.recorded("spans"), what="the delayed request, which was let go")


def test_a_delay_is_waited_for_and_then_answered(server: AgentOpsServerManager) -> None:
    server.fail(delay=0.2)
    before = time.monotonic()
    assert export(server) == 200
    assert time.monotonic() - before >= 0.2


def test_others_are_answered_while_one_waits(server: AgentOpsServerManager) -> None:
    server.fail(status=500, delay=600, path="/v1/traces")
    answers = []
    waiting = threading.Thread(target=lambda: answers.append(export(server)))
    waiting.start()
    wait_until(lambda: not ask(server.url, "GET", "/_fail")[1]["open"], what="the fault to be taken")
    assert ask(server.url, "POST", "/v3/auth/token", {})[0] == 200
    assert answers == []
    server.recover()
    waiting.join()
    assert answers == [500]


@pytest.mark.parametrize("path", ["/v1/traces", "/v3/auth/token", "/v4/logs/upload/"])
def test_a_cut_connection_is_half_an_answer(server: AgentOpsServerManager, path: str) -> None:
    server.fail(cut=True, path=path)
    with pytest.raises(
        (requests.exceptions.ChunkedEncodingError, requests.exceptions.ConnectionError)
    ) as caught:
        requests.post(server.url + path, b"{}", timeout=120)
    assert "IncompleteRead" in str(caught.value)
    assert requests.post(server.url + path, b"", timeout=120).content is not None


def test_a_cut_answer_is_one_to_a_request_that_was_handled(server: AgentOpsServerManager) -> None:
    """As on a real network: who sends it again sends it twice."""
    server.fail(cut=True)
    with pytest.raises(http.client.IncompleteRead) as caught:
        export(server)
    assert caught.value.partial
    assert [span["name"] for span in server.recorded("spans")] == ["call"]


def test_a_wrong_content_type_is_on_the_right_body(server: AgentOpsServerManager) -> None:
    server.fail(content_type="text/html; charset=utf-8")
    status, headers, body = send(server.url, "POST", "/v3/auth/token", b"{}")
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert b'"token"' in body


def test_one_order_may_ask_for_several_things(server: AgentOpsServerManager) -> None:
    server.fail(502, delay=0.01, cut=True, content_type="text/plain")
    connection = http.client.HTTPConnection("127.0.0.1", server.get_port(), timeout=120)
    connection.request("POST", "/v2/create_session", b"{}")
    response = connection.getresponse()
    assert (response.status, response.getheader("Content-Type")) == (502, "text/plain")
    with pytest.raises(http.client.IncompleteRead):
        response.read()
    connection.close()


@pytest.mark.parametrize(
    ("order", "complaint"),
    [
        ({}, "nothing to do"),
        ({"n": 3}, "nothing to do"),
        ({"status": 199}, "status is a whole number from 200 to 599"),
        ({"status": "teapot"}, "status is a whole number"),
        ({"status": 500, "n": 0}, "n is a whole number from 1"),
        ({"status": 500, "n": 1.5}, "n is a whole number from 1"),
        ({"delay": -1}, "delay is a number of seconds"),
        ({"delay": "nan"}, "delay is a number of seconds"),
        ({"delay": []}, "nothing to do"),
        ({"delay": [1]}, "delay is a number of seconds"),
        ({"cut": "maybe"}, "cut is 1 or 0"),
        ({"content_type": "a\r\nSet-Cookie: b"}, "content_type is the printable text"),
        ({"content_type": 3}, "content_type is the printable text"),
        ({"state": 500}, "unknown: state; there are status, delay, n, cut"),
    ],
)
def test_an_order_that_makes_no_sense_is_refused_by_name(
    server: AgentOpsServerManager, order: dict[str, Any], complaint: str
) -> None:
    status, answer = ask(server.url, "POST", "/_fail", order)
    assert status == 400
    assert complaint in answer["error"]
    assert export(server) == 200


def test_a_body_that_is_no_json_object_is_refused(server: AgentOpsServerManager) -> None:
    for body in (b"[]", b"status=500", b"\xff"):
        assert send(server.url, "POST", "/_fail", body)[0] == 400


def test_the_manager_says_what_is_wrong_with_an_order(server: AgentOpsServerManager) -> None:
    with pytest.raises(AgentOpsServerError, match="status is a whole number"):
        server.fail(7)
