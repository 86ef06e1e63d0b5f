"""Delivery: a batch is committed to its store or put on disk, and the ledger is told which.

What a store refuses for good is dropped with a reason. What it cannot take now, and what belongs to an attempt that it
does not have any more, goes to the spool of that store and is sent at a later start.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._turn import turn_of_thread
from ..semconv import DropReason
from .counts import next_writer_id
from .ledger import key_of
from .spool import Batch, Spool
from .store_writes import Backoff, retry, within, write_batch

if TYPE_CHECKING:
    from ..codec.recorded_span import AnySpan
    from ..store.base import LightningStore
    from ..types import Span
    from .ledger import Ledger, PendingBatch, Snapshot
    from .queue import SpanQueue
    from .scope import Scope
    from .store_writes import Outcome

_log = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 60.0
"""In the log, about attempts that the store does not have."""
MOST_INVENTED = 10_000
"""So many of them are told apart."""

MakeStarts = Callable[["PendingBatch"], "list[Span]"]
"""Makes the records of the starts in a batch."""


class Delivery:
    """Commits batches. One thread at a time does; a shutdown meanwhile puts on disk what that thread has in hand."""

    def __init__(self, ledger: Ledger, queue: SpanQueue, write_timeout: float) -> None:
        self._ledger = ledger
        self._queue = queue
        self._write_timeout = write_timeout
        self._invented = _Invented()
        self._reset()

    def _reset(self) -> None:
        self.backoff = Backoff()
        self._spools: dict[int, Spool] = {}
        # Held while a batch is put on disk: a shutdown waits for one that is under way, and whoever shuts down a second
        # time waits for the first. Re-entrant: a signal handler may shut down inside of a shutdown.
        self._disk = threading.RLock()

    def after_fork_in_child(self) -> None:
        """Begin anew: spool files that the parent sends are the parent's."""
        self._reset()

    # ------------------------------------------------------------------ into a store

    async def commit(self, batch: PendingBatch, starts: list[Span]) -> None:
        """Write a batch whose spans are made; never raises what a store raises."""
        sent: list[Snapshot] = []
        outcome = await self._write(batch, batch.scopes, Batch(batch.spans(), starts, []), sent)
        turn = turn_of_thread()
        for span in turn.over(outcome.stored):
            entry = batch.made.get(key_of(span))
            if entry is not None:
                entry.span = span
        apart = {ids for part in (*outcome.unknown, *outcome.uncounted) for ids in part.attempts()}
        if not self._ledger.tell(batch, outcome, sent[-1], apart):
            return
        turn.give_way()
        if outcome.unwritten:
            self._put_aside(batch, batch.scopes, outcome.unwritten)
        for part in outcome.unknown:
            self._attempt_is_gone(batch, part)
        for part in outcome.uncounted:
            await self._count(batch, part)
        self._settle(batch)
        turn.give_way()

    async def _write(
        self, batch: PendingBatch, scopes: Collection[Scope], without: Batch, sent: list[Snapshot]
    ) -> Outcome:
        """Write spans and starts with the accounts of scopes, which are counted anew before each try."""

        def counted() -> Batch:
            sent.append(self._ledger.snapshot(batch, scopes))
            return Batch(without.spans, without.opened, sent[-1].accounts)

        return await write_batch(batch.store, counted, self.backoff, self._write_timeout)

    async def _count(self, batch: PendingBatch, part: Batch) -> None:
        """Have an attempt's account take over what the store has got without one, in one step."""
        sent: list[Snapshot] = []
        scopes = batch.scopes_of(part.attempts())
        outcome = await self._write(batch, scopes, part, sent)
        is_counted = not (outcome.failed or outcome.unknown or outcome.uncounted)
        if not self._ledger.tell_of_part(batch, part.opened, sent[-1] if is_counted else None):
            return
        if not is_counted:
            self._put_aside(batch, scopes, part.spans)

    def _attempt_is_gone(self, batch: PendingBatch, part: Batch) -> None:
        """Keep what the store refuses because it does not know, or does not know any more, the attempt."""
        scopes = batch.scopes_of(part.attempts())
        ids = next(iter(part.attempts()))
        if not any(scope.standing.is_known for scope in scopes):
            if part.spans:
                self._invented.add(len(part.spans), ids)
            for span in part.spans:
                entry = batch.made.get(key_of(span))
                if entry is not None:  # or a shutdown has put it aside meanwhile
                    self._ledger.drop(entry, DropReason.STORE_REFUSED)
            return
        is_new = not all(scope.standing.is_gone for scope in scopes)
        for scope in scopes:
            scope.standing.is_gone = True
        if is_new:
            _log.warning(
                "attempt %s of rollout %s was in the store and is not any more, as where a backup took its place; "
                "its spans wait in %s, and are sent at the first start at which the store has it again",
                ids[1],
                ids[0],
                self.folder_for(batch.store),
            )
        self._put_aside(batch, scopes, part.spans, part.opened)

    def _settle(self, batch: PendingBatch) -> None:
        self._queue.free(self._ledger.settle(batch))

    async def retry(self, work: Callable[[], Awaitable[Any]], otherwise: str) -> None:
        """Do something else in a store, with the same patience; if it fails for good, the log says ``otherwise``."""
        await retry(work, otherwise, self.backoff, self._write_timeout)

    # ------------------------------------------------------------------ onto the disk

    def put_aside(self, batches: Iterable[PendingBatch], make_starts: MakeStarts) -> None:
        """Put whole batches on disk, one after the other; the next is asked for when the one before is there.

        What a batch's account says is then on disk with it or before it, wherever the process may be killed.
        """
        with self._disk:
            for batch in batches:
                starts = make_starts(batch)
                if batch.made or batch.opened or self._ledger.is_unclosed(batch.scopes):
                    self._put_aside(batch, batch.scopes, batch.spans(), starts)
                self._settle(batch)  # or no account of the next ones would be the last

    def wait_for_disk(self) -> None:
        """Wait until what another thread puts on disk is there."""
        with self._disk:
            return

    def _put_aside(
        self,
        batch: PendingBatch,
        scopes: Collection[Scope],
        spans: Sequence[AnySpan],
        starts: Sequence[Span] = (),
    ) -> None:
        """Move spans and starts to the spool, with the accounts of scopes."""
        with self._disk:
            aside = self._ledger.set_aside(batch, scopes, spans)
            spool = self._spool_of(batch.store)
            if spool.write(Batch([*spans], [*starts], aside.accounts), next_writer_id().replace(":", "-")):
                if not any(scope.standing.is_gone for scope in scopes):
                    _log.warning(
                        "%s could not be written to %s; they wait in %s and are sent at the next start",
                        f"{len(spans)} spans" if spans else f"the last counts of {len(scopes)} attempts",
                        type(batch.store).__name__,
                        spool.folder,
                    )
                self._ledger.keep_closed(aside.closing)
                return
            self._ledger.set_aside_in_vain(aside.spooled)
            _log.error("%d spans are lost: no store and no spool takes them", len(spans))

    def _spool_of(self, store: LightningStore) -> Spool:
        return self._spools.setdefault(id(store), Spool(store))

    def folder_for(self, store: LightningStore) -> Path:
        """Return the folder in which spans for a store wait."""
        return self._spool_of(store).folder

    def begin_spool(self, store: LightningStore) -> bool:
        """Look at what waits for a store now; return whether there is anything for :meth:`send_spooled`."""
        return self._spool_of(store).begin_delivery()

    async def send_spooled(self, store: LightningStore) -> bool:
        """Send one file that waits for a store; return whether there may be more."""
        try:
            return await within(self._spool_of(store).deliver_next(), self._write_timeout) is not None
        except Exception as error:  # noqa: BLE001 - a store may raise anything
            _log.warning("spooled spans in %s wait for the next start: %s", self.folder_for(store), error)
            return False

    def say_what_was_refused(self) -> None:
        """Say in the log how many spans of unknown attempts were dropped since it was last said."""
        self._invented.tell()


class _Invented:
    """Spans of attempts that the store never had: one line in the log at once, and one a minute with their number.

    Whoever may name attempts, such as a client of the agent's own server, can invent as many as it likes.
    """

    def __init__(self) -> None:
        self._spans = 0
        self._attempts: set[tuple[str, str]] = set()
        self._last = ("", "")
        self._told_at: float | None = None

    def add(self, spans: int, ids: tuple[str, str]) -> None:
        """Count dropped spans of one attempt."""
        self._spans += spans
        self._last = ids
        if len(self._attempts) < MOST_INVENTED:
            self._attempts.add(ids)
        if self._told_at is None or time.monotonic() - self._told_at >= SECONDS_BETWEEN_LINES:
            self.tell()

    def tell(self) -> None:
        """Say what has been counted since the last line."""
        if not self._spans:
            return
        _log.warning(
            "%d spans of %s%d attempts are dropped: the store does not have these, the last of them attempt %s of "
            "rollout %s",
            self._spans,
            "" if len(self._attempts) < MOST_INVENTED else "at least ",
            len(self._attempts),
            self._last[1],
            self._last[0],
        )
        self._spans = 0
        self._attempts.clear()
        self._told_at = time.monotonic()
