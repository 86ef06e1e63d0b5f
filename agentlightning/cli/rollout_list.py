"""How ``agl rollouts`` lists rollouts: one line each where there is room, else two; loads ``rich``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.text import Text

from .._printable import printable
from . import output, selection
from .terminal import STYLES
from .trace_view import QUIET, joined

_SHORTEST_TASK = 20
"""Columns that a task needs beside the other columns; with fewer, it gets a line of its own."""
_COLUMNS = (
    "rollout",
    "status",
    "from",
    "reward",
    "group",
    "mode",
    "tries",
    "spans",
    "took",
    "age",
    "receipt",
)
_RIGHT = frozenset({"reward", "tries", "spans", "took", "age"})
_STYLES = {"reward": "bold yellow", "age": QUIET, "took": QUIET, "spans": QUIET, "tries": QUIET}
_FIRST_LINE = ("rollout", "status", "reward", "took", "age")


def lines(rows: Sequence[Mapping[str, Any]], width: int | None, now: float) -> Iterator[Text]:
    """Yield the list; ``width`` ``None`` = as wide as it is."""
    cells = [_cells(row, now) for row in rows]
    # A column that says nothing of any of them is left out.
    names = [name for name in _COLUMNS if any(row[name] for row in cells)]
    # Once: a cell that looked through its column would cost the square of the number of rows.
    sizes = {
        name: max(Text(text).cell_len for text in (name, *(row[name] for row in cells))) for name in names
    }
    room = None if width is None else width - sum(size + 2 for size in sizes.values())
    if room is None or room >= _SHORTEST_TASK:
        yield _heading(names, sizes).append("task")
        for row in cells:
            line = _line(row, names, sizes)
            yield line.append_text(_task(row, room))
        return
    first = [name for name in names if name in _FIRST_LINE]
    rest = [name for name in names if name not in _FIRST_LINE]
    yield _rstripped(_heading(first, sizes))
    for row in cells:
        yield _rstripped(_line(row, first, sizes))
        facts = [
            Text(_fact(name, row[name]), style=STYLES.get(row[name], QUIET)) for name in rest if row[name]
        ]
        for line in joined([_task(row, width), *facts], " · ", None if width is None else width - 2):
            yield Text("  ").append_text(line)


def _cells(row: Mapping[str, Any], now: float) -> dict[str, str]:
    document = row["imported"]
    began, end = row["began"], row["end_time"]
    begin: float | None = row["start_time"]
    if document is not None:  # times are those that it says, where it does
        begin = began = selection.time_in(document, "began")
        end = selection.time_in(document, "ended")
        end = None if end == begin else end  # one time says nothing of how long it took
    return {
        "rollout": printable(row["rollout_id"]),
        "status": selection.ending_of(row["status"], document),
        "from": "" if document is None else printable(str(document.get("format"))),
        "reward": output.number(row["reward"]),
        "group": output.one_line(row["group"] or "", 24),
        "mode": row["mode"] or "",
        "tries": str(row["attempts"]) if row["attempts"] != 1 else "",
        "spans": f"{row['spans']:,}",
        "took": "" if end is None or began is None else output.seconds(end - began),
        # Clocks of other machines may be ahead.
        "age": "" if begin is None else output.seconds(max(0.0, now - begin)),
        "receipt": row["receipt_state"],
        "task": output.one_line(row["name"], 200),
    }


def _heading(names: Sequence[str], sizes: Mapping[str, int]) -> Text:
    text = Text(style=QUIET)
    for name in names:
        size = sizes[name]
        text.append((name.rjust(size) if name in _RIGHT else name.ljust(size)) + "  ")
    return text


def _line(row: Mapping[str, str], names: Sequence[str], sizes: Mapping[str, int]) -> Text:
    text = Text()
    for name in names:
        cell = Text(row[name], style=_STYLES.get(name) or STYLES.get(row[name], ""))
        gap = " " * (sizes[name] - cell.cell_len)
        text.append(gap if name in _RIGHT else "").append_text(cell).append(
            "  " if name in _RIGHT else f"{gap}  "
        )
    return text


def _task(row: Mapping[str, str], room: int | None) -> Text:
    text = Text(row["task"])
    if room is not None:
        text.truncate(max(1, room - 2), overflow="ellipsis")
    return text


def _fact(name: str, value: str) -> str:
    match name:
        case "group":
            return f"group {value}"
        case "spans":
            return f"{value} {'span' if value == '1' else 'spans'}"
        case "tries":
            return f"{value} tries"
        case _:
            return value


def _rstripped(text: Text) -> Text:
    text.rstrip()
    return text
