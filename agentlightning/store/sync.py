"""A store for code that awaits nothing: scripts, notebooks, and functions that run in threads.

Each method of a store is there under its name, and waits for its answer. ``sync.pyi`` says so to type checkers and
editors; ``scripts/docs`` writes it from the contract.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import os
import threading
from collections.abc import Awaitable
from types import TracebackType
from typing import Any, Self

from .._locks import reentrant_lock

THREAD_NAME = "agl-sync-store"


class SyncStore:
    """What ``with open_store(…) as store`` yields; from any thread, also where an event loop is running, as in Jupyter.

    Each call runs on a thread of its own, and the caller waits for it: in an event loop, everything
    waits. Leaving the ``with`` closes the store.
    """

    def __init__(self, store: Any) -> None:
        self.store = store
        """The store behind it, for functions that take one and are awaited."""
        # Guards which loop answers: one thread is started, and what is asked reaches it before it is told to stop.
        self._lock = reentrant_lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._pid = os.getpid()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the store; a repeat is harmless."""
        try:
            self._wait(self.store.close())
        finally:
            self._end()

    def __getattr__(self, name: str) -> Any:
        if name == "store":  # copying and unpickling ask before there is one
            raise AttributeError(name)
        found = getattr(self.store, name)
        if not callable(found):
            return found

        @functools.wraps(found)
        def call(*args: Any, **kwargs: Any) -> Any:
            answer = found(*args, **kwargs)
            return self._wait(answer) if inspect.isawaitable(answer) else answer

        return call

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *(name for name in dir(self.store) if not name.startswith("_"))})

    def __reduce__(self) -> tuple[type[SyncStore], tuple[Any]]:
        return type(self), (self.store,)

    def _wait(self, answer: Awaitable[Any]) -> Any:
        async def answered() -> Any:
            return await answer

        with self._lock:
            future = asyncio.run_coroutine_threadsafe(answered(), self._running_loop())
        try:
            return future.result()
        except BaseException:  # Ctrl-C ends a wait that may be for ever
            future.cancel()
            raise

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        """Return the loop that answers; called with the lock held."""
        if self._loop is None or self._pid != os.getpid():  # a forked child has not the thread
            loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=_run, args=(loop,), name=THREAD_NAME, daemon=True)
            # It belongs to no rollout, whoever asks first.
            contextvars.Context().run(self._thread.start)
            self._loop, self._pid = loop, os.getpid()
        return self._loop

    def _end(self) -> None:
        with self._lock:
            loop, thread, self._loop = self._loop, self._thread, None
            if loop is None or self._pid != os.getpid():
                return
            loop.call_soon_threadsafe(loop.stop)
        if thread is not None:
            thread.join()


def _run(loop: asyncio.AbstractEventLoop) -> None:
    try:
        loop.run_forever()
        loop.run_until_complete(_cancel_others())
    finally:
        loop.close()


async def _cancel_others() -> None:
    # Somebody waits for each of these, and nothing would answer any more.
    waiting = asyncio.all_tasks() - {asyncio.current_task()}
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
