"""Those who wait until what has ended is stored, and what is to be done in a store after that."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from .._handover import Future

if TYPE_CHECKING:
    from .ledger import Ledger
    from .scope import Scope


class Job(NamedTuple):
    """Something to do in a store once the first ``queued`` spans of a scope are settled."""

    scope: Scope
    queued: int
    work: Callable[[], Awaitable[Any]]
    otherwise: str
    """What the log says where it cannot be done."""


class _Waiter(NamedTuple):
    """Somebody who wants to know when what has been queued is settled."""

    scope: Scope | None
    queued: int
    known_losses: int
    cycle: int
    """The cycle of the writer that has to be over: it began after the waiter came."""
    future: Future[bool]


class Flushes:
    """The waiters and the jobs of one writer."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._closed = False
        self.after_fork_in_child()

    def after_fork_in_child(self) -> None:
        """Begin without any: those of the parent are the parent's."""
        # Guards the two lists, and that nobody joins them any more once they are closed. No other lock is taken while
        # it is held. Re-entrant: a signal handler may flush in the thread that holds it.
        self._lock = threading.RLock()
        self._waiters: list[_Waiter] = []
        self._jobs: list[Job] = []
        self._cycle = 0

    def __bool__(self) -> bool:
        return bool(self._waiters or self._jobs)

    @property
    def has_waiters(self) -> bool:
        """Whether anybody waits."""
        return bool(self._waiters)

    @property
    def has_jobs(self) -> bool:
        """Whether there is anything to do after spans are settled."""
        return bool(self._jobs)

    def wait(self, scope: Scope | None, *, has_work: bool, may_wait: bool) -> Future[bool]:
        """Return a future that is True when all that has ended (of one scope) is stored.

        Args:
            scope: ``None``: of all.
            has_work: Whether there is anything to wait for.
            may_wait: Whether this thread may wait; if not, the answer is ``False`` at once.
        """
        future: Future[bool] = Future()
        queued, known = self._ledger.position(scope)
        waiter = _Waiter(scope, queued, known, self._cycle + 1, future)
        with self._lock:
            waits = has_work and may_wait and not self._closed
            if waits:
                self._waiters.append(waiter)
        if not waits:
            future.set_result(not has_work and self._ledger.lost_nothing(scope, known))
        return future

    def after(self, scope: Scope, work: Callable[[], Awaitable[Any]], otherwise: str) -> bool:
        """Note something to do once all that has ended in ``scope`` is settled; ``False`` where it is too late."""
        job = Job(scope, self._ledger.position(scope)[0], work, otherwise)
        with self._lock:
            if not self._closed:
                self._jobs.append(job)
            return not self._closed

    def begin_cycle(self) -> None:
        """Note that the writer begins to look at what has been queued."""
        self._cycle += 1

    def due(self) -> list[Job]:
        """Return the jobs whose spans are settled."""
        return [job for job in list(self._jobs) if self._ledger.is_settled(job.scope, job.queued)]

    def done(self, job: Job) -> None:
        """Forget a job."""
        with self._lock:
            if job in self._jobs:
                self._jobs.remove(job)

    def resolve(self, *, delivers: bool) -> None:
        """Tell those whose spans are settled.

        Args:
            delivers: Whether files of a spool are still being sent, for which those wait who wait for everything.
        """
        done = {id(each): each for each in list(self._waiters) if self._is_done(each, delivers=delivers)}
        with self._lock:
            self._waiters = [each for each in self._waiters if id(each) not in done]
        for waiter in done.values():
            if waiter.future.set_running_or_notify_cancel():
                waiter.future.set_result(self._ledger.lost_nothing(waiter.scope, waiter.known_losses))

    def _is_done(self, waiter: _Waiter, *, delivers: bool) -> bool:
        is_settled = self._cycle >= waiter.cycle and self._ledger.is_settled(waiter.scope, waiter.queued)
        return self._closed or (is_settled and (waiter.scope is not None or not delivers))

    def give_up(self) -> None:
        """Tell all that wait that it was in vain."""
        with self._lock:
            waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if waiter.future.set_running_or_notify_cancel():
                waiter.future.set_result(False)

    def close(self) -> list[Job]:
        """Let nobody wait any more, and return the jobs that are not done; those who wait are told by ``resolve``."""
        with self._lock:
            self._closed = True
            undone, self._jobs = self._jobs, []
        return undone
