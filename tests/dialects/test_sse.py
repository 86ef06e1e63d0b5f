"""Server-sent events as the WHATWG HTML standard has them: mixed line ends, comments, a byte order mark."""

from __future__ import annotations

import itertools

import pytest

from agentlightning.dialects import sse

ENDS = (b"\r\n", b"\n", b"\r")


@pytest.mark.parametrize(("first", "second", "third"), list(itertools.product(ENDS, repeat=3)))
def test_events_are_told_apart_whatever_ends_their_lines(first: bytes, second: bytes, third: bytes) -> None:
    blank = first + second
    if blank == b"\r\n":  # a CR and a LF beside each other are one end of line
        blank += b"\n"
    body = (
        b": hello"
        + third
        + b"data: 1"
        + blank
        + b"event: x"
        + third
        + b"data: 2"
        + blank
        + b"data: [DONE]"
        + blank
    )
    assert [event.data for event in sse.events(body)] == ["1", "2", "[DONE]"]
    for size in range(1, len(body)):
        splitter = sse.EventSplitter()
        pieces = [
            piece
            for start in range(0, len(body), size)
            for piece in splitter.feed(body[start : start + size])
        ]
        assert b"".join([*pieces, splitter.rest()]) == body
        assert [data for piece in pieces if (data := sse.data_of(piece)) is not None] == ["1", "2", "[DONE]"]


@pytest.mark.parametrize("end", ENDS)
def test_an_event_is_handed_out_with_the_byte_that_completes_it(end: bytes) -> None:
    splitter = sse.EventSplitter()
    assert splitter.feed(b"data: 1" + end) == []
    assert splitter.feed(end[:1]) == [b"data: 1" + end + end[:1]]


def test_a_byte_order_mark_hides_no_field() -> None:
    assert [event.data for event in sse.events(b"\xef\xbb\xbfdata: 1\n\n")] == ["1"]


@pytest.mark.parametrize(
    "body",
    [b"data: {}\n\n", b": ping\n\n", b"\n\ndata:x", b"event: error\n", b"\xef\xbb\xbfid: 1\n", b"data\n"],
)
def test_a_stream_of_events_is_known_by_its_bytes(body: bytes) -> None:
    assert sse.looks_like_events(body)


@pytest.mark.parametrize("body", [b"", b"{}", b' {"data": 1}', b"[]", b"<html>", b"dataset: 1"])
def test_what_is_no_stream_of_events_is_known_by_its_bytes(body: bytes) -> None:
    assert not sse.looks_like_events(body)


def test_the_data_of_an_event_are_replaced_and_its_other_lines_keep_their_bytes() -> None:
    event = b"\xef\xbb\xbfdata: a\r\nid: 7\r: c\ndata: b\n\r\n"
    assert sse.with_data(event, b"x\ny") == b"\xef\xbb\xbfdata: x\r\ndata: y\r\nid: 7\r: c\n\r\n"
    assert sse.data_of(sse.with_data(event, b"x\ny")) == "x\ny"
