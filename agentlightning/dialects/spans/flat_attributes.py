"""Messages and tools that are written one attribute for each field, in the shapes of the OpenAI API.

``gen_ai.prompt.{i}.*`` of OpenLLMetry, AgentOps and Agent Lightning 0.3, ``llm.input_messages.{i}.message.*`` of
OpenInference, and their kin. Pure functions; nothing raises.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...codec.attributes import indexed_attributes, numbered_attributes
from ..model_call import Issue
from .attribute_values import value_of


def numbered_messages(
    attributes: Mapping[str, Any], numbered: str, open_inference: str, issues: list[Issue]
) -> list[dict[str, Any]]:
    """Return the messages under ``numbered.{i}``, else those of OpenInference, each with its ``index``.

    Args:
        attributes: Those of the span.
        numbered: Prefix of the older conventions.
        open_inference: OpenInference's prefix.
        issues: What cannot be read is appended here.
    """
    prefix, found = numbered, numbered_attributes(attributes, numbered)
    if not found:
        prefix, entries = open_inference, numbered_attributes(attributes, open_inference)
        found = {
            index: entry.get("message") if isinstance(entry, dict) else entry
            for index, entry in entries.items()
        }
    # A limit on attributes takes the oldest away: the first messages are gone, and with them their numbers.
    gone = range(min(found, default=0))
    issues += [Issue("warn", "message_unreadable", f"{prefix}.{index} is not there") for index in gone]
    read = []
    for index, entry in found.items():
        if isinstance(entry, dict):
            read.append({**_flat_message(entry), "index": index})
        else:
            issues.append(Issue("warn", "message_unreadable", f"{prefix}.{index}"))
    return read


def numbered_texts(attributes: Mapping[str, Any], prefix: str, inner: str) -> list[dict[str, Any]]:
    """Return the texts that OpenInference keeps of a completion, as messages."""
    entries = indexed_attributes(attributes, prefix)
    found = [entry.get(inner) if isinstance(entry, dict) else None for entry in entries]
    return [{"role": None, "content": each.get("text")} for each in found if isinstance(each, dict)]


def _flat_message(entry: Mapping[str, Any]) -> dict[str, Any]:
    # OpenLLMetry 0.33 writes the text of a completion's prompt under "user".
    content = entry.get("content", entry.get("user"))
    message: dict[str, Any] = {"role": entry.get("role"), "content": content}
    if content is None and isinstance(entry.get("contents"), list):
        message["content"] = [
            _open_inference_content(part) for part in entry["contents"] if isinstance(part, dict)
        ]
    for key in ("name", "tool_call_id", "finish_reason"):
        if entry.get(key) is not None:
            message[key] = entry[key]
    calls = entry.get("tool_calls")
    if isinstance(calls, list):
        message["tool_calls"] = [_flat_tool_call(call) for call in calls if isinstance(call, dict)]
    return message


def _open_inference_content(part: Mapping[str, Any]) -> dict[str, Any]:
    # OpenInference: `message.contents.{j}.message_content.text`, or `.image.image.url`.
    found = part.get("message_content")
    found = found if isinstance(found, dict) else {}
    image = found.get("image")
    if isinstance(image, dict):
        inner = image.get("image")
        return {
            "type": "image_url",
            "image_url": {"url": inner.get("url") if isinstance(inner, dict) else inner},
        }
    return {"type": "text", "text": found.get("text")}


def openai_message(message: Any) -> Any:
    """Return a message whose tool calls have the shape of the OpenAI API."""
    if not isinstance(message, dict) or not isinstance(message.get("tool_calls"), list):
        return message
    calls = [_flat_tool_call(call) for call in message["tool_calls"] if isinstance(call, dict)]
    return {**message, "tool_calls": calls}


def _flat_tool_call(call: Mapping[str, Any]) -> dict[str, Any]:
    # OpenInference nests `tool_call.function`; OpenLLMetry and AgentOps write id, name and arguments side by side.
    found = call.get("tool_call")
    found = found if isinstance(found, dict) else call
    function = found.get("function")
    function = function if isinstance(function, dict) else found
    return {
        "id": found.get("id"),
        "type": "function",
        "function": {"name": function.get("name"), "arguments": function.get("arguments")},
    }


def tool_definitions(attributes: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the tools that the model was offered."""
    definitions = value_of(attributes.get("gen_ai.tool.definitions"))
    if isinstance(definitions, list):
        return [_openai_tool(each) for each in definitions if isinstance(each, dict)]
    tools = []
    # The second is OpenLLMetry's, the others are AgentOps' and those of Agent Lightning 0.3.
    for prefix in ("gen_ai.request.functions", "llm.request.functions", "gen_ai.request.tools"):
        for entry in indexed_attributes(attributes, prefix):
            if isinstance(entry, dict):
                function = {**entry, "parameters": value_of(entry.get("parameters"))}
                tools.append({"type": "function", "function": function})
    for entry in indexed_attributes(attributes, "llm.tools"):
        tool = entry.get("tool") if isinstance(entry, dict) else None
        schema = value_of(tool.get("json_schema")) if isinstance(tool, dict) else None
        if isinstance(schema, dict):
            tools.append(schema)
    return tools


def _openai_tool(tool: dict[str, Any]) -> dict[str, Any]:
    """Return a definition in the shape of the OpenAI API; the conventions leave its inner object out."""
    if isinstance(tool.get("function"), dict) or "name" not in tool:
        return tool
    function = {name: value for name, value in tool.items() if name != "type"}
    return {"type": tool.get("type") or "function", "function": function}
