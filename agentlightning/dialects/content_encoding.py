"""``Content-Encoding`` undone on recorded bytes, as far as they arrived.

gzip and deflate need the standard library; br and zstd need one of the packages that the agent's HTTP client needed
to ask for them (``brotli`` or ``brotlicffi``; ``compression.zstd`` of Python 3.14, ``backports.zstd`` or
``zstandard``), so where such a body comes, they are there. A body may hold several members of gzip or frames of
zstd (RFC 1952, 2.2; RFC 8878, 3.1): together they are one body.
"""

from __future__ import annotations

import importlib
import zlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from . import bounds


class UnreadableEncodingError(ValueError):
    """The body is compressed in a way that cannot be undone here, or is not what its header says."""


def undo(body: bytes, content_encoding: str) -> bytes:
    """Return ``body`` without the encodings of the header; of a cut body, what can be had of it.

    Raises:
        UnreadableEncodingError: An encoding is unknown, its package is missing, or the bytes do not fit it.
        TooCostlyError: It would inflate to more than ``bounds`` allows.
    """
    names = [part.strip().lower() for part in content_encoding.split(",")]
    if len(names) > bounds.MAX_ENCODINGS:
        raise bounds.TooCostlyError(f"it has more than {bounds.MAX_ENCODINGS} encodings")
    for name in reversed(names):
        if name in _NO_ENCODING:
            continue
        if name not in _UNDO:
            raise UnreadableEncodingError(f"unknown content encoding {name!r}")
        try:
            body = _UNDO[name](body)
        except (UnreadableEncodingError, bounds.TooCostlyError):
            raise
        except Exception as error:  # each package has errors of its own
            raise UnreadableEncodingError(f"not {name}: {type(error).__name__}") from error
    return body


class _Inflated:
    """What has been inflated of one body, up to the bound."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._size = self._members = 0

    @property
    def room(self) -> int:
        """Bytes to ask for at most: one more than there may be."""
        return bounds.MAX_BYTES + 1 - self._size

    def add(self, piece: bytes) -> None:
        self._pieces.append(piece)
        self._size += len(piece)
        if self._size > bounds.MAX_BYTES:
            raise bounds.TooCostlyError(f"it inflates to more than {bounds.MAX_BYTES} bytes")

    def begin_member(self) -> None:
        self._members += 1
        if self._members > bounds.MAX_MEMBERS:
            raise bounds.TooCostlyError(f"it has more than {bounds.MAX_MEMBERS} members")

    def all(self) -> bytes:
        return b"".join(self._pieces)


def _gzip(body: bytes) -> bytes:
    inflated = _Inflated()
    while body:
        inflated.begin_member()
        body = _inflate_into(inflated, body, zlib.MAX_WBITS | 16)
        body = body.lstrip(b"\0")  # zeros may fill up what follows the last member
    return inflated.all()


def _deflate(body: bytes) -> bytes:
    # RFC 9110 means zlib's format; some servers send bare deflate, which browsers take too.
    for wbits in (zlib.MAX_WBITS, -zlib.MAX_WBITS):
        inflated = _Inflated()
        try:
            _inflate_into(inflated, body, wbits)
        except zlib.error:
            if wbits < 0:
                raise
            continue
        break
    return inflated.all()


def _inflate_into(inflated: _Inflated, body: bytes, wbits: int) -> bytes:
    """Inflate one member; return what follows it."""
    decompressor = zlib.decompressobj(wbits)
    inflated.add(decompressor.decompress(body, inflated.room))
    inflated.add(decompressor.flush())
    return decompressor.unused_data


def _brotli(body: bytes) -> bytes:
    decompressor = _package("brotli", "brotlicffi").Decompressor()
    feed = getattr(decompressor, "decompress", None) or decompressor.process
    inflated = _Inflated()
    # Not every release can be told how much to give out: little goes in at a time.
    for start in range(0, len(body), _BROTLI_PIECE):
        inflated.add(bytes(feed(body[start : start + _BROTLI_PIECE])))
    return inflated.all()


def _zstd(body: bytes) -> bytes:
    package = _package("compression.zstd", "backports.zstd", "zstandard")
    inflated = _Inflated()
    if hasattr(package.ZstdDecompressor, "stream_reader"):  # zstandard
        reader = package.ZstdDecompressor().stream_reader(body, read_across_frames=True)
        while piece := reader.read(min(inflated.room, _ZSTD_PIECE)):
            inflated.add(piece)
        return inflated.all()
    while body:
        inflated.begin_member()
        decompressor = package.ZstdDecompressor()  # in the standard library it is good for one frame
        inflated.add(decompressor.decompress(body, inflated.room))
        body = decompressor.unused_data
    return inflated.all()


_BROTLI_PIECE = 64
_ZSTD_PIECE = 1024 * 1024


def _package(*names: str) -> Any:
    for name in names:
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise UnreadableEncodingError(f"needs the package {' or '.join(names[-2:])}")


_NO_ENCODING = frozenset({"", "identity", "none"})
"""``none`` is no registered name (RFC 9110, 8.4.1); servers and clients send it and mean ``identity``."""


_UNDO: Mapping[str, Callable[[bytes], bytes]] = MappingProxyType(
    {"gzip": _gzip, "x-gzip": _gzip, "deflate": _deflate, "br": _brotli, "zstd": _zstd}
)
