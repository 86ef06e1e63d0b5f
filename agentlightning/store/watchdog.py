"""The timer that gives up silent and late attempts although nobody calls the store.

One daemon thread per open store, started when a deadline is seen and not before. It decides nothing about attempts:
it sleeps until the next deadline and then calls ``scan``, which applies ``store.lifecycle`` in one transaction. It
never sleeps longer than a second, because other processes may have set an earlier deadline and the injected clock may
have been moved; it ends when there is no deadline left.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import weakref
from collections.abc import Callable
from typing import Protocol

from .._handover import ReentrantEvent
from .._threads import try_start
from ..errors import StoreClosed

_log = logging.getLogger(__name__)

LONGEST_SLEEP = 1.0
"""Seconds; changes by other processes are seen within this time."""
_SHORTEST_SLEEP = 0.001  # a clock that stands still must not make the thread spin


class Scanned(Protocol):
    """What the watchdog watches."""

    async def scan(self) -> float | None:
        """Apply what is overdue; return the next deadline."""
        ...


class Watchdog:
    """The timer of one store."""

    def __init__(self, store: Scanned, clock: Callable[[], float]) -> None:
        self._store = weakref.ref(store)
        self._clock = clock
        self._begin()

    def _begin(self) -> None:
        # Guards the fields below, apart from the event. ``expect`` reads the deadline without it first, which is safe
        # because ``expect`` is called after the commit that set a deadline, and the thread forgets its own deadline
        # before it scans: where ``expect`` trusts one that is being forgotten, the scan finds what was committed.
        self._lock = threading.Lock()
        self._wake = ReentrantEvent()
        self._thread: threading.Thread | None = None
        self._deadline: float | None = None
        self._stopped = False

    def expect(self, deadline: float) -> None:
        """Make sure that a scan happens at ``deadline`` (seconds since the epoch, of the store's clock)."""
        known = self._deadline  # read once: its thread may forget it after any line
        if known is not None and known <= deadline:
            return
        with self._lock:
            if self._stopped or (self._deadline is not None and self._deadline <= deadline):
                return
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="agl-store-watchdog", daemon=True)
                try:
                    if not try_start(thread):
                        return  # the interpreter is shutting down: nobody would act on an attempt that is given up
                except RuntimeError as error:  # there are too many threads
                    _log.warning("no timer for overdue attempts: %s", error)
                    return
                self._thread = thread
            self._deadline = deadline
        self._wake.set()

    def stop(self) -> None:
        """End the thread; a repeat is harmless."""
        with self._lock:
            self._stopped = True
            thread = self._thread
        self._wake.set()
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout=10.0)

    def after_fork_in_child(self) -> None:
        """Begin anew: the thread stayed in the parent, and a thread of the parent may have held the lock."""
        self._begin()

    def _run(self) -> None:
        with asyncio.Runner() as runner:
            while self._sleep():
                with self._lock:
                    # Before the scan, not after it: ``expect`` of a write that the scan did not see must not be undone.
                    self._deadline = None
                store = self._store()
                if store is None:
                    return
                try:
                    following = runner.run(store.scan())
                except StoreClosed:
                    return
                except Exception as error:  # noqa: BLE001 - a store that fails now may work again
                    _log.warning("looking for overdue attempts failed: %s: %s", type(error).__name__, error)
                    following = self._clock() + LONGEST_SLEEP
                # A reference that is kept during the sleep would keep a store alive that nobody uses.
                del store
                if following is not None:
                    self.expect(following)
                if self._is_done():
                    return

    def _sleep(self) -> bool:
        deadline = self._deadline
        seconds = LONGEST_SLEEP if deadline is None else deadline - self._clock()
        self._wake.wait(min(max(seconds, _SHORTEST_SLEEP), LONGEST_SLEEP))
        self._wake.clear()
        return not self._stopped

    def _is_done(self) -> bool:
        # In one step with forgetting the thread: ``expect`` either sets a deadline before this look, and the thread
        # goes on, or finds no thread and starts another one.
        with self._lock:
            if self._deadline is None:
                self._thread = None
            return self._deadline is None
