"""What every trainer here needs: tasks as prompts, the agent on them, its reward on held-out tasks, and receipts."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence

from openai import AsyncOpenAI

from agentlightning import LightningStore, OtelTracer
from agentlightning.training import Played, RefusedAttempt, SealedAttempt, rollout_source

from .agent import hunt
from .serving import ChatServer
from .task import Task, score, some_of_each, split


class Hunter:
    """The agent on prompts: a prompt is a task as JSON, because TRL hands on no other column."""

    def __init__(self, engine: ChatServer) -> None:
        self._engine = engine

    async def __call__(self, prompt: str) -> float:
        """Play, and return the reward."""
        task = read(prompt)
        async with AsyncOpenAI(base_url=self._engine.url, api_key="none", max_retries=0) as client:
            return score(await hunt(task.question, task.boxes, client), task)


def write(task: Task) -> str:
    """Return a task as a prompt."""
    return json.dumps({"path": task.path, "treasure": task.treasure})


def read(prompt: str) -> Task:
    """Return the task of a prompt."""
    found = json.loads(prompt)
    return Task(tuple(found["path"]), found["treasure"])


def tasks(seed: int) -> Iterator[str]:
    """Yield prompts without an end, as many of one box as of two."""
    chance = random.Random(seed)
    chosen, _ = split(seed)
    while True:
        yield from map(write, some_of_each(chosen, 2, chance))


async def measure(agent: Hunter, store: LightningStore, tracer: OtelTracer, seed: int, count: int) -> float:
    """Return the mean reward of the scored rollouts on ``count`` held-out tasks.

    Raises:
        RuntimeError: None is scored.
    """
    _, held_out = split(seed)
    prompts = map(write, some_of_each(held_out, count, random.Random(0)))
    source = rollout_source(agent, prompts, store=store, tracer=tracer, group_size=1)
    played = [each async for each in source]
    sealed = [each for each in played if isinstance(each, SealedAttempt)]
    rewards = [value for each in sealed if (value := each.rows().outcome.value) is not None]
    if not rewards:
        raise nothing_trainable(played)
    return sum(rewards) / len(rewards)


def nothing_trainable(played: Sequence[Played]) -> RuntimeError:
    """Return the error that none of some rollouts can be trained, with the reasons."""
    refused = [each for each in played if isinstance(each, RefusedAttempt)]
    why = sorted({reason.sentence for each in refused for reason in each.reasons})
    return RuntimeError(f"none of {len(played)} rollouts can be trained: {'; '.join(why)}")


async def receipts(store: LightningStore) -> tuple[int, int]:
    """Return how many rollouts there are that ended, and of how many all spans are there."""
    rollouts = [each for each in await store.query_rollouts() if each.status in {"succeeded", "failed"}]
    whole = [(await store.get_receipt(each.rollout_id, "latest")).whole for each in rollouts]
    return len(rollouts), sum(whole)
