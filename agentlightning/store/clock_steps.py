"""A clock that is set forward while a store is open, or a machine that slept: no attempt is ended by that.

Times are recorded by a clock that somebody may set (NTP, a person). Another one only runs, and stands still with the
machine. Each look compares both: where the first has moved ahead of the second, it was set forward by the difference,
and what was recorded before counts from that much later.

Where the clock is set back, the same times come twice, and nobody can tell on which side something was recorded: it
counts as later. So an attempt may be given up late, by as much as the clock was set back, and never early. Steps are
known to those that had the store open while they happened.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from .._locks import reentrant_lock

Clock = Callable[[], float]

TOLERANCE: Final = 1.0
"""Seconds by which the two clocks may drift apart between two looks without one of them having been set."""
MOST_STEPS: Final = 1_000
"""Steps that are remembered; where there are more, the two oldest become one."""


class ClockSteps:
    """The clock of a store, and the steps by which it was set forward since the store was opened.

    Args:
        clock: Seconds since the epoch.
        steady: Seconds of a clock that cannot be set and stands still with the machine; default: the monotonic one
            where ``clock`` is the system's, else ``clock``, which then is never taken for set.
    """

    def __init__(self, clock: Clock, steady: Clock | None = None) -> None:
        self._clock = clock
        self._steady = steady or (time.monotonic if clock is time.time else clock)
        # Guards the fields below. ``now`` reads both clocks while it holds the lock: if two threads could store their
        # readings in another order than they took them, the clock would seem to have been set.
        self._lock = reentrant_lock()
        self._last = self._clock(), self._steady()
        self._highest = self._last[0]
        """The latest time that the clock has shown: what was recorded so far lies not behind it."""
        self._steps: list[tuple[float, float]] = []
        """The latest time that may have been recorded before the step, and by how many seconds the clock was set."""

    def now(self) -> float:
        """Return the time, and take note of a step forward since the last look."""
        with self._lock:
            wall, steady = self._clock(), self._steady()
            expected = self._last[0] + steady - self._last[1]
            self._highest = max(self._highest, expected)
            if wall - expected > TOLERANCE:
                self._steps.append((self._highest, wall - expected))
                if len(self._steps) > MOST_STEPS:
                    (_, first), (limit, second) = self._steps[:2]
                    self._steps[:2] = [(limit, first + second)]
            self._last = wall, steady
            self._highest = max(self._highest, wall)
            return wall

    @property
    def seconds(self) -> float:
        """By how much the clock was set forward in all."""
        steps = tuple(self._steps)  # a copy: ``now`` of another thread may change the list
        return sum(size for _, size in steps)

    def shown(self, moment: float) -> float:
        """Return a recorded moment as the clock would show it if it had been set before that."""
        steps = tuple(self._steps)  # a copy: ``now`` of another thread may change the list
        return moment + sum(size for limit, size in steps if moment <= limit)
