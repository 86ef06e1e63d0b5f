"""Model calls as OpenTelemetry spans: the recorder's end of the wire capture."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

from opentelemetry import context as otel_context
from opentelemetry import trace

from ..dialects.spans import genai, names_of_0_3
from ..instrumentation.connections import server_of
from ..instrumentation.suppression import without_foreign_suppression
from ..recorder.scope import current_scope
from ..semconv import AGL_UNCAPTURED, ModelCallAttributes, SpanFlagAttributes

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry.context import Context

    from ..dialects.raw_call import CallStart, RawCall
    from ..recorder.scope import Scope
    from .processor import LightningSpanProcessor


class ModelCallRecorder:
    """A ``CallSink`` that makes one span per call, or hands the call to a span that another instrumentation made.

    A span of ours gets at once what the request says; everything in the answer is decoded on the writer's thread
    and reaches the store whole, whatever limits the provider puts on attributes.

    Args:
        processor: Records the spans.
        tracer: Returns what makes them now: a program may install another provider at any time.
    """

    def __init__(self, processor: LightningSpanProcessor, tracer: Callable[[], trace.Tracer]) -> None:
        self._processor = processor
        self._tracer = tracer
        self._servers: WeakKeyDictionary[Scope, dict[str, bool]] = WeakKeyDictionary()
        """Attempt → server that it connected to or called → whether a call was seen."""

    def connected(self, server: str) -> None:
        """A socket connects to a model server."""
        scope = self._scope()
        if scope is not None:
            self._servers.setdefault(scope, {}).setdefault(server, False)

    def name_uncaptured(
        self, scope: Scope, make_context: Callable[[], Context | None] = lambda: None
    ) -> None:
        """Record the model servers that an attempt connected to without a call that was seen; it ends now.

        Args:
            scope: The attempt.
            make_context: Makes the context that these spans start in; ``None``: the current one. Called where there is
                any, which is seldom.
        """
        # A copy: a thread that lives on may connect meanwhile, and has the same dictionary.
        for server, seen in list(self._servers.pop(scope, {}).items()):
            if not seen:
                attributes = {SpanFlagAttributes.UNCAPTURED_SERVER.value: server}
                self._tracer().start_span(AGL_UNCAPTURED, context=make_context(), attributes=attributes).end()

    def _scope(self) -> Scope | None:
        scope = current_scope()
        return scope if scope is not None else self._processor.routing.fallback

    def started(self, call: CallStart) -> _CallSpan | None:
        """Find or start the span; ours is named as OpenTelemetry's GenAI conventions say: operation and model."""
        if not self._processor.owns(otel_context.get_current()):
            return None
        scope, server = self._scope(), server_of(call.url)
        if scope is not None and server is not None:
            self._servers.setdefault(scope, {})[server] = True
        claiming = self._processor.call_matching.claim(call.model)
        if claiming is not None:
            return _CallSpan(claiming, ours=False)
        host, port = _address_of(call.url)
        attributes: dict[str, str | int | bool] = {
            "gen_ai.operation.name": call.operation,
            "server.address": host,
            ModelCallAttributes.STREAM.value: call.stream,
        }
        if port:
            attributes["server.port"] = port
        if call.model:
            attributes["gen_ai.request.model"] = call.model
        name = (names_of_0_3 if self._processor.write_0_3 else genai).span_name(call)
        with without_foreign_suppression():  # another library's suppression is about its spans
            span = self._tracer().start_span(name, kind=trace.SpanKind.CLIENT, attributes=attributes)
        self._processor.call_matching.keep_out(span)
        return _CallSpan(span, ours=True)

    def ended(self, token: _CallSpan | None, call: RawCall) -> None:
        """Attach the raw call, and end the span if it is ours."""
        if token is None:
            return
        span = token.span
        if not token.ours:
            self._processor.call_matching.complete(span, call)
            return
        self._processor.attach_call(span, call)
        if call.status is not None:
            span.set_attribute(ModelCallAttributes.HTTP_STATUS.value, call.status)
        if call.error is not None or (call.status is not None and call.status >= 400):
            span.set_status(trace.Status(trace.StatusCode.ERROR, call.error or f"HTTP {call.status}"))
            span.set_attribute("error.type", call.error.partition(":")[0] if call.error else str(call.status))
        span.end(call.ended_ns or None)

    def reserve(self, size: int) -> bool:
        """Take memory for a piece of an answer, out of what the writer has."""
        return self._processor.writer.reserve(size)

    def release(self, size: int) -> None:
        """Give it back; the span that gets the answer counts it."""
        self._processor.writer.queue.release(size)


@lru_cache(maxsize=256)
def _address_of(url: str) -> tuple[str, int | None]:
    address = urlsplit(url)
    return address.hostname or "", address.port


class _CallSpan(NamedTuple):
    """The span of a call that is under way."""

    span: trace.Span
    ours: bool
