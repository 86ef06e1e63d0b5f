"""The one edge between synchronous callers and the asynchronous store."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from .._handover import Future
from .._threads import try_start

T = TypeVar("T")


def run_sync(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end and return its result, also where an event loop is running in this thread.

    Stores have no event-loop affinity, so the coroutine runs in a loop of its own. Called in the main thread it runs on
    another: a signal handler that raises would take a running loop apart, whose end then waits for ever. What it raises
    comes out of here, and the coroutine is run to its end all the same.
    """
    if not in_event_loop() and threading.current_thread() is not threading.main_thread():
        return _run(coroutine)
    return in_background(lambda: coroutine).result()


def in_background(work: Callable[[], Coroutine[Any, Any, T]]) -> Future[T]:
    """Run a coroutine on a thread of its own; its future cannot be cancelled."""
    future: Future[T] = Future()
    future.set_running_or_notify_cancel()

    def run() -> None:
        try:
            future.set_result(_run(work()))
        except BaseException as error:  # noqa: BLE001 - it belongs to whoever asks for the result
            future.set_exception(error)

    thread = threading.Thread(
        target=contextvars.copy_context().run, args=(run,), name="agl-portal", daemon=True
    )
    if not try_start(thread):
        if not in_event_loop():
            run()
        else:
            work().close()
            future.set_exception(
                RuntimeError("the interpreter ends, and gives no thread beside a running event loop")
            )
    return future


def _run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run in a loop of its own; ``asyncio.run`` would take the agent's current loop away."""
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        return runner.run(coroutine)


def in_event_loop() -> bool:
    """Whether an event loop is running in this thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
