"""``agl tail``: follows what happens in a store, also while other processes write to it, until Ctrl-C."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Sequence

from . import lookup, options, output
from .entry import DONE
from .following import Event, Summary, Tail
from .span_labels import Kind

EVERY = 0.5
"""Seconds between two looks."""


def add_parser(subparsers: options.Subparsers) -> None:
    """Declare the command."""
    parser = options.command(
        subparsers,
        "tail",
        run,
        details="Prints a line for each model call (tokens of its prompt → of its answer, duration, answer tokens "
        "per second), reward and failure, and for each rollout that starts and ends. The time is that of the end. "
        "Waits for a store that does not exist yet. Ctrl-C ends it with a summary and exit code 0.",
    )
    parser.add_argument(
        "rollouts",
        nargs="*",
        type=options.not_empty,
        metavar="ROLLOUT",
        help="ids, unique beginnings, or: latest (default: all)",
    )
    parser.add_argument(
        "-n", type=int, default=10, metavar="LINES", help="how many lines of what was before (default: 10)"
    )
    parser.add_argument("--all", action="store_true", help="a line for each span that ends")
    parser.add_argument("--json", action="store_true", help="print a JSON document on each line")


def run(args: argparse.Namespace) -> int:
    """Follow the store until Ctrl-C."""
    summary = Summary(time.time())
    try:
        _wait_for_file(args.store)
        asyncio.run(_follow(args, summary))
    except KeyboardInterrupt:
        output.say(summary.sentence(time.time()))
    return DONE


async def _follow(args: argparse.Namespace, summary: Summary) -> None:
    async with lookup.open_existing(args.store) as store:
        only = [(await lookup.find_rollout(store, text)).rollout_id for text in args.rollouts]
        tail = Tail(store, only)
        before = [event for event in await tail.look() if _is_shown(event, everything=args.all)]
        _show(before[-args.n :] if args.n > 0 else [], as_json=args.json)
        if not args.json:
            output.say("following; Ctrl-C ends")
        summary.begin = time.time()
        while True:
            await asyncio.sleep(EVERY)
            events = await tail.look()
            for event in events:
                summary.add(event)
            _show([event for event in events if _is_shown(event, everything=args.all)], as_json=args.json)


def _wait_for_file(given: str | None) -> None:
    """Wait for the file of a SQLite store; one that is empty is not made yet."""
    path = lookup.sqlite_path(lookup.store_url(given))
    if path is None or (path.exists() and path.stat().st_size):
        return
    output.say(f"waiting for a store at {path}; Ctrl-C ends")
    while not (path.exists() and path.stat().st_size):
        time.sleep(EVERY / 2)


def _is_shown(event: Event, *, everything: bool) -> bool:
    kinds = {"started", "ended", Kind.CALL.value, Kind.REWARD.value, Kind.EXCEPTION.value}
    return everything or event.failed or event.kind in kinds


def _show(events: Sequence[Event], *, as_json: bool) -> None:
    if as_json:
        for event in events:
            print(output.to_json(event.as_json()))
    elif events:
        from .tail_lines import HANG, lines
        from .terminal import print_lines, width

        print_lines(lines(events, width()), hang=HANG)
    # Whoever reads it, reads it now; and a pipe that was closed shows here.
    sys.stdout.flush()
