"""The agent with a calculator over MCP: a real MCP server process, a real model server, and a record of it all."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from mcp import Client
from mcp.server.mcpserver.exceptions import ToolError
from openai import AsyncOpenAI

from agentlightning import LightningStore, OtelTracer, Span, find_final_reward, open_store
from agentlightning.cli import main as agl
from agentlightning.testing import Answer, AnswerChoice, FakeOpenAI, ToolCallAnswer, tokens_of
from examples.calc_agent.policy import Policy
from examples.calc_agent.settings import Settings
from examples.calc_agent.tasks import all_tasks
from examples.calc_agent.train import Point
from examples.calc_x.agent import Answer as AgentAnswer
from examples.calc_x.agent import solve
from examples.calc_x.calculator import LONGEST, calculate, server
from examples.calc_x.run import calculator, main, play, reward
from examples.calc_x.server import CalculatorPolicyServer, read, to_calculator, to_words

pytestmark = pytest.mark.long

# ------------------------------------------------------------------ the calculator


@pytest.mark.parametrize(
    ("expression", "result"),
    [
        ("2 * (3 + 4)", "14"),
        ("  7 ", "7"),
        ("-3 - -5", "2"),
        ("6 / 4", "1.5"),
        ("6 / 3", "2"),
        ("7 // 2", "3"),
        ("7 % 4", "3"),
        ("2 ** 10", "1024"),
        ("0.5 + 0.25", "0.75"),
        ("-0.0", "0"),
    ],
)
def test_arithmetic_is_computed(expression: str, result: str) -> None:
    assert calculate(expression) == result


@pytest.mark.parametrize(
    ("expression", "says"),
    [
        ("take 3 8", "not an arithmetic expression: take 3 8"),
        ("", "not an arithmetic expression"),
        ("1 +\0 1", "not an arithmetic expression"),
        ("9" * 150 + " * " + "9" * 150, "200 characters"),
        ("9" * 150, "goes up to"),
        ("1e999", "goes up to"),
        ("8 / 0", "division by zero"),
        ("0 ** -1", "cannot compute"),
        ("2 ** 9999", "exponent"),
        ("9 ** 9 ** 9", "exponent"),
        ("1e15 * 1e15", "goes up to"),
        ("(-8) ** 0.5", "not a real number"),
        ("True + 1", "not arithmetic: True"),
        ("'a' * 3", "not arithmetic: 'a'"),
        ("1 if 1 else 2", "not arithmetic"),
        ("2 @ 3", "not arithmetic: 2 @ 3"),
        ("~1", "not arithmetic: ~1"),
        ("x", "not arithmetic: x"),
        ("__import__('os').getpid()", "not arithmetic: __import__"),
        ("[1][0]", "not arithmetic"),
        ("(" * 99 + "1" + ")" * 100, "not an arithmetic expression"),
    ],
)
def test_what_is_not_arithmetic_is_refused_in_words(expression: str, says: str) -> None:
    with pytest.raises(ToolError, match=re.escape(says)):
        calculate(expression)


@pytest.mark.parametrize(
    ("expression", "result"),
    [
        ("-" * 198 + "1", "1"),
        ("(" * 99 + "1" + ")" * 99, "1"),
        ("1+" * 99 + "1", "100"),
        ("1**" * 66 + "1", "1"),
    ],
    ids=["minus", "parentheses", "sum", "powers"],
)
def test_the_deepest_expression_is_computed(expression: str, result: str) -> None:
    assert len(expression) in range(LONGEST - 1, LONGEST + 1)
    assert calculate(expression) == result


# ------------------------------------------------------------------ the model's calls


def test_the_prompt_of_the_next_turn_holds_the_tokens_that_were_sampled() -> None:
    tools = [{"type": "function", "function": {"name": "calculate"}}]
    with CalculatorPolicyServer(Policy(), run_seed=0) as policy_server:
        for seed in range(200):
            request: dict[str, Any] = {
                "messages": [{"role": "user", "content": "take 3 from 8"}],
                "tools": tools,
                "seed": seed,
                "return_token_ids": True,
            }
            first = policy_server.chat(request)
            message = first["choices"][0]["message"]
            (call,) = message["tool_calls"]
            assert call["function"]["name"] == "calculate"
            heard = {"role": "tool", "tool_call_id": call["id"], "content": "5"}
            second = policy_server.chat({**request, "messages": [*request["messages"], message, heard]})
            said = first["prompt_token_ids"] + first["choices"][0]["token_ids"]
            assert second["prompt_token_ids"][: len(said)] == said
            assert second["choices"][0]["message"]["content"] is not None


def test_every_right_call_becomes_the_expression_that_the_calculator_solves() -> None:
    for task in all_tasks():
        arguments = {"a": task["a"], "b": task["b"]}
        call = {"name": task["tool"], "arguments": json.dumps(arguments)}
        written = to_calculator(call)
        expression = json.loads(written["arguments"])["expression"]
        assert calculate(expression) == task["answer"]
        assert read(expression) == (task["tool"], arguments)
        assert to_words(written) == call


@pytest.mark.parametrize(
    ("expression", "meant"),
    [
        ("8-3", ("subtract", {"a": 8, "b": 3})),
        (" 8  *  3 ", ("multiply", {"a": 8, "b": 3})),
        ("8 / 3", ("8", {"a": "/", "b": "3"})),
        ("", ("", {})),
    ],
)
def test_an_expression_is_read_however_it_is_spaced(expression: str, meant: Any) -> None:
    assert read(expression) == meant


@pytest.mark.parametrize(
    ("answer", "worth"),
    [
        (AgentAnswer("5", [{"expression": "8 - 3"}]), 1.0),
        (AgentAnswer("5", [{"expression": "1 + 1"}, {"expression": "8-3"}]), 1.0),
        (AgentAnswer("5", [{"expression": "3 - 8"}]), 0.75),
        (AgentAnswer("5", []), 0.5),
        (AgentAnswer("", [{}]), 0.0),
    ],
)
def test_the_last_call_and_the_answer_earn_the_reward(answer: AgentAnswer, worth: float) -> None:
    (task,) = [task for task in all_tasks() if task["question"] == "take 3 from 8"]
    assert reward(answer, task) == worth


# ------------------------------------------------------------------ the agent


def calling(*expressions: str) -> FakeOpenAI:
    """Return a model that makes these calls in one turn, then says ``42``."""
    calls = tuple(
        ToolCallAnswer("calculate", json.dumps({"expression": each}), f"call_{number}")
        for number, each in enumerate(expressions)
    )
    model = FakeOpenAI()
    model.enqueue(Answer(choices=(AnswerChoice(tokens_of("call"), calls, "tool_calls"),)), Answer.of("42"))
    return model


def asked(model: FakeOpenAI) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=model.base_url, api_key="none", max_retries=0)


@pytest.mark.asyncio
async def test_the_agent_offers_the_servers_tools_and_tells_the_model_their_results() -> None:
    with calling("6 * 7", "six") as model:
        async with Client(server) as tools, asked(model) as client:
            answer = await solve("6 times 7", client, tools, seed=3)
        first, second = [request.json() for request in model.requests]

    assert answer == AgentAnswer("42", [{"expression": "6 * 7"}, {"expression": "six"}])
    (offered,) = first["tools"]
    assert offered["function"]["name"] == "calculate"
    assert offered["function"]["parameters"]["required"] == ["expression"]
    assert "arithmetic" in offered["function"]["description"]
    told = [message for message in second["messages"] if message["role"] == "tool"]
    assert [message["tool_call_id"] for message in told] == ["call_0", "call_1"]
    assert told[0]["content"] == "42"
    assert "not arithmetic: six" in told[1]["content"]


@pytest.mark.asyncio
async def test_a_tool_call_is_a_span_with_the_protocols_own_span_inside(
    store: LightningStore, tracer: OtelTracer
) -> None:
    rollout = await store.start_rollout("6 times 7", "train")
    with calling("6 * 7", "six") as model:
        async with calculator() as tools, asked(model) as client:
            async with tracer.trace_context(
                "calc_x", rollout_id=rollout.rollout_id, attempt_id=rollout.attempt.attempt_id
            ):
                await solve("6 times 7", client, tools, seed=3)

    spans = await store.query_spans(rollout.rollout_id, "latest")
    (root,) = [span for span in spans if span.name == "calc_x"]
    right, wrong = [span for span in spans if span.name == "execute_tool calculate"]
    assert right.parent_id == wrong.parent_id == root.span_id
    assert right.attributes == {
        **right.attributes,
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": "calculate",
        "gen_ai.tool.call.id": "call_0",
        "gen_ai.tool.call.arguments": '{"expression": "6 * 7"}',
        "gen_ai.tool.call.result": "42",
    }
    assert (right.status.status_code, wrong.status.status_code) == ("UNSET", "ERROR")
    assert "not arithmetic: six" in wrong.attributes["gen_ai.tool.call.result"]
    sent = [span for span in spans if span.name == "MCP send tools/call calculate"]
    assert [span.parent_id for span in sent] == [right.span_id, wrong.span_id]


@pytest.mark.asyncio
async def test_a_model_that_only_calls_tools_is_given_up() -> None:
    call = AnswerChoice(
        tokens_of("call"), (ToolCallAnswer("calculate", '{"expression": "1"}'),), "tool_calls"
    )
    with FakeOpenAI(Answer(choices=(call,))) as model:
        async with Client(server) as tools, asked(model) as client:
            answer = await solve("6 times 7", client, tools, seed=3)
        assert len(model.requests) == 4
    assert answer == AgentAnswer("", [{"expression": "1"}] * 4)


# ------------------------------------------------------------------ the whole way


def stored(database: Path, read_one: Callable[[LightningStore, str], Awaitable[Any]]) -> list[Any]:
    """Return what ``read_one`` finds of each rollout in a store."""

    async def look() -> list[Any]:
        async with open_store(f"sqlite:///{database}") as store:
            return [await read_one(store, each.rollout_id) for each in await store.query_rollouts()]

    return asyncio.run(look())


async def spans_of(store: LightningStore, rollout_id: str) -> list[Span]:
    receipt = await store.get_receipt(rollout_id, "latest")
    assert receipt.balanced
    assert receipt.whole
    return list(await store.query_spans(rollout_id, "latest"))


def test_a_run_leaves_rollouts_with_rewards_and_rows_and_no_process(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = psutil.Process().children(recursive=True)
    database = tmp_path / "calc_x.db"
    assert main(["--rollouts", "5", "--seed", "1", "--out-db", str(database)]) == 0
    assert psutil.Process().children(recursive=True) == before

    printed = capsys.readouterr().out
    assert f"agl triplets latest --store sqlite:///{database}" in printed
    traces = stored(database, spans_of)
    assert len(traces) == 5
    for spans in traces:
        assert find_final_reward(spans) is not None
        assert sorted(span.name for span in spans) == [
            "MCP send tools/call calculate",
            "MCP send tools/list",
            "agentlightning.annotation",
            "calc_x",
            "chat calc",
            "chat calc",
            "execute_tool calculate",
        ]
        (used,) = [span for span in spans if span.name == "execute_tool calculate"]
        asked_for = next(span for span in spans if span.name == "chat calc")
        assert used.attributes["gen_ai.tool.call.id"] in asked_for.attributes["gen_ai.output.messages"]

    assert agl(["triplets", "latest", "--json", "--store", f"sqlite:///{database}"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == 2
    assert rows[-1]["reward"] is not None


def test_the_quickstarts_trainer_takes_these_rollouts(tmp_path: Path) -> None:
    # The trainer itself stops where a row is not what the policy sampled.
    short = Settings(iterations=1, tasks=3, samples=2, test_every=9)
    points: list[Point] = []
    (last,) = asyncio.run(play(tmp_path / "calc_x.db", 1, short, points.append))
    assert [(point.iteration, point.rollouts) for point in points] == [(0, 0), (1, 6)]
    assert len(last.sampled) == 2
    assert len(last.calls) == 1


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", range(5))
def test_five_of_five_seeds_learn_to_use_the_calculator(tmp_path: Path, seed: int) -> None:
    points: list[Point] = []
    rollouts = asyncio.run(play(tmp_path / "calc_x.db", 20, replace(Settings(), seed=seed), points.append))
    tests = [point.test for point in points if point.test is not None]
    assert tests[0] < 0.05
    assert tests[-1] > 0.9
    assert np.mean([each.reward for each in rollouts]) > 0.8
