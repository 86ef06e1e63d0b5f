"""Coroutines in a thread of their own, for trainers that call plain functions."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")


class BackgroundTask:
    """One coroutine that runs to its end in a daemon thread.

    ``error`` is set before ``ended``, so whoever sees that it has ended may look at how.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self.ended = False
        """Whether it has ended, by itself, by an error or because it was stopped."""
        self.error: BaseException | None = None
        """What it raised."""

    @property
    def started(self) -> bool:
        """Whether it was started, and not stopped since."""
        return self._thread is not None

    def start(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run ``work`` in a new thread, and return when its event loop runs: from then on it can be stopped."""
        ready = threading.Event()
        # A daemon: an interpreter that ends must not wait for an agent that hangs.
        self._thread = threading.Thread(target=self._run, args=(work, ready), name=self._name, daemon=True)
        self._thread.start()
        # Without this ``stop`` could come before there is a task to cancel, and would wait for ever.
        ready.wait()

    def stop(self) -> None:
        """Cancel the coroutine and wait for its end; twice is fine."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        loop, task = self._loop, self._task
        if loop is not None and task is not None and thread.is_alive():
            with suppress(RuntimeError):  # it has ended meanwhile, and its loop with it
                loop.call_soon_threadsafe(task.cancel)
        thread.join()

    def _run(self, work: Callable[[], Coroutine[Any, Any, None]], ready: threading.Event) -> None:
        async def main() -> None:
            self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
            # After both are set: whoever waits reads them from another thread.
            ready.set()
            await work()

        try:
            asyncio.run(main())
        except asyncio.CancelledError:
            pass
        except BaseException as error:  # noqa: BLE001 - whoever started it asks for the error
            self.error = error
        finally:
            # Behind ``error``: whoever sees ``ended`` reads the error next.
            self.ended = True
            ready.set()


class BackgroundLoop:
    """An event loop in a thread of its own: clients outlive a call, and the caller may have a loop itself."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine to its end and return its result; the loop starts with the first."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=self._loop.run_forever, name=self._name, daemon=True)
            self._thread.start()
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        # An interrupt reaches the waiting thread only; the coroutine would run on unseen.
        except BaseException:
            future.cancel()
            raise

    def close(self) -> None:
        """End the loop and its thread; twice is fine."""
        loop, thread, self._loop = self._loop, self._thread, None
        if loop is None or thread is None:
            return
        # As ``asyncio.run`` ends: generators first, for they may use the executor in their ``finally``.
        asyncio.run_coroutine_threadsafe(loop.shutdown_asyncgens(), loop).result()
        asyncio.run_coroutine_threadsafe(loop.shutdown_default_executor(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
