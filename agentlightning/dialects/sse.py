"""Server-sent events, read and written, as far as model servers use them: ``data:`` fields and blank lines.

The format is that of the WHATWG HTML standard, section 9.2: lines end in CRLF, LF or CR, also mixed, and a byte order
mark may come first. Bytes are cut at events, never inside a character.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

BOM = b"\xef\xbb\xbf"
_END_OF_LINE = re.compile(rb"\r\n|\n|\r")
# The first of the two ends is no CR that a LF follows: that pair is one end, and no blank line.
_END_OF_EVENT = re.compile(rb"(?:\r\n|\n|\r(?!\n))(?:\r\n|\n|\r)")
_ERROR = re.compile(rb"(?:^|[\r\n])event: ?error(?=[\r\n]|$)")
_FIELD = re.compile(rb"(?:data|event|id|retry)?(?::|[\r\n])")

DONE = "[DONE]"
"""The payload that ends a stream of the OpenAI API."""


class Event(NamedTuple):
    """One event."""

    name: str
    """``error``, or empty: model servers give no other name a meaning."""
    data: str

    def written(self) -> bytes:
        """Return the event as it goes over the wire, with the blank line that ends it."""
        name = f"event: {self.name}\n" if self.name else ""
        data = "".join(f"data: {line}\n" for line in self.data.split("\n"))
        return f"{name}{data}\n".encode()


class EventSplitter:
    """Cuts a byte stream into whole events, however it arrives; the pieces joined are the stream."""

    def __init__(self) -> None:
        self._rest = b""
        self._searched = 0
        self._ended_in_cr = False

    def feed(self, chunk: bytes) -> list[bytes]:
        """Return the events that ``chunk`` completes, each with its closing blank line.

        An event is handed out at a CR without waiting for what follows. If that is the LF of the same end of line, it
        comes as a piece of its own.
        """
        if not chunk:
            return []
        buffer = self._rest + chunk
        events, start = [], 0
        if self._ended_in_cr and buffer.startswith(b"\n"):
            events.append(b"\n")
            start = 1
        position = max(start, self._searched)
        while (match := _END_OF_EVENT.search(buffer, position)) is not None:
            events.append(buffer[start : match.end()])
            start = position = match.end()
        self._rest = buffer[start:]
        # An end of event that is not complete yet has at most 3 bytes.
        self._searched = max(0, len(self._rest) - 3)
        self._ended_in_cr = not self._rest and events[-1].endswith(b"\r")
        return events

    def rest(self) -> bytes:
        """Return what came after the last whole event, and forget it."""
        rest, self._rest, self._searched = self._rest, b"", 0
        return rest


def data_of(event: bytes) -> str | None:
    """Return the payload of one event, or ``None`` where it has no ``data:`` field."""
    values = []
    for line in _END_OF_LINE.split(event.removeprefix(BOM)):
        name, _, value = line.partition(b":")
        if name == b"data":
            values.append(value.removeprefix(b" "))
    return b"\n".join(values).decode("utf-8", "replace") if values else None


def with_data(event: bytes, data: bytes) -> bytes:
    """Return an event whose ``data:`` fields are replaced by ``data``; its other lines keep their bytes."""
    lines = re.split(rb"(\r\n|\n|\r)", event)  # lines and their ends, in turns
    written, is_written = [], False
    for position in range(0, len(lines), 2):
        line, end = lines[position], b"".join(lines[position + 1 : position + 2])
        mark = BOM if position == 0 and line.startswith(BOM) else b""
        if line.removeprefix(mark).partition(b":")[0] != b"data":
            written.append(line + end)
        elif not is_written:
            is_written = True
            written.append(mark + b"".join(b"data: " + each + end for each in data.split(b"\n")))
    return b"".join(written)


def looks_like_events(body: bytes) -> bool:
    """Whether a body begins as a stream of events does: with a field, a comment or a blank line before them."""
    body = body.removeprefix(BOM).lstrip()
    return _FIELD.match(body) is not None


def events(body: bytes, *, only_whole: bool = False) -> Iterator[Event]:
    """Yield the events of a body that have a payload, also a last one that no blank line closes."""
    for event in _events_of(body, only_whole):
        if event.startswith(b"data:") and b"\n" not in event and b"\r" not in event:
            yield Event("", event[5:].removeprefix(b" ").decode("utf-8", "replace"))
            continue
        data = data_of(event)
        if data is not None:
            yield Event("error" if b"event" in event and _ERROR.search(event) is not None else "", data)


def _events_of(body: bytes, only_whole: bool) -> list[bytes]:
    """Return the events of a body, the last of them empty or not closed, but not if ``only_whole``."""
    if b"\r" not in body:  # all ends of lines are alike, and the ends of events may go
        events = body.split(b"\n\n")
        return events[:-1] if only_whole else events
    splitter = EventSplitter()
    events = splitter.feed(body)
    return events if only_whole else [*events, splitter.rest()]
