"""The settings of batches: by argument, environment, project file; and what each of them bounds."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from tracer_sample import assert_balanced, new_attempt, read

from agentlightning.errors import ConfigurationError
from agentlightning.recorder.settings import WriterSettings
from agentlightning.store import LightningStore
from agentlightning.testing import FaultyStore, wait_until_async
from agentlightning.tracer import AgentOpsTracer, OtelTracer
from agentlightning.types import Account, Span

NEVER = 3_600_000
"""Milliseconds: an hour, which no test lasts."""

COUNTS = "batch_size", "max_queue_size"
SETTINGS = {"batch_size": 512, "flush_interval": 200, "max_queue_size": 50_000, "max_wait_time": 5_000}


def settings_of(tracer: OtelTracer) -> dict[str, float]:
    bounds = tracer._settings
    return {
        "batch_size": bounds.batch_size,
        "flush_interval": bounds.flush_interval,
        "max_queue_size": bounds.max_queue_size,
        "max_wait_time": tracer._flush_timeout * 1_000,
    }


def with_argument(name: str, value: Any) -> OtelTracer:
    if name == "max_wait_time":
        return AgentOpsTracer(max_wait_time=value)
    return AgentOpsTracer(settings=WriterSettings(**{name: value}))


# ---------------------------------------------------------------------- where they come from


@pytest.mark.parametrize("name", SETTINGS)
def test_an_argument_beats_the_environment_beats_the_project_beats_the_default(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert settings_of(OtelTracer()) == SETTINGS
    (tmp_path / "pyproject.toml").write_text(f"[tool.agentlightning]\n{name} = 31\n")
    assert settings_of(OtelTracer()) == {**SETTINGS, name: 31}
    monkeypatch.setenv(f"AGL_{name.upper()}", "32")
    assert settings_of(OtelTracer()) == {**SETTINGS, name: 32}
    assert settings_of(with_argument(name, 33)) == {**SETTINGS, name: 33}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("value", ["", "many", "0", "-1", "nan", "inf", "1.5.1", "true"])
def test_a_value_that_cannot_be_is_refused_by_the_name_of_where_it_stands(
    name: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pyproject.toml").write_text(f'[tool.agentlightning]\n{name} = "{value}"\n')
    with pytest.raises(ConfigurationError, match=rf"^{name} in \[tool.agentlightning\] is a .*, not "):
        OtelTracer()
    monkeypatch.setenv(f"AGL_{name.upper()}", value)
    with pytest.raises(ConfigurationError, match=f"^AGL_{name.upper()} is a .*, not "):
        OtelTracer()


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("value", [0, -1, True, float("nan"), float("inf"), "5", [1]])
def test_an_argument_that_cannot_be_is_refused_by_its_name(name: str, value: Any) -> None:
    if value == "5":
        value = "five"
    with pytest.raises(ConfigurationError, match=f"^{name} is a .*, not "):
        with_argument(name, value)


@pytest.mark.parametrize("name", COUNTS)
def test_a_count_is_whole(name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name} is a whole number of at least 1, not 1.5$"):
        with_argument(name, 1.5)


# ---------------------------------------------------------------------- what they bound


class Batches(FaultyStore):
    """A store that notes how many spans came in each batch."""

    def __init__(self, store: LightningStore) -> None:
        super().__init__(store, only={"add_many_spans"})
        self.sizes: list[int] = []

    async def add_many_spans(
        self, spans: Sequence[Span], *, opened: Sequence[Span] = (), accounts: Sequence[Account] = ()
    ) -> Sequence[Span]:
        stored = await super().add_many_spans(spans, opened=opened, accounts=accounts)
        self.sizes.append(len(spans))
        return stored


def end(number: int) -> None:
    for place in range(number):
        trace.get_tracer("agent").start_span(f"s{place}").end()


@pytest.mark.asyncio
async def test_a_batch_leaves_when_it_is_whole_however_long_the_interval(store: LightningStore) -> None:
    ids, batches = await new_attempt(store), Batches(store)
    tracer = OtelTracer(settings=WriterSettings(batch_size=5, flush_interval=NEVER))
    with tracer.lifespan(batches):
        async with tracer.trace_context(rollout_id=ids[0], attempt_id=ids[1]):
            end(4)
            assert batches.sizes == []
            end(1)
            await wait_until_async(lambda: sum(batches.sizes) == 5)
            assert max(batches.sizes) == 5


@pytest.mark.asyncio
async def test_a_batch_leaves_after_the_interval_however_small_it_is(store: LightningStore) -> None:
    ids, batches = await new_attempt(store), Batches(store)
    tracer = OtelTracer(settings=WriterSettings(batch_size=1_000_000, flush_interval=1))
    with tracer.lifespan(batches):
        async with tracer.trace_context(rollout_id=ids[0], attempt_id=ids[1]):
            end(3)
            await wait_until_async(lambda: sum(batches.sizes) == 3)


@pytest.mark.asyncio
async def test_a_queue_that_is_shorter_than_a_batch_leaves_when_it_is_full(store: LightningStore) -> None:
    ids, batches = await new_attempt(store), Batches(store)
    bounds = WriterSettings(batch_size=512, max_queue_size=3, flush_interval=NEVER)
    with OtelTracer(settings=bounds).lifespan(batches) as tracer:
        async with tracer.trace_context(rollout_id=ids[0], attempt_id=ids[1]):
            end(3)
            await wait_until_async(lambda: sum(batches.sizes) == 3)
            assert max(batches.sizes) <= 3


@pytest.mark.asyncio
async def test_no_more_spans_wait_than_the_queue_takes_and_no_batch_is_larger(store: LightningStore) -> None:
    ids, batches = await new_attempt(store), Batches(store)
    tracer = OtelTracer(max_wait_time=1, settings=WriterSettings(max_queue_size=20, batch_size=6))
    queue = 0
    with tracer.lifespan(batches):
        batches.hold()
        writer = tracer.processor.writer
        async with tracer.trace_context(rollout_id=ids[0], attempt_id=ids[1]) as handle:
            for _ in range(200):
                end(1)
                queue = max(queue, len(writer.queue))
            # A thread with a running event loop may not wait, and may exceed the bound to twice.
            assert queue == 2 * 20
            dropped = handle.receipt().dropped["queue_full"]
        batches.release()
    receipt = await store.get_receipt(*ids)
    assert max(batches.sizes) <= 6
    assert 200 - dropped <= 2 * 20 + 6  # what waits, and the batch that the store holds
    assert_balanced(receipt)


def test_leaving_returns_though_the_store_never_answers(store: LightningStore) -> None:
    # The store answers only after the flush has returned: were it waited for, nobody would ever return.
    ids, batches = asyncio.run(new_attempt(store)), Batches(store)
    left = threading.Event()
    with OtelTracer(max_wait_time=20).lifespan(batches) as tracer:
        batches.hold()

        def agent() -> None:
            with tracer.trace_context(rollout_id=ids[0], attempt_id=ids[1]):
                end(2)
            left.set()

        thread = threading.Thread(target=agent)
        thread.start()
        assert left.wait(60)
        assert batches.sizes == []
        batches.release()
        thread.join()
    assert len(asyncio.run(read(store, ids))) == 3


@pytest.mark.asyncio
async def test_leaving_waits_as_long_as_it_may(store: LightningStore) -> None:
    ids, batches = await new_attempt(store), Batches(store)
    with OtelTracer(max_wait_time=NEVER).lifespan(batches) as tracer:
        batches.hold()

        async def agent() -> None:
            async with tracer.trace_context(rollout_id=ids[0], attempt_id=ids[1]):
                end(2)

        leaving = asyncio.create_task(agent())
        await wait_until_async(lambda: batches.held > 0)
        assert not leaving.done()
        batches.release()
        await leaving
    assert len(await read(store, ids)) == 3
