"""``open_store``: from a URL, or from the settings, to a store; and what a wrong URL says."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from agentlightning.errors import StoreFileError, UnknownStoreScheme
from agentlightning.store import (
    InMemoryLightningStore,
    LightningStore,
    SqliteLightningStore,
    open_store,
)


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path) -> Iterator[None]:
    """Relative paths and ``pyproject.toml`` are looked up in the current folder."""
    before = Path.cwd()
    os.chdir(tmp_path)
    yield
    os.chdir(before)


def used(store: LightningStore) -> LightningStore:
    """Write into a store, so that its file exists, and close it."""

    async def use() -> None:
        async with store:
            await store.enqueue_rollout("x")

    asyncio.run(use())
    return store


def test_our_own_stores_are_registered_like_a_strangers() -> None:
    names = {entry.name for entry in entry_points(group="agentlightning.stores")}
    assert names >= {"memory", "sqlite"}


def test_memory_opens_a_new_store_each_time() -> None:
    one, two = used(open_store("memory://")), open_store("memory://")
    assert isinstance(one, InMemoryLightningStore)
    assert asyncio.run(two.dequeue_rollout()) is None
    asyncio.run(two.close())


def test_our_stores_open_beside_a_package_whose_metadata_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken-1.0.dist-info"
    broken.mkdir()
    (broken / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n", encoding="utf-8")
    (broken / "entry_points.txt").write_bytes(b"\xff\xfe")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UnicodeDecodeError):
        entry_points(group="agentlightning.stores")
    asyncio.run(open_store("memory://").close())


def test_three_slashes_are_a_relative_path_and_four_an_absolute_one(tmp_path: Path) -> None:
    assert isinstance(used(open_store("sqlite:///here.db")), SqliteLightningStore)
    assert (tmp_path / "here.db").is_file()
    used(open_store(f"sqlite:///{tmp_path}/there.db"))
    assert (tmp_path / "there.db").is_file()


@pytest.mark.parametrize(
    "name", ["with space.db", "ümläut.db", "per%cent.db", "q?x=1.db", "hash#1.db", "a+b.db"]
)
def test_the_url_of_a_store_opens_it_again_whatever_its_file_is_called(tmp_path: Path, name: str) -> None:
    store = SqliteLightningStore(tmp_path / name)
    rollout = asyncio.run(store.enqueue_rollout("x"))
    assert store.url is not None
    again = open_store(store.url)
    assert asyncio.run(again.get_rollout_by_id(rollout.rollout_id)) == rollout
    asyncio.run(again.close())
    asyncio.run(store.close())
    assert (tmp_path / name).is_file()


def test_the_default_is_a_file_in_the_current_folder(tmp_path: Path) -> None:
    used(open_store())
    assert (tmp_path / "agentlightning.db").is_file()


def test_a_keyword_goes_before_the_environment_and_that_before_the_project(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[tool.agentlightning]\nstore = "sqlite:///project.db"\n')
    used(open_store())
    assert (tmp_path / "project.db").is_file()
    os.environ["AGL_STORE"] = "sqlite:///environment.db"
    used(open_store())
    assert (tmp_path / "environment.db").is_file()
    used(open_store("sqlite:///keyword.db"))
    assert (tmp_path / "keyword.db").is_file()
    assert not (tmp_path / "agentlightning.db").exists()


@pytest.mark.parametrize(
    ("project", "said"),
    [
        ('[tool.agentlightning]\nstoer = "x"', "'stoer' in [tool.agentlightning]: store"),
        ('[tool.agentlightning]\nAGL_STORE = "x"', "'AGL_STORE' in [tool.agentlightning]: store"),
        ('[tool.agentlightning]\nspool-dir = "x"', "'spool-dir' in [tool.agentlightning]: spool_dir"),
        ("[tool.agentlightning]\nzzz = 1", "'zzz' in [tool.agentlightning]: remove it"),
        ("[tool.agentlightning]\nstore = ['x']", "'store' in [tool.agentlightning]: write it as a text"),
        ("[tool.agentlightning]\nemitter_debug = true", "'emitter_debug': set AGL_EMITTER_DEBUG"),
        ('[tool.agent-lightning]\nstore = "x"', "[tool.agent-lightning]: [tool.agentlightning]"),
        ('[tool.AgentLightning]\nstore = "x"', "[tool.AgentLightning]: [tool.agentlightning]"),
        ('[tools.agentlightning]\nstore = "x"', "[tools.agentlightning]: [tool.agentlightning]"),
        ('[agentlightning]\nstore = "x"', "[agentlightning]: [tool.agentlightning]"),
    ],
)
def test_what_a_project_says_to_nobody_is_said_once(
    tmp_path: Path, project: str, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    what, cure = said.split(": ")
    path = tmp_path / "pyproject.toml"
    path.write_text(project, encoding="utf-8")
    used(open_store())
    used(open_store())
    path.write_text(f"{project}\n", encoding="utf-8")  # read again, since it has changed
    used(open_store())
    (message,) = [record.getMessage() for record in caplog.records if record.name == "agentlightning.env_var"]
    assert message.startswith(what)
    assert str(path) in message
    assert message.removesuffix("?").endswith(cure)
    assert (tmp_path / "agentlightning.db").is_file()


@pytest.mark.parametrize(
    "project",
    [
        "",
        '[tool.agentlightning]\nstore = "sqlite:///agentlightning.db"\nbatch_size = 7',
        "[tool.agentlab]\nx = 1\n[tool.agentscope]\ny = 1",
        "tool = 1",
        '[tool]\nagentlightning = "x"',
        "[tool.agentlightning",
    ],
)
def test_of_a_project_that_is_right_or_not_about_us_nothing_is_said(
    tmp_path: Path, project: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "pyproject.toml").write_text(project, encoding="utf-8")
    used(open_store())
    assert [record for record in caplog.records if record.name == "agentlightning.env_var"] == []


@pytest.mark.parametrize("url", ["nostore://x", "SQLITE3://x", "http+unix://x", "://x", " memory://"])
def test_an_unknown_scheme_is_refused_with_the_known_ones(url: str) -> None:
    with pytest.raises(UnknownStoreScheme, match=r"installed schemes: .*memory://.*sqlite://"):
        open_store(url)


@pytest.mark.parametrize("url", ["runs/store.db", "sqlite:runs/store.db", "file:runs/store.db"])
def test_a_path_is_no_url_and_the_message_gives_the_url(url: str) -> None:
    with pytest.raises(UnknownStoreScheme, match=r"Did you mean sqlite:///runs/store\.db \?"):
        open_store(url)


def test_a_directory_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(StoreFileError):
        open_store(f"sqlite:///{tmp_path}")


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///", "sqlite:////proc/no/such/store.db"])
def test_a_url_that_names_no_file_is_refused(url: str) -> None:
    with pytest.raises((StoreFileError, ValueError)):
        open_store(url)


def test_a_file_of_something_else_is_refused_and_left_untouched(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("these are my notes, and they are longer than a hundred bytes\n" * 10)
    before = path.read_bytes()
    with pytest.raises(StoreFileError):
        open_store(f"sqlite:///{path}")
    assert path.read_bytes() == before
    assert sorted(tmp_path.iterdir()) == [path]


def test_the_password_of_a_url_is_not_in_the_error() -> None:
    with pytest.raises(UnknownStoreScheme) as caught:
        open_store("nothing://user:secret@host/db")
    assert "secret" not in str(caught.value)
    assert "nothing://" in str(caught.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://me:secret@db/runs", "postgresql://[redacted]@db/runs"),
        ("postgresql://me:sec@ret@db/runs", "postgresql://[redacted]@db/runs"),
        ("postgresql://me:sec/ret@db/runs", "postgresql://[redacted]@db/runs"),
        ("postgresql://secret@db/runs?a=1", "postgresql://[redacted]@db/runs?a=1"),
        ("postgresql://db/runs?user=me&password=secret", "postgresql://db/runs?user=me&password=[redacted]"),
        ("postgresql://db/runs?sslPassword=secret&a=1", "postgresql://db/runs?sslPassword=[redacted]&a=1"),
        ("postgresql:///a@b", "postgresql:///a@b"),
    ],
)
def test_a_wrong_url_is_said_without_its_password(url: str, shown: str) -> None:
    with pytest.raises(UnknownStoreScheme) as raised:
        open_store(url)
    assert repr(shown) in str(raised.value)
    assert "secret" not in str(raised.value)
