"""Makes what is stored of what was recorded: a span's model calls are decoded, and it passes the pipeline.

All of it is done on the writer's thread, unless ``spans()`` asks for a span before the writer has come to it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from .. import types
from .._turn import UNBROKEN, Turn
from ..codec.recorded_span import AnySpan, RecordedSpan
from ..dialects.model_call import invalid
from ..dialects.openai.reading import decode
from ..dialects.spans import genai, names_of_0_3
from ..pipeline.chain import NO_STAGES, Chain
from ..semconv import DropReason, SpanFlagAttributes
from .ledger import key_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from opentelemetry.sdk.trace import Span as SdkSpan

    from ..dialects.raw_call import Endpoint, RawCall
    from ..types import Span
    from .ledger import Key, PendingBatch
    from .scope import FinishedSpan, Record, Scope

_log = logging.getLogger(__name__)

EndpointOf = Callable[["Scope", "RawCall"], "Endpoint | None"]
"""Says what is known of the endpoint of a call."""


class Converter:
    """Turns recorded spans into stored ones.

    Args:
        chain: Pipeline that every span passes.
        endpoint_of: ``None``: what was known of an endpoint when the call began is what is known of it.
        write_0_3: Whether model calls have the names and attributes of Agent Lightning 0.3, too.
    """

    def __init__(
        self, chain: Chain = NO_STAGES, *, endpoint_of: EndpointOf | None = None, write_0_3: bool = False
    ) -> None:
        self._chain = chain
        self._endpoint_of = endpoint_of
        self._write_0_3 = write_0_3

    def span(self, finished: FinishedSpan) -> AnySpan | None:
        """Return the span to store; ``None`` where a stage of the pipeline took it out.

        A ``Span`` is built for the stages of a pipeline alone: most stores need none.

        Raises:
            Exception: It cannot be made: its attributes, a stage, or its bodies on disk.
        """
        readable, record = finished.readable, finished.record
        if readable is None:
            raise ValueError("this span has been settled")
        scope = record.scope
        span = RecordedSpan(readable, scope.rollout_id, scope.attempt_id)
        for raw in finished.calls():
            self._add_call(span, self._with_endpoint(scope, raw))
        if scope.replaced and span.parent_id is not None:
            span.parent_id = _stored_parent(span.parent_id, scope)
        if record.labels is not None:
            span.add(record.labels)
        if readable.dropped_attributes:
            span.add({SpanFlagAttributes.DROPPED_ATTRIBUTES.value: readable.dropped_attributes})
        late = {SpanFlagAttributes.LATE_OF.value: scope.attempt_id} if scope.is_late else None
        if not self._chain:
            if late is not None:
                span.add(late)
            return span
        made = self._chain(span.build())
        if made is not None and late is not None:  # after the stages: none of them can take it away
            made.attributes.update(late)
        return made

    def start(self, span: SdkSpan, record: Record) -> Span:
        """Return the record of the start of a span that goes on."""
        scope = record.scope
        try:
            opened = types.Span.from_opentelemetry(span, scope.rollout_id, scope.attempt_id)
            opened.end_time = None
        except Exception as error:  # noqa: BLE001 - the span is another thread's and may change while it is read
            _log.debug("the start of a span could not be read: %r", error)
            opened = _bare_start(record)
        if scope.replaced and opened.parent is not None and opened.parent_id is not None:
            opened.parent_id = opened.parent.span_id = _stored_parent(opened.parent_id, scope)
        return (self._chain(opened) or _bare_start(record)) if self._chain else opened

    def convert(
        self,
        batch: PendingBatch,
        drop: Callable[[FinishedSpan, DropReason], object],
        turn: Turn = UNBROKEN,
    ) -> None:
        """Make the spans of a batch; they are ``batch.made`` then.

        Args:
            batch: The batch.
            drop: Called with each of which none is made, and why.
            turn: Gives way to other threads in between.
        """
        made: dict[Key, FinishedSpan] = {}
        for entry in turn.over(batch.entries):
            if entry.record.dropped:
                continue
            try:
                span = entry.span or self.span(entry)
                reason = DropReason.PIPELINE
            except Exception as error:  # noqa: BLE001 - one span must not cost its neighbours
                _log.warning("a span could not be made into a row: %r", error)
                span, reason = None, DropReason.NOT_ENCODABLE
            if span is None or key_of(span) in made:
                drop(entry, reason if span is None else DropReason.DUPLICATE)
                continue
            entry.span = span
            made[key_of(span)] = entry
        batch.made = made  # at once: a shutdown may make them anew while the writer's thread has the others

    def starts(self, batch: PendingBatch, turn: Turn = UNBROKEN) -> list[Span]:
        """Return the records of the starts in a batch, but for those that were taken back."""
        return [self.start(span, record) for span, record in turn.over(batch.opened) if record.announced]

    def _with_endpoint(self, scope: Scope, raw: RawCall) -> RawCall:
        if self._endpoint_of is None or raw.status is None:
            return raw
        endpoint = self._endpoint_of(scope, raw)
        return raw if endpoint is raw.endpoint else replace(raw, endpoint=endpoint)

    def _add_call(self, span: RecordedSpan, raw: RawCall) -> None:
        call = decode(raw)
        if _names_other_call(span.attributes, call.response_id):
            call = replace(call, token_capture=invalid("other_call"))
        span.add(genai.call_attributes(call))
        if self._write_0_3:  # a span of AgentOps has most of them
            span.attributes = {**names_of_0_3.call_attributes(call), **span.attributes}
        # An error that was said in a body whose status is a success.
        if call.error is not None and span.status_code == "UNSET":
            span.status_code, span.status_description = "ERROR", call.error


def _names_other_call(attributes: Mapping[str, Any], response_id: str | None) -> bool:
    """Whether a span that claimed a call names another response than the call's."""
    named = attributes.get("gen_ai.response.id")
    return bool(named) and response_id is not None and named != response_id


def _stored_parent(span_id: str, scope: Scope) -> str:
    """Return the id of the span that stands for a model call, in place of that of a duplicate, which is not stored."""
    return f"{scope.stands_for(int(span_id, 16)):016x}"


def _bare_start(record: Record) -> Span:
    """Return the record of a start of which nothing but the ids may or can be said."""
    scope = record.scope
    opened = types.Span.from_attributes(
        attributes={},
        rollout_id=scope.rollout_id,
        attempt_id=scope.attempt_id,
        span_id=record.span_id,
        trace_id=f"{record.context.trace_id:032x}",
    )
    opened.end_time = None
    return opened
