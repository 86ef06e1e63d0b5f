"""Our baggage does not reach hosts that are not ours, whatever OpenTelemetry injects."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from typing import Any

import openai
import pytest
import requests
from opentelemetry import baggage, context

from agentlightning.instrumentation.guard import Guard, LogOnce, reraise
from agentlightning.instrumentation.own_hosts import is_loopback
from agentlightning.instrumentation.wire import instrument_model_calls
from agentlightning.testing.fake_openai import FakeOpenAI
from agentlightning.testing.recorded_calls import RecordedCalls

OURS = {"agentlightning.rollout_id": "ro-1", "agentlightning.attempt_id": "at-1"}
THEIRS = {"tenant": "a"}


@pytest.fixture
def _in_rollout() -> Iterator[None]:
    current = context.get_current()
    for key, value in {**OURS, **THEIRS}.items():
        current = baggage.set_baggage(key, value, current)
    token = context.attach(current)
    yield
    context.detach(token)


class SeenBaggage:
    """What an instrumentation inside the client would inject."""

    def __init__(self) -> None:
        self.seen: list[dict[str, object]] = []

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        self.seen.append(dict(baggage.get_all()))

    async def acall(self, *args: Any) -> None:
        self()


def instrument(own: bool) -> Any:
    return instrument_model_calls(RecordedCalls(), is_own_host=lambda _: own, guard=Guard(reraise))


@pytest.mark.usefixtures("_in_rollout")
@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("path", ["chat/completions", "models"])
def test_a_request_of_httpx_carries_our_baggage_to_our_hosts_only(own: bool, path: str) -> None:
    from openai import _base_client

    library = getattr(_base_client, "httpx2", None) or vars(_base_client)["httpx"]
    seen = SeenBaggage()

    def handler(request: Any) -> Any:
        seen(request)
        return library.Response(200, json={})

    async def in_loop() -> None:
        async with library.AsyncClient(transport=library.MockTransport(handler)) as client:
            await client.post(f"http://host/v1/{path}", json={"model": "m"})
        seen()

    before = context.get_current()
    patch = instrument(own)
    try:
        with library.Client(transport=library.MockTransport(handler)) as client:
            client.post(f"http://host/v1/{path}", json={"model": "m"})
        asyncio.run(in_loop())
    finally:
        patch.undo()
    inside = {**OURS, **THEIRS} if own else THEIRS
    assert seen.seen == [inside, inside, {**OURS, **THEIRS}]
    assert context.get_current() == before


@pytest.mark.usefixtures("_in_rollout")
@pytest.mark.parametrize("host", ["127.0.0.1:9", "mcp.example"])
@pytest.mark.parametrize("others", [{}, THEIRS])
def test_a_message_of_the_model_context_protocol_carries_our_baggage_to_our_hosts_only(
    host: str, others: dict[str, str]
) -> None:
    streamable_http = pytest.importorskip("mcp.client.streamable_http")
    mcp, httpx2 = pytest.importorskip("mcp"), pytest.importorskip("httpx2")
    seen: list[dict[str, Any]] = []

    def server(request: Any) -> Any:
        message = json.loads(request.content or b"{}")
        if "id" not in message:
            return httpx2.Response(202)
        seen.append(message["params"])
        result = {
            "protocolVersion": "2025-06-18",
            "capabilities": {},
            "serverInfo": {"name": "calculator", "version": "1"},
            "content": [{"type": "text", "text": "4"}],
            "tools": [],
        }
        return httpx2.Response(200, json={"jsonrpc": "2.0", "id": message["id"], "result": result})

    async def agent() -> str:
        current = context.get_current()
        for key in THEIRS.keys() - others.keys():
            current = baggage.remove_baggage(key, current)
        context.attach(current)
        async with (
            httpx2.AsyncClient(transport=httpx2.MockTransport(server)) as client,
            streamable_http.streamable_http_client(f"http://{host}/mcp", http_client=client) as streams,
            mcp.ClientSession(*streams[:2]) as session,
        ):
            await session.initialize()
            answer = await session.call_tool("add", {"a": 2, "b": 2})
            return str(answer.content[0].text)

    patch = instrument_model_calls(RecordedCalls(), guard=Guard(reraise))
    try:
        assert asyncio.run(agent()) == "4"
    finally:
        patch.undo()
    carried = [params["_meta"].get("baggage", "") for params in seen]
    entries = [dict(entry.split("=") for entry in each.split(",") if entry) for each in carried]
    assert len(entries) >= 2
    assert entries == [{**OURS, **others} if host != "mcp.example" else others] * len(entries)
    assert any(params.get("arguments") == {"a": 2, "b": 2} for params in seen)


@pytest.mark.usefixtures("_in_rollout")
@pytest.mark.parametrize("own", [True, False])
def test_a_request_of_requests_carries_our_baggage_to_our_hosts_only(own: bool) -> None:
    seen = SeenBaggage()
    original = vars(requests.Session)["request"], vars(requests.Session)["send"]

    class Adapter(requests.adapters.HTTPAdapter):
        def send(self, request: Any, *args: Any, **kwargs: Any) -> Any:
            seen()
            return super().send(request, *args, **kwargs)

    patch = instrument(own)
    try:
        with FakeOpenAI() as server, requests.Session() as session:
            session.mount("http://", Adapter())
            assert session.get(f"{server.base_url}/models").status_code == 200
            prepared = session.prepare_request(requests.Request("GET", f"{server.base_url}/models"))
            assert session.send(prepared).status_code == 200
    finally:
        patch.undo()
    assert seen.seen == [{**OURS, **THEIRS} if own else THEIRS] * 2
    assert (vars(requests.Session)["request"], vars(requests.Session)["send"]) == original


@pytest.mark.usefixtures("_in_rollout")
def test_an_instrumentation_that_wraps_send_after_us_injects_no_baggage_of_ours() -> None:
    seen = SeenBaggage()
    patch = instrument(own=False)
    ours = requests.Session.send

    def injecting(self: Any, request: Any, **kwargs: Any) -> Any:
        seen()
        return ours(self, request, **kwargs)

    requests.Session.send = injecting  # type: ignore[method-assign]
    try:
        with FakeOpenAI() as server:
            assert requests.get(f"{server.base_url}/models", timeout=120).status_code == 200
    finally:
        requests.Session.send = ours  # type: ignore[method-assign]
        patch.undo()
    assert seen.seen == [THEIRS]


@pytest.mark.usefixtures("_in_rollout")
@pytest.mark.parametrize("own", [True, False])
def test_a_request_of_aiohttp_carries_our_baggage_to_our_hosts_only(own: bool) -> None:
    aiohttp = pytest.importorskip("aiohttp")
    seen = SeenBaggage()
    patch = instrument(own)

    async def in_loop(url: str) -> None:
        tracing = aiohttp.TraceConfig()
        tracing.on_request_start.append(seen.acall)
        async with aiohttp.ClientSession(trace_configs=[tracing]) as session:
            async with session.get(f"{url}/v1/models") as response:
                assert response.status == 200
        async with aiohttp.ClientSession(url, trace_configs=[tracing]) as session:
            async with session.get("/v1/models") as response:
                assert response.status == 200

    try:
        with FakeOpenAI() as server:
            asyncio.run(in_loop(server.url))
    finally:
        patch.undo()
    assert seen.seen == [{**OURS, **THEIRS} if own else THEIRS] * 2


@pytest.mark.usefixtures("_in_rollout")
def test_the_sink_hears_of_a_call_in_the_agents_own_context() -> None:
    seen = SeenBaggage()

    class Sink(RecordedCalls):
        def started(self, call: Any) -> int:
            seen()
            return super().started(call)

    sink = Sink()
    patch = instrument_model_calls(sink, is_own_host=lambda _: False, guard=Guard(reraise))
    try:
        with FakeOpenAI() as server, openai.OpenAI(base_url=server.base_url, api_key="k") as client:
            client.completions.create(model="m", prompt="x")
    finally:
        patch.undo()
    assert seen.seen == [{**OURS, **THEIRS}]
    sink.call()


def test_loopback_hosts_are_ours_where_nobody_says_otherwise() -> None:
    ours = ["localhost", "127.0.0.1", "127.3.2.1", "::1", "vllm.localhost"]
    theirs = ["api.openai.com", "10.0.0.1", "", "localhost.evil.example", "1270.0.0.1"]
    assert all(map(is_loopback, ours))
    assert not any(map(is_loopback, theirs))


@pytest.mark.usefixtures("_in_rollout")
def test_a_question_that_cannot_be_answered_reaches_neither_agent_nor_log(caplog: Any) -> None:
    def is_own_host(host: str) -> bool:
        raise RuntimeError(f"a secret about {host}")

    patch = instrument_model_calls(RecordedCalls(), is_own_host=is_own_host, guard=Guard(LogOnce()))
    try:
        with FakeOpenAI() as server:
            with openai.OpenAI(base_url=server.base_url, api_key="k") as client:
                client.models.list()
                client.models.list()
    finally:
        patch.undo()
    assert [record.getMessage() for record in caplog.records if record.name.startswith("agentlightning")] == [
        "hiding baggage failed with RuntimeError; the agent goes on, this is logged once"
    ]


def test_no_http_library_is_imported_by_the_capture() -> None:
    import subprocess

    code = (
        "import sys; from agentlightning.instrumentation.wire import instrument_model_calls as i;"
        "from agentlightning.testing.recorded_calls import RecordedCalls;"
        "i(RecordedCalls());"
        "print([m for m in ('httpx', 'httpx2', 'openai', 'aiohttp', 'requests') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_clients_that_are_imported_later_are_captured() -> None:
    import subprocess

    code = """
from agentlightning.instrumentation.wire import instrument_model_calls
from agentlightning.testing.fake_openai import FakeOpenAI, Fault
from agentlightning.testing.recorded_calls import RecordedCalls
sink = RecordedCalls()
patch = instrument_model_calls(sink)
import openai
with FakeOpenAI() as server:
    server.enqueue(Fault(500, {"retry-after-ms": "1"}))
    with openai.OpenAI(base_url=server.base_url, api_key="k", max_retries=1) as client:
        client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}])
patch.undo()
print(sink.call().retries)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1", done.stderr
