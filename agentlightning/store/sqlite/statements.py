"""The named statements of ``sql/*.sql``, and how a query becomes the tail of one.

A file holds statements, each under a line ``-- name: …`` and a sentence that says what it is for. What cannot be
written down beforehand, the conditions and the order of a :class:`~agentlightning.store.query.Query`, is put
together here from column names of ours and placeholders, never from values.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from ...codec.json_text import dumps, is_utf8
from ..query import Condition, Query

_NAME: Final = re.compile(r"^-- name: (\w+)\n", re.MULTILINE)
MOST_VALUES: Final = 512
"""Placeholders of one statement; a longer list is looked up in parts. SQLite takes 32,766."""


def load_statements(folder: Path) -> dict[str, str]:
    """Return the statements of the folder's ``.sql`` files by name, without comments and semicolons."""
    statements: dict[str, str] = {}
    for path in sorted(folder.glob("*.sql")):
        _, *parts = _NAME.split(path.read_text(encoding="utf-8"))
        for name, body in zip(parts[::2], parts[1::2], strict=True):
            lines = [line for line in body.splitlines() if not line.startswith("--")]
            statements[name] = "\n".join(lines).strip().removesuffix(";")
    return statements


SQL: Final = load_statements(Path(__file__).parent / "sql")


def in_parts(values: Sequence[str]) -> list[tuple[str, tuple[str, ...]]]:
    """Cut values for ``IN``: a list of placeholders, and the values for them.

    Lists are filled up to a power of two by repeating the last value, so that few different statements are made
    and SQLite keeps them prepared.
    """
    parts = []
    for start in range(0, len(values), MOST_VALUES):
        part = tuple(values[start : start + MOST_VALUES])
        size = 1 << (len(part) - 1).bit_length()
        parts.append((placeholders(size), part + part[-1:] * (size - len(part))))
    return parts


def placeholders(number: int) -> str:
    """Return ``(?,?,…)``."""
    return f"({','.join('?' * number)})"


def where(query: Query, *always: str) -> tuple[str, list[Any]] | None:
    """Return the ``WHERE`` clause of a query and its parameters, ``None`` where SQL cannot say it.

    SQL cannot say a text with lone surrogates: a column never holds one.
    """
    parts: list[str] = []
    parameters: list[Any] = []
    for condition in query.conditions:
        said = _condition(condition)
        if said is None:
            return None
        parts.append(said[0])
        parameters += said[1]
    clauses = list(always)
    if parts:
        clauses.append(f"({f' {query.logic} '.join(parts)})")
    return (f" WHERE {' AND '.join(clauses)}" if clauses else "", parameters)


def _condition(condition: Condition) -> tuple[str, Sequence[Any]] | None:
    if condition.kind == "has" and len(condition.value) <= MOST_VALUES:
        tagged = f"rollout_key IN ({SQL['tagged']})"
        return f"({' AND '.join([tagged] * len(condition.value)) or '0'})", list(map(dumps, condition.value))
    values = (condition.value,) if isinstance(condition.value, str) else condition.value
    if len(values) > MOST_VALUES or not all(map(is_utf8, values)):
        return None
    if condition.kind == "equals":
        return f"{condition.field} = ?", values
    if condition.kind == "within":
        return f"{condition.field} IN {placeholders(len(values))}", values
    return f"instr({condition.field}, ?) > 0", values


def order(query: Query, creation: str) -> str:
    """Return the ``ORDER BY`` clause of a query; ``creation`` is the column of the order of creation."""
    if query.sort_by is None:
        return f" ORDER BY {creation}"
    direction = "DESC" if query.descending else "ASC"
    return f" ORDER BY {query.sort_by} IS NULL, {query.sort_by} {direction}, {creation}"


def page(query: Query) -> str:
    """Return the ``LIMIT`` clause of a query; SQLite takes -1 for no limit."""
    return "" if query.limit < 0 and not query.offset else f" LIMIT {query.limit} OFFSET {query.offset}"
