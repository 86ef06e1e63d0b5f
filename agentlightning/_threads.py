"""Starting threads where it is hard: at the end of the interpreter, and under signals.

The first releases of Python 3.12 give no new threads once the interpreter has begun to finalize, not even to ``atexit``
(gh-104690, taken back by gh-113964): ``Thread.start`` raises ``RuntimeError``. Seen with 3.12.1, and neither with
3.11.7 nor with 3.13.0. Threads that run go on running.

``Thread.start`` waits for the new thread on a ``threading.Event``. A signal handler that raises meanwhile may leave the
lock of that event taken by the main thread, and the new thread waits for it before it has begun (see ``_handover``).
"""

from __future__ import annotations

import _thread
import threading

from ._handover import Future


def interpreter_ends() -> bool:
    """Whether the program is over: the main thread has returned, though others may still be awaited."""
    return not threading.main_thread().is_alive()


def try_start(thread: threading.Thread) -> bool:
    """Start a thread; ``False`` where the interpreter ends and gives no more, so that the work is to be done here.

    An exception from a signal handler may come out of here; the thread then runs all the same.

    Raises:
        RuntimeError: No thread can be made for another reason: there are too many.
    """
    try:
        if threading.current_thread() is threading.main_thread():
            _start_elsewhere(thread)
        else:
            thread.start()
    except RuntimeError:
        if not interpreter_ends():
            raise
        return False
    return True


def _start_elsewhere(thread: threading.Thread) -> None:
    """Start a thread from one that no signal interrupts."""
    outcome: Future[None] = Future()

    def start() -> None:
        try:
            thread.start()
        except BaseException as error:  # noqa: BLE001 - the caller's to see
            outcome.set_exception(error)
        else:
            outcome.set_result(None)

    _thread.start_new_thread(start, ())
    outcome.result()
