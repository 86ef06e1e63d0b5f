"""The spool under races, under poison, and where there is no home to put it."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from tracer_sample import assert_balanced, new_attempt, read
from warm import Warm

from agentlightning.errors import InvalidArgument
from agentlightning.recorder.spool import Batch, Spool
from agentlightning.store import InMemoryLightningStore, LightningStore
from agentlightning.testing import FaultyStore
from agentlightning.tracer import OtelTracer
from agentlightning.types import Span


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AGL_SPOOL_DIR", str(tmp_path / "spool"))
    return tmp_path / "spool"


def span(ids: Any, name: str = "span") -> Span:
    return Span.from_attributes(attributes={}, rollout_id=ids[0], attempt_id=ids[1], name=name)


class Choosy(FaultyStore):
    """Refuses spans named ``poison``, for ever."""

    async def add_many_spans(self, spans: Any, **more: Any) -> Any:
        if any(each.name == "poison" for each in spans):
            raise InvalidArgument("no poison here")
        return await super().add_many_spans(spans, **more)


@pytest.mark.asyncio
async def test_a_file_that_the_store_refuses_keeps_no_other_back(store: LightningStore, folder: Path) -> None:
    ids = await new_attempt(store)
    spool = Spool(Choosy(store))
    for number, name in enumerate(["poison", "good", "poison", "good too"]):
        assert spool.write(Batch([span(ids, name)], [], []), str(number))
    assert await spool.deliver() == 2
    assert [each.name for each in await read(store, ids)] == ["good", "good too"]
    assert sorted(path.name for path in folder.iterdir()) == ["0.jsonl", "2.jsonl"]


@pytest.mark.asyncio
async def test_an_attempt_that_is_gone_keeps_no_other_of_its_file_back(store: LightningStore) -> None:
    ids = await new_attempt(store)
    spool = Spool(store)
    assert spool.write(Batch([span(("gone", "gone")), span(ids, "kept")], [], []), "mixed")
    assert await spool.deliver() == 1
    assert [each.name for each in await read(store, ids)] == ["kept"]
    assert len(spool.files()) == 1
    assert await spool.deliver() == 0


def test_writers_and_deliverers_of_one_folder_lose_nothing(folder: Path) -> None:
    """Each delivery deletes files and, when it was the last, the folder, under the hands of those who write."""

    async def run() -> None:
        async with InMemoryLightningStore() as store:
            ids = await new_attempt(store)
            written: list[bool] = []
            done = threading.Event()

            def write(writer: int) -> None:
                spool = Spool(store)
                for number in range(150):
                    written.append(spool.write(Batch([span(ids)], [], []), f"{writer}-{number}"))

            def deliver() -> None:
                while not done.is_set():
                    asyncio.run(Spool(store).deliver())

            writers = [threading.Thread(target=write, args=(number,)) for number in range(3)]
            deliverers = [threading.Thread(target=deliver) for _ in range(2)]
            for thread in [*writers, *deliverers]:
                thread.start()
            for thread in writers:
                await asyncio.to_thread(thread.join)
            done.set()
            for thread in deliverers:
                await asyncio.to_thread(thread.join)
            await Spool(store).deliver()
            assert all(written)
            assert len(await read(store, ids)) == 450

    asyncio.run(run())


@pytest.mark.asyncio
async def test_a_delivery_that_finds_nothing_leaves_the_folder_to_those_who_write(
    store: LightningStore, folder: Path
) -> None:
    folder.mkdir()
    spool = Spool(store)
    assert await spool.deliver() == 0
    assert folder.is_dir()
    assert spool.write(Batch([span(await new_attempt(store))], [], []), "one")
    assert await spool.deliver() == 1
    assert not folder.exists()


def test_a_link_that_leads_nowhere_is_named_and_not_tried_again(
    store: LightningStore, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder.symlink_to(folder.with_name("gone"))
    assert Spool(store).write(Batch([span(asyncio.run(new_attempt(store)))], [], []), "one") is False
    assert f"spool {folder} cannot be written" in caplog.text


def test_what_cannot_be_said_in_json_never_raises(store: LightningStore) -> None:
    ids = asyncio.run(new_attempt(store))
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    bad = span(ids)
    bad.attributes["deep"] = deep
    assert Spool(store).write(Batch([bad], [], []), "deep") is False
    while deep:  # or its destruction recurses
        deep = deep.pop()


HOMELESS = """
import os, pwd, tomllib
from opentelemetry import trace
from agentlightning.store import InMemoryLightningStore
from agentlightning.testing import FaultyStore
from agentlightning.tracer import OtelTracer

os.environ.pop("AGL_SPOOL_DIR", None)
os.environ.pop("XDG_STATE_HOME", None)
os.environ.pop("HOME", None)
store = FaultyStore(InMemoryLightningStore(), only={"add_many_spans"})
tracer = OtelTracer(max_wait_time=10)
with tracer.lifespan(store), tracer.trace_context():
    pass  # imports what may lie where only root can read
os.setuid(54_321)  # as containers do that run under a number nobody knows
with tracer.lifespan(store):
    store.fail_for_ever()
    with tracer.trace_context() as handle:
        trace.get_tracer("agent").start_span("step").end()
receipt = handle.receipt()
import shutil
from agentlightning.recorder.spool import spool_dir_for
shutil.rmtree(spool_dir_for(store))
report([receipt.balanced, {reason: count for reason, count in receipt.dropped.items() if count}])
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become a user without a name")
def test_a_user_without_a_home_loses_nothing(recording: Warm) -> None:
    with recording.start_child(HOMELESS) as child:
        assert child.finish() == [[True, {"spooled": 2}]]


@pytest.mark.asyncio
async def test_a_store_of_a_process_that_is_gone_leaves_no_riddle_to_the_next(
    recording: Warm, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A memory store that is closed too early: what it did not take can never be delivered to another."""
    with recording.start_child(CLOSED_EARLY, env={"AGL_SPOOL_DIR": str(folder)}) as child:
        child.finish()
    async with InMemoryLightningStore() as store:
        caplog.clear()
        with OtelTracer().lifespan(store) as tracer:
            assert isinstance(tracer, OtelTracer)
            assert await asyncio.to_thread(tracer.processor.force_flush, 10_000)
    assert caplog.text == ""


CLOSED_EARLY = """
import asyncio
from opentelemetry import trace
from agentlightning.store import InMemoryLightningStore
from agentlightning.tracer import OtelTracer

store = InMemoryLightningStore()
tracer = OtelTracer(max_wait_time=10)
with tracer.lifespan(store):
    context = tracer.trace_context()
    with context as handle:
        asyncio.run(store.close())
"""


@pytest.mark.asyncio
async def test_a_store_closed_before_teardown_leaves_a_balanced_count(folder: Path) -> None:
    store = InMemoryLightningStore()
    tracer = OtelTracer(max_wait_time=10)
    with tracer.lifespan(store):
        async with tracer.trace_context() as handle:
            trace.get_tracer("agent").start_span("step").end()
            await store.close()
    receipt = handle.receipt()
    assert_balanced(receipt)
    assert receipt.stored == 0
    assert receipt.dropped == {"spooled": 2}


def test_a_file_of_the_spool_is_one_object_a_line(store: LightningStore, folder: Path) -> None:
    ids = asyncio.run(new_attempt(store))
    odd = span(ids, "lone surrogate \ud800, separators \u2028\u0085")
    odd.attributes["nan"] = float("nan")
    assert Spool(store).write(Batch([odd], [], []), "odd")
    (path,) = folder.iterdir()
    assert len([json.loads(line) for line in path.read_text().splitlines()]) == 2
    assert asyncio.run(Spool(store).deliver()) == 1
    (stored,) = asyncio.run(read(store, ids))
    assert stored.name == odd.name
