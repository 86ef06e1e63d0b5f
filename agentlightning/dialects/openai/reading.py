"""From an OpenAI-compatible call, as bytes or as parsed bodies, to a :class:`ModelCall`.

What the server says is checked against itself: lengths against usage, log-probabilities against ids, versions against
tokens. What does not agree is kept and marked ``invalid``; nothing is repaired. Pure functions that
never raise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..distribution import CONTENT
from ..model_call import VALID, Choice, Issue, ModelCall, ToolCall, invalid, none
from ..raw_call import ParsedCall, RawCall, SeenCall
from .answer import add_object
from .asking import why_not_proven
from .bodies import receive
from .finish_reasons import finish_reason
from .json_parts import json_object, text_of
from .outcome import cut_code, failure_of, is_partial
from .received import ReceivedAnswer, ReceivedChoice
from .request import request_messages, request_tools, settings_in_force, wanted_choices
from .tokens import are_cumulative, prompt_ids, prompt_logprobs, sampled_ids, sampled_logprobs
from .verdict import verdict_of
from .versions import named_versions, policy_of


def decode(raw: RawCall) -> ModelCall:
    """Return the call that was seen as bytes; what cannot be read becomes an issue. Never raises."""
    try:
        issues = [Issue("warn", note) for note in raw.notes]
        request = json_object(raw.request_body)
        if request is None:
            issues.append(Issue("warn", "request_unreadable"))
            request = {}
        answer, failure = receive(raw, issues)
        call = _record(raw, request, answer, failure, issues)
        why = why_not_proven(raw, request, call.token_capture)
        return call if why is None else replace(call, issues=(*call.issues, Issue("info", why)))
    except Exception as error:  # noqa: BLE001 - bytes of any server; the call is marked, the writer goes on
        return _unreadable(raw, error)


def read(call: ParsedCall) -> ModelCall:
    """Return the call whose bodies are parsed already; what cannot be read becomes an issue. Never raises."""
    try:
        issues = [Issue("warn", note) for note in call.notes]
        answer = ReceivedAnswer(is_stream=call.is_stream)
        for each in call.responses:
            add_object(answer, each)
        if call.is_stream and answer.error is not None:
            issues.append(Issue("warn", "stream_error", answer.error))
        answer.done = call.complete and call.error is None
        return _record(
            call, call.request, answer, failure_of(answer, call), issues, has_all_fields=call.has_all_fields
        )
    except Exception as error:  # noqa: BLE001 - values of any server, as above
        return _unreadable(call, error)


def _unreadable(call: SeenCall, error: Exception) -> ModelCall:
    return ModelCall(
        operation=call.start.operation,
        endpoint=call.start.url,
        request_model=call.start.model,
        stream=call.start.stream,
        http_status=call.status,
        error=call.error,
        retries=call.retries,
        token_capture=invalid("malformed"),
        issues=(Issue("fatal", "malformed", type(error).__name__),),
    )


def _record(
    call: SeenCall,
    request: Mapping[str, Any],
    answer: ReceivedAnswer,
    failure: str | None,
    issues: list[Issue],
    *,
    has_all_fields: bool = True,
) -> ModelCall:
    requested = {
        name: request[name] for name in sorted(request.keys() - CONTENT) if request[name] is not None
    }
    defaults = call.endpoint.sampling_defaults if call.endpoint else None
    if (
        answer.settings is not None
    ):  # the server's own word on this call counts more than what a user said of it
        defaults = answer.settings
    choices = _choices(answer, has_all_fields, issues)
    prompt_token_ids, prompt_failure = prompt_ids(answer)
    wanted = wanted_choices(request) if has_all_fields or request.get("n") is not None else None
    partial = is_partial(answer, call, wanted)
    if answer.parts and wanted is not None and wanted != len(answer.parts):
        issues.append(Issue("warn", "choice_count", f"asked for {wanted}, got {len(answer.parts)}"))
    if request.get("echo"):  # the text begins with that of the prompt
        answer.shows_prompt = True
    cut = cut_code(answer, call) if partial else None
    verdict = failure or verdict_of(answer, choices, prompt_token_ids, prompt_failure, cut, wanted, issues)
    if verdict.startswith("invalid"):
        issues.append(Issue("fatal", verdict.partition("(")[2].rstrip(")")))
    return ModelCall(
        operation=call.start.operation,
        endpoint=call.start.url,
        request_model=text_of(request.get("model")) or call.start.model,
        response_model=answer.model,
        response_id=answer.id,
        stream=call.start.stream,
        request_messages=request_messages(request, issues),
        prompt=request.get("prompt") if isinstance(request.get("prompt"), (str, list)) else None,
        tools=request_tools(request),
        choices=choices,
        prompt_token_ids=prompt_token_ids,
        prompt_logprobs=prompt_logprobs(answer, prompt_token_ids, issues),
        usage=answer.usage,
        sampling_requested=requested,
        sampling_effective=settings_in_force(requested, defaults, answer.settings),
        sampling_defaults=defaults,
        answer_versions=() if choices and all(each.policy for each in choices) else named_versions(answer),
        logprob_kind=call.endpoint.logprob_kind if call.endpoint else "unknown",
        partial=partial,
        token_capture=verdict,
        issues=tuple(issues),
        http_status=call.status,
        error=call.error or answer.error,
        retries=call.retries,
        first_chunk_seconds=(
            None
            if call.first_chunk_ns is None
            else max(0, call.first_chunk_ns - call.started_ns) / 1_000_000_000
        ),
    )


def _choices(answer: ReceivedAnswer, has_all_fields: bool, issues: list[Issue]) -> tuple[Choice, ...]:
    cumulative = are_cumulative(answer)
    # An engine that was stopped ends the stream or the body as it should, without saying why the answer ended.
    would_say = has_all_fields or not answer.done or answer.error is not None
    return tuple(
        _choice(parts, answer, cumulative, would_say, issues) for _, parts in sorted(answer.parts.items())
    )


def _choice(
    parts: ReceivedChoice,
    answer: ReceivedAnswer,
    cumulative: bool,
    would_say: bool,
    issues: list[Issue],
) -> Choice:
    """Return one answer; ``would_say``: whether a whole one would have come with a finish reason."""
    ids, ids_failure = sampled_ids(parts, cumulative)
    logprobs, logprobs_failure = sampled_logprobs(parts, ids)
    strings = tuple(parts.strings) if parts.strings else None
    versions, versions_failure = policy_of(parts, answer, ids)
    failure = ids_failure or logprobs_failure or versions_failure
    broken_off = parts.finish is None and would_say
    if broken_off:
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
        finish_reason=finish_reason(parts.finish),
        finish_reason_raw=parts.finish,
        broken_off=broken_off,
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
