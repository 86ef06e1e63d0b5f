"""The message of a choice, or the piece of it in a chunk: text, refusal, thinking and tool calls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .json_parts import index_of, list_of, text_of
from .received import ReceivedChoice
from .tool_calls import add_tool_call

BESIDE_CONTENT = frozenset(
    {
        "reasoning_content", "reasoning", "thinking", "thinking_blocks", "reasoning_details", "tool_calls",
        "function_call",
    }
)  # fmt: skip


def add_message(parts: ReceivedChoice, message: Mapping[str, Any]) -> None:
    """Add a message, or the ``delta`` of a chunk."""
    parts.role = text_of(message.get("role")) or parts.role
    content, thinking = message.get("content"), None
    if isinstance(message.get("refusal"), str):
        parts.refusal.append(message["refusal"])
    if isinstance(content, list):  # some servers answer in content parts
        thinking = _thinking_in(content)
        content = "".join(
            part["text"]
            for part in content
            if isinstance(part, dict) and text_of(part.get("text")) and not _is_thinking(part)
        )
    if isinstance(content, str):
        parts.content.append(content)
        parts.has_content = True
    if thinking is None and BESIDE_CONTENT.isdisjoint(message):
        return
    reasoning = reasoning_of(message, thinking)
    if reasoning is not None:
        parts.reasoning.append(reasoning)
    for position, tool in enumerate(list_of(message.get("tool_calls"))):
        if isinstance(tool, dict):
            add_tool_call(parts, index_of(tool.get("index"), position), tool)
    if isinstance(message.get("function_call"), dict):  # the API's older form
        add_tool_call(parts, 0, {"function": message["function_call"]})


def reasoning_of(message: Mapping[str, Any], thinking: str | None) -> str | None:
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
    for part in list_of(found):
        if not isinstance(part, dict) or not _is_thinking(part):
            continue
        values = [part.get(name) for name in ("thinking", "reasoning", "summary", "text")]
        inner = next((value for value in values if value is not None), None)
        nested = [each.get("text") if isinstance(each, dict) else each for each in list_of(inner)]
        texts += [text for text in (*nested, inner) if isinstance(text, str)]
    return "".join(texts) if texts else None


def _is_thinking(part: Mapping[str, Any]) -> bool:
    return str(part.get("type")).startswith(("thinking", "reasoning"))
