"""Anything as plain JSON values of its own: what JSON can say of it, or an error that names the place."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from datetime import date, time
from enum import Enum
from pathlib import PurePath
from typing import Any
from uuid import UUID

from pydantic import BaseModel

from ..errors import InvalidArgument

DEEPEST = 200
"""Levels that a value may be nested; ``json.dumps`` gives up near 1,000, and no task is nested like this."""


def json_copy(name: str, value: Any) -> Any:
    """Return what JSON can say of a value, as new plain lists, dicts and scalars.

    Tuples become lists, and so do sets, in the order of their items' text. Dates and times become ISO 8601 text, paths
    and UUIDs text, members of enums their value, dataclasses and pydantic models maps of their fields, arrays (what has
    ``tolist``) lists.

    Raises:
        InvalidArgument: JSON cannot say something inside; the message says what and where (``input.items[3].when``).
    """
    return _json_copy(name, value, 0)


def _json_copy(place: str, value: Any, depth: int) -> Any:
    if value is None or type(value) in (str, bool, int, float):
        return value
    if depth > DEEPEST:
        raise too_deep(place)
    if isinstance(value, Mapping):
        return {
            _json_key(place, key): _json_copy(_item_place(place, key), item, depth + 1)
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_json_copy(f"{place}[{index}]", item, depth + 1) for index, item in enumerate(value)]
    if isinstance(value, Enum):
        return _json_copy(place, value.value, depth + 1)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    return _json_copy(place, _said_in_json(place, value), depth + 1)


def _said_in_json(place: str, value: Any) -> Any:
    """Return an object's nearest form in JSON, what is inside unchanged."""
    if isinstance(value, (date, time)):
        return value.isoformat()
    if isinstance(value, (PurePath, UUID)):
        return str(value)
    if isinstance(value, (set, frozenset)):
        return sorted(value, key=lambda item: (type(item).__name__, str(item)))
    if isinstance(value, BaseModel):
        return value.model_dump(warnings=False)
    if not isinstance(value, type):
        if dataclasses.is_dataclass(value):
            return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        if callable(getattr(value, "tolist", None)):
            return value.tolist()
    raise InvalidArgument(
        f"{place} is a {type(value).__qualname__}, which JSON cannot say; "
        "a store keeps text, numbers, true, false, null, lists and dicts of them"
    )


def _item_place(place: str, key: Any) -> str:
    return f"{place}.{key}" if isinstance(key, str) and key.isidentifier() else f"{place}[{key!r}]"


def too_deep(place: str) -> InvalidArgument:
    """Return the error for a value that is nested too deeply, or contains itself."""
    return InvalidArgument(
        f"{re.split(r'[.[]', place, maxsplit=1)[0]} is nested deeper than {DEEPEST} levels"
    )


def _json_key(place: str, key: Any) -> str:
    if not isinstance(key, str):
        raise InvalidArgument(f"{place} has the key {key!r}, which is not JSON; keys are text")
    return str.__str__(key)
