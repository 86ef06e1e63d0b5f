"""``agl store migrate``: bring a SQLite store to the schema of this version, with a copy of it made before.

Any program that opens a store migrates it; this command does so at a moment of your choice, and keeps a copy.
"""

from __future__ import annotations

import argparse
import sqlite3
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from ..store.sqlite.backup import back_up
from ..store.sqlite.connection import MIGRATIONS, connect, prepare_file, recognise, translated
from ..store.sqlite.store import BUSY_TIMEOUT
from . import lookup, options, output
from .entry import DONE, NEGATIVE


@dataclass(frozen=True)
class Step:
    """One migration of this version, and whether the file has seen it."""

    number: int
    name: str
    applied: bool


def add_parser(subparsers: options.Subparsers) -> None:
    """Declare the command."""
    parser = options.described(
        subparsers,
        "migrate",
        "Bring a SQLite store to the schema of this version, after making a copy of it.",
        run,
        details="With --dry-run, exit code 1: migrations are pending.",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="only list what is applied and what is pending"
    )
    parser.add_argument("--no-backup", action="store_true", help="make no copy")
    options.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Migrate, or say what would be done."""
    path = lookup.sqlite_file(args.store, "migrated")
    lookup.check_exists(path)
    before = steps(path)
    pending = [step for step in before if not step.applied]
    backup = None
    if pending and not args.dry_run:
        # Before ``prepare_file``, which is the step that changes the file.
        backup = None if args.no_backup else _back_up(path)
        prepare_file(path, BUSY_TIMEOUT)
    # Read again, so that what is printed is what the file says.
    after = before if args.dry_run else steps(path)
    if args.json:
        document = {
            "path": str(path),
            "backup": backup and str(backup),
            "migrations": [vars(step) for step in after],
        }
        output.print_json(document)
    else:
        for step in after:
            output.out(f"{step.number:04d} {step.name}  {'applied' if step.applied else 'pending'}")
        if backup:
            output.say(f"the file as it was before: {backup}")
        elif not pending:
            output.say("nothing to do")
    return NEGATIVE if pending and args.dry_run else DONE


def steps(path: Path) -> list[Step]:
    """Return the migrations of this version and which of them the file has seen; reads only.

    Raises:
        NotAStore, SchemaTooNew: The file is not ours, or newer.
    """
    recognise(path)
    try:
        with closing(connect(path)) as connection:
            ((version,),) = connection.execute("PRAGMA user_version").fetchall()
    except sqlite3.Error as error:
        raise translated(error, path) from error
    return [Step(step.number, step.name, step.number <= version) for step in MIGRATIONS]


def _back_up(path: Path) -> Path:
    """Copy the file as one moment has it, log included, and return the copy's name."""
    copy = path.with_name(f"{path.name}.before-{time.strftime('%Y%m%dT%H%M%S')}")
    return back_up(path, copy, BUSY_TIMEOUT).path
