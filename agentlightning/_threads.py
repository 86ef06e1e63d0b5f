"""Threads at the end of the interpreter: the first releases of Python 3.12 give no new ones, not even to ``atexit``.

The limit is CPython's (gh-104690, taken back by gh-113964): once it has begun to finalize, ``Thread.start`` raises
``RuntimeError``. Seen with 3.12.1, and neither with 3.11.7 nor with 3.13.0. Threads that run go on running.
"""

from __future__ import annotations

import threading


def interpreter_ends() -> bool:
    """Whether the program is over: the main thread has returned, though others may still be awaited."""
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
