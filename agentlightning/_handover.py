"""Results and wake-ups that one thread hands to another without a lock that both take.

A signal handler that raises (``KeyboardInterrupt``, an alarm) interrupts the main thread wherever a Python function
begins or a call returns, also inside of ``threading.Condition.__enter__`` after the lock has been taken and before the
caller knows. The lock then stays taken for ever, and with it ``concurrent.futures.Future`` and ``threading.Event``,
which are made of it: a background thread that sets such a future waits for a main thread that has moved on. Here every
step is one call of a built-in (``list.pop``, ``deque.append``, ``lock.acquire``), which CPython does not interrupt, and
nobody who settles or rings ever waits. ``with lock:`` over a lock of ``_thread`` itself is safe, too: CPython runs no
handler between the acquisition and the block.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError
from contextlib import suppress
from typing import Generic, TypeVar, cast

T = TypeVar("T")


class ReentrantEvent:
    """A wake-up for one waiting thread; may be rung from any thread, signal handler or finalizer."""

    __slots__ = ("_silent",)

    def __init__(self) -> None:
        self._silent = threading.Lock()  # held = not rung; whoever rings releases it
        self._silent.acquire()

    def is_set(self) -> bool:
        """Whether it has been rung and nobody has waited since."""
        return not self._silent.locked()

    def set(self) -> None:
        """Ring; a repeat is harmless."""
        if self._silent.locked():
            with suppress(RuntimeError):  # another thread has rung it meanwhile
                self._silent.release()

    def clear(self) -> None:
        """Forget that it was rung."""
        self._silent.acquire(blocking=False)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is rung, for at most ``timeout`` seconds, and clear it; return whether it was rung."""
        return self._silent.acquire(timeout=-1 if timeout is None else max(0.0, timeout))


class Future(Generic[T]):
    """What ``concurrent.futures.Future`` offers to a worker and those who wait for it, for any number of waiters."""

    __slots__ = ("_callbacks", "_error", "_settled", "_unclaimed", "_value")

    def __init__(self) -> None:
        self._unclaimed: list[bool] = [True]  # popped by the one who works or by the one who cancels
        self._settled = False
        self._value: T | None = None
        self._error: BaseException | None = None
        self._callbacks: deque[Callable[[], object]] = deque()

    def set_running_or_notify_cancel(self) -> bool:
        """Begin to work; ``False`` where it was cancelled before."""
        return self._claim()

    def is_begun(self) -> bool:
        """Whether somebody works on it, has settled it, or has cancelled it."""
        return not self._unclaimed

    def cancel(self) -> bool:
        """Cancel what nobody works on yet; return whether that was in time."""
        if not self._claim():
            return False
        self._settle(None, CancelledError())
        return True

    def set_result(self, value: T) -> None:
        """Settle it; only the first settling counts."""
        self._settle(value, None)

    def set_exception(self, error: BaseException) -> None:
        """Settle it with what ``result`` raises."""
        self._settle(None, error)

    def done(self) -> bool:
        """Whether it is settled."""
        return self._settled

    def result(self, timeout: float | None = None) -> T:
        """Wait for the result, from a thread.

        Raises:
            TimeoutError: It was not settled within ``timeout`` seconds.
            CancelledError: It was cancelled.
        """
        if not self._settled:
            settled = ReentrantEvent()  # one for each wait: an interrupted one keeps nobody else waiting
            self.add_done_callback(settled.set)
            give_up = None if timeout is None else time.monotonic() + timeout
            while not self._settled:
                if not settled.wait(None if give_up is None else give_up - time.monotonic()):
                    raise TimeoutError
        return self._outcome()

    def in_loop(self) -> asyncio.Future[T]:
        """Return a future of the running event loop with the same outcome; cancelling it cancels this one."""
        loop = asyncio.get_running_loop()
        waiting: asyncio.Future[T] = loop.create_future()

        def copy() -> None:
            if waiting.done():
                return
            if self._error is None:
                waiting.set_result(cast("T", self._value))
            elif isinstance(self._error, CancelledError):
                waiting.cancel()
            else:
                waiting.set_exception(self._error)

        def tell() -> None:
            with suppress(RuntimeError):  # the loop was closed, and nobody waits any more
                loop.call_soon_threadsafe(copy)

        def cancelled(of_loop: asyncio.Future[T]) -> None:
            if of_loop.cancelled():
                self.cancel()

        if self._settled:
            copy()
        else:
            waiting.add_done_callback(cancelled)
            self.add_done_callback(tell)
        return waiting

    def add_done_callback(self, callback: Callable[[], object]) -> None:
        """Call ``callback`` once it is settled, on the thread that settles it, or now."""
        self._callbacks.append(callback)
        if self._settled:
            self._call_back()

    def _claim(self) -> bool:
        try:
            return self._unclaimed.pop()
        except IndexError:
            return False

    def _settle(self, value: T | None, error: BaseException | None) -> None:
        if self._settled:
            return
        self._value, self._error = value, error
        self._settled = True
        self._call_back()

    def _call_back(self) -> None:
        # Two threads may come here at once; each callback is popped by one of them.
        while self._callbacks:
            try:
                callback = self._callbacks.popleft()
            except IndexError:
                return
            callback()

    def _outcome(self) -> T:
        if self._error is not None:
            raise self._error
        return cast("T", self._value)
