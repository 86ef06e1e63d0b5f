"""Rollouts per second through the queue: enqueue, dequeue, succeed; beside raw transactions of SQLite."""

from __future__ import annotations

import asyncio
import random
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

from harness import Figure, Line, Sample, Size, Subject


def _rates(size: Size, work: Callable[[int, int], float]) -> Sample:
    """Measure one and four at a time; ``work(workers, cycles)`` returns seconds."""
    cycles: int = size["cycles"]
    sample: dict[str, float] = {}
    for workers in (1, 4):
        cpu = time.process_time()
        sample[f"by_{workers}"] = cycles / work(workers, cycles // workers)
        sample[f"cpu_{workers}"] = (time.process_time() - cpu) / cycles * 1e6
    return sample


# ---------------------------------------------------------------------- stores


async def _cycles(store: Any, cycles: int) -> None:
    for number in range(cycles):
        await store.enqueue_rollout({"task": number})
        claimed = await store.dequeue_rollout()
        await store.update_attempt(claimed.rollout_id, claimed.attempt.attempt_id, status="succeeded")


async def _gathered(store: Any, workers: int, cycles: int) -> float:
    began = time.perf_counter()
    await asyncio.gather(*(_cycles(store, cycles) for _ in range(workers)))
    return time.perf_counter() - began


def _ours(size: Size, url: str) -> Sample:
    from agentlightning.store import open_store

    def work(workers: int, cycles: int) -> float:
        async def open_and_run() -> float:
            store = open_store(url.format(workers=workers))
            # The first calls open connections and prepare statements.
            await _cycles(store, 5)
            seconds = await _gathered(store, workers, cycles)
            await store.close()
            return seconds

        return asyncio.run(open_and_run())

    return _rates(size, work)


def ours_memory(size: Size) -> Sample:
    """``memory://``."""
    return _ours(size, "memory://")


def ours_sqlite(size: Size) -> Sample:
    """``sqlite://``."""
    return _ours(size, f"sqlite:///{size['folder']}/queue-{{workers}}.db")


def peer_memory(size: Size) -> Sample:
    """Agent Lightning 0.3's store in memory."""
    from agentlightning.store.memory import InMemoryLightningStore

    def work(workers: int, cycles: int) -> float:
        async def run() -> float:
            store = InMemoryLightningStore(thread_safe=True)
            await _cycles(store, 5)
            return await _gathered(store, workers, cycles)

        return asyncio.run(run())

    return _rates(size, work)


# ---------------------------------------------------------------------- the floor


def floor_sqlite(size: Size) -> Sample:
    """Three transactions of one row each, by one connection a thread."""

    def work(workers: int, cycles: int) -> float:
        path = f"{size['folder']}/floor-{workers}.db"
        # Closed before the clock runs; the mode stays with the file.
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute("PRAGMA journal_mode = wal")
            connection.execute("CREATE TABLE rollouts (id INTEGER PRIMARY KEY, status TEXT, input TEXT)")
            connection.execute("CREATE INDEX waiting ON rollouts (id) WHERE status = 'queuing'")
        threads = [threading.Thread(target=_raw_cycles, args=(path, cycles)) for _ in range(workers)]
        began = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return time.perf_counter() - began

    return _rates(size, work)


def _raw_cycles(path: str, cycles: int) -> None:
    with closing(sqlite3.connect(path, isolation_level=None, timeout=0)) as connection:
        connection.execute("PRAGMA synchronous = normal")
        for number in range(cycles):
            _one(
                connection,
                "INSERT INTO rollouts (status, input) VALUES ('queuing', ?)",
                f'{{"task": {number}}}',
            )
            # The smallest id: oldest first, as our queue does.
            claimed = _one(
                connection,
                "UPDATE rollouts SET status = 'preparing' WHERE id = (SELECT min(id) FROM rollouts"
                " WHERE status = 'queuing') RETURNING id",
            )
            _one(connection, "UPDATE rollouts SET status = 'succeeded' WHERE id = ?", *claimed[0])


def _one(connection: sqlite3.Connection, statement: str, *parameters: Any) -> list[Any]:
    while True:
        try:
            connection.execute("BEGIN IMMEDIATE")
            break
        except sqlite3.OperationalError:  # SQLite's own pauses, of up to 0.1 s, would measure themselves
            time.sleep(random.uniform(0.0001, 0.001))
    rows = connection.execute(statement, parameters).fetchall()
    connection.execute("COMMIT")
    return rows


FIGURE = Figure(
    name="queue_cycle",
    title="Enqueue, dequeue, succeed",
    how=(
        "One cycle enqueues a rollout, claims one, and reports success: three calls, each a transaction, awaited one "
        "after the other; one or four such loops at a time in one process. Beside it: three raw transactions of one "
        "row each (`synchronous = normal`), one connection a thread."
    ),
    subjects=(
        Subject("floor_sqlite"),
        Subject("ours_sqlite"),
        Subject("ours_memory"),
        Subject("peer_memory", peer="0.3.0"),
    ),
    lines=tuple(
        line
        for subject, beside, words in (
            ("ours_sqlite", "floor_sqlite", "SQLite"),
            ("ours_memory", "floor_sqlite", "memory"),
            ("ours_memory", "peer_memory", "memory, beside 0.3"),
        )
        for line in (
            Line(f"{words}, 1 at a time", subject, "by_1", "cycles/s", beside),
            Line(f"{words}, 4 at a time", subject, "by_4", "cycles/s", beside),
            Line(f"{words}, 1 at a time: processor time", subject, "cpu_1", "µs/cycle", beside),
        )
    ),
    sizes={
        "tiny": {"cycles": 20},
        "quick": {"cycles": 400},
        "normal": {"cycles": 2000},
        "full": {"cycles": 4000},
    },
    rounds={"tiny": 1, "quick": 3, "normal": 7, "full": 15},
)
