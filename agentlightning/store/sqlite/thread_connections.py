"""The connections of one open store: each belongs to one thread, and all are closed before a fork."""

from __future__ import annotations

import threading
from pathlib import Path

from .connection import Synchronous, check_schema, connect
from .opened import StoreConnection, keep_for_ever
from .tables import Remembered


class Connections:
    """Every connection that the threads of one store have open.

    Args:
        path: The file.
        store_id: The identity that it must have.
        synchronous: How a commit waits for the disk.
    """

    def __init__(self, path: Path, store_id: str, synchronous: Synchronous) -> None:
        self.path = path
        self._store_id = store_id
        self._synchronous = synchronous
        self._begin()

    def _begin(self) -> None:
        # Guards the list; held across a fork, so that a child gets it whole. Reentrant: the collector may end a store
        # in the middle of any line, also of one that holds this lock.
        self._lock = threading.RLock()
        self._open: list[StoreConnection] = []
        self.generation = 0
        """How often all were closed because of a fork; a connection of an earlier one is closed."""

    def open(self, cache_kib: int) -> StoreConnection:
        """Open one to the file that the path leads to now.

        Raises:
            StoreFileMoved: It leads to no file, or to another store's.
        """
        connection = connect(self.path, self._synchronous, cache_kib, store_id=self._store_id)
        with self._lock:
            self._open.append(connection)
        return connection

    def close(self, connection: StoreConnection) -> None:
        """Close one, unless a fork has."""
        with self._lock:
            if connection not in self._open:
                return
            self._open.remove(connection)
        connection.close()

    def close_all(self) -> None:
        """Close what threads have left; the last connection of all processes copies the log into the file."""
        with self._lock:
            connections, self._open = self._open, []
        for connection in connections:
            connection.close()

    def before_fork(self, at_rest: bool) -> None:
        """Hold no connection where the threads have come ``at_rest``, and let nobody in until the fork is over."""
        self._lock.acquire()
        if at_rest:
            self.close_all()
            self.generation += 1

    def after_fork_in_parent(self) -> None:
        """Go on."""
        self._lock.release()

    def after_fork_in_child(self) -> None:
        """Begin anew."""
        # Of a parent that did not come to rest in time: to close them would act on files that are the parent's.
        for connection in self._open:
            keep_for_ever(connection)
        self._begin()


class ThreadConnection:
    """The connection of one thread, opened when it is needed and again after a fork or a failure."""

    def __init__(self, connections: Connections, cache_kib: int) -> None:
        self._connections = connections
        self._cache_kib = cache_kib
        self._generation = -1
        self._connection: StoreConnection | None = None
        self.remembered = Remembered()
        """What is in the file of this connection; the next connection may be to another state of it."""

    def get(self) -> StoreConnection:
        """Return the connection to the file that the path leads to now.

        Raises:
            StoreFileMoved: It leads to no file, or to another store's.
        """
        if self._generation != self._connections.generation:  # closed before a fork
            self._connection = None
        if self._connection is not None and not _is_there(self._connection):
            self.drop()
        if self._connection is None:
            self._connection = self._connections.open(self._cache_kib)
            self._generation = self._connections.generation
            self.remembered = Remembered()
        return self._connection

    def begin(self, statement: str) -> StoreConnection:
        """Begin a transaction, and look whether the file still has the schema that this program knows.

        Raises:
            SchemaTooNew: A newer process has migrated it.
            StoreFileMoved: As :meth:`get`.
        """
        connection = self.get()
        connection.execute(statement)
        try:
            check_schema(connection, self._connections.path)
        except BaseException:
            # Or the next BEGIN on this connection, which stays open, would fail inside of this transaction.
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        return connection

    def check(self) -> None:
        """Refuse to acknowledge what was committed to a file that is no longer the one that was opened.

        Raises:
            StoreFileMoved: It was deleted, renamed or replaced, or it cannot be told.
        """
        if self._connection is not None and self._connection.opened is not None:
            self._connection.opened.check()

    def drop(self) -> None:
        """Close it; the next use opens another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            self._connections.close(connection)


def _is_there(connection: StoreConnection) -> bool:
    return connection.opened is not None and connection.opened.is_there()
