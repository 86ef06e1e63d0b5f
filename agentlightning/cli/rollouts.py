"""``agl rollouts``: what is in the store, newest first."""

from __future__ import annotations

import argparse
import asyncio
import time
from typing import Any

from ..emitter import find_final_reward
from ..store.base import LightningStore, receipt_of
from ..types import Rollout
from . import lookup, options, output, receipts


def add_parser(subparsers: options.Subparsers) -> None:
    """Declare the command."""
    parser = options.command(subparsers, "rollouts", run)
    options.add_filters(parser, limit=20)
    options.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Print the rollouts."""
    return asyncio.run(_run(args))


async def _run(args: argparse.Namespace) -> int:
    async with lookup.open_existing(args.store) as store:
        found = await lookup.filtered(store, args)
        rows: list[dict[str, Any]] = []
        with output.progress(len(found), "reading") as advance:
            # One after the other: three short queries each, and a list is seldom longer than the limit.
            for rollout in found:
                rows.append(await describe(store, rollout))
                advance()
        total = (await store.statistics()).get("total_rollouts", len(rows))
    if args.json:
        output.print_json(rows)
        return 0
    if not rows and total:
        output.say(f"none of {output.count(total, 'rollout')} matches; leave out a filter")
    elif not rows:
        output.say(
            "the store is empty; record a program with: agl run" + options.again(args) + " -- python agent.py"
        )
    else:
        _print(rows)
        if total > len(rows):
            output.say(f"{len(rows)} of {output.count(total, 'rollout')}; --limit -1 lists all")
        output.say(
            f"agl show ROLLOUT{options.again(args)} has the spans of one; the beginning of an id is enough"
        )
    return 0


async def describe(store: LightningStore, rollout: Rollout) -> dict[str, Any]:
    """Return what a listing says of a rollout; reward, spans and receipt are those of its latest attempt."""
    attempts = await store.query_attempts(rollout.rollout_id)
    row: dict[str, Any] = {
        "rollout_id": rollout.rollout_id,
        "status": rollout.status,
        "mode": rollout.mode,
        "tags": rollout.tags,
        "attempts": len(attempts),
        "start_time": rollout.start_time,
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
        spans = await store.query_spans(rollout.rollout_id, latest.attempt_id)
        receipt = await receipt_of(store, rollout.rollout_id, latest.attempt_id)
        row |= {
            "attempt_id": latest.attempt_id,
            "attempt_status": latest.status,
            "reward": find_final_reward(spans),
            "spans": len(spans),
            "receipt": receipt and receipt.model_dump(),
            "receipt_state": receipts.state(receipt),
        }
    return row


def _print(rows: list[dict[str, Any]]) -> None:
    from . import terminal

    now = time.time()
    terminal.print_table(
        ("ROLLOUT", "STATUS", "MODE", ">TRIES", ">AGE", ">SPANS", ">REWARD", "RECEIPT"),
        [
            (
                row["rollout_id"],
                row["status"],
                row["mode"] or "",
                str(row["attempts"]),
                # Clocks of other machines may be ahead.
                output.seconds(max(0.0, now - row["start_time"])),
                str(row["spans"]),
                output.number(row["reward"]),
                row["receipt_state"],
            )
            for row in rows
        ],
        wrap="RECEIPT",
    )
