"""Getting one batch into a store: retry what may pass, split what cannot, give back what is left.

Retries follow the project's one policy: base 0.5 s, factor 2, cap 30 s, full jitter, five tries. A store that
refuses a batch for good (unknown attempt, value that it cannot keep) is asked again attempt by attempt and then
span by span, so that one bad span costs none of its neighbours. What a store that keeps failing does not take comes
back unwritten; the next batches are then tried once each until one succeeds.

A single span is written without an account: it then counts as itself, and a process may be killed between any two of
them. The account, which speaks of all of them, is the writer's to send when it knows which were refused.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from .._handover import ReentrantEvent
from ..codec.recorded_span import SpanList, unbuilt
from ..errors import InvalidArgument, NotFound, StoreError
from ..store.base import LightningStore, add_batch
from .spool import ABOUT_DATA, Batch

if TYPE_CHECKING:
    from ..codec.recorded_span import AnySpan
    from ..types import Span

_log = logging.getLogger(__name__)

T = TypeVar("T")

BASE_DELAY = 0.5
FACTOR = 2.0
MAX_DELAY = 30.0
MAX_TRIES = 5


class Backoff:
    """The pauses between tries, which a flush cuts short and a shutdown ends."""

    def __init__(self) -> None:
        self._hurried = ReentrantEvent()
        self._given_up = False
        self.failing = False
        """Whether the last batch found no store."""

    def hurry(self) -> None:
        """Try again now."""
        self._hurried.set()

    def give_up(self) -> None:
        """Let the try under way be the last."""
        self._given_up = True
        self._hurried.set()

    @property
    def tries(self) -> int:
        """How often the next batch is tried."""
        return 1 if self.failing or self._given_up else MAX_TRIES

    def pause(self, attempt: int) -> bool:
        """Wait before try ``attempt + 1`` (full jitter); return whether there is to be one."""
        if attempt >= self.tries:
            return False
        delay = random.uniform(0, min(MAX_DELAY, BASE_DELAY * FACTOR ** (attempt - 1)))  # noqa: S311 - jitter
        self._hurried.wait(delay)
        return not self._given_up


@dataclass
class Outcome:
    """What became of a batch."""

    stored: list[AnySpan] = field(default_factory=list)
    """Spans that the store has newly stored, with their sequence ids."""
    refused: list[AnySpan] = field(default_factory=list)
    """Spans that the store cannot keep."""
    refused_starts: list[Span] = field(default_factory=list)
    """Starts of spans that it cannot keep."""
    unknown: list[Batch] = field(default_factory=list)
    """What belongs to attempts that the store does not know, one batch for each of them."""
    uncounted: list[Batch] = field(default_factory=list)
    """What it has taken without its accounts, one batch for each attempt that was split."""
    unwritten: list[AnySpan] = field(default_factory=list)
    """Spans that the store could not take now."""
    unwritten_starts: list[Span] = field(default_factory=list)
    """Starts of spans that it could not take now."""
    failed: bool = False
    """Whether a part of the batch, spans or not, was not written."""
    at_once: bool = False
    """Whether the first try did it all: spans that are not in ``stored`` were there before, and not by our hand."""

    def add(self, other: Outcome) -> None:
        """Add the outcome of a part."""
        self.stored += other.stored
        self.refused += other.refused
        self.refused_starts += other.refused_starts
        self.unknown += other.unknown
        self.uncounted += other.uncounted
        self.unwritten += other.unwritten
        self.unwritten_starts += other.unwritten_starts
        self.failed |= other.failed


async def write_batch(
    store: LightningStore, make_batch: Callable[[], Batch], backoff: Backoff, write_timeout: float
) -> Outcome:
    """Write a batch, as far as the store takes it; never raises what a store raises.

    Args:
        store: Where to.
        make_batch: Called before each try: accounts are counted anew.
        backoff: Pauses between tries.
        write_timeout: Seconds after which a write counts as failed.
    """
    attempt = 0
    while True:
        attempt += 1
        batch = make_batch()
        try:
            stored = await _write(store, batch, write_timeout)
        except NotFound:
            return await _in_parts(store, batch, write_timeout)
        except ABOUT_DATA as error:
            _log.warning("the store refuses a batch of %d spans, which is split: %r", len(batch.spans), error)
            return await _in_parts(store, batch, write_timeout)
        except Exception as error:  # noqa: BLE001 - a store may raise anything
            _log.debug("try %d of a batch of %d spans: %r", attempt, len(batch.spans), error)
            if backoff.pause(attempt):
                continue
            backoff.failing = True
            _log.warning("the store does not take spans: %s: %s", type(error).__name__, error)
            return Outcome(unwritten=list(batch.spans), unwritten_starts=list(batch.opened), failed=True)
        backoff.failing = False
        return Outcome(stored=stored, at_once=attempt == 1)


async def retry(
    work: Callable[[], Awaitable[Any]], otherwise: str, backoff: Backoff, write_timeout: float
) -> None:
    """Do something else in a store, with the same patience; if it fails for good, the log says ``otherwise``."""
    attempt = 0
    while True:
        attempt += 1
        try:
            await within(work(), write_timeout)
        except Exception as error:  # noqa: BLE001 - a store may raise anything
            if not isinstance(error, ABOUT_DATA) and backoff.pause(attempt):
                continue
            _log.warning("%s: %s: %s", otherwise, type(error).__name__, error)
        return


async def within(work: Awaitable[T], seconds: float) -> T:
    """Await what belongs to a store; whatever it raises comes out as an ``Exception``, if only ``TimeoutError``."""

    async def contained() -> T:
        try:
            return await work
        except Exception:
            raise
        except BaseException as error:
            task = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
                raise  # ours was cancelled, not the store's
            raise StoreError(f"the store raised {type(error).__name__}") from error

    return await asyncio.wait_for(contained(), seconds)


async def _write(store: LightningStore, batch: Batch, write_timeout: float) -> list[AnySpan]:
    # A store that keeps columns never builds a ``Span``. Where another one does, ``batch.spans`` has it from then on.
    added = add_batch(store, SpanList(batch.spans), opened=batch.opened, accounts=batch.accounts)
    written = await within(added, write_timeout)
    return list(
        batch.spans if written is None else unbuilt(written)
    )  # a store that says nothing has taken everything


async def _in_parts(store: LightningStore, batch: Batch, write_timeout: float) -> Outcome:
    """Write attempt by attempt, and where an attempt is refused span by span."""
    outcome = Outcome()
    for part in batch.by_attempt():
        try:
            outcome.stored += await _write(store, part, write_timeout)
        except NotFound:
            outcome.unknown.append(part)
        except ABOUT_DATA:
            outcome.add(await _one_by_one(store, part, write_timeout))
        except Exception as error:  # noqa: BLE001 - a store may raise anything
            outcome.add(_unwritten(part, error))
    return outcome


async def _one_by_one(store: LightningStore, part: Batch, write_timeout: float) -> Outcome:
    taken = Batch([], [], part.accounts)
    outcome = Outcome(uncounted=[taken] if store.capabilities.get("receipts") else [])
    singles = [Batch([span], [], []) for span in part.spans]
    singles += [Batch([], [span], []) for span in part.opened]
    for single in singles:
        try:
            outcome.stored += await _write(store, single, write_timeout)
        except InvalidArgument as error:
            outcome.refused += single.spans
            outcome.refused_starts += single.opened
            _log.warning("a span cannot be stored and is dropped: %s", error)
        except Exception as error:  # noqa: BLE001 - a store may raise anything
            outcome.add(_unwritten(single, error))
        else:
            taken.spans.extend(single.spans)
            taken.opened.extend(single.opened)
    return outcome


def _unwritten(batch: Batch, error: Exception) -> Outcome:
    _log.warning("the store does not take %d spans: %s: %s", len(batch.spans), type(error).__name__, error)
    return Outcome(unwritten=list(batch.spans), unwritten_starts=list(batch.opened), failed=True)
