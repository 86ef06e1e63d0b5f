"""The page on Tinker, run with SkyRL's server."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from pages import blocks, commands, run

# Read when it is imported; else huggingface_hub starts a thread that never ends, to tell of its use.
os.environ["HF_HUB_OFFLINE"] = os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

pytest.importorskip("tx.tinker", reason="scripts/trainers installs skyrl-tx")

import tinker

from agentlightning import LLM, OtelTracer, open_store
from agentlightning.rows.write_back import read_write_backs

from ...grpo_trl.model import CONTEXT, make
from ...grpo_trl.playing import Hunter, tasks
from ..engine import TinkerEngine
from ..skyrl import SkyRLServer
from ..train import KEY


@pytest.mark.soak
@pytest.mark.timeout(3000)
def test_the_command_of_the_page_learns() -> None:
    (command,) = commands("train-with-tinker.md")
    subprocess.run(command, check=True)  # it exits with 1 where the reward has not risen


@pytest.mark.asyncio
async def test_the_page_on_tinker_runs(tmp_path: Path) -> None:
    _, tokenizer = make(tmp_path / "model", seed=0, lessons=10)
    once, loop = blocks("train-with-tinker.md")
    async with open_store("memory://") as store:
        with SkyRLServer(tmp_path / "model", tmp_path) as server, TinkerEngine(tokenizer, CONTEXT) as engine:
            service = tinker.ServiceClient(base_url=server.url, api_key=KEY)
            client = await service.create_lora_training_client_async(
                base_model=str(tmp_path / "model"), rank=8
            )
            engine.use(await client.save_weights_and_get_sampling_client_async(), 0)
            endpoint = LLM(endpoint=engine.url, model=engine.name, sampling_defaults={}, logprob_kind="raw")
            tracer = OtelTracer(capture_tokens="request", endpoints=[endpoint], max_wait_time=60_000)
            with tracer.lifespan(store):
                names: Any = {
                    "training_client": client,
                    "agent": Hunter(engine),
                    "prompts": [next(tasks(0))],
                    "store": store,
                    "tracer": tracer,
                    "step": 3,
                }
                made = await run(loop, **names)
                await run(once, rows=made["rows"], **names)
        rows = made["rows"]
        assert len({row.rollout_id for row in rows}) == 8
        handed_back = [
            each
            for row in rows
            for each in read_write_backs(await store.query_spans(row.rollout_id, "latest"))
        ]
    assert {each.step for each in handed_back} == {3}
    assert sum(sum(each.mask) for each in handed_back) == sum(row.trained_tokens for row in rows)
