"""``agl rows``: the training rows of an attempt, and with ``--why`` what became of each model call."""

from __future__ import annotations

import argparse
import asyncio
import re
from collections.abc import Mapping
from typing import Any

from ..errors import UsageError
from ..rows import Decision, RowPolicy, RowSet, TrainingRow, build_rows
from ..rows.flat import training_row
from ..rows.reasons import explained
from ..store.primitives import packed_spans
from ..store.sealing import resources_of
from ..types import Attempt, Rollout
from . import lookup, options, output, selection
from .call_numbers import call_numbers
from .entry import DONE, NEGATIVE

ANY_ROLE = "any"


def add_parser(subparsers: options.Subparsers) -> None:
    """Declare the command."""
    parser = options.command(subparsers, "rows", run, details="Exit code 1: there is no row.")
    options.add_rollout(parser)
    parser.add_argument(
        "--why", action="store_true", help="also print train, context or skip for each call, and the reason"
    )
    options.add_model(parser)
    parser.add_argument("--agent", metavar="REGEX", help="train only calls of agents with such a name")
    parser.add_argument(
        "--role",
        action="append",
        metavar="ROLE",
        help=f"train calls of this role; {ANY_ROLE} = all (default: agent)",
    )
    parser.add_argument("--abandoned", action="store_true", help="train answers that the agent gave up, too")
    parser.add_argument(
        "--late",
        action="store_true",
        help="take spans that started after their trace_context had closed, too; see RowPolicy(late=True)",
    )
    parser.add_argument("--max-tokens", type=int, metavar="N", help="cut rows that are longer")
    options.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Print the rows."""
    return asyncio.run(_run(args, policy_of(args)))


def policy_of(args: argparse.Namespace) -> RowPolicy:
    """Return what the options ask for.

    Raises:
        UsageError: One of them cannot be.
    """
    # ``None`` means every role to a policy, and "not given" to argparse.
    roles = {"agent"} if args.role is None else None if ANY_ROLE in args.role else set(args.role)
    try:
        return RowPolicy(
            model=args.model,
            agent_match=args.agent,
            roles=roles,
            abandoned="train" if args.abandoned else "skip",
            max_tokens=args.max_tokens,
            late=args.late,
        )
    except re.error as error:
        raise UsageError(f"--agent {args.agent!r} is no regular expression: {error}") from error
    except ValueError as error:
        raise UsageError(str(error)) from error


async def _run(args: argparse.Namespace, policy: RowPolicy) -> int:
    async with lookup.open_existing(args.store) as store:
        rollout = await lookup.find_rollout(store, args.rollout)
        attempt = await lookup.find_attempt(store, rollout, args.attempt)
        spans = [
            *await packed_spans(store, rollout.rollout_id, attempt.attempt_id),
            # They give rows with ``--late`` only; without it, they are named among the reasons.
            *await store.query_late_spans(rollout.rollout_id, attempt.attempt_id),
        ]
        resources = await resources_of(store, rollout)
    rows = build_rows(spans, policy, rollout=rollout, resources=resources)
    if args.json:
        output.print_json(_as_json(rows, call_numbers(spans)))
    else:
        _print(rollout, attempt, rows, call_numbers(spans), why=args.why)
    return DONE if rows else NEGATIVE


def _as_json(rows: RowSet, numbers: Mapping[str, int]) -> dict[str, Any]:
    return {
        "rows": [training_row(row) for row in rows],
        "decisions": [_decision(decision, numbers) for decision in rows.decisions],
        "unknown_rewards": [match.span.span_id for match in rows.unknown_rewards],
        "breaks": {cause.value: count for cause, count in rows.breaks.items()},
        "unproven": rows.unproven,
        "reasons": [reason.code for reason in rows.reasons],
    }


def _decision(decision: Decision, numbers: Mapping[str, int]) -> dict[str, Any]:
    return {
        "call": numbers.get(decision.span_id),
        "span_id": decision.span_id,
        "choice": decision.choice,
        "agent": decision.call.agent,
        "use": decision.use.value,
        "tokens": decision.tokens,
        "rows": list(decision.rows),
        "code": decision.code,
        "detail": decision.detail,
        "prefix": None if decision.prefix is None else decision.prefix.as_json(),
    }


def _print(
    rollout: Rollout, attempt: Attempt, rows: RowSet, numbers: Mapping[str, int], *, why: bool
) -> None:
    tokens = output.count(rows.trained_tokens, "trained token")
    output.out(
        f"rollout {rollout.rollout_id}, attempt {attempt.sequence_id} ({selection.status_of(attempt)})"
    )
    output.out(f"{output.count(len(rows), 'row')}, {tokens}")
    if rows:
        output.out()
        _print_rows(rows)
    if rows.unproven:
        causes = ", ".join(
            f"{code}: {output.count(count, 'answer')}" for code, count in rows.unproven.items()
        )
        output.say(
            f"without log-probabilities, which are not proven ({causes}); agl explain says what to add"
        )
    if why or not rows:
        _print_why(rows, numbers)
    else:
        output.say("agl rows --why says what became of each model call")


def _print_rows(rows: RowSet) -> None:
    from . import terminal

    terminal.print_table(
        (">ROW", ">TOKENS", ">TRAINED", ">ANSWERS", ">REWARD", "VERSIONS", "ENDS"),
        [
            (
                str(row.index),
                str(len(row)),
                str(row.trained_tokens),
                str(len(row.segments)),
                output.number(row.reward) or "unscored",
                _versions(row),
                row.finish_reason or "",
            )
            for row in rows
        ],
    )


def _versions(row: TrainingRow) -> str:
    if row.versions is None:
        return "unknown"
    oldest, newest = row.versions
    return str(oldest) if oldest == newest else f"{oldest} to {newest}"


def _print_why(rows: RowSet, numbers: Mapping[str, int]) -> None:
    from . import terminal

    if rows.decisions:
        output.out()
        terminal.print_table(
            (">CALL", "SPAN", "AGENT", ">TOKENS", "USE", ">ROW", "PROMPT", "WHY"),
            [
                (
                    f"#{numbers[decision.span_id]}" if decision.span_id in numbers else "",
                    decision.span_id,
                    output.one_line(decision.call.agent, 24),
                    str(decision.tokens),
                    decision.use.value,
                    ",".join(map(str, decision.rows)),
                    _prompt(decision),
                    _why(decision),
                )
                for decision in rows.decisions
            ],
            wrap="WHY",
        )
    told: list[str] = []
    # Each code once, those of calls before those of the whole attempt.
    for code in dict.fromkeys([*rows.counts, *(reason.code for reason in rows.reasons)]):
        told += ["", f"{code}: {explained(code).sentence}"]
        told += [f"  → {explained(code).cure}"] if explained(code).cure else []
    for match in rows.unknown_rewards:
        reason = match.reason.sentence if match.reason is not None else ""
        told += ["", f"reward {match.span.span_id} is for nobody: {reason}"]
    if told:
        for line in told:
            output.out(line)


def _prompt(decision: Decision) -> str:
    prefix = decision.prefix
    if prefix is None:
        return ""
    return prefix.kind.value if prefix.cause is None else f"breaks: {prefix.cause.value}"


def _why(decision: Decision) -> str:
    if decision.code is None:
        return ""
    return f"{decision.code} ({decision.detail})" if decision.detail else decision.code
