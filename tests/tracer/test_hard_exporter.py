"""The exporter as a stock program meets it: many threads, a store that hangs, a process that goes on for weeks."""

from __future__ import annotations

import asyncio
import gc
import threading
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from tracer_sample import assert_balanced, new_attempt, read
from warm import Warm

from agentlightning.recorder.scope import Scope
from agentlightning.recorder.settings import WriterSettings
from agentlightning.store import LightningStore
from agentlightning.testing import FaultyStore, wait_until
from agentlightning.tracer import LightningSpanExporter


@pytest.fixture(autouse=True)
def spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AGL_SPOOL_DIR", str(tmp_path / "spool"))
    return tmp_path / "spool"


def finished(count: int, **attributes: Any) -> Any:
    """Finished SDK spans."""
    memory = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(memory))
    for number in range(count):
        provider.get_tracer("agent").start_span(f"s{number}", attributes=attributes).end()
    provider.shutdown()
    return memory.get_finished_spans()


def test_many_threads_that_export_first_start_one_rollout(store: LightningStore) -> None:
    held = FaultyStore(store, only={"start_rollout"})
    held.hold()
    exporter = LightningSpanExporter(held)
    begun: list[None] = []

    def export(span: Any) -> None:
        begun.append(None)
        exporter.export([span])

    threads = [threading.Thread(target=export, args=(span,)) for span in finished(8)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(begun) == 8 and held.held > 0)
    held.release()
    for thread in threads:
        thread.join()
    exporter.shutdown()
    (rollout,) = asyncio.run(store.query_rollouts())
    assert rollout.status == "succeeded"
    assert len(asyncio.run(store.query_spans(rollout.rollout_id))) == 8


def test_export_is_no_success_where_there_was_no_room(
    store: LightningStore, caplog: pytest.LogCaptureFixture
) -> None:
    stuck = FaultyStore(store, only={"add_many_spans"})
    exporter = LightningSpanExporter(
        stuck, settings=WriterSettings(max_queue_size=2, block_timeout=0), timeout=120
    )
    stuck.hold()
    ids = asyncio.run(new_attempt(store))
    spans = finished(
        10, **{"agentlightning.rollout_id": ids[0], "agentlightning.attempt_id": ids[1], "body": "x"}
    )
    results: list[SpanExportResult] = []
    exporting = threading.Thread(target=lambda: results.append(exporter.export(spans)))
    exporting.start()
    wait_until(lambda: stuck.held > 0 and "the queue to the store is full" in caplog.text)
    stuck.release()
    exporting.join()
    assert results == [SpanExportResult.FAILURE]
    exporter.shutdown()
    assert_balanced(asyncio.run(store.get_receipt(*ids)))


def scopes_in_memory() -> int:
    gc.collect()
    return sum(isinstance(each, Scope) for each in gc.get_objects())


def test_a_process_of_many_attempts_forgets_those_that_are_over(store: LightningStore) -> None:
    exporter = LightningSpanExporter(store)
    before = scopes_in_memory()
    for _ in range(55):
        spans = []
        for _ in range(20):
            ids = asyncio.run(new_attempt(store))
            spans += finished(1, **{"agentlightning.rollout_id": ids[0], "agentlightning.attempt_id": ids[1]})
        assert exporter.export(spans) is SpanExportResult.SUCCESS
    assert scopes_in_memory() - before <= 1024
    exporter.shutdown()
    for rollout in asyncio.run(store.query_rollouts()):
        assert asyncio.run(store.get_receipt(rollout.rollout_id, "latest")).whole


HANGS = """
import asyncio
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from agentlightning.store import open_store
from agentlightning.testing import FaultyStore
from agentlightning.tracer import LightningSpanExporter

store = FaultyStore(open_store(args["url"]))
provider = TracerProvider(shutdown_on_exit=False)
exporter = LightningSpanExporter(store, timeout=0.1)
provider.add_span_processor(BatchSpanProcessor(exporter))
provider.get_tracer("agent").start_span("one").end()
assert provider.force_flush()
store.hold()
provider.get_tracer("agent").start_span("two").end()
provider.shutdown()
report("ended")
"""


def test_a_store_that_hangs_does_not_keep_a_process_alive(recording: Warm, tmp_path: Path) -> None:
    with recording.start_child(HANGS, args={"url": f"sqlite:///{tmp_path / 'store.db'}"}) as child:
        assert child.finish() == ["ended"]


FORKS = """
import asyncio, os, sys, warnings
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from agentlightning.store import open_store
from agentlightning.tracer import LightningSpanExporter

warnings.simplefilter("ignore", DeprecationWarning)
store = open_store(args["url"])
provider = TracerProvider()  # shut down at exit, as every stock program does
provider.add_span_processor(SimpleSpanProcessor(LightningSpanExporter(store)))
provider.get_tracer("agent").start_span("one").end()
pid = os.fork()
if pid == 0:
    sys.exit(0)
os.waitpid(pid, 0)
(rollout,) = asyncio.run(store.query_rollouts())
report(rollout.status)
"""


def test_a_forked_child_does_not_end_the_rollout_of_its_parent(recording: Warm, tmp_path: Path) -> None:
    with recording.start_child(FORKS, args={"url": f"sqlite:///{tmp_path / 'store.db'}"}) as child:
        assert child.finish() == ["running"]


@pytest.mark.asyncio
async def test_exporting_one_span_twice_is_counted(store: LightningStore) -> None:
    ids = await new_attempt(store)
    exporter = LightningSpanExporter(store)
    spans = finished(1, **{"agentlightning.rollout_id": ids[0], "agentlightning.attempt_id": ids[1]})
    for _ in range(2):
        await asyncio.to_thread(exporter.export, spans)
    await asyncio.to_thread(exporter.shutdown)
    assert len(await read(store, ids)) == 1
    assert_balanced(await store.get_receipt(*ids))
