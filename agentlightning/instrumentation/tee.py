"""Response streams that pass the very same bytes on and note them.

httpx and httpx2 hand a response's bytes out through ``response.stream``, an object of the library's
``SyncByteStream`` or ``AsyncByteStream``. A tee takes its place. It is no generator, so nothing of ours is
suspended while the agent holds a chunk: no context variable, no lock, no finaliser of an async generator. The
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

from .asking import FirstLook
from .exchange import Exchange
from .guard import Guard


class Stripper(Protocol):
    """Takes out of an answer what we asked for, while it passes."""

    def feed(self, chunk: bytes) -> bytes:
        """Return what may be passed on."""
        ...

    def finish(self) -> bytes:
        """Return what was held back until the end."""
        ...

    def rest(self) -> bytes:
        """Return what was held back, as it came."""
        ...


class _Flow:
    """What a tee and its iterator share: the exchange, and the stripper while it works."""

    def __init__(self, exchange: Exchange, guard: Guard, stripper: Stripper | None) -> None:
        self.exchange = exchange
        self._guard = guard
        self.stripper = stripper

    def strip(self, stripper: Stripper, chunk: bytes) -> bytes:
        with self._guard("taking out what was asked for"):
            return stripper.feed(chunk)
        return self._give_up() + chunk

    def end(self) -> bytes:
        """The server's stream is exhausted; return what is left to pass on."""
        left = b""
        stripper, self.stripper = self.stripper, None
        if stripper is not None:
            with self._guard("taking out what was asked for"):
                left = stripper.finish()
        self.exchange.over(complete=True)
        return left

    def _give_up(self) -> bytes:
        self.exchange.notes.append("added_fields_visible")
        stripper, self.stripper = self.stripper, None
        return stripper.rest() if stripper is not None else b""


def collected(exchange: Exchange) -> None:
    """End an exchange whose stream the garbage collector has taken."""
    if exchange.is_over:
        return
    # The garbage collector may run anywhere, also inside the sink while it holds a lock: never call it from here.
    # At the end of the interpreter no thread starts: the call stays open, and is counted so.
    with contextlib.suppress(RuntimeError):
        _thread.start_new_thread(exchange.over, (), {"complete": False})


class _Tee:
    def __init__(self, inner: Any, flow: _Flow) -> None:
        self._inner = inner
        self._flow = flow
        finalizer: Any = weakref.finalize(self, collected, flow.exchange)
        finalizer.atexit = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class _SyncTee(_Tee):
    def __iter__(self) -> _SyncChunks:
        return _SyncChunks(self, self._flow, iter(self._inner))

    def close(self) -> None:
        try:
            self._inner.close()
        finally:
            self._flow.exchange.over(complete=False)


class _SyncChunks:
    def __init__(self, tee: _Tee, flow: _Flow, source: Any) -> None:
        self._tee = tee  # keeps the finaliser of the tee from running while somebody iterates
        self._flow = flow
        self._source = source

    def __iter__(self) -> _SyncChunks:
        return self

    def __next__(self) -> bytes:
        while True:
            try:
                chunk: bytes = next(self._source)
            except StopIteration:
                left = self._flow.end()
                if left:
                    return left
                raise
            except BaseException as error:
                self._flow.exchange.failed(error)
                raise
            flow = self._flow
            flow.exchange.note(chunk)
            if flow.stripper is None:
                return chunk
            passed = flow.strip(flow.stripper, chunk)
            if passed or not chunk:
                return passed


class _AsyncTee(_Tee):
    def __aiter__(self) -> _AsyncChunks:
        return _AsyncChunks(self, self._flow, aiter(self._inner))

    async def aclose(self) -> None:
        try:
            await self._inner.aclose()
        finally:
            self._flow.exchange.over(complete=False)


class _AsyncChunks:
    def __init__(self, tee: _Tee, flow: _Flow, source: Any) -> None:
        self._tee = tee
        self._flow = flow
        self._source = source

    def __aiter__(self) -> _AsyncChunks:
        return self

    async def __anext__(self) -> bytes:
        while True:
            try:
                chunk: bytes = await anext(self._source)
            except StopAsyncIteration:
                left = self._flow.end()
                if left:
                    return left
                raise
            except BaseException as error:
                self._flow.exchange.failed(error)
                raise
            flow = self._flow
            flow.exchange.note(chunk)
            if flow.stripper is None:
                return chunk
            passed = flow.strip(flow.stripper, chunk)
            if passed or not chunk:
                return passed


class _SyncHeld:
    """A stream of which the beginning was read before anybody asked for it."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self._source = iter(inner)
        self._held: deque[bytes] = deque()

    def look(self, look: FirstLook) -> None:
        for chunk in self._source:
            self._held.append(chunk)
            if look.feed(chunk):
                return
        look.finish()

    def __iter__(self) -> Any:
        return self

    def __next__(self) -> bytes:
        return self._held.popleft() if self._held else next(self._source)

    def close(self) -> None:
        self._inner.close()


class _AsyncHeld:
    """As ``_SyncHeld``, for asynchronous streams."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self._source = aiter(inner)
        self._held: deque[bytes] = deque()

    async def look(self, look: FirstLook) -> None:
        async for chunk in self._source:
            self._held.append(chunk)
            if look.feed(chunk):
                return
        look.finish()

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
            self._exchange.sent(chunk)
            yield chunk

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class _AsyncBody(_SyncBody):
    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._inner:
            self._exchange.sent(chunk)
            yield chunk


class Tees:
    """The two tees of one HTTP library, as subclasses of its own stream classes."""

    def __init__(self, library: ModuleType) -> None:
        self._sync = type("RecordedSyncStream", (_SyncTee, library.SyncByteStream), {})
        self._async = type("RecordedAsyncStream", (_AsyncTee, library.AsyncByteStream), {})
        self._sync_base, self._async_base = library.SyncByteStream, library.AsyncByteStream
        self._sync_held = type("HeldSyncStream", (_SyncHeld, library.SyncByteStream), {})
        self._async_held = type("HeldAsyncStream", (_AsyncHeld, library.AsyncByteStream), {})
        self._sync_body = type("NotedSyncBody", (_SyncBody, library.SyncByteStream), {})
        self._async_body = type("NotedAsyncBody", (_AsyncBody, library.AsyncByteStream), {})

    def note_request(self, request: Any, exchange: Exchange) -> None:
        """Take the place of ``request.stream``, so that the exchange hears of what is sent."""
        if isinstance(request.stream, self._async_base) and not isinstance(request.stream, self._sync_base):
            request.stream = self._async_body(request.stream, exchange)
        elif isinstance(request.stream, self._sync_base):
            request.stream = self._sync_body(request.stream, exchange)

    def held(self, response: Any) -> Any:
        """Take the place of ``response.stream`` by one that can be looked at; ``None`` where it is no stream."""
        stream = response.stream
        if response.is_closed:
            return None
        if isinstance(stream, self._async_base) and not isinstance(stream, self._sync_base):
            response.stream = self._async_held(stream)
        elif isinstance(stream, self._sync_base):
            response.stream = self._sync_held(stream)
        else:
            return None
        return response.stream

    def put(self, response: Any, exchange: Exchange, guard: Guard, stripper: Stripper | None) -> bool:
        """Take the place of ``response.stream``; false where it is no stream that the library would read."""
        stream, flow = response.stream, _Flow(exchange, guard, stripper)
        if isinstance(stream, self._async_base) and not isinstance(stream, self._sync_base):
            response.stream = self._async(stream, flow)
        elif isinstance(stream, self._sync_base):
            response.stream = self._sync(stream, flow)
        else:
            return False
        return True
