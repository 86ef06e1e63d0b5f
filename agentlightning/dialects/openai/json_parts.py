"""Parts of JSON from servers of any kind: each function returns the value if it has the right type, else nothing."""

from __future__ import annotations

from typing import Any

from ...codec import json_values

LISTS = (list, tuple)  # a tuple is a list of ids that the parser of `answer_fields` has checked


def json_object(data: bytes | str) -> dict[str, Any] | None:
    """Return the JSON object that ``data`` is, or ``None`` where it is none."""
    try:
        found = json_values.parse(data)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def newer(known: Any, value: Any) -> Any:
    """Return the value, or what was known before where there is none."""
    return known if value is None else value


def append_to(chunks: list[Any], value: Any) -> None:
    """Append the value, unless there is none."""
    if value is not None:
        chunks.append(value)


def count_of(value: Any) -> int | None:
    """Return a whole number of 0 or more, or ``None``."""
    return value if type(value) is int and value >= 0 else None  # to `isinstance`, true is an int


def index_of(value: Any, default: int) -> int:
    """Return a whole number, or the default."""
    return value if type(value) is int else default


def text_of(value: Any) -> str | None:
    """Return a text that is not empty, or ``None``."""
    return value if isinstance(value, str) and value else None


def list_of(value: Any) -> list[Any]:
    """Return a list, or an empty one."""
    return value if isinstance(value, list) else []


def length_of(value: Any) -> int:
    """Return how long a list is; 0 where it is none."""
    return len(value) if isinstance(value, LISTS) else 0


def dict_of(value: Any) -> dict[str, Any]:
    """Return an object, or an empty one."""
    return value if isinstance(value, dict) else {}
