"""One model call, decoded: what was asked, what was sampled, and how far the record can be trusted.

A :class:`ModelCall` is a value: ``openai_wire.decode`` makes it from bytes, ``genai.read_call`` from a span,
and nobody changes it. Token ids and log-probabilities are the engine's own, never recomputed from text. Two
verdicts stand apart: ``token_capture`` says whether the ids are the very ids that were sampled, and
:func:`comparable` says whether the log-probabilities can be compared with those of a trainer that recomputes
them over the whole vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, Optional, Union

from .raw_call import LogprobKind, Operation

FinishReason = Literal["stop", "length", "tool_calls", "abort", "error", "content_filter"]
IssueLevel = Literal["info", "warn", "fatal"]

VALID = "valid"
"""``token_capture`` of a call whose ids agree with everything that is known of it."""

_NO_TOKEN_IDS = "none(no_token_ids)"  # noqa: S105 - a verdict

CODES: Mapping[str, str] = MappingProxyType(
    {
        # token_capture = none(<code>): there is nothing to train on
        "no_response": "no response came",
        "http_error": "the server answered with an error status",
        "error_answer": "the server answered with an error, though its status says success",
        "no_choices": "the response holds no choice",
        "no_token_ids": "the server returned no token ids",
        "no_response_token_ids": "the server returned ids of the prompt only",
        "no_prompt_token_ids": "the server returned no ids of the prompt",
        "foreign_span": "the span was made by another instrumentation and holds no token ids",
        # token_capture = invalid(<code>): what came does not agree
        "partial": "the answer was cut off before its end",
        "body_truncated": "the response was larger than what is kept of it",
        "encoding": "the response is compressed in a way that cannot be read here",
        "too_costly": "reading the response would take more memory or time than it may",
        "malformed": "the response is not what the API promises",
        "prompt_length": "the number of prompt ids differs from usage.prompt_tokens",
        "response_length": "the number of sampled ids differs from usage.completion_tokens",
        "logprob_length": "the number of log-probabilities differs from the number of sampled ids",
        "logprob_missing": "a sampled token has no log-probability",
        "logprob_not_finite": "a log-probability is not finite",
        "logprob_positive": "a log-probability is above 0",
        "logprob_sentinel": "a log-probability is the engine's placeholder -9999",
        "token_id_type": "a token id is not a whole number of 0 or more",
        "token_string_mismatch": "the token_id:N strings differ from the ids",
        "prompt_ids_differ": "the choices have different prompts",
        "choice_without_ids": "some choices have token ids and some have none",
        "choice_count": "the response has another number of choices than was asked for",
        "versions": "the policy versions do not tile the sampled tokens",
        "sources_disagree": "two fields of the response name different ids",
        "other_call": "the span that adopted this call names another response",
        # comparable()
        "no_logprobs": "the response holds no log-probabilities",
        "temperature": "log-probabilities that may be raw are comparable only at temperature 1",
        "temperature_zero": "greedy decoding has no sampling distribution",
        "truncated_sampling": "top_p, top_k, min_p or typical_p cut the distribution",
        "penalised_sampling": "a penalty or bias changed the distribution",
        "constrained_sampling": "a grammar, schema or forced tool constrained the distribution",
        "beam_search": "the answer was selected from several candidates",
        "sampling_unreadable": "a sampling setting is not a number",
        # issues beside a verdict
        "sampling_assumed": "settings that nobody named are taken from the API's documented defaults",
        "usage_absent": "the response has no usage, so lengths could not be checked against it",
        "stream_error": "the stream carried an error",
        "event_unreadable": "an event of the stream is not JSON",
        "request_unreadable": "the request is not a JSON object",
        "message_unreadable": "a message could not be read and is left out",
        "attribute_unreadable": "an attribute could not be read and is left out",
        "role_inferred": "a message named no role",
        "finish_reason_unknown": "the finish reason is not one of the known ones",
        "asking_refused": "the endpoint refused what was added for capture, so that the agent's own request was sent",
        "added_fields_visible": "fields that were added for capture could not be taken out again",
    }
)
"""Every code that ``token_capture``, ``comparable`` and ``issues`` use → the sentence that explains it."""


@dataclass(frozen=True, slots=True)
class Issue:
    """One finding about a call."""

    level: IssueLevel
    code: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool that the model asked for."""

    id: Optional[str]
    name: str
    arguments: str
    """As the model wrote it: usually JSON, not guaranteed."""
    type: str = "function"

    def as_json(self) -> dict[str, Any]:
        """Return the call in the shape of the OpenAI API."""
        return {
            "id": self.id,
            "type": self.type,
            "function": {"name": self.name, "arguments": self.arguments},
        }


@dataclass(frozen=True, slots=True)
class PolicySpan:
    """Sampled tokens ``[start, end)`` came from this version of the weights."""

    version: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts as the server gave them."""

    input_tokens: Optional[int] = None
    output_tokens: Optional[int] = None
    """Over all choices."""
    cached_input_tokens: Optional[int] = None
    reasoning_tokens: Optional[int] = None


@dataclass(frozen=True, slots=True)
class Choice:
    """One answer of a call."""

    index: int = 0
    role: str = "assistant"
    content: Optional[str] = None
    """Text of the answer; ``None`` where there is none (a pure tool call)."""
    reasoning: Optional[str] = None
    refusal: Optional[str] = None
    tool_calls: tuple[ToolCall, ...] = ()
    finish_reason: Optional[FinishReason] = None
    finish_reason_raw: Optional[str] = None
    token_ids: Optional[tuple[int, ...]] = None
    """What the engine sampled, also where ``token_capture`` is invalid; ``None`` where there are none."""
    logprobs: Optional[tuple[float, ...]] = None
    """One for each sampled id."""
    token_strings: Optional[tuple[str, ...]] = None
    policy: tuple[PolicySpan, ...] = ()
    token_capture: str = _NO_TOKEN_IDS
    """The verdict on this choice alone."""

    def message(self) -> dict[str, Any]:
        """Return the answer as an OpenAI chat message."""
        message: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.reasoning is not None:
            message["reasoning_content"] = self.reasoning
        if self.refusal is not None:
            message["refusal"] = self.refusal
        if self.tool_calls:
            message["tool_calls"] = [
                {
                    "id": call.id,
                    "type": call.type,
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for call in self.tool_calls
            ]
        return message


@dataclass(frozen=True, slots=True)
class ModelCall:
    """One call of a model, whatever became of it."""

    operation: Operation = "chat"
    endpoint: str = ""
    """Scheme, host, port and path; no query, no credentials."""
    request_model: Optional[str] = None
    response_model: Optional[str] = None
    response_id: Optional[str] = None
    stream: bool = False
    request_messages: tuple[Mapping[str, Any], ...] = ()
    """``chat``: the messages of the request in the shape of the OpenAI API."""
    prompt: Union[str, list[Any], None] = None
    """``text_completion``: the prompt as sent: text, ids, or a list of either."""
    tools: tuple[Mapping[str, Any], ...] = ()
    """Tool definitions of the request in the shape of the OpenAI API."""
    choices: tuple[Choice, ...] = ()
    """By index."""
    prompt_token_ids: Optional[tuple[int, ...]] = None
    usage: Optional[Usage] = None
    sampling_requested: Mapping[str, Any] = field(default_factory=dict)
    sampling_effective: Mapping[str, Any] = field(default_factory=dict)
    """Requested, else the endpoint's, else the API's documented defaults."""
    logprob_kind: LogprobKind = "unknown"
    partial: bool = False
    """The answer was cut off: abandoned, disconnected, or an error half way."""
    token_capture: str = _NO_TOKEN_IDS
    """``valid``, ``none(<code>)`` or ``invalid(<code>)``: of all choices together."""
    issues: tuple[Issue, ...] = ()
    capture_source: str = "transport"
    http_status: Optional[int] = None
    error: Optional[str] = None
    """``Type`` or ``Type: message`` where the call failed."""
    retries: int = 0
    """Exchanges before the one recorded here: the client's own retries."""
    first_chunk_seconds: Optional[float] = None
    """From the request to the first byte of the answer."""

    @property
    def capture_code(self) -> Optional[str]:
        """The code inside ``token_capture``; ``None`` where it is valid."""
        return capture_code(self.token_capture)


def none(code: str) -> str:
    """Return the verdict that there are no token ids, and why."""
    return f"none({code})"


def invalid(code: str) -> str:
    """Return the verdict that the token ids must not be trusted, and why."""
    return f"invalid({code})"


def capture_code(token_capture: str) -> Optional[str]:
    """Return ``code`` of ``none(code)`` or ``invalid(code)``, and ``None`` of ``valid``."""
    return None if token_capture == VALID else token_capture.partition("(")[2].rstrip(")")


def comparable(call: ModelCall) -> Optional[str]:
    """Return why the log-probabilities of ``call`` cannot be compared with recomputed ones, or ``None``.

    The reference recomputes them over the whole vocabulary. ``processed`` log-probabilities (after
    temperature) are comparable at any temperature above 0, ``raw`` and ``unknown`` ones only at temperature
    1; neither where the distribution was cut, penalised or constrained. The answer is a key of ``CODES``.
    Never raises.
    """
    if call.token_capture != VALID:
        return call.capture_code
    if any(choice.logprobs is None for choice in call.choices):
        return "no_logprobs"
    return _distribution(call.sampling_effective, call.logprob_kind)


# Setting → the values at which it changes nothing. vLLM and SGLang accept 0 and -1 as "no top_k".
_TRUNCATION: Mapping[str, frozenset[float]] = MappingProxyType(
    {
        "top_p": frozenset({1.0}),
        "top_k": frozenset({0.0, -1.0}),
        "min_p": frozenset({0.0}),
        "typical_p": frozenset({1.0}),
    }
)
_PENALTIES: Mapping[str, frozenset[float]] = MappingProxyType(
    {
        "presence_penalty": frozenset({0.0}),
        "frequency_penalty": frozenset({0.0}),
        "repetition_penalty": frozenset({1.0}),
    }
)
_BIASES = (
    "logit_bias",
    "bad_words",
    "allowed_token_ids",
    "logits_processors",
    "custom_logit_processor",
    "min_tokens",
)
_CONSTRAINTS = (
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
    "structured_outputs",
    "json_schema",
    "regex",
    "ebnf",
    "ignore_eos",
)


def _distribution(sampling: Mapping[str, Any], kind: LogprobKind) -> Optional[str]:
    temperature = _number(sampling.get("temperature"), 1.0)
    if temperature is None:
        return "sampling_unreadable"
    if temperature == 0:
        return "temperature_zero"
    if kind != "processed" and temperature != 1.0:
        return "temperature"
    for table, code in ((_TRUNCATION, "truncated_sampling"), (_PENALTIES, "penalised_sampling")):
        for name, neutral in table.items():
            value = sampling.get(name)
            if value is None:
                continue
            number = _number(value, 0.0)
            if number is None:
                return "sampling_unreadable"
            if number not in neutral:
                return code
    if any(sampling.get(name) for name in _BIASES):
        return "penalised_sampling"
    if any(sampling.get(name) for name in _CONSTRAINTS) or _is_constrained(sampling):
        return "constrained_sampling"
    if sampling.get("use_beam_search"):
        return "beam_search"
    best_of = _number(sampling.get("best_of"), 1.0)
    return "beam_search" if best_of is None or best_of > (_number(sampling.get("n"), 1.0) or 1.0) else None


def _is_constrained(sampling: Mapping[str, Any]) -> bool:
    """Whether the request forces a format or a tool, which engines do with a grammar."""
    response_format, tool_choice = sampling.get("response_format"), sampling.get("tool_choice")
    if isinstance(response_format, Mapping) and response_format.get("type") not in {None, "text"}:
        return True
    return isinstance(tool_choice, Mapping) or tool_choice == "required"


def _number(value: Any, default: float) -> Optional[float]:
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None
