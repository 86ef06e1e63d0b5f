"""Messages of a model call that stand in events of its span instead of in its attributes.

Read are the forms that OpenTelemetry's GenAI conventions have had: an event for each message and choice
(``gen_ai.user.message``, ``gen_ai.choice``; up to 1.36), before that one for all (``gen_ai.content.prompt``,
``gen_ai.content.completion``), and now ``gen_ai.client.inference.operation.details`` with the attributes of the span.
Some write the first form as a JSON list in the attribute ``events`` (Pydantic AI, version 1). Strands writes the
content blocks of Bedrock's Converse API into it. Pure functions; nothing raises.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .attribute_values import value_of

DETAILS = "gen_ai.client.inference.operation.details"
_CHOICE = "gen_ai.choice"
_PROMPT, _COMPLETION = "gen_ai.content.prompt", "gen_ai.content.completion"
_ROLES = {
    "gen_ai.system.message": "system",
    "gen_ai.user.message": "user",
    "gen_ai.assistant.message": "assistant",
    "gen_ai.tool.message": "tool",
}


@dataclass(slots=True)
class EventMessages:
    """What the events of a span say."""

    asked: list[Any] = field(default_factory=list)
    """Messages of the OpenAI API, or what stands in the place of one."""
    choices: list[Any] = field(default_factory=list)
    """Choices of the OpenAI API."""
    attributes: dict[str, Any] = field(default_factory=dict)
    """Attributes of the call."""


def messages_of(events: Iterable[tuple[str, Mapping[str, Any]]]) -> EventMessages:
    """Return the messages that events of these names and attributes stand for."""
    found = EventMessages()
    for name, attributes in events:
        body = _body(attributes)
        if name == DETAILS:
            found.attributes.update(attributes)
        elif name in _ROLES:
            found.asked.append(_message(body, _ROLES[name]))
        elif name == _CHOICE:
            found.choices.append(_choice(body, len(found.choices)))
        elif name == _PROMPT:
            found.asked += _listed(attributes.get("gen_ai.prompt"))
        elif name == _COMPLETION:
            said = _listed(attributes.get("gen_ai.completion"))
            found.choices += [{"index": index, "message": each} for index, each in enumerate(said)]
    return found


def events_in(value: Any) -> list[tuple[str, Mapping[str, Any]]]:
    """Return the events that an attribute lists as JSON."""
    listed = value_of(value)
    return [
        (str(event.get("event.name") or event.get("name")), event)
        for event in (listed if isinstance(listed, list) else ())
        if isinstance(event, dict)
    ]


def _body(attributes: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the body: some put all of it into one attribute as JSON."""
    for key in ("gen_ai.event.content", "event_body", "body"):
        found = value_of(attributes.get(key))
        if isinstance(found, dict):
            return found
    return attributes


def _message(body: Mapping[str, Any], role: str) -> dict[str, Any]:
    content = body.get("content")
    message: dict[str, Any] = {"role": body.get("role") or role, **_content(content)}
    # An attribute of a span or event is no object: tool calls come as JSON, or as a list in a body.
    calls = value_of(body.get("tool_calls"))
    if isinstance(calls, list) and calls:
        message["tool_calls"] = calls
    if message["role"] == "tool":  # the conventions' events had the id of the call under `id`
        message.setdefault("tool_call_id", body.get("id") or body.get("tool_call_id"))
    if isinstance(body.get("name"), str) and "event.name" not in body:
        message["name"] = body["name"]
    return message


def _choice(body: Mapping[str, Any], position: int) -> dict[str, Any]:
    # An object in the conventions; others write the text alone, or either as JSON.
    said = body.get("message")
    read = value_of(said) if isinstance(said, str) and said.lstrip().startswith(("{", "[")) else said
    if isinstance(read, dict):
        message = _message(read, "assistant")
    else:
        message = _message({**body, "content": read if isinstance(read, list) else said}, "assistant")
    index = body.get("index")
    return {
        "index": index if type(index) is int else position,
        "message": message,
        "finish_reason": body.get("finish_reason"),
    }


def _listed(value: Any) -> list[Any]:
    found = value_of(value)
    if isinstance(found, list):
        return found
    return [] if value is None else [{"content": value}]


# ---------------------------------------------------------------------- Bedrock's content blocks


def _content(content: Any) -> dict[str, Any]:
    read = value_of(content) if isinstance(content, str) and content.lstrip().startswith("[") else content
    if not isinstance(read, list) or not read or not all(map(_is_block, read)):
        return {"content": content}
    message: dict[str, Any] = {"content": None}
    texts = [block["text"] for block in read if isinstance(block.get("text"), str)]
    if texts:
        message["content"] = (
            texts[0] if len(texts) == 1 else [{"type": "text", "text": each} for each in texts]
        )
    calls = [_tool_call(block["toolUse"]) for block in read if isinstance(block.get("toolUse"), dict)]
    if calls:
        message["tool_calls"] = calls
    for block in read:
        result = block.get("toolResult")
        if isinstance(result, dict):  # Bedrock has a tool's result in a message of the user
            message = {**message, **_content(result.get("content")), "role": "tool"}
            message["tool_call_id"] = result.get("toolUseId")
    return message


def _is_block(part: Any) -> bool:
    return (
        isinstance(part, dict)
        and "type" not in part
        and not {"text", "toolUse", "toolResult"}.isdisjoint(part)
    )


def _tool_call(use: Mapping[str, Any]) -> dict[str, Any]:
    arguments = use.get("input")
    return {
        "id": use.get("toolUseId"),
        "type": "function",
        "function": {
            "name": use.get("name"),
            "arguments": arguments if isinstance(arguments, str) else json.dumps(arguments),
        },
    }
