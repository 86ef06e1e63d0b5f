"""The AgentOps fixtures, in real runs of pytest and in this one, whose leak detector looks on."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import pytest
import requests
from plugin_sample import ASYNCIO, SYNC_TESTS, WATCHING_CONFTEST, assert_passed, run_pytest
from warm import Warm

from agentlightning.store.base import process_start_ticks
from agentlightning.testing import AgentOpsServer

pytestmark = pytest.mark.long  # whole runs of pytest inside of one test

SERVER_TESTS = """
    from pathlib import Path

    import pytest
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor

    @pytest.mark.parametrize("number", range(8))
    def test_a_span_of_this_test_alone(number, agentops_server):
        assert agentops_server.spans == []
        provider = TracerProvider(shutdown_on_exit=False)
        exporter = OTLPSpanExporter(f"{agentops_server.url}/v1/traces")
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        provider.get_tracer("t").start_span("work", attributes={"number": number}).end()
        provider.shutdown()
        (span,) = agentops_server.spans
        assert (span.name, span.attributes["number"]) == ("work", number)
        Path(f"pid-{number}").write_text(str(agentops_server.manager.server_process.pid))
"""


def servers_that_have_ended(folder: Path) -> int:
    """Return the number of servers that tests had; each has ended."""
    pids = {int(path.read_text(encoding="utf-8")) for path in folder.glob("pid-*")}
    assert {pid: process_start_ticks(pid) for pid in pids} == dict.fromkeys(pids)
    return len(pids)


def test_the_process_has_one_server_which_ends_with_it(calling: Warm, tmp_path: Path) -> None:
    assert_passed(run_pytest(tmp_path, SERVER_TESTS, ini=f"{ASYNCIO}auto", warm=calling), 8)
    assert servers_that_have_ended(tmp_path) == 1


TRACER_TESTS = """
    from pathlib import Path

    import pytest
    from agentlightning import emit_reward

    MESSAGES = [{"role": "user", "content": "Which city?"}]

    @pytest.mark.parametrize("number", range(4))
    def test_sync(number, agentops_tracer, agentops_server, captured_spans, fake_openai):
        assert captured_spans == agentops_server.spans == []
        Path(f"pid-{number}").write_text(str(agentops_server.manager.server_process.pid))
        with agentops_tracer.trace_context("city"):
            fake_openai.client().chat.completions.create(model="m", messages=MESSAGES)
            emit_reward(float(number))
        (row,) = captured_spans.triplets()
        assert row.reward == number
        (call,) = captured_spans.model_calls()
        assert call.span_id in {span.span_id for span in agentops_server.wait_for_spans(3)}

    async def run(tracer, spans, server):
        with tracer.trace_context("city"):  # in a running loop: leaving it waits for nothing
            await server.async_client().chat.completions.create(model="m", messages=MESSAGES)
        assert len(spans.triplets()) == len(spans.named("city")) == 1
"""
TRACER_ASYNC = """
    @pytest.mark.asyncio
    async def test_async(agentops_tracer, captured_spans, fake_openai):
        await run(agentops_tracer, captured_spans, fake_openai)
"""
TRACER_AUTO = TRACER_ASYNC.replace("@pytest.mark.asyncio\n", "\n")


@pytest.mark.parametrize(
    ("ini", "arguments", "tests", "count", "processes"),
    [
        (f"{ASYNCIO}strict", [], TRACER_TESTS + TRACER_ASYNC, 5, 1),
        (f"{ASYNCIO}auto", ["-n", "2"], TRACER_TESTS + TRACER_AUTO + SYNC_TESTS, 11, 2),
        ("", ["-p", "no:asyncio"], TRACER_TESTS, 4, 1),
    ],
    ids=["strict", "auto, two processes, and without AgentOps", "no asyncio"],
)
def test_the_tracer_serves_tests_of_every_kind_with_a_server_for_each_process(
    calling: Warm, tmp_path: Path, ini: str, arguments: list[str], tests: str, count: int, processes: int
) -> None:
    warm = calling if processes == 1 else None
    assert_passed(run_pytest(tmp_path, tests, *arguments, ini=ini, warm=warm), count)
    assert 1 <= servers_that_have_ended(tmp_path) <= processes


GLOBALS_TESTS = """
    import builtins, os

    import conftest
    import pytest

    @pytest.mark.parametrize("way", ["passes", "fails"])
    def test_agent(way, agentops_tracer, fake_openai):
        with agentops_tracer.trace_context("city"):
            assert os.environ["AGENTOPS_API_KEY"]
            assert conftest.changes()
            fake_openai.client().completions.create(model="m", prompt="Which city?")
            assert way == "passes"

    def test_nothing_is_left():
        assert "AGENTOPS_API_KEY" not in os.environ
        assert conftest.changes() == set()
"""


def test_after_the_tracer_every_global_is_the_object_that_it_was(calling: Warm, tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(dedent(WATCHING_CONFTEST), encoding="utf-8")
    done = run_pytest(tmp_path, GLOBALS_TESTS, "-p", "no:randomly", ini=f"{ASYNCIO}strict", warm=calling)
    assert "1 failed, 2 passed" in done.stdout, done.stdout
    assert "FAILED test_sample.py::test_agent[fails]" in done.stdout


@pytest.mark.parametrize("turn", ["first", "second"])
def test_requests_and_faults_of_one_test_do_not_reach_the_next(
    turn: str, agentops_server: AgentOpsServer
) -> None:
    url = f"{agentops_server.url}/v3/auth/token"
    assert agentops_server.recorded("requests") == []
    assert requests.post(url, json={"turn": turn}, timeout=120).status_code == 200
    assert len(agentops_server.recorded("requests")) == 1
    agentops_server.fail(503, n=-1)
    assert requests.post(url, json={}, timeout=120).status_code == 503


def test_a_server_that_one_test_killed_is_there_for_the_next(calling: Warm, tmp_path: Path) -> None:
    tests = """
        import pytest

        @pytest.mark.parametrize("turn", ["first", "second"])
        def test_kill(turn, agentops_server):
            assert agentops_server.recorded("requests") == []
            agentops_server.manager.server_process.kill()
            agentops_server.manager.server_process.join()
    """
    assert_passed(run_pytest(tmp_path, tests, "-p", "no:asyncio", warm=calling), 2)
