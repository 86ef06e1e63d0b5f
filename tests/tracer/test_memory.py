"""How much memory spans may take that wait for the store, and what becomes of the rest."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry import trace
from tracer_sample import assert_balanced, new_attempt, read

from agentlightning.dialects.raw_call import CallStart, RawCall
from agentlightning.recorder.memory import memory_limit
from agentlightning.recorder.settings import WriterSettings
from agentlightning.recorder.writer import Writer
from agentlightning.store import LightningStore
from agentlightning.testing import FaultyStore, start_child, wait_until_async
from agentlightning.tracer import OtelTracer

MB = 1024 * 1024


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AGL_SPOOL_DIR", str(tmp_path / "spool"))
    return tmp_path / "spool"


def answer(text: str) -> RawCall:
    """A whole answer of the OpenAI API that says ``text``."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return RawCall(
        start=CallStart("chat", "http://localhost/v1/chat/completions", "m", stream=False),
        request_body=b'{"model": "m", "messages": []}',
        status=200,
        content_type="application/json",
        response_body=json.dumps({"id": "r", "model": "m", "choices": [choice]}).encode(),
        complete=True,
    )


def call(tracer: OtelTracer, name: str, text: str) -> None:
    span = trace.get_tracer("agent").start_span(name)
    tracer.processor.attach_call(span, answer(text))
    span.end()


@pytest.mark.asyncio
async def test_long_answers_beside_a_store_that_hangs_lose_no_tail(
    store: LightningStore, folder: Path
) -> None:
    slow = FaultyStore(store, only={"add_many_spans"})
    tracer = OtelTracer(max_wait_time=10, settings=WriterSettings(max_queue_bytes=4 * MB))
    all_ids = [await new_attempt(store) for _ in range(32)]
    handles: list[Any] = []
    with tracer.lifespan(slow):
        slow.hold()
        writer = tracer.processor.writer
        for number, ids in enumerate(all_ids):
            async with tracer.trace_context("t", store=slow, rollout_id=ids[0], attempt_id=ids[1]) as handle:
                call(tracer, "long", f"{number}" * MB)
            handles.append(handle)
            await wait_until_async(lambda: writer.queue.held_bytes <= 4 * MB)
        assert "1" * 100 in str(handles[1].spans()[0].attributes)  # read back from disk
        slow.release()
        assert await asyncio.to_thread(tracer.processor.force_flush, 60_000)
    for number, ids in enumerate(all_ids):
        spans = await read(store, ids)
        assert sorted(span.name for span in spans) == ["long", "t"]
        (long,) = [span for span in spans if span.name == "long"]
        assert f"{number}" * MB in str(long.attributes)
    for handle in handles:
        receipt = handle.receipt()
        assert_balanced(receipt)
        assert not receipt.truncated
        assert receipt.dropped == {}
    assert not folder.exists() or list(folder.iterdir()) == []


@pytest.mark.asyncio
async def test_where_the_disk_takes_nothing_the_newest_are_dropped_and_counted(
    store: LightningStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("AGL_SPOOL_DIR", str(tmp_path / "file" / "spool"))
    slow = FaultyStore(store, only={"add_many_spans"})
    tracer = OtelTracer(max_wait_time=10, settings=WriterSettings(max_queue_bytes=4 * MB))
    ids = await new_attempt(store)
    with tracer.lifespan(slow):
        slow.hold()
        async with tracer.trace_context("t", store=slow, rollout_id=ids[0], attempt_id=ids[1]) as handle:
            for _ in range(20):
                call(tracer, "long", "x" * MB)
                assert tracer.processor.writer.queue.held_bytes <= 8 * MB + MB
        slow.release()
        assert not await asyncio.to_thread(tracer.processor.force_flush, 60_000)
    receipt = handle.receipt()
    assert_balanced(receipt)
    assert receipt.truncated
    assert set(receipt.dropped) == {"queue_full"}


class Noting(FaultyStore):
    """Notes the names of spans in the order in which they come."""

    def __init__(self, inner: LightningStore) -> None:
        super().__init__(inner, only={"add_many_spans"})
        self.names: list[str] = []

    async def add_many_spans(self, spans: Any, **more: Any) -> Any:
        self.names += [each.name for each in spans]
        return await super().add_many_spans(spans, **more)


@pytest.mark.asyncio
async def test_what_takes_long_waits_behind_what_does_not_and_keeps_its_place_in_its_attempt(
    store: LightningStore,
) -> None:
    noting = Noting(store)
    first, second = await new_attempt(store), await new_attempt(store)
    tracer = OtelTracer(max_wait_time=60_000, settings=WriterSettings(flush_interval=3_600_000))
    with tracer.lifespan(noting):
        async with tracer.trace_context("a", store=noting, rollout_id=first[0], attempt_id=first[1]):
            call(tracer, "costly", "x" * (2 * MB))
            trace.get_tracer("agent").start_span("after costly").end()
            async with tracer.trace_context("b", store=noting, rollout_id=second[0], attempt_id=second[1]):
                for number in range(10):
                    trace.get_tracer("agent").start_span(f"cheap {number}").end()
    cheap = [noting.names.index(f"cheap {number}") for number in range(10)]
    assert max(cheap) < noting.names.index("costly") < noting.names.index("after costly")
    receipt = await store.get_receipt(*first)
    assert receipt.whole
    assert [span.name for span in await read(store, first)] == ["costly", "after costly", "a"]


class Endless(httpx.SyncByteStream):
    def __init__(self, size: int) -> None:
        self.size = size

    def __iter__(self) -> Iterator[bytes]:
        for _ in range(self.size // 65_536):
            yield b"x" * 65_536


def test_answers_that_arrive_are_counted_and_cut_where_there_is_no_room(store: LightningStore) -> None:
    tracer = OtelTracer(settings=WriterSettings(max_queue_bytes=2 * MB))
    transport = httpx.MockTransport(lambda request: httpx.Response(200, stream=Endless(3 * MB)))
    most = 0
    with (
        tracer.lifespan(store),
        tracer.trace_context("t") as handle,
        httpx.Client(transport=transport) as http,
    ):
        writer: Writer = tracer.processor.writer
        request = {"model": "m", "messages": [], "stream": True}
        opened = [
            http.build_request("POST", "http://localhost/v1/chat/completions", json=request) for _ in range(4)
        ]
        responses = [http.send(each, stream=True) for each in opened]
        streams = [response.iter_raw() for response in responses]
        while streams:  # a piece of each in turn
            for stream in list(streams):
                if next(stream, None) is None:
                    streams.remove(stream)
                most = max(most, writer.queue.held_bytes)
        for response in responses:
            response.close()
    assert most <= 4 * MB + 4 * 65_536
    cut = [span for span in handle.spans() if "body_truncated" in str(span.attributes)]
    assert cut


def test_a_bound_of_a_control_group_is_found(tmp_path: Path) -> None:
    groups, named = tmp_path / "groups", tmp_path / "cgroup"
    (groups / "a" / "b").mkdir(parents=True)
    (groups / "a" / "memory.max").write_text(f"{300 * MB}\n")
    (groups / "a" / "b" / "memory.max").write_text("max\n")
    named.write_text("0::/a/b\n")
    assert memory_limit(groups, named) == 300 * MB
    (groups / "memory" / "c").mkdir(parents=True)
    (groups / "memory" / "c" / "memory.limit_in_bytes").write_text(f"{200 * MB}\n")
    named.write_text("5:cpu,memory:/c\n0::/a/b\n")
    assert memory_limit(groups, named) == 200 * MB
    assert memory_limit(tmp_path / "none", tmp_path / "none") > 0


NEVER_ENDED = """
import asyncio
from pathlib import Path
from opentelemetry import trace
from agentlightning.store import InMemoryLightningStore, open_store
from agentlightning.tracer import OtelTracer
from agentlightning.testing import wait_until

store = open_store(args["url"])
tracer = OtelTracer(max_wait_time=60_000)
status = Path("/proc/self/status")  # not getrusage, which begins with the memory of the parent
kib = lambda: int(status.read_text().partition("VmHWM:")[2].split()[0])
with tracer.lifespan(store), tracer.trace_context() as handle:
    agent = trace.get_tracer("agent")
    kept = [agent.start_span("warm") for _ in range(2_000)]
    wait_until(lambda: asyncio.run(store.get_receipt(handle.rollout_id, handle.attempt_id)).started >= 2_000)
    before = kib()
    for _ in range(args["spans"]):
        agent.start_span("never ended")
    started = lambda: asyncio.run(store.get_receipt(handle.rollout_id, handle.attempt_id)).started
    wait_until(lambda: started() >= 2_000 + args["spans"], deadline=600)
    report((kib() - before) // 1024)
"""


@pytest.mark.parametrize(
    ("spans", "megabytes"), [(10_000, 45), pytest.param(50_000, 130, marks=pytest.mark.soak)]
)
def test_spans_that_never_end_cost_little(tmp_path: Path, spans: int, megabytes: int) -> None:
    with start_child(NEVER_ENDED, args={"url": f"sqlite:///{tmp_path}/s.db", "spans": spans}) as child:
        (grown,) = child.finish(deadline=600)
    assert grown < megabytes, f"{grown} MB"


STREAMS = """
import asyncio, json
from pathlib import Path
import httpx
from agentlightning.store import open_store
from agentlightning.testing import FaultyStore
from agentlightning.tracer import OtelTracer
from agentlightning.recorder.settings import WriterSettings

def event(**choice):
    said = {"id": "r", "model": "m", "object": "chat.completion.chunk", "choices": [{"index": 0, **choice}]}
    return b"data: " + json.dumps(said).encode() + b"\\n\\n"

piece = event(delta={"content": "x" * 60_000})

class Long(httpx.AsyncByteStream):
    async def __aiter__(self):
        for _ in range(args["bytes"] // len(piece)):
            yield piece
            await asyncio.sleep(0)  # the streams take turns
        yield event(delta={}, finish_reason="stop") + b"data: [DONE]\\n\\n"

async def main():
    store = open_store(args["url"])
    slow = FaultyStore(store, only={"add_many_spans"}, delay=args["delay"])
    settings = WriterSettings(**args["settings"])
    status = Path("/proc/self/status")  # not getrusage, which begins with the memory of the parent
    mib = lambda: int(status.read_text().partition("VmHWM:")[2].split()[0]) // 1024
    transport = httpx.MockTransport(
        lambda request: httpx.Response(200, headers={"content-type": "text/event-stream"}, stream=Long())
    )
    tracer = OtelTracer(max_wait_time=300_000, settings=settings)
    with tracer.lifespan(slow):
        async with httpx.AsyncClient(transport=transport) as http:

            async def rollout():
                async with tracer.trace_context() as handle:
                    asked = {"model": "m", "messages": [], "stream": True}
                    url = "http://localhost/v1/chat/completions"
                    async with http.stream("POST", url, json=asked) as response:
                        async for _ in response.aiter_raw():
                            pass
                return handle

            before = mib()
            handles = await asyncio.gather(*(rollout() for _ in range(12)))
        flushed = await asyncio.to_thread(tracer.processor.force_flush, 300_000)
    receipts = [await store.get_receipt(handle.rollout_id, handle.attempt_id) for handle in handles]
    spans = [span for handle in handles for span in await store.query_spans(handle.rollout_id)]
    report(
        {
            "grown": mib() - before,
            "bound": settings.max_queue_bytes // (1024 * 1024),
            "started": sum(receipt.started for receipt in receipts),
            "stored": sum(receipt.stored for receipt in receipts),
            "dropped": [receipt.dropped for receipt in receipts if receipt.dropped],
            "cut": sum("body_truncated" in str(span.attributes) for span in spans),
            "flushed": flushed,
        }
    )
    await store.close()

asyncio.run(main())
"""


def twelve_streams(tmp_path: Path, size: int, delay: float, **settings: int) -> dict[str, Any]:
    told = {"url": f"sqlite:///{tmp_path}/s.db", "bytes": size, "delay": delay, "settings": settings}
    with start_child(STREAMS, args=told) as child:
        (done,) = child.finish(deadline=1_200)
    print(f"12 streams of {size // MB} MB, each write {delay:g} s late: {done}")
    assert done["flushed"]
    assert done["stored"] == done["started"] == 24
    assert isinstance(done, dict)
    return done


@pytest.mark.parametrize("delay", [0.0, 0.2], ids=["idle", "slow"])
def test_twelve_long_streams_lose_no_span(tmp_path: Path, delay: float) -> None:
    done = twelve_streams(tmp_path, 2 * MB, delay, max_queue_bytes=4 * MB)
    assert done["grown"] < 120, done


@pytest.mark.soak
@pytest.mark.parametrize("delay", [0.0, 5.0], ids=["idle", "slow"])
@pytest.mark.parametrize("settings", [{}, {"max_queue_bytes": 64 * MB}], ids=["default", "64 MB"])
def test_twelve_streams_of_100_mb_lose_no_span(
    tmp_path: Path, delay: float, settings: dict[str, int]
) -> None:
    done = twelve_streams(tmp_path, 100 * MB, delay, **settings)
    assert done["grown"] < 2 * done["bound"] + 400, done
