"""Python and what is installed: versions, packages that contradict each other, names that two packages own."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement

from ...integrations.agentops.probe import Found, installed_version, probe, version_numbers
from ...integrations.agentops.table import ADVISED, row_of, support
from .finding import Finding, Subject

OLDEST_PYTHON = (3, 11)
OLDEST_OPENTELEMETRY = (1, 35)
OURS = "agentlightning-otel"
OPENTELEMETRY = "opentelemetry-api", "opentelemetry-sdk", "opentelemetry-instrumentation-threading"
CLIENTS = "openai", "httpx", "httpx2", "requests", "urllib3", "aiohttp"
UNWATCHED = "curl_cffi", "pycurl", "niquests", "primp", "rnet"
"""HTTP clients whose calls of models are not captured."""
UVLOOP = (
    "connections that uvloop's event loop makes are not seen: calls through the clients above are captured there, and "
    "a server that another client reaches is not named"
)
GEVENT = (
    "under gevent.monkey.patch_all() the recorder's own threads are greenlets: rollouts may not be started in the "
    "store, and spans of greenlets are unattributed; record in a process that is not patched"
)
UNSEEN = {"uvloop": UVLOOP, "gevent": GEVENT}
"""What is not seen where a library is used."""
TREES = (OURS, *OPENTELEMETRY, "opentelemetry-exporter-otlp-proto-http", "openai", "agentops")
"""Distributions whose requirements are compared with what is installed."""
IMPORTED = "agentlightning", "agentops", "openai", "httpx", "opentelemetry", "sqlite3"
"""Names that a folder of the user's must not take."""


def python(_: Subject) -> Iterator[Finding]:
    """The interpreter."""
    name = f"{platform.python_implementation()} {platform.python_version()}"
    if sys.version_info < OLDEST_PYTHON:
        yield Finding("fail", "python", f"{name} is too old", "install Python 3.11 or later")
    elif sys.implementation.name != "cpython":
        yield Finding("warn", "python", f"{name} is not tested with agentlightning", "use CPython")
    else:
        yield Finding("ok", "python", f"{name}, SQLite {sqlite3.sqlite_version}")


def opentelemetry(_: Subject) -> Iterator[Finding]:
    """OpenTelemetry: new enough, and of one release."""
    versions = {name: installed_version(name) for name in OPENTELEMETRY}
    missing = [name for name, version in versions.items() if version is None]
    if missing:
        sentence = f"{' and '.join(missing)} cannot be found"
        yield Finding("fail", "opentelemetry", sentence, f"pip install {' '.join(missing)}")
        return
    minors = {name: _release(name, version) for name, version in versions.items()}
    named = ", ".join(
        f"{name.removeprefix('opentelemetry-')} {version}" for name, version in versions.items()
    )
    together = f"pip install -U {' '.join(OPENTELEMETRY)}"
    old = [name for name, numbers in minors.items() if numbers < OLDEST_OPENTELEMETRY]
    if old:
        yield Finding("fail", "opentelemetry", f"{named}: releases before 1.35 are not supported", together)
    elif len(set(minors.values())) > 1:
        yield Finding("warn", "opentelemetry", f"{named}: these are of different releases", together)
    else:
        yield Finding("ok", "opentelemetry", f"OpenTelemetry {named}")


def _release(name: str, version: str | None) -> tuple[int, int]:
    """Return the release of the API that a package belongs to; 0.56b0 of the instrumentations goes with 1.35."""
    major, minor, *_ = (*version_numbers(version), 0, 0)
    # Beta packages of one release have numbers of their own: 0.56b0 belongs to 1.35, and they rise together.
    return (1, minor - 21) if major == 0 and "instrumentation" in name else (major, minor)


def clients(_: Subject) -> Iterator[Finding]:
    """The libraries through which agents call models."""
    found = [f"{name} {version}" for name in CLIENTS if (version := installed_version(name))]
    sentence = f"model calls through {', '.join(found) or 'nothing that is installed'}"
    unseen = tuple(what for name, what in UNSEEN.items() if installed_version(name))
    yield Finding("ok", "clients", sentence, details=unseen)
    unwatched = [name for name in UNWATCHED if installed_version(name)]
    if unwatched:
        sentence = f"model calls through {', '.join(unwatched)} are not captured"
        cure = "agl run says which model server was reached and not captured; use one of the clients above"
        yield Finding("warn", "clients", sentence, cure)


def agentops(_: Subject) -> Iterator[Finding]:
    """The row of the table of releases that applies."""
    found = probe()
    known, row = support(found), row_of(found)
    if known.verdict == "refused":
        yield _refused(found, known.sentence)
        return
    caveats = tuple(f"with agentops_managed=False: {each}" for each in known.unmanaged)
    if known.verdict == "absent" or row is None:
        yield Finding("ok", "agentops", known.sentence)
        return
    exporter = installed_version("opentelemetry-exporter-otlp-proto-http") or "not installed"
    sentence = f"agentops {found.version} (row {row.releases!r}, OTLP exporter {exporter}): {known.sentence}"
    yield Finding("ok", "agentops", sentence, details=caveats)


def _refused(found: Found, sentence: str) -> Finding:
    try:
        installed = Path(str(importlib.metadata.distribution("agentops").locate_file("agentops"))).resolve()
    except importlib.metadata.PackageNotFoundError:
        installed = None
    if found.folder is not None and installed != found.folder.resolve():
        sentence = f"{found.folder} answers to the name agentops, and is no agentops that is known here"
        return Finding("fail", "agentops", sentence, f"rename or remove {found.folder}")
    return Finding("fail", "agentops", sentence, f"pip install agentops=={ADVISED}")


def conflicts(_: Subject) -> Iterator[Finding]:
    """Requirements of what records that are not met by what is installed."""
    broken: dict[str, list[str]] = {}
    for name in TREES:
        for text in _requirements(name):
            unmet = _unmet(Requirement(text))
            if unmet:
                broken.setdefault(name, []).append(unmet)
    for name, unmets in broken.items():
        sentence = f"{name} {installed_version(name)} {'; '.join(unmets)}"
        yield Finding("warn", "conflicts", sentence, f"{_update(name)}, and pip check for the rest")
    if not broken:
        yield Finding("ok", "conflicts", "no installed package contradicts another one that records")


def _update(name: str) -> str:
    """Return the command that updates a package; those of OpenTelemetry together, as each needs the others' release."""
    names = {name}
    if name.startswith(_FAMILY):
        installed = (
            str(found.metadata["Name"]).lower().replace("_", "-")
            for found in importlib.metadata.distributions()
        )
        names.update(each for each in installed if each.startswith(_FAMILY))
    return f"pip install -U {' '.join(sorted(names))}"


_FAMILY = "opentelemetry-"


def _requirements(name: str) -> list[str]:
    try:
        return importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
        return []


def _unmet(needed: Requirement) -> str:
    # Not needed on this platform or Python, or only by an extra.
    if needed.marker is not None and not needed.marker.evaluate({"extra": ""}):
        return ""
    version = installed_version(needed.name)
    if version is None:
        return f"needs {needed.name}, which is not installed"
    # pip installs a prerelease where it is asked to; that is no conflict.
    if needed.specifier.contains(version, prereleases=True):
        return ""
    return f"needs {needed.name} {needed.specifier}, but {version} is installed"


def namesakes(_: Subject) -> Iterator[Finding]:
    """Distributions and folders that own a name that we import."""
    # The original distribution has the same import name: pip removes files of the other when one of the two is
    # uninstalled.
    owners = set(importlib.metadata.packages_distributions().get("agentlightning", ())) - {OURS}
    for owner in sorted(owners):
        sentence = f"the distribution {owner!r} also installs the import name 'agentlightning'"
        cure = f"pip uninstall -y {owner} {OURS}, and install {OURS} again as you did before"
        yield Finding("fail", "namesakes", sentence, cure)
    shadows = list(_shadows(Path.cwd()))
    for shadow, real in shadows:
        sentence = f"a program in {shadow.parent} imports {shadow.name} from there, and not {real}"
        yield Finding("warn", "namesakes", sentence, f"rename {shadow}")
    if not owners and not shadows:
        yield Finding("ok", "namesakes", "nothing else answers to the names that are imported")


def _shadows(folder: Path) -> Iterator[tuple[Path, str]]:
    """Yield what in a folder hides an installed package from the programs that are started there."""
    for name in IMPORTED:
        spec = importlib.util.find_spec(name)
        real = Path(spec.origin).resolve() if spec is not None and spec.origin else None
        for shadow in (folder / f"{name}.py", folder / name / "__init__.py"):
            if shadow.is_file() and real is not None and shadow.resolve() != real:
                yield (shadow if shadow.suffix and shadow.stem == name else shadow.parent), str(real)
