"""The writer's thread: started when there is something to do, and again where it has died."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import suppress

from opentelemetry import context as otel_context

from .._handover import Future, ReentrantEvent
from .._threads import try_start

_log = logging.getLogger(__name__)

THREAD_NAME = "otel-loop"


class WriterThread:
    """A daemon thread that sleeps until it is woken up.

    Args:
        work: What it does; it runs until there is nothing more to do, ever.
    """

    def __init__(self, work: Callable[[], None]) -> None:
        self._work = work
        self._stopped = False
        self.after_fork_in_child()

    def after_fork_in_child(self) -> None:
        """Have no thread: that of the parent is not in this process."""
        # Guards that there is one thread at a time. No other lock is taken while it is held. Re-entrant: a signal
        # handler or a finalizer may wake the writer up in the thread that holds it.
        self._lock = threading.RLock()
        self._thread: threading.Thread | None = None
        self._ended: Future[None] | None = None
        self.is_idle = True
        """Whether it sleeps until it is woken up, or there is none."""
        self._wake = ReentrantEvent()
        self._full = ReentrantEvent()

    # ------------------------------------------------------------------ for everybody else

    def wake(self, *, at_once: bool = False) -> None:
        """Have it work: as soon as it has waited for more to come with this, or at once."""
        if at_once:
            self._full.set()
        ended = self._ended
        if ended is None or ended.done():
            self.begin()
        self._wake.set()

    def hurry(self) -> None:
        """Let it wait for nothing more to come, if it works."""
        self._full.set()

    def begin(self) -> None:
        """Have a thread. At the end of the interpreter there may be none to be had any more (see ``_threads``)."""
        with self._lock:
            if self._stopped or (self._ended is not None and not self._ended.done()):
                return
            ended: Future[None] = Future()
            thread = threading.Thread(target=self._run, args=(ended,), name=THREAD_NAME, daemon=True)
            self._thread, self._ended = thread, ended
            begun = False
            try:
                # Under OpenTelemetry's threading instrumentation the thread would carry the starter's context.
                token = otel_context.attach(otel_context.Context())
                try:
                    begun = try_start(thread)
                finally:
                    otel_context.detach(token)
            except RuntimeError as error:  # there are too many threads
                _log.warning("no thread for the writer: %s", error)
            finally:
                # Also where a signal came before it could be told; then the thread sees that it is none.
                if not begun:
                    self._thread = self._ended = None
                    self.is_idle = True

    @property
    def is_running(self) -> bool:
        """Whether there is a thread that has not ended."""
        return self._thread is not None and self._thread.is_alive()

    def is_current(self) -> bool:
        """Whether the caller runs on it."""
        return threading.current_thread() is self._thread

    def join(self, timeout: float) -> None:
        """Wait for its end, from another thread, for at most ``timeout`` seconds."""
        ended, thread = self._ended, self._thread
        if ended is not None and thread is not None and thread is not threading.current_thread():
            with suppress(TimeoutError):
                ended.result(timeout)
                thread.join(timeout)  # what is left of it is not ours

    def stop(self) -> None:
        """Let none be started any more."""
        self._stopped = True

    # ------------------------------------------------------------------ on the thread

    def _run(self, ended: Future[None]) -> None:
        try:
            with self._lock:
                is_the_one = self._ended is ended
            if is_the_one:
                self._work()
        finally:
            ended.set_result(None)

    def sleep(self, seconds: Callable[[], float]) -> None:
        """Wait until there is something to do, and then so long for more to come with it."""
        self._wake.wait()
        # Here and not where it is woken up: a signal handler may run before ``_wake`` is set.
        self.is_idle = False
        patience = seconds()
        if patience > 0:
            self._full.wait(patience)
        self._full.clear()
        self._wake.clear()

    def go_on(self, *, at_once: bool) -> None:
        """Have another round."""
        self.is_idle = False
        self._wake.set()
        if at_once:
            self._full.set()

    def rest(self) -> None:
        """Sleep until somebody wakes it up."""
        self.is_idle = True
