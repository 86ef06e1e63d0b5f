"""Which requests may ask for token ids as well, and what happens where a server refuses such a request.

An agent must not see a failure that it would not have had without the recorder. So where a changed request fails, its
response is thrown away and the agent's unchanged request is sent, once, as long as no byte has reached the agent. Two
failures are passed on instead, because a second request would make them worse: the server says that it is busy (408,
429, 503 with ``Retry-After``), or it is too slow.

Clients that follow redirects by themselves, with the body that they were given, do not follow that of a changed
request: where it leads, nobody has agreed to being asked. It counts as a refusal.

A refusal is remembered for an hour by endpoint, model, kind of request, and the way in which it asked: where there is
another way (SGLang's, in streams), the next request takes that. A status of 4xx is remembered at once; what
may have been an accident of the server (5xx, an error in a body of status 200, a broken connection) only when it
happens twice in a row.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

from .._locks import reentrant_lock
from ..dialects import sse
from ..dialects.openai.errors import error_of
from ..dialects.openai.json_parts import json_object

REMEMBERED_SECONDS = 3600.0
"""How long requests of a refused kind leave unchanged."""
MAX_REMEMBERED = 10_000
"""Kinds of request in each table; the oldest entry goes first."""
MAX_PEEKED_BYTES = 64 * 1024
"""Bytes of a stream that are held back at most while its first event is awaited."""

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_RETRY_LATER_STATUSES = frozenset({408, 429})
_SIGNED_HEADER = re.compile(
    r"(^|[-_])(sign|signed|signature|hmac|digest|checksum|hash|md5|sha\d+|crc\d+c?)([-_]|$)", re.IGNORECASE
)
_SIGNED_SCHEME = re.compile(r"(aws4|hmac|signature|sharedkey|acs3)|.*auth-int", re.IGNORECASE)
_IDEMPOTENCY_HEADER = "idempotency-key"
"""Such a request is never changed: a server may refuse a second one with the same key and another body."""


class RequestKind(NamedTuple):
    """The key of a refusal: servers refuse a field for one model, beside tools, or in streams."""

    endpoint: str
    model: str | None
    operation: str
    stream: bool
    tools: bool
    response_format: bool
    several: bool
    way: str
    """The field by which ids are asked for, one of ``token_request.ways``: a server may refuse one and take another."""


def request_kind(endpoint: str, operation: str, request: Mapping[str, Any], way: str) -> RequestKind:
    """Return the kind of a request that asks in this way; it holds no content of the request but the model's name."""
    model, choices = request.get("model"), request.get("n")
    return RequestKind(
        endpoint=endpoint,
        model=model if isinstance(model, str) else None,
        operation=operation,
        stream=bool(request.get("stream")),
        tools=bool(request.get("tools") or request.get("functions")),
        response_format=bool(request.get("response_format")),
        several=isinstance(choices, int) and choices > 1,
        way=way,
    )


def is_refusal(status: int, headers: Mapping[str, str]) -> bool:
    """Whether an answer with this status is thrown away, and the agent's own request sent."""
    if status < 400 or status in _RETRY_LATER_STATUSES:
        return False
    return not (status == 503 and "retry-after" in headers)


def is_redirect(status: int) -> bool:
    """Whether an answer with this status leads elsewhere, so that only the agent's own request may follow it."""
    return status in _REDIRECTS


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
    """The kinds of request that servers have refused; shared by all threads of a process."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # Guards both tables: their bound, and that a suspicion becomes a refusal once. A signal handler may call a
        # model in the middle of any of these lines.
        self._lock = reentrant_lock()
        self._refused_until: dict[RequestKind, float] = {}
        self._suspected: dict[RequestKind, None] = {}

    def applies_to(self, kind: RequestKind) -> bool:
        """Whether requests of this kind leave unchanged now."""
        with self._lock:
            until = self._refused_until.get(kind)
            if until is None:
                return False
            if self._clock() < until:
                return True
            self._refused_until.pop(kind, None)  # a signal handler may have asked meanwhile
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
        # Almost no kind is suspected, so look without the lock first; a suspicion that is added meanwhile stays.
        if kind in self._suspected:
            with self._lock:
                self._suspected.pop(kind, None)


def _bounded(table: dict[RequestKind, Any]) -> dict[RequestKind, Any]:
    if len(table) >= MAX_REMEMBERED:
        del table[next(iter(table))]
    return table


class ErrorDetector:
    """Finds out whether a response with a status of success is an error, from as few bytes as possible.

    A plain response has to be read whole; of a stream the first event (or the first line of JSON) decides.
    """

    def __init__(self, *, stream: bool) -> None:
        self._stream = stream
        self._body = b""
        self.is_error = False

    def feed(self, chunk: bytes) -> bool:
        """Take the next bytes of the body; return whether the answer is known and the rest need not be read."""
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
        """Decide at the end of the body."""
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
