"""``agl show``: the span tree of an attempt, with times, tokens, rewards and findings; or what its calls said."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .._printable import printable
from ..codec.attributes import is_late
from ..rows.rewards import find_final_reward, find_reward_spans
from ..store.base import LightningStore, receipt_of
from ..types import Attempt, Receipt, Rollout, Span
from . import lookup, options, output, receipts, selection
from .call_numbers import NumberedCall, numbered_calls, tokens_of, wanted_call
from .folding import PAGE

if TYPE_CHECKING:
    from rich.text import Text

    from .trace_view import View


@dataclass(frozen=True)
class Found:
    """Everything that is known of one attempt."""

    rollout: Rollout
    attempt: Attempt
    attempts: int
    ended: Sequence[Span]
    """In the order of their numbers, late ones last."""
    opened: Sequence[Span]
    receipt: Receipt | None
    calls: Sequence[NumberedCall]

    @property
    def begin(self) -> float:
        """When the first span started whose start is known; offsets are from here."""
        times = (output.known_time(span.start_time) for span in [*self.ended, *self.opened])
        return min((at for at in times if at is not None), default=0.0)


def add_parser(subparsers: options.Subparsers) -> None:
    """Declare the command."""
    parser = options.command(
        subparsers,
        "show",
        run,
        details="Model calls are numbered by the time at which they started: #3 is the same call in agl rows and agl "
        "explain. Tokens are those of the prompt → those of the answer; at is from the start of the first span. "
        "A legend below the tree says what the other signs and words mean.",
    )
    options.add_rollout(parser)
    parser.add_argument(
        "--messages", action="store_true", help="what was said in each model call, instead of the tree"
    )
    parser.add_argument(
        "--call", type=int, metavar="N", help="model call N in full: messages, tools, settings, tokens"
    )
    parser.add_argument(
        "--all",
        action="store_true",
        help=f"a line for each span; else repeats are folded beyond {PAGE} lines",
    )
    options.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Print the tree, or what was said."""
    return asyncio.run(_run(args))


async def _run(args: argparse.Namespace) -> int:
    async with lookup.open_existing(args.store) as store:
        rollout = await lookup.find_rollout(store, args.rollout)
        attempt = await lookup.find_attempt(store, rollout, args.attempt)
        found = await read(store, rollout, attempt)
    if args.json:
        output.print_json(_document(found))
    elif args.call is not None or args.messages:
        _print_messages(found, args.call)
    else:
        _print(found, args)
    return 0


async def read(store: LightningStore, rollout: Rollout, attempt: Attempt) -> Found:
    """Read an attempt whole."""
    ids = rollout.rollout_id, attempt.attempt_id
    # Open spans first: one that ends in between is in both lists then, and in none if they were read last.
    opened = await store.query_open_spans(*ids)
    ended = [*await store.query_spans(*ids), *await store.query_late_spans(*ids)]
    over = {span.span_id for span in ended}
    return Found(
        rollout,
        attempt,
        len(await store.query_attempts(rollout.rollout_id)),
        ended,
        [span for span in opened if span.span_id not in over],
        await receipt_of(store, *ids),
        numbered_calls(ended),
    )


def _document(found: Found) -> dict[str, Any]:
    spans = [{**span.model_dump(), "open": False, "late": is_late(span.attributes)} for span in found.ended]
    spans += [{**span.model_dump(), "open": True, "late": False} for span in found.opened]
    receipt = found.receipt
    return {
        "rollout": found.rollout.model_dump(exclude={"attempt"}),
        "attempt": found.attempt.model_dump(),
        "receipt": receipt and {**receipt.model_dump(), "balanced": receipt.balanced, "whole": receipt.whole},
        "calls": {str(call.number): call.span.span_id for call in found.calls},
        "spans": spans,
    }


# ---------------------------------------------------------------------- for people


def _print(found: Found, args: argparse.Namespace) -> None:
    from . import terminal

    view = view_of(found, terminal.width(), everything=args.all)
    terminal.print_lines(page(found, view))
    output.out(f"receipt  {receipts.line(found.receipt)}")
    again, rollout_id = options.again(args), printable(found.rollout.rollout_id)
    if not view.spans:
        output.say(f"no span yet; agl explain {rollout_id}{again} says why there may be none")
    elif view.folded:
        output.say(f"{view.spans:,} spans; --all shows each on a line of its own")


def view_of(found: Found, width: int | None, *, everything: bool = False) -> View:
    """Return what draws the tree of an attempt."""
    from .trace_view import Trace, View

    return View(Trace(found.ended, found.opened, found.calls), width=width, everything=everything)


def page(found: Found, view: View) -> Iterator[Text]:
    """Yield the lines above the receipt: what the rollout is about, the tree, the legend."""
    from rich.text import Text

    yield from heading(found, view.width)
    yield Text()
    if view.spans:
        yield from view.lines()
        yield Text()
        yield from view.legend()


def heading(found: Found, width: int | None) -> Iterator[Text]:
    """Yield what the rollout is about, how it ended, and its figures."""
    from rich.text import Text

    from . import terminal
    from .trace_view import joined

    rollout, status = found.rollout, selection.status_of(found.attempt)
    yield Text(output.one_line(selection.title(rollout), 200), style="bold")
    reward = find_final_reward(found.ended)
    document = selection.import_of(rollout)
    ending = selection.ending_of(rollout.status, document)
    used = [pair for call in found.calls if call.record is not None and (pair := tokens_of(call.record))]
    group = selection.group_of(rollout)
    style = terminal.STYLES.get
    parts = [
        (ending, style(ending, "")),
        ("" if document is None else f"imported from {document.get('format')}", ""),
        (_reward(found, reward), "bold yellow"),
        (rollout.mode or "", ""),
        (f"group {group}" if group else "", ""),
        (_attempt(found), style(status, "") if status != rollout.status else ""),
        (output.count(len(found.calls), "model call") if found.calls else "", ""),
        (f"{sum(p for p, _ in used):,} → {sum(a for _, a in used):,} tokens" if used else "", ""),
        (rollout.rollout_id, "dim"),
    ]
    yield from joined(
        [Text(output.one_line(text, 80), style=look) for text, look in parts if text], " · ", width
    )


def _attempt(found: Found) -> str:
    attempt, status = found.attempt, selection.status_of(found.attempt)
    other = f", {status}" if status != found.rollout.status else ""
    of = f" of {found.attempts}" if found.attempts > 1 else ""
    return f"attempt {attempt.sequence_id}{of}{other}"


def _reward(found: Found, reward: float | None) -> str:
    if reward is not None:
        return f"reward {output.number(reward)}"
    return "reward unscored" if find_reward_spans(found.ended) else ""


def _print_messages(found: Found, number: int | None) -> None:
    from . import conversation, terminal

    if number is not None:
        lines = conversation.one_call(wanted_call(found.calls, number), found.begin)
    else:
        terminal.print_lines(heading(found, terminal.width()))
        output.out()
        lines = conversation.all_calls(found.calls, found.begin)
    terminal.print_lines(lines, hang=conversation.GUTTER)
    if number is None and not found.calls:
        output.say("no model call was recorded; agl explain says why that may be")
