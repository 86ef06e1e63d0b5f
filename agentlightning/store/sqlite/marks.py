"""Marks on the file itself: what is written over a store in place, or takes its log away, cannot bring them along.

A writer leaves a random mark in the store with its first commit, every ten seconds and at its end, and then the same
mark on the file, as an extended attribute of the inode. A copy of another moment that is written over the file leaves
the attribute as it is, and has not the mark that it names; a file that was replaced or copied is another inode, and one
that was moved is the same store. Once the log is copied into the file, the number of the mark is put on the file, too:
then it is found by whoever reads the file alone, and missing there where a copy was written beneath a log of another
state. Attributes are set by name: no descriptor of the file is opened and closed (see :mod:`.connection`). Where the
system or the file system has no such attributes, nothing is noticed.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote

from .statements import SQL

LATEST: Final = "user.agentlightning.mark"
COPIED: Final = "user.agentlightning.copied"
KEPT: Final = 1_000
"""Marks in the store: a process may be stopped for long between its commit and its mark on the file."""
READS: Final = 5
"""How often a file is read again whose latest mark was another one a moment ago."""
LACKS: Final = "a copy of another moment was written over it, its log was taken away, or the power was lost"
MIXED: Final = (
    "a copy of another moment was written over it while the log beside it was that of another state"
)


@dataclass(frozen=True)
class Mark:
    """One mark."""

    number: int
    text: str


@dataclass(frozen=True)
class Found:
    """What is on the file; read it before the store, for a mark is in the store before it is on the file."""

    mark: str | None
    copied: int | None
    alone: int | None
    """The latest number in the file without its log, where there is a log."""

    @classmethod
    def on(cls, path: Path, *, with_log: bool) -> Found:
        """Look at a file."""
        mark, copied = _attribute(path, LATEST), _attribute(path, COPIED)
        number = int(copied) if copied is not None and copied.isdigit() else None
        return cls(mark, number, number_alone(path) if with_log and number is not None else None)

    @property
    def is_mixed(self) -> bool:
        """Whether the file is older than what was copied into it."""
        return self.copied is not None and self.alone is not None and self.alone < self.copied


def leave_mark(connection: sqlite3.Connection) -> Mark:
    """Leave a new mark in the store, in the transaction under way, and return it for :func:`put_on`."""
    text = secrets.token_hex(8)
    number = connection.execute(SQL["add_mark"], (text,)).lastrowid
    assert number is not None
    connection.execute(SQL["put_latest_mark"], (number,))
    connection.execute(SQL["forget_marks"], (number - KEPT,))
    return Mark(number, text)


def put_on(path: Path, mark: Mark, *, copied: bool = False) -> None:
    """Put a mark that is committed on the file, and its number once the log is ``copied`` into the file."""
    if not hasattr(os, "setxattr"):
        return
    with suppress(OSError):  # there is no such thing here, or no right to it
        os.setxattr(path, LATEST, mark.text.encode())
        if copied:
            os.setxattr(path, COPIED, str(mark.number).encode())


def number_alone(path: Path) -> int | None:
    """Return the number of the latest mark in a file without its log; ``None`` where it cannot be told now.

    Nothing is locked, so another process may be copying its log into the file meanwhile: only what is read twice is
    taken for what is there.
    """
    before = _read_alone(path)
    for _ in range(READS):
        number = _read_alone(path)
        if number == before:
            return number
        before = number
    return None


def _read_alone(path: Path) -> int | None:
    address = f"file://{quote(os.fsencode(path))}?mode=ro&immutable=1"
    with suppress(sqlite3.Error), closing(sqlite3.connect(address, uri=True, timeout=0)) as connection:
        ((number,),) = connection.execute(SQL["latest_mark"]).fetchall()
        return int(number)
    return None


def has_mark(connection: sqlite3.Connection, mark: str) -> bool:
    """Whether a mark is among those that the store has."""
    ((found,),) = connection.execute(SQL["has_mark"], (mark,)).fetchall()
    return bool(found)


def _attribute(path: Path, name: str) -> str | None:
    if not hasattr(os, "getxattr"):
        return None
    try:
        return os.getxattr(path, name).decode("ascii", "replace")
    except OSError:
        return None
