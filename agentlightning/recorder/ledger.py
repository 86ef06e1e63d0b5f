"""The ledger of a recorder: every span that was started is counted until it is stored, dropped or spooled.

It owns the counts of all attempts, the state of each span's record, and the one lock that guards both. Everyone else
asks it or tells it something in one call, and holds nothing meanwhile. An account, which is what a store is told of an
attempt, is a snapshot of its counts; it speaks of exactly the spans that the store is given with it and before it.

No other lock is taken while it is held. A signal handler may run in a thread that holds it and ask for any other one,
so nobody who holds another one may wait for it, but for whoever puts batches on disk. A thread of the agent takes it
once when a span starts and once when it ends.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Collection, Iterable
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from .. import types
from ..semconv import DropReason
from .counts import Counts, next_writer_id
from .scope import CallClaim, FinishedSpan, LateScope, Record, Scope

if TYPE_CHECKING:
    from opentelemetry import trace
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace import Span as SdkSpan

    from ..codec.recorded_span import AnySpan
    from ..dialects.raw_call import RawCall
    from ..store.base import LightningStore
    from ..types import Account, Receipt, Span
    from .queue import SpanQueue
    from .settings import WriterSettings
    from .store_writes import Outcome

_log = logging.getLogger(__name__)

Key = tuple[str, str]
"""Attempt and span: names a span within a store."""


class PendingBatch:
    """What is to be written into one store at a time, and is not acknowledged."""

    __slots__ = ("entries", "made", "opened", "scopes", "store")

    def __init__(self, store: LightningStore) -> None:
        self.store = store
        self.entries: list[FinishedSpan] = []
        self.opened: list[tuple[SdkSpan, Record]] = []
        """Spans that have started, and of which the store does not know."""
        self.scopes: dict[Scope, int] = {}
        """Scope → how many of its finished spans are in the batch. Those with none have an account to send."""
        self.made: dict[Key, FinishedSpan] = {}
        """The entries of which a span was made, by its key."""

    def spans(self) -> list[AnySpan]:
        """Return the spans that were made."""
        return [entry.span for entry in self.made.values() if entry.span is not None]

    def scopes_of(self, attempts: Collection[tuple[str, str]]) -> dict[Scope, int]:
        """Return those of some attempts."""
        return {
            scope: number
            for scope, number in self.scopes.items()
            if (scope.rollout_id, scope.attempt_id) in attempts
        }


class _Batches(dict[int, PendingBatch]):
    """Batches by the identity of their store."""

    def of(self, scope: Scope) -> PendingBatch:
        """Return the batch that spans of an attempt go into."""
        if scope.store is None:
            raise ValueError("nothing of this attempt is stored")
        batch = self.get(id(scope.store))
        if batch is None:
            batch = self[id(scope.store)] = PendingBatch(scope.store)
        return batch


class Snapshot(NamedTuple):
    """Accounts as they were counted at one moment, and what follows once they are kept."""

    accounts: list[Account]
    unstored: dict[Scope, int]
    """Scope → how many announced and dropped spans its account names."""
    closing: dict[Scope, int]
    """Scope → spans started, where the account is the last."""


class SetAside(NamedTuple):
    """What goes to the spool with spans, and what follows once it is there."""

    accounts: list[Account]
    spooled: dict[Scope, int]
    """Scope → how many of its spans are counted as spooled."""
    closing: dict[Scope, int]


class Unplaced:
    """The spans of this process that nobody could place.

    Every attempt that is open when such a span starts could have made it. An attempt notes the number when it is opened
    and when it closes; the difference is its own, and no span has to go round all that are open.
    """

    __slots__ = ("count", "open")

    def __init__(self) -> None:
        self.count = 0
        """How many have started."""
        self.open: dict[int, trace.SpanContext] = {}
        """Those that have not ended, by identity of their context."""


class Ledger:
    """See the module's docstring. Safe in any thread, in signal handlers and in finalizers; a fork begins it anew."""

    def __init__(self, queue: SpanQueue, settings: WriterSettings) -> None:
        self._queue = queue
        self._settings = settings
        self.records: dict[int, Record] = {}
        """Spans that this process started and has not ended, by identity of their context; to be read only."""
        self.starts: dict[Record, SdkSpan] = {}
        """Those of which no store was told yet; to be read only."""
        self._unplaced = Unplaced()
        self._stopped = False
        self._reset()

    def _reset(self) -> None:
        # Guards all that is here and in ``Counts`` and ``Record``, and that a span is counted as ended in the step in
        # which the queue gets it. Re-entrant: a finalizer that ends a span may run in a thread that holds it.
        self._lock = threading.RLock()
        self.pid = os.getpid()
        self._changed: set[Scope] = set()
        """Attempts whose next account is not the same as the last one."""
        self._unclosed: set[Scope] = set()
        """Attempts of which no last account is kept."""
        self._pending: list[PendingBatch] = []
        """Batches that were taken and are not settled."""
        self._total = Counts()
        """How many spans of all attempts have been queued and settled."""
        self._losses = 0
        self._losses_told = 0
        """How many losses a flush has told of."""
        self._ending = False

    def after_fork_in_child(self) -> None:
        """Begin anew: what the parent has started is the parent's to report. Attempts get new counts when used."""
        self._reset()
        self.records.clear()
        self.starts.clear()
        self._unplaced.open.clear()

    # ------------------------------------------------------------------ attempts

    def new_counts(self) -> Counts:
        """Return the counts of an attempt that is opened now."""
        return Counts(self._unplaced.count)

    def late_of(self, scope: Scope) -> LateScope:
        """Return the scope of what starts late of an attempt."""
        with self._lock:
            if scope.late is None or scope.late.counts.pid != self.pid:
                scope.late = LateScope(scope)
            return scope.late

    def close(self, scope: Scope) -> bool:
        """Note that a ``trace_context`` has ended; return whether there is an account of it to write."""
        with self._lock:
            scope.close()
            counts = scope.counts
            if counts.unplaced_until is None:
                counts.unplaced_until = self._unplaced.count
            if scope.store is None or counts.pid != self.pid:  # nothing of it was started in this process
                return False
            self._changed.add(scope)
            return True

    def receipt(self, scope: Scope) -> Receipt:
        """Return what this process knows of an attempt: ``open`` also counts spans that are still queued."""
        with self._lock:
            counts, late = scope.counts, scope.late
            return types.Receipt(
                rollout_id=scope.rollout_id,
                attempt_id=scope.attempt_id,
                started=counts.started,
                stored=counts.stored,
                open=counts.started - counts.stored - sum(counts.dropped.values()),
                dropped=dict(counts.dropped),
                late=0 if late is None else late.counts.started,
                late_stored=0 if late is None or late.store is None else late.counts.stored,
                late_dropped={} if late is None else dict(late.counts.dropped),
                unattributed=counts.unattributed(self._unplaced.count),
                truncated=counts.truncated,
            )

    # ------------------------------------------------------------------ spans start and end

    def start(self, record: Record, span: SdkSpan | None = None) -> None:
        """Count a started span.

        Args:
            record: Its record.
            span: The live span, whose start is announced with the next batch unless it ends before; ``None`` where
                nobody waits for its end, or only ended spans are seen.
        """
        scope = record.scope
        with self._lock:
            counts = scope.counts
            if counts.pid != self.pid:
                counts = self._counts_of_child(scope)
            counts.started += 1
            counts.live += 1
            self.records[id(record.context)] = record
            if scope.store is not None and not self._stopped:
                if span is not None:
                    self.starts[record] = span
                self._changed.add(scope)
                self._unclosed.add(scope)

    def _counts_of_child(self, scope: Scope) -> Counts:
        scope.counts = counts = Counts(self._unplaced.count, closed=scope.closed)
        scope.late = None
        return counts

    def end(self, finished: FinishedSpan, *, may_wait: bool = True) -> bool:
        """Count a span as ended and queue it, or drop and count it where there is no room.

        One that waits for the model call which it has claimed is left with that, and comes again when the call is over.

        Args:
            finished: The span.
            may_wait: Whether the thread may wait for room.

        Returns:
            ``False`` where the thread is to wait for room and to come again: nothing has been counted.
        """
        record = finished.record
        scope = record.scope
        counts = scope.counts
        with self._lock:
            claim = record.claim
            # In one step with what follows: a call that another thread hands to the span finds it open, or ended.
            if claim is not None and not claim.is_over:
                claim.finished = finished.readable
                return True
            if record.duplicate:
                self._end_unstored(record, DropReason.SAME_CALL)
            elif scope.store is None:
                self._end_in_memory(finished)
            elif self._stopped:
                self._end_unstored(record, DropReason.SHUTDOWN)
            elif counts.truncated or not self._queue.put(finished):
                if may_wait and not counts.truncated and counts.waited < self._settings.block_timeout:
                    return False
                self._end_truncated(record)
            else:
                # No call lies between these, and so no signal handler. One may raise before: see ``_count_end``.
                record.ended = True
                counts.live -= 1
                counts.queued += 1
                self._total.queued += 1
                self._changed.add(scope)
                self.starts.pop(record, None)
                scope.trace.add(finished, self._settings.max_trace_bytes)
            self.records.pop(id(record.context), None)
            return True

    def _count_end(self, record: Record) -> None:
        """Count a span as ended that is in the queue and was not: a signal handler raised right after ``put``."""
        counts = record.scope.counts
        record.ended = True
        counts.live -= 1
        counts.queued += 1
        self._total.queued += 1
        self.starts.pop(record, None)
        self.records.pop(id(record.context), None)

    def _end_unstored(self, record: Record, reason: DropReason) -> None:
        """Count a span as ended of which nothing will be stored."""
        scope = record.scope
        self.starts.pop(record, None)
        record.ended = True
        scope.counts.live -= 1
        self._drop(record, reason)
        if scope.store is not None and not self._stopped:
            self._changed.add(scope)

    def _end_in_memory(self, finished: FinishedSpan) -> None:
        record = finished.record
        scope = record.scope
        scope.trace.add(finished, self._settings.max_trace_bytes)
        if scope.standing.unopened:
            self._end_unstored(record, DropReason.NO_ROLLOUT)
            return
        record.ended = True
        scope.counts.live -= 1
        scope.counts.stored += 1

    def _end_truncated(self, record: Record) -> None:
        scope = record.scope
        if not scope.counts.truncated:
            scope.counts.truncated = True
            _log.warning(
                "the queue to the store is full; the tail of attempt %s of rollout %s is dropped and counted",
                scope.attempt_id,
                scope.rollout_id,
            )
        self._end_unstored(record, DropReason.QUEUE_FULL)
        self._losses += 1

    def patience(self, scope: Scope) -> float:
        """Return how many seconds threads of an attempt may still wait for room."""
        return self._settings.block_timeout - scope.counts.waited

    def waited(self, scope: Scope, seconds: float) -> None:
        """Count time that a thread has waited for room."""
        with self._lock:
            scope.counts.waited += seconds

    def start_unplaced(self, number: int = 1, context: trace.SpanContext | None = None) -> None:
        """Count started spans that nobody can place.

        Args:
            number: Of them.
            context: That of one which belongs to no attempt, so that its end is noticed, too.
        """
        with self._lock:
            self._unplaced.count += number
            if context is not None:
                self._unplaced.open[id(context)] = context

    def end_unplaced(self, context: trace.SpanContext | None) -> bool:
        """Note that a span has ended; return whether it is one that belongs to no attempt."""
        with self._lock:
            return self._unplaced.open.pop(id(context), None) is not None

    # ------------------------------------------------------------------ model calls and spans of others

    def claim(self, record: Record, span: trace.Span, duplicates: Iterable[tuple[Record, Record]]) -> bool:
        """Give a span the model call that leaves now; ``False`` where it has ended, or has one, meanwhile.

        Args:
            record: The span's record.
            span: The span.
            duplicates: Spans of the same call, each with the one around it: they are not stored.
        """
        with self._lock:
            if record.ended or record.claim is not None:
                return False
            for inner, outer in duplicates:
                if not inner.ended:
                    self.replace(inner, outer)
            record.claim = CallClaim(span)
            return True

    def replace(self, record: Record, outer: Record) -> None:
        """Note that a span is the second of a call; its children move to the first."""
        with self._lock:
            record.scope.replaced[record.context.span_id] = outer.context.span_id
            record.duplicate = True

    def claim_done(self, record: Record, span: trace.Span) -> None:
        """Note that a span has its call already, so that it claims no other."""
        with self._lock:
            record.claim = CallClaim(span, is_over=True)

    def complete(self, record: Record, call: RawCall) -> tuple[ReadableSpan | None, bool]:
        """Give a span the call that it has claimed.

        A span that has not ended although its call was left half way ends with its ``trace_context``.

        Returns:
            The span, if it has ended and waited for its call; and whether it is to be ended now, because its call was
            left half way and its ``trace_context`` has ended.
        """
        with self._lock:
            if record.claim is None:
                return None, False
            record.calls = [call]
            finished = self.release(record)
            if finished is not None or call.complete:
                return finished, False
            if record.scope.left_open is None:
                return None, call.error is None
            record.scope.left_open.append(record)
            return None, False

    def release(self, record: Record) -> ReadableSpan | None:
        """Note that a claimed call is over; return the span, if it has ended and waited for that."""
        with self._lock:
            claim = record.claim
            if claim is None:
                return None
            claim.is_over = True
            finished, claim.finished = claim.finished, None
            return finished

    def left_open(self, scope: Scope) -> list[Record]:
        """Return the spans whose calls were left half way, as the ``trace_context`` ends; later ones end at once."""
        with self._lock:
            left, scope.left_open = scope.left_open, None
        return [record for record in left or () if not record.ended]

    # ------------------------------------------------------------------ batches

    def take(self, most_starts: int, *, at_end: bool = False) -> list[PendingBatch]:
        """Take spans off the queue to be written, with the starts that are new and the accounts that have changed.

        Args:
            most_starts: So many starts at most; each becomes a record that is larger than the span.
            at_end: Also after ``stop``, for whoever puts on disk what is left.

        Returns:
            One batch for each store. They stay ``pending`` until they are settled.
        """
        with self._lock:
            if self._stopped and not at_end:
                return []
            batches = _Batches()
            # Spans first: what has ended is not announced as open.
            self._take_finished(self._queue.take(), batches)
            self._take_starts(most_starts, batches)
            changed, self._changed = self._changed, set()
            for scope in changed:
                batches.of(scope).scopes.setdefault(scope, 0)
            return self._are_pending(batches)

    def take_costly(self, *, at_end: bool = False) -> list[PendingBatch]:
        """Take what takes long to decode; once all others are settled, or their accounts would speak of it."""
        with self._lock:
            if self._stopped and not at_end:
                return []
            batches = _Batches()
            self._take_finished(self._queue.take_costly(), batches)
            return self._are_pending(batches)

    def _take_finished(self, finished: Iterable[FinishedSpan], batches: _Batches) -> None:
        for entry in finished:
            record, scope = entry.record, entry.record.scope
            if not record.ended:
                self._count_end(record)
            if not record.announced:
                scope.counts.accounted += 1
            batch = batches.of(scope)
            batch.entries.append(entry)
            batch.scopes[scope] = batch.scopes.get(scope, 0) + 1

    def _take_starts(self, most: int, batches: _Batches) -> None:
        for record in [*islice(self.starts, most)]:
            span = self.starts.pop(record)
            if record.ended:  # a signal handler raised between its end and its leaving ``starts``
                continue
            record.announced = True
            record.scope.counts.accounted += 1
            batch = batches.of(record.scope)
            batch.opened.append((span, record))
            batch.scopes.setdefault(record.scope, 0)

    def _are_pending(self, batches: _Batches) -> list[PendingBatch]:
        self._pending += batches.values()
        return list(batches.values())

    def pending(self) -> list[PendingBatch]:
        """Return the batches that were taken and are not settled, oldest first."""
        with self._lock:
            return list(self._pending)

    def drop(self, entry: FinishedSpan, reason: DropReason) -> bool:
        """Count a span that was taken as dropped, once: the writer and a shutdown may come to it at the same time."""
        scope = entry.record.scope
        with self._lock:
            if entry.record.dropped:
                return False
            self._drop(entry.record, reason, accounted=True)
            # A flush promises what this process records; ids that the store does not know were invented elsewhere.
            is_expected = reason is DropReason.STORE_REFUSED and scope.standing.named_by_ids
            self._losses += reason is not DropReason.PIPELINE and not is_expected
            self._changed.add(scope)
            return True

    def _drop(self, record: Record, reason: DropReason, *, accounted: bool = False) -> None:
        counts = record.scope.counts
        record.dropped = True
        counts.dropped[reason.value] = counts.dropped.get(reason.value, 0) + 1
        if record.announced:
            counts.unstored.append(record.span_id)
        elif not accounted:
            counts.accounted += 1

    def snapshot(self, batch: PendingBatch, scopes: Iterable[Scope]) -> Snapshot:
        """Count the accounts of some scopes of a batch now, on the supposition that the batch is stored."""
        with self._lock:
            closing: dict[Scope, int] = {}
            accounts = [self._account(scope, batch.scopes[scope], closing) for scope in scopes]
            unstored = {scope: len(scope.counts.unstored) for scope in scopes}
            return Snapshot(accounts, unstored, closing)

    def _account(self, scope: Scope, in_batch: int, closing: dict[Scope, int]) -> Account:
        """Return an account; where it is the last, note the scope in ``closing`` with its number of spans."""
        counts = scope.counts
        counts.revision += 1
        self._unclosed.add(scope)
        is_idle = self._ending or (scope.closed and counts.live == 0)
        # Nobody waits for spans that are late, so their account is always the last.
        is_closed = scope.is_late or (is_idle and counts.queued - counts.settled == in_batch)
        if is_closed:
            closing[scope] = counts.started
        return types.Account.model_construct(
            rollout_id=scope.rollout_id,
            attempt_id=scope.attempt_id,
            writer_id=counts.writer_id,
            revision=counts.revision,
            started=0 if scope.is_late else counts.accounted,
            dropped={} if scope.is_late else dict(counts.dropped),
            unstored=[] if scope.is_late else list(counts.unstored),
            late=counts.started if scope.is_late else 0,
            late_dropped=dict(counts.dropped) if scope.is_late else {},
            unattributed=0 if scope.is_late else counts.unattributed(self._unplaced.count),
            closed=is_closed,
        )

    # ------------------------------------------------------------------ what became of a batch

    def tell(
        self, batch: PendingBatch, outcome: Outcome, sent: Snapshot, apart: Collection[tuple[str, str]]
    ) -> bool:
        """Take in what a store did with a batch; ``False`` where a shutdown has taken the batch over meanwhile.

        Args:
            batch: The batch.
            outcome: What became of it.
            sent: The accounts that went with it.
            apart: Rollout and attempt of those that the store did not take with the batch.
        """
        with self._lock:
            if self._stopped:
                return False
            for span in outcome.refused:
                self.drop(batch.made[key_of(span)], DropReason.NOT_ENCODABLE)
            self._take_back_starts(batch, outcome.refused_starts, again=False)
            self._take_back_starts(batch, outcome.unwritten_starts)
            if outcome.at_once:
                for key in batch.made.keys() - {key_of(span) for span in outcome.stored}:
                    self.drop(batch.made[key], DropReason.DUPLICATE)
            if not outcome.failed:
                self._acknowledge(sent, apart)
            elif not outcome.unwritten:
                self._changed.update(batch.scopes)
            return True

    def tell_of_part(self, batch: PendingBatch, starts: Collection[Span], sent: Snapshot | None) -> bool:
        """Take in whether a store has the accounts of a part of a batch; ``False`` as above.

        Args:
            batch: The batch.
            starts: Starts that are in the part.
            sent: The accounts; ``None`` where the store does not have them.
        """
        with self._lock:
            if self._stopped:
                return False
            if sent is None:
                self._take_back_starts(batch, starts)
            else:
                self._acknowledge(sent)
            return True

    def _acknowledge(self, sent: Snapshot, apart: Collection[tuple[str, str]] = ()) -> None:
        for scope, named in sent.unstored.items():
            if (scope.rollout_id, scope.attempt_id) in apart:
                continue
            scope.standing.is_known = True
            del scope.counts.unstored[:named]
            if scope in sent.closing:
                self.keep_closed({scope: sent.closing[scope]})

    def keep_closed(self, closing: dict[Scope, int]) -> None:
        """Note that these last accounts are kept, unless more has begun meanwhile."""
        with self._lock:
            self._unclosed.difference_update(
                scope for scope, number in closing.items() if scope.counts.started == number
            )

    def is_unclosed(self, scopes: Iterable[Scope]) -> bool:
        """Whether of some of the scopes no last account is kept."""
        with self._lock:
            return any(scope in self._unclosed for scope in scopes)

    def _take_back_starts(self, batch: PendingBatch, starts: Collection[Span], *, again: bool = True) -> None:
        """Note that the store was never told of these starts; ``again``: announce them with the next batch."""
        taken_back = {key_of(start) for start in starts}
        for span, record in batch.opened if taken_back else ():
            scope = record.scope
            if (scope.attempt_id, record.span_id) not in taken_back:
                continue
            record.announced = False
            if record.dropped:
                continue
            scope.counts.accounted -= 1
            if again and not record.ended:
                self.starts[record] = span
                self._changed.add(scope)

    def settle(self, batch: PendingBatch) -> list[FinishedSpan]:
        """Count the finished spans of a batch as settled, once, and return them."""
        with self._lock:
            entries, batch.entries = batch.entries, []
            for entry in entries:
                counts = entry.record.scope.counts
                counts.settled += 1
                counts.stored += not entry.record.dropped
            self._total.settled += len(entries)
            self._pending = [other for other in self._pending if other is not batch]
            return entries

    def set_aside(self, batch: PendingBatch, scopes: Iterable[Scope], spans: Iterable[AnySpan]) -> SetAside:
        """Count spans as spooled, and return the accounts of scopes that go with them.

        The scopes' own accounts count the spans as dropped (``spooled``). A second account under another writer id
        takes this back when the store acknowledges the file.
        """
        spooled: dict[Scope, int] = dict.fromkeys(scopes, 0)
        closing: dict[Scope, int] = {}
        with self._lock:
            for span in spans:
                entry = batch.made.get(key_of(span))
                if entry is not None:  # or a shutdown has put it aside meanwhile
                    spooled[entry.record.scope] += self.drop(entry, DropReason.SPOOLED)
            accounts = [self._account(scope, batch.scopes[scope], closing) for scope in spooled]
        accounts += [_correction(scope, number) for scope, number in spooled.items() if number]
        return SetAside(accounts, spooled, closing)

    def set_aside_in_vain(self, spooled: dict[Scope, int]) -> None:
        """Note that the spool did not take these spans: they are lost."""
        with self._lock:
            for scope, number in spooled.items():
                if number:
                    dropped, full = scope.counts.dropped, DropReason.SPOOL_FULL.value
                    dropped[DropReason.SPOOLED.value] -= number
                    dropped[full] = dropped.get(full, 0) + number

    # ------------------------------------------------------------------ waiting, and the end

    @property
    def has_work(self) -> bool:
        """Whether there is anything that a store was not told of, or has not acknowledged."""
        return bool(self.starts or self._changed or self._pending or len(self._queue))

    def has_work_of(self, scope: Scope) -> bool:
        """The same of one attempt; something of it may be in any batch that is pending."""
        counts = scope.counts
        if counts.pid != self.pid:
            return False
        return counts.queued != counts.settled or scope in self._changed or bool(self._pending)

    def has_started(self, scope: Scope) -> bool:
        """Whether the counts of an attempt are of this process."""
        return scope.counts.pid == self.pid

    def position(self, scope: Scope | None) -> tuple[int, int]:
        """Return how many spans (of an attempt) have been queued, and how many losses flushes have told of."""
        with self._lock:
            counts = self._total if scope is None else scope.counts
            return counts.queued, self._losses_told

    def is_settled(self, scope: Scope | None, queued: int) -> bool:
        """Whether the first so many spans (of an attempt) that were queued are settled."""
        return (self._total if scope is None else scope.counts).settled >= queued

    def lost_nothing(self, scope: Scope | None, known: int) -> bool:
        """Whether an attempt has lost nothing; of all attempts: nothing beyond so many losses, which are then told."""
        with self._lock:
            if scope is not None:
                return scope.counts.lost == 0
            self._losses_told = self._losses
            return self._losses == known

    @property
    def is_whole(self) -> bool:
        """Whether this process has lost nothing."""
        return self._losses == 0

    def begin_to_end(self) -> None:
        """Have a last account of every attempt written; what is open then stays open."""
        with self._lock:
            self._ending = True
            self._changed |= self._unclosed

    def stop(self) -> None:
        """Let nothing more into the queue."""
        with self._lock:
            self._stopped = True


def key_of(span: AnySpan) -> Key:
    """Return what names a span within a store."""
    return span.attempt_id, span.span_id


def _correction(scope: Scope, count: int) -> Account:
    """Return the account that undoes ``dropped{spooled}`` once a spool file has been delivered."""
    undone = {DropReason.SPOOLED.value: -count}
    return types.Account.model_construct(
        rollout_id=scope.rollout_id,
        attempt_id=scope.attempt_id,
        writer_id=next_writer_id(),
        revision=1,
        started=0,
        dropped={} if scope.is_late else undone,
        unstored=[],
        late=0,
        late_dropped=undone if scope.is_late else {},
        unattributed=0,
        closed=True,
    )
