"""A store that fails when it is told to.

:class:`FaultyStore` puts faults between a caller and any store. Reads pass untouched. A *write* is counted,
may be held back or slowed down, and then has one of three outcomes: it works, it is *refused* (nothing is
written), or its acknowledgement is *lost* (it is written and the caller gets an error all the same, as when a
connection breaks after the commit). Without faults it is a store like the one inside and passes the contract.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Final, Literal, ParamSpec, TypeVar

from ..errors import StoreUnavailable
from ..store.base import (
    UNSET,
    LightningStore,
    LightningStoreCapabilities,
    LightningStoreStatistics,
    Unset,
)
from ..types import (
    Account,
    Attempt,
    AttemptedRollout,
    AttemptStatus,
    EnqueueRolloutRequest,
    NamedResources,
    Receipt,
    ResourcesUpdate,
    Rollout,
    RolloutConfig,
    RolloutMode,
    RolloutStatus,
    Span,
    TaskInput,
    Worker,
    WorkerStatus,
)

T = TypeVar("T")
P = ParamSpec("P")

Outcome = Literal["work", "refuse", "lose"]

WRITES: Final = frozenset(
    {
        "start_rollout",
        "enqueue_many_rollouts",
        "dequeue_many_rollouts",
        "start_attempt",
        "update_rollout",
        "update_attempt",
        "seal_attempt",
        "add_many_spans",
        "get_many_span_sequence_ids",
        "add_resources",
        "update_resources",
        "update_worker",
    }
)
"""The primitives that change a store; the conveniences of the contract call these."""


class FaultyStore(LightningStore):
    """Any store, with faults that a test switches on and off while it is in use.

    Args:
        inner: The store that does the work; closing this one closes it.
        delay: Seconds that every write waits before it reaches ``inner``.
        fail_every: Refuse every n-th write (0 = none).
        lose_every: Lose the acknowledgement of every n-th write (0 = none).
        script: Outcomes of the first writes, one each; the rules above hold after them.
        only: The methods that have faults; default all of :data:`WRITES`.
        error: Makes the exception of a refused or lost write; default :class:`StoreUnavailable`.
    """

    def __init__(
        self,
        inner: LightningStore,
        *,
        delay: float = 0.0,
        fail_every: int = 0,
        lose_every: int = 0,
        script: Iterable[Outcome] = (),
        only: Collection[str] = WRITES,
        error: Callable[[], Exception] | None = None,
    ) -> None:
        self.inner = inner
        self.delay = delay
        self.fail_every = fail_every
        self.lose_every = lose_every
        self.only = frozenset(only)
        self.writes = 0
        """Writes that have begun, held ones included."""
        self.faults = 0
        """Writes that were refused or lost."""
        self._error = error or (lambda: StoreUnavailable("the test made this write fail"))
        self._script: deque[Outcome] = deque(script)
        self._broken = False
        self._held = False
        self._waiting: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []
        self._lock = threading.Lock()

    # ------------------------------------------------------------------ faults

    def hold(self) -> None:
        """Keep every write from now on waiting until :meth:`release`: a store that hangs."""
        with self._lock:
            self._held = True

    def release(self) -> None:
        """Let held writes go on, in the order in which they came; callable from any thread."""
        with self._lock:
            self._held = False
            waiting, self._waiting = self._waiting, []
        for loop, future in waiting:
            if not loop.is_closed():
                loop.call_soon_threadsafe(_resolve, future)

    @property
    def held(self) -> int:
        """How many writes wait for :meth:`release`."""
        with self._lock:
            return sum(1 for _, future in self._waiting if not future.done())

    def fail_for_ever(self, error: Callable[[], Exception] | None = None) -> None:
        """Refuse every write until :meth:`heal`."""
        with self._lock:
            self._broken = True
            self._error = error or self._error

    def heal(self) -> None:
        """Take all faults away; held writes go on."""
        with self._lock:
            self._broken = False
            self.delay, self.fail_every, self.lose_every = 0.0, 0, 0
            self._script.clear()
        self.release()

    async def _write(self, call: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T:
        if getattr(call, "__name__", "") not in self.only:
            return await call(*args, **kwargs)
        outcome = self._begin()
        if self.delay:
            await asyncio.sleep(self.delay)
        await self._pass_hold()
        if outcome == "refuse":
            raise self._error()
        answer = await call(*args, **kwargs)
        if outcome == "lose":
            raise self._error()
        return answer

    def _begin(self) -> Outcome:
        with self._lock:
            self.writes += 1
            outcome = self._next_outcome()
            self.faults += outcome != "work"
            return outcome

    def _next_outcome(self) -> Outcome:
        if self._broken:
            return "refuse"
        if self._script:
            return self._script.popleft()
        if self.fail_every and self.writes % self.fail_every == 0:
            return "refuse"
        if self.lose_every and self.writes % self.lose_every == 0:
            return "lose"
        return "work"

    async def _pass_hold(self) -> None:
        with self._lock:
            if not self._held:
                return
            loop = asyncio.get_running_loop()
            future: asyncio.Future[None] = loop.create_future()
            self._waiting.append((loop, future))
        await future

    # ------------------------------------------------------------------ what the store is

    @property
    def url(self) -> str | None:
        """URL of the store inside: another process meets it without the faults."""
        return self.inner.url

    @property
    def local_path(self) -> str | None:
        """File of the store inside: what this one does not take waits beside it."""
        return self.inner.local_path

    @property
    def store_id(self) -> str | None:
        """Identity of the store inside."""
        return self.inner.store_id

    def has_copy_at(self, url: str) -> bool:
        """That of the store inside."""
        return self.inner.has_copy_at(url)

    @property
    def capabilities(self) -> LightningStoreCapabilities:
        """Those of the store inside, except that faults do not travel to another process."""
        return LightningStoreCapabilities(**{**self.inner.capabilities, "zero_copy": False})

    async def statistics(self) -> LightningStoreStatistics:
        return await self.inner.statistics()

    async def close(self) -> None:
        await self.inner.close()

    def otlp_traces_endpoint(self) -> str:
        return self.inner.otlp_traces_endpoint()

    # ------------------------------------------------------------------ rollouts and their queue

    async def start_rollout(
        self,
        input: TaskInput,  # noqa: A002 - 0.3's name
        mode: RolloutMode | None = None,
        resources_id: str | None = None,
        config: RolloutConfig | None = None,
        metadata: dict[str, Any] | None = None,
        worker_id: str | None = None,
    ) -> AttemptedRollout:
        return await self._write(
            self.inner.start_rollout, input, mode, resources_id, config, metadata, worker_id
        )

    async def enqueue_many_rollouts(self, rollouts: Sequence[EnqueueRolloutRequest]) -> Sequence[Rollout]:
        return await self._write(self.inner.enqueue_many_rollouts, rollouts)

    async def dequeue_many_rollouts(
        self, *, limit: int = 1, worker_id: str | None = None
    ) -> Sequence[AttemptedRollout]:
        return await self._write(self.inner.dequeue_many_rollouts, limit=limit, worker_id=worker_id)

    async def start_attempt(self, rollout_id: str, worker_id: str | None = None) -> AttemptedRollout:
        return await self._write(self.inner.start_attempt, rollout_id, worker_id)

    async def update_rollout(
        self,
        rollout_id: str,
        input: TaskInput | Unset = UNSET,  # noqa: A002 - 0.3's name
        mode: RolloutMode | None | Unset = UNSET,
        resources_id: str | None | Unset = UNSET,
        status: RolloutStatus | Unset = UNSET,
        config: RolloutConfig | Unset = UNSET,
        metadata: dict[str, Any] | None | Unset = UNSET,
    ) -> Rollout:
        return await self._write(
            self.inner.update_rollout, rollout_id, input, mode, resources_id, status, config, metadata
        )

    async def get_rollout_by_id(self, rollout_id: str) -> Rollout | None:
        return await self.inner.get_rollout_by_id(rollout_id)

    async def query_rollouts(
        self,
        *,
        status_in: Sequence[RolloutStatus] | None = None,
        rollout_id_in: Sequence[str] | None = None,
        rollout_id_contains: str | None = None,
        tags: Sequence[str] | None = None,
        filter_logic: Literal["and", "or"] = "and",
        sort_by: str | None = None,
        sort_order: Literal["asc", "desc"] = "asc",
        limit: int = -1,
        offset: int = 0,
        status: Sequence[RolloutStatus] | None = None,
        rollout_ids: Sequence[str] | None = None,
    ) -> Sequence[Rollout]:
        return await self.inner.query_rollouts(
            status_in=status_in,
            rollout_id_in=rollout_id_in,
            rollout_id_contains=rollout_id_contains,
            tags=tags,
            filter_logic=filter_logic,
            sort_by=sort_by,
            sort_order=sort_order,
            limit=limit,
            offset=offset,
            status=status,
            rollout_ids=rollout_ids,
        )

    async def wait_for_rollouts(
        self, *, rollout_ids: list[str], timeout: float | None = None
    ) -> list[Rollout]:
        return await self.inner.wait_for_rollouts(rollout_ids=rollout_ids, timeout=timeout)

    # ------------------------------------------------------------------ attempts

    async def update_attempt(
        self,
        rollout_id: str,
        attempt_id: str | Literal["latest"],
        status: AttemptStatus | Unset = UNSET,
        worker_id: str | Unset = UNSET,
        last_heartbeat_time: float | Unset = UNSET,
        metadata: dict[str, Any] | None | Unset = UNSET,
    ) -> Attempt:
        return await self._write(
            self.inner.update_attempt,
            rollout_id,
            attempt_id,
            status,
            worker_id,
            last_heartbeat_time,
            metadata,
        )

    async def seal_attempt(
        self,
        rollout_id: str,
        attempt_id: str | Literal["latest"],
        *,
        spans: int,
        unproven: Mapping[str, int] | None = None,
    ) -> Attempt:
        return await self._write(
            self.inner.seal_attempt, rollout_id, attempt_id, spans=spans, unproven=unproven
        )

    async def get_latest_attempt(self, rollout_id: str) -> Attempt | None:
        return await self.inner.get_latest_attempt(rollout_id)

    async def query_attempts(
        self,
        rollout_id: str,
        *,
        sort_by: str | None = "sequence_id",
        sort_order: Literal["asc", "desc"] = "asc",
        limit: int = -1,
        offset: int = 0,
    ) -> Sequence[Attempt]:
        return await self.inner.query_attempts(
            rollout_id, sort_by=sort_by, sort_order=sort_order, limit=limit, offset=offset
        )

    # ------------------------------------------------------------------ spans

    async def add_many_spans(
        self, spans: Sequence[Span], *, opened: Sequence[Span] = (), accounts: Sequence[Account] = ()
    ) -> Sequence[Span]:
        return await self._write(self.inner.add_many_spans, spans, opened=opened, accounts=accounts)

    async def query_spans(
        self,
        rollout_id: str,
        attempt_id: str | Literal["latest"] | None = None,
        *,
        trace_id: str | None = None,
        trace_id_contains: str | None = None,
        span_id: str | None = None,
        span_id_contains: str | None = None,
        parent_id: str | None = None,
        parent_id_contains: str | None = None,
        name: str | None = None,
        name_contains: str | None = None,
        filter_logic: Literal["and", "or"] = "and",
        limit: int = -1,
        offset: int = 0,
        sort_by: str | None = "sequence_id",
        sort_order: Literal["asc", "desc"] = "asc",
    ) -> Sequence[Span]:
        return await self.inner.query_spans(
            rollout_id,
            attempt_id,
            trace_id=trace_id,
            trace_id_contains=trace_id_contains,
            span_id=span_id,
            span_id_contains=span_id_contains,
            parent_id=parent_id,
            parent_id_contains=parent_id_contains,
            name=name,
            name_contains=name_contains,
            filter_logic=filter_logic,
            limit=limit,
            offset=offset,
            sort_by=sort_by,
            sort_order=sort_order,
        )

    async def query_open_spans(self, rollout_id: str, attempt_id: str | None = None) -> Sequence[Span]:
        return await self.inner.query_open_spans(rollout_id, attempt_id)

    async def query_late_spans(self, rollout_id: str, attempt_id: str | None = None) -> Sequence[Span]:
        return await self.inner.query_late_spans(rollout_id, attempt_id)

    async def get_receipt(self, rollout_id: str, attempt_id: str | Literal["latest"]) -> Receipt:
        return await self.inner.get_receipt(rollout_id, attempt_id)

    async def get_many_span_sequence_ids(
        self, rollout_attempt_ids: Sequence[tuple[str, str]]
    ) -> Sequence[int]:
        return await self._write(self.inner.get_many_span_sequence_ids, rollout_attempt_ids)

    # ------------------------------------------------------------------ resources

    async def add_resources(self, resources: NamedResources) -> ResourcesUpdate:
        return await self._write(self.inner.add_resources, resources)

    async def update_resources(self, resources_id: str, resources: NamedResources) -> ResourcesUpdate:
        return await self._write(self.inner.update_resources, resources_id, resources)

    async def get_resources_by_id(self, resources_id: str) -> ResourcesUpdate | None:
        return await self.inner.get_resources_by_id(resources_id)

    async def get_latest_resources(self) -> ResourcesUpdate | None:
        return await self.inner.get_latest_resources()

    async def query_resources(
        self,
        *,
        resources_id: str | None = None,
        resources_id_contains: str | None = None,
        sort_by: str | None = None,
        sort_order: Literal["asc", "desc"] = "asc",
        limit: int = -1,
        offset: int = 0,
    ) -> Sequence[ResourcesUpdate]:
        return await self.inner.query_resources(
            resources_id=resources_id,
            resources_id_contains=resources_id_contains,
            sort_by=sort_by,
            sort_order=sort_order,
            limit=limit,
            offset=offset,
        )

    # ------------------------------------------------------------------ workers

    async def update_worker(self, worker_id: str, heartbeat_stats: dict[str, Any] | Unset = UNSET) -> Worker:
        return await self._write(self.inner.update_worker, worker_id, heartbeat_stats)

    async def get_worker_by_id(self, worker_id: str) -> Worker | None:
        return await self.inner.get_worker_by_id(worker_id)

    async def query_workers(
        self,
        *,
        status_in: Sequence[WorkerStatus] | None = None,
        worker_id_contains: str | None = None,
        filter_logic: Literal["and", "or"] = "and",
        sort_by: str | None = None,
        sort_order: Literal["asc", "desc"] = "asc",
        limit: int = -1,
        offset: int = 0,
    ) -> Sequence[Worker]:
        return await self.inner.query_workers(
            status_in=status_in,
            worker_id_contains=worker_id_contains,
            filter_logic=filter_logic,
            sort_by=sort_by,
            sort_order=sort_order,
            limit=limit,
            offset=offset,
        )


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
