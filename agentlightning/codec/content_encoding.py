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


class UnreadableEncodingError(ValueError):
    """The body is compressed in a way that cannot be undone here, or is not what its header says."""


def undo(body: bytes, content_encoding: str) -> bytes:
    """Return ``body`` without the encodings of the header; of a cut body, what can be had of it.

    Raises:
        UnreadableEncodingError: An encoding is unknown, its package is missing, or the bytes do not fit it.
    """
    for name in reversed([part.strip().lower() for part in content_encoding.split(",")]):
        if name in _NO_ENCODING:
            continue
        if name not in _UNDO:
            raise UnreadableEncodingError(f"unknown content encoding {name!r}")
        try:
            body = _UNDO[name](body)
        except UnreadableEncodingError:
            raise
        except Exception as error:  # each package has errors of its own
            raise UnreadableEncodingError(f"not {name}: {type(error).__name__}") from error
    return body


def _gzip(body: bytes) -> bytes:
    inflated = [b""]
    while body:
        decompressor = zlib.decompressobj(zlib.MAX_WBITS | 16)
        inflated.append(decompressor.decompress(body) + decompressor.flush())
        body = decompressor.unused_data.lstrip(b"\0")  # zeros may fill up what follows the last member
    return b"".join(inflated)


def _deflate(body: bytes) -> bytes:
    # RFC 9110 means zlib's format; some servers send bare deflate, which browsers take too.
    try:
        return _inflate(body, zlib.MAX_WBITS)
    except zlib.error:
        return _inflate(body, -zlib.MAX_WBITS)


def _inflate(body: bytes, wbits: int) -> bytes:
    decompressor = zlib.decompressobj(wbits)
    return decompressor.decompress(body) + decompressor.flush()


def _brotli(body: bytes) -> bytes:
    decompressor = _package("brotli", "brotlicffi").Decompressor()
    feed = getattr(decompressor, "decompress", None) or decompressor.process
    return bytes(feed(body))


def _zstd(body: bytes) -> bytes:
    package = _package("compression.zstd", "backports.zstd", "zstandard")
    inflated = [b""]
    while body:
        decompressor = package.ZstdDecompressor()  # in the standard library it is good for one frame
        if hasattr(decompressor, "decompressobj"):  # zstandard makes one for each frame of it
            decompressor = decompressor.decompressobj()
        inflated.append(bytes(decompressor.decompress(body)))
        body = decompressor.unused_data
    return b"".join(inflated)


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
