"""Threads at the end of the interpreter: from Python 3.12 on it gives no new ones, ``atexit`` handlers included.

The limit is CPython's (gh-104690): once it has begun to finalize, ``Thread.start`` raises ``RuntimeError``, from 3.13
on ``PythonFinalizationError``. A program that records its first span when it ends, such as a short script whose
exporter is flushed by ``atexit``, would be left without a thread that writes. Threads that run go on running.
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
