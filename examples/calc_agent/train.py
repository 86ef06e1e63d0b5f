"""The learning loop: play, read what was recorded, learn, and again.

The three parts know as little of each other as if they ran on three machines. ``Player.play`` runs the agent under
the tracer and returns nothing but the ids of the rollouts. ``read_rows`` reads the store, and only the store.
``Learner.learn`` sees only rows. So what ties the tokens of a rollout to its reward is the record alone. The
control shows it: with the reward of each rollout given to another one, nothing is learnt.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from openai import AsyncOpenAI

from agentlightning import (
    Endpoint,
    LightningStore,
    OtelTracer,
    RolloutMode,
    Span,
    TracerTraceToTriplet,
    find_final_reward,
)

from .agent import solve
from .learning import Learner, Row, self_check
from .policy import Policy
from .server import PolicyServer
from .settings import Settings
from .tasks import Task, score, some_of_each, split

EQUAL = 1e-9
"""Log-probabilities that differ by less are the same; the rows of a sound record differ by 0."""


@dataclass(frozen=True)
class Point:
    """One point of the learning curve: an iteration, or 0 for what was there before the first."""

    iteration: int
    rollouts: int
    """Rollouts that were learnt from so far."""
    train: float | None
    """Mean reward of this iteration, on the tasks that were trained on; ``None`` at the start."""
    test: float | None
    """Mean reward after it, on tasks that are never trained on; ``None`` where that was not asked."""


@dataclass
class Result:
    """What became of a run."""

    settings: Settings
    curve: list[Point] = field(default_factory=list)
    self_check: float = 0.0
    """Largest difference between a recorded log-probability and the same one recomputed from its row."""
    attempts: int = 0
    receipts: Counter[str] = field(default_factory=Counter)
    """Spans started, stored, dropped and open, over all attempts."""

    @property
    def tests(self) -> list[tuple[int, float]]:
        """(training rollouts so far, test reward) of each test."""
        return [(point.rollouts, point.test) for point in self.curve if point.test is not None]

    @property
    def chance(self) -> float:
        """Test reward of the untrained policy."""
        return self.tests[0][1]

    @property
    def final(self) -> float:
        """Test reward of the policy at the end."""
        return self.tests[-1][1]


async def train(store: LightningStore, settings: Settings, report: Callable[[Point], None]) -> Result:
    """Run the loop; ``report`` is called with each point of the curve as soon as it is known."""
    policy = Policy()
    with PolicyServer(policy, settings.seed) as server:
        # The agent does not ask for token ids, so the tracer does, and hides them from the agent.
        tracer = OtelTracer(capture_tokens="request", endpoints=[Endpoint(server.url, {}, "processed")])
        with tracer.lifespan(store):
            async with AsyncOpenAI(base_url=server.url, api_key="none") as client:
                player = Player(store, tracer, client, settings.at_once)
                return await iterate(player, policy, settings, report)


async def iterate(
    player: Player, policy: Policy, settings: Settings, report: Callable[[Point], None]
) -> Result:
    """Alternate between playing and learning, and test now and then."""
    store, result, learner = player.store, Result(settings), Learner(policy)
    train_tasks, test_tasks = split(settings.seed)
    drawn, dealt = random.Random(settings.seed), random.Random(settings.seed)

    for iteration in range(settings.iterations + 1):
        train_reward: float | None = None
        if iteration:
            tasks = some_of_each(train_tasks, settings.tasks, drawn)
            rows = await read_rows(store, await player.play(tasks, settings.samples, "train", iteration))
            train_reward = mean_reward(rows)
            result.self_check = max(result.self_check, checked(policy, rows))
            learner.learn(dealt_anew(rows, dealt) if settings.control else rows)

        test_reward: float | None = None
        if iteration % settings.test_every == 0 or iteration == settings.iterations:
            test_reward = mean_reward(
                await read_rows(store, await player.play(test_tasks, 1, "test", iteration))
            )
        learnt_from = iteration * settings.tasks * settings.samples
        result.curve.append(Point(iteration, learnt_from, train_reward, test_reward))
        report(result.curve[-1])

    result.attempts = len(player.rollout_ids)
    result.receipts = await receipt_totals(store, player.rollout_ids)
    return result


class Player:
    """Runs the agent under the tracer, several rollouts at a time."""

    def __init__(self, store: LightningStore, tracer: OtelTracer, client: AsyncOpenAI, at_once: int) -> None:
        self.store = store
        self.tracer = tracer
        self.client = client
        self.rollout_ids: list[str] = []
        """Of all rollouts so far."""
        self._places = asyncio.Semaphore(at_once)

    async def play(self, tasks: Sequence[Task], samples: int, mode: RolloutMode, iteration: int) -> list[str]:
        """Let the agent try each task ``samples`` times; return the ids of the rollouts, group after group."""
        first = len(self.rollout_ids)
        planned = [(first + group, task) for group, task in enumerate(tasks) for _ in range(samples)]
        played = await asyncio.gather(
            *(
                self._rollout(task, mode, {"iteration": iteration, "group": group, "seed": seed})
                for seed, (group, task) in enumerate(planned, start=first)
            )
        )
        self.rollout_ids += played
        return played

    async def _rollout(self, task: Task, mode: RolloutMode, metadata: dict[str, int]) -> str:
        async with self._places:
            async with self.tracer.rollout(task, name="calc", mode=mode, metadata=metadata) as rollout:
                solution = await solve(task["question"], self.client, metadata["seed"])
                rollout.reward(score(solution, task))
            return str(rollout.rollout_id)


async def read_rows(store: LightningStore, rollout_ids: Sequence[str]) -> list[Row]:
    """Return the training rows of rollouts, in their order, from what the store holds of them."""
    rollouts = {each.rollout_id: each for each in await store.query_rollouts(rollout_id_in=rollout_ids)}
    rows: list[Row] = []
    for rollout_id in rollout_ids:
        metadata = rollouts[rollout_id].metadata or {}
        rows += rows_of(await store.query_spans(rollout_id, "latest"), rollout_id, metadata["group"])
    return rows


def rows_of(spans: Sequence[Span], rollout_id: str, group: int) -> list[Row]:
    """Return a row for each model call among the spans of an attempt."""
    reward = find_final_reward(spans)
    if reward is None:
        raise ValueError(f"rollout {rollout_id} has no reward")
    return [
        Row(
            rollout_id=rollout_id,
            group=group,
            prompt=triplet.prompt["token_ids"],
            response=triplet.response["token_ids"],
            logprobs=[token["logprob"] for token in triplet.response["logprobs"]],
            version=triplet.metadata["policy_version"][0]["version"],
            reward=reward,
        )
        for triplet in TracerTraceToTriplet().adapt(spans)
    ]


def checked(policy: Policy, rows: Sequence[Row]) -> float:
    """Return the result of the self-check.

    Raises:
        ValueError: The rows are not what this policy sampled; learning from them would be wrong.
    """
    if {row.version for row in rows} != {str(policy.version)}:
        raise ValueError(f"rows of other weights than version {policy.version}")
    difference = self_check(policy, rows)
    if difference > EQUAL:
        raise ValueError(f"recorded log-probabilities are off by up to {difference}")
    return difference


def dealt_anew(rows: Sequence[Row], chance: random.Random) -> list[Row]:
    """Return the rows with the rewards of their rollouts permuted among the rollouts: the control."""
    rewards = rewards_of(rows)
    permuted = chance.sample(list(rewards.values()), len(rewards))
    wrong = dict(zip(rewards, permuted, strict=True))
    return [replace(row, reward=wrong[row.rollout_id]) for row in rows]


def mean_reward(rows: Sequence[Row]) -> float:
    """Return the mean reward of the rollouts that the rows are of."""
    rewards = rewards_of(rows)
    return sum(rewards.values()) / len(rewards)


def rewards_of(rows: Sequence[Row]) -> dict[str, float]:
    """Return rollout id → reward."""
    return {row.rollout_id: row.reward for row in rows}


async def receipt_totals(store: LightningStore, rollout_ids: Sequence[str]) -> Counter[str]:
    """Add up the receipts of the rollouts: how many spans were started, and what became of them."""
    totals: Counter[str] = Counter()
    for rollout_id in rollout_ids:
        receipt = await store.get_receipt(rollout_id, "latest")
        totals.update(
            started=receipt.started,
            stored=receipt.stored,
            dropped=sum(receipt.dropped.values()),
            open=receipt.open,
        )
    return totals
