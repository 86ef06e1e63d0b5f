"""What an attribute stands for: the value itself, JSON text, or the ``repr`` of a value; and JSON text for one."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from typing import Any

from ...codec import json_values
from ...codec.json_text import is_utf8
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


_as_text = json.JSONEncoder(ensure_ascii=False, default=dict).encode
_as_ascii = json.JSONEncoder(default=dict).encode


def dumped(value: Any) -> str:
    """Return a JSON value, in which other mappings stand for objects, as the text of an attribute."""
    text = _as_text(value)
    # No store takes a lone surrogate; as an escape it is plain ASCII.
    return text if is_utf8(text) else _as_ascii(value)
