"""Many processes at the same moment: servers that each have a port, and workers that share one server."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from warm import Warm

from agentlightning.testing import wait_until
from agentlightning.testing.processes import ChildProcess
from agentlightning.tracer import AgentOpsTracer

GENEROUS = 90.0
"""Seconds; the machine may have two cores and other work."""
DEAD_PROXY = "http://192.0.2.1:9"  # RFC 5737: nobody answers there, and a connection to it hangs
PROXIES = dict.fromkeys(("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY"), DEAD_PROXY)


@contextmanager
def at_once(
    recording: Warm, count: int, source: str, args: dict[str, Any], env: dict[str, str]
) -> Iterator[list[ChildProcess]]:
    """Children that have come as far as their first ``receive()``, and are then let go together."""
    with ExitStack() as stack:
        children = [
            stack.enter_context(recording.start_child(source, args={**args, "number": number}, env=env))
            for number in range(count)
        ]
        for child in children:
            assert child.next_report(deadline=GENEROUS) == "here"
        for child in children:
            child.send("go")
        yield children


def answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=GENEROUS)
    try:
        connection.request("GET", "/health")
        return bool(json.loads(connection.getresponse().read()) == {"message": "Server Up"})
    finally:
        connection.close()


@pytest.mark.parametrize("count", [6, pytest.param(20, marks=pytest.mark.soak)])
def test_processes_that_start_a_server_at_once_get_a_port_each(recording: Warm, count: int) -> None:
    source = """
    from agentlightning.integrations.agentops import AgentOpsServerManager
    manager = AgentOpsServerManager()
    report("here")
    receive()
    with manager:
        report((manager.get_port(), manager.server_process.pid))
        receive()
    """
    with at_once(recording, count, source, {}, PROXIES) as children:
        found = [child.next_report(deadline=GENEROUS) for child in children]
        assert len({port for port, _ in found}) == count
        assert len({pid for _, pid in found}) == count
        assert all(answers(port) for port, _ in found)
        for child in children:
            child.send("end")
        for child in children:
            child.finish(deadline=GENEROUS)


@pytest.mark.parametrize("count", [5, pytest.param(16, marks=pytest.mark.soak)])
def test_workers_at_once_behind_a_dead_proxy_are_ready_and_share_one_server(
    recording: Warm, count: int
) -> None:
    source = """
    from agentlightning.store import open_store
    tracer = args["tracer"]
    store = open_store("memory://")
    report("here")
    receive()
    tracer.init_worker(args["number"], store)
    report((tracer.server.url, tracer.server.server_process))
    with tracer.trace_context() as trace, trace.start_as_current_span("at work") as span:
        span.set_attribute("worker", args["number"])
    receive()
    tracer.teardown_worker(args["number"])
    """
    tracer = AgentOpsTracer(strict=True)
    tracer.init()
    try:
        with at_once(recording, count, source, {"tracer": tracer}, PROXIES) as workers:
            ready = [worker.next_report(deadline=GENEROUS) for worker in workers]
            assert ready == [(tracer.server.url, None)] * count
            for worker in workers:
                worker.send("end")
            for worker in workers:
                worker.finish(deadline=GENEROUS)
            wait_until(lambda: len(tracer.server.spans()) >= count, deadline=GENEROUS)
            spans = [span for span in tracer.server.spans() if span.name == "at work"]
            assert sorted(span.attributes["worker"] for span in spans) == list(range(count))
    finally:
        tracer.teardown()


def added_by_a_ready_worker() -> list[str]:
    """What a worker that is ready has imported beside what ``import agentops`` alone imports."""
    tracer = AgentOpsTracer(strict=True)
    tracer.init()
    code = """
import json, sys
import agentops
before = set(sys.modules)
from agentlightning.store import open_store
from agentlightning.tracer import AgentOpsTracer
tracer = AgentOpsTracer(server=sys.argv[1], strict=True)
tracer.init_worker(0, open_store("memory://"))
print(json.dumps(sorted(set(sys.modules) - before)))
tracer.teardown_worker(0)
"""
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, tracer.server.url], capture_output=True, text=True, check=True
        )
    finally:
        tracer.teardown()
    found: list[str] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def added() -> list[str]:
    return added_by_a_ready_worker()


def test_a_ready_worker_has_imported_pydantic_msgspec_and_nothing_else_that_agentops_has_not(
    added: list[str],
) -> None:
    strangers = {
        module.partition(".")[0]
        for module in added
        if module.partition(".")[0] not in {*sys.stdlib_module_names, "agentlightning", "__mp_main__"}
        and not module.startswith("_sysconfigdata")  # of the standard library, named after the platform
    }
    of_pydantic = {"annotated_types", "pydantic", "pydantic_core", "typing_inspection"}
    assert strangers - of_pydantic == {"msgspec", "opentelemetry"}
    assert [module for module in added if module.startswith("opentelemetry.")] == [
        "opentelemetry.instrumentation.threading",
        "opentelemetry.instrumentation.threading.package",
    ]


@pytest.mark.parametrize(
    "module",
    [
        "agentlightning.integrations.agentops.legacy",  # of the releases before 0.4
        "agentlightning.integrations.agentops.repairs",  # of an agentops that its user manages
        "agentlightning.integrations.agentops.server.app",
        "agentlightning.store.sqlite",
        "agentlightning.testing",
        "agentlightning.cli",
        "agentlightning.rows",
    ],
)
def test_a_ready_worker_has_no_module_of_another_part(module: str, added: list[str]) -> None:
    assert module not in added
