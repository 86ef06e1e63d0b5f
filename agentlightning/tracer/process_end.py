"""How a worker process ends without losing what is queued.

Return and exception go through ``atexit``, and through ``multiprocessing.util.Finalize`` in children of
``multiprocessing``, which skip ``atexit``. SIGTERM has no exit path at all in Python; where nobody handles it, a
handler gets the spans out and then lets the default disposition end the process, so that the exit code stays that
of SIGTERM. A handler of the user's is never replaced.

A handler runs on top of whatever the main thread was doing, and that may hold a lock which writing needs: ours, one of
OpenTelemetry's spans, one of ``threading``'s. So the handler itself takes no lock. A thread of its own writes, the main
thread is held meanwhile, and let go after a moment, so that it can give back what it holds.
"""

from __future__ import annotations

import _thread
import atexit
import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType, ModuleType
from typing import TYPE_CHECKING

from ..instrumentation.guard import Guard
from ..instrumentation.imports import when_imported

if TYPE_CHECKING:
    from multiprocessing.util import Finalize

_log = logging.getLogger(__name__)

EXIT_TIMEOUT = 1.0
"""Seconds that the end of a process may take for its spans."""

HOLD = 0.2
"""Seconds for which SIGTERM holds the code that it interrupts."""


class ProcessEnd:
    """Calls ``finish`` once when the process ends, however it ends, until it is closed."""

    def __init__(self, finish: Callable[[], None]) -> None:
        self._finish = finish
        self._multiprocessing: ModuleType | None = None
        self._finalizer: Finalize | None = None
        atexit.register(self.run)
        # What starts a child of multiprocessing has imported this module before, so no child is missed.
        self._waiting = when_imported({"multiprocessing.util": self._follow_into_children}, Guard())
        # Not where that comes later: this is no child of multiprocessing then, and its exit function, which was
        # registered after the agent's own, would finish before those that may still make spans.
        self._finalize()
        _open.append(self)
        _watch_sigterm()

    def _follow_into_children(self, util: ModuleType) -> None:
        self._multiprocessing = util
        # A forked child of multiprocessing clears the parent's finalizers.
        util.register_after_fork(self, ProcessEnd._finalize)

    def _finalize(self) -> None:
        if self._multiprocessing is not None:
            self._finalizer = self._multiprocessing.Finalize(self, self.run, exitpriority=100)

    def run(self) -> None:
        """Finish; never raises."""
        try:
            self._finish()
        except Exception:  # noqa: BLE001 - an exit path has nobody to tell
            _log.exception("spans could not be written at the end of the process")

    def close(self) -> None:
        """Take every hook back; the handler of SIGTERM goes with the last that is open."""
        atexit.unregister(self.run)
        self._waiting.undo()
        if self._finalizer is not None:
            self._finalizer.cancel()
        if self in _open:
            _open.remove(self)
        if not _open and signal.getsignal(signal.SIGTERM) is _on_sigterm:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
            else:
                _log.info("teardown outside of the main thread leaves an inert SIGTERM handler")


_open: list[ProcessEnd] = []
"""Those that wait for the end of this process."""


def _watch_sigterm() -> None:
    if threading.current_thread() is not threading.main_thread():
        return
    present = signal.getsignal(signal.SIGTERM)
    if present is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _on_sigterm)
    elif present is not _on_sigterm and present is not signal.SIG_IGN:
        _log.info("SIGTERM has a handler of yours: if it ends the process without cleanup, queued spans go")


def _on_sigterm(signum: int, frame: FrameType | None) -> None:
    del frame
    signal.signal(signum, signal.SIG_DFL)  # a second SIGTERM waits for nothing
    written = _thread.allocate_lock()  # taken until all is written, and released by the thread that writes
    written.acquire()
    try:
        # threading.Thread takes locks of its own, which the interrupted code may hold.
        # The first one ends the process also where the second one waits for a lock that this thread holds.
        _thread.start_new_thread(_end_after, (2 * EXIT_TIMEOUT, signum))
        _thread.start_new_thread(_write_and_end, (signum, written.release))
    except RuntimeError:  # no thread can be made, or the interpreter is shutting down
        os.kill(os.getpid(), signum)
    written.acquire(timeout=HOLD)


def _write_and_end(signum: int, let_go: Callable[[], None]) -> None:
    """Let all that are open write side by side, then end the process."""
    writing = [threading.Thread(target=each.run, daemon=True) for each in _open]
    for thread in writing:
        thread.start()
    for thread in writing:
        thread.join()
    os.kill(os.getpid(), signum)
    let_go()


def _end_after(seconds: float, signum: int) -> None:
    time.sleep(seconds)
    os.kill(os.getpid(), signum)
