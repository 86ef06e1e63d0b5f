"""Whether a writer lives: by its process where that can be looked at, by its signs of life where it cannot."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from agentlightning.store import InMemoryLightningStore, LightningStore, SqliteLightningStore
from agentlightning.store.base import LEASE_SECONDS, new_writer_id, process_id, writer_is_gone
from agentlightning.testing import account_of, gone_writer_id, span_of, wait_until

BOOT, NAMESPACE, PID, START = process_id().split(":")


def test_a_writer_is_known_by_boot_namespace_process_and_start() -> None:
    assert new_writer_id(7) == f"{BOOT}:{NAMESPACE}:{os.getpid()}:{START}:7"
    assert not writer_is_gone(new_writer_id(7))
    assert writer_is_gone(gone_writer_id())
    assert writer_is_gone(f"{BOOT}:{NAMESPACE}:{PID}:{int(START) - 1}:7"), "an earlier process of this number"


def test_the_system_is_asked_once_which_process_this_is() -> None:
    source = (
        "import os, sys\n"
        "from agentlightning.store.base import new_writer_id\n"
        "first, opened = new_writer_id(1), []\n"
        "sys.addaudithook(lambda event, _: opened.append(event) if event == 'open' else None)\n"
        "assert [new_writer_id(1) for _ in range(9)] == [first] * 9\n"
        "assert opened == [], opened\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    os._exit(new_writer_id(1) == first)\n"
        "assert os.waitpid(child, 0)[1] == 0\n"
    )
    subprocess.run([sys.executable, "-c", source], check=True)


@pytest.mark.parametrize("writer_id", ["", "mine", "a:b:c:d", "host:1:100:1", "a:b:c:d:e"])
def test_of_a_writer_with_another_kind_of_id_nothing_is_known(writer_id: str) -> None:
    assert not writer_is_gone(writer_id, lambda _: 0.0)


@pytest.mark.parametrize(
    "process",
    [f"{BOOT}:1:{PID}:{START}", f"another-boot:{NAMESPACE}:{PID}:{START}", f"{BOOT}:{NAMESPACE}:{PID}:0"],
    ids=["another namespace", "another boot", "a start that nobody knows"],
)
def test_where_a_process_cannot_be_looked_at_only_its_signs_of_life_tell(process: str) -> None:
    writer_id = f"{process}:3"
    for before, gone in ((None, False), (0.0, False), (LEASE_SECONDS / 2, False), (LEASE_SECONDS + 5, True)):
        seen = {} if before is None else {process: time.time() - before}
        assert writer_is_gone(writer_id, seen.get) is gone


async def interrupted(store: LightningStore, writer_id: str) -> bool:
    rollout = await store.start_rollout("task")
    account = account_of(rollout, writer_id, revision=1, started=1)
    await store.add_many_spans([span_of(rollout)], accounts=[account])
    return (await store.get_receipt(rollout.rollout_id, "latest")).interrupted


@pytest.mark.asyncio
async def test_a_writer_of_another_container_is_interrupted_when_its_lease_is_over(tmp_path: Path) -> None:
    path, process = tmp_path / "store.db", f"{BOOT}:1:1:100"
    async with InMemoryLightningStore() as memory:
        assert not await interrupted(memory, f"{process}:1")
    async with SqliteLightningStore(path) as store:
        with closing(sqlite3.connect(path, isolation_level=None)) as container:
            for silent, gone in ((0.0, False), (LEASE_SECONDS - 10, False), (LEASE_SECONDS + 5, True)):
                container.execute(
                    "INSERT OR REPLACE INTO openings VALUES ('container', ?, ?, ?)",
                    (process, str(path.stat().st_ino), time.time() - silent),
                )
                assert await interrupted(store, f"{process}:1") is gone


IN_A_CONTAINER = """
import asyncio, os, sys
from agentlightning.store import SqliteLightningStore
from agentlightning.store.base import new_writer_id
from agentlightning.testing import account_of, open_span_of

async def main():
    store = SqliteLightningStore(sys.argv[1])
    rollout = await store.start_rollout("of a container")
    account = account_of(rollout, new_writer_id(1), revision=1, started=1)
    await store.add_many_spans([], opened=[open_span_of(rollout)], accounts=[account])
    print(os.getpid(), flush=True)
    sys.stdin.read()

asyncio.run(main())
"""


def may_unshare() -> bool:
    tool = shutil.which("unshare")
    command = [tool or "", "--pid", "--fork", "--mount-proc", "true"]
    return tool is not None and not subprocess.run(command, capture_output=True, check=False).returncode


@pytest.mark.skipif(not may_unshare(), reason="this user may not make a process namespace")
def test_a_living_writer_of_a_real_process_namespace_is_not_called_dead(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    asyncio.run(SqliteLightningStore(path).close())
    command = [
        "unshare",
        "--pid",
        "--fork",
        "--mount-proc",
        "--kill-child",
        sys.executable,
        "-c",
        IN_A_CONTAINER,
        str(path),
    ]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline().strip() == b"1"
        assert asyncio.run(receipt_of_all(path)) == [(1, False, True)]
        child.kill()
    execute(path, f"UPDATE openings SET seen = seen - {LEASE_SECONDS + 1}")
    assert asyncio.run(receipt_of_all(path)) == [(1, True, True)]


async def receipt_of_all(path: Path) -> list[tuple[int, bool, bool]]:
    async with SqliteLightningStore(path) as store:
        receipts = [
            await store.get_receipt(each.rollout_id, "latest") for each in await store.query_rollouts()
        ]
        return [(receipt.open, receipt.interrupted, receipt.under_way) for receipt in receipts]


def execute(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(statement)


def openings(path: Path) -> list[tuple[str, float]]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute("SELECT process, seen FROM openings").fetchall()


@pytest.mark.asyncio
async def test_a_process_that_writes_says_so_until_it_closes_the_store(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    async with SqliteLightningStore(path) as store:
        await store.query_rollouts()
        assert openings(path) == [], "who only reads says nothing"
        await store.start_rollout("task")
        ((process, _),) = openings(path)
        assert process == process_id()
    assert openings(path) == []


@pytest.mark.asyncio
async def test_the_word_of_a_process_that_died_is_taken_away_by_the_next_that_opens_the_store(
    tmp_path: Path,
) -> None:
    path = tmp_path / "store.db"
    async with SqliteLightningStore(path) as store:
        await store.start_rollout("task")
    gone = gone_writer_id().rpartition(":")[0]
    execute(path, f"INSERT INTO openings VALUES ('dead', '{gone}', '{path.stat().st_ino}', {time.time()})")
    await SqliteLightningStore(path).close()
    wait_until(lambda: openings(path) == [])
