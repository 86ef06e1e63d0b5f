"""The file under a running writer: whatever is done to it, nothing is acknowledged into nothing."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from opentelemetry import trace
from warm import Warm

from agentlightning.errors import SchemaTooNew, StoreFileMoved
from agentlightning.recorder.spool import Spool
from agentlightning.store import SqliteLightningStore
from agentlightning.store.sqlite.connection import MIGRATIONS
from agentlightning.testing import span_of
from agentlightning.tracer import OtelTracer
from agentlightning.types import AttemptedRollout


class ActingClock:
    """A clock that does something to the file in the middle of a transaction, once."""

    def __init__(self) -> None:
        self.act: Callable[[], None] | None = None

    def __call__(self) -> float:
        act, self.act = self.act, None
        if act is not None:
            act()
        return 1_000.0


async def new_store(path: Path) -> tuple[SqliteLightningStore, ActingClock, AttemptedRollout]:
    clock = ActingClock()
    store = SqliteLightningStore(path, clock=clock)
    rollout = await store.start_rollout("task")
    await store.add_span(span_of(rollout, "acknowledged"))
    return store, clock, rollout


async def names_in(path: Path) -> list[str]:
    async with SqliteLightningStore(path) as store:
        assert await store.check() == []
        return [
            span.name
            for rollout in await store.query_rollouts()
            for span in await store.query_spans(rollout.rollout_id)
        ]


def make_other(path: Path) -> None:
    async def make() -> None:
        async with SqliteLightningStore(path) as store:
            await store.start_rollout("of another store")

    asyncio.run(make())


def deleted(path: Path) -> None:
    path.unlink()


def renamed(path: Path) -> None:
    path.rename(path.with_name("renamed.db"))


def replaced_by_another_store(path: Path) -> None:
    path.with_name("other.db").rename(path)


def replaced_by_another_file(path: Path) -> None:
    path.with_name("notes.txt").write_text("hello")
    path.with_name("notes.txt").rename(path)


def replaced_by_an_empty_file(path: Path) -> None:
    path.with_name("empty").touch()
    path.with_name("empty").rename(path)


def folder_deleted(path: Path) -> None:
    shutil.rmtree(path.parent)


def folder_renamed(path: Path) -> None:
    path.parent.rename(path.parent.with_name("elsewhere"))


DONE_TO_THE_FILE = [
    deleted,
    renamed,
    replaced_by_another_store,
    replaced_by_another_file,
    replaced_by_an_empty_file,
    folder_deleted,
    folder_renamed,
]


@pytest.mark.parametrize("moment", ["between writes", "within a transaction"])
@pytest.mark.parametrize("act", DONE_TO_THE_FILE, ids=lambda act: act.__name__)
def test_a_write_to_a_file_that_was_taken_away_is_not_acknowledged(
    tmp_path: Path, act: Callable[[Path], None], moment: str
) -> None:
    path = tmp_path / "folder" / "store.db"
    path.parent.mkdir()
    make_other(path.with_name("other.db"))

    async def main() -> None:
        store, clock, rollout = await new_store(path)
        if moment == "between writes":
            act(path)
        else:
            clock.act = lambda: act(path)
        with pytest.raises(StoreFileMoved, match="deleted"):
            await store.add_span(span_of(rollout, "lost"))
        with pytest.raises(StoreFileMoved):
            await store.update_rollout(rollout.rollout_id, metadata={"n": 1})
        with pytest.raises(StoreFileMoved):
            await store.query_rollouts()
        await store.close()

    asyncio.run(main())


@pytest.mark.parametrize("reads", [False, True])
@pytest.mark.asyncio
async def test_a_log_that_is_deleted_costs_nothing_that_was_acknowledged(tmp_path: Path, reads: bool) -> None:
    path = tmp_path / "store.db"
    store, clock, rollout = await new_store(path)
    if reads:  # a second connection, which holds the deleted log
        await store.query_rollouts()
    clock.act = Path(f"{path}-wal").unlink
    with pytest.raises(StoreFileMoved, match=r"store\.db-wal of .* was deleted"):
        await store.add_span(span_of(rollout, "refused"))
    acknowledged = {"acknowledged"}
    if reads:
        with pytest.raises(StoreFileMoved):
            await store.add_span(span_of(rollout, "refused too"))
    else:
        await store.add_span(span_of(rollout, "after"))
        acknowledged |= {"after"}
    await store.close()

    assert acknowledged <= set(await names_in(path)) <= {*acknowledged, "refused"}


@pytest.mark.asyncio
async def test_a_file_that_is_brought_back_is_used_again_and_has_all_that_was_acknowledged(
    tmp_path: Path,
) -> None:
    path = tmp_path / "store.db"
    store, clock, rollout = await new_store(path)
    clock.act = lambda: renamed(path)
    with pytest.raises(StoreFileMoved):
        await store.add_span(span_of(rollout, "refused"))
    path.with_name("renamed.db").rename(path)
    await store.add_span(span_of(rollout, "after"))
    await store.close()

    assert {"acknowledged", "after"} <= set(await names_in(path))


@pytest.mark.asyncio
async def test_a_renamed_file_takes_along_what_was_acknowledged(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    store, _, rollout = await new_store(path)
    renamed(path)
    with pytest.raises(StoreFileMoved):
        await store.add_span(span_of(rollout, "refused"))
    await store.close()

    assert await names_in(path.with_name("renamed.db")) == ["acknowledged"]


@pytest.mark.asyncio
async def test_a_file_that_is_replaced_by_a_backup_of_itself_is_gone_on_with(tmp_path: Path) -> None:
    path, backup = tmp_path / "store.db", tmp_path / "backup.db"
    store, clock, rollout = await new_store(path)
    with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(backup)) as target:
        source.backup(target)

    def restore() -> None:
        Path(f"{path}-wal").unlink()
        backup.rename(path)

    clock.act = restore
    with pytest.raises(StoreFileMoved):
        await store.add_span(span_of(rollout, "refused"))
    await store.add_span(span_of(rollout, "after"))
    await store.close()

    assert await names_in(path) == ["acknowledged", "after"]


WRITER = """
    import asyncio
    from agentlightning.store import SqliteLightningStore
    from agentlightning.testing import span_of

    async def main():
        async with SqliteLightningStore(args["path"]) as store:
            rollout = await store.start_rollout("of a child")
            report("ready")
            while (name := receive()) is not None:
                try:
                    await store.add_span(span_of(rollout, name))
                    report("acknowledged")
                except Exception as error:
                    report(type(error).__name__)

    asyncio.run(main())
"""


@pytest.mark.asyncio
async def test_who_loses_its_file_leaves_the_log_of_the_one_in_its_place_alone(
    recording: Warm, tmp_path: Path
) -> None:
    path = tmp_path / "store.db"
    store, _, _ = await new_store(path)
    path.unlink()
    Path(f"{path}-wal").unlink()
    Path(f"{path}-shm").unlink()
    with recording.start_child(WRITER, args={"path": str(path)}) as child:
        assert await asyncio.to_thread(child.next_report) == "ready"
        child.send("first")
        assert await asyncio.to_thread(child.next_report) == "acknowledged"
        await store.close()
        assert Path(f"{path}-wal").exists()
        child.send("second")
        assert await asyncio.to_thread(child.next_report) == "acknowledged"
        child.kill()

    assert await names_in(path) == ["first", "second"]


def test_a_process_whose_locks_a_program_of_its_own_dropped_acknowledges_nothing_into_nothing(
    recording: Warm,
    tmp_path: Path,
) -> None:
    """An agent reads the file of its own store with ``open``; another process then takes itself for the last."""
    path = tmp_path / "store.db"
    source = WRITER.replace('report("ready")', 'open(args["path"], "rb").close(); report("ready")')
    with recording.start_child(source, args={"path": str(path)}) as child:
        assert child.next_report() == "ready"
        child.send("first")
        assert child.next_report() == "acknowledged"
        assert asyncio.run(names_in(path)) == ["first"]  # opens, and deletes the log when it closes
        asyncio.run(new_span(path, "of another"))
        child.send("second")
        said = child.next_report()
        child.send(None)
        child.finish()

    assert said == "StoreFileMoved"
    assert asyncio.run(names_in(path)) == ["first", "of another"]


async def new_span(path: Path, name: str) -> None:
    async with SqliteLightningStore(path) as store:
        await store.add_span(span_of(await store.start_rollout("task"), name))


UNPRIVILEGED = """
    import asyncio, os
    from agentlightning.store import SqliteLightningStore
    from agentlightning.testing import span_of
    if os.geteuid() == 0:
        os.setgid(65534)
        os.setuid(65534)

    async def main():
        store = SqliteLightningStore(args["path"])
        rollout = await store.start_rollout("task")
        await store.add_span(span_of(rollout, "first"))
        for mode in (0o500, 0o000, 0o700):
            os.chmod(args["folder"], mode)
            try:
                await store.add_span(span_of(rollout, oct(mode)))
                report("acknowledged")
            except Exception as error:
                report(type(error).__name__)
        await store.close()

    asyncio.run(main())
"""


def test_where_the_folders_rights_hide_the_file_nothing_is_acknowledged(
    recording: Warm, tmp_path: Path
) -> None:
    place = Path("/tmp") / f"agl-{os.getpid()}-{tmp_path.name}"  # `nobody` has no way into pytest's folders
    folder = place / "folder"
    place.mkdir()
    place.chmod(0o777)
    try:
        folder.mkdir()
        if os.geteuid() == 0:
            os.chown(folder, 65534, 65534)
        args = {"path": str(folder / "store.db"), "folder": str(folder)}
        with recording.start_child(UNPRIVILEGED, args=args) as child:
            assert child.finish() == ["acknowledged", "StoreFileMoved", "acknowledged"]
        assert {"first", "0o500", "0o700"} <= set(asyncio.run(names_in(folder / "store.db")))
    finally:
        shutil.rmtree(place)


@pytest.mark.asyncio
async def test_a_copy_that_is_made_while_it_is_written_costs_it_nothing(
    recording: Warm, tmp_path: Path
) -> None:
    path = tmp_path / "store.db"
    store, _, rollout = await new_store(path)
    with recording.start_child(
        "import shutil; shutil.copy(args['path'], args['copy'])",
        args={"path": str(path), "copy": str(tmp_path / "copy.db")},
    ) as child:
        await asyncio.to_thread(child.finish)
    await store.add_span(span_of(rollout, "after"))
    await store.close()
    assert await names_in(path) == ["acknowledged", "after"]


@pytest.mark.asyncio
async def test_a_process_stops_writing_and_reading_when_a_newer_one_has_migrated_the_file(
    tmp_path: Path,
) -> None:
    path = tmp_path / "store.db"
    store, _, rollout = await new_store(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as newer:
        newer.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    with pytest.raises(SchemaTooNew, match="Install a newer"):
        await store.add_span(span_of(rollout))
    with pytest.raises(SchemaTooNew, match="Install a newer"):
        await store.query_spans(rollout.rollout_id)
    await store.close()
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT count(*) FROM spans").fetchall() == [(1,)]


def recorded(store: SqliteLightningStore, act: Callable[[], None]) -> None:
    """Record a span in a process's last second, after something was done to the file."""
    tracer = OtelTracer()
    tracer.init()
    tracer.init_worker(0, store)
    try:
        rollout = asyncio.run(store.start_rollout("task"))
        with tracer.trace_context(rollout_id=rollout.rollout_id, attempt_id=rollout.attempt.attempt_id):
            act()
            with trace.get_tracer("test").start_as_current_span("recorded"):
                pass
    finally:
        tracer.teardown_worker(0)
        tracer.teardown()


def test_what_a_recorder_cannot_write_waits_in_the_spool_until_the_file_is_back(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    store = SqliteLightningStore(path)
    recorded(store, lambda: renamed(path))
    assert Spool(store).files()
    asyncio.run(store.close())

    path.with_name("renamed.db").rename(path)
    store = SqliteLightningStore(path)
    recorded(store, lambda: None)
    asyncio.run(store.close())
    assert asyncio.run(names_in(path)).count("recorded") == 2
    assert not Spool(store).files()
