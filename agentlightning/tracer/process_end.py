"""How a worker process ends without losing what is queued.

Return and exception go through ``atexit``, and through ``multiprocessing.util.Finalize`` in children of
``multiprocessing``, which skip ``atexit``. SIGTERM has no exit path at all in Python; where nobody handles it, a
handler gets the spans out within a second and then lets the default disposition end the process, so that the exit
code stays that of SIGTERM. A handler of the user's is never replaced.
"""

from __future__ import annotations

import atexit
import logging
import os
import signal
import threading
from collections.abc import Callable
from multiprocessing import util as multiprocessing_util
from types import FrameType
from typing import Optional

SIGTERM_SECONDS = 2.0
"""So long SIGTERM is held up at most."""

_log = logging.getLogger(__name__)

EXIT_TIMEOUT = 1.0
"""Seconds that the end of a process may take for its spans."""


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
            # On a thread of its own: the code that was interrupted may hold a lock that writing needs.
            writing = threading.Thread(target=self._run, name="agentlightning-sigterm", daemon=True)
            writing.start()
            writing.join(SIGTERM_SECONDS)
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)

        signal.signal(signal.SIGTERM, on_sigterm)
        self._handler = on_sigterm

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
