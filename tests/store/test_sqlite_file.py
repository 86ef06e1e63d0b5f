"""The file itself: what is in it, whose it is, and what happens when it cannot be had or written."""

from __future__ import annotations

import asyncio
import json
import math
import os
import shutil
import sqlite3
import stat
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from warm import Warm

import agentlightning.store.sqlite as package
from agentlightning.errors import (
    InvalidArgument,
    InvalidTransition,
    NotAStore,
    SchemaTooNew,
    StoreBusy,
    StoreClosed,
    StoreFileError,
    StoreUnavailable,
)
from agentlightning.store import (
    InMemoryLightningStore,
    LightningStoreThreaded,
    SqliteLightningStore,
    open_store,
)
from agentlightning.store.query import Condition, Query
from agentlightning.store.sqlite.connection import APPLICATION_ID, MIGRATIONS, statements_of
from agentlightning.store.sqlite.statements import SQL, where
from agentlightning.testing import FaultyStore, ended, open_span_of, span_of, wait_until
from agentlightning.types import OtelResource

FOLDER = Path(package.__file__).parent


def rows(path: Path, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
    """Ask the file itself, as any SQLite tool would."""
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(query, parameters).fetchall()


def execute(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Another program keeps a transaction open."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")


async def make_store(path: Path) -> None:
    async with SqliteLightningStore(path) as store:
        await store.add_span(span_of(await store.start_rollout("task")))


# ---------------------------------------------------------------------- the schema


def schema(connection: sqlite3.Connection) -> tuple[list[Any], list[Any]]:
    objects = connection.execute(
        "SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY name"
    ).fetchall()
    filled = connection.execute("SELECT count(*), sum(value) FROM power_of_two").fetchall()
    return objects, filled


def test_the_migrations_lead_to_the_schema() -> None:
    with closing(sqlite3.connect(":memory:")) as migrated, closing(sqlite3.connect(":memory:")) as fresh:
        for step in MIGRATIONS:
            for statement in statements_of(step.script):
                migrated.execute(statement)
        fresh.executescript((FOLDER / "schema.sql").read_text())

        assert schema(migrated) == schema(fresh)


TAGS = ["plain", "q\"'\\/", "\x00\x1f\x7f\n", "é\u2028😀", "\ud800", ""]


def as_first_release(path: Path, old: Path) -> None:
    """Make a file as the first release made it, with what ``path`` holds and it could hold."""
    execute(
        old,
        "PRAGMA journal_mode = wal",
        f"PRAGMA application_id = {APPLICATION_ID}",
        "PRAGMA user_version = 1",
        *statements_of(MIGRATIONS[0].script),
        "INSERT INTO migrations VALUES (1, 'initial', '2026-11-01')",
    )
    with closing(sqlite3.connect(old, isolation_level=None)) as connection:
        connection.execute("ATTACH ? AS new", (str(path),))
        for table in ("rollouts", "attempts", "resources_otel", "spans", "span_arrays"):
            columns = ", ".join(
                name for _, name, *_ in connection.execute(f"PRAGMA main.table_info({table})")
            )
            connection.execute(f"INSERT INTO main.{table} ({columns}) SELECT {columns} FROM new.{table}")


@pytest.mark.asyncio
async def test_a_file_of_the_first_release_gets_the_tags_of_its_spans(tmp_path: Path) -> None:
    path, old = tmp_path / "store.db", tmp_path / "old.db"
    async with SqliteLightningStore(path) as store:
        await store.start_rollout("without")
        rollout = await store.start_rollout("task")
        ours = {f"agentlightning.tag.{number}": tag for number, tag in enumerate(TAGS)}
        other = {
            "agentlightning.tags": "no",
            "agentlightning.tag.9": {"a": 1},
            "agentlightning.tag.x": "no",
            "agentops.tags.x": ["no"],
        }
        await store.add_span(span_of(rollout, attributes={**ours, **other}))
        await store.add_span(span_of(rollout, attributes={"agentops.tags": ["of agentops", TAGS[4], 1]}))
        fresh = await store.query_rollouts()
    as_first_release(path, old)

    async with SqliteLightningStore(old) as store:
        assert await store.query_rollouts() == fresh
        assert fresh[1].tags == sorted([*TAGS, "of agentops"])
        for tag in fresh[1].tags:
            assert [found.input for found in await store.query_rollouts(tags=[tag])] == ["task"]
    tags = "SELECT * FROM rollout_tags ORDER BY tag"
    assert rows(old, tags) == rows(path, tags)


def test_accounts_and_seals_of_before_say_nothing_of_late_spans() -> None:
    with closing(sqlite3.connect(":memory:")) as connection:
        before, (step,) = MIGRATIONS[:6], MIGRATIONS[6:7]
        for statement in [each for old in before for each in statements_of(old.script)]:
            connection.execute(statement)
        connection.execute(
            "INSERT INTO accounts VALUES (1, 'writer', 2, 3, 4, 5, 1, '{\"pipeline\":1}', '[]')"
        )
        connection.execute("INSERT INTO seals VALUES (1, 6.5, 7, 8)")
        for statement in statements_of(step.script):
            connection.execute(statement)

        accounts = connection.execute("SELECT * FROM accounts").fetchall()
        assert accounts == [(1, "writer", 2, 3, 4, 5, 1, '{"pipeline":1}', "{}", "[]")]
        assert connection.execute("SELECT * FROM seals").fetchall() == [(1, 6.5, 7, 8, 0)]


def test_rollouts_are_found_by_tags_without_reading_all_of_them_or_any_span() -> None:
    clause, parameters = where(Query((Condition("tags", "has", ("a", "b")),))) or ("", [])
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.executescript((FOLDER / "schema.sql").read_text())
        for name in ("find_rollouts", "count_rollouts"):
            plan = connection.execute(f"EXPLAIN QUERY PLAN {SQL[name]}{clause}", parameters).fetchall()
            steps = [step for *_, step in plan]
            assert any("SEARCH rollout_tags USING PRIMARY KEY (tag=?)" in step for step in steps), steps
            assert not [step for step in steps if "SCAN" in step or "span" in step], steps


@pytest.mark.asyncio
async def test_a_file_says_what_it_is_and_which_migrations_it_has_seen(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    await make_store(path)

    assert rows(path, "PRAGMA application_id") == [(APPLICATION_ID,)]
    assert rows(path, "PRAGMA user_version") == [(len(MIGRATIONS),)]
    assert rows(path, "PRAGMA journal_mode") == [("wal",)]
    assert rows(path, "SELECT number, name FROM migrations") == [
        (step.number, step.name) for step in MIGRATIONS
    ]


def test_every_statement_has_a_name_a_sentence_and_is_sql() -> None:
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.executescript((FOLDER / "schema.sql").read_text())
        for name, statement in SQL.items():
            text = next(
                text
                for path in FOLDER.glob("sql/*.sql")
                if f"-- name: {name}\n" in (text := path.read_text())
            )
            sentence = text.split(f"-- name: {name}\n")[1].splitlines()[0]
            assert sentence.startswith("-- "), name
            assert sentence.endswith("."), name
            complete = f"{statement} (1)" if statement.endswith("IN") else statement
            connection.execute(f"EXPLAIN {complete}", [None] * complete.count("?"))


@pytest.mark.asyncio
async def test_a_span_is_readable_with_any_tool(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    async with SqliteLightningStore(path) as store:
        rollout = await store.start_rollout({"question": "1 + 1"})
        span = span_of(
            rollout, "chat", attributes={"model": "m", "nan": math.nan, "choices": [{"text": "2"}]}
        )
        await store.add_span(span)

    ((name, attributes, start),) = rows(path, "SELECT name, attributes, start_time FROM attempt_spans")
    assert (name, start) == ("chat", span.start_time)
    assert json.loads(attributes) == {"model": "m", "nan": {"$float": "nan"}, "choices": [{"text": "2"}]}
    assert rows(path, "SELECT input ->> 'question' FROM rollouts") == [("1 + 1",)]


@pytest.mark.asyncio
async def test_token_ids_and_log_probabilities_are_unpacked_by_views(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    ids: dict[str, list[int]] = {
        "packed.token_ids": [0, 1, -1, 2**31 - 1, -(2**31), *range(151_000, 151_100)],
        "wide.token_ids": [2**63 - 1, -(2**63), -1, 0, 2**32, *range(20)],
        "short.token_ids": [7, 8, 9],
    }
    logprobs = [
        -0.5,
        0.0,
        -1e-300,
        5e-324,
        -1.7976931348623157e308,
        math.inf,
        -math.inf,
        math.nan,
        *[-0.1] * 20,
    ]
    async with SqliteLightningStore(path) as store:
        rollout = await store.start_rollout("task")
        await store.add_span(span_of(rollout, attributes={**ids, "short.logprobs": [-0.25]}))
        await store.add_span(span_of(rollout, attributes={"a.logprobs": logprobs, "other": list(range(100))}))

    for key, expected in ids.items():
        query = "SELECT token_id FROM token_ids WHERE rollout_id = ? AND key = ? ORDER BY position"
        assert [token for (token,) in rows(path, query, rollout.rollout_id, key)] == expected
    read = rows(path, "SELECT logprob FROM logprobs WHERE key = 'a.logprobs' ORDER BY position")
    assert [value for (value,) in read] == [None if math.isnan(value) else value for value in logprobs]
    assert rows(path, "SELECT logprob FROM logprobs WHERE key = 'short.logprobs'") == [(-0.25,)]
    assert rows(path, "SELECT count(*) FROM token_ids WHERE key = 'other'") == [(0,)]
    assert rows(path, "SELECT count(*) FROM span_arrays") == [(4,)]


@pytest.mark.asyncio
async def test_what_produced_spans_is_kept_once(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    resource = OtelResource(attributes={"service.name": "agent", "host": "h" * 500})
    async with SqliteLightningStore(path) as store:
        rollout = await store.start_rollout("task")
        for _ in range(3):
            await store.add_many_spans([span_of(rollout, resource=resource) for _ in range(10)])
        with pytest.raises(InvalidArgument):
            await store.add_many_spans(
                [span_of(rollout, resource=OtelResource()), span_of(rollout, span_id="\ud800")]
            )
        spans = await store.query_spans(rollout.rollout_id)

    assert all(span.resource == resource for span in spans)
    assert len({id(span.resource) for span in spans}) == 30
    assert rows(path, "SELECT count(*) FROM resources_otel") == [(1,)]


@pytest.mark.asyncio
async def test_a_page_of_one_attempt_is_the_page_of_the_whole(tmp_path: Path) -> None:
    async with SqliteLightningStore(tmp_path / "store.db") as store:
        rollout = await store.start_rollout("task")
        await store.add_many_spans(
            [span_of(rollout, f"n{index % 3}", attributes={"ids": list(range(30))}) for index in range(700)]
        )
        whole = await store.query_spans(rollout.rollout_id, "latest", sort_by="name", sort_order="desc")
        page = await store.query_spans(
            rollout.rollout_id, "latest", sort_by="name", sort_order="desc", limit=600, offset=50
        )
        named = await store.query_spans(rollout.rollout_id, "latest", name="n1", limit=5, offset=2)

    assert list(page) == list(whole)[50:650]
    assert list(named) == [span for span in whole if span.name == "n1"][2:7]


# ---------------------------------------------------------------------- whose file it is


def test_a_new_file_and_an_empty_one_become_stores(tmp_path: Path) -> None:
    (tmp_path / "empty.db").touch()
    sqlite3.connect(tmp_path / "blank.db").close()
    execute(tmp_path / "blank.db", "PRAGMA journal_mode = wal", "PRAGMA user_version = 0")
    for name in ("new.db", "empty.db", "blank.db"):
        asyncio.run(make_store(tmp_path / name))
        assert rows(tmp_path / name, "SELECT count(*) FROM spans") == [(1,)]


@pytest.mark.parametrize("data", [b"hello", b"x" * 5_000, b"SQLite format 3\x00", b"\x00" * 200])
def test_a_file_that_is_no_database_is_left_untouched(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(data)

    with pytest.raises(NotAStore, match="untouched"):
        SqliteLightningStore(path)

    assert content(tmp_path) == {"notes.txt": data}


@pytest.mark.parametrize("mode", ["delete", "wal"])
@pytest.mark.parametrize("version", [0, 7])
def test_a_database_of_another_program_is_left_untouched(tmp_path: Path, mode: str, version: int) -> None:
    path = tmp_path / "other.db"
    execute(
        path, f"PRAGMA journal_mode = {mode}", "CREATE TABLE songs (name)", f"PRAGMA user_version = {version}"
    )
    before = content(tmp_path)

    with pytest.raises(NotAStore, match="another program"):
        SqliteLightningStore(path)

    assert content(tmp_path) == before


def test_a_database_that_another_program_has_open_is_left_untouched(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("PRAGMA journal_mode = wal")
        other.execute("CREATE TABLE songs (name)")  # stands in the log, not in the file
        before = {name: data for name, data in content(tmp_path).items() if not name.endswith("-shm")}

        with pytest.raises(NotAStore, match="another program"):
            SqliteLightningStore(path)

        after = {name: data for name, data in content(tmp_path).items() if not name.endswith("-shm")}
        assert after == before


def test_a_schema_of_the_future_is_left_untouched(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    asyncio.run(make_store(path))
    execute(path, f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    before = content(tmp_path)

    with pytest.raises(SchemaTooNew, match="Install a newer agentlightning-otel"):
        SqliteLightningStore(path)

    assert content(tmp_path) == before


def test_a_place_that_cannot_hold_a_store_is_named_with_a_cure(tmp_path: Path) -> None:
    with pytest.raises(StoreFileError, match="is a folder; name a file in it"):
        SqliteLightningStore(tmp_path)
    with pytest.raises(StoreFileError, match="mkdir -p"):
        SqliteLightningStore(tmp_path / "missing" / "store.db")
    with pytest.raises(StoreFileError, match=r"name too long; name another place, as in AGL_STORE="):
        SqliteLightningStore(tmp_path / f"{'x' * 250}.db")
    (tmp_path / "file").touch()
    with pytest.raises(StoreFileError):
        SqliteLightningStore(tmp_path / "file" / "store.db")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StoreFileError, match="no regular file"):
        SqliteLightningStore(tmp_path / "pipe")


UNPRIVILEGED = """
    import os
    from pathlib import Path
    from agentlightning.errors import StoreFileError
    from agentlightning.store import SqliteLightningStore
    if os.geteuid() == 0:
        os.setgid(65534)
        os.setuid(65534)
    for path in args["paths"]:
        try:
            SqliteLightningStore(path)
        except StoreFileError as error:
            report(str(error))
        else:
            report("opened")
"""


def test_what_may_not_be_written_is_named_with_a_cure(recording: Warm, tmp_path: Path) -> None:
    # The user `nobody` has no way into pytest's folders.
    place = Path("/tmp") / f"agl-{os.getpid()}-{tmp_path.name}"
    place.mkdir()
    try:
        asyncio.run(make_store(place / "store.db"))
        shutil.copy(place / "store.db", place / "copy.db")
        folder = place / "folder"
        folder.mkdir()
        shutil.copy(place / "store.db", folder / "store.db")
        (place / "copy.db").chmod(stat.S_IRUSR | stat.S_IRGRP | stat.S_IROTH)
        folder.chmod(stat.S_IRUSR | stat.S_IXUSR | stat.S_IRGRP | stat.S_IXGRP | stat.S_IROTH | stat.S_IXOTH)
        place.chmod(0o777)
        before = content(place), content(folder)
        paths = [str(place / "copy.db"), str(folder / "store.db"), str(folder / "new.db")]
        with recording.start_child(UNPRIVILEGED, args={"paths": paths}) as child:
            read_only, in_folder, new = child.finish()

        assert "chmod" in read_only
        assert "cannot be written" in in_folder
        assert "cannot be written" in new
        assert (content(place), content(folder)) == before
    finally:
        shutil.rmtree(place)


async def read_everything(path: Path) -> None:
    async with SqliteLightningStore(path) as store:
        for rollout in await store.query_rollouts():
            await store.query_spans(rollout.rollout_id)
        await store.start_rollout("task")


@pytest.mark.asyncio
async def test_a_damaged_file_says_how_to_save_what_can_be_saved(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    await make_store(path)
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(size // 4)
        file.write(os.urandom(size // 2))

    with pytest.raises(StoreFileError, match=r"damaged.*\.recover"):
        await read_everything(path)


@pytest.mark.asyncio
async def test_check_finds_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    await make_store(path)
    async with SqliteLightningStore(path) as store:
        assert await store.check() == []
    execute(path, "DELETE FROM attempts")
    async with SqliteLightningStore(path) as store:
        assert any("spans" in problem for problem in await store.check())


def create_at_once(path: Path) -> None:
    failures: list[Exception] = []
    together = threading.Barrier(8)

    def make() -> None:
        together.wait()
        try:
            asyncio.run(make_store(path))
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failures == []
    assert rows(path, "SELECT count(*) FROM migrations") == [(len(MIGRATIONS),)]
    assert rows(path, "SELECT count(*) FROM spans") == [(8,)]


def test_a_file_is_created_once_by_many_at_the_same_time(tmp_path: Path) -> None:
    create_at_once(tmp_path / "store.db")


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_files_are_created_once_by_many_at_the_same_time_again_and_again(tmp_path: Path) -> None:
    for number in range(300):
        create_at_once(tmp_path / f"store-{number}.db")


# ---------------------------------------------------------------------- the URL


@pytest.mark.asyncio
async def test_the_options_of_a_url_are_understood(tmp_path: Path) -> None:
    async with open_store(f"sqlite:///{tmp_path}/a%20b%3F.db?synchronous=full&busy_timeout=0.5") as store:
        assert isinstance(store, SqliteLightningStore)
        assert store.path == tmp_path / "a b?.db"
        assert store.url is not None
        assert store.url.endswith("/a%20b%3F.db?synchronous=full")
        assert store.path.exists()


@pytest.mark.parametrize(
    "options",
    ["synchronous=off", "synchronous=", "busy_timeout=soon", "busy_timeout=-1", "mode=ro", "synchronos=full"],
)
def test_an_unknown_option_of_a_url_is_refused(tmp_path: Path, options: str) -> None:
    with pytest.raises(InvalidArgument):
        open_store(f"sqlite:///{tmp_path}/store.db?{options}")

    assert content(tmp_path) == {}


@pytest.mark.parametrize(
    "url", ["sqlite:///:memory:", "sqlite:///:memory:?synchronous=full", "sqlite:///%3Amemory%3A"]
)
def test_sqlites_word_for_no_file_names_the_store_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.chdir(tmp_path)

    with pytest.raises(InvalidArgument, match="memory://"):
        open_store(url)
    with pytest.raises(InvalidArgument, match="memory://"):
        SqliteLightningStore(":memory:")

    assert content(tmp_path) == {}


# ---------------------------------------------------------------------- what names it


@pytest.mark.asyncio
async def test_a_store_is_the_same_by_every_spelling_and_place_of_its_file(tmp_path: Path) -> None:
    folder, path = tmp_path / "folder", tmp_path / "folder" / "store.db"
    folder.mkdir()
    async with SqliteLightningStore(path) as store:
        store_id, url, place = store.store_id, store.url, store.local_path
    (tmp_path / "link.db").symlink_to(path)
    (tmp_path / "linked").symlink_to(folder)
    for spelled in ("link.db", "linked/store.db", "folder/../folder/store.db"):
        async with open_store(f"sqlite:///{tmp_path}/{spelled}?synchronous=full") as store:
            assert (store.store_id, store.url, store.local_path) == (
                store_id,
                f"{url}?synchronous=full",
                place,
            )
    folder.rename(tmp_path / "elsewhere")
    async with SqliteLightningStore(tmp_path / "elsewhere" / "store.db") as store:
        assert store.store_id == store_id
        assert LightningStoreThreaded(store).store_id == store_id
        assert FaultyStore(store).store_id == store_id
    async with SqliteLightningStore(tmp_path / "other.db") as store:
        assert store.store_id != store_id
    assert InMemoryLightningStore().store_id is None


# ---------------------------------------------------------------------- who may read it


async def modes_while_open(path: Path) -> dict[str, str]:
    async with SqliteLightningStore(path) as store:
        await store.start_rollout("task")
        return {
            each.name.removeprefix(path.name): oct(each.stat().st_mode & 0o777)
            for each in path.parent.iterdir()
        }


@pytest.mark.parametrize(
    ("folder_mode", "file_mode"),
    [(0o755, "0o600"), (0o777, "0o600"), (0o1777, "0o600"), (0o2775, "0o660"), (0o2750, "0o640")],
)
def test_a_new_file_and_its_log_are_its_users_alone_unless_the_folder_is_a_groups(
    tmp_path: Path, folder_mode: int, file_mode: str
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    folder.chmod(folder_mode)
    before = os.umask(0o022)
    try:
        modes = asyncio.run(modes_while_open(folder / "store.db"))
    finally:
        os.umask(before)
    assert modes == {"": file_mode, "-wal": file_mode, "-shm": file_mode}


def test_the_rights_of_a_file_that_is_there_stay_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    path.touch()
    path.chmod(0o664)
    assert asyncio.run(modes_while_open(path)) == {"": "0o664", "-wal": "0o664", "-shm": "0o664"}


# ---------------------------------------------------------------------- when it cannot be written


@pytest.mark.asyncio
async def test_a_file_that_is_held_too_long_is_busy_and_then_usable(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    async with SqliteLightningStore(path, busy_timeout=0.2) as store:
        rollout = await store.start_rollout("task")
        with held(path):
            with pytest.raises(StoreBusy, match="held by another process"):
                await store.add_span(span_of(rollout))
            assert await store.get_rollout_by_id(rollout.rollout_id) == rollout

        assert await store.add_span(span_of(rollout)) is not None


@pytest.mark.asyncio
async def test_a_write_waits_for_another_process_and_then_happens(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    async with SqliteLightningStore(path) as store:
        rollout = await store.start_rollout("task")
        with held(path):
            write = asyncio.create_task(store.add_span(span_of(rollout)))
            await store.get_rollout_by_id(rollout.rollout_id)
            assert not write.done()

        assert await write is not None


@pytest.mark.asyncio
async def test_opening_a_file_that_is_held_needs_no_lock(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    await make_store(path)
    with held(path):
        async with SqliteLightningStore(path, busy_timeout=0.0) as store:
            assert len(await store.query_rollouts()) == 1


@pytest.mark.asyncio
async def test_one_bad_command_of_a_group_is_undone_alone(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    async with SqliteLightningStore(path) as store:
        rollouts = [await store.start_rollout(number) for number in range(20)]
        for rollout in rollouts[::2]:
            await store.update_rollout(rollout.rollout_id, status="cancelled")
        with held(path):  # so that all of them wait for one transaction
            writes = [
                asyncio.create_task(
                    store.update_rollout(rollout.rollout_id, status="succeeded", metadata={"n": 1})
                )
                for rollout in rollouts
            ]
            await asyncio.sleep(0)
        outcomes = await asyncio.gather(*writes, return_exceptions=True)
        found = await store.query_rollouts()

    assert [type(outcome) is InvalidTransition for outcome in outcomes] == [True, False] * 10
    assert [rollout.status for rollout in found] == ["cancelled", "succeeded"] * 10
    assert [rollout.metadata for rollout in found] == [None, {"n": 1}] * 10


FULL_DISK = """
    import asyncio, resource, signal, sys
    from agentlightning.errors import StoreUnavailable
    from agentlightning.store import SqliteLightningStore
    from agentlightning.testing import span_of

    sys.dont_write_bytecode = True  # what the limit cuts off would be broken for everybody
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    async def main():
        async with SqliteLightningStore(args["path"]) as store:
            rollout = await store.start_rollout("task")
            await store.add_span(span_of(rollout, "before"))
            resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, resource.RLIM_INFINITY))
            batch = [span_of(rollout, f"n{number}", attributes={"text": f"{number:05}" * 4_000}) for number in range(100)]
            outcomes = await asyncio.gather(
                store.add_many_spans(batch),
                store.update_rollout(rollout.rollout_id, metadata={"n": 1}),
                return_exceptions=True,
            )
            report([type(outcome).__name__ for outcome in outcomes])
            report([span.name for span in await store.query_spans(rollout.rollout_id)])
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            stored = await store.add_many_spans(batch)
            report([span.sequence_id for span in stored] == list(range(2, 102)))
            report(await store.check())

    asyncio.run(main())
"""


def test_a_full_disk_writes_nothing_by_halves_and_works_again_with_room(
    recording: Warm, tmp_path: Path
) -> None:
    with recording.start_child(FULL_DISK, args={"path": str(tmp_path / "store.db")}) as child:
        outcomes, while_full, stored_later, problems = child.finish()

    assert outcomes[0] == StoreUnavailable.__name__
    assert while_full == ["before"]
    assert stored_later is True
    assert problems == []


# ---------------------------------------------------------------------- life


@pytest.mark.asyncio
async def test_closing_writes_what_is_queued_and_leaves_one_file(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    store = SqliteLightningStore(path)
    rollout = await store.start_rollout("task")
    writes = [asyncio.create_task(store.add_span(span_of(rollout))) for _ in range(50)]
    await asyncio.sleep(0)

    await asyncio.gather(store.close(), store.close())
    await store.close()

    assert [(await write) is not None for write in writes] == [True] * 50
    assert list(content(tmp_path)) == ["store.db"]
    assert rows(path, "SELECT count(*) FROM spans") == [(50,)]
    with pytest.raises(StoreClosed):
        await store.statistics()


@pytest.mark.asyncio
async def test_a_store_that_nobody_closes_ends_its_threads(tmp_path: Path) -> None:
    def threads() -> list[str]:
        return [thread.name for thread in threading.enumerate() if thread.name.startswith("agl-store")]

    store = SqliteLightningStore(tmp_path / "store.db")
    await store.start_rollout("task")
    await store.statistics()
    assert threads()

    del store

    wait_until(lambda: not threads(), what="the threads have ended")


@pytest.mark.asyncio
async def test_storing_a_span_closes_its_start(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    async with SqliteLightningStore(path) as store:
        rollout = await store.start_rollout("task")
        begun = open_span_of(rollout, attributes={"ids": list(range(100))})
        await store.add_many_spans([], opened=[begun])
        assert list(await store.query_open_spans(rollout.rollout_id)) == [begun]
        await store.add_span(ended(begun))

    assert rows(path, "SELECT (SELECT count(*) FROM open_spans), (SELECT count(*) FROM spans)") == [(0, 1)]
