"""TRL trains the tiny Llama on rollouts that were recorded, until its reward has risen; ``--async`` with the other one.

The agent, the engine and TRL know nothing of each other. The tracer records what the agent's calls sampled, the store
says which rollouts are whole, and the exporters hand their rows to TRL.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentlightning import LLM, LightningStore, OtelTracer, open_store
from agentlightning.exporters.trl import trace_reward
from agentlightning.training import rollout_source
from agentlightning.training.trl import TraceRolloutWorker, as_rollout_func

from .engine import Engine
from .playing import Hunter, measure, receipts, tasks

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is downloaded


@dataclass(frozen=True)
class Settings:
    """How to train."""

    steps: int = 40
    seed: int = 0
    asynchronous: bool = False
    groups: int = 8
    """Tasks in a step."""
    generations: int = 8
    """Rollouts of each task."""
    lessons: int = 300
    """Supervised steps on the form of replies before that; see ``model.practise``."""
    learning_rate: float = 1e-3
    held_out: int = 32
    """Tasks that are never trained, to measure on."""


@dataclass(frozen=True)
class Summary:
    """What came of it."""

    before: float
    """Mean reward on held-out tasks before training."""
    after: float
    rollouts: int
    """All of them, measuring included."""
    whole: int
    """Those whose receipt says that no span is missing."""
    seconds: float

    def __str__(self) -> str:
        return (
            f"reward on held-out tasks {self.before:.2f} → {self.after:.2f}; {self.rollouts} rollouts recorded, "
            f"the receipts of {self.whole} whole; {self.seconds:.0f} s"
        )


def train(settings: Settings, report: Callable[[str], None] = print, database: str = "memory://") -> Summary:
    """Train, and return what came of it.

    Args:
        settings: How.
        report: Called with each line of progress.
        database: URL of the store.
    """
    return asyncio.run(_train(settings, report, database))


async def _train(settings: Settings, report: Callable[[str], None], database: str) -> Summary:
    async with open_store(database) as store:
        return await asyncio.to_thread(_train_in, settings, store, report)


def _train_in(settings: Settings, store: LightningStore, report: Callable[[str], None]) -> Summary:
    from .model import make

    began = time.monotonic()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        served, tokenizer = make(folder / "model", settings.seed, settings.lessons)
        engine = stack.enter_context(Engine(served, tokenizer, seed=settings.seed))
        endpoint = LLM(endpoint=engine.url, model=engine.name, sampling_defaults={}, logprob_kind="processed")
        tracer = OtelTracer(capture_tokens="request", endpoints=[endpoint], max_wait_time=60_000)
        stack.enter_context(tracer.lifespan(store))
        run = Run(settings, store, tracer, engine, tokenizer, folder, report)
        before = asyncio.run(run.measured())
        report(f"before: {before:.2f}")
        (run.train_async if settings.asynchronous else run.train_sync)()
        after = asyncio.run(run.measured())
        report(f"after: {after:.2f}")
        rollouts, whole = asyncio.run(receipts(store))
        return Summary(before, after, rollouts, whole, time.monotonic() - began)


@dataclass
class Run:
    """One training."""

    settings: Settings
    store: LightningStore
    tracer: OtelTracer
    engine: Engine
    tokenizer: Any
    folder: Path
    report: Callable[[str], None]

    async def measured(self) -> float:
        """Return the mean reward on held-out tasks, with the weights that are served."""
        return await measure(
            Hunter(self.engine), self.store, self.tracer, self.settings.seed, self.settings.held_out
        )

    def common(self) -> dict[str, Any]:
        """Return the options that both trainers have."""
        return {
            "output_dir": str(self.folder / "out"),
            "use_cpu": True,
            "bf16": False,
            "fp16": False,
            "gradient_checkpointing": False,
            "per_device_train_batch_size": self.settings.groups * self.settings.generations,
            "num_generations": self.settings.generations,
            "max_steps": self.settings.steps,
            "learning_rate": self.settings.learning_rate,
            "lr_scheduler_type": "constant",
            "temperature": 1.0,
            "report_to": [],
            "logging_steps": 5,
            "save_strategy": "no",
            "disable_tqdm": True,
            "seed": self.settings.seed,
            "dataloader_pin_memory": False,
        }

    def train_sync(self) -> None:
        """Train with ``GRPOTrainer``."""
        from datasets import Dataset
        from transformers import AutoModelForCausalLM
        from trl import GRPOConfig, GRPOTrainer

        prompts = [prompt for prompt, _ in zip(tasks(self.settings.seed), range(256), strict=False)]
        with as_rollout_func(Hunter(self.engine), store=self.store, tracer=self.tracer) as rollouts:

            def rollout_func(given: list[str], trainer: Any) -> dict[str, list[Any]]:
                self.engine.update_weights(trainer.model.state_dict(), trainer.state.global_step + 1)
                return rollouts(given, trainer)

            trainer = GRPOTrainer(
                model=AutoModelForCausalLM.from_pretrained(self.folder / "model", dtype="float32"),
                reward_funcs=[trace_reward],
                args=GRPOConfig(**self.common(), beta=0.0),
                train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in prompts]),
                processing_class=self.tokenizer,
                rollout_func=rollout_func,
            )
            self._watch(trainer)
            trainer.train()
            self.engine.update_weights(trainer.model.state_dict(), self.settings.steps + 1)

    def train_async(self) -> None:
        """Train with ``AsyncGRPOTrainer``, while the agent goes on with the weights of the step before."""
        from datasets import Dataset
        from trl.experimental.async_grpo import AsyncGRPOConfig, AsyncGRPOTrainer

        from .on_cpu import EngineTransfer, without_a_gpu

        settings = self.settings
        size = settings.groups * settings.generations
        source = rollout_source(
            Hunter(self.engine), tasks(settings.seed), store=self.store, tracer=self.tracer,
            group_size=settings.generations, concurrency=size,
        )  # fmt: skip
        worker = TraceRolloutWorker(source, group_size=settings.generations, max_queued=size)
        with without_a_gpu():
            trainer = AsyncGRPOTrainer(
                model=str(self.folder / "model"),
                reward_funcs=[],
                args=AsyncGRPOConfig(**self.common(), dtype="float32", token_budget=0, max_staleness=4),
                train_dataset=Dataset.from_list([{"prompt": "not used"}] * size),
                processing_class=self.tokenizer,
                rollout_worker=worker,
                weight_transfer=EngineTransfer(self.engine),
            )
            self._watch(trainer)
            trainer.train()
        self.report(f"rows left out: {dict(worker.counts)}")

    def _watch(self, trainer: Any) -> None:
        from transformers import TrainerCallback

        report = self.report

        class Watch(TrainerCallback):  # type: ignore[misc, unused-ignore]
            """Tells how it goes."""

            def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **more: Any) -> None:
                del args, control, more
                if "reward" in (logs or {}):
                    ratio = f", ratio {logs['ratio']:.3f}" if "ratio" in logs else ""
                    report(f"step {state.global_step}: reward {float(logs['reward']):.2f}{ratio}")

        trainer.add_callback(Watch())


# ------------------------------------------------------------------ the command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 1 where the reward has not risen."""
    default = Settings()
    parser = argparse.ArgumentParser("grpo_trl", description="TRL trains a tiny Llama on recorded rollouts.")
    parser.add_argument("--async", dest="asynchronous", action="store_true", help="with AsyncGRPOTrainer")
    parser.add_argument("--steps", type=int, default=default.steps, help=f"default: {default.steps}")
    parser.add_argument("--seed", type=int, default=default.seed, help=f"default: {default.seed}")
    parser.add_argument("--store", default="memory://", help="URL of the store (default: in memory)")
    options = parser.parse_args(arguments)
    settings = Settings(steps=options.steps, seed=options.seed, asynchronous=options.asynchronous)
    summary = train(settings, lambda line: print(line, flush=True), options.store)
    print(summary)
    return 0 if summary.after > summary.before else 1
