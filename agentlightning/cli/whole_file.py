"""Files that ``agl export`` writes: each appears whole or not at all.

What is written goes to a file beside it, which takes the name when all is written. A link stays, and what it leads to
is replaced. A process that is killed leaves that file, named ``.NAME.`` and eight characters: it can be deleted.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Protocol

from ..errors import UsageError
from . import output
from .columns import Kind, Row

STDOUT = "-"


class Writer(Protocol):
    """Takes rows one by one."""

    def write(self, row: Row) -> None:
        """Add one row."""


class JsonLines:
    """Writes a row as one line of JSON."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file

    def write(self, row: Row) -> None:
        """Add one line."""
        self._file.write(output.to_json(row) + "\n")


class Keep(Protocol):
    """Decides whether the file takes its name."""

    def __call__(self, wanted: bool, /) -> None:
        """The file is kept if ``wanted``."""


@contextmanager
def whole_file(name: str, wanted: str, columns: Mapping[str, Kind]) -> Iterator[tuple[Writer, Keep]]:
    """Yield what takes rows, and what decides at the end whether the file takes its name.

    Without that word, or where the body raises, a file that was there before stays as it was.
    """
    kept = False

    def keep(value: bool, /) -> None:
        nonlocal kept
        kept = value

    if name == STDOUT:
        yield JsonLines(sys.stdout), keep
        sys.stdout.flush()  # a closed pipe shows here, before anything is said of what was written
        return
    target = Path(name)
    if target.is_symlink():
        target = Path(os.path.realpath(target))
    if target.is_dir():
        raise UsageError(f"{target} is a directory; name a file in it")
    if target.exists() and not target.is_file():  # a pipe or a device: there is nothing to replace
        with _writer(target, wanted, columns) as writer:
            yield writer, keep
        return
    beside = _name_beside(target)
    try:
        with _writer(beside, wanted, columns) as writer:
            yield writer, keep
        # On disk before it has its name: after a crash of the machine, a name without its bytes would look
        # like an empty file.
        if kept:
            _sync(beside)
            beside.replace(target)
    finally:
        # After ``replace`` it has another name already.
        beside.unlink(missing_ok=True)


@contextmanager
def _writer(path: Path, wanted: str, columns: Mapping[str, Kind]) -> Iterator[Writer]:
    if wanted == "parquet":
        from .parquet import ParquetWriter

        with ParquetWriter(path, columns) as writer:
            yield writer
    else:
        # ``to_json`` escapes all else, so a file has the same bytes in every locale.
        with path.open("w", encoding="ascii") as file:
            yield JsonLines(file)


def _name_beside(target: Path) -> Path:
    """Return a new empty file in the folder of ``target``, with the permissions of any new file.

    Raises:
        OSError: The folder takes none; of the name that was asked for, not of this one.
    """
    try:
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    except OSError as error:
        if not target.parent.exists():
            raise UsageError(f"there is no folder {target.parent}; run: mkdir -p {target.parent}") from error
        raise OSError(error.errno, error.strerror, str(target)) from error
    # mkstemp makes files that only their owner reads; the umask can be read only by setting it.
    mask = os.umask(0)
    os.umask(mask)
    os.fchmod(handle, 0o666 & ~mask)
    os.close(handle)
    return Path(name)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
