"""Answers as servers and gateways really send them, beyond what the API's reference shows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from agentlightning.dialects.model_call import ModelCall
from agentlightning.dialects.openai.reading import decode
from agentlightning.dialects.raw_call import CallStart, RawCall

START = CallStart("chat", "http://host/v1/chat/completions", "m", stream=True)


def record(body: bytes, **changes: Any) -> ModelCall:
    fields: dict[str, Any] = {"content_type": "text/event-stream", "complete": True, "status": 200, **changes}
    return decode(RawCall(start=START, request_body=b'{"stream":true}', response_body=body, **fields))


def chunk(delta: Mapping[str, Any], finish: str | None = None) -> dict[str, Any]:
    return {"id": "1", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


def stream(*deltas: Mapping[str, Any], end: bytes = b"\n\n") -> bytes:
    chunks = [*map(chunk, deltas), chunk({}, "stop")]
    return b"".join(b"data: " + json.dumps(each).encode() + end for each in chunks) + b"data: [DONE]" + end


def tool(name: str | None = None, arguments: str | None = None, **more: Any) -> dict[str, Any]:
    function = {k: v for k, v in (("name", name), ("arguments", arguments)) if v is not None}
    return {**more, "function": function}


BOTH = [("get_weather", '{"a": 1}'), ("get_time", "{}")]


@pytest.mark.parametrize(
    "deltas",
    [
        [  # each call whole, all under index 0 (Gemini's OpenAI API)
            [tool("get_weather", '{"a": 1}', index=0, id="a")],
            [tool("get_time", "{}", index=0, id="b")],
        ],
        [[tool("get_weather", '{"a": 1}', id="a")], [tool("get_time", "{}", id="b")]],  # no index
        [[tool("get_weather", '{"a": 1}')], [tool("get_time", "{}")]],  # neither index nor id
        [[tool("get_weather", '{"a": 1}', index=0)], [tool("get_time", "{}", index=0)]],
        [  # in pieces, one after the other, under index 0
            [tool("get_weather", "", index=0, id="a")],
            [tool(None, '{"a"', index=0)],
            [tool(None, ": 1}", index=0)],
            [tool("get_time", "", index=0, id="b")],
            [tool(None, "{}", index=0)],
        ],
        [  # in pieces that name their call each time, in turns
            [tool("get_weather", '{"a"', index=0, id="a")],
            [tool("get_time", "{", index=0, id="b")],
            [tool("get_weather", ": 1}", index=0, id="a")],
            [tool("get_time", "}", index=0, id="b")],
        ],
        [  # by the API's reference, in turns
            [tool("get_weather", "", index=0, id="a"), tool("get_time", "", index=1, id="b")],
            [tool(None, '{"a": 1}', index=0), tool(None, "{}", index=1)],
        ],
        [  # a name in pieces
            [tool("get_", index=0, id="a")],
            [tool("weather", '{"a": 1}', index=0)],
            [tool("get_time", "{}", index=1, id="b")],
        ],
    ],
)
def test_parallel_tool_calls_of_a_stream_are_told_apart(deltas: list[Any]) -> None:
    call = record(stream(*({"tool_calls": calls} for calls in deltas)))
    assert [(each.name, each.arguments) for each in call.choices[0].tool_calls] == BOTH


@pytest.mark.parametrize("more", [{}, {"index": 0}, {"index": 0, "id": "a"}])
def test_a_name_that_is_repeated_with_each_piece_is_one_call(more: dict[str, Any]) -> None:
    pieces = [[tool("get_weather", '{"a"', **more)], [tool("get_weather", ": 1}", **more)]]
    call = record(stream(*({"tool_calls": calls} for calls in pieces)))
    assert [(each.name, each.arguments) for each in call.choices[0].tool_calls] == BOTH[:1]


@pytest.mark.parametrize("ids", [("a", "b"), (None, None)])
def test_parallel_calls_of_one_tool_are_two(ids: tuple[str | None, str | None]) -> None:
    pieces = [[tool("f", '{"x": 1}', index=0, id=ids[0])], [tool("f", '{"x": 2}', index=0, id=ids[1])]]
    call = record(stream(*({"tool_calls": calls} for calls in pieces)))
    assert [each.arguments for each in call.choices[0].tool_calls] == ['{"x": 1}', '{"x": 2}']


def test_parallel_tool_calls_of_a_plain_answer_are_told_apart_whatever_their_index() -> None:
    calls = [tool(name, arguments, index=0, id=name) for name, arguments in BOTH]
    body = {"choices": [{"index": 0, "message": {"tool_calls": calls}, "finish_reason": "tool_calls"}]}
    found = record(json.dumps(body).encode(), content_type="application/json")
    assert [(each.name, each.arguments) for each in found.choices[0].tool_calls] == BOTH


@pytest.mark.parametrize(
    "said",
    [
        {"reasoning_content": "hm", "content": "4"},
        {"reasoning": "hm", "content": "4"},
        {"reasoning": "hm", "reasoning_content": "", "content": "4"},
        {"reasoning": "hm", "reasoning_content": "hm", "content": "4"},
        {"thinking": "hm", "content": "4"},
        {"content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "4"}]},
        {
            "content": [
                {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]},
                {"type": "text", "text": "4"},
            ]
        },
        {"content": [{"type": "reasoning", "text": "hm"}, {"type": "text", "text": "4"}]},
        {"thinking_blocks": [{"type": "thinking", "thinking": "hm", "signature": "x"}], "content": "4"},
        {"reasoning_details": [{"type": "reasoning.text", "text": "hm"}], "content": "4"},
        {"reasoning_details": [{"type": "reasoning.summary", "summary": "hm"}], "content": "4"},
        {"reasoning": "hm", "reasoning_details": [{"type": "reasoning.text", "text": "hm"}], "content": "4"},
    ],
)
def test_what_the_model_thought_is_kept_and_is_no_part_of_what_it_said(said: dict[str, Any]) -> None:
    choice = record(stream(said)).choices[0]
    assert (choice.reasoning, choice.content) == ("hm", "4")
    body = json.dumps({"choices": [{"index": 0, "message": said, "finish_reason": "stop"}]}).encode()
    choice = record(body, content_type="application/json").choices[0]
    assert (choice.reasoning, choice.content) == ("hm", "4")


ERRORS = [
    ({"error": {"type": "server_error", "message": "no"}}, "server_error"),
    ({"error": {"code": 500}}, "500"),
    ({"error": "no"}, "error"),
    ({"object": "error", "type": "BadRequestError", "message": "no", "code": 400}, "400"),
    ({"type": "error", "error": {"type": "overloaded_error"}}, "overloaded_error"),
]


@pytest.mark.parametrize(("body", "kind"), ERRORS)
def test_an_error_whose_status_says_success_is_an_error(body: dict[str, Any], kind: str) -> None:
    text = json.dumps(body).encode()
    for sent in (text, b"data: " + text + b"\n\n", b"event: error\ndata: " + text + b"\n\n"):
        call = record(sent)
        assert call.token_capture == "none(error_answer)"
        assert call.error is not None
        assert call.error in {kind, body.get("type")}


def test_an_event_that_is_named_an_error_is_one_whatever_it_says() -> None:
    assert record(b"event: error\ndata: out of memory\n\n").error == "error"
    assert record(stream({"content": "event: error"})).error is None


@pytest.mark.parametrize("content_type", ["", "text/plain", "application/json", "application/octet-stream"])
@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n", b"\r\r", b"\n\r\n"])
def test_a_stream_is_known_by_its_bytes(content_type: str, end: bytes) -> None:
    body = b": ping\n\n" + stream({"content": "fo"}, {"content": "ur"}, end=end)
    for sent in (body, b"\xef\xbb\xbf" + body):
        call = record(sent, content_type=content_type)
        assert (call.choices[0].content, call.choices[0].finish_reason, call.partial) == (
            "four",
            "stop",
            False,
        )


def test_a_plain_answer_is_known_by_its_bytes() -> None:
    body = {"choices": [{"index": 0, "message": {"content": "four"}, "finish_reason": "stop"}]}
    for sent in (
        json.dumps(body).encode(),
        json.dumps(body, indent=2).encode(),
        b"\xef\xbb\xbf" + json.dumps(body).encode(),
    ):
        call = record(sent)
        assert (call.choices[0].content, call.partial) == ("four", False)


def test_a_stream_of_json_lines_is_read_line_by_line() -> None:
    chunks = [chunk({"content": "fo"}), chunk({"content": "ur"}), chunk({}, "stop")]
    body = b"".join(json.dumps(each).encode() + b"\n" for each in chunks)
    call = record(body, content_type="application/x-ndjson")
    assert (call.choices[0].content, call.choices[0].finish_reason, call.partial) == ("four", "stop", False)
