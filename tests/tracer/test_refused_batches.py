"""What a store refuses: no other span is lost with it, and the count balances wherever the process is killed."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from tracer_sample import assert_balanced, new_attempt, read, recorded_until_killed
from warm import Warm

from agentlightning.errors import InvalidArgument
from agentlightning.recorder.spool import Spool
from agentlightning.store import InMemoryLightningStore, LightningStore, open_store
from agentlightning.testing import FaultyStore
from agentlightning.tracer import OtelTracer

KILLED = """
from agentlightning.errors import InvalidArgument

class Killing(FaultyStore):
    writes_done = 0

    async def add_many_spans(self, spans, *, opened=(), accounts=()):
        if any(each.name == "poison" for each in (*spans, *opened)):
            raise InvalidArgument("no poison here")
        added = await super().add_many_spans(spans, opened=opened, accounts=accounts)
        self.writes_done += 1
        if self.writes_done == args["writes"]:
            os.kill(os.getpid(), 9)
        return added

tracer = OtelTracer(settings=WriterSettings(flush_interval=3_600_000))
tracer.init()
tracer.init_worker(0, Killing(store))
with tracer.trace_context(rollout_id=ids[0], attempt_id=ids[1]):
    agent = trace.get_tracer("agent")
    left_open = agent.start_span("poison")
    agent.start_span("open")
    assert tracer.processor.force_flush(60_000)
    for name in ("one", "poison", "two", "three"):
        agent.start_span(name).end()
tracer.teardown()
report("survived")
"""


@pytest.mark.asyncio
@pytest.mark.parametrize("writes", [2, 3, 5, 7])
async def test_a_kill_between_two_spans_of_a_refused_batch_leaves_a_count_that_balances(
    recording: Warm, tmp_path: Path, writes: int
) -> None:
    url = f"sqlite:///{tmp_path}/s.db"
    ids = recorded_until_killed(recording, KILLED, url, writes=writes)
    store = open_store(url)
    for _ in range(2):
        assert_balanced(await store.get_receipt(*ids))
        await Spool(store).deliver()
    await store.close()


class Choosy(FaultyStore):
    """Refuses whatever has a span or a start named ``poison``; when told to, does not take a span named ``later``."""

    takes_later = True

    async def add_many_spans(self, spans: Any, **more: Any) -> Any:
        names = [each.name for each in (*spans, *more.get("opened", ()))]
        if "poison" in names:
            raise InvalidArgument("no poison here")
        if not self.takes_later and "later" in names:
            raise RuntimeError("not now")
        return await super().add_many_spans(spans, **more)


@pytest.mark.asyncio
async def test_what_has_to_wait_among_refused_spans_is_delivered_and_counted_once(
    store: LightningStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGL_SPOOL_DIR", str(tmp_path / "spool"))
    ids = await new_attempt(store)
    choosy = Choosy(store)
    choosy.takes_later = False
    tracer = OtelTracer()
    with tracer.lifespan(choosy):
        async with tracer.trace_context(rollout_id=ids[0], attempt_id=ids[1]):
            still_open = trace.get_tracer("agent").start_span("poison")
            for name in ("one", "poison", "later", "two"):
                trace.get_tracer("agent").start_span(name).end()
        assert_balanced(await store.get_receipt(*ids))
        still_open.end()
    receipt = await store.get_receipt(*ids)
    assert_balanced(receipt)
    assert receipt.dropped == {"not_encodable": 2, "spooled": 1}
    choosy.takes_later = True
    assert await Spool(choosy).deliver() == 1
    receipt = await store.get_receipt(*ids)
    assert_balanced(receipt)
    assert receipt.dropped == {"not_encodable": 2}
    assert (receipt.started, receipt.stored, receipt.open) == (6, 4, 0)
    assert sorted(each.name for each in await read(store, ids)) == ["later", "one", "rollout", "two"]


class Restored(FaultyStore):
    """A store in whose place an older one is put when a test says so."""

    def put(self, inner: LightningStore) -> None:
        self.inner = inner


@pytest.mark.asyncio
async def test_spans_of_an_attempt_that_a_restored_store_lacks_wait_until_it_has_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("AGL_SPOOL_DIR", str(tmp_path / "spool"))
    async with InMemoryLightningStore() as newer, InMemoryLightningStore() as older:
        ids = await new_attempt(newer)
        known = await new_attempt(older)
        restored = Restored(newer)
        tracer = OtelTracer()
        with tracer.lifespan(restored):
            async with tracer.trace_context(rollout_id=ids[0], attempt_id=ids[1]) as handle:
                agent = trace.get_tracer("agent")
                agent.start_span("before").end()
                assert await asyncio.to_thread(tracer.processor.force_flush, 10_000)
                restored.put(older)
                held = agent.start_span("held")
                agent.start_span("after").end()
                assert not await asyncio.to_thread(tracer.processor.force_flush, 10_000)
                held.end()
            async with tracer.trace_context(rollout_id=known[0], attempt_id=known[1]):
                pass
        assert (await older.get_receipt(*known)).whole
        assert handle.receipt().dropped == {"spooled": 3}
        said = [record.getMessage() for record in caplog.records if ids[1] in record.getMessage()]
        assert any("was in the store" in each and str(tmp_path / "spool") in each for each in said)

        restored.put(newer)
        assert await Spool(restored).deliver() == 3
        assert [each.name for each in await read(newer, ids)] == ["before", "after", "held", "rollout"]
        receipt = await newer.get_receipt(*ids)
        assert receipt.whole, receipt
        assert not receipt.under_way
        assert not Spool(restored).files()
