"""One model call, decoded: what was asked, what was sampled, and how far the record can be trusted.

A :class:`ModelCall` is a value: ``openai.reading.decode`` makes it from bytes, ``spans.genai.read_call`` from a span,
and nobody changes it. Token ids and log-probabilities are the engine's own, never recomputed from text. Two
verdicts stand apart: ``token_capture`` says whether the ids are the very ids that were sampled, and
``distribution.unproven`` whether the log-probabilities are those that a trainer recomputes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from .raw_call import LogprobKind, Operation

FinishReason = Literal["stop", "length", "tool_calls", "abort", "error", "content_filter"]
IssueLevel = Literal["info", "warn", "fatal"]

_BROKEN_OFF = frozenset({"abort", "error"})
"""What a server says of an answer that it did not bring to an end."""

VALID = "valid"
"""``token_capture`` of a call whose ids agree with everything that is known of it."""

LEFT_BY_AGENT = "invalid(left_by_agent)"
"""``token_capture`` of a call whose answer the agent left: the ids that came were sampled, and only the calls after it
tell whether the agent went on with what they say."""
TOKENS_SAY_ALL = "tokens_say_all"
"""Issue of such a call whose tokens, as the engine spelled them, say exactly the text that came."""

IMPORTED = "imported"
"""Code in ``token_capture`` of a call that stands in a document which was imported."""

ONLY_OBSERVED = "only_observed"
ENDPOINT_NOT_NAMED = "endpoint_not_named"
REQUEST_FIXED = "request_fixed"
NOT_ASKED = frozenset({ONLY_OBSERVED, ENDPOINT_NOT_NAMED, REQUEST_FIXED})
"""Issues of a call whose endpoint was not asked for token ids on the agent's behalf, by why."""
PROVIDER_GIVES_NONE = "provider_gives_none"
ASKING_REFUSED = "asking_refused"
ASKED_IN_VAIN = "asked_in_vain"

_NO_IDS = "none(no_token_ids)"

CODES: Mapping[str, str] = MappingProxyType(
    {
        # token_capture = none(<code>): there is nothing to train on
        "no_response": "no response came",
        "connection_broken": "the connection broke before the answer was whole; the error of the call says how",
        "timed_out": "the client did not wait longer for the answer",
        "http_error": "the server answered with an error status",
        "error_answer": "the server answered with an error, though its status says success",
        "no_choices": "the response holds no choice",
        "no_token_ids": "the server returned no token ids",
        "no_response_token_ids": "the server returned ids of the prompt only",
        "no_prompt_token_ids": "the server returned no ids of the prompt",
        "foreign_span": "the span was made by another instrumentation and holds no token ids",
        # token_capture = invalid(<code>): what came does not agree
        "partial": "the answer was cut off before its end",
        "left_by_agent": "the agent left the answer before its end",
        "body_truncated": "the response was larger than what is kept of it",
        "encoding": "the response is compressed in a way that cannot be read here",
        "too_costly": "reading the response would take more memory or time than it may",
        "malformed": "the response is not what the API promises",
        "prompt_length": "the number of prompt ids differs from usage.prompt_tokens",
        "response_length": "the number of sampled ids differs from usage.completion_tokens",
        "logprob_length": "the number of log-probabilities differs from the number of sampled ids",
        "logprob_missing": "a sampled token has no log-probability",
        "logprob_not_finite": "a log-probability is not finite",
        "logprob_positive": "a log-probability is above 0 by more than rounding",
        "logprob_sentinel": "a log-probability is the engine's placeholder -9999",
        "token_id_type": "a token id is not a whole number of 0 or more",
        "token_string_mismatch": "the token_id:N strings differ from the ids",
        "prompt_ids_differ": "the choices have different prompts",
        "choice_without_ids": "some choices have token ids and some have none",
        "choice_index": "two answers came under one index, and nothing tells them apart",
        "choice_count": "the response has another number of choices than was asked for",
        "chunk_without_ids": "text came without token ids in a stream whose other chunks have them",
        "text_mismatch": "the answer has text that none of its tokens has",
        "versions": "the policy versions do not cover each sampled token once",
        "sources_disagree": "two fields of the response name different ids",
        IMPORTED: "the call stands in a document that was imported: nobody here saw its tokens sampled",
        "other_call": "the span that this call was put into names another response",
        # unproven()
        "no_logprobs": "the response holds no log-probabilities",
        "temperature": "log-probabilities that may be raw are comparable only at temperature 1",
        "temperature_zero": "greedy decoding has no sampling distribution",
        "truncated_sampling": "top_p, top_k, min_p or typical_p cut the distribution",
        "penalised_sampling": "a penalty or bias changed the distribution",
        "constrained_sampling": "a grammar, schema or forced tool constrained the distribution",
        "beam_search": "the answer was selected from several candidates",
        "sampling_unreadable": "a sampling setting is not a number",
        "sampling_assumed": "settings that were not stated were taken from the API's defaults; earlier versions did so",
        "sampling_unknown": "settings that the request does not name are the server's own, and they were not stated",
        "setting_unknown": "a setting was asked for whose effect on the distribution is not known",
        # forced_tokens()
        "forced_unknown": "a grammar or a budget may have forced tokens, and nothing tells which",
        "forced_tokens": "a grammar or a budget forced some of the tokens",
        # issues beside a verdict
        "prompt_logprobs_unreadable": "the log-probabilities of the prompt are not one for each of its ids",
        "request_rebuilt": "the request is what stands before the answer in a document; what was sent is not known",
        TOKENS_SAY_ALL: "the agent left the answer, and the tokens that came say all of its text",
        "usage_absent": "the response has no usage, so nothing says how many tokens were sampled",
        "stream_error": "the stream carried an error",
        "event_unreadable": "an event of the stream is not JSON",
        "request_unreadable": "the request is not a JSON object",
        "message_unreadable": "a message could not be read and is left out",
        "attribute_unreadable": "an attribute could not be read and is left out",
        "role_inferred": "a message named no role",
        "recording_ended": "the tracer ended while the answer came",
        "finish_reason_absent": "the answer does not say why it ended, so it counts as broken off",
        "finish_reason_unknown": "the finish reason is not one of the known ones",
        # issues that say why there are no token ids, or why the number of those that came is not known
        ONLY_OBSERVED: "no token ids were asked for: the tracer only observes, and the agent did not ask itself",
        ENDPOINT_NOT_NAMED: (
            "the endpoint was not asked for token ids: it is not on loopback, no resource of the rollout names it, and "
            "nobody else did"
        ),
        REQUEST_FIXED: (
            "the endpoint was not asked for token ids: the request is signed, compressed, has an Idempotency-Key or is "
            "made while it is sent, so that nothing can be added to it"
        ),
        PROVIDER_GIVES_NONE: "the provider gives no token ids, whatever is asked",
        ASKING_REFUSED: (
            "the endpoint was asked for token ids and refused, now or at an earlier request like this one; the agent's "
            "own request was sent"
        ),
        ASKED_IN_VAIN: "the endpoint was asked for token ids and answered without",
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

    id: str | None
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

    input_tokens: int | None = None
    output_tokens: int | None = None
    """Over all choices."""
    cached_input_tokens: int | None = None
    reasoning_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """One answer of a call."""

    index: int = 0
    role: str = "assistant"
    content: str | None = None
    """Text of the answer; ``None`` where there is none (a pure tool call)."""
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    finish_reason: FinishReason | None = None
    """Why the answer ended, as the server says it, in one of our words; ``None`` where it says nothing, or a word that
    is not known."""
    finish_reason_raw: str | None = None
    """The server's own word."""
    broken_off: bool = False
    """The server does not say why the answer ended, as it does of one that it brings to an end: the agent left it, the
    connection broke, or the engine was stopped. Our own finding."""
    token_ids: Sequence[int] | None = None
    """What the engine sampled, also where ``token_capture`` is invalid; ``None`` where there are none. A tuple of what
    came over the wire, ``codec.token_ids.TokenIds`` of what was read from a span; the two are equal."""
    logprobs: tuple[float, ...] | None = None
    """One for each sampled id, as the engine gave it: rounding may put it a little above 0."""
    token_strings: tuple[str, ...] | None = None
    policy: tuple[PolicySpan, ...] = ()
    """Of each sampled token, where the server says it of each; else empty."""
    token_capture: str = _NO_IDS
    """The verdict on this choice alone."""
    routed_experts: Any = None
    """As the server sent it: which experts each token went through (vLLM, SGLang: ``return_routed_experts``)."""
    sampling_mask: Any = None
    """As the server sent it: for each sampled token, the ids that it was sampled from."""

    @property
    def has_ended(self) -> bool:
        """Whether the answer was brought to an end, at its limit too; not where anybody broke it off."""
        return not self.broken_off and self.finish_reason not in _BROKEN_OFF

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
    request_model: str | None = None
    response_model: str | None = None
    response_id: str | None = None
    stream: bool = False
    request_messages: tuple[Mapping[str, Any], ...] = ()
    """``chat``: the messages of the request in the shape of the OpenAI API."""
    prompt: str | list[Any] | None = None
    """``text_completion``: the prompt as sent: text, ids, or a list of either."""
    tools: tuple[Mapping[str, Any], ...] = ()
    """Tool definitions of the request in the shape of the OpenAI API."""
    choices: tuple[Choice, ...] = ()
    """By index."""
    prompt_token_ids: Sequence[int] | None = None
    """Of the same types as ``Choice.token_ids``."""
    prompt_logprobs: tuple[float | None, ...] | None = None
    """One for each prompt id, the engine's; the first has none. ``None`` where nobody asked."""
    usage: Usage | None = None
    sampling_requested: Mapping[str, Any] = field(default_factory=dict)
    sampling_effective: Mapping[str, Any] = field(default_factory=dict)
    """What is known to have been in force: the answer's word, else requested, else ``sampling_defaults``."""
    sampling_defaults: Mapping[str, Any] | None = None
    """What the server applies where a request names nothing; empty = nothing of its own, ``None`` = nobody said."""
    answer_versions: tuple[str, ...] = ()
    """Versions of the weights that the server named without saying of which tokens, in the order in which they came."""
    logprob_kind: LogprobKind = "unknown"
    partial: bool = False
    """The answer was cut off: abandoned, disconnected, or an error half way."""
    token_capture: str = _NO_IDS
    """``valid``, ``none(<code>)`` or ``invalid(<code>)``: of all choices together."""
    issues: tuple[Issue, ...] = ()
    capture_source: str = "transport"
    http_status: int | None = None
    error: str | None = None
    """``Type`` or ``Type: message`` where the call failed."""
    retries: int = 0
    """Exchanges before the one recorded here: the client's own retries."""
    first_chunk_seconds: float | None = None
    """From the request to the first byte of the answer."""

    @property
    def capture_code(self) -> str | None:
        """The code inside ``token_capture``; ``None`` where it is valid."""
        return capture_code(self.token_capture)


def none(code: str) -> str:
    """Return the verdict that there are no token ids, and why."""
    return f"none({code})"


def invalid(code: str) -> str:
    """Return the verdict that the token ids must not be trusted, and why."""
    return f"invalid({code})"


def capture_code(token_capture: str) -> str | None:
    """Return ``code`` of ``none(code)`` or ``invalid(code)``, and ``None`` of ``valid``."""
    return None if token_capture == VALID else token_capture.partition("(")[2].rstrip(")")
