"""JSON values, of a text and of any value of Python.

A text is parsed by a fast parser, and where that refuses by Python's own, which reads more.
"""

from __future__ import annotations

import json
from typing import Any, Final

import msgspec


def parse(data: bytes | str) -> Any:
    """Return the JSON value that ``data`` is.

    Python's parser reads NaN, infinities, lone surrogates, and bytes in UTF-16 and UTF-32 as well.

    Raises:
        ValueError: It is none, or is nested too deep to be read.
    """
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, ValueError, RecursionError):
        pass
    try:
        return json.loads(data)
    except RecursionError as error:
        raise ValueError("nested too deep") from error


PLAIN: Final = frozenset({str, int, float, bool, type(None)})
"""Types of the values that are no list and no object."""
_WORDS: Final = {True: "true", False: "false", None: "null"}


def as_json(value: Any) -> Any:
    """Return a copy that holds JSON values only: what parsing the JSON text of ``value`` would give.

    Tuples become lists, keys become texts, and what JSON cannot say becomes its ``str``.

    Raises:
        TypeError: A key is neither a text, a number, a boolean nor ``None``.
        RecursionError: It is nested too deep, or holds itself.
    """
    if type(value) in PLAIN:
        return value
    if isinstance(value, (list, tuple)):
        # Most lists hold token ids or log-probabilities.
        return list(value) if PLAIN.issuperset(map(type, value)) else [as_json(each) for each in value]
    if isinstance(value, dict):
        return {key if type(key) is str else _key(key): as_json(each) for key, each in value.items()}
    return _of_subclass(value)


def _of_subclass(value: Any) -> Any:
    """Return the text or number that an instance of a subclass is, such as a member of an enumeration."""
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__index__(value)
    return float.__pos__(value) if isinstance(value, float) else str(value)


def _key(key: Any) -> str:
    if isinstance(key, str):
        return str.__str__(key)
    if key is None or isinstance(key, bool):
        return _WORDS[key]
    if isinstance(key, (int, float)):
        return int.__repr__(key) if isinstance(key, int) else json.dumps(float(key))
    raise TypeError(f"a key of an object is a text, not a {type(key).__name__}")
