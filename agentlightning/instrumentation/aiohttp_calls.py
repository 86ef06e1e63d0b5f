"""Model calls of aiohttp: ``ClientSession._request``, through which all its requests go.

An answer is read through ``response.content``. A reader of our own takes its place, which gets its data from the one
that was there when somebody waits for them; so nothing is read that nobody asked for, and the very bytes are noted.
"""

from __future__ import annotations

import contextlib
import functools
import json
import weakref
from collections.abc import AsyncIterator, Iterator, Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ..dialects.openai.request import operation_of
from .exchange import Exchange, Outgoing
from .patch import AttributePatch, Patch, defining_class
from .refusals import ErrorDetector, is_redirect
from .suppression import is_own_work
from .tee import Stripper, finish_collected
from .watch import CallWatch

if TYPE_CHECKING:
    from aiohttp.streams import StreamReader as _Reader
else:
    _Reader = object  # aiohttp is loaded by the agent, if at all

_BREAKS = ("ServerDisconnectedError", "ClientOSError", "ClientPayloadError", "ConnectionResetError")


class AiohttpCalls:
    """The patch of aiohttp."""

    def __init__(self, watch: CallWatch) -> None:
        self._watch = watch

    def patch_aiohttp(self, client: ModuleType) -> list[Patch]:
        """Patch ``aiohttp.client``."""
        owner = defining_class(client.ClientSession, "_request")
        if owner is None:
            return []
        from aiohttp import streams

        reader = _reader_class(streams.StreamReader)
        wrap = functools.partial(self._request, reader)
        return [AttributePatch(owner, "_request", wrap, "notes the bytes of model calls")]

    def _request(self, reader: Any, original: Any, patch: Patch) -> Any:
        @functools.wraps(original)
        async def _request(session: Any, method: str, str_or_url: Any, **kwargs: Any) -> Any:
            if not patch.active or is_own_work():
                return await original(session, method, str_or_url, **kwargs)
            outgoing = exchange = None
            with self._watch.guard("noting a request"):
                outgoing = _outgoing(session, method, str_or_url, kwargs)
                exchange = None if outgoing is None else self._watch.begin(outgoing, may_be_nested=True)
            if outgoing is None or exchange is None:
                return await original(session, method, str_or_url, **kwargs)
            if outgoing.body is None:
                # Made while it is sent: nobody has its bytes before, so no token ids can be asked for.
                kwargs["data"] = _with_noted_chunks(kwargs["data"], exchange)
            try:
                asking_body = self._watch.token_request_body(exchange, outgoing)
                if asking_body is None:
                    response = await original(session, method, str_or_url, **kwargs)
                else:
                    send = functools.partial(original, session, method, str_or_url)
                    response = await self._ask(reader, send, kwargs, exchange, asking_body)
            except BaseException as error:
                status = getattr(error, "status", None)
                if isinstance(status, int) and status >= 400:  # the session raises for statuses
                    exchange.note_response_head(status, "", "")
                exchange.fail(error)
                raise
            with self._watch.guard("noting a response"):
                if response.history:
                    self._watch.note_redirect(exchange, str(response.url))
                stripper = self._watch.note_response_head(exchange, response.status, _read_headers(response))
                _install_reader(reader, response, exchange, self._watch, stripper)
                return response
            exchange.finish(complete=False)
            return response

        return _request

    async def _ask(
        self, reader: Any, send: Any, kwargs: Mapping[str, Any], exchange: Exchange, asking_body: bytes
    ) -> Any:
        """Send a request that asks for more; after a refusal, the agent's own."""
        status: int | None = None
        try:
            response = await send(**{**_with_body(kwargs, asking_body), "allow_redirects": False})
        except Exception as error:
            status = getattr(error, "status", None)
            refused = type(error).__name__ in _BREAKS
            if isinstance(status, int) and status >= 400:
                headers = {
                    name.lower(): value for name, value in (getattr(error, "headers", None) or {}).items()
                }
                refused = self._watch.is_refusal(status, headers)
            if not refused:
                raise
        else:
            status = response.status
            if not await self._is_refused(reader, response, exchange):
                self._watch.record_outcome(exchange, refused=False, status=status)
                return response
            response.close()  # it is not read to its end, so its connection cannot serve another request
        self._watch.withdraw_token_request(exchange)
        response = await send(**kwargs)
        self._watch.record_outcome(exchange, refused=True, status=status, own=response.status)
        return response

    async def _is_refused(self, reader: Any, response: Any, exchange: Exchange) -> bool:
        if is_redirect(response.status) or self._watch.is_refusal(response.status, _read_headers(response)):
            return True
        if response.status >= 400:
            return False
        # The client has undone the content encoding, if there was one, so the bytes can be read as they come.
        detector = ErrorDetector(stream=exchange.start.stream)
        held = reader(response.content)
        response.content = held
        try:
            await held.peek(detector)
        except Exception as error:
            if type(error).__name__ not in _BREAKS:
                response.close()
                raise
            return True
        return detector.is_error


def _outgoing(session: Any, method: str, str_or_url: Any, kwargs: Mapping[str, Any]) -> Outgoing | None:
    # Puts a relative URL behind the session's ``base_url``; there is no public way to ask for that.
    build = getattr(session, "_build_url", None)
    url = urlsplit(str(build(str_or_url) if build is not None else str_or_url))
    if operation_of(method.upper(), url.path) is None:
        return None
    headers = {str(name).lower(): str(value) for name, value in (session.headers or {}).items()}
    given = kwargs.get("headers") or {}
    pairs = given.items() if hasattr(given, "items") else given
    headers.update({str(name).lower(): str(value) for name, value in pairs})
    if kwargs.get("compress"):
        # What is sent; the body here is not compressed yet.
        headers["content-encoding"] = str(kwargs["compress"])
    data, document = kwargs.get("data"), kwargs.get("json")
    body: bytes | None = None
    if document is not None:
        serialize = getattr(session, "json_serialize", None) or json.dumps
        said = serialize(document)
        body = said.encode() if isinstance(said, str) else bytes(said)
    elif isinstance(data, (bytes, bytearray, memoryview)):
        body = bytes(data)
    elif isinstance(data, str):
        body = data.encode()
    elif not hasattr(data, "__aiter__") and not hasattr(data, "__iter__"):
        return None  # no body, or a payload object of aiohttp's: not how any client of a model sends JSON
    return Outgoing(
        method="POST",
        scheme=url.scheme,
        host=url.netloc.rpartition("@")[2],
        path=url.path,
        query=url.query,
        headers=headers,
        body=body,
    )


def _with_noted_chunks(data: Any, exchange: Exchange) -> Any:
    """Return a body that is made while it is sent, so that the exchange hears of it."""

    async def in_turns() -> AsyncIterator[bytes]:
        async for chunk in data:
            exchange.note_request_chunk(chunk)
            yield chunk

    def at_once() -> Iterator[bytes]:
        for chunk in data:
            exchange.note_request_chunk(chunk)
            yield chunk

    if hasattr(data, "__aiter__"):
        return in_turns()
    # aiohttp sends files in its own way and makes forms of collections; both would change if they were iterated here.
    return data if hasattr(data, "read") or isinstance(data, (dict, list, tuple)) else at_once()


def _with_body(kwargs: Mapping[str, Any], body: bytes) -> dict[str, Any]:
    """Return the arguments of a request as the agent's, with another body."""
    given = kwargs.get("headers") or {}
    pairs = list(given.items() if hasattr(given, "items") else given)
    headers = [
        (name, value)
        for name, value in pairs
        if str(name).lower() not in {"content-length", "accept-encoding"}
    ]
    if not any(str(name).lower() == "content-type" for name, _ in headers):
        headers.append(("Content-Type", "application/json"))
    headers.append(("Accept-Encoding", "identity"))
    others = {name: value for name, value in kwargs.items() if name not in {"json", "data", "headers"}}
    return {**others, "data": body, "headers": dict(headers)}


def _read_headers(response: Any) -> dict[str, str]:
    """Return the headers of a response whose body the client hands out decompressed."""
    headers = {name.lower(): value for name, value in response.headers.items()}
    if getattr(response, "_auto_decompress", True):
        headers.pop("content-encoding", None)
    return headers


class _NullProtocol:
    """What a reader takes for its connection: the one below it holds the real one back."""

    connected = True

    def pause_reading(self) -> None: ...

    def resume_reading(self, *, resume_parser: bool = True) -> None: ...


def _install_reader(
    reader: Any, response: Any, exchange: Exchange, watch: CallWatch, stripper: Stripper | None
) -> None:
    content = response.content
    if not isinstance(content, reader):
        content = response.content = reader(content)
    content.follow(exchange, watch, stripper)


class _RecordingReader(_Reader):
    """What makes a ``StreamReader`` get its data from another one; stands before that class among the bases."""

    def __init__(self, inner: Any) -> None:
        protocol: Any = _NullProtocol()
        super().__init__(protocol, inner.get_read_buffer_limits()[0], loop=inner._loop)  # noqa: SLF001
        self._inner = inner
        self._inner_read: list[tuple[bytes, bool]] = []
        self._exchange: Exchange | None = None
        self._watch: CallWatch | None = None
        self._stripper: Stripper | None = None
        if inner.exception() is not None:
            super().set_exception(inner.exception())

    # -- before anybody reads

    async def peek(self, detector: ErrorDetector) -> None:
        while not self._inner.at_eof():
            piece = await self._inner.readchunk()
            if not piece[0] and not piece[1] and self._inner.at_eof():
                break
            self._inner_read.append(piece)
            if detector.feed(piece[0]):
                return
        detector.finish()

    def follow(self, exchange: Exchange, watch: CallWatch, stripper: Stripper | None) -> None:
        self._exchange, self._watch, self._stripper = exchange, watch, stripper
        finalizer: Any = weakref.finalize(self, finish_collected, exchange)
        finalizer.atexit = False  # at the end of the process the recorder itself ends what is open
        while self._inner_read:
            self._take(*self._inner_read.pop(0))
        self._end_if_exhausted()

    # -- as somebody reads

    async def _wait(self, func_name: str) -> None:  # noqa: ARG002 - aiohttp's signature
        try:
            data, ends_chunk = await self._inner.readchunk()
        except BaseException as error:
            if self._exchange is not None:
                self._exchange.fail(error)
            if isinstance(error, Exception):
                super().set_exception(error)
            raise
        self._take(data, ends_chunk)
        self._end_if_exhausted()

    def _end_if_exhausted(self) -> None:
        """Notice the end at once, as ``at_eof`` of the other reader would say it."""
        if self._inner.at_eof() and self._inner.exception() is None and not self._eof:
            self._end()

    def _take(self, data: bytes, ends_chunk: bool) -> None:
        if data and self._exchange is not None:
            self._exchange.note_response_chunk(data)
        passed = self._strip(data)
        if passed:
            # The reader refuses to begin with chunks once it has data; what it says of chunks is asked for by
            # ``iter_chunks`` alone.
            if ends_chunk and self._http_chunk_splits is None and not self.total_bytes:
                self.begin_http_chunk_receiving()
            self.feed_data(passed)
        if ends_chunk and self._http_chunk_splits is not None:
            self.end_http_chunk_receiving()

    def _strip(self, data: bytes) -> bytes:
        if self._stripper is None or self._watch is None:
            return data
        with self._watch.guard("taking out what was asked for"):
            return self._stripper.feed(data)
        return self._stop_stripping() + data

    def _stop_stripping(self) -> bytes:
        stripper, self._stripper = self._stripper, None
        if self._exchange is not None:
            self._exchange.notes.append("added_fields_visible")
        return b"" if stripper is None else stripper.rest()

    def _end(self) -> None:
        left = b""
        if self._stripper is not None and self._watch is not None:
            with self._watch.guard("taking out what was asked for"):
                left = self._stripper.finish()
        if left:
            self.feed_data(left)
        self.feed_eof()
        if self._exchange is not None:
            self._exchange.finish(complete=True)

    def set_exception(self, exc: BaseException, *args: Any) -> None:
        super().set_exception(exc, *args)
        # Whoever waits below gets it too. A reader of another release may take other arguments.
        with contextlib.suppress(Exception):
            self._inner.set_exception(exc, *args)
        if self._exchange is not None:  # the response was closed or released before its end
            self._exchange.finish(complete=False)

    def is_eof(self) -> bool:
        return bool(self._eof or self._inner.is_eof())

    async def wait_eof(self) -> None:
        await self._inner.wait_eof()


def _reader_class(base: Any) -> Any:
    """Return a ``StreamReader`` of the aiohttp that is installed, which gets its data from another one."""
    return type("RecordedReader", (_RecordingReader, base), {})
