"""Bodies of model calls that wait for the writer on disk instead of in memory.

Where spans come in faster than the store takes them, their bodies are moved into files in the spool's folder, and are
read back when their turn comes. Order, counts and receipts stay as they are. A file loses its name as soon as it is
open, so that whatever ends the process leaves nothing behind; nothing in it was acknowledged.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from .._private_files import create_file
from ..dialects.raw_call import RawCall
from .spool import make_private_folder

FILE_BYTES = 64 * 1024 * 1024
"""Size at which another file is begun."""


class Overflow:
    """Files of bodies, each of some size; one thread moves bodies there, any reads them.

    Args:
        folder: Where they are made; it comes into being with the first of them.
        name: A name that no other process uses.
        max_bytes: What they may take on disk in sum.
        file_bytes: The size at which another one is begun. A file goes when nothing in it is needed any more, so
            that bodies which keep coming do not keep the place of those that have gone.
    """

    def __init__(self, folder: Path, name: str, max_bytes: int, file_bytes: int = FILE_BYTES) -> None:
        self._folder = folder
        self._name = name
        self._max_bytes = max_bytes
        self._file_bytes = file_bytes
        self._files: list[_File] = []
        # Guards ``_files`` and what is in use of each, which two threads change.
        self._lock = threading.Lock()

    @property
    def size(self) -> int:
        """Bytes that the files take on disk."""
        with self._lock:
            return sum(file.end for file in self._files)

    def move(self, calls: Sequence[RawCall]) -> MovedCalls | None:
        """Write bodies; ``None`` where there is no room for them.

        Raises:
            OSError: The disk does not take them.
        """
        size = sum(len(call.request_body) + len(call.response_body) for call in calls)
        if self.size + size > self._max_bytes:
            return None
        file = self._file()
        with self._lock:
            file.in_use += size  # before it is written: what is in use is not closed
        try:
            moved = []
            for call in calls:
                place = file.end
                file.write(call.request_body)
                file.write(call.response_body)
                bare = replace(call, request_body=b"", response_body=b"")
                moved.append((bare, place, len(call.request_body), len(call.response_body)))
        except BaseException:
            self.free(file, size)
            raise
        return MovedCalls(self, file, moved, size)

    def _file(self) -> _File:
        """Return the file to write to."""
        with self._lock:
            if self._files and self._files[-1].end < self._file_bytes:
                return self._files[-1]
        make_private_folder(self._folder)
        file = _File(self._folder / f".{self._name}.tmp")
        with self._lock:
            self._files.append(file)
            self._give_back()
        return file

    def free(self, file: _File, size: int) -> None:
        """Note that so many bytes of a file are not needed any more."""
        with self._lock:
            file.in_use -= size
            self._give_back()

    def _give_back(self) -> None:
        for file in [file for file in self._files if not file.in_use]:
            if file.end < self._file_bytes:
                file.empty()
            else:
                self._files.remove(file)
                file.close()

    def close(self) -> None:
        """Give the files back; what is in them is gone."""
        with self._lock:
            files, self._files = self._files, []
        for file in files:
            file.close()


class _File:
    """A file without a name."""

    def __init__(self, path: Path) -> None:
        os.close(create_file(path))
        self._file = path.open("r+b", buffering=0)
        path.unlink()
        self.end = 0
        """Its size in bytes."""
        self.in_use = 0
        """How many of them are needed."""

    def write(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            written = os.pwrite(self._file.fileno(), left, self.end)
            self.end += written
            left = left[written:]

    def read(self, place: int, size: int) -> bytes:
        pieces = []
        while size:
            piece = os.pread(self._file.fileno(), size, place)
            if not piece:
                raise OSError("a body that was moved to disk is gone")
            pieces.append(piece)
            place, size = place + len(piece), size - len(piece)
        return b"".join(pieces)

    def empty(self) -> None:
        if self.end:
            self._file.truncate(0)
            self.end = 0

    def close(self) -> None:
        self._file.close()


class MovedCalls:
    """The calls of one span whose bodies are on disk."""

    def __init__(
        self, overflow: Overflow, file: _File, calls: Sequence[tuple[RawCall, int, int, int]], size: int
    ) -> None:
        self._overflow = overflow
        self._file = file
        self._calls = calls
        self.size = size
        """Bytes of all bodies."""

    def read(self) -> list[RawCall]:
        """Return the calls with their bodies.

        Raises:
            OSError: They are not there any more.
        """
        return [
            replace(
                call,
                request_body=self._file.read(place, asked),
                response_body=self._file.read(place + asked, answered),
            )
            for call, place, asked, answered in self._calls
        ]

    def free(self) -> None:
        """Give the room on disk back."""
        self._overflow.free(self._file, self.size)
