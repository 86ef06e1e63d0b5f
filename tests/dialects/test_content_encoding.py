"""``Content-Encoding`` as servers and clients really write it."""

from __future__ import annotations

import gzip
import importlib
import zlib
from collections.abc import Callable

import pytest

from agentlightning.dialects import content_encoding

BODY = b'{"choices": []}' * 40


def gzipped(body: bytes) -> bytes:
    """The same bytes at any time: a test's name is made of them."""
    return gzip.compress(body, mtime=0)


def br(body: bytes) -> bytes:
    return bytes(importlib.import_module("brotli").compress(body))


def zstd_by_zstandard(body: bytes) -> bytes:
    return bytes(importlib.import_module("zstandard").ZstdCompressor().compress(body))


def zstd_by_the_standard_library(body: bytes) -> bytes:
    try:
        package = importlib.import_module("compression.zstd")
    except ImportError:
        package = importlib.import_module("backports.zstd")
    return bytes(package.compress(body))


def two(compress: Callable[[bytes], bytes]) -> bytes:
    """The body in two members, or frames."""
    return compress(BODY[:100]) + compress(BODY[100:])


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("", BODY),
        ("identity", BODY),
        ("none", BODY),
        ("None", BODY),
        ("gzip", gzipped(BODY)),
        ("gzip", two(gzipped)),
        ("gzip", gzipped(BODY) + bytes(7)),
        ("x-gzip", gzipped(BODY)),
        ("deflate", zlib.compress(BODY)),
        ("br", br(BODY)),
        ("zstd", zstd_by_zstandard(BODY)),
        ("zstd", two(zstd_by_zstandard)),
        ("zstd", two(zstd_by_the_standard_library)),
        ("gzip, none", gzipped(BODY)),
        ("deflate, gzip", gzipped(zlib.compress(BODY))),
    ],
)
def test_a_body_is_read_whatever_compressed_it(name: str, body: bytes) -> None:
    assert content_encoding.undo(body, name) == BODY


@pytest.mark.parametrize(("name", "compress"), [("gzip", gzipped), ("zstd", zstd_by_zstandard), ("br", br)])
def test_of_a_body_that_was_cut_what_came_is_read(name: str, compress: Callable[[bytes], bytes]) -> None:
    whole = bytes(range(256)) * 2000
    found = content_encoding.undo(compress(whole)[:-5], name)
    assert whole.startswith(found)


@pytest.mark.parametrize("name", ["gzip", "deflate", "br", "zstd", "lzma"])
def test_what_is_not_what_its_header_says_is_named(name: str) -> None:
    with pytest.raises(content_encoding.UnreadableEncodingError):
        content_encoding.undo(b"\xff" * 20, name)
