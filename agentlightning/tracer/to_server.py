"""A copy of every span for the local AgentOps server, which nobody waits for.

The store is where spans are kept; this copy is to be looked at. OpenTelemetry's own batch processor and exporter send
it, bounded, on their thread. A flush of the provider does not wait for it, and a server that is gone costs nothing.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Optional
from urllib.parse import urlsplit

from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.sdk.trace.export import BatchSpanProcessor

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace import Span as SdkSpan

AUTHORIZATION = "Bearer dummy"
EXPORT_SECONDS = 2
CONNECT_SECONDS = 0.2


class ToServer(SpanProcessor):
    """Sends spans to a server, by the rule of ``remote``.

    Args:
        url: Base URL of the server.
        allow_insecure: Whether plain http may go to another machine.

    Raises:
        InsecureEndpoint, ConfigurationError: The rule does not allow the address.
        ImportError: ``opentelemetry-exporter-otlp-proto-http``, which ``agentops`` brings, is not installed.
    """

    def __init__(self, url: str, *, allow_insecure: bool = False) -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        from ..remote.session import open_session

        self._url = url
        self._exporter = OTLPSpanExporter(
            endpoint=f"{url}/v1/traces",
            headers={"Authorization": AUTHORIZATION},
            timeout=EXPORT_SECONDS,
            session=open_session(url, allow_insecure=allow_insecure),
        )
        self._batches = BatchSpanProcessor(self._exporter, schedule_delay_millis=500)

    def on_start(self, span: SdkSpan, parent_context: Optional[Context] = None) -> None:
        """Nothing is sent of a start."""

    def on_end(self, span: ReadableSpan) -> None:
        """Queue the span; where the queue is full the copy is dropped."""
        self._batches.on_end(span)

    def force_flush(self, timeout_millis: int = 30_000) -> bool:  # noqa: ARG002 - OpenTelemetry's signature
        """Return at once: whoever flushes the provider waits for the store, not for a copy."""
        return True

    def shutdown(self) -> None:
        """Send what is queued, unless the server is gone, and end the thread."""
        if not self._server_listens():
            self._exporter.shutdown()  # type: ignore[no-untyped-call]  # else its thread would try for seconds
        self._batches.shutdown()  # type: ignore[no-untyped-call]

    def _server_listens(self) -> bool:
        address = urlsplit(self._url)
        port = address.port or {"http": 80, "https": 443}[address.scheme]
        try:
            with socket.create_connection((address.hostname or "", port), CONNECT_SECONDS):
                return True
        except OSError:
            return False
