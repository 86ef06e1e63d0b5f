"""What a span is routed to, and what is remembered of it until it is settled.

A :class:`Scope` is one ``trace_context`` (or one attempt that reached this process by baggage or attribute). It
travels in the OpenTelemetry context; ``on_start`` looks it up once, and the span's :class:`Record` keeps it until
the span ends, however late and on whatever thread. How many spans it has is in its :class:`~.counts.Counts`, which are
the ledger's.
"""

from __future__ import annotations

import asyncio
import itertools
import mmap
import os
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from opentelemetry import baggage, trace
from opentelemetry import context as otel_context
from opentelemetry.sdk.trace import ReadableSpan

from ..dialects.raw_call import Endpoint
from ..semconv import LightningResourceAttributes
from .counts import Counts

if TYPE_CHECKING:
    from types import FrameType

    from ..codec.recorded_span import AnySpan
    from ..dialects.raw_call import RawCall
    from ..store.base import LightningStore
    from .overflow import MovedCalls

ROLLOUT_KEY = LightningResourceAttributes.ROLLOUT_ID.value
ATTEMPT_KEY = LightningResourceAttributes.ATTEMPT_ID.value

_SCOPE_KEY = otel_context.create_key("agentlightning-scope")
_innermost: ContextVar[Scope | None] = ContextVar("agentlightning_innermost", default=None)
"""The ``trace_context`` that was entered last. Code that makes an extracted OpenTelemetry context current hides its
scope, and is inside of it all the same."""
_moments = itertools.count(1)
"""The order in which scopes were opened and items were put on queues."""
_SLOTS = 4096
_marks = memoryview(mmap.mmap(-1, 8 * _SLOTS)).cast("Q")
"""``opened_at`` of the scopes that are open, each in a place of its own. Processes that are forked see it, too: so the
context that one inherits ends with its rollout."""
_free_slots: deque[int] = deque(range(1, _SLOTS))
"""Places that no scope has; the first of all stays empty, for those that find none and end early there."""
_pid = os.getpid()
_open: weakref.WeakSet[Scope] = weakref.WeakSet()
"""Scopes whose ``trace_context`` is open in this process."""


class CallClaim:
    """The model call that a span of another instrumentation has claimed; changed by the ledger alone."""

    __slots__ = ("finished", "is_over", "span")

    def __init__(self, span: trace.Span, *, is_over: bool = False) -> None:
        self.span = span
        self.is_over = is_over
        """The call is over; the span may go on."""
        self.finished: ReadableSpan | None = None
        """The span as it ended, while it waits for its call."""


class Record:
    """What the recorder remembers of one span from its start until it is settled.

    All but ``calls`` is changed by the ledger alone.
    """

    __slots__ = (
        "announced",
        "calls",
        "claim",
        "context",
        "dropped",
        "duplicate",
        "ended",
        "labels",
        "scope",
    )

    def __init__(
        self, scope: Scope, context: trace.SpanContext, labels: Mapping[str, Any] | None = None
    ) -> None:
        self.scope = scope
        self.context = context
        """The very object of the span. Records are found by its identity: ids repeat where programs seed them."""
        self.announced = False
        """Its start is in a batch that was committed or is under way."""
        self.ended = False
        self.dropped = False
        self.labels = labels
        """Attributes that the agent's code wants on its model calls: a role, or not to be trained."""
        self.calls: list[RawCall] | None = None
        """Model calls seen on the wire, undecoded; they travel outside of attributes and their limits. Once the span
        waits in the queue, they are the queue's to change."""
        self.claim: CallClaim | None = None
        """Its model call, where it is a span of another instrumentation that has one."""
        self.duplicate = False
        """It is the second span of one model call."""

    @property
    def span_id(self) -> str:
        """16 hex digits."""
        return f"{self.context.span_id:016x}"


class FinishedSpan:
    """A finished span on its way to the store."""

    __slots__ = ("moved", "readable", "record", "size", "span")

    def __init__(self, readable: ReadableSpan, record: Record, size: int) -> None:
        self.readable: ReadableSpan | None = readable
        self.record = record
        self.size = size
        """Bytes in memory; while it waits, changed by the queue alone."""
        self.moved: MovedCalls | None = None
        """Its model calls, where their bodies have been moved to disk."""
        self.span: AnySpan | None = None
        """The span as it was or will be stored, once it has been made."""

    @property
    def weight(self) -> int:
        """Bytes in memory and on disk, which is what the writer has to work through."""
        return self.size + (self.moved.size if self.moved is not None else 0)

    def calls(self) -> Sequence[RawCall]:
        """Return its model calls, from memory or from disk.

        Raises:
            OSError: They cannot be read from disk.
        """
        calls = self.record.calls  # before ``moved``: they are moved by another thread
        if calls is not None:
            return calls
        return () if self.moved is None else self.moved.read()


class Body:
    """Where and when the body of a ``trace_context`` runs, which tells whose spans start in it."""

    def __init__(self) -> None:
        self.before = otel_context.Context()
        """The context that its ``trace_context`` was opened in; what it encloses may outlive it."""
        self.generator: FrameType | None = None
        """The generator whose ``with`` opened it, where one did; ``None`` once it is over."""
        self.future: Callable[[], Any] = _no_future
        """Returns the future with which it ends, while there is one."""
        self.is_mixed = False
        """Opened by a generator while another one was open around it: their context may have been handed to threads and
        tasks by either."""
        self.is_apart = False
        """Its steps have a context of their own: whatever has that was started by one of them."""
        self.opened_by: object = None
        """The task or thread that opened it; ``None`` once it is over. All others inherit it."""
        self.opened_at = 0
        """Its place among the moments of this process; see ``now``."""
        self.opened_inside: Scope | None = None
        """The scope whose generator was running when this one was opened."""
        self.is_over = False
        """As far as this process knows."""
        self.opened_in = _pid
        """The process that opened it."""
        self._mark: memoryview | None = None
        self._slot = 0

    @property
    def is_inherited(self) -> bool:
        """Whether it was opened in the process that this one was forked from."""
        return self.opened_in != _pid

    def is_over_elsewhere(self) -> bool:
        """Whether it was opened in the process that this one was forked from, and is over there."""
        return self.opened_in != _pid and self._mark is not None and self._mark[self._slot] != self.opened_at

    def begin(self) -> None:
        """Note that it begins, also for processes that are forked inside of it."""
        self.opened_at = now()
        self._mark = _marks
        with suppress(IndexError):
            self._slot = _free_slots.pop()
            _marks[self._slot] = self.opened_at

    def end(self) -> None:
        """Note that it is over."""
        self.is_over = True
        if self._slot and self.opened_in == _pid and self._mark is not None:
            self._mark[self._slot] = 0
            _free_slots.append(self._slot)
            self._slot = 0
        self.generator = self.opened_by = None
        self.future = _no_future


def _no_future() -> None:
    return None


class Standing:
    """What is known of an attempt from its store: whether it is there."""

    def __init__(self) -> None:
        self.named_by_ids = False
        """Nobody but a span's attributes or baggage named it: the store may not know it."""
        self.is_known = False
        """The store has acknowledged something of it."""
        self.is_gone = False
        """… and has said since that there is no such attempt."""
        self.unopened = False
        """The store has started no rollout for it: nothing of it can be stored."""


class Trace:
    """Finished spans of an attempt for ``spans()``."""

    def __init__(self) -> None:
        self.spans: list[FinishedSpan] | None = []
        """``None`` once nobody can ask any more."""
        self.bytes = 0
        self.is_cut = False
        """There was no room for some."""

    def add(self, finished: FinishedSpan, max_bytes: int) -> None:
        """Keep a span, if there is room and somebody can still ask."""
        if self.spans is None:
            return
        if self.bytes + finished.size > max_bytes:
            self.is_cut = True
            return
        self.bytes += finished.size
        self.spans.append(finished)


class Scope:
    """One attempt as one ``trace_context`` sees it; see the module's docstring."""

    is_late = False
    """Its spans start after the ``trace_context`` has closed; see :class:`LateScope`."""

    def __init__(
        self,
        store: LightningStore | None,
        rollout_id: str,
        attempt_id: str,
        *,
        owner: object = None,
        counts: Counts | None = None,
    ) -> None:
        self.counts = counts or Counts()
        self.owner = owner
        """The recorder that made it; others in this process leave its spans alone."""
        self.store = store
        self.rollout_id = rollout_id
        self.attempt_id = attempt_id
        self.endpoints: list[Endpoint] | None = None
        """Model endpoints among the rollout's resources, which are asked for token ids; ``None`` where none is."""
        self.described: list[Endpoint] | None = None
        """The same, as the writer's thread has found them; ``None`` until it has looked."""
        self.trace = Trace()
        self.body = Body()
        self.standing = Standing()
        self.alternates = False
        """Another rollout was at work in the same context at the same time, and nothing tells their spans apart."""
        self.unrecorded: dict[str, None] = {}
        """Names of processes that were started under it and record nothing, in order."""
        self.left_open: list[Record] | None = []
        """Spans of others whose model call was left half way; ``None`` once the ``trace_context`` has ended them."""
        self.replaced: dict[int, int] = {}
        """Span id of a duplicate → the span that stands for it."""
        self.late: LateScope | None = None
        """What starts after its ``trace_context`` has closed, as far as this process has seen any."""

    @property
    def closed(self) -> bool:
        """Whether its ``trace_context`` is over, in whatever process that was opened."""
        body = self.body
        return body.is_over or (body.opened_in != _pid and body.is_over_elsewhere())

    def open(self) -> None:
        """Note that its ``trace_context`` begins, also for processes that are forked inside of it."""
        self.body.begin()
        _open.add(self)

    def close(self) -> None:
        """Note that its ``trace_context`` is over; called by the ledger, one thread at a time."""
        self.body.end()
        _open.discard(self)

    def stands_for(self, span_id: int) -> int:
        """Return the span id that is stored in place of a duplicate's."""
        while span_id in self.replaced:
            span_id = self.replaced[span_id]
        return span_id


class LateScope(Scope):
    """What starts after a scope has closed, in a context that was carried on.

    It is written as the spans of any scope are, but belongs to no attempt: it is counted beside what the attempt has
    started, so that no worker that lives on changes whether an attempt is whole, or keeps it from being sealed.
    """

    is_late = True

    def __init__(self, of: Scope) -> None:
        keeps_late = of.store is not None and of.store.capabilities.get("receipts")
        super().__init__(of.store if keeps_late else None, of.rollout_id, of.attempt_id, owner=of.owner)
        self.body.is_over = True
        self.standing.unopened = of.standing.unopened
        self.trace.spans = self.left_open = None


def scope_in(context: otel_context.Context) -> Scope | None:
    """Return the scope that a context carries, or ``None``."""
    scope = context.get(_SCOPE_KEY)
    return scope if isinstance(scope, Scope) else None


def current_scope() -> Scope | None:
    """Return the scope of the current context, or ``None``."""
    return scope_in(otel_context.get_current())


def current_worker() -> object:
    """Return the task that runs, or the thread where none does."""
    if asyncio._get_running_loop() is not None:  # noqa: SLF001 - cheaper than an exception for each item of a queue
        task = asyncio.current_task()
        if task is not None:
            return task
    trio: Any = sys.modules.get("trio")
    if trio is not None:
        with suppress(
            AttributeError, RuntimeError
        ):  # it is being imported; this thread runs none of its tasks
            return trio.lowlevel.current_task()
    return threading.current_thread()


def now() -> int:
    """Return a number that is higher than all that were returned before, in this process."""
    return next(_moments)


def is_any_open() -> bool:
    """Whether a ``trace_context`` is open anywhere in this process."""
    return bool(_open)


def is_another_open() -> bool:
    """Whether several are."""
    return len(_open) > 1


def enter(scope: Scope) -> None:
    """Note that a ``trace_context`` is open here, whatever OpenTelemetry context is made current inside of it."""
    scope.open()
    _innermost.set(scope)


def leave(scope: Scope) -> None:
    """Note that a ``trace_context`` is over."""
    if _innermost.get() is scope:
        _innermost.set(scope_in(scope.body.before))


def is_inside_any() -> bool:
    """Whether a ``trace_context`` is open here, also where a server has made another context current."""
    scope = _innermost.get()
    return scope is not None and not scope.closed


def enclosing(scope: Scope | None) -> Iterator[Scope]:
    """Yield a scope and those that were current where it was opened, innermost first."""
    while scope is not None:
        yield scope
        scope = scope_in(scope.body.before)


def live_context(context: otel_context.Context) -> otel_context.Context:
    """Return the context, or where its scope is closed the nearest one around it whose scope is open.

    A generator that is left out of turn, or a worker that lives on, has a context of a rollout that is over.
    """
    for scope in enclosing(scope_in(context)):
        if not scope.closed:
            break
        context = scope.body.before
    return context


def context_with_scope(scope: Scope, context: otel_context.Context) -> otel_context.Context:
    """Return ``context`` with this scope, its ids as baggage, and no current span.

    Without a current span the next one starts a new trace, so an enclosing attempt never becomes the parent.
    """
    context = otel_context.set_value(_SCOPE_KEY, scope, context)
    context = baggage.set_baggage(ROLLOUT_KEY, scope.rollout_id, context)
    context = baggage.set_baggage(ATTEMPT_KEY, scope.attempt_id, context)
    return trace.set_span_in_context(trace.INVALID_SPAN, context)


def context_without_scope(context: otel_context.Context) -> otel_context.Context:
    """Return ``context`` without its attempt: no scope, none of its ids as baggage, and no current span."""
    context = otel_context.set_value(_SCOPE_KEY, None, context)
    for key in (ROLLOUT_KEY, ATTEMPT_KEY):
        context = baggage.remove_baggage(key, context)
    return trace.set_span_in_context(trace.INVALID_SPAN, context)


def ids_in_baggage(context: otel_context.Context) -> tuple[str, str] | None:
    """Return the rollout and attempt that another process sent along, or ``None``."""
    return ids_among(baggage.get_all(context))


def ids_among(attributes: Mapping[str, object]) -> tuple[str, str] | None:
    """Return the rollout and attempt that attributes name, or ``None`` unless both are there."""
    rollout_id, attempt_id = attributes.get(ROLLOUT_KEY), attributes.get(ATTEMPT_KEY)
    if isinstance(rollout_id, str) and isinstance(attempt_id, str):
        return rollout_id, attempt_id
    return None


def _after_fork_in_child() -> None:
    global _marks, _free_slots, _pid  # noqa: PLW0603 - the scopes of the parent keep its marks
    _marks = memoryview(mmap.mmap(-1, 8 * _SLOTS)).cast("Q")
    _free_slots = deque(range(1, _SLOTS))
    _pid = os.getpid()


os.register_at_fork(after_in_child=_after_fork_in_child)
