"""Tinker's ``forward_backward`` and ``optim_step`` on recorded rollouts, until the reward has risen.

Each step samples with the weights as they are, waits for the store's word on each rollout, exports the rows, and
hands back what the server computed for them. Nothing lies between sampling and training, so the log-probabilities of
both must be the same, at each step: that is the proof that the rows are what was sampled.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import tinker

from agentlightning import LLM, LightningStore, OtelTracer, open_store
from agentlightning.exporters.checks import numbers
from agentlightning.exporters.tinker import to_datums
from agentlightning.rows.advantage import Formula, row_advantages
from agentlightning.rows.training import TrainingRow
from agentlightning.training import SealedAttempt, rollout_source, write_back

from ..grpo_trl.playing import Hunter, measure, nothing_trainable, receipts, tasks
from .engine import TinkerEngine
from .skyrl import SkyRLServer

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is downloaded

RUN_ID = "tinker_skyrl"
ADVANTAGE = Formula.CENTER
KEY = "tml-none"
"""The client refuses keys that do not begin so; the server asks for none."""


@dataclass(frozen=True)
class Settings:
    """How to train."""

    steps: int = 40
    seed: int = 0
    groups: int = 8
    """Tasks in a step."""
    generations: int = 8
    """Rollouts of each task."""
    lessons: int = 300
    """Supervised steps on the form of replies before that; see ``grpo_trl/model.py``."""
    learning_rate: float = 5e-3
    rank: int = 32
    """Of the LoRA adapter."""
    held_out: int = 32
    """Tasks that are never trained, to measure on."""


@dataclass(frozen=True)
class Summary:
    """What came of it."""

    before: float
    """Mean reward on held-out tasks before training."""
    after: float
    difference: float
    """Largest one between sampler's and trainer's log-probability of a token, over all trained ones of all steps."""
    tokens: int
    """Trained tokens of all steps."""
    rollouts: int
    """All of them, measuring included."""
    whole: int
    """Those whose receipt says that no span is missing."""
    seconds: float

    def __str__(self) -> str:
        return (
            f"reward on held-out tasks {self.before:.2f} → {self.after:.2f}; {self.tokens} tokens trained, whose "
            f"log-probabilities differ by {self.difference:.1e} at most between sampler and trainer; "
            f"{self.rollouts} rollouts recorded, the receipts of {self.whole} whole; {self.seconds:.0f} s"
        )


async def train(
    settings: Settings, report: Callable[[str], None] = print, database: str = "memory://"
) -> Summary:
    """Train, and return what came of it.

    Args:
        settings: How.
        report: Called with each line of progress.
        database: URL of the store.

    Raises:
        RuntimeError: The server does not come up, or ends; or no rollout of a step can be trained.
    """
    from ..grpo_trl.model import make

    began = time.monotonic()
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(open_store(database))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        _, tokenizer = make(folder / "model", settings.seed, settings.lessons)
        report("the server starts, and JAX compiles for each new size: the first step takes the longest")
        server = stack.enter_context(SkyRLServer(folder / "model", folder, rank=settings.rank))
        working = asyncio.create_task(_train_on(server, folder / "model", tokenizer, settings, store, report))
        both = working, asyncio.create_task(server.ended())
        try:
            (done, *_), _ = await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            run, before, after = done.result()
        finally:
            for task in both:
                task.cancel()
            await asyncio.gather(*both, return_exceptions=True)
        rollouts, whole = await receipts(store)
        return Summary(before, after, run.difference, run.tokens, rollouts, whole, time.monotonic() - began)


async def _train_on(
    server: SkyRLServer,
    model: Path,
    tokenizer: Any,
    settings: Settings,
    store: LightningStore,
    report: Callable[[str], None],
) -> tuple[Run, float, float]:
    """Train; return the run, and the rewards on held-out tasks before and after."""
    from ..grpo_trl.model import CONTEXT

    service = tinker.ServiceClient(base_url=server.url, api_key=KEY)
    trainer = await service.create_lora_training_client_async(
        base_model=str(model), rank=settings.rank, seed=settings.seed
    )
    with TinkerEngine(tokenizer, CONTEXT, seed=settings.seed) as engine:
        endpoint = LLM(endpoint=engine.url, model=engine.name, sampling_defaults={}, logprob_kind="raw")
        tracer = OtelTracer(capture_tokens="request", endpoints=[endpoint], max_wait_time=60_000)
        with tracer.lifespan(store):
            run = Run(settings, store, tracer, engine, trainer, report)
            await run.serve(0)
            before = await run.measured()
            report(f"before: {before:.2f}")
            for number in range(settings.steps):
                await run.step(number)
            after = await run.measured()
            report(f"after: {after:.2f}")
            return run, before, after


@dataclass
class Run:
    """One training."""

    settings: Settings
    store: LightningStore
    tracer: OtelTracer
    engine: TinkerEngine
    trainer: Any
    """``tinker.TrainingClient``."""
    report: Callable[[str], None]
    difference: float = 0.0
    tokens: int = 0

    def __post_init__(self) -> None:
        self._agent = Hunter(self.engine)
        self._tasks = tasks(self.settings.seed)

    async def serve(self, version: int) -> None:
        """Let the engine sample with the weights as they are now."""
        self.engine.use(await self.trainer.save_weights_and_get_sampling_client_async(), version)

    async def measured(self) -> float:
        """Return the mean reward on held-out tasks, with the weights that are served."""
        return await measure(self._agent, self.store, self.tracer, self.settings.seed, self.settings.held_out)

    async def step(self, number: int) -> None:
        """Sample, train on it, hand back what the trainer computed, and serve the new weights."""
        rows = await self._sampled()
        rewards = {row.rollout_id: row.reward for row in rows if row.reward is not None}
        asked = await self.trainer.forward_backward_async(
            to_datums(rows, advantage=ADVANTAGE, on_unscored="error"), "importance_sampling"
        )
        stepped = await self.trainer.optim_step_async(
            tinker.AdamParams(learning_rate=self.settings.learning_rate)
        )
        passed = await asked.result_async()
        await stepped.result_async()
        difference = await self._hand_back(rows, passed.loss_fn_outputs, number)
        await self.serve(number + 1)
        self.report(
            f"step {number + 1}: reward {sum(rewards.values()) / len(rewards):.2f}, {len(rows)} rows, "
            f"sampler and trainer differ by {difference:.1e}"
        )

    async def _sampled(self) -> list[TrainingRow]:
        prompts = islice(self._tasks, self.settings.groups)
        source = rollout_source(
            self._agent, prompts, store=self.store, tracer=self.tracer, group_size=self.settings.generations
        )
        played = [each async for each in source]
        rows = [row for each in played if isinstance(each, SealedAttempt) for row in each.rows()]
        if not rows:
            raise nothing_trainable(played)
        return rows

    async def _hand_back(self, rows: Sequence[TrainingRow], outputs: Sequence[Any], step: int) -> float:
        """Store the trainer's log-probabilities beside the spans; return how far they are from the sampler's."""
        largest = 0.0
        for row, output, advantage in zip(rows, outputs, row_advantages(rows, ADVANTAGE), strict=True):
            # Output i is about token i + 1; nothing is said of the first one, which is of the prompt.
            logprobs = [0.0, *output["logprobs"].tolist()]
            for own, theirs, trained in zip(numbers(row), logprobs, row.loss_mask, strict=True):
                largest = max(largest, abs(own - theirs)) if trained else largest
            await write_back(
                self.store, row, run_id=RUN_ID, step=step, token_ids=row.token_ids,
                advantages=advantage, logprobs=logprobs,
            )  # fmt: skip
            self.tokens += row.trained_tokens
        self.difference = max(self.difference, largest)
        return largest


# ------------------------------------------------------------------ the command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 1 where the reward has not risen."""
    default = Settings()
    parser = argparse.ArgumentParser(
        "tinker_skyrl", description="Tinker trains a tiny Llama on SkyRL's server, from recorded rollouts."
    )
    parser.add_argument("--steps", type=int, default=default.steps, help=f"default: {default.steps}")
    parser.add_argument("--seed", type=int, default=default.seed, help=f"default: {default.seed}")
    parser.add_argument("--learning-rate", type=float, default=default.learning_rate)
    parser.add_argument("--store", default="memory://", help="URL of the store (default: in memory)")
    options = parser.parse_args(arguments)
    settings = Settings(steps=options.steps, seed=options.seed, learning_rate=options.learning_rate)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # or the server would outlive it
    try:
        summary = asyncio.run(train(settings, lambda line: print(line, flush=True), options.store))
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 2
    print(summary)
    return 0 if summary.after > summary.before else 1
