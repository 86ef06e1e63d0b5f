"""JSON answers, the same for every route."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flask import Response, request

from .recorder import to_text

Json = Mapping[str, Any] | list[Any] | str


def answer(value: Json, status: int = 200) -> Response:
    """Return JSON."""
    return Response(to_text(value) + "\n", status, content_type="application/json")


def problem(status: int, text: str) -> Response:
    """Return an error; some clients read ``error``, some ``message``."""
    return answer({"error": text, "message": text, "path": request.path}, status)
