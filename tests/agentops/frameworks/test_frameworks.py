"""Agents of the frameworks that people use, with the real ``agentops``: each model call is one span, in its place.

What is not installed is skipped; ``scripts/matrix-frameworks`` has everything.
"""

from __future__ import annotations

import asyncio
import importlib
import re
import socket
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Awaitable, Callable, Dict, List

import framework_agents as agents
import pytest

from agentlightning.adapter import TracerTraceToTriplet
from agentlightning.instrumentation.agentops import AgentOpsServerManager
from agentlightning.instrumentation.agentops.probe import probe
from agentlightning.instrumentation.guard import reraise
from agentlightning.semconv import ModelCallAttributes
from agentlightning.store import LightningStore
from agentlightning.testing import FakeOpenAI
from agentlightning.testing.fake_openai import tokens_of
from agentlightning.tracer import AgentOpsTracer
from agentlightning.types import Span

pytest.importorskip("agentops")
if probe().legacy:
    pytest.skip("events of 0.2 and 0.3 have tests of their own", allow_module_level=True)

# Strangers' packages warn of one another.
pytestmark = [pytest.mark.asyncio, pytest.mark.filterwarnings("ignore")]

PROMPT_IDS = ModelCallAttributes.PROMPT_TOKEN_IDS.value
RESPONSE_IDS = ModelCallAttributes.RESPONSE_TOKEN_IDS.value.format(i=0)
CAPTURE = ModelCallAttributes.TOKEN_CAPTURE.value


def needs(*distributions: str) -> pytest.MarkDecorator:
    """Skip a test where one of these is not installed."""
    missing = []
    for name in distributions:
        try:
            version(name)
        except PackageNotFoundError:
            missing.append(name)
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


langchain = needs("langchain", "langchain-openai")
langgraph = needs("langgraph", "langchain-openai")
openai_agents = needs("openai-agents")
litellm = needs("litellm")


@pytest.fixture(scope="module")
def shared_server() -> Iterator[AgentOpsServerManager]:
    """One local server for this file."""
    with AgentOpsServerManager() as manager:
        yield manager


@pytest.fixture
def recorder(store: LightningStore, shared_server: AgentOpsServerManager) -> Iterator[AgentOpsTracer]:
    """A worker in managed mode; errors of ours come out."""
    tracer = AgentOpsTracer(server=shared_server, strict=True, policy=reraise, max_wait_time=60_000)
    with tracer.lifespan(store):
        yield tracer


@pytest.fixture
def model() -> Iterator[FakeOpenAI]:
    """The model that calls the tool and says the sum."""
    with FakeOpenAI(agents.converse) as server:
        yield server


@pytest.fixture(autouse=True)
def hosts(monkeypatch: pytest.MonkeyPatch) -> Iterator[List[str]]:
    """Every host that this process asks for by name or connects to; none of them may be far away."""
    asked: List[str] = []
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


async def spans_of(store: LightningStore, handle: Any) -> List[Span]:
    """Return the spans of a rollout; its receipt is whole and nothing was counted twice."""
    receipt = await store.get_receipt(handle.rollout_id, handle.attempt_id)
    assert receipt.whole
    assert (receipt.open, receipt.dropped) == (0, {})
    return list(await store.query_spans(handle.rollout_id))


def calls_among(spans: List[Span], number: int = 5, turns: int = 2) -> List[Span]:
    """Return the model calls, in order; they are the conversation with the very ids that were sampled."""
    calls = sorted(
        (span for span in spans if PROMPT_IDS in span.attributes), key=lambda span: span.start_time or 0
    )
    sampled = [[1000 + number], [token.id for token in tokens_of(agents.answer(number))]]
    expected = [(list(agents.prompt_ids(number, turn)), sampled[turn], "valid") for turn in range(turns)]
    assert [
        (call.attributes[PROMPT_IDS], call.attributes[RESPONSE_IDS], call.attributes[CAPTURE])
        for call in calls
    ] == expected
    rows = TracerTraceToTriplet().adapt(spans)  # a second span of a call would be a second row
    assert [row.prompt["token_ids"] for row in rows] == [prompt for prompt, _, _ in expected]
    assert [row.response["token_ids"] for row in rows] == [response for _, response, _ in expected]
    return calls


def path(spans: List[Span], span: Span) -> str:
    """Return the names from the root to a span."""
    by_id = {each.span_id: each for each in spans}
    names = [span.name]
    while span.parent_id in by_id:
        span = by_id[span.parent_id]
        names.append(span.name)
    return " > ".join(reversed(names))


# ---------------------------------------------------------------------- plain clients


@pytest.mark.parametrize(
    "program",
    [
        pytest.param(agents.plain_openai, id="openai"),
        pytest.param(agents.plain_openai_async, id="openai-async"),
        pytest.param(agents.litellm, id="litellm", marks=litellm),
        pytest.param(agents.litellm_async, id="litellm-async", marks=litellm),
    ],
)
async def test_calls_of_a_client_hang_under_the_rollout(
    store: LightningStore, recorder: AgentOpsTracer, model: FakeOpenAI, program: Any
) -> None:
    async with recorder.trace_context() as handle:
        said = program(model, 5)
        assert (await said if asyncio.iscoroutine(said) else said) == agents.answer(5)
    spans = await spans_of(store, handle)
    assert [path(spans, call) for call in calls_among(spans)] == ["rollout > chat policy"] * 2
    assert len(spans) == 3


# ---------------------------------------------------------------------- LangChain and LangGraph

AGENTS: Dict[str, Callable[..., Any]] = {
    "langchain": agents.langchain_agent,
    "langgraph": agents.langgraph_agent,
}
both = pytest.mark.parametrize(
    "library", [pytest.param("langchain", marks=langchain), pytest.param("langgraph", marks=langgraph)]
)
styles = pytest.mark.parametrize("style", ["invoke", "ainvoke", "stream", "astream"])


async def run(agent: Any, style: str, number: int, **config: Any) -> str:
    """Run an agent of LangChain or LangGraph in one of its four ways; return what it says at last."""
    state: Any = agents.asked(number)
    if style == "invoke":
        return str(agent.invoke(state, config)["messages"][-1].content)
    if style == "ainvoke":
        return str((await agent.ainvoke(state, config))["messages"][-1].content)
    if style == "stream":
        return agents.said_in(list(agent.stream(state, config, stream_mode="messages")))
    return agents.said_in([chunk async for chunk in agent.astream(state, config, stream_mode="messages")])


@both
@styles
async def test_calls_of_a_graph_are_one_span_each(
    store: LightningStore, recorder: AgentOpsTracer, model: FakeOpenAI, library: str, style: str
) -> None:
    async with recorder.trace_context() as handle:
        assert await run(AGENTS[library](model), style, 5) == agents.answer(5)
    spans = await spans_of(store, handle)
    assert [path(spans, call) for call in calls_among(spans)] == ["rollout > chat policy"] * 2
    assert bool(model.requests[1].json().get("stream")) == ("stream" in style)


@both
@styles
async def test_with_the_handler_calls_hang_under_their_node(
    store: LightningStore, recorder: AgentOpsTracer, model: FakeOpenAI, library: str, style: str
) -> None:
    async with recorder.trace_context() as handle:
        handler = recorder.get_langchain_handler()
        assert await run(AGENTS[library](model), style, 5, callbacks=[handler]) == agents.answer(5)
    spans = await spans_of(store, handle)
    for call in calls_among(spans):
        # the graph, its node, and in LangGraph the runnable that the node is
        assert re.fullmatch(r"rollout( > chain\.chain){2,3} > chat_model\.llm", path(spans, call))
    (tool,) = [span for span in spans if span.name == "tool.tool"]
    assert path(spans, tool) == "rollout > chain.chain > chain.chain > tool.tool"
    assert tool.attributes["langchain.tool.name"] == "add"
    types = {span.attributes["langchain.chain.type"] for span in spans if span.name == "chain.chain"}
    assert {"tools", "model" if library == "langchain" else "call_model"} <= types


@both
async def test_eight_graphs_at_once_share_a_handler_and_no_span(
    store: LightningStore, recorder: AgentOpsTracer, model: FakeOpenAI, library: str
) -> None:
    handler = recorder.get_langchain_handler()

    async def rollout(number: int) -> Any:
        async with recorder.trace_context() as handle:
            said = await run(AGENTS[library](model), "astream", number, callbacks=[handler])
            assert said == agents.answer(number)
        return handle

    handles = await asyncio.gather(*map(rollout, range(8)))
    sizes = set()
    for number, handle in enumerate(handles):
        spans = await spans_of(store, handle)
        calls_among(spans, number)
        sizes.add(len(spans))
    assert len(sizes) == 1


@both
@pytest.mark.parametrize("style", ["invoke", "astream"])
@pytest.mark.parametrize("handled", [False, True])
async def test_a_graph_that_fails_raises_its_own_exception_and_leaves_error_spans(
    store: LightningStore,
    recorder: AgentOpsTracer,
    model: FakeOpenAI,
    library: str,
    style: str,
    handled: bool,
) -> None:
    error = agents.Broken("mine")
    callbacks = [recorder.get_langchain_handler()] if handled else []
    with pytest.raises(agents.Broken) as caught:
        async with recorder.trace_context() as handle:
            await run(AGENTS[library](model, error), style, 5, callbacks=callbacks)
    assert caught.value is error
    spans = await spans_of(store, handle)
    calls_among(spans, turns=1)
    failed = {span.name for span in spans if span.status.status_code == "ERROR"}
    assert failed == ({"rollout", "chain.chain", "tool.tool"} if handled else {"rollout"})


# ---------------------------------------------------------------------- openai-agents


async def run_openai_agent(model: FakeOpenAI, number: int, style: str, error: Any = None) -> Any:
    runner: Any = importlib.import_module("agents").Runner
    async with model.async_client() as client:
        agent = agents.openai_agent(model, client, error, through_litellm=style == "litellm")
        if style == "streamed":
            result = runner.run_streamed(agent, agents.question(number))
            said = [event.data.delta async for event in result.stream_events() if _is_text(event)]
            assert "".join(said) == result.final_output
            return result.final_output
        if style == "run_sync":
            loop: Callable[..., Awaitable[Any]] = asyncio.to_thread
            return (await loop(_run_sync, runner, agent, agents.question(number))).final_output
        return (await runner.run(agent, agents.question(number))).final_output


def _run_sync(runner: Any, agent: Any, asked: str) -> Any:
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        return runner.run_sync(agent, asked)
    finally:
        asyncio.set_event_loop(None)
        loop.close()


def _is_text(event: Any) -> bool:
    return bool(event.type == "raw_response_event" and event.data.type == "response.output_text.delta")


@openai_agents
@pytest.mark.parametrize("style", ["run", "run_sync", "streamed", pytest.param("litellm", marks=litellm)])
async def test_calls_of_an_openai_agent_are_its_generations(
    store: LightningStore, recorder: AgentOpsTracer, model: FakeOpenAI, style: str
) -> None:
    async with recorder.trace_context() as handle:
        assert await run_openai_agent(model, 5, style) == agents.answer(5)
    spans = await spans_of(store, handle)
    calls = calls_among(spans)
    agent = next(span for span in spans if span.name == "calculator")
    (tool,) = [span for span in spans if span.name == "add"]
    for span in (*calls, tool):
        assert path(spans, span).startswith(path(spans, agent) + " > ")
        assert path(spans, agent).startswith("rollout > Agent workflow > ")
    assert {call.name for call in calls} == {"generation"}
    assert "chat policy" not in {span.name for span in spans}


@openai_agents
async def test_eight_openai_agents_at_once_share_no_span(
    store: LightningStore, recorder: AgentOpsTracer, model: FakeOpenAI
) -> None:
    async def rollout(number: int) -> Any:
        async with recorder.trace_context() as handle:
            assert await run_openai_agent(model, number, "streamed") == agents.answer(number)
        return handle

    handles = await asyncio.gather(*map(rollout, range(8)))
    sizes = set()
    for number, handle in enumerate(handles):
        spans = await spans_of(store, handle)
        assert {call.name for call in calls_among(spans, number)} == {"generation"}
        sizes.add(len(spans))
    assert len(sizes) == 1


@openai_agents
async def test_an_openai_agent_that_fails_raises_what_it_raises_without_us(
    store: LightningStore, recorder: AgentOpsTracer, model: FakeOpenAI
) -> None:
    error = agents.Broken("mine")
    with pytest.raises(Exception) as caught:
        async with recorder.trace_context() as handle:
            await run_openai_agent(model, 5, "run", error)
    assert error in {caught.value, caught.value.__cause__}
    spans = await spans_of(store, handle)
    calls_among(spans, turns=1)
    by_name = {span.name: span for span in spans}
    assert by_name["rollout"].status.status_code == "ERROR"
    # AgentOps sets the status OK before it looks for an error, and OpenTelemetry keeps an OK.
    assert by_name["add"].attributes["error.message"] == "Error running tool"
