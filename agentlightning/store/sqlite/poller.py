"""Waiting for rollouts that other processes finish: SQLite tells nobody, so a thread looks as long as anybody waits."""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Callable
from typing import Final

from ..._handover import ReentrantEvent
from ...errors import StoreError
from ..waiting import Waits
from .thread_connections import ThreadConnection
from .threads import Thread

_log = logging.getLogger(__name__)

POLL_SECONDS: Final = 0.1
"""How often a wait looks for commits of other processes; a look reads one number in shared memory."""


class Poller:
    """Looks for finished rollouts.

    Args:
        waits: Who waits for what.
        connect: Gives its thread a connection.
        version: Reads a number that changes with each commit of another process.
        finished: Reads which of these rollouts are finished.
        start: Starts a thread; ``None`` at the end of the interpreter.
    """

    def __init__(
        self,
        waits: Waits,
        connect: Callable[[], ThreadConnection],
        version: Callable[[ThreadConnection], int],
        finished: Callable[[frozenset[str], ThreadConnection], list[str]],
        start: Callable[[str, Callable[[], None]], Thread | None],
    ) -> None:
        self._waits = waits
        self._connect = connect
        self._version = version
        self._finished = finished
        self._start = start
        # Guards the thread: one that finds nobody waiting ends, unless somebody has just relied on it. Reentrant: the
        # collector may end a store in the middle of any line.
        self._lock = threading.RLock()
        self._thread: Thread | None = None
        self._stopped = ReentrantEvent()
        self._is_over = False

    def watch(self) -> bool:
        """Look as long as anybody waits; ``False`` where the interpreter ends and gives no thread."""
        with self._lock:
            if self._thread is None:
                self._thread = self._start("poller", self._poll)
            return self._thread is not None

    def stop(self) -> Thread | None:
        """End the thread, and return it."""
        with self._lock:
            self._is_over = True
            self._stopped.set()
            return self._thread

    def _poll(self) -> None:
        connection = self._connect()
        seen: int | None = None
        while not self._is_over:
            waited_for = self._waits.rollout_ids
            with self._lock:
                if not waited_for and not self._waits.rollout_ids:
                    self._thread = None
                    break
            try:
                version = self._version(connection)
                if version != seen:
                    seen = version
                    self._waits.finished(self._finished(waited_for, connection))
            except (sqlite3.Error, StoreError) as error:
                _log.warning("looking for finished rollouts failed: %s", error)
                seen = None
                connection.drop()
            self._stopped.wait(POLL_SECONDS)
        connection.drop()
