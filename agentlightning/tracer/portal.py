"""The one edge between synchronous callers and the asynchronous store."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


def run_sync(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end and return its result, also where an event loop is running in this thread.

    Stores have no event-loop affinity, so the coroutine runs in a loop of its own.
    """
    if not in_event_loop():
        return _run(coroutine)
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(_run(coroutine))
        except BaseException as error:  # noqa: BLE001 - it belongs to the caller
            future.set_exception(error)

    threading.Thread(target=run, name="agl-portal", daemon=True).start()
    return future.result()


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
