"""``agl backup`` and ``agl restore``: copies of one moment, made while the store is in use, and put back."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from warm import Warm

from agentlightning.cli import main
from agentlightning.errors import StoreFileError
from agentlightning.store import SqliteLightningStore
from agentlightning.store.sqlite.backup import back_up
from agentlightning.testing import span_of, wait_until


def fill(path: Path, *names: str) -> None:
    async def write() -> None:
        async with SqliteLightningStore(path) as store:
            rollout = await store.start_rollout("task")
            for name in names:
                await store.add_span(span_of(rollout, name, attributes={"ids": list(range(100))}))

    asyncio.run(write())


def names_in(path: Path) -> list[str]:
    async def read() -> list[str]:
        async with SqliteLightningStore(path) as store:
            assert await store.check() == []
            return [
                span.name
                for rollout in await store.query_rollouts()
                for span in await store.query_spans(rollout.rollout_id)
            ]

    return asyncio.run(read())


def store_id(path: Path) -> str:
    async def read() -> str:
        async with SqliteLightningStore(path) as store:
            return store.store_id

    return asyncio.run(read())


def agl(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(arguments)
    said = capsys.readouterr()
    return code, said.out, said.err


def backed_up(capsys: pytest.CaptureFixture[str], path: Path, target: Path) -> dict[str, Any]:
    code, out, err = agl(capsys, "backup", str(target), "--json", "--store", f"sqlite:///{path}")
    assert (code, err) == (0, "")
    document: dict[str, Any] = json.loads(out)
    return document


WRITER = """
    import asyncio
    from agentlightning.store import SqliteLightningStore
    from agentlightning.testing import span_of

    async def main():
        async with SqliteLightningStore(args["path"]) as store:
            rollout = await store.start_rollout("task")
            written = 0
            while True:
                await store.add_many_spans([span_of(rollout) for _ in range(10)])
                written += 10
                report(written)

    asyncio.run(main())
"""


def test_a_backup_of_a_store_that_is_written_is_whole_and_of_one_moment(
    recording: Warm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "store.db"
    with recording.start_child(WRITER, args={"path": str(path)}) as child:
        wait_until(lambda: len(child.poll()) >= 5)
        acknowledged = child.reports[-1]
        document = backed_up(capsys, path, tmp_path / "backup.db")
        wait_until(lambda: child.poll()[-1] > acknowledged)  # the writer went on
        child.kill()

    assert document["rows"]["spans"] >= acknowledged
    assert document["rows"]["spans"] % 10 == 0
    assert len(names_in(tmp_path / "backup.db")) == document["rows"]["spans"]
    assert sorted(each.name for each in tmp_path.iterdir() if "backup" in each.name) == ["backup.db"]
    assert store_id(tmp_path / "backup.db") == store_id(path)
    assert agl(capsys, "store", "check", "--store", f"sqlite:///{tmp_path / 'backup.db'}")[0] == 0


def test_a_backup_overwrites_nothing_and_leaves_nothing_by_halves(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, url = tmp_path / "store.db", f"sqlite:///{tmp_path / 'store.db'}"
    fill(path, "one")
    (tmp_path / "there.db").write_text("mine")
    (tmp_path / "link.db").symlink_to(tmp_path / "nowhere")
    before = sorted(each.name for each in tmp_path.iterdir())
    for target in ("there.db", "store.db", "missing/backup.db"):
        code, out, err = agl(capsys, "backup", str(tmp_path / target), "--store", url)
        assert (code, out) == (2, "")
        assert "choose another name" in err or "mkdir -p" in err
    execute(path, "DELETE FROM attempts")
    code, _, err = agl(capsys, "backup", str(tmp_path / "backup.db"), "--store", url)
    assert (code, "damaged" in err, "agl store check" in err) == (2, True, True)

    assert sorted(each.name for each in tmp_path.iterdir()) == before
    assert (tmp_path / "there.db").read_text() == "mine"


def execute(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(statement)


def test_a_backup_into_a_folder_gets_the_stores_name_and_the_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(tmp_path / "runs.db", "one")
    (tmp_path / "folder").mkdir()
    copy = Path(backed_up(capsys, tmp_path / "runs.db", tmp_path / "folder")["path"])
    assert copy.name.startswith("runs-")
    assert oct(copy.stat().st_mode & 0o777) == "0o600"
    assert names_in(copy) == ["one"]


def test_a_copy_for_which_there_is_no_room_is_taken_away(recording: Warm, tmp_path: Path) -> None:
    fill(tmp_path / "store.db", *map(str, range(50)))
    source = """
        import resource, signal, sys
        from pathlib import Path
        from agentlightning.store.sqlite.backup import back_up
        sys.dont_write_bytecode = True  # what the limit cuts off would be broken for everybody
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
        try:
            back_up(Path(args["path"]), Path(args["copy"]), 1.0)
        except Exception as error:
            report((type(error).__name__, str(error)))
    """
    with recording.start_child(
        source, args={"path": str(tmp_path / "store.db"), "copy": str(tmp_path / "copy.db")}
    ) as child:
        ((kind, said),) = child.finish()
    assert kind == "StoreUnavailable"
    assert "copy" in said
    assert [each.name for each in tmp_path.iterdir()] == ["store.db"]


def test_a_backup_is_put_in_the_place_of_a_store_that_keeps_another_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, url = tmp_path / "store.db", f"sqlite:///{tmp_path / 'store.db'}"
    fill(path, "one")
    back_up(path, tmp_path / "backup.db", 1.0)
    fill(path, "two")

    code, _, err = agl(capsys, "restore", str(tmp_path / "backup.db"), "--store", url)
    assert (code, "--replace" in err) == (2, True)
    code, out, _ = agl(capsys, "restore", str(tmp_path / "backup.db"), "--replace", "--json", "--store", url)
    assert code == 0

    assert names_in(path) == ["one"]
    assert names_in(Path(json.loads(out)["put_aside"])) == ["one", "two"]
    assert names_in(tmp_path / "backup.db") == ["one"]
    assert not [each.name for each in tmp_path.iterdir() if each.name.startswith(".")]


def test_a_log_without_its_file_is_not_mixed_with_what_is_restored(
    recording: Warm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "store.db"
    with recording.start_child(WRITER, args={"path": str(path)}) as child:
        wait_until(lambda: len(child.poll()) >= 3)
        back_up(path, tmp_path / "backup.db", 10.0)
        wait_until(lambda: len(child.poll()) >= 10)
        child.kill()
    path.unlink()
    assert Path(f"{path}-wal").stat().st_size

    assert agl(capsys, "restore", str(tmp_path / "backup.db"), "--store", f"sqlite:///{path}")[0] == 0

    assert names_in(path) == names_in(tmp_path / "backup.db")


@pytest.mark.parametrize("where", ["another process", "this process"])
def test_a_store_that_is_in_use_is_not_replaced(
    recording: Warm, tmp_path: Path, capsys: pytest.CaptureFixture[str], where: str
) -> None:
    path, url = tmp_path / "store.db", f"sqlite:///{tmp_path / 'store.db'}"
    fill(path, "one")
    back_up(path, tmp_path / "backup.db", 1.0)
    arguments = ("restore", str(tmp_path / "backup.db"), "--replace", "--store", url)
    if where == "another process":
        with recording.start_child(WRITER, args={"path": str(path)}) as child:
            wait_until(lambda: len(child.poll()) >= 2)
            code, _, err = agl(capsys, *arguments)
            seen = child.poll()[-1]
            wait_until(lambda: child.poll()[-1] > seen)
            child.kill()
    else:
        store = SqliteLightningStore(path)
        asyncio.run(store.start_rollout("task"))
        code, _, err = agl(capsys, *arguments)
        asyncio.run(store.start_rollout("task"))
        asyncio.run(store.close())
    assert (code, "in use" in err) == (2, True)
    assert not list(tmp_path.glob("*.before-*"))


@pytest.mark.parametrize("kind", ["missing", "text", "other", "damaged", "itself"])
def test_what_is_no_sound_backup_replaces_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    path, backup = tmp_path / "store.db", tmp_path / "backup.db"
    fill(path, "one")
    if kind == "text":
        backup.write_text("hello")
    elif kind == "other":
        execute(backup, "CREATE TABLE songs (name)")
    elif kind == "damaged":
        back_up(path, backup, 1.0)
        with backup.open("r+b") as file:
            file.seek(8192)
            file.write(os.urandom(8192 * 4))
    elif kind == "itself":
        backup = path
    before = path.read_bytes()
    code, _, err = agl(capsys, "restore", str(backup), "--replace", "--store", f"sqlite:///{path}")
    assert (code, err.count("\n")) == (2, 1), err
    assert path.read_bytes() == before
    assert not list(tmp_path.glob("*.before-*"))


def test_two_backups_to_one_name_at_once_give_one(tmp_path: Path) -> None:
    fill(tmp_path / "store.db", "one")
    outcomes: list[object] = []

    def make() -> None:
        try:
            outcomes.append(back_up(tmp_path / "store.db", tmp_path / "backup.db", 10.0))
        except StoreFileError as error:
            outcomes.append(error)

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len([each for each in outcomes if isinstance(each, StoreFileError)]) == 3
    assert names_in(tmp_path / "backup.db") == ["one"]


# ---------------------------------------------------------------------- copies that something else made


@pytest.mark.parametrize("with_log", [False, True])
def test_a_copy_of_a_store_in_use_that_lacks_its_log_is_not_called_sound(
    recording: Warm, tmp_path: Path, capsys: pytest.CaptureFixture[str], with_log: bool
) -> None:
    path, copy = tmp_path / "store.db", tmp_path / "copy.db"
    with recording.start_child(WRITER, args={"path": str(path)}) as child:
        wait_until(lambda: len(child.poll()) >= 20)
        child.kill()  # so that the two are of one moment
    shutil.copy(path, copy)
    if with_log:
        shutil.copy(f"{path}-wal", f"{copy}-wal")
    for _ in range(2):  # it is remembered
        code, out, _ = agl(capsys, "store", "check", "--store", f"sqlite:///{copy}")
        assert (code, "sound" in out.splitlines()) == ((0, True) if with_log else (1, False))
        assert "agl backup" in out
    code, out, _ = agl(capsys, "store", "check", "--store", f"sqlite:///{path}")
    assert (code, "agl backup" in out) == (0, False)


def test_a_copy_of_a_store_that_nobody_has_open_is_sound(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(tmp_path / "store.db", "one")
    shutil.copy(tmp_path / "store.db", tmp_path / "copy.db")
    code, out, _ = agl(capsys, "store", "check", "--store", f"sqlite:///{tmp_path / 'copy.db'}")
    assert (code, out.splitlines()[-1], "agl backup" in out) == (0, "sound", False)
