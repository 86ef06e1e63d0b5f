"""Programs that know nothing of us, recorded by an environment variable or by ``agl run``."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from tracer_sample import new_attempt

from agentlightning.store import LightningStore, open_store
from agentlightning.tracer import LightningSpanExporter
from agentlightning.types import Rollout, Span

PROGRAM = """
from opentelemetry import trace
with trace.get_tracer("program").start_as_current_span("outer"):
    with trace.get_tracer("program").start_as_current_span("inner"):
        pass
"""


ROOT = Path(__file__).resolve().parents[2]


def run(
    arguments: list[str], cwd: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        arguments,
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


async def everything_in(url: str) -> tuple[list[Rollout], list[Span]]:
    async with open_store(url) as store:
        rollouts = list(await store.query_rollouts())
        spans = [span for each in rollouts for span in await store.query_spans(each.rollout_id)]
        for each in rollouts:
            assert (await store.get_receipt(each.rollout_id, "latest")).whole
        return rollouts, spans


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'store.db'}"


def test_a_stock_program_writes_into_a_store_when_it_is_started_as_the_page_says(tmp_path: Path) -> None:
    """With the distribution's own defaults for all that the page does not set, and a secret among its arguments."""
    page = (ROOT / "docs" / "how-to" / "trace-an-existing-program.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```sh\n([^`]*opentelemetry-instrument[^`]*)```$", page, re.MULTILINE)
    lines = [line for line in block.splitlines() if not line.startswith("pip install")]
    (tmp_path / "app.py").write_text(PROGRAM)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = run(
        ["bash", "-euc", "\n".join([*lines[:-1], f"{lines[-1]} --api-key sk-hidden"])],
        cwd=tmp_path,
        PATH=path,
    )
    assert done.returncode == 0, done.stderr
    rollouts, spans = asyncio.run(everything_in(f"sqlite:///{tmp_path / 'runs.db'}"))
    (rollout,) = rollouts
    assert (rollout.status, rollout.metadata) == ("succeeded", {"name": "app.py"})
    assert "sk-hidden" not in rollout.model_dump_json()
    assert [span.name for span in spans] == ["inner", "outer"]


@pytest.mark.asyncio
@pytest.mark.parametrize("processor", [SimpleSpanProcessor, BatchSpanProcessor])
async def test_spans_go_where_their_attributes_say(store: LightningStore, processor: type) -> None:
    one, two = await new_attempt(store), await new_attempt(store)
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(processor(LightningSpanExporter(store)))
    for ids in (one, two):
        attributes = {"agentlightning.rollout_id": ids[0], "agentlightning.attempt_id": ids[1]}
        provider.get_tracer("agent").start_span("step", attributes=attributes).end()
    provider.force_flush()
    provider.shutdown()
    for ids in (one, two):
        assert [span.name for span in await store.query_spans(*ids)] == ["step"]
        assert (await store.get_receipt(*ids)).whole
    assert len(await store.query_rollouts()) == 2


def test_the_exporter_takes_the_attempt_that_the_environment_names(url: str, tmp_path: Path) -> None:
    async def start() -> tuple[str, str]:
        async with open_store(url) as store:
            return await new_attempt(store)

    ids = asyncio.run(start())
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    done = run(
        [str(Path(sys.executable).parent / "opentelemetry-instrument"), sys.executable, str(program)],
        OTEL_TRACES_EXPORTER="lightning",
        OTEL_METRICS_EXPORTER="none",
        OTEL_LOGS_EXPORTER="none",
        AGL_STORE=url,
        AGL_ROLLOUT_ID=ids[0],
        AGL_ATTEMPT_ID=ids[1],
    )
    assert done.returncode == 0, done.stderr
    rollouts, spans = asyncio.run(everything_in(url))
    assert [rollout.rollout_id for rollout in rollouts] == [ids[0]]
    assert {span.attempt_id for span in spans} == {ids[1]}
