"""Whether the newest rollouts of the store have spans whose place nobody could tell."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from ...errors import LightningError
from ...store.base import receipt_of
from ...store.registry import open_store
from ...types import Receipt
from .. import lookup, output, store_migrate
from .finding import Finding, Subject

MAX_ROLLOUTS = 100
"""How many rollouts are looked at."""
TIMEOUT = 30.0


def places(subject: Subject) -> Iterator[Finding]:
    """The newest rollouts: that every span of theirs belongs to an attempt. A store is not migrated for it."""
    if subject.url.startswith("memory:"):
        return
    if subject.path is not None and not (
        # Opening an older file would migrate it, which is not for a check to do.
        subject.path.exists() and all(step.applied for step in store_migrate.steps(subject.path))
    ):
        return
    try:
        receipts = asyncio.run(_receipts(subject.url))
    except (LightningError, OSError):  # which the check of the store has said
        return
    if receipts:
        yield _finding(receipts)


def _finding(receipts: list[Receipt]) -> Finding:
    of = output.count(len(receipts), "newest rollout")
    unplaced = [receipt for receipt in receipts if receipt.late or receipt.unattributed]
    if not unplaced:
        return Finding("ok", "places", f"every span of the {of} has its place")
    worst = max(unplaced, key=lambda receipt: receipt.late + receipt.unattributed)
    late = sum(receipt.late for receipt in unplaced)
    sentence = (
        f"of the {of}, {len(unplaced)} may lack spans that belong to no attempt: {late} started after their "
        f"trace_context had closed, and up to {max(receipt.unattributed for receipt in unplaced)} at a time could be "
        "placed by nobody"
    )
    cure = (
        f"agl explain {worst.rollout_id}; carry the context to where the work is done: "
        "docs/how-to/async-and-threads.md#what-belongs-to-no-rollout"
    )
    return Finding("warn", "places", sentence, cure)


async def _receipts(url: str) -> list[Receipt]:
    async with asyncio.timeout(TIMEOUT), open_store(url) as store:
        rollouts = await store.query_rollouts(
            status_in=lookup.BEGUN, sort_by="start_time", sort_order="desc", limit=MAX_ROLLOUTS
        )
        found: list[Receipt | None] = []
        for rollout in rollouts:
            attempt = await store.get_latest_attempt(rollout.rollout_id)
            if attempt is not None:
                found.append(await receipt_of(store, rollout.rollout_id, attempt.attempt_id))
    return [receipt for receipt in found if receipt is not None]
