"""The AgentOps fixtures, in real runs of pytest and in this one, whose leak detector looks on."""

from __future__ import annotations

from pathlib import Path

import pytest
import requests
from plugin_sample import ASYNCIO, assert_passed, run_pytest

from agentlightning.store.base import process_start_ticks
from agentlightning.testing import AgentOpsServer

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


@pytest.mark.parametrize(
    ("arguments", "ini", "processes"),
    [([], f"{ASYNCIO}auto", 1), (["-p", "no:asyncio", "-n", "4"], "", 4)],
    ids=["one process", "four processes"],
)
def test_each_process_has_one_server_which_ends_with_it(
    tmp_path: Path, arguments: list[str], ini: str, processes: int
) -> None:
    assert_passed(run_pytest(tmp_path, SERVER_TESTS, *arguments, ini=ini), 8)
    pids = {int(path.read_text(encoding="utf-8")) for path in tmp_path.glob("pid-*")}
    assert 1 <= len(pids) <= processes
    assert {pid: process_start_ticks(pid) for pid in pids} == dict.fromkeys(pids)


@pytest.mark.parametrize("turn", ["first", "second"])
def test_requests_and_faults_of_one_test_do_not_reach_the_next(
    turn: str, agentops_server: AgentOpsServer
) -> None:
    url = f"{agentops_server.url}/v3/auth/token"
    assert agentops_server.recorded("requests") == []
    assert requests.post(url, json={"turn": turn}, timeout=10).status_code == 200
    assert len(agentops_server.recorded("requests")) == 1
    agentops_server.fail(503, n=-1)
    assert requests.post(url, json={}, timeout=10).status_code == 503


def test_a_server_that_one_test_killed_is_there_for_the_next(tmp_path: Path) -> None:
    tests = """
        import pytest

        @pytest.mark.parametrize("turn", ["first", "second"])
        def test_kill(turn, agentops_server):
            assert agentops_server.recorded("requests") == []
            agentops_server.manager.server_process.kill()
            agentops_server.manager.server_process.join()
    """
    assert_passed(run_pytest(tmp_path, tests, "-p", "no:asyncio"), 2)
