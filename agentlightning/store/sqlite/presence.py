"""The word that a process leaves in a store that it has open to write, and the marks that it leaves on the file.

The word is renewed with a commit now and then, and taken back at the end; one that was not renewed for
``LEASE_SECONDS`` is no longer believed. With each word goes a mark (see :mod:`.marks`).
"""

from __future__ import annotations

import secrets
import sqlite3
import time
from pathlib import Path
from typing import Final

from ..base import LEASE_SECONDS, process_id
from .connection import copy_log, note_setback
from .marks import Mark, leave_mark, number_alone, put_on
from .opened import StoreConnection
from .statements import SQL

RENEW_SECONDS: Final = LEASE_SECONDS / 3
"""How often a process that has written says that it is still there."""


class Presence:
    """What one opening of a store says of itself; used by the writer's thread alone."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._opening_id = secrets.token_hex(8)
        self._signed_in: float | None = None  # by the monotonic clock
        self._mark: Mark | None = None
        """The one that the store was given last by this process."""
        self._copied = 0
        """The number of the last one that was copied into the file."""

    @property
    def is_known(self) -> bool:
        """Whether the store has the word of this opening."""
        return self._signed_in is not None

    def sign_in(self, connection: StoreConnection) -> bool:
        """Say in a transaction, now and then, that this process has the store open to write; return whether it did."""
        if self._signed_in is not None and time.monotonic() - self._signed_in < RENEW_SECONDS:
            return False
        now = time.time()
        self._leave_mark(connection)
        connection.execute(SQL["sign_in"], (self._opening_id, process_id(), str(connection.inode), now))
        connection.execute(SQL["forget_expired"], (now - LEASE_SECONDS,))
        return True

    def signed(self, connection: sqlite3.Connection) -> None:
        """The transaction is committed; it is copied into the file, for whoever copies or replaces the file alone."""
        self._signed_in = time.monotonic()
        assert self._mark is not None
        is_copied = copy_log(connection)
        if is_copied:
            self._copied = self._mark.number
        put_on(self._path, self._mark, copied=is_copied)

    def leave_word(self, connection: StoreConnection) -> None:
        """Take the word back, in a transaction of its own."""
        connection.execute("BEGIN IMMEDIATE")
        with connection:
            self._leave_mark(connection)
            connection.execute(SQL["sign_out"], (self._opening_id,))

    def has_left(self) -> None:
        """Put the last mark on the file, after :meth:`leave_word`."""
        if self._mark is not None:
            put_on(self._path, self._mark)

    def _leave_mark(self, connection: StoreConnection) -> None:
        """Leave a mark in the transaction, and notice a copy that was written over the file since the last one."""
        alone = number_alone(self._path) if self._copied else None
        if alone is not None and alone < self._copied:
            self._copied = 0
            note_setback(connection, self._path, with_log=True)
        self._mark = leave_mark(connection)
