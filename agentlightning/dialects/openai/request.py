"""What a request asks for: messages, tools, how many answers, and the sampling settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..distribution import NEUTRAL
from ..model_call import Issue
from ..raw_call import Operation


def operation_of(method: str, path: str) -> Operation | None:
    """Return the operation of a request, or ``None`` where it is no model call.

    A base URL may have any path before these: ``/v1``, Azure's ``/openai/deployments/<name>``, a gateway's.
    """
    path = path.rstrip("/")
    if method != "POST" or not path.endswith("/completions"):
        return None
    return "chat" if path.endswith("/chat/completions") else "text_completion"


def request_messages(request: Mapping[str, Any], issues: list[Issue]) -> tuple[Mapping[str, Any], ...]:
    """Return the messages of a chat; what is none is left out, with an issue."""
    found = request.get("messages")
    if not isinstance(found, list):
        return ()
    for index, message in enumerate(found):
        if not isinstance(message, dict):
            issues.append(Issue("warn", "message_unreadable", f"request message {index}"))
    return tuple(message for message in found if isinstance(message, dict))


def request_tools(request: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    """Return the definitions of tools, those in the API's older form (``functions``) in the newer one."""
    tools = request.get("tools")
    if isinstance(tools, list):
        return tuple(tool for tool in tools if isinstance(tool, dict))
    functions = request.get("functions")  # the API's older form
    if isinstance(functions, list):
        return tuple({"type": "function", "function": each} for each in functions if isinstance(each, dict))
    return ()


def wanted_choices(request: Mapping[str, Any]) -> int | None:
    """Return how many choices the request asks for; ``None`` where that cannot be told."""
    each, prompts = request.get("n"), request.get("prompt")
    each = 1 if each is None else each
    if not isinstance(each, int):
        return None
    # A list of ids is one prompt; a list of texts, or of lists of ids, is as many.
    if isinstance(prompts, list) and prompts and not isinstance(prompts[0], int):
        return each * len(prompts)
    return each


def settings_in_force(
    requested: Mapping[str, Any], defaults: Mapping[str, Any] | None, said: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return the settings that were in force, so far as they are known."""
    # Only where somebody has said what the server applies, what nobody names is known to be neutral.
    neutral = {} if defaults is None else NEUTRAL
    stated = {name: value for name, value in (defaults or {}).items() if value is not None}
    return {**neutral, **stated, **requested, **(said or {})}
