"""Why an answer ended: the words of engines and gateways, and those that they come down to."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from ..model_call import FinishReason
from .json_parts import dict_of, text_of

_FINISH_REASONS: Mapping[str, FinishReason] = MappingProxyType(
    {
        "stop": "stop",
        "eos": "stop",
        "eos_token": "stop",  # TGI
        "completed": "stop",
        "stop_sequence": "stop",  # Anthropic, as the next one
        "end_turn": "stop",
        "length": "length",
        "max_tokens": "length",  # Anthropic
        "tool_calls": "tool_calls",
        "tool_call": "tool_calls",
        "function_call": "tool_calls",  # the OpenAI API's older form
        "tool_use": "tool_calls",  # Anthropic
        "content_filter": "content_filter",
        "abort": "abort",  # vLLM and SGLang, of a request that was taken back
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


def finish_reason(raw: str | None) -> FinishReason | None:
    """Return the normalised finish reason; ``None`` for none and for one that is not known."""
    return None if raw is None else _FINISH_REASONS.get(raw.lower())


def finish_word(choice: Mapping[str, Any]) -> str | None:
    """Return the word for why a choice ended.

    SGLang's own form is an object: ``{"type": "length", "length": 8}``, ``{"type": "stop", "matched": 2}``,
    ``{"type": "abort", "message": …}``; without OpenAI's field it stands in ``meta_info``.
    """
    found = choice.get("finish_reason")
    word = text_of(found.get("type") if isinstance(found, dict) else found)
    if word is None and "meta_info" in choice:
        found = dict_of(choice["meta_info"]).get("finish_reason")
        word = text_of(found.get("type") if isinstance(found, dict) else found)
    return word
