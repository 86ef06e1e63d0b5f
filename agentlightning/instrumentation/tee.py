"""Streams in the place of a response's own, which pass the same bytes on and keep a copy for the exchange.

httpx and httpx2 hand a response's bytes out through ``response.stream``, an object of the library's
``SyncByteStream`` or ``AsyncByteStream``. A tee takes its place. It is deliberately no generator: a generator would
stay suspended inside of our code while the agent holds a chunk, with our context variables, and an asynchronous one
would be closed by the event loop at a time of its own. The
exchange is over when the stream is exhausted, closed, breaks, is cancelled or is garbage-collected.
"""

from __future__ import annotations

import _thread
import contextlib
import weakref
from collections import deque
from collections.abc import AsyncIterator, Iterator
from types import ModuleType
from typing import Any, Protocol

from .exchange import Exchange
from .guard import Guard
from .refusals import ErrorDetector


class Stripper(Protocol):
    """Takes what the recorder has asked for out of a response, chunk by chunk, before the agent gets it."""

    def feed(self, chunk: bytes) -> bytes:
        """Take the next chunk; return the bytes that may be passed on, of this and of earlier chunks."""
        ...

    def finish(self) -> bytes:
        """Return what was held back, edited; the response has ended."""
        ...

    def rest(self) -> bytes:
        """Return what was held back, unedited: for when editing has failed."""
        ...


class _StreamState:
    """What a tee and its iterator share: the exchange, and the stripper while it works."""

    def __init__(self, exchange: Exchange, guard: Guard, stripper: Stripper | None) -> None:
        self.exchange = exchange
        self._guard = guard
        self.stripper = stripper

    def strip(self, stripper: Stripper, chunk: bytes) -> bytes:
        with self._guard("taking out what was asked for"):
            return stripper.feed(chunk)
        return self._stop_stripping() + chunk

    def end(self) -> bytes:
        """The server's stream is exhausted; return what is left to pass on."""
        left = b""
        stripper, self.stripper = self.stripper, None
        if stripper is not None:
            with self._guard("taking out what was asked for"):
                left = stripper.finish()
        self.exchange.finish(complete=True)
        return left

    def _stop_stripping(self) -> bytes:
        self.exchange.notes.append("added_fields_visible")
        stripper, self.stripper = self.stripper, None
        return stripper.rest() if stripper is not None else b""


def finish_collected(exchange: Exchange) -> None:
    """End an exchange whose stream the garbage collector has taken."""
    if exchange.is_finished:
        return
    # The garbage collector may run in the middle of anything, also in the sink while it holds its lock; calling the
    # sink from here would deadlock, so another thread does. While the interpreter shuts down no thread can be started:
    # the call then stays open, and is counted as open.
    with contextlib.suppress(RuntimeError):
        _thread.start_new_thread(exchange.finish, (), {"complete": False})


class _Tee:
    """What both kinds of tee share; attributes that it does not define are those of the stream that it replaces."""

    def __init__(self, inner: Any, state: _StreamState) -> None:
        self._inner = inner
        self._state = state
        # The finaliser must not refer to ``self``, or the tee would never be collected. At exit it must not run: then
        # streams that are still being read would be reported as cut off.
        finalizer: Any = weakref.finalize(self, finish_collected, state.exchange)
        finalizer.atexit = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class _SyncTee(_Tee):
    def __iter__(self) -> _SyncChunks:
        return _SyncChunks(self, self._state, iter(self._inner))

    def close(self) -> None:
        try:
            self._inner.close()
        finally:
            self._state.exchange.finish(complete=False)


class _SyncChunks:
    def __init__(self, tee: _Tee, state: _StreamState, source: Any) -> None:
        self._tee = tee  # keeps the finaliser of the tee from running while somebody iterates
        self._state = state
        self._source = source

    def __iter__(self) -> _SyncChunks:
        return self

    def __next__(self) -> bytes:
        while True:
            try:
                chunk: bytes = next(self._source)
            except StopIteration:
                left = self._state.end()
                if left:
                    return left
                raise
            except BaseException as error:
                self._state.exchange.fail(error)
                raise
            state = self._state
            state.exchange.note_response_chunk(chunk)
            if state.stripper is None:
                return chunk
            passed = state.strip(state.stripper, chunk)
            if passed or not chunk:
                return passed


class _AsyncTee(_Tee):
    def __aiter__(self) -> _AsyncChunks:
        return _AsyncChunks(self, self._state, aiter(self._inner))

    async def aclose(self) -> None:
        try:
            await self._inner.aclose()
        finally:
            self._state.exchange.finish(complete=False)


class _AsyncChunks:
    def __init__(self, tee: _Tee, state: _StreamState, source: Any) -> None:
        self._tee = tee
        self._state = state
        self._source = source

    def __aiter__(self) -> _AsyncChunks:
        return self

    async def __anext__(self) -> bytes:
        while True:
            try:
                chunk: bytes = await anext(self._source)
            except StopAsyncIteration:
                left = self._state.end()
                if left:
                    return left
                raise
            except BaseException as error:
                self._state.exchange.fail(error)
                raise
            state = self._state
            state.exchange.note_response_chunk(chunk)
            if state.stripper is None:
                return chunk
            passed = state.strip(state.stripper, chunk)
            if passed or not chunk:
                return passed


class _SyncPeeked:
    """A stream of which the beginning was read before anybody asked for it."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self._source = iter(inner)
        self._held: deque[bytes] = deque()

    def peek(self, detector: ErrorDetector) -> None:
        for chunk in self._source:
            self._held.append(chunk)
            if detector.feed(chunk):
                return
        detector.finish()

    def __iter__(self) -> Any:
        return self

    def __next__(self) -> bytes:
        return self._held.popleft() if self._held else next(self._source)

    def close(self) -> None:
        self._inner.close()


class _AsyncPeeked:
    """As ``_SyncPeeked``, for asynchronous streams."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self._source = aiter(inner)
        self._held: deque[bytes] = deque()

    async def peek(self, detector: ErrorDetector) -> None:
        async for chunk in self._source:
            self._held.append(chunk)
            if detector.feed(chunk):
                return
        detector.finish()

    def __aiter__(self) -> Any:
        return self

    async def __anext__(self) -> bytes:
        return self._held.popleft() if self._held else await anext(self._source)

    async def aclose(self) -> None:
        await self._inner.aclose()


class _SyncBody:
    """The body of a request that is made while it is sent."""

    def __init__(self, inner: Any, exchange: Exchange) -> None:
        self._inner = inner
        self._exchange = exchange

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._inner:
            self._exchange.note_request_chunk(chunk)
            yield chunk

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class _AsyncBody(_SyncBody):
    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._inner:
            self._exchange.note_request_chunk(chunk)
            yield chunk


class Tees:
    """The two tees of one HTTP library, as subclasses of its own stream classes."""

    def __init__(self, library: ModuleType) -> None:
        self._sync = type("RecordedSyncStream", (_SyncTee, library.SyncByteStream), {})
        self._async = type("RecordedAsyncStream", (_AsyncTee, library.AsyncByteStream), {})
        self._sync_base, self._async_base = library.SyncByteStream, library.AsyncByteStream
        self._sync_peeked = type("PeekedSyncStream", (_SyncPeeked, library.SyncByteStream), {})
        self._async_peeked = type("PeekedAsyncStream", (_AsyncPeeked, library.AsyncByteStream), {})
        self._sync_body = type("NotedSyncBody", (_SyncBody, library.SyncByteStream), {})
        self._async_body = type("NotedAsyncBody", (_AsyncBody, library.AsyncByteStream), {})

    def note_request(self, request: Any, exchange: Exchange) -> None:
        """Take the place of ``request.stream``, so that the exchange hears of what is sent."""
        if isinstance(request.stream, self._async_base) and not isinstance(request.stream, self._sync_base):
            request.stream = self._async_body(request.stream, exchange)
        elif isinstance(request.stream, self._sync_base):
            request.stream = self._sync_body(request.stream, exchange)

    def peekable(self, response: Any) -> Any:
        """Take the place of ``response.stream`` by one that can be looked at; ``None`` where it is no stream."""
        stream = response.stream
        if response.is_closed:
            return None
        if isinstance(stream, self._async_base) and not isinstance(stream, self._sync_base):
            response.stream = self._async_peeked(stream)
        elif isinstance(stream, self._sync_base):
            response.stream = self._sync_peeked(stream)
        else:
            return None
        return response.stream

    def install(self, response: Any, exchange: Exchange, guard: Guard, stripper: Stripper | None) -> bool:
        """Take the place of ``response.stream``; false where it is no stream that the library would read."""
        stream, state = response.stream, _StreamState(exchange, guard, stripper)
        if isinstance(stream, self._async_base) and not isinstance(stream, self._sync_base):
            response.stream = self._async(stream, state)
        elif isinstance(stream, self._sync_base):
            response.stream = self._sync(stream, state)
        else:
            return False
        return True
