"""Bodies of model calls that wait for the writer on disk instead of in memory.

Where spans come in faster than the store takes them, their bodies are moved into a file in the spool's folder, and are
read back when their turn comes. Order, counts and receipts stay as they are. The file loses its name as soon as it is
open, so that whatever ends the process leaves nothing behind; nothing in it was acknowledged.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from .._private_files import create_file
from ..codec.raw_call import RawCall
from .spool import make_private_folder


class Overflow:
    """One file of bodies; one thread moves them there, any reads them."""

    def __init__(self, folder: Path, name: str, max_bytes: int) -> None:
        """Make the file.

        Raises:
            OSError: It cannot be made.
        """
        make_private_folder(folder)
        path = folder / f".{name}.tmp"
        os.close(create_file(path))
        self._file = path.open("r+b", buffering=0)
        path.unlink()
        self._max_bytes = max_bytes
        self._end = 0
        self._in_use = 0
        self._lock = threading.Lock()  # guards ``_in_use``, which two threads change

    def move(self, calls: Sequence[RawCall]) -> MovedCalls | None:
        """Write bodies; ``None`` where there is no room for them.

        Raises:
            OSError: The disk does not take them.
        """
        size = sum(len(call.request_body) + len(call.response_body) for call in calls)
        if self._in_use + size > self._max_bytes:
            return None
        if not self._in_use:
            self._end = 0
            self._file.truncate(0)
        moved = []
        for call in calls:
            place = self._end
            self._write(call.request_body)
            self._write(call.response_body)
            bare = replace(call, request_body=b"", response_body=b"")
            moved.append((bare, place, len(call.request_body), len(call.response_body)))
        with self._lock:
            self._in_use += size
        return MovedCalls(self, moved, size)

    def _write(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            written = os.pwrite(self._file.fileno(), left, self._end)
            self._end += written
            left = left[written:]

    def read(self, place: int, size: int) -> bytes:
        """Return what stands at a place.

        Raises:
            OSError: It is not there any more.
        """
        pieces = []
        while size:
            piece = os.pread(self._file.fileno(), size, place)
            if not piece:
                raise OSError("a body that was moved to disk is gone")
            pieces.append(piece)
            place, size = place + len(piece), size - len(piece)
        return b"".join(pieces)

    def free(self, size: int) -> None:
        """Note that so many bytes are not needed any more."""
        with self._lock:
            self._in_use -= size

    def close(self) -> None:
        """Give the file back; what is in it is gone."""
        self._file.close()


class MovedCalls:
    """The calls of one span whose bodies are on disk."""

    def __init__(self, overflow: Overflow, calls: Sequence[tuple[RawCall, int, int, int]], size: int) -> None:
        self._overflow = overflow
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
                request_body=self._overflow.read(place, asked),
                response_body=self._overflow.read(place + asked, answered),
            )
            for call, place, asked, answered in self._calls
        ]

    def free(self) -> None:
        """Give the room on disk back."""
        self._overflow.free(self.size)
