"""Further frameworks that AgentOps knows, with the real ``agentops``: nothing changes for the agent, nothing is left.

What is not installed is skipped; ``scripts/matrix-frameworks`` has an environment for each.
"""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import os
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import framework_agents as agents
import instrumented_agents as programs
import pytest
from framework_calls import calls_among, needs, path, spans_of

from agentlightning.instrumentation.guard import reraise
from agentlightning.integrations.agentops import AgentOpsServerManager
from agentlightning.integrations.agentops.probe import probe
from agentlightning.store import InMemoryLightningStore, LightningStore
from agentlightning.testing import FakeOpenAI
from agentlightning.tracer import AgentOpsTracer

pytest.importorskip("agentops")
if probe().legacy:
    pytest.skip("events of 0.2 and 0.3 have tests of their own", allow_module_level=True)

# Strangers' packages warn of one another, and some take long to be imported.
pytestmark = [pytest.mark.asyncio, pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(600)]

Program = Callable[[FakeOpenAI, int, bool], Awaitable[str]]

SILENT = {
    "CREWAI_DISABLE_TELEMETRY": "true",
    "CREWAI_TRACING_ENABLED": "false",
    "HAYSTACK_TELEMETRY_ENABLED": "False",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
}
"""What keeps frameworks from talking to hosts of their own."""

autogen = pytest.mark.skipif(
    importlib.util.find_spec("autogen") is None, reason="ag2 1.0 has no autogen any longer"
)


def case(
    program: Program, packages: tuple[str, ...], call: str, tool: str | None, *marks: pytest.MarkDecorator
) -> Any:
    """Name a program, the modules of its framework, where its model calls are, and what its tool call is called."""
    return pytest.param(program, packages, call, tool, id=program.__name__, marks=marks)


AG2 = "rollout > ag2.chat.user_to_calculator.workflow"
CASES = [
    case(
        programs.smolagents,
        ("smolagents",),
        "rollout > ToolCallingAgent.run > chat policy",
        "tool.execute",
        needs("smolagents"),
    ),
    *[
        case(
            program,
            ("agno",),
            "rollout > calculator.agno.agent.run.agent > chat policy",
            "agno.tool.execute.tool_usage",
            needs("agno"),
        )
        for program in (programs.agno, programs.agno_async)
    ],
    *[
        case(program, ("haystack",), "rollout > chat policy", None, needs("haystack-ai"))
        for program in (programs.haystack, programs.haystack_async)
    ],
    case(
        programs.crewai,
        ("crewai",),
        "rollout > crewai.workflow > What is 5 plus 2?.task > calculator.agent > chat policy",
        None,
        needs("crewai"),
    ),
    case(programs.crewai_async, ("crewai",), "rollout > chat policy", None, needs("crewai")),
    case(
        programs.google_adk,
        ("google.adk",),
        "rollout > invoke_workflow calculator > invoke_agent calculator > generate_content openai/policy",
        "execute_tool add",
        needs("google-adk", "litellm"),
    ),
    case(
        programs.ag2,
        ("autogen",),
        f"{AG2} > ag2.agent.calculator.receive > policy.llm",
        "ag2.tool.function.tool_usage",
        needs("ag2"),
        autogen,
    ),
    case(
        programs.ag2_async,
        ("autogen",),
        f"{AG2} > ag2.agent.calculator.async_receive > policy.llm",
        None,
        needs("ag2"),
        autogen,
    ),
    case(
        programs.autogen_agentchat,
        ("autogen_agentchat", "autogen_core", "autogen_ext"),
        "rollout > invoke_agent calculator > chat policy",
        "execute_tool add",
        needs("autogen-agentchat", "autogen-ext"),
    ),
]
cases = pytest.mark.parametrize(("program", "packages", "call", "tool"), CASES)
streamed_or_not = pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])


@pytest.fixture(scope="module", autouse=True)
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Run what is installed once, without a tracer: threads and files that a framework keeps are not ours."""
    before = dict(os.environ)
    os.environ.update(SILENT, CREWAI_STORAGE_DIR=str(tmp_path_factory.mktemp("crewai")))
    for each in CASES:
        program, *_ = each.values
        if not any(mark.name == "skipif" and mark.args[0] for mark in each.marks):
            with FakeOpenAI(programs.converse) as server:
                asyncio.run(program(server, 1, True))
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(autouse=True)
def silent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No framework asks a host of its own."""
    for name, value in SILENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("CREWAI_STORAGE_DIR", str(tmp_path))


def asked(server: FakeOpenAI) -> list[tuple[Any, Any, Any]]:
    """Return what the model was asked."""
    bodies = [request.json() for request in server.requests]
    return [(body["messages"], body.get("tools"), body.get("stream")) for body in bodies]


async def untraced(program: Program, streamed: bool) -> tuple[str, list[tuple[Any, Any, Any]]]:
    """Run a program without us."""
    with FakeOpenAI(programs.converse) as server:
        return await program(server, 5, streamed), asked(server)


@cases
@streamed_or_not
async def test_each_call_is_one_span_in_its_place_and_the_agent_does_what_it_does_without_us(
    store: LightningStore,
    shared_server: AgentOpsServerManager,
    program: Program,
    packages: tuple[str, ...],
    call: str,
    tool: str | None,
    streamed: bool,
) -> None:
    expected = await untraced(program, streamed)
    tracer = AgentOpsTracer(server=shared_server, strict=True, policy=reraise, max_wait_time=60_000)
    with tracer.lifespan(store), FakeOpenAI(programs.converse) as server:
        async with tracer.trace_context() as handle:
            said = await program(server, 5, streamed)
    assert (said, asked(server)) == expected
    assert said == agents.answer(5)
    assert bool(asked(server)[-1][-1]) is streamed
    spans = await spans_of(store, handle)
    assert [path(spans, each) for each in calls_among(spans)] == [call] * 2
    if tool is not None:
        assert tool in {span.name for span in spans}
    assert {span.status.status_code for span in spans} <= {"UNSET", "OK"}


@cases
async def test_nothing_of_a_framework_is_left_changed_and_a_second_worker_traces_the_same(
    shared_server: AgentOpsServerManager,
    program: Program,
    packages: tuple[str, ...],
    call: str,
    tool: str | None,
) -> None:
    await untraced(program, streamed=False)  # so that everything is imported
    before = belongings(packages)
    assert before
    names = []
    for _ in range(2):
        async with InMemoryLightningStore() as store:
            tracer = AgentOpsTracer(server=shared_server, strict=True, policy=reraise, max_wait_time=60_000)
            with tracer.lifespan(store), FakeOpenAI(programs.converse) as server:
                async with tracer.trace_context() as handle:
                    await program(server, 5, False)
            names.append(sorted(span.name for span in await spans_of(store, handle)))
        after = belongings(packages)
        assert [where for where, value in before.items() if after.get(where) is not value] == []
    assert names[0] == names[1]


def belongings(packages: tuple[str, ...]) -> dict[tuple[str, ...], Any]:
    """Return each function, and each attribute of a class, of a framework."""
    found: dict[tuple[str, ...], Any] = {}
    for name, module in list(sys.modules.items()):
        if not isinstance(module, ModuleType) or not name.startswith(packages):
            continue
        for key, value in list(vars(module).items()):
            if callable(value):
                found[name, key] = value
            if inspect.isclass(value) and value.__module__ == name:
                members = {each: member for each, member in vars(value).items() if _is_code(member)}
                found.update({(name, key, each): member for each, member in members.items()})
    return found


def _is_code(member: Any) -> bool:
    with suppress(Exception):  # a proxy of the framework's own may refuse
        return callable(member) or isinstance(member, (staticmethod, classmethod, property))
    return False


# ---------------------------------------------------------------------- streams of agno

agno = needs("agno")


@agno
async def test_a_streamed_run_of_agno_is_a_generator_and_its_span_ends_also_when_it_is_left(
    store: LightningStore, shared_server: AgentOpsServerManager
) -> None:
    tracer = AgentOpsTracer(server=shared_server, strict=True, policy=reraise, max_wait_time=60_000)
    with tracer.lifespan(store), FakeOpenAI(programs.converse) as server:
        async with tracer.trace_context() as handle:
            left = programs.agno_agent(server).run(agents.question(5), stream=True)
            assert inspect.isgenerator(left)
            next(left)
            left.close()
            never_begun = programs.agno_agent(server).run(agents.question(5), stream=True)
            del never_begun
            whole = programs.agno_agent(server).arun(agents.question(5), stream=True)
            assert inspect.isasyncgen(whole)
            assert [event async for event in whole]
    spans = await store.query_spans(handle.rollout_id)
    runs = [span for span in spans if span.name == "calculator.agno.agent.run.agent"]
    assert [run.end_time is not None for run in runs] == [True] * 3


@agno
async def test_a_call_of_agno_that_fails_raises_its_own_exception_and_is_an_error_span(
    store: LightningStore, recorder: AgentOpsTracer
) -> None:
    with FakeOpenAI(programs.converse) as server:
        agent = programs.agno_agent(server)
        with pytest.raises(TypeError) as without:
            agent.run(nonsense=True)
        with pytest.raises(TypeError) as caught:
            async with recorder.trace_context() as handle:
                agent.run(nonsense=True)
    assert str(caught.value) == str(without.value)
    by_name = {span.name: span for span in await spans_of(store, handle)}
    assert by_name["calculator.agno.agent.run.agent"].status.status_code == "ERROR"
