"""``python -m examples.calc_agent``: run the learning loop once, and say what came of it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .options import next_command, options_of
from .settings import Settings

if TYPE_CHECKING:
    from .train import Point

INTERRUPTED = 130
"""What a shell says of a command that ctrl-C has ended: 128 and the number of the signal."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 if the loop learnt, or the control did not."""
    options = options_of(arguments)
    settings = Settings(
        seed=options.seed,
        control=options.control,
        iterations=options.iterations,
        at_once=options.at_once,
    )
    points: list[Point] = []
    try:
        if not (options.quiet or options.json):
            print(prologue(settings), flush=True)
        # After the first line: numpy and openai take seconds to load.
        from .command import run

        return run(settings, options, points)
    except KeyboardInterrupt:
        print(stopped(settings, points, options.out_db), file=sys.stderr)
        return INTERRUPTED


def prologue(settings: Settings) -> str:
    """Return what is printed first."""
    what = "rewards are given to the wrong rollouts" if settings.control else "learning to use a calculator"
    return f"seed {settings.seed}: {what}; the bars are the mean reward on tasks that are never trained on"


def stopped(settings: Settings, points: Sequence[Point], database: Path) -> str:
    """Return what is printed after ctrl-C."""
    if not points:
        return "stopped before anything was learnt"
    tests = [point.test for point in points if point.test is not None]
    return (
        f"stopped after {points[-1].iteration} of {settings.iterations} iterations; "
        f"the test reward was {tests[-1]:.2f} last\n"
        f"{database} has all rollouts until now; another run starts from an untrained policy and adds its own\n\n"
        f"Next, look at a rollout:\n  {next_command(database)}"
    )


if __name__ == "__main__":
    sys.exit(main())
