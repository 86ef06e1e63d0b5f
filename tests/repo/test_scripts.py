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
root={root}
parts=(one two)
say() {{ echo "-- $*"; }}
source {parts}
choose "${{parts[@]}}"
fails() {{ echo "why it failed"; return 3; }}
{call}
"""


def in_parts(call: str, root: Path) -> subprocess.CompletedProcess[str]:
    (root / ".venv").mkdir(exist_ok=True)
    program = PARTS.format(root=root, parts=ROOT / "scripts" / "_parts.sh", call=call)
    return subprocess.run(
        ["bash", "-c", program],
        capture_output=True,
        text=True,
        check=False,
        # What runs in the background of a shell ignores it, and bash does not undo that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def test_a_part_that_fails_ends_the_script(tmp_path: Path) -> None:
    done = in_parts("part one fails\necho went on", tmp_path)
    assert done.returncode == 3
    assert "went on" not in done.stdout


def test_what_failed_in_the_background_is_shown_and_ends_the_script_that_asks_for_it(tmp_path: Path) -> None:
    done = in_parts("start job fails\npart one true\nresult job\necho went on", tmp_path)
    assert done.returncode == 3
    assert "why it failed" in done.stderr
    assert "went on" not in done.stdout


@pytest.mark.parametrize("how", ["false", "kill -INT $$; sleep 60", "kill -TERM $$; sleep 60"])
def test_nothing_that_was_started_outlives_the_script(how: str, tmp_path: Path) -> None:
    own = tmp_path / "own"
    job = f"job() {{ sleep 300 & echo $! >{own}.new; mv {own}.new {own}; wait; }}"
    done = in_parts(f"{job}\nstart job job\nuntil [[ -e {own} ]]; do :; done\n{how}", tmp_path)
    assert done.returncode != 0
    assert "ended: job" in done.stdout
    word = "FAILED" if how == "false" else "STOPPED"
    assert done.stdout.splitlines()[-1] == f"-- {word}. To go on with these files: scripts/test"
    wait_until(lambda: process_start_ticks(int(own.read_text(encoding="utf-8"))) is None)


def test_what_ignores_that_it_is_to_end_is_killed(tmp_path: Path) -> None:
    own = tmp_path / "own"
    job = f"job() {{ trap '' TERM; sleep 300 & echo $! >{own}.new; mv {own}.new {own}; wait; }}"
    in_parts(f"{job}\nstart job job\nuntil [[ -e {own} ]]; do :; done\nfalse", tmp_path)
    wait_until(lambda: process_start_ticks(int(own.read_text(encoding="utf-8"))) is None)


PROGRAMS = {
    "_venv.sh": 'root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"; cd "$root"; PATH="$root/.venv:$PATH"\n'
    'say() { echo "-- $*" >&2; }; need() { :; }\n',
    "check": 'echo "check $*"\n',
    "matrix-one": 'echo "matrix-one $*"\n',
    "matrix-two": 'echo "matrix-two $*"; [[ ! -e .venv/broken ]]\n',
    "matrix-newest": "exit 1\n",
    "trainers": 'echo "trainers $*"\n',
    "../.venv/pytest": 'echo "pytest $*"; [[ ! -e .venv/red || "$*" == *--collect-only* ]]\n',
}
"""Each says that it was called; two of them fail where a file tells them to."""

ALL = ["check", "matrix-one", "matrix-two", "pytest", "trainers"]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository in which every part of ``scripts/test`` is a program that takes no time."""
    scripts = tmp_path / "scripts"
    scripts.mkdir()
    (tmp_path / ".venv").mkdir()
    for name, text in PROGRAMS.items():
        (scripts / name).write_text("#!/usr/bin/env bash\n" + text, encoding="utf-8")
        (scripts / name).chmod(0o755)
    for name in ("test", "_parts.sh"):
        shutil.copy(ROOT / "scripts" / name, scripts)
    (tmp_path / ".gitignore").write_text(".venv\n", encoding="utf-8")
    for command in ("init", "add .", "-c user.name=n -c user.email=e commit -m all"):
        subprocess.run(["git", *command.split()], cwd=tmp_path, check=True, capture_output=True)
    return tmp_path


def run_test(repository: Path, *arguments: str) -> tuple[int, list[str], str]:
    """Run ``scripts/test``; return how it ended, which programs were called, and all that it said."""
    done = subprocess.run(
        [repository / "scripts" / "test", *arguments], capture_output=True, text=True, check=False
    )
    called = re.findall(
        r"^(check|matrix-\w+|pytest|trainers) (?!.*(?:--install|--collect))",
        done.stdout + done.stderr,
        re.MULTILINE,
    )
    return done.returncode, sorted(called), done.stdout + done.stderr


def test_the_parts_of_the_tests_can_be_listed_and_run_alone(repository: Path) -> None:
    names = ["checks", "tests", "matrix-one", "matrix-two", "trainers"]
    assert run_test(repository, "--list") == (0, [], "".join(f"{name}\n" for name in names))
    assert run_test(repository)[:2] == (0, ALL)
    assert run_test(repository, "--part", "checks")[:2] == (0, ["check"])
    assert run_test(repository, "--part", "matrix-two", "tests")[:2] == (0, ["matrix-two", "pytest"])
    for wrong in (["--part"], ["--part", "checks", "none"]):
        code, called, said = run_test(repository, *wrong)
        assert (code, called) == (2, [])
        assert "To go on" not in said
        assert "no name" not in said
        assert " ".join(names) in said
    for alone in ("--list", "--resume"):
        assert run_test(repository, alone, "checks") == (2, [], f"-- {alone} takes no arguments\n")


def test_other_arguments_are_for_pytest_alone(repository: Path) -> None:
    assert run_test(repository, "tests/store", "-k", "lease") == (
        0,
        ["pytest"],
        "pytest tests/store -k lease\n",
    )


@pytest.mark.parametrize(
    ("failing", "passed", "failed"),
    [("red", {"check"}, "tests"), ("broken", {"check", "pytest"}, "matrix-two")],
)
def test_a_run_that_failed_goes_on_with_what_has_not_passed(
    repository: Path, failing: str, passed: set[str], failed: str
) -> None:
    (repository / ".venv" / failing).touch()
    code, called, said = run_test(repository)
    assert code == 1
    assert passed < set(called)
    assert said.splitlines()[-1] == "-- FAILED. To go on with these files: scripts/test --resume"
    assert (
        run_test(repository, "--part", failed)[2].splitlines()[-1].endswith(f": scripts/test --part {failed}")
    )
    (repository / ".venv" / failing).unlink()
    code, called, _ = run_test(repository, "--resume")
    assert code == 0
    assert failed.replace("tests", "pytest") in called
    assert not passed & set(called)
    assert run_test(repository, "--resume")[:2] == (0, [])
    assert run_test(repository)[:2] == (0, ALL)


@pytest.mark.parametrize("change", ["new file", "change", "commit"])
def test_what_has_passed_with_other_files_has_not_passed(repository: Path, change: str) -> None:
    assert run_test(repository)[0] == 0
    if change == "new file":
        (repository / "new file").write_text("1", encoding="utf-8")
    elif change == "change":
        (repository / "scripts" / "check").write_text(PROGRAMS["check"] + ":\n", encoding="utf-8")
    else:
        identity = ["-c", "user.name=n", "-c", "user.email=e"]
        subprocess.run(
            ["git", *identity, "commit", "--allow-empty", "-m", "none"],
            cwd=repository,
            check=True,
            capture_output=True,
        )
    assert run_test(repository, "--resume")[:2] == (0, ALL)
    if change == "new file":
        assert run_test(repository, "--resume")[:2] == (0, [])
        (repository / "new file").write_text("2", encoding="utf-8")
        assert run_test(repository, "--resume")[:2] == (0, ALL)


def state(repository: Path) -> str:
    """Return what stands for all files of a repository, by which a part that has passed is known."""
    program = 'set -euo pipefail; root=.; cd "$1"; source scripts/_parts.sh; state'
    return subprocess.run(
        ["bash", "-c", program, "bash", str(repository)], capture_output=True, text=True, check=True
    ).stdout


def test_each_change_of_a_new_file_is_seen(repository: Path) -> None:
    new, link = repository / "a new\nfile", repository / "0 link"
    states = [state(repository)]

    def changed() -> None:
        states.append(state(repository))

    link.symlink_to("nowhere")  # comes before the others, and leads to nothing
    changed()
    new.write_text("1", encoding="utf-8")
    changed()
    new.write_text("2", encoding="utf-8")
    changed()
    new.chmod(0o755)
    changed()
    link.unlink()
    link.symlink_to("elsewhere")
    changed()
    (repository / "scripts" / "check").chmod(0o644)
    changed()
    assert len(set(states)) == len(states)
    assert all(states)
    assert state(repository) == states[-1]


@pytest.mark.parametrize("what", ["no git", "a repository inside"])
def test_where_changes_cannot_be_told_nothing_is_remembered(repository: Path, what: str) -> None:
    if what == "no git":
        shutil.rmtree(repository / ".git")
    else:
        subprocess.run(["git", "init", "inside"], cwd=repository, check=True, capture_output=True)
        (repository / "inside" / "file").touch()
    for _ in range(2):
        code, called, said = run_test(repository, "--resume")
        assert (code, called) == (0, ALL)
        assert "all parts are run" in said
    assert [*(repository / ".venv").glob(".passed-*")] == []


def test_what_changed_while_a_part_ran_has_not_passed(repository: Path) -> None:
    with (repository / "scripts" / "check").open("a", encoding="utf-8") as file:
        file.write("echo >>edited\n")
    assert run_test(repository, "--part", "checks")[:2] == (0, ["check"])
    assert "check" in run_test(repository, "--resume")[1]


def test_the_quickstart_keeps_to_the_folder_it_is_called_from(repository: Path, tmp_path: Path) -> None:
    shutil.copy(ROOT / "scripts" / "quickstart", repository / "scripts")
    example, elsewhere = repository / "examples" / "calc_agent", tmp_path / "elsewhere"
    example.mkdir(parents=True)
    for package in (
        example.parent,
        example,
    ):  # else this repository's own, which is installed, would be found first
        (package / "__init__.py").touch()
    (example / "__main__.py").write_text(
        "import os, sys; print(os.getcwd(), *sys.argv[1:])", encoding="utf-8"
    )
    (elsewhere / "examples").mkdir(parents=True)
    (elsewhere / "examples" / "__init__.py").write_text("raise SystemExit('not ours')", encoding="utf-8")
    done = subprocess.run(
        [repository / "scripts" / "quickstart", "--out-db", "a.db"],
        cwd=elsewhere,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"{elsewhere} --out-db a.db\n"


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
