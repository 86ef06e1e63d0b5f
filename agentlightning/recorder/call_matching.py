"""One model call is one span, also where another instrumentation makes a span of it.

AgentOps, OpenLLMetry, OpenInference and OpenTelemetry's own instrumentations start a span around a call of a
client library. The wire capture sees the same call a moment later, in the same context. Then what it saw is handed
to that span, which *claims* the call, and no second span is made:

* The newest span of this context that is open, looks like a model call, has claimed none, and lies in the
  current trace is the one. Whether it is *current* does not matter: several instrumentations never make theirs so.
* A span that starts without a word and says only then what it is (AgentOps 0.4.15, Google's ADK, Langfuse's SDK) is
  looked at when a call leaves.
* A span that ends before its call (a stream that is read later) waits for it, as an open span.
* A span that nobody ends although its call is over (a stream that was left half way) ends with its
  ``trace_context``, or at once where that has ended.
* Where two are nested around one call (two instrumentations of one library, or of ``parse`` and of the ``create`` in
  it), the inner is dropped as a duplicate. Spans that are never current lie side by side then; they are taken for one
  call only if they ask the same.

Ids decide in the end: where span and answer name different responses, the tokens are not trusted
(``invalid(other_call)``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from opentelemetry import trace

from ..dialects.spans.foreign import is_model_call, request_model, says_later
from ..types.attributes import attributes_of, name_of

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace import Span as SdkSpan

    from ..dialects.raw_call import RawCall
    from .ledger import Ledger
    from .scope import Record, Scope

_MESSAGES = ("gen_ai.prompt.", "llm.input_messages.", "gen_ai.input.messages")

Settle = Callable[["ReadableSpan", "Record"], None]
"""Queues a finished span."""


class _Offer:
    """An open span that may claim a call, and the one that was there before it."""

    __slots__ = ("before", "is_sure", "record", "span")

    def __init__(self, span: SdkSpan, record: Record, before: _Offer | None, *, is_sure: bool) -> None:
        self.span = span
        self.record = record
        self.before = before
        self.is_sure = is_sure
        """It said at its start that it is a model call."""

    @property
    def is_free(self) -> bool:
        record = self.record
        if record.ended or record.duplicate or record.claim is not None or not self.span.is_recording():
            return False
        return self.is_sure or is_model_call(attributes_of(self.span))


_offer: ContextVar[_Offer | None] = ContextVar("agentlightning_model_span", default=None)


class CallMatching:
    """The model spans of other instrumentations that one recorder has seen, and their calls.

    Args:
        ledger: Asked for the call of a span, in one step each time.
        settle: Queues a finished span.
    """

    def __init__(self, ledger: Ledger, settle: Settle) -> None:
        self._ledger = ledger
        self._settle = settle

    # ------------------------------------------------------------------ spans

    def note_start(self, span: SdkSpan, record: Record, attributes: Mapping[str, Any]) -> None:
        """Look at a span that starts under an attempt, with these attributes; cheap for all that are no model calls."""
        is_sure = bool(attributes)
        if is_sure and not is_model_call(attributes):
            scope = span.instrumentation_scope
            if scope is None or not says_later(scope.name):
                return
            is_sure = False
        before = _free(_offer.get())
        if is_sure and before is not None and _is_inside(span, before.span):
            self._ledger.replace(record, before.record)
            return
        _offer.set(_Offer(span, record, before, is_sure=is_sure))

    # ------------------------------------------------------------------ calls

    def claim(self, model: str | None) -> trace.Span | None:
        """Return the span that the call which leaves now belongs to, or ``None``."""
        offer = _free(_offer.get())
        if offer is None:
            return None
        current = trace.get_current_span().get_span_context()
        if current.is_valid and current.trace_id != offer.record.context.trace_id:
            return None
        asked = request_model(attributes_of(offer.span))
        if asked is not None and model is not None and not _same_model(asked, model):
            return None
        # The spans are asked before, and not by the ledger: their own locks are never waited for under its lock.
        offer, duplicates = _outermost(offer)
        return offer.span if self._ledger.claim(offer.record, offer.span, duplicates) else None

    def keep_out(self, span: trace.Span) -> None:
        """Note that a span is ours and has its call already."""
        record = self._ledger.records.get(id(span.get_span_context()))
        if record is not None:
            self._ledger.claim_done(record, span)

    def complete(self, span: trace.Span, call: RawCall) -> None:
        """Give a span the call that it has claimed."""
        record = self._ledger.records.get(id(span.get_span_context()))
        if record is None:
            return
        ended, is_left = self._ledger.complete(record, call)
        if ended is not None:
            self._settle(ended, record)
        elif is_left:
            span.end()

    def close(self, scope: Scope) -> None:
        """End spans whose calls are over and which nobody has ended: their streams were left half way."""
        for record in self._ledger.left_open(scope):
            if record.claim is not None:
                record.claim.span.end()

    def release(self) -> None:
        """Queue spans that wait for their calls: the process ends, and what is known of them is kept."""
        for record in list(self._ledger.records.values()):
            if record.claim is not None and record.claim.finished is not None:
                ended = self._ledger.release(record)
                if ended is not None:
                    self._settle(ended, record)


def _same_model(asked: str, called: str) -> bool:
    """Whether a span speaks of the model that is called; LiteLLM's users put the provider's name before it."""
    return asked == called or asked.endswith(f"/{called}")


def _free(offer: _Offer | None) -> _Offer | None:
    while offer is not None and (offer.record.ended or not offer.is_free):
        offer = offer.before
    return offer


def _outermost(offer: _Offer) -> tuple[_Offer, list[tuple[Record, Record]]]:
    """Return the first of the spans around one call; the others are its duplicates, each with the one around it."""
    duplicates: list[tuple[Record, Record]] = []
    before = _free(offer.before)
    while before is not None and (
        _is_inside(offer.span, before.span) or _asks_beside(offer.span, before.span)
    ):
        duplicates.append((offer.record, before.record))
        offer, before = before, _free(before.before)
    return offer, duplicates


def _is_inside(span: SdkSpan, outer: SdkSpan) -> bool:
    parent, context = span.parent, outer.get_span_context()
    return (
        parent is not None
        and context is not None
        and parent.span_id == context.span_id
        and _looks_like(span, outer)
    )


def _asks_beside(span: SdkSpan, other: SdkSpan) -> bool:
    parents = [each.parent.span_id if each.parent is not None else 0 for each in (span, other)]
    asked = _asked(span)
    return parents[0] == parents[1] and _looks_like(span, other) and bool(asked) and asked == _asked(other)


def _looks_like(span: SdkSpan, other: SdkSpan) -> bool:
    return name_of(span) == name_of(other) and span.instrumentation_scope == other.instrumentation_scope


def _asked(span: SdkSpan) -> dict[str, Any]:
    """Return what a span says of the messages of its request."""
    return {name: value for name, value in attributes_of(span).items() if name.startswith(_MESSAGES)}
