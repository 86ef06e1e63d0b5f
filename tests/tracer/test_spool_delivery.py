"""What the spool delivers, to whom, and what cannot stop it."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sqlite3
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from tracer_sample import new_attempt, read, recorded_until_killed
from warm import Warm

from agentlightning.cli import main
from agentlightning.errors import StoreError
from agentlightning.recorder.spool import Batch, Spool
from agentlightning.store import LightningStore, open_store
from agentlightning.store.sqlite.backup import back_up, restore
from agentlightning.testing import FaultyStore
from agentlightning.tracer import OtelTracer
from agentlightning.types import Span


def span(ids: Any, name: str = "span") -> Span:
    return Span.from_attributes(attributes={}, rollout_id=ids[0], attempt_id=ids[1], name=name)


async def spooled(place: Path) -> Any:
    """Make a store at ``place`` with one span in its spool; returns the ids."""
    store = open_store(f"sqlite:///{place}")
    ids = await new_attempt(store)
    assert Spool(store).write(Batch([span(ids)], [], []), "one")
    await store.close()
    return ids


async def delivered(url: str, ids: Any) -> int:
    store = open_store(url)
    await Spool(store).deliver()
    found = len(await read(store, ids))
    await store.close()
    return found


@pytest.mark.asyncio
@pytest.mark.parametrize("spelling", ["option", "dots", "link", "folder link", "moved"])
async def test_a_store_gets_its_spans_however_its_place_is_written(tmp_path: Path, spelling: str) -> None:
    folder = tmp_path / "runs"
    folder.mkdir()
    ids = await spooled(folder / "s.db")
    if spelling == "option":
        url = f"sqlite:///{folder}/s.db?synchronous=full"
    elif spelling == "dots":
        url = f"sqlite:///{folder}/../runs/s.db"
    elif spelling == "link":
        (tmp_path / "other.db").symlink_to(folder / "s.db")
        url = f"sqlite:///{tmp_path}/other.db"
    elif spelling == "folder link":
        (tmp_path / "elsewhere").symlink_to(folder)
        url = f"sqlite:///{tmp_path}/elsewhere/s.db"
    else:
        folder.rename(tmp_path / "archive")
        url = f"sqlite:///{tmp_path}/archive/s.db"
    assert await delivered(url, ids) == 1


@pytest.mark.asyncio
async def test_spans_of_another_store_stay_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGL_SPOOL_DIR", str(tmp_path / "shared"))
    ids = await spooled(tmp_path / "a.db")
    other = open_store(f"sqlite:///{tmp_path}/b.db")
    assert await Spool(other).deliver() == 0
    assert Spool(other).own_files() == []
    await other.close()
    assert await delivered(f"sqlite:///{tmp_path}/a.db", ids) == 1


@pytest.mark.asyncio
async def test_a_file_of_version_1_goes_to_the_store_of_its_url(tmp_path: Path) -> None:
    ids = await spooled(tmp_path / "s.db")
    (path,) = (tmp_path / "s.db.spool").iterdir()
    head, rest = path.read_text().split("\n", 1)
    old = {key: value for key, value in json.loads(head).items() if key != "store_id"}
    path.write_text(json.dumps({**old, "version": 1}) + "\n" + rest)
    assert await delivered(f"sqlite:///{tmp_path}/s.db", ids) == 1


def _pipe(path: Path, head: str) -> None:
    os.mkfifo(path)


def _deep(path: Path, head: str) -> None:
    path.write_text(head + '{"span": ' + "[" * 100_000 + "]" * 100_000 + "}\n")


def _wrong_types(path: Path, head: str) -> None:
    path.write_text(head + '{"span": 5}\n')


def _wrong_fields(path: Path, head: str) -> None:
    path.write_text(head + '{"span": {"rollout_id": []}}\n')


def _half(path: Path, head: str) -> None:
    path.write_text(head + '{"span": {"rollo')


def _bytes(path: Path, head: str) -> None:
    path.write_bytes(b"\xff\xfe\x00" * 100)


def _folder(path: Path, head: str) -> None:
    path.mkdir()


def _link(path: Path, head: str) -> None:
    path.symlink_to("/etc/passwd")


@pytest.mark.asyncio
@pytest.mark.parametrize("spoil", [_pipe, _deep, _wrong_types, _wrong_fields, _half, _bytes, _folder, _link])
async def test_what_cannot_be_read_goes_aside_is_named_and_stops_nothing(
    tmp_path: Path, spoil: Callable[[Path, str], None], caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store(f"sqlite:///{tmp_path}/s.db")
    ids = await new_attempt(store)
    spool = Spool(store)
    assert spool.write(Batch([span(ids)], [], []), "good")
    (good,) = spool.files()
    bad = spool.folder / "bad.jsonl"
    spoil(bad, good.read_text().split("\n")[0] + "\n")
    os.utime(bad, (1, 1), follow_symlinks=False)  # it comes first
    assert await asyncio.wait_for(spool.deliver(), 20) == 1
    assert [path.name for path in spool.aside()] == ["bad.jsonl"]
    assert "bad.jsonl" in caplog.text
    assert len(await read(store, ids)) == 1
    await store.close()


class TooBig(FaultyStore):
    """Takes no span of this name, with the error that SQLite's ``string or blob too big`` becomes."""

    async def add_many_spans(self, spans: Any, **more: Any) -> Any:
        if any(each.name == "huge" for each in spans):
            raise StoreError("string or blob too big") from sqlite3.DataError("string or blob too big")
        return await super().add_many_spans(spans, **more)


@pytest.mark.asyncio
async def test_what_the_store_cannot_hold_goes_aside(tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path}/s.db")
    ids = await new_attempt(store)
    spool = Spool(TooBig(store))
    for number, name in enumerate(["huge", "good"]):
        assert spool.write(Batch([span(ids, name)], [], []), str(number))
    assert await spool.deliver() == 1
    assert [path.name for path in spool.aside()] == ["0.jsonl"]
    await store.close()


@pytest.mark.asyncio
async def test_a_store_that_is_down_puts_nothing_aside(tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path}/s.db")
    ids = await new_attempt(store)
    down = FaultyStore(store, only={"add_many_spans"})
    spool = Spool(down)
    for number in range(6):
        assert spool.write(Batch([span(ids)], [], []), str(number))
    down.fail_for_ever(lambda: RuntimeError("a driver's own error"))
    with pytest.raises(RuntimeError):
        await spool.deliver()
    assert down.writes == 3
    down.heal()
    assert await spool.deliver() == 6
    await store.close()


@pytest.mark.asyncio
async def test_what_a_dead_process_was_writing_is_removed(tmp_path: Path) -> None:
    await spooled(tmp_path / "s.db")
    half = tmp_path / "s.db.spool" / ".dead.tmp"
    half.write_bytes(b"x" * 1000)
    store = open_store(f"sqlite:///{tmp_path}/s.db")
    await Spool(store).deliver()
    await store.close()
    assert not half.exists()
    assert not half.parent.exists()


@pytest.mark.asyncio
async def test_what_waits_on_disk_is_the_users_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        await spooled(tmp_path / "s.db")
    finally:
        os.umask(before)
    folder = tmp_path / "s.db.spool"
    (path,) = folder.iterdir()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a folder of another user")
@pytest.mark.asyncio
async def test_a_folder_that_another_user_made_where_everybody_may_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    shared = tmp_path / "tmp"
    shared.mkdir()
    shared.chmod(0o1777)
    trap = shared / "spool"
    trap.mkdir()
    os.chown(trap, 54_321, 54_321)
    monkeypatch.setenv("AGL_SPOOL_DIR", str(trap))
    store = open_store(f"sqlite:///{tmp_path}/s.db")
    ids = await new_attempt(store)
    assert not Spool(store).write(Batch([span(ids)], [], []), "one")
    assert "belongs to another user" in caplog.text
    assert list(trap.iterdir()) == []
    await store.close()


class Noting(FaultyStore):
    """Notes the names of spans in the order in which they come."""

    def __init__(self, inner: LightningStore) -> None:
        super().__init__(inner, only={"add_many_spans"})
        self.names: list[str] = []

    async def add_many_spans(self, spans: Any, **more: Any) -> Any:
        self.names += [each.name for each in spans]
        return await super().add_many_spans(spans, **more)


@pytest.mark.asyncio
async def test_new_spans_do_not_wait_for_a_large_spool(tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path}/s.db")
    ids = await new_attempt(store)
    for number in range(50):
        assert Spool(store).write(Batch([span(ids, "old")], [], []), f"{number:03}")
    noting = Noting(store)
    noting.hold()  # or the first file would be delivered before the span ends
    with OtelTracer(max_wait_time=60_000).lifespan(noting) as tracer:
        async with tracer.trace_context("new", store=noting, rollout_id=ids[0], attempt_id=ids[1]):
            trace.get_tracer("agent").start_span("step").end()
            noting.release()
        assert isinstance(tracer, OtelTracer)
        assert await asyncio.to_thread(tracer.processor.force_flush, 60_000)
    assert noting.names.index("step") < 10
    assert noting.names.count("old") == 50
    await store.close()


KILLED = """
down = FaultyStore(store, only={"add_many_spans"})
tracer = OtelTracer(max_wait_time=10, settings=WriterSettings(batch_size=3))
tracer.init()
tracer.init_worker(0, down)
down.fail_for_ever()
renames = 0
import pathlib
rename = pathlib.Path.rename
def counted(self, target):
    global renames
    done = rename(self, target)
    renames += 1
    if renames == args["files"]:
        os.kill(os.getpid(), 9)
    return done
pathlib.Path.rename = counted  # the disk, seen from the spool
with tracer.trace_context(store=down, rollout_id=ids[0], attempt_id=ids[1]):
    for number in range(20):
        trace.get_tracer("agent").start_span(f"s{number}").end()
tracer.teardown()
report("survived")
"""


@pytest.mark.asyncio
@pytest.mark.parametrize("files", [1, 2, 4])
async def test_a_kill_between_two_files_of_the_spool_leaves_a_count_that_balances(
    recording: Warm, tmp_path: Path, files: int
) -> None:
    url = f"sqlite:///{tmp_path}/s.db"
    ids = recorded_until_killed(recording, KILLED, url, files=files)
    store = open_store(url)
    delivered_spans = await Spool(store).deliver()
    receipt = await store.get_receipt(*ids)
    assert delivered_spans >= 1
    assert receipt.balanced, receipt
    assert receipt.stored == delivered_spans
    assert receipt.open == 0 or receipt.interrupted, receipt
    await store.close()


@pytest.mark.asyncio
async def test_a_copy_elsewhere_gets_nothing_of_the_original_nor_the_other_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("AGL_SPOOL_DIR", str(tmp_path / "common"))
    original, copy = tmp_path / "runs.db", tmp_path / "analysis.db"
    ids = await spooled(original)
    back_up(original, copy, 5.0)
    assert await delivered(f"sqlite:///{copy}", ids) == 0
    assert f"sqlite:///{original}" in caplog.text

    store = open_store(f"sqlite:///{copy}")
    assert Spool(store).write(Batch([span(ids, "of the analysis")], [], []), "two")
    await store.close()
    assert await delivered(f"sqlite:///{original}", ids) == 1
    assert await delivered(f"sqlite:///{copy}", ids) == 1


@pytest.mark.asyncio
@pytest.mark.parametrize("place", ["runs.db", "elsewhere.db"])
async def test_a_restored_backup_gets_what_waits_for_the_store_that_it_replaces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.setenv("AGL_SPOOL_DIR", str(tmp_path / "common"))
    original, backup = tmp_path / "runs.db", tmp_path / "backup.db"
    ids = await spooled(original)
    back_up(original, backup, 5.0)
    original.unlink()
    restore(backup, tmp_path / place, 5.0)
    assert await delivered(f"sqlite:///{tmp_path / place}", ids) == 1


@pytest.mark.asyncio
async def test_a_store_that_was_put_aside_gets_nothing_that_waits_for_the_one_in_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGL_SPOOL_DIR", str(tmp_path / "common"))
    original, backup = tmp_path / "runs.db", tmp_path / "backup.db"
    ids = await spooled(original)
    back_up(original, backup, 5.0)
    aside = restore(backup, original, 5.0, replace=True).put_aside
    assert await delivered(f"sqlite:///{aside}", ids) == 0
    assert await delivered(f"sqlite:///{original}", ids) == 1


@pytest.mark.asyncio
async def test_a_store_and_its_own_spool_are_copied_together(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    ids = await spooled(tmp_path / "one" / "runs.db")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    for folder in ("two", "one"):
        assert await delivered(f"sqlite:///{tmp_path}/{folder}/runs.db", ids) == 1


@pytest.mark.asyncio
async def test_spans_of_attempts_that_a_restored_backup_lacks_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    path, backup = tmp_path / "runs.db", tmp_path / "backup.db"
    await open_store(f"sqlite:///{path}").close()
    back_up(path, backup, 5.0)
    store = open_store(f"sqlite:///{path}")
    ids = await new_attempt(store)
    for number in range(9):
        assert Spool(store).write(Batch([span(ids)], [], []), str(number))
    await store.close()
    aside = restore(backup, path, 5.0, replace=True).put_aside
    assert aside is not None

    store = open_store(f"sqlite:///{path}")
    assert await Spool(store).deliver() == 0
    await store.close()
    said = [record.getMessage() for record in caplog.records if "spool" in record.getMessage()]
    assert len(said) == 4
    assert "and 6 more files" in said[-1]
    assert await asyncio.to_thread(main, ["store", "check", "--store", f"sqlite:///{path}"]) == 0
    assert f"9 spans in {path}.spool of 1 attempt that this store does not have ({ids[0]} {ids[1]})" in (
        capsys.readouterr().out
    )

    path.unlink()
    restore(aside, path, 5.0)
    assert await delivered(f"sqlite:///{path}", ids) == 9
