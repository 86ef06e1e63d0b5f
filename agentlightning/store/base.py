"""The contract of a store, written as a specification.

A :class:`LightningStore` keeps rollouts, attempts, spans, resources and workers. Every backend passes
``agentlightning.testing.StoreContract``; where this text and a backend differ, the backend is wrong.

What holds for every method:

* **Atomic.** A call does all of its work in one transaction or none of it. Two calls never interleave.
* **Durable.** A call that returns has been committed. ``sqlite://`` survives ``kill -9`` of every process.
* **Values.** What goes in and comes out is never aliased: changing a returned object changes nothing stored.
* **Any thread, any loop.** Methods may be awaited from any thread and any event loop, concurrently.
* **Meaning** of statuses, retries and time lives in ``store.lifecycle``; of filters, order and pages in
  ``store.query``. A backend only keeps and finds.
* **Time** passes by itself: within about a second, an attempt that is older than its rollout's ``timeout_seconds``
  becomes ``timeout``, and one that was silent for ``unresponsive_seconds`` becomes ``unresponsive``, also when nobody
  calls the store; the rollout follows as after ``update_attempt``. Stored and opened spans and heartbeats are signs of
  life. An attempt that timed out stays so.
* **Ids** are text that UTF-8 can say, so without lone surrogates. Anything else, a list as well, is the id of nothing
  where it is looked for, and an invalid argument where it would be kept. A name or any other value may be any text.
* **Errors** are those of ``agentlightning.errors``. Unknown ids raise a :class:`NotFound` (a ``ValueError``)
  except where a method is documented to return ``None``. An invalid argument raises
  :class:`InvalidArgument` before anything is written.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, Self, TypedDict

from .. import types
from ..errors import NotSealable, NotSupported, StoreError
from .arguments import UNSET as UNSET  # noqa: PLC0414 - a re-export, as 0.3 has it here
from .arguments import (
    AttemptChange,
    AttemptQuery,
    AttemptRef,
    NewAttempt,
    NewRollout,
    NewSeal,
    ResourcesChange,
    ResourcesQuery,
    RolloutChange,
    RolloutClaim,
    RolloutQuery,
    RolloutWait,
    SpanBatch,
    SpanQuery,
    SpansOf,
    WorkerChange,
    WorkerQuery,
)
from .arguments import Unset as Unset  # noqa: PLC0414 - a re-export
from .sync import SyncStore as SyncStore  # noqa: PLC0414 - a re-export, for those who know the contract alone

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

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


LATEST: Final = "latest"

QUEUING: Final[frozenset[RolloutStatus]] = frozenset({"queuing", "requeuing"})
RUNNING: Final[frozenset[RolloutStatus]] = frozenset({"preparing", "running"})
FINISHED: Final[frozenset[RolloutStatus]] = frozenset({"failed", "succeeded", "cancelled"})


def is_queuing(rollout: Rollout) -> bool:
    """Whether the rollout waits for a worker."""
    return rollout.status in QUEUING


def is_running(rollout: Rollout) -> bool:
    """Whether an attempt is at work."""
    return rollout.status in RUNNING


def is_finished(rollout: Rollout) -> bool:
    """Whether the rollout has reached a final status."""
    return rollout.status in FINISHED


class LightningStoreCapabilities(TypedDict, total=False):
    """What callers may rely on beyond 0.3's contract; declared, and verified by the contract suite.

    A key that is not there counts as false: ``capabilities.get("receipts")``.
    """

    thread_safe: bool
    async_safe: bool
    zero_copy: bool
    """The store may be pickled and used in another process without copying its data."""
    otlp_traces: bool
    """``otlp_traces_endpoint()`` answers."""
    durable: bool
    """What was acknowledged survives the death of every process."""
    receipts: bool
    """``add_many_spans`` takes ``opened`` and ``accounts``, ``get_receipt`` counts, and ``seal_attempt`` seals.

    A store without it, such as one that was written for 0.3, is given finished spans only, with their sequence ids:
    see :func:`add_batch`.
    """


class LightningStoreStatistics(TypedDict, total=False):
    """Counts over the whole store."""

    name: str
    total_rollouts: int
    total_attempts: int
    total_spans: int
    total_resources: int
    total_workers: int
    total_open_spans: int
    uptime: float
    """Seconds since this process opened the store."""
    total_span_bytes: int
    total_evicted_spans: int
    """Spans that a store in memory gave up for room."""
    eviction_threshold_bytes: int
    safe_threshold_bytes: int
    memory_capacity_bytes: int
    rollouts_by_status: dict[str, int]


def awaited_store(store: LightningStore | SyncStore) -> LightningStore:
    """Return the store that is awaited, also where its synchronous face is given."""
    return store.store if isinstance(store, SyncStore) else store


def _missing(store: LightningStore, method: str) -> str:
    return f"{type(store).__name__} has no {method}"


class LightningStore:
    """Rollouts, their queue, their attempts and spans, resources and workers. See the module's docstring.

    The keyword methods are those of 0.3, and what they say here is the specification. Each builds one value of
    ``store.arguments`` and hands it to its primitive (``update_rollout`` to ``do_update_rollout``); a method that takes
    at most one plain value is a primitive itself. A backend has the primitives, of which ``store.primitives`` is the
    table, and no keyword method; whoever passes calls on to any store does so by ``store.primitives.perform``.

    A class that was written for 0.3's contract, and has keyword methods of its own, is a store as it is. As in 0.3, a
    method that is missing raises ``NotImplementedError`` when it is called. What 0.3 has not (seals, open spans,
    receipts) has a default that says so.
    """

    # ------------------------------------------------------------------ what the store is

    @property
    def url(self) -> str | None:
        """URL under which another process opens the same data, or ``None`` (memory)."""
        return None

    @property
    def local_path(self) -> str | None:
        """Path of the file that holds the data, or ``None``; spans that cannot be written wait beside it."""
        return None

    @property
    def store_id(self) -> str | None:
        """Identity of the data, or ``None`` where they have none that outlives this object (memory, most strangers').

        It is kept with the data: the same for every process, spelling of a URL and place to which a file was moved, and
        shared by backups. What waits outside of a store, as in the spool, names the store by it.
        """
        return None

    def has_copy_at(self, url: str) -> bool:
        """Whether data with the same ``store_id`` are to be found at another URL too, so that one of them is a copy.

        What waits outside of a store, as in the spool, then stays for the one whose URL it names. Where it cannot be
        told, it may be. By default false: what was at that URL is here now.
        """
        del url
        return False

    @property
    def capabilities(self) -> LightningStoreCapabilities:
        """What callers may rely on; by default nothing."""
        return LightningStoreCapabilities(
            thread_safe=False, async_safe=False, zero_copy=False, otlp_traces=False
        )

    async def statistics(self) -> LightningStoreStatistics:
        """Count what is stored. Counts are of one moment; what is not counted is left out."""
        return LightningStoreStatistics(name=type(self).__name__)

    async def close(self) -> None:
        """Release threads, files and connections; a repeat is harmless.

        Calls that were under way finish first. Any later call raises :class:`StoreClosed`.
        """

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        await self.close()

    def __enter__(self) -> SyncStore:
        """Return the store for code that awaits nothing; leaving the ``with`` closes it."""
        entered = SyncStore(self)
        # Stores of others call no ``__init__`` of ours.
        self.__dict__.setdefault("_entered", []).append(entered)
        return entered

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.__dict__["_entered"].pop().close()

    def otlp_traces_endpoint(self) -> str:
        """Return the OTLP/HTTP address that writes into this store.

        Raises:
            StoreError: The store has none (``capabilities['otlp_traces']`` is false).
        """
        raise StoreError(f"{type(self).__name__} has no OTLP endpoint; serve it with a store server")

    # ------------------------------------------------------------------ rollouts and their queue

    async def start_rollout(
        self,
        input: TaskInput,  # noqa: A002 - 0.3's name
        mode: RolloutMode | None = None,
        resources_id: str | None = None,
        config: RolloutConfig | None = None,
        metadata: dict[str, Any] | None = None,
        worker_id: str | None = None,
        rollout_id: str | None = None,
    ) -> AttemptedRollout:
        """Create a rollout and its first attempt, past the queue; both are ``preparing``.

        ``resources_id=None`` takes the latest resources, if there are any. With ``worker_id`` the worker
        becomes ``busy`` with this attempt. ``rollout_id`` is the rollout's, where the caller has one. A durable
        store keeps what JSON can say of ``input``: dates as ISO 8601 text, tuples and sets as lists, dataclasses and
        pydantic models as maps; a store that is not keeps any object.

        Raises:
            ResourcesNotFound: ``resources_id`` is unknown.
            InvalidArgument: JSON cannot say something in ``input``; the message has its place, ``input.items[3].when``.
            RolloutExists: Another rollout has this id; nothing was written.
        """
        return await self.do_start_rollout(
            NewRollout(input, mode, resources_id, config, metadata, worker_id, rollout_id)
        )

    async def enqueue_rollout(
        self,
        input: TaskInput,  # noqa: A002 - 0.3's name
        mode: RolloutMode | None = None,
        resources_id: str | None = None,
        config: RolloutConfig | None = None,
        metadata: dict[str, Any] | None = None,
        rollout_id: str | None = None,
    ) -> Rollout:
        """Create one ``queuing`` rollout at the end of the queue; see :meth:`enqueue_many_rollouts`."""
        request = types.EnqueueRolloutRequest.model_construct(  # the primitive validates
            input=input,
            mode=mode,
            resources_id=resources_id,
            config=config,
            metadata=metadata,
            rollout_id=rollout_id,
        )
        return (await self.enqueue_many_rollouts([request]))[0]

    async def enqueue_many_rollouts(self, rollouts: Sequence[EnqueueRolloutRequest]) -> Sequence[Rollout]:
        """Create ``queuing`` rollouts at the end of the queue, in the order given; all or none.

        ``resources_id=None`` takes the latest resources of this moment, if there are any.

        Raises:
            ResourcesNotFound: A ``resources_id`` is unknown; nothing was enqueued.
            RolloutExists: A ``rollout_id`` is another rollout's, or is given twice; nothing was enqueued.
        """
        raise NotImplementedError(_missing(self, "enqueue_many_rollouts"))

    async def dequeue_rollout(self, worker_id: str | None = None) -> AttemptedRollout | None:
        """Claim one rollout, or return ``None`` when the queue is empty; see :meth:`dequeue_many_rollouts`."""
        claimed = await self.dequeue_many_rollouts(limit=1, worker_id=worker_id)
        return claimed[0] if claimed else None

    async def dequeue_many_rollouts(
        self, *, limit: int = 1, worker_id: str | None = None
    ) -> Sequence[AttemptedRollout]:
        """Claim up to ``limit`` rollouts, oldest in the queue first, without waiting.

        Each becomes ``preparing`` with a new ``preparing`` attempt whose ``sequence_id`` is one more than the
        rollout's last. No rollout is ever claimed twice, whatever the number of processes. A requeued rollout
        stands at the end of the queue. With ``worker_id`` the worker becomes ``busy`` with the last one
        claimed, or ``idle`` when there was none; its times are set.

        Raises:
            InvalidArgument: ``limit`` is below 1.
        """
        return await self.do_dequeue_many_rollouts(RolloutClaim(limit, worker_id))

    async def start_attempt(self, rollout_id: str, worker_id: str | None = None) -> AttemptedRollout:
        """Start one more attempt of a rollout by hand; it becomes the latest, the rollout ``preparing``.

        A rollout that has failed is at work again: this is the manual retry of 0.3, and asks no retry policy. A place
        in the queue is given up. The former latest attempt is superseded: what it reports from now on
        changes its own record only.

        Raises:
            RolloutNotFound: The rollout is unknown.
            InvalidTransition: The rollout has succeeded or was cancelled.
        """
        return await self.do_start_attempt(NewAttempt(rollout_id, worker_id))

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
        """Change the given fields of a rollout and return it.

        A status is changed only along ``lifecycle.ROLLOUT_TRANSITIONS``; setting the present status again
        is harmless. A finished rollout keeps its status and ``end_time``. ``queuing`` and ``requeuing`` put
        it at the end of the queue, every other status takes it out.

        Raises:
            RolloutNotFound: The rollout is unknown.
            InvalidTransition: The status change is not declared; nothing was written.
            InvalidArgument: A value is not one that the field allows; nothing was written.
            ResourcesNotFound: ``resources_id`` is unknown.
        """
        return await self.do_update_rollout(
            RolloutChange(rollout_id, input, mode, resources_id, status, config, metadata)
        )

    async def get_rollout_by_id(self, rollout_id: str) -> Rollout | None:
        """Return the rollout (an :class:`AttemptedRollout` once it has an attempt), or ``None``."""
        raise NotImplementedError(_missing(self, "get_rollout_by_id"))

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
        """Find rollouts; a :class:`PaginatedResult`, oldest first unless ``sort_by`` names a field.

        ``filter_logic`` joins the conditions that are given; an empty sequence matches nothing. ``tags`` is
        one condition: the rollout has every one of them. ``status`` and ``rollout_ids`` are the 0.2 names of
        ``status_in`` and ``rollout_id_in``. ``limit=-1`` means all. Ties keep the order of creation, and ``None`` sorts
        last in both directions.

        Raises:
            InvalidArgument: ``sort_by`` names no field, or ``limit``, ``offset``, ``filter_logic`` or
                ``sort_order`` is out of range.
        """
        return await self.do_query_rollouts(
            RolloutQuery(
                status if status_in is None else status_in,
                rollout_ids if rollout_id_in is None else rollout_id_in,
                rollout_id_contains,
                tags,
                filter_logic,
                sort_by,
                sort_order,
                limit,
                offset,
            )
        )

    async def wait_for_rollouts(
        self, *, rollout_ids: list[str], timeout: float | None = None
    ) -> list[Rollout]:
        """Wait until all these rollouts are finished, or ``timeout`` seconds have passed.

        Returns those that are finished, in the order of ``rollout_ids`` without repeats. ``timeout=None``
        waits for ever, ``0`` looks once. Any number of waits costs no thread of its own. Changes made by
        other processes are seen within a second.

        Raises:
            RolloutNotFound: An id is unknown when the wait begins.
            InvalidArgument: ``timeout`` is negative, or ``rollout_ids`` is one text or has something else in it.
        """
        return await self.do_wait_for_rollouts(RolloutWait(rollout_ids, timeout))

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
        """Change the given fields of an attempt and return it.

        The status follows ``lifecycle.ATTEMPT_TRANSITIONS``. If the attempt is the rollout's latest and the
        rollout is not finished, the rollout follows by ``lifecycle.rollout_status``: it succeeds, fails, or
        is queued again. A superseded attempt changes its own record and nothing else. Heartbeats never go
        backwards. When the attempt ends, its worker becomes ``idle`` (``unknown`` after ``timeout`` and
        ``unresponsive``), provided that it still works on this attempt.

        Raises:
            RolloutNotFound, AttemptNotFound: The id is unknown (``latest``: there is no attempt yet).
            InvalidTransition: The status change is not declared; nothing was written.
            InvalidArgument: A value is not one that the field allows; nothing was written.
        """
        return await self.do_update_attempt(
            AttemptChange(rollout_id, attempt_id, status, worker_id, last_heartbeat_time, metadata)
        )

    async def seal_attempt(
        self,
        rollout_id: str,
        attempt_id: str | Literal["latest"],
        *,
        spans: int,
        unproven: Mapping[str, int] | None = None,
    ) -> Attempt:
        """Say, once and for all, that an attempt is complete, and return it with its seal.

        The seal names how many spans are stored and the highest ``sequence_id`` among them. Spans that come
        later are stored all the same, and are not part of what was sealed: their ids are higher. Sealing again
        with the same number changes nothing.

        Args:
            rollout_id: The rollout.
            attempt_id: An attempt of it that has ended.
            spans: How many spans the caller has read and found good: nothing came in between.
            unproven: Code → answers without log-probabilities because of it; kept in the seal as it is.

        Raises:
            RolloutNotFound, AttemptNotFound: The id is unknown (``latest``: there is no attempt yet).
            InvalidArgument: ``unproven`` is not names and numbers; nothing was written.
            NotSealable: It has not ended, its receipt is not whole, a writer has something of it under way, or
                another number of spans is stored; nothing was written.
            AlreadySealed: It was sealed with another number of spans.
        """
        return await self.do_seal_attempt(NewSeal(rollout_id, attempt_id, spans, unproven))

    async def get_latest_attempt(self, rollout_id: str) -> Attempt | None:
        """Return the attempt with the highest ``sequence_id``, or ``None`` (also for an unknown rollout)."""
        raise NotImplementedError(_missing(self, "get_latest_attempt"))

    async def query_attempts(
        self,
        rollout_id: str,
        *,
        sort_by: str | None = "sequence_id",
        sort_order: Literal["asc", "desc"] = "asc",
        limit: int = -1,
        offset: int = 0,
    ) -> Sequence[Attempt]:
        """List the attempts of a rollout (none for an unknown one); see :meth:`query_rollouts`."""
        return await self.do_query_attempts(AttemptQuery(rollout_id, sort_by, sort_order, limit, offset))

    # ------------------------------------------------------------------ spans

    async def add_span(self, span: Span) -> Span | None:
        """Store one span; return it with its ``sequence_id``, or ``None`` if it was stored already."""
        stored = await self.add_many_spans([span])
        return stored[0] if stored else None

    async def add_many_spans(
        self, spans: Sequence[Span], *, opened: Sequence[Span] = (), accounts: Sequence[Account] = ()
    ) -> Sequence[Span]:
        """Store a batch of spans of any attempts: the primitive that everything is written through.

        In one transaction, all or nothing:

        1. A span is stored unless one with its ``(rollout_id, attempt_id, span_id)`` is. One that carries no
           ``sequence_id`` (0) gets the next of its attempt, in the order of the batch: 1..n without gap or
           repeat. One that carries an id keeps it, and the attempt's counter is raised to it.
        2. ``opened`` spans (they have a start and no end) are kept as *open* unless they are stored or open
           already. Storing a span removes it from the open ones. Open spans have no ``sequence_id`` and are
           not returned by ``query_spans``.
        3. ``accounts`` replace what the same writer said of the same attempt, unless that was more recent
           (an equal or higher ``revision``). Open spans named in ``unstored`` are removed in any case.
        4. The attempt's ``last_heartbeat_time`` becomes now. An attempt that was ``preparing`` or
           ``unresponsive`` becomes ``running``; so does its rollout, if the attempt is the latest and the
           rollout is not finished (a place in the queue is given up). Spans of ended attempts are stored and
           change no status.
        5. The rollout's ``tags`` gain those of the spans: ``agentlightning.tag.<i>`` and ``agentops.tags``. A rollout
           never loses a tag, and only stored spans give it one.
        6. A span with the attribute ``agentlightning.late_of`` is *late*: it belongs to no attempt, and is kept beside
           the one that it names its ids of. It has no ``sequence_id``, is not returned by ``query_spans``, and changes
           no heartbeat, status or tag.

        Returns:
            The spans that this call stored, with their sequence ids, in the order of the batch, late ones after the
            others. Spans that were stored before are left out.

        Raises:
            RolloutNotFound, AttemptNotFound: Of any span, opened span or account; nothing was written.
        """
        return await self.do_add_many_spans(SpanBatch(spans, opened, accounts))

    async def add_otel_span(
        self, rollout_id: str, attempt_id: str, readable_span: ReadableSpan, sequence_id: int | None = None
    ) -> Span | None:
        """Store an OpenTelemetry span; see :meth:`add_span`."""
        return await self.add_span(
            types.Span.from_opentelemetry(readable_span, rollout_id, attempt_id, sequence_id or 0)
        )

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
        packed: bool = False,
    ) -> Sequence[Span]:
        """Find stored (ended) spans of a rollout; none for unknown ids; see :meth:`query_rollouts`.

        ``attempt_id=None`` means all attempts, in the order of the attempts and then by ``sort_by``;
        ``latest`` the latest attempt. ``rollout_id`` and ``attempt_id`` always hold, also with ``or``.

        With ``packed``, lists of 16 and more token ids may come as ``codec.token_ids.TokenIds`` in the place of lists:
        equal to them, and of all prompts of a conversation one copy. It is for reading, as ``build_rows`` does; JSON
        takes lists. A store may give lists all the same.
        """
        return await self.do_query_spans(
            SpanQuery(
                rollout_id,
                attempt_id,
                trace_id,
                trace_id_contains,
                span_id,
                span_id_contains,
                parent_id,
                parent_id_contains,
                name,
                name_contains,
                filter_logic,
                limit,
                offset,
                sort_by,
                sort_order,
                packed,
            )
        )

    async def query_open_spans(self, rollout_id: str, attempt_id: str | None = None) -> Sequence[Span]:
        """List spans with a committed start and no end, by start time; ``end_time`` is ``None``.

        None in a store that keeps no starts (``capabilities['receipts']`` is not true).
        """
        return await self.do_query_open_spans(SpansOf(rollout_id, attempt_id))

    async def query_late_spans(self, rollout_id: str, attempt_id: str | None = None) -> Sequence[Span]:
        """List the late spans that are kept beside the attempts, each attempt's in the order in which they were stored.

        They started in the context of a ``trace_context`` that had closed; their attempt is not known. None in a store
        that keeps none (``capabilities['receipts']`` is not true).
        """
        return await self.do_query_late_spans(SpansOf(rollout_id, attempt_id))

    async def get_receipt(self, rollout_id: str, attempt_id: str | Literal["latest"]) -> Receipt:
        """Return the receipt of an attempt, counted at this moment; see ``types.receipt``.

        Raises:
            RolloutNotFound, AttemptNotFound: The id is unknown.
            NotSupported: The store counts no spans (``capabilities['receipts']`` is not true).
        """
        return await self.do_get_receipt(AttemptRef(rollout_id, attempt_id))

    async def get_next_span_sequence_id(self, rollout_id: str, attempt_id: str) -> int:
        """Reserve the next sequence id of an attempt; one that is never used leaves a gap."""
        return (await self.get_many_span_sequence_ids([(rollout_id, attempt_id)]))[0]

    async def get_many_span_sequence_ids(
        self, rollout_attempt_ids: Sequence[tuple[str, str]]
    ) -> Sequence[int]:
        """Reserve one id for each pair, in order, from the counters that ``add_many_spans`` uses.

        Raises:
            RolloutNotFound, AttemptNotFound: An id is unknown; nothing was reserved.
        """
        if type(self).get_next_span_sequence_id is LightningStore.get_next_span_sequence_id:
            raise NotImplementedError(_missing(self, "get_many_span_sequence_ids"))
        return [await self.get_next_span_sequence_id(*ids) for ids in rollout_attempt_ids]  # a store of 0.2

    # ------------------------------------------------------------------ resources

    async def add_resources(self, resources: NamedResources) -> ResourcesUpdate:
        """Store resources under a new id, version 1; they become the latest."""
        raise NotImplementedError(_missing(self, "add_resources"))

    async def update_resources(self, resources_id: str, resources: NamedResources) -> ResourcesUpdate:
        """Replace the resources of an id, or create it; the version goes up by one; they become the latest.

        ``create_time`` stays that of version 1.
        """
        return await self.do_update_resources(ResourcesChange(resources_id, resources))

    async def get_resources_by_id(self, resources_id: str) -> ResourcesUpdate | None:
        """Return the newest version under an id, or ``None``."""
        raise NotImplementedError(_missing(self, "get_resources_by_id"))

    async def get_latest_resources(self) -> ResourcesUpdate | None:
        """Return the resources that were added or updated last, or ``None``."""
        raise NotImplementedError(_missing(self, "get_latest_resources"))

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
        """Find resources, the newest version of each id; see :meth:`query_rollouts`."""
        return await self.do_query_resources(
            ResourcesQuery(resources_id, resources_id_contains, sort_by, sort_order, limit, offset)
        )

    # ------------------------------------------------------------------ workers

    async def update_worker(self, worker_id: str, heartbeat_stats: dict[str, Any] | Unset = UNSET) -> Worker:
        """Record a heartbeat; an unknown worker is created with status ``unknown``."""
        return await self.do_update_worker(WorkerChange(worker_id, heartbeat_stats))

    async def get_worker_by_id(self, worker_id: str) -> Worker | None:
        """Return the worker, or ``None``."""
        raise NotImplementedError(_missing(self, "get_worker_by_id"))

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
        """Find workers; see :meth:`query_rollouts`."""
        return await self.do_query_workers(
            WorkerQuery(status_in, worker_id_contains, filter_logic, sort_by, sort_order, limit, offset)
        )

    # ------------------------------------------------------------------ primitives

    # The keyword methods above call these, which a backend has instead of them. A method above that takes at most one
    # plain value is a primitive itself. ``store.primitives`` lists both kinds.

    async def do_start_rollout(self, asked: NewRollout) -> AttemptedRollout:
        """Do what :meth:`start_rollout` says."""
        raise NotImplementedError(_missing(self, "start_rollout"))

    async def do_dequeue_many_rollouts(self, claim: RolloutClaim) -> Sequence[AttemptedRollout]:
        """Do what :meth:`dequeue_many_rollouts` says."""
        raise NotImplementedError(_missing(self, "dequeue_many_rollouts"))

    async def do_start_attempt(self, asked: NewAttempt) -> AttemptedRollout:
        """Do what :meth:`start_attempt` says."""
        raise NotImplementedError(_missing(self, "start_attempt"))

    async def do_update_rollout(self, change: RolloutChange) -> Rollout:
        """Do what :meth:`update_rollout` says."""
        raise NotImplementedError(_missing(self, "update_rollout"))

    async def do_query_rollouts(self, query: RolloutQuery) -> Sequence[Rollout]:
        """Do what :meth:`query_rollouts` says."""
        raise NotImplementedError(_missing(self, "query_rollouts"))

    async def do_wait_for_rollouts(self, wait: RolloutWait) -> list[Rollout]:
        """Do what :meth:`wait_for_rollouts` says."""
        raise NotImplementedError(_missing(self, "wait_for_rollouts"))

    async def do_update_attempt(self, change: AttemptChange) -> Attempt:
        """Do what :meth:`update_attempt` says."""
        raise NotImplementedError(_missing(self, "update_attempt"))

    async def do_seal_attempt(self, seal: NewSeal) -> Attempt:
        """Do what :meth:`seal_attempt` says."""
        raise NotSealable(
            f"{type(self).__name__} counts no spans (capabilities['receipts']), so nobody knows whether the "
            f"{seal.spans} of attempt {seal.attempt_id} of rollout {seal.rollout_id} are all"
        )

    async def do_query_attempts(self, query: AttemptQuery) -> Sequence[Attempt]:
        """Do what :meth:`query_attempts` says."""
        raise NotImplementedError(_missing(self, "query_attempts"))

    async def do_add_many_spans(self, batch: SpanBatch) -> Sequence[Span]:
        """Do what :meth:`add_many_spans` says."""
        if type(self).add_span is LightningStore.add_span:
            raise NotImplementedError(_missing(self, "add_many_spans"))
        added = [await self.add_span(span) for span in batch.spans]  # a store of 0.2
        return [span for span in added if span is not None]

    async def do_query_spans(self, query: SpanQuery) -> Sequence[Span]:
        """Do what :meth:`query_spans` says."""
        raise NotImplementedError(_missing(self, "query_spans"))

    async def do_query_open_spans(self, of: SpansOf) -> Sequence[Span]:
        """Do what :meth:`query_open_spans` says."""
        del of
        return ()

    async def do_query_late_spans(self, of: SpansOf) -> Sequence[Span]:
        """Do what :meth:`query_late_spans` says."""
        del of
        return ()

    async def do_get_receipt(self, of: AttemptRef) -> Receipt:
        """Do what :meth:`get_receipt` says."""
        raise NotSupported(
            f"{type(self).__name__} keeps no receipts: there is none of attempt {of.attempt_id} of {of.rollout_id}"
        )

    async def do_update_resources(self, change: ResourcesChange) -> ResourcesUpdate:
        """Do what :meth:`update_resources` says."""
        raise NotImplementedError(_missing(self, "update_resources"))

    async def do_query_resources(self, query: ResourcesQuery) -> Sequence[ResourcesUpdate]:
        """Do what :meth:`query_resources` says."""
        raise NotImplementedError(_missing(self, "query_resources"))

    async def do_update_worker(self, change: WorkerChange) -> Worker:
        """Do what :meth:`update_worker` says."""
        raise NotImplementedError(_missing(self, "update_worker"))

    async def do_query_workers(self, query: WorkerQuery) -> Sequence[Worker]:
        """Do what :meth:`query_workers` says."""
        raise NotImplementedError(_missing(self, "query_workers"))


# ---------------------------------------------------------------------- any store


async def add_batch(
    store: LightningStore,
    spans: Sequence[Span],
    *,
    opened: Sequence[Span] = (),
    accounts: Sequence[Account] = (),
) -> Sequence[Span] | None:
    """Store a batch in any store, as much of it as the store's contract knows; see ``add_many_spans``.

    A store without ``receipts`` gets the finished spans. Those that have no ``sequence_id`` are given one first, by
    the store: 0.3's stores keep the one that a span carries. The span keeps it, so that a repeat is the same.

    Returns:
        What the store's ``add_many_spans`` returned; a store that returns ``None`` has taken everything.
    """
    if store.capabilities.get("receipts"):
        return await store.add_many_spans(spans, opened=opened, accounts=accounts)
    if not spans:
        return ()
    unnumbered = [span for span in spans if not span.sequence_id]
    if unnumbered:
        ids = await store.get_many_span_sequence_ids(
            [(span.rollout_id, span.attempt_id) for span in unnumbered]
        )
        for span, sequence_id in zip(unnumbered, ids, strict=True):
            span.sequence_id = sequence_id
    return await store.add_many_spans(spans)


async def receipt_of(store: LightningStore, rollout_id: str, attempt_id: str) -> Receipt | None:
    """Return the receipt of an attempt, or ``None`` from a store that keeps none."""
    return await store.get_receipt(rollout_id, attempt_id) if store.capabilities.get("receipts") else None


# ---------------------------------------------------------------------- writers


LEASE_SECONDS: Final = 30.0
"""Seconds of silence after which a process that cannot be looked at counts as dead; stores hear of it more often."""


def process_start_ticks(pid: int) -> str | None:
    """Return the kernel's start time of a process, or ``None`` where it is gone or the system does not say.

    Field 22 of ``/proc/<pid>/stat`` (proc_pid_stat(5)), in clock ticks since boot: with the pid it names one
    process for as long as the machine is up. A zombie counts as gone: it writes nothing any more.
    """
    found = _text_of_file(f"/proc/{pid}/stat")
    if found is None:
        return None
    # The name of the program stands in brackets before the other fields, and may have spaces and brackets in it.
    fields = found.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else fields[19]


def _text_of_file(path: str) -> str | None:
    """Return what the kernel says in a file; ``None`` where there is no such file."""
    try:
        # Whoever only imports the contract, as a tracer does, loads no pathlib.
        with open(path, encoding="utf-8", errors="replace") as file:  # noqa: PTH123 - see above
            return file.read()
    except OSError:
        return None


def process_id() -> str:
    """Return what names this process: ``<boot>:<pid namespace>:<pid>:<start>``.

    Containers may share a host name, and each counts its processes from 1: a pid means something in its namespace
    only, and a namespace for as long as the machine is up.
    """
    pid = os.getpid()
    known = _own_process_ids.get(pid)
    if known is not None:
        return known
    namespace, start = _pid_namespace(), process_start_ticks(pid)
    own = f"{_boot_id()}:{namespace}:{pid}:{start or 0}"
    if start is not None and namespace != "0":  # else files may be scarce just now, and it is asked for again
        _own_process_ids[pid] = own
    return own


_own_process_ids: Final[dict[int, str]] = {}
"""The pid of this process → its :func:`process_id`: each ``trace_context`` asks, and four system calls take longer than
the rest of what it does. Emptied in a child, which may have the pid of its parent, in a namespace of its own."""
os.register_at_fork(after_in_child=_own_process_ids.clear)


def process_is_gone(process: str, last_seen: Callable[[str], float | None]) -> bool:
    """Whether a process is known to be dead.

    Args:
        process: Its :func:`process_id`.
        last_seen: When it last gave a sign of life, in seconds since the epoch: asked where it cannot be looked at, in
            another namespace or before a restart of the machine. ``None``: nobody knows.
    """
    boot, namespace, pid, start = process.split(":")
    if (boot, namespace) != (_boot_id(), _pid_namespace()) or start == "0":
        seen = last_seen(process)
        return seen is not None and time.time() - seen > LEASE_SECONDS
    if process_start_ticks(int(pid)) == start:
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # of another user, whose processes may be hidden (proc(5), hidepid)
        return process_start_ticks(int(pid)) is not None
    return True  # a zombie, or a later process of this number


def new_writer_id(number: int) -> str:
    """Return the id of the ``number``-th writer of this process: ``<process_id>:<number>``."""
    return f"{process_id()}:{number}"


def writer_is_gone(writer_id: str, last_seen: Callable[[str], float | None] = lambda _: None) -> bool:
    """Whether the process of a writer is known to be dead; ``False`` where it cannot be known.

    Args:
        writer_id: From :func:`new_writer_id`; of others nothing is known.
        last_seen: See :func:`process_is_gone`.
    """
    process, _, _ = writer_id.rpartition(":")
    fields = process.split(":")
    return len(fields) == _FIELDS_OF_A_PROCESS and fields[2].isdigit() and process_is_gone(process, last_seen)


_FIELDS_OF_A_PROCESS: Final = 4


@functools.cache
def _boot_id() -> str:
    found = _text_of_file("/proc/sys/kernel/random/boot_id")
    return os.uname().nodename.replace(":", "-") if found is None else found.strip()  # no Linux


def _pid_namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid").strip("pid:[]")  # noqa: PTH115 - no pathlib, see above; pid:[4026531836]
    except OSError:
        return "0"
