"""``agl stats``: counts over a whole store."""

from __future__ import annotations

import argparse
import asyncio
from typing import TYPE_CHECKING, Any

from . import lookup, options, output

if TYPE_CHECKING:
    from .outcomes import Outcomes


def add_parser(subparsers: options.Subparsers) -> None:
    """Declare the command."""
    parser = options.command(
        subparsers,
        "stats",
        run,
        details="Counts the store, then reads rollouts (by default the 200 newest): their rewards, oldest on the left; "
        "the mean reward of each version of the weights; and the reasons why model calls give no row, with their "
        "numbers.",
    )
    options.add_filters(parser, limit=200)
    options.add_model(parser)
    options.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Print the counts."""
    return asyncio.run(_run(args))


async def _run(args: argparse.Namespace) -> int:
    # Rows load what reads spans; --help and bad usage need none of it.
    from ..rows import RowPolicy
    from . import selection
    from .outcomes import outcomes_of

    async with lookup.open_existing(args.store) as store:
        counts: dict[str, Any] = dict(await store.statistics())
        workers = await store.query_workers()
        url = store.url
        meant = await selection.matching(store, args, to_read=True)
        # Newest first, so that ``--limit`` means those; a chart goes from left to right.
        outcomes = await outcomes_of(store, meant.rollouts[::-1], RowPolicy(model=args.model))
    counts["workers_by_status"] = _tally([worker.status for worker in workers])
    counts["url"] = url
    counts.pop("uptime", None)  # of the process that looks, which is this one
    if args.json:
        output.print_json({**counts, "outcomes": outcomes.as_json()})
    else:
        _print(counts)
        if meant.rollouts:
            _print_outcomes(outcomes, meant.total)
        elif total := counts.get("total_rollouts"):
            output.say(
                output.none_matches(total) if options.is_filtered(args) else _none_has_begun(total, args)
            )
    return 0


def _none_has_begun(total: int, args: argparse.Namespace) -> str:
    again = options.again(args)
    return f"none of {output.count(total, 'rollout')} has begun; agl rollouts{again} lists what waits"


def _tally(words: list[str]) -> dict[str, int]:
    return {word: words.count(word) for word in sorted(set(words))}


def _print(counts: dict[str, Any]) -> None:
    from . import terminal

    rows: list[tuple[str, str]] = [("store", str(counts["url"]))]
    for name in ("rollouts", "attempts", "spans", "open_spans", "resources", "workers"):
        value = counts.get(f"total_{name}")
        if value is None:
            continue
        by_status = counts.get(f"{name}_by_status") or {}
        words = ", ".join(f"{count:,} {status}" for status, count in sorted(by_status.items()) if count)
        rows.append((name.replace("_", " "), f"{value:,}{f'  ({words})' if words else ''}"))
    if counts.get("total_span_bytes"):
        rows.append(("bytes of spans", f"{counts['total_span_bytes']:,}"))
    terminal.print_table(("WHAT", "HOW MANY"), rows, wrap="HOW MANY")


_LONGEST_CHART = 80


def _print_outcomes(found: Outcomes, total: int) -> None:
    from ..rows.reasons import explained
    from . import terminal
    from .outcomes import NOTHING, columns, drawn, versions_in_order

    if not found.rewards:
        return
    width = min(_LONGEST_CHART, (terminal.width() or _LONGEST_CHART) - 2)
    output.out()
    of = f" of {total:,}" if total > len(found.rewards) else ""
    scored = [reward for reward in found.rewards if reward is not None]
    output.out(f"rewards of {output.count(len(found.rewards), 'rollout')}{of}, oldest first")
    if scored:
        means = columns(found.rewards, width)
        known = [mean for mean in means if mean is not None]
        output.out(f"  {drawn(means)}")
        size = -(-len(found.rewards) // width)
        each = f", a column is the mean of {size}" if size > 1 else ""
        output.out(f"  from {output.number(min(known))} to {output.number(max(known))}{each}")
    unscored = len(found.rewards) - len(scored)
    if unscored:
        sign = f" ({NOTHING})" if scored else ""
        output.out(f"  {unscored:,} without a reward{sign}")
    if found.by_version:
        output.out()
        terminal.print_table(
            ("VERSION", ">ROLLOUTS", ">MEAN REWARD"),
            [
                (name, f"{len(found.by_version[name]):,}", output.number(output.mean(found.by_version[name])))
                for name in versions_in_order(found.by_version)
            ],
        )
    if found.refused:
        output.out()
        refused = sum(found.refused.values())
        output.out(f"{refused:,} of {output.count(found.calls, 'model call')} give no row:")
        for code, count in found.refused.most_common():
            output.out(f"  {count:,}  {explained(code).sentence} ({code})")
        output.say("agl explain ROLLOUT says what to do about each")
