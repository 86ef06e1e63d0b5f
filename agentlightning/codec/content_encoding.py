"""``Content-Encoding`` undone on recorded bytes, as far as they arrived.

gzip and deflate need the standard library; br and zstd need the packages that the agent's HTTP client needed
to ask for them (``brotli`` or ``brotlicffi``; ``zstandard``), so where such a body comes, they are there.
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
        if name in {"", "identity"}:
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
    return _inflate(body, zlib.MAX_WBITS | 16)


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
    return bytes(_package("zstandard").ZstdDecompressor().decompressobj().decompress(body))


def _package(*names: str) -> Any:
    for name in names:
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise UnreadableEncodingError(f"needs the package {' or '.join(names)}")


_UNDO: Mapping[str, Callable[[bytes], bytes]] = MappingProxyType(
    {"gzip": _gzip, "x-gzip": _gzip, "deflate": _deflate, "br": _brotli, "zstd": _zstd}
)
