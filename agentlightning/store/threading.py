"""0.3's thread-safe wrapper. The stores here are safe from any thread already; a stranger's may not be.

A store that declares itself safe is called straight away. Any other is called by one caller at a time, whatever
threads and event loops the calls come from, and is waited on by looking again, so that a wait keeps nobody out.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from ..types import Rollout
from . import values
from .arguments import RolloutWait
from .base import LightningStore, LightningStoreCapabilities
from .primitives import PRIMITIVES, Primitive, perform
from .wrapper import StoreWrapper

T = TypeVar("T")

_RETRY_SECONDS = 0.001  # between two tries to get the lock, which must not block an event loop
_LOOK_SECONDS = 0.05  # between two looks of a wait


class LightningStoreThreaded(StoreWrapper):
    """Any store, made safe to use from several threads; extras of the wrapped store are reached through it."""

    def __init__(self, store: LightningStore) -> None:
        super().__init__(store)
        # Held during a call of a store that is not safe, so that no other call begins. Not re-entrant: another task
        # of the same event loop has to wait, too.
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[LightningStoreThreaded], tuple[LightningStore]]:
        return type(self), (self.inner,)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "inner":  # unpickling asks before there is a store
            raise AttributeError(name)
        return getattr(self.inner, name)

    @property
    def store(self) -> LightningStore:
        """The wrapped store."""
        return self.inner

    @property
    def capabilities(self) -> LightningStoreCapabilities:
        """Those of the wrapped store, and safe for threads and tasks."""
        own = self.inner.capabilities.copy()
        own["thread_safe"] = own["async_safe"] = True
        return own

    async def handle(self, primitive: Primitive, value: Any) -> Any:
        """Pass it on when it is its turn."""
        return await self._in_turn(lambda: perform(self.inner, primitive, value))

    async def do_wait_for_rollouts(self, wait: RolloutWait) -> list[Rollout]:
        """Wait as :meth:`LightningStore.wait_for_rollouts` says, without keeping other calls out."""
        timeout = values.timeout(wait.timeout)
        if self.inner.capabilities.get("thread_safe") or timeout == 0:
            return await self._wait(wait)
        give_up = None if timeout is None else time.monotonic() + timeout
        while True:
            finished = await self._wait(RolloutWait(wait.rollout_ids, 0))
            left = float("inf") if give_up is None else give_up - time.monotonic()
            if len(finished) == len(set(wait.rollout_ids)) or left <= 0:
                return finished
            await asyncio.sleep(min(_LOOK_SECONDS, left))

    async def close(self) -> None:
        """Close the wrapped store when no other call is at work."""
        await self._in_turn(self.inner.close)

    async def _wait(self, wait: RolloutWait) -> list[Rollout]:
        finished: list[Rollout] = await self.handle(PRIMITIVES["wait_for_rollouts"], wait)
        return finished

    async def _in_turn(self, call: Callable[[], Awaitable[T]]) -> T:
        if self.inner.capabilities.get("thread_safe"):
            return await call()
        while not self._lock.acquire(blocking=False):  # noqa: ASYNC110 - the lock is one of threads, not of a loop
            await asyncio.sleep(_RETRY_SECONDS)
        try:
            return await call()
        finally:
            self._lock.release()


def _one_by_one(name: str) -> Callable[..., Awaitable[Any]]:
    async def call(self: LightningStoreThreaded, *args: Any, **kwargs: Any) -> Any:
        return await self._in_turn(lambda: getattr(self.inner, name)(*args, **kwargs))

    call.__name__, call.__qualname__ = name, f"{LightningStoreThreaded.__name__}.{name}"
    call.__doc__ = getattr(LightningStore, name).__doc__
    return call


# The conveniences over primitives are passed on as they are: a store of 0.2 has these and not the primitives.
for _name in ("enqueue_rollout", "dequeue_rollout", "add_span", "add_otel_span", "get_next_span_sequence_id"):
    setattr(LightningStoreThreaded, _name, _one_by_one(_name))
