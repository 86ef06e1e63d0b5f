"""Opening a SQLite file as a store: recognised, migrated, or refused with a cure, and never harmed.

A store file says so itself: ``application_id`` in its header is ours, ``user_version`` the number of its last
migration. Everything else is somebody else's file and is left as it is. SQLite's own errors become errors of
``agentlightning.errors`` here, and nowhere else.
"""

from __future__ import annotations

import os
import random
import re
import sqlite3
import struct
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, List, Literal, Optional, TypeVar
from urllib.parse import quote

from ...errors import NotAStore, SchemaTooNew, StoreBusy, StoreError, StoreFileError, StoreUnavailable
from .statements import SQL

T = TypeVar("T")
Synchronous = Literal["normal", "full"]

APPLICATION_ID: Final = 0x41474C4F  # "AGLO"
PAGE_SIZE: Final = 8192
"""Bytes. Most spans with two packed arrays of 512 ids fit into one page; measured against 4096 and 16384."""
CHECKPOINT_PAGES: Final = 4000
"""Pages of the write-ahead log after which it is copied into the file: about 32 MB. Each copy costs two fsyncs."""

_HEADER: Final = struct.Struct(
    ">16s44xI4xI"
)  # magic, user_version at 60, application_id at 68; SQLite file format
_MAGIC: Final = b"SQLite format 3\x00"
_MIGRATION: Final = re.compile(r"(\d{4})_(\w+)\.sql")
_POLL_SECONDS: Final = 0.005


@dataclass(frozen=True, slots=True)
class Migration:
    """One step of the schema."""

    number: int
    name: str
    script: str


def load_migrations(folder: Path) -> List[Migration]:
    """Return the migrations of a folder in their order, which has no gap."""
    found = []
    for path in sorted(folder.glob("*.sql")):
        named = _MIGRATION.fullmatch(path.name)
        assert named is not None, f"{path.name} is no migration"
        found.append(Migration(int(named[1]), named[2], path.read_text(encoding="utf-8")))
    assert [step.number for step in found] == list(range(1, len(found) + 1))
    return found


MIGRATIONS: Final = load_migrations(Path(__file__).parent / "migrations")


def prepare_file(path: Path, busy_timeout: float) -> Optional[float]:
    """Make sure that ``path`` is a store of this version: create it, migrate it, or refuse it.

    Returns:
        The earliest deadline in it: what another process left running, somebody has to give up.

    Raises:
        StoreFileError: There is no such folder, it is a folder itself, or it cannot be read or written.
        NotAStore: It is something else.
        SchemaTooNew: A newer agentlightning wrote it.
        StoreBusy: Another process held it for longer than ``busy_timeout`` seconds.
    """
    _check_place(path)
    recognise(path, busy_timeout)
    try:
        return patiently(lambda: _bring_up(path), busy_timeout, path)
    except sqlite3.Error as error:
        raise translated(error, path) from error


def connect(path: Path, synchronous: Synchronous = "normal", cache_kib: int = 2_048) -> sqlite3.Connection:
    """Open a connection to a file that is ours; it never waits for a lock."""
    connection = sqlite3.connect(
        path, timeout=0, isolation_level=None, check_same_thread=False, cached_statements=256
    )
    try:
        connection.execute(f"PRAGMA synchronous = {synchronous}")
        connection.execute(f"PRAGMA cache_size = -{cache_kib}")
        connection.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
        connection.execute("PRAGMA temp_store = memory")
    except BaseException:
        connection.close()
        raise
    return connection


def patiently(
    work: Callable[[], T], busy_timeout: float, path: Path, interrupted: Callable[[], bool] = lambda: False
) -> Optional[T]:
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
            if not _is_busy(error):
                raise
            if interrupted():
                return None
            if time.monotonic() >= give_up:
                raise StoreBusy(
                    f"{path} was held by another process for more than {busy_timeout:g} s; nothing was written. "
                    "Look for a process that keeps a transaction open, such as a database browser"
                ) from error
        time.sleep(random.uniform(_POLL_SECONDS / 10, _POLL_SECONDS))  # noqa: S311 - jitter


def translated(error: sqlite3.Error, path: Path) -> StoreError:
    """Return the error of ours that says what SQLite's means, with a cure."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return StoreBusy(f"{path} is held by another process; try again")
    if code == sqlite3.SQLITE_FULL:
        return StoreUnavailable(f"no room left for {path}; nothing was written. Make room and try again")
    if code in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_NOMEM):
        return StoreUnavailable(f"{path} could not be read or written ({error}); nothing was written")
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


def _is_busy(error: sqlite3.Error) -> bool:
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    return code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


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
    if path.exists() and not os.access(path, os.R_OK | os.W_OK):
        raise StoreFileError(f"{path} is read-only; run: chmod u+rw {path}")


def recognise(path: Path, busy_timeout: float = 5.0) -> None:
    """Refuse a file that is not ours, without opening it for writing; no file at all is fine.

    Raises:
        NotAStore, SchemaTooNew, StoreFileError, StoreBusy: As :func:`prepare_file`.
    """
    try:
        patiently(lambda: _recognise(path), busy_timeout, path)
    except sqlite3.Error as error:
        raise translated(error, path) from error


def _recognise(path: Path) -> None:
    try:
        with path.open("rb") as file:
            header = file.read(_HEADER.size)
    except FileNotFoundError:
        return
    except OSError as error:
        raise StoreFileError(f"{path} cannot be read: {error}") from error
    if not header:
        return
    if len(header) < _HEADER.size or not header.startswith(_MAGIC):
        raise NotAStore(f"{path} is no SQLite file; it was left untouched. Choose another name")
    _, version, application_id = _HEADER.unpack(header)
    if _has_log(path) or application_id == version == 0:
        _look_inside(path)
    else:
        _judge(path, application_id, version)


def _has_log(path: Path) -> bool:
    log = path.with_name(f"{path.name}-wal")
    return log.exists() and log.stat().st_size > 0


def _look_inside(path: Path) -> None:
    # A file with a log beside it has an outdated header, and one without any ids may still be blank. Neither
    # way of opening writes; `immutable` does not even make the files that a log needs.
    how = "mode=ro" if _has_log(path) else "immutable=1"
    with closing(sqlite3.connect(f"file:{quote(str(path))}?{how}", uri=True, timeout=0)) as connection:
        ((application_id,),) = connection.execute("PRAGMA application_id").fetchall()
        ((version,),) = connection.execute("PRAGMA user_version").fetchall()
        is_blank = not connection.execute("SELECT 1 FROM sqlite_master").fetchall()
    if application_id or version or not is_blank:
        _judge(path, application_id & 0xFFFFFFFF, version)


def _judge(path: Path, application_id: int, version: int) -> None:
    if application_id != APPLICATION_ID:
        raise NotAStore(
            f"{path} is a database of another program; it was left untouched. Choose another name"
        )
    if version > len(MIGRATIONS):
        raise SchemaTooNew(
            f"{path} has schema {version}, this agentlightning knows up to {len(MIGRATIONS)}; "
            "it was left untouched. Run: pip install --upgrade agentlightning-otel"
        )


# ---------------------------------------------------------------------- creating and migrating


def _bring_up(path: Path) -> Optional[float]:
    """Create or migrate, and return the earliest deadline."""
    with closing(connect(path)) as connection:
        _enter_wal(connection)
        ((version,),) = connection.execute("PRAGMA user_version").fetchall()
        for step in MIGRATIONS[version:]:
            _apply(connection, step)
        deadlines = connection.execute(SQL["next_deadline"]).fetchall()
        return deadlines[0][0] if deadlines else None


def _enter_wal(connection: sqlite3.Connection) -> None:
    connection.execute(f"PRAGMA page_size = {PAGE_SIZE}")  # only counts while the file is empty
    ((mode,),) = connection.execute("PRAGMA journal_mode = wal").fetchall()
    if mode != "wal":
        raise sqlite3.OperationalError(f"this file system does not support a write-ahead log (mode {mode})")


def _apply(connection: sqlite3.Connection, step: Migration) -> None:
    """Apply one migration with its record, in one transaction, unless another process has just done so."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        ((version,),) = connection.execute("PRAGMA user_version").fetchall()
        if version < step.number:
            for statement in statements_of(step.script):
                connection.execute(statement)
            now = datetime.now(UTC).isoformat(timespec="seconds")
            connection.execute("INSERT INTO migrations VALUES (?, ?, ?)", (step.number, step.name, now))
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {step.number}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def statements_of(script: str) -> List[str]:
    """Cut a script into statements; ``executescript`` would commit before it begins."""
    statements: List[str] = []
    pending = ""
    for line in script.splitlines(keepends=True):
        pending += line
        if sqlite3.complete_statement(pending):
            statements.append(pending)
            pending = ""
    return statements
