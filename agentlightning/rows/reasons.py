"""Why a call, a reward or a whole trace gives no training row: each reason a code, a sentence and a cure.

Codes are stable: programs compare them, ``agl explain`` prints their sentences. The codes that capture and
``comparable`` give to a call are those of ``dialects.model_call.CODES``, whose sentences are used as they stand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Self

from ..dialects.model_call import CODES

_NOTHING = "nothing needs to be done"
_LOST = "nothing can be done for these calls"


class Explained(str, Enum):
    """A code with a sentence and a cure."""

    code: str
    """The stable code."""
    sentence: str
    cure: str

    def __new__(cls, code: str, sentence: str, cure: str) -> Self:
        """Make a member whose value is its code."""
        member = str.__new__(cls, code)
        member._value_ = code
        member.code = code  # an attribute: a property that asks for ``value`` takes ten times as long
        member.sentence = sentence
        member.cure = cure
        return member


class TraceReason(Explained):
    """What can be said of a whole trace."""

    NO_SPANS = (
        "no_spans",
        "nothing was recorded",
        "run the agent inside tracer.rollout(…) of a tracer that was given a store; where agl run started it: with a "
        "Python in which agentlightning is installed, and a call of a model or a span of its own",
    )
    AGENT_FAILED = (
        "agent_failed",
        "the agent failed, or took longer than it may",
        "see the log, or the root span of the rollout",
    )
    NO_MODEL_CALLS = (
        "no_model_calls",
        "spans were recorded, but none of them is a model call: the agent made none, its client is not watched, or a "
        "cache of its framework answered",
        "call the model through an OpenAI-compatible client in the traced process, after the tracer's init, and turn "
        "the framework's cache off (dspy: cache=False; LangChain: set_llm_cache(None))",
    )
    UNCAPTURED_SERVER = (
        "uncaptured_server",
        "a model server was connected to, and no call of it was captured",
        "see the server in `agl show`; call `chat/completions` or `completions` (other APIs, such as `responses`, are "
        "not captured) with a client that is watched: httpx, requests, urllib3, http.client, aiohttp",
    )
    UNRECORDED_PROCESS = (
        "unrecorded_process",
        "the attempt started a process that records nothing, so what that did is not here",
        "hand its work to a `ProcessPoolExecutor` or `multiprocessing.Pool`, or give it a tracer of its own and open "
        "`trace_context(rollout_id=…, attempt_id=…)` there; the root span names it",
    )
    NO_SELECTED_CALLS = (
        "no_selected_calls",
        "there are model calls, but agent_match, the model or a reward's subtree leaves all of them out",
        "check agent_match and the model against the agents and models that `agl show` prints",
    )
    CALLS_FAILED = (
        "calls_failed",
        "no model call was answered",
        "see the code of each call: the endpoint, the key and the model name",
    )
    NO_TOKEN_IDS = (
        "no_token_ids",
        "no model call came with token ids",
        "see the code of each call; vLLM and SGLang give ids where they are asked: capture_tokens='request'",
    )
    TOKEN_CAPTURE_INVALID = (
        "token_capture_invalid",
        "token ids came that do not agree with themselves or with usage, so none of them is trusted",
        "see the code of each call; a proxy or client between agent and engine usually drops tokens",
    )
    NOT_COMPARABLE = (
        "not_comparable",
        "no call is known to be a plain sample of the model",
        "see the code of each call",
    )
    LOGPROBS_UNPROVEN = (
        "logprobs_unproven",
        "rows have no log-probabilities: those that were recorded are not known to be what a trainer recomputes",
        "see the cause of each call; a trainer that recomputes them takes the rows as they are",
    )
    NO_LOGPROBS = (
        "no_logprobs",
        "token ids came without log-probabilities",
        "ask for logprobs; a trainer that recomputes them takes the rows as they are",
    )
    UNTRAINABLE = (
        "untrainable",
        "every call was marked as not to be trained on",
        "find out what sets agentlightning.untrainable: redaction of the store does, for calls with a match",
    )
    NO_TRAINABLE_CALLS = (
        "no_trainable_calls",
        "each call is left out, for different reasons",
        "see the code of each call",
    )
    NO_REWARD = (
        "no_reward",
        "no reward was given",
        "call emit_reward() inside the trace context, or return a number from the agent",
    )
    STEP_REWARDS_ONLY = (
        "step_rewards_only",
        "single answers have rewards, and the rollout has none",
        "call emit_reward() without a target, too; or seal with reward='steps', where the trainer takes such rewards",
    )
    REWARD_UNSCORED = (
        "reward_unscored",
        "the final reward is no finite number, so the rollout is unscored",
        "look for a division by zero or a failed judge in the reward function",
    )
    REWARD_UNMATCHED = (
        "reward_unmatched",
        "rewards were given, but none of them reaches a call that gives a row",
        "see where each reward went; a link must name the response id or span id of a call",
    )
    TRUNCATED = (
        "truncated",
        "spans were dropped because a queue was full: the tail of the trace is missing",
        "give the writer a faster store or a larger queue",
    )
    INTERRUPTED = (
        "interrupted",
        "a process died while it recorded: what it started after its last commit is not known",
        "run the rollout again",
    )
    SPANS_DROPPED = (
        "spans_dropped",
        "spans that were started are not stored",
        "see the reasons in the receipt",
    )
    SPANS_LATE = (
        "spans_late",
        "spans started after their trace_context had closed, in a task, thread or worker that lived on: they belong to "
        "no attempt, and are stored beside this one",
        "wait for tasks and threads inside the trace_context, give a span its ids as attributes, or, where no worker "
        "serves several rollouts, take them with RowPolicy(late=True) or agl rows --late",
    )
    SPANS_UNATTRIBUTED = (
        "spans_unattributed",
        "spans of an unknown attempt started in the process while this one was open, so they may belong to it",
        "carry the context to where the work is done: docs/how-to/async-and-threads.md",
    )
    SPANS_OPEN = (
        "spans_open",
        "spans have started and not ended",
        "wait for the agent to end, or look for what hangs",
    )
    ATTRIBUTES_DROPPED = (
        "attributes_dropped",
        "a provider's attribute limit took attributes off a span",
        "raise OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT for the provider that was already installed",
    )
    ATTEMPT_FAILED = (
        "attempt_failed",
        "the rollout did not succeed",
        "see its attempts",
    )
    NOT_SEALABLE = (
        "not_sealable",
        "the store says that the attempt is not complete",
        "see its receipt, the last line of agl show ROLLOUT",
    )
    REWARD_UNKNOWN_TARGET = (
        "reward_unknown_target",
        "a reward names a call, choice or tokens that this attempt does not have",
        "look who gave it; a reward is never put on another target",
    )
    CHANGED_AFTER_SEAL = (
        "changed_after_seal",
        "the spans that were sealed are not all there any more",
        "a store in memory gave them up for room, or ids were reserved before the seal and used after it",
    )
    SEVERAL_ATTEMPTS = (
        "several_attempts",
        "the spans are of several attempts; each gives rows of its own",
        "query with attempt_id='latest' to leave earlier attempts out",
    )


class CallReason(Explained):
    """Why a model call gives no row, beside the codes of ``dialects.model_call``."""

    OTHER_AGENT = (
        "other_agent",
        "agent_match does not match the agent that made the call",
        "change agent_match",
    )
    OTHER_MODEL = (
        "other_model",
        "the call was made to a model that is not trained",
        "name the policy: RowPolicy(model=…), --model, or the LLM of the rollout's resources",
    )
    SEVERAL_MODELS = (
        "several_models",
        "the calls are of several models, and nothing says which one is trained",
        "name the policy: RowPolicy(model=…), --model or an LLM in the rollout's resources; or give others a role(…)",
    )
    IN_REWARD = (
        "in_reward",
        "the call was made while a reward was computed",
        "exclude_llm_call_in_reward=False keeps such calls",
    )
    DUPLICATE_RESPONSE = (
        "duplicate_response",
        "another span records the same response",
        f"{_NOTHING}: the response is trained once",
    )
    NESTED_CALL = (
        "nested_call",
        "another span around or inside this one records the same call",
        f"{_NOTHING}: the call is trained once",
    )
    NO_RECORD = (
        "no_record",
        "the span is named like a model call and records none",
        f"{_NOTHING}, unless an instrumentation is expected to record this call",
    )
    EMPTY_RESPONSE = (
        "empty_response",
        "the model sampled no token",
        f"{_NOTHING}: there is nothing to train on",
    )
    NO_PROMPT = (
        "no_prompt",
        "the prompt has no tokens",
        f"{_NOTHING}, unless the engine is expected to return prompt ids",
    )
    MARKED = (
        "untrainable",
        "the call was marked as not to be trained on",
        "find out what sets agentlightning.untrainable",
    )
    LATE = (
        "late",
        "the call was made after the trace_context of its attempt had closed, so its attempt is not known",
        "wait for tasks and threads inside the trace_context; RowPolicy(late=True) takes such calls",
    )
    ALTERNATES = (
        "alternates",
        "two rollouts took turns in one context, so their calls cannot be told apart",
        "leave the inner trace_context before the outer one, or give each rollout a task, thread or generator",
    )
    SHARED_WORKER = (
        "shared_worker",
        "a thread or task that outlived the rollout made the call while another rollout was open, so it is not "
        "known for which",
        "end such workers inside the trace_context; or start them before the first rollout, and open a trace_context "
        "around each item",
    )
    OTHER_ROLE = (
        "other_role",
        "the call was made in a role that is not trained",
        "name its role in RowPolicy(roles=…)",
    )
    NOT_WANTED = (
        "not_wanted",
        "the policy's own predicate does not want the call",
        "see RowPolicy(trains=…)",
    )
    ABANDONED = (
        "abandoned",
        "the agent went on with another answer to the same prompt",
        "RowPolicy(abandoned='train') trains such answers, too",
    )
    ASKED_AGAIN = (
        "asked_again",
        "the answer was broken off or cut at its limit, and another one was asked for in its place",
        f"{_NOTHING}; RowPolicy(abandoned='train') trains such answers, too",
    )
    RETRY_UNDECIDED = (
        "retry_undecided",
        "the prompt was asked again after an unfinished answer, and nothing tells which answer counts",
        "give the answer that counts a reward: emit_reward(…, attributes=reward_target(response_id=…))",
    )
    BROKEN_OFF = (
        "broken_off",
        "the engine broke the answer off, and nothing tells whether the agent went on with it",
        "ask again after an abort, or give the answer that counts a reward: "
        "emit_reward(…, attributes=reward_target(response_id=…))",
    )
    LEFT_BY_AGENT = (
        "left_by_agent",
        "the agent left the answer before its end, and nothing shows that it went on with what had come",
        "read the stream to its end, and give the engine the agent's own stop: stop=[…]",
    )
    STALE = (
        "stale",
        "a token was sampled by a policy that is older than min_version",
        "lower min_version, or sample anew",
    )
    VERSION_UNKNOWN = (
        "version_unknown",
        "the server named no policy version of each token, so the answer may be stale",
        "let the engine return weight versions for tokens (vLLM: return_weight_versions), or leave min_version out",
    )
    OVER_LONG_PROMPT = (
        "over_long_prompt",
        "the first prompt of its row is longer than max_prompt_tokens",
        "raise max_prompt_tokens, or shorten the prompt",
    )
    OVER_LONG = (
        "over_long",
        "its row is longer than max_tokens",
        "raise max_tokens",
    )
    REDACTED = (
        "redacted",
        "the redaction stage masked the call's tokens",
        f"{_LOST}; record with redaction='egress', which masks nothing in the store, or keep secrets out of prompts",
    )


class RewardReason(Explained):
    """Why a reward has no value, or reaches no row."""

    NOT_GIVEN = (
        "reward_not_given",
        "the reward is None",
        "return a number from the reward function",
    )
    NOT_FINITE = (
        "reward_not_finite",
        "the reward is NaN or infinite",
        "look for a division by zero in the reward function",
    )
    NOT_A_NUMBER = (
        "reward_not_a_number",
        "the reward is not a number",
        "emit a float",
    )
    REPLACED = (
        "replaced",
        "a later reward is for the same call",
        f"{_NOTHING}: the last reward that names a call stands",
    )
    LINK_UNRESOLVED = (
        "link_unresolved",
        "the reward names a target that is not in this trace",
        "link to the response id or span id of a call of the same attempt",
    )
    NO_CALL = (
        "no_call",
        "no selected call had ended before the reward was given",
        "emit the reward after the call that it is for, or link it",
    )
    TOKENS_UNKNOWN = (
        "tokens_unknown",
        "the reward names a range of tokens that the call did not sample",
        "ranges are [start, end) over the sampled tokens of one choice, from 0",
    )
    CALL_SKIPPED = (
        "call_skipped",
        "the call that the reward is for gives no row",
        "see the code of that call",
    )


@dataclass(frozen=True, slots=True)
class Code:
    """One code with its sentence and cure, wherever it comes from."""

    code: str
    sentence: str
    cure: str = ""


_COUNT = "ask for usage: capture_tokens='request', or stream_options={'include_usage': True} in the agent's own request"

_ASK = "agl run --capture-tokens request"
_PROBE = "agl doctor --endpoint URL --model MODEL"

_AGAIN = "run the rollout again; where it happens again,"
_SMALLER = (
    "ask for less in one answer: fewer tokens or choices, no top_logprobs, prompt_logprobs or routed experts"
)

_CURES: Mapping[str, str] = {
    # what came of the exchange
    "no_response": _PROBE,
    "http_error": _PROBE,
    "no_choices": _PROBE,
    "malformed": _PROBE,
    "connection_broken": f"{_AGAIN} look for a proxy that limits how long or how large an answer may be",
    "timed_out": "give the client a longer timeout, as OpenAI(timeout=…), or ask for fewer tokens: max_tokens=…",
    "error_answer": "agl show ROLLOUT --call N shows the error; the server's own log may say more",
    "stream_error": "agl show ROLLOUT --call N shows the error; the server's own log may say more",
    "partial": f"{_AGAIN} the log of the server or of a proxy says who ended the answer",
    "recording_ended": "read answers to their end inside of the rollout, before the tracer's lifespan ends",
    "body_truncated": f"{_LOST}; {_SMALLER}",
    "too_costly": f"{_LOST}; {_SMALLER}",
    "encoding": f"{_LOST}; let the client ask for another one: Accept-Encoding: gzip",
    "foreign_span": (
        "make the call in the traced process, with a client that is watched: httpx, requests, urllib3, http.client, "
        "aiohttp"
    ),
    "finish_reason_absent": (
        f"{_NOTHING} where the engine was stopped for new weights; else look for a gateway that drops it"
    ),
    "finish_reason_unknown": f"{_NOTHING}: the server's own word is kept as finish_reason_raw",
    "tokens_say_all": f"{_NOTHING}: the answer is trained where the agent went on with it",
    # what does not agree
    "logprob_missing": _PROBE,
    "logprob_not_finite": f"{_LOST}; the engine computes it: look at its log, its precision and newer releases",
    "logprob_positive": f"{_LOST}; the engine computes it: look at its log, its precision and newer releases",
    "logprob_sentinel": f"{_LOST}; the engine had no number for a token that it sampled: look for newer releases",
    "token_id_type": f"{_LOST}; look for a gateway or an exporter that rewrites ids",
    "prompt_ids_differ": f"{_LOST}; ask with n=1",
    "versions": f"{_LOST}; look for a gateway that merges or drops chunks, or a newer release of the server",
    "other_call": f"{_LOST}; turn the other instrumentation of the client off, or await one call before the next",
    "prompt_logprobs_unreadable": f"{_NOTHING}: only the log-probabilities of the prompt are left out",
    # what was sent
    "request_unreadable": "send the request as one JSON object",
    "message_unreadable": "send each message as an object; agl show ROLLOUT --call N shows those that were read",
    "attribute_unreadable": "find out what writes the attribute: its value has another type than its name says",
    "event_unreadable": "look for a gateway that writes something else than JSON into the stream",
    "role_inferred": f"{_NOTHING}; send each message with its role",
    "added_fields_visible": (
        f"{_NOTHING} where the agent looks at no field that it did not ask for; else ask for the ids in its own "
        "request, and record with capture_tokens='observe'"
    ),
    # whether anybody asked
    "only_observed": f"{_ASK} -- PROGRAM",
    "endpoint_not_named": f"{_ASK} --endpoint URL -- PROGRAM",
    "request_fixed": "send it unsigned, uncompressed, whole and without an Idempotency-Key",
    "provider_gives_none": _PROBE,
    "asking_refused": _PROBE,
    "asked_in_vain": _PROBE,
    "no_response_token_ids": _PROBE,
    "no_prompt_token_ids": _PROBE,
    "response_length": _PROBE,
    "prompt_length": _PROBE,
    "logprob_length": _PROBE,
    "choice_without_ids": _PROBE,
    "sources_disagree": _PROBE,
    "token_string_mismatch": _PROBE,
    "usage_absent": _COUNT,
    "chunk_without_ids": f"look for a gateway that drops ids, or {_COUNT}",
    "text_mismatch": _PROBE,
    "choice_index": "look for a gateway or server that gives all answers one index; ask with n=1",
    "choice_count": "ask with n=1 where the server does not know n; look for a gateway that picks among answers",
    # of what the log-probabilities are
    "sampling_assumed": "run the rollout again: this version assumes nothing",
    "sampling_unknown": (
        "say what the server applies, on the endpoint's resource or in AGL_SAMPLING_DEFAULTS: {} where it is started "
        "with --generation-config vllm, else what its generation_config.json says"
    ),
    "temperature": (
        "serve log-probabilities of the distribution that is sampled from (vLLM: --logprobs-mode processed_logprobs) "
        "and say so: logprob_kind='processed'; or sample at temperature 1"
    ),
    "temperature_zero": f"{_NOTHING} where greedy answers are wanted; else sample at a temperature above 0",
    "truncated_sampling": "sample with top_p=1, top_k=0, min_p=0, or let the trainer recompute them",
    "penalised_sampling": "sample without penalties, biases and minimum lengths, or let the trainer recompute them",
    "constrained_sampling": "sample without a grammar, or let the trainer recompute them",
    "setting_unknown": "leave the setting out, or let the trainer recompute them",
    "sampling_unreadable": "send a number",
    "beam_search": "sample: a beam or the best of several is chosen, not sampled",
    "forced_unknown": (
        "serve log-probabilities of the distribution that is sampled from, in which a forced token has 0 (vLLM: "
        "--logprobs-mode processed_logprobs), and say so: logprob_kind='processed'"
    ),
    "imported": "agl run -- PROGRAM records the agent itself; what it samples then can be trained",
    "request_rebuilt": f"{_NOTHING}; the file says what came before the answer, and not how it was asked",
    "forced_tokens": "build_rows has rows with a mask in which forced tokens are context; triplets have none",
}
"""What to do about a code that the record of a call gives."""


def explained(code: str) -> Code:
    """Return the sentence and cure of any code of this package; an unknown one explains itself."""
    for kind in (TraceReason, CallReason, RewardReason):
        member = next((member for member in kind if member.code == code), None)
        if member is not None:
            return Code(member.code, member.sentence, member.cure)
    if code not in CODES:  # the user's own word, as the value of `agentlightning.untrainable`
        return Code(code, f"marked {code!r}", CallReason.MARKED.cure)
    return Code(code, CODES[code], _CURES[code])


def with_detail(code: str, detail: str = "") -> Code:
    """Return a code whose sentence names what it is about."""
    found = explained(code)
    return Code(found.code, f"{found.sentence} ({detail})" if detail else found.sentence, found.cure)


_NAMING = frozenset({CallReason.SEVERAL_MODELS.code, CallReason.OTHER_MODEL.code})
"""Reasons that are told with the names that they are about."""


def naming(code: str, detail: str = "") -> Code:
    """Return a code with the models that it is about, where it is about some; another detail is of one call."""
    return with_detail(code, detail if code in _NAMING else "")


ALL_CODES: Mapping[str, Code] = {
    code: explained(code)
    for code in (
        *CODES,
        *(member.code for kind in (TraceReason, CallReason, RewardReason) for member in kind),
    )
}
"""Every code that ``explain`` uses → its sentence and cure."""
