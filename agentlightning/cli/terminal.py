"""Tables and progress bars for people; the only module that needs ``rich``."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from os import environ
from typing import Protocol

from .._printable import printable
from ..errors import MissingExtra

try:
    from rich import box
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.table import Table
    from rich.text import Text
except ImportError as error:
    raise MissingExtra("rich", "cli") from error

PIPE_WIDTH = 200
"""Columns when the output is no terminal: wide enough that no id is cut."""

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


def _console() -> Console:
    width = None if sys.stdout.isatty() or "COLUMNS" in environ else PIPE_WIDTH
    return Console(width=width, highlight=False)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, wrap: str = "") -> None:
    """Print a table.

    Args:
        columns: Headings; one that begins with ``>`` is aligned to the right.
        rows: Cells, as many as columns.
        wrap: The heading of the column whose text is wrapped when the terminal is narrow.
    """
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, header_style="bold")
    for heading in columns:
        name = heading.removeprefix(">")
        table.add_column(
            name,
            justify="right" if heading.startswith(">") else "left",
            no_wrap=name != wrap,
            overflow="fold",
        )
    for row in rows:
        table.add_row(*(Text(printable(cell), style=STYLES.get(cell, "")) for cell in row))
    _console().print(table)


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
