"""``agl show``: the span tree of an attempt, with durations, tokens, rewards and flags."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..codec.attributes import is_late
from ..emitter import get_rewards_from_span
from ..rows.rewards import PRIMARY
from ..semconv import ModelCallAttributes, SpanFlagAttributes
from ..store.base import receipt_of
from ..types import Attempt, Receipt, Rollout, Span
from . import lookup, options, output, receipts

DEEPEST_DRAWN = 32
"""Levels of the tree that are drawn by lines; below them the level is a number, so that no line is longer for it."""
MAX_CHOICES = 1024
"""Where the search for further choices of one call ends."""


@dataclass(frozen=True)
class Row:
    """A span at its place in the tree."""

    span: Span
    open: bool
    guide: str
    """``├─ `` and the like; ``(33) `` where the level is only numbered."""


def add_parser(subparsers: options.Subparsers) -> None:
    """Declare the command."""
    parser = options.command(subparsers, "show", run)
    options.add_rollout(parser)
    options.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Print the tree."""
    return asyncio.run(_run(args))


async def _run(args: argparse.Namespace) -> int:
    async with lookup.open_existing(args.store) as store:
        rollout = await lookup.find_rollout(store, args.rollout)
        attempt = await lookup.find_attempt(store, rollout, args.attempt)
        ended = await store.query_spans(rollout.rollout_id, attempt.attempt_id)
        opened = await store.query_open_spans(rollout.rollout_id, attempt.attempt_id)
        late = await store.query_late_spans(rollout.rollout_id, attempt.attempt_id)
        receipt = await receipt_of(store, rollout.rollout_id, attempt.attempt_id)
    if args.json:
        output.print_json(_document(rollout, attempt, [*ended, *late], opened, receipt))
    else:
        _print(rollout, attempt, list(tree([*ended, *late], opened)), receipt)
        if not ended and not opened and not late:
            output.say(
                f"no span yet; agl explain {rollout.rollout_id}{options.again(args)} says why there may be none"
            )
    return 0


def _document(
    rollout: Rollout,
    attempt: Attempt,
    ended: Sequence[Span],
    opened: Sequence[Span],
    receipt: Receipt | None,
) -> dict[str, Any]:
    spans = [{**span.model_dump(), "open": False, "late": is_late(span.attributes)} for span in ended]
    spans += [{**span.model_dump(), "open": True, "late": False} for span in opened]
    return {
        "rollout": rollout.model_dump(exclude={"attempt"}),
        "attempt": attempt.model_dump(),
        "receipt": receipt and {**receipt.model_dump(), "balanced": receipt.balanced, "whole": receipt.whole},
        "spans": spans,
    }


def tree(ended: Sequence[Span], opened: Sequence[Span]) -> Iterator[Row]:
    """Yield the spans depth first, siblings by start; a span whose parent is not here is a root.

    Parents that form a circle, as broken data may, are shown as roots once the rest is done.
    """
    # By time, then by number: an open span has no number yet (0).
    spans = sorted([*ended, *opened], key=lambda span: (span.start_time or 0.0, span.sequence_id))
    is_open = {span.span_id for span in opened}
    present = {span.span_id for span in spans}
    children: dict[str, list[Span]] = {}
    for span in spans:
        if span.parent_id in present:
            children.setdefault(str(span.parent_id), []).append(span)
    seen: set[str] = set()
    roots = [span for span in spans if span.parent_id not in present]
    # After the roots, all spans once more: what a circle of parents has kept from being reached begins a tree
    # of its own.
    for root in [*roots, *spans]:
        todo: list[tuple[Span, str, str, int]] = [(root, "", "", 0)]
        while todo:
            span, guide, below, depth = todo.pop()
            if span.span_id in seen:
                continue
            seen.add(span.span_id)
            yield Row(span, span.span_id in is_open, guide)
            inner = children.get(span.span_id, [])
            # Reversed, since the last that is put on the stack is the first that is taken from it.
            for place, child in reversed(list(enumerate(inner, 1))):
                if depth >= DEEPEST_DRAWN:
                    todo.append((child, f"{below}({depth + 1}) ", below, depth + 1))
                    continue
                last = place == len(inner)
                lines = ("└─ ", "   ") if last else ("├─ ", "│  ")
                todo.append((child, below + lines[0], below + lines[1], depth + 1))


def tokens(span: Span) -> tuple[int, int] | None:
    """Return how many tokens went in and came out (all choices), or ``None`` where the span does not say."""
    attributes = span.attributes
    prompt = attributes.get(ModelCallAttributes.PROMPT_TOKEN_IDS.value)
    answers = []
    for index in range(MAX_CHOICES):
        ids = attributes.get(ModelCallAttributes.RESPONSE_TOKEN_IDS.at(index))
        if ids is None:
            break
        answers.append(ids)
    # The ids themselves; the server's own count only where there are none.
    if isinstance(prompt, list) and answers:
        return len(prompt), sum(len(ids) for ids in answers)
    used = attributes.get("gen_ai.usage.input_tokens"), attributes.get("gen_ai.usage.output_tokens")
    return (int(used[0] or 0), int(used[1] or 0)) if any(used) else None


def notes(row: Row) -> str:
    """Return what stands out: rewards, errors, token capture, flags."""
    span, attributes = row.span, row.span.attributes
    words = [
        f"reward {'' if reward.name == PRIMARY else f'{reward.name} '}{output.number(reward.value)}"
        for reward in get_rewards_from_span(span)
    ]
    capture = attributes.get(ModelCallAttributes.TOKEN_CAPTURE.value)
    if capture:
        words.append("tokens valid" if capture == "valid" else f"tokens {capture}")
    if span.status.status_code == "ERROR":
        words.append(f"ERROR {output.one_line(span.status.description or '', 50)}".rstrip())
    words += ["open"] if row.open else []
    words += ["late"] if is_late(attributes) or attributes.get(SpanFlagAttributes.LATE.value) else []
    words += ["partial"] if attributes.get(ModelCallAttributes.PARTIAL.value) else []
    words += ["redacted"] if attributes.get(SpanFlagAttributes.REDACTED.value) else []
    untrainable = attributes.get(SpanFlagAttributes.UNTRAINABLE.value)
    words += [f"untrainable ({untrainable})"] if untrainable else []
    lost = attributes.get(SpanFlagAttributes.DROPPED_ATTRIBUTES.value)
    words += [f"{lost} attributes lost"] if lost else []
    return ", ".join(words)


def _print(rollout: Rollout, attempt: Attempt, rows: list[Row], receipt: Receipt | None) -> None:
    from . import terminal

    mode = f", {rollout.mode}" if rollout.mode else ""
    task = rollout.input if isinstance(rollout.input, str) else output.to_json(rollout.input)
    output.out(f"rollout {rollout.rollout_id} ({rollout.status}{mode})  {output.one_line(task, 60)}")
    output.out(f"attempt {attempt.sequence_id}, {attempt.attempt_id} ({attempt.status})")
    output.out()
    if rows:
        # Offsets are from the first span and not from the start of the attempt, which may have waited for a
        # worker.
        begin = min(row.span.start_time or 0.0 for row in rows)
        terminal.print_table(
            ("SPAN", ">AT", ">TOOK", ">TOKENS", "NOTES"), [_cells(row, begin) for row in rows], wrap="NOTES"
        )
        output.out()
    output.out(f"receipt {receipts.line(receipt)}")


def _cells(row: Row, begin: float) -> tuple[str, str, str, str, str]:
    span = row.span
    took = span.end_time - span.start_time if span.end_time and span.start_time else None
    used = tokens(span)
    return (
        row.guide + output.one_line(span.name, 50),
        f"+{output.seconds((span.start_time or begin) - begin)}",
        "…" if row.open else output.seconds(took),
        f"{used[0]} → {used[1]}" if used else "",
        notes(row),
    )
