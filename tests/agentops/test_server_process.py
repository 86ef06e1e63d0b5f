"""The manager: one process, a port that nobody else can take, and an end with its parent."""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import multiprocessing
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
from server_sample import PROTOBUF, otlp, send
from warm import Warm

from agentlightning.errors import AgentOpsServerError
from agentlightning.integrations.agentops.server import AgentOpsServerManager
from agentlightning.integrations.agentops.server.process import TITLE
from agentlightning.testing import start_child, wait_until

pytestmark = pytest.mark.long

DEAD_PROXY = "http://127.0.0.1:9"


@pytest.fixture
def manager(_count_from_here: None) -> Iterator[AgentOpsServerManager]:
    made = AgentOpsServerManager()
    made.start()
    yield made
    made.stop()


def is_gone(pid: int) -> bool:
    """Whether a process does not run any more; a zombie whose parent was killed does not."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


others: set[int] = set()
"""Servers that were there before a test: that of the fixtures lives as long as the process."""


@pytest.fixture(autouse=True)
def _count_from_here() -> Iterator[None]:
    others.clear()
    others.update(servers())
    yield
    others.clear()


def servers() -> list[int]:
    """New servers of this process; it may have other children, such as multiprocessing's resource tracker."""
    found = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if TITLE in child.cmdline() or "-P" in child.cmdline():  # before and after it has its title
                found.append(child.pid)
    return [pid for pid in found if pid not in others]


# ---------------------------------------------------------------------- life


def test_start_answers_and_stop_leaves_no_process() -> None:
    manager = AgentOpsServerManager()
    assert (manager.server_process, manager.server_port, manager.daemon) == (None, None, True)
    assert not manager.is_alive()
    manager.start()
    process: Any = manager.server_process
    pid = process.pid
    assert manager.is_alive()
    assert process.is_alive()
    assert process.daemon
    assert requests.get(f"{manager.url}/health", timeout=120).json() == {"message": "Server Up"}
    manager.stop()
    assert getattr(manager, "server_process") is None  # noqa: B009 - to mypy the attribute is still what it was
    assert not manager.is_alive()
    assert is_gone(pid)


def test_a_second_start_warns_and_leaves_one_process(
    manager: AgentOpsServerManager, caplog: pytest.LogCaptureFixture
) -> None:
    before = manager.server_process, manager.get_port()
    with caplog.at_level(logging.WARNING):
        manager.start()
    assert "running already" in caplog.text
    assert (manager.server_process, manager.get_port()) == before
    assert len(servers()) == 1


def test_a_second_stop_is_no_error_and_the_port_is_told_with_a_warning(
    manager: AgentOpsServerManager, caplog: pytest.LogCaptureFixture
) -> None:
    port = manager.get_port()
    assert caplog.text == ""
    manager.stop()
    manager.stop()
    with caplog.at_level(logging.WARNING):
        assert manager.get_port() == port
    assert f"port {port} is not running" in caplog.text


def test_stop_before_start_and_get_port_before_start_are_no_errors() -> None:
    manager = AgentOpsServerManager()
    manager.stop()
    assert manager.get_port() is None
    with pytest.raises(AgentOpsServerError, match="call start"):
        _ = manager.url


def test_it_starts_again_after_a_stop(manager: AgentOpsServerManager) -> None:
    manager.stop()
    manager.start()
    assert send(manager.url, "GET", "/health")[0] == 200


def test_the_process_has_its_title(manager: AgentOpsServerManager) -> None:
    assert manager.server_process is not None
    done = subprocess.run(
        ["ps", "-o", "args=", "-p", str(manager.server_process.pid)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("AgentLightning-AgentOpsServer")


def test_with_blocks_start_and_stop() -> None:
    with AgentOpsServerManager() as manager:
        assert manager.is_alive()
    assert not manager.is_alive()
    assert servers() == []


def test_a_forgotten_manager_ends_its_server() -> None:
    manager = AgentOpsServerManager()
    manager.start()
    del manager
    gc.collect()
    wait_until(lambda: not servers(), what="end of the forgotten server")


def test_a_server_that_died_is_told_when_it_is_stopped(
    manager: AgentOpsServerManager, caplog: pytest.LogCaptureFixture
) -> None:
    assert manager.server_process is not None
    manager.server_process.kill()
    manager.server_process.join(120)
    assert manager.server_process.exitcode == -signal.SIGKILL
    assert not manager.is_alive()
    with caplog.at_level(logging.WARNING):
        manager.stop()
    assert "ended by itself" in caplog.text
    manager.start()
    assert manager.is_alive()


# ---------------------------------------------------------------------- ports


@pytest.mark.parametrize("count", [6, pytest.param(20, marks=pytest.mark.soak)])
def test_servers_that_are_started_at_once_get_a_port_each(count: int) -> None:
    with ExitStack() as stack, ThreadPoolExecutor(count) as pool:
        managers = list(pool.map(lambda _: stack.enter_context(AgentOpsServerManager()), range(count)))
        ports = {manager.get_port() for manager in managers}
        assert len(ports) == count
        assert [send(manager.url, "GET", "/health")[0] for manager in managers] == [200] * count
    assert servers() == []


def test_a_taken_port_is_one_clear_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        manager = AgentOpsServerManager(port=port)
        with pytest.raises(
            AgentOpsServerError, match=f"port {port} on 127.0.0.1 is in use by another program"
        ):
            manager.start()
        assert not manager.is_alive()
    manager.start()
    assert manager.get_port() == port
    manager.stop()
    manager.start()  # with connections of the one before still in TIME_WAIT
    assert manager.get_port() == port
    manager.stop()


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "example.org", "::"])
def test_an_address_that_is_not_loopback_is_refused(host: str) -> None:
    with pytest.raises(AgentOpsServerError, match="not a loopback address"):
        AgentOpsServerManager(host=host).start()


def test_it_listens_on_localhost_by_name() -> None:
    with AgentOpsServerManager(host="localhost") as manager:
        assert requests.get(f"{manager.url}/health", timeout=120).status_code == 200


def test_the_port_is_free_as_soon_as_the_server_is_gone(manager: AgentOpsServerManager) -> None:
    """The parent keeps no copy of the listening socket: nobody would ever answer there."""
    port = manager.get_port() or 0
    assert manager.server_process is not None
    manager.server_process.kill()
    manager.server_process.join(120)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=120)


def test_a_start_without_waiting_gives_an_address_that_answers_when_it_is_up() -> None:
    manager = AgentOpsServerManager()
    with pytest.raises(AgentOpsServerError, match="call start"):
        manager.wait_until_ready()
    manager.start(wait=False)
    assert send(manager.url, "GET", "/health")[0] == 200  # connected before the server was up, most likely
    manager.wait_until_ready()
    manager.wait_until_ready()
    manager.stop()
    assert servers() == []


def test_a_start_without_waiting_may_be_stopped_before_it_is_up() -> None:
    manager = AgentOpsServerManager()
    manager.start(wait=False)
    manager.stop()
    assert servers() == []


# ---------------------------------------------------------------------- surroundings


def test_a_proxy_in_the_environment_does_not_disturb(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, DEAD_PROXY)
    with AgentOpsServerManager() as manager:
        assert send(manager.url, "POST", "/v1/traces", otlp("call"), PROTOBUF)[0] == 200
        assert [span.name for span in manager.spans()] == ["call"]
        manager.clear()
        assert manager.recorded("spans") == []


def test_python_settings_of_the_surroundings_do_not_reach_the_server(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    trap = tmp_path / "sitecustomize.py"
    trap.write_text(f"open({str(tmp_path / 'loaded')!r}, 'w').close()", encoding="utf-8")
    (tmp_path / "flask.py").write_text("raise RuntimeError('the wrong flask')", encoding="utf-8")
    for name, value in {
        "PYTHONPATH": str(tmp_path),
        "PYTHONWARNINGS": "error",
        "PYTHONINSPECT": "1",
        "FLASK_DEBUG": "1",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    socket.setdefaulttimeout(0.01)
    try:
        with AgentOpsServerManager() as manager:
            assert send(manager.url, "GET", "/health")[0] == 200
    finally:
        socket.setdefaulttimeout(None)
    assert not (tmp_path / "loaded").exists()


def test_the_child_loads_only_what_it_needs() -> None:
    code = (
        "import sys; from agentlightning.integrations.agentops.server import child; "
        "print([name for name in ('pydantic', 'opentelemetry', 'requests', 'agentops') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_child_that_dies_at_once_is_told_with_its_stderr(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "flask.py").write_text("raise RuntimeError('this flask is broken')", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    manager = AgentOpsServerManager()
    with pytest.raises(AgentOpsServerError, match="exit code 1") as caught:
        manager.start()
    assert "RuntimeError: this flask is broken" in str(caught.value)
    assert isinstance(caught.value, RuntimeError)  # what 0.2 raised
    assert not manager.is_alive()
    assert servers() == []


def test_a_child_that_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "flask.py").write_text("import threading; threading.Event().wait()", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(AgentOpsServerError, match="said nothing for"):
        AgentOpsServerManager(start_seconds=0.5).start()
    assert servers() == []


STARTS_A_SERVER = """
    from agentlightning.integrations.agentops.server import AgentOpsServerManager
    manager = AgentOpsServerManager(daemon=args.get("daemon", True))
    manager.start()
    report((manager.server_process.pid, manager.url))
"""


@pytest.mark.parametrize("method", ["subprocess", "spawn", "fork"])
def test_the_server_goes_when_its_parent_is_killed(method: Any) -> None:
    with start_child(STARTS_A_SERVER + "\n    receive()", method=method) as child:
        pid, url = child.next_report()
        assert send(url, "GET", "/health")[0] == 200
        child.kill()
    wait_until(lambda: is_gone(pid), deadline=120, what="end of the server after its parent was killed")


def test_the_server_goes_though_a_forked_sibling_keeps_the_parents_end(recording: Warm) -> None:
    source = (
        STARTS_A_SERVER
        + """
    import os
    sibling = os.fork()
    if not sibling:
        import signal
        signal.pause()
    report(sibling)
    receive()
"""
    )
    with recording.start_child(source) as child:
        pid, _ = child.next_report()
        sibling = child.next_report()
        try:
            child.kill()
            wait_until(lambda: is_gone(pid), deadline=120, what="end of the server")
            assert not is_gone(sibling)
        finally:
            os.kill(sibling, signal.SIGKILL)


def test_the_server_goes_when_its_parent_ends_without_stopping_it(recording: Warm) -> None:
    with recording.start_child(STARTS_A_SERVER) as child:
        pid, _ = child.next_report()
        child.finish()
    wait_until(lambda: is_gone(pid), deadline=120, what="end of the server")


def test_the_server_goes_when_its_parent_becomes_another_program(recording: Warm) -> None:
    """Its process id lives on, so only the closed channel tells."""
    source = (
        STARTS_A_SERVER
        + """
    import os, sys
    os.execv(sys.executable, [sys.executable, "-c", "import signal; signal.pause()"])
"""
    )
    with recording.start_child(source) as child:
        pid, _ = child.next_report()
        wait_until(lambda: is_gone(pid), deadline=120, what="end of the server")


def test_a_server_that_is_no_daemon_outlives_its_parent(recording: Warm) -> None:
    with recording.start_child(STARTS_A_SERVER, args={"daemon": False}) as child:
        pid, url = child.next_report()
        child.finish()
    try:
        assert send(url, "GET", "/health")[0] == 200
    finally:
        os.kill(pid, signal.SIGTERM)
    wait_until(lambda: is_gone(pid), what="end of the server")


def start_in_daemon(results: Any) -> None:
    with AgentOpsServerManager() as manager:
        results.put(send(manager.url, "GET", "/health")[0])


def test_a_daemonic_process_may_start_one() -> None:
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    process = context.Process(target=start_in_daemon, args=(results,), daemon=True)
    process.start()
    assert results.get() == 200
    process.join(120)
    assert process.exitcode == 0
    results.close()


def test_ctrl_c_is_for_the_program_and_not_for_its_server(manager: AgentOpsServerManager) -> None:
    assert manager.server_process is not None
    pid = manager.server_process.pid
    assert os.getpgid(pid) != os.getpgid(0)
    os.kill(pid, signal.SIGINT)
    assert send(manager.url, "GET", "/health")[0] == 200


def test_signals_that_the_parent_blocks_or_ignores_still_end_the_server() -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    try:
        with AgentOpsServerManager() as manager:
            assert manager.server_process is not None
            process = manager.server_process
            process.terminate()
            process.join(120)
            assert process.exitcode == -signal.SIGTERM
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])


# ---------------------------------------------------------------------- copies


def test_a_pickled_copy_talks_to_the_same_server_and_never_stops_it(manager: AgentOpsServerManager) -> None:
    copy = pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(manager))))
    assert (copy.url, copy.get_port(), copy.is_alive()) == (manager.url, manager.get_port(), True)
    send(copy.url, "POST", "/v1/traces", otlp("call"), PROTOBUF)
    assert [span["name"] for span in copy.recorded("spans")] == ["call"]
    copy.start()
    copy.stop()
    del copy
    gc.collect()
    assert manager.is_alive()
    assert len(servers()) == 1


def test_a_copy_sees_that_the_server_is_gone(manager: AgentOpsServerManager) -> None:
    copy = pickle.loads(pickle.dumps(manager))
    manager.stop()
    assert not copy.is_alive()
    with pytest.raises(AgentOpsServerError, match="does not answer"):
        copy.recorded()


def test_a_copy_of_a_manager_that_was_not_started_starts_its_own() -> None:
    copy = pickle.loads(pickle.dumps(AgentOpsServerManager(daemon=True)))
    with copy:
        assert copy.is_alive()
    assert servers() == []


def test_forked_workers_share_the_server_and_leave_it_running(manager: AgentOpsServerManager) -> None:
    children: list[int] = []
    for number in range(3):
        pid = os.fork()
        if not pid:
            status = 1
            try:
                sent = send(manager.url, "POST", "/v1/traces", otlp(f"worker {number}"), PROTOBUF)[0]
                manager.stop()
                status = 0 if sent == 200 and manager.is_alive() else 2
            finally:
                os._exit(status)
        children.append(pid)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children] == [0, 0, 0]
    assert manager.is_alive()
    assert sorted(span["name"] for span in manager.recorded("spans")) == ["worker 0", "worker 1", "worker 2"]


def test_spawned_workers_share_the_server(manager: AgentOpsServerManager) -> None:
    source = """
        import pickle
        manager = pickle.loads(args["manager"])
        import urllib.request
        request = urllib.request.Request(manager.url + "/v3/auth/token", b"{}", {"Content-Type": "application/json"})
        report(urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=120).status)
        manager.stop()
    """
    for _ in range(2):
        with start_child(source, args={"manager": pickle.dumps(manager)}, method="spawn") as child:
            assert child.finish() == [200]
    assert manager.is_alive()
    assert [request["path"] for request in manager.recorded("requests")] == ["/v3/auth/token"] * 2


def test_many_clients_at_once_lose_nothing(manager: AgentOpsServerManager) -> None:
    def client(number: int) -> None:
        with requests.Session() as session:
            for turn in range(10):
                body = otlp(f"{number}-{turn}")
                session.post(
                    f"{manager.url}/v1/traces", body, headers=PROTOBUF, timeout=60
                ).raise_for_status()

    threads = [threading.Thread(target=client, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    names = [span["name"] for span in manager.recorded("spans")]
    assert sorted(names) == sorted(f"{number}-{turn}" for number in range(16) for turn in range(10))


def test_the_environment_leads_agentops_to_the_server(manager: AgentOpsServerManager) -> None:
    found = manager.environment()
    assert json.dumps(found).count(manager.url) == 3
    assert found["AGENTOPS_EXPORTER_ENDPOINT"] == f"{manager.url}/v1/traces"
