"""Files with documents of other tools: which format a file is in, and where in it something is wrong.

A file is read strictly as JSON is defined (RFC 8259): no NaN or infinity, no number that is more than a float holds, no
key twice in one object, no half of a character, nothing nested deeper than 200 levels. Each of these would be read
differently by another tool, or could not be written again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..codec.json_copy import DEEPEST
from ..errors import NotADocument
from . import atif_reading, sts_reading
from .atif_schema import place_of
from .content import SURROGATE
from .imported import Imported

FORMATS = ("atif", "sts")

_DIGITS = 1_000
"""Of a whole number; Python reads some thousands, and no count has as many."""


def read_documents(
    path: Path,
    *,
    format: str | None = None,  # noqa: A002 - the option's name
    name: str | None = None,
) -> Iterator[Imported]:
    """Yield the documents of a file, each checked; the format is recognised unless it is given.

    Args:
        path: A file of one ATIF document, of one a line, or of one session in STS-Format.
        format: ``atif`` or ``sts``; ``None`` = by what it holds.
        name: What errors call the file; default: ``path``.

    Raises:
        NotADocument: It is none of these, or something in it is not allowed; with the file and the place.
        OSError: It cannot be read.
    """
    try:
        yield from _documents(_text_of(path), format)
    except NotADocument as error:
        file = name or str(path)
        place = f"{file}: {error.place}" if error.place else file
        raise NotADocument(place, error.sentence) from None


def _text_of(path: Path) -> str:
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise NotADocument(
            f"line {line}", f"byte {error.start:,} is no UTF-8; is this a file of JSON?"
        ) from None


def _documents(text: str, wanted: str | None) -> Iterator[Imported]:
    if not text.strip():
        raise NotADocument("", "it is empty")
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    whole = _whole(text) if len(lines) > 1 else None
    first = whole if whole is not None else _line(*lines[0])
    kind = wanted or _recognised(first)
    if kind == "sts":
        if not isinstance(first, dict) or first.get("type") != "session":
            raise NotADocument(f"line {lines[0][0]}", 'the first line of a session has "type": "session"')
        yield sts_reading.read([_line(*each) for each in lines], [number for number, _ in lines])
    elif whole is not None:
        yield _atif(whole, "")
    else:
        for number, line in lines:
            yield _atif(_line(number, line), "" if len(lines) == 1 else f"line {number}: ")


def _atif(value: Any, before: str) -> Imported:
    try:
        return atif_reading.read(value)
    except NotADocument as error:
        raise NotADocument(f"{before}{error.place}", error.sentence) from None


def _whole(text: str) -> Any:
    """Return the value of a text that is one JSON value over several lines; ``None`` where it is not one."""
    try:
        json.loads(text)
    except ValueError as error:
        # What follows a whole value is the next line's.
        if getattr(error, "msg", "") == "Extra data":
            return None
    except RecursionError:
        pass
    return _parsed(text, "")


def _line(number: int, line: str) -> Any:
    return _parsed(line, f"line {number}")


def _recognised(first: Any) -> str:
    """Return the format of a file, by the first value in it.

    Raises:
        NotADocument: It is none that is read here.
    """
    keys = first.keys() if isinstance(first, dict) else set()
    if ("schema_version" in keys and "steps" in keys) or str(_get(first, "schema_version")).startswith(
        "ATIF"
    ):
        return "atif"
    if _get(first, "type") == "session":
        return "sts"
    other = next((name for name, is_one in _OTHERS.items() if is_one(first)), None)
    known = "it is neither an ATIF document nor a session in STS-Format"
    raise NotADocument("", f"it is a session file of {other}, which is not read here yet" if other else known)


def _get(value: Any, key: str) -> Any:
    return value.get(key) if isinstance(value, dict) else None


_OTHERS: Mapping[str, Callable[[Any], bool]] = {
    "Claude Code": lambda first: _get(first, "sessionId") is not None,
    "Codex": lambda first: _get(first, "type") == "session_meta",
}
"""Agents whose session files are known by their first line."""


# ---------------------------------------------------------------------- strict JSON


def _parsed(text: str, place: str) -> Any:
    try:
        value = json.loads(text, parse_int=_int, object_pairs_hook=_object)
    except RecursionError:
        raise NotADocument(place, f"it is nested deeper than {DEEPEST} levels") from None
    except json.JSONDecodeError as error:
        at = place or f"line {error.lineno}"
        is_cut = error.msg.startswith("Unterminated string") or error.pos >= len(text.rstrip())
        hint = "; it ends in the middle" if is_cut else ""
        raise NotADocument(f"{at}, column {error.colno}", f"it is no JSON: {error.msg}{hint}") from None
    except ValueError as error:
        raise NotADocument(place, str(error)) from None
    fault = _strange(value)
    if fault is not None:
        inside, sentence = fault
        raise NotADocument(f"{place}: {inside}" if place else inside, sentence)
    return value


def _int(text: str) -> int:
    if len(text) > _DIGITS:
        raise ValueError(f"a number has {len(text):,} digits, more than the {_DIGITS:,} that are read here")
    return int(text)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"an object has the key {twice[:60]!r} twice")
    return found


def _strange(value: Any) -> tuple[str, str] | None:
    """Return where a value holds what cannot be kept or written again, and what it is."""
    pending: list[tuple[Any, tuple[Any, ...]]] = [(value, ())]
    while pending:
        each, path = pending.pop()
        if isinstance(each, str):
            if not each.isascii() and SURROGATE.search(each):
                return place_of(path), "it has half of a character (a lone surrogate)"
        elif isinstance(each, float):
            if not math.isfinite(each):
                return place_of(
                    path
                ), "it is NaN, an infinity or more than a number holds, and no number in JSON"
        elif isinstance(each, (dict, list)) and each:
            if len(path) > DEEPEST:
                return place_of(path[:4]), f"it is nested deeper than {DEEPEST} levels"
            pending.extend(_inside(each, path))
    return None


def _inside(each: dict[str, Any] | list[Any], path: tuple[Any, ...]) -> Iterable[tuple[Any, tuple[Any, ...]]]:
    if isinstance(each, list):
        # Token ids and log-probabilities are most of a document.
        kinds = {*map(type, each)}
        if kinds == {int} or (kinds == {float} and all(map(math.isfinite, each))):
            return ()
        return [(item, (*path, at)) for at, item in enumerate(each)]
    return [
        *((item, (*path, key)) for key, item in each.items()),
        *((key, (*path, key)) for key in each if not key.isascii()),
    ]
