from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.propagate import extract
from opentelemetry.sdk.trace import TracerProvider
from tracer_sample import new_attempt, read

from agentlightning.store import LightningStore
from agentlightning.testing import wait_until
from agentlightning.tracer import OtelTracer

ROLLOUTS, SPANS = 64, 50
Ids = tuple[str, str]


def agent_span(number: int, index: int) -> None:
    """An agent knows nothing of us: it uses the global API."""
    with trace.get_tracer("agent").start_as_current_span(f"step-{number}-{index}"):
        pass


async def check_all(store: LightningStore, ids: list[Ids]) -> None:
    seen: dict[str, Ids] = {}
    for number, attempt in enumerate(ids):
        spans = [span for span in await read(store, attempt) if span.name.startswith("step-")]
        assert sorted(span.name for span in spans) == sorted(
            f"step-{number}-{index}" for index in range(SPANS)
        )
        for span in spans:
            assert (span.rollout_id, span.attempt_id) == attempt
            assert span.span_id not in seen
            seen[span.span_id] = attempt
        receipt = await store.get_receipt(*attempt)
        assert receipt.whole, receipt
        assert receipt.stored == SPANS + 1
    assert len(seen) == ROLLOUTS * SPANS


@pytest.mark.asyncio
async def test_concurrent_tasks_keep_their_spans_apart(store: LightningStore, tracer: OtelTracer) -> None:
    ids = [await new_attempt(store, number) for number in range(ROLLOUTS)]

    async def rollout(number: int) -> None:
        rollout_id, attempt_id = ids[number]
        async with tracer.trace_context(store=store, rollout_id=rollout_id, attempt_id=attempt_id):
            for index in range(SPANS):
                agent_span(number, index)
                await asyncio.sleep(0)

    await asyncio.gather(*map(rollout, range(ROLLOUTS)))
    await check_all(store, ids)


@pytest.mark.asyncio
async def test_threads_that_enter_their_own_context_keep_their_spans_apart(
    store: LightningStore, tracer: OtelTracer
) -> None:
    ids = [await new_attempt(store, number) for number in range(ROLLOUTS)]

    def rollout(number: int) -> None:
        rollout_id, attempt_id = ids[number]
        with tracer.trace_context(store=store, rollout_id=rollout_id, attempt_id=attempt_id):
            for index in range(SPANS):
                agent_span(number, index)

    with ThreadPoolExecutor(8) as pool:
        await asyncio.gather(
            *(asyncio.get_running_loop().run_in_executor(pool, rollout, number) for number in range(ROLLOUTS))
        )
    await check_all(store, ids)


@pytest.mark.asyncio
async def test_work_handed_to_executors_stays_with_its_attempt(
    store: LightningStore, tracer: OtelTracer
) -> None:
    ids = [await new_attempt(store, number) for number in range(ROLLOUTS)]
    pool = ThreadPoolExecutor(4)

    async def rollout(number: int) -> None:
        rollout_id, attempt_id = ids[number]
        loop = asyncio.get_running_loop()
        async with tracer.trace_context(store=store, rollout_id=rollout_id, attempt_id=attempt_id):
            for index in range(SPANS):
                if index % 3 == 0:
                    await asyncio.to_thread(agent_span, number, index)
                elif index % 3 == 1:
                    await loop.run_in_executor(pool, partial(agent_span, number, index))
                else:
                    await asyncio.wrap_future(pool.submit(agent_span, number, index))

    with pool:
        await asyncio.gather(*map(rollout, range(ROLLOUTS)))
    await check_all(store, ids)


@pytest.mark.asyncio
async def test_a_span_that_ends_after_its_context_closed_stays_with_its_attempt(
    store: LightningStore, tracer: OtelTracer
) -> None:
    first, second = await new_attempt(store), await new_attempt(store)
    async with tracer.trace_context(store=store, rollout_id=first[0], attempt_id=first[1]):
        slow = trace.get_tracer("agent").start_span("slow")
    assert [span.name for span in await store.query_open_spans(*first)] == ["slow"]
    async with tracer.trace_context(store=store, rollout_id=second[0], attempt_id=second[1]):
        slow.end()
    assert tracer.processor.force_flush(5000)
    assert [span.name for span in await read(store, first)] == ["rollout", "slow"]
    assert [span.name for span in await read(store, second)] == ["rollout"]
    assert (await store.get_receipt(*first)).whole


@pytest.mark.asyncio
async def test_a_context_entered_inside_a_span_of_another_keeps_its_own(
    store: LightningStore, tracer: OtelTracer
) -> None:
    outer, inner = await new_attempt(store), await new_attempt(store)
    async with tracer.trace_context("outer", store=store, rollout_id=outer[0], attempt_id=outer[1]):
        with trace.get_tracer("agent").start_as_current_span("outer-step") as step:
            async with tracer.trace_context("inner", store=store, rollout_id=inner[0], attempt_id=inner[1]):
                agent_span(1, 1)
            agent_span(0, 0)
    in_outer, in_inner = await read(store, outer), await read(store, inner)
    assert {span.name for span in in_outer} == {"outer", "outer-step", "step-0-0"}
    assert {span.name for span in in_inner} == {"inner", "step-1-1"}
    assert {span.trace_id for span in in_outer}.isdisjoint(span.trace_id for span in in_inner)
    root = next(span for span in in_inner if span.name == "inner")
    assert root.parent_id is None
    assert [link.context.span_id for link in root.links] == [f"{step.get_span_context().span_id:016x}"]
    assert (
        next(span for span in in_outer if span.name == "step-0-0").parent_id == root.links[0].context.span_id
    )


@pytest.mark.asyncio
async def test_a_bare_thread_gives_unattributed_spans(store: LightningStore, tracer: OtelTracer) -> None:
    ids = await new_attempt(store)
    go = threading.Event()

    def bare() -> None:
        go.wait(120)
        agent_span(9, 9)

    thread = threading.Thread(target=bare)
    thread.start()  # before the context: nothing carries the rollout to it
    async with tracer.trace_context(store=store, rollout_id=ids[0], attempt_id=ids[1]):
        go.set()
        await asyncio.to_thread(thread.join)
    assert [span.name for span in await read(store, ids)] == ["rollout"]
    assert tracer.processor.unattributed_count == 1
    assert [span.name for span in tracer.processor.unattributed] == ["step-9-9"]


@pytest.mark.asyncio
async def test_the_fallback_attempt_takes_spans_without_context_and_no_others(store: LightningStore) -> None:
    fallback, own = await new_attempt(store), await new_attempt(store)
    tracer = OtelTracer(fallback_attempt=fallback)
    with tracer.lifespan(store):
        agent_span(0, 0)
        async with tracer.trace_context(store=store, rollout_id=own[0], attempt_id=own[1]):
            agent_span(1, 1)
    assert [span.name for span in await read(store, fallback)] == ["step-0-0"]
    assert {span.name for span in await read(store, own)} == {"rollout", "step-1-1"}
    assert (await store.get_receipt(*fallback)).whole


@pytest.mark.asyncio
async def test_explicit_ids_on_a_span_come_first(store: LightningStore, tracer: OtelTracer) -> None:
    here, there = await new_attempt(store), await new_attempt(store)
    async with tracer.trace_context(store=store, rollout_id=here[0], attempt_id=here[1]):
        attributes = {"agentlightning.rollout_id": there[0], "agentlightning.attempt_id": there[1]}
        trace.get_tracer("agent").start_span("elsewhere", attributes=attributes).end()
    assert tracer.processor.force_flush(5000)
    assert [span.name for span in await read(store, there)] == ["elsewhere"]
    assert [span.name for span in await read(store, here)] == ["rollout"]


def incoming(ids: Ids) -> otel_context.Context:
    """What a server extracts from the headers of a client that names an attempt."""
    return extract({"baggage": f"agentlightning.rollout_id={ids[0]},agentlightning.attempt_id={ids[1]}"})


@pytest.mark.asyncio
@pytest.mark.parametrize("accepts", [True, False])
async def test_ids_in_baggage_count_only_where_the_user_accepts_them(
    store: LightningStore, accepts: bool
) -> None:
    ids = await new_attempt(store)
    tracer = OtelTracer(accept_context=accepts)
    with tracer.lifespan(store):
        trace.get_tracer("service").start_span("handler", context=incoming(ids)).end()
        assert tracer.processor.force_flush(20_000)
        assert tracer.processor.unattributed_count == (0 if accepts else 1)
    assert [span.name for span in await read(store, ids)] == (["handler"] if accepts else [])


@pytest.mark.asyncio
async def test_ids_in_baggage_count_never_inside_a_trace_context(store: LightningStore) -> None:
    own, other = await new_attempt(store), await new_attempt(store)
    tracer = OtelTracer(accept_context=True)
    with tracer.lifespan(store):
        async with tracer.trace_context(store=store, rollout_id=own[0], attempt_id=own[1]):
            token = otel_context.attach(incoming(other))
            agent_span(0, 0)
            otel_context.detach(token)
        assert tracer.processor.unattributed_count == 1
    assert [span.name for span in await read(store, other)] == []
    assert (await store.get_receipt(*own)).unattributed == 1


@pytest.mark.asyncio
async def test_invented_ids_cost_nobody_a_flush_and_are_logged_with_their_number(
    store: LightningStore, caplog: pytest.LogCaptureFixture
) -> None:
    ids = await new_attempt(store)
    tracer = OtelTracer(accept_context=True)
    with tracer.lifespan(store):
        for number in range(1_100):
            context = incoming((f"ro-{number}", f"at-{number}"))
            trace.get_tracer("service").start_span("invented", context=context).end()
        async with tracer.trace_context(store=store, rollout_id=ids[0], attempt_id=ids[1]):
            agent_span(0, 0)
        assert tracer.processor.force_flush(60_000)
    assert {span.name for span in await read(store, ids)} == {"rollout", "step-0-0"}
    assert (await store.get_receipt(*ids)).whole
    said = [record for record in caplog.records if "the store does not have these" in record.message]
    assert len(said) == 2  # the first at once, the others within a minute, here at the end
    numbers = [record.args for record in said if isinstance(record.args, tuple)]
    assert sum(int(str(each[0])) for each in numbers) == 1_100


@pytest.mark.asyncio
async def test_a_parent_leads_to_its_attempt_where_no_context_does(
    store: LightningStore, tracer: OtelTracer
) -> None:
    ids = await new_attempt(store)
    async with tracer.trace_context(store=store, rollout_id=ids[0], attempt_id=ids[1]):
        parent = trace.get_tracer("agent").start_span("parent")
        only_parent = trace.set_span_in_context(parent, otel_context.Context())
        trace.get_tracer("agent").start_span("child", context=only_parent).end()
        parent.end()
    assert {span.name for span in await read(store, ids)} == {"rollout", "parent", "child"}


@pytest.mark.asyncio
async def test_ids_of_an_attempt_that_does_not_exist_are_refused_and_counted(
    store: LightningStore, tracer: OtelTracer
) -> None:
    with tracer.trace_context(store=store, rollout_id="ro-none", attempt_id="at-none") as handle:
        agent_span(0, 0)
    wait_until(lambda: handle.receipt().open == 0)
    assert handle.receipt().dropped == {"store_refused": 2}


@pytest.mark.asyncio
async def test_a_sampled_out_span_is_not_counted(store: LightningStore, tracer: OtelTracer) -> None:
    from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

    ids = await new_attempt(store)
    silent = TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False)
    silent.add_span_processor(tracer.processor)
    async with tracer.trace_context(store=store, rollout_id=ids[0], attempt_id=ids[1]) as handle:
        silent.get_tracer("quiet").start_span("unseen").end()
    assert handle.receipt().started == 1
    assert [span.name for span in await read(store, ids)] == ["rollout"]
