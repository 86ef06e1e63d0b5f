"""A lock that an agent's own thread may take: signal handlers, the garbage collector and forks are no danger to it."""

from __future__ import annotations

import os
import threading
from typing import Any

from ._weak_objects import WeakObjects

_locks: WeakObjects[Any] = WeakObjects()


def reentrant_lock() -> threading.RLock:
    """Return a re-entrant lock that a forked child finds free, whoever held it in the parent.

    Re-entrant, because a signal handler, or a finalizer that the garbage collector runs, may need it in the middle of a
    line of the thread that holds it: with a plain lock that thread would wait for itself.
    """
    lock = threading.RLock()  # guards what the caller says
    _locks.add(lock)
    return lock


def _after_fork_in_child() -> None:
    for lock in _locks:
        # A child has only the thread that forked. What that holds it also lets go of; the holder of any other is gone.
        # Both methods are CPython's own (3.9 to 3.14): ``Condition`` and the modules that survive a fork use them.
        if not lock._is_owned():  # noqa: SLF001
            lock._at_fork_reinit()  # noqa: SLF001


os.register_at_fork(after_in_child=_after_fork_in_child)
