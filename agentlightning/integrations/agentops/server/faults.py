"""Misbehaviour on order: the next requests get a status, wait, are cut off, or are called what they are not.

A fault is used up by the requests that it hits. The control routes of the server are never hit; ``/health`` only by a
fault that names it.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

MAX_DELAY = 3600.0
MAX_FAULTS = 1000
FOREVER = -1


@dataclass
class Fault:
    """One order."""

    status: int | None = None
    """Answer with this status and an error in JSON; the request is not looked at."""
    delay: float = 0.0
    """Seconds to wait first."""
    n: int = 1
    """How many requests it hits; -1: all, until it is taken back."""
    cut: bool = False
    """Break the connection half way through the body of the answer; the request was handled."""
    content_type: str | None = None
    """Call the answer this."""
    path: str = ""
    """Only requests whose path begins so."""
    released: threading.Event = field(default_factory=threading.Event, repr=False)

    def described(self) -> dict[str, Any]:
        """Return the order as JSON."""
        return {name: getattr(self, name) for name in FIELDS}

    def wait(self) -> None:
        """Wait for the delay, or until the fault is taken back."""
        if self.delay:
            self.released.wait(self.delay)


FIELDS = ("status", "delay", "n", "cut", "content_type", "path")


class Faults:
    """The orders that are open; every method may be called from any thread."""

    def __init__(self) -> None:
        # Guards ``_open``, the counts of its faults, and which event is the current ``_released``. A fault that delays
        # a request waits for its event without the lock, so ``clear`` can end the wait.
        self._lock = threading.Lock()
        self._open: list[Fault] = []
        self._released = threading.Event()

    def add(self, fault: Fault) -> None:
        """Order one more; the oldest that fits a request is used first.

        Raises:
            ValueError: Too many are open.
        """
        with self._lock:
            if len(self._open) >= MAX_FAULTS:
                raise ValueError(f"{MAX_FAULTS} faults are open; take them back with DELETE /_fail")
            fault.released = self._released
            self._open.append(fault)

    def take(self, path: str) -> Fault | None:
        """Return the fault that hits a request of this path, or ``None``."""
        with self._lock:
            for fault in self._open:
                if path.startswith(fault.path) and (fault.path or path != "/health"):
                    if fault.n != FOREVER:
                        fault.n -= 1
                        if not fault.n:
                            self._open.remove(fault)
                    return fault
        return None

    def open(self) -> list[dict[str, Any]]:
        """Return what is still to come."""
        with self._lock:
            return [fault.described() for fault in self._open]

    def clear(self) -> None:
        """Take back all, and let those go on that wait."""
        with self._lock:
            self._open.clear()
            self._released.set()
            self._released = threading.Event()


def parse(values: Mapping[str, Any]) -> Fault:
    """Return the fault that a query or a JSON object orders; the names are those of :class:`Fault`.

    Raises:
        ValueError: A name is unknown or a value is out of range; the message says which.
    """
    unknown = sorted(set(values) - set(FIELDS))
    if unknown:
        raise ValueError(f"unknown: {', '.join(unknown)}; there are {', '.join(FIELDS)}")
    fault = Fault(
        status=_whole(values, "status", 200, 599) if values.get("status") is not None else None,
        delay=_delay(values.get("delay")),
        n=FOREVER if str(values.get("n")) == str(FOREVER) else _whole(values, "n", 1, 10**9),
        cut=_truth(values.get("cut")),
        content_type=_header(values.get("content_type")),
        path=str(values.get("path") or ""),
    )
    if not (fault.status or fault.delay or fault.cut or fault.content_type):
        raise ValueError("nothing to do: give status, delay, cut or content_type")
    return fault


def _whole(values: Mapping[str, Any], name: str, low: int, high: int) -> int:
    text = str(values.get(name, low)).strip()
    if not (text.isascii() and text.isdigit() and len(text) < 12 and low <= int(text) <= high):
        raise ValueError(f"{name} is a whole number from {low} to {high}")
    return int(text)


def _delay(value: Any) -> float:
    try:
        delay = float(value or 0)
    except (TypeError, ValueError):
        delay = math.nan
    if not 0 <= delay <= MAX_DELAY:
        raise ValueError(f"delay is a number of seconds from 0 to {MAX_DELAY:g}")
    return delay


def _truth(value: Any) -> bool:
    word = str(value if value is not None else "").strip().lower()
    if word in {"1", "true", "yes", "on"}:
        return True
    if word in {"", "0", "false", "no", "off"}:
        return False
    raise ValueError("cut is 1 or 0")


def _header(value: Any) -> str | None:
    if value is None or value == "":
        return None
    if not (isinstance(value, str) and value.isascii() and value.isprintable() and len(value) < 200):
        raise ValueError("content_type is the printable text of a header")
    return value
