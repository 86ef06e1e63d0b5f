"""Tool calls, whole or in pieces: which piece goes on with which call."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ...codec import json_values
from .json_parts import dict_of, text_of
from .received import ReceivedChoice


def add_tool_call(parts: ReceivedChoice, index: int, tool: Mapping[str, Any]) -> None:
    """Add a tool call, or a piece of one, that came under an index."""
    function = dict_of(tool.get("function") or tool.get("custom"))
    name, tool_id = text_of(function.get("name")) or "", text_of(tool.get("id"))
    calls = parts.tools.setdefault(index, [])
    known = next((call for call in calls if tool_id is not None and call["id"] == tool_id), None)
    if known is None and (not calls or _begins_another(calls[-1], tool_id, name)):
        calls.append({"id": None, "type": "function", "name": "", "arguments": []})
    known = known or calls[-1]
    known["id"] = tool_id or known["id"]
    known["type"] = text_of(tool.get("type")) or known["type"]
    if function:
        known["name"] += name if name != known["name"] else ""
        arguments = function.get("arguments", function.get("input"))
        if isinstance(arguments, str):
            known["arguments"].append(arguments)
        elif arguments is not None:
            known["arguments"].append(json.dumps(arguments))


def _begins_another(known: Mapping[str, Any], tool_id: str | None, name: str) -> bool:
    """Whether a piece of a tool call is of another call than the last one of its index.

    Some servers send each parallel call whole, and all under index 0 or under none.
    """
    if tool_id is not None and known["id"] is not None:
        return True
    if not name or not known["name"]:
        return False
    # Some servers repeat the name with each piece of the arguments; arguments that are whole take no further piece.
    said = "".join(known["arguments"])
    return tool_id is not None or bool(said and (name != known["name"] or _is_json(said)))


def _is_json(text: str) -> bool:
    try:
        json_values.parse(text)
    except ValueError:
        return False
    return True
