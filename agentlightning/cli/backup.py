"""``agl backup``: a copy of a SQLite store as it is at one moment, made while it is in use."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from ..store.sqlite.backup import Copied, Progress, back_up
from ..store.sqlite.store import BUSY_TIMEOUT
from . import lookup, options, output
from .entry import DONE


def add_parser(subparsers: options.Subparsers) -> None:
    """Declare the command."""
    parser = options.command(
        subparsers,
        "backup",
        run,
        details="The store may be in use. The copy is checked and synced before it gets its name; a file that is there "
        "is never overwritten.",
    )
    parser.add_argument(
        "file",
        type=options.not_empty,
        metavar="FILE",
        help="where to; in a folder, the copy gets the store's name and the time",
    )
    options.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Make the copy, and say what is in it."""
    source = lookup.sqlite_file(args.store, "copied")
    lookup.check_exists(source)
    target = Path(args.file)
    if target.is_dir():
        # Local time, without colons, which Windows and some archives refuse in names.
        target /= f"{source.stem}-{time.strftime('%Y%m%dT%H%M%S')}{source.suffix}"
    with output.progress(100, "copying") as advance:
        copied = back_up(source, target, BUSY_TIMEOUT, percents(advance))
    report(copied, args.json)
    return DONE


def percents(advance: output.Advance) -> Progress:
    """Return what moves a bar of a hundred steps."""
    shown = 0

    def progress(done: int, total: int) -> None:
        nonlocal shown
        percent = done * 100 // total if total else 100
        # Called for each step of pages: a bar that is drawn thousands of times would take longer than the
        # copy.
        if percent > shown:
            advance(percent - shown)
            shown = percent

    return progress


def report(copied: Copied, as_json: bool) -> None:
    """Say what was copied."""
    if as_json:
        output.print_json(
            {
                "path": str(copied.path),
                "bytes": copied.size,
                "rows": copied.counts,
                "put_aside": copied.put_aside and str(copied.put_aside),
            }
        )
        return
    rollouts, spans = (copied.counts.get(table, 0) for table in ("rollouts", "spans"))
    print(
        f"{copied.path}  {output.count(rollouts, 'rollout')}, {output.count(spans, 'span')}, {copied.size:,} bytes"
    )
    if copied.put_aside:
        output.say(f"what was there before: {copied.put_aside}")
