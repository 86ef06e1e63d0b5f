"""A copy of every span for the local AgentOps server, sent in the background.

The store is where spans are kept; this copy is to be looked at, and its resource names the span's attempt.
OpenTelemetry's own batch processor sends it, bounded, on its thread. A flush of the provider does not wait for it, and
a server that is gone costs nothing but, once, a line in the log: OpenTelemetry's exporter would write one for each try,
and take a redirect, whose answer is a page, for success.
"""

from __future__ import annotations

import logging
import socket
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Event
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from ..._printable import without_password
from ...recorder.scope import ATTEMPT_KEY, ROLLOUT_KEY, Record, Scope
from ...tracer.masking_exporter import MaskingExporter

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import Span as SdkSpan

    from ...tracer.processor import LightningSpanProcessor

_log = logging.getLogger(__name__)

AUTHORIZATION = "Bearer dummy"
EXPORT_SECONDS = 2
AGAIN_SECONDS = 0.1
BUSY = frozenset({429, 502, 503, 504})
"""Statuses with which another try may help, by OTLP's specification (section "Retryable Response Codes")."""
CONNECT_SECONDS = 0.2
OPEN_REMEMBERED = 10_000
"""Open spans whose attempt is remembered; a copy of an older one names none."""


class SpanMirror(SpanProcessor):
    """Sends spans to a server, by the rule of ``remote``.

    Args:
        url: Base URL of the server.
        placed_by: The recorder, which was added to the same provider before and knows where spans belong.
        allow_insecure: Whether plain http may go to another machine.
        masks: Whether what looks like a secret is masked on the way.

    Raises:
        InsecureEndpoint, ConfigurationError: The rule does not allow the address.
        ImportError: ``opentelemetry-exporter-otlp-proto-http``, which ``agentops`` brings, is not installed.
    """

    def __init__(
        self,
        url: str,
        placed_by: LightningSpanProcessor | None = None,
        *,
        allow_insecure: bool = False,
        masks: bool = True,
    ) -> None:
        self._url = url
        self._exporter = _Copies(url, allow_insecure=allow_insecure)
        self._placed_by = placed_by
        self._open: OrderedDict[int, Record] = OrderedDict()
        self._batches = BatchSpanProcessor(
            MaskingExporter(self._exporter) if masks else self._exporter, schedule_delay_millis=500
        )

    def on_start(self, span: SdkSpan, parent_context: Context | None = None) -> None:
        """Remember the span's attempt: the recorder, which handles its end first, will have forgotten it by then."""
        del parent_context
        context = span.get_span_context()
        record = self._placed_by.ledger.records.get(id(context)) if self._placed_by else None
        if record is None:
            return
        # By identity, as the ledger does: the span keeps its context while it is open.
        self._open[id(context)] = record
        if len(self._open) > OPEN_REMEMBERED:
            self._open.popitem(last=False)

    def on_end(self, span: ReadableSpan) -> None:
        """Queue the span; where the queue is full the copy is dropped."""
        record = self._open.pop(id(span.get_span_context()), None)
        self._batches.on_end(span if record is None else _Placed(span, record.scope))

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Return at once: whoever flushes the provider waits for the store, not for a copy."""
        del timeout_millis
        return True

    def shutdown(self) -> None:
        """Send what is queued, unless the server is gone, and end the thread."""
        if not self._server_listens():
            self._exporter.shutdown()  # else its thread would try for seconds
        self._batches.shutdown()  # type: ignore[no-untyped-call]

    def _server_listens(self) -> bool:
        address = urlsplit(self._url)
        port = address.port or {"http": 80, "https": 443}[address.scheme]
        try:
            with socket.create_connection((address.hostname or "", port), CONNECT_SECONDS):
                return True
        except OSError:
            return False


class _Copies(SpanExporter):
    """Posts spans to a server of OTLP over HTTP; a batch that it does not take in time is dropped.

    Args:
        url: Base URL of the server.
        allow_insecure: Whether plain http may go to another machine.
    """

    def __init__(self, url: str, *, allow_insecure: bool) -> None:
        from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans

        from ...remote.session import open_session

        self._encode = encode_spans
        self._endpoint = f"{url}/v1/traces"
        self._session = open_session(url, allow_insecure=allow_insecure)
        self._is_over = Event()
        self._has_said_so = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Post the spans, several times where the server may still be starting."""
        body = self._encode(spans).SerializeToString()
        give_up = time.monotonic() + EXPORT_SECONDS
        while not self._is_over.is_set():
            refused = self._refused(body)
            if refused is None:
                return SpanExportResult.SUCCESS
            if not refused.may_pass or time.monotonic() > give_up:
                self._say(refused.reason)
                break
            self._is_over.wait(AGAIN_SECONDS)
        return SpanExportResult.FAILURE

    def shutdown(self) -> None:
        """Send nothing more; harmless if repeated."""
        self._is_over.set()
        self._session.close()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Nothing is kept here."""
        del timeout_millis
        return True

    def _refused(self, body: bytes) -> _Refused | None:
        """Post once; return why the server did not take it."""
        import requests  # the agent's thread has no need of it

        headers = {"Authorization": AUTHORIZATION, "Content-Type": "application/x-protobuf"}
        try:
            # A redirect would become a GET, whose answer looks like success, and lead the key elsewhere.
            answer = self._session.post(
                self._endpoint, body, headers=headers, timeout=EXPORT_SECONDS, allow_redirects=False
            )
        except requests.RequestException as error:
            return _Refused(type(error).__name__, may_pass=isinstance(error, requests.ConnectionError))
        if 200 <= answer.status_code < 300:
            return None
        return _Refused(f"status {answer.status_code}", may_pass=answer.status_code in BUSY)

    def _say(self, reason: str) -> None:
        if not self._has_said_so:
            self._has_said_so = True
            _log.warning(
                "the AgentOps server at %s takes no copies of spans (%s); the store has all of them",
                without_password(self._endpoint),
                reason,
            )


@dataclass(frozen=True)
class _Refused:
    """Why a server did not take a batch."""

    reason: str
    may_pass: bool
    """Whether another try may help."""


class _Placed(ReadableSpan):
    """A finished span whose resource names its attempt; the exporter's thread is the one that asks for it."""

    def __init__(self, span: ReadableSpan, scope: Scope) -> None:
        # A view: ``ReadableSpan`` has no copy, and its ``__init__`` would take each field by its name.
        vars(self).update(vars(span))
        self._scope = scope

    @property
    def resource(self) -> Resource:
        """The span's own, and the ids."""
        ids = {ROLLOUT_KEY: self._scope.rollout_id, ATTEMPT_KEY: self._scope.attempt_id}
        return super().resource.merge(Resource(ids))
