"""Tables, lines and progress bars for people; what prints them, with what ``rich`` is asked for."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from os import environ
from typing import Protocol

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from .._printable import printable

PIPE_WIDTH = 200
"""Columns when the output is no terminal."""
NARROWEST = 20
"""Columns below which a heading and its cell do not fit beside each other; such a terminal breaks the lines itself."""
WRAPPED = 12
"""Columns that the text of a wrapped column needs at least."""

STYLES = {
    "succeeded": "green",
    "whole": "green",
    "running": "cyan",
    "preparing": "cyan",
    "queuing": "blue",
    "requeuing": "blue",
    "failed": "red",
    "cancelled": "yellow",
    "ERROR": "red",
}


class Advance(Protocol):
    """What moves a progress bar."""

    def __call__(self, steps: int = 1) -> None:
        """So many more steps are done."""


class _Console(Console):
    """A console that leaves a closed pipe to whoever runs the command: rich (since 13.8) would exit with code 1."""

    def on_broken_pipe(self) -> None:
        """Raise again what was raised."""
        raise BrokenPipeError from None


def width() -> int | None:
    """Return the columns of the terminal, or ``None`` where the output is none and nobody has said how wide it is."""
    if not sys.stdout.isatty() and "COLUMNS" not in environ:
        return None
    # Also reads COLUMNS; rich would take COLUMNS=0 for a terminal without room, and print nothing.
    return max(NARROWEST, shutil.get_terminal_size((PIPE_WIDTH, 25)).columns)


def print_lines(lines: Iterable[Text], *, hang: int = 0) -> None:
    """Print lines of styled text; what is wider than the terminal goes on below, ``hang`` columns from the left."""
    columns = width()
    console = _Console(width=columns or PIPE_WIDTH, highlight=False)
    for line in lines:
        if columns is None or line.cell_len <= columns:
            console.print(line, soft_wrap=True)
            continue
        hang = min(hang, columns // 2)
        head, body = line[:hang], line[hang:]
        for place, row in enumerate(body.wrap(console, columns - hang, overflow="fold")):
            row.rstrip()
            console.print((head if place == 0 else Text(" " * hang)) + row, soft_wrap=True)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, wrap: str = "") -> None:
    """Print a table; where it is wider than the terminal, one block for each row, so that nothing is cut.

    Args:
        columns: Headings; one that begins with ``>`` is aligned to the right.
        rows: Cells, as many as columns.
        wrap: The heading of the column whose text is wrapped when the terminal is narrow.
    """
    names = [heading.removeprefix(">") for heading in columns]
    lines = [[Text(printable(cell), style=STYLES.get(cell, "")) for cell in row] for row in rows]
    # Also reads COLUMNS; rich would take COLUMNS=0 for a terminal without room, and print nothing.
    width = max(NARROWEST, shutil.get_terminal_size((PIPE_WIDTH, 25)).columns)
    needed = _width_of(names, lines, wrap)
    if not sys.stdout.isatty() and "COLUMNS" not in environ:
        width = max(width, needed)
    console = _Console(width=width, highlight=False)
    if needed <= width:
        console.print(_table(columns, lines, wrap))
    else:
        for line in lines:
            console.print(_block(names, line))


def _width_of(names: Sequence[str], lines: Sequence[Sequence[Text]], wrap: str) -> int:
    """Return how many columns of the terminal a table takes at least; each of its columns has two spaces beside it."""
    widths = [
        max(
            [
                len(name),
                *(
                    min(line[place].cell_len, WRAPPED) if name == wrap else line[place].cell_len
                    for line in lines
                ),
            ]
        )
        for place, name in enumerate(names)
    ]
    return sum(widths) + 2 * len(widths)


def _table(columns: Sequence[str], lines: Iterable[Sequence[Text]], wrap: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, header_style="bold")
    for heading in columns:
        name = heading.removeprefix(">")
        table.add_column(
            name,
            justify="right" if heading.startswith(">") else "left",
            no_wrap=name != wrap,
            overflow="fold",
        )
    for line in lines:
        table.add_row(*line)
    return table


def _block(names: Sequence[str], line: Sequence[Text]) -> Table:
    """Return a row of a table as lines, each with a heading and its cell; without those that are empty."""
    block = Table(box=None, padding=(0, 1, 0, 0), show_header=False, show_edge=False)
    block.add_column(no_wrap=True, style="bold")
    block.add_column(overflow="fold")
    for name, cell in zip(names, line, strict=True):
        if cell.plain:
            block.add_row(name, cell)
    block.add_row()
    return block


@contextmanager
def progress(total: int, what: str) -> Iterator[Advance]:
    """Show a bar on stderr while the body runs longer than a second, if stderr is a terminal."""
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=total)

        def advance(steps: int = 1) -> None:
            bar.advance(task, steps)

        yield advance
