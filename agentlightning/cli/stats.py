"""``agl stats``: counts over a whole store."""

from __future__ import annotations

import argparse
import asyncio
from typing import Any

from . import lookup, options, output


def add_parser(subparsers: options.Subparsers) -> None:
    """Declare the command."""
    options.add_json(options.command(subparsers, "stats", run))


def run(args: argparse.Namespace) -> int:
    """Print the counts."""
    return asyncio.run(_run(args))


async def _run(args: argparse.Namespace) -> int:
    async with lookup.open_existing(args.store) as store:
        counts: dict[str, Any] = dict(await store.statistics())
        workers = await store.query_workers()
        url = store.url
    counts["workers_by_status"] = _tally([worker.status for worker in workers])
    counts["url"] = url
    counts.pop("uptime", None)  # of the process that looks, which is this one
    if args.json:
        output.print_json(counts)
    else:
        _print(counts)
    return 0


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
