"""Asking a server for token ids on the agent's behalf, and taking the answer to that out again.

``ask`` adds fields to a request; ``AnswerStripper`` cuts out of the answer exactly what those
fields brought, as edits of the text: everything else keeps its bytes. What cannot be read is passed on as it is.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from .. import sse
from ..raw_call import Operation

RETURN_TOKEN_IDS = "return_token_ids"  # noqa: S105 - a request field of vLLM and SGLang
LOGPROBS = "logprobs"
INCLUDE_USAGE = "stream_options.include_usage"
SGLEXT = "sglext"
"""Stands for SGLang's ``return_input_ids_in_sglext`` and ``return_output_ids_in_sglext``."""

_IDS_IN_SGLEXT = {
    "return_input_ids_in_sglext": "input_ids",
    "return_output_ids_in_sglext": "output_ids",
}
"""SGLang's fields of requests → what their answers have in ``sglext``; other fields bring other things there."""


def ways(request: Mapping[str, Any], operation: Operation) -> tuple[str, ...]:
    """Return the names of the fields by which ids can be asked for, the usual one first; each may be refused.

    SGLang refuses ``return_token_ids`` in streams of chats, and tells the ids there in ``sglext``. Where the agent asks
    for ids itself there is no other way: its own could not be told from ours.
    """
    has_own = any(request.get(name) for name in (RETURN_TOKEN_IDS, *_IDS_IN_SGLEXT))
    if operation != "chat" or not request.get("stream") or has_own:
        return (RETURN_TOKEN_IDS,)
    return RETURN_TOKEN_IDS, SGLEXT


def ask(
    request: Mapping[str, Any], operation: Operation, way: str = RETURN_TOKEN_IDS
) -> tuple[bytes, frozenset[str]]:
    """Return the body with the fields that the agent did not ask for itself, and their names.

    Args:
        request: What the agent asks.
        operation: Of the request.
        way: One of :func:`ways`.

    Raises:
        ValueError: The request holds a number that JSON does not have.
    """
    body, added = dict(request), set()
    if way == SGLEXT:
        body.update(dict.fromkeys(_IDS_IN_SGLEXT, True))
        added.add(SGLEXT)
    elif not body.get("return_token_ids"):
        body["return_token_ids"] = True
        added.add(RETURN_TOKEN_IDS)
    asked = body.get("logprobs")
    # 0 asks a completion for the sampled token alone; a chat asks with true.
    if not asked if operation == "chat" else asked is None or asked is False:
        body["logprobs"] = True if operation == "chat" else 0
        added.add(LOGPROBS)
        if body.get("top_logprobs", 0) is None:  # vLLM refuses an explicit null beside logprobs
            del body["top_logprobs"]
    options = body.get("stream_options") or {}
    if body.get("stream") and not options.get("include_usage"):
        body["stream_options"] = {**options, "include_usage": True}
        added.add(INCLUDE_USAGE)
    return json.dumps(body, separators=(",", ":"), allow_nan=False).encode(), frozenset(added)


def strip_body(body: bytes, added: frozenset[str]) -> bytes:
    """Return a plain answer without what ``added`` brought."""
    # A plain answer has its usage whether one asks or not.
    return _edited(body, _rules(added - {INCLUDE_USAGE}))


class AnswerStripper:
    """``strip_body`` for an answer that comes in pieces, whatever it turns out to be.

    Events and lines of JSON are edited as they pass; one JSON object waits for its end. What is none of them passes at
    once, as it is.
    """

    def __init__(self, added: frozenset[str], *, stream: bool) -> None:
        self._added = added
        self._stream = stream
        self._held = b""
        self._edit: Callable[[bytes], bytes] | None = None
        self._events: _EventEditor | None = None

    def feed(self, chunk: bytes) -> bytes:
        """Return what may be passed on, edited."""
        if self._edit is not None:
            return self._edit(chunk)
        self._held += chunk
        if not self._stream:
            return b""
        start = self._held.removeprefix(sse.BOM).lstrip()
        if sse.looks_like_events(start):
            self._events = _EventEditor(self._added)
            self._edit = self._events.feed
        elif start[:1] == b"{":
            line, end, _ = start.partition(b"\n")
            if not end or not _is_object(line):
                return b""
            self._edit = self._lines
        elif len(start) < len(b"retry:"):
            return b""
        else:
            self._edit = _unedited
        held, self._held = self._held, b""
        return self._edit(held)

    def finish(self) -> bytes:
        """Return what was held back until the end, edited."""
        held, self._held = self._held, b""
        if self._edit is None and sse.looks_like_events(held):  # nobody asked for a stream
            self._events = _EventEditor(self._added)
            return self._events.feed(held) + self._events.finish()
        if self._edit is None:
            # A plain answer has its usage whether one asks or not.
            return strip_body(held, self._added)
        if self._events is not None:
            return self._events.finish()
        return _edited(held, _rules(self._added))

    def rest(self) -> bytes:
        """Return what was held back, as it came."""
        held, self._held = self._held, b""
        return self._events.rest() if self._events is not None else held

    def _lines(self, chunk: bytes) -> bytes:
        *lines, self._held = (self._held + chunk).split(b"\n")
        rules = _rules(self._added)
        return b"".join(_edited(line, rules) + b"\n" for line in lines)


def _unedited(chunk: bytes) -> bytes:
    return chunk


def _is_object(text: bytes) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


class _EventEditor:
    """Edits a stream of events as it passes."""

    def __init__(self, added: frozenset[str]) -> None:
        self._added = added
        self._rules = _rules(added)
        self._splitter = sse.EventSplitter()
        self._left_out = False

    def feed(self, chunk: bytes) -> bytes:
        """Return the events that ``chunk`` completes, edited; nothing where it completes none."""
        return b"".join(map(self._event, self._splitter.feed(chunk)))

    def finish(self) -> bytes:
        """Return what follows the last whole event."""
        return self._event(self._splitter.rest())

    def rest(self) -> bytes:
        """Return what has been kept, unedited."""
        return self._splitter.rest()

    def _event(self, event: bytes) -> bytes:
        if event == b"\n" and self._left_out:  # the second half of a CRLF
            return b""
        payload = (sse.data_of(event) or "").encode()
        self._left_out = bool(payload) and self._is_ours(payload)
        if not payload or self._left_out:
            return b"" if self._left_out else event
        edited = _edited(payload, self._rules)
        if edited == payload:
            return event
        return event.replace(payload, edited, 1) if payload in event else sse.with_data(event, edited)

    def _is_ours(self, payload: bytes) -> bool:
        """Whether the event would not have come without what was added."""
        try:
            found = json.loads(payload)
        except (ValueError, RecursionError):
            return False
        if not isinstance(found, dict) or not isinstance(found.get("choices"), list):
            return False
        if not found["choices"]:
            return self._came_for_ours(found.get("usage"), found.get(SGLEXT))
        return RETURN_TOKEN_IDS in self._added and all(map(_has_ids_only, found["choices"]))

    def _came_for_ours(self, usage: Any, extension: Any) -> bool:
        """Whether a chunk without choices came for its usage or ids alone, whatever a server has put beside them.

        Such a chunk has to go as a whole: agents that expect none read ``choices[0]``.
        """
        if isinstance(extension, dict) and (
            SGLEXT not in self._added or extension.keys() - _IDS_IN_SGLEXT.values()
        ):
            return False  # has what the agent has asked for
        if isinstance(usage, dict):
            return INCLUDE_USAGE in self._added
        return isinstance(extension, dict)


def _has_ids_only(choice: Any) -> bool:
    """Whether a chunk came for its token ids: where nobody asks for ids, vLLM sends no empty delta."""
    if not isinstance(choice, dict) or not choice.get("token_ids"):
        return False
    return choice.get("delta") == {} and choice.get("finish_reason") is None


# -- edits of JSON text

_DROP, _NULL = object(), object()


class _Each(dict[str, Any]):
    """Rules for every element of a list."""


class _Brought(dict[str, Any]):
    """Rules for the members of an object that goes, too, where those that are dropped were all that it had."""


_Rule = object | dict[str, Any]


def _rules(added: frozenset[str]) -> dict[str, _Rule]:
    choice: dict[str, _Rule] = {}
    rules: dict[str, _Rule] = {"choices": _Each(choice)}
    if RETURN_TOKEN_IDS in added:
        rules["prompt_token_ids"] = _DROP
        choice = {
            "token_ids": _DROP,
            "response_token_ids": _DROP,
            "prompt_token_ids": _DROP,
            "provider_specific_fields": {"token_ids": _DROP},
        }
    if LOGPROBS in added:
        choice["logprobs"] = _NULL  # what vLLM, SGLang and OpenAI write where nobody asks
    if INCLUDE_USAGE in added:
        rules["usage"] = _DROP
    if SGLEXT in added:
        rules[SGLEXT] = _Brought(dict.fromkeys(_IDS_IN_SGLEXT.values(), _DROP))
    rules["choices"] = _Each(choice)
    return rules


def _edited(body: bytes, rules: dict[str, _Rule]) -> bytes:
    try:
        text = body.decode()
        start = _skip(text, 0)
        if text[start : start + 1] != "{":
            return body
        edited, end = _object(text, start, rules)
        return (text[:start] + edited + text[end:]).encode()
    except (ValueError, IndexError, RecursionError):
        return body


def _value(text: str, start: int, rule: _Rule) -> tuple[str, int]:
    """Return a value under its rule, and where it ends in ``text``."""
    if isinstance(rule, _Each) and text[start] == "[":
        return _list(text, start, dict(rule))
    if isinstance(rule, dict) and not isinstance(rule, _Each) and text[start] == "{":
        return _object(text, start, rule)
    _, end = _decoder.raw_decode(text, start)
    return "null" if rule is _NULL else text[start:end], end


def _object(text: str, start: int, rules: Mapping[str, _Rule]) -> tuple[str, int]:
    position = _skip(text, start + 1)
    if text[position] == "}":
        return text[start : position + 1], position + 1
    lead, kept = text[start + 1 : position], ""
    space = lead
    while True:
        begin = position
        key, colon = _decoder.raw_decode(text, position)
        position = _skip(text, _skip(text, colon) + 1)
        rule = rules.get(key)
        value, end = _value(text, position, rule)
        is_emptied = isinstance(rule, _Brought) and value == "{}" != text[position:end]
        if rule is not _DROP and not is_emptied:
            # The first member that stays takes the white space of the first one that was there.
            kept += ("," + space if kept else lead) + text[begin:position] + value
        position = _skip(text, end)
        if text[position] == "}":
            return "{" + (kept + text[end:position] if kept else "") + "}", position + 1
        begin = position + 1
        position = _skip(text, begin)
        space = text[begin:position]


def _list(text: str, start: int, rules: dict[str, Any]) -> tuple[str, int]:
    kept: str = "["
    position = start + 1
    while True:
        begin = position
        position = _skip(text, position)
        if text[position] == "]":
            return kept + text[begin : position + 1], position + 1
        value, end = _value(text, position, rules)
        kept += text[begin:position] + value
        position = _skip(text, end)
        kept += text[end : position + 1]
        if text[position] == "]":
            return kept, position + 1
        position += 1


_decoder = json.JSONDecoder()


def _skip(text: str, position: int) -> int:
    while text[position : position + 1] in {" ", "\t", "\n", "\r"}:
        position += 1
    return position
