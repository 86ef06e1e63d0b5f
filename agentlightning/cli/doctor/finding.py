"""What a check finds, and what the checks look at."""

from __future__ import annotations

import logging
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from ..._printable import without_password
from ...env_var import LightningEnvVar, resolve_setting
from ...pipeline.redact import Redactor
from ...pipeline.rules import KEY_RULES
from ...recorder.spool import spool_dir_for
from ...store.memory import InMemoryLightningStore
from .. import lookup

Level = Literal["ok", "warn", "fail"]
"""``fail``: a training run would lose or corrupt data."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Finding:
    """One thing that was found."""

    level: Level
    check: str
    """What was looked at: ``proxies``, ``canary`` …"""
    sentence: str
    cure: str = ""
    """What to do; empty only where ``level`` is ``ok``."""
    details: tuple[str, ...] = ()
    unknown: bool = False
    """The check took too long, and without it nobody knows whether this machine records correctly."""


@dataclass(frozen=True)
class Subject:
    """The store that is meant, and where its files would lie."""

    url: str
    path: Path | None = None
    """The file of a SQLite store."""
    options: str = ""
    """``?synchronous=full``, as in its URL."""

    @property
    def name(self) -> str:
        """The URL without a password."""
        return without_password(self.url)

    @property
    def folder(self) -> Path:
        """Where the store's file lies; the current folder for other stores."""
        return self.path.parent if self.path is not None else Path.cwd()

    @property
    def spool(self) -> Path:
        """Where spans wait that the store does not take."""
        if self.path is not None and not resolve_setting(LightningEnvVar.AGL_SPOOL_DIR):
            return Path(f"{self.path}.spool")
        return spool_dir_for(InMemoryLightningStore())

    def scratch_url(self, folder: Path) -> str:
        """Return the URL of a store in ``folder`` with the options of this one."""
        return f"sqlite:///{quote(str(folder / 'scratch.db'))}{self.options}"


Check = Callable[[Subject], Iterable[Finding]]


def subject(store: str | None) -> Subject:
    """Return what ``--store``, ``AGL_STORE``, the project's setting or the default mean; opens nothing."""
    url = lookup.meant_url(store)
    path = lookup.sqlite_path(url)
    if path is None:
        return Subject(url)
    query = url.partition("?")[2]
    return Subject(url, path.absolute(), f"?{query}" if query else "")


def findings_of(name: str, check: Check, subject: Subject, unchecked: Level) -> list[Finding]:
    """Run a check; what it raises is a finding of the level ``unchecked``. Keys and passwords are masked.

    That a check takes too long says that the machine is slow, and not that anything is broken.
    """
    found: list[Finding] = []
    begun = time.monotonic()
    try:
        found += check(subject)
    except (TimeoutError, subprocess.TimeoutExpired):
        took = time.monotonic() - begun
        sentence = f"this was stopped after {took:.0f} s, so what it would have shown is not known"
        cure = "run agl doctor again when this machine has less to do"
        found.append(Finding("warn", name, sentence, cure, unknown=unchecked == "fail"))
    except Exception as error:  # noqa: BLE001 - a machine may be broken in any way
        _log.debug("check %s failed", name, exc_info=True)
        sentence = f"this could not be checked: {type(error).__name__}: {error}"
        cure = "remove what the message names; agl doctor --log-level DEBUG shows where it happened"
        found.append(Finding(unchecked, name, sentence, cure))
    return [_masked(finding) for finding in found]


def _masked(finding: Finding) -> Finding:
    text = Redactor(KEY_RULES).text
    return replace(
        finding,
        sentence=text(finding.sentence),
        cure=text(finding.cure),
        details=tuple(map(text, finding.details)),
    )


def existing(folder: Path) -> Path:
    """Return ``folder``, or the nearest folder above it that exists."""
    return next(each for each in (folder, *folder.parents) if each.is_dir())


def write_into(folder: Path) -> None:
    """Make something in a folder, and remove it.

    Raises:
        OSError: The folder takes nothing.
    """
    made = folder / f".agl-doctor-{os.getpid()}"
    try:
        made.mkdir()
        made.rmdir()
    except OSError as error:
        raise OSError(f"the folder {folder} takes no new file ({error.strerror})") from error


@contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """A folder beside the store that is removed afterwards; among temporary files where that cannot be made.

    Raises:
        OSError: No folder can be made at all.
    """
    prefix = ".agl-doctor-"
    try:
        made = tempfile.TemporaryDirectory(prefix=prefix, dir=folder, ignore_cleanup_errors=True)
    except OSError:
        made = tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True)
    with made as name:
        yield Path(name)


def program_environment() -> dict[str, str]:
    """Return the environment of a program of the user, without the attempt that ``agl run`` may have put there."""
    attempt = {LightningEnvVar.AGL_ROLLOUT_ID.value, LightningEnvVar.AGL_ATTEMPT_ID.value}
    return {name: value for name, value in os.environ.items() if name not in attempt}
