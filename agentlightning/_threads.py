"""Threads at the end of the interpreter: Python 3.12 gives no new ones any more, not even to ``atexit`` handlers.

The limit is CPython's (gh-104690): once it has begun to finalize, ``Thread.start`` raises ``RuntimeError``. 3.11.7 and
3.13.0 still start threads for exit handlers, 3.12.1 does not. A program that records its first span when it ends, such
as a short script whose exporter is flushed by ``atexit``, would be left without a thread that writes. Threads that run
go on running.
"""

from __future__ import annotations

import threading


def interpreter_ends() -> bool:
    """Whether the interpreter has begun to end: its first step is to see the main thread off."""
    return not threading.main_thread().is_alive()


def started(thread: threading.Thread) -> bool:
    """Start a thread; ``False`` where the interpreter ends and gives no more, so that the work is to be done here.

    Raises:
        RuntimeError: No thread can be made for another reason: there are too many.
    """
    try:
        thread.start()
    except RuntimeError:
        if not interpreter_ends():
            raise
        return False
    return True
