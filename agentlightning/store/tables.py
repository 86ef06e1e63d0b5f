"""What a backend keeps, seen from inside one transaction.

A :class:`Tables` object lives for one transaction. Its methods are small and synchronous and know nothing of
statuses, retries or receipts; ``store.transaction`` builds every method of the contract from them. All of
them see what this transaction has written before.

Values that a ``Tables`` hands out are read-only: they may be the very objects that it keeps. Values that it
is handed are its own from then on.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..codec.recorded_span import AnySpan
from ..types import Account, Attempt, PaginatedResult, ResourcesUpdate, Rollout, Span, Worker
from .base import LightningStoreStatistics
from .query import Query

AttemptKey = tuple[str, str]
"""``(rollout_id, attempt_id)``."""


@dataclass(frozen=True, slots=True)
class NewSpan:
    """A span on its way into the tables."""

    span: AnySpan
    """As it was handed in; the tables keep what ``encoded`` says, and take only the ids from here."""
    sequence_id: int
    """Its place in the attempt; 0 for an open or late span."""
    declared: bool
    """Whether an account of its attempt counts it; see ``types.receipt``."""
    encoded: Any
    """What ``TransactionalStore._encode`` made of it, outside of the transaction."""


@dataclass(frozen=True, slots=True)
class SpanCounts:
    """The spans of one attempt, counted."""

    stored: int
    open: int
    undeclared: int
    """Stored, open and evicted spans that no account counts."""
    late: int = 0
    """Late spans that are stored beside the others."""
    evicted: int = 0
    """Spans that were stored and then given up for room."""
    evicted_late: int = 0
    """Late spans of which the same is true."""


class Tables(ABC):
    """Primitives on what is kept, within one transaction. See the module's docstring."""

    # ------------------------------------------------------------------ rollouts and their queue

    @abstractmethod
    def get_rollout(self, rollout_id: str) -> Rollout | None:
        """Return a rollout (never with its attempt), or ``None``."""

    @abstractmethod
    def put_rollout(self, rollout: Rollout) -> None:
        """Insert a rollout at the end of the order of creation, or replace it in its place."""

    @abstractmethod
    def find_rollouts(self, query: Query) -> PaginatedResult[Rollout]:
        """Answer a query over all rollouts."""

    @abstractmethod
    def add_tags(self, rollout_id: str, tags: Collection[str]) -> None:
        """Give a rollout tags; those that it has already stay as they are. ``put_rollout`` changes no tags."""

    @abstractmethod
    def enqueue(self, rollout_id: str) -> None:
        """Put a rollout at the end of the queue; one that is queued already moves there."""

    @abstractmethod
    def leave_queue(self, rollout_id: str) -> None:
        """Take a rollout out of the queue; harmless where it is not queued."""

    @abstractmethod
    def take_from_queue(self, limit: int) -> Sequence[str]:
        """Take up to ``limit`` ids from the head of the queue, oldest first."""

    # ------------------------------------------------------------------ attempts

    @abstractmethod
    def get_attempt(self, key: AttemptKey) -> Attempt | None:
        """Return an attempt, or ``None``."""

    @abstractmethod
    def get_attempts(self, rollout_id: str) -> Sequence[Attempt]:
        """Return the attempts of a rollout by ``sequence_id``."""

    @abstractmethod
    def get_latest_attempts(self, rollout_ids: Sequence[str]) -> Mapping[str, Attempt]:
        """Return the attempt with the highest ``sequence_id`` of each rollout that has one."""

    @abstractmethod
    def put_attempt(self, attempt: Attempt, deadline: float | None) -> None:
        """Insert or replace an attempt, with the time at which it becomes overdue."""

    @abstractmethod
    def get_deadline(self, key: AttemptKey) -> float | None:
        """Return the deadline that an attempt was put with; ``None`` where there is none."""

    @abstractmethod
    def get_overdue(self, now: float) -> Sequence[Attempt]:
        """Return the attempts whose deadline is at or before ``now``: earliest first, then in order of creation."""

    @abstractmethod
    def next_deadline(self) -> float | None:
        """Return the earliest deadline of all attempts."""

    # ------------------------------------------------------------------ spans

    @abstractmethod
    def get_counter(self, key: AttemptKey) -> int:
        """Return the highest sequence id given out in an attempt; 0 = none yet."""

    @abstractmethod
    def put_counter(self, key: AttemptKey, value: int) -> None:
        """Set the counter of an attempt."""

    @abstractmethod
    def get_stored(self, key: AttemptKey, span_ids: Collection[str]) -> Mapping[str, bool]:
        """Return those of the ids that are stored, each with its ``declared`` mark."""

    @abstractmethod
    def get_open(self, key: AttemptKey, span_ids: Collection[str]) -> Mapping[str, bool]:
        """Return those of the ids that are open, each with its ``declared`` mark."""

    @abstractmethod
    def add_spans(self, spans: Sequence[NewSpan]) -> None:
        """Store spans that are not stored, of any attempts."""

    @abstractmethod
    def declare_spans(self, key: AttemptKey, span_ids: Collection[str]) -> None:
        """Mark stored or open spans as counted by an account."""

    @abstractmethod
    def add_open_spans(self, spans: Sequence[NewSpan]) -> None:
        """Keep spans as open, of any attempts, that are neither open nor stored."""

    @abstractmethod
    def remove_open_spans(self, key: AttemptKey, span_ids: Collection[str]) -> None:
        """Forget open spans; ids that are not open are left out."""

    @abstractmethod
    def get_late(self, key: AttemptKey, span_ids: Collection[str]) -> Collection[str]:
        """Return those of the ids that are stored as late beside an attempt."""

    @abstractmethod
    def add_late_spans(self, spans: Sequence[NewSpan]) -> None:
        """Store spans as late, beside any attempts, that are not stored so."""

    @abstractmethod
    def get_late_spans(self, keys: Sequence[AttemptKey]) -> Sequence[Span]:
        """Return the late spans beside attempts, each attempt's in the order in which they were stored."""

    @abstractmethod
    def find_spans(
        self, keys: Sequence[AttemptKey], query: Query, *, packed: bool = False
    ) -> PaginatedResult[Span]:
        """Answer a query over the stored spans of attempts, each attempt's after the one before.

        Args:
            keys: The attempts.
            query: Which spans, in which order.
            packed: Whether lists of token ids may come as ``TokenIds``.
        """

    @abstractmethod
    def get_open_spans(self, keys: Sequence[AttemptKey]) -> Sequence[Span]:
        """Return the open spans of attempts, in any order."""

    @abstractmethod
    def count_spans(self, key: AttemptKey) -> SpanCounts:
        """Count the spans of an attempt."""

    @abstractmethod
    def get_accounts(self, key: AttemptKey) -> Sequence[Account]:
        """Return the accounts of an attempt."""

    def last_seen(self, process: str) -> float | None:
        """Return when a process last said that it is there, 0 for never; ``None`` where nobody says so here."""
        del process
        return None

    @abstractmethod
    def get_revision(self, key: AttemptKey, writer_id: str) -> int | None:
        """Return the ``revision`` of what a writer says of an attempt, or ``None``."""

    @abstractmethod
    def put_account(self, account: Account) -> None:
        """Insert or replace what a writer says of an attempt."""

    # ------------------------------------------------------------------ resources and workers

    @abstractmethod
    def get_resources(self, resources_id: str) -> ResourcesUpdate | None:
        """Return the resources under an id, or ``None``."""

    @abstractmethod
    def get_latest_resources(self) -> ResourcesUpdate | None:
        """Return the resources that were put last, or ``None``."""

    @abstractmethod
    def put_resources(self, update: ResourcesUpdate) -> None:
        """Insert or replace resources; they become the latest."""

    @abstractmethod
    def find_resources(self, query: Query) -> PaginatedResult[ResourcesUpdate]:
        """Answer a query over all resources."""

    @abstractmethod
    def get_worker(self, worker_id: str) -> Worker | None:
        """Return a worker, or ``None``."""

    @abstractmethod
    def put_worker(self, worker: Worker) -> None:
        """Insert or replace a worker."""

    @abstractmethod
    def find_workers(self, query: Query) -> PaginatedResult[Worker]:
        """Answer a query over all workers."""

    # ------------------------------------------------------------------ counts

    @abstractmethod
    def count(self) -> LightningStoreStatistics:
        """Count everything; ``name`` and ``uptime`` are added by the store."""
