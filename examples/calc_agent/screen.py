"""What a run says while it goes on: a line for each test, and how far it is.

On a terminal, the line below the last test is written anew after each iteration. A file, a pipe or the log of a CI gets
whole lines and no control characters. Bars are as wide as there is room, and plain ASCII where the output cannot say
more. Nothing is coloured.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from typing import TextIO

from .settings import Settings
from .train import Point

WIDEST = 40
"""Characters of a bar of reward 1, where there is room."""
HEADING = f"{'iteration':>9} {'rollouts':>9} {'train':>6} {'test':>6}  {'left':>6}"


class Screen:
    """Reports a run, from ``begin`` on.

    Args:
        settings: Of the run.
        output: Where to; what is asked is whether it is a terminal, how wide that is, and what it can encode.
    """

    def __init__(self, settings: Settings, output: TextIO | None = None) -> None:
        self._last = settings.iterations
        self._output = output or sys.stdout
        self._is_terminal = self._output.isatty() and os.environ.get("TERM") != "dumb"
        self._full, self._none = ("█", "▏") if can_say("█▏", self._output) else ("#", "|")
        self._status = ""

    def begin(self) -> None:
        """Print the heading; what is left is reckoned from the first test on."""
        self.say(f"\n{HEADING}")
        self._show("trying what the untrained policy can do")

    def __call__(self, point: Point) -> None:
        """Report an iteration."""
        if point.iteration == 0:
            self._since = time.monotonic()
        if point.test is not None:
            self.say(self._line(point, point.test))
        if point.iteration < self._last:
            reward = "" if point.train is None else f", reward {point.train:.2f} in training"
            self._show(f"iteration {point.iteration + 1} of {self._last}{reward}, {self._left(point)} left")

    def say(self, text: str) -> None:
        """Print lines that stay."""
        self._show("")
        print(text, file=self._output, flush=True)

    def close(self) -> None:
        """Take away the line that does not stay."""
        self._show("")

    def _line(self, point: Point, test: float) -> str:
        """Return a test as a line of text with a bar for its reward."""
        train = "" if point.train is None else f"{point.train:.2f}"
        longest = min(WIDEST, columns() - len(HEADING) - 3)
        bar = self._full * round(test * longest) or self._none if longest > 0 else ""
        numbers = f"{point.iteration:>9} {point.rollouts:>9,} {train:>6} {test:>6.2f}  {self._left(point):>6}"
        return f"{numbers}  {bar}".rstrip()

    def _left(self, point: Point) -> str:
        """Return how long the rest will take, if it goes on as it went."""
        if point.iteration == self._last:
            return ""
        if point.iteration == 0:
            return "?"
        taken = time.monotonic() - self._since
        return f"{taken / point.iteration * (self._last - point.iteration):.0f} s"

    def _show(self, status: str) -> None:
        """Replace the line at the bottom of a terminal."""
        if not self._is_terminal or not (status or self._status):
            return
        # One column is left free: a terminal may begin a new line after its last one.
        status = status[: columns() - 1]
        self._output.write(f"\r{status:<{len(self._status)}}" + ("" if status else "\r"))
        self._output.flush()
        self._status = status


def columns() -> int:
    """Return how many characters fit into a line; 80 where nobody knows. ``COLUMNS`` may say so."""
    return max(20, shutil.get_terminal_size((80, 25)).columns)


def can_say(text: str, output: TextIO) -> bool:
    """Return whether an output can encode a text."""
    try:
        text.encode(output.encoding or "ascii")
    except (LookupError, UnicodeEncodeError):
        return False
    return True
