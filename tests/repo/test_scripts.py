"""What the scripts share: an installation that fails half way is a failure, and its lock is free afterwards."""

from __future__ import annotations

import fcntl
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from agentlightning.store.base import process_start_ticks
from agentlightning.testing import wait_until

ROOT = Path(__file__).resolve().parents[2]

PROGRAM = """
set -euo pipefail
source "$1/scripts/_venv.sh"
python=the-callers
prepare() {{
    echo "python is $python"
    false
    echo "went on"
}}
{call}
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A repository of which there is no more than the scripts need: the lock of the real one may be held."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "_venv.sh", tmp_path / "scripts")
    (tmp_path / "pyproject.toml").touch()
    return tmp_path


def bash(place: Path, call: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", PROGRAM.format(call=call), "bash", str(place)],
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_preparation_ends_at_the_first_failure_and_the_script_with_it(place: Path) -> None:
    done = bash(place, "with_lock prepare\necho went on")
    assert (done.returncode, done.stdout) == (1, "python is the-callers\n")


def test_a_script_that_wants_to_go_on_after_a_failure_learns_of_it(place: Path) -> None:
    done = bash(place, "set +e\nwith_lock prepare\nprepared=$?\nset -e\necho prepared: $prepared")
    assert (done.returncode, done.stdout) == (0, "python is the-callers\nprepared: 1\n")


def test_only_one_process_prepares_at_a_time(place: Path) -> None:
    held = bash(place, "with_lock flock --nonblock pyproject.toml true || echo held")
    assert held.stdout == "held\n"
    with (place / "pyproject.toml").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


PARTS = """
set -euo pipefail
say() {{ echo "-- $*"; }}
source {parts}
fails() {{ echo "why it failed"; return 3; }}
{call}
"""


def in_parts(call: str) -> subprocess.CompletedProcess[str]:
    program = PARTS.format(parts=ROOT / "scripts" / "_parts.sh", call=call)
    return subprocess.run(
        ["bash", "-c", program],
        capture_output=True,
        text=True,
        check=False,
        # What runs in the background of a shell ignores it, and bash does not undo that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def test_a_part_that_fails_ends_the_script() -> None:
    done = in_parts("part fails\necho went on")
    assert done.returncode == 3
    assert "went on" not in done.stdout


def test_what_failed_in_the_background_is_shown_and_ends_the_script_that_asks_for_it() -> None:
    done = in_parts("start job fails\npart true\npart result job\necho went on")
    assert done.returncode == 3
    assert "why it failed" in done.stderr
    assert "went on" not in done.stdout
    excused = in_parts("start job fails\npart result job || echo excused\necho went on")
    assert (excused.returncode, "excused\nwent on\n" in excused.stdout) == (0, True)


@pytest.mark.parametrize("how", ["false", "kill -INT $$; sleep 60", "kill -TERM $$; sleep 60"])
def test_nothing_that_was_started_outlives_the_script(how: str, tmp_path: Path) -> None:
    own = tmp_path / "own"
    job = f"job() {{ sleep 300 & echo $! >{own}.new; mv {own}.new {own}; wait; }}"
    done = in_parts(f"{job}\nstart job job\nuntil [[ -e {own} ]]; do :; done\n{how}")
    assert done.returncode != 0
    assert "ended: job" in done.stdout
    wait_until(lambda: process_start_ticks(int(own.read_text(encoding="utf-8"))) is None)


@pytest.mark.parametrize(
    "script", sorted(path.name for path in (ROOT / "scripts").glob("[!_]*") if path.is_file())
)
def test_no_script_calls_with_lock_where_bash_ignores_failures(script: str) -> None:
    text = (ROOT / "scripts" / script).read_text(encoding="utf-8")
    calls = [line.strip() for line in text.splitlines() if "with_lock" in line]
    assert [line for line in calls if not line.startswith("with_lock ") or "||" in line or "&&" in line] == []


@pytest.mark.parametrize(
    "script", sorted(path.name for path in (ROOT / "scripts").iterdir() if path.is_file())
)
def test_tests_that_a_script_names_exist(script: str) -> None:
    text = (ROOT / "scripts" / script).read_text(encoding="utf-8")
    named = re.findall(r"(?:tests|examples)/[\w/]+\.py", text)
    assert [path for path in named if not (ROOT / path).exists()] == []
