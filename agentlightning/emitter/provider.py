"""The tracer that emitters use where no tracer of this package is active: the global OpenTelemetry provider.

In a program with an OpenTelemetry set-up of its own, rewards and operations thus become spans of its traces. Where no
provider is set, spans are made and dropped, and one warning per process says so.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from opentelemetry import trace as trace_api
from opentelemetry.sdk.trace import TracerProvider

from ..codec.attributes import sanitize_attributes
from ..instrumentation.guard import Guard
from ..tracer.base import Tracer, get_active_tracer
from ..tracer.dummy import DummySpanRecordingContext, DummyTracer
from ..types import Attributes, SpanCoreFields, SpanRecordingContext, StatusCode, TraceStatus

logger = logging.getLogger(__name__)

_SCOPE = "agentlightning"


guard = Guard()
"""Keeps exceptions of a tracer out of the code that calls an emitter."""


class MirroredRecording(DummySpanRecordingContext):
    """Records into an OpenTelemetry span and remembers what it recorded."""

    def __init__(
        self,
        span: trace_api.Span,
        name: str,
        attributes: Attributes | None = None,
        start_time: float | None = None,
    ) -> None:
        super().__init__(name, attributes, start_time)
        self._mirror = span

    def record_attributes(self, attributes: Attributes) -> None:
        """Set attributes here and on the span."""
        super().record_attributes(attributes)
        self._mirror.set_attributes(_otel(attributes))

    def record_exception(self, exception: BaseException) -> None:
        """Record the exception, and the status ERROR, here and on the span."""
        super().record_exception(exception)
        self._mirror.record_exception(exception)
        self._mirror.set_status(trace_api.Status(trace_api.StatusCode.ERROR, str(exception)))

    def record_status(self, status_code: StatusCode, description: str | None = None) -> None:
        """Set the status here and on the span."""
        super().record_status(status_code, description)
        self._mirror.set_status(_otel_status(status_code, description))


class ProviderTracer(Tracer):
    """Creates spans with the global provider; see the module's docstring."""

    def create_span(
        self,
        name: str,
        attributes: Attributes | None = None,
        timestamp: float | None = None,
        status: TraceStatus | None = None,
    ) -> SpanCoreFields:
        """Record a span of one moment; see :meth:`Tracer.create_span`."""
        # What the caller gets back; the provider's span is of another kind, and may keep nothing.
        fields = DummyTracer().create_span(name, attributes, timestamp, status)
        moment = _nanoseconds(fields.start_time)
        span = trace_api.get_tracer(_SCOPE).start_span(name, attributes=_otel(attributes), start_time=moment)
        _warn_if_not_recorded(span)
        span.set_status(_otel_status(fields.status.status_code, fields.status.description))
        span.end(moment)
        return fields

    @contextmanager
    def operation_context(
        self,
        name: str,
        attributes: Attributes | None = None,
        start_time: float | None = None,
        end_time: float | None = None,
    ) -> Iterator[SpanRecordingContext]:
        """Record the body as one span; see :meth:`Tracer.operation_context`."""
        span = trace_api.get_tracer(_SCOPE).start_span(
            name, attributes=_otel(attributes), start_time=_nanoseconds(start_time)
        )
        _warn_if_not_recorded(span)
        recording = MirroredRecording(span, name, attributes, start_time)
        try:
            # Both are done below, here and on the span, and would be done twice.
            with trace_api.use_span(span, record_exception=False, set_status_on_exception=False):
                yield recording
        except BaseException as exception:
            recording.record_exception(exception)
            raise
        finally:
            recording.finalize(end_time)
            span.end(_nanoseconds(end_time))


def tracer_in_use(propagate: bool) -> Tracer:
    """Return the active tracer, else the global provider's; without ``propagate`` one that keeps nothing."""
    if not propagate:
        return DummyTracer()
    return get_active_tracer() or ProviderTracer()


def get_tracer_provider(inspect: bool = True) -> trace_api.TracerProvider:
    """Return the global OpenTelemetry tracer provider (0.3).

    Args:
        inspect: Whether to log, at level DEBUG, which provider it is.

    Raises:
        RuntimeError: Nobody has set one.
    """
    provider = trace_api.get_tracer_provider()
    if isinstance(provider, trace_api.ProxyTracerProvider):
        raise RuntimeError("no OpenTelemetry tracer provider is set; enter a trace_context first")  # noqa: TRY004
    if inspect:
        logger.debug("the global tracer provider is %s", type(provider).__qualname__)
    return provider


def get_tracer(use_active_span_processor: bool = True) -> trace_api.Tracer:
    """Return an OpenTelemetry tracer of the global provider (0.3).

    Args:
        use_active_span_processor: Whether its spans reach the provider's processors.

    Raises:
        RuntimeError: Nobody has set a provider.
    """
    provider = get_tracer_provider()
    # A provider of its own has no processors, so its spans reach nobody; it must not wait for the end of the
    # process either.
    return (provider if use_active_span_processor else TracerProvider(shutdown_on_exit=False)).get_tracer(
        _SCOPE
    )


def _warn_if_not_recorded(span: trace_api.Span) -> None:
    if not span.is_recording():
        _warn_once(
            "no tracer is active here and OpenTelemetry records nothing: what emit_* and operation() record "
            "is lost. Call them inside tracer.rollout(…)."
        )


@cache
def _warn_once(message: str) -> None:
    logger.warning(message)


def _otel(attributes: Attributes | None) -> dict[str, Any]:
    return sanitize_attributes(attributes or {})


def _otel_status(code: StatusCode, description: str | None) -> trace_api.Status:
    # OpenTelemetry warns about a description that is not an error's
    return trace_api.Status(trace_api.StatusCode[code], description if code == "ERROR" else None)


def _nanoseconds(seconds: float | None) -> int | None:
    return None if seconds is None else int(seconds * 1_000_000_000)
