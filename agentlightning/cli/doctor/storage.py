"""The configured store, and whether its file system keeps what a store needs: locks that other processes see."""

from __future__ import annotations

import asyncio
import fcntl
import json
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from ...errors import InvalidArgument, LightningError, StoreBusy
from ...store.registry import open_store
from ...store.sqlite.connection import connect, translated
from ...store.sqlite.log import state_of
from .. import store_migrate
from .finding import Finding, Subject, existing, scratch, write_into
from .machine import file_system

NETWORK = frozenset(
    {"9p", "afs", "beegfs", "ceph", "cifs", "gfs2", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "nfs4"}
    | {"ocfs2", "orangefs", "prl_fs", "smb3", "smbfs", "vboxsf", "virtiofs"}
)
"""File systems that several machines see; ``fuse`` and its kinds are judged alike."""
MOUNTS = Path("/proc/mounts")
LOCAL = "put the store on a local disk: AGL_STORE=sqlite:////path/on/a/local/disk.db"
TIMEOUT = 30.0
"""Seconds for one question to a store elsewhere."""
_PROCESS_TIMEOUT = 120.0
"""Seconds for the second process, which imports little; a slow machine is not a broken one."""


def store(subject: Subject) -> Iterator[Finding]:
    """The store that is meant: that it opens and takes writes; one that is not there is not made."""
    if subject.url.startswith("memory:"):
        sentence = f"{subject.url} ends with its process, and everything recorded with it"
        yield Finding("warn", "store", sentence, "AGL_STORE=sqlite:///agentlightning.db")
        return
    try:
        if subject.path is None:
            yield _other(subject)
            return
        yield _sqlite(subject.path, subject)
        log = state_of(subject.path)
        if log.is_large:
            yield Finding("warn", "store", log.sentence(), "end what the processes that are named have open")
    except StoreBusy as error:
        yield Finding("warn", "store", str(error), "end the process that holds it, or wait")
    except (LightningError, OSError) as error:
        sentence = str(error) or f"{subject.name} does not answer within {TIMEOUT:.0f} s"
        yield Finding("fail", "store", sentence, _cure(subject))


def _cure(subject: Subject) -> str:
    if subject.path is not None and not subject.folder.is_dir():
        return f"mkdir -p {subject.folder}"
    return "correct that, or name another store with --store or AGL_STORE"


def _other(subject: Subject) -> Finding:
    async def look() -> int:
        async with asyncio.timeout(TIMEOUT), open_store(subject.url) as opened:
            return int((await opened.statistics()).get("total_attempts", 0))

    return Finding("ok", "store", f"{subject.name} opens; it holds {asyncio.run(look())} attempts")


def _sqlite(path: Path, subject: Subject) -> Finding:
    if not path.exists():
        _try_a_new_one(subject)
        return Finding("ok", "store", f"{path} is not there yet; it can be made")
    pending = [step for step in store_migrate.steps(path) if not step.applied]
    try:
        with closing(connect(path)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
    except sqlite3.Error as error:
        raise translated(error, path) from error
    _try_a_new_one(subject)
    if pending:
        sentence = f"{path} is of an older release; the next program that opens it migrates it"
        return Finding("warn", "store", sentence, "agl store migrate does it now, and keeps a copy")
    return Finding("ok", "store", f"{path} opens, has the schema of this release, and takes writes")


def _try_a_new_one(subject: Subject) -> None:
    """Make a store of the same options in the same folder, and remove it.

    Raises:
        StoreError, OSError: That does not work.
    """
    if not subject.folder.is_dir():
        raise FileNotFoundError(f"the folder {subject.folder} of the store does not exist")
    write_into(subject.folder)  # SQLite keeps its log beside the file

    async def make(url: str) -> None:
        async with open_store(url):
            pass

    with scratch(subject.folder) as folder:
        url = subject.scratch_url(folder)
        try:
            asyncio.run(make(url))
        except InvalidArgument as error:
            # The message names the file of the trial, which is gone.
            raise InvalidArgument(str(error).replace(url, subject.url)) from None


def locks(subject: Subject) -> Iterator[Finding]:
    """Locks between two processes, on the file system of the store; a store that is no file needs none."""
    if subject.path is None:
        return
    place = existing(subject.folder)
    try:
        write_into(place)
    except OSError as error:
        yield Finding("fail", "locks", f"no lock can be tried: {error}", LOCAL)
        return
    kind, mounted = file_system(place, _mounts())
    where = f"on {mounted} ({kind})" if kind else f"in {subject.folder}"
    with scratch(place) as folder:
        broken = list(_broken_locks(folder))
    if broken:
        sentence = f"processes do not see each other's locks {where}: {'; '.join(broken)}"
        yield Finding("fail", "locks", sentence, LOCAL)
    elif kind in NETWORK or kind.startswith("fuse"):
        sentence = (
            f"locks work between two processes here, but {where} other machines may see no lock of ours"
        )
        yield Finding("warn", "locks", sentence, f"write to it from one machine only, or {LOCAL}")
    else:
        yield Finding("ok", "locks", f"two processes share files and a SQLite store {where}")


def _mounts() -> str:
    try:
        return MOUNTS.read_text(encoding="utf-8", errors="replace")
    except OSError:  # no Linux
        return ""


def _broken_locks(folder: Path) -> Iterator[str]:
    lock = folder / "lock"
    lock.write_bytes(b"x")
    with closing(sqlite3.connect(folder / "locks.db", timeout=0, isolation_level=None)) as connection:
        mode = connection.execute("PRAGMA journal_mode = wal").fetchone()[0]
        if mode != "wal":
            yield f"SQLite keeps no write-ahead log here ({mode})"
            return
        connection.execute("CREATE TABLE notes (text TEXT)")
        with lock.open("r+b") as file:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("INSERT INTO notes VALUES ('ours')")
            # Both kinds: SQLite locks by POSIX (lockf), our presence files by flock, and some file
            # systems have only one of them.
            fcntl.flock(file, fcntl.LOCK_EX)
            fcntl.lockf(file, fcntl.LOCK_EX)
            # Another process, as POSIX locks never exclude the process that holds them.
            held = _ask(folder)
            connection.execute("COMMIT")
        free = _ask(folder)
        rows = connection.execute("SELECT count(*) FROM notes").fetchone()[0]
    if held != {"flock": False, "lockf": False, "sqlite": "busy"}:
        yield f"while one process held them, another got {_named(held)}"
    if free != {"flock": True, "lockf": True, "sqlite": "2"} or rows != 2:
        yield f"after they were given back, another process got {_named(free)}, and {rows} of 2 rows were there"


def _ask(folder: Path) -> dict[str, Any]:
    """Return what a second process gets.

    Raises:
        RuntimeError: It fails.
    """
    # Isolated: nothing of the user's environment is needed, so nothing of it can break this.
    command = [sys.executable, "-I", str(Path(__file__).with_name("neighbour.py")), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_PROCESS_TIMEOUT, check=False)  # noqa: S603 - ours
    if done.returncode:
        raise RuntimeError(f"the second process failed: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _named(found: dict[str, Any]) -> str:
    return ", ".join(
        f"{name} {'yes' if got is True else 'no' if got is False else got}" for name, got in found.items()
    )
