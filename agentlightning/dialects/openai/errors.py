"""Errors that come in the place of an answer, or in the middle of a stream."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def error_of(found: Mapping[str, Any]) -> str | None:
    """Return the kind of error that a JSON object stands for, whatever its HTTP status, or ``None``.

    ``error`` is the OpenAI API's; ``"object": "error"`` was vLLM's until 0.10, ``"type": "error"`` is Anthropic's.
    """
    error = found.get("error")
    if not error:
        if "choices" in found or (found.get("object") != "error" and found.get("type") != "error"):
            return None
        error = {name: found.get(name) for name in ("code", "type")}
    kind = error.get("type") or error.get("code") if isinstance(error, dict) else None
    return str(kind or "error")


def written_error(message: str, *, kind: str, code: str | int | None = None) -> dict[str, Any]:
    """Return an error in the shape of the OpenAI API.

    Args:
        message: For a person.
        kind: Its type, such as ``invalid_request_error``.
        code: The engine's; vLLM gives the HTTP status.
    """
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}
