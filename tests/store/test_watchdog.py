"""Attempts that fall silent are found by time alone: nobody has to call the store for it."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from warm import Warm

from agentlightning.store import InMemoryLightningStore, LightningStore, SqliteLightningStore
from agentlightning.testing import ManualClock, span_of, wait_until
from agentlightning.types import RolloutConfig

LATE = RolloutConfig(timeout_seconds=0.3, max_attempts=2, retry_condition=["timeout"])
SILENT = RolloutConfig(unresponsive_seconds=0.2, max_attempts=2, retry_condition=["unresponsive"])
PATIENT = RolloutConfig(timeout_seconds=3600, unresponsive_seconds=3600)

WORKER = """
    import asyncio
    from agentlightning.store import SqliteLightningStore
    from agentlightning.testing import span_of

    async def main():
        store = SqliteLightningStore(args["path"])
        for name, config in args["configs"].items():
            rollout = await store.start_rollout(name, config=config)
            await store.add_span(span_of(rollout))
        report("started")
        return store

    store = asyncio.run(main())
    receive()  # lives on, with the store open and without any call
"""


def statuses(path: Path) -> dict[str, tuple[str, str]]:
    """Read attempt and rollout statuses as any SQLite tool would; this is no call of a store."""
    query = """
        SELECT rollouts.input, attempts.status, rollouts.status
        FROM rollouts JOIN attempts USING (rollout_id)
    """
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        return {name.strip('"'): (attempt, rollout) for name, attempt, rollout in connection.execute(query)}


def test_a_silent_attempt_is_found_without_any_call(recording: Warm, tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    args = {"path": str(path), "configs": {"late": LATE, "silent": SILENT, "patient": PATIENT}}
    expected = {
        "late": ("timeout", "requeuing"),
        "silent": ("unresponsive", "requeuing"),
        "patient": ("running", "running"),
    }
    with recording.start_child(WORKER, args=args) as child:
        assert child.next_report() == "started"
        wait_until(lambda: statuses(path) == expected, what=f"attempts become {expected}")


@pytest.mark.asyncio
async def test_what_a_dead_process_left_running_is_found_by_the_next(recording: Warm, tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    with recording.start_child(
        WORKER, args={"path": str(path), "configs": {"late": LATE, "patient": PATIENT}}
    ) as child:
        assert child.next_report() == "started"
        child.kill()
    async with SqliteLightningStore(path):
        await asyncio.to_thread(
            wait_until, lambda: statuses(path)["late"] == ("timeout", "requeuing"), what="late is requeued"
        )
        assert statuses(path)["patient"] == ("running", "running")


@pytest.mark.asyncio
@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_a_requeued_attempt_is_superseded_by_the_next_claim(tmp_path: Path, kind: str) -> None:
    store: LightningStore = (
        InMemoryLightningStore() if kind == "memory" else SqliteLightningStore(tmp_path / "store.db")
    )
    async with store:
        first = await store.start_rollout("x", config=SILENT, worker_id="gone")
        sentinel = await store.start_rollout("y", config=RolloutConfig(unresponsive_seconds=0.2))
        await store.wait_for_rollouts(rollout_ids=[sentinel.rollout_id], timeout=120)
        second = await store.dequeue_rollout("fresh")
        assert second is not None
        assert (second.rollout_id, second.attempt.sequence_id) == (first.rollout_id, 2)
        await store.add_span(span_of(second))
        await store.update_attempt(first.rollout_id, first.attempt.attempt_id, status="succeeded")
        now = await store.get_rollout_by_id(first.rollout_id)
        assert now is not None
        assert now.status == "running"
        await store.update_attempt(second.rollout_id, second.attempt.attempt_id, status="succeeded")
        (done,) = await store.wait_for_rollouts(rollout_ids=[first.rollout_id], timeout=0)
        assert done.status == "succeeded"
        gone = await store.get_worker_by_id("gone")
        assert gone is not None
        assert gone.status != "busy"


@pytest.mark.asyncio
@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_a_clock_that_is_moved_is_noticed(tmp_path: Path, kind: str) -> None:
    clock = ManualClock()
    store: LightningStore = (
        InMemoryLightningStore(clock=clock)
        if kind == "memory"
        else SqliteLightningStore(tmp_path / "store.db", clock=clock)
    )
    day = RolloutConfig(timeout_seconds=86_400)
    async with store:
        rollout = await store.start_rollout("x", config=day)
        wait = asyncio.create_task(store.wait_for_rollouts(rollout_ids=[rollout.rollout_id]))
        clock.shift(-3600.0)
        clock.shift(3600.0 + 86_399.0)
        assert not (await asyncio.wait([wait], timeout=0.05))[0]
        clock.shift(1.0)
        (late,) = await asyncio.wait_for(wait, 20)
        assert late.status == "failed"


@pytest.mark.asyncio
async def test_many_deadlines_come_up_in_order(tmp_path: Path) -> None:
    async with SqliteLightningStore(tmp_path / "store.db") as store:
        order: list[float] = [0.5, 0.1, 0.3]
        begun = [
            await store.start_rollout(seconds, config=RolloutConfig(timeout_seconds=seconds))
            for seconds in order
        ]
        found = await store.wait_for_rollouts(rollout_ids=[r.rollout_id for r in begun], timeout=120)
        ends = [rollout.end_time or 0.0 for rollout in found]
        assert [rollout.status for rollout in found] == ["failed"] * 3
        assert ends[1] <= ends[2] <= ends[0]
        for rollout, seconds in zip(found, order, strict=True):
            assert (rollout.end_time or 0.0) - rollout.start_time >= seconds
