"""What an attribute of a foreign span stands for: the value itself, JSON text, or the ``repr`` of a value."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

from ...codec import json_values
from ...codec.json_values import as_json
from ...codec.token_ids import TokenIds


def value_of(value: Any) -> Any:
    """Return the value of an attribute that may be text of one; ``None`` for text that is neither. Never raises."""
    if not isinstance(value, str):
        return list(value) if isinstance(value, (tuple, TokenIds)) else value
    try:
        return json_values.parse(value)
    except ValueError:
        pass
    try:
        return as_json(ast.literal_eval(value))
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return None


def first(attributes: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    """Return the first of these attributes that is there."""
    for name in names:
        value = attributes.get(name)
        if value is not None:
            return value
    return None
