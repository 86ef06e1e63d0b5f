"""Work in the background that lets others have the interpreter in between."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Final, TypeVar

T = TypeVar("T")

WORK_SECONDS: Final = 0.0005
LONGEST_SECONDS: Final = 0.005
"""CPython takes the lock from whoever has had it for this long (``sys.getswitchinterval``)."""
PAUSE_SECONDS: Final = 0.00002


class Turn:
    """A thread's turn at the interpreter lock; ``give_way`` ends it once it is half a millisecond old.

    CPython makes a thread that wants the lock wait for 5 ms (``sys.getswitchinterval``) while another computes: an
    event loop that wakes up beside a busy writer is late by that much each time. ``time.sleep(0)`` is not enough: the
    sleeper takes the lock again before the other thread has woken up.

    Where the others compute themselves, a thread that gives way gets the lock back after 5 ms only, and giving way each
    half millisecond would leave it a tenth of the processor. So the next turn is as long as the others kept the lock.
    """

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._length = WORK_SECONDS

    def give_way(self) -> None:
        """Let another thread run, if this one has worked for long enough."""
        now = time.perf_counter()
        if now - self._began > self._length:
            time.sleep(PAUSE_SECONDS)  # returns when the others let go of the lock, which may be much later
            self._began = time.perf_counter()
            self._length = min(max(self._began - now, WORK_SECONDS), LONGEST_SECONDS)

    def over(self, items: Iterable[T]) -> Iterator[T]:
        """Yield the items, and let other threads run in between."""
        for item in items:
            yield item
            self.give_way()
