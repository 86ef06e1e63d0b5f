"""What starts after its ``trace_context`` has closed is stored beside the attempt, and in no row unless one asks."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from opentelemetry import context as otel_context
from opentelemetry import trace
from tracer_sample import ask, new_attempt, read

from agentlightning.adapter import TracerTraceToTriplet, TraceToMessages
from agentlightning.emitter import emit_reward
from agentlightning.instrumentation.guard import reraise
from agentlightning.rows import RowPolicy, build_rows
from agentlightning.rows import explain as explain_trace
from agentlightning.semconv import SpanFlagAttributes
from agentlightning.store import LightningStore, open_store
from agentlightning.store.base import LightningStoreCapabilities
from agentlightning.testing import FaultyStore
from agentlightning.tracer import OtelTracer
from agentlightning.training import wait_sealed
from agentlightning.types import Span

Ids = tuple[str, str]


class Worker:
    """A task that inherits the rollout that is open when it is started, and lives on."""

    def __init__(self) -> None:
        self.context = otel_context.get_current()

    def ask(self, *token_ids: int) -> None:
        token = otel_context.attach(self.context)
        try:
            ask(*token_ids)
        finally:
            otel_context.detach(token)


async def outlived(recorder: OtelTracer, store: LightningStore) -> tuple[Ids, Worker]:
    """Run a rollout with one call and a reward, and return what lives on when it is over."""
    ids = await new_attempt(store)
    async with recorder.trace_context(store=store, rollout_id=ids[0], attempt_id=ids[1]):
        ask(7, 8)
        emit_reward(1.0)
        return ids, Worker()


async def late(store: LightningStore, ids: Ids) -> list[Span]:
    return list(await store.query_late_spans(*ids))


def trained(spans: list[Span], policy: RowPolicy | None = None) -> list[tuple[int, ...]]:
    return [row.token_ids[row.prompt_length :] for row in build_rows(spans, policy)]


@pytest_asyncio.fixture(params=["memory", "sqlite"])
async def kept(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[LightningStore]:
    url = "memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/s.db"
    async with open_store(url) as opened:
        yield opened


@pytest.fixture
def recorder(kept: LightningStore) -> Any:
    tracer = OtelTracer(policy=reraise, max_wait_time=60_000)
    tracer.init()
    tracer.init_worker(0, kept)
    yield tracer
    tracer.teardown_worker(0)
    tracer.teardown()


@pytest.mark.asyncio
async def test_a_late_call_is_stored_beside_its_attempt_and_in_no_row(
    kept: LightningStore, recorder: OtelTracer
) -> None:
    ids, worker = await outlived(recorder, kept)
    worker.ask(9)
    assert recorder.processor.force_flush(20_000)
    found, beside = await read(kept, ids), await late(kept, ids)

    assert [span.name for span in beside] == ["chat"]
    assert beside[0].attributes[SpanFlagAttributes.LATE_OF.value] == ids[1]
    assert [span.name for span in found if span.name == "chat"] == ["chat"]
    assert trained(found) == trained([*found, *beside]) == [(7, 8)]
    assert sorted(trained([*found, *beside], RowPolicy(late=True))) == [(7, 8), (9,)]
    everything = [*found, *beside]
    assert TracerTraceToTriplet().adapt(everything) == TracerTraceToTriplet().adapt(found)
    assert TraceToMessages().adapt(everything) == TraceToMessages().adapt(found)
    receipt = await kept.get_receipt(*ids)
    assert (receipt.late, receipt.late_stored, receipt.whole, receipt.settled) == (1, 1, True, True)
    explained = explain_trace(everything, receipt=receipt)
    assert [(call.span_id, call.code) for call in explained.calls if call.code] == [
        (beside[0].span_id, "late")
    ]
    assert "spans_late" in explained.codes


@pytest.mark.asyncio
async def test_a_late_reward_is_no_ones_unless_the_policy_takes_it(
    kept: LightningStore, recorder: OtelTracer
) -> None:
    ids, worker = await outlived(recorder, kept)
    token = otel_context.attach(worker.context)
    emit_reward(0.25)
    otel_context.detach(token)
    assert recorder.processor.force_flush(20_000)
    everything = [*await late(kept, ids), *await read(kept, ids)]

    assert [row.reward for row in build_rows(everything)] == [1.0]
    assert [row.reward for row in build_rows(everything, RowPolicy(late=True))] == [0.25]


@pytest.mark.asyncio
async def test_a_seal_keeps_the_late_spans_that_were_there(
    kept: LightningStore, recorder: OtelTracer
) -> None:
    ids, worker = await outlived(recorder, kept)
    worker.ask(9)
    assert recorder.processor.force_flush(20_000)
    await kept.update_attempt(*ids, status="succeeded")
    asked = RowPolicy(late=True)
    for _ in range(2):
        (sealed,) = (await wait_sealed(kept, [ids[0]], policy=asked)).sealed
        assert [row.token_ids[3:] for row in sealed.rows()] == [(7, 8)]
        assert sorted(row.token_ids[3:] for row in sealed.rows(asked)) == [(7, 8), (9,)]
        worker.ask(10)  # comes after the seal
        assert recorder.processor.force_flush(20_000)
    assert len(await late(kept, ids)) == 3


@pytest.mark.asyncio
async def test_a_late_span_that_has_not_ended_keeps_no_attempt_from_being_sealed(
    kept: LightningStore, recorder: OtelTracer
) -> None:
    ids, worker = await outlived(recorder, kept)
    span = trace.get_tracer("agent").start_span("for ever", worker.context)
    assert recorder.processor.force_flush(20_000)
    await kept.update_attempt(*ids, status="succeeded")
    batch = await wait_sealed(kept, [ids[0]])
    assert [each.attempt.attempt_id for each in batch.sealed] == [ids[1]]
    receipt = await kept.get_receipt(*ids)
    assert (receipt.late, receipt.late_stored, receipt.open, receipt.settled) == (1, 0, 0, True)
    span.end()
    assert recorder.processor.force_flush(20_000)
    assert [each.name for each in await late(kept, ids)] == ["for ever"]


@pytest.mark.asyncio
async def test_late_spans_that_the_store_does_not_take_wait_in_the_spool(tmp_path: Path) -> None:
    async with open_store(f"sqlite:///{tmp_path}/s.db") as store:
        faulty = FaultyStore(store, only={"add_many_spans"})
        ids = await new_attempt(store)
        tracer = OtelTracer(policy=reraise)
        with tracer.lifespan(faulty):
            async with tracer.trace_context(store=faulty, rollout_id=ids[0], attempt_id=ids[1]):
                worker = Worker()
            assert tracer.processor.force_flush(20_000)
            faulty.fail_for_ever()
            worker.ask(9)
        assert (await store.get_receipt(*ids)).late_stored == 0
        tracer = OtelTracer(policy=reraise)
        with tracer.lifespan(store):
            assert tracer.processor.force_flush(20_000)
        assert [span.name for span in await late(store, ids)] == ["chat"]
        receipt = await store.get_receipt(*ids)
        assert (receipt.late, receipt.late_stored, receipt.late_dropped) == (1, 1, {})
        assert (receipt.dropped, receipt.whole) == ({}, True)


@pytest.mark.asyncio
async def test_a_store_that_counts_nothing_is_given_no_late_spans() -> None:
    class Old(FaultyStore):
        @property
        def capabilities(self) -> LightningStoreCapabilities:
            return LightningStoreCapabilities(**{**super().capabilities, "receipts": False})

    async with open_store("memory://") as inner:
        store = Old(inner)
        ids = await new_attempt(store)
        tracer = OtelTracer(policy=reraise)
        with tracer.lifespan(store):
            async with tracer.trace_context(store=store, rollout_id=ids[0], attempt_id=ids[1]) as handle:
                worker = Worker()
            worker.ask(9)
            assert tracer.processor.force_flush(20_000)
            assert [span.name for span in tracer.processor.unattributed] == ["chat"]
            assert (handle.receipt().late, handle.receipt().late_stored) == (1, 0)
        assert [span.name for span in await read(inner, ids)] == ["rollout"]
        assert await late(inner, ids) == []
