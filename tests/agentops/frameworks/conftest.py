"""One local server for a file, a worker of managed mode, and a look at every host that is asked for."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest

from agentlightning.instrumentation.guard import reraise
from agentlightning.integrations.agentops import AgentOpsServerManager
from agentlightning.store import LightningStore
from agentlightning.tracer import AgentOpsTracer


@pytest.fixture(scope="module")
def shared_server() -> Iterator[AgentOpsServerManager]:
    """One local server for this file."""
    with AgentOpsServerManager() as manager:
        yield manager


@pytest.fixture(autouse=True)
def _scripted_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Say of the model server what ``FakeOpenAI.endpoint`` says; else strict tools may have forced any token."""
    monkeypatch.setenv("AGL_SAMPLING_DEFAULTS", "{}")
    monkeypatch.setenv("AGL_LOGPROB_KIND", "processed")


@pytest.fixture
def recorder(store: LightningStore, shared_server: AgentOpsServerManager) -> Iterator[AgentOpsTracer]:
    """A worker in managed mode; errors of ours come out."""
    tracer = AgentOpsTracer(server=shared_server, strict=True, policy=reraise, max_wait_time=60_000)
    with tracer.lifespan(store):
        yield tracer


@pytest.fixture(autouse=True)
def hosts(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Every host that this process asks for by name or connects to; none of them may be far away."""
    asked: list[str] = []
    look_up, connect = socket.getaddrinfo, socket.socket.connect

    def getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
        asked.append(host.decode() if isinstance(host, bytes) else str(host))
        return look_up(host, *args, **kwargs)

    def connecting(self: socket.socket, address: Any) -> Any:
        if isinstance(address, tuple):
            asked.append(str(address[0]))
        return connect(self, address)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(socket.socket, "connect", connecting)
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else its import asks a host for prices
    yield asked
    assert {host for host in asked if host not in {"127.0.0.1", "localhost", "::1"}} == set()
