"""The background writer: the one thread between finished spans and a store.

``ended`` appends to a bounded queue and returns; a daemon thread makes rows of what is queued, and commits
them in batches through ``add_many_spans``. Its invariants:

* The agent's thread never waits for the store. It may wait for room in a full queue, if it has no running
  event loop, for at most ``block_timeout`` per attempt in all; then the newest spans of that attempt are
  dropped, counted, and the attempt is marked truncated.
* Every span that was started is stored, dropped for a stated reason, in the spool, or still open; the account
  that says so is committed in the transaction that it describes (see ``tracer.scope``).
* ``flush`` and ``shutdown`` keep their deadlines, and say truthfully whether everything is stored.
* Nothing raises into user code, nothing that the writer does is traced, and a fork leaves the child with an
  empty writer of its own.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from opentelemetry import context as otel_context
from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY

from .._handover import Future, ReentrantEvent
from .._threads import try_start
from .._turn import Turn
from ..env_var import LightningEnvVar, resolve_count, resolve_milliseconds
from ..instrumentation.suppression import own_work
from ..semconv import DropReason
from ..types import Account, Span
from .delivery import Backoff, deliver, insist, within
from .memory import queue_bytes
from .overflow import Overflow
from .scope import Entry, Record, Scope, Unplaced, next_writer_id
from .spool import DEFAULT_MAX_BYTES, Batch, Spool

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace import Span as SdkSpan
    from opentelemetry.trace import SpanContext

    from ..store.base import LightningStore

_log = logging.getLogger(__name__)
_writers: weakref.WeakSet[Writer] = weakref.WeakSet()
THREAD_NAME = "otel-loop"

DISK_THREAD_NAME = "otel-disk"
DISK_SECONDS = 1.0
"""How long a shutdown waits for the disk to take what is being moved there."""

COSTLY_BYTES = 1024 * 1024
"""What is larger takes long to decode, and waits behind what is not, except in its own scope."""
LEFT_FOR_SPANS = 8
"""An eighth of the bound is never taken by answers that are arriving."""
SECONDS_BETWEEN_LINES = 60.0
"""In the log, about attempts that the store does not have."""
MOST_INVENTED = 10_000
"""So many of them are told apart."""
LEAST_MOVED_BYTES = 16 * 1024
"""What is smaller is not worth the way to the disk."""

MakeSpan = Callable[[Entry], Span | None]
"""Turns a queued entry into the span to store; ``None`` = a pipeline stage took it out."""
MakeOpened = Callable[["SdkSpan", Record], Span]
"""Turns a span that has not ended into the record of its start."""


@dataclass(frozen=True)
class WriterSettings:
    """Bounds of a writer.

    The first three are settings: without an argument the environment, ``[tool.agentlightning]`` or the default says.

    Raises:
        ConfigurationError: A value is out of range.
    """

    batch_size: int = field(default_factory=lambda: resolve_count(LightningEnvVar.AGL_BATCH_SIZE, None, 512))
    """So many finished spans leave at once, without waiting for more, and no batch has more (``AGL_BATCH_SIZE``)."""
    flush_interval: float = field(
        default_factory=lambda: resolve_milliseconds(LightningEnvVar.AGL_FLUSH_INTERVAL, None, 200)
    )
    """Milliseconds that a finished span, or the start of an open one, waits for its batch at most
    (``AGL_FLUSH_INTERVAL``)."""
    max_queue_size: int = field(
        default_factory=lambda: resolve_count(LightningEnvVar.AGL_MAX_QUEUE_SIZE, None, 50_000)
    )
    """Finished spans that wait for a batch (``AGL_MAX_QUEUE_SIZE``)."""
    max_batch_bytes: int = 4 * 1024 * 1024
    max_queue_bytes: int = field(
        default_factory=lambda: resolve_count(LightningEnvVar.AGL_MAX_QUEUE_BYTES, None, queue_bytes())
    )
    """Bytes of memory for finished spans and for answers that are arriving (``AGL_MAX_QUEUE_BYTES``; default a
    sixteenth of the memory of the control group or machine, between 64 MB and 1 GB). From half of it on, bodies of
    model calls are moved to disk. Threads with a running event loop, which may not wait, may exceed it to twice. A
    single larger span is still taken when the queue is empty."""
    block_timeout: float = 0.1
    """How many seconds threads of one attempt may wait, in all, for room in a full queue."""
    write_timeout: float = 30.0
    """A write that takes more seconds counts as failed and is tried again."""
    max_trace_bytes: int = 64 * 1024 * 1024
    """Finished spans of one ``trace_context`` that ``spans()`` can return."""

    def __post_init__(self) -> None:
        resolve_count(LightningEnvVar.AGL_BATCH_SIZE, self.batch_size, 0)
        resolve_count(LightningEnvVar.AGL_MAX_QUEUE_SIZE, self.max_queue_size, 0)
        resolve_count(LightningEnvVar.AGL_MAX_QUEUE_BYTES, self.max_queue_bytes, 0)
        resolve_milliseconds(LightningEnvVar.AGL_FLUSH_INTERVAL, self.flush_interval, 0)


class _Waiter:
    """Somebody who wants to know when what is queued now has been settled."""

    __slots__ = ("cycle", "future", "known_losses", "put", "scope")

    def __init__(self, scope: Scope | None, put: int, known_losses: int, cycle: int) -> None:
        self.scope = scope
        self.put = put
        self.known_losses = known_losses
        self.cycle = cycle
        self.future: Future[bool] = Future()


class _Job(NamedTuple):
    """Something to do in a store once ``put`` spans of a scope are settled."""

    scope: Scope
    put: int
    work: Callable[[], Awaitable[Any]]
    otherwise: str


class _InFlight:
    """A batch that a store has been given and has not acknowledged."""

    __slots__ = ("entries", "opened", "scopes", "store")

    def __init__(self, store: LightningStore) -> None:
        self.store = store
        self.entries: list[Entry] = []
        self.opened: list[tuple[SdkSpan, Record]] = []
        self.scopes: dict[Scope, int] = {}
        """Scope → how many of its finished spans are in the batch."""

    def scopes_of(self, part: Batch) -> dict[Scope, int]:
        """Return those of the attempts of a part."""
        attempts = part.attempts()
        return {
            scope: count
            for scope, count in self.scopes.items()
            if (scope.rollout_id, scope.attempt_id) in attempts
        }


class _Sending:
    """What is said of some scopes with a batch, and what follows from its acknowledgement."""

    def __init__(
        self, writer: Writer, in_flight: _InFlight, scopes: dict[Scope, int], without: Batch
    ) -> None:
        self._writer = writer
        self._in_flight = in_flight
        self.scopes = scopes
        self._without = without
        self._named: dict[Scope, int] = {}
        self._closing: dict[Scope, int] = {}

    def batch(self) -> Batch:
        """Return the batch with accounts that are counted now."""
        with self._writer.lock:
            accounts = [
                self._writer._account(scope, self._in_flight.scopes[scope], self._closing)  # noqa: SLF001 - one module
                for scope in self.scopes
            ]
            self._named.update((scope, len(scope.unstored)) for scope in self.scopes)
        return Batch(self._without.spans, self._without.opened, accounts)

    def acknowledged(self, apart: Collection[tuple[str, str]] = ()) -> None:
        """Note that the store has these accounts (under the lock), but for those of the attempts ``apart``."""
        for scope in self.scopes:
            if (scope.rollout_id, scope.attempt_id) in apart:
                continue
            scope.is_known = True
            del scope.unstored[: self._named[scope]]
            if scope in self._closing:
                self._writer._are_closed({scope: self._closing[scope]})  # noqa: SLF001


class _Invented:
    """Spans of attempts that the store never had: one line in the log at once, and one a minute with their number.

    Whoever may name attempts, such as a client of the agent's own server, can invent as many as it likes.
    """

    def __init__(self) -> None:
        self._spans = 0
        self._attempts: set[tuple[str, str]] = set()
        self._last = ("", "")
        self._told_at: float | None = None

    def add(self, spans: int, ids: tuple[str, str]) -> None:
        """Count dropped spans of one attempt."""
        self._spans += spans
        self._last = ids
        if len(self._attempts) < MOST_INVENTED:
            self._attempts.add(ids)
        if self._told_at is None or time.monotonic() - self._told_at >= SECONDS_BETWEEN_LINES:
            self.tell()

    def tell(self) -> None:
        """Say what has been counted since the last line."""
        if not self._spans:
            return
        _log.warning(
            "%d spans of %s%d attempts are dropped: the store does not have these, the last of them attempt %s of "
            "rollout %s",
            self._spans,
            "" if len(self._attempts) < MOST_INVENTED else "at least ",
            len(self._attempts),
            self._last[1],
            self._last[0],
        )
        self._spans = 0
        self._attempts.clear()
        self._told_at = time.monotonic()


class Writer:
    """See the module's docstring. One writer serves every store that its scopes name."""

    def __init__(
        self,
        make_span: MakeSpan,
        settings: WriterSettings | None = None,
        make_opened: MakeOpened | None = None,
    ) -> None:
        self.settings = settings or WriterSettings()
        # A full queue gets no fuller by waiting.
        self._whole_batch = min(self.settings.batch_size, self.settings.max_queue_size)
        self._half_of_memory = self.settings.max_queue_bytes // 2
        self._make_span = make_span
        self._make_opened = make_opened or opened_span
        self._spools: dict[int, Spool] = {}
        self.unplaced_spans = Unplaced()
        self._invented = _Invented()
        self._stopped = False
        self._reset()
        _writers.add(self)

    def _reset(self) -> None:
        # Re-entrant, as every lock here: a finalizer that ends a span may run in a thread that holds it.
        self._lock = threading.RLock()
        self._waiting_for_room: deque[ReentrantEvent] = deque()
        self._queue: deque[Entry] = deque()
        self._bytes = 0
        self._arriving = 0
        """Bytes of answers that are arriving."""
        self._later: deque[Entry] = deque()
        """What takes long to decode, and what came after it in the same scope; the writer's thread's alone."""
        self._behind: dict[Scope, int] = {}
        """Scope → how many of its spans are among these."""
        self._overflow: Overflow | None = None
        self._overflows = True
        """Whether the disk takes what is moved there."""
        self._asked_to_move = False
        self._not_movable = 0
        """Bytes that were left in memory the last time."""
        self._mover: threading.Thread | None = None
        self._to_move = ReentrantEvent()
        self.records: dict[int, Record] = {}
        """Spans that this process started and has not ended, by identity of their context."""
        self.unplaced_spans.open = {}
        self._fresh: dict[Record, SdkSpan] = {}
        self._dirty: set[Scope] = set()
        self._unclosed: set[Scope] = set()
        self._jobs: list[_Job] = []
        self._waiters: list[_Waiter] = []
        self._in_flight: list[_InFlight] = []
        self._undelivered: dict[int, LightningStore] = {}
        self._backoff = Backoff()
        self._cycle = 0
        self._put = 0
        self._settled = 0
        self._losses = 0
        self._losses_told = 0
        self._idle = True
        self._stopping = False
        # Whoever shuts down waits until a batch that goes to the spool is there.
        self._disk = threading.RLock()
        self._wake = ReentrantEvent()
        self._full = ReentrantEvent()
        self._thread: threading.Thread | None = None
        self._ended: Future[None] | None = None
        self.pid = os.getpid()

    @property
    def lock(self) -> threading.RLock:
        """Held while accounts and records change; re-entrant."""
        return self._lock

    # ------------------------------------------------------------------ the agent's threads

    def started(self, span: SdkSpan | None, record: Record) -> None:
        """Count a started span; its start is committed with the next batch unless it ends before.

        Args:
            span: The live span; ``None`` where only ended spans are seen, and no start can be announced.
            record: Its record.
        """
        scope = record.scope
        with self._lock:
            if scope.pid != self.pid:
                scope.forget_counts()
            scope.started += 1
            scope.live += 1
            if scope.store is not None and not self._stopped:
                if span is not None:
                    self._fresh[record] = span
                self._dirty.add(scope)
                self._unclosed.add(scope)
        if self._idle and scope.store is not None:
            self._nudge()

    def ended(self, readable: ReadableSpan, record: Record, size: int) -> None:
        """Queue a finished span, or drop and count it where there is no room.

        One that has adopted a model call which goes on is left with it, and comes again when that is over.
        """
        scope = record.scope
        entry = Entry(readable, record, size)
        while not self._enqueue(entry):
            self._wait_for_room(scope, size)
        if self._has_batch():
            self._full.set()
        if self._idle and scope.store is not None:
            self._nudge()
        if self._bytes + self._arriving > self._half_of_memory:
            self._ask_to_move()

    def unplaced(self, number: int = 1, context: SpanContext | None = None) -> None:
        """Count started spans that nobody can place.

        Args:
            number: Of them.
            context: That of one which belongs to no attempt, so that its end is noticed, too.
        """
        with self._lock:
            self.unplaced_spans.count += number
            if context is not None:
                self.unplaced_spans.open[id(context)] = context

    def ended_unplaced(self, context: SpanContext | None) -> bool:
        """Note that a span has ended; return whether it is one that belongs to no attempt."""
        with self._lock:
            return self.unplaced_spans.open.pop(id(context), None) is not None

    def _enqueue(self, entry: Entry) -> bool:
        """Queue an entry or count it as dropped; ``False`` where the thread is to wait for room first."""
        record = entry.record
        scope = record.scope
        with self._lock:
            # In one step with what follows: a call that another thread hands to the span finds it open, or ended.
            if record.adoption is not None and not record.adoption.call_is_over:
                record.adoption.ended = entry.readable
                return True
            if record.duplicate:
                self._drop_duplicate(record)
            elif scope.store is None:
                self._keep(scope, entry)
                record.ended = True
                scope.live -= 1
                if scope.unopened:
                    scope.drop(record, DropReason.NO_ROLLOUT)
                else:
                    scope.stored += 1
            elif self._stopped:
                self._over(record)
                scope.drop(record, DropReason.SHUTDOWN)
            elif scope.truncated or self._is_full(entry.size):
                if not scope.truncated and self._may_wait(scope):
                    return False
                self._over(record)
                self._drop_newest(scope, record)
            else:
                self._keep(scope, entry)
                self._dirty.add(scope)
                # No call lies between these, and so no signal handler: what is counted is in the queue.
                record.ended = True
                scope.live -= 1
                scope.put += 1
                self._put += 1
                self._bytes += entry.size
                self._queue.append(entry)
                self._fresh.pop(record, None)
            self.records.pop(id(record.context), None)
            return True

    def _drop_duplicate(self, record: Record) -> None:
        """Count the second span of one call, which is not stored (under the lock)."""
        self._over(record)
        record.scope.drop(record, DropReason.SAME_CALL)
        if record.scope.store is not None:
            self._dirty.add(record.scope)

    def closed(self, scope: Scope) -> None:
        """Note that a ``trace_context`` has ended; its account is closed once everything is settled."""
        with self._lock:
            scope.close()
            if scope.store is None or scope.pid != self.pid:  # nothing of it was started in this process
                return
            self._dirty.add(scope)
        self._nudge()

    def _over(self, record: Record) -> None:
        """Note that a span has ended of which nothing will be stored (under the lock)."""
        scope = record.scope
        self._fresh.pop(record, None)
        record.ended = True
        scope.live -= 1

    def _keep(self, scope: Scope, entry: Entry) -> None:
        if scope.finished is not None and scope.finished_bytes + entry.size <= self.settings.max_trace_bytes:
            scope.finished_bytes += entry.size
            scope.finished.append(entry)

    def _has_batch(self) -> bool:
        """Whether a whole batch waits, which is reason enough not to wait for more."""
        batch = self._whole_batch
        return (
            len(self._queue) >= batch
            or len(self._fresh) >= batch
            or bool(self._later)
            or self._bytes >= self.settings.max_batch_bytes
        )

    def _is_full(self, size: int) -> bool:
        settings = self.settings
        waiting = len(self._queue) + len(self._later)
        held = self._bytes + self._arriving + size
        if (waiting < settings.max_queue_size and held <= settings.max_queue_bytes) or not waiting:
            return False
        # Where an event loop runs, this thread may not wait, and may use up the bounds twice.
        times = 1 if asyncio._get_running_loop() is None else 2  # noqa: SLF001
        return waiting >= times * settings.max_queue_size or held > times * settings.max_queue_bytes

    # ------------------------------------------------------------------ memory

    def reserve(self, size: int) -> bool:
        """Take memory for a piece of an answer that is arriving; ``False`` where there is none.

        A part is left for the spans themselves: an answer that is cut is a smaller loss than a span.
        """
        bound = self.settings.max_queue_bytes
        with self._lock:
            held = self.held_bytes + size
            if self._arriving and held > 2 * bound - bound // LEFT_FOR_SPANS:
                return False
            self._arriving += size
        self._ask_to_move()
        return True

    def release(self, size: int) -> None:
        """Give memory back that was reserved."""
        with self._lock:
            self._arriving -= size

    @property
    def held_bytes(self) -> int:
        """Bytes of memory that finished spans and arriving answers take now."""
        return self._bytes + self._arriving

    def _is_pressed(self) -> bool:
        """Whether half of the memory is taken, by what could be moved to disk."""
        half = self._half_of_memory
        return self.held_bytes > max(half, self._not_movable + half // 8)

    def _ask_to_move(self) -> None:
        """Have bodies moved to disk, by a thread that neither decodes nor waits for the store."""
        if self._asked_to_move or not self._overflows or not self._is_pressed():
            return
        self._asked_to_move = True
        self._full.set()
        with self._lock:
            if self._mover is None and not self._stopped:
                self._mover = threading.Thread(target=self._move_on, name=DISK_THREAD_NAME, daemon=True)
                with suppress(RuntimeError):  # there are too many threads; then it stays in memory
                    try_start(self._mover)
        self._to_move.set()

    def _move_on(self) -> None:
        while True:
            self._to_move.wait()
            if self._stopped:
                return
            try:
                self._move_to_disk()
            except Exception as error:  # noqa: BLE001 - what stays in memory is bounded there
                self._stop_moving(error)

    def _move_to_disk(self) -> None:
        """Move bodies of the oldest spans to disk, until half of the memory is free."""
        self._asked_to_move = False
        with self._lock:
            waiting = [*self._later, *self._queue] if self._is_pressed() else []
        for entry in waiting:
            if self.held_bytes <= self._half_of_memory or not self._overflows:
                break
            self._move(entry)
        with self._lock:
            self._not_movable = self.held_bytes
        self._tell_of_room()

    def _move(self, entry: Entry) -> None:
        calls, scope = entry.record.calls, entry.record.scope
        if entry.moved is not None or not calls or scope.store is None:
            return
        if sum(len(call.request_body) + len(call.response_body) for call in calls) < LEAST_MOVED_BYTES:
            return
        try:
            if self._overflow is None:
                name = next_writer_id().replace(":", "-")
                self._overflow = Overflow(self._spool_of(scope.store).folder, name, DEFAULT_MAX_BYTES)
            moved = self._overflow.move(calls)
        except OSError as error:
            self._stop_moving(error)
            return
        if moved is None:
            return
        with self._lock:
            if entry.record.calls is not calls:  # it has been written meanwhile
                moved.free()
                return
            entry.moved = moved  # before ``calls`` goes: they are read by other threads
            entry.record.calls = None
            entry.size -= moved.size
            self._bytes -= moved.size

    def _stop_moving(self, error: Exception) -> None:
        self._overflows = False
        _log.warning("spans that wait for the store stay in memory, the disk does not take them: %s", error)

    def _is_behind(self) -> bool:
        """Whether a quarter of the queue is taken: then being whole comes before being polite."""
        settings = self.settings
        return 4 * len(self._queue) > settings.max_queue_size or 4 * self._bytes > settings.max_queue_bytes

    def _may_wait(self, scope: Scope) -> bool:
        """Whether this thread may wait for room: not the writer's own, and none whose event loop would stand still."""
        if threading.current_thread() is self._thread or asyncio._get_running_loop() is not None:  # noqa: SLF001
            return False
        return scope.blocked_for < scope.block_timeout

    def _wait_for_room(self, scope: Scope, size: int) -> None:
        began = time.monotonic()
        room = ReentrantEvent()
        self._waiting_for_room.append(room)
        if self._is_full(size):  # it may have become free before the writer knew of this bell
            room.wait(scope.block_timeout - scope.blocked_for)
        scope.blocked_for += time.monotonic() - began

    def _tell_of_room(self) -> None:
        for _ in range(len(self._waiting_for_room)):  # whoever finds no room comes again, and later
            self._waiting_for_room.popleft().set()

    def _drop_newest(self, scope: Scope, record: Record) -> None:
        if not scope.truncated:
            scope.truncated = True
            _log.warning(
                "the queue to the store is full; the tail of attempt %s of rollout %s is dropped and counted",
                scope.attempt_id,
                scope.rollout_id,
            )
        scope.drop(record, DropReason.QUEUE_FULL)
        self._losses += 1
        self._dirty.add(scope)

    def _nudge(self) -> None:
        """Wake the writer up. Until it has the interpreter, each start and end of a span comes here."""
        ended = self._ended
        if ended is None or ended.done():
            self.begin()
        self._wake.set()

    def begin(self) -> None:
        """Have a thread. At the end of the interpreter there may be none to be had any more (see ``_threads``)."""
        with self._lock:
            if self._stopped or self._has_thread():
                return
            ended: Future[None] = Future()
            thread = threading.Thread(target=self._run, args=(ended,), name=THREAD_NAME, daemon=True)
            self._thread, self._ended = thread, ended
            begun = False
            try:
                # Under OpenTelemetry's threading instrumentation the thread would carry the starter's context.
                token = otel_context.attach(otel_context.Context())
                try:
                    begun = try_start(thread)
                finally:
                    otel_context.detach(token)
            except RuntimeError as error:  # there are too many threads
                _log.warning("no thread for the writer: %s", error)
            finally:
                # Also where a signal came before it could be told; then the thread sees that it is none.
                if not begun:
                    self._thread = self._ended = None
                    self._idle = True

    def _has_thread(self) -> bool:
        # Not Thread.is_alive: interrupted by a signal, it takes a thread that runs for one that has ended.
        return self._ended is not None and not self._ended.done()

    # ------------------------------------------------------------------ waiting

    def flush(self, scope: Scope | None = None) -> Future[bool]:
        """Ask for everything that has ended (of one scope) to be stored now.

        Returns:
            A future: True when all of it is stored. False when something of the scope, or something that no
            flush has told of, had no room, was refused or went to the spool; and at once on the writer's own
            thread, which cannot wait for itself. It stays undone as long as the store hangs; bound it with a
            deadline.
        """
        with self._lock:
            put = self._put if scope is None else scope.put
            waiter = _Waiter(scope, put, self._losses_told, self._cycle + 1)
            has_work = self._has_work(scope)
            if self._stopped or not has_work:
                waiter.future.set_result(not has_work and self._nothing_lost(waiter))
                return waiter.future
            if threading.current_thread() is self._thread:
                waiter.future.set_result(False)
            else:
                self._waiters.append(waiter)
        self._backoff.hurry()
        self._full.set()
        self._nudge()
        return waiter.future

    def _has_work(self, scope: Scope | None) -> bool:
        if scope is not None:
            if scope.pid != self.pid:
                return False
            return bool(scope.put != scope.settled or scope in self._dirty or self._in_flight or self._jobs)
        return bool(
            self._queue
            or self._later
            or self._fresh
            or self._dirty
            or self._jobs
            or self._waiters
            or self._in_flight
            or self._undelivered
        )

    def after(self, scope: Scope, work: Callable[[], Awaitable[Any]], otherwise: str) -> None:
        """Do ``work`` on the writer's loop once all that has ended in ``scope`` is settled; a flush waits for it.

        It is tried again like a batch. If it cannot be done, the log says ``otherwise``.
        """
        with self._lock:
            if not self._stopped:
                self._jobs.append(_Job(scope, scope.put, work, otherwise))
                self._nudge()
                return
        _log.warning("%s: the writer has stopped", otherwise)

    def deliver_spool(self, store: LightningStore) -> None:
        """Send what waits on disk for ``store``, in the background; nothing happens where nothing waits."""
        if self._spool_of(store).begin_delivery():
            with self._lock:
                self._undelivered[id(store)] = store
            self._nudge()

    def shutdown(self, timeout: float) -> bool:
        """Write what is queued within ``timeout`` seconds, put the rest on disk, and stop; a repeat is harmless.

        Returns:
            Whether everything is stored. What is not is named in the log, with the place where it waits.
        """
        if self.pid != os.getpid():
            return True
        if self._stopped:
            with self._disk:  # another thread may be on its way to the disk
                return True
        with self._lock:
            self._stopping = True
            self._dirty |= self._unclosed
        self._backoff.give_up()
        self._full.set()
        if self._has_work(None):
            self._nudge()
        self._wake.set()
        ended, thread = self._ended, self._thread
        try:
            if ended is not None and thread is not None and thread is not threading.current_thread():
                with suppress(TimeoutError):
                    ended.result(timeout)
                    thread.join(timeout)  # what is left of it is not ours
        finally:  # Ctrl-C may end the wait; what is queued goes to the disk all the same
            with self._disk:
                with self._lock:
                    self._stopped = True
                    undone, self._jobs = self._jobs, []
                self._to_move.set()
                mover = self._mover
                if mover is not None and mover.is_alive():
                    mover.join(DISK_SECONDS)
                self._spool_leftover()
                overflow, self._overflow = self._overflow, None
                if overflow is not None:
                    overflow.close()
        self._invented.tell()
        for job in undone:
            _log.warning("%s: the store did not answer in time", job.otherwise)
        self._resolve_waiters()
        return self._losses == 0

    # ------------------------------------------------------------------ the writer's thread

    def _run(self, ended: Future[None]) -> None:
        try:
            with self._lock:
                is_the_one = self._ended is ended
            if is_the_one:
                self._write_on()
        finally:
            ended.set_result(None)

    def _write_on(self) -> None:
        otel_context.attach(own_work(otel_context.set_value(_SUPPRESS_INSTRUMENTATION_KEY, True)))
        loop: asyncio.AbstractEventLoop | None = None
        try:
            loop = asyncio.new_event_loop()  # needs files, of which a process may have none left
            while True:
                self._wake.wait()
                self._idle = (
                    False  # here and not where it is woken: a signal may come before the bell is rung
                )
                if not self._stopping:
                    self._full.wait(self.settings.flush_interval / 1000)
                self._full.clear()
                self._wake.clear()
                loop.run_until_complete(self._cycle_once())
                with self._lock:
                    if self._stopped:  # what it still had in hand is on the disk
                        return
                    if self._has_work(None) and not (self._stopping and self._backoff.failing):
                        self._wake.set()
                        if self._waiters or self._undelivered or self._has_batch():
                            self._full.set()
                    elif self._stopping:
                        return
                    else:
                        self._idle = True
        except BaseException as error:  # noqa: BLE001 - a dead writer would look like a quiet one
            _log.exception("the writer stopped, and starts again with the next span: %r", error)
            with self._lock:
                self._idle = True
            self._resolve_waiters(in_vain=True)
        finally:
            if loop is not None:
                loop.close()

    async def _cycle_once(self) -> None:
        self._cycle += 1
        for collect in (self._collect, self._collect_later):
            with self._lock:
                if self._stopped:
                    return
                self._in_flight += collect()  # what a writer that died had in hand comes first
            while self._in_flight and not self._stopped:
                await self._write(self._in_flight[0])
                with self._lock:
                    del self._in_flight[:1]
        await self._do_jobs()
        self._resolve_waiters()
        # One file each, after what is new: a large spool keeps no trace_context waiting.
        for store in list(self._undelivered.values()):
            await self._deliver_spool_of(store)
        self._resolve_waiters()

    async def _do_jobs(self) -> None:
        for job in [job for job in self._jobs if job.scope.settled >= job.put]:
            if not self._stopped:
                await insist(job.work, job.otherwise, self._backoff, self.settings.write_timeout)
            with self._lock:
                if job in self._jobs:
                    self._jobs.remove(job)

    async def _deliver_spool_of(self, store: LightningStore) -> None:
        try:
            if await within(self._spool_of(store).deliver_next(), self.settings.write_timeout) is not None:
                return
        except Exception as error:  # noqa: BLE001 - a store may raise anything
            _log.warning(
                "spooled spans in %s wait for the next start: %s", self._spool_of(store).folder, error
            )
        with self._lock:
            self._undelivered.pop(id(store), None)

    def _collect(self) -> list[_InFlight]:
        """Take a batch off the queue, and the starts that are new, by store."""
        # Entries first: what is popped here has left ``_fresh`` before, so nothing is both opened and stored.
        return self._batches_of(self._pop_entries(), with_news=True)

    def _collect_later(self) -> list[_InFlight]:
        """Take what was put off; after the others are written, or their accounts would speak of it."""
        return self._batches_of(self._pop_costly(), with_news=False)

    def _pop_entries(self) -> list[Entry]:
        """Take what is decoded soon, and put off what is not."""
        entries: list[Entry] = []
        size = 0
        settings = self.settings
        while self._queue and len(entries) < settings.batch_size and size < settings.max_batch_bytes:
            entry = self._queue.popleft()
            scope = entry.record.scope
            if entry.weight > COSTLY_BYTES or scope in self._behind:  # the order within an attempt stays
                self._behind[scope] = self._behind.get(scope, 0) + 1
                self._later.append(entry)
            else:
                size += entry.weight
                entries.append(entry)
        return entries

    def _pop_costly(self) -> list[Entry]:
        """Take one span that takes long, and what waits behind it."""
        entries: list[Entry] = []
        size = 0
        while (
            self._later and len(entries) < self.settings.batch_size and size < self.settings.max_batch_bytes
        ):
            if entries and self._later[0].weight > COSTLY_BYTES:
                break
            entry = self._later.popleft()
            size += entry.weight
            entries.append(entry)
            scope = entry.record.scope
            self._behind[scope] -= 1
            if not self._behind[scope]:
                del self._behind[scope]
        return entries

    def _batches_of(self, entries: list[Entry], *, with_news: bool) -> list[_InFlight]:
        """Return entries by store; with news, also the starts that are new and the accounts that have changed."""
        batches: dict[int, _InFlight] = {}

        def batch_of(scope: Scope) -> _InFlight:
            store = scope.store
            assert store is not None
            return batches.setdefault(id(store), _InFlight(store))

        if not entries and not with_news:
            return []
        with self._lock:
            fresh: dict[Record, SdkSpan] = {}
            dirty: set[Scope] = set()
            if with_news:
                # No more than a batch of them: each becomes a record of its start, which is larger than the span.
                fresh = {
                    record: self._fresh.pop(record) for record in [*islice(self._fresh, self._whole_batch)]
                }
                dirty, self._dirty = self._dirty, dirty
            for entry in entries:
                scope = entry.record.scope
                if not entry.record.announced:
                    scope.accounted += 1
                batch = batch_of(scope)
                batch.entries.append(entry)
                batch.scopes[scope] = batch.scopes.get(scope, 0) + 1
            for record, span in fresh.items():
                if record.ended:  # a signal came between its end and its leaving ``_fresh``
                    continue
                scope = record.scope
                record.announced = True
                scope.accounted += 1
                batch = batch_of(scope)
                batch.opened.append((span, record))
                batch.scopes.setdefault(scope, 0)
            for scope in dirty:
                batch_of(scope).scopes.setdefault(scope, 0)
        return list(batches.values())

    async def _write(self, in_flight: _InFlight) -> None:
        spans, by_id = self._make_spans(in_flight)
        opened = [self._make_opened(span, record) for span, record in in_flight.opened]
        sending = _Sending(self, in_flight, in_flight.scopes, Batch(spans, opened, []))
        outcome = await deliver(in_flight.store, sending.batch, self._backoff, self.settings.write_timeout)
        for span in outcome.stored:
            entry = by_id.get(_key(span))
            if entry is not None:
                entry.span = span
        apart = {ids for part in (*outcome.unknown, *outcome.uncounted) for ids in part.attempts()}
        with self._lock:
            if self._stopped:  # shutdown has spooled this batch while the store held on to it
                return
            for span in outcome.refused:
                self._fail(by_id[_key(span)], DropReason.NOT_ENCODABLE)
            self._take_back_starts(in_flight, outcome.refused_starts, again=False)
            self._take_back_starts(in_flight, outcome.unwritten_starts)
            if outcome.at_once:
                for key in by_id.keys() - {_key(span) for span in outcome.stored}:
                    self._fail(by_id[key], DropReason.DUPLICATE)
            if not outcome.failed:
                sending.acknowledged(apart)
            elif not outcome.unwritten:
                self._dirty.update(in_flight.scopes)
        if outcome.unwritten:
            with self._disk:
                self._put_aside(in_flight, in_flight.scopes, outcome.unwritten, by_id)
        for part in outcome.unknown:
            self._is_gone(in_flight, part, by_id)
        for part in outcome.uncounted:
            await self._count(in_flight, part, by_id)
        self._settle(in_flight)

    async def _count(self, in_flight: _InFlight, part: Batch, by_id: dict[tuple[str, str], Entry]) -> None:
        """Have an attempt's account take over what the store has got without one, in one step."""
        sending = _Sending(self, in_flight, in_flight.scopes_of(part), part)
        outcome = await deliver(in_flight.store, sending.batch, self._backoff, self.settings.write_timeout)
        with self._lock:
            if self._stopped:
                return
            if not (outcome.failed or outcome.unknown or outcome.uncounted):
                sending.acknowledged()
                return
            self._take_back_starts(in_flight, part.opened)
        with self._disk:
            self._put_aside(in_flight, sending.scopes, part.spans, by_id)

    def _is_gone(self, in_flight: _InFlight, part: Batch, by_id: dict[tuple[str, str], Entry]) -> None:
        """Keep what the store refuses because it does not know, or does not know any more, the attempt."""
        scopes = in_flight.scopes_of(part)
        ids = next(iter(part.attempts()))
        if not any(scope.is_known for scope in scopes):
            if part.spans:
                self._invented.add(len(part.spans), ids)
            with self._lock:
                for span in part.spans:
                    self._fail(by_id[_key(span)], DropReason.STORE_REFUSED)
            return
        is_new = not all(scope.is_gone for scope in scopes)
        for scope in scopes:
            scope.is_gone = True
        if is_new:
            _log.warning(
                "attempt %s of rollout %s was in the store and is not any more, as where a backup took its place; "
                "its spans wait in %s, and are sent at the first start at which the store has it again",
                ids[1],
                ids[0],
                self._spool_of(in_flight.store).folder,
            )
        with self._disk:
            self._put_aside(in_flight, scopes, part.spans, by_id, part.opened)

    def _make_spans(self, in_flight: _InFlight) -> tuple[list[Span], dict[tuple[str, str], Entry]]:
        spans: list[Span] = []
        by_id: dict[tuple[str, str], Entry] = {}
        turn = Turn()
        for entry in in_flight.entries:
            if entry.record.dropped:
                continue
            try:
                span = entry.span or self._make_span(entry)
                reason = DropReason.PIPELINE
            except Exception as error:  # noqa: BLE001 - one span must not cost its neighbours
                _log.warning("a span could not be made into a row: %r", error)
                span, reason = None, DropReason.NOT_ENCODABLE
            if span is None or _key(span) in by_id:
                with self._lock:
                    self._fail(entry, reason if span is None else DropReason.DUPLICATE)
                continue
            entry.span = span
            spans.append(span)
            if not self._is_behind():
                turn.pass_on()
            by_id[_key(span)] = entry
        return spans, by_id

    def _fail(self, entry: Entry, reason: DropReason) -> bool:
        """Count an entry as dropped, once: the writer and a shutdown may come to it at the same time."""
        scope = entry.record.scope
        if entry.record.dropped:
            return False
        scope.drop(entry.record, reason, accounted=True)
        # A flush promises what this process records; ids that the store does not know are somebody else's invention.
        is_expected = reason is DropReason.STORE_REFUSED and scope.named_by_ids
        self._losses += reason is not DropReason.PIPELINE and not is_expected
        self._dirty.add(scope)
        return True

    def _settle(self, in_flight: _InFlight) -> None:
        freed = 0
        with self._lock:
            for entry in in_flight.entries:
                scope = entry.record.scope
                scope.settled += 1
                scope.stored += not entry.record.dropped
                freed += entry.size
                if entry.moved is not None:
                    entry.moved.free()
                    entry.moved = None
                entry.readable = None if entry.span is not None else entry.readable
                entry.record.calls = None
            self._settled += len(in_flight.entries)
            self._bytes -= freed
            self._not_movable = min(self._not_movable, self._bytes)
        self._tell_of_room()

    def _resolve_waiters(self, *, in_vain: bool = False) -> None:
        with self._lock:
            done = [waiter for waiter in self._waiters if in_vain or self._is_done(waiter)]
            self._waiters = [waiter for waiter in self._waiters if waiter not in done]
        for waiter in done:
            if waiter.future.set_running_or_notify_cancel():
                waiter.future.set_result(not in_vain and self._nothing_lost(waiter))

    def _nothing_lost(self, waiter: _Waiter) -> bool:
        if waiter.scope is not None:
            return waiter.scope.lost == 0
        self._losses_told = self._losses
        return self._losses == waiter.known_losses

    def _is_done(self, waiter: _Waiter) -> bool:
        settled = self._settled if waiter.scope is None else waiter.scope.settled
        is_settled = self._cycle >= waiter.cycle and settled >= waiter.put
        return self._stopped or (is_settled and (waiter.scope is not None or not self._undelivered))

    def _account(self, scope: Scope, in_batch: int, closing: dict[Scope, int]) -> Account:
        """Return an account; where it is the last, note the scope in ``closing`` with its number of spans."""
        account = scope.account(in_batch, ending=self._stopping)
        self._unclosed.add(scope)
        if account.closed:
            closing[scope] = scope.started
        else:
            closing.pop(scope, None)
        return account

    def _are_closed(self, closing: dict[Scope, int]) -> None:
        """Note that these last accounts are kept, unless more has begun meanwhile."""
        self._unclosed.difference_update(
            scope for scope, number in closing.items() if scope.started == number
        )

    # ------------------------------------------------------------------ the spool

    def _spool_of(self, store: LightningStore) -> Spool:
        return self._spools.setdefault(id(store), Spool(store))

    def _put_aside(
        self,
        in_flight: _InFlight,
        scopes: Collection[Scope],
        spans: Sequence[Span],
        by_id: dict[tuple[str, str], Entry],
        opened: Sequence[Span] = (),
    ) -> bool:
        """Move spans and starts to the spool, with the accounts of scopes; return whether they are on disk.

        The scopes' own accounts count the spans as dropped (``spooled``); the file carries a second account under
        another writer id that takes this back when the store acknowledges the file.
        """
        counts: dict[Scope, int] = dict.fromkeys(scopes, 0)
        closing: dict[Scope, int] = {}
        with self._lock:
            for span in spans:
                entry = by_id[_key(span)]
                counts[entry.record.scope] += self._fail(entry, DropReason.SPOOLED)
            accounts = [self._account(scope, in_flight.scopes[scope], closing) for scope in counts]
            accounts += [_correction(scope, count) for scope, count in counts.items() if count]
        spool = self._spool_of(in_flight.store)
        if spool.write(Batch([*spans], [*opened], accounts), next_writer_id().replace(":", "-")):
            if not any(scope.is_gone for scope in counts):
                _log.warning(
                    "%s could not be written to %s; they wait in %s and are sent at the next start",
                    f"{len(spans)} spans" if spans else f"the last counts of {len(counts)} attempts",
                    type(in_flight.store).__name__,
                    spool.folder,
                )
            with self._lock:
                self._are_closed(closing)
            return True
        with self._lock:
            for scope, count in counts.items():
                if not count:
                    continue
                scope.dropped[DropReason.SPOOLED.value] -= count
                full = DropReason.SPOOL_FULL.value
                scope.dropped[full] = scope.dropped.get(full, 0) + count
        _log.error("%d spans are lost: no store and no spool takes them", len(spans))
        return False

    def _take_back_starts(
        self, in_flight: _InFlight, starts: Collection[Span], *, again: bool = True
    ) -> None:
        """Note that the store was never told of these starts; ``again``: announce them with the next batch."""
        if not starts:
            return
        taken_back = {_key(start) for start in starts}
        for span, record in in_flight.opened:
            scope = record.scope
            if (scope.attempt_id, record.span_id) not in taken_back:
                continue
            record.announced = False
            if record.dropped:
                continue
            scope.accounted -= 1
            if again and not record.ended:
                self._fresh[record] = span
                self._dirty.add(scope)

    def _spool_leftover(self) -> None:
        """Put on disk what was not written, a batch at a time.

        What a batch's account says is then on disk with it or before it, wherever the process may be killed.
        """
        for in_flight in list(self._in_flight):
            self._spool_batch(in_flight)
        while self._queue or self._later or self._fresh or self._dirty:
            for in_flight in self._collect() or self._collect_later():
                self._spool_batch(in_flight)

    def _spool_batch(self, in_flight: _InFlight) -> None:
        spans, by_id = self._make_spans(in_flight)
        if spans or in_flight.opened or any(scope in self._unclosed for scope in in_flight.scopes):
            opened = [
                self._make_opened(span, record) for span, record in in_flight.opened if record.announced
            ]
            self._put_aside(in_flight, in_flight.scopes, spans, by_id, opened)
        self._settle(in_flight)  # or no account of the next ones would be the last

    # ------------------------------------------------------------------ fork

    def after_fork_in_child(self) -> None:
        """Begin anew: what the parent had queued is the parent's to write."""
        stopped = self._stopped
        self._reset()  # scopes notice the new process by its pid and begin new accounts
        self._spools = {}
        self._stopped = stopped


def opened_span(span: SdkSpan, record: Record) -> Span:
    """Return the record of a span's start; never raises."""
    scope = record.scope
    try:
        opened = Span.from_opentelemetry(span, scope.rollout_id, scope.attempt_id)
    except Exception as error:  # noqa: BLE001 - the span is another thread's and may change while it is read
        _log.debug("the start of a span could not be read: %r", error)
        return bare_opened_span(record)
    opened.end_time = None
    return opened


def bare_opened_span(record: Record) -> Span:
    """Return the record of a start of which nothing but the ids may or can be said."""
    scope = record.scope
    opened = Span.from_attributes(
        attributes={},
        rollout_id=scope.rollout_id,
        attempt_id=scope.attempt_id,
        span_id=record.span_id,
        trace_id=f"{record.context.trace_id:032x}",
    )
    opened.end_time = None
    return opened


def _key(span: Span) -> tuple[str, str]:
    return span.attempt_id, span.span_id


def _correction(scope: Scope, count: int) -> Account:
    """Return the account that undoes ``dropped{spooled}`` once a spool file has been delivered."""
    undone = {DropReason.SPOOLED.value: -count}
    return Account.model_construct(
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


def _after_fork_in_child() -> None:
    for writer in list(_writers):
        writer.after_fork_in_child()


os.register_at_fork(after_in_child=_after_fork_in_child)
