"""Every store of ours, and a stranger's, passes the one contract suite."""

from __future__ import annotations

import asyncio
import functools
import inspect
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from agentlightning.errors import UnknownStoreScheme
from agentlightning.store import (
    InMemoryLightningStore,
    LightningStore,
    LightningStoreThreaded,
    SqliteLightningStore,
    open_store,
)
from agentlightning.store.base import LightningStoreCapabilities
from agentlightning.testing import FaultyStore, ManualClock, StoreContract
from agentlightning.testing.store_contract.base import Clock, ContractBase

pytestmark = pytest.mark.long


class FileContract(StoreContract):
    """A store in a file of this test."""

    @pytest.fixture(autouse=True)
    def _file(self, tmp_path: Path) -> None:
        self.path = tmp_path / "store.db"

    async def reopen(self, clock: Clock) -> LightningStore:
        return await self.open_store(clock)


class TestMemory(StoreContract):
    async def open_store(self, clock: Clock) -> LightningStore:
        return InMemoryLightningStore(clock=clock)


@pytest.mark.soak  # a store that is not safe shows more of the wrapper, and the wrapper is the same for each store
class TestThreadedMemory(StoreContract):
    batches_of_a_writer = 50

    async def open_store(self, clock: Clock) -> LightningStore:
        return LightningStoreThreaded(InMemoryLightningStore(clock=clock))


class TestFaultlessFaultyStore(StoreContract):
    async def open_store(self, clock: Clock) -> LightningStore:
        return FaultyStore(InMemoryLightningStore(clock=clock))


class OneAtATime(FaultyStore):
    """A stranger's store that is not safe, and that notices when it is called while it is at work."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(InMemoryLightningStore(clock=clock))
        self.inner = _Alarm(self.inner)  # type: ignore[assignment]

    @property
    def capabilities(self) -> LightningStoreCapabilities:
        return LightningStoreCapabilities(
            thread_safe=False,
            async_safe=False,
            zero_copy=False,
            otlp_traces=False,
            durable=False,
            receipts=True,
        )


class _Alarm:
    """Passes every call on, and fails those that overlap."""

    def __init__(self, store: LightningStore) -> None:
        self._store = store
        self._at_work = False

    def __getattr__(self, name: str) -> Any:
        target = getattr(self._store, name)
        if not inspect.iscoroutinefunction(target) or name == "wait_for_rollouts":
            return target

        @functools.wraps(target)
        async def call(*args: Any, **kwargs: Any) -> Any:
            assert not self._at_work, f"{name} while another call is at work"
            self._at_work = True
            try:
                await asyncio.sleep(0)
                return await target(*args, **kwargs)
            finally:
                self._at_work = False

        return call


class TestThreadedUnsafeStore(StoreContract):
    async def open_store(self, clock: Clock) -> LightningStore:
        return LightningStoreThreaded(OneAtATime(clock))


class TestSqlite(FileContract):
    async def open_store(self, clock: Clock) -> LightningStore:
        return SqliteLightningStore(self.path, clock=clock)


@pytest.mark.soak
class TestThreadedSqlite(FileContract):
    batches_of_a_writer = 50

    async def open_store(self, clock: Clock) -> LightningStore:
        return LightningStoreThreaded(SqliteLightningStore(self.path, clock=clock))


@pytest.fixture
def stranger(tmp_path: Path) -> Iterator[Path]:
    """A distribution of somebody else that registers a store, as ``pip install`` would leave it."""
    site = tmp_path / "site"
    metadata = site / "mystore-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: mystore\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[agentlightning.stores]\nmystore = mystore:open_url\n")
    (site / "mystore.py").write_text(
        dedent("""
            from agentlightning.store import InMemoryLightningStore

            clock = None

            class MyStore(InMemoryLightningStore):
                pass

            def open_url(url):
                store = MyStore(clock=clock) if clock else MyStore()
                store.address = url
                return store
        """)
    )
    sys.path.insert(0, str(site))
    try:
        yield site
    finally:
        sys.path.remove(str(site))
        sys.modules.pop("mystore", None)


def open_strangers(clock: Clock) -> LightningStore:
    import mystore  # type: ignore[import-not-found]

    mystore.clock = clock
    store = open_store("mystore://somewhere/else?x=1")
    assert type(store).__name__ == "MyStore"
    assert store.address == "mystore://somewhere/else?x=1"  # type: ignore[attr-defined]
    return store


@pytest.mark.asyncio
@pytest.mark.usefixtures("stranger")
async def test_a_strangers_store_is_opened_by_its_url_and_used() -> None:
    clock = ManualClock()
    async with open_strangers(clock) as store:
        assert (await store.start_rollout("x")).start_time == clock()


@pytest.mark.soak  # opened, it is a store in memory
class TestStrangersStore(StoreContract):
    @pytest.fixture(autouse=True)
    def _installed(self, stranger: Path) -> None:
        pass

    async def open_store(self, clock: Clock) -> LightningStore:
        return open_strangers(clock)


def test_a_strangers_scheme_is_unknown_until_it_is_installed() -> None:
    with pytest.raises(UnknownStoreScheme, match="mystore"):
        open_store("mystore://somewhere")


def test_no_test_of_the_suite_hides_another() -> None:
    names = Counter(
        name
        for topic in StoreContract.__mro__
        if issubclass(topic, ContractBase)
        for name in vars(topic)
        if name.startswith("test_")
    )
    assert [name for name, count in names.items() if count > 1] == []
    assert sum(names.values()) > 120


def test_a_suite_without_a_store_says_what_is_missing() -> None:
    with pytest.raises(NotImplementedError, match="StoreContract must say how its store is opened"):
        StoreContract().open_store(lambda: 0.0).send(None)
    assert inspect.iscoroutinefunction(StoreContract.open_store)
