"""Sessions in Hugging Face's Session Trace Simple Format as spans, and such spans as the sessions that they were.

Format: huggingface.co/docs/hub/session-traces-format. A session is a span of its agent, which is named after the
harness. Below it stand its messages, in order: the call of a model for what an assistant said, a tool's span for what a
tool returned, a message for anything else. Rewards, an ending, a mode and a group are read where we have written them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..dialects.model_call import Choice, ModelCall, ToolCall
from ..dialects.spans.genai import CallReader
from ..errors import NotADocument
from ..semconv import AGL_MESSAGE
from ..types import Span
from . import imported as parts
from .content import OURS, without_nothing, writable
from .imported import Imported, SpanMaker, digest_of, with_rest, with_rest_of
from .trajectories import Recorded

KIND = "STS"
SOURCE = "sts"

_ROLES = ("user", "assistant", "system", "tool")
_TEXTS = ("reasoningContent", "toolCallId", "model")

Line = Mapping[str, Any]


def read(lines: Sequence[Any], numbers: Sequence[int]) -> Imported:
    """Return a session, checked.

    Args:
        lines: Its lines, parsed.
        numbers: Their numbers in the file, from 1.

    Raises:
        NotADocument: It is none; with the line, the place in it and what is wrong there.
    """
    for line, number in zip(lines, numbers, strict=True):
        fault = _fault(line, is_header=line is lines[0])
        if fault is not None:
            place, sentence = fault
            raise NotADocument(f"line {number}{f': {place}' if place else ''}", sentence)
    header = lines[0]
    ours = _ours(header)
    said = [line["message"] for line in lines[1:]]
    found = Imported(
        format=KIND,
        own_id=header["id"],
        digest=digest_of(lines),
        task=next((message["content"] for message in said if message["role"] == "user"), None),
        name=header.get("name"),
        times=_times(lines),
        ending=parts.ending(ours),
        reward=parts.rewards(ours),
        recorded_as=parts.recorded_as(ours),
        mode=ours.get("mode"),
        group_id=parts.group(ours),
    )
    return replace(found, parts=lambda *ids: _spans(lines, found, SpanMaker(found, SOURCE, ids)))


def _ours(header: Line) -> Mapping[str, Any]:
    found = header.get(OURS)
    return found if isinstance(found, Mapping) else {}


def _fault(line: Any, *, is_header: bool) -> tuple[str, str] | None:
    if not isinstance(line, dict):
        return "", "it is no JSON object"
    if is_header:
        for name in ("harness", "id"):
            if not isinstance(line.get(name), str):
                return name, "it is missing" if name not in line else "it is no text"
        is_named = line.get("name") is None or isinstance(line["name"], str)
        return None if is_named else ("name", "it is no text")
    if line.get("type") != "message":
        return "type", f"it is {line.get('type')!r}, and behind the first line there are only messages"
    message = line.get("message")
    return ("message", "it is no JSON object") if not isinstance(message, dict) else _fault_of(message)


def _fault_of(message: Mapping[str, Any]) -> tuple[str, str] | None:
    if message.get("role") not in _ROLES:
        return "message.role", f"it is {message.get('role')!r}, and none of {', '.join(_ROLES)}"
    if not isinstance(message.get("content"), str):
        hint = (
            "; is it a session of Pi, which has parts there?"
            if isinstance(message.get("content"), list)
            else ""
        )
        return "message.content", f"it is no text{hint}"
    for name in _TEXTS:
        if message.get(name) is not None and not isinstance(message[name], str):
            return f"message.{name}", "it is no text"
    at = message.get("timestamp")
    if at is not None and type(at) not in (int, float):
        return "message.timestamp", "it is no number of milliseconds"
    calls = message.get("toolCalls")
    if calls is not None and not isinstance(calls, list):
        return "message.toolCalls", "it is no list"
    for index, call in enumerate(calls or ()):
        function = call.get("function") if isinstance(call, dict) else None
        texts = (
            (call.get("id"), function.get("name"), function.get("arguments"))
            if isinstance(function, dict)
            else ()
        )
        if [*map(type, texts)] != [str] * 3:
            return (
                f"message.toolCalls[{index}]",
                "it has no id, function.name and function.arguments, each a text",
            )
    return None


# ---------------------------------------------------------------------- to spans


def _spans(lines: Sequence[Line], found: Imported, maker: SpanMaker) -> Iterator[Span]:
    header = lines[0]
    attributes = {
        parts.OPERATION: "invoke_agent",
        parts.AGENT_NAME: header["harness"],
        parts.FORMAT: KIND,
    }
    begin, end = _times(lines)
    name = f"invoke_agent {header['harness']}".rstrip()
    root = maker.make(name, "document", attributes, parent=None, at=begin)
    root.end_time = end
    yield with_rest(root, _header_of(root), header)
    calls: dict[str | None, Mapping[str, Any] | None] = {}
    reader = CallReader()
    for line in lines[1:]:
        message = line["message"]
        span = _span(message, calls, maker, root.span_id)
        maker.heard(_openai(message))
        calls |= parts.by_id((call["id"], call) for call in message.get("toolCalls") or ())
        yield with_rest(span, _line_of(span, reader), line)
    if found.reward:
        yield maker.reward(found.reward, parent=root.span_id, at=end)


def _times(lines: Sequence[Line]) -> tuple[float | None, float | None]:
    """Return the times of the first and the last message that have one."""
    known = [at for line in lines[1:] if (at := _seconds(line["message"])) is not None]
    return (min(known), max(known)) if known else (None, None)


def _span(
    message: Mapping[str, Any],
    calls: Mapping[str | None, Mapping[str, Any] | None],
    maker: SpanMaker,
    parent: str,
) -> Span:
    at, content = _seconds(message), message["content"]
    if message["role"] == "assistant":
        calls_made = tuple(_calls_of(message))
        choice = Choice(
            content=None if not content and calls_made else content,
            reasoning=message.get("reasoningContent"),
            tool_calls=calls_made,
        )
        record = ModelCall(request_model=message.get("model"), choices=(choice,))
        return maker.call(record, "message", parent=parent, at=at)
    call = calls.get(message.get("toolCallId")) if message["role"] == "tool" else None
    if call is None:
        return maker.message(content, "message", message["role"], parent=parent, at=at)
    function = call["function"]
    named = {"id": call["id"], "name": function["name"], "arguments": function["arguments"]}
    return maker.tool(named, content, parent=parent, at=at, part="message")


def _calls_of(message: Mapping[str, Any]) -> Iterator[ToolCall]:
    for call in message.get("toolCalls") or ():
        yield ToolCall(call["id"], call["function"]["name"], call["function"]["arguments"])


def _openai(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return a message in the shape of the OpenAI API."""
    calls = [call.as_json() for call in _calls_of(message)]
    return {
        "role": message["role"],
        "content": None if not message["content"] and calls else message["content"],
        **without_nothing(
            [
                ("reasoning_content", message.get("reasoningContent")),
                ("tool_calls", calls),
                ("tool_call_id", message.get("toolCallId") if message["role"] == "tool" else None),
            ]
        ),
    }


def _seconds(message: Mapping[str, Any]) -> float | None:
    at = message.get("timestamp")
    try:
        seconds = None if at is None else at / 1000
    except OverflowError:
        return None
    return seconds if seconds is not None and math.isfinite(seconds) else None


# ---------------------------------------------------------------------- what a span alone gives back


def _header_of(span: Span) -> dict[str, Any]:
    return {"type": "session", "harness": span.attributes.get(parts.AGENT_NAME)}


def _line_of(span: Span, reader: CallReader) -> dict[str, Any]:
    return {"type": "message", "message": _message_of(span, reader)}


def _message_of(span: Span, reader: CallReader) -> dict[str, Any]:
    attributes = span.attributes
    when = () if span.start_time is None else (("timestamp", round(span.start_time * 1000)),)
    if parts.TOOL_CALL_ID in attributes:
        said = {"role": "tool", "content": attributes.get(parts.TOOL_RESULT, "")}
        return {**said, "toolCallId": attributes[parts.TOOL_CALL_ID], **dict(when)}
    record = None if span.name == AGL_MESSAGE else reader.read(span)
    if record is None or not record.choices:
        return {"role": attributes.get(parts.SOURCE), "content": attributes.get(parts.BODY, ""), **dict(when)}
    choice = record.choices[0]
    calls = [
        {"id": call.id, "function": {"name": call.name, "arguments": call.arguments}}
        for call in choice.tool_calls
    ]
    return {
        "role": "assistant",
        "content": choice.content or "",
        **without_nothing(
            [
                ("reasoningContent", choice.reasoning),
                ("toolCalls", calls),
                *when,
                ("model", record.request_model),
            ]
        ),
    }


def session_of(spans: Sequence[Span], found: Recorded | None = None) -> list[dict[str, Any]] | None:
    """Return the lines of the session that an attempt was imported from; ``None`` where it was not.

    Args:
        spans: Those of the attempt, in the order in which they were stored.
        found: What is recorded of it, for rewards that it has been given here.
    """
    roots = parts.documents_among(spans, KIND)
    if not roots:
        return None
    reader = CallReader()
    messages = [
        with_rest_of(span, _line_of(span, reader))
        for span in spans
        if span.attributes.get(parts.PART) == "message"
    ]
    header = with_rest_of(roots[0], _header_of(roots[0]))
    given = {} if found is None else parts.given_since(_ours(header), found.outcome)
    if given:
        header[OURS] = writable({**_ours(header), **given})
    return [header, *messages]
