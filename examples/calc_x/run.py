"""Rollouts of the agent under the tracer, and what the store says of them afterwards.

The agent, the model and the calculator are three programs' worth of code that know nothing of the recorder. Around
each rollout is one ``tracer.rollout``, with a reward at its end. What is printed is read back from the store.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sys
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client
from openai import AsyncOpenAI

from agentlightning import (
    Endpoint,
    LightningStore,
    OtelTracer,
    RolloutMode,
    Span,
    TracerTraceToTriplet,
    find_final_reward,
    open_store,
)

from ..calc_agent.agent import Solution
from ..calc_agent.options import at_least
from ..calc_agent.policy import Policy, decode
from ..calc_agent.screen import Screen
from ..calc_agent.settings import Settings
from ..calc_agent.tasks import Task, score, split
from ..calc_agent.train import Player, Point, iterate
from .agent import Answer, solve
from .server import CalculatorPolicyServer, read


def calculator() -> Client:
    """Return a client of the MCP server, which it runs as a process of its own while it is open."""
    script = Path(__file__).with_name("calculator.py")
    return Client(stdio_client(StdioServerParameters(command=sys.executable, args=["-P", str(script)])))


class CalculatorPlayer(Player):
    """Runs this agent where the quickstart runs its own; its trainer does not see a difference."""

    def __init__(
        self,
        store: LightningStore,
        tracer: OtelTracer,
        model: AsyncOpenAI,
        tools: Client,
        at_once: int,
    ) -> None:
        super().__init__(store, tracer, model, at_once)
        self.tools = tools

    async def _rollout(self, task: Task, mode: RolloutMode, metadata: dict[str, int]) -> str:
        async with self._places:
            async with self.tracer.rollout(task, name="calc_x", mode=mode, metadata=metadata) as rollout:
                answer = await solve(task["question"], self.client, self.tools, metadata["seed"])
                rollout.reward(reward(answer, task))
            return str(rollout.rollout_id)


def reward(answer: Answer, task: Task) -> float:
    """Return how good an answer is, by the measure of the quickstart: from 0 to 1."""
    name, arguments = read(str(answer.calls[-1].get("expression", ""))) if answer.calls else ("", {})
    return score(Solution(name, arguments, answer.text), task)


async def play(
    database: Path, rollouts: int, training: Settings, report: Callable[[Point], None]
) -> list[Recorded]:
    """Train, then run rollouts on tasks that are never trained on; return what the store has of them.

    Args:
        database: File of the store.
        rollouts: How many to run.
        training: How the policy learns before that, with the quickstart's trainer; 0 iterations leave it as it is.
        report: Called with each point of the learning curve.
    """
    policy = Policy()
    async with AsyncExitStack() as stack:
        tools = await stack.enter_async_context(calculator())
        store = await stack.enter_async_context(open_store(f"sqlite:///{database}"))
        server = stack.enter_context(CalculatorPolicyServer(policy, training.seed))
        tracer = OtelTracer(capture_tokens="request", endpoints=[Endpoint(server.url, {}, "processed")])
        stack.enter_context(tracer.lifespan(store))
        model = await stack.enter_async_context(AsyncOpenAI(base_url=server.url, api_key="none"))

        player = CalculatorPlayer(store, tracer, model, tools, training.at_once)
        if training.iterations:
            await iterate(player, policy, training, report)
        _, tasks = split(training.seed)
        chosen = random.Random(training.seed).choices(tasks, k=rollouts)
        played = await player.play(chosen, 1, "test", training.iterations)
        return [await recorded(store, rollout_id) for rollout_id in played]


# ------------------------------------------------------------------ what the store says


@dataclass(frozen=True)
class Recorded:
    """One rollout as the store has it."""

    question: str
    sampled: list[str]
    """The tokens of each reply of the model, as words."""
    calls: list[tuple[str, str]]
    """(expression, result) of each tool call; the result is ``error`` where the calculator refused."""
    reward: float | None


async def recorded(store: LightningStore, rollout_id: str) -> Recorded:
    """Read one rollout."""
    rollout = await store.get_rollout_by_id(rollout_id)
    spans = await store.query_spans(rollout_id, "latest")
    task: Any = rollout.input if rollout else None
    return Recorded(
        question=task["question"],
        sampled=[decode(triplet.response["token_ids"]) for triplet in TracerTraceToTriplet().adapt(spans)],
        calls=[
            called(span) for span in spans if span.attributes.get("gen_ai.operation.name") == "execute_tool"
        ],
        reward=find_final_reward(spans),
    )


def called(span: Span) -> tuple[str, str]:
    """Return (expression, result) of the span of a tool call."""
    arguments = json.loads(span.attributes["gen_ai.tool.call.arguments"])
    failed = span.status.status_code == "ERROR"
    return arguments["expression"], "error" if failed else span.attributes["gen_ai.tool.call.result"]


COLUMNS = (("QUESTION", 34), ("MODEL SAMPLED", 22), ("ASKED OVER MCP", 22), ("RESULT", 8), ("ANSWER", 18))
"""Of the printed table, with their widths; the reward comes last."""


def table(rollouts: Sequence[Recorded]) -> str:
    """Return a line for each rollout."""
    lines = [row([name for name, _ in COLUMNS], "REWARD")]
    for each in rollouts:
        expressions, results = zip(*each.calls, strict=True) if each.calls else ((), ())
        cells = [
            each.question,
            " | ".join(each.sampled[: len(each.calls)]),
            " | ".join(expressions),
            " | ".join(results),
            " | ".join(each.sampled[len(each.calls) :]),
        ]
        lines.append(row(cells, "none" if each.reward is None else f"{each.reward:.2f}"))
    return "\n".join(lines)


def row(cells: Sequence[str], reward_cell: str) -> str:
    """Return one line of the table; what is too long for its column is cut."""
    cut = [
        text if len(text) <= width else f"{text[: width - 1]}…"
        for text, (_, width) in zip(cells, COLUMNS, strict=True)
    ]
    padded = [f"{text:<{width}}" for text, (_, width) in zip(cut, COLUMNS, strict=True)]
    return "  ".join([*padded, f"{reward_cell:>6}"])


def epilogue(rollouts: Sequence[Recorded], database: Path) -> str:
    """Return what is printed last."""
    mean = sum(each.reward or 0.0 for each in rollouts) / len(rollouts)
    rows = sum(len(each.sampled) for each in rollouts)
    agl, store = os.path.relpath(Path(sys.executable).with_name("agl")), f"--store sqlite:///{database}"
    return f"""
{len(rollouts)} rollouts, {rows} training rows, mean reward {mean:.2f}; all of this was read from {database}

What to type next:
  {agl} show latest {store}
  {agl} triplets latest {store}"""


# ------------------------------------------------------------------ the command


def parser() -> argparse.ArgumentParser:
    """Return the command's options."""
    found = argparse.ArgumentParser("calc_x", description="An agent with a calculator over MCP, recorded.")
    found.add_argument(
        "--rollouts", type=at_least(1), default=12, help="rollouts to run and show (default: 12)"
    )
    found.add_argument(
        "--train",
        type=at_least(0),
        nargs="?",
        const=Settings.iterations,
        default=0,
        metavar="ITERATIONS",
        help=f"let the policy learn first, with the quickstart's trainer ({Settings.iterations} iterations)",
    )
    found.add_argument("--seed", type=int, default=0, help="equal seeds give equal rollouts (default: 0)")
    found.add_argument(
        "--out-db",
        type=Path,
        default=Path("calc_x.db"),
        help="the store; a run adds to it (default: calc_x.db)",
    )
    found.add_argument("--at-once", type=at_least(1), default=16, help="concurrent rollouts (default: 16)")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    options = parser().parse_args(arguments)
    training = Settings(seed=options.seed, iterations=options.train, at_once=options.at_once)
    screen = Screen(training)
    if training.iterations:
        screen.begin()
    rollouts = asyncio.run(play(options.out_db, options.rollouts, training, screen))
    if training.iterations:
        print()
    print(table(rollouts))
    print(epilogue(rollouts, options.out_db))
    return 0
