"""Stored spans, sent to whoever takes OTLP over HTTP: Phoenix, Langfuse, Logfire, MLflow, a collector.

What is sent is a copy in the conventions' words (``dialects.spans.copies``), masked unless the policy is ``off``. Trace
and span ids are those that were recorded, so a receiver that knows a span by its id has it once, however often it is
sent.

Protocol: OTLP/HTTP 1.x (opentelemetry.io/docs/specs/otlp): gzip; a batch that is too large (413; a collector says it
with 400) is halved; what is tried again, ``posting`` says; any other answer is final.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from .._printable import without_password
from ..codec.otlp_request import encode_request, has_ids_of_otlp
from ..dialects.spans.copies import (
    EVALUATION_EVENT,
    Copying,
    copy_of,
    evaluations,
    name_of_copy,
    task_text,
)
from ..dialects.spans.genai import read_call
from ..types import Event
from .posting import Sender, beside_traces, refusal_of, rejected_of

if TYPE_CHECKING:
    import requests

    from ..pipeline.redact import Redactor
    from ..types import Span

PATH = "/v1/traces"
BATCH = 256
"""Spans in a request, before its size halves it."""
MAX_BYTES = 4 * 1024 * 1024
"""Of a request before compression; several receivers take no more."""
_HEADERS = {"Content-Type": "application/x-protobuf", "Content-Encoding": "gzip"}


def traces_url(endpoint: str) -> str:
    """Return where an endpoint takes traces: its own path if that is one for traces, else ``/v1/traces`` below it."""
    return beside_traces(endpoint, PATH)


def copies(
    spans: Sequence[Span], copying: Copying, redactor: Redactor | None, task: Any = None
) -> Iterator[Span]:
    """Yield the copies of the spans of an attempt, each masked before anything is written of it.

    ``task``: the input of the rollout, which is masked as a value: a key may be all that tells a secret.
    """
    asked = task_text(task if redactor is None else redactor.value(task))
    for span in spans:
        kept = span if redactor is None else redactor.span(span)
        attributes = copy_of(
            kept.name,
            kept.attributes,
            read_call(kept),
            copying,
            ids=(span.rollout_id, span.attempt_id),
            is_root=span.parent_id is None,
            task=asked,
        )
        events = list(kept.events)
        if not any(event.name == EVALUATION_EVENT for event in events):
            events += [
                Event(name=EVALUATION_EVENT, attributes=each, timestamp=span.start_time)
                for each in evaluations(kept.attributes)
            ]
        name = name_of_copy(kept.name, kept.attributes)
        yield kept.model_copy(update={"name": name, "attributes": attributes, "events": events})


class OtlpSender(Sender):
    """Sends spans to one endpoint."""

    @property
    def url(self) -> str:
        """Where they are sent."""
        return traces_url(self._endpoint)

    @property
    def name(self) -> str:
        """The URL without a password or key, as it is printed."""
        return without_password(self.url)

    def send(self, spans: Iterable[Span]) -> None:
        """Send spans in batches; ``sent`` and ``not_taken`` count them.

        Raises:
            ExportRefused: The endpoint refuses the request, or does not answer.
            MissingExtra: ``opentelemetry-proto`` is not installed.
        """
        batch: list[Span] = []
        for span in spans:
            if not has_ids_of_otlp(span):
                self.not_taken += 1
                self._say(
                    f"span {span.span_id} ({span.name}) was not sent: its ids are not those of OpenTelemetry"
                )
                continue
            batch.append(span)
            if len(batch) == BATCH:
                self._send(batch)
                batch = []
        if batch:
            self._send(batch)

    def _send(self, batch: Sequence[Span]) -> None:
        body = encode_request(batch)
        if len(body) > MAX_BYTES and len(batch) > 1:
            self._halve(batch)
            return
        answer = self._ask(self.url, gzip.compress(body, 5, mtime=0), _HEADERS)
        if answer.status_code == 413 or (answer.status_code == 400 and "too large" in answer.text):
            self._too_large(batch, len(body))
        elif (refusal := refusal_of(self.url, answer)) is not None:
            raise refusal
        else:
            self._count(len(batch), answer)

    def _halve(self, batch: Sequence[Span]) -> None:
        middle = len(batch) // 2
        self._send(batch[:middle])
        self._send(batch[middle:])

    def _too_large(self, batch: Sequence[Span], size: int) -> None:
        if len(batch) > 1:
            self._halve(batch)
            return
        self.not_taken += 1
        self._say(f"span {batch[0].span_id} ({batch[0].name}) is too large for it: {size:,} bytes")

    def _count(self, number: int, answer: requests.Response) -> None:
        rejected, why = rejected_of(self.url, answer, number)
        self.not_taken += rejected
        self.sent += number - rejected
        if why:
            self._say(f"the receiver says: {why}")
