"""Every attempt of a file beside what its writers say of it, in a few statements for thousands of attempts.

One query for each attempt would take minutes for 100,000 of them. SQLite counts, and looks whether the JSON of a span
is whole; only spans that it cannot tell this of are read.
"""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from ...types import Account, Receipt
from ..base import writer_is_gone
from ..tables import SpanCounts
from ..transaction import receipt_from
from .accounts import account_of
from .statements import SQL

ATTEMPTS_AT_ONCE: Final = 2_000
"""Attempts that are looked at in one transaction: a long one would keep the log from being copied into the file."""


@dataclass(frozen=True)
class AttemptAudit:
    """One attempt as it was found."""

    receipt: Receipt
    rollout_is_over: bool
    readable: int
    """Stored spans that can be read."""
    numbers: int
    """Different sequence ids of the stored spans."""
    lowest: int
    """The lowest of them, 1 where there is none."""
    highest: int
    """The highest of them, 0 where there is none."""


Range = tuple[int, int]
Unreadable = Callable[[tuple[str, str], tuple[Any, ...]], bool]
"""Whether a row of a span, of the attempt with these ids, cannot be read."""


def ranges(last: int) -> Iterator[Range]:
    """Yield the keys of the attempts up to the last, in parts."""
    for first in range(1, last + 1, ATTEMPTS_AT_ONCE):
        yield first, min(last, first + ATTEMPTS_AT_ONCE - 1)


def audited(
    connection: sqlite3.Connection,
    keys: Range,
    last_seen: Callable[[str], float | None],
    is_unreadable: Unreadable,
) -> list[AttemptAudit]:
    """Return the attempts with keys in a range."""

    def rows(name: str) -> Iterator[tuple[Any, ...]]:
        return iter(connection.execute(SQL[name], keys))

    spans = {key: found for key, *found in rows("audited_spans")}
    opened = {key: (count, undeclared) for key, count, undeclared in rows("audited_open_spans")}
    late = dict(rows("audited_late_spans"))
    attempts = list(rows("audited_attempts"))
    ids = {key: (rollout_id, attempt_id) for key, rollout_id, attempt_id, *_ in attempts}
    accounts: Mapping[int, list[Account]] = _accounts(rows("audited_accounts"), ids)
    unreadable: dict[int, int] = defaultdict(int)
    for row in rows("doubtful_spans"):
        if row[1] in ids:
            unreadable[row[1]] += is_unreadable(ids[row[1]], row)
    found = []
    for key, _, _, status, end_time in attempts:
        stored, undeclared, numbers, lowest, highest = spans.get(key, (0, 0, 0, 1, 0))
        open_, undeclared_open = opened.get(key, (0, 0))
        counts = SpanCounts(stored, open_, int(undeclared + undeclared_open), late.get(key, 0))
        receipt = receipt_from(
            ids[key],
            status,
            accounts.get(key, []),
            counts,
            lambda writer_id: writer_is_gone(writer_id, last_seen),
        )
        found.append(
            AttemptAudit(
                receipt, end_time is not None, stored - unreadable.get(key, 0), numbers, lowest, highest
            )
        )
    return found


def _accounts(
    rows: Iterator[tuple[Any, ...]], ids: Mapping[int, tuple[str, str]]
) -> Mapping[int, list[Account]]:
    found: dict[int, list[Account]] = defaultdict(list)
    for key, *row in rows:
        if key in ids:  # of others, the check of references tells
            found[key].append(account_of(ids[key], tuple(row)))
    return found
