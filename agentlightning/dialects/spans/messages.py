"""OpenAI chat messages ⇄ the messages of OpenTelemetry's GenAI conventions.

OpenTelemetry writes ``{"role", "parts": [{"type": "text" | "tool_call" | …}]}`` (semantic conventions 0.66b2,
``gen_ai.input.messages``). The way there and back is exact: what the parts cannot express keeps the original
message beside them, under ``ORIGINAL``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

ORIGINAL = "agentlightning.message"
"""Key of a GenAI message that holds the message as it was, where its parts do not say it all."""


def to_genai(message: Any) -> dict[str, Any]:
    """Return an OpenAI message in GenAI form; never raises on a JSON value."""
    if not isinstance(message, Mapping):
        return {"role": "user", "parts": [], ORIGINAL: message}
    match message:
        case {"role": str(role), "content": str(content)} if len(message) == 2 and role and role != "tool":
            return {"role": role, "parts": [{"type": "text", "content": content}]}  # as most are
    found: dict[str, Any] = {"role": message.get("role") or "user", "parts": _parts(message)}
    if "name" in message:
        found["name"] = message["name"]
    if _from_parts(found) != message:
        found[ORIGINAL] = dict(message)
    return found


def from_genai(message: Mapping[str, Any]) -> Any:
    """Return the OpenAI message of a GenAI message; never raises on a JSON value."""
    if ORIGINAL in message:
        return message[ORIGINAL]
    parts = message.get("parts")
    if type(parts) is list and len(parts) == 1 and "role" in message and "name" not in message:
        part = parts[0]
        # Most messages are one text. A pattern with ``match`` takes three times as long.
        if type(part) is dict and part.get("type") == "text" and "content" in part:
            return {"role": message["role"], "content": part["content"]}
    return _from_parts(message)


def _parts(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    content = message.get("content")
    parts: list[dict[str, Any]] = []
    if isinstance(message.get("reasoning_content"), str):
        parts.append({"type": "reasoning", "content": message["reasoning_content"]})
    if message.get("role") == "tool":
        return [
            *parts,
            {"type": "tool_call_response", "id": message.get("tool_call_id"), "response": content},
        ]
    if isinstance(content, str):
        parts.append({"type": "text", "content": content})
    elif isinstance(content, list):
        parts.extend(_content_part(part) for part in content)
    if isinstance(message.get("refusal"), str):
        parts.append({"type": "refusal", "content": message["refusal"]})
    tool_calls = message.get("tool_calls")
    parts.extend(_tool_call_part(call) for call in (tool_calls if isinstance(tool_calls, list) else ()))
    return parts


def _content_part(part: Any) -> dict[str, Any]:
    if not isinstance(part, Mapping):
        return {"type": "text", "content": str(part)}
    if part.get("type") == "text":
        return {"type": "text", "content": part.get("text")}
    if part.get("type") == "image_url":
        image = part.get("image_url")
        url = image.get("url") if isinstance(image, Mapping) else image
        return {"type": "uri", "modality": "image", "uri": url}
    return {"type": "unknown", **part}


def _tool_call_part(call: Any) -> dict[str, Any]:
    known = call if isinstance(call, Mapping) else {}
    function = known.get("function")
    function = function if isinstance(function, Mapping) else {}
    # Arguments stay the text that the model wrote: parsed and written anew it would not be the same tokens.
    return {
        "type": "tool_call",
        "id": known.get("id"),
        "name": function.get("name"),
        "arguments": function.get("arguments"),
    }


def _from_parts(message: Mapping[str, Any]) -> dict[str, Any]:
    parts = [part for part in message.get("parts") or () if isinstance(part, Mapping)]
    kinds = {str(part.get("type")) for part in parts}
    found: dict[str, Any] = {"role": message.get("role")}
    if "name" in message:
        found["name"] = message["name"]
    if "tool_call_response" in kinds:
        answer = next(part for part in parts if part.get("type") == "tool_call_response")
        value = answer.get("response", answer.get("result"))
        # Some give the result under the role of the user who hands it over, and parsed.
        return {**found, "role": "tool", "tool_call_id": answer.get("id"), "content": _as_content(value)}
    content = [_to_content(part) for part in parts if part.get("type") not in _NOT_CONTENT]
    plain = len(content) == 1 and content[0].get("type") == "text"
    found["content"] = content[0].get("text") if plain else content or None
    for kind, key in (("reasoning", "reasoning_content"), ("refusal", "refusal")):
        if kind in kinds:
            found[key] = "".join(str(part.get("content") or "") for part in parts if part.get("type") == kind)
    if "tool_call" in kinds:
        found["tool_calls"] = [_to_tool_call(part) for part in parts if part.get("type") == "tool_call"]
    return found


def _as_content(value: Any) -> Any:
    return value if value is None or isinstance(value, (str, list)) else json.dumps(value, ensure_ascii=False)


_NOT_CONTENT = frozenset({"reasoning", "refusal", "tool_call", "tool_call_response"})


def _to_content(part: Mapping[str, Any]) -> dict[str, Any]:
    if part.get("type") == "text":
        return {"type": "text", "text": part.get("content")}
    if part.get("type") == "uri" and part.get("modality") == "image":
        return {"type": "image_url", "image_url": {"url": part.get("uri")}}
    return dict(part)


def _to_tool_call(part: Mapping[str, Any]) -> dict[str, Any]:
    arguments = part.get("arguments")
    if arguments is not None and not isinstance(arguments, str):  # others parse what the model wrote
        arguments = json.dumps(arguments, ensure_ascii=False)
    return {
        "id": part.get("id"),
        "type": "function",
        "function": {"name": part.get("name"), "arguments": arguments},
    }
