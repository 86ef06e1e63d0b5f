"""What an object from another process brings along for the recorder, where one is at work in this process.

Unpickling it imports this module and no more: a process that records nothing pays for nothing.
"""

from __future__ import annotations

import threading
from typing import Any


class Brought:
    """An object and what it brings along, on its way into a pipe: what comes out at the other end is the object."""

    def __init__(self, brought: Any, along: bytes) -> None:
        self.brought = brought
        self.along = along

    def __reduce__(self) -> tuple[Any, ...]:
        return _arrive, (self.brought, self.along)


class _Arrivals(threading.local):
    along: bytes | None = None


_arrivals = _Arrivals()  # of each thread: several may unpickle at one moment


def _arrive(brought: Any, along: bytes) -> Any:
    _arrivals.along = along
    return brought


def take_along() -> bytes | None:
    """Return what the last object brought that this thread has unpickled since it asked before; ``None``: nothing."""
    # Forgotten at once: what came with one item must not be taken for that of the next, which may bring nothing.
    along, _arrivals.along = _arrivals.along, None
    return along
