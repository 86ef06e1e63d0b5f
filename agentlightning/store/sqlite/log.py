"""The write-ahead log beside a store: how large it is, who keeps it from being reused, and making it small again.

SQLite copies the log into the file and begins it anew as soon as no reader looks at an older state. A reader that
stays, such as a database browser with an open query, keeps the log growing with every commit; once it has gone, the
next commits reuse the log, but nothing gives the room back by itself.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_log = logging.getLogger(__name__)

KEPT_BYTES: Final = 64 * 1024 * 1024
"""What a log keeps for reuse: twice the size at which it is copied into the file."""
LARGE_BYTES: Final = 256 * 1024 * 1024
"""A log of more is worth a word, and so is one of more than ``KEPT_BYTES`` that is larger than its file."""

TRIES: Final = 10
"""How often it is tried to make a log small before somebody is said to be in the way: most readers come and go."""
PAUSE_SECONDS: Final = 0.02
"""Between two tries, in which the writer goes on."""

_READ_MARKS: Final = range(123, 128)
"""Bytes of the ``-shm`` that readers lock (https://www.sqlite.org/walformat.html#locks)."""
_LOCKS: Final = Path("/proc/locks")


@dataclass(frozen=True)
class LogState:
    """The log at one moment."""

    path: Path
    """Of the store's file."""
    size: int
    """Bytes of the log."""
    file_size: int
    """Bytes of the file."""

    @property
    def is_large(self) -> bool:
        """Whether somebody should know."""
        return self.size > LARGE_BYTES or self.size > max(KEPT_BYTES, self.file_size)

    def sentence(self) -> str:
        """Say how large it is and who keeps it so."""
        pids = readers(self.path)
        who = f"process {pids[0]} reads" if len(pids) == 1 else f"processes {', '.join(map(str, pids))} read"
        return (
            f"the log {self.path.name}-wal has {_mb(self.size)} beside a file of {_mb(self.file_size)}, and grows with "
            f"every commit as long as {who if pids else 'somebody reads'} an older state of {self.path}; end the "
            "program, its query or its transaction, and the log becomes small again"
        )


class LogKeeper:
    """Keeps the log of one store small, for the thread that writes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._is_due = False
        self._tries = 0
        """How often a reader was in the way since the last look at the log was begun."""
        self._next_try = 0.0  # by the monotonic clock
        self._said = 0
        """Bytes of the log when the last word of it was said."""

    @property
    def is_waiting(self) -> bool:
        """Whether a reader was in the way, so that it is to be tried again soon."""
        return bool(self._tries)

    def look_soon(self) -> None:
        """Have the next :meth:`keep_small` look at the log."""
        self._is_due = True

    def keep_small(self, shorten_it: Callable[[], bool]) -> None:
        """Give back the room of a log that has grown large, or say who is in the way.

        A reader of a moment is not waited for: it is tried again at the next commit, or when nothing is to be written.

        Args:
            shorten_it: Does it; ``False`` where somebody was in the way.
        """
        if not self._is_due or time.monotonic() < self._next_try:
            return
        state = state_of(self._path)
        if state.size <= KEPT_BYTES or shorten_it():
            self._is_due, self._tries, self._said = False, 0, 0
            return
        self._tries += 1
        self._next_try = time.monotonic() + PAUSE_SECONDS
        if self._tries < TRIES:
            return
        self._is_due, self._tries = False, 0
        state = state_of(self._path)
        if state.is_large and state.size >= 2 * self._said:
            self._said = state.size
            _log.warning("%s", state.sentence())


def state_of(path: Path) -> LogState:
    """Return how large the log of a store is; nothing is opened."""
    return LogState(path, _size(Path(f"{path}-wal")), _size(path))


def shorten(connection: sqlite3.Connection) -> bool:
    """Copy the log into the file and give its room back; ``False`` where a reader is in the way.

    What takes long, the copying, is done while others may write.
    """
    try:
        ((busy, pages, copied),) = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        if busy or pages != copied:
            return False
        ((busy, _, _),) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    except sqlite3.Error:
        return False
    return not busy


def readers(path: Path) -> list[int]:
    """Return the processes that are reading a store now, as far as this system tells (Linux, own namespace)."""
    try:
        inode = str(Path(f"{path}-shm").stat().st_ino)
        lines = _LOCKS.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return []
    found = set()
    for line in lines:
        fields = line.split()
        # As proc_locks(5) says; who waits for a lock has one field more.
        if len(fields) != 8 or fields[1] != "POSIX":
            continue
        pid, place, first = fields[4:7]
        if (
            place.rpartition(":")[2] == inode
            and first.isdigit()
            and int(first) in _READ_MARKS
            and int(pid) > 0
        ):
            found.add(int(pid))
    return sorted(found)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _mb(size: int) -> str:
    return f"{size / 1_000_000:,.0f} MB"
