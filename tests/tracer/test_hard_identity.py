"""Whose span is it, where programs make ids repeat."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from tracer_sample import assert_balanced, new_attempt, read

from agentlightning.store import LightningStore
from agentlightning.testing import start_child
from agentlightning.tracer import OtelTracer


@pytest.fixture
def foreign() -> Any:
    """A provider that the user installed, whose ids come from the seeded generator of the process."""
    provider = TracerProvider(shutdown_on_exit=False)
    before, done = trace._TRACER_PROVIDER, trace._TRACER_PROVIDER_SET_ONCE._done
    trace._TRACER_PROVIDER, trace._TRACER_PROVIDER_SET_ONCE._done = provider, True
    yield provider
    trace._TRACER_PROVIDER, trace._TRACER_PROVIDER_SET_ONCE._done = before, done
    provider.shutdown()


@pytest.mark.asyncio
async def test_an_agent_that_seeds_the_random_generator_at_every_step_loses_no_span(
    store: LightningStore,
) -> None:
    ids = await new_attempt(store)
    tracer = OtelTracer()
    with tracer.lifespan(store):
        async with tracer.trace_context(rollout_id=ids[0], attempt_id=ids[1]):
            for number in range(5):
                random.seed(0)
                trace.get_tracer("agent").start_span(f"s{number}").end()
    assert [span.name for span in await read(store, ids)] == ["s0", "s1", "s2", "s3", "s4", "rollout"]
    assert (await store.get_receipt(*ids)).whole


@pytest.mark.asyncio
async def test_spans_of_two_attempts_that_have_one_id_keep_their_attempts(
    store: LightningStore, foreign: TracerProvider
) -> None:
    ids = [await new_attempt(store) for _ in range(2)]
    tracer = OtelTracer()
    begun = asyncio.Barrier(2)

    async def agent(number: int) -> None:
        rollout_id, attempt_id = ids[number]
        random.seed(7)  # every rollout is seeded: a usual habit
        async with tracer.trace_context(f"rollout-{number}", rollout_id=rollout_id, attempt_id=attempt_id):
            span = trace.get_tracer("agent").start_span(f"s{number}")
            await begun.wait()
            span.end()
            await begun.wait()

    with tracer.lifespan(store):
        await asyncio.gather(agent(0), agent(1))
    for number, attempt in enumerate(ids):
        assert [span.name for span in await read(store, attempt)] == [f"s{number}", f"rollout-{number}"]
        assert (await store.get_receipt(*attempt)).whole


@pytest.mark.asyncio
async def test_a_trace_id_of_two_attempts_says_nothing(
    store: LightningStore, foreign: TracerProvider
) -> None:
    ids = [await new_attempt(store) for _ in range(2)]
    tracer = OtelTracer()
    with tracer.lifespan(store):
        roots = []
        for rollout_id, attempt_id in ids:
            random.seed(7)
            async with tracer.trace_context(rollout_id=rollout_id, attempt_id=attempt_id):
                roots.append(trace.get_current_span())
        bare = trace.set_span_in_context(roots[0], otel_context.Context())
        trace.get_tracer("agent").start_span("whose?", context=bare).end()
        assert tracer.processor.unattributed_count == 1
    for attempt in ids:
        assert [span.name for span in await read(store, attempt)] == ["rollout"]


@pytest.mark.asyncio
async def test_two_spans_of_one_attempt_with_one_id_are_counted(
    store: LightningStore, foreign: TracerProvider
) -> None:
    ids = await new_attempt(store)
    tracer = OtelTracer()
    with tracer.lifespan(store):
        async with tracer.trace_context(rollout_id=ids[0], attempt_id=ids[1]) as handle:
            for number in range(3):
                random.seed(0)
                trace.get_tracer("agent").start_span(f"s{number}").end()
    assert [span.name for span in await read(store, ids)] == ["s0", "rollout"]
    receipt = await store.get_receipt(*ids)
    assert receipt.started == 4
    assert_balanced(receipt)
    assert_balanced(handle.receipt())
    assert handle.receipt().stored == 2


SAMPLED = """
from opentelemetry import trace
from agentlightning.store import InMemoryLightningStore
from agentlightning.tracer import OtelTracer
tracer = OtelTracer()
with tracer.lifespan(InMemoryLightningStore()):
    with tracer.trace_context() as handle:
        trace.get_tracer("agent").start_span("step").end()
    report([span.name for span in handle.spans()])
"""


@pytest.mark.parametrize("sampler", ["always_off", "traceidratio"])
def test_a_sampler_of_the_environment_takes_nothing_from_the_recorder(sampler: str) -> None:
    environment = {"OTEL_TRACES_SAMPLER": sampler, "OTEL_TRACES_SAMPLER_ARG": "0.0"}
    with start_child(SAMPLED, env=environment) as child:
        assert child.finish() == [["step", "rollout"]]


def test_a_disabled_sdk_is_obeyed_and_said() -> None:
    with start_child(SAMPLED, env={"OTEL_SDK_DISABLED": "true"}) as child:
        assert child.finish() == [[]]
