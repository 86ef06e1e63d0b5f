"""``memory://``: a store that lives and dies with its process, for tests and single-process runs.

Dicts behind one lock. A value that is kept is never changed in place, only replaced, and what goes out is
copied, so no caller can reach what is kept. Each change notes how to undo itself; a call that raises is undone
whole. ``memory://`` opens a new store, ``memory://name`` one that all openers in the process share for as long
as one of them has it open.
"""

# ruff: noqa: D102 - the methods of the tables are specified in store.tables

from __future__ import annotations

import heapq
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel

from .._locks import reentrant_lock
from .._turn import turn_of_thread
from .._weak_objects import WeakObjects
from ..codec.recorded_span import AnySpan, RecordedSpan
from ..errors import InvalidArgument, StoreClosed
from ..types import Account, Attempt, PaginatedResult, ResourcesUpdate, Rollout, Span, TaskInput, Worker
from .base import FINISHED, LightningStoreCapabilities, LightningStoreStatistics
from .clock_steps import Clock
from .query import Query
from .tables import AttemptKey, NewSpan, SpanCounts, Tables
from .transaction import Command, TransactionalStore
from .values import copy_span, copy_value, numbered, object_copy
from .waiting import Waits

T = TypeVar("T")
_log = logging.getLogger(__name__)

K = TypeVar("K")
V = TypeVar("V")

Estimator = Callable[[Span], int]

_MISSING: Any = object()
FORK_SECONDS = 1.0
"""How long a fork waits for the transaction under way."""
_SAFE_SHARE = 0.8  # of the eviction threshold, as in 0.3


def estimate_model_size(value: Any) -> int:
    """Return roughly how many bytes a value takes, counting what it holds; numbers count 8, keys their text."""
    kind = type(value)
    if kind is str:
        return 49 + len(value)  # sys.getsizeof("") is 49 in CPython 3.11
    if kind is int or kind is float or kind is bool or value is None:
        return 8
    if isinstance(value, BaseModel):
        return sum(map(estimate_model_size, (*value.__dict__.values(), *(value.model_extra or {}).values())))
    if kind is dict or isinstance(value, Mapping):
        return sum(len(str(key)) + 8 + estimate_model_size(item) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        if value and type(value[0]) in (int, float):
            return 8 * len(value)
        return 8 * len(value) + sum(map(estimate_model_size, value))
    return 8


@dataclass(slots=True)
class _Kept:
    """A span as it is kept."""

    span: Span
    declared: bool
    size: int


class MemoryData:
    """What one memory store keeps, with its lock; several store objects may share it.

    It has more attributes than other classes have: each is a table, as the file of a SQLite store has one, and all
    change in one transaction under one lock. Objects between would only be further names for the same tables.
    """

    def __init__(self) -> None:
        # Guards all that follows but ``waits``: a transaction, or a read, has it from its beginning to its end, and a
        # fork until the child has a copy that is not half changed.
        self.lock = threading.Lock()
        self.waits = Waits()
        self.rollouts: dict[str, Rollout] = {}
        self.queue: dict[str, int] = {}
        """Rollout → position; in the order of positions."""
        self.positions = 0
        self.attempts: dict[AttemptKey, Attempt] = {}
        self.attempt_ids: dict[str, tuple[str, ...]] = {}
        """Rollout → its attempts by sequence id."""
        self.deadlines: dict[AttemptKey, float] = {}
        self.deadline_heap: list[tuple[float, AttemptKey]] = []
        """Every deadline that was ever set and has not come up; those in ``deadlines`` are valid."""
        self.counters: dict[AttemptKey, int] = {}
        self.spans: dict[AttemptKey, dict[str, _Kept]] = {}
        self.open_spans: dict[AttemptKey, dict[str, _Kept]] = {}
        self.late_spans: dict[AttemptKey, dict[str, _Kept]] = {}
        self.evicted: dict[AttemptKey, dict[str, bool]] = {}
        """Ids of spans that were given up for room, with their ``declared`` mark: a repeat stays a repeat."""
        self.evicted_late: dict[AttemptKey, set[str]] = {}
        self.span_bytes = 0
        self.accounts: dict[AttemptKey, dict[str, Account]] = {}
        self.resources: dict[str, ResourcesUpdate] = {}
        self.latest_resources: dict[None, str] = {}
        self.workers: dict[str, Worker] = {}
        _all_data.add(self)

    def begin_anew_in_child(self) -> None:
        """Have a free lock, where the fork has not waited for the one who holds it."""
        self.lock = threading.Lock()


_all_data: WeakObjects[MemoryData] = WeakObjects()
_named_data: weakref.WeakValueDictionary[str, MemoryData] = weakref.WeakValueDictionary()
_named_lock = reentrant_lock()
"""Guards ``_named_data``: whoever opens a name that nobody has open makes its data, and those who come next find it."""
_stores: WeakObjects[InMemoryLightningStore] = WeakObjects()


class MemoryTables(Tables):
    """Dicts that can undo what one transaction did to them."""

    def __init__(self, data: MemoryData, estimate: Estimator) -> None:
        self._data = data
        self._estimate = estimate
        self._undo: list[Callable[[], None]] = []

    def roll_back(self) -> None:
        """Undo everything, newest first."""
        while self._undo:
            self._undo.pop()()
        # Deadlines that were valid before may have been taken off as outdated meanwhile.
        self._data.deadline_heap[:] = [(deadline, key) for key, deadline in self._data.deadlines.items()]
        heapq.heapify(self._data.deadline_heap)

    def _set(self, mapping: dict[K, V], key: K, value: V) -> None:
        before = mapping.get(key, _MISSING)
        mapping[key] = value
        self._undo.append(lambda: _restore(mapping, key, before))

    def _delete(self, mapping: dict[K, V], key: K) -> None:
        before = mapping.pop(key, _MISSING)
        if before is not _MISSING:
            self._undo.append(lambda: _restore(mapping, key, before))

    # ------------------------------------------------------------------ rollouts and their queue

    def get_rollout(self, rollout_id: str) -> Rollout | None:
        return self._data.rollouts.get(rollout_id)

    def put_rollout(self, rollout: Rollout) -> None:
        # `add_tags` alone changes tags: whoever has read the rollout before would write the tags of then.
        present = self._data.rollouts.get(rollout.rollout_id)
        if present is not None and present.tags != rollout.tags:
            rollout = rollout.model_copy(update={"tags": present.tags})
        self._set(self._data.rollouts, rollout.rollout_id, rollout)

    def add_tags(self, rollout_id: str, tags: Collection[str]) -> None:
        rollout = self._data.rollouts[rollout_id]
        missing = set(tags).difference(rollout.tags)
        if missing:
            tagged = rollout.model_copy(update={"tags": sorted({*rollout.tags, *missing})})
            self._set(self._data.rollouts, rollout_id, tagged)

    def find_rollouts(self, query: Query) -> PaginatedResult[Rollout]:
        return query.select(self._data.rollouts.values())

    def enqueue(self, rollout_id: str) -> None:
        self.leave_queue(rollout_id)
        self._data.positions += 1
        self._set(self._data.queue, rollout_id, self._data.positions)

    def leave_queue(self, rollout_id: str) -> None:
        position = self._data.queue.pop(rollout_id, None)
        if position is not None:
            self._undo.append(lambda: self._queue_again(rollout_id, position))

    def take_from_queue(self, limit: int) -> Sequence[str]:
        taken = [rollout_id for rollout_id, _ in zip(self._data.queue, range(limit), strict=False)]
        for rollout_id in taken:
            self.leave_queue(rollout_id)
        return taken

    def _queue_again(self, rollout_id: str, position: int) -> None:
        # By position, in whatever order several are put back.
        in_order = sorted([*self._data.queue.items(), (rollout_id, position)], key=lambda item: item[1])
        self._data.queue.clear()
        self._data.queue.update(in_order)

    # ------------------------------------------------------------------ attempts

    def get_attempt(self, key: AttemptKey) -> Attempt | None:
        return self._data.attempts.get(key)

    def get_attempts(self, rollout_id: str) -> Sequence[Attempt]:
        attempt_ids = self._data.attempt_ids.get(rollout_id, ())
        return [self._data.attempts[rollout_id, attempt_id] for attempt_id in attempt_ids]

    def get_latest_attempts(self, rollout_ids: Sequence[str]) -> Mapping[str, Attempt]:
        return {
            rollout_id: self._data.attempts[rollout_id, attempt_ids[-1]]
            for rollout_id in rollout_ids
            if (attempt_ids := self._data.attempt_ids.get(rollout_id))
        }

    def put_attempt(self, attempt: Attempt, deadline: float | None) -> None:
        key = attempt.rollout_id, attempt.attempt_id
        if key not in self._data.attempts:
            before = self._data.attempt_ids.get(attempt.rollout_id, ())
            self._set(self._data.attempt_ids, attempt.rollout_id, (*before, attempt.attempt_id))
        self._set(self._data.attempts, key, attempt)
        if deadline is None:
            self._delete(self._data.deadlines, key)
        elif self._data.deadlines.get(key) != deadline:
            self._set(self._data.deadlines, key, deadline)
            heapq.heappush(self._data.deadline_heap, (deadline, key))

    def get_deadline(self, key: AttemptKey) -> float | None:
        return self._data.deadlines.get(key)

    def get_overdue(self, now: float) -> Sequence[Attempt]:
        deadlines = self._data.deadlines
        due = [key for key, deadline in deadlines.items() if deadline <= now]
        if len(due) > 1:
            created = {key: number for number, key in enumerate(self._data.attempts)}
            due.sort(key=lambda key: (deadlines[key], created[key]))
        return [self._data.attempts[key] for key in due]

    def next_deadline(self) -> float | None:
        heap, valid = self._data.deadline_heap, self._data.deadlines
        while heap and valid.get(heap[0][1]) != heap[0][0]:
            heapq.heappop(heap)
        return heap[0][0] if heap else None

    # ------------------------------------------------------------------ spans

    def get_counter(self, key: AttemptKey) -> int:
        return self._data.counters.get(key, 0)

    def put_counter(self, key: AttemptKey, value: int) -> None:
        self._set(self._data.counters, key, value)

    def get_stored(self, key: AttemptKey, span_ids: Collection[str]) -> Mapping[str, bool]:
        kept, evicted = self._data.spans.get(key, {}), self._data.evicted.get(key, {})
        return {
            span_id: kept[span_id].declared if span_id in kept else evicted[span_id]
            for span_id in span_ids
            if span_id in kept or span_id in evicted
        }

    def get_open(self, key: AttemptKey, span_ids: Collection[str]) -> Mapping[str, bool]:
        kept = self._data.open_spans.get(key, {})
        return {span_id: kept[span_id].declared for span_id in span_ids if span_id in kept}

    def add_spans(self, spans: Sequence[NewSpan]) -> None:
        before = self._data.span_bytes
        self._undo.append(lambda: setattr(self._data, "span_bytes", before))
        for new in turn_of_thread().over(spans):
            size = self._estimate(new.encoded)
            span = numbered(new.encoded, new.sequence_id)
            of_attempt = self._data.spans.setdefault((span.rollout_id, span.attempt_id), {})
            self._set(of_attempt, span.span_id, _Kept(span, new.declared, size))
            self._data.span_bytes += size

    def declare_spans(self, key: AttemptKey, span_ids: Collection[str]) -> None:
        for span_id in span_ids:
            for place in (self._data.spans.get(key, {}), self._data.open_spans.get(key, {})):
                if span_id in place:
                    kept = place[span_id]
                    self._set(place, span_id, _Kept(kept.span, True, kept.size))
            if span_id in self._data.evicted.get(key, {}):
                self._set(self._data.evicted[key], span_id, True)

    def add_open_spans(self, spans: Sequence[NewSpan]) -> None:
        for new in turn_of_thread().over(spans):
            span = new.encoded
            of_attempt = self._data.open_spans.setdefault((span.rollout_id, span.attempt_id), {})
            self._set(of_attempt, span.span_id, _Kept(span, new.declared, 0))

    def remove_open_spans(self, key: AttemptKey, span_ids: Collection[str]) -> None:
        kept = self._data.open_spans.get(key)
        for span_id in span_ids if kept else ():
            self._delete(self._data.open_spans[key], span_id)

    def get_late(self, key: AttemptKey, span_ids: Collection[str]) -> Collection[str]:
        kept, evicted = self._data.late_spans.get(key, {}), self._data.evicted_late.get(key, ())
        return {span_id for span_id in span_ids if span_id in kept or span_id in evicted}

    def add_late_spans(self, spans: Sequence[NewSpan]) -> None:
        before = self._data.span_bytes
        self._undo.append(lambda: setattr(self._data, "span_bytes", before))
        for new in turn_of_thread().over(spans):
            size = self._estimate(new.encoded)
            span = numbered(new.encoded, 0)
            of_attempt = self._data.late_spans.setdefault((span.rollout_id, span.attempt_id), {})
            self._set(of_attempt, span.span_id, _Kept(span, True, size))
            self._data.span_bytes += size

    def get_late_spans(self, keys: Sequence[AttemptKey]) -> Sequence[Span]:
        return [kept.span for key in keys for kept in self._data.late_spans.get(key, {}).values()]

    def find_spans(
        self, keys: Sequence[AttemptKey], query: Query, *, packed: bool = False
    ) -> PaginatedResult[Span]:
        del packed  # what is kept are lists
        arranged: list[Span] = []
        for key in keys:
            arranged += query.arrange(kept.span for kept in self._data.spans.get(key, {}).values())
        return query.page(arranged)

    def get_open_spans(self, keys: Sequence[AttemptKey]) -> Sequence[Span]:
        return [kept.span for key in keys for kept in self._data.open_spans.get(key, {}).values()]

    def count_spans(self, key: AttemptKey) -> SpanCounts:
        stored, opened = self._data.spans.get(key, {}), self._data.open_spans.get(key, {})
        evicted = self._data.evicted.get(key, {})
        marks = [kept.declared for place in (stored, opened) for kept in place.values()]
        return SpanCounts(
            stored=len(stored),
            open=len(opened),
            undeclared=[*marks, *evicted.values()].count(False),
            late=len(self._data.late_spans.get(key, {})),
            evicted=len(evicted),
            evicted_late=len(self._data.evicted_late.get(key, ())),
        )

    def get_accounts(self, key: AttemptKey) -> Sequence[Account]:
        return list(self._data.accounts.get(key, {}).values())

    def get_revision(self, key: AttemptKey, writer_id: str) -> int | None:
        account = self._data.accounts.get(key, {}).get(writer_id)
        return None if account is None else account.revision

    def put_account(self, account: Account) -> None:
        of_attempt = self._data.accounts.setdefault((account.rollout_id, account.attempt_id), {})
        self._set(of_attempt, account.writer_id, account)

    # ------------------------------------------------------------------ resources and workers

    def get_resources(self, resources_id: str) -> ResourcesUpdate | None:
        return self._data.resources.get(resources_id)

    def get_latest_resources(self) -> ResourcesUpdate | None:
        latest = self._data.latest_resources.get(None)
        return None if latest is None else self._data.resources[latest]

    def put_resources(self, update: ResourcesUpdate) -> None:
        self._set(self._data.resources, update.resources_id, update)
        self._set(self._data.latest_resources, None, update.resources_id)

    def find_resources(self, query: Query) -> PaginatedResult[ResourcesUpdate]:
        return query.select(self._data.resources.values())

    def get_worker(self, worker_id: str) -> Worker | None:
        return self._data.workers.get(worker_id)

    def put_worker(self, worker: Worker) -> None:
        self._set(self._data.workers, worker.worker_id, worker)

    def find_workers(self, query: Query) -> PaginatedResult[Worker]:
        return query.select(self._data.workers.values())

    # ------------------------------------------------------------------ counts

    def count(self) -> LightningStoreStatistics:
        data = self._data
        by_status: dict[str, int] = {}
        for rollout in data.rollouts.values():
            by_status[rollout.status] = by_status.get(rollout.status, 0) + 1
        return LightningStoreStatistics(
            total_rollouts=len(data.rollouts),
            total_attempts=len(data.attempts),
            total_spans=sum(map(len, data.spans.values())),
            total_open_spans=sum(map(len, data.open_spans.values())),
            total_resources=len(data.resources),
            total_workers=len(data.workers),
            total_span_bytes=data.span_bytes,
            total_evicted_spans=sum(map(len, data.evicted.values())),
            rollouts_by_status=by_status,
        )


def _restore(mapping: dict[K, V], key: K, before: V) -> None:
    if before is _MISSING:
        mapping.pop(key, None)
    else:
        mapping[key] = before


class InMemoryLightningStore(TransactionalStore):
    """A store in the memory of this process; any thread, any event loop."""

    def __init__(
        self,
        *,
        thread_safe: bool = True,
        eviction_memory_threshold: float | None = None,
        safe_memory_threshold: float | None = None,
        span_size_estimator: Estimator | None = None,
        tracker: object = None,
        scan_debounce_seconds: float = 1.0,
        clock: Clock = time.time,
        steady: Clock | None = None,
        data: MemoryData | None = None,
    ) -> None:
        """Open a store.

        Args:
            thread_safe: What the store declares in its capabilities (0.3's switch); it is safe in any case.
            eviction_memory_threshold: When the spans take more than this, those of the rollouts that finished
                first are given up; a float up to 1.0 is a share of the machine's memory, an int counts bytes,
                ``None`` = never. Spans of unfinished rollouts are never given up. Receipts count what was
                given up as dropped (``evicted``), and the statistics as ``total_evicted_spans``.
            safe_memory_threshold: Down to this; default 0.8 of the eviction threshold.
            span_size_estimator: Bytes that a span takes; default :func:`estimate_model_size`.
            tracker: 0.3's metrics; taken, and told nothing yet.
            scan_debounce_seconds: 0.3's pause between two looks for attempts that are overdue; taken, and not needed:
                each has a deadline of its own, and nothing is scanned.
            clock: Seconds since the epoch.
            steady: Seconds of a clock that nobody sets, by which attempts become overdue where ``clock`` is set;
                default: the monotonic one where ``clock`` is the system's, else none.
            data: The data of another store of this process, to be shared.

        Raises:
            InvalidArgument: A threshold is out of range, or the safe one is not below the other.
        """
        del scan_debounce_seconds
        if tracker is not None:
            _log.warning("InMemoryLightningStore tells its tracker nothing: there are no metrics yet")
        self._data = MemoryData() if data is None else data
        super().__init__(clock=clock, steady=steady, waits=self._data.waits)
        self._declares_thread_safe = thread_safe
        self._capacity = _machine_memory()
        self._estimate = span_size_estimator or estimate_model_size
        self._evict_above = _bytes("eviction_memory_threshold", eviction_memory_threshold, self._capacity)
        safe = _bytes("safe_memory_threshold", safe_memory_threshold, self._capacity)
        if safe is None and self._evict_above is not None:
            safe = int(self._evict_above * _SAFE_SHARE)
        if safe is not None and (self._evict_above is None or safe > self._evict_above):
            raise InvalidArgument(
                "safe_memory_threshold needs an eviction_memory_threshold that is not smaller"
            )
        self._safe = safe or 0
        self._closed = False
        _stores.add(self)

    @property
    def capabilities(self) -> LightningStoreCapabilities:
        """What callers may rely on."""
        return LightningStoreCapabilities(
            thread_safe=self._declares_thread_safe,
            async_safe=True,
            zero_copy=False,
            otlp_traces=False,
            durable=False,
            receipts=True,
        )

    async def statistics(self) -> LightningStoreStatistics:
        """Count what is stored, and say what limits hold."""
        counts = await super().statistics()
        counts["memory_capacity_bytes"] = self._capacity
        if self._evict_above is not None:
            counts["eviction_threshold_bytes"] = self._evict_above
            counts["safe_threshold_bytes"] = self._safe
        return counts

    async def close(self) -> None:
        """Let go of the data; what several stores share lives on in the others."""
        if self._closed:
            return
        self._closed = True
        self._watchdog.stop()
        self._waits.settle_all(self)
        self._data = MemoryData()

    async def wait_for_rollout(self, rollout_id: str, timeout: float | None = None) -> Rollout | None:
        """Wait for one rollout (0.3); ``None`` where it is not finished in time."""
        finished = await self.wait_for_rollouts(rollout_ids=[rollout_id], timeout=timeout)
        return finished[0] if finished else None

    def _task_input(self, value: TaskInput) -> TaskInput:
        return object_copy("input", value)

    def _encode(self, span: AnySpan) -> Span:
        return span.build() if isinstance(span, RecordedSpan) else copy_span(span)

    async def _write(self, command: Command[T]) -> T:
        self._check_open()
        command.prepare()
        with self._data.lock:
            tables = MemoryTables(self._data, self._estimate)
            try:
                result = command.work(tables)
            except BaseException:
                tables.roll_back()
                raise
            self._evict()
        command.committed()
        return _own(result) if command.shares else result

    async def _read(self, work: Callable[[Tables], T]) -> T:
        self._check_open()
        with self._data.lock:
            result = work(MemoryTables(self._data, self._estimate))
        return _own(result)

    def _check_open(self) -> None:
        if self._closed:
            raise StoreClosed("this memory store is closed")

    def _evict(self) -> None:
        data = self._data
        if self._evict_above is None or data.span_bytes <= self._evict_above:
            return
        # Noted in no list of what to undo: this runs when the command has succeeded, under the same lock.
        finished = [rollout for rollout in data.rollouts.values() if rollout.status in FINISHED]
        for rollout in sorted(finished, key=lambda rollout: rollout.end_time or 0.0):
            for attempt_id in data.attempt_ids.get(rollout.rollout_id, ()):
                key = rollout.rollout_id, attempt_id
                given_up = data.spans.pop(key, {})
                # Ids stay, so that a span that is sent again is still a repeat, and receipts count what is gone.
                marks = {span_id: kept.declared for span_id, kept in given_up.items()}
                data.evicted.setdefault(key, {}).update(marks)
                late = data.late_spans.pop(key, {})
                data.evicted_late.setdefault(key, set()).update(late)
                data.span_bytes -= sum(kept.size for kept in (*given_up.values(), *late.values()))
            if data.span_bytes <= self._safe:
                return


def _own(result: T) -> T:
    own: T = copy_value(result)
    return own


def _bytes(name: str, threshold: float | None, capacity: int) -> int | None:
    if threshold is None:
        return None
    if isinstance(threshold, int):
        if threshold < 1:
            raise InvalidArgument(f"{name} is a number of bytes of at least 1, or a share, not {threshold!r}")
        return threshold
    if not 0.0 < threshold <= 1.0:
        raise InvalidArgument(f"{name} as a share of memory is above 0.0 and up to 1.0, not {threshold!r}")
    return int(threshold * capacity)


def _machine_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def open_url(url: str) -> InMemoryLightningStore:
    """Open ``memory://`` (a new store) or ``memory://name`` (shared within this process).

    Raises:
        InvalidArgument: The URL has more than a name.
    """
    name = url.partition("://")[2]
    if not name:
        return InMemoryLightningStore()
    if any(character in name for character in "/?#"):
        raise InvalidArgument(f"{url!r} is no memory store; it is memory:// or memory://name")
    with _named_lock:
        data = _named_data.get(name)
        if data is None:
            data = _named_data[name] = MemoryData()
        return InMemoryLightningStore(data=data)


# ---------------------------------------------------------------------- fork

# A child gets a copy of the data. The locks are held across the fork, so that the copy is never half changed
# and no lock stays taken by a thread that the child does not have.

_held: list[MemoryData] = []


def _before_fork() -> None:
    # Whoever forks may hold a lock itself (a signal handler that has interrupted a transaction), and is not waited for.
    _held[:] = [data for data in _all_data if data.lock.acquire(timeout=FORK_SECONDS)]


def _after_fork() -> None:
    for data in _held:
        data.lock.release()
    _held.clear()


def _after_fork_in_child() -> None:
    for data in _all_data:
        if data not in _held:
            data.begin_anew_in_child()
    _after_fork()
    for store in _stores:
        store.after_fork_in_child()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child)
