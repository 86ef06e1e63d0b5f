"""Opening a SQLite file as a store: recognised, migrated, or refused with a cure, and never harmed.

A store file says so itself: ``application_id`` in its header is ours, ``user_version`` the number of its last
migration. Everything else is somebody else's file and is left as it is. SQLite's own errors become errors of
``agentlightning.errors`` here, and nowhere else.

The file, its ``-wal`` and its ``-shm`` are opened through SQLite only, in the whole process. POSIX drops all locks that
a process holds on a file as soon as the process closes any descriptor of it: after an ``open()`` of ours, however
short, another process would take itself for the last one, and delete the log that this one writes to. SQLite keeps
its own descriptors open for as long as a lock of the process needs it.
"""

from __future__ import annotations

import functools
import logging
import os
import random
import re
import secrets
import sqlite3
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal, TypeVar
from urllib.parse import quote

from ..._private_files import create_file
from ...errors import NotAStore, SchemaTooNew, StoreBusy, StoreError, StoreFileError, StoreUnavailable
from ..base import process_is_gone
from .log import KEPT_BYTES
from .marks import LACKS, MIXED, Found, has_mark, leave_mark, put_on
from .opened import OpenedFiles, StoreConnection, check_usable, moved
from .statements import SQL

_log = logging.getLogger(__name__)

T = TypeVar("T")
Synchronous = Literal["normal", "full"]

APPLICATION_ID: Final = 0x41474C4F  # "AGLO"
PAGE_SIZE: Final = 8192
"""Bytes. Most spans with two packed arrays of 512 ids fit into one page; measured against 4096 and 16384."""
CHECKPOINT_PAGES: Final = 4000
"""Pages of the write-ahead log after which it is copied into the file: about 32 MB. Each copy costs two fsyncs."""

_MIGRATION: Final = re.compile(r"(\d{4})_(\w+)\.sql")
_NO_STORE: Final = frozenset({sqlite3.SQLITE_ERROR, sqlite3.SQLITE_NOTADB})
"""What SQLite says of a file without our tables: there is no such table, or it is no database."""
_POLL_SECONDS: Final = 0.005


@dataclass(frozen=True, slots=True)
class Migration:
    """One step of the schema."""

    number: int
    name: str
    script: str


def load_migrations(folder: Path) -> list[Migration]:
    """Return the migrations of a folder in their order, which has no gap."""
    found = []
    for path in sorted(folder.glob("*.sql")):
        named = _MIGRATION.fullmatch(path.name)
        assert named is not None, f"{path.name} is no migration"
        found.append(Migration(int(named[1]), named[2], path.read_text(encoding="utf-8")))
    assert [step.number for step in found] == list(range(1, len(found) + 1))
    return found


@functools.cache
def _finished_schema() -> list[str]:
    """Return the statements of the schema that all migrations lead to, for a file that is new."""
    return statements_of((Path(__file__).parent / "schema.sql").read_text(encoding="utf-8"))


def statements_of(script: str) -> list[str]:
    """Cut a script into statements; ``executescript`` would commit before it begins."""
    statements: list[str] = []
    pending = ""
    for line in script.splitlines(keepends=True):
        pending += line
        if sqlite3.complete_statement(pending):
            statements.append(pending)
            pending = ""
    return statements


MIGRATIONS: Final = load_migrations(Path(__file__).parent / "migrations")


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a store of this version says when it is opened."""

    store_id: str
    """Identity of the data, which backups share."""
    deadline: float | None
    """The earliest deadline in it: what another process left running, somebody has to give up."""


def prepare_file(path: Path, busy_timeout: float) -> Prepared:
    """Make sure that ``path`` is a store of this version: create it, migrate it, or refuse it.

    Raises:
        StoreFileError: There is no such folder, it is a folder itself, or it cannot be read or written.
        NotAStore: It is something else.
        SchemaTooNew: A newer agentlightning wrote it.
        StoreBusy: Another process held it for longer than ``busy_timeout`` seconds.
    """
    _check_place(path)
    recognise(path, busy_timeout)
    try:
        prepared = patiently(lambda: _bring_up(path), busy_timeout, path)
    except sqlite3.Error as error:
        raise translated(error, path) from error
    assert prepared is not None
    return prepared


def connect(
    path: Path, synchronous: Synchronous = "normal", cache_kib: int = 2_048, *, store_id: str | None = None
) -> StoreConnection:
    """Open a connection to a file that is there and ours; it never waits for a lock.

    Args:
        path: The file.
        synchronous: See ``SqliteLightningStore``.
        cache_kib: Size of the page cache.
        store_id: The store that must be in it; then the connection knows which files it has open.

    Raises:
        StoreFileMoved: ``store_id`` is given, and the path leads to another store, or to none.
    """
    before = OpenedFiles.at(path)
    check_usable(path)
    if store_id is not None and before.file is None:
        raise moved(path)
    connection = open_file(path, "rw")
    try:
        connection.execute(f"PRAGMA synchronous = {synchronous}")
        connection.execute(f"PRAGMA cache_size = -{cache_kib}")
        connection.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
        connection.execute(f"PRAGMA journal_size_limit = {KEPT_BYTES}")
        connection.execute("PRAGMA temp_store = memory")
        if store_id is not None:
            _identify(connection, store_id, before)
    except BaseException as error:
        connection.close()
        if store_id is not None and isinstance(error, sqlite3.Error) and _code(error) in _NO_STORE:
            raise moved(path) from error
        raise
    return connection


def _identify(connection: StoreConnection, store_id: str, before: OpenedFiles) -> None:
    found = connection.execute(SQL["store_id"]).fetchall()  # opens the log
    opened = OpenedFiles.at(before.path)
    if found != [(store_id,)] or opened.file != before.file:
        raise moved(before.path)
    connection.identified(opened)


def open_file(path: Path, mode: Literal["ro", "rw", "rwc"]) -> StoreConnection:
    """Open a SQLite file of any kind; only ``rwc`` makes one."""
    connection: StoreConnection = sqlite3.connect(
        f"file://{quote(os.fsencode(path))}?mode={mode}",
        uri=True,
        factory=StoreConnection,
        timeout=0,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=256,
    )
    return connection


def patiently(
    work: Callable[[], T], busy_timeout: float, path: Path, interrupted: Callable[[], bool] = lambda: False
) -> T | None:
    """Do ``work`` again while another process holds the file.

    Pauses are short and random: SQLite's own, of up to 0.1 s, let a busy neighbour win every time.

    Returns:
        What ``work`` returned; ``None`` where ``interrupted`` became true while waiting.

    Raises:
        StoreBusy: The file was held for longer than ``busy_timeout`` seconds.
    """
    give_up = time.monotonic() + busy_timeout
    while True:
        try:
            return work()
        except sqlite3.OperationalError as error:
            if not is_busy(error):
                raise
            if interrupted():
                return None
            if time.monotonic() >= give_up:
                raise StoreBusy(
                    f"{path} was held by another process for more than {busy_timeout:g} s; this change was not "
                    "written. Look for a process that keeps a transaction open, such as a database browser"
                ) from error
        time.sleep(random.uniform(_POLL_SECONDS / 10, _POLL_SECONDS))  # noqa: S311 - jitter


def translated(error: sqlite3.Error, path: Path) -> StoreError:
    """Return the error of ours that says what SQLite's means, with a cure."""
    code = _code(error)
    if is_busy(error):
        return StoreBusy(f"{path} is held by another process; try again")
    if code == sqlite3.SQLITE_FULL:
        return StoreUnavailable(
            f"no room left for {path}; this change was not written. Make room and try again"
        )
    if code in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_NOMEM):
        return StoreUnavailable(f"{path} could not be read or written ({error}); this change was not written")
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return StoreFileError(
            f"{path} is damaged ({error}). Keep a copy; `sqlite3 {path.name} .recover | sqlite3 new.db` saves what "
            "can be saved"
        )
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_AUTH):
        return StoreFileError(
            f"{path} cannot be opened for writing ({error}); check its rights and its folder's"
        )
    return StoreError(f"{path}: {error}")


def is_busy(error: sqlite3.Error) -> bool:
    """Whether another connection is in the way."""
    # PROTOCOL: SQLite found the index of the log changing under it again and again, while many open and close.
    return _code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL)


def _code(error: sqlite3.Error) -> int:
    """Return SQLite's primary result code."""
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF


# ---------------------------------------------------------------------- recognising


def _check_place(path: Path) -> None:
    folder = path.parent
    if path.is_dir():
        raise StoreFileError(f"{path} is a folder; name a file in it, such as {path / 'agentlightning.db'}")
    if not folder.is_dir():
        raise StoreFileError(f"the folder of {path} does not exist; run: mkdir -p {folder}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise StoreFileError(
            f"the folder {folder} cannot be written, and SQLite keeps its log beside the file; "
            "choose another folder or change its rights"
        )
    status = _status(path)
    if status is None:
        return
    if not stat.S_ISREG(status.st_mode):
        raise StoreFileError(f"{path} is no regular file; choose another name")
    if not os.access(path, os.R_OK | os.W_OK):
        raise StoreFileError(f"{path} is read-only; run: chmod u+rw {path}")


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreFileError(f"{path} cannot be read: {error}") from error


def recognise(path: Path, busy_timeout: float = 5.0) -> None:
    """Refuse a file that is not ours, without writing to it; no file at all is fine.

    Raises:
        NotAStore, SchemaTooNew, StoreFileError, StoreBusy: As :func:`prepare_file`.
    """
    try:
        patiently(lambda: _recognise(path), busy_timeout, path)
    except sqlite3.Error as error:
        if _code(error) == sqlite3.SQLITE_NOTADB:
            raise NotAStore(
                f"{path} is no SQLite file; it was left untouched. Choose another name"
            ) from error
        raise translated(error, path) from error


def _recognise(path: Path) -> None:
    status = _status(path)
    if status is None or not status.st_size:
        return
    # Where another program left a log behind, the last connection that may write would copy it into the file. Where
    # there is none, one that may not write would leave an empty one. What is read is one snapshot in either case.
    try:
        _look(path, "ro" if _has_log(path) else "rw")
    except sqlite3.OperationalError as error:
        if _code(error) not in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN):
            raise
        # A process died in the middle of a write: SQLite undoes it before anything can be read.
        _look(path, "rw")


def _has_log(path: Path) -> bool:
    status = _status(path.with_name(f"{path.name}-wal"))
    return status is not None and status.st_size > 0


def _look(path: Path, mode: Literal["ro", "rw"]) -> None:
    try:
        connection = open_file(path, mode)
    except sqlite3.OperationalError:
        if _status(path) is None:  # removed meanwhile
            return
        raise
    with closing(connection):
        connection.execute("BEGIN")
        _judge(connection, path)
        connection.execute("COMMIT")


def store_id_at(path: Path) -> str | None:
    """Return the identity of the store at a path, ``None`` where there is something else, or nothing.

    Raises:
        StoreError: It cannot be told.
    """
    try:
        with closing(open_file(path, "ro" if _has_log(path) else "rw")) as connection:
            found = connection.execute(SQL["store_id"]).fetchall()
    except sqlite3.Error as error:
        if _code(error) in _NO_STORE or _status(path) is None:
            return None
        raise translated(error, path) from error
    return found[0][0] if found else None


def _judge(connection: sqlite3.Connection, path: Path) -> int:
    """Return the number of the last migration, 0 for a blank file, or refuse the file.

    Within a transaction: what the log, the header and the schema say has to be of one moment.
    """
    ((is_blank,),) = connection.execute("SELECT NOT EXISTS (SELECT 1 FROM sqlite_master)").fetchall()
    ((application_id,),) = connection.execute("PRAGMA application_id").fetchall()
    ((version,),) = connection.execute("PRAGMA user_version").fetchall()
    if is_blank and not application_id and not version:
        return 0
    if application_id != APPLICATION_ID:
        raise NotAStore(
            f"{path} is a database of another program; it was left untouched. Choose another name"
        )
    if version > len(MIGRATIONS):
        raise too_new(path, version)
    return int(version)


def check_schema(connection: sqlite3.Connection, path: Path) -> None:
    """Refuse a file that a newer version has migrated while this process had it open; takes the snapshot.

    Raises:
        SchemaTooNew: Its schema is not the one that this version knows.
    """
    ((version,),) = connection.execute("PRAGMA user_version").fetchall()
    if version != len(MIGRATIONS):
        raise too_new(path, version)


def too_new(path: Path, version: int) -> SchemaTooNew:
    """Return the error that says that a newer version wrote, or has just migrated, the file."""
    return SchemaTooNew(
        f"{path} has schema {version}, this agentlightning knows up to {len(MIGRATIONS)}; "
        "it was left untouched. Install a newer agentlightning-otel"
    )


# ---------------------------------------------------------------------- creating and migrating


def _bring_up(path: Path) -> Prepared:
    """Create or migrate, and return what is in it."""
    if _status(path) is None:
        _create(path)
    with_log = _has_log(path)
    found = Found.on(path, with_log=with_log)
    with closing(connect(path)) as connection:
        version = _version(connection, path)
        _enter_wal(connection)
        if not version:
            version = _make_schema(connection, path)
        for step in MIGRATIONS[version:]:
            _apply(connection, step, path)
        _look_at_openings(connection, path, with_log)
        _look_at_marks(connection, path, found)
        deadlines = connection.execute(SQL["next_deadline"]).fetchall()
        ((store_id,),) = connection.execute(SQL["store_id"]).fetchall()
        return Prepared(store_id, deadlines[0][0] if deadlines else None)


def _look_at_openings(connection: sqlite3.Connection, path: Path, with_log: bool) -> None:
    """Notice that the file is a copy which was made while the store was open, and forget writers that are gone.

    A file that is written names the inode that it is written to; under another one it is a copy.
    """
    inode = str(path.stat().st_ino)
    found = connection.execute(SQL["get_openings"]).fetchall()
    if any(where != inode for _, _, where, _ in found):
        connection.execute("BEGIN IMMEDIATE")
        with connection:
            if any(where != inode for _, _, where, _ in connection.execute(SQL["get_openings"]).fetchall()):
                now = datetime.now(UTC).isoformat(timespec="seconds")
                connection.execute(SQL["add_copy"], (now, with_log))
                connection.execute(SQL["forget_openings"])
        return
    seen = {process: last for _, process, _, last in found}
    gone = [(opening_id,) for opening_id, process, _, _ in found if process_is_gone(process, seen.get)]
    if gone:
        with suppress(sqlite3.OperationalError):  # whoever holds the file does it, or the next
            connection.executemany(SQL["sign_out"], gone)


def _look_at_marks(connection: sqlite3.Connection, path: Path, found: Found) -> None:
    """Notice that a copy of another moment was written over the file, or that its log was taken away."""
    if found.mark is None or (has_mark(connection, found.mark) and not found.is_mixed):
        return
    connection.execute("BEGIN IMMEDIATE")
    with connection:
        if Found.on(path, with_log=False).mark != found.mark:  # another process has just noticed it
            return
        mark = leave_mark(connection)
        note_setback(connection, path, with_log=found.is_mixed)
    put_on(path, mark, copied=copy_log(connection))


def copy_log(connection: sqlite3.Connection) -> bool:
    """Copy the log into the file as far as others allow, and return whether that is all of it."""
    with suppress(sqlite3.Error):
        ((busy, pages, copied),) = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        return not busy and pages == copied
    return False


def note_setback(connection: sqlite3.Connection, path: Path, *, with_log: bool) -> None:
    """Say, and keep in the transaction under way, that not all is in the file that was committed."""
    connection.execute(SQL["add_setback"], (datetime.now(UTC).isoformat(timespec="seconds"), with_log))
    _log.warning(
        "%s lacks commits that were in it: %s. To put a backup in the place of a store, there is `agl restore`",
        path,
        MIXED if with_log else LACKS,
    )


def _version(connection: sqlite3.Connection, path: Path) -> int:
    connection.execute("BEGIN")
    try:
        return _judge(connection, path)
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def _create(path: Path) -> None:
    """Make an empty file, with the rights that its folder asks for, unless another process is first.

    It gets its name only after the descriptor is closed: see the module's docstring.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.new")
    try:
        os.close(create_file(temporary))
    except OSError as error:
        # Without the temporary name, which nobody has chosen.
        raise StoreFileError(
            f"{path} cannot be created: {error.strerror}; name another place, as in "
            "AGL_STORE=sqlite:////tmp/agentlightning.db"
        ) from error
    try:
        with suppress(FileExistsError):
            path.hardlink_to(temporary)
    except OSError:  # this file system has no hard links
        mode = stat.S_IMODE(temporary.stat().st_mode)
        with closing(open_file(path, "rwc")):
            path.chmod(mode)
    finally:
        temporary.unlink(missing_ok=True)


def _enter_wal(connection: sqlite3.Connection) -> None:
    connection.execute(f"PRAGMA page_size = {PAGE_SIZE}")  # only counts while the file is empty
    ((mode,),) = connection.execute("PRAGMA journal_mode = wal").fetchall()
    if mode != "wal":
        raise sqlite3.OperationalError(f"this file system does not support a write-ahead log (mode {mode})")


def _apply(connection: sqlite3.Connection, step: Migration, path: Path) -> None:
    """Apply one migration with its record, in one transaction, unless another process has just done so."""
    with _migrating(connection):
        if _judge(connection, path) < step.number:
            _record(connection, statements_of(step.script), [step])


def _make_schema(connection: sqlite3.Connection, path: Path) -> int:
    """Give a blank file the finished schema, unless another process has just begun; return its last migration.

    The migrations one by one lead to the same schema and take four times as long: after each, SQLite reads it anew.
    """
    with _migrating(connection):
        version = _judge(connection, path)
        if version:
            return version
        _record(connection, _finished_schema(), MIGRATIONS)
    return len(MIGRATIONS)


@contextmanager
def _migrating(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _record(connection: sqlite3.Connection, statements: Iterable[str], steps: Sequence[Migration]) -> None:
    """Within a transaction: run what ``steps`` come to, and say in the file that it has seen them."""
    for statement in statements:
        connection.execute(statement)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    connection.executemany(
        "INSERT INTO migrations VALUES (?, ?, ?)", [(step.number, step.name, now) for step in steps]
    )
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {steps[-1].number}")
