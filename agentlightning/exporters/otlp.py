"""Stored spans, sent to whoever takes OTLP over HTTP: Phoenix, Langfuse, Logfire, MLflow, a collector.

What is sent is a copy in the conventions' words (``dialects.spans.copies``), masked unless the policy is ``off``. Trace
and span ids are those that were recorded, so a receiver that knows a span by its id has it once, however often it is
sent.

Protocol: OTLP/HTTP 1.x (opentelemetry.io/docs/specs/otlp): gzip; 429, 502, 503 and 504 and a connection that breaks are
tried again, after the time that ``Retry-After`` names or twice as long each time; a batch that is too large (413; a
collector says it with 400) is halved; any other answer is final. A redirect is not followed: it would become a GET of a
login page, whose answer looks like success, and keys in headers would go to another host.
"""

from __future__ import annotations

import gzip
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urljoin, urlsplit, urlunsplit

import requests

from .._printable import without_password
from ..codec.otlp_request import encode_request, has_ids_of_otlp, read_partial_success
from ..dialects.spans.copies import (
    EVALUATION_EVENT,
    TASK,
    Copying,
    copy_of,
    evaluations,
    name_of_copy,
    task_text,
)
from ..dialects.spans.genai import read_call
from ..errors import ExportRefused
from ..remote.session import open_session
from ..types import Event

if TYPE_CHECKING:
    from ..types import Span

PATH = "/v1/traces"
BATCH = 256
"""Spans in a request, before its size halves it."""
MAX_BYTES = 4 * 1024 * 1024
"""Of a request before compression; several receivers take no more."""
TRIES = 6
_AGAIN = frozenset({429, 502, 503, 504})
_LONGEST_WAIT = 30.0
_TIMEOUT = 30.0


@dataclass
class Sent:
    """What became of the spans."""

    spans: int = 0
    """Those that the receiver has taken."""
    rejected: int = 0
    """Those that it has not taken, or that cannot be sent."""
    said: list[str] = field(default_factory=list)
    """What is to be said of those, each sentence once."""


def traces_url(endpoint: str) -> str:
    """Return where an endpoint takes traces: its own path if that is one for traces, else ``/v1/traces`` below it."""
    parts = urlsplit(endpoint)
    path = parts.path.rstrip("/")
    return urlunsplit(parts._replace(path=path if path.endswith(PATH) else path + PATH))


def copies(
    spans: Sequence[Span], copying: Copying, mask: Callable[[Span], Span] | None, task: Any = None
) -> Iterator[Span]:
    """Yield the copies of the spans of an attempt, each masked before anything is written of it.

    ``task``: the input of the rollout.
    """
    for span in spans:
        given = span
        if task is not None and span.parent_id is None:
            given = span.model_copy(update={"attributes": {**span.attributes, TASK: task_text(task)}})
        kept = given if mask is None else mask(given)
        attributes = copy_of(
            kept.name,
            kept.attributes,
            read_call(kept),
            copying,
            ids=(span.rollout_id, span.attempt_id),
            is_root=span.parent_id is None,
        )
        events = list(kept.events)
        if not any(event.name == EVALUATION_EVENT for event in events):
            events += [
                Event(name=EVALUATION_EVENT, attributes=each, timestamp=span.start_time)
                for each in evaluations(kept.attributes)
            ]
        name = name_of_copy(kept.name, kept.attributes)
        yield kept.model_copy(update={"name": name, "attributes": attributes, "events": events})


class OtlpSender:
    """Sends spans to one endpoint; a context manager.

    Args:
        endpoint: Base URL, or the URL that takes traces.
        headers: Such as an API key.
        allow_insecure: Whether plain http may go to another machine.
        sleep: Waits between two tries.

    Raises:
        InsecureEndpoint, ConfigurationError: The rule of ``remote`` does not allow the address.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        headers: Mapping[str, str] | None = None,
        allow_insecure: bool = False,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self.url = traces_url(endpoint)
        self.sent = Sent()
        self._session = open_session(self.url, allow_insecure=allow_insecure)
        self._headers = {
            "Content-Type": "application/x-protobuf",
            "Content-Encoding": "gzip",
            **(headers or {}),
        }
        self._sleep = sleep

    @property
    def name(self) -> str:
        """The URL without a password or key, as it is printed."""
        return without_password(self.url)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._session.close()

    def send(self, spans: Iterable[Span]) -> None:
        """Send spans in batches; ``sent`` says what became of them.

        Raises:
            ExportRefused: The endpoint refuses the request, or does not answer.
            MissingExtra: ``opentelemetry-proto`` is not installed.
        """
        batch: list[Span] = []
        for span in spans:
            if not has_ids_of_otlp(span):
                self.sent.rejected += 1
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
        answer = self._post(body)
        if answer.status_code == 413 or (answer.status_code == 400 and "too large" in answer.text):
            self._too_large(batch, len(body))
        elif 300 <= answer.status_code < 400:
            raise ExportRefused(self.name, answer.status_code, self._leads_to(answer))
        elif not 200 <= answer.status_code < 300:
            raise ExportRefused(self.name, answer.status_code, answer.text)
        elif "text/html" in answer.headers.get("Content-Type", ""):
            raise ExportRefused(self.name, answer.status_code, "it is a web page")
        else:
            self._count(len(batch), answer)

    def _leads_to(self, answer: requests.Response) -> str:
        """Return where a redirect leads, without its query, which may hold what is secret."""
        location = urlsplit(urljoin(self.url, answer.headers.get("Location", "")))
        return without_password(urlunsplit(location._replace(query="", fragment="")))

    def _halve(self, batch: Sequence[Span]) -> None:
        middle = len(batch) // 2
        self._send(batch[:middle])
        self._send(batch[middle:])

    def _too_large(self, batch: Sequence[Span], size: int) -> None:
        if len(batch) > 1:
            self._halve(batch)
            return
        self.sent.rejected += 1
        self._say(f"span {batch[0].span_id} ({batch[0].name}) is too large for it: {size:,} bytes")

    def _count(self, number: int, answer: requests.Response) -> None:
        rejected, why = read_partial_success(answer.content) if _is_protobuf(answer) else (0, "")
        rejected = min(max(rejected, 0), number)
        self.sent.rejected += rejected
        self.sent.spans += number - rejected
        if why:
            self._say(f"the receiver says: {why}")

    def _say(self, sentence: str) -> None:
        if sentence not in self.sent.said:
            self.sent.said.append(sentence)

    def _post(self, body: bytes) -> requests.Response:
        packed = gzip.compress(body, 5, mtime=0)
        wait = 1.0
        for left in reversed(range(TRIES)):
            try:
                answer = self._session.post(
                    self.url, data=packed, headers=self._headers, timeout=_TIMEOUT, allow_redirects=False
                )
            except (requests.ConnectionError, requests.Timeout) as error:
                if not left:
                    raise ExportRefused(self.name, None, type(error).__name__) from error
            else:
                if answer.status_code not in _AGAIN or not left:
                    return answer
                wait = _retry_after(answer, wait)
            self._sleep(min(wait, _LONGEST_WAIT))
            wait *= 2
        raise AssertionError("the last try returns or raises")


def _is_protobuf(answer: requests.Response) -> bool:
    return "json" not in answer.headers.get("Content-Type", "")


def _retry_after(answer: requests.Response, otherwise: float) -> float:
    with suppress(ValueError):
        return (
            max(0.0, float(answer.headers["Retry-After"])) if "Retry-After" in answer.headers else otherwise
        )
    return otherwise
