"""``agl triplets``: the training rows of an attempt, as a preview."""

from __future__ import annotations

import argparse
import asyncio
from typing import Any

from .._printable import printable
from ..adapter import TracerTraceToTriplet
from ..store.primitives import packed_spans
from ..types import Triplet
from . import lookup, options, output
from .entry import DONE, NEGATIVE


def add_parser(subparsers: options.Subparsers) -> None:
    """Declare the command."""
    parser = options.command(subparsers, "triplets", run, details="Exit code 1: there is none.")
    options.add_rollout(parser)
    options.add_model(parser)
    options.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Print the rows."""
    return asyncio.run(_run(args))


async def _run(args: argparse.Namespace) -> int:
    async with lookup.open_existing(args.store) as store:
        rollout = await lookup.find_rollout(store, args.rollout)
        attempt = await lookup.find_attempt(store, rollout, args.attempt)
        spans = await packed_spans(store, rollout.rollout_id, attempt.attempt_id)
    rows = TracerTraceToTriplet(model=args.model).adapt(list(spans))
    named, again = printable(rollout.rollout_id), options.again(args)
    if args.json:
        output.print_json([row.model_dump() for row in rows])
    elif rows:
        _print(rows)
        output.say(f"agl export {named} --what triplets -o triplets.parquet{again} writes them to a file")
    else:
        output.say(f"no row; agl explain {named}{again} says why")
    return DONE if rows else NEGATIVE


def _print(rows: list[Triplet]) -> None:
    from . import terminal

    terminal.print_table(
        (">#", ">PROMPT", ">RESPONSE", ">LOGPROBS", ">REWARD", "CONTENT"),
        [
            (
                str(index),
                str(len(_ids(row.prompt))),
                str(len(_ids(row.response))),
                str(len(_field(row.response, "logprobs") or ())) or "",
                output.number(row.reward),
                output.one_line(_text(_field(row.response, "raw_content")), 100),
            )
            for index, row in enumerate(rows)
        ],
        wrap="CONTENT",
    )


def _text(content: Any) -> str:
    """Return what a person reads of a response: the text of its messages and the tools that they call."""
    if not isinstance(content, list):
        return str(content or "")
    words: list[str] = []
    for message in content:
        # 0.3 has messages as dicts; a plain text stands for a message without a role.
        fields = message if isinstance(message, dict) else {"content": message}
        words += [str(fields["content"])] if fields.get("content") else []
        for call in fields.get("tool_calls") or ():
            function = call.get("function") or {}
            words.append(f"{function.get('name')}({function.get('arguments')})")
    return " ".join(words)


def _field(side: Any, name: str) -> Any:
    fields: dict[str, Any] = side if isinstance(side, dict) else {}
    return fields.get(name)


def _ids(side: Any) -> list[int]:
    return _field(side, "token_ids") or []
