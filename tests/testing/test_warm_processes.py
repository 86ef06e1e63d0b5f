"""What the forks of a warm process have in common with an interpreter of its own, and what they refuse."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from warm import Warm, warm

from agentlightning.testing import start_child

LEAVES = """
import atexit, os, sys, threading
atexit.register(print, "exit handler")
print(sys.argv, __name__, __file__ if "__file__" in globals() else None, [name for name in vars() if name[0] != "_"], os.getcwd())
print(os.environ["MINE"], os.environ.get("AGL_STORE"), sys.path[0], sys.path[1])
print(sys.stdin.read() == "", sorted(os.listdir("/proc/self/fd")))
threading.Timer(0, print, ["a thread is waited for"]).start()
"""


def in_both(
    recording: Warm, arguments: list[str], folder: Path, **variables: str
) -> list[subprocess.CompletedProcess[str]]:
    """Run a program in a warm process and in an interpreter of its own."""
    env = {**os.environ, **variables}
    return [
        recording.run(arguments, env=env, cwd=folder),
        subprocess.run(
            [sys.executable, *arguments],
            env=env,
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
        ),
    ]


@pytest.mark.parametrize("way", ["-c", "-m", "file", "failing", "exit", "killed", "strict"])
def test_a_program_cannot_tell_them_apart(recording: Warm, tmp_path: Path, way: str) -> None:
    source = {
        "failing": "def broken():\n    raise KeyError('where')\nbroken()",
        "exit": "raise SystemExit('sorry')",
        "killed": "import os, signal; os.kill(os.getpid(), signal.SIGTERM)",
        "strict": "import warnings; warnings.warn('odd')",
    }.get(way, LEAVES)
    (tmp_path / "program.py").write_text(source, encoding="utf-8")
    arguments = {
        "-c": ["-P", "-c", source, "a"],
        "-m": ["-m", "program", "a"],
        "strict": ["-W", "error", "-c", source],
    }.get(way, ["program.py", "a"])
    variables = {"MINE": "ä", "PYTHONPATH": str(tmp_path)}
    warm, fresh = in_both(recording, arguments, tmp_path, **variables)
    assert warm.returncode == fresh.returncode
    assert warm.stdout == fresh.stdout
    said, expected = warm.stderr.splitlines(), fresh.stderr.splitlines()
    assert said[-1:] == expected[-1:]
    if way == "failing":  # the frames that started the program stand before its own
        assert said[-len(expected) + 1 :] == expected[1:]


def test_a_child_is_waited_for_and_killed(recording: Warm) -> None:
    with recording.start_child("report(args['n'] + receive())", args={"n": 1}) as child:
        child.send(2)
        assert child.finish() == [3]
    with recording.start_child("import signal; signal.pause()") as child:
        with pytest.raises(TimeoutError):
            child.wait(deadline=0.01)
    assert child.wait() == -signal.SIGKILL
    assert not Path(f"/proc/{child.pid}").exists()


def test_it_ends_though_a_fork_of_this_process_lives_on(clean_environment: dict[str, str]) -> None:
    source = "report(1)\nreceive()"
    with ExitStack() as stack:
        with warm(clean_environment, ["json"]) as started:
            child = stack.enter_context(start_child(source, method="fork"))
            assert child.next_report() == 1
            assert started.run(["-c", "import sys; print('json' in sys.modules)"]).stdout == "True\n"
        assert child.poll() == [1]
        assert Path(f"/proc/{child.pid}").exists()


def test_what_only_a_new_interpreter_would_read_is_refused(recording: Warm) -> None:
    for name in ("PYTHONUTF8", "OTEL_SDK_DISABLED"):
        with pytest.raises(ValueError, match=f"an interpreter of its own is needed: {name} is read"):
            recording.run(["-c", ""], env={**os.environ, name: "1"})


def test_what_is_recorded_in_forks_has_ids_of_its_own(recording: Warm) -> None:
    source = """
import random, uuid
from agentlightning.store.base import new_writer_id
from agentlightning.tracer.provider import OwnIds
from opentelemetry.sdk.trace import RandomIdGenerator
report([new_writer_id(0), OwnIds().generate_trace_id(), RandomIdGenerator().generate_trace_id(), uuid.uuid4()])
"""
    told = []
    for _ in range(2):
        with recording.start_child(source) as child:
            told.append(child.finish()[0])
    assert [one for one, other in zip(*told, strict=True) if one == other] == []
