"""Receipts: the count that proves an attempt whole.

``started = stored + dropped{reason} + open`` for every attempt. Each *writer* (one background writer of one
process) keeps an :class:`Account` per attempt and commits it in the transaction that stores the batch it
describes, so that after ``kill -9`` the equation holds for what was committed. The store adds the accounts
up and counts the rows itself; a receipt therefore compares two independent counts.

A span that was added without a tracer is in no account. To count it once, the store marks each span, stored or
open, as *declared* when a call that carries it also carries an account of its attempt: that account counts it.
The mark is made also when the span itself was there already (a batch that is sent again, a spool that is
delivered by another process with the accounts of the writer it speaks for), and a span that ends keeps the mark
of its start. ``started`` is what the accounts say plus the spans without the mark. So a process that delivers for
another writer sends that writer's account along, and two writers do not both count one span.
"""

from __future__ import annotations

from pydantic import Field

from ..semconv import DropReason
from ._model import Model


class Account(Model):
    """What one writer says of one attempt. Totals since the writer began, never increments: a repeat is harmless."""

    rollout_id: str
    attempt_id: str
    # A batch may be delivered late, from the spool or by a repeat: the number says which account is the newest,
    # whatever came last.
    revision: int = 0
    """One more with every change; the store keeps the highest of each writer."""
    # With the start of the process in it, since numbers of processes are used again.
    writer_id: str
    """``<boot>:<pid namespace>:<pid>:<process start>:<n>``; ``store.base.writer_is_gone`` reads it."""
    started: int = 0
    """Spans whose start this writer saw and whose fate is committed: stored, dropped or open."""
    dropped: dict[str, int] = Field(default_factory=dict)
    """Reason → spans. Reasons are the words of ``semconv.DropReason``."""
    unstored: list[str] = Field(default_factory=list)
    """Ids of spans that were committed as open and then dropped; the store removes them from its open ones."""
    late: int = 0
    """Spans that started after the ``trace_context`` had closed, in a context that was carried on. They belong to no
    attempt, and ``started`` and ``dropped`` do not count them."""
    late_dropped: dict[str, int] = Field(default_factory=dict)
    """Reason → late spans that are not stored."""
    unattributed: int = 0
    """Spans of the same process whose attempt is not known, and that started while the ``trace_context`` was open: this
    attempt could have made them. ``started`` does not count them."""
    closed: bool = False
    """True where the writer has nothing of this attempt in flight or open."""


class Receipt(Model):
    """The sum of an attempt's accounts beside what the store holds."""

    rollout_id: str
    attempt_id: str
    started: int = 0
    """Spans declared by accounts, plus stored spans that no account declared (added without a tracer)."""
    stored: int = 0
    """Ended spans in the store, counted."""
    open: int = 0
    """Spans with a committed start and no end, counted."""
    dropped: dict[str, int] = Field(default_factory=dict)
    late: int = 0
    """Spans beside ``started`` that belong to no attempt: they started after the ``trace_context`` had closed. Those
    that are neither stored nor dropped have not ended, or their process has died."""
    late_stored: int = 0
    """Late spans in the store, counted; ``query_late_spans`` lists them."""
    late_dropped: dict[str, int] = Field(default_factory=dict)
    unattributed: int = 0
    """Spans beside ``started`` that belong to no attempt, and that this one could have made."""
    truncated: bool = False
    """True where spans were dropped because a queue was full: the tail of the trajectory is missing."""
    interrupted: bool = False
    """True where an account was not closed and its writer is gone, or its attempt was given up as ``timeout`` or
    ``unresponsive``: what was started after the last commit is not counted."""
    under_way: bool = False
    """True where a writer has not closed its account: it may have spans in flight or open."""

    @property
    def settled(self) -> bool:
        """Whether nothing is to be expected any more: no span is open, and no writer is at work."""
        # A writer that is gone is not under way; its attempt is interrupted, and settled.
        return not self.open and not self.under_way

    @property
    def balanced(self) -> bool:
        """Whether ``started = stored + dropped + open``."""
        return self.started == self.stored + sum(self.dropped.values()) + self.open

    @property
    def whole(self) -> bool:
        """Whether every span that started is stored, or another one stands for it (``same_call``)."""
        # The second span of one call is no loss: the first has all that is known of the call.
        needed = self.started - self.dropped.get(DropReason.SAME_CALL.value, 0)
        # Balanced first: counts that contradict each other prove nothing.
        return self.balanced and needed == self.stored and not self.interrupted
