"""TRL's ``AsyncGRPOTrainer`` trains on the CPU, and computes with packed rows what the model computes without."""

from __future__ import annotations

import queue
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

torch = pytest.importorskip("torch", reason="needs pip install 'agentlightning-otel[trl]'")
pytest.importorskip("trl", reason="needs pip install 'agentlightning-otel[trl]'")

import numpy as np  # noqa: E402 - after the skips
from datasets import Dataset  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402

from ..engine import Engine  # noqa: E402
from ..model import make  # noqa: E402
from .scripted import recomputed  # noqa: E402

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what is experimental may change, TRL says
    from trl.experimental.async_grpo import AsyncGRPOConfig, AsyncGRPOTrainer, packing
    from trl.experimental.async_grpo.async_rollout_worker import RolloutSample

    from ..on_cpu import EngineTransfer, without_a_gpu

ASKED = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "box 4"}],
    "max_tokens": 8,
    "logprobs": True,
}


def sample(prompt: Sequence[int], ids: Sequence[int], logprobs: Sequence[float], advantage: float) -> Any:
    """Return one row as the trainer takes it."""
    return RolloutSample(
        prompt=[],
        completion=[],
        input_ids=np.array([*prompt, *ids], dtype=np.int64),
        completion_mask=np.array([0] * len(prompt) + [1] * len(ids), dtype=np.int64),
        old_log_probs=np.array([0.0] * len(prompt) + [*logprobs], dtype=np.float32),
        advantage=advantage,
        model_version=1,
        group_id=0,
        metrics={"reward": advantage},
    )


class Worker:
    """Samples rows from the engine when training begins, which is when the engine has the trainer's weights."""

    def __init__(self, engine: Engine, rows: int) -> None:
        self.rollout_buffer: queue.Queue[Any] = queue.Queue()
        self.metrics_queue: queue.Queue[Any] = queue.Queue()
        self.versions: list[int] = []
        self._engine = engine
        self._rows = rows

    def start(self) -> None:
        """Sample."""
        with OpenAI(base_url=self._engine.url, api_key="none") as client:
            create: Any = client.chat.completions.create
            for seed in range(self._rows):
                settings = {**ASKED, "seed": seed, "extra_body": {"return_token_ids": True}}
                answer = create(**settings)
                (choice,) = answer.choices
                logprobs = [entry.logprob for entry in choice.logprobs.content]
                advantage = 1.0 if seed % 2 else -1.0
                self.rollout_buffer.put(
                    sample(answer.prompt_token_ids, choice.token_ids, logprobs, advantage)
                )

    def stop(self) -> None:
        """Do nothing: all is sampled."""

    def update_model_version(self, model_version: int) -> None:
        """Remember it."""
        self.versions.append(model_version)

    def check_health(self, stale_after_s: float) -> None:
        """Fail: no more rows will come."""
        raise AssertionError(f"the trainer has waited in vain; it gives up after {stale_after_s} s")


@pytest.mark.filterwarnings("ignore")  # of the libraries: deprecations of each other
def test_the_asynchronous_trainer_trains_on_rows_of_the_engine(tmp_path: Path) -> None:
    model, tokenizer = make(tmp_path / "model", seed=1)
    config = AsyncGRPOConfig(
        output_dir=str(tmp_path / "out"),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=4,
        max_steps=2,
        max_staleness=4,
        learning_rate=1e-3,
        token_budget=0,  # else it asks a vLLM server
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    with Engine(model, tokenizer, version="none yet") as engine, without_a_gpu():
        worker = Worker(engine, rows=12)  # the trainer reads a batch ahead
        trainer = AsyncGRPOTrainer(
            model=str(tmp_path / "model"),
            reward_funcs=[],
            args=config,
            train_dataset=Dataset.from_list([{"prompt": ASKED["messages"]}]),
            processing_class=tokenizer,
            rollout_worker=worker,
            weight_transfer=EngineTransfer(engine),
        )
        trainer.train()
        assert engine.version == "3"
        served = engine.weights.state_dict()
    first, second, *_ = trainer.state.log_history
    assert first["ratio"] == pytest.approx(1, abs=1e-4)
    assert first["kl"] == pytest.approx(0, abs=1e-4)
    assert first["grad_norm"] > 0
    assert abs(second["ratio"] - 1) > 1e-4  # the weights have changed since the rows were sampled
    assert worker.versions == [1, 2, 3]
    for name, tensor in trainer.model.state_dict().items():
        assert torch.equal(tensor, served[name]), name


def test_packed_rows_are_attended_to_as_single_ones_are(tmp_path: Path) -> None:
    model, _ = make(tmp_path, seed=1)
    prompt, replies = [1, 5, 6, 7], [[8, 9, 10], [8, 9, 11, 12], [13]]
    row = packing.TreeRow()
    for ids in replies:
        data = sample(prompt, ids, [0.0] * len(ids), 1.0)
        row.add({name: getattr(data, name) for name in RolloutSample.__slots__})
    packed = row.pack()
    with without_a_gpu():
        packing.register_tree_attention()
        packer = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation=packing.TREE_ATTENTION)
        longest = packed["tree_max_seqlens"].tolist()
        with torch.inference_mode():
            logits = packer(
                input_ids=packed["input_ids"][None],
                position_ids=packed["position_ids"][None],
                tree_kv_index=packed["tree_kv_index"],
                tree_cu_seqlens_q=packed["tree_cu_seqlens_q"],
                tree_cu_seqlens_k=packed["tree_cu_seqlens_k"],
                tree_max_seqlen_q=longest[0],
                tree_max_seqlen_k=longest[1],
            ).logits[0]
    at = packed["token_index"]
    found = logits[at].log_softmax(-1).gather(-1, packed["shift_labels"][at][:, None])[:, 0].tolist()
    expected = [value for ids in replies for value in recomputed(model, prompt, ids)]
    assert len(packed["input_ids"]) < sum(len(prompt) + len(ids) for ids in replies)
    assert found == pytest.approx(expected, abs=1e-5)
