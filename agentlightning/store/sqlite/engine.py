"""The threads and connections of one open SQLite store.

*One writer.* Commands queue up; the writer's thread takes all that wait, runs each in a savepoint of one
transaction, commits once, and only then hands the results over. A command that fails is undone alone. If the
transaction as a whole fails, each command is tried again in one of its own.

*A few readers*, each with a connection of its own. In WAL mode they see one committed state and wait for nobody.

*Between commit and acknowledgement* it is looked whether the file is still the one that was opened; see
:mod:`.opened`.

*At the end of the interpreter* there may be no thread to be had. Then the caller's own does the work, on a connection
for the moment.

*Forking.* SQLite must not be carried across a fork: the child would share locks that it does not hold with a
parent that has no idea. So before a fork the threads come to rest and every connection is closed; parent and
child open their own when they need them. The child starts with an empty queue: what was queued is the parent's.
"""

from __future__ import annotations

import logging
import os
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

from ..._handover import Future
from ..._threads import try_start
from ..._weak_objects import WeakObjects
from ...errors import StoreClosed, StoreError, StoreUnavailable
from ..tables import Tables
from ..transaction import Command
from ..waiting import Waits
from .connection import Synchronous, patiently, translated
from .log import PAUSE_SECONDS, LogKeeper, shorten
from .poller import Poller
from .presence import RENEW_SECONDS, Presence
from .tables import Remembered, SqliteTables
from .thread_connections import Connections, ThreadConnection
from .threads import Gate, Thread

T = TypeVar("T")

_log = logging.getLogger(__name__)

READERS: Final = 4
MOST_COMMANDS: Final = 128
"""Commands of one commit; the first should not wait for ever for the last."""
WRITER_CACHE_KIB: Final = 8_192
READER_CACHE_KIB: Final = 2_048
"""SQLite's page caches; beyond them the system's own cache of the file serves."""
SIGN_OUT_SECONDS: Final = 1.0
"""How long the end of a store waits for others before it leaves its word that it is there to expire."""
EXIT_SECONDS: Final = 5.0
"""How long the end of the interpreter waits for commands that are queued."""
FORK_SECONDS: Final = 5.0
"""How long a fork waits for the transaction under way."""


@dataclass(slots=True)
class _Job(Generic[T]):
    """A command and who waits for it."""

    command: Command[T]
    future: Future[T]

    def succeed(self, result: T) -> None:
        self.command.committed()
        self.future.set_result(result)


@dataclass(slots=True)
class _Question(Generic[T]):
    """A function that reads and who waits for it."""

    work: Callable[[Tables], T]
    future: Future[T]


class Engine:
    """Runs functions on the tables of one file."""

    def __init__(
        self, path: Path, store_id: str, synchronous: Synchronous, busy_timeout: float, waits: Waits
    ) -> None:
        self._connections = Connections(path, store_id, synchronous)
        self._busy_timeout = busy_timeout
        self._waits = waits
        self._closed = False
        self._begin()
        _engines.add(self)

    def _begin(self) -> None:
        """Be without threads."""
        # Guards the threads and queues, so that what is queued has a thread that will come to it; held across a fork.
        # Reentrant: the collector may end a store in the middle of any line, also of one that holds this lock.
        self._lock = threading.RLock()
        self._gate = Gate()
        self._commands: queue.SimpleQueue[_Job[Any] | None] = queue.SimpleQueue()
        self._questions: queue.SimpleQueue[_Question[Any] | None] = queue.SimpleQueue()
        self._writer: Thread | None = None
        self._readers: list[Thread] = []
        self._idle_readers = 0
        # Guards what else the writer's thread has for itself (``_presence`` and ``_log``), while threads do the work
        # themselves, one at a time. Re-entrant: a signal handler that writes is told that the file is busy.
        self._here = threading.RLock()
        self._presence = Presence(self._path)
        self._log = LogKeeper(self._path)
        self._poller = Poller(
            self._waits, self._reading_connection, self._data_version, self._finished_among, self._start
        )

    @property
    def _path(self) -> Path:
        return self._connections.path

    # ------------------------------------------------------------------ from any thread

    def write(self, command: Command[T]) -> Future[T]:
        """Queue a command."""
        job = _Job(command, Future())
        with self._lock:
            self._check_open()
            if self._writer is None:
                self._writer = self._start("writer", self._write_on)
            if self._writer is not None:
                self._commands.put(job)
                return job.future
        with self._connection_here() as connection:
            self._write_group([job], connection)
        return job.future

    def read(self, work: Callable[[Tables], T]) -> Future[T]:
        """Queue a function that reads."""
        question = _Question(work, Future())
        with self._lock:
            self._check_open()
            if self._idle_readers <= self._questions.qsize() and len(self._readers) < READERS:
                reader = self._start(f"reader-{len(self._readers) + 1}", self._read_on)
                if reader is not None:
                    self._readers.append(reader)
                    self._idle_readers += 1
            if self._readers:
                self._questions.put(question)
                return question.future
        with self._connection_here() as connection:
            self._answer(question, connection)
        return question.future

    def watch_others(self) -> None:
        """Look for rollouts that other processes finish, as long as anybody waits for one."""
        with self._lock:
            self._check_open()
            if not self._poller.watch():
                raise StoreUnavailable(
                    f"{self._path}: the interpreter ends; nobody can wait for other processes"
                )

    def stop(self) -> list[Thread]:
        """Take no more work; return the threads, which end when what is queued is done."""
        with self._lock:
            threads = [*self._readers, self._writer, self._poller.stop()]
            if not self._closed:
                self._closed = True
                self._commands.put(None)
                for _ in self._readers:
                    self._questions.put(None)
        return [thread for thread in threads if thread is not None]

    def shutdown(self, seconds: float = EXIT_SECONDS) -> None:
        """Stop, and wait for what is queued, at most for so long; the end of the interpreter calls this."""
        threads = [thread for thread in self.stop() if thread is not threading.current_thread()]
        for thread in threads:
            thread.join(timeout=seconds)
        if not any(thread.is_alive() for thread in threads):
            self.close_connections()

    def close_connections(self) -> None:
        """Close what the threads have left; the last connection of all processes copies the log into the file."""
        self._connections.close_all()

    def _check_open(self) -> None:
        if self._closed:
            raise StoreClosed(f"the store {self._path} is closed")

    def _start(self, role: str, target: Callable[[], None]) -> Thread | None:
        """Return a thread that runs; ``None`` at the end of the interpreter."""
        thread = Thread(target, f"agl-store-{role}")
        try:
            return thread if try_start(thread) else None
        except RuntimeError as error:
            raise StoreUnavailable(f"{self._path} has no thread to work with: {error}") from error

    @contextmanager
    def _connection_here(self) -> Iterator[ThreadConnection]:
        """Hold a connection for as long as this thread does the work itself, one thread at a time."""
        with self._here:
            connection = ThreadConnection(self._connections, WRITER_CACHE_KIB)
            try:
                yield connection
            finally:
                connection.drop()

    # ------------------------------------------------------------------ writing

    def _write_on(self) -> None:
        connection = ThreadConnection(self._connections, WRITER_CACHE_KIB)
        while self._write_next(connection):
            pass
        while self._log.is_waiting:  # nobody waits any more for what this thread does
            time.sleep(PAUSE_SECONDS)
            self._keep_log_small(connection)
        self._sign_out(connection)
        connection.drop()

    def _write_next(self, connection: ThreadConnection) -> bool:
        """Write all that is queued, waiting for the first; ``False`` where nothing more will come."""
        # A method of its own: while the thread waits, no local of its loop may keep a command and its store alive.
        try:
            job = self._commands.get(timeout=PAUSE_SECONDS if self._log.is_waiting else RENEW_SECONDS)
        except queue.Empty:
            if not self._log.is_waiting:
                self._renew(connection)
            self._keep_log_small(connection)
            return True
        jobs = []
        while job is not None:
            if job.future.set_running_or_notify_cancel():
                jobs.append(job)
            if len(jobs) == MOST_COMMANDS:
                break
            try:
                job = self._commands.get_nowait()
            except queue.Empty:
                break
        self._write_group(jobs, connection)
        self._keep_log_small(connection)  # after those who wait have their answers: copying may take long
        return job is not None

    # ------------------------------------------------------------------ having it open

    def _renew(self, connection: ThreadConnection) -> None:
        if self._presence.is_known:
            with suppress(sqlite3.Error, StoreError):
                self._transact([], connection)

    def _sign_out(self, connection: ThreadConnection) -> None:
        if self._presence.is_known:
            with suppress(sqlite3.Error, StoreError, OSError):
                patiently(lambda: self._presence.leave_word(connection.get()), SIGN_OUT_SECONDS, self._path)
                self._presence.has_left()

    def _keep_log_small(self, connection: ThreadConnection) -> None:
        def shorten_it() -> bool:
            with suppress(sqlite3.Error, StoreError, OSError), self._gate.entered():
                return shorten(connection.get())
            return False

        self._log.keep_small(shorten_it)

    # ------------------------------------------------------------------ a group

    def _write_group(self, jobs: list[_Job[Any]], connection: ThreadConnection) -> None:
        ready = []
        for job in jobs:
            try:
                job.command.prepare()
                ready.append(job)
            except BaseException as error:  # noqa: BLE001 - the caller's to see
                job.future.set_exception(error)
        # One transaction for all, or where that fails one for each, so that nobody fails by the fault of another.
        if not ready or self._commit(ready, connection):
            return
        for job in ready:
            self._commit([job], connection)

    def _commit(self, jobs: list[_Job[Any]], connection: ThreadConnection) -> bool:
        """Run commands in one transaction; ``False`` where several failed together and none was written."""
        try:
            outcomes = self._transact(jobs, connection)
        except Exception as error:  # noqa: BLE001 - whatever it is, somebody waits to be told
            # What it remembers of the file may have been undone with the transaction; another one remembers nothing.
            connection.drop()
            if len(jobs) > 1 and isinstance(error, sqlite3.Error):
                return False
            ours = translated(error, self._path) if isinstance(error, sqlite3.Error) else error
            for job in jobs:
                job.future.set_exception(ours)
            return True
        for job, outcome in zip(jobs, outcomes, strict=True):
            if isinstance(outcome, _Failed):
                job.future.set_exception(outcome.error)
            else:
                job.succeed(outcome)
        return True

    def _transact(self, jobs: list[_Job[Any]], lazy: ThreadConnection) -> list[Any]:
        while True:
            with self._gate.entered():
                connection = patiently(
                    lambda: lazy.begin("BEGIN IMMEDIATE"),
                    self._busy_timeout,
                    self._path,
                    lambda: self._gate.closing,
                )
                if connection is None:
                    continue
                try:
                    signs_in = self._presence.sign_in(connection)
                    outcomes = [self._attempt(job, connection, lazy.remembered) for job in jobs]
                    connection.execute("COMMIT")
                    # Before anybody is told: what was committed to a file that is deleted or replaced is not kept.
                    lazy.check()
                except BaseException:
                    if connection.in_transaction:
                        connection.execute("ROLLBACK")
                    raise
                # After the commit: a sign that was rolled back is not in the file, and the next one puts it there.
                if signs_in:
                    self._presence.signed(connection)
                    self._log.look_soon()
                return outcomes

    def _attempt(self, job: _Job[Any], connection: sqlite3.Connection, remembered: Remembered) -> Any:
        connection.execute("SAVEPOINT command")
        try:
            result = job.command.work(SqliteTables(connection, remembered))
        except Exception as error:
            if not connection.in_transaction:  # SQLite has undone everything: disk full, I/O error
                raise
            connection.execute("ROLLBACK TO command")
            connection.execute("RELEASE command")
            # Keys and digests of rows that the file does not have any more; a later value would refer to them.
            remembered.clear()
            return _Failed(translated(error, self._path) if isinstance(error, sqlite3.Error) else error)
        connection.execute("RELEASE command")
        return result

    # ------------------------------------------------------------------ reading

    def _read_on(self) -> None:
        connection = self._reading_connection()
        while self._read_next(connection):
            pass
        connection.drop()

    def _read_next(self, connection: ThreadConnection) -> bool:
        question = self._questions.get()
        with self._lock:
            self._idle_readers -= 1
        if question is not None and question.future.set_running_or_notify_cancel():
            self._answer(question, connection)
        with self._lock:
            self._idle_readers += 1
        return question is not None

    def _answer(self, question: _Question[Any], lazy: ThreadConnection) -> None:
        try:
            answer = self._ask(question.work, lazy)
        except sqlite3.Error as error:
            lazy.drop()
            question.future.set_exception(translated(error, self._path))
        except BaseException as error:  # noqa: BLE001 - the caller's to see
            question.future.set_exception(error)
        else:
            question.future.set_result(answer)

    def _ask(self, work: Callable[[Tables], T], lazy: ThreadConnection) -> T:
        with self._gate.entered():
            # A reader waits only where another process repairs the log after a crash, or is the last to close.
            connection = patiently(lambda: lazy.begin("BEGIN"), self._busy_timeout, self._path)
            assert connection is not None
            try:
                return work(SqliteTables(connection, lazy.remembered))
            finally:
                if connection.in_transaction:
                    connection.execute("COMMIT")

    # ------------------------------------------------------------------ other processes

    def _reading_connection(self) -> ThreadConnection:
        return ThreadConnection(self._connections, READER_CACHE_KIB)

    def _data_version(self, connection: ThreadConnection) -> int:
        with self._gate.entered():
            ((version,),) = connection.get().execute("PRAGMA data_version").fetchall()
        return int(version)

    def _finished_among(self, rollout_ids: frozenset[str], connection: ThreadConnection) -> list[str]:
        def read(tables: Tables) -> list[str]:
            assert isinstance(tables, SqliteTables)
            return tables.finished_among(rollout_ids)

        return self._ask(read, connection)

    # ------------------------------------------------------------------ forking

    def before_fork(self) -> None:
        """Come to rest, and hold no connection."""
        at_rest = self._gate.close(FORK_SECONDS)
        self._lock.acquire()
        self._connections.before_fork(at_rest)

    def after_fork_in_parent(self) -> None:
        """Go on, also where a signal interrupted the coming to rest."""
        self._gate.open()
        with suppress(RuntimeError):  # it was not taken
            self._connections.after_fork_in_parent()
        with suppress(RuntimeError):
            self._lock.release()

    def after_fork_in_child(self) -> None:
        """Begin anew."""
        self._connections.after_fork_in_child()
        self._begin()


class _Failed:
    """The outcome of a command that was undone."""

    def __init__(self, error: Exception) -> None:
        self.error = error


_engines: WeakObjects[Engine] = WeakObjects()
_forking: list[Engine] = []


def _before_fork() -> None:
    _forking[:] = _engines
    for engine in _forking:
        engine.before_fork()


def _after_fork_in_parent() -> None:
    for engine in _forking:
        engine.after_fork_in_parent()
    _forking.clear()


def _after_fork_in_child() -> None:
    for engine in _forking:
        engine.after_fork_in_child()
    _forking.clear()


os.register_at_fork(
    before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child
)
