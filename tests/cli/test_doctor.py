"""``agl doctor`` as a person runs it: a process, on machines that are broken for real."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import os
import re
import resource
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from warm import Warm

from agentlightning.cli.doctor.finding import Finding, Subject, findings_of, subject
from agentlightning.cli.doctor.machine import file_system
from agentlightning.cli.doctor.places import places
from agentlightning.cli.doctor.report import conclusion
from agentlightning.semconv import AGL_UNCAPTURED, SpanFlagAttributes
from agentlightning.store import open_store
from agentlightning.store.base import new_writer_id
from agentlightning.store.sqlite import SqliteLightningStore
from agentlightning.testing import account_of, span_of

pytestmark = pytest.mark.long

pytest.importorskip("openai")

AUDIT = """
import os, sys

def hear(event, arguments, place=os.environ["TEST_CONNECTIONS"]):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        address = arguments[1] if event != "socket.getaddrinfo" else arguments[:2]
        with open(place, "a") as file:
            file.write(f"{event} {address if isinstance(address, str) else address[0]}\\n")

sys.addaudithook(hear)
"""
"""Notes whom every process of the run talks to."""

DROPPING = """
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

trace.set_tracer_provider(TracerProvider(sampler=ALWAYS_OFF))

import fcntl

fcntl.flock = lambda file, operation: None
"""
"""A provider of somebody else's that drops every span, and a file lock that nobody else sees."""


WRONG_YEAR = """
import datetime

class Datetime(datetime.datetime):
    @classmethod
    def now(cls, zone=None):
        return cls(1970, 1, 1, tzinfo=zone)

datetime.datetime = Datetime
"""
"""A machine that has lost its date."""

BAD_CLOCK = """
import itertools, sys, time

if "agentlightning.cli" in sys.orig_argv:  # the agent of the canary has a good one
    began, wall, calls = time.monotonic(), time.time(), itertools.count(1)
    time.time = lambda: wall + 1000 * (time.monotonic() - began)
    time.time_ns = lambda now=time.time_ns: now() // 50_000_000 * 50_000_000 - 10**9 * (next(calls) % 5000 == 0)
"""
"""A clock that runs away, in coarse steps, and now and then goes back."""


@dataclass(frozen=True)
class Outcome:
    """What the command did."""

    code: int
    out: str
    err: str

    @property
    def findings(self) -> list[dict[str, Any]]:
        """What ``--json`` lists."""
        found: list[dict[str, Any]] = json.loads(self.out)["findings"]
        return found

    def levels(self) -> dict[str, set[str]]:
        """Return check → levels of its findings."""
        found: dict[str, set[str]] = {}
        for finding in self.findings:
            found.setdefault(finding["check"], set()).add(finding["level"])
        return found

    def bad(self, check: str) -> str:
        """Return the text of what is not ok about a check; each finding has a sentence and a cure."""
        found = [each for each in self.findings if each["check"] == check and each["level"] != "ok"]
        assert all(each["sentence"] and each["cure"] for each in found)
        return "\n".join(" ".join([each["sentence"], each["cure"], *each["details"]]) for each in found)


def doctor(
    folder: Path,
    *arguments: str,
    recording: Warm | None = None,
    preexec: Callable[[], None] | None = None,
    startup: str | None = None,
    **variables: str,
) -> Outcome:
    """Run the command in a folder.

    Args:
        folder: The folder.
        arguments: Those of the command.
        recording: What starts it, in place of an interpreter of its own; whom it asks always have theirs.
        preexec: Called in the new process first.
        startup: Run by every Python process of it.
        variables: Of its environment.
    """
    env = {**os.environ, **variables}
    if startup is not None:
        place = folder / "startup"
        place.mkdir()
        (place / "sitecustomize.py").write_text(startup, encoding="utf-8")
        env["PYTHONPATH"] = os.pathsep.join([str(place), *filter(None, [env.get("PYTHONPATH")])])
    command = ["-P", "-m", "agentlightning.cli", "doctor", *arguments]
    if recording is not None:
        assert preexec is None
        assert startup is None
        done = recording.run(command, cwd=folder, env=env)
        return Outcome(done.returncode, done.stdout, done.stderr)
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
        preexec_fn=preexec,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


CHECKS = """
import json, sys
from dataclasses import asdict
from agentlightning.cli.doctor.finding import findings_of, subject
from agentlightning.cli.doctor.report import CHECKS, loaded, unchecked

store, *wanted = sys.argv[1:]
found = [
    asdict(finding)
    for heading, name, module in CHECKS
    if name in wanted
    for finding in findings_of(name, loaded(module, name), subject(store), unchecked(heading))
]
print(json.dumps({"findings": found}))
"""
"""Some of the checks as the command does them, without the canary, which imports every client that is installed."""


def lower(limit: int, value: int, *, hard: bool = False) -> Callable[[], None]:
    """Return what lowers a limit in the child."""
    return lambda: resource.setrlimit(limit, (value, value if hard else resource.getrlimit(limit)[1]))


def make_store(path: Path) -> None:
    async def make() -> None:
        async with SqliteLightningStore(path) as store:
            await store.start_rollout("task")

    asyncio.run(make())


def test_a_sound_machine_is_sound_and_stays_as_it_was(tmp_path: Path) -> None:
    make_store(tmp_path / "agentlightning.db")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    done = doctor(tmp_path, COLUMNS="80")
    assert done.code == 0, done.out
    assert done.out.splitlines()[-1].startswith("This machine records correctly")
    assert "one span each, every token id and log-probability" in " ".join(done.out.split())
    assert re.search(r"- took \d+\.\d s", done.out)
    assert "✗" not in done.out
    assert [line for line in done.out.splitlines() if len(line) > 80 and str(tmp_path) not in line] == []
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_store_that_is_not_there_is_not_made(recording: Warm, tmp_path: Path) -> None:
    done = doctor(tmp_path, "--json", "--all", recording=recording)
    assert done.code == 0, done.out
    assert list(tmp_path.iterdir()) == []
    document = json.loads(done.out)
    assert document["sound"] is True
    (patches,) = [each for each in done.findings if each["check"] == "patches"]
    assert any(line.startswith("opentelemetry.trace.set_tracer_provider: ") for line in patches["details"])
    assert sum(row["applies"] for row in document["agentops"]) == 1
    assert done.levels()["canary"] == {"ok"}


def test_clients_that_are_not_captured_and_servers_that_were_reached_by_them_are_named(
    recording: Warm,
    tmp_path: Path,
) -> None:
    async def record() -> None:
        async with SqliteLightningStore(tmp_path / "agentlightning.db") as store:
            for server in ("models.example.com:443", "localhost:8000", "models.example.com:443"):
                rollout = await store.start_rollout("task")
                attributes = {SpanFlagAttributes.UNCAPTURED_SERVER.value: server}
                await store.add_span(span_of(rollout, AGL_UNCAPTURED, attributes=attributes))
                await store.add_span(span_of(rollout, "chat m"))

    asyncio.run(record())
    site = tmp_path / "site"
    for name in ("curl_cffi", "uvloop", "gevent"):
        folder = site / f"{name}-1.0.dist-info"
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n", encoding="utf-8"
        )
    url = f"sqlite:///{tmp_path / 'agentlightning.db'}"
    env = {**os.environ, "PYTHONPATH": str(site)}
    ran = recording.run(["-c", CHECKS, url, "clients", "servers"], cwd=tmp_path, env=env)
    done = Outcome(ran.returncode, ran.stdout, ran.stderr)
    assert done.levels() == {"clients": {"ok", "warn"}, "servers": {"warn"}}
    assert "model calls through curl_cffi are not captured" in done.bad("clients")
    (watched,) = [each for each in done.findings if each["check"] == "clients" and each["level"] == "ok"]
    assert "connections that uvloop's event loop makes are not seen" in watched["details"][0]
    assert "under gevent.monkey.patch_all()" in watched["details"][1]
    first, second = (each for each in done.findings if each["check"] == "servers")
    assert first["sentence"].startswith(
        "2 of the newest attempts connected to the model server models.example.com:443"
    )
    assert second["sentence"].startswith(
        "1 of the newest attempts connected to the model server localhost:8000"
    )


def test_parts_of_opentelemetry_of_two_releases_are_updated_together(recording: Warm, tmp_path: Path) -> None:
    folder = tmp_path / "site" / "opentelemetry_instrumentation-0.1b0.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: opentelemetry-instrumentation\nVersion: 0.1b0\n", encoding="utf-8"
    )
    env = {**os.environ, "PYTHONPATH": str(folder.parent)}
    ran = recording.run(
        ["-c", CHECKS, f"sqlite:///{tmp_path / 'none.db'}", "conflicts"], cwd=tmp_path, env=env
    )
    findings = Outcome(ran.returncode, ran.stdout, ran.stderr).findings
    assert {found["level"] for found in findings} == {"warn"}
    found = next(each for each in findings if "instrumentation-threading" in each["sentence"])
    named = set(found["cure"].partition(",")[0].split())
    assert named >= {
        "opentelemetry-instrumentation", "opentelemetry-instrumentation-threading", "opentelemetry-sdk",
    }  # fmt: skip


def test_settings_that_lose_nothing_but_surprise_are_warnings_and_nothing_leaves_the_machine(
    tmp_path: Path,
) -> None:
    (tmp_path / "pyproject.toml").write_text('[tool.agentlightning]\nspool_dri = "x"\n', encoding="utf-8")
    (tmp_path / "openai.py").write_text("", encoding="utf-8")
    heard = tmp_path / "heard"
    done = doctor(
        tmp_path,
        "--json",
        "--store",
        f"sqlite:///{tmp_path / 'a b.db'}",
        preexec=lower(resource.RLIMIT_NOFILE, 256),
        startup=AUDIT + BAD_CLOCK,
        TEST_CONNECTIONS=str(heard),
        AGL_STROE="sqlite:///elsewhere.db",
        AGL_LOG_LEVEL="loud",
        AGL_EMITTER_DEBUG="perhaps",
        OTEL_TRACES_SAMPLER="always_off",
        OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT="8",
        HTTP_PROXY="http://me:geheim@192.0.2.1:3128",
        OPENAI_API_KEY="none",
    )
    (tmp_path / "openai.py").unlink()
    assert "did you mean AGL_STORE?" in done.bad("agl_settings")
    assert "AGL_LOG_LEVEL='loud'" in done.bad("agl_settings")
    assert "AGL_EMITTER_DEBUG='perhaps'" in done.bad("agl_settings")
    assert "did you mean spool_dir?" in done.bad("agl_settings")
    assert "OTEL_TRACES_SAMPLER=always_off" in done.bad("otel_settings")
    assert "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT=8" in done.bad("otel_settings")
    assert "127.0.0.1" in done.bad("proxies")
    assert "NO_PROXY=" in done.bad("proxies")
    assert "ulimit -n" in done.bad("open_files")
    assert str(tmp_path / "openai.py") in done.bad("namesakes")
    clock = done.bad("clock")
    assert "the clock jumped by +" in clock
    assert "the clock goes in steps of 0.05 s" in clock
    assert "the clock goes backwards now and then" in clock
    assert clock.count("let NTP or the host set the clock") == 2
    assert done.levels()["clock"] == {"warn"}
    assert "geheim" not in done.out
    assert {check for check, levels in done.levels().items() if "fail" in levels} <= {"canary"}
    met = set(heard.read_text(encoding="utf-8").splitlines())
    assert met
    assert {line for line in met if not is_here(line.partition(" ")[2])} == set()


def is_here(address: str) -> bool:
    """Whether an address is of this machine."""
    if address.startswith(("/", "\0", "localhost", "('localhost'")):
        return True
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def test_what_would_lose_everything_is_a_problem_and_a_proxy_that_spares_this_machine_is_not(
    tmp_path: Path,
) -> None:
    done = doctor(
        tmp_path,
        "--json",
        "--store",
        "sqlite:////proc/runs.db",  # a folder that takes no file, from anybody
        preexec=lower(resource.RLIMIT_NOFILE, 256, hard=True),
        HTTP_PROXY="http://192.0.2.1:3128",
        NO_PROXY="127.0.0.1,localhost",
        AGL_SPOOL_DIR="/proc/spool",
        OTEL_SDK_DISABLED="true",
        AGL_ATTEMPT_ID="at-1",
        AGL_CAPTURE_TOKENS="maybe",
    )
    assert done.levels()["proxies"] == {"ok"}
    assert done.code == 1
    assert "/proc" in done.bad("store")
    assert "ask for a higher hard limit" in done.bad("open_files")
    assert done.levels()["store"] == {"fail"}
    assert "no spool can be made" in done.bad("disk")
    assert "no lock can be tried: the folder /proc takes no new file" in done.bad("locks")
    assert "OTEL_SDK_DISABLED=true switches every span off" in done.bad("otel_settings")
    assert "AGL_CAPTURE_TOKENS='maybe'" in done.bad("agl_settings")
    assert "AGL_ATTEMPT_ID is set without its companion" in done.bad("agl_settings")
    assert done.levels()["canary"] == {"fail"}


def test_dropped_spans_and_locks_that_do_not_lock_are_missed_and_a_newer_store_is_refused(
    tmp_path: Path,
) -> None:
    path = tmp_path / "agentlightning.db"
    make_store(path)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 99")
    done = doctor(tmp_path, "--json", startup=DROPPING + WRONG_YEAR)
    assert done.code == 1
    assert "Install a newer agentlightning-otel" in done.bad("store")
    assert "while one process held them, another got flock yes, lockf no, sqlite busy" in done.bad("locks")
    assert "streamed: 0 spans in place of one" in done.bad("canary")
    assert "the clock says that this is the year 1970" in done.bad("clock")
    assert "fail" in done.levels()["clock"]
    assert json.loads(done.out)["sound"] is False


def test_a_store_of_another_program_and_a_stranger_called_agentops(recording: Warm, tmp_path: Path) -> None:
    stranger = tmp_path / "stranger" / "agentops"
    stranger.mkdir(parents=True)
    (stranger / "__init__.py").write_text("", encoding="utf-8")
    (tmp_path / "agentlightning.db").write_text("notes", encoding="utf-8")
    done = doctor(tmp_path, "--json", recording=recording, PYTHONPATH=str(stranger.parent))
    assert done.code == 1
    assert "no SQLite file" in done.bad("store")
    assert f"rename or remove {stranger}" in done.bad("agentops")
    assert "AgentOps is not recorded" in done.bad("canary")
    assert "ok" in done.levels()["canary"], "model calls are recorded at the wire all the same"
    assert (tmp_path / "agentlightning.db").read_text(encoding="utf-8") == "notes"


def test_an_agentops_that_does_not_start_is_a_problem(recording: Warm, tmp_path: Path) -> None:
    package = tmp_path / "broken" / "agentops"
    (package / "instrumentation" / "providers" / "openai").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('wrapt is too old')", encoding="utf-8")
    done = doctor(tmp_path, "--json", recording=recording, PYTHONPATH=str(package.parent))
    if "fail" in done.levels()["agentops"]:
        pytest.skip("no agentops is installed, so this one has no version")
    assert done.code == 1
    assert "wrapt is too old" in done.bad("canary")


def half_installed_openai(folder: Path) -> Path:
    """Make an ``openai`` that cannot be imported; return the folder to import it from."""
    package = folder / "broken" / "openai"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('half installed')", encoding="utf-8")
    return package.parent


def test_a_broken_package_breaks_one_check_and_not_the_command(tmp_path: Path) -> None:
    broken = half_installed_openai(tmp_path)
    requirements = broken / "packaging"
    requirements.mkdir()
    (requirements / "__init__.py").write_text("raise RuntimeError('gone')", encoding="utf-8")
    done = doctor(tmp_path, "--json", PYTHONPATH=str(broken))
    assert done.code == 1
    assert "Traceback" not in done.err
    assert "could not be checked: RuntimeError: gone" in done.bad("conflicts")
    assert done.levels()["canary"] == {"fail"}
    assert done.levels()["disk"] == {"ok"}


def test_a_machine_that_is_too_slow_is_not_called_broken() -> None:
    def slow(_: Subject) -> Iterator[Finding]:
        subprocess.run(["tail", "-f", os.devnull], timeout=0.01, check=True)  # which never ends
        yield Finding("ok", "canary", "it ended")

    (found,) = findings_of("canary", slow, subject(None), "fail")
    assert (found.level, found.check, found.unknown) == ("warn", "canary", True)
    assert re.search(r"was stopped after \d+ s, so what it would have shown is not known", found.sentence)
    said = conclusion([found])
    assert said == "Whether this machine records correctly is not known: canary took too long; 1 warning."
    (found,) = findings_of("locks", slow, subject(None), "warn")
    assert conclusion([found]) == "This machine records correctly; 1 warning."


def test_a_store_that_another_process_holds_is_a_warning(recording: Warm, tmp_path: Path) -> None:
    path = tmp_path / "agentlightning.db"
    make_store(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        ran = recording.run(["-c", CHECKS, f"sqlite:///{path}", "store"])
        connection.execute("ROLLBACK")
    held = Outcome(ran.returncode, ran.stdout, ran.stderr)
    assert "held by another process" in held.bad("store")
    assert held.levels()["store"] == {"warn"}


def test_files_that_may_not_grow_lose_spans(tmp_path: Path) -> None:
    # CPython 3.11 takes a file of bytecode that the limit cuts off for a whole one: it would be broken for everybody.
    limit = lower(resource.RLIMIT_FSIZE, 64 * 1024)
    done = doctor(tmp_path, "--json", preexec=limit, PYTHONDONTWRITEBYTECODE="1")
    assert done.code == 1
    assert "64 KiB (RLIMIT_FSIZE)" in done.bad("disk")
    assert "fail" in done.levels()["canary"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte, full."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    if (
        mount is None
        or subprocess.run(
            [mount, "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True, check=False
        ).returncode
    ):
        pytest.skip("this user may not mount")
    try:
        with (folder / "ballast").open("wb", buffering=0) as file:
            while True:
                try:
                    file.write(b"x" * 4096)
                except OSError:
                    break
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_loses_spans(recording: Warm, tmp_path: Path, small_disk: Path) -> None:
    done = doctor(tmp_path, "--json", "--store", f"sqlite:///{small_disk}/runs.db", recording=recording)
    assert done.code == 1
    assert "bytes free in the store's folder" in done.bad("disk")
    assert done.levels()["store"] == {"fail"}
    assert [path.name for path in small_disk.iterdir()] == ["ballast"]


@pytest.fixture
def on_mounts(tmp_path: Path) -> Callable[[str], tuple[str, ...]]:
    """Return what runs a command in a mount namespace in which it reads a table of mounts."""

    def prefix(table: str) -> tuple[str, ...]:
        mounts = tmp_path.with_name(f"{tmp_path.name}-mounts")
        mounts.write_text(table, encoding="utf-8")
        script = f'mount --bind {mounts} /proc/$$/mounts && exec "$@"'
        found = ("unshare", "--mount", "sh", "-c", script, "sh")
        if (
            shutil.which("unshare") is None
            or subprocess.run([*found, "true"], capture_output=True, check=False).returncode
        ):
            pytest.skip("this user may not mount")
        return found

    return prefix


@pytest.mark.parametrize("kind", ["nfs4", "fuse.sshfs"])
def test_a_store_on_a_file_system_that_other_machines_see_is_a_warning(
    tmp_path: Path, on_mounts: Callable[[str], tuple[str, ...]], kind: str
) -> None:
    shared = tmp_path / "gemeinsam für alle"
    shared.mkdir()
    octal = str(shared).replace(" ", r"\040")
    table = f"/dev/vda / ext4 rw 0 0\nserver:/x {octal} {kind} rw 0 0\n"
    command = [*on_mounts(table), sys.executable, "-c", CHECKS, f"sqlite:///{shared}/runs.db", "locks"]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    done = Outcome(ran.returncode, ran.stdout, ran.stderr)
    assert f"on {shared} ({kind}) other machines may see no lock of ours" in done.bad("locks")
    assert "write to it from one machine only" in done.bad("locks")
    assert done.levels()["locks"] == {"warn"}


def test_the_list_is_readable_without_unicode(tmp_path: Path) -> None:
    done = doctor(
        tmp_path,
        "--store",
        "nosuch://me:geheim@host/",
        COLUMNS="60",
        PYTHONIOENCODING="ascii",
        PYTHONUTF8="0",
        PYTHONPATH=str(half_installed_openai(tmp_path)),  # without calls of a model it takes half of the time
    )
    assert done.code == 1, done.err
    assert done.out.isascii()
    assert "  x no store is registered for" in done.out
    assert "geheim" not in done.out + done.err
    assert "This machine does not record correctly: 2 problems" in done.out.splitlines()[-1]


def test_the_file_system_of_a_folder_is_that_of_its_deepest_mount(tmp_path: Path) -> None:
    inside = tmp_path / "a b" / "c"
    inside.mkdir(parents=True)
    octal = str(tmp_path / "a b").replace(" ", r"\040")
    mounts = f"/dev/vda / ext4 rw 0 0\nserver:/x {octal} nfs4 rw 0 0\nodd\ntmpfs {tmp_path}/a tmpfs rw 0 0\n"
    assert file_system(inside, mounts) == ("nfs4", str(tmp_path / "a b"))
    assert file_system(tmp_path, mounts) == ("ext4", "/")
    assert file_system(tmp_path, "") == ("", "")


async def add_late_span(path: Path) -> str:
    async with open_store(f"sqlite:///{path}") as store:
        started = await store.start_rollout("task")
        account = account_of(started, new_writer_id(1), late=2, unattributed=1, closed=True)
        await store.add_many_spans([], accounts=[account])
        return started.rollout_id


def test_spans_of_no_attempt_are_found_in_the_store(tmp_path: Path) -> None:
    path = tmp_path / "agentlightning.db"
    asyncio.run(add_whole_rollout(path))
    meant = subject(f"sqlite:///{path}")
    assert [finding.level for finding in places(meant)] == ["ok"]
    rollout_id = asyncio.run(add_late_span(path))
    (found,) = places(meant)
    assert found.level == "warn"
    assert "1 may lack spans that belong to no attempt: 2 started after" in found.sentence
    assert f"agl explain {rollout_id}" in found.cure
    assert list(places(subject(f"sqlite:///{tmp_path}/other.db"))) == []
    assert not (tmp_path / "other.db").exists()


async def add_whole_rollout(path: Path) -> None:
    async with open_store(f"sqlite:///{path}") as store:
        await store.add_span(span_of(await store.start_rollout("task")))
