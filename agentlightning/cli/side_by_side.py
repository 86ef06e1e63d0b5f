"""Two columns of text beside each other, or below each other where it is narrow; loads ``rich``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.text import Text

from .._printable import printable
from .trace_view import DOUBT, QUIET

_MEASURE = Console(width=200, file=None, force_terminal=False)
_NARROWEST_COLUMN = 20
_PIPE = 160


def lines(rows: Sequence[tuple[str, str, str]], width: int | None) -> Iterator[Text]:
    """Yield rows of a name and two texts; where the texts differ they are marked, by a sign and a colour."""
    names = max(len(name) for name, _, _ in rows)
    room = ((width or _PIPE) - names - 6) // 2
    for name, left, right in rows:
        style, sign = ("", " ") if left == right else (DOUBT, "≠")
        head = Text().append(f"{name.ljust(names)} ", style=QUIET).append(f"{sign} ", style=style)
        mine, theirs = (Text(printable(text), style=style) for text in (left, right))
        if room < _NARROWEST_COLUMN:
            yield head.append_text(mine)
            yield Text(" " * (names + 3)).append_text(theirs)
            continue
        columns = [text.wrap(_MEASURE, room, overflow="fold") for text in (mine, theirs)]
        for place in range(max(map(len, columns))):
            first, second = (column[place] if place < len(column) else Text() for column in columns)
            first.rstrip()
            second.rstrip()
            first.pad_right(room - first.cell_len + 2)
            line = (head if place == 0 else Text(" " * (names + 3))).append_text(first).append_text(second)
            line.rstrip()
            yield line
