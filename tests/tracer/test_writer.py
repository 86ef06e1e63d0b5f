from __future__ import annotations

import asyncio
import logging
import tempfile
import threading
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry import trace
from tracer_sample import assert_balanced, new_attempt, read

from agentlightning.recorder.settings import WriterSettings
from agentlightning.recorder.thread import THREAD_NAME
from agentlightning.store import InMemoryLightningStore, LightningStore
from agentlightning.testing import FaultyStore, wait_until, wait_until_async
from agentlightning.tracer import OtelTracer


class ThreadNoting(FaultyStore):
    """Notes on which thread each write arrives."""

    def __init__(self, inner: LightningStore, **faults: Any) -> None:
        super().__init__(inner, **faults)
        self.write_threads: set[str] = set()

    async def add_many_spans(self, spans: Any, **more: Any) -> Any:
        self.write_threads.add(threading.current_thread().name)
        return await super().add_many_spans(spans, **more)


@pytest.mark.asyncio
async def test_the_store_is_written_on_the_writer_thread_only(store: LightningStore) -> None:
    noting = ThreadNoting(store)
    ids = await new_attempt(store)
    tracer = OtelTracer()
    with tracer.lifespan(noting):
        async with tracer.trace_context(store=noting, rollout_id=ids[0], attempt_id=ids[1]):
            for number in range(1000):
                trace.get_tracer("agent").start_span(f"s{number}").end()
    assert noting.write_threads == {THREAD_NAME}
    assert len(await read(store, ids)) == 1001


@pytest.mark.asyncio
async def test_an_event_loop_never_waits_for_a_slow_store(store: LightningStore) -> None:
    slow = ThreadNoting(store, only={"add_many_spans"})
    ids = await new_attempt(store)
    tracer = OtelTracer()
    with tracer.lifespan(slow):
        slow.hold()  # a store that answers nothing at all: any wait for it would last for ever
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0)

        ticker = asyncio.create_task(tick())
        context = tracer.trace_context(store=slow, rollout_id=ids[0], attempt_id=ids[1])
        await context.__aenter__()
        for number in range(1000):
            trace.get_tracer("agent").start_span(f"s{number}").end()
            await asyncio.sleep(0)
        before = ticks
        leaving = asyncio.ensure_future(context.__aexit__(None, None, None))
        await wait_until_async(lambda: ticks > before + 100)  # the loop turns while the exit waits
        assert not leaving.done()
        slow.release()
        await leaving
        ticker.cancel()
    assert len(await read(store, ids)) == 1001


@pytest.mark.parametrize("bounds", [{"batch_size": 3}, {"max_batch_bytes": 1}])
@pytest.mark.asyncio
async def test_a_flush_of_many_batches_never_waits_for_the_interval(
    store: LightningStore, bounds: dict[str, int]
) -> None:
    ids = await new_attempt(store)
    tracer = OtelTracer(max_wait_time=60_000, settings=WriterSettings(flush_interval=3_600_000, **bounds))
    with tracer.lifespan(store):
        async with tracer.trace_context(store=store, rollout_id=ids[0], attempt_id=ids[1]) as handle:
            for number in range(7):
                handle.start_span(f"s{number}").end()
        assert handle.receipt().stored == 8


@pytest.mark.asyncio
async def test_force_flush_tells_the_truth(store: LightningStore) -> None:
    slow = FaultyStore(store, only={"add_many_spans"})
    ids = await new_attempt(store)
    tracer = OtelTracer(max_wait_time=10)
    with tracer.lifespan(slow):
        slow.hold()
        with tracer.trace_context(store=slow, rollout_id=ids[0], attempt_id=ids[1]):
            pass
        assert await asyncio.to_thread(tracer.processor.force_flush, 10) is False
        slow.release()
        assert await asyncio.to_thread(tracer.processor.force_flush, 10_000) is True
        assert len(await read(store, ids)) == 1


@pytest.mark.asyncio
async def test_leaving_keeps_its_deadline_and_says_what_is_missing(
    store: LightningStore, caplog: pytest.LogCaptureFixture
) -> None:
    slow = FaultyStore(store, only={"add_many_spans"})
    ids = await new_attempt(store)
    tracer = OtelTracer(max_wait_time=50)
    with tracer.lifespan(slow):
        slow.hold()
        with caplog.at_level(logging.WARNING):
            async with tracer.trace_context(store=slow, rollout_id=ids[0], attempt_id=ids[1]) as handle:
                trace.get_tracer("agent").start_span("step").end()
        assert "0 of 2 spans stored" in caplog.text
        assert handle.receipt().open == 2
        slow.release()
    assert len(await read(store, ids)) == 2
    assert (await store.get_receipt(*ids)).whole


@pytest.mark.asyncio
async def test_a_store_that_fails_every_tenth_write_loses_nothing(store: LightningStore) -> None:
    faulty = FaultyStore(store, fail_every=10, lose_every=7, only={"add_many_spans"})
    ids = [await new_attempt(store) for _ in range(40)]
    tracer = OtelTracer()
    with tracer.lifespan(faulty):
        for rollout_id, attempt_id in ids:
            async with tracer.trace_context(store=faulty, rollout_id=rollout_id, attempt_id=attempt_id):
                for number in range(3):
                    trace.get_tracer("agent").start_span(f"s{number}").end()
    assert faulty.faults > 0
    for attempt in ids:
        assert [span.name for span in await read(store, attempt)] == ["s0", "s1", "s2", "rollout"]
        assert (await store.get_receipt(*attempt)).whole


class Poisonous(FaultyStore):
    """Refuses every batch that holds a span named ``poison``."""

    async def add_many_spans(self, spans: Any, **more: Any) -> Any:
        if any(span.name == "poison" for span in spans):
            from agentlightning.errors import InvalidArgument

            raise InvalidArgument("no poison here")
        return await super().add_many_spans(spans, **more)


@pytest.mark.asyncio
async def test_one_span_that_the_store_refuses_costs_no_other(store: LightningStore) -> None:
    ids, other = await new_attempt(store), await new_attempt(store)
    tracer = OtelTracer()
    with tracer.lifespan(Poisonous(store)):
        async with tracer.trace_context(rollout_id=ids[0], attempt_id=ids[1]):
            for name in ("before", "poison", "after"):
                trace.get_tracer("agent").start_span(name).end()
        async with tracer.trace_context(rollout_id=other[0], attempt_id=other[1]):
            trace.get_tracer("agent").start_span("calm").end()
    assert [span.name for span in await read(store, ids)] == ["before", "after", "rollout"]
    assert [span.name for span in await read(store, other)] == ["calm", "rollout"]
    receipt = await store.get_receipt(*ids)
    assert receipt.dropped == {"not_encodable": 1}
    assert_balanced(receipt)


@pytest.mark.asyncio
async def test_a_full_queue_drops_the_tail_counts_it_and_marks_the_attempt(store: LightningStore) -> None:
    stuck = FaultyStore(store, only={"add_many_spans"})
    ids = await new_attempt(store)
    tracer = OtelTracer(max_wait_time=10, settings=WriterSettings(max_queue_size=100, batch_size=10))
    with tracer.lifespan(stuck):
        stuck.hold()
        async with tracer.trace_context(store=stuck, rollout_id=ids[0], attempt_id=ids[1]) as handle:
            for number in range(1000):
                trace.get_tracer("agent").start_span(f"s{number}").end()
        stuck.release()
    names = [span.name for span in await read(store, ids)]
    assert names == [f"s{number}" for number in range(len(names))]
    assert 200 <= len(names) <= 220  # twice the bound, where an event loop runs
    receipt = await store.get_receipt(*ids)
    assert receipt.started == 1001
    assert receipt.dropped == {"queue_full": 1001 - len(names)}
    assert receipt.truncated
    assert_balanced(receipt)
    assert handle.receipt().truncated


def test_a_thread_without_a_loop_waits_for_room_but_not_for_ever(store: LightningStore) -> None:
    stuck = FaultyStore(store, only={"add_many_spans"})
    ids = asyncio.run(new_attempt(store))
    tracer = OtelTracer(
        max_wait_time=5_000, settings=WriterSettings(max_queue_size=10, batch_size=5, block_timeout=30)
    )
    with tracer.lifespan(stuck):
        stuck.hold()

        def agent() -> None:
            with tracer.trace_context(store=stuck, rollout_id=ids[0], attempt_id=ids[1]):
                for number in range(100):
                    trace.get_tracer("agent").start_span(f"s{number}").end()

        thread = threading.Thread(target=agent)
        thread.start()
        wait_until(lambda: stuck.held > 0)
        stuck.release()
        thread.join(120)
        assert not thread.is_alive()
    assert len(asyncio.run(read(store, ids))) == 101


@pytest.mark.asyncio
async def test_one_huge_span_among_many_is_stored_and_costs_no_other(store: LightningStore) -> None:
    ids = await new_attempt(store)
    huge = "x" * 30_000_000
    tracer = OtelTracer()
    with tracer.lifespan(store):
        async with tracer.trace_context(store=store, rollout_id=ids[0], attempt_id=ids[1]):
            for number in range(500):
                attributes = {"body": huge if number == 250 else "small"}
                trace.get_tracer("agent").start_span(f"s{number}", attributes=attributes).end()
    spans = await read(store, ids)
    assert len(spans) == 501
    assert spans[250].attributes["body"] == huge
    assert (await store.get_receipt(*ids)).whole


@pytest.mark.asyncio
async def test_a_span_ended_on_the_writer_thread_does_not_deadlock(store: LightningStore) -> None:
    class Curious(FaultyStore):
        async def add_many_spans(self, spans: Any, **more: Any) -> Any:
            trace.get_tracer("agent").start_span("from inside").end()
            return await super().add_many_spans(spans, **more)

    ids = await new_attempt(store)
    tracer = OtelTracer()
    with tracer.lifespan(Curious(store)):
        async with tracer.trace_context(rollout_id=ids[0], attempt_id=ids[1]):
            trace.get_tracer("agent").start_span("step").end()
    assert {span.name for span in await read(store, ids)} == {"step", "rollout"}
    assert tracer.get_last_trace() is not None


@pytest.mark.asyncio
async def test_shutdown_writes_what_is_queued_and_later_spans_are_ignored(store: LightningStore) -> None:
    ids = await new_attempt(store)
    tracer = OtelTracer()
    tracer.init_worker(0, store)
    processor = tracer.processor
    with tracer.trace_context(store=store, rollout_id=ids[0], attempt_id=ids[1]) as handle:
        straggler = handle.start_span("straggler")
        handle.start_span("step").end()
    tracer.teardown_worker(0)
    straggler.end()
    handle.start_span("afterwards").end()
    processor.shutdown()
    assert {span.name for span in await read(store, ids)} == {"step", "rollout"}
    assert [span.name for span in await store.query_open_spans(*ids)] == ["straggler"]
    assert_balanced(await store.get_receipt(*ids))


@pytest.mark.asyncio
async def test_what_no_store_takes_waits_in_the_spool_and_the_next_start_delivers_it(
    store: LightningStore, tmp_path: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("AGL_SPOOL_DIR", str(tmp_path / "spool"))
    dead = FaultyStore(store, only={"add_many_spans"})
    dead.fail_for_ever()
    ids = await new_attempt(store)
    tracer = OtelTracer(max_wait_time=100)
    with caplog.at_level(logging.WARNING), tracer.lifespan(dead):
        async with tracer.trace_context(store=dead, rollout_id=ids[0], attempt_id=ids[1]) as handle:
            trace.get_tracer("agent").start_span("step").end()
            still_open = trace.get_tracer("agent").start_span("open")
    assert str(tmp_path / "spool") in caplog.text
    assert await read(store, ids) == []
    assert list((tmp_path / "spool").glob("*.jsonl"))
    assert_balanced(handle.receipt())
    dead.heal()
    with tracer.lifespan(dead):
        assert await asyncio.to_thread(tracer.processor.force_flush, 10_000)
    assert {span.name for span in await read(store, ids)} == {"step", "rollout"}
    receipt = await store.get_receipt(*ids)
    assert_balanced(receipt)
    assert (receipt.started, receipt.stored, receipt.open) == (3, 2, 1)
    assert {reason: count for reason, count in receipt.dropped.items() if count} == {}
    assert not (tmp_path / "spool").exists()
    still_open.end()


def test_a_spool_that_cannot_be_written_is_counted_as_loss(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("AGL_SPOOL_DIR", str(tmp_path / "file"))

    async def run() -> None:
        async with InMemoryLightningStore() as store:
            dead = FaultyStore(store, only={"add_many_spans"})
            dead.fail_for_ever()
            ids = await new_attempt(store)
            tracer = OtelTracer(max_wait_time=100)
            with tracer.lifespan(dead):
                with tracer.trace_context(store=dead, rollout_id=ids[0], attempt_id=ids[1]) as handle:
                    pass
            receipt = handle.receipt()
            assert {reason: count for reason, count in receipt.dropped.items() if count} == {"spool_full": 1}
            assert_balanced(receipt)

    asyncio.run(run())


Action = tuple[str, int]
actions = st.lists(
    st.one_of(
        st.tuples(st.just("span"), st.integers(0, 3)),
        st.tuples(st.just("open"), st.integers(0, 3)),
        st.tuples(st.just("close"), st.integers(0, 3)),
        st.tuples(st.just("hold"), st.just(0)),
        st.tuples(st.just("release"), st.just(0)),
        st.tuples(st.just("break"), st.just(0)),
        st.tuples(st.just("heal"), st.just(0)),
        st.tuples(st.just("flush"), st.just(0)),
        st.tuples(st.just("raise"), st.integers(0, 3)),
        st.tuples(st.just("cancel"), st.integers(0, 3)),
    ),
    max_size=40,
)


faults = {
    "script": actions,
    "fail_every": st.sampled_from([0, 2, 3]),
    "queue": st.sampled_from([4, 1000]),
}


def play(script: list[Action], fail_every: int, queue: int) -> None:
    with tempfile.TemporaryDirectory() as spool, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AGL_SPOOL_DIR", spool)
        asyncio.run(_play(script, fail_every, queue))


@settings(max_examples=40)
@given(**faults)
def test_every_receipt_balances_whatever_fails(script: list[Action], fail_every: int, queue: int) -> None:
    play(script, fail_every, queue)


@pytest.mark.soak
@pytest.mark.timeout(1200)
@settings(max_examples=2000)
@given(**faults)
def test_every_receipt_balances_whatever_fails_for_long(
    script: list[Action], fail_every: int, queue: int
) -> None:
    play(script, fail_every, queue)


async def _play(script: list[Action], fail_every: int, queue: int) -> None:
    """Run agents against faults; afterwards the store and the spool together account for every span."""
    async with InMemoryLightningStore() as store:
        faulty = FaultyStore(store, fail_every=fail_every, only={"add_many_spans"})
        ids = [await new_attempt(store) for _ in range(4)]
        truth = [0, 0, 0, 0]
        tracer = OtelTracer(max_wait_time=20, settings=WriterSettings(max_queue_size=queue, flush_interval=1))
        opened: list[list[trace.Span]] = [[], [], [], []]
        with tracer.lifespan(faulty):

            async def act(what: str, number: int) -> None:
                rollout_id, attempt_id = ids[number]
                async with tracer.trace_context(rollout_id=rollout_id, attempt_id=attempt_id) as handle:
                    truth[number] += 2
                    span = handle.start_span(what)
                    if what == "open":
                        opened[number].append(span)
                    elif what == "cancel":
                        asyncio.current_task().cancel()  # type: ignore[union-attr]
                        await asyncio.sleep(0)
                    elif what == "raise":
                        raise RuntimeError("the agent")
                    span.end()

            for what, number in script:
                if what in {"span", "open", "raise", "cancel"}:
                    await asyncio.gather(asyncio.ensure_future(act(what, number)), return_exceptions=True)
                elif what == "close" and opened[number]:
                    opened[number].pop().end()
                elif what == "hold":
                    faulty.hold()
                elif what == "release":
                    faulty.release()
                elif what == "break":
                    faulty.fail_for_ever()
                elif what == "heal":
                    faulty.heal()
                    faulty.fail_every = fail_every
                elif what == "flush":
                    await asyncio.to_thread(tracer.processor.force_flush, 5)
            faulty.heal()
        with tracer.lifespan(faulty):  # the next start delivers what waits
            await asyncio.to_thread(tracer.processor.force_flush, 5000)
        for number, attempt in enumerate(ids):
            receipt = await store.get_receipt(*attempt)
            assert_balanced(receipt)
            assert receipt.started == truth[number]
            assert receipt.stored == len(await read(store, attempt))
            assert receipt.dropped.get("spooled", 0) == 0
