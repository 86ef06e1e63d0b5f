"""What the command does once all that it needs is loaded: train, say what came of it, and draw it."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import textwrap
import time
from dataclasses import asdict
from pathlib import Path

from agentlightning import open_store
from agentlightning.errors import StoreError

from .options import next_command
from .screen import Screen, columns
from .settings import Settings
from .train import Point, Result, train

GOAL = 0.9
"""Test reward that the loop must exceed."""
FLAT = 0.1
"""How far above the untrained policy the control may come, at any time."""


def run(settings: Settings, options: argparse.Namespace, points: list[Point]) -> int:
    """Run the loop and report it.

    Returns 0 if it learnt, or the control did not; 1 otherwise; 2 if its store or the curve cannot be written.

    Args:
        settings: Of the run.
        options: Where its files go, and what is printed.
        points: Gets each point of the curve, so that the caller has them whatever happens.
    """
    screen = None if options.quiet or options.json else Screen(settings)
    started = time.monotonic()
    try:
        result = asyncio.run(learn(settings, options.out_db, points, screen))
    except StoreError as error:
        print(f"{options.out_db} cannot be the store of this run: {error}", file=sys.stderr)
        return 2
    finally:
        if screen:
            screen.close()
    seconds = time.monotonic() - started
    succeeded = is_flat(result) if settings.control else result.final > GOAL
    if options.json:
        print(json.dumps(summary(result, seconds) | {"succeeded": succeeded}, indent=2), flush=True)
    elif screen:
        screen.say(epilogue(result, seconds, options.out_db, options.picture))
    if not succeeded:
        promise = f"stays near {result.chance:.2f}" if settings.control else f"ends above {GOAL}"
        print(f"not as promised: the test reward {promise}; it ended at {result.final:.2f}", file=sys.stderr)
    if not drawn(result, options.picture):
        return 2
    return 0 if succeeded else 1


def drawn(result: Result, picture: Path) -> bool:
    """Draw the curve; return whether it could be written, and say it if not."""
    # Not before: matplotlib takes a second to load, and longer the first time, when it looks for fonts.
    from .curve import draw

    try:
        draw(result, picture)
    except OSError as error:
        print(f"the curve could not be written to {picture}: {error.strerror or error}", file=sys.stderr)
        return False
    return True


async def learn(settings: Settings, database: Path, points: list[Point], screen: Screen | None) -> Result:
    """Open the store and train."""

    def report(point: Point) -> None:
        points.append(point)
        if screen:
            screen(point)

    async with open_store(f"sqlite:///{database}") as store:
        earlier = (await store.statistics()).get("total_rollouts", 0)
        if screen and earlier:
            screen.say(f"{database} has {earlier:,} rollouts of earlier runs; this run adds its own")
        if screen:
            screen.begin()
        return await train(store, settings, report)


def is_flat(result: Result) -> bool:
    """Return whether the test reward never left the neighbourhood of the untrained policy."""
    return max(reward for _, reward in result.tests) <= result.chance + FLAT


def epilogue(result: Result, seconds: float, database: Path, picture: Path) -> str:
    """Return what is printed last."""
    count, trained = result.receipts, result.curve[-1].rollouts
    facts = {
        "reward": f"{result.chance:.2f} untrained, {result.final:.2f} after {trained:,} rollouts; "
        f"{seconds:.0f} s in all",
        "rows": "log-probabilities recomputed from them differ from the recorded ones by "
        f"{result.self_check:.1g}",
        "receipts": f"{count['started']:,} spans started = {count['stored']:,} stored + {count['dropped']} dropped "
        f"+ {count['open']} open, in {result.attempts:,} attempts",
        "files": f"{database} (every rollout), {picture} (the curve)",
    }
    said = [
        textwrap.fill(
            f"{name:<10} {text}",
            max(columns(), 40),
            subsequent_indent=" " * 11,
            break_long_words=False,
            break_on_hyphens=False,
        )
        for name, text in facts.items()
    ]
    return "\n".join(["", *said, "", "Next, look at a rollout:", f"  {next_command(database)}"])


def summary(result: Result, seconds: float) -> dict[str, object]:
    """Return the result as JSON values."""
    return {
        "seed": result.settings.seed,
        "control": result.settings.control,
        "chance": result.chance,
        "final": result.final,
        "curve": [asdict(point) for point in result.curve],
        "self_check": result.self_check,
        "receipts": dict(result.receipts),
        "attempts": result.attempts,
        "seconds": round(seconds, 1),
    }
