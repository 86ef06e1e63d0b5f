"""From the bytes of a response to JSON objects, and of those to what has been received.

Whether a body is a stream of events, one JSON object or one in each line is told by its bytes, not by its type. What
cannot be read becomes an issue or the verdict on the call.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .. import bounds, content_encoding, sse
from ..model_call import Issue, invalid
from ..raw_call import RawCall
from . import answer_fields
from .answer import add_object
from .json_parts import json_object
from .outcome import cut_code, failure_of
from .received import ReceivedAnswer

MOST_EVENTS_NAMED = 100
"""Events of one stream that are named as unreadable."""


def receive(raw: RawCall, issues: list[Issue]) -> tuple[ReceivedAnswer, str | None]:
    """Return what the response says, and the verdict where it says nothing that could be trained on."""
    answer = ReceivedAnswer()
    if raw.status is None:
        return answer, failure_of(answer, raw)
    try:
        body = content_encoding.undo(raw.response_body, raw.content_encoding)
        bounds.check(body)  # before parsing, which takes up to 100 bytes for each value
    except bounds.TooCostlyError as error:
        issues.append(Issue("warn", "too_costly", str(error)))
        return answer, invalid("too_costly")
    except content_encoding.UnreadableEncodingError as error:
        issues.append(Issue("warn", "encoding", str(error)))
        return answer, invalid("encoding")
    unreadable = _read_body(answer, body, raw, issues)
    return answer, failure_of(answer, raw, unreadable)


def _read_body(answer: ReceivedAnswer, body: bytes, raw: RawCall, issues: list[Issue]) -> str | None:
    """Read events, one JSON object, or one in each line; which of them it is, the bytes say, not their type."""
    if _is_event_stream(raw, body):
        _read_events(answer, sse.events(body), issues)
        return None
    found = _answer_object(body.removeprefix(sse.BOM))
    if found is not None:
        add_object(answer, found)
        answer.done = raw.error is None
        return None
    # One JSON object in each line, without the `data:` of events.
    lines = [line for line in body.splitlines() if line.strip()]
    if raw.start.stream and lines and json_object(lines[0].removeprefix(sse.BOM)) is not None:
        _read_events(answer, (sse.Event("", line.decode("utf-8", "replace")) for line in lines), issues)
        answer.done = answer.done or raw.complete
        return None
    return invalid("malformed" if raw.complete else cut_code(answer, raw))


def _is_event_stream(raw: RawCall, body: bytes) -> bool:
    # Servers that are asked for a stream and cannot give one answer with JSON, some under the type of a stream.
    if body.removeprefix(sse.BOM).lstrip()[:1] == b"{":
        return False
    named = raw.content_type.partition(";")[0].strip().lower() == "text/event-stream"
    return named or sse.looks_like_events(body)


def _read_events(answer: ReceivedAnswer, events: Iterable[sse.Event], issues: list[Issue]) -> None:
    answer.is_stream = True
    unreadable = 0
    for event in events:
        if event.data.strip() == sse.DONE:
            answer.done = True
            continue
        found = _answer_object(event.data) if event.data else None
        if found is not None:
            add_object(answer, found)
        elif event.data and unreadable < MOST_EVENTS_NAMED:
            unreadable += 1
            issues.append(Issue("warn", "event_unreadable", f"{len(event.data)} characters"))
        if event.name == "error" and answer.error is None:
            answer.error = "error"
    if answer.error is not None:
        issues.append(Issue("warn", "stream_error", answer.error))


def _answer_object(data: bytes | str) -> dict[str, Any] | None:
    """Return the JSON object that an answer or a chunk is, without fields that are not read; ``None`` = it is none."""
    found = answer_fields.parse(data)
    return json_object(data) if found is None else found
