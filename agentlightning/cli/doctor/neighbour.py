"""The second process of the lock test: says which locks on a file it gets, and what it reads. Standard library only."""

from __future__ import annotations

import fcntl
import json
import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path


def locked(take: Callable[..., None], path: Path) -> bool:
    """Return whether an exclusive lock can be had at once."""
    with path.open("r+b") as file:
        try:
            # Closing the file gives the lock back.
            take(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return False
        return True


def written(path: Path) -> str:
    """Return ``busy`` or the number of rows after one of ours, in a file with a write-ahead log."""
    with closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as connection:
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            # What is expected, while the other process is in its transaction.
            return "busy" if "locked" in str(error) else str(error)
        connection.execute("INSERT INTO notes VALUES ('theirs')")
        connection.execute("COMMIT")
        return str(connection.execute("SELECT count(*) FROM notes").fetchone()[0])


def main(folder: Path) -> None:
    """Print what this process gets, as JSON."""
    lock = folder / "lock"
    found = {
        "flock": locked(fcntl.flock, lock),
        "lockf": locked(fcntl.lockf, lock),
        "sqlite": written(folder / "locks.db"),
    }
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
