"""Which ``agentops`` is installed, without importing it: importing it starts what a user may not want.

Two releases with one version string can differ and one with another can be alike, so what counts is what lies in the
package's folder. The names of the ranges are those of the table in ``docs/reference/agentops.md``.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

Range = Literal["none", "L1", "L2", "L3", "L4", "A1", "A2", "A3", "unknown"]
Version = tuple[int, ...]

_LAYOUT: tuple[tuple[Range, str], ...] = (
    ("A3", "instrumentation/providers/openai"),
    ("A2", "instrumentation/openai/wrappers"),
    ("A1", "sdk/core.py"),
    ("L4", "llms/providers"),
    ("L3", "llms"),
)
"""What only this range and later ones have, newest first."""


@dataclass(frozen=True)
class Found:
    """What a probe found."""

    range: Range
    """``none``: not installed. ``unknown``: a package of this name that looks like no release known."""
    version: str | None = None
    """As the package's metadata says."""
    folder: Path | None = None
    """Where it lies."""

    @property
    def legacy(self) -> bool:
        """Whether it is of the 0.2 and 0.3 lines, which know no OpenTelemetry spans."""
        return self.range in {"L1", "L2", "L3", "L4"}

    @cached_property
    def numbers(self) -> Version:
        """The version's leading numbers, ``(0, 4, 21)``; empty where there is none."""
        return version_numbers(self.version)

    def has(self, path: str) -> bool:
        """Whether the package has a file or folder."""
        return self.folder is not None and (self.folder / path).exists()

    def mentions(self, path: str, text: str) -> bool:
        """Whether a file of the package contains a text."""
        if self.folder is None:
            return False
        try:
            return text in (self.folder / path).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return False


def probe() -> Found:
    """Look for ``agentops`` where an import would find it."""
    try:
        spec = importlib.util.find_spec("agentops")
    except (ImportError, ValueError):  # somebody put an odd object into sys.modules
        spec = None
    if spec is None or spec.origin is None or not spec.submodule_search_locations:
        return Found("none")  # without an origin it is a folder that happens to have the name
    folder = Path(next(iter(spec.submodule_search_locations)))
    version = installed_version("agentops")
    for name, path in _LAYOUT:
        if (folder / path).exists():
            return Found(name, version, folder)
    if (folder / "llm_tracker.py").exists():
        return Found("L1" if (folder / "worker.py").exists() else "L2", version, folder)
    return Found("unknown", version, folder)


def installed_version(distribution: str) -> str | None:
    """Return the version of an installed distribution, or ``None``."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def version_numbers(version: str | None) -> Version:
    """Return the leading numbers of a version; ``1.45.0rc1`` gives ``(1, 45, 0)``."""
    found = re.match(r"\d+(?:\.\d+)*", version or "")
    return tuple(int(part) for part in found.group().split(".")) if found else ()
