"""Both trainers of TRL run on recorded rollouts, and every rollout is whole."""

from __future__ import annotations

import os

import pytest

# Read when they are imported; else huggingface_hub starts a thread that never ends, to tell of its use.
os.environ["HF_HUB_OFFLINE"] = os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

pytest.importorskip("trl", reason="needs pip install 'agentlightning-otel[trl]'")

from ..train import Settings, train

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*gradient_checkpointing` is deprecated:FutureWarning"  # TRL and transformers use it themselves
)


@pytest.mark.parametrize("asynchronous", [False, True], ids=["GRPOTrainer", "AsyncGRPOTrainer"])
def test_training_records_every_rollout_whole(asynchronous: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    lines: list[str] = []
    settings = Settings(steps=2, asynchronous=asynchronous, groups=2, generations=4, lessons=10, held_out=4)
    summary = train(settings, lines.append)

    assert summary.rollouts >= 2 * 4 + 2 * 8
    assert summary.whole == summary.rollouts
    assert 0 <= summary.before <= 1
    assert lines[0].startswith("before: ")
