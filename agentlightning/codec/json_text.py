"""JSON text that gives every value back exactly, also those that JSON has no words for.

NaN and infinities, text with lone surrogates and maps with such keys become small objects whose only key begins
with ``$``; a real object of that form gets one more ``$``. So the text is always valid JSON and valid UTF-8, any
tool can read it, and ``loads(dumps(value)) == value`` for every value made of dicts with text keys, lists, text,
bools, floats, ``None`` and integers of any size. What is something else is made such a value first
(``types.tracer.to_attribute_value``).

=================  =========================================================
``{"$float": x}``  ``x`` is ``"nan"``, ``"inf"`` or ``"-inf"``
``{"$utf8": x}``   text with lone surrogates: base64 of its UTF-8 bytes, surrogates included
``{"$pairs": x}``  an object as ``[[key, value], …]``
``{"$array": n}``  the ``n``-th of the values that are kept beside the text
``{"$$…": x}``     an object with the only key ``$…``
=================  =========================================================
"""

from __future__ import annotations

import json
import math
from base64 import b64decode, b64encode
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import msgspec
from pydantic_core import from_json

from ..types.attributes import to_attribute_value

_SCALARS = frozenset({str, int, float, bool, type(None)})
_TEXT = frozenset({str})
_MARK = '{"$'

# What is plain goes this way: msgspec would write NaN as null and bytes as base64, without a word.
_fast_dumps = msgspec.json.Encoder().encode
_dumps = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


class Slot(dict[str, int]):
    """The place of a value that is kept beside the text; encodes as ``{"$array": n}``."""

    def __init__(self, number: int) -> None:
        super().__init__({"$array": number})


_FLAT = _SCALARS | {Slot}


def dumps(value: Any) -> str:
    """Return the text of a value, in which :class:`Slot` objects may stand."""
    return dump_bytes(value).decode()


def dump_bytes(value: Any) -> bytes:
    """Return the text of a value in UTF-8, as :func:`dumps`."""
    if _is_plain(value):
        try:
            return _fast_dumps(value)
        except (UnicodeEncodeError, RecursionError):  # lone surrogates; nested deeper than msgspec goes
            pass
    return _dumps(_escape(value)).encode()


def loads(text: str, arrays: Sequence[Any] | Mapping[int, Any] = ()) -> Any:
    """Return the value of a text; ``arrays``, by their numbers, fill the slots."""
    try:
        value = from_json(text)
    except ValueError:  # nested deeper than the fast parser goes
        value = json.loads(text)
    # Looking for one character first is twenty times faster, and most texts have none.
    return _unescape(value, arrays) if "$" in text and _MARK in text else value


def _is_plain(value: Any) -> bool:
    """Whether a value is JSON as it stands: dicts with text keys, lists, scalars, no subclass, nothing marked."""
    kind = type(value)
    if kind is float:
        return math.isfinite(value)
    if kind in _FLAT:
        return True
    if kind is list:
        return _are_plain(value)
    if kind is not dict or not _TEXT.issuperset(map(type, value)):
        return False
    if len(value) == 1 and next(iter(value)).startswith("$"):
        return False
    return _are_plain(value.values())


def _are_plain(values: Collection[Any]) -> bool:
    # Most are scalars: looking at all types at once is five times faster than at each.
    kinds = set(map(type, values))
    if not kinds <= _FLAT:
        # map, because a generator would take a frame of its own at each depth.
        nested = [value for value in values if type(value) not in _FLAT]
        if not all(map(_is_plain, nested)):
            return False
    return float not in kinds or all(map(math.isfinite, [value for value in values if type(value) is float]))


def is_utf8(text: str) -> bool:
    """Whether a text has no lone surrogates."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _escape(value: Any) -> Any:
    kind = type(value)
    if kind is str:
        if is_utf8(value):
            return value
        return {"$utf8": b64encode(value.encode("utf-8", "surrogatepass")).decode("ascii")}
    if kind is float and not math.isfinite(value):
        return {"$float": repr(value)}
    if kind in _FLAT:
        return value
    if kind is list:
        return [_escape(item) for item in value]
    if kind is not dict:
        return _escape(to_attribute_value(value))
    if not all(type(key) is str and is_utf8(key) for key in value):
        return {"$pairs": [[_escape(str(key)), _escape(item)] for key, item in value.items()]}
    if len(value) == 1:
        ((key, item),) = value.items()
        return {f"${key}" if key.startswith("$") else key: _escape(item)}
    return {key: _escape(item) for key, item in value.items()}


def _unescape(value: Any, arrays: Sequence[Any] | Mapping[int, Any]) -> Any:
    if type(value) is list:
        return [_unescape(item, arrays) for item in value]
    if type(value) is not dict:
        return value
    if len(value) == 1:
        ((key, item),) = value.items()
        if key.startswith("$"):
            return _special(key, item, arrays)
    return {key: _unescape(item, arrays) for key, item in value.items()}


def _special(key: str, item: Any, arrays: Sequence[Any] | Mapping[int, Any]) -> Any:
    if key == "$array":
        return arrays[item]
    if key == "$float":
        return float(item)
    if key == "$utf8":
        return b64decode(item).decode("utf-8", "surrogatepass")
    if key == "$pairs":
        return {_unescape(name, arrays): _unescape(content, arrays) for name, content in item}
    if key.startswith("$$"):
        return {key[1:]: _unescape(item, arrays)}
    raise ValueError(f"{key!r} is no mark that this version knows")
