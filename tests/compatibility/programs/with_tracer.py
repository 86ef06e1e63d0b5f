"""Spans of an agent, by OtelTracer into a store."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from agentlightning import InMemoryLightningStore, OtelTracer, Span
from agentlightning.tracer import DummyTracer, clear_active_tracer, get_active_tracer, set_active_tracer


def told(spans: list[Span]) -> list[dict[str, Any]]:
    names = {span.span_id: span.name for span in spans}
    return [
        {
            "name": span.name,
            "number": span.sequence_id,
            "parent": names.get(span.parent_id or ""),
            "status": span.status.status_code,
            "attributes": {
                name: value for name, value in span.attributes.items() if not name.startswith("exception.")
            },
            "events": sorted({event.name for event in span.events}),
            "took_time": (span.end_time or 0) >= (span.start_time or 0) > 0,
        }
        for span in spans
    ]


async def agent(tracer: OtelTracer, otel: Any) -> None:
    with otel.start_as_current_span("plan") as span:
        span.set_attribute("steps", 2)
        with otel.start_as_current_span("search", attributes={"query": "weather", "limits": [1, 2]}):
            pass
        with tracer.operation_context("call", attributes={"tool": "map"}) as recorded:
            recorded.record_attributes({"found": True})
            recorded.record_status("OK")
    try:
        with tracer.operation_context("break"):
            raise ValueError("no map")
    except ValueError:
        pass
    await asyncio.to_thread(lambda: None)


async def main() -> dict[str, Any]:
    facts: dict[str, Any] = {}
    store, tracer = InMemoryLightningStore(), OtelTracer()
    tracer.init()
    tracer.init_worker(0, store)
    rollout = await store.start_rollout(input={"question": "where?"})
    ids = {"rollout_id": rollout.rollout_id, "attempt_id": rollout.attempt.attempt_id}
    async with tracer.trace_context("agent", store=store, **ids) as otel:
        facts["active tracer in the context"] = get_active_tracer() is tracer
        await agent(tracer, otel)
    facts["spans"] = told(list(await store.query_spans(**ids)))
    facts["last trace"] = [span.name for span in tracer.get_last_trace()]
    facts["one attempt"] = {span.attempt_id for span in tracer.get_last_trace()} == {ids["attempt_id"]}
    after = await store.get_rollout_by_id(ids["rollout_id"])
    facts["status after the first span"] = after.status if after else None

    second = await store.start_attempt(ids["rollout_id"])
    async with tracer.trace_context(
        store=store, rollout_id=ids["rollout_id"], attempt_id=second.attempt.attempt_id
    ) as otel:
        otel.start_span("again").end()
    facts["spans of the second attempt"] = [
        span.name for span in await store.query_spans(ids["rollout_id"], second.attempt.attempt_id)
    ]
    facts["spans of the latest attempt"] = [
        span.name for span in await store.query_spans(ids["rollout_id"], "latest")
    ]
    facts["spans of the rollout"] = [span.name for span in await store.query_spans(ids["rollout_id"])]

    async with tracer.trace_context("without a store") as otel:
        otel.start_span("alone").end()
    facts["spans without a store"] = [span.name for span in tracer.get_last_trace()]
    try:
        async with tracer.trace_context(store=store, rollout_id=ids["rollout_id"]):
            pass
    except ValueError:
        facts["a rollout without its attempt"] = "ValueError"
    tracer.teardown_worker(0)
    tracer.teardown()

    dummy = DummyTracer()
    set_active_tracer(dummy)
    facts["a span of the dummy"] = dummy.create_span("made", attributes={"a": 1}).model_dump(
        include={"name", "attributes"}
    )
    clear_active_tracer()
    facts["no active tracer"] = get_active_tracer()
    return facts


print(json.dumps(asyncio.run(main())), flush=True)
