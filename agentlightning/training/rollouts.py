"""Runs an agent on prompts, recorded, and says of each rollout whether it can be trained.

Each is a ``tracer.rollout`` and names its group itself. What comes back is the store's word: a
sealed attempt, or a refused one with the reasons. An agent that raises refuses its own rollout and no other.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass
from numbers import Real
from typing import Any, NamedTuple

from ..errors import RolloutNotFound
from ..rows.completeness import RewardRule
from ..rows.policy import RowPolicy
from ..rows.reasons import Code, TraceReason
from ..rows.sealed import RefusedAttempt, SealedAttempt
from ..store.base import LightningStore
from ..store.sealing import SETTLE_SECONDS, Sealing
from ..tracer.base import Tracer
from ..types import RolloutMode

_log = logging.getLogger(__name__)

RunAgent = Callable[[Any], Any]
"""Takes a prompt, and works on it; plain functions run in a thread. A number that it returns is its reward."""
Played = SealedAttempt | RefusedAttempt


class Job(NamedTuple):
    """One rollout to play."""

    prompt: Any
    group_id: str
    mode: RolloutMode
    metadata: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Player:
    """How rollouts are played.

    Args:
        run_agent: The agent.
        store: Where rollouts go.
        tracer: One that is ready (``with tracer.lifespan(store)``).
        policy: Which calls are trained.
        reward: ``required``, or ``optional`` to declare that a rollout needs no scored reward.
        timeout: Seconds that an agent may take; ``None`` = for ever. A plain function is left to end by itself.
        settle: Seconds to wait for spans of a finished rollout that are still under way.
        name: Of the root span of each rollout.
    """

    run_agent: RunAgent
    store: LightningStore
    tracer: Tracer
    policy: RowPolicy | None = None
    reward: RewardRule = "required"
    timeout: float | None = None
    settle: float = SETTLE_SECONDS
    name: str = "rollout"

    async def play(self, job: Job) -> Played:
        """Run the agent once, and return what can be trained of it."""
        recording = self.tracer.rollout(
            job.prompt,
            name=self.name,
            group=job.group_id,
            mode=job.mode,
            metadata=job.metadata,
            store=self.store,
            seal=Sealing(self.policy, self.reward, self.settle),
        )
        failure: Exception | None = None
        try:
            async with recording as rollout:
                try:
                    async with asyncio.timeout(self.timeout):
                        earned = await self._run(job.prompt)
                    # Inside of the context, so that the reward is one of its spans.
                    if isinstance(earned, Real):
                        rollout.reward(float(earned))
                except Exception as error:
                    failure = error
                    raise
        except Exception as error:
            if error is not failure:  # of the store, and no rollout's own
                raise
            return await _failed(self.store, rollout.rollout_id, error)
        sealed: Played = rollout.sealed
        return sealed

    async def _run(self, prompt: Any) -> Any:
        agent = self.run_agent
        if inspect.iscoroutinefunction(agent) or inspect.iscoroutinefunction(type(agent).__call__):
            return await agent(prompt)
        # A plain function may return a coroutine, such as a ``functools.partial`` of one.
        found = await asyncio.to_thread(agent, prompt)
        return await found if inspect.isawaitable(found) else found

    async def stream(self, jobs: Iterable[Job], concurrency: int) -> AsyncIterator[Played]:
        """Play the jobs, at most ``concurrency`` at a time, and yield each as it ends."""
        waiting = iter(jobs)
        running: set[asyncio.Task[Played]] = set()
        try:
            while True:
                # Taken from the iterator only as there is room: prompts may have no end.
                while len(running) < concurrency and (job := next(waiting, None)) is not None:
                    running.add(asyncio.create_task(self.play(job)))
                if not running:
                    return
                done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    yield task.result()
        finally:
            # The consumer has left. Agents that are cancelled end their rollouts, which is awaited.
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)


async def rollout_source(
    run_agent: RunAgent,
    prompts: Iterable[Any],
    *,
    store: LightningStore,
    tracer: Tracer,
    group_size: int,
    concurrency: int = 64,
    policy: RowPolicy | None = None,
    reward: RewardRule = "required",
    timeout: float | None = None,
    settle: float = SETTLE_SECONDS,
) -> AsyncIterator[Played]:
    """Run an agent ``group_size`` times on each prompt, recorded, and yield each rollout as it ends.

    Args:
        run_agent: Takes a prompt; a coroutine function, or a plain one. A number that it returns is its reward.
        prompts: As many as shall be played; for an asynchronous trainer usually without an end.
        store: Where rollouts go.
        tracer: One that is ready (``with tracer.lifespan(store)``).
        group_size: Rollouts of each prompt.
        concurrency: Agents that run at a time.
        policy: Which calls are trained: a rollout that gives no row by it is refused.
        reward: ``optional`` declares that a rollout needs no scored reward.
        timeout: Seconds that an agent may take; ``None`` = for ever.
        settle: Seconds to wait for spans of a finished rollout that are still under way.
    """
    player = Player(
        run_agent=run_agent,
        store=store,
        tracer=tracer,
        policy=policy,
        reward=reward,
        timeout=timeout,
        settle=settle,
    )
    stream = player.stream(samples(prompts, group_size), concurrency)
    try:
        async for played in stream:
            yield played
    finally:
        await stream.aclose()  # type: ignore[attr-defined]


def samples(prompts: Iterable[Any], group_size: int) -> Iterator[Job]:
    """Yield ``group_size`` jobs for each prompt; the groups of each call have ids of their own."""
    run = uuid.uuid4().hex[:12]
    for number, prompt in enumerate(prompts):
        for sample in range(group_size):
            yield Job(prompt, f"{run}-{number}", "train", {"prompt": number, "sample": sample})


async def _failed(store: LightningStore, rollout_id: str, error: Exception) -> RefusedAttempt:
    """Return a rollout whose agent has failed: it is data, and its siblings go on."""
    _log.warning("rollout %s is not trained: its agent failed", rollout_id, exc_info=error)
    reason = TraceReason.AGENT_FAILED
    why = Code(reason.code, f"{reason.sentence}: {error!r}", reason.cure)
    rollout = await store.get_rollout_by_id(rollout_id)
    if rollout is None:
        raise RolloutNotFound(rollout_id)
    return RefusedAttempt(rollout, await store.get_latest_attempt(rollout_id), (why,))
