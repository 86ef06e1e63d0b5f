"""Agents of the frameworks that people use, with the real ``agentops``: each model call is one span, in its place.

What is not installed is skipped; ``scripts/matrix-frameworks`` has everything.
"""

from __future__ import annotations

import asyncio
import importlib
import re
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import framework_agents as agents
import pytest
from framework_calls import calls_among, needs, path, spans_of

from agentlightning.instrumentation.guard import reraise
from agentlightning.integrations.agentops import AgentOpsServerManager
from agentlightning.integrations.agentops.probe import probe
from agentlightning.store import LightningStore
from agentlightning.testing import FakeOpenAI
from agentlightning.tracer import AgentOpsTracer

pytest.importorskip("agentops")
if probe().legacy:
    pytest.skip("events of 0.2 and 0.3 have tests of their own", allow_module_level=True)

# Strangers' packages warn of one another.
pytestmark = [pytest.mark.asyncio, pytest.mark.filterwarnings("ignore")]

langchain = needs("langchain", "langchain-openai")
langgraph = needs("langgraph", "langchain-openai")
openai_agents = needs("openai-agents")
litellm = needs("litellm")


@pytest.fixture
def model() -> Iterator[FakeOpenAI]:
    """The model that calls the tool and says the sum."""
    with FakeOpenAI(agents.converse) as server:
        yield server


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

AGENTS: dict[str, Callable[..., Any]] = {
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


@openai_agents
async def test_the_processor_that_sends_to_openai_takes_nothing_also_where_agentops_has_not_replaced_it(
    store: LightningStore, shared_server: AgentOpsServerManager, model: FakeOpenAI
) -> None:
    library: Any = importlib.import_module("agents")
    tracing: Any = importlib.import_module("agents.tracing.processors")
    to_openai = tracing.default_processor()
    holder = library.tracing.get_trace_provider()._multi_processor  # no public way to read them
    at_first, exporter = holder._processors, to_openai._exporter
    sent: list[str] = []

    class Exporter(tracing.TracingExporter):  # type: ignore[misc]
        def export(self, items: list[Any]) -> None:
            sent.extend(getattr(item, "name", type(item).__name__) for item in items)

    own = tracing.BatchTraceProcessor(Exporter())
    before = dict(vars(tracing.BatchTraceProcessor))
    try:
        to_openai._exporter = Exporter()
        tracer = AgentOpsTracer(server=shared_server, policy=reraise, max_wait_time=60_000)
        with tracer.lifespan(store):
            library.set_trace_processors([to_openai, own])  # as where agentops is not installed
            async with tracer.trace_context():
                assert await run_openai_agent(model, 5, "run") == agents.answer(5)
            to_openai.force_flush()
            assert sent == []
            own.shutdown()
            assert "Agent workflow" in sent  # one that the user has made is of the same class
        assert dict(vars(tracing.BatchTraceProcessor)) == before
    finally:
        to_openai._exporter = exporter
        holder._processors = at_first


@openai_agents
async def test_processors_of_the_user_stay_in_force_and_come_back_in_their_order(
    store: LightningStore, shared_server: AgentOpsServerManager, model: FakeOpenAI
) -> None:
    library: Any = importlib.import_module("agents")
    tracing: Any = importlib.import_module("agents.tracing.processors")
    holder = library.tracing.get_trace_provider()._multi_processor  # no public way to read them
    at_first = holder._processors
    seen: dict[str, list[str]] = {"mine": [], "late": []}

    def processor(name: str) -> Any:
        class Processor(library.tracing.TracingProcessor):  # type: ignore[misc]
            def on_trace_start(self, trace: Any) -> None:
                seen[name].append(trace.name)

            def on_trace_end(self, trace: Any) -> None: ...
            def on_span_start(self, span: Any) -> None: ...
            def on_span_end(self, span: Any) -> None: ...
            def shutdown(self) -> None: ...
            def force_flush(self) -> None: ...

        return Processor()

    mine, late = processor("mine"), processor("late")
    try:
        library.set_trace_processors([mine, tracing.default_processor()])
        before = holder._processors
        for _ in range(2):
            tracer = AgentOpsTracer(server=shared_server, strict=True, policy=reraise, max_wait_time=60_000)
            with tracer.lifespan(store):
                assert mine in holder._processors
                async with tracer.trace_context() as handle:
                    assert await run_openai_agent(model, 5, "run") == agents.answer(5)
            assert {call.name for call in calls_among(await spans_of(store, handle))} == {"generation"}
            assert [*map(id, holder._processors)] == [*map(id, before)]
        assert seen["mine"] == ["Agent workflow"] * 2
        with AgentOpsTracer(server=shared_server, strict=True, policy=reraise).lifespan(store):
            library.add_trace_processor(late)
        assert [*map(id, holder._processors)] == [*map(id, (*before, late))]
        with AgentOpsTracer(server=shared_server, strict=True, policy=reraise).lifespan(store):
            library.set_trace_processors([late])
        assert holder._processors == (late,)
    finally:
        holder._processors = at_first
