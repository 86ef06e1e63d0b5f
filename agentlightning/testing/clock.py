"""Time in tests: a clock that only a test moves, and waiting for a condition instead of for time to pass.

A deadline is never what a test measures. It is the time after which waiting on is pointless, so it is
generous, and a test that passes does not wait for it.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

POLL_SECONDS = 0.005
"""Between two looks at a condition."""


class ManualClock:
    """A clock for everything that takes one: calling it returns seconds since the epoch.

    It stands still until :meth:`shift` moves it, in either direction, from any thread.
    """

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self._now = now
        self._lock = threading.Lock()  # makes reading and writing one step, so that no shift is lost

    def __call__(self) -> float:
        return self._now

    def shift(self, seconds: float) -> float:
        """Move by ``seconds`` (negative: backwards) and return the new time."""
        with self._lock:
            self._now += seconds
            return self._now

    def __reduce__(self) -> tuple[type[ManualClock], tuple[float]]:
        # A lock cannot be pickled.
        return type(self), (self._now,)  # a copy that is moved on its own

    def __repr__(self) -> str:
        return f"ManualClock({self._now!r})"


def wait_until(condition: Callable[[], T], *, deadline: float = 60.0, what: str = "") -> T:
    """Call ``condition`` until it returns something true, and return that.

    Args:
        condition: Asked at once, then every few milliseconds.
        deadline: Seconds after which to give up.
        what: Said in the error; default the name of ``condition``.

    Raises:
        TimeoutError: The condition did not become true in time.
    """
    give_up = time.monotonic() + deadline
    while not (answer := condition()):
        if time.monotonic() > give_up:
            raise _late(condition, deadline, what)
        time.sleep(POLL_SECONDS)
    return answer


async def wait_until_async(condition: Callable[[], Any], *, deadline: float = 60.0, what: str = "") -> Any:
    """Like :func:`wait_until` without blocking the event loop; ``condition`` may be a coroutine function."""
    give_up = time.monotonic() + deadline
    while True:
        pending = condition()
        answer = await pending if inspect.isawaitable(pending) else pending
        if answer:
            return answer
        if time.monotonic() > give_up:
            raise _late(condition, deadline, what)
        await asyncio.sleep(POLL_SECONDS)


# The name of the condition is all that says what a test waited for.
def _late(condition: object, deadline: float, what: str) -> TimeoutError:
    name = what or getattr(condition, "__qualname__", repr(condition))
    return TimeoutError(f"{name}: not true after {deadline:g} s")
