"""The span processor: decides in ``on_start`` where a span belongs (see ``tracer.routing``), once and for all.

A span that belongs nowhere is *unattributed*: kept aside, counted, never filed under a guess. So is one whose scope was
opened by a generator that is not at work. So is one whose scope is closed, because whoever carries a context on (a
worker, a pool) works for others, too: it is *late* of that attempt, and is stored beside it. Each attempt that could
have made it counts it.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Self

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor

from ..codec.recorded_span import RecordedSpan
from ..instrumentation.guard import LogOnce, Policy
from ..pipeline.chain import NO_STAGES, Chain
from ..recorder.call_matching import CallMatching
from ..recorder.converter import Converter, EndpointOf
from ..recorder.kept_aside import KeptAside
from ..recorder.scope import (
    FinishedSpan,
    Record,
    Scope,
    context_with_scope,
    current_scope,
    current_worker,
    enclosing,
    enter,
    leave,
    live_context,
    scope_in,
)
from ..recorder.settings import WriterSettings
from ..recorder.sizes import kept_of
from ..recorder.writer import Writer
from ..types.attributes import attributes_of
from .call_labels import labels_in
from .routing import Routing
from .workers import forget_spans, note_span

if TYPE_CHECKING:
    from types import FrameType

    from opentelemetry.sdk.trace import Span as SdkSpan

    from ..codec.recorded_span import AnySpan
    from ..dialects.raw_call import RawCall
    from ..store.base import LightningStore
    from ..types import Span
    from .shared_spans import Sharing

_log = logging.getLogger(__name__)

_SAMPLED = trace.TraceFlags.SAMPLED


class LightningSpanProcessor(SpanProcessor):
    """Routes spans to their attempt and hands them to the writer; safe in any thread.

    Args:
        disable_store_submission: Keep spans in memory only, for ``spans()``.
        settings: Bounds of the writer.
        chain: Pipeline that every span passes before it is stored.
        policy: What happens to an error of ours inside user code (logged once, by default).
        accept_context: Whether ids in incoming baggage choose the attempt of a span that starts outside of every
            ``trace_context``.
        write_0_3: Whether model calls have the names and attributes of Agent Lightning 0.3, too.
        endpoint_of: Says what is known of the endpoint of a call whose span is made; ``None``: what was known when it
            began.
        sharing: Shows what is recorded to the other exporters of a provider; ``None``: they see what stands on spans.
    """

    def __init__(
        self,
        disable_store_submission: bool = False,
        *,
        settings: WriterSettings | None = None,
        chain: Chain = NO_STAGES,
        policy: Policy | None = None,
        accept_context: bool = False,
        write_0_3: bool = False,
        endpoint_of: EndpointOf | None = None,
        sharing: Sharing | None = None,
    ) -> None:
        self._sharing = sharing
        self.write_0_3 = write_0_3
        self.disable_store_submission = disable_store_submission
        self.routing = Routing(self.new_scope, self.close_scope, accept_context=accept_context)
        self._converter = Converter(chain, endpoint_of=endpoint_of, write_0_3=write_0_3)
        self.writer = Writer(self._converter, settings)
        self.ledger = self.writer.ledger
        self.call_matching = CallMatching(self.ledger, self._settle)
        self._kept_aside = KeptAside()
        self._policy = policy or LogOnce()
        self._armed = True
        self._said: set[str] = set()
        """Kinds of spans without an attempt of which the log has said it."""
        self._given: set[Scope] = set()
        """Scopes that the user opened on this processor itself; whatever ends in one of them belongs to it."""
        self._last_given: Scope | None = None
        self._entered: list[ExitStack] = []

    @property
    def unattributed(self) -> deque[ReadableSpan]:
        """The newest spans that belong to no attempt."""
        return self._kept_aside.spans

    @property
    def unattributed_count(self) -> int:
        """How many spans that belong to no attempt have ended."""
        return self._kept_aside.count

    # ------------------------------------------------------------------ OpenTelemetry

    def on_start(self, span: SdkSpan, parent_context: otel_context.Context | None = None) -> None:
        """Decide where the span belongs."""
        if not self._armed:
            return
        try:
            context = span.get_span_context()
            if context is None or not context.trace_flags & _SAMPLED:
                return
            started_in = otel_context.get_current() if parent_context is None else parent_context
            here = scope_in(started_in)
            if here is not None and here.owner is not self:  # the recorder that opened this scope has it
                return
            attributes = attributes_of(span)
            scope, late_of = self.routing.route(span, attributes, started_in, here)
            live: SdkSpan | None = span
            if scope is None:
                self.ledger.start_unplaced(1, context if late_of is None else None)
                kind = "unplaced" if late_of is None else "late"
                if kind not in self._said:
                    self._said.add(kind)
                    _say_where_it_is(span, late_of)
                if self._sharing is not None:
                    self._sharing.start(span, None, started_in)
                if late_of is None:
                    return
                scope = self.ledger.late_of(late_of)
                live = None  # not announced as open: nobody waits for its end
            # The decision is kept by the identity of the span's context: on_end gets another object for the same span.
            record = Record(scope, context, labels_in(started_in))
            if live is not None:
                note_span(scope, started_in, context)
                if self._sharing is not None:
                    self._sharing.start(span, scope, started_in)
            self.ledger.start(record, live)
            if scope.store is not None and self.writer.thread.is_idle:
                self.writer.thread.wake()
            self.call_matching.note_start(span, record, attributes)
        except Exception as error:  # noqa: BLE001 - telemetry never breaks the agent
            self._policy("deciding where a span belongs", error)

    def on_end(self, span: ReadableSpan) -> None:
        """Queue the span."""
        try:
            context = span.get_span_context()
            record = self.ledger.records.get(id(context))
            if record is None:
                # It started before we listened, under another recorder, or where no attempt could be told.
                if self.ledger.end_unplaced(context):
                    self._kept_aside.add(span)
                    return
                record = self._unstarted(context)
            if record is not None:
                self._settle(span, record)
        except Exception as error:  # noqa: BLE001 - telemetry never breaks the agent
            self._policy("queueing a span", error)

    def _unstarted(self, context: trace.SpanContext | None) -> Record | None:
        """Return a record of a span whose start nobody told us of, where the user has named its attempt (0.3)."""
        scope = current_scope()
        if scope is None or scope not in self._given:
            return None
        if context is None or not context.trace_flags.sampled:
            return None
        record = Record(scope, context)
        self.ledger.start(record)
        return record

    def _settle(self, span: ReadableSpan, record: Record) -> None:
        kept, size = kept_of(span, record.calls)
        self.writer.end(FinishedSpan(kept, record, size))
        if record.scope.is_late and record.ended:
            self._kept_aside.add(span)

    def disarm(self) -> None:
        """Take no more spans that start: what was obtained from a provider that is gone may still tell us of them."""
        self._armed = False

    def shutdown(self) -> None:
        """Write what is queued, for at most 5 s, and stop; what cannot be written waits in the spool."""
        self.disarm()
        self.call_matching.release()
        self.writer.shutdown(5.0)

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Wait until everything that has ended is stored.

        Returns:
            True if it is; False when time ran out or something was refused or spooled.
        """
        try:
            return self.writer.flush().result(timeout_millis / 1000)
        except TimeoutError:
            return False

    # ------------------------------------------------------------------ scopes

    @property
    def store(self) -> LightningStore | None:
        """Store of the current context."""
        scope = current_scope()
        return scope.store if scope else None

    @property
    def rollout_id(self) -> str | None:
        """Rollout of the current context."""
        scope = current_scope()
        return scope.rollout_id if scope else None

    @property
    def attempt_id(self) -> str | None:
        """Attempt of the current context."""
        scope = current_scope()
        return scope.attempt_id if scope else None

    def new_scope(self, store: LightningStore | None, rollout_id: str, attempt_id: str) -> Scope:
        """Return a scope for one ``trace_context``."""
        kept = None if self.disable_store_submission else store
        return Scope(kept, rollout_id, attempt_id, owner=self, counts=self.ledger.new_counts())

    def open_scope(self, scope: Scope, context: otel_context.Context, frame: FrameType | None) -> None:
        """Note where the body of a ``trace_context`` begins.

        Args:
            scope: Its scope.
            context: The context that it is opened in.
            frame: The frame that enters it.
        """
        scope.body.before = context
        scope.body.opened_by = current_worker()
        scope.body.is_mixed = scope_in(context) is not None
        enter(scope)
        self.routing.opened(scope, frame)

    def owns(self, context: otel_context.Context) -> bool:
        """Whether spans of a context are this recorder's: no other one of this process opened its scope."""
        scope = scope_in(context)
        return scope is None or scope.owner is self

    @contextmanager
    def with_context(
        self, store: LightningStore | None, rollout_id: str, attempt_id: str
    ) -> Iterator[LightningSpanProcessor]:
        """Route spans that start in this context to an attempt; nothing is flushed at the end (0.3).

        A span that ends in it and whose start this processor was not told of belongs to the attempt, too.
        """
        scope = self.new_scope(store, rollout_id, attempt_id)
        before = live_context(otel_context.get_current())
        self.open_scope(scope, before, None)
        otel_context.attach(context_with_scope(scope, before))
        self._given.add(scope)
        self._last_given = scope
        try:
            yield self
        finally:
            self._given.discard(scope)
            self.leave_scope(scope)
            self.close_scope(scope)

    def __enter__(self) -> Self:
        """Keep the spans of this context in memory, for ``spans()``, without any store (0.3)."""
        entered = ExitStack()
        entered.enter_context(self.with_context(None, "rollout-dummy", "attempt-dummy"))
        self._entered.append(entered)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._entered.pop().close()

    def leave_scope(self, scope: Scope) -> None:
        """Put back what was current before ``scope``, where that is what is current.

        attach instead of detach: a token belongs to the contextvars context that made it, and a body may be left in
        another one (an async fixture, a cancelled generator). What lies inside of the scope, as a session that the
        agent has left open, goes with it. What is put back is never the context of a scope that is closed.
        """
        leave(scope)
        current = scope_in(otel_context.get_current())
        if current is scope:
            otel_context.attach(live_context(scope.body.before))
        elif current is not None and not current.closed:
            _mark_alternating(scope, current)

    def close_scope(self, scope: Scope, *, doubted: int = 0) -> None:
        """Note that the body of a ``trace_context`` is over.

        Args:
            scope: Its scope.
            doubted: How many of its spans may be of other rollouts that are open.
        """
        self.routing.closed(scope)
        self.call_matching.close(scope)
        self.writer.close(scope)
        forget_spans(scope)
        self.ledger.start_unplaced(doubted)

    def spans(self) -> list[Span]:
        """Return the finished spans of the current context's attempt, as this process saw them.

        Outside of every attempt: those of the last ``with_context`` or ``with`` of this processor.
        """
        scope = current_scope() or self._last_given
        return [] if scope is None else self.spans_of(scope.trace.spans or [])

    def spans_of(self, entries: list[FinishedSpan]) -> list[Span]:
        """Return entries as spans, in the order in which they ended."""
        found = ((entry, entry.span or self._seen_now(entry)) for entry in list(entries))
        return [_built(entry, span) for entry, span in found if span is not None]

    def _seen_now(self, entry: FinishedSpan) -> AnySpan | None:
        """Return an entry that the writer has not come to; its row, if it comes to it meanwhile, takes precedence."""
        if _is_dropped(entry):
            return None
        try:
            made = self._converter.span(entry)
        except Exception as error:  # noqa: BLE001 - the writer drops and counts it
            if entry.span is None:
                self._policy("reading a finished span", error)
            return entry.span
        if _is_dropped(entry):  # meanwhile
            return None
        entry.span = entry.span or made
        return entry.span

    def attach_call(self, span: trace.Span, call: RawCall) -> None:
        """Give a span of ours, which has not ended, a model call that was seen on the wire."""
        record = self.ledger.records.get(id(span.get_span_context()))
        if record is not None:  # a new list: the writer may be reading the old one
            record.calls = [*(record.calls or ()), call]
            if self._sharing is not None:
                self._sharing.ended(span, call)


def _say_where_it_is(span: SdkSpan, late_of: Scope | None) -> None:
    """Say that a span belongs to no attempt; the receipts have the numbers."""
    if late_of is not None:
        _log.warning(
            "span %r started after the trace_context of rollout %r had closed, in a context that was carried on; "
            "such spans are unattributed: counted as late on that rollout's receipt, stored beside its attempt, "
            "and in no row unless RowPolicy(late=True) asks for them",
            span.name,
            late_of.rollout_id,
        )
    else:
        _log.warning(
            "span %r started where no trace_context can be told; such spans are kept aside as unattributed, and "
            "counted on the receipts of the rollouts that were open",
            span.name,
        )


def _mark_alternating(closing: Scope, current: Scope) -> None:
    """Mark rollouts that are not left in the order in which they were entered, in one context.

    Which of them was at work is not known, unless both are generators': those are told apart by who runs.
    """
    chain = list(enclosing(current))
    if closing not in chain or closing.body.generator is not None or current.body.generator is not None:
        return
    for scope in chain[: chain.index(closing) + 1]:
        scope.alternates = True


def _built(entry: FinishedSpan, span: AnySpan) -> Span:
    """Return a span of an entry as a ``Span``, the same one each time."""
    if isinstance(span, RecordedSpan):
        made = span.build()
        if entry.span is None or entry.span is span:  # or the writer has the stored one meanwhile
            entry.span = made
        return made
    return span


def _is_dropped(entry: FinishedSpan) -> bool:
    """Whether the writer has dropped it by now."""
    return entry.record.dropped
