"""TRL's own trainers train on rollouts that were recorded while a tiny Llama was served (properties E1, D2 and D3)."""

from __future__ import annotations

import asyncio
import copy
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# Read when they are imported; else huggingface_hub starts a thread that never ends, to tell of its use.
os.environ["HF_HUB_OFFLINE"] = os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

pytest.importorskip("trl", reason="scripts/trainers installs trl")
torch = pytest.importorskip("torch", reason="scripts/trainers installs trl")

from openai import AsyncOpenAI  # noqa: E402 - after the skips
from pages import blocks, run  # noqa: E402

from agentlightning import LLM, InMemoryLightningStore, LightningStore, OtelTracer  # noqa: E402
from agentlightning.errors import NotExportable  # noqa: E402
from agentlightning.exporters.trl import trace_reward  # noqa: E402
from agentlightning.instrumentation.guard import reraise  # noqa: E402
from agentlightning.training import rollout_source  # noqa: E402
from agentlightning.training.trl import TraceRolloutWorker, as_rollout_func  # noqa: E402
from examples.grpo_trl.engine import Engine  # noqa: E402
from examples.grpo_trl.model import make  # noqa: E402

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*gradient_checkpointing` is deprecated:FutureWarning"  # TRL and transformers use it themselves
)

NEAR = 1e-4
"""Log-probabilities that differ by less are the same in float32."""
FAILING = "fail "
"""Prompts that begin so make the agent fail, every second time."""


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Path]:
    """A random Llama, its tokenizer, and the folder with both."""
    folder = tmp_path_factory.mktemp("tiny")
    return (*make(folder, seed=1), folder)


@pytest.fixture
def memory() -> Iterator[LightningStore]:
    store = InMemoryLightningStore()
    yield store
    asyncio.run(store.close())


def traced(engine: Engine) -> OtelTracer:
    endpoint = LLM(endpoint=engine.url, model=engine.name, sampling_defaults={}, logprob_kind="processed")
    return OtelTracer(capture_tokens="request", endpoints=[endpoint], max_wait_time=60_000, policy=reraise)


def talker(engine: Engine) -> Any:
    """Return an agent that says two things, and is paid for a long one at the end."""
    numbers = itertools.count()

    async def talk(prompt: str) -> float:
        if prompt.startswith(FAILING) and next(numbers) % 2:
            raise OSError("the tool is broken")
        messages: list[Any] = [{"role": "user", "content": prompt}]
        said = ""
        async with AsyncOpenAI(base_url=engine.url, api_key="none", max_retries=0) as client:
            for _ in range(2):
                answer = await client.chat.completions.create(
                    model="tiny", messages=messages, max_tokens=6, temperature=1.0, top_p=1.0
                )
                said = answer.choices[0].message.content or ""
                messages += [{"role": "assistant", "content": said}, {"role": "user", "content": "on"}]
        return len(said) / 16

    return talk


# ------------------------------------------------------------------ GRPOTrainer


def sync_trainer(
    tiny: tuple[Any, Any, Path], rollout_func: Any, prompts: list[str], folder: Path, **more: Any
) -> Any:
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    class Watched(GRPOTrainer):  # type: ignore[misc, unused-ignore]
        """Keeps what it made of the rollouts, with the log-probabilities that it computes itself."""

        seen: list[dict[str, Any]] = []

        def _generate_and_score_completions(self, inputs: Any) -> Any:
            made = super()._generate_and_score_completions(inputs)
            ids = torch.cat([made["prompt_ids"], made["completion_ids"]], dim=1)
            attended = torch.cat([made["prompt_mask"], made["completion_mask"]], dim=1)
            with torch.no_grad():
                own, *_ = self._get_per_token_logps_and_entropies(
                    self.model, ids, attended, made["completion_ids"].size(1)
                )
            self.seen.append({**made, "own": own})
            return made

    model, tokenizer, _ = tiny
    config = GRPOConfig(
        output_dir=str(folder), use_cpu=True, bf16=False, fp16=False, gradient_checkpointing=False,
        per_device_train_batch_size=8, num_generations=4, max_steps=2, learning_rate=1e-3,
        lr_scheduler_type="constant", beta=0.0, temperature=1.0, report_to=[], logging_steps=1,
        save_strategy="no", disable_tqdm=True, seed=0, dataloader_pin_memory=False, **more,
    )  # fmt: skip
    trainer = Watched(
        model=copy.deepcopy(model),
        reward_funcs=[trace_reward],
        args=config,
        train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in prompts]),
        processing_class=tokenizer,
        rollout_func=rollout_func,
    )
    trainer.seen = []
    return trainer


def test_e1_and_d2_the_sync_trainer_trains_what_was_sampled(
    tiny: tuple[Any, Any, Path], memory: LightningStore, tmp_path: Path
) -> None:
    found: list[dict[str, Any]] = []
    with (
        Engine(copy.deepcopy(tiny[0]), tiny[1]) as engine,
        (tracer := traced(engine)).lifespan(memory),
        as_rollout_func(talker(engine), store=memory, tracer=tracer) as rollouts,
    ):

        def rollout_func(prompts: list[str], trainer: Any) -> dict[str, Any]:
            engine.update_weights(trainer.model.state_dict(), trainer.state.global_step)
            found.append(rollouts(prompts, trainer))
            return found[-1]

        trainer = sync_trainer(tiny, rollout_func, ["box 1", f"{FAILING} box"], tmp_path)
        trainer.train()

    assert len(found) == len(trainer.seen) == 2
    for given, made in zip(found, trainer.seen, strict=True):
        mask = (made["completion_mask"] * made["tool_mask"]).bool()
        assert mask.sum(1).tolist() == [sum(each) for each in given["env_mask"]]
        gap = (made["own"] - made["sampling_per_token_logps"])[mask].abs().max()
        assert gap < NEAR
        placeholders = [place for place, why in enumerate(given["trace_refused"]) if why]
        assert len(placeholders) == 2
        assert made["advantages"][placeholders].tolist() == [0.0, 0.0]
        assert int(made["num_items_in_batch"]) == int(mask.sum())
    assert rollouts.counts["agent_failed"] == 4
    logged = trainer.state.log_history[0]
    assert logged["trace/refused_frac"] == pytest.approx(0.25)
    assert logged["grad_norm"] > 0
    check_that_placeholders_weigh_nothing(trainer, trainer.seen[0], found[0])
    check_the_groups(memory, found)


def check_that_placeholders_weigh_nothing(trainer: Any, made: dict[str, Any], given: dict[str, Any]) -> None:
    """Their gradient is the same whatever token they are made of."""
    place = next(place for place, why in enumerate(given["trace_refused"]) if why)
    other = {**made, "completion_ids": made["completion_ids"].clone()}
    other["completion_ids"][place, 0] += 5
    trainer.current_gradient_accumulation_steps = 1
    gradients = []
    for batch in (made, other):
        trainer.model.zero_grad()
        trainer._compute_loss(trainer.model, batch).backward()
        gradients.append([each.grad.clone() for each in trainer.model.parameters()])
    assert any(each.abs().max() > 0 for each in gradients[0])
    for first, second in zip(*gradients, strict=True):
        assert torch.equal(first, second)


def check_the_groups(store: LightningStore, found: list[dict[str, Any]]) -> None:
    rollouts = {each.rollout_id: each for each in asyncio.run(store.query_rollouts())}
    assert len(rollouts) == 16
    for given in found:
        metadata = [rollouts[rollout_id].metadata or {} for rollout_id in given["rollout_id"]]
        groups = [each["group_id"] for each in metadata]
        assert groups == [groups[0]] * 4 + [groups[4]] * 4
        assert groups[0] != groups[4]
        assert [each["sample"] for each in metadata] == [0, 1, 2, 3] * 2
        inputs = [rollouts[rollout_id].input for rollout_id in given["rollout_id"]]
        assert inputs == [inputs[0]] * 4 + [inputs[4]] * 4


def test_a_batch_of_which_nothing_can_be_trained_stops_the_trainer(
    tiny: tuple[Any, Any, Path], memory: LightningStore, tmp_path: Path
) -> None:
    def broken(prompt: str) -> None:
        raise OSError(prompt)

    with (
        Engine(copy.deepcopy(tiny[0]), tiny[1]) as engine,
        (tracer := traced(engine)).lifespan(memory),
        as_rollout_func(broken, store=memory, tracer=tracer) as rollouts,
        pytest.raises(NotExportable, match=r"none of 8 rollouts can be trained: \{'agent_failed': 8\}"),
    ):
        sync_trainer(tiny, rollouts, ["box 1", "box 2"], tmp_path).train()


# ------------------------------------------------------------------ AsyncGRPOTrainer


def async_trainer(tiny: tuple[Any, Any, Path], engine: Engine, worker: Any, folder: Path) -> Any:
    """Return an ``AsyncGRPOTrainer``; make it and train inside of ``without_a_gpu``."""
    from datasets import Dataset
    from trl.experimental.async_grpo import AsyncGRPOConfig, AsyncGRPOTrainer

    from examples.grpo_trl.on_cpu import EngineTransfer

    config = AsyncGRPOConfig(
        output_dir=str(folder), use_cpu=True, bf16=False, fp16=False, gradient_checkpointing=False,
        dtype="float32", per_device_train_batch_size=8, num_generations=4, max_steps=3,
        learning_rate=1e-3, token_budget=0, max_staleness=1, weight_sync_steps=1, temperature=1.0,
        max_inflight_tasks=1, report_to=[], logging_steps=1, save_strategy="no", disable_tqdm=True,
        seed=0, dataloader_pin_memory=False,
    )  # fmt: skip
    return AsyncGRPOTrainer(
        model=str(tiny[2]),
        reward_funcs=[],
        args=config,
        train_dataset=Dataset.from_list([{"prompt": "unused"}] * 4),
        processing_class=tiny[1],
        rollout_worker=worker,
        weight_transfer=EngineTransfer(engine),
    )


@pytest.mark.parametrize("keep_ids", [True, False], ids=["one row each", "two rows each"])
def test_d2_and_d3_the_async_trainer_trains_what_was_sampled(
    keep_ids: bool, tiny: tuple[Any, Any, Path], memory: LightningStore, tmp_path: Path
) -> None:
    from examples.grpo_trl.on_cpu import without_a_gpu

    with (
        without_a_gpu(),
        Engine(copy.deepcopy(tiny[0]), tiny[1], keep_ids=keep_ids) as engine,
        (tracer := traced(engine)).lifespan(memory),
    ):
        prompts = (f"box {number}" for number in itertools.count(1))
        source = rollout_source(
            talker(engine), prompts, store=memory, tracer=tracer, group_size=4, concurrency=8
        )
        worker = TraceRolloutWorker(source, group_size=4, max_staleness=0, max_queued=16)
        trainer = async_trainer(tiny, engine, worker, tmp_path)
        trainer.train()
        assert engine.version == "4"

    first, *_ = trainer.state.log_history
    assert first["ratio"] == pytest.approx(1.0, abs=NEAR)
    assert first["kl"] == pytest.approx(0.0, abs=NEAR)
    assert worker.model_version == 4
    rows_each = (worker.counts["rows"] + worker.counts["stale_rows"]) / worker.counts["rollouts"]
    assert rows_each <= 1 if keep_ids else rows_each > 1.5  # it stops in the midst of a rollout
    assert all(entry["sample/staleness_max"] <= 1 for entry in trainer.state.log_history[:3])


def test_rollouts_that_all_fail_end_the_async_trainer_with_the_reasons(
    tiny: tuple[Any, Any, Path], memory: LightningStore, tmp_path: Path
) -> None:
    from examples.grpo_trl.on_cpu import without_a_gpu

    def broken(prompt: str) -> None:
        raise OSError(prompt)

    with (
        without_a_gpu(),
        Engine(copy.deepcopy(tiny[0]), tiny[1]) as engine,
        (tracer := traced(engine)).lifespan(memory),
    ):
        prompts = (f"box {number}" for number in itertools.count(1))
        source = rollout_source(broken, prompts, store=memory, tracer=tracer, group_size=4, concurrency=8)
        worker = TraceRolloutWorker(source, group_size=4, give_up_after=16)
        with pytest.raises(
            NotExportable, match=r"none of the last 16 rollouts can be trained: \{'agent_failed': 16\}"
        ):
            async_trainer(tiny, engine, worker, tmp_path).train()


# ------------------------------------------------------------------ the page


def test_the_page_on_trl_runs(
    tiny: tuple[Any, Any, Path], memory: LightningStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from datasets import Dataset

    from examples.grpo_trl.on_cpu import EngineTransfer, without_a_gpu

    model, tokenizer, folder = tiny
    settings = {
        "output_dir": str(tmp_path), "use_cpu": True, "bf16": False, "fp16": False, "gradient_checkpointing": False,
        "per_device_train_batch_size": 8, "num_generations": 8, "max_steps": 1, "temperature": 1.0,
        "report_to": [], "save_strategy": "no", "disable_tqdm": True, "dataloader_pin_memory": False,
    }  # fmt: skip
    yours, synchronous, asynchronous = blocks("train-with-trl.md")
    monkeypatch.chdir(tmp_path)  # "What is yours" opens a store here
    with Engine(copy.deepcopy(model), tokenizer) as engine:
        names = {
            **asyncio.run(run(yours)),
            "agent": talker(engine),
            "url": engine.url,
            "store": memory,
            "model": str(folder),
            "prompts": Dataset.from_list([{"prompt": "box 1"}] * 8),
            "bring_to_the_engine": engine.update_weights,
            "settings": settings,
        }
        made = asyncio.run(run(synchronous, **names))
        assert made["trainer"].state.global_step == 1

        tracer = traced(engine)
        names |= {
            "tracer": tracer,
            "transfer": EngineTransfer(engine),
            "settings": {**settings, "dtype": "float32", "token_budget": 0},
        }
        with without_a_gpu(), tracer.lifespan(memory):
            made = asyncio.run(run(asynchronous, **names))
        assert made["trainer"].state.global_step == 1
