"""Coroutines of a store that are called from synchronous code, and waiting in whatever event loop is running."""

from __future__ import annotations

import asyncio
import contextvars
import sys
import threading
from collections.abc import Coroutine
from contextlib import suppress
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
        return run_here(coroutine)
    return _in_background(coroutine).result()


def run_here(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run in a loop of its own; ``asyncio.run`` would take the agent's current loop away."""
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        return runner.run(coroutine)


def _in_background(coroutine: Coroutine[Any, Any, T]) -> Future[T]:
    """Run a coroutine on a thread of its own; its future cannot be cancelled."""
    future: Future[T] = Future()
    future.set_running_or_notify_cancel()

    def run() -> None:
        try:
            future.set_result(run_here(coroutine))
        except BaseException as error:  # noqa: BLE001 - it belongs to whoever asks for the result
            future.set_exception(error)

    thread = threading.Thread(
        target=contextvars.copy_context().run, args=(run,), name="agl-run-sync", daemon=True
    )
    if not try_start(thread):
        if not in_event_loop():
            run()
        else:
            coroutine.close()
            future.set_exception(
                RuntimeError("the interpreter ends, and gives no thread beside a running event loop")
            )
    return future


def in_event_loop() -> bool:
    """Whether an event loop is running in this thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


async def wait_for_future(future: Future[Any], timeout: float) -> bool:
    """Wait for a thread's future in whatever event loop is running; return whether it is done in time."""
    if in_event_loop():
        await asyncio.wait([future.in_loop()], timeout=timeout)
    elif not future.done():
        trio: Any = sys.modules.get("trio")
        if trio is None:
            _wait(future, timeout)
        else:
            await trio.to_thread.run_sync(_wait, future, timeout, abandon_on_cancel=True)
    return future.done()


def _wait(future: Future[Any], timeout: float) -> None:
    with suppress(Exception):  # the outcome is asked for afterwards
        future.result(timeout)
