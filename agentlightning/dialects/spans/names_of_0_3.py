"""A model call under the names that Agent Lightning 0.3 wrote: AgentOps' span names and attributes, and its token ids.

They are written beside ours for programs that look for them. ``genai.read_call`` goes by ours where both are there, so
nothing that is made of a span changes. Ids are written only where the capture vouches for them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from ...codec.json_text import is_utf8
from ...types.attributes import AttributeValue
from ..model_call import VALID, Choice, ModelCall, Usage
from ..openai.logprob_entries import logprob_entries
from ..raw_call import CallStart

_NAMES = {"chat": "openai.chat.completion", "text_completion": "openai.completion"}


def span_name(start: CallStart) -> str:
    """Return the name of the span of a call."""
    return _NAMES[start.operation]


def call_attributes(call: ModelCall) -> dict[str, AttributeValue]:
    """Return the attributes of a call; what is unknown has none.

    ``response_token_ids`` and ``logprobs.content`` are those of the first choice, as in 0.3; the log-probabilities are
    what the server said, proven or not.
    """
    found: dict[str, Any] = {
        "gen_ai.system": "OpenAI",
        "gen_ai.request.type": "chat" if call.operation == "chat" else "completion",
        "gen_ai.request.streaming": call.stream,
        **_usage(call.usage),
    }
    for index, message in enumerate(_asked(call)):
        found.update(_message(f"gen_ai.prompt.{index}", message))
    for index, function in enumerate(_functions(call.tools)):
        for name, value in function.items():
            found[f"gen_ai.request.functions.{index}.{name}"] = _text(value)
    for choice in call.choices:
        prefix = f"gen_ai.completion.{choice.index}"
        found[f"{prefix}.finish_reason"] = choice.finish_reason_raw or choice.finish_reason
        found.update(_message(prefix, choice.message()))
    first = next((choice for choice in call.choices if choice.index == 0), None)
    if first is not None:
        found.update(_tokens(call, first))
    return {name: value for name, value in found.items() if value is not None}


def _usage(usage: Usage | None) -> dict[str, Any]:
    if usage is None:
        return {}
    asked, answered = usage.input_tokens, usage.output_tokens
    return {
        "gen_ai.usage.prompt_tokens": asked,
        "gen_ai.usage.completion_tokens": answered,
        "gen_ai.usage.total_tokens": None if asked is None or answered is None else asked + answered,
    }


def _asked(call: ModelCall) -> Iterable[Mapping[str, Any]]:
    if call.operation == "chat":
        return call.request_messages
    return () if call.prompt is None else ({"role": "user", "content": call.prompt},)


def _message(prefix: str, message: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    for name in ("role", "tool_call_id", "refusal"):
        yield f"{prefix}.{name}", message.get(name)
    yield f"{prefix}.content", _text(message.get("content"))
    calls = message.get("tool_calls")
    for index, tool_call in enumerate(calls if isinstance(calls, list) else ()):
        function = tool_call.get("function") if isinstance(tool_call, Mapping) else None
        if isinstance(function, Mapping):
            yield f"{prefix}.tool_calls.{index}.id", tool_call.get("id")
            yield f"{prefix}.tool_calls.{index}.name", function.get("name")
            yield f"{prefix}.tool_calls.{index}.arguments", function.get("arguments")


def _functions(tools: Iterable[Mapping[str, Any]]) -> Iterable[dict[str, Any]]:
    for tool in tools:
        function = tool.get("function")
        if isinstance(function, Mapping):
            yield {name: function.get(name) for name in ("name", "description", "parameters")}


def _tokens(call: ModelCall, choice: Choice) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if call.token_capture == VALID and choice.token_capture == VALID:
        found["prompt_token_ids"] = None if call.prompt_token_ids is None else list(call.prompt_token_ids)
        found["response_token_ids"] = None if choice.token_ids is None else list(choice.token_ids)
    if choice.logprobs is not None:
        found["logprobs.content"] = _text(
            logprob_entries(choice.token_ids or (), choice.logprobs, choice.token_strings or ())
        )
    return found


def _text(value: Any) -> Any:
    """Return text as it is, and everything else as JSON text."""
    if value is None or isinstance(value, str):
        return value
    text = json.dumps(value, ensure_ascii=False, default=dict)
    return text if is_utf8(text) else json.dumps(value, default=dict)
