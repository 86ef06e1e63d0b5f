"""What the scripts share: an installation that fails half way is a failure, and its lock is free afterwards."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
from pathlib import Path

import pytest

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


@pytest.mark.parametrize(
    "script", sorted(path.name for path in (ROOT / "scripts").glob("[!_]*") if path.is_file())
)
def test_no_script_calls_with_lock_where_bash_ignores_failures(script: str) -> None:
    text = (ROOT / "scripts" / script).read_text(encoding="utf-8")
    calls = [line.strip() for line in text.splitlines() if "with_lock" in line]
    assert [line for line in calls if not line.startswith("with_lock ") or "||" in line or "&&" in line] == []
