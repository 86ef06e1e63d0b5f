"""No public function takes the locks of a live connection away, or is in the way of others that open the file.

POSIX drops all locks that a process holds on a file when the process closes any descriptor of it. ``/proc/locks``
shows who holds what.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from warm import Warm

from agentlightning.cli import main
from agentlightning.recorder.spool import Batch, Spool
from agentlightning.store import LightningStore, SqliteLightningStore, open_store
from agentlightning.store.sqlite.connection import prepare_file, recognise
from agentlightning.testing import span_of, wait_until
from agentlightning.types import AttemptedRollout

pytestmark = pytest.mark.skipif(
    not Path("/proc/locks").exists(), reason="this system does not show its locks"
)


def locks_on(path: Path) -> list[str]:
    """What this process has locked in a file, by the kernel's list: kind, first and last byte of each lock.

    The list is no snapshot: while it is read piece by piece, locks of other processes come and go, and one of ours may
    be shown twice or not at all. What is read three times in a row is there.
    """
    found: list[str] = []

    def is_stable() -> bool:
        found[:] = _listed(path)
        return found == _listed(path) == _listed(path)

    wait_until(is_stable, what="the kernel's list of locks is the same three times")
    return found


def _listed(path: Path) -> list[str]:
    inode = str(path.stat().st_ino)
    found = set()
    for line in Path("/proc/locks").read_text().splitlines():
        _, kind, _, access, pid, place, first, last = line.replace("-> ", "").split()
        if kind == "POSIX" and pid == str(os.getpid()) and place.rpartition(":")[2] == inode:
            found.add(f"{access} {first}-{last}")
    return sorted(found)


@pytest.fixture
def live(tmp_path: Path) -> Iterator[tuple[SqliteLightningStore, AttemptedRollout]]:
    """A store whose writer and reader have connections, and a rollout in it."""
    store = SqliteLightningStore(tmp_path / "store.db")
    rollout = asyncio.run(store.start_rollout("task"))
    asyncio.run(store.add_span(span_of(rollout)))
    yield store, rollout
    asyncio.run(store.close())


def opened_and_closed(path: Path) -> None:
    asyncio.run(SqliteLightningStore(path).close())


def opened_by_a_link(path: Path) -> None:
    link = path.with_name("link.db")
    link.symlink_to(path)
    opened_and_closed(link)


def used_beside(path: Path) -> None:
    async def use(store: LightningStore) -> None:
        async with store:
            rollout = await store.start_rollout("other")
            await store.add_span(span_of(rollout))
            await store.query_spans(rollout.rollout_id)

    asyncio.run(use(open_store(f"sqlite:///{path}")))


def checked(path: Path) -> None:
    async def check() -> None:
        async with SqliteLightningStore(path) as store:
            assert await store.check() == []

    asyncio.run(check())


def spooled_and_delivered(path: Path) -> None:
    async def deliver() -> None:
        async with SqliteLightningStore(path) as store:
            rollout = await store.start_rollout("late")
            spool = Spool(store)
            assert spool.write(Batch([span_of(rollout)], [], []), "one")
            assert await spool.deliver() == 1

    asyncio.run(deliver())


def command(*arguments: str) -> Callable[[Path], None]:
    def run(path: Path) -> None:
        assert main([*arguments, "--store", f"sqlite:///{path}"]) in (0, 1)

    return run


PUBLIC: dict[str, Callable[[Path], None]] = {
    "open and close": opened_and_closed,
    "open by a link": opened_by_a_link,
    "use": used_beside,
    "check": checked,
    "spool": spooled_and_delivered,
    "recognise": recognise,
    "prepare": lambda path: (prepare_file(path, 1.0), None)[1],
    "agl store check": command("store", "check"),
    "agl store migrate": command("store", "migrate"),
    "agl store migrate --dry-run": command("store", "migrate", "--dry-run"),
    "agl rollouts": command("rollouts"),
    "agl show": command("show", "latest"),
    "agl rows": command("rows", "latest"),
    "agl explain": command("explain", "latest"),
    "agl triplets": command("triplets", "latest"),
    "agl stats": command("stats"),
}


@pytest.mark.parametrize("name", PUBLIC)
def test_the_locks_of_a_live_connection_survive(
    name: str, live: tuple[SqliteLightningStore, AttemptedRollout], capsys: pytest.CaptureFixture[str]
) -> None:
    store, rollout = live
    before = locks_on(store.path), locks_on(Path(f"{store.path}-shm"))
    assert before[0], "a connection in use holds a shared lock"

    PUBLIC[name](store.path)

    assert (locks_on(store.path), locks_on(Path(f"{store.path}-shm"))) == before
    assert Path(f"{store.path}-wal").exists()
    asyncio.run(store.add_span(span_of(rollout)))
    capsys.readouterr()


OPENER = """
    import asyncio
    from agentlightning.store import SqliteLightningStore
    from agentlightning.testing import span_of

    async def main():
        report("ready")
        while (path := receive()) is not None:
            try:
                async with SqliteLightningStore(path) as store:
                    await store.add_span(span_of(await store.start_rollout("task")))
                report(store.store_id)
            except Exception as error:
                report(f"{type(error).__name__}: {error}")

    asyncio.run(main())
"""


def open_at_once(recording: Warm, folder: Path, processes: int, files: int) -> None:
    """Let processes open one new file at once, again and again; each file is one store, and holds what each wrote."""
    children = [recording.start_child(OPENER) for _ in range(processes)]
    try:
        for child in children:
            assert child.next_report(deadline=120.0) == "ready"
        for number in range(files):
            path = folder / f"store-{number}.db"
            for child in children:
                child.send(str(path))
            said = {child.next_report(deadline=120.0) for child in children}
            assert len(said) == 1, said
            asyncio.run(prove_all_wrote(path, processes, said.pop()))
            assert [left.name for left in folder.iterdir()] == [path.name], "nothing is left beside it"
            path.unlink()
    finally:
        for child in children:
            child.send(None)
            child.finish(deadline=60.0)


async def prove_all_wrote(path: Path, processes: int, store_id: str) -> None:
    async with SqliteLightningStore(path) as store:
        assert store.store_id == store_id
        assert (await store.statistics())["total_spans"] == processes
        assert await store.check() == []
        assert await store.doubts() == []


def test_processes_that_open_one_new_file_at_once_share_one_store(recording: Warm, tmp_path: Path) -> None:
    open_at_once(recording, tmp_path, processes=4, files=5)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_eight_processes_open_one_new_file_at_once_in_a_loop(recording: Warm, tmp_path: Path) -> None:
    open_at_once(recording, tmp_path, processes=8, files=300)


def test_a_store_whose_connections_are_closed_at_once_leaves_no_log(tmp_path: Path) -> None:
    async def use(path: Path) -> None:
        async with SqliteLightningStore(path) as store:
            await store.enqueue_rollout("task")
            await asyncio.gather(*(store.query_rollouts() for _ in range(8)))

    for number in range(60):
        path = tmp_path / f"store-{number}.db"
        asyncio.run(use(path))
        assert [left.name for left in tmp_path.iterdir()] == [path.name]
        path.unlink()
