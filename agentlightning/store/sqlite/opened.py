"""A connection that knows whether the name of its file still leads to what it has open.

A file can be deleted, renamed or replaced under a connection, which then goes on writing to what nobody will ever open
again. So device and inode of the file and of its log are kept when a connection is opened, and compared after each
commit and before it is acknowledged. While a connection is open its inodes cannot be used for other files.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import sqlite3
import weakref
from dataclasses import dataclass
from pathlib import Path

from ..._locks import reentrant_lock
from ...errors import StoreFileMoved

Inode = tuple[int, int]
"""Device and inode."""


@dataclass(frozen=True, slots=True)
class OpenedFiles:
    """What a path led to when a connection was opened."""

    path: Path
    name: str
    """The path as text, and that of its log: both are looked at before and after each commit."""
    log_name: str
    file: Inode | None
    log: Inode | None
    index: Inode | None

    @classmethod
    def at(cls, path: Path) -> OpenedFiles:
        """Return what a path leads to.

        Raises:
            StoreFileMoved: It cannot be told.
        """
        name, log_name = str(path), f"{path}-wal"
        return cls(path, name, log_name, _inode(name), _inode(log_name), _inode(f"{path}-shm", of=name))

    def is_there(self) -> bool:
        """Whether the path still leads to the file and to its log."""
        return self.file == _inode(self.name) and self.log == _inode(self.log_name)

    def check(self) -> None:
        """Refuse a file that is no longer the one that was opened.

        Raises:
            StoreFileMoved: It was deleted, renamed or replaced, its log was, or it cannot be told.
        """
        if self.is_there():
            return
        raise log_gone(self.path) if self.file == _inode(self.name) else moved(self.path)


class StoreConnection(sqlite3.Connection):
    """A connection to a store; ``opened`` is set as soon as it has the log open too."""

    opened: OpenedFiles | None = None

    def identified(self, opened: OpenedFiles) -> None:
        """Keep what was opened."""
        self.opened = opened
        _live[id(self)] = weakref.ref(self, functools.partial(_forget, id(self)))

    @property
    def inode(self) -> int:
        """Of the file that is written to."""
        assert self.opened is not None and self.opened.file is not None  # noqa: PT018 - they are known together
        return self.opened.file[1]

    def close(self) -> None:
        """Close, without harm to a file that took the place of the one that is open."""
        if self.opened is not None and not self._may_close(self.opened):
            keep_for_ever(self)
            return
        _live.pop(id(self), None)
        with _closing:
            super().close()

    def _may_close(self, opened: OpenedFiles) -> bool:
        try:
            now = OpenedFiles.at(opened.path)
        except StoreFileMoved:
            return True
        if now.file != opened.file:
            # SQLite does not touch the log of a file that lost its name. What was acknowledged belongs into the file,
            # wherever it is now: its log stays behind under the old name.
            with contextlib.suppress(sqlite3.Error):
                self.execute("PRAGMA wal_checkpoint(PASSIVE)")
            return True
        if now.log == opened.log:
            return True
        # The log alone was deleted: the last connection copies what it holds into the file. With another index, others
        # have gone on without this process, and what its log holds must not be written over theirs.
        return opened.log in (now.log, None) or now.index == opened.index


_closing = reentrant_lock()
"""Held while a connection is closed. SQLite removes the log with the last connection to the file; two that are closed
at one moment each see the other one, and leave it."""
_live: dict[int, weakref.ref[StoreConnection]] = {}
"""Connections of this process that are open and know what they have open, by identity. There is no lock: the garbage
collector may close a connection in the middle of any line, and each step is one call of a built-in."""


def _forget(identity: int, reference: weakref.ref[StoreConnection]) -> None:
    """Take out a connection that nothing refers to any more, before another object can have its identity."""
    del reference
    _live.pop(identity, None)


def check_usable(path: Path) -> None:
    """Refuse a file of which this process has another log open.

    SQLite shares one index of the log among all connections of a process to a file: a new one would look in its own
    log for what is in the other.

    Raises:
        StoreFileMoved: Its log was taken away while this process had it open.
    """
    for identity, reference in list(_live.items()):
        other, found = reference(), OpenedFiles.at(path)
        # A connection leaves _live before it closes. Whoever is still in it after the look had its log open during it;
        # of another one, the last close of all may have ended the log, and an opening begun a new one.
        opened = None if other is None else other.opened
        if opened is not None and opened.file == found.file and opened.log != found.log and identity in _live:
            raise log_gone(path)


def moved(path: Path) -> StoreFileMoved:
    """Return the error that says that a path leads to another file, or to none."""
    return StoreFileMoved(
        f"{path} is no longer the file that was opened: it was deleted, renamed or replaced while in use. What was not "
        "acknowledged may be lost with it; bring the file back, or open the store anew. To copy or to put back a store "
        "that is in use, there are `agl backup` and `agl restore`"
    )


def log_gone(path: Path) -> StoreFileMoved:
    """Return the error that says that the log of a file is not the one that was opened."""
    return StoreFileMoved(
        f"the log {path.name}-wal of {path} was deleted or replaced while in use; nothing more is acknowledged. Start "
        "this process anew, and let no program open or copy the file in it except through SQLite"
    )


def _inode(name: str, of: str | None = None) -> Inode | None:
    try:
        status = os.stat(name)  # noqa: PTH116 - a third of the time of Path.stat, before and after each commit
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreFileMoved(
            f"whether {of or name} is still the file that was opened cannot be told ({error}); what was not "
            "acknowledged may not be in it. Give back the rights to its folder"
        ) from error
    return status.st_dev, status.st_ino


def keep_for_ever(connection: StoreConnection) -> None:
    """Keep a connection from being closed, also by the end of the interpreter, which closes what nothing refers to."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))
