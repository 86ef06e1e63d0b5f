"""The agent's side of the wire: with us and without us it gets the same, and each call is seen once."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from agentlightning.dialects.model_call import VALID
from agentlightning.instrumentation.guard import Guard, reraise
from agentlightning.instrumentation.patch import Patch
from agentlightning.instrumentation.suppression import own_work
from agentlightning.instrumentation.wire import instrument_model_calls
from agentlightning.testing.clock import wait_until, wait_until_async
from agentlightning.testing.fake_openai import (
    Answer,
    AnswerChoice,
    FakeOpenAI,
    Fault,
    Reset,
    Scripted,
    Token,
    ToolCallAnswer,
    tokens_of,
)
from agentlightning.testing.recorded_calls import RecordedCalls

pytestmark = pytest.mark.long

MESSAGES: Any = [{"role": "user", "content": "What is 2 + 2?"}]
ASK = {"return_token_ids": True}
JSON_ANSWER = AnswerChoice((Token('{"answer"', 11, -0.1), Token(": 4", 12, -0.2), Token("}", 13, -0.3)))


class Sum(BaseModel):
    """What ``parse`` is asked for."""

    answer: int


@pytest.fixture
def server() -> Iterator[FakeOpenAI]:
    with FakeOpenAI(Answer((JSON_ANSWER,), (1, 2, 3), ids="always", show_usage="always")) as server:
        yield server


def observe(sink: RecordedCalls, **settings: Any) -> Patch:
    return instrument_model_calls(sink, guard=Guard(reraise), **settings)


def sync_client(server: FakeOpenAI, **settings: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.base_url, api_key="sk-secret-key", **{"max_retries": 0, **settings})


def async_client(server: FakeOpenAI, **settings: Any) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(
        base_url=server.base_url, api_key="sk-secret-key", **{"max_retries": 0, **settings}
    )


# -- what an agent may do; each returns a value that can be compared


def arguments(operation: str) -> dict[str, Any]:
    common: dict[str, Any] = {"model": "fake-model", "temperature": 1.0, "extra_body": ASK}
    if operation == "chat":
        return {**common, "messages": MESSAGES, "logprobs": True}
    return {**common, "prompt": "2 + 2 =", "logprobs": 0}


def resource(client: Any, operation: str) -> Any:
    return client.chat.completions if operation == "chat" else client.completions


def seen(value: Any) -> Any:
    return type(value).__qualname__, value.model_dump()


def chat_helpers(client: Any, name: str) -> Any:
    """``parse`` and ``stream`` moved from ``beta`` in openai 1.92."""
    found = (
        client.chat.completions if hasattr(client.chat.completions, name) else client.beta.chat.completions
    )
    return getattr(found, name)


def plain(client: Any, operation: str) -> Any:
    return seen(resource(client, operation).create(**arguments(operation)))


def raw_response(client: Any, operation: str) -> Any:
    raw = resource(client, operation).with_raw_response.create(**arguments(operation))
    return raw.status_code, raw.headers["content-type"], raw.text, seen(raw.parse())


def streaming_response(client: Any, operation: str) -> Any:
    with resource(client, operation).with_streaming_response.create(**arguments(operation)) as response:
        return response.status_code, seen(response.parse())


def streaming_response_bytes(client: Any, operation: str) -> Any:
    create = resource(client, operation).with_streaming_response.create
    with create(**arguments(operation), stream=True) as response:
        return list(response.iter_bytes())


def streaming_response_left(client: Any, operation: str) -> Any:
    with resource(client, operation).with_streaming_response.create(**arguments(operation)) as response:
        return response.status_code


def parse(client: Any, operation: str) -> Any:
    if operation != "chat":
        return plain(client, operation)
    found = chat_helpers(client, "parse")(**arguments(operation), response_format=Sum)
    return found.choices[0].message.parsed, seen(found)


def stream(client: Any, operation: str) -> Any:
    chunks = resource(client, operation).create(**arguments(operation), stream=True)
    return type(chunks).__qualname__, [seen(chunk) for chunk in chunks]


def stream_in_with(client: Any, operation: str) -> Any:
    with resource(client, operation).create(**arguments(operation), stream=True) as chunks:
        return [seen(chunk) for chunk in chunks]


def stream_helper(client: Any, operation: str) -> Any:
    if operation != "chat":
        return stream(client, operation)
    with chat_helpers(client, "stream")(**arguments(operation)) as events:
        kinds = [event.type for event in events]
        return kinds, events.get_final_completion().choices[0].message.content


def break_off(client: Any, operation: str) -> Any:
    chunks = resource(client, operation).create(**arguments(operation), stream=True)
    for chunk in chunks:
        return seen(chunk), chunks.close()
    return None


def close(client: Any, operation: str) -> Any:
    chunks = resource(client, operation).create(**arguments(operation), stream=True)
    first = seen(next(chunks))
    chunks.close()
    return first


def drop(client: Any, operation: str) -> Any:
    chunks = resource(client, operation).create(**arguments(operation), stream=True)
    first = seen(next(chunks))
    del chunks
    gc.collect()
    return first


async def aplain(client: Any, operation: str) -> Any:
    return seen(await resource(client, operation).create(**arguments(operation)))


async def araw_response(client: Any, operation: str) -> Any:
    raw = await resource(client, operation).with_raw_response.create(**arguments(operation))
    return raw.status_code, raw.text, seen(raw.parse())


async def astreaming_response(client: Any, operation: str) -> Any:
    async with resource(client, operation).with_streaming_response.create(**arguments(operation)) as response:
        return response.status_code, seen(await response.parse())


async def aparse(client: Any, operation: str) -> Any:
    if operation != "chat":
        return await aplain(client, operation)
    found = await chat_helpers(client, "parse")(**arguments(operation), response_format=Sum)
    return found.choices[0].message.parsed, seen(found)


async def astream(client: Any, operation: str) -> Any:
    chunks = await resource(client, operation).create(**arguments(operation), stream=True)
    return type(chunks).__qualname__, [seen(chunk) async for chunk in chunks]


async def astream_helper(client: Any, operation: str) -> Any:
    if operation != "chat":
        return await astream(client, operation)
    async with chat_helpers(client, "stream")(**arguments(operation)) as events:
        kinds = [event.type async for event in events]
        return kinds, (await events.get_final_completion()).choices[0].message.content


async def abreak_off(client: Any, operation: str) -> Any:
    async with await resource(client, operation).create(**arguments(operation), stream=True) as chunks:
        async for chunk in chunks:
            return seen(chunk)


async def aclose(client: Any, operation: str) -> Any:
    chunks = await resource(client, operation).create(**arguments(operation), stream=True)
    first = seen(await anext(aiter(chunks)))
    await chunks.close()
    return first


async def adrop(client: Any, operation: str) -> Any:
    chunks = await resource(client, operation).create(**arguments(operation), stream=True)
    iterator = aiter(chunks)
    first = seen(await anext(iterator))
    del chunks, iterator
    gc.collect()
    return first


SYNC = (plain, raw_response, streaming_response, parse, stream, stream_in_with, stream_helper)
ASYNC = (aplain, araw_response, astreaming_response, aparse, astream, astream_helper)
SYNC_CUT = (break_off, close, drop, streaming_response_left)
ASYNC_CUT = (abreak_off, aclose, adrop)


def run(server: FakeOpenAI, act: Callable[..., Any], operation: str, **settings: Any) -> Any:
    """What ``act`` returns, or the type and text of what it raises."""

    async def in_loop() -> Any:
        async with async_client(server, **settings) as client:
            return await act(client, operation)

    try:
        if asyncio.iscoroutinefunction(act):
            return asyncio.run(in_loop())
        with sync_client(server, **settings) as client:
            return act(client, operation)
    except Exception as error:
        return type(error), str(error), type(error.__cause__)


@pytest.mark.parametrize("operation", ["chat", "text_completion"])
@pytest.mark.parametrize("act", [*SYNC, streaming_response_bytes, *ASYNC])
def test_a6_a_call_returns_what_it_returns_without_us_and_is_seen_once(
    server: FakeOpenAI, act: Callable[..., Any], operation: str
) -> None:
    without = run(server, act, operation)
    sink = RecordedCalls()
    patch = observe(sink)
    try:
        assert run(server, act, operation) == without
    finally:
        patch.undo()
    call = sink.call()
    assert call.operation == operation
    assert call.token_capture == VALID, call
    assert call.prompt_token_ids == (1, 2, 3)
    assert [choice.token_ids for choice in call.choices] == [(11, 12, 13)]
    assert [choice.logprobs for choice in call.choices] == [(-0.1, -0.2, -0.3)]
    assert not call.partial
    first, second = server.requests
    assert first.raw == second.raw


@pytest.mark.parametrize("operation", ["chat", "text_completion"])
@pytest.mark.parametrize("act", [*SYNC_CUT, *ASYNC_CUT])
def test_an_abandoned_answer_is_a_partial_call_that_ends_once(
    server: FakeOpenAI, act: Callable[..., Any], operation: str
) -> None:
    gates: dict[int, threading.Event] = {2: threading.Event()}
    unfinished = Answer((JSON_ANSWER,), ids="always", gates=gates)
    server.enqueue(unfinished)
    without = run(server, act, operation)
    sink = RecordedCalls()
    patch = observe(sink)
    server.enqueue(unfinished)
    try:
        assert run(server, act, operation) == without
    finally:
        patch.undo()
        gates[2].set()
    gc.collect()  # what an event loop held until it closed
    call = sink.call()
    assert call.token_capture != VALID
    if act is not streaming_response_left:
        assert call.partial
        assert (call.choices[0].finish_reason, call.choices[0].broken_off) == (None, True)


@pytest.mark.parametrize("operation", ["chat", "text_completion"])
def test_a_cancelled_stream_keeps_what_came_and_raises_cancelled_error(
    server: FakeOpenAI, operation: str
) -> None:
    gate = threading.Event()
    server.enqueue(Answer((JSON_ANSWER,), ids="always", gates={2: gate}))
    sink = RecordedCalls()

    async def agent() -> None:
        async with async_client(server) as client:
            arrived = asyncio.Event()

            async def read() -> None:
                chunks = await resource(client, operation).create(**arguments(operation), stream=True)
                async for _ in chunks:
                    arrived.set()

            task = asyncio.create_task(read())
            await asyncio.wait_for(arrived.wait(), 10)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            del task
            gc.collect()

    patch = observe(sink)
    try:
        asyncio.run(agent())
    finally:
        patch.undo()
        gate.set()
    call = sink.call()
    assert call.partial
    assert (call.choices[0].finish_reason, call.choices[0].broken_off) == (None, True)


def test_a_cancelled_request_ends_its_call_with_the_error(server: FakeOpenAI) -> None:
    gate = threading.Event()
    server.enqueue(Answer((JSON_ANSWER,), gates={-1: gate}))
    sink = RecordedCalls()

    async def agent() -> None:
        async with async_client(server) as client:
            task = asyncio.create_task(client.chat.completions.create(model="m", messages=MESSAGES))
            await wait_until_async(lambda: server.requests)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    patch = observe(sink)
    try:
        asyncio.run(agent())
    finally:
        patch.undo()
        gate.set()
    call = sink.call()
    assert call.error == "CancelledError"
    assert call.token_capture == "none(no_response)"


@pytest.mark.parametrize("act", [plain, stream, streaming_response, aplain, astream])
@pytest.mark.parametrize(
    "scripted",
    [
        Fault(400),
        Fault(401),
        Fault(429, {"retry-after-ms": "1"}),
        Fault(500, body=b"not json"),
        Reset(),
        Answer((JSON_ANSWER,), die_after=2),
    ],
    ids=lambda scripted: f"{type(scripted).__name__}{getattr(scripted, 'status', '')}",
)
def test_a10_a_failure_reaches_the_agent_unchanged_and_is_recorded(
    server: FakeOpenAI, act: Callable[..., Any], scripted: Scripted
) -> None:
    server.enqueue(scripted, scripted)
    without = run(server, act, "chat")
    sink = RecordedCalls()
    patch = observe(sink)
    try:
        assert run(server, act, "chat") == without
    finally:
        patch.undo()
    assert isinstance(without[0], type)
    call = sink.call()
    assert call.token_capture != VALID
    assert call.http_status == (scripted.status if isinstance(scripted, Fault) else call.http_status)
    if not isinstance(scripted, Fault):
        assert call.error is not None
    assert "sk-secret-key" not in repr(sink.raw)


def test_a_refused_connection_is_a_call_without_a_response() -> None:
    with FakeOpenAI() as gone:
        base_url = gone.base_url
    sink = RecordedCalls()
    patch = observe(sink)
    try:
        with openai.OpenAI(base_url=base_url, api_key="k", max_retries=0) as client:
            with pytest.raises(openai.APIConnectionError):
                client.chat.completions.create(model="m", messages=MESSAGES)
    finally:
        patch.undo()
    assert sink.call().token_capture == "none(no_response)"
    assert (sink.call().error or "").startswith("ConnectError")


def test_a_key_that_no_header_can_hold_is_not_in_the_record(server: FakeOpenAI) -> None:
    sink = RecordedCalls()
    patch = observe(sink)
    try:
        with openai.OpenAI(base_url=server.base_url, api_key="sk-secret-key\n", max_retries=0) as client:
            with pytest.raises(openai.APIConnectionError):
                client.chat.completions.create(model="m", messages=MESSAGES)
    finally:
        patch.undo()
    assert sink.call().error == "LocalProtocolError"
    assert "sk-secret-key" not in repr(sink.raw)


@pytest.mark.parametrize("act", [plain, stream, aplain, astream])
def test_the_retries_of_the_client_are_one_call(server: FakeOpenAI, act: Callable[..., Any]) -> None:
    server.enqueue(Fault(500, {"retry-after-ms": "1"}), Fault(429, {"retry-after-ms": "1"}))
    sink = RecordedCalls()
    patch = observe(sink)
    try:
        run(server, act, "chat", max_retries=3)
    finally:
        patch.undo()
    call = sink.call()
    assert (call.token_capture, call.retries, call.http_status) == (VALID, 2, 200)
    assert len(server.requests) == 3


def test_a_call_whose_retries_all_fail_ends_once_with_the_last_failure(server: FakeOpenAI) -> None:
    server.enqueue(Fault(500, {"retry-after-ms": "1"}), Fault(503, {"retry-after-ms": "1"}))
    sink = RecordedCalls()
    patch = observe(sink)
    try:
        assert run(server, plain, "chat", max_retries=1)[0] is openai.InternalServerError
    finally:
        patch.undo()
    assert (sink.call().http_status, sink.call().retries) == (503, 1)


@pytest.mark.parametrize("operation", ["chat", "text_completion"])
@pytest.mark.parametrize("act", [plain, stream, aplain, astream])
def test_several_choices_are_told_apart(
    server: FakeOpenAI, act: Callable[..., Any], operation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    choices = (AnswerChoice(tokens_of("one two three")), AnswerChoice(tokens_of("four")), JSON_ANSWER)
    monkeypatch.setitem(ASK, "n", len(choices))
    server.enqueue(Answer(choices, ids="always", show_usage="always"))
    sink = RecordedCalls()
    patch = observe(sink)
    try:
        run(server, act, operation)
    finally:
        patch.undo()
    call = sink.call()
    assert call.token_capture == VALID
    assert [choice.token_ids for choice in call.choices] == [
        tuple(token.id for token in choice.tokens) for choice in choices
    ]


@pytest.mark.parametrize("act", [plain, stream, aplain, astream])
@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_compressed_answer_is_read_and_reaches_the_agent_as_ever(
    server: FakeOpenAI, act: Callable[..., Any], encoding: Any
) -> None:
    answer = Answer((JSON_ANSWER,), ids="always", show_usage="always", content_encoding=encoding)
    server.enqueue(answer, answer)
    without = run(server, act, "chat")
    sink = RecordedCalls()
    patch = observe(sink)
    try:
        assert run(server, act, "chat") == without
    finally:
        patch.undo()
    assert sink.call().token_capture == VALID


def test_tool_calls_are_assembled_from_a_stream(server: FakeOpenAI) -> None:
    calls = (ToolCallAnswer("add", '{"a": 2, "b": 2}'), ToolCallAnswer("mul", "{}", "call_2"))
    choice = AnswerChoice(JSON_ANSWER.tokens, tool_calls=calls, finish_reason="tool_calls")
    answer = Answer((choice,), ids="always", show_usage="always")
    server.enqueue(answer, answer)
    sink = RecordedCalls()
    patch = observe(sink)
    try:
        run(server, plain, "chat")
        run(server, stream, "chat")
    finally:
        patch.undo()
    whole, streamed = sink.calls(2)
    assert whole.choices == streamed.choices
    assert [(call.id, call.name, call.arguments) for call in streamed.choices[0].tool_calls] == [
        (call.id, call.name, call.arguments) for call in calls
    ]
    assert streamed.choices[0].content is None


def test_a6_the_bytes_of_a_stream_pass_chunk_by_chunk_while_the_server_still_holds_the_rest(
    server: FakeOpenAI,
) -> None:
    gate = threading.Event()
    server.enqueue(Answer((JSON_ANSWER,), gates={2: gate}))
    sink = RecordedCalls()
    patch = observe(sink)
    try:
        with sync_client(server) as client:
            chunks = iter(client.chat.completions.create(**arguments("chat"), stream=True))
            assert next(chunks).choices[0].delta.role == "assistant"
            assert next(chunks).choices[0].delta.content == '{"answer"'
            assert not sink.ends
            gate.set()
            assert len(list(chunks)) == 2
    finally:
        gate.set()
        patch.undo()
    sink.call()


def test_a10_a_response_that_is_larger_than_what_is_kept_is_passed_on_and_marked(server: FakeOpenAI) -> None:
    sink = RecordedCalls()
    patch = observe(sink, max_body_bytes=600)
    try:
        _, chunks = run(server, stream, "chat")
        assert len(chunks) == 5
    finally:
        patch.undo()
    call = sink.call()
    assert (call.token_capture, call.partial) == ("invalid(body_truncated)", True)
    assert len(sink.raw[0].response_body) <= 600


def test_what_is_no_model_call_passes_untouched(server: FakeOpenAI) -> None:
    sink = RecordedCalls()
    patch = observe(sink)
    try:
        with sync_client(server) as client:
            assert client.models.list().data[0].id == "fake-model"
    finally:
        patch.undo()
    assert not sink.starts


@pytest.mark.parametrize("key", ["suppress_instrumentation", "_SUPPRESS_INSTRUMENTATION_KEY"])
def test_a_flag_by_which_another_library_suppresses_its_spans_hides_no_call(
    server: FakeOpenAI, key: str
) -> None:
    from opentelemetry import context

    sink = RecordedCalls()
    patch = observe(sink)
    token = context.attach(context.set_value(getattr(context, key, key), True))
    try:
        run(server, plain, "chat")
    finally:
        context.detach(token)
        patch.undo()
    assert sink.call().token_capture == VALID


def test_what_the_recorder_itself_does_is_not_seen(server: FakeOpenAI) -> None:
    from opentelemetry import context

    sink = RecordedCalls()
    patch = observe(sink)
    token = context.attach(own_work())
    try:
        run(server, plain, "chat")
        run(server, aplain, "chat")
    finally:
        context.detach(token)
        patch.undo()
    assert not sink.starts


class UnspeakableError(Exception):
    """An exception that cannot even be printed."""

    def __str__(self) -> str:
        raise RuntimeError("no words")


def test_an_exception_that_cannot_be_printed_reaches_the_agent_as_the_same_object() -> None:
    library = http_library()
    raised = UnspeakableError()

    def handler(request: Any) -> Any:
        raise raised

    sink = RecordedCalls()
    patch = instrument_model_calls(sink)
    try:
        with library.Client(transport=library.MockTransport(handler)) as client:
            with pytest.raises(UnspeakableError) as caught:
                client.post("http://host/v1/completions", json={"model": "m"})
    finally:
        patch.undo()
    assert caught.value is raised
    assert sink.call().error == "UnspeakableError"


class BrokenSink(RecordedCalls):
    """Fails as often as it is asked."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where

    def started(self, call: Any) -> int:
        if self.where == "started":
            raise RuntimeError("no")
        return super().started(call)

    def ended(self, token: Any, call: Any) -> None:
        super().ended(token, call)
        if self.where == "ended":
            raise RuntimeError("no")


@pytest.mark.parametrize("where", ["started", "ended"])
@pytest.mark.parametrize("act", [*SYNC, *ASYNC])
def test_a10_a_sink_that_raises_never_reaches_the_agent(
    server: FakeOpenAI, act: Callable[..., Any], where: str
) -> None:
    without = run(server, act, "chat")
    errors: list[tuple[str, str]] = []
    sink = BrokenSink(where)
    guard = Guard(lambda doing, error: errors.append((doing, str(error))))
    patch = instrument_model_calls(sink, guard=guard)
    try:
        assert run(server, act, "chat") == without
    finally:
        patch.undo()
    assert [text for _, text in errors] == ["no"]
    assert guard.caught == {errors[0][0]: 1}
    assert len(sink.ends) == (where == "ended")


def test_fifty_rounds_of_patching_leave_the_very_objects_that_were_there(server: FakeOpenAI) -> None:
    import sys

    from openai import _base_client

    names = [name for name in ("httpx", "httpx2") if name in sys.modules]
    places: list[tuple[Any, str]] = [
        (getattr(sys.modules[name], cls), "send") for name in names for cls in ("Client", "AsyncClient")
    ]
    places += [(_base_client.SyncAPIClient, "request"), (_base_client.AsyncAPIClient, "request")]
    before = [vars(owner)[attribute] for owner, attribute in places]
    finders = list(sys.meta_path)
    for _ in range(50):
        patch = observe(RecordedCalls())
        assert [vars(owner)[attribute] for owner, attribute in places] != before
        patch.undo()
        patch.undo()
    assert all(vars(owner)[attribute] is was for (owner, attribute), was in zip(places, before, strict=True))
    assert sys.meta_path == finders
    sink = RecordedCalls()
    run(server, plain, "chat")
    assert not sink.starts


def test_two_sinks_see_each_call_once_and_leave_in_any_order(server: FakeOpenAI) -> None:
    first, second = RecordedCalls(), RecordedCalls()
    one, two = observe(first), observe(second)
    server.enqueue(Fault(500, {"retry-after-ms": "1"}))
    run(server, plain, "chat", max_retries=1)
    one.undo()
    run(server, stream, "chat")
    two.undo()
    run(server, plain, "chat")
    assert [call.retries for call in first.calls(1)] == [1]
    assert [call.retries for call in second.calls(2)] == [1, 0]


def test_concurrent_calls_do_not_mix(server: FakeOpenAI) -> None:
    words = [f"word{number}" for number in range(24)]

    def script(request: Any) -> Scripted:
        asked = request.json()["messages"][0]["content"]
        return Answer.of(f"you said {asked}", ids="always", show_usage="always")

    sink = RecordedCalls()
    patch = observe(sink)

    async def ask(client: openai.AsyncOpenAI, word: str, number: int) -> None:
        asked: Any = {"model": "m", "messages": [{"role": "user", "content": word}]}
        if number % 2:
            async for _ in await client.chat.completions.create(**asked, stream=True):
                pass
        else:
            await client.chat.completions.create(**asked)

    async def agent(server: FakeOpenAI) -> None:
        async with async_client(server) as client:
            await asyncio.gather(*(ask(client, word, number) for number, word in enumerate(words)))

    try:
        with FakeOpenAI(script) as scripted:
            asyncio.run(agent(scripted))
    finally:
        patch.undo()
    for call in sink.calls(len(words)):
        word = call.request_messages[0]["content"]
        assert call.token_capture == VALID
        assert call.choices[0].token_ids == tuple(token.id for token in tokens_of(f"you said {word}"))


def test_a_client_of_the_http_library_itself_is_seen_too(server: FakeOpenAI) -> None:
    library = http_library()
    body = {"model": "m", "messages": MESSAGES, "stream": True}
    with ExitStack() as stack:
        client = stack.enter_context(library.Client())
        with client.stream("POST", f"{server.base_url}/chat/completions", json=body) as response:
            without = list(response.iter_raw())
        sink = RecordedCalls()
        stack.callback(observe(sink).undo)
        with client.stream("POST", f"{server.base_url}/chat/completions", json=body) as response:
            assert b"".join(response.iter_raw()) == b"".join(without)
    assert sink.call().token_capture == VALID
    assert sink.raw[0].response_body == b"".join(without)


def test_a_mock_transport_whose_answer_has_no_stream_is_seen() -> None:
    library = http_library()
    found = {"choices": [{"index": 0, "message": {"content": "hi"}, "finish_reason": "stop"}]}
    sink = RecordedCalls()
    patch = observe(sink)
    try:
        transport = library.MockTransport(lambda _: library.Response(200, json=found))
        with library.Client(transport=transport) as client:
            response = client.post(
                "http://host/openai/deployments/x/chat/completions?v=1", json={"model": "m"}
            )
            assert response.json() == found
            with client.stream("POST", "http://host/v1/completions", json={"model": "m"}) as response:
                assert response.read() == response.content
    finally:
        patch.undo()
    first, second = sink.calls(2)
    assert (first.endpoint, first.choices[0].content) == (
        "http://host/openai/deployments/x/chat/completions",
        "hi",
    )
    assert second.operation == "text_completion"


def test_a_body_that_cannot_be_read_twice_passes_untouched_and_is_noted() -> None:
    library = http_library()
    sink = RecordedCalls()
    patch = observe(sink)

    async def body() -> AsyncIterator[bytes]:
        yield b'{"model": "m"}'

    async def agent() -> int:
        transport = library.MockTransport(lambda _: library.Response(200, json={}))
        async with library.AsyncClient(transport=transport) as client:
            response = await client.post("http://host/v1/completions", content=body())
            return int(response.status_code)

    try:
        assert asyncio.run(agent()) == 200
    finally:
        patch.undo()
    assert sink.raw[0].request_body == b'{"model": "m"}'
    assert sink.call().request_model == "m"


def test_a_stream_that_nobody_reads_ends_when_it_is_collected(server: FakeOpenAI) -> None:
    sink = RecordedCalls()
    patch = observe(sink)
    try:
        with sync_client(server) as client:
            client.chat.completions.create(**arguments("chat"), stream=True)
            gc.collect()
            wait_until(lambda: sink.ends)
    finally:
        patch.undo()
    assert sink.call().partial


def http_library() -> Any:
    """The HTTP library under the installed openai."""
    from openai import _base_client

    return getattr(_base_client, "httpx2", None) or vars(_base_client)["httpx"]
