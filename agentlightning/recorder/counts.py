"""What one process has counted of one attempt's spans."""

from __future__ import annotations

import itertools
import os

from ..semconv import DropReason
from ..store.base import new_writer_id

_numbers = itertools.count(1)

ON_PURPOSE = frozenset({DropReason.PIPELINE.value, DropReason.SAME_CALL.value})
"""Reasons for which a span is not stored although nothing is lost."""


def next_writer_id() -> str:
    """Return a writer id that no other account of any process has."""
    return new_writer_id(next(_numbers))


class Counts:
    """The numbers of one account. The ledger changes and reads them under its lock; nobody else does.

    ``accounted`` is what the store has been or is being told of: spans in a batch, spans announced as open, spans
    dropped. An account has that number and not ``started``, so that one that is committed with a batch describes
    exactly what is committed.
    """

    __slots__ = (
        "accounted",
        "dropped",
        "live",
        "pid",
        "queued",
        "revision",
        "settled",
        "started",
        "stored",
        "truncated",
        "unplaced_from",
        "unplaced_until",
        "unstored",
        "waited",
        "writer_id",
    )

    def __init__(self, unplaced: int = 0, *, closed: bool = False) -> None:
        self.pid = os.getpid()
        """A forked process begins with new counts: those of its parent are the parent's to report."""
        self.writer_id = next_writer_id()
        self.revision = 0
        self.started = 0
        self.live = 0
        """Started and not ended."""
        self.accounted = 0
        self.queued = 0
        """Finished spans that the queue has been given."""
        self.settled = 0
        """Those of them that are stored, dropped or spooled."""
        self.stored = 0
        self.dropped: dict[str, int] = {}
        """Reason → number."""
        self.unstored: list[str] = []
        """Ids of spans that were announced and then dropped, as far as the store has not acknowledged them."""
        self.truncated = False
        """The queue was full for too long: the rest of the attempt is dropped."""
        self.waited = 0.0
        """Seconds that threads have waited for room in a full queue."""
        self.unplaced_from = unplaced
        """How many spans nobody could place when the attempt was opened here."""
        self.unplaced_until: int | None = unplaced if closed else None
        """… and when it was closed."""

    @property
    def lost(self) -> int:
        """How many spans are neither stored nor taken out on purpose."""
        return sum(number for reason, number in self.dropped.items() if reason not in ON_PURPOSE)

    def unattributed(self, unplaced: int) -> int:
        """How many spans that nobody could place started while the attempt was open, of ``unplaced`` until now."""
        until = unplaced if self.unplaced_until is None else self.unplaced_until
        return until - self.unplaced_from
