"""What a program imports after the tracer is recorded as well, and what it never imports is not loaded for it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest
from tracer_sample import new_attempt

from agentlightning.store import open_store
from agentlightning.testing import FakeOpenAI
from agentlightning.types import Span

BEGIN = """
import asyncio, sys, threading
from opentelemetry import trace
from agentlightning.store import open_store
from agentlightning.tracer import OtelTracer

url, *ids = sys.argv[1:4]

def call(name):
    trace.get_tracer("agent").start_span(name).end()

finders = list(sys.meta_path)
store = open_store(url)
tracer = OtelTracer(fallback_attempt=tuple(ids) if "fallback" in sys.argv else None)
tracer.init()
tracer.init_worker(0, store)
watched = {
    "aiohttp", "concurrent.futures.process", "http.client", "httpx", "multiprocessing", "requests", "urllib3",
    "agentlightning.instrumentation.aiohttp_calls", "agentlightning.instrumentation.http_client_calls",
    "agentlightning.instrumentation.httpx_calls", "agentlightning.tracer.process_queues",
}
assert not watched & set(sys.modules), watched & set(sys.modules)
"""

IN_A_THREAD = """
with tracer.trace_context(rollout_id=ids[0], attempt_id=ids[1]):
    failed = []
    def run():
        try:
            work()
        except BaseException as error:
            failed.append(error)
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
assert not failed, failed
tracer.teardown_worker(0)
asyncio.run(store.close())
assert sys.meta_path == finders, sys.meta_path
"""

PROCESSES = (
    BEGIN
    + """
def work():
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context
    processes = get_context("fork")
    with ProcessPoolExecutor(1, mp_context=processes) as executor:
        executor.submit(call, "in an executor").result()
    with processes.Pool(1) as pool:
        pool.apply(call, ("in a pool",))
    process = processes.Process(target=call, args=("in a process",))
    process.start()
    process.join()
    assert process.exitcode == 0
"""
    + IN_A_THREAD
)

CALL = (
    BEGIN
    + """
def work():
    import json
    from urllib.request import Request, urlopen
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hello"}]}).encode()
    request = Request(sys.argv[4] + "/chat/completions", body, {"Content-Type": "application/json"})
    with urlopen(request) as answer:
        assert json.load(answer)["choices"]
"""
    + IN_A_THREAD
)

EXIT_FUNCTION = (
    BEGIN
    + """
import atexit
atexit.register(call, "by an exit function")
import multiprocessing.util
"""
)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'store.db'}"


def spans_of(url: str, program: str, *args: str) -> list[Span]:
    """The spans that a program has recorded under an attempt."""

    async def begin() -> tuple[str, str]:
        async with open_store(url) as store:
            return await new_attempt(store)

    async def read() -> list[Span]:
        async with open_store(url) as store:
            return list(await store.query_spans(*ids))

    ids = asyncio.run(begin())
    done = subprocess.run(
        [sys.executable, "-c", program, url, *ids, *args], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return asyncio.run(read())


def test_jobs_of_pools_that_are_imported_later_are_recorded(url: str) -> None:
    names = {span.name for span in spans_of(url, PROCESSES)}
    assert names == {"rollout", "in an executor", "in a pool", "in a process"}


def test_a_call_of_a_client_that_is_imported_later_is_recorded(url: str) -> None:
    with FakeOpenAI() as server:
        spans = spans_of(url, CALL, server.base_url)
    (call,) = (span for span in spans if span.name != "rollout")
    assert call.attributes["gen_ai.request.model"] == "m"
    assert call.attributes["gen_ai.response.finish_reasons"] == ["stop"]


def test_an_exit_function_records_where_multiprocessing_was_imported_after_it_was_registered(
    url: str,
) -> None:
    """The exit function of ``multiprocessing`` runs first then, and must not end the recording."""
    assert [span.name for span in spans_of(url, EXIT_FUNCTION, "fallback")] == ["by an exit function"]
