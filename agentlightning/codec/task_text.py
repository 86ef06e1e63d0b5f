"""What a task says as one text. Apart from ``json_values``: commands that list rollouts load no parser of JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def only_text(value: Any) -> str | None:
    """Return what a task says where that is one text: itself, or the only text in a mapping; nothing of ``None``.

    ``None``: it takes JSON to say it.
    """
    if isinstance(value, Mapping):
        texts = [each for each in value.values() if isinstance(each, str)]
        return texts[0] if len(texts) == 1 else None
    if value is None:
        return ""
    return value if isinstance(value, str) else None
