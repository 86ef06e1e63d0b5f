"""What is written in a dialect is read again as the same call, and says nothing that was not known."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_openai_reading import ASKED, answers, for_all, raw_plain, start_of, without_stream

from agentlightning.dialects.model_call import VALID, Choice, Issue, ModelCall, PolicySpan, ToolCall, Usage
from agentlightning.dialects.openai.dialect import OPENAI
from agentlightning.dialects.openai.errors import error_of
from agentlightning.dialects.raw_call import ParsedCall, RawCall
from agentlightning.dialects.sse import Event, events
from agentlightning.testing.fake_openai import Answer, AnswerChoice, tokens_of


def read_plain(call: ModelCall, request: dict[str, Any], body: dict[str, Any]) -> ModelCall:
    start = dataclasses.replace(start_of(call.operation == "chat", stream=False), model=call.request_model)
    return OPENAI.read(ParsedCall(start, request, [body]))


def read_stream(call: ModelCall, request: dict[str, Any]) -> ModelCall:
    start = dataclasses.replace(start_of(call.operation == "chat", stream=True), model=call.request_model)
    asked = {**request, "stream": True}
    body = b"".join(event.written() for event in OPENAI.write_stream(call, asked, created=1))
    return OPENAI.decode(
        RawCall(
            start, json.dumps(asked).encode(), 200, "text/event-stream", response_body=body, complete=True
        )
    )


def without_names(call: ModelCall) -> ModelCall:
    """Leave out how tokens are spelled, and the findings about the request."""
    choices = tuple(dataclasses.replace(each, token_strings=None) for each in call.choices)
    return dataclasses.replace(call, choices=choices)


@given(answers, st.booleans())
def test_an_answer_that_is_written_again_is_the_same_call(answer: Answer, chat: bool) -> None:
    request = dict(for_all(answer, ASKED))
    call = OPENAI.decode(raw_plain(answer, request, chat=chat))
    assert call.token_capture == VALID
    again = read_plain(call, request, OPENAI.write_answer(call, request, created=1))
    assert without_names(again) == without_names(call)


@given(answers, st.booleans())
def test_a_stream_that_is_written_of_an_answer_is_the_same_call(answer: Answer, chat: bool) -> None:
    request = dict(for_all(answer, ASKED))
    call = OPENAI.decode(raw_plain(answer, request, chat=chat))
    streamed, plain = read_stream(call, request), without_names(without_stream(call))
    assert without_names(without_stream(streamed)).choices == plain.choices
    assert (streamed.token_capture, streamed.prompt_token_ids) == (VALID, call.prompt_token_ids)
    assert (streamed.usage, streamed.response_id) == (call.usage, call.response_id)


SAID = ModelCall(
    request_model="m",
    response_model="m-1",
    response_id="chatcmpl-1",
    choices=(
        Choice(
            content="It is Paris",
            reasoning="A capital.",
            refusal="no",
            finish_reason="stop",
            finish_reason_raw="eos",
            token_ids=(5, 6, 7),
            logprobs=(-0.5, -0.25, 0.0),
            token_strings=("It", " is", " Paris"),
            policy=(PolicySpan("1", 0, 2), PolicySpan("2", 2, 3)),
            token_capture=VALID,
        ),
    ),
    prompt_token_ids=(1, 2),
    usage=Usage(2, 3, cached_input_tokens=1, reasoning_tokens=0),
    token_capture=VALID,
)


@pytest.mark.parametrize("stream", [False, True])
def test_all_that_the_api_has_words_for_comes_back(stream: bool) -> None:
    body = OPENAI.write_answer(SAID, ASKED, created=1)
    again = read_stream(SAID, ASKED) if stream else read_plain(SAID, ASKED, body)
    assert (again.choices, again.usage, again.prompt_token_ids) == (
        SAID.choices,
        SAID.usage,
        SAID.prompt_token_ids,
    )


@pytest.mark.parametrize("stream", [False, True])
def test_tool_calls_come_back_as_the_model_wrote_them(stream: bool) -> None:
    calls = (ToolCall("c1", "add", '{"a": 1'), ToolCall("c2", "add", ""))
    said = Choice(tool_calls=calls, finish_reason_raw="tool_calls", token_ids=(5,), logprobs=(-1.0,))
    call = dataclasses.replace(SAID, choices=(said,), usage=Usage(2, 1))
    again = (
        read_stream(call, ASKED)
        if stream
        else read_plain(call, ASKED, OPENAI.write_answer(call, ASKED, created=1))
    )
    assert (again.choices[0].tool_calls, again.choices[0].content) == (calls, None)
    assert (again.choices[0].token_ids, again.token_capture) == ((5,), VALID)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("unknown", "verdict"),
    [
        ({"token_ids": None, "logprobs": None, "policy": ()}, "none(no_response_token_ids)"),
        ({"logprobs": None}, VALID),
        ({"logprobs": (-1.0,)}, VALID),
        ({"token_strings": None}, VALID),
    ],
)
def test_what_is_not_known_is_not_made_up(unknown: dict[str, Any], verdict: str, stream: bool) -> None:
    call = dataclasses.replace(SAID, choices=(dataclasses.replace(SAID.choices[0], **unknown),))
    again = (
        read_stream(call, ASKED)
        if stream
        else read_plain(call, ASKED, OPENAI.write_answer(call, ASKED, created=1))
    )
    (choice,) = again.choices
    assert (again.token_capture, choice.content) == (verdict, "It is Paris")
    assert choice.token_ids == call.choices[0].token_ids
    known = call.choices[0].logprobs
    assert choice.logprobs == (known if known and len(known) == 3 else None)


def test_token_ids_and_counts_are_told_to_those_who_ask() -> None:
    body = OPENAI.write_answer(SAID, {"model": "m"}, created=1)
    (choice,) = body["choices"]
    assert choice["logprobs"] is None
    assert not {"token_ids", "prompt_token_ids"} & {*body, *choice}
    chunks = [json.loads(event.data) for event in [*OPENAI.write_stream(SAID, {}, created=1)][:-1]]
    assert all(chunk["choices"] and "usage" not in chunk for chunk in chunks)


def test_a_stream_has_a_chunk_for_each_token_whose_text_is_known() -> None:
    written = [*OPENAI.write_stream(SAID, ASKED, created=1)]
    texts = [json.loads(event.data)["choices"] for event in written[:-1]]
    deltas = [choice["delta"].get("content") for choices in texts for choice in choices]
    assert [text for text in deltas if text] == ["It", " is", " Paris"]
    assert written[-1] == Event("", "[DONE]")


@pytest.mark.parametrize("status", [400, 500])
def test_an_error_is_read_as_one(status: int) -> None:
    body = OPENAI.write_error("no", status=status)
    assert error_of(body) == ("server_error" if status == 500 else "invalid_request_error")
    call = OPENAI.read(ParsedCall(start_of(True, False), {}, [body], status=status))
    assert (call.token_capture, call.http_status) == ("none(http_error)", status)


def test_parsed_streams_that_break_off_are_partial() -> None:
    answer = Answer((AnswerChoice(tokens_of("a b c")),))
    call = OPENAI.decode(raw_plain(answer))
    chunks = [json.loads(event.data) for event in [*OPENAI.write_stream(call, ASKED, created=1)][:-1]]
    start = start_of(True, True)
    whole = ParsedCall(start, ASKED, chunks, is_stream=True)
    assert OPENAI.read(whole).token_capture == VALID
    cut = dataclasses.replace(whole, responses=chunks[:3], complete=False, error="ReadError: reset")
    assert OPENAI.read(cut).token_capture == "invalid(partial)"
    failed = dataclasses.replace(whole, responses=[*chunks[:3], OPENAI.write_error("no", status=500)])
    assert OPENAI.read(failed).token_capture == "invalid(partial)"
    assert Issue("warn", "stream_error", "server_error") in OPENAI.read(failed).issues


@given(st.text(), st.sampled_from(["", "error"]))
def test_an_event_is_read_as_it_was_written(data: str, name: str) -> None:
    data = data.encode("utf-8", "replace").decode().replace("\r", "")
    assert [*events(Event(name, data).written())] == [Event(name, data)]
