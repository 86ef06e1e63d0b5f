"""A model server that is reached by a client that nobody watches is named; one whose calls are seen is not."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable
from typing import Any

import openai
import pytest

from agentlightning.instrumentation.connections import Connections, server_of, servers_of_environment
from agentlightning.instrumentation.guard import Guard, reraise
from agentlightning.semconv import AGL_UNCAPTURED, SpanFlagAttributes
from agentlightning.store import LightningStore
from agentlightning.testing.fake_openai import FakeOpenAI
from agentlightning.tracer import OtelTracer
from agentlightning.types import Span

BODY = json.dumps({"model": "m", "messages": []}).encode()
REQUEST = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (len(BODY), BODY)


def by_a_socket(server: FakeOpenAI) -> None:
    host, _, port = server.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=120) as connection:
        connection.sendall(REQUEST)
        assert connection.recv(10).startswith(b"HTTP/1.1")


def by_streams_of_asyncio(server: FakeOpenAI) -> None:
    async def run() -> None:
        host, _, port = server.url.removeprefix("http://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(REQUEST)
        assert (await reader.read(10)).startswith(b"HTTP/1.1")
        writer.close()
        await writer.wait_closed()

    asyncio.run(run())


def by_the_client(server: FakeOpenAI) -> None:
    with server.client() as client:
        client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}])


def by_another_api(server: FakeOpenAI) -> None:
    with server.client(max_retries=0) as client, pytest.raises(openai.NotFoundError):
        client.post(
            "/responses", cast_to=object, body={"model": "m", "input": "hi"}
        )  # older ones do not know it


async def uncaptured(store: LightningStore, act: Callable[[FakeOpenAI], None], **settings: Any) -> list[Span]:
    with FakeOpenAI() as server:
        endpoints = [server.base_url] if settings.pop("known", True) else []
        tracer = OtelTracer(endpoints=endpoints, **settings)
        with tracer.lifespan(store):
            with tracer.trace_context(store=store) as handle:
                await asyncio.to_thread(act, server)
            rollout_id = handle.rollout_id
        assert tracer._worker is None
        found = list(await store.query_spans(rollout_id, name=AGL_UNCAPTURED))
        expected = f"localhost:{server.url.rpartition(':')[2]}"
    assert all(span.attributes[SpanFlagAttributes.UNCAPTURED_SERVER.value] == expected for span in found)
    return found


@pytest.mark.asyncio
@pytest.mark.parametrize("act", [by_a_socket, by_streams_of_asyncio, by_another_api])
async def test_a_server_whose_calls_nobody_sees_is_named_in_the_attempt(
    store: LightningStore, act: Callable[[FakeOpenAI], None]
) -> None:
    assert len(await uncaptured(store, act)) == 1


@pytest.mark.asyncio
async def test_a_server_whose_calls_are_captured_is_not_named(store: LightningStore) -> None:
    assert await uncaptured(store, by_the_client) == []


@pytest.mark.asyncio
async def test_a_server_that_nobody_knows_as_one_of_models_is_not_named(store: LightningStore) -> None:
    assert await uncaptured(store, by_a_socket, known=False) == []


def test_settings_of_model_clients_name_their_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1")
    monkeypatch.setenv("AZURE_OPENAI_ENDPOINT", "https://Models.example.com/")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318")
    monkeypatch.setenv("ODD_BASE_URL", "http://[broken")
    assert servers_of_environment() == {"localhost:8000", "models.example.com:443"}


def test_a_name_is_known_by_the_addresses_that_it_was_looked_up_as() -> None:
    with FakeOpenAI() as server:
        port = int(server.url.rpartition(":")[2])
        seen: list[str] = []
        connections = Connections(lambda: [f"http://localhost:{port}/v1"], seen.append, Guard(reraise))
        patches = connections.patches()
        try:
            socket.create_connection(("localhost", port), timeout=120).close()
        finally:
            for patch in patches:
                patch.undo()
        assert server_of(server.url) == f"localhost:{port}"
    assert set(seen) == {f"localhost:{port}"}
    assert "connect" not in vars(socket.socket)
