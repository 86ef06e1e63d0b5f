"""A store that something else was written over in place: the same inode, and not what was acknowledged in it."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from agentlightning.cli import main
from agentlightning.store import SqliteLightningStore
from agentlightning.store.sqlite.backup import back_up, restore
from agentlightning.testing import span_of, start_child


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a store is made, on a file system with extended attributes."""
    try:
        os.setxattr(tmp_path, "user.agentlightning.test", b"1")
    except (OSError, AttributeError):
        pytest.skip("no extended attributes here")
    return tmp_path / "runs.db"


def write(path: Path, rollouts: int = 1) -> None:
    async def run() -> None:
        async with SqliteLightningStore(path) as store:
            for number in range(rollouts):
                rollout = await store.start_rollout(number)
                await store.add_many_spans(
                    [span_of(rollout, f"{n}", attributes={"text": "x" * 500}) for n in range(9)]
                )

    asyncio.run(run())


def doubts(path: Path) -> list[str]:
    async def run() -> list[str]:
        async with SqliteLightningStore(path) as store:
            return await store.doubts()

    return asyncio.run(run())


def older_copy(path: Path, copy: Path) -> None:
    back_up(path, copy, 5.0)
    write(path)


def diverged_copy(path: Path, copy: Path) -> None:
    back_up(path, copy, 5.0)
    write(path)
    for _ in range(3):
        write(copy)


@pytest.mark.parametrize("make", [older_copy, diverged_copy], ids=lambda make: make.__name__)
def test_a_copy_of_another_moment_that_is_written_over_the_file_is_noticed_by_the_next_opening(
    path: Path,
    make: Callable[[Path, Path], None],
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.WARNING, "agentlightning")
    write(path)
    copy = path.with_name("copy.db")
    make(path, copy)
    inode = path.stat().st_ino
    shutil.copyfile(copy, path)
    assert path.stat().st_ino == inode
    assert "lacks commits" not in caplog.text
    write(path)
    assert caplog.text.count("lacks commits") == 1
    write(path)
    assert caplog.text.count("lacks commits") == 1
    assert main(["store", "check", "--store", f"sqlite:///{path}"]) == 0
    assert "it lacked commits that had been in it: a copy" in capsys.readouterr().out
    assert doubts(copy) == []


def closed(path: Path) -> Path:
    return path


def moved(path: Path) -> Path:
    return path.rename(path.with_name("moved.db"))


def copied_with_all_its_attributes(path: Path) -> Path:
    return Path(shutil.copy2(path, path.with_name("copied.db")))


def restored_from_an_older_backup(path: Path) -> Path:
    copy = path.with_name("copy.db")
    older_copy(path, copy)
    restore(copy, path, 5.0, replace=True)
    return path


def vacuumed(path: Path) -> Path:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("VACUUM")
    return path


def written_over_with_itself(path: Path) -> Path:
    copy = path.with_name("copy.db")
    back_up(path, copy, 5.0)
    shutil.copyfile(copy, path)
    return path


KILLED = """
import asyncio, os
from agentlightning.store import SqliteLightningStore
from agentlightning.testing import span_of

async def main():
    store = SqliteLightningStore(args["path"])
    rollout = await store.start_rollout("task")
    await store.add_span(span_of(rollout))
    os.kill(os.getpid(), 9)

asyncio.run(main())
"""


def used_by_a_process_that_is_killed(path: Path) -> Path:
    with start_child(KILLED, args={"path": str(path)}) as child:
        child.wait(deadline=60)
    return path


@pytest.mark.parametrize(
    "act",
    [
        closed,
        moved,
        copied_with_all_its_attributes,
        restored_from_an_older_backup,
        vacuumed,
        written_over_with_itself,
        used_by_a_process_that_is_killed,
    ],
    ids=lambda act: act.__name__,
)
def test_where_nothing_is_missing_nothing_is_said(
    path: Path, act: Callable[[Path], Path], caplog: pytest.LogCaptureFixture
) -> None:
    write(path)
    now = act(path)
    assert doubts(now) == []
    write(now)
    assert doubts(now) == []
    assert "lacks commits" not in caplog.text


def in_use_until_closed(path: Path, copy: Path) -> None:
    async def run() -> None:
        async with SqliteLightningStore(path) as store:
            await store.start_rollout("before")
            shutil.copyfile(copy, path)

    asyncio.run(run())


def killed_and_its_log_left_behind(path: Path, copy: Path) -> None:
    used_by_a_process_that_is_killed(path)
    assert Path(f"{path}-wal").stat().st_size
    shutil.copyfile(copy, path)


@pytest.mark.parametrize(
    "act", [in_use_until_closed, killed_and_its_log_left_behind], ids=lambda act: act.__name__
)
def test_an_older_copy_that_is_written_beneath_a_log_is_noticed(
    path: Path, act: Callable[[Path, Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "agentlightning")
    write(path)
    copy = path.with_name("copy.db")
    older_copy(path, copy)
    act(path, copy)
    (doubt,) = doubts(path)
    assert "while the log beside it was that of another state" in doubt
    assert caplog.text.count("lacks commits") == 1
    assert doubts(path) == [doubt]
