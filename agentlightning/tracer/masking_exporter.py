"""What leaves for another party is masked: an exporter before the exporter.

The store keeps what the agent said. A copy that goes out of our hands passes a ``Redactor``, on the exporter's thread:
a span that has nothing to hide as the object that it is; one that cannot be masked does not leave.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from .. import types
from ..codec.attributes import sanitize_attributes
from ..pipeline.policy import new_redactor
from ..types.attributes import to_attributes
from .sdk_links import sdk_links

if TYPE_CHECKING:
    from ..pipeline.redact import Redactor
    from ..types import Span

_log = logging.getLogger(__name__)


class MaskingExporter(SpanExporter):
    """Exports masked copies of spans by another exporter, which it owns."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter

    @cached_property
    def _redactor(self) -> Redactor:
        return new_redactor()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Mask and export."""
        masked = [each for span in spans if (each := self._masked(span)) is not None]
        return self._exporter.export(masked)

    def shutdown(self) -> None:
        """Shut the other exporter down."""
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Flush the other exporter."""
        return self._exporter.force_flush(timeout_millis)

    def _masked(self, span: ReadableSpan) -> ReadableSpan | None:
        try:
            plain = _as_others_see(span)
            masked = self._redactor.span(plain)
            return span if masked is plain else _Masked(span, masked)
        except Exception as error:  # noqa: BLE001 - what cannot be judged does not leave
            _log.warning("a span was not exported, because it could not be masked: %s", type(error).__name__)
            return None


def _as_others_see(span: ReadableSpan) -> Span:
    """Return a span by its public properties: one of ours shows more there than is recorded in it."""
    plain = types.Span.from_opentelemetry(span, "", "")
    plain.name = span.name
    plain.attributes = to_attributes(span.attributes)
    plain.events = [types.Event.from_opentelemetry(each) for each in span.events]
    plain.links = [types.Link.from_opentelemetry(each) for each in span.links]
    plain.status.description = span.status.description
    return plain


class _Masked(ReadableSpan):
    """A span with the fields of its masked form."""

    def __init__(self, span: ReadableSpan, masked: Span) -> None:
        resource = masked.resource
        super().__init__(
            name=masked.name,
            context=span.get_span_context(),
            parent=span.parent,
            resource=Resource(_attributes(resource.attributes), resource.schema_url),
            attributes=_attributes(masked.attributes),
            events=_events(span, masked),
            links=sdk_links(masked.links, span.links),
            kind=span.kind,
            status=trace.Status(span.status.status_code, masked.status.description),
            start_time=span.start_time,
            end_time=span.end_time,
            instrumentation_scope=span.instrumentation_scope,
        )


def _events(span: ReadableSpan, masked: Span) -> list[Event]:
    return [
        Event(clean.name, _attributes(clean.attributes), event.timestamp)
        for event, clean in zip(span.events, masked.events, strict=True)
    ]


def _attributes(attributes: dict[str, Any]) -> dict[str, Any]:
    return dict(sanitize_attributes(attributes))
