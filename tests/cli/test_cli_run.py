from __future__ import annotations

import asyncio
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cli_sample import agl
from warm import Warm

from agentlightning.store.registry import open_store
from agentlightning.testing import wait_until
from agentlightning.types import Attempt, Receipt, Rollout

pytestmark = pytest.mark.long

SPAN = "from opentelemetry import trace; trace.get_tracer('t').start_span('mine').end()"


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/runs.db"


def run(
    recording: Warm, url: str, *arguments: str, program: Sequence[str], env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run ``agl run`` in a process that has imported what it needs; the program has a Python of its own."""
    return recording.run(
        command(url, *arguments, program=program), env={**os.environ, **(env or {})}, timeout=60
    )


def command(url: str, *arguments: str, program: Sequence[str]) -> list[str]:
    return ["-m", "agentlightning.cli", "run", "--store", url, *arguments, "--", *program]


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def recorded(url: str) -> list[tuple[Rollout, Attempt, Receipt, list[str]]]:
    """Every attempt in the store, with its receipt and the names of its spans."""

    async def read() -> list[Any]:
        found = []
        async with open_store(url) as store:
            for rollout in await store.query_rollouts():
                for attempt in await store.query_attempts(rollout.rollout_id):
                    ids = rollout.rollout_id, attempt.attempt_id
                    names = [span.name for span in await store.query_spans(*ids)]
                    found.append((rollout, attempt, await store.get_receipt(*ids), names))
        return found

    return asyncio.run(read())


def test_a_python_program_is_recorded_without_being_changed(url: str, tmp_path: Path) -> None:
    agent = tmp_path / "agent.py"
    agent.write_text(f"import sys\n{SPAN}\nprint('argument', sys.argv[1])\n", encoding="utf-8")
    typed = command(url, "--mode", "train", program=[sys.executable, str(agent), "7"])
    done = subprocess.run([sys.executable, *typed], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (0, "argument 7\n"), done.stderr
    ((rollout, attempt, receipt, names),) = recorded(url)
    assert (rollout.status, attempt.status, rollout.mode) == ("succeeded", "succeeded", "train")
    assert rollout.input == {"name": f"{Path(sys.executable).name} agent.py"}
    assert names == ["mine"]
    assert receipt.whole
    assert "1 started = 1 stored + 0 dropped + 0 open" in done.stderr
    assert f"agl show {rollout.rollout_id} --store {url}" in done.stderr


@pytest.mark.parametrize(("code", "status"), [(0, "succeeded"), (3, "failed")])
def test_the_exit_code_is_that_of_the_program_and_decides_the_status(
    recording: Warm, url: str, code: int, status: str
) -> None:
    done = run(recording, url, "-q", program=python(f"raise SystemExit({code})"))
    assert (done.returncode, done.stderr) == (code, "")
    ((rollout, attempt, _, _),) = recorded(url)
    assert (rollout.status, attempt.status) == (status, status)


def test_the_program_knows_its_attempt_and_an_absolute_store(tmp_path: Path) -> None:
    code = "import os, json; print(json.dumps({k: v for k, v in os.environ.items() if k.startswith('AGL_')}))"
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "agentlightning.cli",
            "run",
            "--capture-tokens",
            "request",
            "--endpoint",
            "http://gpu1:8000/v1/",
            "--",
            *python(code),
        ],
        cwd=tmp_path,
        env={**os.environ, "AGL_ENDPOINTS": "http://gpu2/v1"},
        capture_output=True,
        text=True,
        check=True,
    )
    seen = json.loads(done.stdout)
    url = f"sqlite:///{tmp_path}/agentlightning.db"
    ((rollout, attempt, _, _),) = recorded(url)
    assert seen == {
        "AGL_STORE": url,
        "AGL_ROLLOUT_ID": rollout.rollout_id,
        "AGL_ATTEMPT_ID": attempt.attempt_id,
        "AGL_CAPTURE_TOKENS": "request",
        "AGL_ENDPOINTS": "http://gpu2/v1 http://gpu1:8000/v1",
    }


def test_a_sitecustomize_of_the_user_still_runs(recording: Warm, url: str, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import builtins; builtins.theirs = 1\n", encoding="utf-8")
    code = "import sys; print(theirs, sys.modules['sitecustomize'].__file__, any('startup' in p for p in sys.path))"
    done = run(recording, url, program=python(f"{code}; {SPAN}"), env={"PYTHONPATH": str(tmp_path)})
    assert done.stdout == f"1 {tmp_path}/sitecustomize.py False\n"
    assert recorded(url)[0][3] == ["mine"]


def test_a_program_that_python_starts_belongs_to_the_same_attempt(recording: Warm, url: str) -> None:
    inner = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {SPAN!r}], check=True); {SPAN}"
    assert run(recording, url, program=python(inner)).returncode == 0
    ((_, _, receipt, names),) = recorded(url)
    assert names == ["mine", "mine"]
    assert receipt.whole


def test_an_exception_of_the_program_is_its_own(recording: Warm, url: str) -> None:
    done = run(recording, url, "-q", program=python("raise ValueError('theirs')"))
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "ValueError: theirs"


def test_a_program_that_is_not_python_runs_and_records_nothing(recording: Warm, url: str) -> None:
    done = run(recording, url, program=["sh", "-c", "echo plain; exit 5"])
    assert (done.returncode, done.stdout) == (5, "plain\n")
    assert "the program recorded nothing" in done.stderr
    assert recorded(url)[0][1].status == "failed"


def test_of_a_program_that_was_killed_it_is_not_said_that_it_made_no_span(recording: Warm, url: str) -> None:
    done = run(recording, url, program=["sh", "-c", "kill -9 $$"])
    assert done.returncode == 137
    assert (
        "the program recorded nothing: signal 9 ended it before its first spans were written, or"
        in done.stderr
    )


def test_an_isolated_python_runs_and_records_nothing(recording: Warm, url: str) -> None:
    done = run(recording, url, program=[sys.executable, "-I", "-c", "print('alone')"])
    assert (done.returncode, done.stdout) == (0, "alone\n")
    assert "the program recorded nothing" in done.stderr


def test_a_store_that_went_away_does_not_break_the_program(recording: Warm, url: str, tmp_path: Path) -> None:
    code = f"import os, sys; os.environ['AGL_STORE'] = 'gone://'; os.execv(sys.executable, [sys.executable, '-c', {SPAN!r}])"
    done = run(recording, url, program=python(code))
    assert done.returncode == 0
    assert "not recorded" in done.stderr
    del tmp_path


def test_no_rollout_is_made_for_a_program_that_does_not_exist(
    recording: Warm, url: str, tmp_path: Path
) -> None:
    done = run(recording, url, program=["no-such-program"])
    assert (done.returncode, done.stdout) == (127, "")
    assert "there is no program" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_executed_is_126(recording: Warm, url: str, tmp_path: Path) -> None:
    (tmp_path / "data.txt").touch()
    assert run(recording, url, program=[str(tmp_path / "data.txt")]).returncode == 126


def test_input_is_json_in_the_argument_or_in_a_file(url: str, tmp_path: Path) -> None:
    (tmp_path / "task.json").write_text('{"question": 2}', encoding="utf-8")
    assert agl("run", "-q", "--store", url, "--input", '{"question": 1}', "--", "true").code == 0
    assert agl("run", "-q", "--store", url, "--input", f"@{tmp_path}/task.json", "--", "true").code == 0
    assert [rollout.input for rollout, *_ in recorded(url)] == [{"question": 1}, {"question": 2}]
    wrong = agl("run", "--store", url, "--input", "what?", "--", "true")
    assert wrong.code == 2
    assert "--input is not JSON" in wrong.err


def test_arguments_of_the_program_are_not_stored(recording: Warm, url: str) -> None:
    assert run(recording, url, "-q", program=["true", "--api-key", "sk-secret"]).returncode == 0
    ((rollout, attempt, _, _),) = recorded(url)
    assert "sk-secret" not in rollout.model_dump_json() + attempt.model_dump_json()


def test_a_rollout_is_joined_with_a_new_attempt(recording: Warm, url: str) -> None:
    async def start() -> str:
        async with open_store(url) as store:
            started = await store.start_rollout("task")
            return started.rollout_id

    rollout_id = asyncio.run(start())
    assert run(recording, url, "--rollout", rollout_id, program=python(SPAN)).returncode == 0
    first, second = recorded(url)
    assert (first[1].status, first[3]) == ("preparing", [])
    assert (second[1].status, second[3]) == ("succeeded", ["mine"])


def test_a_joined_attempt_is_ended_by_whoever_started_it(recording: Warm, url: str) -> None:
    async def start() -> tuple[str, str]:
        async with open_store(url) as store:
            started = await store.start_rollout("task")
            return started.rollout_id, started.attempt.attempt_id

    rollout_id, attempt_id = asyncio.run(start())
    assert (
        run(recording, url, "--rollout", rollout_id, "--attempt", attempt_id, program=python(SPAN)).returncode
        == 0
    )
    ((_, attempt, _, names),) = recorded(url)
    assert (attempt.status, names) == ("running", ["mine"])


@pytest.mark.parametrize("arguments", [[], ["--"], ["--attempt", "at-1", "--", "true"]])
def test_bad_usage_is_one_sentence(url: str, arguments: list[str]) -> None:
    done = agl("run", "--store", url, *arguments)
    assert (done.code, done.out, len(done.err.splitlines())) == (2, "", 1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_is_passed_on_and_cancels_the_rollout(url: str, number: signal.Signals) -> None:
    code = "import signal, sys\nsignal.signal(signal.SIGINT, signal.SIG_DFL)\nprint('ready', flush=True)\nsignal.pause()"
    command = [sys.executable, "-m", "agentlightning.cli", "run", "-q", "--store", url, "--", *python(code)]
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=partial(signal.signal, number, signal.SIG_DFL),  # noqa: PLW1509 - jobs of a shell ignore SIGINT
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.wait(120) == 128 + number
    (recording,) = recorded(url)
    assert [recording[0].status, recording[1].status] == ["cancelled", "failed"]


def test_ctrl_c_reaches_the_program_once(url: str) -> None:
    code = (
        "import signal, sys\ncount = []\nsignal.signal(signal.SIGINT, lambda *a: count.append(1))\n"
        "print('ready', flush=True)\n"
        "while not count: signal.pause()\n"
        "print('caught', flush=True)\nsys.stdin.readline()\nprint('total', len(count), flush=True)"
    )
    command = [sys.executable, "-m", "agentlightning.cli", "run", "-q", "--store", url, "--", *python(code)]
    child, terminal = pty.fork()
    if child == 0:
        os.execv(command[0], command)
    try:
        read_until(terminal, "ready")
        os.write(terminal, b"\x03")
        read_until(terminal, "caught")
        os.write(terminal, b"\n")
        read_until(terminal, "total 1")
        status = wait_until(lambda: ended(child), deadline=120)[1]
    finally:
        os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 0
    assert recorded(url)[0][1].status == "succeeded"


def ended(child: int) -> tuple[int, ...]:
    """What ``waitpid`` says once the child has ended; nothing before."""
    found = os.waitpid(child, os.WNOHANG)
    return found if found[0] else ()


def read_until(terminal: int, words: str) -> str:
    """What the terminal shows up to these words."""
    shown, give_up = "", time.monotonic() + 30
    while words not in shown:
        ready, _, _ = select.select([terminal], [], [], max(0.0, give_up - time.monotonic()))
        assert ready, f"{words!r} did not appear: {shown!r}"
        shown += os.read(terminal, 4096).decode()
    return shown
