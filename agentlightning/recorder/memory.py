"""How much memory this process may have: that of its control group, else of the machine (Linux)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

SHARE = 16
"""The queue to the store gets one part of so many."""
LEAST = 64 * 1024 * 1024
MOST = 1024 * 1024 * 1024

_GROUPS = Path("/sys/fs/cgroup")


@lru_cache
def queue_bytes() -> int:
    """Return the default bound of the queue: a sixteenth of the memory, between 64 MB and 1 GB."""
    return min(MOST, max(LEAST, memory_limit() // SHARE))


def memory_limit(groups: Path = _GROUPS, of_process: Path = Path("/proc/self/cgroup")) -> int:
    """Return the least limit that holds for this process, in bytes.

    Args:
        groups: Where the control groups are mounted (cgroups(7); version 2, and version 1 with ``memory``).
        of_process: The file that names this process's groups.
    """
    return min([_memory_of_machine(), *_limits(groups, of_process)])


def _memory_of_machine() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError):
        return LEAST * SHARE


def _limits(groups: Path, of_process: Path) -> Iterator[int]:
    for root, name, place in _memory_groups(groups, of_process):
        # A group has the limits of those above it, too. In a container its own path may not be visible.
        for folder in [root / place, *(root / place).parents]:
            try:
                text = (folder / name).read_text().strip()
            except OSError:
                text = ""
            if text.isdecimal():
                yield int(text)
            if folder == root:
                break


def _memory_groups(groups: Path, of_process: Path) -> Iterator[tuple[Path, str, str]]:
    try:
        lines = of_process.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, place = rest.partition(":")
        if number == "0" and not controllers:
            yield groups, "memory.max", place.lstrip("/")
        elif "memory" in controllers.split(","):
            yield groups / "memory", "memory.limit_in_bytes", place.lstrip("/")
