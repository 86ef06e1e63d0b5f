"""One model call on the wire: its exchanges, and the one report that its sink gets when it ends.

A call has one :class:`Exchange` (a request and its response), or several where the client retries. An exchange only
collects bytes; when it ends they become a ``RawCall``, which :class:`ActiveCall` gives to the sink once. A failed
exchange inside of a client's own ``request`` method may be retried there, so its ``RawCall`` is kept in the
:class:`RequestScope` until that method returns.

Nothing here takes a lock. A request and its response belong to one task or thread at a time; only the end may come from
two sides at once (the reader and the thread that ends collected streams), and :meth:`ActiveCall.end` lets one of them
through.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from ..dialects import bounds, content_encoding
from ..dialects.openai.json_parts import json_object
from ..dialects.raw_call import CallStart, Endpoint, RawCall
from .guard import Guard
from .refusals import RequestKind
from .sink import CallSink

MAX_BODY_BYTES = 64 * 1024 * 1024
"""Bytes of one response that are kept; a chat response with 100,000 token ids has about 10 MB."""
RESERVE_AHEAD_BYTES = 64 * 1024
"""Bytes that are reserved beyond what a stream needs now, so that not every chunk calls the sink."""

_SECRET_HEADERS = ("authorization", "proxy-authorization", "api-key", "x-api-key", "cookie")


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A request as its client built it."""

    method: str
    scheme: str
    host: str
    """Name or address, and port where it is named."""
    path: str
    query: str
    headers: Mapping[str, str]
    """By their names in lower case."""
    body: bytes | None
    """``None`` for a body that is generated while it is sent; its chunks go to :meth:`Exchange.note_request_chunk`."""

    @property
    def url(self) -> str:
        """Without query and credentials."""
        return f"{self.scheme}://{self.host}{self.path}"

    def json(self) -> dict[str, Any] | None:
        """Return the body as a JSON object, or ``None`` where it is none or not known yet."""
        return None if self.body is None else json_object(plain_body(self.body, self.headers))


def plain_body(body: bytes, headers: Mapping[str, str]) -> bytes:
    """Return the body of a request without its ``Content-Encoding``, or as it is where that cannot be undone."""
    try:
        return content_encoding.undo(body, headers.get("content-encoding", ""))
    except (content_encoding.UnreadableEncodingError, bounds.TooCostlyError):
        return body


class RequestScope:
    """One run of a client's ``request`` method, which may retry: all exchanges inside of it are one call.

    Scopes of a context form a chain by ``outer``, since one client may send its requests by means of another.
    """

    def __init__(self, owner: object, outer: RequestScope | None) -> None:
        self.owner = owner
        self.outer = outer
        self.call: ActiveCall | None = None
        self._pending: RawCall | None = None
        self._open = True

    @property
    def takes_retries(self) -> bool:
        """Whether a request that leaves now is a retry of this call.

        Not after the scope was closed (tasks that were started inside keep a copy of the context), nor while an
        exchange of the call is still open: then it is another, concurrent call.
        """
        current = self.call.current if self.call is not None else None
        return self._open and (current is None or current.is_finished)

    def retry(self) -> ActiveCall | None:
        """Return the call that is retried now, or ``None`` for the first request of the scope."""
        self._pending = None  # the failure was not the last word, so it is not reported
        return self.call

    def defer(self, raw: RawCall) -> bool:
        """Keep a failed exchange until the scope closes; false when it has closed already."""
        if self._open:
            self._pending = raw
        return self._open

    def close(self) -> None:
        """No more retries: end the call if its last exchange failed."""
        self._open = False
        raw, self._pending = self._pending, None
        if raw is not None and self.call is not None:
            self.call.end(raw)


_scope: ContextVar[RequestScope | None] = ContextVar("agentlightning_call_scope", default=None)


def open_request_scope(owner: object) -> Any:
    """Open a scope in this context.

    Returns:
        What :func:`close_request_scope` takes; call that in the same frame, so that scopes are closed innermost first.
    """
    scope = RequestScope(owner, _scope.get())
    return scope, _scope.set(scope)


def close_request_scope(opened: Any) -> None:
    """Leave the scope; if its last exchange failed, report that to the sink now."""
    scope, token = opened
    try:
        _scope.reset(token)
    except ValueError:  # a coroutine that somebody drives through several contexts
        _scope.set(scope.outer)
    scope.close()


def current_request_scope(owner: object) -> RequestScope | None:
    """Return the innermost open scope of ``owner`` in this context."""
    scope = _scope.get()
    while scope is not None and (scope.owner is not owner or not scope.takes_retries):
        scope = scope.outer
    return scope


class ActiveCall:
    """A call that the sink was told of. The sink hears of its end once, whoever sees the end first."""

    def __init__(self, sink: CallSink, guard: Guard, token: Any, scope: RequestScope | None) -> None:
        self._sink = sink
        self.reserve, self.release = sink.reserve, sink.release
        self.guard = guard
        self._token = token
        self._scope = scope
        self._process = os.getpid()
        # One element until the call has ended. ``list.pop`` is atomic, so of two threads exactly one gets it; a lock
        # could deadlock, since the end may be seen by a finaliser in the middle of anything.
        self._not_ended = [True]
        self.exchanges = 0
        self.current: Exchange | None = None

    def exchange_finished(self, exchange: Exchange, raw: RawCall) -> None:
        """Report the exchange to the sink, or keep it while a retry may follow."""
        if exchange is not self.current:  # a retry has taken its place, and its outcome is the call's
            return
        failed = raw.error is not None or raw.status is None or raw.status >= 400
        if not (failed and self._scope is not None and self._scope.defer(raw)):
            self.end(raw)

    def end(self, raw: RawCall) -> None:
        """Report the call to the sink, unless that was done already or this is a forked child.

        After ``fork`` both processes hold the call; only the one that began it may report it, or it counts twice.
        """
        try:
            self._not_ended.pop()
        except IndexError:
            return
        if os.getpid() == self._process:
            with self.guard("ending a model call"):
                self._sink.ended(self._token, raw)


class _ResponseHead(NamedTuple):
    """The head of a response."""

    status: int | None = None
    """``None`` until there is a response."""
    content_type: str = ""
    content_encoding: str = ""


class _RequestBody:
    """The chunks of a request's body that is generated while it is sent, up to ``max_bytes``."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._chunks: list[bytes] = []
        self._size = 0

    def add(self, chunk: bytes) -> None:
        """Keep a chunk, as far as there is room."""
        self._size += len(chunk)
        if self._size <= self._max_bytes:
            self._chunks.append(bytes(chunk))

    def take(self) -> bytes:
        """Return what was kept."""
        return b"".join(self._chunks)


class _ResponseBody:
    """The chunks of a response, as many as ``max_bytes`` and the memory of the sink allow.

    After the first chunk that was not kept no other one is: what is kept is the beginning of the body, without gaps.
    """

    def __init__(self, call: ActiveCall, max_bytes: int) -> None:
        self._call = call
        self._max_bytes = max_bytes
        self._chunks: list[bytes] = []
        self._size = 0
        """Bytes that have arrived, including those that were not kept."""
        self._reserved = 0
        self.first_chunk_ns: int | None = None
        self.is_truncated = False

    def add(self, chunk: bytes) -> None:
        """Keep a chunk, unless there is no room for it or an earlier one was not kept."""
        if self.first_chunk_ns is None:
            self.first_chunk_ns = time.time_ns()
        self._size += len(chunk)
        if self.is_truncated:
            return
        if self._size <= self._max_bytes and (self._size <= self._reserved or self._has_memory()):
            self._chunks.append(chunk)
        else:
            self.is_truncated = True

    def _has_memory(self) -> bool:
        """Reserve memory of the sink for what has arrived, if possible with some to spare for the next chunks.

        The first chunk reserves exactly its size: most responses have one chunk only.
        """
        missing = self._size - self._reserved
        with self._call.guard("taking memory for an answer"):
            for size in (missing + RESERVE_AHEAD_BYTES, missing) if self._reserved else (missing,):
                if self._call.reserve(size):
                    self._reserved += size
                    return True
        return False

    def give_memory_back(self) -> None:
        """Release what was reserved, before the sink gets the body: its span reserves the same bytes again."""
        reserved, self._reserved = self._reserved, 0
        with self._call.guard("giving memory back"):
            self._call.release(reserved)

    def take(self) -> bytes:
        """Return what was kept, and keep it no longer."""
        chunks, self._chunks = self._chunks, []
        return b"".join(chunks)


class Exchange:
    """One request and its response, whose bytes are collected as they pass.

    All methods but :meth:`finish` and :meth:`cut_off` run on the agent's thread. No method raises because of the sink.

    It has more attributes than other classes have: what the call, the watcher and the token request each note of one
    exchange, until one ``RawCall`` is made of it. Bodies and head are objects of their own already; each further one
    would be made on the agent's thread with every request.
    """

    def __init__(
        self,
        call: ActiveCall,
        start: CallStart,
        request: Outgoing,
        *,
        endpoint: Endpoint | None,
        retries: int | None,
        max_body_bytes: int,
        open_exchanges: set[Exchange],
    ) -> None:
        self._call = call
        self._open_exchanges = open_exchanges
        self._retries = call.exchanges if retries is None else retries
        call.exchanges += 1
        call.current = self  # from now on the outcome of an earlier exchange is not the call's
        self.start = start
        self._request = request
        self._sent = _RequestBody(max_body_bytes)
        self._started_ns = time.time_ns()
        self._head = _ResponseHead()
        self._body = _ResponseBody(call, max_body_bytes)
        # Attributes and not methods, which would be a call more for each chunk of a stream.
        self.note_request_chunk = self._sent.add
        self.note_response_chunk = self._body.add
        self._unfinished = [True]  # popped by whoever sees the end first, as in ActiveCall
        self.endpoint = endpoint
        self.added: frozenset[str] = frozenset()
        self.not_asked = ""
        self.kind: RequestKind | None = None
        """By which a refusal of what was added is remembered."""
        self.notes: list[str] = []
        open_exchanges.add(self)

    @property
    def is_finished(self) -> bool:
        """Whether the exchange has ended."""
        return not self._unfinished

    def note_response_head(self, status: int, content_type: str, content_encoding: str) -> None:
        """Keep the head of the response."""
        self._head = _ResponseHead(status, content_type, content_encoding)

    def note_decoded_body(self, body: bytes) -> None:
        """Keep a whole body that the client has read and decompressed."""
        self._head = self._head._replace(content_encoding="")
        self.note_response_chunk(body)
        self._body.first_chunk_ns = None  # it is not known when the first piece came

    def fail(self, error: BaseException) -> None:
        """End the exchange with an exception, which goes on to the agent."""
        text = type(error).__name__
        with self._call.guard("describing a failure"):
            text = self._describe(error)
        self.finish(complete=False, error=text)

    def cut_off(self) -> None:
        """Stop recording: end a response that has begun as incomplete; leave a request without a response open."""
        if self._head.status is not None:
            self.notes.append("recording_ended")
            self.finish(complete=False)

    def finish(self, *, complete: bool, error: str | None = None) -> None:
        """End the exchange; from then on calls of this method do nothing. Never raises.

        Args:
            complete: Whether the whole response has arrived.
            error: ``Type: message`` of the exception that ended it.
        """
        try:
            self._unfinished.pop()  # atomic: the reader and the thread that ends streams may come here at once
        except IndexError:
            return
        self._open_exchanges.discard(self)
        # Before the sink hears of the end: the span that gets the body takes the same memory again.
        self._body.give_memory_back()
        with self._call.guard("noting the end of a call"):
            self._call.exchange_finished(
                self, self._raw(complete=complete and not self._body.is_truncated, error=error)
            )

    def _raw(self, *, complete: bool, error: str | None) -> RawCall:
        # A body that was made while it was sent is known only now, and with it the model and whether it is a stream.
        body = self._request.body if self._request.body is not None else self._sent.take()
        body = plain_body(body, self._request.headers)
        return RawCall(
            start=self.start if self._request.body is not None else _completed(self.start, body),
            request_body=body,
            status=self._head.status,
            content_type=self._head.content_type,
            content_encoding=self._head.content_encoding,
            response_body=self._body.take(),
            complete=complete,
            error=error,
            started_ns=self._started_ns,
            first_chunk_ns=self._body.first_chunk_ns,
            ended_ns=time.time_ns(),
            retries=self._retries,
            added=self.added,
            not_asked=self.not_asked,
            endpoint=self.endpoint,
            notes=(*self.notes, "body_truncated") if self._body.is_truncated else tuple(self.notes),
        )

    def _describe(self, error: BaseException) -> str:
        """Return ``Type: message``, or the type alone where the message could quote a credential."""
        kind, text = type(error).__name__, str(error)
        secrets = [self._request.headers.get(name, "").strip() for name in _SECRET_HEADERS]
        words = {
            word for secret in secrets for word in secret.split() if len(word) > 4
        }  # "Bearer", and the key
        # h11 quotes the value of a header that it refuses.
        quotes = "header" in text.lower() or any(word in text for word in words)
        return kind if quotes or not text else f"{kind}: {text[:300]}"


def _completed(start: CallStart, body: bytes) -> CallStart:
    """Return what is known of a call whose body was made while it was sent."""
    request = json_object(body) or {}
    model = request.get("model")
    return replace(start, model=model if isinstance(model, str) else None, stream=bool(request.get("stream")))
