"""Server-sent events, as far as model servers use them: ``data:`` fields and blank lines.

The format is that of the WHATWG HTML standard, section 9.2. Bytes are cut at events, never inside a
character.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_END_OF_EVENT = re.compile(rb"\r\n\r\n|\n\n|\r\r")
_END_OF_LINE = re.compile(rb"\r\n|\n|\r")

DONE = "[DONE]"
"""The payload that ends a stream of the OpenAI API."""


class EventSplitter:
    """Cuts a byte stream into whole events, however it arrives."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, chunk: bytes) -> list[bytes]:
        """Return the events that ``chunk`` completes, each with its closing blank line."""
        buffer = self._rest + chunk
        events, start = [], 0
        # A "\r\n\r\n" may arrive cut after "\r\n\r"; the lone pairs below never match inside one.
        for match in _END_OF_EVENT.finditer(buffer):
            events.append(buffer[start : match.end()])
            start = match.end()
        self._rest = buffer[start:]
        return events

    def rest(self) -> bytes:
        """Return what came after the last whole event, and forget it."""
        rest, self._rest = self._rest, b""
        return rest


def data_of(event: bytes) -> str | None:
    """Return the payload of one event, or ``None`` where it has no ``data:`` field."""
    values = []
    for line in _END_OF_LINE.split(event):
        name, _, value = line.partition(b":")
        if name == b"data":
            values.append(value.removeprefix(b" "))
    return b"\n".join(values).decode("utf-8", "replace") if values else None


def payloads(body: bytes) -> Iterator[str]:
    """Yield the payloads of a whole body, also of a last event that no blank line closes."""
    splitter = EventSplitter()
    for event in (*splitter.feed(body), splitter.rest()):
        data = data_of(event)
        if data is not None:
            yield data
