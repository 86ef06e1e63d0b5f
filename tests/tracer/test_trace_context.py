from __future__ import annotations

import asyncio
import gc
import logging
import pickle

import pytest
from opentelemetry import trace
from tracer_sample import new_attempt, read, spans_in

from agentlightning.errors import ContextArgumentsError, TracerNotReady
from agentlightning.store import InMemoryLightningStore, LightningStore
from agentlightning.testing import FaultyStore
from agentlightning.tracer import DummyTracer, OtelTracer, get_active_tracer


def test_with_stores_what_ended_before_the_next_line(tracer: OtelTracer, store: LightningStore) -> None:
    ids = asyncio.run(new_attempt(store))
    with tracer.trace_context("task", store=store, rollout_id=ids[0], attempt_id=ids[1]) as handle:
        with handle.start_as_current_span("step"):
            pass
        handle.start_span("leaf").end()
    assert [span.name for span in spans_in(store, ids)] == ["step", "leaf", "task"]
    assert [span.sequence_id for span in spans_in(store, ids)] == [1, 2, 3]
    assert [span.name for span in handle.spans()] == ["step", "leaf", "task"]
    assert handle.spans() == spans_in(store, ids)
    assert tracer.get_last_trace() == handle.spans()


def test_a_rollout_is_started_and_ended_where_no_ids_are_given(
    tracer: OtelTracer, store: LightningStore
) -> None:
    with tracer.trace_context("good") as handle:
        pass
    with pytest.raises(RuntimeError, match="the agent failed"), tracer.trace_context("bad") as failed:
        raise RuntimeError("the agent failed")
    assert tracer.processor.force_flush(5000)
    good = asyncio.run(store.get_rollout_by_id(handle.rollout_id))
    bad = asyncio.run(store.get_rollout_by_id(failed.rollout_id))
    assert good is not None
    assert bad is not None
    assert (good.status, good.input) == ("succeeded", {"name": "good"})
    assert (bad.status, bad.input) == ("failed", {"name": "bad"})


def test_an_exception_leaves_an_error_span_and_goes_on_unchanged(
    tracer: OtelTracer, store: LightningStore
) -> None:
    ids = asyncio.run(new_attempt(store))
    error = ValueError("mine")
    with pytest.raises(ValueError, match="mine") as caught:
        with tracer.trace_context(store=store, rollout_id=ids[0], attempt_id=ids[1]):
            raise error
    assert caught.value is error
    (root,) = spans_in(store, ids)
    assert root.status.status_code == "ERROR"
    assert root.attributes["exception.type"].endswith("ValueError")
    assert [event.name for event in root.events] == ["exception"]


@pytest.mark.parametrize("given", [{"rollout_id": "r"}, {"attempt_id": "a"}])
def test_half_of_the_ids_is_an_error(tracer: OtelTracer, given: dict[str, str]) -> None:
    with pytest.raises(ContextArgumentsError, match="both rollout_id and attempt_id"):
        tracer.trace_context(**given)  # type: ignore[arg-type]


def test_ids_without_any_store_are_an_error() -> None:
    tracer = OtelTracer()
    with tracer.lifespan(), pytest.raises(ValueError, match="no store"):
        tracer.trace_context(rollout_id="r", attempt_id="a")


def test_without_a_store_spans_are_kept_in_memory() -> None:
    tracer = OtelTracer()
    with tracer.lifespan():
        with tracer.trace_context("local") as handle, handle.start_as_current_span("step"):
            pass
        assert [span.name for span in tracer.get_last_trace()] == ["step", "local"]
        assert handle.receipt().stored == 2


def test_a_tracer_says_what_it_misses() -> None:
    with pytest.raises(TracerNotReady, match="init_worker"):
        OtelTracer().trace_context()
    tracer = OtelTracer()
    tracer.init_worker(0)
    try:
        with pytest.raises(TracerNotReady, match="twice"):
            tracer.init_worker(0)
    finally:
        tracer.teardown_worker(0)
        tracer.teardown_worker(0)
        tracer.teardown()


def test_the_tracer_is_active_inside_and_only_there(tracer: OtelTracer) -> None:
    assert get_active_tracer() is None
    with tracer.trace_context():
        assert get_active_tracer() is tracer
        with DummyTracer().trace_context():
            assert get_active_tracer() is tracer
    assert get_active_tracer() is None
    assert not trace.get_current_span().get_span_context().is_valid


@pytest.mark.asyncio
async def test_with_inside_an_event_loop_starts_the_flush_says_so_and_does_not_wait(
    store: LightningStore, caplog: pytest.LogCaptureFixture
) -> None:
    slow = FaultyStore(store, only={"add_many_spans"})
    ids = await new_attempt(store)
    tracer = OtelTracer()
    with tracer.lifespan(slow):
        slow.hold()
        with tracer.trace_context(store=slow, rollout_id=ids[0], attempt_id=ids[1]):
            pass
        assert await read(store, ids) == []
        assert "does not wait until its spans are stored" in caplog.text
        slow.release()
        assert await asyncio.to_thread(tracer.processor.force_flush, 5000)
    assert [span.name for span in await read(store, ids)] == ["rollout"]


@pytest.mark.asyncio
async def test_a_context_left_in_another_task_logs_nothing_and_keeps_the_spans(
    store: LightningStore, tracer: OtelTracer, caplog: pytest.LogCaptureFixture
) -> None:
    ids = await new_attempt(store)
    context = tracer.trace_context(store=store, rollout_id=ids[0], attempt_id=ids[1])
    await asyncio.create_task(context.__aenter__())
    with caplog.at_level(logging.WARNING):
        await asyncio.create_task(context.__aexit__(None, None, None))
    assert caplog.records == []
    assert [span.name for span in await read(store, ids)] == ["rollout"]


@pytest.mark.asyncio
async def test_an_abandoned_generator_inside_a_context_breaks_nothing(
    store: LightningStore, tracer: OtelTracer, caplog: pytest.LogCaptureFixture
) -> None:
    async def stream() -> object:
        async with tracer.trace_context("stream"):
            for number in range(10):
                yield number

    with caplog.at_level(logging.WARNING):
        async for _ in stream():  # type: ignore[attr-defined]
            break
        gc.collect()
        await asyncio.sleep(0)
    assert "Failed to detach context" not in caplog.text


@pytest.mark.asyncio
async def test_cancelling_a_rollout_records_it_and_stays_a_cancellation(
    store: LightningStore, tracer: OtelTracer
) -> None:
    ids = await new_attempt(store)
    inside = asyncio.Event()

    async def rollout() -> None:
        async with tracer.trace_context(store=store, rollout_id=ids[0], attempt_id=ids[1]):
            inside.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(rollout())
    await inside.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert tracer.processor.force_flush(5000)
    (root,) = await read(store, ids)
    assert root.status.status_code == "ERROR"


def test_create_span_and_operation_context_are_recorded(tracer: OtelTracer, store: LightningStore) -> None:
    with tracer.trace_context() as handle:
        made = tracer.create_span("moment", {"a": (1, 2)}, timestamp=1.5)
        with tracer.operation_context("work", {"k": {"nested": None}}) as recording:
            recording.record_attributes({"more": 1})
        with pytest.raises(KeyError), tracer.operation_context("broken"):
            raise KeyError("x")
    spans = {span.name: span for span in handle.spans()}
    assert made.start_time == made.end_time == spans["moment"].start_time == 1.5
    assert spans["moment"].attributes["a"] == [1, 2]
    assert spans["work"].attributes["more"] == 1
    assert spans["work"].parent_id == spans["rollout"].span_id
    assert spans["broken"].status.status_code == "ERROR"


def test_trace_run_records_a_call_and_returns_what_it_returns(tracer: OtelTracer) -> None:
    def agent(number: int) -> int:
        return number + 1

    async def later(number: int) -> int:
        return number + 2

    assert tracer.trace_run(agent, 1) == 2
    assert [span.name for span in tracer.get_last_trace()] == ["agent"]
    assert asyncio.run(tracer.trace_run_async(later, 1)) == 3
    assert [span.name for span in tracer.get_last_trace()] == ["later"]


def test_a_tracer_pickles_into_a_worker() -> None:
    tracer = OtelTracer(capture_tokens="request", endpoints=["http://user:secret@localhost:1/v1"])
    assert b"secret" not in pickle.dumps(tracer)
    copy = pickle.loads(pickle.dumps(tracer))
    known = copy.endpoint_for("http://localhost:1/v1/chat/completions")
    assert known is not None
    assert known.url == "http://localhost:1/v1"
    with copy.lifespan(InMemoryLightningStore()), copy.trace_context() as handle:
        pass
    assert [span.name for span in handle.spans()] == ["rollout"]


def test_an_unknown_capture_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="'observe' or 'request'"):
        OtelTracer(capture_tokens="all")  # type: ignore[arg-type]
