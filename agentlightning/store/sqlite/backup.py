"""Copies of a store as it is at one moment, made while it is in use, and putting one back.

What is copied is one snapshot, log included, by SQLite's own backup. The copy is made under a temporary name beside its
destination, checked, synced, and only then given its name, in one step: there is a whole copy under that name or none.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ..._private_files import create_file
from ...errors import InvalidArgument, NotAStore, StoreBusy, StoreError, StoreFileError
from .connection import connect, is_busy, open_file, patiently, recognise, translated
from .statements import SQL

Progress = Callable[[int, int], None]
"""Called with the pages that are copied and those that there are."""

STEP_PAGES: Final = 1_024
"""Pages between two calls of ``Progress``: 8 MB."""
_TABLES: Final = (
    "rollouts",
    "attempts",
    "spans",
    "span_arrays",
    "long_values",
    "open_spans",
    "late_spans",
    "accounts",
    "resources",
)
"""What is counted in the source and in the copy."""


@dataclass(frozen=True)
class Copied:
    """What was copied."""

    path: Path
    size: int
    """Bytes."""
    counts: dict[str, int]
    """Table → rows; both in the source and in the copy."""
    put_aside: Path | None = None
    """The file that had the name before."""


def back_up(source: Path, target: Path, busy_timeout: float, progress: Progress = lambda *_: None) -> Copied:
    """Copy a store, which may be in use by any number of processes, to a file that is not there yet.

    Raises:
        StoreFileError: ``target`` is there, or one of the two cannot be opened as a store.
        StoreBusy: ``source`` was held for longer than ``busy_timeout`` seconds.
        StoreUnavailable: There is no room for the copy.
    """
    source, target = _real(source), _real(target)
    if os.path.lexists(target):
        raise StoreFileError(f"{target} is there already and was left as it is; choose another name")
    with _copy_beside(source, target, busy_timeout, progress) as (copy, counts):
        _name(copy, target)
    return Copied(target, target.stat().st_size, counts)


def restore(
    backup: Path,
    target: Path,
    busy_timeout: float,
    *,
    replace: bool = False,
    progress: Progress = lambda *_: None,
) -> Copied:
    """Put a copy of a backup in the place of a store that nobody has open; what was there gets another name.

    Args:
        backup: The backup; it stays as it is.
        target: Where the store is to be.
        busy_timeout: Seconds to wait for others that have the backup open.
        replace: Whether ``target`` may be there.
        progress: Told how far it is.

    Raises:
        InvalidArgument: ``target`` is there and ``replace`` is false, or the two are one file.
        StoreBusy: ``target`` is in use; it was left as it is.
        StoreFileError: ``backup`` is no store, or damaged; ``target`` was left as it is.
    """
    backup, target = _real(backup), _real(target)
    if not backup.exists():
        raise StoreFileError(f"there is no backup at {backup}")
    if os.path.lexists(target):
        if backup.samefile(target):
            raise InvalidArgument(f"{backup} is the store that is to be replaced")
        if not replace:
            raise InvalidArgument(
                f"there is a store at {target}; with --replace it gets another name, and the backup its place"
            )
    recognise(target, busy_timeout)
    stamp = time.strftime("%Y%m%dT%H%M%S")
    with _copy_beside(backup, target, busy_timeout, progress) as (copy, counts):
        aside = _take_place(copy, target, stamp)
    return Copied(target, target.stat().st_size, counts, aside)


@contextmanager
def _copy_beside(
    source: Path, target: Path, busy_timeout: float, progress: Progress
) -> Iterator[tuple[Path, dict[str, int]]]:
    """Yield a whole, checked, synced copy under a temporary name in the folder of the target, and what is in it."""
    recognise(source, busy_timeout)
    if not target.parent.is_dir():
        raise StoreFileError(f"the folder of {target} does not exist; run: mkdir -p {target.parent}")
    copy = target.with_name(f".{target.name}.{secrets.token_hex(8)}.copy")
    try:
        os.close(create_file(copy))
    except OSError as error:
        raise StoreFileError(f"{target} cannot be created: {error}") from error
    try:
        counts = patiently(lambda: _copy(source, copy, progress), busy_timeout, source)
        assert counts is not None
        _verify(copy, source, counts)
        _sync(copy)
        yield copy, counts
    except sqlite3.Error as error:
        raise translated(error, source) from error
    finally:
        for left in (copy, Path(f"{copy}-journal"), Path(f"{copy}-wal"), Path(f"{copy}-shm")):
            left.unlink(missing_ok=True)


def _copy(source: Path, copy: Path, progress: Progress) -> dict[str, int]:
    def copied(status: int, left: int, total: int) -> None:
        del status
        progress(total - left, total)

    with closing(connect(source)) as reading, closing(open_file(copy, "rw")) as writing:
        writing.execute("PRAGMA synchronous = off")  # it is synced as a whole before it gets its name
        # One snapshot for all steps: without it, each commit would start the copy anew.
        reading.execute("BEGIN")
        counts = _counts(reading)
        try:
            reading.backup(writing, pages=STEP_PAGES, progress=copied, sleep=0.01)
        except sqlite3.Error as error:
            raise translated(error, copy) from error
        # One file, which can be read from where nothing can be written. Opening it as a store turns the log on again.
        writing.execute("PRAGMA journal_mode = delete")
        if "openings" in _tables(writing):
            writing.execute(SQL["forget_openings"])
        return counts


def _verify(copy: Path, source: Path, counts: dict[str, int]) -> None:
    with closing(open_file(copy, "ro")) as connection:
        wrong = [text for (text,) in connection.execute("PRAGMA integrity_check") if text != "ok"]
        wrong += [
            f"row {row} of {table} refers to nothing"
            for table, row, *_ in connection.execute("PRAGMA foreign_key_check")
        ]
        if _counts(connection) != counts:
            wrong.append(f"it has {_counts(connection)} rows, and the store {counts}")
    if wrong:
        raise StoreFileError(
            f"no copy was made: {source} is damaged ({wrong[0]}). `agl store check` lists what is wrong; "
            f"`sqlite3 {source.name} .recover | sqlite3 new.db` saves what can be saved"
        )


def _tables(connection: sqlite3.Connection) -> set[str]:
    return {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


def _counts(connection: sqlite3.Connection) -> dict[str, int]:
    there = _tables(connection)
    return {
        table: connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]  # noqa: S608 - names of ours
        for table in _TABLES
        if table in there
    }


# ---------------------------------------------------------------------- names


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))


def _name(copy: Path, target: Path) -> None:
    """Give the copy its name, unless something else has got it meanwhile."""
    try:
        target.hardlink_to(copy)
    except FileExistsError:
        raise StoreFileError(f"{target} came into being meanwhile and was left as it is") from None
    except OSError:  # this file system has no hard links
        copy.rename(target)
    _sync(target.parent)


def _take_place(copy: Path, target: Path, stamp: str) -> Path | None:
    """Give the copy the name of a store that nobody has open, and that store another one."""
    aside = target.with_name(f"{target.name}.before-{stamp}")
    if not target.exists():
        _put_log_aside(target, aside)
        _name(copy, target)
        return None
    with _alone(target):
        _keep_under(target, aside)
        copy.rename(target)  # in one step: there is no moment at which another process would make a new file
        _sync(target.parent)
    return aside


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold a store that no other connection has open, of this process or of another, and let nobody open it."""
    connection = open_file(path, "rw")
    try:
        with closing(connection):
            connection.execute("PRAGMA locking_mode = exclusive")
            connection.execute("PRAGMA journal_mode = delete")  # only the last connection may end the log
            connection.execute("BEGIN EXCLUSIVE")
            yield
            connection.execute("ROLLBACK")
    except sqlite3.Error as error:
        if is_busy(error):
            raise StoreBusy(
                f"{path} is in use and was left as it is; end the processes that have it open, and try again"
            ) from error
        raise NotAStore(
            f"{path} cannot be put aside ({error}); make sure that no process has it open, and give it another name"
        ) from error


def _keep_under(path: Path, aside: Path) -> None:
    try:
        aside.hardlink_to(path)
    except FileExistsError:
        raise StoreError(f"{aside} is there already; try again in a second") from None
    except OSError:  # this file system has no hard links
        path.rename(aside)


def _put_log_aside(target: Path, aside: Path) -> None:
    # A log without its file would be taken for the log of whatever gets the name.
    for ending in ("-wal", "-shm", "-journal"):
        with suppress(FileNotFoundError):
            Path(f"{target}{ending}").rename(f"{aside}{ending}")


def _sync(path: Path) -> None:
    """Wait until a file that no connection has open, or the names in a folder, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
