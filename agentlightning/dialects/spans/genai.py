"""Model calls ⇄ attributes of spans: OpenTelemetry's GenAI names, and ours where it has none.

``call_attributes`` and ``read_call`` undo each other, except for ``Choice.token_strings``, which are not
stored. ``read_call`` also reads the spans of other instrumentations (``foreign``). Messages are one
JSON text each way: flattened messages of a long chat would push other attributes over a provider's limit.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, cast
from urllib.parse import urlsplit

from ..._frozen import maker
from ...codec import json_values
from ...codec.token_ids import SharedBeginnings
from ...semconv import ModelCallAttributes as Ours
from ...types.attributes import AttributeValue
from ..model_call import (
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
from ..openai.json_parts import count_of
from ..raw_call import CallStart, Operation
from . import foreign, messages
from .attribute_values import dumped as _dump
from .stored_ids import looked_at, with_ids_alone

if TYPE_CHECKING:
    from ...types import SpanLike

OPERATION_NAME = "gen_ai.operation.name"
PROVIDER_NAME = "gen_ai.provider.name"
REQUEST_MODEL = "gen_ai.request.model"
RESPONSE_MODEL = "gen_ai.response.model"
RESPONSE_ID = "gen_ai.response.id"
FINISH_REASONS = "gen_ai.response.finish_reasons"
TIME_TO_FIRST_CHUNK = "gen_ai.response.time_to_first_chunk"
INPUT_TOKENS = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
CACHED_TOKENS = "gen_ai.usage.cache_read.input_tokens"
REASONING_TOKENS = "gen_ai.usage.reasoning.output_tokens"
INPUT_MESSAGES = "gen_ai.input.messages"
OUTPUT_MESSAGES = "gen_ai.output.messages"
TOOL_DEFINITIONS = "gen_ai.tool.definitions"
ERROR_TYPE = "error.type"
ERROR_MESSAGE = "error.message"
RESEND_COUNT = "http.request.resend_count"

# An enumeration looks its value up at every use, and reading has a dozen for each call.
_ANSWER_VERSIONS = Ours.ANSWER_VERSIONS.value
_CAPTURE_SOURCE = Ours.CAPTURE_SOURCE.value
_ENDPOINT = Ours.ENDPOINT.value
_HTTP_STATUS = Ours.HTTP_STATUS.value
_ISSUES = Ours.ISSUES.value
_LOGPROB_KIND = Ours.LOGPROB_KIND.value
_PARTIAL = Ours.PARTIAL.value
_POLICY_VERSION = Ours.POLICY_VERSION.value
_PROMPT_TOKEN_IDS = Ours.PROMPT_TOKEN_IDS.value
_PROMPT_LOGPROBS = Ours.PROMPT_LOGPROBS.value
_SAMPLING_DEFAULTS = Ours.SAMPLING_DEFAULTS.value
_SAMPLING_EFFECTIVE = Ours.SAMPLING_EFFECTIVE.value
_SAMPLING_REQUESTED = Ours.SAMPLING_REQUESTED.value
_STREAM = Ours.STREAM.value
_TOKEN_CAPTURE = Ours.TOKEN_CAPTURE.value

_SETTLED = (
    OPERATION_NAME, _ENDPOINT, REQUEST_MODEL, RESPONSE_MODEL, _STREAM, TOOL_DEFINITIONS, _SAMPLING_DEFAULTS,
    _ANSWER_VERSIONS, _LOGPROB_KIND, _PARTIAL, _ISSUES, _CAPTURE_SOURCE, _HTTP_STATUS, ERROR_TYPE, ERROR_MESSAGE,
    RESEND_COUNT, _PROMPT_LOGPROBS,
)  # fmt: skip
"""Attributes that mostly say the same on all calls of an attempt."""
_SAMPLING = {"sampling_requested": _SAMPLING_REQUESTED, "sampling_effective": _SAMPLING_EFFECTIVE}
"""Field of a :class:`ModelCall` → its attribute. An agent that seeds its calls has another one on each."""
_new_call, _new_choice, _new_usage = maker(ModelCall), maker(Choice), maker(Usage)
_UNCHANGING = frozenset({str, int, bool, type(None)})
"""Types of values of which equal ones of one type are the same."""

_VERDICT = re.compile(rf"{VALID}|(?:none|invalid)\(\w+\)")
_SAMPLING_NAMES: Mapping[str, str] = {
    "temperature": "gen_ai.request.temperature",
    "top_p": "gen_ai.request.top_p",
    "top_k": "gen_ai.request.top_k",
    "max_tokens": "gen_ai.request.max_tokens",
    "max_completion_tokens": "gen_ai.request.max_tokens",
    "seed": "gen_ai.request.seed",
    "frequency_penalty": "gen_ai.request.frequency_penalty",
    "presence_penalty": "gen_ai.request.presence_penalty",
    "stop": "gen_ai.request.stop_sequences",
    "n": "gen_ai.request.choice.count",
}


class _Names(NamedTuple):
    """The names of the attributes of one choice."""

    token_ids: str
    logprobs: str
    finish_reason: str
    finish_reason_raw: str
    broken_off: str
    token_capture: str
    routed_experts: str
    sampling_mask: str


_COUNTS = (INPUT_TOKENS, OUTPUT_TOKENS, CACHED_TOKENS, REASONING_TOKENS)


def _names_of(index: Any) -> _Names:
    return _Names(
        Ours.RESPONSE_TOKEN_IDS.at(index),
        Ours.LOGPROBS.at(index),
        Ours.FINISH_REASON.at(index),
        Ours.FINISH_REASON_RAW.at(index),
        Ours.BROKEN_OFF.at(index),
        Ours.CHOICE_TOKEN_CAPTURE.at(index),
        Ours.ROUTED_EXPERTS.at(index),
        Ours.SAMPLING_MASK.at(index),
    )


_names_at = lru_cache(maxsize=64)(_names_of)


def span_name(start: CallStart) -> str:
    """Return the name that the GenAI conventions give: ``chat <model>``."""
    return f"{start.operation} {start.model}" if start.model else start.operation


def call_attributes(call: ModelCall) -> dict[str, AttributeValue]:
    """Return the attributes of the span of ``call``; what is unknown has no attribute."""
    found: dict[str, Any] = {
        OPERATION_NAME: call.operation,
        PROVIDER_NAME: "openai",  # the conventions' name for everything that speaks the OpenAI API
        REQUEST_MODEL: call.request_model,
        RESPONSE_MODEL: call.response_model,
        RESPONSE_ID: call.response_id,
        _STREAM: call.stream,
        _ENDPOINT: call.endpoint or None,
        _HTTP_STATUS: call.http_status,
        TIME_TO_FIRST_CHUNK: call.first_chunk_seconds,
        RESEND_COUNT: call.retries or None,
        **_server(call.endpoint),
        **_sampling(call.sampling_requested),
        **_usage(call.usage),
        **_content(call),
        **_error(call),
        _SAMPLING_REQUESTED: _dump(call.sampling_requested),
        _SAMPLING_EFFECTIVE: _dump(call.sampling_effective),
        _SAMPLING_DEFAULTS: (None if call.sampling_defaults is None else _dump(call.sampling_defaults)),
        _ANSWER_VERSIONS: list(call.answer_versions) or None,
        _LOGPROB_KIND: call.logprob_kind,
        _PARTIAL: call.partial,
        _CAPTURE_SOURCE: call.capture_source,
        _ISSUES: _dump([_issue(each) for each in call.issues]) if call.issues else None,
        _PROMPT_TOKEN_IDS: None if call.prompt_token_ids is None else list(call.prompt_token_ids),
        _PROMPT_LOGPROBS: (None if call.prompt_logprobs is None else _dump(call.prompt_logprobs)),
        _TOKEN_CAPTURE: call.token_capture,
    }
    for choice in call.choices:
        found.update(_choice(choice, call.token_capture))
    if any(choice.policy for choice in call.choices):
        found[_POLICY_VERSION] = _dump([[_policy(s) for s in choice.policy] for choice in call.choices])
    return {name: value for name, value in found.items() if value is not None}


def read_call(span: SpanLike) -> ModelCall | None:
    """Return the model call that ``span`` records, or ``None`` where it records none; see :class:`CallReader`."""
    return CallReader().read(span)


class CallReader:
    """Reads the calls of an attempt, and what they repeat of each other once.

    A request mostly repeats the messages of the one before it, so only what it adds is parsed; and it mostly has the
    same tools and settings. What two calls have in common are the same objects: a :class:`ModelCall` is a value that
    nobody changes. Token ids are ``TokenIds``, and prompts that continue each other share their bytes.
    """

    def __init__(self) -> None:
        self._prompts = SharedBeginnings()
        self._beginning = ""
        """Text of the messages that were read last, without the bracket at its end; empty = they are not known."""
        self._asked: tuple[Any, ...] = ()
        """Those messages."""
        self._said: tuple[Any, ...] = ()
        """Values of the attributes ``_SETTLED`` that were read last; empty = they are not known."""
        self._kinds: list[type] = []
        """Their types: ``True == 1``, and a span may have either."""
        self._settled: dict[str, Any] = {}
        """The fields of a :class:`ModelCall` that they make."""
        self._samplings: dict[str, tuple[str, Any]] = {}
        """Field of ``_SAMPLING`` → its text that was read last, and what that says."""

    def read(self, span: SpanLike) -> ModelCall | None:
        """Return the model call that ``span`` records, or ``None`` where it records none.

        Reads our own attributes, those of Agent Lightning 0.3, AgentOps, Traceloop and OpenInference, and plain
        GenAI spans. What cannot be read is left out with an issue. Never raises.
        """
        attributes = span.attributes or {}
        found = self._own(attributes) if _TOKEN_CAPTURE in attributes else foreign.read(span)
        return None if found is None else with_ids_alone(found, self._prompts)

    def _own(self, attributes: Mapping[str, Any]) -> ModelCall:
        issues: list[Issue] = []
        try:
            return self._read(attributes, issues)
        except Exception as error:  # noqa: BLE001 - attributes may come from anywhere
            detail = type(error).__name__
            return ModelCall(
                token_capture=none("no_token_ids"), issues=(Issue("warn", "attribute_unreadable", detail),)
            )

    def _read(self, attributes: Mapping[str, Any], issues: list[Issue]) -> ModelCall:
        unreadable: list[Issue] = []
        settled = self._settled_fields(attributes, unreadable)
        sampling = {
            name: self._sampled(name, attributes.get(key), unreadable) for name, key in _SAMPLING.items()
        }
        operation: Operation = settled["operation"]
        asked = self._messages(attributes.get(INPUT_MESSAGES), issues)
        verdict = _verdict(attributes[_TOKEN_CAPTURE], issues)
        choices = tuple(_read_choices(attributes, verdict, issues))
        prompt_ids = looked_at(attributes.get(_PROMPT_TOKEN_IDS), self._prompts)
        # A stage may have taken ids out of a span after its verdict was written.
        if verdict == VALID and (prompt_ids is None or [True for each in choices if each.token_ids is None]):
            verdict = none("no_token_ids")
        response_id = _word(attributes.get(RESPONSE_ID), issues)
        chat = _chat(asked, issues) if operation == "chat" else ()
        issues += unreadable
        if issues:
            settled = {**settled, "issues": (*settled["issues"], *issues)}
        return _new_call(
            response_id=response_id,
            request_messages=chat,
            prompt=_prompt(asked) if operation == "text_completion" else None,
            choices=choices,
            prompt_token_ids=prompt_ids,
            usage=_read_usage(attributes),
            token_capture=verdict,
            first_chunk_seconds=_seconds(attributes.get(TIME_TO_FIRST_CHUNK)),
            **sampling,
            **settled,
        )

    def _settled_fields(self, attributes: Mapping[str, Any], issues: list[Issue]) -> dict[str, Any]:
        """Return what the attributes ``_SETTLED`` say, as fields of a :class:`ModelCall`, which nobody changes."""
        said = tuple(map(attributes.get, _SETTLED))
        kinds = [*map(type, said)]
        if said == self._said and kinds == self._kinds:
            return self._settled
        found = _read_settled(attributes, issues)
        # Lists may be changed, and what could not be read is an issue of each call anew.
        if not issues and _UNCHANGING.issuperset(kinds):
            self._said, self._kinds, self._settled = said, kinds, found
        return found

    def _sampled(self, name: str, value: Any, issues: list[Issue]) -> Any:
        """Return one of the fields ``_SAMPLING``, which nobody changes."""
        said, found = self._samplings.get(name, ("", {}))
        if isinstance(value, str) and value == said:
            return found
        before = len(issues)
        found = _load(value, issues, {})
        if isinstance(value, str) and len(issues) == before:
            self._samplings[name] = value, found
        return found

    def _messages(self, value: Any, issues: list[Issue]) -> tuple[Any, ...]:
        found = self._continued(value) if isinstance(value, str) else None
        if found is None:
            found = tuple(map(messages.from_genai, _messages(value, issues)))
        is_whole = isinstance(value, str) and value.endswith("]") and found and not issues
        self._beginning, self._asked = (value[:-1], found) if is_whole else ("", ())
        return found

    def _continued(self, text: str) -> tuple[Any, ...] | None:
        """Return the messages of a text that goes on behind the last message known; ``None`` where it does not."""
        if not self._beginning or not text.startswith(self._beginning):
            return None
        rest = text[len(self._beginning) :]
        if rest == "]":
            return self._asked
        if not rest.startswith(","):  # inside of a message
            return None
        issues: list[Issue] = []
        added = [*map(messages.from_genai, _messages(f"[{rest[1:]}", issues))]
        return None if issues else (*self._asked, *added)


# -- writing


@lru_cache(maxsize=64)
def _server(endpoint: str) -> Mapping[str, Any]:
    try:
        parts = urlsplit(endpoint)
        address, port = parts.hostname, parts.port
    except ValueError:
        return {}
    return {"server.address": address, "server.port": port}


def _sampling(requested: Mapping[str, Any]) -> dict[str, Any]:
    found = {}
    for name, attribute in _SAMPLING_NAMES.items():
        value = requested.get(name)
        if name == "stop" and isinstance(value, str):
            value = [value]
        if name == "n" and value == 1:  # the conventions: only where it is not 1
            continue
        if value is not None:
            found[attribute] = value
    return found


def _usage(usage: Usage | None) -> dict[str, Any]:
    if usage is None:
        return {}
    return {
        INPUT_TOKENS: usage.input_tokens,
        OUTPUT_TOKENS: usage.output_tokens,
        CACHED_TOKENS: usage.cached_input_tokens,
        REASONING_TOKENS: usage.reasoning_tokens,
    }


def _content(call: ModelCall) -> dict[str, Any]:
    asked = [messages.to_genai(each) for each in call.request_messages]
    if call.operation == "text_completion" and call.prompt is not None:
        text = isinstance(call.prompt, str)
        parts = [{"type": "text", "content": call.prompt}] if text else []
        asked = [{"role": "user", "parts": parts, **({} if text else {messages.ORIGINAL: call.prompt})}]
    answered = []
    reasons = [choice.finish_reason_raw or choice.finish_reason for choice in call.choices]
    for position, choice in enumerate(call.choices):
        message = messages.to_genai(choice.message())
        message["finish_reason"] = reasons[position] or ""
        if choice.index != position:
            message["index"] = choice.index
        answered.append(message)
    return {
        INPUT_MESSAGES: _dump(asked) if asked else None,
        OUTPUT_MESSAGES: _dump(answered) if answered else None,
        TOOL_DEFINITIONS: _dump(list(call.tools)) if call.tools else None,
        FINISH_REASONS: reasons if reasons and all(reasons) else None,  # a gap would shift those behind it
    }


def _error(call: ModelCall) -> dict[str, Any]:
    if call.error is not None:
        kind, _, text = call.error.partition(": ")
        return {ERROR_TYPE: kind, ERROR_MESSAGE: text or None}
    if call.http_status is not None and call.http_status >= 400:
        return {ERROR_TYPE: str(call.http_status)}
    return {}


def _choice(choice: Choice, verdict: str) -> dict[str, Any]:
    at = _names_at(choice.index)
    return {
        at.token_ids: None if choice.token_ids is None else list(choice.token_ids),
        at.logprobs: None if choice.logprobs is None else list(choice.logprobs),
        at.finish_reason: choice.finish_reason,
        at.finish_reason_raw: choice.finish_reason_raw,
        at.broken_off: choice.broken_off or None,
        at.token_capture: choice.token_capture if choice.token_capture != verdict else None,
        at.routed_experts: None if choice.routed_experts is None else _dump(choice.routed_experts),
        at.sampling_mask: None if choice.sampling_mask is None else _dump(choice.sampling_mask),
    }


def _policy(span: PolicySpan) -> dict[str, Any]:
    return {"version": span.version, "start": span.start, "end": span.end}


def _issue(issue: Issue) -> dict[str, str]:
    return {"level": issue.level, "code": issue.code, "detail": issue.detail}


# -- reading


def _read_settled(attributes: Mapping[str, Any], issues: list[Issue]) -> dict[str, Any]:
    error, error_text = attributes.get(ERROR_TYPE), attributes.get(ERROR_MESSAGE)
    status = attributes.get(_HTTP_STATUS)
    if error is not None and error == str(status):  # the conventions' word for an answer with an error status
        error = None
    tools = _load(attributes.get(TOOL_DEFINITIONS), issues, [])
    is_text = attributes.get(OPERATION_NAME) == "text_completion"
    return {
        "operation": "text_completion" if is_text else "chat",
        "endpoint": str(attributes.get(_ENDPOINT) or ""),
        "request_model": _word(attributes.get(REQUEST_MODEL), issues),
        "response_model": _word(attributes.get(RESPONSE_MODEL), issues),
        "stream": bool(attributes.get(_STREAM)),
        "tools": tuple(each for each in tools if isinstance(each, dict)),
        "prompt_logprobs": _prompt_logprobs(attributes, issues),
        "sampling_defaults": _defaults(attributes.get(_SAMPLING_DEFAULTS), issues),
        "answer_versions": tuple(map(str, attributes.get(_ANSWER_VERSIONS) or ())),
        "logprob_kind": _logprob_kind(attributes.get(_LOGPROB_KIND)),
        "partial": bool(attributes.get(_PARTIAL)),
        "issues": tuple(_read_issues(attributes, issues)),
        "capture_source": str(attributes.get(_CAPTURE_SOURCE) or "transport"),
        "http_status": count_of(status),
        "error": None if error is None else f"{error}: {error_text}" if error_text else str(error),
        "retries": count_of(attributes.get(RESEND_COUNT)) or 0,
    }


def _verdict(value: Any, issues: list[Issue]) -> str:
    if isinstance(value, str) and (value == VALID or _VERDICT.fullmatch(value)):
        return value
    issues.append(Issue("warn", "attribute_unreadable", _TOKEN_CAPTURE))
    return invalid("malformed")


def _word(value: Any, issues: list[Issue]) -> str | None:
    if value is None or isinstance(value, str):
        return value
    issues.append(Issue("warn", "attribute_unreadable", f"{type(value).__name__} for a text"))
    return None


def _messages(value: Any, issues: list[Issue]) -> list[dict[str, Any]]:
    found = _load(value, issues, [])
    strange = [index for index, message in enumerate(found) if not isinstance(message, dict)]
    if not strange:  # as almost always
        return cast("list[dict[str, Any]]", found)
    issues += [Issue("warn", "message_unreadable", f"message {index}") for index in strange]
    return [message for message in found if isinstance(message, dict)]


def _chat(asked: tuple[Any, ...], issues: list[Issue]) -> tuple[dict[str, Any], ...]:
    """Return what of a chat is a message: a span may keep anything as the original of one."""
    if {*map(type, asked)} <= {dict}:
        return asked
    strange = [index for index, message in enumerate(asked) if not isinstance(message, dict)]
    issues += [Issue("warn", "message_unreadable", f"message {index}") for index in strange]
    return tuple(message for message in asked if isinstance(message, dict))


def _prompt(asked: tuple[Any, ...]) -> Any:
    if not asked:
        return None
    return asked[0]["content"] if isinstance(asked[0], dict) else asked[0]


def _read_choices(attributes: Mapping[str, Any], verdict: str, issues: list[Issue]) -> Iterable[Choice]:
    versions = _load(attributes.get(_POLICY_VERSION), issues, [])
    for position, written in enumerate(_messages(attributes.get(OUTPUT_MESSAGES), issues)):
        message = messages.from_genai(written)
        index = written.get("index", position)
        at = _names_at(index) if type(index) is int else _names_of(index)
        logprobs = attributes.get(at.logprobs)
        own = attributes.get(at.token_capture)
        experts, mask = attributes.get(at.routed_experts), attributes.get(at.sampling_mask)
        tool_calls = message.get("tool_calls")
        finish = cast("FinishReason | None", _word(attributes.get(at.finish_reason), issues))
        finish_raw = _word(attributes.get(at.finish_reason_raw), issues)
        broken_off = attributes.get(at.broken_off) is True
        if finish_raw is None and finish in {"abort", "error"}:  # so 0.2.0 says that nobody said why
            finish, broken_off = None, True
        yield _new_choice(
            index=index,
            role=message.get("role") or "assistant",
            content=message.get("content"),
            reasoning=message.get("reasoning_content"),
            refusal=message.get("refusal"),
            tool_calls=tuple(map(_tool_call, tool_calls)) if tool_calls else (),
            finish_reason=finish,
            finish_reason_raw=finish_raw,
            broken_off=broken_off,
            token_ids=looked_at(attributes.get(at.token_ids)),
            logprobs=None if logprobs is None else _floats(logprobs),
            policy=tuple(map(_policy_span, versions[position])) if position < len(versions) else (),
            token_capture=_verdict(own, issues) if own else verdict,
            routed_experts=None if experts is None else _json(experts, issues),
            sampling_mask=None if mask is None else _json(mask, issues),
        )


def _floats(values: Any) -> tuple[float, ...]:
    if isinstance(values, str):  # digits are numbers, too, letter by letter
        raise TypeError("text in the place of log-probabilities")
    return tuple(map(float, values))


def _policy_span(found: Mapping[str, Any]) -> PolicySpan:
    return PolicySpan(str(found["version"]), found["start"], found["end"])


def _tool_call(found: Mapping[str, Any]) -> ToolCall:
    function = found["function"]
    return ToolCall(found["id"], function["name"] or "", function["arguments"] or "", found["type"])


def _read_usage(attributes: Mapping[str, Any]) -> Usage | None:
    # A provider's client, a stage or an exporter may have put anything into a span; a count is a number or unknown.
    counts = [count_of(attributes.get(name)) for name in _COUNTS]
    return None if counts == [None] * 4 else _new_usage(*counts)


def _seconds(value: Any) -> float | None:
    return value if type(value) in (int, float) else None


def _read_issues(attributes: Mapping[str, Any], issues: list[Issue]) -> Iterable[Issue]:
    for each in _load(attributes.get(_ISSUES), issues, []):
        yield Issue(each["level"], each["code"], each.get("detail", ""))


def _defaults(value: Any, issues: list[Issue]) -> Mapping[str, Any] | None:
    found = _json(value, issues)
    return found if isinstance(found, dict) else None


def _prompt_logprobs(attributes: Mapping[str, Any], issues: list[Issue]) -> tuple[float | None, ...] | None:
    found = _json(attributes.get(_PROMPT_LOGPROBS), issues)
    if not isinstance(found, list):
        return None
    return tuple(None if value is None else float(value) for value in found)


def _json(value: Any, issues: list[Issue]) -> Any:
    """Return the value of an attribute that is JSON text of any kind; ``None`` where it has none."""
    if not isinstance(value, str):
        return None
    try:
        return json_values.parse(value)
    except ValueError:
        issues.append(Issue("warn", "attribute_unreadable"))
        return None


def _logprob_kind(value: Any) -> Any:
    return value if value in {"processed", "raw"} else "unknown"


def _load(value: Any, issues: list[Issue], default: Any) -> Any:
    """Return the JSON value of an attribute: text of ours, or structured as newer exporters write it."""
    if value is None:
        return default
    try:
        found = json_values.parse(value) if isinstance(value, str) else value
    except ValueError:
        found = None
    if not isinstance(found, type(default)):
        issues.append(Issue("warn", "attribute_unreadable"))
        return default
    return found
