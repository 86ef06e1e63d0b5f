"""Write ``scripts/locks``: for each environment that a script makes, the releases and their hashes.

``ENVIRONMENTS`` is the one table of what is installed where; scripts name an environment and install its lock. A lock
holds for every Python and platform that we support, and what it resolves to is the newest of the day that it is
written. Only the standard library and ``uv`` are needed here.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from matrix_agentops import CLIENT_CORNERS, CORNERS, Cell, Client

ROOT = Path(__file__).resolve().parents[2]
LOCKS = ROOT / "scripts" / "locks"
OLDEST_PYTHON = "3.11"

CUDA = re.compile(r"nvidia-(?!ml-py$)|cuda-|triton$")
"""What torch needs beside it on Linux, unless it is the build for CPUs: it has a lock of its own. ``nvidia-ml-py``
is not of torch: Agent Lightning 0.3.0 does not start without it."""

_PEERS_BESIDE = ("opentelemetry-sdk<1.45", "openai<3", "fastapi<0.163", "setuptools<81")
_TORCH = "torch==2.13.0"
_TRAINER_TESTS = ("pytest", "pytest-asyncio", "pytest-timeout", "hypothesis")
_OPENAI_TESTS = (*_TRAINER_TESTS, "pytest-xdist", "psutil")
_FRAMEWORK_TESTS = (*_TRAINER_TESTS, "agentops==0.4.21")
_SKYRL_IMPORTS = (
    "ray",
    "aiohttp",
    "loguru",
    "omegaconf",
    "hydra-core",
    "tensordict",
    "torchdata",
    "jaxtyping",
    "polars",
)
_PYDANTIC = ("pydantic", "pydantic-core", "annotated-types", "typing-extensions", "typing-inspection")
_SHARED_FRAMEWORKS = ("openai", "langchain", "langchain-openai", "langgraph", "openai-agents", "litellm")
_OLDEST_OTEL = (
    *(f"opentelemetry-{name}==1.35.0" for name in ("api", "sdk", "exporter-otlp-proto-http")),
    *(f"opentelemetry-{name}==0.56b0" for name in ("semantic-conventions", "instrumentation")),
    *(f"opentelemetry-{name}==0.56b0" for name in ("instrumentation-threading", "distro")),
)
_NEWEST_OTEL = tuple(
    f"opentelemetry-{name}"
    for name in (
        *("api", "sdk", "exporter-otlp-proto-http", "exporter-otlp-proto-common", "proto"),
        *("semantic-conventions", "instrumentation", "instrumentation-threading", "distro"),
    )
)


@dataclass(frozen=True)
class Environment:
    """What stands in a lock.

    Args:
        wanted: Requirements beside those of the project.
        extras: Of the project.
        project: Whether the project is installed there, and its dependencies with it.
        like: Another lock whose releases this one has, where both have the same package.
        alone: Without the dependencies of ``wanted``.
    """

    wanted: tuple[str, ...] = ()
    extras: tuple[str, ...] = ()
    project: bool = True
    like: str | None = None
    alone: bool = False


_CELLS: tuple[Cell | Client, ...] = (
    *(Cell(*corner) for corner in CORNERS),
    *(Client(release) for release in CLIENT_CORNERS),
)

ENVIRONMENTS: dict[str, Environment] = {
    "tools": Environment(("uv",), project=False),
    # What builds the project itself, which stands in no lock: it is installed as it lies here.
    "build": Environment(("hatchling>=1.26", "editables>=0.5"), project=False),
    "test": Environment(("pip",), ("test", "check")),
    "quickstart": Environment(extras=("quickstart",), like="test"),
    # The trainers.
    "tinker": Environment(_TRAINER_TESTS, ("tinker",)),
    "verifiers": Environment(_TRAINER_TESTS, ("verifiers",)),
    "trl": Environment((*_TRAINER_TESTS, _TORCH), ("trl", "datasets")),
    "openenv": Environment((*_TRAINER_TESTS, _TORCH, "openenv>=0.10,<0.11"), ("trl",)),
    "verl": Environment((*_TRAINER_TESTS, _TORCH), ("verl",)),
    # Of its extra "skyrl-train" what its data and advantages import: the whole of it brings vLLM and CUDA.
    "skyrl": Environment((*_TRAINER_TESTS, _TORCH, "skyrl==0.3.0", "skyrl-gym==0.4.0", *_SKYRL_IMPORTS)),
    "skyrl-tx": Environment((*_TRAINER_TESTS, _TORCH, f"-r {ROOT}/examples/tinker_skyrl/requirements.txt")),
    "cuda": Environment((_TORCH,), project=False),
    # The matrices. openai 1.40 hands httpx an argument that httpx 0.28 does not have.
    "openai-1.40": Environment((*_OPENAI_TESTS, "openai==1.40.*", "httpx<0.28")),
    "openai-1.x": Environment((*_OPENAI_TESTS, "openai>=1,<2")),
    "openai-2.x": Environment((*_OPENAI_TESTS, "openai>=2,<3", "aiohttp")),
    "openai-3.x": Environment((*_OPENAI_TESTS, "openai>=3,<4", "aiohttp")),
    "otel-oldest": Environment(("pip", *_OLDEST_OTEL), ("test",)),
    # The instrumentation packages often pin a semantic-conventions release that is older than the newest SDK's, which
    # would make the resolver pick ancient ones; so each piece goes over the lock "test" at its newest.
    "otel-newest": Environment(_NEWEST_OTEL, project=False, alone=True),
    "frameworks": Environment(
        (*_FRAMEWORK_TESTS, "opentelemetry-exporter-otlp-proto-http", *_SHARED_FRAMEWORKS)
    ),
    # README's way from nothing to training rows.
    "first-hour": Environment(("langgraph", "langchain-openai"), ("parquet",), like="frameworks"),
    "frameworks-agno": Environment((*_FRAMEWORK_TESTS, "agno", "openai")),
    # 1.0 is another library, without the module that AgentOps knows.
    "frameworks-ag2": Environment((*_FRAMEWORK_TESTS, "ag2[openai]<1")),
    "frameworks-autogen": Environment((*_FRAMEWORK_TESTS, "autogen-agentchat", "autogen-ext[openai]")),
    "frameworks-crewai": Environment((*_FRAMEWORK_TESTS, "crewai")),
    # Unbounded, the resolver takes an old ADK for a newer OpenTelemetry.
    "frameworks-google-adk": Environment((*_FRAMEWORK_TESTS, "google-adk>=2", "litellm", "mcp")),
    "frameworks-haystack": Environment((*_FRAMEWORK_TESTS, "haystack-ai")),
    "frameworks-smolagents": Environment((*_FRAMEWORK_TESTS, "smolagents[openai]")),
    # Observability SDKs that share a process with ours; and two viewers that are started as users start them.
    "viewers": Environment((*_TRAINER_TESTS, "langfuse", "logfire", "arize-phoenix-otel"), ("pytest",)),
    "viewers-phoenix": Environment(("arize-phoenix",), project=False),
    "viewers-mlflow": Environment(("mlflow",), project=False),
    # Harbor's models of ATIF alone, and what they need: all that harbor brings beside them is 114 packages.
    "harbor": Environment(
        ("harbor==0.26.0; python_version >= '3.12'", *_PYDANTIC), project=False, like="test", alone=True
    ),
    # The releases beside which scripts/bench measures. What a fresh install brings beyond these breaks both: their
    # exporter writes to a private field that OpenTelemetry 1.45 moved, a server imports pkg_resources, and newer
    # releases of FastAPI and openai change what they patch.
    "peer-0.3.0": Environment(("agentlightning==0.3.0", *_PEERS_BESIDE), project=False),
    # The newest agentops that it takes: the one that our own environment has.
    "peer-0.2.2": Environment(("agentlightning==0.2.2", "agentops==0.4.21", *_PEERS_BESIDE), project=False),
    **{cell.lock: Environment(tuple(cell.requirements())) for cell in _CELLS},
}
"""Name → what its lock holds; ``scripts/locks/NAME.txt``."""


def compiled(name: str, uv: str) -> str:
    """Return a lock, resolved now.

    Raises:
        RuntimeError: There is no solution; the words of uv are in the message.
    """
    environment = ENVIRONMENTS[name]
    command = [uv, "pip", "compile", "-q", "--generate-hashes", "--no-header", "--annotation-style", "line"]
    command += ["--universal", "--python-version", OLDEST_PYTHON]
    command += ["--no-deps"] if environment.alone else []
    if environment.project:
        command += ["pyproject.toml", *(f"--extra={extra}" for extra in environment.extras)]
    if environment.like:
        command += ["-c", str(LOCKS / f"{environment.like}.txt")]
    with tempfile.TemporaryDirectory() as folder:
        wanted = Path(folder) / "wanted.in"
        wanted.write_text("\n".join(environment.wanted), encoding="utf-8")
        ran = subprocess.run([*command, str(wanted)], cwd=ROOT, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise RuntimeError(f"{name} has no solution: {ran.stderr.strip()}")
    return re.sub(r"-r \S*wanted\.in", "scripts/tools/lock.py", ran.stdout)


def blocks(lock: str) -> Iterator[tuple[str, str, str]]:
    """Yield (name, version, text) of each release in a lock."""
    for text in re.split(r"(?m)^(?=[a-zA-Z0-9])", lock):
        found = re.match(r"([\w.-]+)==([^\s;]+)", text)
        if found:
            yield found[1], found[2], text


def finished(name: str, lock: str, before: str) -> str:
    """Return a lock with a header, parted from CUDA, and with the hashes of torch's builds for CPUs.

    Those are in no index that is asked: they lie in a folder that ``PIP_FIND_LINKS`` names, or the lock before has
    them of the same release.
    """
    known = {(package, version): re.findall(r"sha256:\w+", text) for package, version, text in blocks(before)}
    kept = []
    for package, version, text in blocks(lock):
        if bool(CUDA.match(package)) == (name == "cuda"):
            more = (
                [*known.get((package, version), ()), *found_here(package, version)]
                if package == "torch"
                else []
            )
            kept.append(with_hashes(text, [each for each in dict.fromkeys(more) if each not in text]))
    day = datetime.now(UTC).date().isoformat()
    return f"# Written by scripts/lock on {day}; scripts/tools/lock.py says what for.\n{''.join(kept)}"


def found_here(package: str, version: str) -> Iterator[str]:
    """Yield the hashes of the wheels of a release that lie in the folder of ``PIP_FIND_LINKS``."""
    for folder in os.environ.get("PIP_FIND_LINKS", "").split():
        for wheel in sorted(Path(folder).glob(f"{package}-{version}+*.whl")):
            with wheel.open("rb") as file:
                yield f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def with_hashes(text: str, more: Sequence[str]) -> str:
    """Return the block of a release with more hashes before those that it has."""
    return (
        text.replace(" \\\n", "".join(f" \\\n    --hash={digest}" for digest in more) + " \\\n", 1)
        if more
        else text
    )


def write(name: str, *, keep: bool) -> str:
    """Write a lock, or only look with ``keep``; return what has changed, for people."""
    path = LOCKS / f"{name}.txt"
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    lock = finished(name, compiled(name, os.environ.get("UV", "uv")), before)
    if not keep and before.partition("\n")[2] != lock.partition("\n")[2]:
        path.write_text(lock, encoding="utf-8")
    old, new = (dict(releases(each)) for each in (before, lock))
    changed = [
        f"{package} {old.get(package, 'none')} -> {new.get(package, 'none')}"
        for package in sorted(old.keys() | new.keys())
        if old.get(package) != new.get(package)
    ]
    return f"{name}: {len(new)} packages, {len(changed)} changed\n" + "".join(
        f"  {each}\n" for each in changed
    )


def releases(lock: str) -> Iterator[tuple[str, str]]:
    """Yield (package, its versions): of some there is another one for newer versions of Python."""
    found: dict[str, list[str]] = {}
    for package, version, _ in blocks(lock):
        found.setdefault(package, []).append(version)
    for package, versions in found.items():
        yield package, " and ".join(versions)


def main() -> int:
    """Write the locks; return 1 if one has no solution."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", help="environments; default: all")
    parser.add_argument("--drift", action="store_true", help="write nothing: only say what is newer by now")
    asked = parser.parse_args()
    names = asked.names or list(ENVIRONMENTS)
    unknown = sorted(set(names) - ENVIRONMENTS.keys())
    if unknown:
        parser.error(f"no environment is called {', '.join(unknown)}; there are {', '.join(ENVIRONMENTS)}")
    LOCKS.mkdir(exist_ok=True)
    failed = False

    def one(name: str) -> str:
        nonlocal failed
        try:
            return write(name, keep=asked.drift)
        except RuntimeError as error:
            failed = True
            return f"{error}\n"

    first = [name for name in names if not ENVIRONMENTS[name].like]
    with ThreadPoolExecutor(4) as pool:
        for some in (first, [name for name in names if name not in first]):
            for told in pool.map(one, some):
                print(told, end="", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
