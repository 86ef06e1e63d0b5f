"""``agl export``: training rows or spans as JSON Lines or Parquet, or trajectories in a format that others read."""

from __future__ import annotations

import argparse
import asyncio
import shlex
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

from ..adapter import TracerTraceToTriplet
from ..errors import UsageError
from ..exchange.documents import FORMATS
from ..rows import RowPolicy, build_rows
from ..store.base import LightningStore
from ..store.primitives import packed_spans
from ..store.sealing import resources_of
from ..types import Attempt, Rollout
from . import documents, lookup, options, output, selection, send
from .columns import (
    SPAN_COLUMNS,
    TRAINING_COLUMNS,
    TRIPLET_COLUMNS,
    Row,
    span_rows,
    training_rows,
    triplet_rows,
)
from .entry import DONE, NEGATIVE
from .whole_file import STDOUT, whole_file

_ENDINGS = {".jsonl": "jsonl", ".parquet": "parquet"}
"""Ending of a file → its format."""
_COLUMNS = {"rows": TRAINING_COLUMNS, "triplets": TRIPLET_COLUMNS, "spans": SPAN_COLUMNS}


def add_parser(subparsers: options.Subparsers) -> None:
    """Declare the command."""
    parser = options.command(
        subparsers,
        "export",
        run,
        details="Token ids and log-probabilities are written exactly. "
        "Exit code 1: there was nothing to write, and no file was made.",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=options.not_empty,
        metavar="FILE",
        default=STDOUT,
        help=(
            "default: standard output; a file has its name when all is written, and an export that is killed before "
            "leaves .FILE. with eight more characters beside it, to be deleted"
        ),
    )
    parser.add_argument(
        "--format",
        choices=(*_ENDINGS.values(), *FORMATS),
        help="default: by the ending of the file, jsonl where it has none. atif: trajectories for Harbor, "
        "Terminal-Bench and others (Agent Trajectory Interchange Format); sts: sessions for Hugging Face's trace "
        "viewer. Both are masked, and go to a file or, with one for each, to a FOLDER/",
    )
    parser.add_argument(
        "--what",
        choices=tuple(_COLUMNS),
        help="rows: a row per path through an attempt, to train on; triplets: a row per model call, as in 0.3 "
        "(default: rows)",
    )
    options.add_model(parser)
    parser.add_argument(
        "--all-attempts", action="store_true", help="also earlier attempts (default: the latest)"
    )
    options.add_filters(parser, limit=-1)
    send.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Write the file, or send the spans."""
    for name in args.rollouts:
        if Path(name).suffix.lower() in _ENDINGS:
            raise UsageError(
                f"{name} is no rollout; a file is named with -o: agl export -o {shlex.quote(name)}"
            )
    if args.to:
        if args.output != STDOUT or args.format:
            raise UsageError("--to sends spans and writes no file; leave -o and --format out")
        if args.model or args.what not in (None, "spans"):
            raise UsageError("--to sends all spans of the rollouts; leave --model and --what out")
        return asyncio.run(send.run(args))
    if alone := send.given(args):
        raise UsageError(f"{alone} is of what --to sends; add --to otlp ENDPOINT, or leave it out")
    if args.format in FORMATS:
        if args.model or args.what:
            raise UsageError(f"--format {args.format} writes whole attempts; leave --model and --what out")
        return asyncio.run(documents.run(args))
    args.what = args.what or "rows"
    wanted = args.format or _format_of(args.output)
    if wanted == "parquet" and args.output == STDOUT:
        raise UsageError("Parquet goes to a file: -o rows.parquet")
    return asyncio.run(_run(args, wanted))


def _format_of(name: str) -> str:
    """Return the format that the ending of a file's name asks for.

    Raises:
        UsageError: It is one that is not written here: whoever opens ``rows.csv`` expects no JSON in it.
    """
    ending = Path(name).suffix
    if not ending or ending == ".":
        return "jsonl"
    if ending.lower() not in _ENDINGS:
        raise UsageError(
            f"{name}: no file is written that ends with {ending}; take {' or '.join(_ENDINGS)}, or say what it is with "
            "--format"
        )
    return _ENDINGS[ending.lower()]


async def _run(args: argparse.Namespace, wanted: str) -> int:
    columns = _COLUMNS[args.what]
    written, without = 0, 0
    unproven: Counter[str] = Counter()
    async with lookup.open_existing(args.store) as store:
        # ``matching`` gives the newest first, so that ``--limit`` means those; files are in the order of
        # time.
        rollouts = list(reversed((await selection.matching(store, args, to_read=True)).rollouts))
        with (
            whole_file(args.output, wanted, columns) as (writer, keep),
            output.progress(len(rollouts), "exporting") as advance,
        ):
            async for rows in _rows(
                store, rollouts, what=args.what, all_attempts=args.all_attempts, model=args.model
            ):
                for row in rows:
                    writer.write(row)
                    unproven.update(row.get("unproven") or ())
                written += len(rows)
                without += not rows
                advance()
            keep(written > 0)
    return _tell(args, written, without, len(rollouts), unproven)


async def _rows(
    store: LightningStore,
    rollouts: Sequence[Rollout],
    *,
    what: str,
    all_attempts: bool,
    model: list[str] | None,
) -> AsyncIterator[list[Row]]:
    """Yield the rows of each rollout, in the order of the rollouts."""
    adapter, policy = TracerTraceToTriplet(model=model), RowPolicy(model=model)
    for rollout in rollouts:
        attempts: list[Attempt] = list(await store.query_attempts(rollout.rollout_id))
        rows: list[Row] = []
        # A retry replaces what it repeats: rows of both would train the task twice.
        for attempt in attempts if all_attempts else attempts[-1:]:
            if what == "spans":
                rows += span_rows(await store.query_spans(rollout.rollout_id, attempt.attempt_id))
                continue
            spans = list(await packed_spans(store, rollout.rollout_id, attempt.attempt_id))
            if what == "rows":
                resources = await resources_of(store, rollout)
                rows += training_rows(build_rows(spans, policy, rollout=rollout, resources=resources))
            else:
                rows += triplet_rows(rollout, attempt.attempt_id, adapter.adapt(spans))
        # One rollout at a time: what is in memory does not grow with the store.
        yield rows


def _tell(
    args: argparse.Namespace, written: int, without: int, rollouts: int, unproven: Mapping[str, int]
) -> int:
    where = "" if args.output == STDOUT else f" to {args.output}"
    if written:
        output.say(f"{output.count(written, 'row')} of {output.count(rollouts - without, 'rollout')}{where}")
    elif not rollouts:
        output.say("no rollout matches; agl rollouts" + options.again(args) + " lists what there is")
    if without:
        noun = "span" if args.what == "spans" else "row"
        output.say(
            f"{output.count(without, 'rollout')} gave no {noun}; agl explain ROLLOUT{options.again(args)} says why"
        )
    if unproven:
        causes = ", ".join(f"{code}: {output.count(count, 'row')}" for code, count in unproven.items())
        output.say(
            f"log-probabilities that are not proven are left out ({causes}); "
            f"agl explain ROLLOUT{options.again(args)} says what to add"
        )
    return DONE if written else NEGATIVE
