"""Two tracers in one process: what they share stays until the last of them is gone."""

from __future__ import annotations

import signal
import threading
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from tracer_sample import new_attempt, read

from agentlightning.store import LightningStore
from agentlightning.tracer import OtelTracer

pytestmark = pytest.mark.asyncio


def work(name: str) -> None:
    with trace.get_tracer("agent").start_as_current_span(name):
        pass


async def names(tracer: OtelTracer, store: LightningStore) -> list[str]:
    """Record a span of this thread and one of another; return what is stored."""
    ids = await new_attempt(store)
    async with tracer.trace_context("root", store=store, rollout_id=ids[0], attempt_id=ids[1]):
        work("here")
        thread = threading.Thread(target=work, args=("there",))
        thread.start()
        thread.join()
    return sorted(span.name for span in await read(store, ids))


@pytest.mark.parametrize("first", [0, 1])
async def test_the_second_goes_on_as_before_when_the_other_is_gone(store: LightningStore, first: int) -> None:
    before: Any = (trace._TRACER_PROVIDER, signal.getsignal(signal.SIGTERM), threading.Thread.start)
    tracers = [OtelTracer(), OtelTracer()]
    for number, tracer in enumerate(tracers):
        tracer.init()
        tracer.init_worker(number, store)
    watched = signal.getsignal(signal.SIGTERM)
    try:
        for tracer in tracers:
            assert await names(tracer, store) == ["here", "root", "there"]
        tracers[first].teardown()
        assert await names(tracers[1 - first], store) == ["here", "root", "there"]
        assert signal.getsignal(signal.SIGTERM) is watched
    finally:
        for tracer in tracers:
            tracer.teardown()
    assert before == (trace._TRACER_PROVIDER, signal.getsignal(signal.SIGTERM), threading.Thread.start)


async def test_both_follow_a_program_that_installs_its_own_provider(store: LightningStore) -> None:
    original = trace.set_tracer_provider
    tracers = [OtelTracer(), OtelTracer()]
    for number, tracer in enumerate(tracers):
        tracer.init()
        tracer.init_worker(number, store)
    try:
        tracers[0].teardown()
        own = TracerProvider(shutdown_on_exit=False)
        trace.set_tracer_provider(own)
        assert await names(tracers[1], store) == ["here", "root", "there"]
    finally:
        tracers[1].teardown()
        assert trace._TRACER_PROVIDER is own
        trace._TRACER_PROVIDER = None
        trace._TRACER_PROVIDER_SET_ONCE._done = False
    assert trace.set_tracer_provider is original
