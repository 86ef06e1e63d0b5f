"""What to do so that a call is proven: the command that gives it token ids, and what to say of its endpoint."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from typing import Any

from ..dialects.endpoint_urls import base_of, is_local, without_attempt
from ..dialects.model_call import (
    ASKED_IN_VAIN,
    ASKING_REFUSED,
    NOT_ASKED,
    PROVIDER_GIVES_NONE,
    REQUEST_FIXED,
    ModelCall,
    capture_code,
)
from ..types import Rollout
from .calls import why_without_ids
from .reasons import Code, explained, with_detail

AskingCommand = Callable[[str | None], str]
"""The base URL of an endpoint that has to be named, or ``None`` → the command by which it is asked for token ids."""

_PROBED = frozenset(
    {
        PROVIDER_GIVES_NONE,
        ASKING_REFUSED,
        ASKED_IN_VAIN,
        "no_response_token_ids",
        "no_prompt_token_ids",
        "response_length",
        "prompt_length",
        "logprob_length",
        "choice_without_ids",
        "text_mismatch",
        "sources_disagree",
        "token_string_mismatch",
    }
)
"""Codes of which the endpoint itself tells what to do."""
_UNCOUNTED = frozenset({"usage_absent", "chunk_without_ids"})
"""Codes of answers whose number of tokens nobody asked for."""
_UNANSWERED = frozenset({"no_response", "http_error", "no_choices", "malformed"})
"""Codes of calls that came to nothing, of which the endpoint itself may tell why."""
_TOLD = _PROBED | _UNCOUNTED | NOT_ASKED | {"no_token_ids", "foreign_span"}
"""Codes that say why there are no token ids, or why those that came are not believed."""

_STATED = frozenset({"sampling_unknown", "temperature", "forced_unknown"})
"""Reasons that a word about the endpoint takes away."""


def asking_command(rollout: Rollout | None = None) -> AskingCommand:
    """Return how a rollout is recorded again so that its endpoints are asked: by ``agl run``, or by the environment."""
    return command_of((rollout.metadata or {}) if rollout is not None else {})


def command_of(metadata: Mapping[str, Any]) -> AskingCommand:
    """Return how the rollout with this metadata is recorded again; what ``agl run`` named before is named again."""
    program, endpoints = metadata.get("program"), metadata.get("endpoints")
    if not isinstance(program, str) or not program:
        return by_environment
    named = [each for each in endpoints if isinstance(each, str)] if isinstance(endpoints, list) else []
    return agl_run(program, "".join(f" --endpoint {shlex.quote(each)}" for each in named))


def by_environment(endpoint: str | None) -> str:
    """Return the variables that any tracer reads when it is made; an endpoint is added to those that are named."""
    named = f' AGL_ENDPOINTS="$AGL_ENDPOINTS",{shlex.quote(endpoint)}' if endpoint else ""
    return f"export AGL_CAPTURE_TOKENS=request{named}"


def agl_run(program: str, options: str = "") -> AskingCommand:
    """Return how a program is run again.

    Args:
        program: The program and its arguments, as a shell takes them.
        options: Further options of ``agl run``, each with a space before it.
    """

    def command(endpoint: str | None) -> str:
        named = f" --endpoint {shlex.quote(endpoint)}" if endpoint else ""
        return f"agl run{options} --capture-tokens request{named} -- {program}"

    return command


def told(code: Code, record: ModelCall, asking: AskingCommand) -> Code:
    """Return a reason with the endpoint that it is about, and the one command that cures it.

    Args:
        code: Why the call gives no row; another one than of token ids stays as it is.
        record: The call.
        asking: How the program is run again.
    """
    if capture_code(record.token_capture) is None or code.code not in _TOLD | _UNANSWERED:
        return code
    base = without_attempt(base_of(record.endpoint))
    sentence = with_detail(code.code, base).sentence
    if record.token_capture.startswith("invalid(") and code.code in _TOLD:
        sentence = f"token ids came and are not believed: {sentence}"
    not_asked = next(
        (issue.code for issue in record.issues if issue.code in NOT_ASKED - {REQUEST_FIXED}), None
    )
    if not_asked is not None and code.code in {not_asked, *_UNCOUNTED}:
        # Also of one that was only observed: the next run would find that it has not been named.
        return Code(code.code, sentence, asking(None if not base or is_local(base) else base))
    if code.code not in _PROBED | _UNANSWERED or not base:
        return Code(code.code, sentence, code.cure)
    model = f" --model {shlex.quote(record.request_model)}" if record.request_model else ""
    return Code(code.code, sentence, f"agl doctor --endpoint {shlex.quote(base)}{model}")


def of_tokens(record: ModelCall, asking: AskingCommand) -> Code | None:
    """Return why a call that was answered has no token ids that are believed; ``None`` where it has some.

    An answer that was cut off is none of these: what came of it was given, and later calls tell whether it counts.
    """
    code = why_without_ids(record) or record.capture_code
    return told(explained(code), record, asking) if code in _TOLD else None


def of_answer(record: ModelCall, asking: AskingCommand) -> Code | None:
    """Return why a call came to nothing, with the command that asks its endpoint; ``None`` where it was answered."""
    code = why_without_ids(record) or record.capture_code
    return told(explained(code), record, asking) if code in _UNANSWERED else None


def lines_to_add(record: ModelCall, code: str) -> tuple[str, ...]:
    """Return what to write for an endpoint whose log-probabilities are unproven because of ``code``.

    First the resource, then the same by environment; empty where nothing that is said of an endpoint would help. Both
    say what is true of ``vllm serve MODEL --generation-config vllm --logprobs-mode processed_logprobs``.
    """
    if code not in _STATED:
        return ()
    defaults = json.dumps(record.sampling_defaults or {})
    called = record.endpoint.removesuffix("/completions").removesuffix("/chat")
    base = without_attempt(called)
    model = record.request_model or "MODEL"
    kind = "LLM" if base == called else "ProxyLLM"
    resource = (
        f"{kind}(endpoint={json.dumps(base)}, model={json.dumps(model)}, sampling_defaults={defaults}, "
        'logprob_kind="processed")'
    )
    return resource, f"AGL_SAMPLING_DEFAULTS='{defaults}' AGL_LOGPROB_KIND=processed"
