"""``agl diff``: two attempts beside each other: rewards, lengths, and where their model calls part."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from typing import Any

from ..dialects.model_call import ModelCall
from ..rows.rewards import find_final_reward
from ..store.base import LightningStore
from ..types import Attempt, Rollout, Span
from . import lookup, options, output, selection
from .call_numbers import NumberedCall, numbered_calls, tokens_of
from .entry import DONE, NEGATIVE
from .span_labels import label_of

_AROUND = 24
"""Characters before the place where two texts part."""


@dataclass(frozen=True)
class Side:
    """One of the two."""

    rollout: Rollout
    attempt: Attempt
    spans: Sequence[Span]
    calls: Sequence[NumberedCall]


@dataclass(frozen=True)
class Parting:
    """The first thing in which two attempts differ."""

    call: int
    """Number of the call in both."""
    what: str
    """``prompt``, ``answer``, ``prompt tokens``, ``sampled tokens``, ``tool``, or ``calls`` where one has no more."""
    place: int
    """Index of the first different message, token or choice."""
    left: str
    right: str


def add_parser(subparsers: options.Subparsers) -> None:
    """Declare the command."""
    parser = options.command(
        subparsers,
        "diff",
        run,
        details="Model calls are compared in the order of their numbers: the messages that were sent, then the token "
        "ids where both have them, then the answers. Exit code 1: they differ.",
    )
    for name in ("left", "right"):
        parser.add_argument(
            name,
            type=options.not_empty,
            metavar="ROLLOUT",
            help="id, unique beginning, or latest; ID@N = its attempt N",
        )
    options.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Print both sides, and where they part."""
    return asyncio.run(_run(args))


async def _run(args: argparse.Namespace) -> int:
    async with lookup.open_existing(args.store) as store:
        left, right = await _side(store, args.left), await _side(store, args.right)
    parting = part(left.calls, right.calls)
    rows = list(figures(left, right))
    if args.json:
        output.print_json(
            {
                "figures": {name: list(values) for name, *values in rows},
                "parts_at": parting and asdict(parting),
            }
        )
    else:
        _print(left, right, rows, parting)
    return DONE if parting is None and all(mine == theirs for _, mine, theirs in rows[2:]) else NEGATIVE


async def _side(store: LightningStore, text: str) -> Side:
    name, at, attempt = text.rpartition("@")
    if not at or await store.get_rollout_by_id(text) is not None:  # an id of others may have an @ in it
        name, attempt = text, lookup.LATEST
    rollout = await lookup.find_rollout(store, name)
    found = await lookup.find_attempt(store, rollout, attempt)
    spans = await store.query_spans(rollout.rollout_id, found.attempt_id)
    return Side(rollout, found, spans, numbered_calls(spans))


def part(left: Sequence[NumberedCall], right: Sequence[NumberedCall]) -> Parting | None:
    """Return where two attempts part, or ``None`` where each call of one says what the other's says."""
    for mine, theirs in zip_longest(left, right):
        if mine is None or theirs is None:
            number = (mine or theirs).number
            return Parting(number, "calls", 0, _head(mine), _head(theirs))
        found = _part_of_calls(mine, theirs)
        if found is not None:
            return found
    return None


def _part_of_calls(mine: NumberedCall, theirs: NumberedCall) -> Parting | None:
    number, ours, other = mine.number, mine.record, theirs.record
    if ours is None or other is None:
        return None if ours is other else Parting(number, "calls", 0, _head(mine), _head(theirs))
    pairs: list[tuple[str, Sequence[Any], Sequence[Any]]] = [("prompt", _asked(ours), _asked(other))]
    if ours.prompt_token_ids is not None and other.prompt_token_ids is not None:
        pairs.append(("prompt tokens", ours.prompt_token_ids, other.prompt_token_ids))
    pairs.append(("answer", _answers(ours), _answers(other)))
    for choice, their_choice in zip(ours.choices, other.choices, strict=False):
        if choice.token_ids is not None and their_choice.token_ids is not None:
            pairs.append(("sampled tokens", choice.token_ids, their_choice.token_ids))
    for what, one, two in pairs:
        place = _first_difference(one, two)
        if place is not None:
            return Parting(number, what, place, *_shown(_at(one, place), _at(two, place)))
    return None


def _asked(record: ModelCall) -> tuple[str, ...]:
    if record.operation == "text_completion":
        return (output.to_json(record.prompt),)
    return tuple(_text(message) for message in record.request_messages)


def _answers(record: ModelCall) -> tuple[str, ...]:
    return tuple(_text(choice.message()) for choice in record.choices)


def _text(message: Any) -> str:
    """Return a message as a text: role, content and tool calls; ids of tool calls differ from run to run."""
    if not isinstance(message, Mapping):
        return output.to_json(message)
    content = message.get("content")
    words = [
        str(message.get("role") or "?"),
        content if isinstance(content, str) else output.to_json(content or ""),
    ]
    for call in message.get("tool_calls") or ():
        function = call.get("function") if isinstance(call, Mapping) else None
        named = function if isinstance(function, Mapping) else {}
        words.append(f"→ {named.get('name')}({named.get('arguments')})")
    return " ".join(word for word in words if word and word != '""')


def _first_difference(one: Sequence[Any], two: Sequence[Any]) -> int | None:
    if one == two:
        return None
    return next((place for place, (a, b) in enumerate(zip_longest(one, two)) if a != b), None)


def _at(items: Sequence[Any], place: int) -> str:
    return str(items[place]) if place < len(items) else ""


def _shown(one: str, two: str) -> tuple[str, str]:
    """Return two texts from a little before the place where they part."""
    same = next(
        (place for place, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two))
    )
    begin = max(0, same - _AROUND)
    lead = "…" if begin else ""
    return f"{lead}{one[begin:]}" if one else "", f"{lead}{two[begin:]}" if two else ""


def _head(call: NumberedCall | None) -> str:
    return "" if call is None else label_of(call.span, call.record).name


def figures(left: Side, right: Side) -> Iterator[tuple[str, str, str]]:
    """Yield name, left and right of everything that is compared in figures."""
    for name, value in (
        ("rollout", lambda side: side.rollout.rollout_id),
        ("attempt", lambda side: str(side.attempt.sequence_id)),
        ("status", lambda side: side.rollout.status),
        ("reward", lambda side: output.number(find_final_reward(side.spans)) or "none"),
        (
            "task",
            lambda side: output.one_line(selection.task(side.rollout) or selection.title(side.rollout), 200),
        ),
        ("model calls", lambda side: f"{len(side.calls):,}"),
        ("tokens", _tokens),
        ("spans", lambda side: f"{len(side.spans):,}"),
        ("failed spans", lambda side: str(sum(span.status.status_code == "ERROR" for span in side.spans))),
    ):
        yield name, value(left), value(right)


def _tokens(side: Side) -> str:
    used = [pair for call in side.calls if call.record is not None and (pair := tokens_of(call.record))]
    return f"{sum(p for p, _ in used):,} → {sum(a for _, a in used):,}" if used else "unknown"


def _print(left: Side, right: Side, rows: Sequence[tuple[str, str, str]], parting: Parting | None) -> None:
    from .side_by_side import lines
    from .terminal import print_lines, width

    said: list[tuple[str, str, str]] = list(rows)
    print_lines(lines(said, width()))
    output.out()
    if parting is None:
        output.out(f"their {output.count(len(left.calls), 'model call')} say the same")
        return
    if parting.what == "calls":
        longer = left if len(left.calls) > len(right.calls) else right
        output.out(f"the same up to call #{parting.call}, which only {longer.rollout.rollout_id} has")
        return
    noun = {"prompt": "message", "answer": "answer"}.get(parting.what, "token")
    output.out(f"they part at call #{parting.call}, {parting.what}, {noun} {parting.place}:")
    print_lines(lines([("", parting.left or "(nothing)", parting.right or "(nothing)")], width()))
