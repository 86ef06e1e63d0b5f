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
import secrets
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

from ..._handover import Future, ReentrantEvent
from ..._threads import try_start
from ...errors import StoreClosed, StoreError, StoreUnavailable
from ..base import LEASE_SECONDS, process_id
from ..tables import Tables
from ..transaction import Command
from ..waiting import Waits
from .connection import Synchronous, check_schema, connect, copy_log, note_setback, patiently, translated
from .log import KEPT_BYTES, PAUSE_SECONDS, TRIES, shorten, state_of
from .marks import Mark, leave_mark, number_alone, put_on
from .opened import StoreConnection, keep_for_ever
from .statements import SQL
from .tables import Remembered, SqliteTables

T = TypeVar("T")

_log = logging.getLogger(__name__)

READERS: Final = 4
MOST_COMMANDS: Final = 128
"""Commands of one commit; the first should not wait for ever for the last."""
WRITER_CACHE_KIB: Final = 8_192
READER_CACHE_KIB: Final = 2_048
"""SQLite's page caches; beyond them the system's own cache of the file serves."""
RENEW_SECONDS: Final = LEASE_SECONDS / 3
"""How often a process that has written says that it is still there."""
POLL_SECONDS: Final = 0.1
"""How often a wait looks for commits of other processes; a look reads one number in shared memory."""
SIGN_OUT_SECONDS: Final = 1.0
"""How long the end of a store waits for others before it leaves its word that it is there to expire."""
EXIT_SECONDS: Final = 5.0
"""How long the end of the interpreter waits for commands that are queued."""
FORK_SECONDS: Final = 5.0
"""How long a fork waits for the transaction under way."""
GATE_SECONDS: Final = 1.0
"""How often a thread that is kept out looks by itself: a signal may interrupt the one who lets it in."""


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


class Thread(threading.Thread):
    """A daemon thread whose end can be awaited."""

    def __init__(self, target: Callable[[], None], name: str) -> None:
        super().__init__(name=name, daemon=True)
        self._work = target
        self.ended: Future[None] = Future()
        self.ended.set_running_or_notify_cancel()  # one who stops waiting for it keeps nobody else

    def run(self) -> None:
        """Work, and say when it is over."""
        try:
            self._work()
        finally:
            self.ended.set_result(None)


class Gate:
    """Lets threads work, and lets one thread bring all of them to rest."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._kept_out: list[ReentrantEvent] = []
        self._left = ReentrantEvent()
        self.closing = False
        """True where somebody waits for the others to come out."""

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Work; wait first while the gate is closed."""
        while (opened := self._enter()) is not None:
            opened.wait(GATE_SECONDS)
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
            self._left.set()

    def _enter(self) -> ReentrantEvent | None:
        """Return what to wait for, or ``None`` where the gate was open."""
        with self._lock:
            if not self.closing:
                self._inside += 1
                return None
            opened = ReentrantEvent()
            self._kept_out.append(opened)
            return opened

    def close(self, seconds: float) -> bool:
        """Keep threads out, and return whether all came out in time."""
        with self._lock:
            self.closing = True
        give_up = time.monotonic() + seconds
        while self._inside:
            if not self._left.wait(give_up - time.monotonic()):
                return False
        return True

    def open(self) -> None:
        """Let threads in again."""
        with self._lock:
            self.closing = False
            kept_out, self._kept_out = self._kept_out, []
        for opened in kept_out:
            opened.set()


class Engine:
    """Runs functions on the tables of one file."""

    def __init__(
        self, path: Path, store_id: str, synchronous: Synchronous, busy_timeout: float, waits: Waits
    ) -> None:
        self._path = path
        self._store_id = store_id
        self._synchronous = synchronous
        self._busy_timeout = busy_timeout
        self._waits = waits
        self._closed = False
        self._begin()
        _engines.add(self)

    def _begin(self) -> None:
        """Be without threads and connections."""
        # Reentrant: the collector may end a store in the middle of any line, also of one that holds this lock.
        self._lock = threading.RLock()
        self._gate = Gate()
        self._generation = 0
        self._connections: list[StoreConnection] = []
        self._commands: queue.SimpleQueue[_Job[Any] | None] = queue.SimpleQueue()
        self._questions: queue.SimpleQueue[_Question[Any] | None] = queue.SimpleQueue()
        self._writer: Thread | None = None
        self._readers: list[Thread] = []
        self._idle_readers = 0
        self._poller: Thread | None = None
        self._poll_stopped = ReentrantEvent()
        self._here = threading.Lock()
        self._opening_id = secrets.token_hex(8)
        self._signed_in: float | None = None  # by the monotonic clock
        self._mark: Mark | None = None
        """The one that the store was given last by this process."""
        self._copied = 0
        """The number of the last one that was copied into the file."""
        self._look_at_log = False
        self._log_tries = 0
        """How often a reader was in the way since the last look at the log was begun."""
        self._next_try = 0.0  # by the monotonic clock
        self._log_said = 0
        """Bytes of the log when the last word of it was said."""

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
            if self._poller is None:
                self._poller = self._start("poller", self._poll_on)
            if self._poller is None:
                raise StoreUnavailable(
                    f"{self._path}: the interpreter ends; nobody can wait for other processes"
                )

    def stop(self) -> list[Thread]:
        """Take no more work; return the threads, which end when what is queued is done."""
        with self._lock:
            threads = [*self._readers, self._writer, self._poller]
            if not self._closed:
                self._closed = True
                self._poll_stopped.set()
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
        with self._lock:
            connections, self._connections = self._connections, []
        for connection in connections:
            connection.close()

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
    def _connection_here(self) -> Iterator[_Lazy]:
        """Hold a connection for as long as this thread does the work itself, one thread at a time."""
        with self._here:
            connection = _Lazy(self, WRITER_CACHE_KIB)
            try:
                yield connection
            finally:
                connection.drop()

    # ------------------------------------------------------------------ writing

    def _write_on(self) -> None:
        connection = _Lazy(self, WRITER_CACHE_KIB)
        while self._write_next(connection):
            pass
        while self._log_tries:  # nobody waits any more for what this thread does
            time.sleep(PAUSE_SECONDS)
            self._keep_log_small(connection)
        self._sign_out(connection)
        connection.drop()

    def _write_next(self, connection: _Lazy) -> bool:
        """Write all that is queued, waiting for the first; ``False`` where nothing more will come."""
        # A method of its own: while the thread waits, no local of its loop may keep a command and its store alive.
        try:
            job = self._commands.get(timeout=PAUSE_SECONDS if self._log_tries else RENEW_SECONDS)
        except queue.Empty:
            if not self._log_tries:
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

    def _sign_in(self, connection: StoreConnection) -> bool:
        """Say in a transaction, now and then, that this process has the store open to write; return whether it did."""
        if self._signed_in is not None and time.monotonic() - self._signed_in < RENEW_SECONDS:
            return False
        now = time.time()
        self._leave_mark(connection)
        connection.execute(SQL["sign_in"], (self._opening_id, process_id(), str(connection.inode), now))
        connection.execute(SQL["forget_expired"], (now - LEASE_SECONDS,))
        return True

    def _signed(self, connection: sqlite3.Connection) -> None:
        """The transaction is committed; it is copied into the file, for whoever copies or replaces the file alone."""
        self._signed_in = time.monotonic()
        self._look_at_log = True
        assert self._mark is not None
        is_copied = copy_log(connection)
        if is_copied:
            self._copied = self._mark.number
        put_on(self._path, self._mark, copied=is_copied)

    def _renew(self, lazy: _Lazy) -> None:
        if self._signed_in is not None:
            with suppress(sqlite3.Error, StoreError):
                self._transact([], lazy)

    def _keep_log_small(self, lazy: _Lazy) -> None:
        """Now and then, give back the room of a log that has grown large, or say who is in the way.

        A reader of a moment is not waited for: it is tried again at the next commit, or when nothing is to be written.
        """
        if not self._look_at_log or time.monotonic() < self._next_try:
            return
        state = state_of(self._path)
        if state.size <= KEPT_BYTES or self._is_shortened(lazy):
            self._look_at_log, self._log_tries, self._log_said = False, 0, 0
            return
        self._log_tries += 1
        self._next_try = time.monotonic() + PAUSE_SECONDS
        if self._log_tries < TRIES:
            return
        self._look_at_log, self._log_tries = False, 0
        state = state_of(self._path)
        if state.is_large and state.size >= 2 * self._log_said:
            self._log_said = state.size
            _log.warning("%s", state.sentence())

    def _is_shortened(self, lazy: _Lazy) -> bool:
        with suppress(sqlite3.Error, StoreError, OSError), self._gate.entered():
            return shorten(lazy.get())
        return False

    def _sign_out(self, lazy: _Lazy) -> None:
        if self._signed_in is None:
            return
        with suppress(sqlite3.Error, StoreError, OSError):
            patiently(lambda: self._leave_word(lazy.get()), SIGN_OUT_SECONDS, self._path)
            if self._mark is not None:
                put_on(self._path, self._mark)

    def _leave_word(self, connection: StoreConnection) -> None:
        connection.execute("BEGIN IMMEDIATE")
        with connection:
            self._leave_mark(connection)
            connection.execute(SQL["sign_out"], (self._opening_id,))

    def _leave_mark(self, connection: StoreConnection) -> None:
        """Leave a mark in the transaction, and notice a copy that was written over the file since the last one."""
        alone = number_alone(self._path) if self._copied else None
        if alone is not None and alone < self._copied:
            self._copied = 0
            note_setback(connection, self._path, with_log=True)
        self._mark = leave_mark(connection)

    # ------------------------------------------------------------------ a group

    def _write_group(self, jobs: list[_Job[Any]], connection: _Lazy) -> None:
        ready = []
        for job in jobs:
            try:
                job.command.prepare()
                ready.append(job)
            except BaseException as error:  # noqa: BLE001 - the caller's to see
                job.future.set_exception(error)
        if not ready or self._commit(ready, connection):
            return
        for job in ready:
            self._commit([job], connection)

    def _commit(self, jobs: list[_Job[Any]], connection: _Lazy) -> bool:
        """Run commands in one transaction; ``False`` where several failed together and none was written."""
        try:
            outcomes = self._transact(jobs, connection)
        except Exception as error:  # noqa: BLE001 - whatever it is, somebody waits to be told
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

    def _transact(self, jobs: list[_Job[Any]], lazy: _Lazy) -> list[Any]:
        while True:
            with self._gate.entered():
                connection = patiently(
                    lambda: _begin_writing(lazy), self._busy_timeout, self._path, lambda: self._gate.closing
                )
                if connection is None:
                    continue
                try:
                    signs_in = self._sign_in(connection)
                    outcomes = [self._attempt(job, connection, lazy.remembered) for job in jobs]
                    connection.execute("COMMIT")
                    lazy.check()
                except BaseException:
                    if connection.in_transaction:
                        connection.execute("ROLLBACK")
                    raise
                if signs_in:
                    self._signed(connection)
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
            remembered.clear()
            return _Failed(translated(error, self._path) if isinstance(error, sqlite3.Error) else error)
        connection.execute("RELEASE command")
        return result

    # ------------------------------------------------------------------ reading

    def _read_on(self) -> None:
        connection = _Lazy(self)
        while self._read_next(connection):
            pass
        connection.drop()

    def _read_next(self, connection: _Lazy) -> bool:
        question = self._questions.get()
        with self._lock:
            self._idle_readers -= 1
        if question is not None and question.future.set_running_or_notify_cancel():
            self._answer(question, connection)
        with self._lock:
            self._idle_readers += 1
        return question is not None

    def _answer(self, question: _Question[Any], lazy: _Lazy) -> None:
        try:
            answer = self._ask(question.work, lazy)
        except sqlite3.Error as error:
            lazy.drop()
            question.future.set_exception(translated(error, self._path))
        except BaseException as error:  # noqa: BLE001 - the caller's to see
            question.future.set_exception(error)
        else:
            question.future.set_result(answer)

    def _ask(self, work: Callable[[Tables], T], lazy: _Lazy) -> T:
        with self._gate.entered():
            # A reader waits only where another process repairs the log after a crash, or is the last to close.
            connection = patiently(lambda: _begin_reading(lazy), self._busy_timeout, self._path)
            assert connection is not None
            try:
                return work(SqliteTables(connection, lazy.remembered))
            finally:
                if connection.in_transaction:
                    connection.execute("COMMIT")

    # ------------------------------------------------------------------ other processes

    def _poll_on(self) -> None:
        connection = _Lazy(self)
        seen: int | None = None
        while not self._closed:
            waited_for = self._waits.rollout_ids
            with self._lock:
                if not waited_for and not self._waits.rollout_ids:
                    self._poller = None
                    break
            try:
                with self._gate.entered():
                    ((version,),) = connection.get().execute("PRAGMA data_version").fetchall()
                if version != seen:
                    seen = version
                    self._waits.finished(self._ask(partial(_finished_among, waited_for), connection))
            except (sqlite3.Error, StoreError) as error:
                _log.warning("looking for finished rollouts failed: %s", error)
                seen = None
                connection.drop()
            self._poll_stopped.wait(POLL_SECONDS)
        connection.drop()

    # ------------------------------------------------------------------ forking

    def before_fork(self) -> None:
        """Come to rest, and hold no connection."""
        self._at_rest = self._gate.close(FORK_SECONDS)
        self._lock.acquire()
        if self._at_rest:
            for connection in self._connections:
                connection.close()
            self._connections = []
            self._generation += 1

    def after_fork_in_parent(self) -> None:
        """Go on, also where a signal interrupted the coming to rest."""
        self._gate.open()
        with suppress(RuntimeError):  # it was not taken
            self._lock.release()

    def after_fork_in_child(self) -> None:
        """Begin anew."""
        # Of a parent that did not come to rest in time: to close them would act on files that are the parent's.
        for connection in self._connections:
            keep_for_ever(connection)
        self._begin()


class _Lazy:
    """The connection of one thread, opened when it is needed and again after a fork or a failure."""

    def __init__(self, engine: Engine, cache_kib: int = READER_CACHE_KIB) -> None:
        self._engine = engine
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
        engine = self._engine
        if self._generation != engine._generation:  # noqa: SLF001 - one module; closed before a fork
            self._connection = None
        if self._connection is not None and not _is_there(self._connection):
            self.drop()
        if self._connection is None:
            self._connection = connect(
                engine._path,  # noqa: SLF001
                engine._synchronous,  # noqa: SLF001
                self._cache_kib,
                store_id=engine._store_id,  # noqa: SLF001
            )
            self._generation = engine._generation  # noqa: SLF001
            self.remembered = Remembered()
            with engine._lock:  # noqa: SLF001
                engine._connections.append(self._connection)  # noqa: SLF001
        return self._connection

    @property
    def path(self) -> Path:
        """The file."""
        return self._engine._path  # noqa: SLF001

    def check(self) -> None:
        """Refuse to acknowledge what was committed to a file that is no longer the one that was opened.

        Raises:
            StoreFileMoved: It was deleted, renamed or replaced, or it cannot be told.
        """
        if self._connection is not None and self._connection.opened is not None:
            self._connection.opened.check()

    def drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            return
        with self._engine._lock:  # noqa: SLF001
            if connection not in self._engine._connections:  # noqa: SLF001 - closed before a fork
                return
            self._engine._connections.remove(connection)  # noqa: SLF001
        connection.close()


class _Failed:
    """The outcome of a command that was undone."""

    def __init__(self, error: Exception) -> None:
        self.error = error


def _is_there(connection: StoreConnection) -> bool:
    return connection.opened is not None and connection.opened.is_there()


def _begin_writing(lazy: _Lazy) -> StoreConnection:
    return _begin(lazy, "BEGIN IMMEDIATE")


def _begin_reading(lazy: _Lazy) -> sqlite3.Connection:
    return _begin(lazy, "BEGIN")


def _begin(lazy: _Lazy, statement: str) -> StoreConnection:
    connection = lazy.get()
    connection.execute(statement)
    try:
        check_schema(connection, lazy.path)  # a newer process may have migrated it since
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    return connection


def _finished_among(rollout_ids: frozenset[str], tables: Tables) -> list[str]:
    assert isinstance(tables, SqliteTables)
    return tables.finished_among(rollout_ids)


_engines: weakref.WeakSet[Engine] = weakref.WeakSet()
_forking: list[Engine] = []


def _before_fork() -> None:
    _forking[:] = list(_engines)
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
