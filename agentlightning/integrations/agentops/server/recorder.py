"""What the server received, in bounded memory.

Everything is kept as JSON text, so its size is known exactly and reading it costs nothing. Each kind has limits of its
own, by count and by bytes: a flood of one kind never pushes out another, such as spans. The oldest goes first, is
counted, and the log says so once; what is larger than the limit by itself is counted and not kept. Numbers go up over
all kinds, so that a reader can ask for what is new.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

logger = logging.getLogger(__name__)

MIB = 1024 * 1024


class Limit(NamedTuple):
    """How much of one kind is kept."""

    most: int
    size: int
    """Bytes of JSON text."""


LIMITS: Mapping[str, Limit] = MappingProxyType(
    {
        "spans": Limit(100_000, 128 * MIB),
        "requests": Limit(10_000, 16 * MIB),
        "sessions": Limit(1_000, 8 * MIB),
        "events": Limit(50_000, 32 * MIB),
        "agents": Limit(1_000, MIB),
        "logs": Limit(1_000, 32 * MIB),
        "objects": Limit(1_000, 16 * MIB),
        "metrics": Limit(1_000, 8 * MIB),
        "errors": Limit(1_000, 8 * MIB),
    }
)
"""Kind → limit. ``logs`` are uploads and OTLP log records, ``objects`` are uploads, ``errors`` are what clients
reported and what was unreadable."""


class _Entry(NamedTuple):
    number: int
    text: bytes


class _Ring:
    def __init__(self, limit: Limit) -> None:
        self.limit = limit
        self.clear()

    def clear(self) -> None:
        self.entries: OrderedDict[int | str, _Entry] = OrderedDict()
        self.size = self.received = self.dropped = 0

    def put(self, key: int | str, entry: _Entry) -> None:
        before = self.entries.pop(key, None)
        if len(entry.text) > self.limit.size:  # else it would push everything out, and then itself
            self.size -= len(before.text) if before else 0
            self.received += before is None
            self.dropped += 1
            return
        # A value that is kept under a key again moves to the end, so it is the last to be given up.
        self.size += len(entry.text) - (len(before.text) if before else 0)
        self.received += before is None
        self.entries[key] = entry
        while self.size > self.limit.size or len(self.entries) > self.limit.most:
            _, oldest = self.entries.popitem(last=False)
            self.size -= len(oldest.text)
            self.dropped += 1


class Recorder:
    """Keeps JSON values by kind, within limits; every method may be called from any thread."""

    def __init__(
        self, limits: Mapping[str, Limit] = LIMITS, *, clock: Callable[[], float] = time.time
    ) -> None:
        # Guards the rings, their counts and ``_number``, so that numbers are in the order in which values were kept.
        self._lock = threading.Lock()
        self._rings = {kind: _Ring(limit) for kind, limit in limits.items()}
        self._number = 0
        self._clock = clock

    @property
    def kinds(self) -> list[str]:
        """What can be asked for."""
        return list(self._rings)

    def add(self, kind: str, value: Mapping[str, Any]) -> None:
        """Keep one value, with the time at which it came (seconds since the epoch) under ``received``."""
        self.add_texts(kind, [to_text({"received": self._clock(), **value})])

    def add_texts(self, kind: str, texts: Iterable[str]) -> None:
        """Keep values that are JSON text already."""
        with self._lock:
            ring = self._rings[kind]
            for text in texts:
                self._put(kind, ring, None, text)

    def merge(self, kind: str, key: str, value: Mapping[str, Any]) -> None:
        """Keep one value under a key; fields of an older value that this one lacks stay."""
        with self._lock:
            ring = self._rings[kind]
            before = ring.entries.get(key)
            old: dict[str, Any] = from_kept(before.text) if before else {"received": self._clock()}
            self._put(kind, ring, key, to_text({**old, **value}))

    def _put(self, kind: str, ring: _Ring, key: str | None, text: str) -> None:
        self._number += 1
        first = not ring.dropped  # said once for each kind, until the recorder is emptied
        ring.put(self._number if key is None else key, _Entry(self._number, text.encode()))
        if first and ring.dropped:
            logger.warning(
                "more than %s %s or %s bytes of them: the oldest are given up and counted",
                *(ring.limit.most, kind, ring.limit.size),
            )

    def read(self, kind: str, *, after: int = 0, newest: int | None = None) -> list[bytes]:
        """Return JSON texts, oldest first: those that came after this number, and of these the newest."""
        with self._lock:
            found = [entry.text for entry in self._rings[kind].entries.values() if entry.number > after]
        return found if newest is None else found[max(0, len(found) - newest) :]

    def counts(self) -> dict[str, dict[str, int]]:
        """Return, per kind, how many came, how many are kept and in how many bytes, and how many were given up."""
        with self._lock:
            return {
                kind: {
                    "received": ring.received,
                    "kept": len(ring.entries),
                    "dropped": ring.dropped,
                    "bytes": ring.size,
                }
                for kind, ring in self._rings.items()
            }

    @property
    def last_number(self) -> int:
        """The number of what came last; it never goes back, also when the recorder is emptied."""
        return self._number

    def clear(self) -> None:
        """Forget everything, the counts too."""
        with self._lock:
            for ring in self._rings.values():
                ring.clear()


def to_text(value: Any) -> str:
    """Return ASCII JSON of a value that :func:`from_text` made, or made of such values."""
    try:
        return json.dumps(value, allow_nan=False, separators=(",", ":"))
    except (ValueError, TypeError, RecursionError) as error:
        return json.dumps({"unreadable": str(error)})


def from_text(body: str | bytes) -> Any:
    """Return the value of JSON that a stranger sent; what is no finite number becomes text, so it stays valid JSON.

    Raises:
        ValueError: It is no JSON, or nested deeper than Python reads.
    """
    try:
        return json.loads(body, parse_constant=str, parse_float=_finite)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def from_kept(text: str | bytes) -> Any:
    """Return the value of a text that was kept; one that is too deep to be read from here says so."""
    try:
        return json.loads(text)
    except RecursionError:
        return {"unreadable": "nested too deeply"}


def _finite(text: str) -> float | str:
    value = float(text)
    return value if abs(value) < float("inf") else text
