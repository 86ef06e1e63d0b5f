"""How much reading an answer may cost: some hundred bytes can inflate to gigabytes, others hold millions of parts.

The bounds lie well above what model servers send. An answer with 100,000 token ids, each with the log-probabilities of
five alternatives, has some 60 MB, 300,000 lines as a stream, and 4 million parts.
"""

from __future__ import annotations

from typing import Final

MAX_BYTES: Final = 64 * 1024 * 1024
"""Bytes of a body after its encodings are undone."""
MAX_ENCODINGS: Final = 4
"""Encodings of one body, one upon the other."""
MAX_MEMBERS: Final = 1_000
"""Members (gzip) or frames (zstd) of one body."""
MAX_LINES: Final = 1_000_000
"""Lines of a body; an event of a stream has two or three."""
MAX_PARTS: Final = 16_000_000
"""Commas and opening brackets of a body: a bound on the values of its JSON, each of which takes up to 100 bytes."""


class TooCostlyError(ValueError):
    """Reading it would cost more than it may."""


def check(body: bytes) -> None:
    """Refuse a body that would take too long or too much memory to parse.

    Raises:
        TooCostlyError: It says which bound is passed.
    """
    if len(body) > MAX_BYTES:
        raise TooCostlyError(f"it has more than {MAX_BYTES} bytes")
    if len(body) <= MAX_LINES:  # each line and part has a byte
        return
    if body.count(b"\n") + body.count(b"\r") > MAX_LINES:
        raise TooCostlyError(f"it has more than {MAX_LINES} lines")
    if body.count(b",") + body.count(b"[") + body.count(b"{") > MAX_PARTS:
        raise TooCostlyError(f"it has more than {MAX_PARTS} parts")
