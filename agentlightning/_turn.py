"""Work in the background that lets others have the interpreter in between."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Final, TypeVar

T = TypeVar("T")

WORK_SECONDS: Final = 0.0005
PAUSE_SECONDS: Final = 0.00002


class Turn:
    """A thread's turn at the interpreter lock; ``give_way`` ends it once it is half a millisecond old.

    CPython makes a thread that wants the lock wait for 5 ms (``sys.getswitchinterval``) while another computes: an
    event loop that wakes up beside a busy writer is late by that much each time. ``time.sleep(0)`` is not enough: the
    sleeper takes the lock again before the other thread has woken up.

    An event loop lets go of the lock itself when it has nothing to do, and gets it back within half a millisecond.
    From a thread that computes, CPython takes it only after those 5 ms, and whoever gave way each half millisecond
    would be left with a tenth of the processor; so the turn after that is as long as the other's was.

    Most work takes :func:`turn_of_thread`: where each part of a long work began a turn of its own, many short parts
    would make a long one.

    Args:
        is_urgent: Whether the work comes before other threads now.
        clock: Seconds of any clock that goes on while a thread sleeps.
        sleep: Lets other threads run for so many seconds.
    """

    def __init__(
        self,
        is_urgent: Callable[[], bool] = lambda: False,
        *,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self.is_urgent = is_urgent
        self._clock = clock
        self._sleep = sleep
        self._began = clock()
        self._length = WORK_SECONDS

    def give_way(self) -> None:
        """Let another thread run, if this one has worked for long enough."""
        now = self._clock()
        if now - self._began <= self._length or self.is_urgent():
            return
        self._sleep(PAUSE_SECONDS)  # returns when the others let go of the lock, which may be much later
        self._began = self._clock()
        forced = sys.getswitchinterval()
        self._length = WORK_SECONDS if self._began - now < forced else forced

    def over(self, items: Iterable[T]) -> Iterator[T]:
        """Yield the items, and let other threads run in between."""
        for item in items:
            yield item
            self.give_way()


class _Local(threading.local):
    def __init__(self) -> None:  # called in each thread that asks
        self.turn = Turn()


_local = _Local()
UNBROKEN: Final = Turn(lambda: True)
"""Of work that nobody else may delay: it never gives way."""


def turn_of_thread() -> Turn:
    """Return the turn of the present thread, which all of its work shares."""
    return _local.turn
