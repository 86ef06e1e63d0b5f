"""Check and build a release, and try what was built as a stranger would; nothing is uploaded.

In this order: the version and its section of the changelog, a wheel and a source distribution, what is in them, and
each of them in an empty environment, without extras and with each one. ``INSTALLS`` is the one table of extras: what
each is for, and a program that shows that it does something. ``--close`` comes before all of it: it raises the version
and gives what is unreleased its name and day.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path

from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
DIST = ROOT / "dist"
SIZES = ROOT / "docs" / "reference" / "install.jsonl"
"""What the newest ``--sizes`` has measured; scripts/docs makes the table of it."""

NAME = "agentlightning-otel"
WHEEL = re.compile(r"agentlightning(_otel-[^/]+\.dist-info)?/")
SDIST = re.compile(
    r"[^/]+/(agentlightning/|docs/|examples/|README\.md$|CHANGELOG\.md$|LICENSE$|pyproject\.toml$|PKG-INFO$|\.gitignore$)"
)
NEVER = re.compile(r"__pycache__|\.pyc$|\.db(-\w+)?$|\.spool/|\.env$|^[^/]+/docs/api/|node_modules")

FIRST_ROLLOUT = ROOT / "docs" / "tutorial" / "first-rollout.md"
README = ROOT / "README.md"


@dataclass(frozen=True)
class Install:
    """What an extra is for, and the shortest program that needs it."""

    purpose: str
    program: str


INSTALLS: dict[str, Install] = {
    "": Install(
        "the recorder, both stores, rows and exporters, `agl`, the local AgentOps server",
        "import agentlightning as a; a.OtelTracer, a.SqliteLightningStore, a.build_rows",
    ),
    "parquet": Install("`agl export --format parquet`", "import pyarrow.parquet"),
    "otlp": Install(
        "`agl export --to otlp`, and protobuf in the local AgentOps server",
        "import agentlightning.exporters.otlp, opentelemetry.proto.trace.v1.trace_pb2",
    ),
    "pytest": Install("the fixtures, and clients of `openai` for them", "import pytest, openai"),
    "agentops": Install("agents that use AgentOps", "import agentops"),
    "tinker": Install("rows for Tinker", "import agentlightning.exporters.tinker, tinker, numpy"),
    "verifiers": Install(
        "rows for verifiers and prime-rl", "import agentlightning.exporters.verifiers, verifiers"
    ),
    "datasets": Install(
        "sets for supervised and preference training", "import agentlightning.exporters.sft, datasets"
    ),
    "trl": Install("rows for TRL, `agl verify`", "import agentlightning.exporters.trl, trl, torch"),
    "verl": Install("rows for verl", "import agentlightning.exporters.verl, verl, torch"),
    "mcp": Install("the example of an agent with tools over MCP", "import mcp"),
    "quickstart": Install("`scripts/quickstart`", "import numpy, openai, matplotlib"),
    "docs": Install("`scripts/docs --site`", "import sphinx, furo, myst_parser"),
    "check": Install("`scripts/check`", "import mypy, importlinter, sphinx"),
    "test": Install("`scripts/test`", "import hypothesis, xdist, aiohttp, trio"),
}
"""Extra → what it brings; "" is none."""


VERSION = r"\d+\.\d+\.\d+(?:(?:a|b|rc)\d+)?"


class Wrong(Exception):
    """Something that must be put right before a release."""


def version_of(root: Path = ROOT) -> str:
    """Return the version, which stands in ``agentlightning/__init__.py`` and nowhere else."""
    text = (root / "agentlightning" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(rf'^__version__ = "({VERSION})"$', text, re.MULTILINE)
    if not found:
        raise Wrong('agentlightning/__init__.py has no line __version__ = "1.2.3"')
    return found[1]


def check_changelog(text: str, version: str) -> None:
    """Refuse a changelog whose newest section is not that of the version, dated, and with something in it."""
    sections = re.findall(r"(?m)^## (.+)\n((?:(?!## ).*\n?)*)", text)
    named = [(title, body) for title, body in sections if title != "Unreleased"]
    if not named or named[0][0].split(" ")[0] != version:
        newest = f"the newest one is {named[0][0]!r}" if named else "there is only what is unreleased"
        raise Wrong(
            f"CHANGELOG.md has no section '## {version} - {datetime.now(UTC).date().isoformat()}': {newest}"
        )
    title, body = named[0]
    day = title.removeprefix(f"{version} - ")
    try:
        date.fromisoformat(day)
    except ValueError:
        raise Wrong(f"CHANGELOG.md: '## {title}' should be '## {version} - YEAR-MONTH-DAY'") from None
    if "- " not in body:
        raise Wrong(f"CHANGELOG.md says nothing about {version}")
    waiting = next((body for title, body in sections if title == "Unreleased"), "")
    if "- " in waiting:
        raise Wrong(f"CHANGELOG.md has lines under Unreleased, which are not of {version}")


def close(version: str, root: Path = ROOT) -> None:
    """Raise the version, and make the section of what is unreleased that of the version, dated today.

    Raises:
        Wrong: It is no version, it is not newer than the one that stands there, or nothing is unreleased.
    """
    if not re.fullmatch(VERSION, version):
        raise Wrong(f"{version} is no version such as 1.2.3 or 1.2.3rc1")
    before = version_of(root)
    if Version(version) <= Version(before):
        raise Wrong(f"{version} is not newer than {before}")
    changelog, module = root / "CHANGELOG.md", root / "agentlightning" / "__init__.py"
    title = f"## {version} - {datetime.now(UTC).date().isoformat()}"
    closed = changelog.read_text(encoding="utf-8").replace(
        "## Unreleased\n", f"## Unreleased\n\n{title}\n", 1
    )
    check_changelog(closed, version)
    changelog.write_text(closed, encoding="utf-8")
    text = module.read_text(encoding="utf-8")
    module.write_text(
        text.replace(f'__version__ = "{before}"', f'__version__ = "{version}"', 1), encoding="utf-8"
    )


def check_tag(version: str) -> None:
    """Refuse a version that was released, and a tree that differs from its commit."""
    if told("git", "tag", "--list", f"v{version}"):
        raise Wrong(
            f"v{version} is released; the next one begins with scripts/release --close and its version"
        )
    if changed := told("git", "status", "--porcelain"):
        raise Wrong(f"what is built must be committed:\n{changed}")


def check_names(names: Iterable[str], allowed: re.Pattern[str]) -> None:
    """Refuse a distribution that holds what it should not."""
    odd = [name for name in names if NEVER.search(name) or not allowed.match(name)]
    if odd:
        raise Wrong(f"{len(odd)} files should not be distributed: {', '.join(odd[:10])}")


def told(*command: str) -> str:
    """Return what a command prints."""
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def build(version: str, folder: Path) -> tuple[Path, Path]:
    """Build both files with the locked tools, the wheel from the source distribution, and look into them."""
    uv = os.environ["UV"]
    locked = ("--build-constraints", str(ROOT / "scripts" / "locks" / "build.txt"))
    done = subprocess.run(
        [uv, "build", "-q", *locked, "--out-dir", str(folder), str(ROOT)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise Wrong(f"nothing was built: {done.stderr.strip()}")
    stem = f"{NAME.replace('-', '_')}-{version}"
    wheel, sdist = folder / f"{stem}-py3-none-any.whl", folder / f"{stem}.tar.gz"
    with zipfile.ZipFile(wheel) as archive:
        check_names(archive.namelist(), WHEEL)
    with tarfile.open(sdist) as archive:
        check_names(archive.getnames(), SDIST)
    return wheel, sdist


class Place:
    """An empty environment, in which one file is installed as a stranger would."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bin = folder / "venv" / "bin"
        environ = {
            name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "AGL_"))
        }
        self.environ = {**environ, "PATH": f"{self.bin}{os.pathsep}{environ['PATH']}"}
        self.run(os.environ["UV"], "venv", "-q", "--python", sys.executable, str(folder / "venv"))

    def run(self, *command: str) -> str:
        """Run a command in the folder and return its output.

        Raises:
            Wrong: It failed.
        """
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self.environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode:
            raise Wrong(f"{' '.join(command)}\n{done.stdout.strip()}")
        return done.stdout

    def install(self, file: Path, extra: str) -> None:
        """Install the newest of what the file asks for; torch from a folder that ``PIP_FIND_LINKS`` names, if any."""
        links = os.environ.get("PIP_FIND_LINKS", "").split()
        more = [f"--find-links={link}" for link in links]
        more += [f"torch=={version}" for version in local_torch(links) if extra in {"trl", "verl"}]
        wanted = f"{NAME}[{extra}] @ {file.as_uri()}" if extra else f"{NAME} @ {file.as_uri()}"
        uv, python = os.environ["UV"], str(self.bin / "python")
        self.run(uv, "pip", "install", "-q", "--python", python, wanted, *more)

    def try_out(self, extra: str) -> None:
        """Use what is installed: imports, both commands, the machine's check, the first rollout, the README's test."""
        python = str(self.bin / "python")
        self.run(python, "-W", "ignore", "-c", INSTALLS[extra].program)
        self.run("agentops-server", "--help")
        self.run("agl", "doctor")
        self.run(python, self.keep(FIRST_ROLLOUT, "first.py"))
        self.run("agl", "show")
        if extra in {"pytest", "test"}:
            self.run(python, "-m", "pytest", "-q", self.keep(README, "test_capital.py"))

    def keep(self, page: Path, name: str) -> str:
        """Write the program that a page publishes under this name into the folder, and return its path."""
        path = self.folder / name
        path.write_text(published(page, name), encoding="utf-8")
        return str(path)

    def size(self) -> tuple[int, int]:
        """Return the number of distributions and their bytes, as they are unpacked, without bytecode."""
        (packages,) = (self.folder / "venv" / "lib").glob("python*/site-packages")
        files = [path for path in packages.rglob("*") if path.is_file() and path.suffix != ".pyc"]
        return len(list(packages.glob("*.dist-info"))), sum(path.stat().st_size for path in files)


def published(page: Path, name: str) -> str:
    """Return the block of a page that is marked ``file=name``."""
    block = rf"^```python file={re.escape(name)}\n(.*?)^```$"
    found = re.search(block, page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    if not found:
        raise Wrong(f"{page.relative_to(ROOT)} has no block 'file={name}'")
    return found[1]


def local_torch(links: Iterable[str]) -> Iterator[str]:
    """Yield the version of the wheel of torch for this Python that lies in one of the folders."""
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    for link in links:
        for path in Path(link).glob(f"torch-*-{tag}-*.whl"):
            yield path.name.split("-")[1]
            return


def tried(files: Iterable[Path], extras: Iterable[str]) -> Iterator[dict[str, object]]:
    """Install each file with each extra, try it, and yield what each of the last file's took."""
    for file in files:
        for extra in extras:
            began = datetime.now(UTC)
            with tempfile.TemporaryDirectory(prefix="release-") as folder:
                place = Place(Path(folder))
                place.install(file, extra)
                distributions, size = place.size()
                place.try_out(extra)
            seconds = round((datetime.now(UTC) - began).total_seconds())
            megabytes = round(size / 1e6, 1 if size < 1e8 else 0)
            kind = "wheel" if file.suffix == ".whl" else "sdist"
            print(
                f"{kind}[{extra}]: {distributions} distributions, {megabytes:g} MB, {seconds} s", flush=True
            )
            if kind == "wheel":
                purpose = INSTALLS[extra].purpose
                yield {
                    "extra": extra,
                    "purpose": purpose,
                    "distributions": distributions,
                    "megabytes": megabytes,
                }


def keep_sizes(found: list[dict[str, object]]) -> None:
    """Write what was measured where scripts/docs finds it."""
    torch = "CPUs" if list(local_torch(os.environ.get("PIP_FIND_LINKS", "").split())) else "CUDA"
    about = {
        "day": datetime.now(UTC).date().isoformat(),
        "machine": f"{platform.system()} {platform.machine()}",
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "torch": torch,
    }
    lines = [json.dumps(each, ensure_ascii=False) + "\n" for each in (about, *found)]
    SIZES.write_text("".join(lines), encoding="utf-8")


NEXT = """
Everything holds. Nothing has been uploaded. What is left to do, by somebody who may:

    git tag --sign v{version} --message '{name} {version}' && git push origin v{version}
    uv publish {wheel} {sdist}

The next release begins with scripts/release --close and its version.
"""


CLOSED = """
agentlightning/__init__.py says {version}, and so does the newest section of CHANGELOG.md. What is next:

    git commit --all --message 'Release {version}' && scripts/release
"""


def main() -> int:
    """Make a release ready; return 1 where something is wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--rehearse",
        action="store_true",
        help="build and try what is here, whatever version and changelog say",
    )
    parser.add_argument(
        "--sizes", action="store_true", help="only the wheel; write docs/reference/install.jsonl"
    )
    parser.add_argument("--extra", action="append", help="only with this one; may be repeated; '' is none")
    parser.add_argument(
        "--close", metavar="VERSION", help="only raise the version and close the changelog's section"
    )
    asked = parser.parse_args()
    extras = asked.extra or list(INSTALLS)
    if unknown := sorted(set(extras) - INSTALLS.keys()):
        parser.error(f"there is no extra {', '.join(unknown)}")
    try:
        if asked.close:
            close(asked.close)
            print(CLOSED.format(version=asked.close))
            return 0
        version = version_of()
        if not (asked.rehearse or asked.sizes):
            check_tag(version)
            check_changelog((ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), version)
        wheel, sdist = build(version, DIST)
        print(f"built {wheel.relative_to(ROOT)} and {sdist.relative_to(ROOT)}", flush=True)
        found = list(tried((wheel,) if asked.sizes else (wheel, sdist), extras))
    except Wrong as wrong:
        print(f"scripts/release: {wrong}", file=sys.stderr)
        return 1
    if asked.sizes:
        keep_sizes(found)
    elif asked.rehearse:
        print(f"{version} can be built and installed; it has not been made ready for a release")
    else:
        files = {"wheel": wheel.relative_to(ROOT), "sdist": sdist.relative_to(ROOT)}
        print(NEXT.format(version=version, name=NAME, **files))
    return 0


if __name__ == "__main__":
    sys.exit(main())
