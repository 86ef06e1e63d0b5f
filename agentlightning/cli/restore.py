"""``agl restore``: put a copy of a backup in the place of a SQLite store."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..store.sqlite.backup import restore
from ..store.sqlite.store import BUSY_TIMEOUT
from . import lookup, options, output
from .backup import percents, report
from .entry import DONE


def add_parser(subparsers: options.Subparsers) -> None:
    """Declare the command."""
    parser = options.command(
        subparsers,
        "restore",
        run,
        details="The backup is checked and stays as it is. A store that any process has open is not touched.",
    )
    parser.add_argument("file", type=options.not_empty, metavar="FILE", help="the backup")
    parser.add_argument("--replace", action="store_true", help="an existing store is kept under another name")
    options.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Put the copy in place, and say what is in it."""
    with output.progress(100, "copying") as advance:
        copied = restore(
            Path(args.file),
            lookup.sqlite_file(args.store, "restored"),
            BUSY_TIMEOUT,
            replace=args.replace,
            progress=percents(advance),
        )
    report(copied, args.json)
    return DONE
