"""Model calls of ``http.client``, and of what is made of it: urllib, urllib3, requests, botocore.

``HTTPConnection`` sends a head and pieces of a body, and reads an answer from ``response.fp``; that file is where
urllib3 reads, too. So a request is noted as its bytes leave, and an answer through a file that takes the place of the
other. A request that may ask for token ids is held until its body is complete, since the head says how long it is. The
retries of urllib3 are one call.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import http.client
import io
import threading
from collections import deque
from contextvars import ContextVar
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

from ..dialects.openai.request import operation_of
from .exchange import Exchange, Outgoing, close_request_scope, open_request_scope
from .guard import Guard
from .patch import AttributePatch, Patch
from .refusals import ErrorDetector
from .suppression import is_own_work
from .tee import Stripper, finish_collected
from .watch import CallWatch

_STATE = "_agentlightning_call"
_EFFECT = "notes the bytes of model calls"
_PIECE = 64 * 1024

_in_urlopen: ContextVar[bool] = ContextVar("agentlightning_in_urlopen", default=False)


class HttpClientCalls:
    """The patches of ``http.client`` and of urllib3's retries."""

    def __init__(self, watch: CallWatch) -> None:
        self._watch = watch

    def patch_http_client(self, library: ModuleType) -> list[Patch]:
        """Patch the methods of ``HTTPConnection`` by which a request leaves and its answer comes."""
        owner = library.HTTPConnection
        return [
            _watch_collector(),
            AttributePatch(owner, "putrequest", self._putrequest, _EFFECT),
            AttributePatch(owner, "send", self._send, _EFFECT),
            AttributePatch(owner, "getresponse", self._getresponse, _EFFECT),
        ]

    def patch_urllib3(self, connectionpool: ModuleType) -> list[Patch]:
        """Patch the method inside of which urllib3 connects and retries."""
        says = "a call and its retries are one call"
        return [AttributePatch(connectionpool.HTTPConnectionPool, "urlopen", self._urlopen, says)]

    def _putrequest(self, original: Any, patch: Patch) -> Any:
        @functools.wraps(original)
        def putrequest(connection: Any, method: str, url: str, *args: Any, **kwargs: Any) -> Any:
            result = original(connection, method, url, *args, **kwargs)
            # Connections are kept alive: an earlier request without a response must not get these bytes.
            vars(connection).pop(_STATE, None)
            if patch.active and not is_own_work() and operation_of(method, urlsplit(url).path) is not None:
                with self._watch.guard("noting a request"):
                    vars(connection)[_STATE] = _Request(self._watch, connection, method, url)
            return result

        return putrequest

    def _send(self, original: Any, patch: Patch) -> Any:
        del patch  # a request that was noted is followed to its end, also after the patch was undone

        @functools.wraps(original)
        def send(connection: Any, data: Any) -> Any:
            request: _Request | None = vars(connection).get(_STATE)
            if request is None or request.is_bypassed:
                return original(connection, data)
            return request.send(original, data)

        return send

    def _getresponse(self, original: Any, patch: Patch) -> Any:
        del patch  # as in ``_send``

        @functools.wraps(original)
        def getresponse(connection: Any) -> Any:
            request: _Request | None = vars(connection).pop(_STATE, None)
            return original(connection) if request is None else request.getresponse(original)

        return getresponse

    def _urlopen(self, original: Any, patch: Patch) -> Any:
        @functools.wraps(original)
        def urlopen(pool: Any, method: Any, url: Any, *args: Any, **kwargs: Any) -> Any:
            is_call = operation_of(str(method), urlsplit(str(url)).path) is not None
            if not patch.active or not is_call or is_own_work() or _in_urlopen.get():
                return original(pool, method, url, *args, **kwargs)
            opened, token = open_request_scope(self._watch), _in_urlopen.set(True)
            scope = opened[0]
            try:
                return original(pool, method, url, *args, **kwargs)
            except Exception as error:
                if scope.call is None:  # no connection was made that could have been seen
                    body = args[0] if args else kwargs.get("body")
                    self._failed_to_connect(pool, method, url, body, error)
                raise
            finally:
                _in_urlopen.reset(token)
                close_request_scope(opened)

        return urlopen

    def _failed_to_connect(self, pool: Any, method: str, url: str, body: Any, error: Exception) -> None:
        with self._watch.guard("noting a request"):
            parts = urlsplit(url)
            body = body.encode() if isinstance(body, str) else body
            outgoing = Outgoing(
                method=method,
                scheme=parts.scheme or str(pool.scheme),
                host=parts.netloc.rpartition("@")[2] or f"{pool.host}:{pool.port}",
                path=parts.path,
                query=parts.query,
                headers={},
                body=bytes(body) if isinstance(body, (bytes, bytearray)) else None,
            )
            exchange = self._watch.begin(outgoing, may_be_nested=True)
            if exchange is not None:
                exchange.fail(error)


class _Request:
    """One request on one connection, from its first line to the head of its answer."""

    def __init__(self, watch: CallWatch, connection: Any, method: str, url: str) -> None:
        self._watch = watch
        self._connection = connection
        self._method = method
        self._url = urlsplit(url)
        self._head = b""
        self._headers: dict[str, str] = {}
        self._body = Dechunker(chunked=False)
        self._pieces: list[bytes] = []
        self._is_complete = False
        self._exchange: Exchange | None = None
        self._whole: Outgoing | None = None
        self._held: list[bytes] | None = None
        """Bytes that the agent's client has sent and that are held back here; ``None`` where nothing is held back."""
        self._agents_request: list[bytes] = []
        """The agent's unchanged request, kept where one that asks for token ids was sent instead."""
        self.is_bypassed = False
        """Whether ``send`` passes bytes on unnoted: of a proxy's ``CONNECT``, or of a request that we send."""

    # -- the request

    def send(self, original: Any, data: Any) -> None:
        """Note what is sent, and pass it on, or hold it."""
        is_bytes = isinstance(data, (bytes, bytearray, memoryview))
        ready = False
        with self._watch.guard("noting a request"):
            if is_bytes:
                ready = self._take(bytes(data))
            elif self._held is not None:  # a file or an iterable, which can be read once only
                ready = True
        if self._held is None:
            if ready:
                self._begin()
            self._send_now(original, data)
            return
        if is_bytes:
            self._held.append(bytes(data))
        if ready:
            self._send_held(original)
        if not is_bytes:
            self._send_now(original, data)

    def _take(self, data: bytes) -> bool:
        """Take the next bytes of the request; return whether it is complete."""
        if not self._head:
            self._head, _, data = data.partition(b"\r\n\r\n")
            self._headers = _headers_of(self._head)
            length = self._headers.get("content-length", "0")
            chunked = "chunked" in self._headers.get("transfer-encoding", "").lower()
            self._body = Dechunker(chunked=chunked, length=int(length) if length.isdigit() else None)
            if self._may_hold():
                self._held = []
        if data:
            self._pieces.append(self._body.feed(data))
        self._is_complete = self._body.is_over
        return self._is_complete

    def _may_hold(self) -> bool:
        # After a refusal the agent's own request needs a new connection, and a tunnel cannot be opened again here.
        tunnelled = getattr(self._connection, "_tunnel_host", None) is not None
        return not tunnelled and self._watch.may_request_tokens(self._outgoing(None))

    def _outgoing(self, body: bytes | None) -> Outgoing:
        connection, url = self._connection, self._url
        is_tls = isinstance(connection, http.client.HTTPSConnection) or hasattr(connection, "cert_reqs")
        return Outgoing(
            method=self._method,
            scheme=url.scheme or ("https" if is_tls else "http"),
            host=url.netloc.rpartition("@")[2] or self._headers.get("host") or str(connection.host),
            path=url.path,
            query=url.query,
            headers=self._headers,
            body=body,
        )

    def _begin(self) -> None:
        if self._exchange is None:
            with self._watch.guard("noting a request"):
                self._whole = self._outgoing(b"".join(self._pieces) if self._is_complete else None)
                self._exchange = self._watch.begin(self._whole, may_be_nested=True)

    def _send_held(self, original: Any) -> None:
        """Send what was held: the agent's own request, or one that asks for more."""
        held, self._held = self._held or [], None
        self._begin()
        asking_body = None
        if self._exchange is not None and self._whole is not None:
            asking_body = self._watch.token_request_body(self._exchange, self._whole)
        if asking_body is None:
            for piece in held:
                self._send_now(original, piece)
            return
        self._agents_request = held
        self._send_now(original, _with_body(self._head, asking_body))

    def _send_now(self, original: Any, data: Any) -> None:
        self.is_bypassed = True
        try:
            original(self._connection, data)
        except BaseException as error:
            if self._exchange is None:
                self._begin()
            if self._exchange is not None:
                self._exchange.fail(error)
            raise
        finally:
            self.is_bypassed = False

    # -- the answer

    def getresponse(self, original: Any) -> Any:
        """Return the answer that is for the agent."""
        if self._held is not None:
            self._send_held(self._plain_send)
        self._begin()
        exchange = self._exchange
        if exchange is None:
            return original(self._connection)
        try:
            response = self._answer(original, exchange)
        except BaseException as error:
            exchange.fail(error)
            raise
        with self._watch.guard("noting a response"):
            headers = {name.lower(): value for name, value in response.headers.items()}
            stripper = self._watch.note_response_head(exchange, response.status, headers)
            _replace_file(response, exchange, self._watch.guard, stripper)
            return response
        exchange.finish(complete=False)
        return response

    def _answer(self, original: Any, exchange: Exchange) -> Any:
        if not self._agents_request:
            return original(self._connection)
        status = None
        with contextlib.suppress(ConnectionError, http.client.IncompleteRead):
            response = original(self._connection)
            status = response.status
            headers = {name.lower(): value for name, value in response.headers.items()}
            refused = self._watch.is_refusal(status, headers)
            detector = (
                self._watch.error_detector(exchange, headers.get("content-encoding", ""))
                if status < 400
                else None
            )
            if detector is not None:
                _peek(response, detector)
                refused = detector.is_error
            if not refused:
                self._watch.record_outcome(exchange, refused=False, status=status)
                return response
            response.close()
        self._watch.withdraw_token_request(exchange)
        self._send_again()
        response = original(self._connection)
        self._watch.record_outcome(exchange, refused=True, status=status, own=response.status)
        return response

    def _send_again(self) -> None:
        """Send the agent's own request, on a connection made anew: the last one may be in any state."""
        connection = self._connection
        http.client.HTTPConnection.close(connection)
        self.is_bypassed = True
        vars(connection)[_STATE] = self
        try:
            connection.send(b"".join(self._agents_request))
        finally:
            self.is_bypassed = False
            vars(connection).pop(_STATE, None)
        # ``getresponse`` accepts only a connection in this state; ``send`` alone does not set it.
        connection._HTTPConnection__state = http.client._CS_REQ_SENT  # type: ignore[attr-defined]  # noqa: SLF001

    @staticmethod
    def _plain_send(connection: Any, data: Any) -> None:
        connection.send(data)


def _headers_of(head: bytes) -> dict[str, str]:
    lines = head.decode("iso-8859-1").split("\r\n")[1:]
    pairs = (line.partition(":") for line in lines)
    return {name.strip().lower(): value.strip() for name, _, value in pairs}


def _with_body(head: bytes, body: bytes) -> bytes:
    """Return a request as the agent's, with another body."""
    replaced = (b"content-length", b"transfer-encoding", b"accept-encoding")
    lines = [line for line in head.split(b"\r\n") if line.partition(b":")[0].strip().lower() not in replaced]
    lines += [b"Content-Length: %d" % len(body), b"Accept-Encoding: identity"]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


# -- bodies of answers


class Dechunker:
    """Takes a body out of its transfer coding (RFC 9112, 7.1), however it arrives."""

    def __init__(self, *, chunked: bool, length: int | None = None) -> None:
        self._chunked = chunked
        self._left = None if chunked else length
        self._rest = b""
        self._in_trailer = False
        self.is_over = not chunked and length == 0
        """Whether the body has come to its end; one that goes on until the connection closes never says so."""

    @property
    def length(self) -> int | None:
        """How many bytes the body still has, where that is known."""
        return None if self._chunked else self._left

    @property
    def needs_more(self) -> bool:
        """Whether an end of the connection now would cut the body off."""
        return not self.is_over and (self._chunked or self._left is not None)

    def feed(self, data: bytes) -> bytes:
        """Return the bytes of the body in the next bytes of the connection."""
        if not self._chunked:
            if self._left is not None:
                self._left -= len(data)
                self.is_over = self._left <= 0
            return data
        buffer, body, position = self._rest + data, [], 0
        while not self.is_over:
            if self._left is None:
                end = buffer.find(b"\n", position)
                if end < 0:
                    break
                line = buffer[position:end].partition(b";")[0].strip()
                position = end + 1
                if self._in_trailer:
                    self.is_over = not line
                elif line:
                    self._left = int(line, 16) or None
                    self._in_trailer = self._left is None
                continue
            piece = buffer[position : position + self._left]
            body.append(piece)
            position += len(piece)
            self._left -= len(piece)
            if self._left:
                break
            self._left = None  # an empty line ends the chunk
        self._rest = buffer[position:]
        return b"".join(body)


class _File(io.RawIOBase):
    """Stands in for the file of a response: notes the body, and takes out what was asked for."""

    def __init__(
        self,
        response: Any,
        exchange: Exchange,
        guard: Guard,
        stripper: Stripper | None,
        held: deque[bytes],
    ) -> None:
        super().__init__()
        self._inner = response.fp
        self._exchange = exchange
        self._guard = guard
        self._stripper = stripper
        self._held = held
        self._chunked = bool(response.chunked)
        self._body = Dechunker(chunked=self._chunked, length=response.length)
        self._ready = b""
        self._ended = False

    def readable(self) -> bool:
        return True

    def fileno(self) -> int:
        return int(self._inner.fileno())

    def readinto(self, buffer: Any) -> int:
        while not self._ready and not self._ended:
            self._ready = self._next()
        size = min(len(buffer), len(self._ready))
        buffer[:size], self._ready = self._ready[:size], self._ready[size:]
        return size

    def _next(self) -> bytes:
        try:
            data = self._held.popleft() if self._held else self._inner.read1(_PIECE)
        except BaseException as error:
            self._exchange.fail(error)
            raise
        body = b""
        with self._guard("noting a response"):
            body = self._body.feed(data)
            if body:
                self._exchange.note_response_chunk(body)
        ended = not data or self._body.is_over
        passed = data if self._stripper is None else self._strip(body, ended=ended)
        if ended:
            self._ended = not data or self._stripper is not None
            if self._body.needs_more:
                self._exchange.finish(complete=False, error="IncompleteRead")
            else:
                self._exchange.finish(complete=True)
        return passed

    def _strip(self, body: bytes, *, ended: bool) -> bytes:
        stripper = self._stripper
        assert stripper is not None
        passed: bytes | None = None
        with self._guard("taking out what was asked for"):
            passed = stripper.feed(body) + (stripper.finish() if ended else b"")
        if passed is None:
            self._exchange.notes.append("added_fields_visible")
            passed = stripper.rest()
        if not self._chunked:
            return passed
        framed = b"%x\r\n%b\r\n" % (len(passed), passed) if passed else b""
        return framed + (b"0\r\n\r\n" if ended and not self._body.needs_more else b"")

    def close(self) -> None:
        if self.closed:
            return
        super().close()
        try:
            self._inner.close()
        finally:
            if threading.get_ident() in _collecting:
                finish_collected(self._exchange)
            else:
                self._exchange.finish(complete=False)


def _replace_file(response: Any, exchange: Exchange, guard: Guard, stripper: Stripper | None) -> None:
    held: deque[bytes] = vars(response).pop(_STATE, deque())
    if response.fp is None:  # an answer without a body, which is over
        exchange.finish(complete=True)
        return
    if stripper is not None and not response.chunked and not exchange.start.stream:
        _fit_length(response, exchange, stripper, held)
        return
    file = _File(response, exchange, guard, stripper, held)
    # Nobody knows how long the edited stream will be.
    if stripper is not None and response.length is not None:
        response.length = None
        del response.headers["content-length"]
    response.fp = io.BufferedReader(file)


def _fit_length(response: Any, exchange: Exchange, stripper: Stripper, held: deque[bytes]) -> None:
    """Edit an answer that has been read whole, and say how long it is now."""
    body = b"".join(held)
    exchange.note_response_chunk(body)
    edited = stripper.feed(body) + stripper.finish()
    response.fp.close()
    exchange.finish(complete=True)
    if response.length is not None:
        response.length = len(edited)
        response.headers.replace_header("content-length", str(len(edited)))
    response.fp = io.BytesIO(edited)


def _peek(response: Any, detector: ErrorDetector) -> None:
    """Read the beginning of an answer, so far as it takes to know whether it is an error."""
    held: deque[bytes] = deque()
    vars(response)[_STATE] = held
    body = Dechunker(chunked=bool(response.chunked), length=response.length)
    while not body.is_over:
        limit = _PIECE if body.length is None else min(_PIECE, body.length)
        data = response.fp.read1(limit)
        if not data:
            if body.needs_more:
                raise http.client.IncompleteRead(b"".join(held))
            break
        held.append(data)
        if detector.feed(body.feed(data)):
            return
    detector.finish()


# -- the garbage collector

_collecting: set[int] = set()
"""Ids of the threads in which the garbage collector runs now.

It may close a response's file in the middle of anything, also in code that holds the sink's lock; ``_File.close`` must
not call the sink then. ``set.add`` and ``set.discard`` are atomic, and each thread changes its own entry only.
"""

_active_watches: set[Patch] = set()
"""The captures that need ``gc.callbacks``; the last one to be undone removes our callback."""


def _track_collection(phase: str, _info: Any) -> None:
    if phase == "start":
        _collecting.add(threading.get_ident())
    else:
        _collecting.discard(threading.get_ident())


def _watch_collector() -> Patch:
    def undo() -> None:
        _active_watches.discard(watch)
        if not _active_watches:
            gc.callbacks.remove(_track_collection)
            _collecting.clear()

    watch = Patch("gc.callbacks: knows where the garbage collector runs", undo)
    if not _active_watches:
        gc.callbacks.append(_track_collection)
    _active_watches.add(watch)
    return watch
