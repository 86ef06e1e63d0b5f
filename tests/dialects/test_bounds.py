"""Answers that cost more than they weigh are not read, and say so."""

from __future__ import annotations

import gzip
import json
import resource
import time
import zlib

import pytest

from agentlightning.dialects import bounds, content_encoding
from agentlightning.dialects.openai.reading import decode
from agentlightning.dialects.raw_call import CallStart, RawCall


def answered(body: bytes, *, encoding: str = "", stream: bool = False) -> RawCall:
    return RawCall(
        start=CallStart("chat", "http://localhost/v1/chat/completions", "m", stream),
        request_body=b'{"model": "m", "messages": []}',
        status=200,
        content_type="text/event-stream" if stream else "application/json",
        content_encoding=encoding,
        response_body=body,
        complete=True,
    )


def bomb(times: int, size: int = 256 * 1024 * 1024) -> bytes:
    compressor = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS | 16)
    body = b"".join(compressor.compress(b" " * 2**20) for _ in range(size // 2**20)) + compressor.flush()
    for _ in range(times - 1):
        body = gzip.compress(body)
    return body


@pytest.mark.parametrize("times", [1, 3])
def test_a_few_bytes_that_inflate_to_hundreds_of_megabytes_are_not_inflated(times: int) -> None:
    body = bomb(times)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    call = decode(answered(body, encoding=", ".join(["gzip"] * times)))
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert call.token_capture == "invalid(too_costly)"
    assert grown < 3 * bounds.MAX_BYTES


@pytest.mark.parametrize(
    "body",
    [
        b"\n" * 8_000_000,
        b"data:\n\n" * 1_300_000,
        b"data: {}\n\n" * 1_300_000,
        b"[" + b"{}," * 17_000_000 + b"{}]",
    ],
    ids=["blank lines", "empty events", "events", "values"],
)
def test_millions_of_parts_are_counted_and_not_parsed(body: bytes) -> None:
    began = time.process_time()
    call = decode(answered(body, stream=body.startswith(b"data")))
    assert call.token_capture == "invalid(too_costly)"
    assert [issue.code for issue in call.issues if issue.code == "too_costly"]
    assert time.process_time() - began < 50


def test_an_answer_of_a_hundred_thousand_tokens_is_read() -> None:
    events = [
        json.dumps({"choices": [{"index": 0, "delta": {"content": "x"}, "token_ids": [number]}]})
        for number in range(100_000)
    ]
    body = "".join(f"data: {event}\n\n" for event in events).encode() + b"data: [DONE]\n\n"
    call = decode(answered(gzip.compress(body, 1), encoding="gzip", stream=True))
    assert call.choices[0].token_ids == tuple(range(100_000))


def test_a_thousand_unreadable_events_are_named_a_hundred_times() -> None:
    call = decode(answered(b"data: {\n\n" * 1000, stream=True))
    assert sum(issue.code == "event_unreadable" for issue in call.issues) == 100


def test_many_members_and_many_encodings_are_bounded() -> None:
    with pytest.raises(bounds.TooCostlyError):
        content_encoding.undo(gzip.compress(b"") * 5_000, "gzip")
    with pytest.raises(bounds.TooCostlyError):
        content_encoding.undo(b"", ", ".join(["gzip"] * 100))
    assert content_encoding.undo(gzip.compress(b"a") + gzip.compress(b"b"), "gzip") == b"ab"
