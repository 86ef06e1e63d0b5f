"""``python -m examples.calc_agent``: run the learning loop once, and say what came of it."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from agentlightning import open_store

from .curve import HEADING, draw, line
from .train import Point, Result, Settings, train

GOAL = 0.9
"""Test reward that the loop must exceed."""
FLAT = 0.1
"""How far above the untrained policy the control may come, at any time."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 if the loop learnt, or the control did not."""
    options = parser().parse_args(arguments)
    talk = not (options.quiet or options.json)
    settings = Settings(
        seed=options.seed,
        control=options.control,
        iterations=options.iterations,
        at_once=options.at_once,
    )
    started = time.monotonic()
    result = asyncio.run(run(settings, options.out_db, talk=talk))
    seconds = time.monotonic() - started
    draw(result, options.picture)

    succeeded = is_flat(result) if settings.control else result.final > GOAL
    if options.json:
        print(json.dumps(summary(result, seconds) | {"succeeded": succeeded}, indent=2))
    elif talk:
        print(epilogue(result, seconds, options.out_db, options.picture))
    if not succeeded:
        promise = f"stays near {result.chance:.2f}" if settings.control else f"ends above {GOAL}"
        print(f"not as promised: the test reward {promise}; it ended at {result.final:.2f}", file=sys.stderr)
    return 0 if succeeded else 1


def is_flat(result: Result) -> bool:
    """Return whether the test reward never left the neighbourhood of the untrained policy."""
    return max(point.test for point in result.curve) <= result.chance + FLAT


def parser() -> argparse.ArgumentParser:
    """Return the command's options."""
    found = argparse.ArgumentParser(
        "calc_agent", description="A policy learns from the traces of an ordinary agent."
    )
    found.add_argument("--seed", type=int, default=0, help="equal seeds give equal curves (default: 0)")
    found.add_argument(
        "--control",
        action="store_true",
        help="give each rollout's reward to another one: nothing may be learnt",
    )
    found.add_argument(
        "--iterations",
        type=int,
        default=Settings.iterations,
        help=f"how often it plays and learns; what it promises needs the default ({Settings.iterations})",
    )
    found.add_argument(
        "--out-db",
        type=Path,
        default=Path("quickstart.db"),
        help="the store; a run adds to it (default: quickstart.db)",
    )
    found.add_argument(
        "--picture", type=Path, default=Path("quickstart.png"), help="the curve (default: quickstart.png)"
    )
    found.add_argument("--at-once", type=int, default=16, help="rollouts that run concurrently (default: 16)")
    found.add_argument("--quiet", action="store_true", help="print nothing unless it fails")
    found.add_argument("--json", action="store_true", help="print one JSON document at the end")
    return found


async def run(settings: Settings, database: Path, *, talk: bool) -> Result:
    """Open the store and train."""

    def report(point: Point) -> None:
        if talk:
            print(line(point), flush=True)

    if talk:
        print(prologue(settings))
    async with open_store(f"sqlite:///{database}") as store:
        return await train(store, settings, report)


def prologue(settings: Settings) -> str:
    """Return what is printed first."""
    what = "rewards are given to the wrong rollouts" if settings.control else "learning to use a calculator"
    return f"seed {settings.seed}: {what}; the bars are the mean reward on tasks that are never trained on\n\n{HEADING}"


def epilogue(result: Result, seconds: float, database: Path, picture: Path) -> str:
    """Return what is printed last."""
    count, trained = result.receipts, result.curve[-1].rollouts
    agl, store = os.path.relpath(Path(sys.executable).with_name("agl")), f"--store sqlite:///{database}"
    return f"""
reward     {result.chance:.2f} untrained, {result.final:.2f} after {trained:,} rollouts; {seconds:.0f} s in all
rows       log-probabilities recomputed from them differ from the recorded ones by {result.self_check:.1g}
receipts   {count["started"]:,} spans started = {count["stored"]:,} stored + {count["dropped"]} dropped \
+ {count["open"]} open, in {result.attempts:,} attempts
files      {database} (every rollout), {picture} (the curve)

What to type next:
  {agl} rollouts {store}
  {agl} show latest {store}
  {agl} triplets latest {store}
  {agl} explain latest {store}"""


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


if __name__ == "__main__":
    sys.exit(main())
