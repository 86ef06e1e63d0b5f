"""What AgentOps raises where code of ours meets it is an error of our tree; what it raises in an agent is the agent's."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest

from agentlightning.errors import (
    AgentOpsConfigurationError,
    AgentOpsError,
    AgentOpsServerError,
    AgentOpsUnsupported,
    APIError,
    ConfigurationError,
    InsecureEndpoint,
    LightningError,
    SessionError,
    UnknownOption,
)
from agentlightning.store import LightningStore
from agentlightning.testing.agentops_server import AgentOpsServer
from agentlightning.tracer import AgentOpsTracer

foreign: Any = importlib.import_module("agentops.exceptions")
operation: Any = importlib.import_module("agentops.sdk.decorators").operation
Client: Any = importlib.import_module("agentops.client").Client

STARTS: list[tuple[Callable[[], Exception], type[AgentOpsError]]] = [
    (lambda: foreign.ApiServerException("503"), APIError),
    (lambda: foreign.AgentOpsApiJwtExpiredException(), APIError),
    (lambda: foreign.NoSessionException(), SessionError),
    (lambda: foreign.MultiSessionException("two"), SessionError),
    (lambda: foreign.NoApiKeyException(), AgentOpsConfigurationError),
    (lambda: foreign.InvalidApiKeyException("k", "https://e"), AgentOpsConfigurationError),
    (lambda: type("Later", (foreign.ApiServerException,), {"__module__": "agentops.later"})("504"), APIError),
    (lambda: type("ApiServerException", (Exception,), {})("a stranger's"), AgentOpsUnsupported),
    (lambda: RuntimeError("broken"), AgentOpsUnsupported),
]


def test_the_errors_of_agentops_are_one_tree() -> None:
    for above, below in (
        (LightningError, AgentOpsError),
        (LightningError, ConfigurationError),
        (AgentOpsError, AgentOpsConfigurationError),
        (ConfigurationError, AgentOpsConfigurationError),
        (AgentOpsError, APIError),
        (AgentOpsError, SessionError),
        (AgentOpsError, AgentOpsUnsupported),
        (APIError, AgentOpsServerError),
        (ConfigurationError, InsecureEndpoint),
        (AgentOpsConfigurationError, UnknownOption),
        (ValueError, ConfigurationError),
        (TypeError, UnknownOption),
        (RuntimeError, APIError),
        (RuntimeError, SessionError),
    ):
        assert issubclass(below, above)
    assert not issubclass(ConfigurationError, AgentOpsError)


@pytest.mark.parametrize(("make", "expected"), STARTS)
def test_what_the_start_of_agentops_raises_is_translated_where_the_tracer_is_strict(
    make: Callable[[], Exception],
    expected: type[AgentOpsError],
    agentops_server: AgentOpsServer,
    store: LightningStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    raised = make()

    def init(*_: Any, **__: Any) -> None:
        raise raised

    monkeypatch.setattr(Client, "init", init)
    tracer = AgentOpsTracer(strict=True, server=agentops_server.manager)
    with pytest.raises(AgentOpsError, match=type(raised).__name__) as caught:
        tracer.init_worker(0, store)
    assert type(caught.value) is expected
    assert caught.value.__cause__ is raised
    assert Client.init is init


@pytest.mark.asyncio
async def test_a_tracer_that_is_not_strict_says_it_and_goes_on(
    agentops_server: AgentOpsServer,
    store: LightningStore,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def init(*_: Any, **__: Any) -> None:
        raise foreign.ApiServerException("503")

    monkeypatch.setattr(Client, "init", init)
    with AgentOpsTracer(server=agentops_server.manager).lifespan(store) as tracer:
        async with tracer.trace_context() as trace:
            pass
    assert "AgentOps is not recorded" in caplog.text
    assert "ApiServerException: 503" in caplog.text
    assert [span.name for span in await store.query_spans(trace.rollout_id)] == ["rollout"]


@pytest.mark.asyncio
@pytest.mark.parametrize("make", [make for make, _ in STARTS[:7]])
async def test_what_agentops_raises_in_the_agent_reaches_it_unchanged(
    make: Callable[[], Exception], agentops_server: AgentOpsServer, store: LightningStore
) -> None:
    raised = make()

    @operation  # type: ignore[untyped-decorator]
    def work() -> None:
        raise raised

    with AgentOpsTracer(server=agentops_server.manager, strict=True).lifespan(store) as tracer:
        with pytest.raises(type(raised)) as caught:
            async with tracer.trace_context():
                work()
    assert caught.value is raised


def test_an_option_that_there_is_not_is_named_with_what_was_meant() -> None:
    with pytest.raises(UnknownOption, match=r"no option 'default_tag'; did you mean default_tags\?"):
        AgentOpsTracer(default_tag=["a"])
    with pytest.raises(AgentOpsError, match="no option 'xyzzy'; there are accept_context, capture_tokens, "):
        AgentOpsTracer(xyzzy=1)
    with pytest.raises(TypeError):
        AgentOpsTracer(xyzzy=1)


def test_a_server_of_another_kind_is_refused() -> None:
    with pytest.raises(
        AgentOpsConfigurationError, match="server is an AgentOpsServerManager or a URL, not int"
    ):
        AgentOpsTracer(server=8002)  # type: ignore[arg-type]
