"""What the tests of the tracer share: attempts to record under, and reading them back."""

from __future__ import annotations

import asyncio
from typing import List, Tuple

from agentlightning.store import LightningStore
from agentlightning.types import Receipt, Span


async def new_attempt(store: LightningStore, name: object = "task") -> Tuple[str, str]:
    """Start a rollout; returns the ids of it and of its attempt."""
    started = await store.start_rollout(input=name)
    return started.rollout_id, started.attempt.attempt_id


def spans_in(store: LightningStore, ids: Tuple[str, str]) -> List[Span]:
    """Read an attempt's spans from synchronous code."""
    return list(asyncio.run(read(store, ids)))


async def read(store: LightningStore, ids: Tuple[str, str]) -> List[Span]:
    """Read an attempt's spans."""
    return list(await store.query_spans(*ids))


def assert_balanced(receipt: Receipt) -> None:
    """Started = stored + dropped + open, whatever happened."""
    assert receipt.balanced, receipt
