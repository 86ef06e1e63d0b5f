"""``agl verify``: whether the recorded log-probabilities are those of a model, and if not, why."""

from __future__ import annotations

import argparse
import asyncio
import math
from pathlib import Path

from ..errors import NotVerifiable, UsageError
from ..rows import RowPolicy, TrainingRow, build_rows
from ..store.primitives import packed_spans
from ..store.sealing import resources_of
from ..verify.onpolicy import TOLERANCE, Verification, verify_onpolicy
from . import lookup, options, output
from .entry import DONE, NEGATIVE


def add_parser(subparsers: options.Subparsers) -> None:
    """Declare the command."""
    parser = options.command(
        subparsers,
        "verify",
        run,
        details="Exit code 1: the recorded log-probabilities are not those of the model.",
    )
    parser.add_argument(
        "rollouts",
        type=options.not_empty,
        metavar="ROLLOUT",
        nargs="+",
        help="id, the unique beginning of one, or: latest",
    )
    parser.add_argument("--model", metavar="PATH", required=True, help="folder of a Hugging Face model")
    options.add_model(parser, "--policy-model")
    parser.add_argument(
        "--temperature", type=float, metavar="T", help="tokens were sampled at (default: as recorded)"
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        default=TOLERANCE,
        metavar="NATS",
        help=f"ignore smaller differences (default: {TOLERANCE:g})",
    )
    parser.add_argument(
        "--version",
        metavar="V",
        help="of the model's weights, as the engine names it: tells stale answers for sure",
    )
    parser.add_argument(
        "--batch-size", type=int, default=8, metavar="N", help="rows in a forward pass (default: 8)"
    )
    parser.add_argument("--device", metavar="NAME", help="where to calculate, such as cuda (default: cpu)")
    options.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Compare, and print what was found."""
    _check(args)
    rows = asyncio.run(_rows(args))
    if not rows:
        raise NotVerifiable(
            f"there is no training row in {', '.join(args.rollouts)}; "
            f"agl rows ROLLOUT --why{options.again(args)} says why"
        )
    # Not at the top: it imports torch, and a mistake in the arguments is told without it.
    from ..verify.loading import load

    found = verify_onpolicy(
        rows,
        load(Path(args.model)),
        tolerance=args.tolerance,
        temperature=args.temperature,
        version=args.version,
        batch_size=args.batch_size,
        device=args.device,
    )
    if args.json:
        output.print_json(found.as_json())
    else:
        _print(found)
    return DONE if found.exact else NEGATIVE


def _check(args: argparse.Namespace) -> None:
    if args.temperature is not None and not 0 < args.temperature < math.inf:
        raise UsageError(f"--temperature is a number above 0, not {args.temperature:g}")
    if not 0 <= args.tolerance < math.inf:
        raise UsageError(f"--tolerance is a difference in nats, not {args.tolerance:g}")
    if args.batch_size < 1:
        raise UsageError(f"--batch-size is a number of rows of at least 1, not {args.batch_size}")
    if not Path(args.model).is_dir():
        raise UsageError(
            f"--model {args.model} is no folder; name one that save_pretrained() or a download has made"
        )


async def _rows(args: argparse.Namespace) -> list[TrainingRow]:
    """Return the rows of the latest attempt of each rollout, each rollout once."""
    rows: list[TrainingRow] = []
    policy = RowPolicy(model=args.policy_model)
    async with lookup.open_existing(args.store) as store:
        found = [await lookup.find_rollout(store, text) for text in args.rollouts]
        # Named twice, a rollout would count twice in the ratio.
        for rollout in {each.rollout_id: each for each in found}.values():
            spans = await packed_spans(store, rollout.rollout_id, "latest")
            resources = await resources_of(store, rollout)
            rows += build_rows(spans, policy, rollout=rollout, resources=resources)
    return rows


def _print(found: Verification) -> None:
    from . import terminal

    terminal.print_table(
        ("ROLLOUT", ">ROW", ">TOKENS", ">DIFFER", ">RATIO", ">KL", ">LARGEST", "VERDICT"),
        [
            (
                row.rollout_id,
                str(row.index),
                str(row.agreement.tokens),
                str(row.agreement.differing),
                f"{row.agreement.ratio:.6f}",
                f"{row.agreement.k3:.6f}",
                "" if row.agreement.largest is None else f"{row.agreement.largest.size:.2g}",
                row.verdict.code,
            )
            for row in found.rows
        ],
    )
    output.out()
    for line in str(found).splitlines():
        output.out(line)
