"""What a store is asked with: every backend takes the same, and refuses the same by name."""

from __future__ import annotations

import asyncio
import sys
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from agentlightning.errors import InvalidArgument, NotFound
from agentlightning.store import LightningStore, LightningStoreThreaded, open_store

HUGE = 10**400


@pytest_asyncio.fixture(params=["memory", "sqlite", "threaded"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[LightningStore]:
    opened = open_store(f"sqlite:///{tmp_path}/store.db" if request.param == "sqlite" else "memory://")
    if request.param == "threaded":
        opened = LightningStoreThreaded(opened)
    async with opened:
        yield opened


@pytest.mark.parametrize("number", [sys.maxsize, sys.maxsize + 1, HUGE])
@pytest.mark.asyncio
async def test_a_number_that_no_database_counts_to_means_all(store: LightningStore, number: int) -> None:
    rollout = await store.enqueue_rollout("task")
    assert [found.rollout_id for found in await store.query_rollouts(limit=number)] == [rollout.rollout_id]
    assert list(await store.query_rollouts(offset=number)) == []
    assert list(await store.query_spans(rollout.rollout_id, limit=number, offset=1)) == []
    assert len(await store.dequeue_many_rollouts(limit=number)) == 1


@pytest.mark.parametrize("seconds", [float("inf"), 1e300, HUGE])
@pytest.mark.asyncio
async def test_a_wait_of_more_than_any_clock_counts_is_one_for_ever(
    store: LightningStore, seconds: Any
) -> None:
    rollout = await store.start_rollout("task")
    waiting = asyncio.ensure_future(
        store.wait_for_rollouts(rollout_ids=[rollout.rollout_id, rollout.rollout_id], timeout=seconds)
    )
    await asyncio.sleep(0)
    await store.update_rollout(rollout.rollout_id, status="cancelled")
    assert [found.status for found in await waiting] == ["cancelled"]


@pytest.mark.parametrize("seconds", [-1, float("nan"), "1", -HUGE])
@pytest.mark.asyncio
async def test_a_timeout_that_is_none_is_refused(store: LightningStore, seconds: Any) -> None:
    with pytest.raises(InvalidArgument, match="timeout"):
        await store.wait_for_rollouts(rollout_ids=[], timeout=seconds)


@pytest.mark.parametrize("ids", ["ro-1", [1], [["ro-1"]], [None]])
@pytest.mark.asyncio
async def test_a_wait_takes_a_list_of_texts(store: LightningStore, ids: Any) -> None:
    with pytest.raises(InvalidArgument, match="rollout_ids takes"):
        await store.wait_for_rollouts(rollout_ids=ids, timeout=0)


@pytest.mark.parametrize("moment", [HUGE, -HUGE, float("nan"), "1", True])
@pytest.mark.asyncio
async def test_a_time_that_is_none_is_refused(store: LightningStore, moment: Any) -> None:
    rollout = await store.start_rollout("task")
    with pytest.raises(InvalidArgument, match="last_heartbeat_time must be a time in seconds"):
        await store.update_attempt(rollout.rollout_id, "latest", last_heartbeat_time=moment)


@pytest.mark.parametrize("unknown", [uuid.UUID(int=1), 1, None, "\ud800", [], ["ro-1"], {}, {"id": "ro-1"}])
@pytest.mark.asyncio
async def test_what_is_no_text_is_the_id_of_nothing(store: LightningStore, unknown: Any) -> None:
    rollout = await store.start_rollout("task")
    assert await store.get_rollout_by_id(unknown) is None
    assert await store.get_latest_attempt(unknown) is None
    assert await store.get_resources_by_id(unknown) is None
    assert await store.get_worker_by_id(unknown) is None
    assert list(await store.query_spans(unknown)) == []
    assert list(await store.query_attempts(unknown)) == []
    for call in (
        store.update_rollout(unknown, status="failed"),
        store.update_attempt(unknown, "latest"),
        store.update_attempt(rollout.rollout_id, unknown),
        store.get_receipt(unknown, "latest"),
        store.start_attempt(unknown),
    ):
        with pytest.raises(NotFound):
            await call
