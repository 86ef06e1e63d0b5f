"""SkyRL's server trains on recorded rollouts: all are whole, and its log-probabilities are those of the sampler."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

# Read when it is imported; else huggingface_hub starts a thread that never ends, to tell of its use.
os.environ["HF_HUB_OFFLINE"] = os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

pytest.importorskip("tx.tinker", reason="scripts/trainers installs skyrl-tx")
pytest.importorskip("tinker", reason="scripts/trainers installs tinker")

from openai import APIStatusError, OpenAI

from agentlightning import open_store
from agentlightning.rows.write_back import read_write_backs

from ...grpo_trl.model import CONTEXT, make_tokenizer
from ..engine import TinkerEngine
from ..skyrl import SkyRLServer
from ..train import Settings, train

NEAR = 1e-4
"""Log-probabilities that differ by less are the same in float32."""


@pytest.mark.asyncio
async def test_the_trainer_computes_what_was_sampled_and_its_numbers_are_stored(tmp_path: Path) -> None:
    lines: list[str] = []
    settings = Settings(steps=2, groups=2, generations=4, lessons=10, held_out=4)
    database = f"sqlite:///{tmp_path / 'runs.db'}"
    summary = await train(settings, lines.append, database)

    assert summary.rollouts == 2 * 4 + 2 * 8
    assert summary.whole == summary.rollouts
    assert 0 <= summary.before <= 1
    assert summary.tokens > 0
    assert summary.difference < NEAR
    async with open_store(database) as store:
        handed_back = [
            each
            for rollout in await store.query_rollouts()
            for each in read_write_backs(await store.query_spans(rollout.rollout_id, "latest"))
        ]
    assert {each.step for each in handed_back} == {0, 1}
    assert sum(sum(each.mask) for each in handed_back) == summary.tokens


@pytest.mark.asyncio
async def test_a_server_that_dies_ends_the_training() -> None:
    def report(line: str) -> None:
        if line.startswith("before"):
            subprocess.run(
                ["pkill", "-KILL", "--parent", str(os.getpid()), "-f", "tx.tinker.api"], check=True
            )

    settings = Settings(steps=2, groups=2, generations=4, lessons=10, held_out=4)
    with pytest.raises(RuntimeError, match="SkyRL's server ended with -9"):
        await train(settings, report)


def test_a_server_that_does_not_come_up_says_why(tmp_path: Path) -> None:
    (tmp_path / "tinker.db").mkdir()
    with pytest.raises(RuntimeError, match="unable to open database file"), SkyRLServer(tmp_path, tmp_path):
        pytest.fail("it listens without its database")


def test_who_asks_before_there_are_weights_is_told() -> None:
    with (
        TinkerEngine(make_tokenizer(), CONTEXT) as engine,
        OpenAI(base_url=engine.url, api_key="none", max_retries=0) as client,
        pytest.raises(APIStatusError, match="no sampling client yet"),
    ):
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "box 4"}])
