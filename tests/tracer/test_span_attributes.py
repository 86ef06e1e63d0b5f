from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from tracer_sample import new_attempt, read

from agentlightning.dialects.raw_call import CallStart, RawCall
from agentlightning.dialects.spans.genai import read_call
from agentlightning.semconv import ModelCallAttributes
from agentlightning.store import LightningStore
from agentlightning.tracer import OtelTracer
from agentlightning.tracer.model_calls import ModelCallRecorder


@pytest.mark.asyncio
async def test_our_provider_cuts_off_no_attribute_event_or_link(
    store: LightningStore, tracer: OtelTracer
) -> None:
    ids = await new_attempt(store)
    async with tracer.trace_context(rollout_id=ids[0], attempt_id=ids[1]) as handle:
        with handle.start_as_current_span("long") as span:
            for number in range(2000):
                span.set_attribute(f"gen_ai.prompt.{number}.content", f"message {number}")
                span.add_event(f"event {number}")
            span.set_attribute("text", "x" * 1_000_000)
    long = next(span for span in await read(store, ids) if span.name == "long")
    assert [long.attributes[f"gen_ai.prompt.{number}.content"] for number in range(2000)] == [
        f"message {number}" for number in range(2000)
    ]
    assert len(long.events) == 2000
    assert len(long.attributes["text"]) == 1_000_000
    assert "agentlightning.dropped_attributes" not in long.attributes


@pytest.mark.asyncio
async def test_awkward_values_are_kept_or_turned_into_json_and_never_raise(
    store: LightningStore, tracer: OtelTracer
) -> None:
    ids = await new_attempt(store)
    awkward: dict[str, Any] = {
        "none": None,
        "map": {"a": {"b": [1, None]}},
        "mixed": [1, "two", None, 3.0],
        "bytes": b"\xff\x00",
        "object": object(),
        "nan": float("nan"),
        "infinite": float("inf"),
        "huge int": 2**80,
        "surrogate": "\ud800",
        "tuple": (1, 2),
        "set": {1},
    }
    async with tracer.trace_context(rollout_id=ids[0], attempt_id=ids[1]) as handle:
        for name, value in awkward.items():
            handle.start_span(name, attributes={name: value}).end()
        handle.start_span(name="name \ud800").end()
        tracer.create_span("all", awkward)
        with tracer.operation_context("recorded") as recording:
            recording.record_attributes(awkward)
    spans = {span.name: span for span in await read(store, ids)}
    assert set(awkward) | {"all", "recorded", "rollout"} <= set(spans)
    assert (await store.get_receipt(*ids)).whole
    for name in ("all", "recorded"):
        assert spans[name].attributes["mixed"] in ([1, "two", None, 3.0], json.dumps([1, "two", None, 3.0]))
        assert spans[name].attributes["surrogate"] == "\ud800"


def model_call(ids: list[int], messages: int) -> RawCall:
    body = {
        "id": "chatcmpl-1",
        "model": "policy",
        "prompt_token_ids": ids,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "yes"},
                "finish_reason": "stop",
                "token_ids": ids,
                "logprobs": {"content": [{"token": "x", "logprob": -1 / (number + 1)} for number in ids]},
            }
        ],
        "usage": {"prompt_tokens": len(ids), "completion_tokens": len(ids)},
    }
    request = {
        "model": "policy",
        "temperature": 1.0,
        "messages": [{"role": "user", "content": f"message {number}"} for number in range(messages)],
    }
    return RawCall(
        start=CallStart("chat", "http://localhost/v1/chat/completions", "policy", stream=False),
        request_body=json.dumps(request).encode(),
        status=200,
        content_type="application/json",
        response_body=json.dumps(body).encode(),
        complete=True,
    )


@pytest.mark.asyncio
async def test_a_foreign_provider_with_tiny_limits_loses_nothing_that_training_needs(
    store: LightningStore,
) -> None:
    before, done = trace._TRACER_PROVIDER, trace._TRACER_PROVIDER_SET_ONCE._done
    foreign = TracerProvider(
        shutdown_on_exit=False, span_limits=SpanLimits(max_span_attributes=2, max_span_attribute_length=5)
    )
    trace._TRACER_PROVIDER, trace._TRACER_PROVIDER_SET_ONCE._done = foreign, True
    try:
        ids = await new_attempt(store)
        tokens = list(range(20_000))
        tracer = OtelTracer()
        with tracer.lifespan(store):
            async with tracer.trace_context(rollout_id=ids[0], attempt_id=ids[1]):
                recorder = ModelCallRecorder(tracer.processor, lambda: trace.get_tracer("agent"))
                raw = model_call(tokens, 500)
                recorder.ended(recorder.started(raw.start), raw)
        span = next(span for span in await read(store, ids) if span.name.startswith("chat"))
        assert span.attributes[ModelCallAttributes.PROMPT_TOKEN_IDS.value] == tokens
        assert span.attributes[ModelCallAttributes.RESPONSE_TOKEN_IDS.at(0)] == tokens
        assert span.attributes[ModelCallAttributes.LOGPROBS.at(0)] == [-1 / (number + 1) for number in tokens]
        assert span.attributes["agentlightning.dropped_attributes"] > 0
        call = read_call(span)
        assert call is not None
        assert [message["content"] for message in call.request_messages] == [
            f"message {n}" for n in range(500)
        ]
    finally:
        trace._TRACER_PROVIDER, trace._TRACER_PROVIDER_SET_ONCE._done = before, done
        await asyncio.to_thread(foreign.shutdown)
