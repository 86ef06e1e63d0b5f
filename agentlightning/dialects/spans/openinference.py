"""Model calls as attributes of OpenInference, which Phoenix and other viewers read.

Format: OpenInference's semantic conventions (``spec/semantic_conventions.md`` of Arize-ai/openinference): lists are
flat, ``llm.input_messages.<i>.message.tool_calls.<j>.tool_call.function.name``. What is not known has no attribute.
``foreign`` reads them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ...semconv import LightningSpanAttributes
from ...types.attributes import AttributeValue
from ..model_call import ModelCall
from .attribute_values import dumped

KIND = "openinference.span.kind"
SESSION = "session.id"

_CONTENT = ("llm.input_messages.", "llm.output_messages.", "llm.tools.", "input.", "output.")
_REWARD_VALUE = f"{LightningSpanAttributes.REWARD.value}.0.value"


def is_content(name: str) -> bool:
    """Whether an attribute holds what was said."""
    return name.startswith(_CONTENT)


def attributes_of_copy(
    call: ModelCall | None, attributes: Mapping[str, Any], *, kind: str, work: tuple[Any, Any]
) -> dict[str, AttributeValue]:
    """Return what OpenInference has beside the attributes of a span; a span that has a kind already keeps its own.

    Args:
        call: The model call that it records, where it does.
        attributes: Those of the span.
        kind: Its kind, where it is no model call and no reward.
        work: What it was given, and what came of it; ``None``: that was not recorded.
    """
    if KIND in attributes:
        return {}
    found: dict[str, AttributeValue] = {KIND: _kind(call, attributes, kind)}
    if call is not None:
        found.update(_call(call))
    for name, value in zip(("input", "output"), work, strict=True):
        if value is not None:
            is_text = isinstance(value, str)
            found[f"{name}.value"] = value if is_text else dumped(value)
            found[f"{name}.mime_type"] = "text/plain" if is_text else "application/json"
    body = attributes.get(LightningSpanAttributes.MESSAGE_BODY.value)
    if isinstance(body, str):
        found["output.value"] = body
    return found


def _kind(call: ModelCall | None, attributes: Mapping[str, Any], otherwise: str) -> str:
    if call is not None:
        return "LLM"
    return "EVALUATOR" if _REWARD_VALUE in attributes else otherwise


def _call(call: ModelCall) -> dict[str, AttributeValue]:
    usage = call.usage
    counts = (usage.input_tokens, usage.output_tokens) if usage else (None, None)
    total = None if counts[0] is None or counts[1] is None else counts[0] + counts[1]
    found: dict[str, Any] = {
        "llm.system": "openai",
        "llm.model_name": call.response_model or call.request_model,
        "llm.invocation_parameters": dumped(call.sampling_requested) if call.sampling_requested else None,
        "llm.token_count.prompt": counts[0],
        "llm.token_count.completion": counts[1],
        "llm.token_count.total": total,
        "llm.token_count.prompt_details.cache_read": usage.cached_input_tokens if usage else None,
        "llm.token_count.completion_details.reasoning": usage.reasoning_tokens if usage else None,
        "llm.finish_reason": _finish_reason(call),
    }
    for index, tool in enumerate(call.tools):
        found[f"llm.tools.{index}.tool.json_schema"] = dumped(tool)
    found.update(_messages("llm.input_messages", call.request_messages))
    found.update(_messages("llm.output_messages", [choice.message() for choice in call.choices]))
    if isinstance(call.prompt, str):
        found.update({"input.value": call.prompt, "input.mime_type": "text/plain"})
    elif call.request_messages:
        asked = {"messages": [dict(each) for each in call.request_messages]}
        found.update({"input.value": dumped(asked), "input.mime_type": "application/json"})
    if call.choices:
        first = call.choices[0]
        is_text = len(call.choices) == 1 and not first.tool_calls and first.content is not None
        said = first.content if is_text else dumped([choice.message() for choice in call.choices])
        kind = "text/plain" if isinstance(said, str) and is_text else "application/json"
        found.update({"output.value": said if isinstance(said, str) else dumped(said)})
        found["output.mime_type"] = kind
    return {name: value for name, value in found.items() if value is not None}


def _finish_reason(call: ModelCall) -> str | None:
    reasons = {choice.finish_reason_raw for choice in call.choices}
    return reasons.pop() if len(reasons) == 1 else None


def _messages(prefix: str, messages: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, Any]]:
    for index, message in enumerate(messages):
        at = f"{prefix}.{index}.message"
        for key in ("role", "name", "tool_call_id"):
            if isinstance(message.get(key), str):
                yield f"{at}.{key}", message[key]
        yield from _content(at, message)
        calls = message.get("tool_calls")
        for number, call in enumerate(calls if isinstance(calls, (list, tuple)) else ()):
            yield from _tool_call(f"{at}.tool_calls.{number}.tool_call", call)


def _content(at: str, message: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    content, reasoning = message.get("content"), message.get("reasoning_content")
    parts = list(content) if isinstance(content, list) else []
    if isinstance(reasoning, str):
        first = [{"type": "text", "text": content}] if isinstance(content, str) else parts
        parts = [{"type": "reasoning", "text": reasoning}, *first]
    elif isinstance(content, str):
        yield f"{at}.content", content
    elif isinstance(message.get("refusal"), str):
        yield f"{at}.content", message["refusal"]
    for number, part in enumerate(parts):
        yield from _part(f"{at}.contents.{number}.message_content", part)


def _part(at: str, part: Any) -> Iterator[tuple[str, Any]]:
    if not isinstance(part, Mapping):
        part = {"type": "text", "text": str(part)}
    if part.get("type") == "image_url":
        image = part.get("image_url")
        yield f"{at}.type", "image"
        yield f"{at}.image.image.url", str(image.get("url") if isinstance(image, Mapping) else image)
    elif isinstance(part.get("text"), str):
        yield f"{at}.type", str(part.get("type") or "text")
        yield f"{at}.text", part["text"]
    else:
        yield f"{at}.type", str(part.get("type") or "unknown")


def _tool_call(at: str, call: Any) -> Iterator[tuple[str, Any]]:
    known = call if isinstance(call, Mapping) else {}
    function = known.get("function")
    function = function if isinstance(function, Mapping) else {}
    for key, value in (
        ("id", known.get("id")),
        ("function.name", function.get("name")),
        ("function.arguments", function.get("arguments")),
    ):
        if isinstance(value, str):
            yield f"{at}.{key}", value
