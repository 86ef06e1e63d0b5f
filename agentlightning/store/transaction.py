"""Every primitive of the store contract, written once, over the small methods of ``store.tables``.

A :class:`TransactionalStore` turns a call into one function on :class:`~.tables.Tables`. A backend supplies the
tables and two hooks, which run such a function in one transaction. What statuses, time and receipts mean comes
from ``store.lifecycle``; what filters and pages mean comes from ``store.query``; arguments are checked and
copied here, before a transaction begins.

Time passes on its own: every call sees the store as if the watchdog had just looked, because each transaction
begins by applying what is overdue. The timer of ``store.watchdog`` only makes it happen without a call.
"""

# ruff: noqa: D102 - what the methods do is specified in store.base

from __future__ import annotations

import math
import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar, cast

from .._turn import turn_of_thread
from ..codec.attributes import is_late, tags_of_span
from ..codec.json_copy import json_copy
from ..codec.recorded_span import AnySpan, RecordedSpan, SpanList, built, unbuilt
from ..errors import (
    AlreadySealed,
    AttemptNotFound,
    NotSealable,
    ResourcesNotFound,
    RolloutExists,
    RolloutNotFound,
)
from ..semconv import DropReason
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
    RolloutStatus,
    Seal,
    Span,
    TaskInput,
    Worker,
    WorkerStatus,
)
from ..types.ids import new_attempt_id, new_resources_id, new_rollout_id
from . import lifecycle, values
from .arguments import (
    UNSET,
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
from .base import (
    FINISHED,
    LATEST,
    QUEUING,
    LightningStore,
    LightningStoreStatistics,
    writer_is_gone,
)
from .clock_steps import Clock, ClockSteps
from .query import (
    ATTEMPT_SORT,
    RESOURCES_SORT,
    ROLLOUT_SORT,
    SPAN_SORT,
    WORKER_SORT,
    contains,
    equals,
    has,
    make_query,
    within,
)
from .tables import AttemptKey, NewSpan, SpanCounts, Tables
from .waiting import Waits
from .watchdog import Watchdog

T = TypeVar("T")

_ROLLOUT_STATUSES = frozenset(lifecycle.ROLLOUT_TRANSITIONS)
_WORKER_STATUSES: frozenset[WorkerStatus] = frozenset({"idle", "busy", "unknown"})


class _Overdue:
    """What a read returns instead of an answer when something has to be written first."""


_OVERDUE: Final = _Overdue()


def _nothing() -> None:
    pass


@dataclass(frozen=True, slots=True)
class Command(Generic[T]):
    """One transaction that writes."""

    work: Callable[[Tables], T]
    """Does the work; may be called again from the start if the transaction has to be repeated."""
    prepare: Callable[[], None] = _nothing
    """Called once before the transaction, so that what costs time holds no lock."""
    committed: Callable[[], None] = _nothing
    """Called once after the commit and before the result is handed over, on any thread; never raises."""
    shares: bool = True
    """Whether the result may share something mutable with the tables. What a caller gives and gets back does not."""


class Unit:
    """The work of one transaction: its tables, its time, and what its commit means to others."""

    def __init__(self, tables: Tables, clock: ClockSteps) -> None:
        self.tables = tables
        self.now = clock.now()
        self._shown = clock.shown
        self.finished: list[str] = []
        """Rollouts that reached a final status."""
        self.deadline: float | None = None
        """The earliest deadline that was set or seen."""

    # ------------------------------------------------------------------ finding

    def rollout(self, rollout_id: str) -> Rollout:
        """Return a rollout, or raise :class:`RolloutNotFound`."""
        found = self.tables.get_rollout(values.sought(rollout_id))
        if found is None:
            raise RolloutNotFound(rollout_id)
        return found

    def attempt(self, rollout_id: str, attempt_id: str) -> Attempt:
        """Return an attempt (``latest`` is one), or raise :class:`RolloutNotFound`, :class:`AttemptNotFound`."""
        of_rollout = values.sought(rollout_id)
        found = (
            self.tables.get_latest_attempts([of_rollout]).get(of_rollout)
            if attempt_id == LATEST
            else self.tables.get_attempt((of_rollout, values.sought(attempt_id)))
        )
        if found is None:
            self.rollout(rollout_id)
            raise AttemptNotFound(attempt_id, f"rollout {rollout_id!r} has no such attempt")
        return found

    def with_attempts(self, rollouts: Sequence[Rollout]) -> list[Rollout]:
        """Return the rollouts, each with its latest attempt where it has one."""
        latest = self.tables.get_latest_attempts([rollout.rollout_id for rollout in rollouts])
        return [
            attempted(rollout, latest[rollout.rollout_id]) if rollout.rollout_id in latest else rollout
            for rollout in rollouts
        ]

    def resources_id(self, given: str | None) -> str | None:
        """Return the id that a new rollout refers to: the given one if it exists, else the latest."""
        if given is None:
            latest = self.tables.get_latest_resources()
            return None if latest is None else latest.resources_id
        if self.tables.get_resources(values.sought(given)) is None:
            raise ResourcesNotFound(given)
        return given

    # ------------------------------------------------------------------ changing

    def move_rollout(self, rollout: Rollout, status: RolloutStatus) -> Rollout:
        """Change a rollout's status, its place in the queue with it, and keep it."""
        moved = lifecycle.move_rollout(rollout, status, self.now)
        self.tables.put_rollout(moved)
        if moved.status != rollout.status:
            if status in QUEUING:
                self.tables.enqueue(rollout.rollout_id)
            else:
                self.tables.leave_queue(rollout.rollout_id)
            if status in FINISHED:
                self.finished.append(rollout.rollout_id)
        return moved

    def put_attempt(self, attempt: Attempt, config: RolloutConfig) -> None:
        """Keep an attempt with its deadline."""
        deadline = lifecycle.deadline(attempt, config, self._shown)
        self.tables.put_attempt(attempt, deadline)
        self._see_deadline(deadline)

    def _put_attempt_again(self, attempt: Attempt) -> None:
        # A heartbeat is part of every batch of spans; without a deadline there is no need to read the rollout.
        if self.tables.get_deadline((attempt.rollout_id, attempt.attempt_id)) is None:
            self.tables.put_attempt(attempt, None)
        else:
            self.put_attempt(attempt, self.rollout(attempt.rollout_id).config)

    def report(self, before: Attempt, after: Attempt) -> None:
        """Keep a changed attempt, and let its rollout and its worker follow."""
        if after.status == before.status:
            self._put_attempt_again(after)
            return
        rollout = self.rollout(after.rollout_id)
        self.put_attempt(after, rollout.config)
        # A superseded attempt changes its own record, and neither the rollout nor its place in the queue.
        latest = self.tables.get_latest_attempts([rollout.rollout_id])[rollout.rollout_id]
        if latest.attempt_id == after.attempt_id:
            status = lifecycle.rollout_after(rollout, before.status, after)
            if status != rollout.status:
                self.move_rollout(rollout, status)
        worker = self.tables.get_worker(after.worker_id) if after.worker_id else None
        if worker is not None:
            self._put_worker(worker, lifecycle.worker_after(worker, after, self.now))

    def begin_attempt(self, rollout: Rollout, worker_id: str | None) -> AttemptedRollout:
        """Start a new attempt, which becomes the latest."""
        last = self.tables.get_latest_attempts([rollout.rollout_id]).get(rollout.rollout_id)
        attempt = Attempt(
            rollout_id=rollout.rollout_id,
            attempt_id=new_attempt_id(),
            sequence_id=1 if last is None else last.sequence_id + 1,
            start_time=self.now,
            worker_id=worker_id,
        )
        rollout = self.move_rollout(rollout, "preparing")
        self.put_attempt(attempt, rollout.config)
        if worker_id is not None:
            self.assign(worker_id, attempt)
        return attempted(rollout, attempt)

    def assign(self, worker_id: str, attempt: Attempt) -> None:
        """Make a worker busy with an attempt."""
        self.tables.put_worker(lifecycle.worker_busy(self.worker(worker_id), attempt, self.now))

    def worker(self, worker_id: str) -> Worker:
        """Return a worker; one that is new is not kept yet."""
        return self.tables.get_worker(worker_id) or Worker(worker_id=worker_id)

    def reassign(self, before: Attempt, after: Attempt) -> None:
        """Let the former worker of an attempt go, and make the new one busy."""
        former = self.tables.get_worker(before.worker_id) if before.worker_id else None
        if former is not None and former.current_attempt_id == before.attempt_id:
            self.tables.put_worker(lifecycle.worker_idle(former, self.now))
        if after.worker_id and after.status in lifecycle.LIVE_ATTEMPT:
            self.assign(after.worker_id, after)

    def apply_overdue(self) -> int:
        """Give up the attempts whose time has passed; return how many changed."""
        changed = 0
        earliest = self.tables.next_deadline()
        if earliest is not None and earliest <= self.now:
            for attempt in self.tables.get_overdue(self.now):
                config = self.rollout(attempt.rollout_id).config
                status = lifecycle.overdue(attempt, config, self.now, self._shown)
                if status is None:  # the clock was set forward since: the deadline moves with it
                    self.put_attempt(attempt, config)
                    continue
                self.report(attempt, lifecycle.move_attempt(attempt, status, self.now))
                changed += 1
            earliest = self.tables.next_deadline()
        self._see_deadline(earliest)
        return changed

    def set_deadlines_anew(self) -> None:
        """Move all deadlines by what the clock was set."""
        for attempt in self.tables.get_overdue(math.inf):
            self.put_attempt(attempt, self.rollout(attempt.rollout_id).config)

    def _put_worker(self, before: Worker, after: Worker) -> None:
        if after is not before:
            self.tables.put_worker(after)

    def _see_deadline(self, deadline: float | None) -> None:
        if deadline is not None and (self.deadline is None or deadline < self.deadline):
            self.deadline = deadline


def attempted(rollout: Rollout, attempt: Attempt) -> AttemptedRollout:
    """Return a rollout together with an attempt of it."""
    return AttemptedRollout.model_construct(**{**rollout.__dict__, "attempt": attempt})


class BatchWrite:
    """A batch of spans that has been checked, and how it is written."""

    def __init__(self, batch: SpanBatch) -> None:
        every = list(unbuilt(batch.spans))
        self._may_be_unbuilt = isinstance(batch.spans, SpanList)
        self.opened = list(batch.opened)
        self.accounts = [values.account(account) for account in batch.accounts]
        self.spans: list[AnySpan] = []
        self.late: list[AnySpan] = []
        turn = turn_of_thread()
        for span in turn.over(every):
            values.check_span(span)
            (self.late if is_late(span.attributes) else self.spans).append(span)
        for span in turn.over(self.opened):
            values.check_span(span)
        self.alive = dict.fromkeys(_key(span) for span in (*self.spans, *self.opened))
        self.declared = dict.fromkeys(_key(account) for account in self.accounts)
        self.beside = dict.fromkeys(map(_key, self.late))
        self.encoded: list[Any] = []
        self.encoded_open: list[Any] = []
        self.encoded_late: list[Any] = []
        self.tags: dict[int, list[str]] = {}
        """Place of a span → its tags."""

    def encode(self, encode: Callable[[AnySpan], Any], encode_open: Callable[[AnySpan], Any]) -> None:
        """Turn the spans into what the tables keep."""
        turn = turn_of_thread()
        self.encoded = [encode(span) for span in turn.over(self.spans)]
        self.encoded_open = [encode_open(span) for span in turn.over(self.opened)]
        self.encoded_late = [encode_open(span) for span in turn.over(self.late)]
        tagged = ((place, tags_of_span(span.attributes)) for place, span in enumerate(turn.over(self.spans)))
        self.tags = {place: tags for place, tags in tagged if tags}

    def write(self, unit: Unit) -> Sequence[Span]:
        """Write the batch and return the spans that are new, in its order, with their sequence ids."""
        attempts = {key: unit.attempt(*key) for key in {**self.alive, **self.declared}}
        for key in self.beside:  # an unknown one is refused before anything is written
            unit.attempt(*key)
        self._write_accounts(unit.tables)
        stored = [*self._write_spans(unit.tables), *self._write_late(unit.tables)]
        self._write_opened(unit.tables)
        for key, before in attempts.items():
            after = lifecycle.heartbeat(before, unit.now)
            if key in self.alive:
                after = lifecycle.move_attempt(after, lifecycle.status_after_span(after.status), unit.now)
            if after is not before:
                unit.report(before, after)
        # Whoever hands in spans that are not built gets them back so. Others get a list, as ever.
        return SpanList(stored) if self._may_be_unbuilt else cast("list[Span]", stored)

    def _write_accounts(self, tables: Tables) -> None:
        for account in self.accounts:
            key = _key(account)
            if lifecycle.is_newer(account, tables.get_revision(key, account.writer_id)):
                tables.put_account(account)
            if account.unstored:
                tables.remove_open_spans(key, account.unstored)

    def _write_spans(self, tables: Tables) -> list[AnySpan]:
        fresh: dict[int, NewSpan] = {}
        for key, places in _by_key(self.spans).items():
            span_ids = [self.spans[place].span_id for place in places]
            known, opened = dict(tables.get_stored(key, span_ids)), tables.get_open(key, span_ids)
            if key in self.declared:
                tables.declare_spans(key, [span_id for span_id, declared in known.items() if not declared])
            counter = last = tables.get_counter(key)
            for place in turn_of_thread().over(places):
                span = self.spans[place]
                if span.span_id in known:
                    continue
                # A span that carries an id raises the counter to it, so that no later span is given the same.
                number = span.sequence_id or last + 1
                last = max(last, number)
                declared = key in self.declared or opened.get(span.span_id, False)
                known[span.span_id] = declared  # a second one of this id in the batch is a repeat
                fresh[place] = NewSpan(span, number, declared, self.encoded[place])
            if last != counter:
                tables.put_counter(key, last)
            if opened:
                tables.remove_open_spans(key, opened)
        in_order = [fresh[place] for place in sorted(fresh)]
        if in_order:
            tables.add_spans(in_order)
            self._write_tags(tables, [place for place in self.tags if place in fresh])
        return [_numbered(new.span, new.sequence_id) for new in turn_of_thread().over(in_order)]

    def _write_tags(self, tables: Tables, places: Sequence[int]) -> None:
        of_rollouts: dict[str, dict[str, None]] = {}
        for place in places:
            of_rollouts.setdefault(self.spans[place].rollout_id, {}).update(dict.fromkeys(self.tags[place]))
        for rollout_id, tags in of_rollouts.items():
            tables.add_tags(rollout_id, tags)

    def _write_late(self, tables: Tables) -> list[AnySpan]:
        fresh: list[NewSpan] = []
        for key, places in _by_key(self.late).items():
            known = set(tables.get_late(key, [self.late[place].span_id for place in places]))
            for place in places:
                span = self.late[place]
                if span.span_id not in known:
                    known.add(span.span_id)
                    fresh.append(NewSpan(span, 0, True, self.encoded_late[place]))
        if fresh:
            tables.add_late_spans(fresh)
        return [_numbered(new.span, 0) for new in fresh]

    def _write_opened(self, tables: Tables) -> None:
        fresh: list[NewSpan] = []
        for key, places in _by_key(self.opened).items():
            span_ids = [self.opened[place].span_id for place in places]
            present = tables.get_open(key, span_ids)
            # A start may come behind its span's end or loss, where batches overtake each other; it opens nothing then.
            settled = set(tables.get_stored(key, span_ids))
            settled.update(*(account.unstored for account in tables.get_accounts(key)))
            if key in self.declared:
                tables.declare_spans(key, [span_id for span_id, declared in present.items() if not declared])
            settled.update(present)
            for place in turn_of_thread().over(places):
                span = self.opened[place]
                if span.span_id not in settled:
                    settled.add(span.span_id)
                    fresh.append(NewSpan(span, 0, key in self.declared, self.encoded_open[place]))
        if fresh:
            tables.add_open_spans(fresh)


def _key(item: AnySpan | Account) -> AttemptKey:
    return item.rollout_id, item.attempt_id


def _numbered(span: AnySpan, sequence_id: int) -> AnySpan:
    """Return a span with its sequence id, built where it was built before; what is inside is shared."""
    if isinstance(span, RecordedSpan):
        return span.numbered(sequence_id)
    return values.numbered(span, sequence_id)


def _by_key(spans: Sequence[AnySpan]) -> dict[AttemptKey, list[int]]:
    places: dict[AttemptKey, list[int]] = {}
    for place, span in enumerate(spans):
        places.setdefault(_key(span), []).append(place)
    return places


def receipt_of(attempt: Attempt, tables: Tables) -> Receipt:
    """Count the receipt of an attempt; see ``types.receipt``."""
    key = attempt.rollout_id, attempt.attempt_id
    return receipt_from(
        key,
        attempt.status,
        tables.get_accounts(key),
        tables.count_spans(key),
        lambda writer_id: writer_is_gone(writer_id, tables.last_seen),
    )


def receipt_from(
    key: AttemptKey,
    status: AttemptStatus,
    accounts: Sequence[Account],
    counts: SpanCounts,
    is_gone: Callable[[str], bool],
) -> Receipt:
    """Return the receipt of an attempt of which this is known; ``is_gone`` says whether a writer has died."""
    dropped = _sum({DropReason.EVICTED.value: counts.evicted}, *(account.dropped for account in accounts))
    late_dropped = _sum(
        {DropReason.EVICTED.value: counts.evicted_late}, *(account.late_dropped for account in accounts)
    )
    return Receipt(
        rollout_id=key[0],
        attempt_id=key[1],
        # Spans that no account counts, as those of a plain exporter, have started all the same.
        started=sum(account.started for account in accounts) + counts.undeclared,
        stored=counts.stored,
        open=counts.open,
        dropped=dropped,
        late=sum(account.late for account in accounts),
        late_stored=counts.late,
        late_dropped=late_dropped,
        unattributed=sum(account.unattributed for account in accounts),
        truncated=dropped.get(DropReason.QUEUE_FULL.value, 0) > 0,
        interrupted=lifecycle.interrupted(accounts, status, is_gone),
        under_way=not all(account.closed for account in accounts),
    )


def _sum(*parts: Mapping[str, int]) -> dict[str, int]:
    """Add up counts by reason; what cancels out is left out."""
    total: dict[str, int] = {}
    for part in parts:
        for reason, number in part.items():
            total[reason] = total.get(reason, 0) + number
    return {reason: number for reason, number in total.items() if number}


class TransactionalStore(LightningStore):
    """The contract over :class:`Tables`; see the module's docstring.

    A backend supplies ``_write`` and ``_read``, and may say how it encodes spans.
    """

    def __init__(
        self, *, clock: Clock = time.time, steady: Clock | None = None, waits: Waits | None = None
    ) -> None:
        """Prepare what all backends share.

        Args:
            clock: Seconds since the epoch; every time that the store records comes from it.
            steady: Seconds of a clock that nobody sets, by which attempts become overdue; see :class:`ClockSteps`.
            waits: Waits that several stores over the same data share.
        """
        self._clock, self._steady = clock, steady
        self._time = ClockSteps(clock, steady)
        self._moved_by = 0.0
        """Seconds by which the deadlines in the store were moved, because the clock was set."""
        self._waits = Waits() if waits is None else waits
        self._watchdog = Watchdog(self, clock)
        self._opened_at = time.monotonic()

    def after_fork_in_child(self) -> None:
        """Forget the parent's threads and event loops; called in a child before anything else of it runs."""
        self._watchdog.after_fork_in_child()
        self._waits.after_fork_in_child()  # once for each of several stores that share them, which does no harm

    # ------------------------------------------------------------------ what a backend supplies

    @abstractmethod
    async def _write(self, command: Command[T]) -> T:
        """Run a command in one transaction, durable when this returns; all of it or none.

        A result is the caller's own: it shares nothing with what is kept.
        """

    @abstractmethod
    async def _read(self, work: Callable[[Tables], T]) -> T:
        """Run a function that only reads, on one state of the store; a result is the caller's own."""

    def _task_input(self, value: TaskInput) -> TaskInput:
        """Return a rollout's input as it is kept: what JSON can say of it; a store that keeps objects keeps it."""
        return json_copy("input", value)

    def _encode(self, span: AnySpan) -> Any:
        """Turn a span into what ``Tables.add_spans`` keeps; called before the transaction."""
        return built(span)

    def _encode_open(self, span: AnySpan) -> Any:
        """Turn a span into what ``Tables.add_open_spans`` keeps; called before the transaction."""
        return self._encode(span)

    # ------------------------------------------------------------------ running

    async def _change(
        self, work: Callable[[Unit], T], prepare: Callable[[], None] = _nothing, *, shares: bool = True
    ) -> T:
        units: list[Unit] = []
        moved_by: list[float] = []

        def run(tables: Tables) -> T:
            # A backend may begin again: what an undone run has finished and seen does not count.
            unit = Unit(tables, self._time)
            units[:] = [unit]
            moved_by[:] = [self._time.seconds]
            if moved_by[0] != self._moved_by:
                unit.set_deadlines_anew()
            unit.apply_overdue()
            return work(unit)

        def committed() -> None:
            self._moved_by = moved_by[0]
            unit = units[0]
            # Only after the commit: a wait that goes on looks, and has to find what it waited for.
            if unit.finished:
                self._waits.finished(unit.finished)
            if unit.deadline is not None:
                self._watchdog.expect(unit.deadline)

        return await self._write(Command(run, prepare, committed, shares))

    async def _look(self, work: Callable[[Unit], T]) -> T:
        def run(tables: Tables) -> T | _Overdue:
            unit = Unit(tables, self._time)
            earliest = tables.next_deadline()
            if earliest is None:
                return work(unit)
            if earliest <= unit.now or self._time.seconds != self._moved_by:
                return _OVERDUE
            self._watchdog.expect(earliest)
            return work(unit)

        # A read writes nothing: where something is overdue, the question is asked again by a write, which applies it.
        answer = await self._read(run)
        return await self._change(work) if isinstance(answer, _Overdue) else answer

    async def scan(self) -> float | None:
        """Give up the attempts that are overdue now; return the next deadline, if there is one.

        Every other call does this first, and the watchdog's timer does it without a call.
        """

        def work(unit: Unit) -> float | None:
            return unit.tables.next_deadline()

        return await self._look(work)

    async def statistics(self) -> LightningStoreStatistics:
        counts = await self._look(lambda unit: unit.tables.count())
        return LightningStoreStatistics(
            **{**counts, "name": type(self).__name__, "uptime": time.monotonic() - self._opened_at}
        )

    # ------------------------------------------------------------------ rollouts and their queue

    async def do_start_rollout(self, asked: NewRollout) -> AttemptedRollout:
        draft = _draft(asked, self._task_input(asked.input))
        worker_id = values.optional_text("worker_id", asked.worker_id)

        def work(unit: Unit) -> AttemptedRollout:
            return unit.begin_attempt(_created(unit, draft, asked), worker_id)

        return await self._change(work)

    async def enqueue_many_rollouts(self, rollouts: Sequence[EnqueueRolloutRequest]) -> Sequence[Rollout]:
        drafts = [_draft(request, self._task_input(request.input)) for request in rollouts]

        def work(unit: Unit) -> list[Rollout]:
            created = []
            for draft, asked in zip(drafts, rollouts, strict=True):
                rollout = _created(unit, draft, asked)
                unit.tables.put_rollout(rollout)
                unit.tables.enqueue(rollout.rollout_id)
                created.append(rollout)
            return created

        return await self._change(work)

    async def do_dequeue_many_rollouts(self, claim: RolloutClaim) -> Sequence[AttemptedRollout]:
        limit = values.whole("limit", claim.limit, 1)
        worker_id = values.optional_text("worker_id", claim.worker_id)

        def work(unit: Unit) -> list[AttemptedRollout]:
            if worker_id is not None:
                unit.tables.put_worker(lifecycle.worker_dequeued(unit.worker(worker_id), unit.now))
            claimed = [
                unit.begin_attempt(unit.rollout(rollout_id), worker_id)
                for rollout_id in unit.tables.take_from_queue(limit)
            ]
            if worker_id is not None and not claimed:
                unit.tables.put_worker(lifecycle.worker_idle(unit.worker(worker_id), unit.now))
            return claimed

        return await self._change(work)

    async def do_start_attempt(self, asked: NewAttempt) -> AttemptedRollout:
        worker_id = values.optional_text("worker_id", asked.worker_id)

        def work(unit: Unit) -> AttemptedRollout:
            rollout = unit.rollout(asked.rollout_id)
            return unit.begin_attempt(lifecycle.retried_by_hand(rollout), worker_id)

        return await self._change(work)

    async def do_update_rollout(self, change: RolloutChange) -> Rollout:
        rollout_id, resources_id = change.rollout_id, change.resources_id
        changes: dict[str, Any] = {}
        if change.input is not UNSET:
            changes["input"] = self._task_input(change.input)
        if change.mode is not UNSET:
            changes["mode"] = values.optional_mode(change.mode)
        if change.config is not UNSET:
            changes["config"] = values.rollout_config(change.config)
        if change.metadata is not UNSET:
            changes["metadata"] = values.optional_json_dict("metadata", change.metadata)
        target = None if change.status is UNSET else values.word("status", change.status, _ROLLOUT_STATUSES)

        def work(unit: Unit) -> Rollout:
            rollout = unit.rollout(rollout_id)
            if resources_id is not UNSET:
                changes["resources_id"] = None if resources_id is None else unit.resources_id(resources_id)
            changed = rollout.model_copy(update=changes)
            moved = unit.move_rollout(changed, changed.status if target is None else target)
            if "config" in changes:
                # Deadlines follow the new limits, and one that has passed already counts at once.
                for attempt in unit.tables.get_attempts(rollout_id):
                    unit.put_attempt(attempt, moved.config)
                unit.apply_overdue()
                moved = unit.rollout(rollout_id)
            return unit.with_attempts([moved])[0]

        return await self._change(work)

    async def get_rollout_by_id(self, rollout_id: str) -> Rollout | None:
        def work(unit: Unit) -> Rollout | None:
            rollout = unit.tables.get_rollout(values.sought(rollout_id))
            return None if rollout is None else unit.with_attempts([rollout])[0]

        return await self._look(work)

    async def do_query_rollouts(self, query: RolloutQuery) -> Sequence[Rollout]:
        asked = make_query(
            within("status", query.status_in, _ROLLOUT_STATUSES),
            within("rollout_id", query.rollout_id_in),
            contains("rollout_id", query.rollout_id_contains),
            has("tags", query.tags),
            sortable=ROLLOUT_SORT,
            filter_logic=query.filter_logic,
            sort_by=query.sort_by,
            sort_order=query.sort_order,
            limit=query.limit,
            offset=query.offset,
        )

        def work(unit: Unit) -> Sequence[Rollout]:
            found = unit.tables.find_rollouts(asked)
            return asked.result(unit.with_attempts(found.items), found.total)

        return await self._look(work)

    async def do_wait_for_rollouts(self, wait: RolloutWait) -> list[Rollout]:
        timeout = values.timeout(wait.timeout)
        ids = values.list_of_ids("rollout_ids", wait.rollout_ids)

        def look(unit: Unit) -> list[Rollout]:
            return unit.with_attempts([unit.rollout(rollout_id) for rollout_id in ids])

        begun = self._waits.add(ids, self)  # before the first look, so that nothing happens unseen in between
        try:
            rollouts = await self._look(look)
            finished = _finished(rollouts)
            self._waits.finished(finished)
            if len(finished) < len(ids) and timeout != 0:
                self._watch_others()
                await begun.until(timeout)
                rollouts = await self._look(look)
        finally:
            self._waits.remove(begun)
        return [rollout for rollout in rollouts if rollout.status in FINISHED]

    def _watch_others(self) -> None:
        """Begin to look for rollouts that other processes finish, for as long as somebody waits."""

    # ------------------------------------------------------------------ attempts

    async def do_update_attempt(self, change: AttemptChange) -> Attempt:
        rollout_id, attempt_id, status, worker_id, heartbeat_time, metadata = change
        changes: dict[str, Any] = {}
        if worker_id is not UNSET:
            changes["worker_id"] = values.text("worker_id", worker_id)
        if metadata is not UNSET:
            changes["metadata"] = values.optional_json_dict("metadata", metadata)
        beat = None if heartbeat_time is UNSET else values.moment("last_heartbeat_time", heartbeat_time)
        target = None if status is UNSET else values.word("status", status, lifecycle.ATTEMPT_TRANSITIONS)

        def work(unit: Unit) -> Attempt:
            before = unit.attempt(rollout_id, attempt_id)
            after = before.model_copy(update=changes)
            if beat is not None:
                after = lifecycle.heartbeat(after, beat)
            if target is not None:
                after = lifecycle.move_attempt(after, target, unit.now)
            if after.worker_id != before.worker_id:
                unit.reassign(before, after)
            unit.report(before, after)
            return after

        return await self._change(work)

    async def do_seal_attempt(self, seal: NewSeal) -> Attempt:
        spans, counted = seal.spans, values.optional_counts("unproven", seal.unproven)

        def work(unit: Unit) -> Attempt:
            attempt = unit.attempt(seal.rollout_id, seal.attempt_id)
            if attempt.seal is not None:
                if attempt.seal.spans == spans:
                    return attempt
                raise AlreadySealed(
                    f"attempt {attempt.attempt_id} was sealed with {attempt.seal.spans} spans"
                )
            key = attempt.rollout_id, attempt.attempt_id
            why = lifecycle.unsealable(attempt, receipt_of(attempt, unit.tables), spans)
            if why is not None:
                raise NotSealable(f"attempt {attempt.attempt_id} cannot be sealed: {why}")
            late = unit.tables.count_spans(key).late
            counter = unit.tables.get_counter(key)
            kept = Seal(time=unit.now, spans=spans, sequence_id=counter, late=late, unproven=counted)
            sealed = attempt.model_copy(update={"seal": kept})
            unit.report(attempt, sealed)
            return sealed

        return await self._change(work)

    async def get_latest_attempt(self, rollout_id: str) -> Attempt | None:
        of_rollout = values.sought(rollout_id)
        return await self._look(lambda unit: unit.tables.get_latest_attempts([of_rollout]).get(of_rollout))

    async def do_query_attempts(self, query: AttemptQuery) -> Sequence[Attempt]:
        rollout_id, sort_by, sort_order, limit, offset = query
        of_rollout = values.sought(rollout_id)
        asked = make_query(
            sortable=ATTEMPT_SORT, sort_by=sort_by, sort_order=sort_order, limit=limit, offset=offset
        )
        return await self._look(lambda unit: asked.select(unit.tables.get_attempts(of_rollout)))

    # ------------------------------------------------------------------ spans

    async def do_add_many_spans(self, batch: SpanBatch) -> Sequence[Span]:
        write = BatchWrite(batch)
        if not (batch.spans or batch.opened or batch.accounts):
            return []
        return await self._change(
            write.write, prepare=lambda: write.encode(self._encode, self._encode_open), shares=False
        )

    async def do_query_spans(self, query: SpanQuery) -> Sequence[Span]:
        asked = make_query(
            equals("trace_id", query.trace_id),
            contains("trace_id", query.trace_id_contains),
            equals("span_id", query.span_id),
            contains("span_id", query.span_id_contains),
            equals("parent_id", query.parent_id),
            contains("parent_id", query.parent_id_contains),
            equals("name", query.name),
            contains("name", query.name_contains),
            sortable=SPAN_SORT,
            filter_logic=query.filter_logic,
            sort_by=query.sort_by,
            sort_order=query.sort_order,
            limit=query.limit,
            offset=query.offset,
        )
        return await self._look(
            lambda unit: unit.tables.find_spans(
                _attempt_keys(unit, query.rollout_id, query.attempt_id), asked, packed=query.packed
            )
        )

    async def do_query_open_spans(self, of: SpansOf) -> Sequence[Span]:
        def work(unit: Unit) -> list[Span]:
            found = unit.tables.get_open_spans(_attempt_keys(unit, *of))
            return sorted(found, key=lambda span: (span.start_time is None, span.start_time or 0.0))

        return await self._look(work)

    async def do_query_late_spans(self, of: SpansOf) -> Sequence[Span]:
        return await self._look(lambda unit: list(unit.tables.get_late_spans(_attempt_keys(unit, *of))))

    async def do_get_receipt(self, of: AttemptRef) -> Receipt:
        return await self._look(lambda unit: receipt_of(unit.attempt(*of), unit.tables))

    async def get_many_span_sequence_ids(
        self, rollout_attempt_ids: Sequence[tuple[str, str]]
    ) -> Sequence[int]:
        pairs = values.pairs_of_ids("rollout_attempt_ids", rollout_attempt_ids)

        def work(unit: Unit) -> list[int]:
            reserved = []
            for rollout_id, attempt_id in pairs:
                unit.attempt(rollout_id, attempt_id)
                number = unit.tables.get_counter((rollout_id, attempt_id)) + 1
                unit.tables.put_counter((rollout_id, attempt_id), number)
                reserved.append(number)
            return reserved

        return await self._change(work)

    # ------------------------------------------------------------------ resources

    async def add_resources(self, resources: NamedResources) -> ResourcesUpdate:
        return await self.update_resources(new_resources_id(), resources)

    async def do_update_resources(self, change: ResourcesChange) -> ResourcesUpdate:
        resources_id = values.text("resources_id", change.resources_id)
        checked = values.named_resources(change.resources)

        def work(unit: Unit) -> ResourcesUpdate:
            present = unit.tables.get_resources(resources_id)
            update = ResourcesUpdate(
                resources_id=resources_id,
                create_time=unit.now if present is None else present.create_time,
                update_time=unit.now if present is None else max(unit.now, present.update_time),
                version=1 if present is None else present.version + 1,
                resources=checked,
            )
            unit.tables.put_resources(update)
            return update

        return await self._change(work)

    async def get_resources_by_id(self, resources_id: str) -> ResourcesUpdate | None:
        return await self._look(lambda unit: unit.tables.get_resources(values.sought(resources_id)))

    async def get_latest_resources(self) -> ResourcesUpdate | None:
        return await self._look(lambda unit: unit.tables.get_latest_resources())

    async def do_query_resources(self, query: ResourcesQuery) -> Sequence[ResourcesUpdate]:
        asked = make_query(
            equals("resources_id", query.resources_id),
            contains("resources_id", query.resources_id_contains),
            sortable=RESOURCES_SORT,
            sort_by=query.sort_by,
            sort_order=query.sort_order,
            limit=query.limit,
            offset=query.offset,
        )
        return await self._look(lambda unit: unit.tables.find_resources(asked))

    # ------------------------------------------------------------------ workers

    async def do_update_worker(self, change: WorkerChange) -> Worker:
        worker_id, heartbeat_stats = change
        values.text("worker_id", worker_id)
        changes = (
            {}
            if heartbeat_stats is UNSET
            else {"heartbeat_stats": values.json_dict("heartbeat_stats", heartbeat_stats)}
        )

        def work(unit: Unit) -> Worker:
            worker = lifecycle.worker_heartbeat(unit.worker(worker_id), unit.now).model_copy(update=changes)
            unit.tables.put_worker(worker)
            return worker

        return await self._change(work)

    async def get_worker_by_id(self, worker_id: str) -> Worker | None:
        return await self._look(lambda unit: unit.tables.get_worker(values.sought(worker_id)))

    async def do_query_workers(self, query: WorkerQuery) -> Sequence[Worker]:
        asked = make_query(
            within("status", query.status_in, _WORKER_STATUSES),
            contains("worker_id", query.worker_id_contains),
            sortable=WORKER_SORT,
            filter_logic=query.filter_logic,
            sort_by=query.sort_by,
            sort_order=query.sort_order,
            limit=query.limit,
            offset=query.offset,
        )
        return await self._look(lambda unit: unit.tables.find_workers(asked))


def _draft(request: EnqueueRolloutRequest | NewRollout, task: TaskInput) -> Rollout:
    """Check what is asked for and return a rollout that still lacks its start time and its resources."""
    return Rollout.model_construct(
        rollout_id=values.optional_text("rollout_id", request.rollout_id) or new_rollout_id(),
        input=task,
        start_time=0.0,
        end_time=None,
        mode=values.optional_mode(request.mode),
        resources_id=values.optional_text("resources_id", request.resources_id),
        status="queuing",
        config=RolloutConfig() if request.config is None else values.rollout_config(request.config),
        metadata=values.optional_json_dict("metadata", request.metadata),
        tags=[],  # pydantic would inspect the signature of the default's factory each time
    )


def _created(unit: Unit, draft: Rollout, asked: EnqueueRolloutRequest | NewRollout) -> Rollout:
    if asked.rollout_id is not None and unit.tables.get_rollout(draft.rollout_id) is not None:
        raise RolloutExists(
            f"there is a rollout {draft.rollout_id!r} already; give another rollout_id, or none"
        )
    return draft.model_copy(
        update={"start_time": unit.now, "resources_id": unit.resources_id(draft.resources_id)}
    )


def _attempt_keys(unit: Unit, rollout_id: str, attempt_id: str | None) -> list[AttemptKey]:
    of_rollout = values.sought(rollout_id)
    if attempt_id is None:
        return [(of_rollout, attempt.attempt_id) for attempt in unit.tables.get_attempts(of_rollout)]
    if attempt_id == LATEST:
        latest = unit.tables.get_latest_attempts([of_rollout])
        return [(of_rollout, attempt.attempt_id) for attempt in latest.values()]
    return [(of_rollout, values.sought(attempt_id))]


def _finished(rollouts: Iterable[Rollout]) -> list[str]:
    return [rollout.rollout_id for rollout in rollouts if rollout.status in FINISHED]
