"""``agl rollouts``: what is in the store, newest first."""

from __future__ import annotations

import argparse
import asyncio
import time
from typing import Any

from ..store.base import LightningStore, receipt_of
from ..types import Rollout
from . import lookup, options, output, receipts, selection
from .final_reward import final_reward


def add_parser(subparsers: options.Subparsers) -> None:
    """Declare the command."""
    parser = options.command(
        subparsers,
        "rollouts",
        run,
        details="Reward, spans and receipt are those of the latest attempt; a receipt says whether each span that was "
        "started is stored: whole, or how many are open or dropped.",
    )
    options.add_filters(parser, limit=20)
    parser.add_argument(
        "--sort",
        choices=tuple(selection.SORTS),
        default=selection.NEWEST,
        help="the newest, best or longest first; group and name by their letters (default: newest)",
    )
    parser.add_argument("--reverse", action="store_true", help="in reverse order")
    options.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Print the rollouts."""
    return asyncio.run(_run(args))


async def _run(args: argparse.Namespace) -> int:
    async with lookup.open_existing(args.store) as store:
        found = await selection.matching(store, args, sort=args.sort, reverse=args.reverse)
        rows: list[dict[str, Any]] = []
        with output.progress(len(found.rollouts), "reading") as advance:
            # One after the other: three short queries each, and a list is seldom longer than the limit.
            for rollout in found.rollouts:
                rows.append(await describe(store, rollout))
                advance()
        total = (await store.statistics()).get("total_rollouts", found.total)
    if args.json:
        output.print_json(rows)
        return 0
    _print(rows, found.total, total, args)
    return 0


def _print(rows: list[dict[str, Any]], matches: int, total: int, args: argparse.Namespace) -> None:
    again = options.again(args)
    if not rows and total:
        output.say(output.none_matches(total))
    elif not rows:
        output.say(f"the store is empty; record a program with: agl run{again} -- python agent.py")
    else:
        from .rollout_list import lines
        from .terminal import print_lines, width

        print_lines(lines(rows, width(), time.time()))
        if matches > len(rows) or options.is_filtered(args):
            meant = " that match" if options.is_filtered(args) else " rollouts"
            output.say(
                f"{len(rows):,} of {matches:,}{meant}{'; --limit -1 lists all' if matches > len(rows) else ''}"
            )
        output.say(f"agl show ROLLOUT{again} has the spans of one; the beginning of an id is enough")


async def describe(store: LightningStore, rollout: Rollout) -> dict[str, Any]:
    """Return what a listing says of a rollout; reward, spans and receipt are those of its latest attempt."""
    attempts = await store.query_attempts(rollout.rollout_id)
    row: dict[str, Any] = {
        "rollout_id": rollout.rollout_id,
        "name": selection.title(rollout),
        "input": rollout.input,
        "group": selection.group_of(rollout) or None,
        "status": rollout.status,
        "imported": selection.import_of(rollout),
        "mode": rollout.mode,
        "tags": rollout.tags,
        "attempts": len(attempts),
        "start_time": rollout.start_time,
        # Of the first attempt; the rollout itself starts when it is put into a queue.
        "began": attempts[0].start_time if attempts else None,
        "end_time": rollout.end_time,
        "attempt_id": None,
        "attempt_status": None,
        "reward": None,
        "spans": 0,
        "receipt": None,
        "receipt_state": "",
    }
    if attempts:
        latest = attempts[-1]
        reward = await final_reward(store, rollout.rollout_id, latest.attempt_id)
        receipt = await receipt_of(store, rollout.rollout_id, latest.attempt_id)
        row |= {
            "attempt_id": latest.attempt_id,
            "attempt_status": latest.status,
            "reward": reward.value,
            "spans": reward.spans,
            "receipt": receipt and receipt.model_dump(),
            "receipt_state": receipts.state(receipt),
        }
    return row
