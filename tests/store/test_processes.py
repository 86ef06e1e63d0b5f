"""One SQLite file and real processes: killed at random moments, working side by side, forked, unpickled."""

from __future__ import annotations

import asyncio
import random
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from warm import Warm

from agentlightning.store import InMemoryLightningStore, LightningStore, SqliteLightningStore
from agentlightning.testing import StartMethod, span_of, start_child, wait_until
from agentlightning.types import EnqueueRolloutRequest, RolloutConfig

# ---------------------------------------------------------------------- kill -9

WRITER = """
    import asyncio, itertools
    from agentlightning.store import SqliteLightningStore
    from agentlightning.store.base import new_writer_id
    from agentlightning.testing import account_of, ended, open_span_of, span_of

    async def write(store, number):
        attempted = await store.start_rollout(number)
        report(("attempt", attempted.rollout_id, attempted.attempt.attempt_id))
        writer, opened, started = new_writer_id(number), [], 0
        for revision in itertools.count(1):
            spans = [span_of(attempted) for _ in range(5)]
            if len(opened) >= 6:
                spans += [ended(opened.pop(0)) for _ in range(2)]
                started -= 2
            begun = [open_span_of(attempted) for _ in range(2)]
            started += len(spans) + len(begun)
            account = account_of(attempted, writer, revision=revision, started=started)
            report(("sent", [span.span_id for span in spans], [span.span_id for span in begun]))
            await store.add_many_spans(spans, opened=begun, accounts=[account])
            opened += begun
            report(("acknowledged", [span.span_id for span in spans], [span.span_id for span in begun]))

    async def main():
        report(("opening", []))
        store = SqliteLightningStore(args["path"])
        await asyncio.gather(*(write(store, number) for number in range(3)))

    asyncio.run(main())
"""


def killed_writer(recording: Warm, path: Path, after: int) -> list[tuple[Any, ...]]:
    """Let a process write until it has reported ``after`` times, kill it, and return what it reported."""
    with recording.start_child(WRITER, args={"path": str(path)}) as child:
        reports: list[tuple[Any, ...]] = child.kill(when=lambda: len(child.reports) >= after)
        assert child.error is None, child.error
        return reports


def rows(path: Path, query: str) -> list[tuple[Any, ...]]:
    """Ask the file itself, as any SQLite tool would."""
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(query).fetchall()


async def prove_nothing_was_lost(path: Path, reports: list[tuple[Any, ...]]) -> None:
    sent: set[str] = {span_id for kind, ids, *_ in reports if kind == "sent" for span_id in ids}
    acknowledged = {span_id for kind, ids, *_ in reports if kind == "acknowledged" for span_id in ids}
    opened = {span_id for kind, *rest in reports if kind == "acknowledged" for span_id in rest[1]}
    attempts = [(rest[0], rest[1]) for kind, *rest in reports if kind == "attempt"]
    assert rows(path, "PRAGMA integrity_check") == [("ok",)]
    async with SqliteLightningStore(path) as store:
        stored: list[str] = []
        still_open: list[str] = []
        for rollout_id, attempt_id in attempts:
            spans = await store.query_spans(rollout_id, attempt_id)
            begun = await store.query_open_spans(rollout_id, attempt_id)
            assert [span.sequence_id for span in spans] == list(range(1, len(spans) + 1))
            stored += [span.span_id for span in spans]
            still_open += [span.span_id for span in begun]
            receipt = await store.get_receipt(rollout_id, attempt_id)
            assert receipt.balanced, receipt
            assert (receipt.stored, receipt.open) == (len(spans), len(begun))
            assert receipt.interrupted or not receipt.started
    assert len(set(stored) | set(still_open)) == len(stored) + len(still_open), "nothing is there twice"
    assert acknowledged <= set(stored), "what was acknowledged is in the file"
    assert opened <= set(stored) | set(still_open), "what was acknowledged as open is not lost"
    assert opened - sent <= set(still_open), "what never ended is open"


def kill_rounds(recording: Warm, path: Path, rounds: int) -> None:
    written = 0
    for number in range(rounds):
        # The first is killed while it makes the file, later ones anywhere.
        reports = killed_writer(recording, path, after=random.randrange(2, 250) if number else 1)
        asyncio.run(prove_nothing_was_lost(path, reports))
        written += sum(len(report[1]) for report in reports if report[0] == "acknowledged")
    assert written > 0


def test_what_was_acknowledged_survives_kill_9(recording: Warm, tmp_path: Path) -> None:
    kill_rounds(recording, tmp_path / "store.db", rounds=3)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_what_was_acknowledged_survives_kill_9_fifty_times(recording: Warm, tmp_path: Path) -> None:
    kill_rounds(recording, tmp_path / "store.db", rounds=50)


# ---------------------------------------------------------------------- runners

RUNNER = """
    import asyncio
    from agentlightning.store import SqliteLightningStore
    from agentlightning.testing import span_of

    async def main():
        async with SqliteLightningStore(args["path"]) as store:
            report("ready")
            receive()
            while await store.query_rollouts(status_in=["queuing", "requeuing", "preparing", "running"], limit=1):
                for attempted in await store.dequeue_many_rollouts(limit=2, worker_id=args["worker"]):
                    attempt = attempted.attempt
                    report((attempted.rollout_id, attempt.sequence_id))
                    for _ in range(2):
                        stored = await store.add_many_spans([span_of(attempted) for _ in range(args["spans"])])
                        assert len(stored) == args["spans"]
                    fails = attempted.input % 5 == 0 and attempt.sequence_id == 1
                    await store.update_attempt(
                        attempt.rollout_id, attempt.attempt_id, status="failed" if fails else "succeeded"
                    )
                    await store.update_resources("counter", {})
                    await store.update_worker(args["worker"], {"done": attempted.rollout_id})

    asyncio.run(main())
"""

READER = """
    import asyncio
    from agentlightning.store import SqliteLightningStore

    async def main():
        async with SqliteLightningStore(args["path"]) as store:
            report("ready")
            receive()
            finished, looks = set(), 0
            while len(finished) < args["count"]:
                counts = await store.statistics()
                spans, attempts = counts["total_spans"], counts["total_attempts"]
                assert attempts <= args["count"] * 2 and spans <= attempts * 2 * args["spans"]
                now = {r.rollout_id for r in await store.query_rollouts(status_in=["succeeded"])}
                assert finished <= now, "what is finished stays finished"
                for rollout_id in now - finished:
                    spans = await store.query_spans(rollout_id, "latest")
                    assert [span.sequence_id for span in spans] == list(range(1, 2 * args["spans"] + 1))
                finished, looks = now, looks + 1
            report(looks)

    asyncio.run(main())
"""


def run_side_by_side(
    recording: Warm, path: Path, *, runners: int, count: int, spans: int = 5, deadline: float = 60.0
) -> None:
    """Let processes work off a queue while another one reads, and account for all of it."""
    retry = RolloutConfig(max_attempts=2, retry_condition=["failed"])

    async def prepare() -> None:
        async with SqliteLightningStore(path) as store:
            await store.enqueue_many_rollouts(
                [EnqueueRolloutRequest(input=number, config=retry) for number in range(count)]
            )

    asyncio.run(prepare())
    args = {"path": str(path), "count": count, "spans": spans}
    with ExitStack() as stack:
        children = [
            stack.enter_context(recording.start_child(RUNNER, args={**args, "worker": f"w{number}"}))
            for number in range(runners)
        ]
        reader = stack.enter_context(recording.start_child(READER, args=args))
        for child in [*children, reader]:
            assert child.next_report() == "ready"
        for child in [*children, reader]:
            child.send("go")
        # All at once: whose reports nobody reads stands still as soon as its pipe is full.
        with ThreadPoolExecutor(len(children)) as listening:
            reports = list(listening.map(lambda child: child.finish(deadline=deadline), children))
        claims = [claim for report in reports for claim in report[1:]]
        assert reader.finish(deadline=deadline)[1] > 0
    asyncio.run(prove_all_was_done(path, claims, count, spans))


async def prove_all_was_done(path: Path, claims: list[tuple[str, int]], count: int, spans: int) -> None:
    assert [claim for claim, times in Counter(claims).items() if times > 1] == [], "claimed twice"
    attempts_of: dict[str, int] = {}
    async with SqliteLightningStore(path) as store:
        rollouts = await store.query_rollouts()
        for rollout in rollouts:
            expected = 2 if rollout.input % 5 == 0 else 1
            attempts_of[rollout.rollout_id] = expected
            attempts = await store.query_attempts(rollout.rollout_id)
            assert [attempt.sequence_id for attempt in attempts] == list(range(1, expected + 1))
            assert attempts[-1].status == rollout.status == "succeeded"
        total = sum(attempts_of.values())
        assert sorted(claims) == sorted(
            (name, n + 1) for name, times in attempts_of.items() for n in range(times)
        )
        assert (await store.statistics())["total_spans"] == total * 2 * spans
        counter = await store.get_resources_by_id("counter")
        assert counter is not None
        assert counter.version == total, "an update was lost"
        assert {worker.status for worker in await store.query_workers()} == {"idle"}
    assert rows(path, "PRAGMA integrity_check") == [("ok",)]


def test_two_runners_and_a_reader_share_a_file(recording: Warm, tmp_path: Path) -> None:
    run_side_by_side(recording, tmp_path / "store.db", runners=2, count=40)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_two_runners_and_a_reader_share_a_file_for_long(recording: Warm, tmp_path: Path) -> None:
    run_side_by_side(recording, tmp_path / "store.db", runners=2, count=2000, deadline=1800.0)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_eight_runners_and_a_reader_share_a_file(recording: Warm, tmp_path: Path) -> None:
    run_side_by_side(recording, tmp_path / "store.db", runners=8, count=1000, deadline=1800.0)


# ---------------------------------------------------------------------- fork, spawn, forkserver

USER = """
    import asyncio
    from agentlightning.testing import span_of

    async def main():
        store, attempted = args["store"], args["attempted"]
        for _ in range(10):
            await store.add_many_spans([span_of(attempted) for _ in range(3)])
        own = await store.start_rollout("child")
        await store.update_attempt(own.rollout_id, "latest", status="succeeded")
        (finished,) = await store.wait_for_rollouts(rollout_ids=[own.rollout_id], timeout=120)
        report((own.rollout_id, finished.status, len(await store.query_spans(attempted.rollout_id))))
        await store.close()

    asyncio.run(main())
"""


def in_background(work: Callable[[threading.Event], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """Run ``work(stop)`` in a thread and a loop of its own; the returned call stops it and raises what it raised."""
    stop, errors = threading.Event(), []

    def target() -> None:
        try:
            asyncio.run(work(stop))
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=target)
    thread.start()

    def end() -> None:
        stop.set()
        thread.join()
        if errors:
            raise errors[0]

    return end


def goes_on(count: Callable[[], int]) -> Callable[[], bool]:
    """Return whether ``count`` has grown since now."""
    now = count()
    return lambda: count() > now


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_store_in_use_goes_on_in_child_and_parent(tmp_path: Path, method: StartMethod) -> None:
    store = SqliteLightningStore(tmp_path / "store.db")
    attempted = asyncio.run(store.start_rollout("x"))
    written, children = 0, 3 if method == "fork" else 1  # the other methods start slowly

    async def write(stop: threading.Event) -> None:
        nonlocal written
        while not stop.is_set():
            written += len(await store.add_many_spans([span_of(attempted) for _ in range(2)]))

    end = in_background(write)
    try:
        wait_until(lambda: written > 10)
        for _ in range(children):
            with start_child(USER, args={"store": store, "attempted": attempted}, method=method) as child:
                ((own, status, seen),) = child.finish()
            assert status == "succeeded"
            assert seen >= 30
            wait_until(goes_on(lambda: written))
            assert asyncio.run(store.get_rollout_by_id(own)) is not None
    finally:
        end()
        spans = asyncio.run(store.query_spans(attempted.rollout_id))
        asyncio.run(store.close())
    assert [span.sequence_id for span in spans] == list(range(1, written + children * 30 + 1))
    assert rows(tmp_path / "store.db", "PRAGMA integrity_check") == [("ok",)]


def test_a_forked_memory_store_is_a_store_of_its_own() -> None:
    store = InMemoryLightningStore()
    attempted = asyncio.run(store.start_rollout("x", config=RolloutConfig(timeout_seconds=3600)))
    with start_child(USER, args={"store": store, "attempted": attempted}, method="fork") as child:
        ((own, status, seen),) = child.finish()
    assert (status, seen) == ("succeeded", 30)
    assert asyncio.run(store.get_rollout_by_id(own)) is None
    assert len(asyncio.run(store.query_spans(attempted.rollout_id))) == 0
    asyncio.run(store.add_span(span_of(attempted)))
    asyncio.run(store.close())


def test_a_fork_in_the_middle_of_a_call_leaves_both_usable(tmp_path: Path) -> None:
    """``os.fork`` straight from a coroutine: what nobody should do and somebody does."""
    store: LightningStore = SqliteLightningStore(tmp_path / "store.db")

    async def main() -> None:
        attempted = await store.start_rollout("x")
        writes = [asyncio.create_task(store.add_span(span_of(attempted))) for _ in range(20)]
        await asyncio.sleep(0)
        args = {"store": store, "attempted": attempted}
        with start_child(USER, args=args, method="fork") as child:
            assert len([span for span in await asyncio.gather(*writes) if span]) == 20
            ((_, status, _),) = await asyncio.to_thread(child.finish)
        assert status == "succeeded"
        assert len(await store.query_spans(attempted.rollout_id)) == 50
        await store.close()

    asyncio.run(main())
