"""``rollout_func`` of TRL's ``GRPOTrainer``: an agent, run once per prompt and recorded."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections import Counter
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from ...errors import NotExportable
from ...exporters.trl import OnFork, rollout_dict
from ...rows.completeness import RewardRule
from ...rows.policy import RowPolicy
from ...store.base import LightningStore
from ...store.sealing import SETTLE_SECONDS
from ...tracer.base import Tracer
from ...types import RolloutMode
from ..background import BackgroundLoop
from ..rollouts import Job, Played, Player, RunAgent

_log = logging.getLogger(__name__)


class RolloutFunction:
    """What :func:`as_rollout_func` returns. Call ``close`` at the end, or use it in a ``with``."""

    def __init__(
        self, player: Player, *, on_fork: OnFork, concurrency: int, policy: RowPolicy | None, run: str
    ) -> None:
        self._player = player
        self._on_fork = on_fork
        self._places = asyncio.Semaphore(concurrency)
        self._policy = policy
        self._run = run
        self._calls = 0
        self._loop = BackgroundLoop("agl-rollouts")
        self.counts: Counter[str] = Counter()
        """Code → rollouts that trained nothing because of it; ``rows_left_out`` counts rows, of rollouts that fork."""

    def __call__(self, prompts: Sequence[Any], trainer: Any) -> dict[str, list[Any]]:
        """Run the agent on each prompt.

        Raises:
            NotExportable: No rollout at all can be trained, or a row is one that TRL would train wrongly: see
                :func:`rollout_dict`, which gets the trainer's own temperature.
        """
        self._calls += 1
        played = self._loop.run(self._play(self._jobs(prompts, trainer)))
        model = trainer.model
        found = rollout_dict(
            played,
            on_fork=self._on_fork,
            policy=self._policy,
            placeholder=_end_token(trainer),
            vocabulary=getattr(getattr(model, "config", None), "vocab_size", None),
            temperature=trainer.temperature if model.training else None,  # an evaluation may be greedy
        )
        self._count(found, alone=trainer.accelerator.num_processes == 1)
        return found

    async def _play(self, jobs: Sequence[Job]) -> list[Played]:
        async def place(job: Job) -> Played:
            async with self._places:
                return await self._player.play(job)

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(place(job)) for job in jobs]
        return [task.result() for task in tasks]

    def _jobs(self, prompts: Sequence[Any], trainer: Any) -> list[Job]:
        """Return a job for each prompt; TRL has repeated them, so groups are neighbours, over all processes."""
        training = trainer.model.training
        size = trainer.num_generations if training else trainer.num_generations_eval
        # A group may begin in one process and end in the next, so places are counted over all.
        first = trainer.accelerator.process_index * len(prompts)
        mode: RolloutMode = "train" if training else "val"
        step = trainer.state.global_step
        return [
            Job(
                prompt,
                f"{self._run}-{self._calls}-{(first + place) // size}",
                mode,
                {"step": step, "sample": (first + place) % size},
            )
            for place, prompt in enumerate(prompts)
        ]

    def _count(self, found: dict[str, list[Any]], *, alone: bool) -> None:
        refused = Counter(code for code in found["trace_refused"] if code is not None)
        left_out = sum(found["trace_rows_left_out"])
        self.counts.update(refused)
        self.counts["rows_left_out"] += left_out
        count = len(found["trace_refused"])
        if refused or left_out:
            _log.warning(
                "of %d rollouts, %d train nothing (%s); %d rows of rollouts that fork are left out",
                count,
                refused.total(),
                dict(refused),
                left_out,
            )
        # With several processes the others may have something to train, and wait for this one.
        if alone and count and refused.total() == count:
            raise NotExportable(f"none of {count} rollouts can be trained: {dict(refused)}")

    def close(self) -> None:
        """Stop the event loop that agents run in; twice is fine."""
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        self.close()


def as_rollout_func(
    run_agent: RunAgent,
    *,
    store: LightningStore,
    tracer: Tracer,
    on_fork: OnFork = "longest",
    concurrency: int = 64,
    policy: RowPolicy | None = None,
    reward: RewardRule = "required",
    timeout: float | None = None,
    settle: float = SETTLE_SECONDS,
    run: str | None = None,
) -> RolloutFunction:
    """Return a ``rollout_func`` for TRL's ``GRPOTrainer`` that runs an agent once per prompt, recorded.

    All calls run in one event loop, so that clients can be kept from batch to batch. TRL gives a rollout function
    the prompts and no other column of the data set: where the agent needs more, put it into the prompt, as text.
    TRL enforces no length on the rows; ``RowPolicy(max_tokens=…)`` does. Serving the trainer's weights is the
    caller's: bring them to the engine before the call, as ``trainer.model`` has them.

    Args:
        run_agent: Takes a prompt; a coroutine function, or a plain one. A number that it returns is its reward.
        store: Where rollouts go.
        tracer: One that is ready (``with tracer.lifespan(store)``).
        on_fork: See :func:`rollout_dict`.
        concurrency: Agents that run at a time.
        policy: Which calls are trained.
        reward: ``optional`` trains rollouts that the trace gives no reward, for other reward functions.
        timeout: Seconds that an agent may take; ``None`` = for ever.
        settle: Seconds to wait for spans of a finished rollout that are still under way.
        run: First part of group ids, the same in all processes of one training; default: one drawn at random.

    Raises:
        ValueError: ``reward`` is ``steps``: TRL's ``GRPOTrainer`` has one reward per completion and none per token.
    """
    if reward == "steps":
        raise ValueError(
            "TRL's GRPOTrainer takes one reward per rollout, and none for single answers: give the rollout one "
            "(emit_reward() without a target), or train with SkyRL or verl, which take rewards='steps'"
        )
    player = Player(
        run_agent=run_agent,
        store=store,
        tracer=tracer,
        policy=policy,
        reward=reward,
        timeout=timeout,
        settle=settle,
    )
    return RolloutFunction(
        player, on_fork=on_fork, concurrency=concurrency, policy=policy, run=run or uuid.uuid4().hex[:12]
    )


def _end_token(trainer: Any) -> int:
    processing = trainer.processing_class
    tokenizer = getattr(processing, "tokenizer", processing)
    token = getattr(tokenizer, "eos_token_id", None)
    return token if isinstance(token, int) else 0
