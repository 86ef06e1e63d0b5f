"""``agentops-server``, by each of its names, as a process that answers and ends cleanly."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from warm import Warm

from agentlightning.testing import wait_until

pytestmark = pytest.mark.long

NAMES = {
    "module": [sys.executable, "-m", "agentlightning.cli.agentops_server"],
    "agl": [sys.executable, "-m", "agentlightning.cli", "agentops"],
    "script": [str(Path(sys.executable).with_name("agentops-server"))],
}
SERVER = NAMES["module"]


@contextmanager
def running(*arguments: str, command: Any = SERVER, env: Any = None) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [*command, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(env or {})},
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def get(port: str, path: str = "/health") -> Any:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://127.0.0.1:{port}{path}", timeout=120) as answer:
        return json.loads(answer.read())


def once(
    recording: Warm, *arguments: str, command: Sequence[str] = SERVER
) -> subprocess.CompletedProcess[str]:
    """Run the command to its end, without an interpreter of its own."""
    interpreter, *rest = command
    assert interpreter == sys.executable
    return recording.run([*rest, *arguments], timeout=60)


@pytest.mark.parametrize("name", NAMES)
def test_it_prints_its_port_and_answers_there(name: str) -> None:
    if name == "script" and not Path(NAMES["script"][0]).exists():
        pytest.skip("the console script comes with the installation of this version")
    with running("--port", "0", "--print-port", command=NAMES[name]) as process:
        port = first_line(process)
        assert port.isdigit()
        assert get(port) == {"message": "Server Up"}
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("name", ["module", "agl"])
def test_a_signal_ends_it_with_exit_code_0_and_no_child(number: signal.Signals, name: str) -> None:
    with running("--port", "0", "--print-port", command=NAMES[name]) as process:
        port = first_line(process)
        # A connection that stays open and a request that waits must not hold it up.
        with socket.create_connection(("127.0.0.1", int(port)), timeout=120):
            assert psutil.Process(process.pid).children() == []
            process.send_signal(number)
            assert process.wait(120) == 0
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read() == ""
        assert "Traceback" not in process.stderr.read()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(port)), timeout=120)


def test_without_print_port_it_says_how_to_lead_agentops_there() -> None:
    with running("--port", "0") as process:
        assert process.stdout is not None
        lines = [first_line(process) for _ in range(4)]
        found = re.search(r"http://127\.0\.0\.1:(\d+);", lines[0])
        assert found is not None
        url = f"http://127.0.0.1:{found[1]}"
        assert lines[2] == f"export AGENTOPS_API_ENDPOINT={url} AGENTOPS_APP_URL={url}"
        assert lines[3] == f"export AGENTOPS_EXPORTER_ENDPOINT={url}/v1/traces"


def test_daemon_returns_when_it_answers_and_the_server_stays(recording: Warm) -> None:
    done = once(recording, "--port", "0", "--print-port", "--daemon")
    assert done.returncode == 0, done.stderr
    pid = int(re.findall(r"process (\d+)", done.stderr)[0])
    try:
        assert get(done.stdout.strip()) == {"message": "Server Up"}
        assert os.getsid(pid) == pid  # the end of the terminal is not its end
    finally:
        os.kill(pid, signal.SIGTERM)

    def is_gone() -> bool:
        with contextlib.suppress(psutil.NoSuchProcess):
            return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
        return True

    wait_until(is_gone, what="end of the server")


@pytest.mark.parametrize("more", [[], ["--daemon"]])
@pytest.mark.parametrize("name", ["module", "agl"])
def test_a_taken_port_is_one_sentence_and_an_exit_code(recording: Warm, name: str, more: list[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = once(recording, "--port", str(port), *more, command=NAMES[name])
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.endswith(
        f"port {port} on 127.0.0.1 is in use by another program; choose another, or 0 for any that is free"
    )


def test_an_open_address_needs_the_flag(recording: Warm) -> None:
    done = once(recording, "--host", "0.0.0.0", "--port", "0")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "not a loopback address" in line
    assert "--allow-remote" in line
    with running("--host", "0.0.0.0", "--port", "0", "--print-port", "--allow-remote") as process:
        assert get(first_line(process)) == {"message": "Server Up"}
        process.send_signal(signal.SIGTERM)
        _, stderr = process.communicate(timeout=120)
    assert "there is no key and no encryption" in stderr
    assert "0.0.0.0" in stderr


@pytest.mark.parametrize("port", ["-1", "65536", "many"])
def test_a_port_that_is_none_is_bad_usage(recording: Warm, port: str) -> None:
    done = once(recording, f"--port={port}")
    assert done.returncode == 2
    assert "invalid port value" in done.stderr


def test_requests_are_logged_at_info_only() -> None:
    for level, said in (("INFO", True), ("WARNING", False)):
        with running("--port", "0", "--print-port", "--log-level", level) as process:
            get(first_line(process))
            process.send_signal(signal.SIGTERM)
            _, stderr = process.communicate(timeout=120)
        assert ("GET /health 200" in stderr) is said


def test_the_shell_that_ignores_ctrl_c_for_its_background_jobs_does_not_make_it_immortal() -> None:
    with running(
        "--port", "0", "--print-port", command=["sh", "-c", 'trap "" INT; exec "$@"', "sh", *SERVER]
    ) as process:
        first_line(process)
        process.send_signal(signal.SIGINT)
        assert process.wait(120) == 0
