"""Model calls as OpenTelemetry spans: the recorder's end of the wire capture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Dict, Optional
from urllib.parse import urlsplit

from opentelemetry import context as otel_context
from opentelemetry import trace

from ..codec.genai import span_name
from ..semconv import ModelCallAttributes

if TYPE_CHECKING:
    from ..codec.raw_call import CallStart, RawCall
    from .processor import LightningSpanProcessor


class ModelCallRecorder:
    """A ``CallSink`` that makes one span per call.

    The span gets at once what the request says; everything in the answer is decoded on the writer's thread and
    reaches the store whole, whatever limits the provider puts on attributes.
    """

    def __init__(self, processor: LightningSpanProcessor, tracer: trace.Tracer) -> None:
        self._processor = processor
        self._tracer = tracer

    def started(self, call: CallStart) -> Optional[trace.Span]:
        """Start the span, named as OpenTelemetry's GenAI conventions say: operation and model."""
        if not self._processor.owns(otel_context.get_current()):
            return None
        address = urlsplit(call.url)
        attributes: Dict[str, str | int | bool] = {
            "gen_ai.operation.name": call.operation,
            "server.address": address.hostname or "",
            ModelCallAttributes.STREAM.value: call.stream,
        }
        if address.port:
            attributes["server.port"] = address.port
        if call.model:
            attributes["gen_ai.request.model"] = call.model
        return self._tracer.start_span(span_name(call), kind=trace.SpanKind.CLIENT, attributes=attributes)

    def ended(self, token: Optional[trace.Span], call: RawCall) -> None:
        """Attach the raw call and end the span."""
        if token is None:
            return
        self._processor.attach_call(token, call)
        if call.status is not None:
            token.set_attribute(ModelCallAttributes.HTTP_STATUS.value, call.status)
        if call.error is not None or (call.status is not None and call.status >= 400):
            token.set_status(trace.Status(trace.StatusCode.ERROR, call.error or f"HTTP {call.status}"))
            token.set_attribute(
                "error.type", call.error.partition(":")[0] if call.error else str(call.status)
            )
        token.end(call.ended_ns or None)
