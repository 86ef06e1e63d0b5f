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
from multiprocessing import util as multiprocessing_util
from types import FrameType
from typing import Optional

_log = logging.getLogger(__name__)

EXIT_TIMEOUT = 1.0
"""Seconds that the end of a process may take for its spans."""

HOLD = 0.2
"""Seconds for which SIGTERM holds the code that it interrupts."""


class ProcessEnd:
    """Calls ``finish`` once when the process ends, however it ends, until it is closed."""

    def __init__(self, finish: Callable[[], None]) -> None:
        self._finish = finish
        self._handler: Optional[Callable[[int, Optional[FrameType]], None]] = None
        atexit.register(self._run)
        self._finalize()
        multiprocessing_util.register_after_fork(self, ProcessEnd._finalize)
        self._watch_sigterm()

    def _finalize(self) -> None:
        # A forked child of multiprocessing clears the parent's finalizers, hence register_after_fork.
        self._finalizer = multiprocessing_util.Finalize(self, self._run, exitpriority=100)

    def _run(self) -> None:
        try:
            self._finish()
        except Exception:  # noqa: BLE001 - an exit path has nobody to tell
            _log.exception("spans could not be written at the end of the process")

    def _watch_sigterm(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        present = signal.getsignal(signal.SIGTERM)
        if present is not signal.SIG_DFL:
            if present is not signal.SIG_IGN:
                _log.info(
                    "SIGTERM has a handler of yours: if it ends the process without cleanup, queued spans go"
                )
            return

        def on_sigterm(signum: int, frame: Optional[FrameType]) -> None:
            del frame
            signal.signal(signum, signal.SIG_DFL)  # a second SIGTERM waits for nothing
            written = _thread.allocate_lock()
            written.acquire()
            try:
                # threading.Thread takes locks of its own, which the interrupted code may hold.
                _thread.start_new_thread(_end_after, (2 * EXIT_TIMEOUT, signum))
                _thread.start_new_thread(self._write_and_end, (signum, written.release))
            except RuntimeError:  # no thread can be made, or the interpreter is shutting down
                os.kill(os.getpid(), signum)
            written.acquire(timeout=HOLD)

        signal.signal(signal.SIGTERM, on_sigterm)
        self._handler = on_sigterm

    def _write_and_end(self, signum: int, let_go: Callable[[], None]) -> None:
        self._run()
        os.kill(os.getpid(), signum)
        let_go()

    def close(self) -> None:
        """Take every hook back."""
        atexit.unregister(self._run)
        self._finalizer.cancel()
        if self._handler is not None and signal.getsignal(signal.SIGTERM) is self._handler:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
            else:
                _log.info("teardown outside of the main thread leaves an inert SIGTERM handler")
        self._handler = None


def _end_after(seconds: float, signum: int) -> None:
    time.sleep(seconds)
    os.kill(os.getpid(), signum)
