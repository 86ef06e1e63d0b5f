"""What commands print: data to stdout, everything else to stderr; nothing that a terminal would obey or cannot show.

Standard library only.
"""

from __future__ import annotations

import codecs
import io
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from .._printable import printable

Advance = Callable[..., None]
"""Moves a bar by a number of steps, one if none is given."""


_LOOKALIKES = {
    "├": "|",
    "└": "`",
    "│": "|",
    "─": "-",
    "→": ">",
    "…": "~",
    "µ": "u",
    "·": ".",
    "×": "x",
    "✗": "x",
    "✓": "+",
    "■": "#",
    "●": "@",
    "◆": "%",
    "○": "o",
    "★": "*",
    "▲": "!",
    "▪": ":",
    "▶": ">",
    **dict(zip("▁▂▃▄▅▆▇█", "_.,-~+*#", strict=True)),
    "≠": "!",
    "⋮": ":",
    "⟳": "&",
    "━": "=",
    "╍": "-",
}
"""Characters of ours, and one of ASCII for each, so that tables keep their columns."""


def prepare_streams() -> None:
    """Make stdout and stderr take whatever is printed.

    Where the program that starts us has closed one of them, Python has ``None`` in its place, and the next file that is
    opened gets its number: a store on descriptor 1 would be written into by whatever prints. Where their encoding lacks
    a character (``PYTHONIOENCODING=ascii``, a Latin-1 locale), a print would raise; ASCII is shown in its place.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):  # in the order of their numbers
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode))
    codecs.register_error("agl", _shown)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="agl")


def _shown(error: UnicodeError) -> tuple[str, int]:
    """Return what is printed in place of characters that the encoding of a stream lacks (see ``codecs``)."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    shown = [_LOOKALIKES.get(char) or char.encode("ascii", "backslashreplace").decode() for char in lacking]
    return "".join(shown), error.end


def print_json(value: Any) -> None:
    """Print one JSON document; NaN and infinities as Python writes and reads them."""
    print(to_json(value, indent=2))


def to_json(value: Any, *, indent: int | None = None) -> str:
    """Return ASCII JSON, so that lone surrogates survive any terminal and file."""
    # DEL is the one control character that JSON does not escape, and a terminal obeys it.
    return json.dumps(value, indent=indent, default=str).replace("\x7f", "\\u007f")


def out(line: str = "") -> None:
    """Print one line of what was asked for."""
    print(printable(line))


def say(text: str) -> None:
    """Tell the person something that is not data."""
    print(printable(text, lines=True), file=sys.stderr)


def progress(total: int, what: str) -> AbstractContextManager[Advance]:
    """Show a bar on stderr where that is a terminal; what is yielded moves it by one."""
    if not sys.stderr.isatty():
        return nullcontext(lambda _=1: None)
    from . import terminal  # loads rich, which most commands with --json do not need

    return terminal.progress(total, what)


def seconds(value: float | None) -> str:
    """Return a duration for people: ``42 ms``, ``3.1 s``, ``12 min``, ``5 h``, ``3 d``; clocks may go back."""
    if value is None:
        return ""
    if not value:
        return "0"
    if value < 0:
        return f"-{seconds(-value)}"
    if value < 0.0005:
        return f"{value * 1e6:.0f} µs"
    if value < 1:
        return f"{value * 1e3:.0f} ms"
    # The largest unit in which the number is at least 1.
    for limit, unit, size in ((60, "s", 1), (3600, "min", 60), (86400, "h", 3600)):
        if value < limit:
            return f"{value / size:.1f} {unit}" if unit == "s" else f"{value / size:.0f} {unit}"
    return f"{value / 86400:.0f} d"


def known_time(at: float | None) -> float | None:
    """Return a time, or ``None`` where it is unknown: missing, 0, or no finite number."""
    return at if at and math.isfinite(at) else None


def number(value: float | None) -> str:
    """Return a reward for people; nothing where there is none."""
    return "" if value is None else f"{value:.6g}"


def mean(values: Sequence[float]) -> float:
    """Return the mean of finite numbers; also where their sum is more than a float holds."""
    total = sum(values)
    return total / len(values) if math.isfinite(total) else sum(value / len(values) for value in values)


def count(value: int, noun: str) -> str:
    """Return ``1 span``, ``2 spans``, ``3,000 batches``."""
    plural = "es" if noun.endswith(("ch", "s")) else "s"
    return f"{value:,} {noun}{'' if value == 1 else plural}"


def none_matches(total: int) -> str:
    """Return what is said where filters leave none of ``total`` rollouts."""
    return f"none of {count(total, 'rollout')} matches; leave out a filter"


def one_line(value: object, width: int = 60) -> str:
    """Return the beginning of a text on one line, without control characters."""
    # Cut before it is cleaned: a prompt may have megabytes.
    text = "".join(char if char.isprintable() else " " for char in str(value)[: width * 4])
    text = " ".join(text.split())
    return text if len(text) <= width else f"{text[: width - 1]}…"
