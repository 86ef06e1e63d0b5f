"""The threads of an open store, and how they are brought to rest before a fork."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from ..._handover import Future, ReentrantEvent

GATE_SECONDS: Final = 1.0
"""How often a thread that is kept out looks by itself: a signal may interrupt the one who lets it in."""


class Thread(threading.Thread):
    """A daemon thread whose end can be awaited."""

    def __init__(self, target: Callable[[], None], name: str) -> None:
        super().__init__(name=name, daemon=True)
        self._work = target
        self.ended: Future[None] = Future()
        self.ended.set_running_or_notify_cancel()  # one who stops waiting for it keeps nobody else

    def run(self) -> None:
        """Work, and say when it is over."""
        try:
            self._work()
        finally:
            self.ended.set_result(None)


class Gate:
    """Lets threads work, and lets one thread bring all of them to rest."""

    def __init__(self) -> None:
        # Guards the three below: who comes in is counted, or finds it closed and is among those who are let in again.
        self._lock = threading.Lock()
        self._inside = 0
        self._kept_out: list[ReentrantEvent] = []
        self._left = ReentrantEvent()
        self.closing = False
        """True where somebody waits for the others to come out."""

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Work; wait first while the gate is closed."""
        while (opened := self._enter()) is not None:
            opened.wait(GATE_SECONDS)
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
            self._left.set()

    def _enter(self) -> ReentrantEvent | None:
        """Return what to wait for, or ``None`` where the gate was open."""
        with self._lock:
            if not self.closing:
                self._inside += 1
                return None
            opened = ReentrantEvent()
            self._kept_out.append(opened)
            return opened

    def close(self, seconds: float) -> bool:
        """Keep threads out, and return whether all came out in time."""
        with self._lock:
            self.closing = True
        give_up = time.monotonic() + seconds
        while self._inside:
            if not self._left.wait(give_up - time.monotonic()):
                return False
        return True

    def open(self) -> None:
        """Let threads in again."""
        with self._lock:
            self.closing = False
            kept_out, self._kept_out = self._kept_out, []
        for opened in kept_out:
            opened.set()
