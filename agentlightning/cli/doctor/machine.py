"""The machine: room on disk, clock, open files."""

from __future__ import annotations

import os
import re
import resource
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Final

from .finding import Finding, Level, Subject, existing, write_into

MIB = 1024 * 1024
LITTLE_ROOM, NO_ROOM = 1024 * MIB, 100 * MIB
"""Bytes."""
FEW_FILES_LEFT = 1_000
FEW_OPEN_FILES = 1_024
"""The usual default of Linux; a hundred rollouts at once need several connections each."""
SANE_YEARS = range(2025, 2100)
JUMP = 0.5
"""Seconds by which the clock may drift from the monotonic one while the checks run."""
COARSE = 0.001
"""Seconds. Two steps of an agent should not start at the same moment."""
READINGS = 20_000


def disk(subject: Subject) -> Iterator[Finding]:
    """Room for the store, where that is a file, and for its spool; and that a spool can be made."""
    spool = existing(subject.spool)
    places = {existing(subject.folder): "the store's folder"} if subject.path is not None else {}
    places.setdefault(spool, "the spool's folder")
    try:
        write_into(spool)
    except OSError as error:
        sentence = f"no spool can be made, so spans that the store does not take are lost: {error}"
        yield Finding("fail", "disk", sentence, "set AGL_SPOOL_DIR to a folder that can be written")
    for folder, what in places.items():
        status = os.statvfs(folder)
        # What is free for users; ``f_bfree`` includes what is reserved for root.
        free = status.f_bavail * status.f_frsize
        cure = f"make room in {folder}, or choose another place with AGL_STORE and AGL_SPOOL_DIR"
        level = _by_room(free)
        yield Finding(level, "disk", f"{size(free)} free in {what}, {folder}", cure if level != "ok" else "")
        # 0 where a file system has no fixed number of files (btrfs, most network file systems).
        if status.f_files and status.f_favail < FEW_FILES_LEFT:
            sentence = f"{what} {folder} has room for {status.f_favail} more files"
            yield Finding("warn", "disk", sentence, "remove files that are not needed")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if limit != resource.RLIM_INFINITY and _by_room(limit) != "ok":
        sentence = f"a file may not grow beyond {size(limit)} (RLIMIT_FSIZE)"
        yield Finding(_by_room(limit), "disk", sentence, "ulimit -f unlimited")


def _by_room(free: int) -> Level:
    return "fail" if free < NO_ROOM else "warn" if free < LITTLE_ROOM else "ok"


def size(count: int) -> str:
    """Return bytes for people: ``74.2 GiB``, ``512 KiB``."""
    value = float(count)
    for unit in ("bytes", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.4g} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"


_START: Final = time.time(), time.monotonic()
"""When this module was loaded: before the canary, which takes seconds."""


def clock(_: Subject) -> Iterator[Finding]:
    """Whether the clock tells a sane year, goes forward, in small steps, and did not jump while the checks ran."""
    problems = list(_clock_problems())
    yield from problems
    if not problems:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        yield Finding("ok", "clock", f"{now}, in steps of {_step():.2g} s, and it did not jump")


def _clock_problems() -> Iterator[Finding]:
    wall, monotonic = time.time() - _START[0], time.monotonic() - _START[1]
    synchronise = "let NTP or the host set the clock, and start runs after that"
    year = datetime.now(UTC).year
    if year not in SANE_YEARS:
        yield Finding("fail", "clock", f"the clock says that this is the year {year}", synchronise)
    if abs(wall - monotonic) > JUMP:
        sentence = f"the clock jumped by {wall - monotonic:+.1f} s within {monotonic:.0f} s"
        yield Finding("warn", "clock", f"{sentence}: spans get wrong durations", synchronise)
    readings = [time.time_ns() for _ in range(READINGS)]
    if any(later < earlier for earlier, later in pairwise(readings)):
        yield Finding("warn", "clock", "the clock goes backwards now and then", synchronise)
    if _step() > COARSE:
        sentence = f"the clock goes in steps of {_step():.2g} s: spans seem to start at the same moment"
        yield Finding("warn", "clock", sentence, "choose a finer clock source for this machine")


def _step() -> float:
    """Return the smallest step of the clock that can be seen, in seconds."""
    steps: list[int] = []
    give_up = time.monotonic() + 0.1
    before = time.time_ns()
    while time.monotonic() < give_up and len(steps) < READINGS:
        now = time.time_ns()
        if now > before:
            steps.append(now - before)
        before = now
    return min(steps, default=100_000_000) / 1e9


def open_files(_: Subject) -> Iterator[Finding]:
    """How many files and connections a process may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = soft == resource.RLIM_INFINITY
    if unlimited or soft >= FEW_OPEN_FILES:
        count = "without limit" if unlimited else f"up to {soft:,}"
        yield Finding("ok", "open_files", f"a process may open files and connections {count}")
        return
    goal = 4096 if hard == resource.RLIM_INFINITY else min(4096, hard)
    sentence = f"a process may open {soft} files and connections; many rollouts at once need more"
    by_root = (
        "ask for a higher hard limit (limits.conf, a service's LimitNOFILE, a container's --ulimit nofile)"
    )
    yield Finding("warn", "open_files", sentence, f"ulimit -n {goal}" if goal > soft else by_root)


# ---------------------------------------------------------------------- file systems


def file_system(folder: Path, mounts: str) -> tuple[str, str]:
    """Return the type of the file system that holds ``folder`` and where that is mounted.

    Args:
        folder: A folder that exists.
        mounts: The text of ``/proc/mounts``: one mount a line, blanks in names in octal (fstab(5)).
    """
    place = folder.resolve()
    found = "", ""
    for line in mounts.splitlines():
        fields = line.split()
        if len(fields) < 3:
            continue
        point = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), fields[1])
        # The longest mount point wins, and of equals the last: it is mounted over the others.
        if place.is_relative_to(point) and len(point) >= len(found[1]):
            found = fields[2], point
    return found
