"""A model call is one span in the store, also where another instrumentation makes a span of it."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import openai
import pytest
from opentelemetry import trace
from tracer_sample import new_attempt, read

from agentlightning.adapter import TracerTraceToTriplet
from agentlightning.dialects.raw_call import CallStart, RawCall
from agentlightning.dialects.spans.foreign import is_model_call
from agentlightning.semconv import ModelCallAttributes
from agentlightning.store import LightningStore
from agentlightning.testing.fake_openai import Answer, FakeOpenAI
from agentlightning.tracer import OtelTracer
from agentlightning.types import Span

IDS = (5, 6, 7)
ASK: Any = {
    "model": "policy",
    "messages": [{"role": "user", "content": "hi"}],
    "temperature": 1.0,
    "top_p": 1.0,
}
PROMPT_IDS = ModelCallAttributes.PROMPT_TOKEN_IDS.value
CAPTURE = ModelCallAttributes.TOKEN_CAPTURE.value
STRANGER: dict[str, Any] = {"gen_ai.request.type": "chat", "gen_ai.system": "OpenAI"}


ANSWER = Answer.of("hello you", prompt_token_ids=IDS, id="chatcmpl-1", ids="always", logprobs="always")


def held() -> Answer:
    """The same answer, of whose stream the third event, the last with a token, is held back."""
    return replace(ANSWER, gates={2: threading.Event()})


@pytest.fixture
def server() -> Iterator[FakeOpenAI]:
    """A model that always shows its token ids."""
    with FakeOpenAI(lambda _request: ANSWER) as running:
        yield running


@pytest.fixture
def client(server: FakeOpenAI) -> Iterator[openai.OpenAI]:
    """The real client."""
    with server.client() as opened:
        yield opened


def strangers_span(name: str = "openai.chat.completion", **attributes: Any) -> trace.Span:
    """Start a span as other instrumentations do: not current, and with little said yet."""
    made = trace.get_tracer("stranger").start_span(
        name, kind=trace.SpanKind.CLIENT, attributes={**STRANGER, **attributes}
    )
    return made


@contextmanager
def strangers_current_span(name: str = "openai.chat.completion") -> Iterator[trace.Span]:
    """The same, current."""
    with trace.get_tracer("stranger").start_as_current_span(name, attributes=STRANGER) as made:
        yield made


def model_spans(spans: list[Span]) -> list[Span]:
    return [span for span in spans if span.name.startswith(("chat", "openai.chat"))]


async def spans_of(store: LightningStore, attempt: Any) -> list[Span]:
    receipt = await store.get_receipt(*attempt)
    assert receipt.whole
    assert receipt.open == 0
    return list(await read(store, attempt))


@pytest.mark.asyncio
@pytest.mark.parametrize("current", [False, True])
async def test_the_strangers_span_gets_the_tokens_and_no_second_span_is_made(
    store: LightningStore, tracer: OtelTracer, client: openai.OpenAI, current: bool
) -> None:
    attempt = await new_attempt(store)
    async with tracer.trace_context(rollout_id=attempt[0], attempt_id=attempt[1]):
        if current:
            with strangers_current_span() as span:
                client.chat.completions.create(**ASK)
                span.set_attribute("gen_ai.response.id", "chatcmpl-1")
        else:
            span = strangers_span(**{"gen_ai.request.model": "policy"})
            client.chat.completions.create(**ASK)
            span.set_attribute("gen_ai.response.id", "chatcmpl-1")
            span.end()
    (call,) = model_spans(await spans_of(store, attempt))
    assert call.name == "openai.chat.completion"
    assert call.attributes["gen_ai.system"] == "OpenAI"
    assert call.attributes[PROMPT_IDS] == list(IDS)
    assert call.attributes[CAPTURE] == "valid"
    (row,) = TracerTraceToTriplet().adapt(await read(store, attempt))
    assert row.prompt["token_ids"] == list(IDS)


@pytest.mark.asyncio
@pytest.mark.parametrize("said", ["policy", "openai/policy"])
async def test_a_span_of_an_agent_framework_that_tells_only_kind_and_model_adopts_the_call(
    store: LightningStore, tracer: OtelTracer, client: openai.OpenAI, said: str
) -> None:
    attempt = await new_attempt(store)
    async with tracer.trace_context(rollout_id=attempt[0], attempt_id=attempt[1]):
        framework = trace.get_tracer("stranger")
        span = framework.start_span(
            "generation", attributes={"agentops.span.kind": "llm", "gen_ai.request.model": said}
        )
        client.chat.completions.create(**ASK)
        span.end()
    spans = await spans_of(store, attempt)
    assert sorted(span.name for span in spans) == ["generation", "rollout"]
    (call,) = [span for span in spans if span.name == "generation"]
    assert call.attributes[PROMPT_IDS] == list(IDS)
    assert call.attributes[CAPTURE] == "valid"


@pytest.mark.asyncio
async def test_each_of_many_concurrent_calls_finds_its_own_span(
    store: LightningStore, tracer: OtelTracer, server: FakeOpenAI
) -> None:
    attempt = await new_attempt(store)

    def echo(request: Any) -> Answer:
        number = int(request.json()["messages"][0]["content"])
        return Answer.of("x", prompt_token_ids=(number,), id=f"r-{number}", ids="always", logprobs="always")

    with FakeOpenAI(echo) as echoing:
        async with (
            echoing.async_client() as calling,
            tracer.trace_context(rollout_id=attempt[0], attempt_id=attempt[1]),
        ):

            async def one(number: int) -> None:
                span = strangers_span(number=number)
                reply = await calling.chat.completions.create(
                    **{**ASK, "messages": [{"role": "user", "content": str(number)}]}
                )
                span.set_attribute("gen_ai.response.id", reply.id)
                span.end()

            await asyncio.gather(*map(one, range(40)))
    calls = model_spans(await spans_of(store, attempt))
    assert len(calls) == 40
    for call in calls:
        assert call.attributes[PROMPT_IDS] == [call.attributes["number"]]
        assert call.attributes[CAPTURE] == "valid"


@pytest.mark.asyncio
async def test_a_span_that_ends_before_its_stream_waits_for_the_tokens(
    store: LightningStore, tracer: OtelTracer, client: openai.OpenAI
) -> None:
    attempt = await new_attempt(store)
    async with tracer.trace_context(rollout_id=attempt[0], attempt_id=attempt[1]):
        span = strangers_span()
        stream = client.chat.completions.create(stream=True, **ASK)
        span.end()
        assert [chunk.id for chunk in stream]
    (call,) = model_spans(await spans_of(store, attempt))
    assert call.attributes[PROMPT_IDS] == list(IDS)


@pytest.mark.asyncio
async def test_a_span_that_nobody_ends_after_a_stream_was_left_ends_with_its_context(
    store: LightningStore, tracer: OtelTracer, server: FakeOpenAI, client: openai.OpenAI
) -> None:
    attempt = await new_attempt(store)
    server.enqueue(held())
    async with tracer.trace_context(rollout_id=attempt[0], attempt_id=attempt[1]):
        strangers_span()
        with client.chat.completions.create(stream=True, **ASK) as stream:
            pieces = iter(stream)
            assert [next(pieces).id, next(pieces).id] == ["chatcmpl-1"] * 2
    (call,) = model_spans(await spans_of(store, attempt))
    assert call.attributes[CAPTURE] == "invalid(left_by_agent)"


@pytest.mark.asyncio
@pytest.mark.parametrize("read_so_far", [0, 1])
@pytest.mark.parametrize("who", ["a stranger that ends it", "a stranger that does not", "we"])
async def test_a_stream_that_is_kept_leaves_its_span_open_and_the_end_of_the_worker_stores_it_as_cut_off(
    store: LightningStore, server: FakeOpenAI, who: str, read_so_far: int
) -> None:
    attempt = await new_attempt(store)
    tracer = OtelTracer(max_wait_time=60_000)
    answer = held()
    server.enqueue(answer)
    with server.client() as calling:
        with tracer.lifespan(store):
            async with tracer.trace_context(rollout_id=attempt[0], attempt_id=attempt[1]):
                span = None if who == "we" else strangers_span()
                pieces = iter(calling.chat.completions.create(stream=True, **ASK))
                assert [next(pieces).id for _ in range(read_so_far)] == ["chatcmpl-1"] * read_so_far
                if span is not None and who == "a stranger that ends it":
                    span.end()
            assert (await store.get_receipt(*attempt)).open == 1
        answer.gates[2].set()
        assert [piece.id for piece in pieces]  # the agent reads on
    (call,) = model_spans(await spans_of(store, attempt))
    assert call.attributes[CAPTURE] == "invalid(partial)"
    assert call.attributes[ModelCallAttributes.PARTIAL.value] is True
    assert TracerTraceToTriplet().adapt(await read(store, attempt)) == []


@pytest.mark.asyncio
async def test_a_stream_that_is_left_after_its_context_ends_its_span_at_once(
    store: LightningStore, tracer: OtelTracer, client: openai.OpenAI
) -> None:
    attempt = await new_attempt(store)
    async with tracer.trace_context(rollout_id=attempt[0], attempt_id=attempt[1]):
        strangers_span()
        stream = client.chat.completions.create(stream=True, **ASK)
    assert (await store.get_receipt(*attempt)).open == 1
    stream.close()
    tracer.processor.force_flush()
    (call,) = model_spans(await spans_of(store, attempt))
    assert call.attributes[CAPTURE] == "invalid(left_by_agent)"


@pytest.mark.asyncio
async def test_the_inner_one_of_two_spans_of_one_call_is_dropped_and_its_children_move_up(
    store: LightningStore, tracer: OtelTracer, client: openai.OpenAI
) -> None:
    attempt = await new_attempt(store)
    async with tracer.trace_context(rollout_id=attempt[0], attempt_id=attempt[1]):
        with strangers_current_span(), strangers_current_span():
            client.chat.completions.create(**ASK)
            trace.get_tracer("stranger").start_span("tool_call.add").end()
    spans = await spans_of(store, attempt)
    (call,) = model_spans(spans)
    assert call.attributes[PROMPT_IDS] == list(IDS)
    (tool,) = [span for span in spans if span.name == "tool_call.add"]
    assert tool.parent_id == call.span_id
    assert tool.parent is not None
    assert tool.parent.span_id == call.span_id
    assert (await store.get_receipt(*attempt)).dropped == {"same_call": 1}


@pytest.mark.asyncio
async def test_an_open_child_of_a_dropped_span_names_the_one_that_stands_for_the_call(
    store: LightningStore, tracer: OtelTracer, client: openai.OpenAI
) -> None:
    attempt = await new_attempt(store)
    async with tracer.trace_context(rollout_id=attempt[0], attempt_id=attempt[1]):
        with strangers_current_span() as outer, strangers_current_span():
            client.chat.completions.create(**ASK)
            with trace.get_tracer("stranger").start_as_current_span("tool_call.add"):
                tracer.processor.force_flush()
                opened = await store.query_open_spans(*attempt)
    (tool,) = [span for span in opened if span.name == "tool_call.add"]
    assert tool.parent_id == f"{outer.get_span_context().span_id:016x}"
    assert tool.parent is not None
    assert tool.parent.span_id == tool.parent_id


@contextmanager
def silent_span() -> Iterator[None]:
    """As AgentOps 0.4.15 does: the span says what it is after its start."""
    tracer = trace.get_tracer("stranger")
    with tracer.start_as_current_span("openai.chat.completion", kind=trace.SpanKind.CLIENT) as made:
        made.set_attributes(STRANGER)
        yield


@pytest.mark.asyncio
@pytest.mark.parametrize("deep", [1, 2])
async def test_a_span_that_says_late_that_it_is_a_model_call_gets_the_tokens(
    store: LightningStore, tracer: OtelTracer, client: openai.OpenAI, deep: int
) -> None:
    attempt = await new_attempt(store)
    async with tracer.trace_context(rollout_id=attempt[0], attempt_id=attempt[1]):
        with ExitStack() as around:
            for _ in range(deep):
                around.enter_context(silent_span())
            client.chat.completions.create(**ASK)
    spans = await spans_of(store, attempt)
    (call,) = model_spans(spans)
    assert call.name == "openai.chat.completion"
    assert call.attributes[PROMPT_IDS] == list(IDS)
    assert call.parent_id == next(span for span in spans if span.name == "rollout").span_id
    assert (await store.get_receipt(*attempt)).dropped == ({"same_call": 1} if deep == 2 else {})


@pytest.mark.asyncio
@pytest.mark.parametrize("at_start", [{}, {"langfuse.internal.is_app_root": True, "session.id": "s"}])
async def test_a_generation_of_langfuses_openai_is_the_call_whatever_its_processor_has_set_before(
    store: LightningStore, tracer: OtelTracer, client: openai.OpenAI, at_start: dict[str, Any]
) -> None:
    """Its span is never current, and says what it is after its start; its processor says something of its own before."""
    attempt = await new_attempt(store)
    async with tracer.trace_context(rollout_id=attempt[0], attempt_id=attempt[1]):
        langfuse = trace.get_tracer("langfuse-sdk")
        with langfuse.start_as_current_span("plan", attributes=at_start) as plan:
            plan.set_attribute("langfuse.observation.type", "span")
            generation = langfuse.start_span("OpenAI-generation", attributes=at_start)
            generation.set_attributes(
                {"langfuse.observation.type": "generation", "langfuse.observation.model.name": "policy"}
            )
            client.chat.completions.create(**ASK)
            generation.end()
            client.chat.completions.create(**ASK)
    calls = [span for span in await spans_of(store, attempt) if CAPTURE in span.attributes]
    assert [call.name for call in calls] == ["OpenAI-generation", "chat policy"]
    assert [call.attributes[PROMPT_IDS] for call in calls] == [list(IDS)] * 2


@pytest.mark.asyncio
async def test_a_silent_span_that_is_no_model_call_gets_none(
    store: LightningStore, tracer: OtelTracer, client: openai.OpenAI
) -> None:
    attempt = await new_attempt(store)
    async with tracer.trace_context(rollout_id=attempt[0], attempt_id=attempt[1]):
        with trace.get_tracer("stranger").start_as_current_span("step", kind=trace.SpanKind.CLIENT) as step:
            step.set_attribute("http.request.method", "POST")
            client.chat.completions.create(**ASK)
    (call,) = model_spans(await spans_of(store, attempt))
    assert call.name == "chat policy"


@pytest.mark.asyncio
@pytest.mark.parametrize("same", [True, False])
async def test_two_spans_side_by_side_are_one_call_only_if_they_ask_the_same(
    store: LightningStore, tracer: OtelTracer, client: openai.OpenAI, same: bool
) -> None:
    attempt = await new_attempt(store)
    async with tracer.trace_context(rollout_id=attempt[0], attempt_id=attempt[1]):
        outer = strangers_span()
        outer.set_attribute("gen_ai.prompt.0.content", "hi" if same else "something else")
        inner = strangers_span()
        inner.set_attribute("gen_ai.prompt.0.content", "hi")
        client.chat.completions.create(**ASK)
        inner.end()
        outer.end()
    calls = model_spans(await spans_of(store, attempt))
    assert [call.attributes.get(PROMPT_IDS) for call in calls].count(list(IDS)) == 1
    assert len(calls) == (1 if same else 2)
    assert (await store.get_receipt(*attempt)).dropped == ({"same_call": 1} if same else {})


@pytest.mark.asyncio
async def test_a_call_of_another_model_or_after_the_first_gets_a_span_of_its_own(
    store: LightningStore, tracer: OtelTracer, client: openai.OpenAI
) -> None:
    attempt = await new_attempt(store)
    async with tracer.trace_context(rollout_id=attempt[0], attempt_id=attempt[1]):
        with strangers_current_span() as span:
            span.set_attribute("gen_ai.request.model", "another")
            client.chat.completions.create(**ASK)
        with strangers_current_span():
            client.chat.completions.create(**ASK)
            client.chat.completions.create(**ASK)
    calls = model_spans(await spans_of(store, attempt))
    assert sorted((call.name, PROMPT_IDS in call.attributes) for call in calls) == [
        ("chat policy", True),
        ("chat policy", True),
        ("openai.chat.completion", False),
        ("openai.chat.completion", True),
    ]


@pytest.mark.asyncio
async def test_a_span_that_names_another_response_does_not_get_trained_on(
    store: LightningStore, tracer: OtelTracer, client: openai.OpenAI
) -> None:
    attempt = await new_attempt(store)
    async with tracer.trace_context(rollout_id=attempt[0], attempt_id=attempt[1]):
        with strangers_current_span() as span:
            client.chat.completions.create(**ASK)
            span.set_attribute("gen_ai.response.id", "chatcmpl-2")
    (call,) = model_spans(await spans_of(store, attempt))
    assert call.attributes[CAPTURE] == "invalid(other_call)"
    assert TracerTraceToTriplet().adapt(await read(store, attempt)) == []


@pytest.mark.asyncio
async def test_spans_of_an_outer_trace_and_of_other_tasks_adopt_nothing(
    store: LightningStore, tracer: OtelTracer, client: openai.OpenAI
) -> None:
    attempt = await new_attempt(store)
    async with tracer.trace_context():
        outer = strangers_span("openai.chat.outer")
        async with tracer.trace_context(rollout_id=attempt[0], attempt_id=attempt[1]):
            client.chat.completions.create(**ASK)
        outer.end()
    (call,) = model_spans(await spans_of(store, attempt))
    assert call.name == "chat policy"
    assert call.attributes[CAPTURE] == "valid"


def test_an_event_of_an_old_agentops_reports_a_call_and_is_none() -> None:
    assert is_model_call({"agentops.span.kind": "llm"})
    assert not is_model_call({"agentops.span.kind": "llm", "agentops.event.id": "1"})


@pytest.mark.parametrize(
    "name",
    [
        "gen_ai.prompt.0.role",
        "gen_ai.completion.1.content",
        "llm.input_messages.0.x",
        "llm.output_messages.7",
    ],
)
def test_one_message_among_many_attributes_tells_a_model_call(name: str) -> None:
    others: dict[Any, Any] = {f"step.{number}": number for number in range(25)}
    assert not is_model_call(others)
    assert is_model_call({**others, name: "hi"})
    others[5] = "its name is no text"
    assert is_model_call({**others, name: "hi"})
    assert not is_model_call({**others, f"step.{name}": "hi"})
    assert not is_model_call({**others, name: "hi", "openinference.span.kind": "TOOL"})


CALL = RawCall(
    start=CallStart("chat", "http://model/v1/chat/completions", "policy", stream=False),
    request_body=b'{"model":"policy","messages":[]}',
    status=200,
    content_type="application/json",
    response_body=b'{"id":"chatcmpl-1","choices":[]}',
    complete=True,
    started_ns=1,
    ended_ns=2,
)


def test_a_call_that_leaves_while_another_thread_ends_the_span_is_on_it_or_on_one_of_its_own() -> None:
    tracer = OtelTracer(instrument_llm_calls=False)
    interval = sys.getswitchinterval()
    taken = 0
    with ExitStack() as undo:
        undo.callback(sys.setswitchinterval, interval)
        undo.enter_context(tracer.lifespan())
        sys.setswitchinterval(1e-6)
        matching = tracer.processor.call_matching
        with tracer.trace_context() as handle:
            for _ in range(100):
                span = strangers_span()
                both = threading.Barrier(2)

                def end(span: trace.Span = span, both: threading.Barrier = both) -> None:
                    both.wait()
                    span.end()

                other = threading.Thread(target=end)
                other.start()
                both.wait()
                claimed = matching.claim("policy")
                if claimed is not None:
                    taken += 1
                    matching.complete(claimed, CALL)
                other.join()
        spans = handle.spans()
    assert len(spans) == 101
    assert sum(CAPTURE in span.attributes for span in spans) == taken
