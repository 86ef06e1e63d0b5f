"""Asking on the agent's behalf without the agent ever noticing: which requests may be changed, and what a refusal is.

The rule is that an agent never sees a failure that it would not have had without us. So an answer to a changed request
that is no success is thrown away, and the agent's own request is sent, once, as long as no byte has reached the agent.
A server that asks for patience (408, 429, 503 with ``Retry-After``) and one that is too slow are not asked twice. A
refusal is remembered for an hour, by endpoint, model and kind of request: one that comes with a status of 4xx at once,
one that may have been an accident of the server (5xx, an error in a body, a broken connection) when it comes twice in a
row.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

from ..dialects import sse
from ..dialects.openai.errors import error_of
from ..dialects.openai.json_parts import json_object

REMEMBERED_SECONDS = 3600.0
MAX_REMEMBERED = 10_000
MAX_PEEKED_BYTES = 64 * 1024
"""How much of a stream that does not come to its first event is held back at most."""

_RETRY_LATER_STATUSES = frozenset({408, 429})
_SIGNED_HEADER = re.compile(
    r"(^|[-_])(sign|signed|signature|hmac|digest|checksum|hash|md5|sha\d+|crc\d+c?)([-_]|$)", re.IGNORECASE
)
_SIGNED_SCHEME = re.compile(r"(aws4|hmac|signature|sharedkey|acs3)|.*auth-int", re.IGNORECASE)
_IDEMPOTENCY_HEADER = "idempotency-key"
"""A server may refuse a second request under the same key whose body is another one."""


class RequestKind(NamedTuple):
    """What a refusal is remembered by: servers refuse a field for one model, or beside tools, or in streams."""

    endpoint: str
    model: str | None
    operation: str
    stream: bool
    tools: bool
    response_format: bool
    several: bool


def request_kind(endpoint: str, operation: str, request: Mapping[str, Any]) -> RequestKind:
    """Return the kind of a request, of which only names and shapes count."""
    model, choices = request.get("model"), request.get("n")
    return RequestKind(
        endpoint=endpoint,
        model=model if isinstance(model, str) else None,
        operation=operation,
        stream=bool(request.get("stream")),
        tools=bool(request.get("tools") or request.get("functions")),
        response_format=bool(request.get("response_format")),
        several=isinstance(choices, int) and choices > 1,
    )


def is_refusal(status: int, headers: Mapping[str, str]) -> bool:
    """Whether an answer with this status is thrown away, and the agent's own request sent."""
    if status < 400 or status in _RETRY_LATER_STATUSES:
        return False
    return not (status == 503 and "retry-after" in headers)


def is_fixed(headers: Mapping[str, str], query: str = "") -> bool:
    """Whether a request's body must stay as it is: it is signed, has a checksum, or is compressed.

    Args:
        headers: By their names in lower case.
        query: The query of the URL, where a signature may stand, too.
    """
    if _IDEMPOTENCY_HEADER in headers or any(_SIGNED_HEADER.search(name) for name in headers):
        return True
    if _SIGNED_SCHEME.match(headers.get("authorization", "").strip()):
        return True
    if headers.get("content-encoding", "identity").strip().lower() not in {"", "identity", "none"}:
        return True
    return any(name == "sig" or _SIGNED_HEADER.search(name.lower()) for name, _ in parse_qsl(query))


class Refusals:
    """Which kinds of request are not asked now; shared by threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()  # guards both tables; held for no call of others
        self._refused_until: dict[RequestKind, float] = {}
        self._suspected: dict[RequestKind, None] = {}

    def applies_to(self, kind: RequestKind) -> bool:
        """Whether requests of this kind are left alone."""
        with self._lock:
            until = self._refused_until.get(kind)
            if until is None:
                return False
            if self._clock() < until:
                return True
            del self._refused_until[kind]
            return False

    def refused(self, kind: RequestKind, status: int | None) -> None:
        """Note that the agent's own request succeeded where the changed one did not.

        Args:
            kind: Of the request.
            status: What the changed one was answered with; ``None`` for a broken connection.
        """
        with self._lock:
            if not (status is not None and 400 <= status < 500) and kind not in self._suspected:
                _bounded(self._suspected)[kind] = None
                return
            self._suspected.pop(kind, None)
            _bounded(self._refused_until)[kind] = self._clock() + REMEMBERED_SECONDS

    def accepted(self, kind: RequestKind) -> None:
        """Note that a changed request was answered."""
        if kind in self._suspected:
            with self._lock:
                self._suspected.pop(kind, None)


def _bounded(table: dict[RequestKind, Any]) -> dict[RequestKind, Any]:
    if len(table) >= MAX_REMEMBERED:
        del table[next(iter(table))]
    return table


class ErrorDetector:
    """Decides from the beginning of an answer whether it is an error whose status says success."""

    def __init__(self, *, stream: bool) -> None:
        self._stream = stream
        self._body = b""
        self.is_error = False

    def feed(self, chunk: bytes) -> bool:
        """Take the next bytes; return whether enough of them came. Of a plain answer that is all of them."""
        if not self._stream:
            self._body += chunk  # CPython appends in place: nobody else holds the bytes
            return False
        self._body += chunk
        start = self._body.removeprefix(sse.BOM).lstrip()
        if start[:1] == b"{":
            line, end, _ = start.partition(b"\n")
            found = json_object(line) if end else None
            self.is_error = found is not None and _is_error(found)
            return found is not None
        if sse.looks_like_events(start):
            return self._look_at_events() or len(self._body) > MAX_PEEKED_BYTES
        return len(start) >= _LONGEST_FIELD

    def finish(self) -> None:
        """The answer has ended."""
        found = json_object(self._body.removeprefix(sse.BOM))
        if found is not None:
            self.is_error = _is_error(found)
        elif sse.looks_like_events(self._body):
            self._look_at_events()

    def _look_at_events(self) -> bool:
        event = next(sse.events(self._body, only_whole=True), None)
        if event is None:
            return False
        found = json_object(event.data)
        self.is_error = event.name == "error" or (found is not None and _is_error(found))
        return True


_LONGEST_FIELD = len("retry:")


def _is_error(found: Mapping[str, Any]) -> bool:
    return not found.get("choices") and error_of(found) is not None
