"""From the bytes of an OpenAI-compatible call to a :class:`ModelCall`.

A stream and a plain answer go through the same accumulator, so how an answer was cut into chunks cannot show
in the record. All places where engines and gateways put token ids are read (vLLM, SGLang, LiteLLM,
``token_id:N`` strings); where two of them speak, they must agree. What the server says is checked against
itself: lengths against usage, log-probabilities against ids, versions against tokens. What does not agree is
kept and marked ``invalid``; nothing is repaired. :func:`decode` is pure and never raises.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, pairwise
from types import MappingProxyType
from typing import Any

from ...codec import json_values
from .. import bounds, content_encoding, sse
from ..distribution import CONTENT, NEUTRAL
from ..model_call import (
    LEFT_BY_AGENT,
    TOKENS_SAY_ALL,
    VALID,
    Choice,
    FinishReason,
    Issue,
    ModelCall,
    PolicySpan,
    ToolCall,
    Usage,
    invalid,
    none,
)
from ..raw_call import RawCall
from . import answer_fields
from .answer_fields import LOGPROB_ROUNDING, LOGPROB_SENTINEL, TokenLogprob

_NUMBERS = frozenset({int, float})
_LISTS = (list, tuple)

MOST_EVENTS_NAMED = 100
"""Events of one stream that are named as unreadable."""

_FINISH_REASONS: Mapping[str, FinishReason] = MappingProxyType(
    {
        "stop": "stop",
        "eos": "stop",
        "eos_token": "stop",
        "completed": "stop",
        "stop_sequence": "stop",
        "end_turn": "stop",
        "length": "length",
        "max_tokens": "length",
        "tool_calls": "tool_calls",
        "tool_call": "tool_calls",
        "function_call": "tool_calls",
        "tool_use": "tool_calls",
        "content_filter": "content_filter",
        "abort": "abort",
        "aborted": "abort",
        "cancel": "abort",
        "canceled": "abort",
        "cancelled": "abort",
        "interrupted": "abort",
        "preempted": "abort",
        "error": "error",
        "failed": "error",
        "timeout": "error",
    }
)


def decode(raw: RawCall, *, is_whole: bool = True) -> ModelCall:
    """Return the call that ``raw`` holds; what cannot be read becomes an issue. Never raises.

    Args:
        raw: The exchange.
        is_whole: Whether every field is there that was sent. Where it was put together from a span of another
            instrumentation, a finish reason or ``n`` that is not there says nothing.
    """
    try:
        return _decode(raw, is_whole)
    except Exception as error:  # noqa: BLE001 - bytes of strangers; the call is marked, the writer goes on
        return ModelCall(
            operation=raw.start.operation,
            endpoint=raw.start.url,
            request_model=raw.start.model,
            stream=raw.start.stream,
            http_status=raw.status,
            error=raw.error,
            retries=raw.retries,
            token_capture=invalid("malformed"),
            issues=(Issue("fatal", "malformed", type(error).__name__),),
        )


def finish_reason(raw: str | None) -> FinishReason | None:
    """Return the normalised finish reason; ``None`` for none and for one that is not known."""
    return None if raw is None else _FINISH_REASONS.get(raw.lower())


def _decode(raw: RawCall, is_whole: bool) -> ModelCall:
    issues: list[Issue] = [Issue("warn", note) for note in raw.notes]
    request = json_object(raw.request_body)
    if request is None:
        issues.append(Issue("warn", "request_unreadable"))
        request = {}
    answer, failure = _read_response(raw, issues)
    requested = {
        name: request[name] for name in sorted(request.keys() - CONTENT) if request[name] is not None
    }
    defaults = raw.endpoint.sampling_defaults if raw.endpoint else None
    if answer.settings is not None:
        defaults = answer.settings
    choices = _choices(answer, raw, is_whole, issues)
    prompt_ids, prompt_failure = _prompt_ids(answer)
    wanted = _wanted(request) if is_whole or request.get("n") is not None else None
    partial = _is_partial(answer, raw, wanted)
    if answer.parts and wanted is not None and wanted != len(answer.parts):
        issues.append(Issue("warn", "choice_count", f"asked for {wanted}, got {len(answer.parts)}"))
    if request.get("echo"):  # the text begins with that of the prompt
        answer.shows_prompt = True
    cut = _cut_code(answer, raw) if partial else None
    verdict = failure or _verdict(answer, choices, prompt_ids, prompt_failure, cut, wanted, issues)
    if verdict.startswith("invalid"):
        issues.append(Issue("fatal", verdict.partition("(")[2].rstrip(")")))
    return ModelCall(
        operation=raw.start.operation,
        endpoint=raw.start.url,
        request_model=_text(request.get("model")) or raw.start.model,
        response_model=answer.model,
        response_id=answer.id,
        stream=raw.start.stream,
        request_messages=_messages(request, issues),
        prompt=request.get("prompt") if isinstance(request.get("prompt"), (str, list)) else None,
        tools=_tools(request),
        choices=choices,
        prompt_token_ids=prompt_ids,
        prompt_logprobs=_prompt_logprobs(answer, prompt_ids, issues),
        usage=answer.usage,
        sampling_requested=requested,
        sampling_effective=_in_force(requested, defaults, answer.settings),
        sampling_defaults=defaults,
        answer_versions=() if choices and all(each.policy for each in choices) else _named_versions(answer),
        logprob_kind=raw.endpoint.logprob_kind if raw.endpoint else "unknown",
        partial=partial,
        token_capture=verdict,
        issues=tuple(issues),
        http_status=raw.status,
        error=raw.error or answer.error,
        retries=raw.retries,
        first_chunk_seconds=(
            None
            if raw.first_chunk_ns is None
            else max(0, raw.first_chunk_ns - raw.started_ns) / 1_000_000_000
        ),
    )


# -- the request


def _messages(request: Mapping[str, Any], issues: list[Issue]) -> tuple[Mapping[str, Any], ...]:
    found = request.get("messages")
    if not isinstance(found, list):
        return ()
    for index, message in enumerate(found):
        if not isinstance(message, dict):
            issues.append(Issue("warn", "message_unreadable", f"request message {index}"))
    return tuple(message for message in found if isinstance(message, dict))


def _tools(request: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    tools = request.get("tools")
    if isinstance(tools, list):
        return tuple(tool for tool in tools if isinstance(tool, dict))
    functions = request.get("functions")  # the API's older form
    if isinstance(functions, list):
        return tuple({"type": "function", "function": each} for each in functions if isinstance(each, dict))
    return ()


def _wanted(request: Mapping[str, Any]) -> int | None:
    """Return how many choices the request asks for; ``None`` where that cannot be told."""
    each, prompts = request.get("n"), request.get("prompt")
    each = 1 if each is None else each
    if not isinstance(each, int):
        return None
    if isinstance(prompts, list) and prompts and not isinstance(prompts[0], int):
        return each * len(prompts)
    return each


def _in_force(
    requested: Mapping[str, Any], defaults: Mapping[str, Any] | None, said: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return the settings that were in force, so far as they are known."""
    neutral = {} if defaults is None else NEUTRAL
    stated = {name: value for name, value in (defaults or {}).items() if value is not None}
    return {**neutral, **stated, **requested, **(said or {})}


# -- the response


@dataclass
class _Parts:
    """What has come of one choice."""

    index: int
    role: str | None = None
    content: list[str] = field(default_factory=list)
    has_content: bool = False
    reasoning: list[str] = field(default_factory=list)
    refusal: list[str] = field(default_factory=list)
    tools: dict[int, list[dict[str, Any]]] = field(default_factory=dict)
    """Index → the calls under it: one, but for servers that give all the same."""
    finish: str | None = None
    ids: dict[str, list[Any]] = field(default_factory=dict)
    """Name of the field → the value of each chunk that had it."""
    prompt_ids: list[Any] = field(default_factory=list)
    strings: list[str] = field(default_factory=list)
    logprobs: list[Any] = field(default_factory=list)
    has_logprobs: bool = False
    are_checked: bool = True
    """Whether the parser has found all log-probabilities to be such."""
    has_text_alone: bool = False
    """Whether text came in a chunk without token ids."""
    goes_on: bool = False
    """Whether more came after the reason why it ended."""
    versions: Any = None
    """The versions of its tokens, as a list of spans."""
    named_versions: list[tuple[str | None, int]] = field(default_factory=list)
    """Of each chunk with ids: the version that the server named with it, and how many ids."""
    prompt_logprobs: Any = None
    routed_experts: Any = None
    sampling_mask: Any = None

    def add_ids(self, source: str, value: Any) -> None:
        if value is not None:
            self.ids.setdefault(source, []).append(value)


@dataclass
class _Answer:
    """What has come of the response."""

    id: str | None = None
    model: str | None = None
    usage: Usage | None = None
    parts: dict[int, _Parts] = field(default_factory=dict)
    prompt_ids: list[Any] = field(default_factory=list)
    prompt_logprobs: Any = None
    prompt_routed_experts: Any = None
    versions: Any = None
    """The versions of the tokens of its one choice, as a list of spans."""
    named_versions: list[str] = field(default_factory=list)
    """Each that the server named for the whole, in order."""
    is_stream: bool = False
    index_twice: bool = False
    """Whether two choices had one index."""
    shows_prompt: bool = False
    """Whether the text of a choice begins with the prompt."""
    settings: dict[str, Any] | None = None
    """The sampling settings that were in force, where the server says them."""
    error: str | None = None
    done: bool = False

    def at(self, index: int) -> _Parts:
        return self.parts.setdefault(index, _Parts(index))


def _read_response(raw: RawCall, issues: list[Issue]) -> tuple[_Answer, str | None]:
    """Return what the response says, and the verdict where it says nothing that could be trained on."""
    answer = _Answer()
    if raw.status is None:
        return answer, none(_without_head(raw.error))
    try:
        body = content_encoding.undo(raw.response_body, raw.content_encoding)
        bounds.check(body)
    except bounds.TooCostlyError as error:
        issues.append(Issue("warn", "too_costly", str(error)))
        return answer, invalid("too_costly")
    except content_encoding.UnreadableEncodingError as error:
        issues.append(Issue("warn", "encoding", str(error)))
        return answer, invalid("encoding")
    failure = _read_body(answer, body, raw, issues)
    if raw.status >= 400:
        return answer, none("http_error")
    if failure is not None:
        return answer, failure
    if "body_truncated" in raw.notes:
        return answer, invalid("body_truncated")
    if answer.error is not None and not answer.parts:
        return answer, none("error_answer")
    return answer, None


_BREAKS = (
    "ReadError", "WriteError", "RemoteProtocolError", "ConnectionResetError", "BrokenPipeError", "IncompleteRead",
    "RemoteDisconnected", "ProtocolError", "ChunkedEncodingError", "ServerDisconnectedError", "ClientPayloadError",
    "ClientOSError",
)  # fmt: skip
"""What HTTP libraries raise where a connection breaks that had been made."""


def _without_head(error: str | None) -> str:
    """Return why there is no answer.

    httpx reads a plain answer inside of its own method, so one that breaks half way shows nothing but its error.
    """
    kind, _, said = (error or "").partition(": ")
    # aiohttp's words, which come as a read error where httpx sends through it.
    if kind in _BREAKS and not said.startswith("Cannot connect to host"):
        return "connection_broken"
    return "timed_out" if "Timeout" in kind else "no_response"


def _read_body(answer: _Answer, body: bytes, raw: RawCall, issues: list[Issue]) -> str | None:
    """Read events, one JSON object, or one in each line; which of them it is, the bytes say, not their type."""
    if _is_event_stream(raw, body):
        _read_events(answer, sse.events(body), issues)
        return None
    found = _answer_object(body.removeprefix(sse.BOM))
    if found is not None:
        _read_object(answer, found)
        answer.done = raw.error is None
        return None
    lines = [line for line in body.splitlines() if line.strip()]
    if raw.start.stream and lines and json_object(lines[0].removeprefix(sse.BOM)) is not None:
        _read_events(answer, (sse.Event("", line.decode("utf-8", "replace")) for line in lines), issues)
        answer.done = answer.done or raw.complete
        return None
    return invalid("malformed" if raw.complete else _cut_code(answer, raw))


def _is_event_stream(raw: RawCall, body: bytes) -> bool:
    if body.removeprefix(sse.BOM).lstrip()[:1] == b"{":
        return False
    named = raw.content_type.partition(";")[0].strip().lower() == "text/event-stream"
    return named or sse.looks_like_events(body)


def _read_events(answer: _Answer, events: Iterable[sse.Event], issues: list[Issue]) -> None:
    answer.is_stream = True
    unreadable = 0
    for event in events:
        if event.data.strip() == sse.DONE:
            answer.done = True
            continue
        found = _answer_object(event.data) if event.data else None
        if found is not None:
            _read_object(answer, found)
        elif event.data and unreadable < MOST_EVENTS_NAMED:
            unreadable += 1
            issues.append(Issue("warn", "event_unreadable", f"{len(event.data)} characters"))
        if event.name == "error" and answer.error is None:
            answer.error = "error"
    if answer.error is not None:
        issues.append(Issue("warn", "stream_error", answer.error))


def _read_object(answer: _Answer, found: Mapping[str, Any]) -> None:
    """Add one JSON object: a whole answer or a chunk."""
    answer.id = _text(found.get("id")) or answer.id
    answer.model = _text(found.get("model")) or answer.model
    answer.usage = _usage(found.get("usage")) or answer.usage
    answer.error = error_of(found) or answer.error
    _append(answer.prompt_ids, found.get("prompt_token_ids"))
    named = None if _BESIDE_CHOICES.isdisjoint(found) else _read_beside_choices(answer, found)
    seen: set[int] = set()
    for position, choice in enumerate(_list(found.get("choices"))):
        if isinstance(choice, dict):
            index = _index(choice.get("index"), position)
            if index in seen:
                answer.index_twice = True
                index = index if answer.is_stream else max(answer.parts) + 1  # two answers are never one
            seen.add(index)
            _read_choice(answer.at(index), choice, named)
    _read_sglext(answer, found.get("sglext"))


# A stream has most of what follows in none of its chunks: one look at all of their names is cheaper than one at each.
_BESIDE_CHOICES = frozenset(
    {
        "prompt_logprobs", "prompt_routed_experts", "generation_settings", "__verbose", "metadata", "meta_info",
    }
)  # fmt: skip
_BESIDE_IDS = frozenset(
    {
        "prompt_token_ids", "provider_specific_fields", "meta_info", "weight_version", "weight_versions",
        "prompt_logprobs", "routed_experts", "sampling_mask",
    }
)  # fmt: skip
_BESIDE_CONTENT = frozenset(
    {
        "reasoning_content", "reasoning", "thinking", "thinking_blocks", "reasoning_details", "tool_calls",
        "function_call",
    }
)  # fmt: skip


def _read_beside_choices(answer: _Answer, found: Mapping[str, Any]) -> str | None:
    """Read what few servers say of a whole answer; return the version of the weights that it names."""
    answer.prompt_logprobs = _later(answer.prompt_logprobs, found.get("prompt_logprobs"))
    answer.prompt_routed_experts = _later(answer.prompt_routed_experts, found.get("prompt_routed_experts"))
    answer.settings = _settings(found) or answer.settings
    metadata = _dict(found.get("metadata"))
    named = _named_version(metadata) or _named_version(_dict(found.get("meta_info")))
    if named is not None and named not in answer.named_versions[-1:]:
        answer.named_versions.append(named)
    if isinstance(metadata.get("weight_versions"), list):
        answer.versions = metadata["weight_versions"]
    return named


def _named_version(found: Mapping[str, Any]) -> str | None:
    """Return the one version of the weights that an answer, a chunk or a choice names."""
    for value in (found.get("weight_version"), found.get("weight_versions")):
        if isinstance(value, (str, int)) and not isinstance(value, bool) and value != "":
            return str(value)
    return None


def error_of(found: Mapping[str, Any]) -> str | None:
    """Return the kind of error that a JSON object stands for, whatever its HTTP status, or ``None``.

    ``error`` is the OpenAI API's; ``"object": "error"`` was vLLM's until 0.10, ``"type": "error"`` is Anthropic's.
    """
    error = found.get("error")
    if not error:
        if "choices" in found or (found.get("object") != "error" and found.get("type") != "error"):
            return None
        error = {name: found.get(name) for name in ("code", "type")}
    kind = error.get("type") or error.get("code") if isinstance(error, dict) else None
    return str(kind or "error")


def _read_sglext(answer: _Answer, found: Any) -> None:
    """SGLang's extension: whole lists, so a later one replaces an earlier one."""
    if not isinstance(found, dict):
        return
    if found.get("input_ids") is not None:
        answer.prompt_ids[:] = [found["input_ids"]]
    for index, ids in enumerate(_list(found.get("output_ids"))):
        if isinstance(ids, list):
            answer.at(index).ids["sglext"] = [ids]
    experts = found.get("routed_experts")
    for index, each in enumerate(experts if isinstance(experts, list) else [experts]):
        if each is not None:
            answer.at(index).routed_experts = each


def _read_choice(parts: _Parts, choice: Mapping[str, Any], named_version: str | None) -> None:
    message = _dict(choice.get("delta") or choice.get("message"))
    brings_text, ids = _brings_text(choice, message), _count_ids(choice)
    if brings_text or ids:
        parts.goes_on = parts.goes_on or parts.finish is not None
        parts.has_text_alone = parts.has_text_alone or not ids
    text = choice.get("text")
    if isinstance(text, str):
        parts.content.append(text)
        parts.has_content = True
    if message:
        _read_message(parts, message)
    parts.finish = _finish_word(choice) or parts.finish
    for source in ("token_ids", "response_token_ids"):
        parts.add_ids(source, choice.get(source))
    if not _BESIDE_IDS.isdisjoint(choice):
        named_version = _read_beside_ids(parts, choice, named_version)
    if ids:
        parts.named_versions.append((named_version, ids))
    _read_logprobs(parts, choice.get("logprobs"))


def _read_beside_ids(parts: _Parts, choice: Mapping[str, Any], named_version: str | None) -> str | None:
    """Read what few servers say of a choice; return the version of the weights that it or its answer names."""
    _append(parts.prompt_ids, choice.get("prompt_token_ids"))
    provider = choice.get("provider_specific_fields")  # where LiteLLM puts what it does not know
    if isinstance(provider, dict):
        parts.add_ids("provider_specific_fields", provider.get("token_ids"))
    for own in (_dict(provider), _dict(choice.get("meta_info")), choice):
        named_version = _named_version(own) or named_version
        if isinstance(own.get("weight_versions"), list):
            parts.versions = own["weight_versions"]
    parts.prompt_logprobs = _later(parts.prompt_logprobs, choice.get("prompt_logprobs"))
    meta = _dict(choice.get("meta_info"))  # SGLang
    parts.routed_experts = _later(
        parts.routed_experts, choice.get("routed_experts", meta.get("routed_experts"))
    )
    mask = choice.get("sampling_mask", meta.get("sampling_mask"))
    if isinstance(mask, list) and isinstance(parts.sampling_mask, list):
        parts.sampling_mask = [*parts.sampling_mask, *mask]  # a stream brings those of each chunk
    else:
        parts.sampling_mask = _later(parts.sampling_mask, mask)
    return named_version


def _brings_text(choice: Mapping[str, Any], message: Mapping[str, Any]) -> bool:
    """Whether a choice or chunk, and the message in it, say something that was sampled."""
    if choice.get("text") or message.get("content") or message.get("refusal"):
        return True
    if _BESIDE_CONTENT.isdisjoint(message):
        return False
    if _reasoning(message, None):
        return True
    said: list[Any] = []
    calls = [_dict(tool) for tool in _list(message.get("tool_calls"))]
    calls.append({"function": message.get("function_call")})
    for function in (_dict(call.get("function") or call.get("custom")) for call in calls):
        said += [function.get("name"), function.get("arguments"), function.get("input")]
    return any(said)


def _count_ids(choice: Mapping[str, Any]) -> int:
    """Return for how many tokens a choice or chunk has ids, or entries that may name them."""
    most = max(_length(choice.get("token_ids")), _length(choice.get("response_token_ids")))
    if "provider_specific_fields" in choice:
        most = max(most, _length(_dict(choice["provider_specific_fields"]).get("token_ids")))
    if most:
        return most
    logprobs = _dict(choice.get("logprobs"))
    return _length(logprobs.get("content") or logprobs.get("tokens"))


def _finish_word(choice: Mapping[str, Any]) -> str | None:
    """Return the word for why a choice ended.

    SGLang's own form is an object: ``{"type": "length", "length": 8}``, ``{"type": "stop", "matched": 2}``,
    ``{"type": "abort", "message": …}``; without OpenAI's field it stands in ``meta_info``.
    """
    found = choice.get("finish_reason")
    word = _text(found.get("type") if isinstance(found, dict) else found)
    if word is None and "meta_info" in choice:
        found = _dict(choice["meta_info"]).get("finish_reason")
        word = _text(found.get("type") if isinstance(found, dict) else found)
    return word


def _read_message(parts: _Parts, message: Mapping[str, Any]) -> None:
    parts.role = _text(message.get("role")) or parts.role
    content, thinking = message.get("content"), None
    if isinstance(message.get("refusal"), str):
        parts.refusal.append(message["refusal"])
    if isinstance(content, list):  # some servers answer in content parts
        thinking = _thinking_in(content)
        content = "".join(
            part["text"]
            for part in content
            if isinstance(part, dict) and _text(part.get("text")) and not _is_thinking(part)
        )
    if isinstance(content, str):
        parts.content.append(content)
        parts.has_content = True
    if thinking is None and _BESIDE_CONTENT.isdisjoint(message):
        return
    reasoning = _reasoning(message, thinking)
    if reasoning is not None:
        parts.reasoning.append(reasoning)
    for position, tool in enumerate(_list(message.get("tool_calls"))):
        if isinstance(tool, dict):
            _read_tool_call(parts, _index(tool.get("index"), position), tool)
    if isinstance(message.get("function_call"), dict):  # the API's older form
        _read_tool_call(parts, 0, {"function": message["function_call"]})


def _reasoning(message: Mapping[str, Any], thinking: str | None) -> str | None:
    """Return what a message or delta says of the model's thinking, from the first field that says something.

    ``reasoning_content`` is vLLM's, SGLang's and DeepSeek's, ``reasoning`` newer vLLM's and OpenRouter's, ``thinking``
    Ollama's; content parts are Mistral's, ``thinking_blocks`` LiteLLM's, ``reasoning_details`` OpenRouter's. Gateways
    give the same text in several of them.
    """
    said = [message.get("reasoning_content"), message.get("reasoning"), message.get("thinking"), thinking]
    said += [_thinking_in(message.get("thinking_blocks")), _thinking_in(message.get("reasoning_details"))]
    texts = [text for text in said if isinstance(text, str)]
    return next(filter(None, texts), "" if texts else None)


def _thinking_in(found: Any) -> str | None:
    """Return the text of the parts of a list that hold thinking; ``None`` where none does."""
    texts: list[str] = []
    for part in _list(found):
        if not isinstance(part, dict) or not _is_thinking(part):
            continue
        values = [part.get(name) for name in ("thinking", "reasoning", "summary", "text")]
        inner = next((value for value in values if value is not None), None)
        nested = [each.get("text") if isinstance(each, dict) else each for each in _list(inner)]
        texts += [text for text in (*nested, inner) if isinstance(text, str)]
    return "".join(texts) if texts else None


def _is_thinking(part: Mapping[str, Any]) -> bool:
    return str(part.get("type")).startswith(("thinking", "reasoning"))


def _read_tool_call(parts: _Parts, index: int, tool: Mapping[str, Any]) -> None:
    function = _dict(tool.get("function") or tool.get("custom"))
    name, tool_id = _text(function.get("name")) or "", _text(tool.get("id"))
    calls = parts.tools.setdefault(index, [])
    known = next((call for call in calls if tool_id is not None and call["id"] == tool_id), None)
    if known is None and (not calls or _begins_another(calls[-1], tool_id, name)):
        calls.append({"id": None, "type": "function", "name": "", "arguments": []})
    known = known or calls[-1]
    known["id"] = tool_id or known["id"]
    known["type"] = _text(tool.get("type")) or known["type"]
    if function:
        known["name"] += name if name != known["name"] else ""
        arguments = function.get("arguments", function.get("input"))
        if isinstance(arguments, str):
            known["arguments"].append(arguments)
        elif arguments is not None:
            known["arguments"].append(json.dumps(arguments))


def _begins_another(known: Mapping[str, Any], tool_id: str | None, name: str) -> bool:
    """Whether a piece of a tool call is of another call than the last one of its index.

    Some servers send each parallel call whole, and all under index 0 or under none.
    """
    if tool_id is not None and known["id"] is not None:
        return True
    if not name or not known["name"]:
        return False
    # Some servers repeat the name with each piece of the arguments; arguments that are whole take no further piece.
    said = "".join(known["arguments"])
    return tool_id is not None or bool(said and (name != known["name"] or _is_json(said)))


def _is_json(text: str) -> bool:
    try:
        json_values.parse(text)
    except ValueError:
        return False
    return True


def _read_logprobs(parts: _Parts, found: Any) -> None:
    if not isinstance(found, dict):
        return
    content, flat = found.get("content"), found.get("token_logprobs")
    if isinstance(content, list):
        parts.has_logprobs = True
        if content and type(content[0]) is TokenLogprob:  # then all are
            parts.logprobs += [entry.logprob for entry in content]
            parts.strings += [entry.token for entry in content]
            return
        parts.are_checked = parts.are_checked and not content
        known = [entry if isinstance(entry, dict) else {} for entry in content]
        parts.logprobs += [entry.get("logprob") for entry in known]
        parts.strings += [name if isinstance(name := entry.get("token"), str) else "" for entry in known]
    elif isinstance(flat, list):
        parts.has_logprobs = True
        parts.are_checked = False
        parts.logprobs.extend(flat)
        tokens = _list(found.get("tokens"))
        parts.strings.extend(token if isinstance(token, str) else "" for token in tokens)


# -- the record


def _choices(answer: _Answer, raw: RawCall, is_whole: bool, issues: list[Issue]) -> tuple[Choice, ...]:
    cumulative = _are_cumulative(answer)
    # An engine that was stopped ends the stream or the body as it should, without saying why the answer ended.
    unfinished: FinishReason | None = "abort" if _was_left(raw) and answer.error is None else "error"
    if not is_whole and answer.done and answer.error is None:
        unfinished = None
    return tuple(
        _choice(parts, answer, cumulative, unfinished, issues) for _, parts in sorted(answer.parts.items())
    )


def _was_left(raw: RawCall) -> bool:
    """Whether the agent itself ended the exchange, and not the server or the network."""
    return raw.error is None or raw.error.startswith(("CancelledError", "GeneratorExit", "KeyboardInterrupt"))


def _choice(
    parts: _Parts, answer: _Answer, cumulative: bool, unfinished: FinishReason | None, issues: list[Issue]
) -> Choice:
    ids, ids_failure = _ids(parts, cumulative)
    logprobs, logprobs_failure = _logprobs(parts, ids)
    strings = tuple(parts.strings) if parts.strings else None
    versions, versions_failure = _policy(parts, answer, ids)
    failure = ids_failure or logprobs_failure or versions_failure
    if parts.finish is None and unfinished is not None:
        issues.append(Issue("warn", "finish_reason_absent"))
    if parts.finish is not None and finish_reason(parts.finish) is None:
        issues.append(Issue("info", "finish_reason_unknown", parts.finish))
    verdict = VALID if ids is not None else none("no_token_ids")
    text = "".join(parts.content)
    return Choice(
        index=parts.index,
        role=parts.role or "assistant",
        # A stream says "" where a plain answer of tool calls says null.
        content=text if text or (parts.has_content and not parts.tools) else None,
        reasoning="".join(parts.reasoning) if parts.reasoning else None,
        refusal="".join(parts.refusal) if parts.refusal else None,
        tool_calls=tuple(
            ToolCall(tool["id"], tool["name"], "".join(tool["arguments"]), tool["type"])
            for _, tools in sorted(parts.tools.items())
            for tool in tools
        ),
        finish_reason=finish_reason(parts.finish) if parts.finish is not None else unfinished,
        finish_reason_raw=parts.finish,
        token_ids=ids,
        logprobs=logprobs,
        token_strings=strings,
        policy=versions,
        token_capture=invalid(failure) if failure else verdict,
        routed_experts=_experts(answer.prompt_routed_experts, parts.routed_experts),
        sampling_mask=parts.sampling_mask,
    )


def _experts(prompt: Any, sampled: Any) -> Any:
    """Return what was said of the experts; vLLM 0.20 says it of the prompt and of each choice apart."""
    if prompt is None or sampled is None:
        return sampled
    return {"prompt_routed_experts": prompt, "routed_experts": sampled}


def _are_cumulative(answer: _Answer) -> bool:
    """Whether each chunk repeats the ids before it: only where that, and not their sum, agrees with usage."""
    expected = answer.usage.output_tokens if answer.usage else None
    chunks = [lists for parts in answer.parts.values() for lists in parts.ids.values()]
    if expected is None or not any(len(lists) > 1 for lists in chunks):
        return False
    if not all(isinstance(ids, _LISTS) for lists in chunks for ids in lists):
        return False
    chunks = [[*map(tuple, lists)] for lists in chunks]
    if any(len(parts.ids) > 1 for parts in answer.parts.values()):
        return False
    grows = all(later[: len(earlier)] == earlier for lists in chunks for earlier, later in pairwise(lists))
    summed = sum(len(ids) for lists in chunks for ids in lists)
    return grows and summed != expected and sum(len(lists[-1]) for lists in chunks) == expected


def _ids(parts: _Parts, cumulative: bool) -> tuple[tuple[int, ...] | None, str | None]:
    """Return the sampled ids and why they must not be trusted."""
    found: list[tuple[int, ...]] = []
    for chunks in parts.ids.values():
        ids = _id_list([chunks[-1]] if cumulative else chunks)
        if ids is None:
            return None, "token_id_type"
        found.append(ids)
    named = _ids_in_strings(parts.strings)
    if not found:
        return named, None
    if any(ids != found[0] for ids in found):
        return found[0], "sources_disagree"
    if named is not None and named != found[0]:
        return found[0], "logprob_length" if len(named) != len(found[0]) else "token_string_mismatch"
    return found[0], None


def _id_list(chunks: Sequence[Any]) -> tuple[int, ...] | None:
    if len(chunks) == 1 and type(chunks[0]) is tuple:  # the parser has checked them
        return chunks[0]
    if not all(isinstance(chunk, _LISTS) for chunk in chunks):
        return None
    ids = [*chain.from_iterable(chunks)]
    return tuple(ids) if _are_ids(ids) else None


def _are_ids(values: list[Any]) -> bool:
    # Counting a list of the types is a third faster than a set of them.
    return [*map(type, values)].count(int) == len(values) and min(values, default=0) >= 0


def _ids_in_strings(strings: Sequence[str]) -> tuple[int, ...] | None:
    """Return the ids of ``token_id:N`` strings; ``None`` unless all have that form."""
    ids = []
    for each in strings:
        digits = each.removeprefix("token_id:")
        if digits == each or not (digits.isascii() and digits.isdigit()):
            return None
        ids.append(int(digits))
    return tuple(ids) if ids else None


def _logprobs(parts: _Parts, ids: tuple[int, ...] | None) -> tuple[tuple[float, ...] | None, str | None]:
    """Return the log-probabilities and why they must not be trusted."""
    if not parts.has_logprobs or (not parts.logprobs and ids):
        return None, None
    if not parts.are_checked and not _NUMBERS.issuperset(map(type, parts.logprobs)):
        return None, "logprob_missing"
    values = tuple(map(float, parts.logprobs))
    if ids is not None and len(values) != len(ids):
        return values, "logprob_length"
    if parts.are_checked:
        return values, None
    if LOGPROB_SENTINEL in values:
        return values, "logprob_sentinel"
    if not all(map(math.isfinite, values)):
        return values, "logprob_not_finite"
    if max(values, default=0.0) > LOGPROB_ROUNDING:
        return values, "logprob_positive"
    return values, None


def _policy(
    parts: _Parts, answer: _Answer, ids: tuple[int, ...] | None
) -> tuple[tuple[PolicySpan, ...], str | None]:
    """Return the versions that sampled the tokens, and why they must not be trusted.

    One version for a whole answer says nothing of a single token: weights may have changed while it was sampled.
    """
    found = parts.versions
    if found is None and len(answer.parts) == 1:
        found = answer.versions
    if not found:
        return (_policy_of_chunks(parts, ids) if answer.is_stream else ()), None
    spans: list[PolicySpan] = []
    for each in found:
        span = each if isinstance(each, dict) else {}
        start, end = span.get("start"), span.get("end")
        if type(start) is not int or type(end) is not int or span.get("version") is None:
            return tuple(spans), "versions"
        spans.append(PolicySpan(str(span["version"]), start, end))
    if ids is not None and not _tile(spans, len(ids)):
        return tuple(spans), "versions"
    return tuple(spans), None


def _policy_of_chunks(parts: _Parts, ids: tuple[int, ...] | None) -> tuple[PolicySpan, ...]:
    """Return the versions of the tokens where every chunk of a stream names one with them, else nothing."""
    spans: list[PolicySpan] = []
    position = 0
    for version, count in parts.named_versions:
        if version is None:
            return ()
        start = spans.pop().start if spans and spans[-1].version == version else position
        position += count
        spans.append(PolicySpan(version, start, position))
    return tuple(spans) if position == len(ids or ()) else ()


def _named_versions(answer: _Answer) -> tuple[str, ...]:
    """Return the versions that the server named without saying of which tokens, in order, each once in a row."""
    found = list(answer.named_versions)
    for parts in answer.parts.values():
        found += [version for version, _ in parts.named_versions if version is not None]
    found += [
        str(each["version"])
        for each in _list(answer.versions)
        if isinstance(each, dict) and each.get("version") is not None
    ]
    return tuple(dict.fromkeys(found))


def _tile(spans: Sequence[PolicySpan], length: int) -> bool:
    position = 0
    for span in spans:
        if span.start != position or span.end < span.start or (span.end == span.start and length > 0):
            return False
        position = span.end
    return position == length


def _prompt_ids(answer: _Answer) -> tuple[tuple[int, ...] | None, str | None]:
    """Return the ids of the one prompt of all choices."""
    chunks = [*answer.prompt_ids, *(ids for parts in answer.parts.values() for ids in parts.prompt_ids)]
    if not chunks:
        return None, None
    lists = [_id_list([chunk]) for chunk in chunks]
    first = lists[0]
    if first is None or None in lists:
        return None, "token_id_type"
    if any(ids != first for ids in lists):
        return first, "prompt_ids_differ"
    return first, None


def _prompt_logprobs(
    answer: _Answer, ids: Sequence[int] | None, issues: list[Issue]
) -> tuple[float | None, ...] | None:
    """Return one log-probability for each prompt id.

    vLLM has for each position ``null`` or an object: token id -> ``{"logprob", ...}``, the prompt's own token among
    them.
    """
    found = answer.prompt_logprobs
    for parts in answer.parts.values():
        found = _later(found, parts.prompt_logprobs)
    if found is None or ids is None:
        return None
    if not isinstance(found, list) or len(found) != len(ids):
        issues.append(Issue("warn", "prompt_logprobs_unreadable"))
        return None
    values = [_logprob_of(entry, token) for entry, token in zip(found, ids, strict=True)]
    if any(value is None for value in values[1:]):
        issues.append(Issue("warn", "prompt_logprobs_unreadable"))
        return None
    return tuple(values)


def _logprob_of(entry: Any, token: int) -> float | None:
    own = entry.get(str(token)) if isinstance(entry, dict) else entry
    value = own.get("logprob") if isinstance(own, dict) else own
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def _is_partial(answer: _Answer, raw: RawCall, wanted: int | None) -> bool:
    """Whether the answer was cut off.

    An agent may close a stream at its last chunk, before ``[DONE]``: it is whole when each choice has
    finished.
    """
    if raw.status is None or raw.status >= 400:
        return False
    if answer.error is not None or "body_truncated" in raw.notes:
        return True
    if answer.done:
        return False
    if raw.error is not None:
        return True
    finished = sum(parts.finish is not None for parts in answer.parts.values())
    return not (finished == len(answer.parts) and wanted is not None and finished >= wanted)


def _cut_code(answer: _Answer, raw: RawCall) -> str:
    """Return the code of an answer that was cut off: by whom."""
    by_agent = _was_left(raw) and answer.error is None and not raw.complete
    return (
        "left_by_agent"
        if by_agent and not {"body_truncated", "recording_ended"} & {*raw.notes}
        else "partial"
    )


def _verdict(
    answer: _Answer,
    choices: Sequence[Choice],
    prompt_ids: tuple[int, ...] | None,
    prompt_failure: str | None,
    cut: str | None,
    wanted: int | None,
    issues: list[Issue],
) -> str:
    if not choices:
        return none("no_choices") if cut is None else invalid(cut)
    failed = next((each.token_capture for each in choices if each.token_capture.startswith("invalid")), None)
    if failed is not None:
        return failed
    if prompt_failure is not None:
        return invalid(prompt_failure)
    with_ids = [each for each in choices if each.token_ids is not None]
    if not with_ids and prompt_ids is None:
        return none("no_token_ids")
    if cut is not None:
        if invalid(cut) == LEFT_BY_AGENT and all(map(_say_all, choices)):
            issues.append(Issue("info", TOKENS_SAY_ALL))
        return invalid(cut)
    if not with_ids:
        return none("no_response_token_ids")
    if len(with_ids) != len(choices):
        return invalid("choice_without_ids")
    if prompt_ids is None:
        return none("no_prompt_token_ids")
    if answer.index_twice or any(parts.goes_on for parts in answer.parts.values()):
        return invalid("choice_index")
    if wanted is not None and wanted != len(choices):
        return invalid("choice_count")
    return _check_usage(answer, len(prompt_ids), choices, issues)


def _check_usage(answer: _Answer, prompt: int, choices: Sequence[Choice], issues: list[Issue]) -> str:
    """Return the verdict on numbers of ids; without usage, on what else tells whether ids are missing."""
    usage = answer.usage or Usage()
    if usage.input_tokens is None or usage.output_tokens is None:
        issues.append(Issue("info", "usage_absent"))
    if usage.input_tokens is not None and usage.input_tokens != prompt:
        return invalid("prompt_length")
    if usage.output_tokens is not None:
        sampled = sum(len(each.token_ids or ()) for each in choices)
        return VALID if usage.output_tokens == sampled else invalid("response_length")
    if answer.is_stream and not _is_counted(answer):
        lost = any(parts.has_text_alone and parts.named_versions for parts in answer.parts.values())
        return invalid("chunk_without_ids" if lost else "usage_absent")
    if any(not answer.shows_prompt and _says_more(each) for each in choices):
        return invalid("text_mismatch")
    return VALID


def _is_counted(answer: _Answer) -> bool:
    """Whether the numbers of a stream's ids are known without usage: they came in one list, or spans tile them."""
    tiled = len(answer.parts) == 1 and bool(answer.versions)
    return all("sglext" in parts.ids or parts.versions or tiled for parts in answer.parts.values())


def _say_all(choice: Choice) -> bool:
    """Whether the tokens of an answer, as the engine spelled them, say exactly the text that came of it."""
    if choice.reasoning is not None or choice.refusal is not None or choice.tool_calls:
        return False
    return choice.token_strings is not None and "".join(choice.token_strings) == choice.content


def _says_more(choice: Choice) -> bool:
    """Whether an answer says what none of its tokens says.

    Parsers and decoders take characters out of the text and change white space and what is not ASCII, but they add no
    letter or digit.
    """
    said = "".join(filter(None, (choice.content, choice.refusal)))
    if not choice.token_ids:
        return bool(said)
    if not choice.token_strings or any(each.startswith("token_id:") for each in choice.token_strings):
        return False
    sampled = iter("".join(choice.token_strings))
    return not all(letter in sampled for letter in said if letter.isascii() and letter.isalnum())


# -- JSON


def _answer_object(data: bytes | str) -> dict[str, Any] | None:
    """Return the JSON object that an answer or a chunk is, without fields that are not read; ``None`` = it is none."""
    found = answer_fields.parse(data)
    return json_object(data) if found is None else found


def json_object(data: bytes | str) -> dict[str, Any] | None:
    """Return the JSON object that ``data`` is, or ``None`` where it is none."""
    try:
        found = json_values.parse(data)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _usage(found: Any) -> Usage | None:
    if not isinstance(found, dict):
        return None
    return Usage(
        input_tokens=_count(found.get("prompt_tokens")),
        output_tokens=_count(found.get("completion_tokens")),
        cached_input_tokens=_count(_dict(found.get("prompt_tokens_details")).get("cached_tokens")),
        reasoning_tokens=_count(_dict(found.get("completion_tokens_details")).get("reasoning_tokens")),
    )


_NO_SETTINGS = frozenset(
    {
        "samplers", "n_keep", "n_discard", "grammar_lazy", "grammar_triggers", "preserved_tokens", "chat_format",
        "reasoning_in_content", "thinking_forced_open", "generation_prompt", "backend_sampling",
    }
)  # fmt: skip
"""What llama.cpp says beside the settings themselves."""


def _settings(found: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the settings in force, which llama.cpp says in full (``generation_settings``)."""
    said = found.get("generation_settings", _dict(found.get("__verbose")).get("generation_settings"))
    if not isinstance(said, dict) or not NEUTRAL.keys() - {"repetition_penalty"} <= said.keys():
        return None
    return {
        name: value
        for name, value in said.items()
        if name not in _NO_SETTINGS | CONTENT
        and not name.startswith("speculative.")
        and value not in (None, "", [])
        and value is not False
    }


def _later(known: Any, value: Any) -> Any:
    return known if value is None else value


def _append(chunks: list[Any], value: Any) -> None:
    if value is not None:
        chunks.append(value)


def _count(value: Any) -> int | None:
    return value if type(value) is int and value >= 0 else None


def _index(value: Any, default: int) -> int:
    return value if type(value) is int else default


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _length(value: Any) -> int:
    return len(value) if isinstance(value, _LISTS) else 0


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
