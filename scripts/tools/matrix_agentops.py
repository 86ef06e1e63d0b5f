"""Run tests/agentops/matrix_cell.py with every combination of releases; see scripts/matrix-agentops.

Then tests/agentops/client_cell.py with every release of agentops: a session of its own with the local server. One line
per cell on stdout as it ends, and as JSON beside ``docs/reference/agentops.md`` with ``--page``. Only the standard
library and ``uv`` are needed here.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

ROOT = Path(__file__).resolve().parents[2]
LOCKS = ROOT / "scripts" / "locks"
PAGES = ROOT / "docs" / "reference"
CELL_SECONDS = 1800  # only ends what hangs

AGENTOPS = ("0.3.26", "0.4.9", "0.4.13", "0.4.14", "0.4.15", "0.4.16", "0.4.18", "0.4.19", "0.4.21", "none")
OPENTELEMETRY = {
    "1.35": ("1.35.0", "0.56b0"),  # the oldest that we support; each of these agentops admits older ones
    "1.44": ("1.44.0", "0.65b0"),  # the last before the exporter lost what agentops 0.4.19 uses
    "newest": None,
}
OPENAI = {
    "1.40": ("openai==1.40.*", "httpx<0.28"),  # it hands httpx an argument that 0.28 does not have
    "2.x": ("openai>=2,<3",),
    "newest": ("openai",),
}
CORNERS = (
    ("0.3.26", "1.35", "1.40"),
    ("0.4.9", "1.35", "1.40"),
    ("0.4.15", "1.44", "2.x"),
    ("none", "newest", "newest"),
)
"""The main environment has the newest of all three; tests/agentops runs there."""

CLIENTS = (
    *(f"0.2.{patch}" for patch in (0, 1, 2, 3, 5, 6)),
    *(f"0.3.{patch}" for patch in (0, 2, 4, 6, 7, *range(9, 19), 21, *range(23, 27))),
    *(f"0.4.{patch}" for patch in range(2, 22)),
)
"""Every release on PyPI."""
UNDECLARED = {"0.3.6": "pyyaml", "0.3.7": "pyyaml", "0.3.9": "pyyaml", "0.4.7": "openai-agents"}
"""What a release cannot be imported without, and does not ask for."""
CLIENT_CORNERS = ("0.2.6", "0.3.18")
"""Beside those of ``CORNERS``."""


@dataclass(frozen=True)
class Cell:
    """One combination."""

    agentops: str
    opentelemetry: str
    openai: str

    script: ClassVar[str] = "matrix_cell.py"

    @property
    def key(self) -> list[str]:
        """What its results are kept by."""
        return [self.agentops, self.opentelemetry, self.openai]

    @property
    def name(self) -> str:
        """For people, and for ``--only``."""
        return f"agentops-{self.agentops}/opentelemetry-{self.opentelemetry}/openai-{self.openai}"

    @property
    def lock(self) -> str:
        """The lock of its environment, if it has one."""
        return f"agentops-{self.agentops}-{self.opentelemetry}-{self.openai}"

    @property
    def folder(self) -> Path:
        """Its environment."""
        return ROOT / f".venv-{self.lock}"

    def arguments(self, *, small: bool) -> list[str]:
        """What its script is told."""
        return ["--small"] if small else []

    def requirements(self) -> list[str]:
        """What is installed beside the project itself."""
        found = list(OPENAI[self.openai])
        if self.agentops != "none":
            found.append(f"agentops=={self.agentops}")
        versions = OPENTELEMETRY[self.opentelemetry]
        stable, beta = (f"=={versions[0]}", f"=={versions[1]}") if versions else ("", "")
        found += [f"opentelemetry-{name}{stable}" for name in ("api", "sdk", "exporter-otlp-proto-http")]
        found += [f"opentelemetry-{name}{beta}" for name in ("instrumentation", "instrumentation-threading")]
        return found


@dataclass(frozen=True)
class Client:
    """A release of agentops that talks to the local server by itself; its neighbours are of its own time."""

    agentops: str
    home: Cell | None = None
    """Whose environment it uses; one of its own, if nobody's."""

    script: ClassVar[str] = "client_cell.py"

    @property
    def key(self) -> list[str]:
        """What its results are kept by."""
        return [self.agentops]

    @property
    def name(self) -> str:
        """For people, and for ``--only``."""
        return f"agentops-{self.agentops}/client"

    @property
    def lock(self) -> str:
        """The lock of its environment, if it has one."""
        return self.home.lock if self.home else f"agentops-client-{self.agentops}"

    @property
    def folder(self) -> Path:
        """Its environment."""
        return ROOT / f".venv-{self.lock}"

    def arguments(self, *, small: bool) -> list[str]:  # noqa: ARG002 - a session has no shorter form
        """What its script is told."""
        return []

    def requirements(self) -> list[str]:
        """What is installed beside the project itself."""
        if self.home:
            return self.home.requirements()
        modern = self.agentops.startswith("0.4.")
        # With a newer OpenTelemetry the last releases of agentops export nothing.
        found = Cell(self.agentops, "1.44", "2.x" if modern else "1.40").requirements()
        return [*found, *filter(None, [UNDECLARED.get(self.agentops)])]


def cells(only: str, *, small: bool) -> Iterator[Cell]:
    """Yield the cells to run."""
    every = (Cell(a, t, o) for a in AGENTOPS for t in OPENTELEMETRY for o in OPENAI)
    for cell in (Cell(*corner) for corner in CORNERS) if small else every:
        if only in f"{cell.name}/":
            yield cell


def clients(only: str, *, small: bool) -> Iterator[Client]:
    """Yield the clients to run; those of the short run use the environments of its cells where they can."""
    corners = {corner[0]: Cell(*corner) for corner in CORNERS if corner[0] != "none"}
    every = (Client(release) for release in CLIENTS)
    short = (Client(release, corners.get(release)) for release in (*CLIENT_CORNERS, *corners))
    for client in short if small else every:
        if only in client.name:
            yield client


def install(cell: Cell | Client) -> None:
    """Make the environment from its lock; without one, of what the day of the locks had. Nothing if it is there."""
    pins = LOCKS / f"{cell.lock}.txt"
    locked = pins.read_text(encoding="utf-8") if pins.exists() else f"{locked_on()} {cell.requirements()}"
    wanted = f"{locked}{(ROOT / 'pyproject.toml').read_text(encoding='utf-8')}"
    mark = cell.folder / ".installed"
    with (ROOT / "pyproject.toml").open(encoding="utf-8") as lock:  # the lock of scripts/_venv.sh
        fcntl.flock(lock, fcntl.LOCK_EX)
        if mark.exists() and mark.read_text(encoding="utf-8") == wanted:
            return
        uv("venv", "--clear", "--python", sys.executable, str(cell.folder))
        into = ("--python", str(cell.folder / "bin" / "python"))
        build = ("--build-constraints", str(LOCKS / "build.txt"))
        if pins.exists():
            uv("pip", "sync", *into, "--require-hashes", str(pins))
            uv("pip", "install", *into, *build, "--no-deps", "-e", ".")
        else:
            uv(
                "pip",
                "install",
                *into,
                *build,
                "--exclude-newer",
                locked_on(),
                "-e",
                ".",
                *cell.requirements(),
            )
        mark.write_text(wanted, encoding="utf-8")


def locked_on() -> str:
    """Return the day of which the locks are."""
    found = re.search(r"\d{4}-\d\d-\d\d", (LOCKS / "test.txt").read_text(encoding="utf-8"))
    assert found is not None
    return found[0]


def uv(*arguments: str) -> None:
    """Run uv; its words are in the error."""
    ran = subprocess.run(["uv", "-q", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise RuntimeError(f"uv {' '.join(arguments)}: {ran.stderr.strip()}")


def run(cell: Cell | Client, *, keep: bool, small: bool) -> dict[str, object]:
    """Return what came of a cell; one of the short run that cannot be installed says so, and fails nothing."""
    key = {"cell": cell.key}
    try:
        install(cell)
    except RuntimeError as error:
        return {
            **key,
            "verdict": "not installed" if small else "failed",
            "problems": [str(error)],
            "notes": [],
        }
    try:
        ran = subprocess.run(
            [
                cell.folder / "bin" / "python",
                ROOT / "tests" / "agentops" / cell.script,
                *cell.arguments(small=small),
            ],
            capture_output=True,
            text=True,
            timeout=CELL_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        return {**key, "verdict": "failed", "problems": [str(error)], "notes": []}
    finally:
        if not keep:
            shutil.rmtree(cell.folder, ignore_errors=True)
    lines = ran.stdout.splitlines()
    if lines:
        return {**key, **json.loads(lines[-1])}
    why = f"exit status {ran.returncode}: {ran.stderr[-1000:]}"
    return {**key, "verdict": "failed", "problems": [why], "notes": []}


def keep_results(path: Path, found: list[dict[str, object]], every: list[list[str]]) -> None:
    """Write results over those of earlier runs of the same cells, in the order of ``every``."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    known = {str(told["cell"]): told for told in [*map(json.loads, lines), *found]}
    # How long a cell takes is no fact of its releases.
    ordered = [
        {name: value for name, value in known[str(key)].items() if name != "seconds"}
        for key in every
        if str(key) in known
    ]
    path.write_text("".join(json.dumps(told) + "\n" for told in ordered), encoding="utf-8")


def run_all(chosen: Sequence[Cell | Client], asked: argparse.Namespace) -> Iterator[dict[str, object]]:
    """Yield what came of each, in order, and print it."""
    with ThreadPoolExecutor(asked.jobs) as pool:
        results = pool.map(lambda cell: run(cell, keep=asked.keep or asked.small, small=asked.small), chosen)
        for cell, told in zip(chosen, results, strict=True):
            print(cell.name, told["verdict"], told.get("seconds", ""), flush=True)
            for problem in told["problems"]:  # type: ignore[attr-defined]
                print(f"    {problem}", flush=True)
            yield told


def install_all(chosen: Sequence[Cell | Client]) -> int:
    """Make the environments; return 1 if one cannot be made."""
    failed = 0
    for cell in chosen:
        try:
            install(cell)
        except RuntimeError as error:
            print(f"{cell.name} {error}", file=sys.stderr, flush=True)
            failed = 1
    return failed


def main() -> int:
    """Run the cells; return 1 if one fails."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--small", action="store_true", help="only the corners")
    parser.add_argument("--install", action="store_true", help="only make the environments")
    parser.add_argument("--clients", action="store_true", help="only the sessions with the local server")
    parser.add_argument("--page", action="store_true", help="keep the results for the documentation")
    parser.add_argument("--keep", action="store_true", help="keep the environments")
    parser.add_argument("--only", default="", help="cells whose names contain this")
    parser.add_argument("--jobs", type=int, default=2, help="cells at once")
    asked = parser.parse_args()
    combinations = [] if asked.clients else list(cells(asked.only, small=asked.small))
    sessions = list(clients(asked.only, small=asked.small))
    if asked.install:
        return install_all([*combinations, *sessions])
    failed = False
    for chosen, page, every in (
        (combinations, "agentops-matrix", [cell.key for cell in cells("", small=False)]),
        (sessions, "agentops-clients", [client.key for client in clients("", small=False)]),
    ):
        found = []
        for told in run_all(chosen, asked):
            found.append(told)
            failed = failed or told["verdict"] == "failed"
            if asked.page:
                keep_results(PAGES / f"{page}.jsonl", found, every)
    if asked.page:
        subprocess.run([ROOT / "scripts" / "docs"], check=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
