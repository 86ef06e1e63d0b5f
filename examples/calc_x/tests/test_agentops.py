"""AgentOps' decorators around the agent, and a reward after it: each of them is one span of the rollout."""

from __future__ import annotations

import importlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib import metadata
from typing import Any

import pytest
import pytest_asyncio
from openai import AsyncOpenAI

from agentlightning import (
    Endpoint,
    Span,
    TracerTraceToTriplet,
    find_final_reward,
    find_reward_spans,
    open_store,
)
from agentlightning.emitter.reward import reward
from agentlightning.store import LightningStore
from agentlightning.tracer.agentops import AgentOpsTracer
from examples.calc_agent.policy import Policy, decode
from examples.calc_x.agent import Answer, solve
from examples.calc_x.run import calculator
from examples.calc_x.server import CalculatorPolicyServer

# Looked for, not imported: the tracer prepares the environment before it imports AgentOps.
pytestmark = pytest.mark.skipif(
    not any(metadata.distributions(name="agentops")),
    reason="needs pip install 'agentlightning-otel[agentops]'",
)


@pytest_asyncio.fixture
async def store() -> AsyncIterator[LightningStore]:
    """A store in memory."""
    async with open_store("memory://") as opened:
        yield opened


@asynccontextmanager
async def recording(tracer: AgentOpsTracer, store: LightningStore, spans: list[Span]) -> AsyncIterator[Any]:
    """Record one rollout; yield AgentOps' decorators, and fill ``spans`` at the end."""
    with tracer.lifespan(store):
        rollout = await store.start_rollout("take 3 from 8", "train")
        rollout_id, attempt_id = rollout.rollout_id, rollout.attempt.attempt_id
        async with tracer.trace_context("calc_x", rollout_id=rollout_id, attempt_id=attempt_id):
            yield importlib.import_module("agentops.sdk.decorators")
    receipt = await store.get_receipt(rollout_id, "latest")
    assert receipt.balanced
    assert receipt.whole
    spans += await store.query_spans(rollout_id, "latest")


def names(spans: Sequence[Span]) -> list[str]:
    """Return the names of the spans, in order."""
    return sorted(span.name for span in spans)


@pytest.mark.asyncio
async def test_an_operation_and_a_reward_are_one_span_each(store: LightningStore) -> None:
    spans: list[Span] = []
    async with recording(AgentOpsTracer(max_wait_time=60_000), store, spans) as decorators:

        @decorators.operation  # type: ignore[untyped-decorator]
        def subtract(a: int, b: int) -> int:
            return a - b

        @reward
        def judge(result: int) -> float:
            return 0.75 if result == 5 else 0.0

        assert judge(subtract(8, 3)) == 0.75

    assert names(spans) == ["agentlightning.operation", "calc_x", "subtract.task"]
    assert [span.name for span in find_reward_spans(spans)] == ["agentlightning.operation"]
    assert find_final_reward(spans) == 0.75
    (operation,) = [span for span in spans if span.name == "subtract.task"]
    (root,) = [span for span in spans if span.name == "calc_x"]
    assert operation.parent_id == root.span_id


@pytest.mark.asyncio
async def test_the_agent_with_decorators_gives_the_rows_that_it_gives_without(store: LightningStore) -> None:
    spans: list[Span] = []
    with CalculatorPolicyServer(Policy(), run_seed=0) as policy:
        tracer = AgentOpsTracer(
            capture_tokens="request", endpoints=[Endpoint(policy.url, {}, "processed")], max_wait_time=60_000
        )
        async with (
            calculator() as tools,
            AsyncOpenAI(base_url=policy.url, api_key="none") as model,
            recording(tracer, store, spans) as decorators,
        ):

            @decorators.operation(name="work")  # type: ignore[untyped-decorator]
            async def work(question: str) -> Answer:
                return await solve(question, model, tools, seed=7)

            @reward
            async def judge(answer: Answer) -> float:
                return 1.0 if answer.text == "5" else 0.25

            answer = await work("take 3 from 8")
            await judge(answer)

    assert names(spans) == [
        "MCP send tools/call calculate",
        "MCP send tools/list",
        "agentlightning.operation",
        "calc_x",
        "chat calc",
        "chat calc",
        "execute_tool calculate",
        "work.task",
    ]
    (operation,) = [span for span in spans if span.name == "work.task"]
    inside = {span.name for span in spans if span.parent_id == operation.span_id}
    assert inside == {"MCP send tools/list", "chat calc", "execute_tool calculate"}
    first, second = TracerTraceToTriplet().adapt(spans)
    assert decode(first.response["token_ids"]) == answer.calls[0]["expression"]
    assert decode(second.response["token_ids"]) == answer.text
    assert find_final_reward(spans) == 0.25
