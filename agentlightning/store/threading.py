"""0.3's thread-safe wrapper. The stores here are safe from any thread already; a stranger's may not be.

A store that declares itself safe is called straight away. Any other is called by one caller at a time, whatever
threads and event loops the calls come from, and is waited on by looking again, so that a wait keeps nobody out.
"""

from __future__ import annotations

import asyncio
import functools
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, cast

from ..types import Rollout
from .base import LightningStore, LightningStoreCapabilities

F = TypeVar("F", bound=Callable[..., Awaitable[Any]])

_RETRY_SECONDS = 0.001  # between two tries to get the lock, which must not block an event loop
_LOOK_SECONDS = 0.05  # between two looks of a wait


def _delegated(method: F) -> F:
    name = method.__name__

    @functools.wraps(method)
    async def call(self: LightningStoreThreaded, *args: Any, **kwargs: Any) -> Any:
        if self.store.capabilities.get("thread_safe"):
            return await getattr(self.store, name)(*args, **kwargs)
        while not self._lock.acquire(blocking=False):  # noqa: ASYNC110 - the lock is one of threads, not of a loop
            await asyncio.sleep(_RETRY_SECONDS)
        try:
            return await getattr(self.store, name)(*args, **kwargs)
        finally:
            self._lock.release()

    call.__dict__.pop("__isabstractmethod__", None)
    return cast("F", call)


class LightningStoreThreaded(LightningStore):
    """Any store, made safe to use from several threads; extras of the wrapped store are reached through it."""

    def __init__(self, store: LightningStore) -> None:
        self.store = store
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[LightningStoreThreaded], tuple[LightningStore]]:
        return type(self), (self.store,)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "store":  # unpickling asks before there is a store
            raise AttributeError(name)
        return getattr(self.store, name)

    @property
    def url(self) -> str | None:
        """That of the wrapped store."""
        return self.store.url

    @property
    def local_path(self) -> str | None:
        """That of the wrapped store."""
        return self.store.local_path

    @property
    def store_id(self) -> str | None:
        """That of the wrapped store."""
        return self.store.store_id

    def has_copy_at(self, url: str) -> bool:
        """That of the wrapped store."""
        return self.store.has_copy_at(url)

    @property
    def capabilities(self) -> LightningStoreCapabilities:
        """Those of the wrapped store, and safe for threads and tasks."""
        own = self.store.capabilities.copy()
        own["thread_safe"] = own["async_safe"] = True
        return own

    def otlp_traces_endpoint(self) -> str:
        """That of the wrapped store."""
        return self.store.otlp_traces_endpoint()

    async def wait_for_rollouts(
        self,
        *,
        rollout_ids: list[str],
        timeout: float | None = None,
    ) -> list[Rollout]:
        """Wait as :meth:`LightningStore.wait_for_rollouts` says, without keeping other calls out."""
        really_waits = timeout is None or (isinstance(timeout, (int, float)) and timeout > 0)
        if self.store.capabilities.get("thread_safe") or not really_waits:
            return await self._wait(rollout_ids=rollout_ids, timeout=timeout)
        give_up = None if timeout is None else time.monotonic() + timeout
        while True:
            finished = await self._wait(rollout_ids=rollout_ids, timeout=0)
            left = float("inf") if give_up is None else give_up - time.monotonic()
            if len(finished) == len(set(rollout_ids)) or left <= 0:
                return finished
            await asyncio.sleep(min(_LOOK_SECONDS, left))

    _wait = _delegated(LightningStore.wait_for_rollouts)

    statistics = _delegated(LightningStore.statistics)
    close = _delegated(LightningStore.close)
    start_rollout = _delegated(LightningStore.start_rollout)
    enqueue_rollout = _delegated(LightningStore.enqueue_rollout)
    enqueue_many_rollouts = _delegated(LightningStore.enqueue_many_rollouts)
    dequeue_rollout = _delegated(LightningStore.dequeue_rollout)
    dequeue_many_rollouts = _delegated(LightningStore.dequeue_many_rollouts)
    start_attempt = _delegated(LightningStore.start_attempt)
    update_rollout = _delegated(LightningStore.update_rollout)
    get_rollout_by_id = _delegated(LightningStore.get_rollout_by_id)
    query_rollouts = _delegated(LightningStore.query_rollouts)
    update_attempt = _delegated(LightningStore.update_attempt)
    seal_attempt = _delegated(LightningStore.seal_attempt)
    get_latest_attempt = _delegated(LightningStore.get_latest_attempt)
    query_attempts = _delegated(LightningStore.query_attempts)
    add_span = _delegated(LightningStore.add_span)
    add_many_spans = _delegated(LightningStore.add_many_spans)
    add_otel_span = _delegated(LightningStore.add_otel_span)
    query_spans = _delegated(LightningStore.query_spans)
    query_open_spans = _delegated(LightningStore.query_open_spans)
    query_late_spans = _delegated(LightningStore.query_late_spans)
    get_receipt = _delegated(LightningStore.get_receipt)
    get_next_span_sequence_id = _delegated(LightningStore.get_next_span_sequence_id)
    get_many_span_sequence_ids = _delegated(LightningStore.get_many_span_sequence_ids)
    add_resources = _delegated(LightningStore.add_resources)
    update_resources = _delegated(LightningStore.update_resources)
    get_resources_by_id = _delegated(LightningStore.get_resources_by_id)
    get_latest_resources = _delegated(LightningStore.get_latest_resources)
    query_resources = _delegated(LightningStore.query_resources)
    update_worker = _delegated(LightningStore.update_worker)
    get_worker_by_id = _delegated(LightningStore.get_worker_by_id)
    query_workers = _delegated(LightningStore.query_workers)
