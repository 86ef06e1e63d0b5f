"""Model calls of the real client, under the right attempt, as spans with token ids."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest
from opentelemetry.instrumentation.utils import suppress_instrumentation
from tracer_sample import new_attempt, read

from agentlightning.adapter import TracerTraceToTriplet
from agentlightning.rows import build_rows
from agentlightning.semconv import ModelCallAttributes
from agentlightning.store import LightningStore
from agentlightning.testing.fake_openai import Answer, FakeOpenAI, Fault, ReceivedRequest
from agentlightning.tracer import OtelTracer
from agentlightning.types import LLM, ProxyLLM, Span

ASK: Any = {"model": "policy", "temperature": 1.0, "top_p": 1.0}


def echo(request: ReceivedRequest) -> Answer:
    """Answer with the number in the question, as text and as token ids."""
    number = int(request.json()["messages"][-1]["content"])
    return Answer.of(f"answer {number}", prompt_token_ids=(number, 1, 2), id=f"chatcmpl-{number}")


def chat_spans(spans: list[Span]) -> list[Span]:
    return [span for span in spans if span.name.startswith("chat")]


@pytest.mark.asyncio
async def test_concurrent_rollouts_get_their_own_calls_with_ids(store: LightningStore) -> None:
    ids = [await new_attempt(store) for _ in range(32)]
    with FakeOpenAI(echo) as server:
        tracer = OtelTracer(capture_tokens="request", endpoints=[server.base_url])
        with tracer.lifespan(store):
            async with openai.AsyncOpenAI(base_url=server.base_url, api_key="unused") as client:

                async def rollout(number: int) -> None:
                    rollout_id, attempt_id = ids[number]
                    question: Any = [{"role": "user", "content": str(number)}]
                    async with tracer.trace_context(rollout_id=rollout_id, attempt_id=attempt_id):
                        reply = await client.chat.completions.create(messages=question, **ASK)
                        assert reply.choices[0].message.content == f"answer {number}"
                        # What was asked on the agent's behalf is taken out again.
                        assert not reply.model_extra
                        stream = await client.chat.completions.create(messages=question, stream=True, **ASK)
                        text = ""
                        async for chunk in stream:
                            text += chunk.choices[0].delta.content or ""
                        assert text == f"answer {number}"

                await asyncio.gather(*map(rollout, range(len(ids))))
    for number, attempt in enumerate(ids):
        calls = chat_spans(await read(store, attempt))
        assert len(calls) == 2
        for call in calls:
            assert call.attributes[ModelCallAttributes.PROMPT_TOKEN_IDS.value] == [number, 1, 2]
            assert call.attributes[ModelCallAttributes.TOKEN_CAPTURE.value] == "valid"
            assert call.parent_id is not None
        assert (await store.get_receipt(*attempt)).whole


@pytest.mark.asyncio
async def test_an_endpoint_among_the_resources_of_the_rollout_is_asked_for_ids(store: LightningStore) -> None:
    with FakeOpenAI(echo) as server:
        llm = LLM(endpoint=server.base_url, model="policy", sampling_defaults={}, logprob_kind="processed")
        await store.add_resources({"main": llm})
        ids = await new_attempt(store)
        tracer = OtelTracer(capture_tokens="request")
        with tracer.lifespan(store), openai.OpenAI(base_url=server.base_url, api_key="unused") as client:
            async with tracer.trace_context(rollout_id=ids[0], attempt_id=ids[1]):
                client.chat.completions.create(messages=[{"role": "user", "content": "7"}], **ASK)
    (call,) = chat_spans(await read(store, ids))
    assert call.attributes[ModelCallAttributes.LOGPROB_KIND.value] == "processed"
    (row,) = TracerTraceToTriplet().adapt(await read(store, ids))
    assert row.prompt["token_ids"] == [7, 1, 2]


@pytest.mark.asyncio
@pytest.mark.parametrize("through_proxy", [False, True])
async def test_what_a_resource_says_of_its_endpoint_holds_where_the_tracer_only_observes(
    store: LightningStore, through_proxy: bool
) -> None:
    with FakeOpenAI(Answer.of("hello", ids="always", logprobs="always")) as server:
        kind = ProxyLLM if through_proxy else LLM
        llm = kind(endpoint=server.base_url, model="policy", sampling_defaults={}, logprob_kind="processed")
        # Another model behind the same server, such as a LoRA adapter, with settings of its own.
        adapter = LLM(
            endpoint=server.base_url, model="adapter", sampling_defaults={"top_k": 5}, logprob_kind="raw"
        )
        await store.add_resources({"adapter": adapter, "main": llm})
        ids = await new_attempt(store)
        tracer = OtelTracer()
        base = llm.get_base_url(*ids)
        with tracer.lifespan(store), openai.OpenAI(base_url=base, api_key="unused") as client:
            async with tracer.trace_context(rollout_id=ids[0], attempt_id=ids[1]):
                client.chat.completions.create(messages=[{"role": "user", "content": "7"}], **ASK)
        (request,) = server.requests
        assert "return_token_ids" not in request.json()
    (call,) = chat_spans(await read(store, ids))
    assert call.attributes[ModelCallAttributes.LOGPROB_KIND.value] == "processed"
    (row,) = build_rows(await read(store, ids))
    assert (row.unproven, None in row.logprobs) == ((), False)


@pytest.mark.asyncio
async def test_a_failed_call_is_an_error_span_and_the_agents_own_exception(store: LightningStore) -> None:
    ids = await new_attempt(store)
    tracer = OtelTracer()
    with FakeOpenAI(Fault(500)) as server, tracer.lifespan(store):
        with openai.OpenAI(base_url=server.base_url, api_key="unused", max_retries=1) as client:
            async with tracer.trace_context(rollout_id=ids[0], attempt_id=ids[1]):
                with pytest.raises(openai.InternalServerError):
                    client.chat.completions.create(messages=[{"role": "user", "content": "7"}], **ASK)
    (call,) = chat_spans(await read(store, ids))
    assert call.status.status_code == "ERROR"
    assert call.attributes["http.response.status_code"] == 500
    assert TracerTraceToTriplet().adapt(await read(store, ids)) == []


@pytest.mark.asyncio
async def test_an_error_in_a_body_whose_status_is_200_is_an_error_span(store: LightningStore) -> None:
    ids = await new_attempt(store)
    tracer = OtelTracer()
    error = Fault(200, body=b'{"error": {"type": "overloaded", "message": "later"}}')
    with FakeOpenAI(error) as server, tracer.lifespan(store):
        with openai.OpenAI(base_url=server.base_url, api_key="unused", max_retries=0) as client:
            async with tracer.trace_context(rollout_id=ids[0], attempt_id=ids[1]):
                client.chat.completions.create(messages=[{"role": "user", "content": "7"}], **ASK)
    (call,) = chat_spans(await read(store, ids))
    assert (call.status.status_code, call.status.description) == ("ERROR", "overloaded")
    assert call.attributes[ModelCallAttributes.TOKEN_CAPTURE.value] == "none(error_answer)"


@pytest.mark.asyncio
async def test_a_call_is_recorded_while_another_library_suppresses_its_own_spans(
    store: LightningStore,
) -> None:
    ids = await new_attempt(store)
    tracer = OtelTracer()
    with FakeOpenAI(echo) as server, tracer.lifespan(store):
        with openai.OpenAI(base_url=server.base_url, api_key="unused") as client, suppress_instrumentation():
            async with tracer.trace_context(rollout_id=ids[0], attempt_id=ids[1]):
                client.chat.completions.create(messages=[{"role": "user", "content": "7"}], **ASK)
    assert len(chat_spans(await read(store, ids))) == 1


@pytest.mark.asyncio
async def test_two_recorders_in_one_process_make_one_span_of_a_call(store: LightningStore) -> None:
    ids = await new_attempt(store)
    first, second = OtelTracer(), OtelTracer()
    with FakeOpenAI(echo) as server, first.lifespan(store), second.lifespan(store):
        with openai.OpenAI(base_url=server.base_url, api_key="unused") as client:
            async with first.trace_context(rollout_id=ids[0], attempt_id=ids[1]):
                client.chat.completions.create(messages=[{"role": "user", "content": "7"}], **ASK)
    assert len(chat_spans(await read(store, ids))) == 1
    assert (await store.get_receipt(*ids)).whole


@pytest.mark.asyncio
async def test_a_call_after_teardown_is_not_seen(store: LightningStore) -> None:
    ids: tuple[str, str] = await new_attempt(store)
    tracer = OtelTracer()
    with FakeOpenAI(echo) as server, openai.OpenAI(base_url=server.base_url, api_key="unused") as client:
        with tracer.lifespan(store):
            async with tracer.trace_context(rollout_id=ids[0], attempt_id=ids[1]):
                pass
        reply = client.chat.completions.create(messages=[{"role": "user", "content": "7"}], **ASK)
        assert reply.choices[0].message.content == "answer 7"
    assert chat_spans(await read(store, ids)) == []
