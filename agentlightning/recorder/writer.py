"""The background writer: the one thread between finished spans and a store.

It moves data from one part of the recorder to the next: what the ledger hands out is made into spans by the converter
and written by the delivery, which tells the ledger. What holds for the whole:

* The agent's thread never waits for the store. It may wait for room in a full queue, if it has no running event loop,
  for at most ``block_timeout`` per attempt in all; then the newest spans of that attempt are dropped, counted, and the
  attempt is marked truncated.
* Every span that was started is stored, dropped for a stated reason, in the spool, or still open; the account that says
  so is committed in the transaction that it describes.
* ``flush`` and ``shutdown`` keep their deadlines, and say truthfully whether everything is stored.
* Nothing raises into user code, nothing that the writer does is traced, and a fork leaves the child with an empty
  writer of its own.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Any

from opentelemetry import context as otel_context
from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY

from .. import types
from .._handover import Future
from .._turn import turn_of_thread
from .._weak_objects import WeakObjects
from ..instrumentation.suppression import own_work
from .delivery import Delivery
from .flushes import Flushes
from .ledger import Ledger, PendingBatch
from .mover import BodyMover
from .queue import SpanQueue
from .scope import FinishedSpan, Scope
from .settings import WriterSettings
from .thread import WriterThread

if TYPE_CHECKING:
    from ..store.base import LightningStore
    from .converter import Converter

_log = logging.getLogger(__name__)
_writers: WeakObjects[Writer] = WeakObjects()


def _load_models() -> None:
    """Import and build the models that are made while an agent runs; importing the recorder does not.

    Done on the thread of whoever sets the recorder up: where a process forks while another thread imports, the lock of
    that import is held in the child for ever. And pydantic builds a model in calls of some milliseconds that let no
    other thread run: an event loop would stand still in the first rollout.
    """
    _ = types.Span
    for model in (types.Account, types.Receipt, types.Attempt, types.RolloutConfig):
        model.model_rebuild()


class Writer:
    """See the module's docstring. One writer serves every store that its scopes name."""

    def __init__(self, converter: Converter, settings: WriterSettings | None = None) -> None:
        _load_models()
        self.settings = settings or WriterSettings()
        self.queue = SpanQueue(self.settings)
        self.ledger = Ledger(self.queue, self.settings)
        self._converter = converter
        self._delivery = Delivery(self.ledger, self.queue, self.settings.write_timeout)
        self._mover = BodyMover(self.queue, self._delivery.folder_for)
        self._flushes = Flushes(self.ledger)
        self.thread = WriterThread(self._work)
        self._undelivered: dict[int, LightningStore] = {}
        """Stores for which files wait in a spool; changed by single operations alone."""
        self._whole_batch = self.settings.whole_batch
        self._is_ending = False
        self._is_stopped = False
        _writers.add(self)

    # ------------------------------------------------------------------ the agent's threads

    def end(self, finished: FinishedSpan) -> None:
        """Take a finished span in."""
        if not self.ledger.end(finished):
            self._end_without_room(finished)
        if self.queue.has_batch() or len(self.ledger.starts) >= self._whole_batch:
            self.thread.hurry()
            self._mover.ask()
        if self.thread.is_idle and finished.record.scope.store is not None:
            self.thread.wake()

    def _end_without_room(self, finished: FinishedSpan) -> None:
        scope = finished.record.scope
        # Not on the writer's own thread, and not where an event loop would stand still.
        may_wait = not self.thread.is_current() and asyncio._get_running_loop() is None  # noqa: SLF001
        while not self.ledger.end(finished, may_wait=may_wait):
            began = time.monotonic()
            self.queue.wait_for_room(finished.size, self.ledger.patience(scope))
            self.ledger.waited(scope, time.monotonic() - began)

    def close(self, scope: Scope) -> None:
        """Note that a ``trace_context`` has ended; its account is closed once everything is settled."""
        if self.ledger.close(scope):
            self.thread.wake()

    def reserve(self, size: int) -> bool:
        """Take memory for a piece of an answer that is arriving; ``False`` where there is none."""
        if not self.queue.reserve(size):
            return False
        if self._mover.ask():
            self.thread.hurry()
        return True

    def flush(self, scope: Scope | None = None) -> Future[bool]:
        """Ask for everything that has ended (of one scope) to be stored now.

        Returns:
            A future: True when all of it is stored. False when something of the scope, or something that no
            flush has told of, had no room, was refused or went to the spool; and at once on the writer's own
            thread, which cannot wait for itself. It stays undone as long as the store hangs; bound it with a
            deadline.
        """
        has_work = self._has_work(scope)
        future = self._flushes.wait(scope, has_work=has_work, may_wait=not self.thread.is_current())
        if has_work and not self._is_stopped:
            self._delivery.backoff.hurry()
            self.thread.wake(at_once=True)
        return future

    def after(self, scope: Scope, work: Callable[[], Awaitable[Any]], otherwise: str) -> None:
        """Do ``work`` on the writer's loop once all that has ended in ``scope`` is settled; a flush waits for it.

        It is tried again like a batch. If it cannot be done, the log says ``otherwise``.
        """
        if self._flushes.after(scope, work, otherwise):
            self.thread.wake()
        else:
            _log.warning("%s: the writer has stopped", otherwise)

    def deliver_spool(self, store: LightningStore) -> None:
        """Send what waits on disk for ``store``, in the background; nothing happens where nothing waits."""
        if self._delivery.begin_spool(store):
            self._undelivered[id(store)] = store
            self.thread.wake()

    def _has_work(self, scope: Scope | None = None) -> bool:
        if scope is None:
            return self.ledger.has_work or bool(self._flushes) or bool(self._undelivered)
        return self.ledger.has_work_of(scope) or (self._flushes.has_jobs and self.ledger.has_started(scope))

    def shutdown(self, timeout: float) -> bool:
        """Write what is queued within ``timeout`` seconds, put the rest on disk, and stop; a repeat is harmless.

        Returns:
            Whether everything is stored. What is not is named in the log, with the place where it waits.
        """
        if self.ledger.pid != os.getpid():
            return True
        if self._is_stopped:
            self._delivery.wait_for_disk()
            return True
        self._is_ending = True
        self.ledger.begin_to_end()
        self._delivery.backoff.give_up()
        if self._has_work():
            self.thread.wake(at_once=True)
        self.thread.go_on(at_once=True)
        try:
            self.thread.join(timeout)
        finally:  # Ctrl-C may end the wait; what is queued goes to the disk all the same
            self._delivery.put_aside(self._left_over(), self._converter.starts)
            self._mover.close()
        self._delivery.say_what_was_refused()
        for job in self._flushes.close():
            _log.warning("%s: the store did not answer in time", job.otherwise)
        self._flushes.resolve(delivers=False)
        return self.ledger.is_whole

    def _left_over(self) -> Iterator[PendingBatch]:
        """Stop, and yield what was not written: first what the writer's thread has in hand."""
        self._is_stopped = True
        self.thread.stop()
        self.ledger.stop()
        self._mover.stop()
        yield from self._made(self.ledger.pending())
        while self.ledger.has_work:
            taken = self.ledger.take(self._whole_batch, at_end=True)
            yield from self._made(taken or self.ledger.take_costly(at_end=True))

    def _made(self, batches: list[PendingBatch]) -> Iterator[PendingBatch]:
        for batch in batches:
            self._converter.convert(batch, self.ledger.drop)
            yield batch

    # ------------------------------------------------------------------ the writer's thread

    def _work(self) -> None:
        otel_context.attach(own_work(otel_context.set_value(_SUPPRESS_INSTRUMENTATION_KEY, True)))
        turn_of_thread().is_urgent = self.queue.is_behind
        loop: asyncio.AbstractEventLoop | None = None
        try:
            loop = asyncio.new_event_loop()  # needs files, of which a process may have none left
            while True:
                self.thread.sleep(lambda: 0 if self._is_ending else self.settings.flush_interval / 1000)
                loop.run_until_complete(self._round())
                if self._is_stopped:  # what it still had in hand is on the disk
                    return
                self.thread.rest()  # before it looks: what comes after that wakes it up
                if self._has_work() and not (self._is_ending and self._delivery.backoff.failing):
                    has_batch = self.queue.has_batch() or len(self.ledger.starts) >= self._whole_batch
                    is_awaited = self._flushes.has_waiters or bool(self._undelivered)
                    self.thread.go_on(at_once=has_batch or is_awaited)
                elif self._is_ending:
                    return
        except BaseException as error:  # noqa: BLE001 - a dead writer would look like a quiet one
            _log.exception("the writer stopped, and starts again with the next span: %r", error)
            self.thread.rest()
            self._flushes.give_up()
        finally:
            if loop is not None:
                loop.close()

    async def _round(self) -> None:
        self._flushes.begin_cycle()
        await self._write_pending()  # what a writer that died had in hand comes first
        self.ledger.take(self._whole_batch)
        await self._write_pending()
        self.ledger.take_costly()
        await self._write_pending()
        for job in self._flushes.due():
            if not self._is_stopped:
                await self._delivery.retry(job.work, job.otherwise)
            self._flushes.done(job)
        self._flushes.resolve(delivers=bool(self._undelivered))
        # One file each, after what is new: a large spool keeps no trace_context waiting.
        for key, store in list(self._undelivered.items()):
            if not await self._delivery.send_spooled(store):
                self._undelivered.pop(key, None)
        self._flushes.resolve(delivers=bool(self._undelivered))

    async def _write_pending(self) -> None:
        for batch in self.ledger.pending():
            if self._is_stopped:
                return
            self._converter.convert(batch, self.ledger.drop, turn_of_thread())
            await self._delivery.commit(batch, self._converter.starts(batch, turn_of_thread()))
            self._mover.freed()

    def after_fork_in_child(self) -> None:
        """Begin anew: what the parent had queued is the parent's to write."""
        self.queue.after_fork_in_child()
        self.ledger.after_fork_in_child()
        self._delivery.after_fork_in_child()
        self._mover.after_fork_in_child()
        self._flushes.after_fork_in_child()
        self.thread.after_fork_in_child()
        self._undelivered = {}
        self._is_ending = False


def _after_fork_in_child() -> None:
    for writer in _writers:
        writer.after_fork_in_child()


os.register_at_fork(after_in_child=_after_fork_in_child)
