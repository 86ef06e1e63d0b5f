"""``capture_tokens='request'``: token ids are asked for on the agent's behalf, and the agent does not notice."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest

from agentlightning.dialects.model_call import VALID
from agentlightning.dialects.raw_call import Endpoint
from agentlightning.instrumentation.guard import Guard, reraise
from agentlightning.instrumentation.wire import instrument_model_calls
from agentlightning.testing.fake_openai import (
    Answer,
    AnswerChoice,
    FakeOpenAI,
    Fault,
    Reset,
    Token,
    ToolCallAnswer,
    tokens_of,
)
from agentlightning.testing.recorded_calls import RecordedCalls

MESSAGES: Any = [{"role": "user", "content": "Größe? \U0001f600 \\ \u2028"}]
CHOICES = (
    AnswerChoice((Token("Gr", 1), Token("", 2), Token("öße", 3), Token("", 4)), finish_reason="length"),
    AnswerChoice(tokens_of("one two three"), reasoning="hm"),
    AnswerChoice(
        tokens_of("a b"),
        tool_calls=(ToolCallAnswer("f", '{"token_ids": [1], "usage": "\\"logprobs\\""}'),),
        finish_reason="tool_calls",
    ),
)
WORDS = CHOICES[1:]
"""Each of its tokens has a text, so that a server which is not asked for ids sends a chunk for it, too."""
IDS = [tuple(token.id for token in choice.tokens) for choice in CHOICES]


@pytest.fixture
def server() -> Iterator[FakeOpenAI]:
    with FakeOpenAI(Answer(CHOICES)) as server:
        yield server


def asking(sink: RecordedCalls, server: FakeOpenAI) -> Any:
    def endpoint_for(url: str) -> Endpoint | None:
        return (
            Endpoint(server.base_url, {"temperature": 0.9}, "processed")
            if url.startswith(server.url)
            else None
        )

    return instrument_model_calls(
        sink, capture_tokens="request", endpoint_for=endpoint_for, guard=Guard(reraise)
    )


def chat(**more: Any) -> dict[str, Any]:
    return {"model": "m", "messages": MESSAGES, "n": len(CHOICES), **more}


def plain(client: openai.OpenAI, **more: Any) -> Any:
    raw = client.chat.completions.with_raw_response.create(**chat(**more))
    return raw.text, raw.headers.get("content-length"), raw.parse().model_dump()


def completion(client: openai.OpenAI, **more: Any) -> Any:
    return client.completions.create(model="m", prompt="one", **{"n": len(CHOICES), **more}).model_dump()


def stream(client: openai.OpenAI, **more: Any) -> Any:
    return [chunk.model_dump() for chunk in client.chat.completions.create(**chat(**more), stream=True)]


def stream_completion(client: openai.OpenAI, **more: Any) -> Any:
    return [
        chunk.model_dump()
        for chunk in client.completions.create(
            model="m", prompt="one", **{"n": len(CHOICES), **more}, stream=True
        )
    ]


def stream_bytes(client: openai.OpenAI, **more: Any) -> Any:
    create = client.chat.completions.with_streaming_response.create
    with create(**chat(**more), stream=True) as response:
        return b"".join(response.iter_bytes())


def unread_plain(client: openai.OpenAI, **more: Any) -> Any:
    with client.chat.completions.with_streaming_response.create(**chat(**more)) as response:
        return response.parse().model_dump()


ACTS = (plain, completion, stream, stream_completion, stream_bytes, unread_plain)


def run(server: FakeOpenAI, act: Callable[..., Any], **more: Any) -> Any:
    with openai.OpenAI(base_url=server.base_url, api_key="k", max_retries=0) as client:
        try:
            return act(client, **more)
        except Exception as error:
            request = getattr(error, "request", None)
            return type(error), str(error), request.content if request is not None else None


MORE: tuple[dict[str, Any], ...] = (
    {},
    {"logprobs": 1},
    {"extra_body": {"return_token_ids": True}},
    {"extra_body": {"return_token_ids": False, "top_logprobs": None}},
    {"n": 3, "temperature": 0.5},
)
STREAMED = (stream, stream_completion, stream_bytes)
CASES = [
    *((act, None, more) for act in ACTS for more in MORE),
    *((act, None, {"stream_options": {"include_usage": True}}) for act in STREAMED),
    *((act, sizes, {}) for act in STREAMED for sizes in ((1, 2, 3), (7, 1, 300), (100_000,))),
]


@pytest.mark.parametrize(("act", "write_sizes", "more"), CASES)
def test_a6_the_agent_gets_what_it_asked_for_and_the_record_has_the_ids(
    server: FakeOpenAI, act: Callable[..., Any], write_sizes: Any, more: dict[str, Any]
) -> None:
    if "logprobs" in more and "completion" not in act.__name__:
        more = {"logprobs": True}
    answer = Answer(CHOICES, write_sizes=write_sizes)
    server.enqueue(answer, answer)
    without = run(server, act, **more)
    sink = RecordedCalls()
    patch = asking(sink, server)
    try:
        assert run(server, act, **more) == without
    finally:
        patch.undo()
    call = sink.call()
    assert call.token_capture == VALID, call
    assert [choice.token_ids for choice in call.choices] == IDS
    assert all(choice.logprobs is not None for choice in call.choices)
    assert call.logprob_kind == "processed"
    assert call.sampling_effective["temperature"] == more.get("temperature", 0.9)
    plainly, asked = (request.json() for request in server.requests)
    assert sink.raw[0].request_body == server.requests[0].body
    added = {"return_token_ids", "logprobs", "stream_options"}
    assert {k: v for k, v in asked.items() if k not in added} == {
        k: v for k, v in plainly.items() if k not in added and v is not None
    }
    assert asked["return_token_ids"] is True
    assert server.requests[1].headers["content-length"] == str(len(server.requests[1].body))


def test_a6_an_async_client_gets_what_it_asked_for_too(server: FakeOpenAI) -> None:
    async def act() -> Any:
        async with openai.AsyncOpenAI(base_url=server.base_url, api_key="k", max_retries=0) as client:
            whole = await client.chat.completions.create(**chat())
            chunks = [
                c.model_dump() async for c in await client.chat.completions.create(**chat(), stream=True)
            ]
            return whole.model_dump(), chunks

    without = asyncio.run(act())
    sink = RecordedCalls()
    patch = asking(sink, server)
    try:
        assert asyncio.run(act()) == without
    finally:
        patch.undo()
    assert [call.token_capture for call in sink.calls(2)] == [VALID, VALID]


@pytest.mark.parametrize("indent", [None, 0, 2])
def test_a_plain_answer_keeps_its_white_space(server: FakeOpenAI, indent: int | None) -> None:
    answer = Answer(CHOICES, indent=indent, extra={"zz": [1.10, 1e400]})
    server.enqueue(answer, answer)
    without = run(server, plain)
    patch = asking(RecordedCalls(), server)
    try:
        assert run(server, plain) == without
    finally:
        patch.undo()


def test_a6_the_events_pass_one_by_one_while_the_server_still_holds_the_rest(server: FakeOpenAI) -> None:
    gate = threading.Event()
    server.enqueue(Answer((AnswerChoice(tokens_of("one two three")),), gates={2: gate}))
    patch = asking(RecordedCalls(), server)
    try:
        with openai.OpenAI(base_url=server.base_url, api_key="k", max_retries=0) as client:
            chunks = iter(client.chat.completions.create(**chat(), stream=True))
            assert [next(chunks).choices[0].delta.content for _ in range(2)] == ["", "one"]
            gate.set()
            assert [chunk.choices[0].delta.content for chunk in chunks] == [" two", " three"]
    finally:
        gate.set()
        patch.undo()


@pytest.mark.parametrize("refused", ["return_token_ids", "logprobs", "stream_options"])
def test_a_server_that_refuses_what_was_added_is_asked_again_and_then_left_alone(
    server: FakeOpenAI, refused: str
) -> None:
    other = {"return_input_ids_in_sglext", "return_output_ids_in_sglext"}
    answer = Answer(CHOICES, refuses=frozenset({refused, *other}))
    server.enqueue(*[answer] * 6)
    without = run(server, stream)
    sink = RecordedCalls()
    patch = asking(sink, server)
    try:
        for _ in range(3):
            assert run(server, stream) == without
    finally:
        patch.undo()
    assert [call.token_capture for call in sink.calls(3)] == ["none(no_token_ids)"] * 3
    plainly, refusal, again, other_way, once_more, left_alone = (
        request.json() for request in server.requests
    )
    assert refused in refusal
    assert other <= other_way.keys()
    assert "return_token_ids" not in other_way
    assert plainly == again == once_more == left_alone
    assert all(raw.added == frozenset() for raw in sink.raw)


@pytest.mark.parametrize("act", [stream, stream_bytes])
@pytest.mark.parametrize("usage", [{}, {"stream_options": {"include_usage": True}}])
def test_a_stream_whose_ids_were_refused_is_asked_in_the_other_way_next_time(
    server: FakeOpenAI, act: Callable[..., Any], usage: dict[str, Any]
) -> None:
    answer = Answer(WORDS, dialect="sglang")
    server.enqueue(*[answer] * 5)
    without = run(server, act, n=len(WORDS), **usage)
    sink = RecordedCalls()
    patch = asking(sink, server)
    try:
        for _ in range(3):
            assert run(server, act, n=len(WORDS), **usage) == without
    finally:
        patch.undo()
    calls = sink.calls(3)
    assert [call.token_capture for call in calls] == ["none(no_token_ids)", VALID, VALID]
    assert calls[1].prompt_token_ids
    assert calls[1].choices[0].logprobs
    plainly, _, again, *asked = (request.json() for request in server.requests)
    assert plainly == again
    assert all(each["return_output_ids_in_sglext"] and "return_token_ids" not in each for each in asked)


def test_what_the_agent_asks_of_sglang_itself_is_not_mixed_with_what_was_added(server: FakeOpenAI) -> None:
    answer = Answer(CHOICES, dialect="sglang")
    server.enqueue(*[answer] * 5)
    own = {"extra_body": {"return_output_ids_in_sglext": True}}
    without = run(server, stream, **own)
    sink = RecordedCalls()
    patch = asking(sink, server)
    try:
        assert [run(server, stream, **own) for _ in range(2)] == [without] * 2
    finally:
        patch.undo()
    assert all(request.json().get("return_input_ids_in_sglext") is None for request in server.requests)


def test_sglang_is_asked_in_plain_chats_and_in_streams_by_its_own_way(server: FakeOpenAI) -> None:
    answer = Answer(WORDS, dialect="sglang")
    server.enqueue(*[answer] * 8)
    without = run(server, stream, n=len(WORDS)), run(server, plain, n=len(WORDS))
    sink = RecordedCalls()
    patch = asking(sink, server)
    try:
        assert (run(server, stream, n=len(WORDS)), run(server, plain, n=len(WORDS))) == without
        assert (run(server, stream, n=len(WORDS)), run(server, plain, n=len(WORDS))) == without
    finally:
        patch.undo()
    verdicts = [call.token_capture for call in sink.calls(4)]
    assert verdicts == ["none(no_token_ids)", VALID, VALID, VALID]


@pytest.mark.parametrize("act", [plain, stream])
@pytest.mark.parametrize("scripted", [Fault(400), Fault(422), Fault(401), Fault(500), Reset()], ids=str)
def test_a_failure_that_is_the_agents_own_is_the_one_that_it_sees(
    server: FakeOpenAI, act: Callable[..., Any], scripted: Any
) -> None:
    server.enqueue(*[scripted] * 3)
    without = run(server, act)
    sink = RecordedCalls()
    patch = asking(sink, server)
    try:
        assert run(server, act) == without
        server.enqueue(*[scripted] * (2 - len(server.requests) % 2))
    finally:
        patch.undo()
    assert isinstance(without[0], type)
    assert sink.call().token_capture != VALID


def test_a_400_of_the_agents_own_does_not_stop_the_asking(server: FakeOpenAI) -> None:
    sink = RecordedCalls()
    patch = asking(sink, server)
    server.enqueue(Fault(400), Fault(400))
    try:
        run(server, plain)
        run(server, plain)
    finally:
        patch.undo()
    assert [call.token_capture for call in sink.calls(2)] == ["none(http_error)", VALID]


@pytest.mark.parametrize("act", [plain, stream])
def test_an_answer_that_breaks_half_way_breaks_for_the_agent_as_ever(
    server: FakeOpenAI, act: Callable[..., Any]
) -> None:
    answer = Answer(CHOICES, die_after=3)
    server.enqueue(*[answer] * 3)
    without = run(server, act)
    sink = RecordedCalls()
    patch = asking(sink, server)
    try:
        failed = run(server, act)
    finally:
        patch.undo()
    assert failed[0] is without[0]
    # The agent's own plain request is read inside of the client's method, which says nothing of its head.
    assert sink.call().partial or sink.call().token_capture == "none(connection_broken)"
    assert sink.call().error is not None


@pytest.mark.parametrize("act", [plain, stream])
def test_a_server_that_compresses_although_asked_not_to_is_passed_on_whole(
    server: FakeOpenAI, act: Callable[..., Any]
) -> None:
    server.enqueue(Answer(CHOICES, content_encoding="gzip"))
    sink = RecordedCalls()
    patch = asking(sink, server)
    try:
        run(server, act)
    finally:
        patch.undo()
    assert sink.call().token_capture == VALID
    assert "added_fields_visible" in [issue.code for issue in sink.call().issues]
    assert server.requests[0].headers["accept-encoding"] == "identity"


def test_an_endpoint_that_nobody_named_is_only_observed(server: FakeOpenAI) -> None:
    sink = RecordedCalls()
    run(server, plain)
    patch = instrument_model_calls(sink, capture_tokens="request", guard=Guard(reraise))
    try:
        run(server, plain)
    finally:
        patch.undo()
    first, second = server.requests
    assert first.raw == second.raw
    assert sink.call().token_capture == "none(no_token_ids)"


def test_nothing_is_added_where_the_agent_asks_for_everything(server: FakeOpenAI) -> None:
    more = {"logprobs": True, "extra_body": {"return_token_ids": True}}
    run(server, plain, **more)
    sink = RecordedCalls()
    patch = asking(sink, server)
    try:
        run(server, plain, **more)
    finally:
        patch.undo()
    first, second = server.requests
    assert first.raw == second.raw
    assert sink.call().token_capture == VALID


def test_a_mock_transport_gets_the_question_and_the_agent_a_clean_answer() -> None:
    from openai import _base_client

    library = getattr(_base_client, "httpx2", None) or vars(_base_client)["httpx"]
    choice = {"index": 0, "message": {"content": "hi"}, "finish_reason": "stop"}

    def handler(request: Any) -> Any:
        ids = {"token_ids": [5]} if json.loads(request.content).get("return_token_ids") else {}
        return library.Response(200, json={"choices": [{**choice, **ids}], "usage": {"completion_tokens": 1}})

    sink = RecordedCalls()
    patch = instrument_model_calls(
        sink, capture_tokens="request", endpoint_for=lambda url: Endpoint(url), guard=Guard(reraise)
    )
    try:
        with library.Client(transport=library.MockTransport(handler)) as client:
            response = client.post("http://host/v1/chat/completions", json={"model": "m", "messages": []})
    finally:
        patch.undo()
    assert response.json() == {"choices": [choice], "usage": {"completion_tokens": 1}}
    assert response.headers["content-length"] == str(len(response.content))
    assert sink.call().choices[0].token_ids == (5,)


def test_answers_do_not_depend_on_who_asked_first() -> None:
    answer = dataclasses.replace(Answer(CHOICES), prompt_token_ids=(9,))
    with FakeOpenAI(answer) as server:
        sink = RecordedCalls()
        patch = asking(sink, server)
        try:
            run(server, plain)
        finally:
            patch.undo()
    assert sink.call().prompt_token_ids == (9,)
