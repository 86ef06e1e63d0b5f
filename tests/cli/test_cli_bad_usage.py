"""Whatever a person types and wherever the output goes: one line that says what to do, an exit code, and no traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_sample import Outcome, Sample, agl, build
from warm import Warm

from agentlightning.cli.options import COMMANDS

STATEMENTS = "import sys\n{}\nfrom agentlightning.cli import main\nsys.exit(main())"
BUFFERED = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    return build(tmp_path_factory.mktemp("cli"))


def forked(
    recording: Warm,
    *arguments: str,
    before: str = "",
    env: dict[str, str] | None = None,
    stdout: int | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run ``agl`` after these statements, without an interpreter of its own."""
    return recording.run(
        ["-c", STATEMENTS.format(before), *arguments], env={**BUFFERED, **(env or {})}, stdout=stdout
    )


def program(
    *arguments: str, before: str = "", env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Run ``agl`` as a process of its own, after these statements."""
    return subprocess.run(
        [sys.executable, "-c", STATEMENTS.format(before), *arguments],
        check=False,
        env={**BUFFERED, **(env or {})},
        capture_output=True,
    )


def one_line(done: Outcome, *words: str) -> None:
    assert (done.code, done.out) == (2, "")
    assert len(done.err.splitlines()) == 1, done.err
    for word in words:
        assert word in done.err


@pytest.mark.parametrize("command", ["backup", "restore", "verify"])
def test_an_argument_that_lacks_is_one_line(command: str) -> None:
    done = agl(command, columns=40)
    one_line(done, f"agl {command}: the following arguments are required", f"agl {command} --help")


def test_an_endpoint_that_is_no_url_is_refused_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path}/new.db"
    one_line(agl("run", "--store", url, "--endpoint", "gpu1:8000", "--", "true"), "--endpoint", "'gpu1:8000'")
    monkeypatch.setenv("AGL_ENDPOINTS", "http://gpu1 gpu2")
    one_line(agl("run", "--store", url, "--", "true"), "AGL_ENDPOINTS", "'gpu2'", "http://localhost:8000/v1")
    assert not (tmp_path / "new.db").exists()


@pytest.mark.parametrize("command", ["stats", "store check", "doctor", "run", "agentops", "rollouts"])
def test_an_unknown_option_is_told_by_the_command_that_got_it(command: str) -> None:
    one_line(
        agl(*command.split(), "--nosuch"),
        f"agl {command}: it does not know --nosuch",
        f"agl {command} --help",
    )


def test_an_option_before_the_command_is_told_where_it_belongs() -> None:
    one_line(agl("--log-level", "DEBUG", "rollouts"), "options such as --log-level come after the command")
    one_line(agl("--store", "runs.db"), "COMMAND")
    one_line(agl("--store"), "options such as --store come after the command")
    one_line(agl("--store", "runs.db", "fake-model"), "agl fake-model opens no store")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["rollouts", "--limit", "0"], "no number of rollouts"),
        (["rollouts", "--limit", "-2"], "no number of rollouts"),
        (["rollouts", "--limit", "1" + "0" * 30], "no number of rollouts"),
        (["export", "--limit", "many"], "no number of rollouts"),
        (["show", ""], "ROLLOUT: it is empty"),
        (["show", "latest", "--attempt", ""], "--attempt: it is empty"),
        (["backup", ""], "FILE: it is empty"),
        (["export", "-o", ""], "it is empty"),
        (["run", "--rollout", "", "--", "true"], "--rollout: it is empty"),
        (["export", "-o", "no-such-folder/rows.jsonl"], "run: mkdir -p no-such-folder"),
        (["run", "--input", "@no-such-file", "--", "true"], "no-such-file: no such file"),
        (["run", "--input", "[" * 100_000, "--", "true"], "--input is not JSON"),
    ],
)
def test_a_value_that_cannot_be_is_one_line(sample: Sample, arguments: list[str], words: str) -> None:
    one_line(agl(arguments[0], "--store", sample.url, *arguments[1:]), words)


def test_a_file_of_input_that_is_no_text_is_one_line(sample: Sample, tmp_path: Path) -> None:
    garbage = tmp_path / "garbage"
    garbage.write_bytes(b"\xbd\xff")
    one_line(agl("run", "--store", sample.url, "--input", f"@{garbage}", "--", "true"), "--input is not JSON")


@pytest.mark.parametrize("command", [["backup", "copy.db"], ["restore", "copy.db"], ["store", "migrate"]])
def test_what_needs_a_file_says_which_url_is_one(command: list[str], tmp_path: Path) -> None:
    one_line(agl(*command, "--store", "redis://runs"), "only sqlite:/// stores are")
    for folder in (f"sqlite:///{tmp_path}", f"{tmp_path}"):
        one_line(agl(*command, "--store", folder), "is a folder; name a file in it")


def test_an_empty_store_says_how_to_fill_it(tmp_path: Path) -> None:
    (tmp_path / "empty.db").touch()
    one_line(agl("show", "latest", "--store", f"sqlite:///{tmp_path}/empty.db"), "agl run -- python agent.py")


def test_a_log_level_of_the_environment_that_is_none_is_told_and_stops_nothing(
    sample: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGL_LOG_LEVEL", "loud")
    done = agl("stats", "--store", sample.url)
    assert (done.code, len(done.err.splitlines())) == (0, 1)
    assert "AGL_LOG_LEVEL is one of DEBUG, INFO" in done.err


@pytest.mark.parametrize(
    ("make", "code", "words"),
    [
        (lambda path: None, 127, "there is no program"),
        (lambda path: path.mkdir(), 126, "is a folder"),
        (lambda path: path.touch(0o600), 126, "run it with Python: agl run -- python"),
    ],
    ids=["missing", "folder", "not executable"],
)
def test_a_program_that_cannot_be_run_is_told_why(
    sample: Sample, tmp_path: Path, make: Callable[[Path], None], code: int, words: str
) -> None:
    make(tmp_path / "agent.py")
    done = agl("run", "--store", sample.url, "--", str(tmp_path / "agent.py"))
    assert (done.code, done.out) == (code, "")
    assert words in done.err


@pytest.mark.parametrize("command", COMMANDS)
def test_help_fits_into_a_narrow_terminal(command: str) -> None:
    done = agl(command, "--help", columns=40)
    assert done.code == 0
    text = done.out[done.out.index("\n\n") :]  # the usage names choices, which have no place to break
    assert max(len(line) for line in text.splitlines() if "{" not in line) <= 60


def test_the_package_is_the_command(recording: Warm) -> None:
    done = recording.run(["-m", "agentlightning", "rollouts", "--store", "nowhere"])
    assert (done.returncode, done.stderr.split(":")[0]) == (2, "agl rollouts")


def test_a_defect_is_one_line_that_asks_for_a_report(recording: Warm) -> None:
    broken = "import agentlightning.cli.stats as stats\ndef run(args): return {}['key']\nstats.run = run"
    done = forked(recording, "stats", before=broken)
    assert done.returncode == 70
    assert "agl stats: KeyError: 'key'. This is a defect of agentlightning: please report it" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "Traceback" in forked(recording, "stats", "--log-level", "DEBUG", before=broken).stderr


def test_an_interrupt_while_a_command_is_imported_is_no_traceback() -> None:
    interrupt = (
        "from agentlightning.cli import entry\n"
        "class Interrupted:\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name.endswith('cli.stats'): raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupted())"
    )
    done = program("stats", before=interrupt)
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")


@pytest.mark.parametrize(
    "arguments", [["--help"], ["rollouts"], ["rollouts", "--json"], ["export"]], ids=" ".join
)
def test_a_pipe_that_nobody_reads_ends_a_command_quietly(
    recording: Warm, sample: Sample, arguments: list[str]
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = forked(recording, *arguments, env={"AGL_STORE": sample.url}, stdout=writer)
    finally:
        os.close(writer)
    assert done.returncode == 141
    assert "Traceback" not in done.stderr
    assert "ignored" not in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a device that is always full")
@pytest.mark.parametrize("arguments", [["--version"], ["rollouts"], ["export"]], ids=" ".join)
def test_a_full_disk_behind_the_output_is_one_line(
    recording: Warm, sample: Sample, arguments: list[str]
) -> None:
    with Path("/dev/full").open("wb") as full:
        done = forked(recording, *arguments, env={"AGL_STORE": sample.url}, stdout=full.fileno())
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "no space left on device; make room" in done.stderr


def test_a_closed_output_is_nothing_to_fail_for(sample: Sample) -> None:
    closed = "import os\nfor number in (0, 1, 2): os.close(number)"
    # In the interpreter that starts with closed streams, sys.stdout is None.
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"{closed}\nos.execv(sys.executable, [sys.executable, '-m', 'agentlightning.cli', "
            f"'export', '--store', {sample.url!r}])".replace("import os", "import os, sys"),
        ],
        check=False,
    )
    assert done.returncode == 0
    assert agl("store", "check", "--store", sample.url).code == 0


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_an_encoding_without_our_characters_shows_others(sample: Sample, encoding: str) -> None:
    done = program("show", sample.solved, "--store", sample.url, env={"PYTHONIOENCODING": encoding})
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"`- * reward  1" in done.stdout
    assert b"3 > 2" in done.stdout


@pytest.mark.parametrize("columns", [0, 1, 20, 40, 60])
def test_a_terminal_without_room_for_a_table_shows_every_value(sample: Sample, columns: int) -> None:
    listed = "".join(agl("rollouts", "--store", sample.url, columns=columns).out.split())
    for value in (
        sample.solved,
        sample.retried,
        sample.cut,
        sample.queued,
        "succeeded",
        "queuing",
        "1open,2dropped",
    ):
        assert value in listed


def test_a_folder_that_is_gone_is_told(recording: Warm, tmp_path: Path) -> None:
    gone = f"import os\nos.chdir({str(tmp_path)!r})\nos.rmdir({str(tmp_path)!r})"
    done = forked(recording, "run", "--", "true", before=gone)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "agl run: the current folder is not there any more; change to another one\n"
