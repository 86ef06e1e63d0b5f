"""Waiting for rollouts to finish, without a thread for each wait.

Each wait is a future of its own event loop. Whoever commits a finished rollout settles the waits for it, from
whatever thread; for changes made by other processes, a backend looks on behalf of all waits at once.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable


class Wait:
    """One wait for a set of rollouts."""

    def __init__(self, rollout_ids: Iterable[str], owner: object) -> None:
        self.owner = owner
        self.pending: set[str] = set(rollout_ids)
        """Rollouts that are not finished yet; guarded by the lock of :class:`Waits`."""
        self._loop = asyncio.get_running_loop()
        self._done: asyncio.Future[None] = self._loop.create_future()

    def settle(self) -> None:
        """Let the wait go on; from any thread."""
        try:
            self._loop.call_soon_threadsafe(self._settle)
        except RuntimeError:  # its event loop was closed, and nobody waits any more
            return

    def _settle(self) -> None:
        if not self._done.done():
            self._done.set_result(None)

    async def until(self, seconds: float | None) -> None:
        """Return when the wait is settled or the time has passed."""
        await asyncio.wait([self._done], timeout=seconds)


class Waits:
    """All waits for the rollouts of one store."""

    def __init__(self) -> None:
        # Guards ``_by_rollout`` and ``pending`` of every wait in it. Waits are settled while it is held; that only
        # schedules a callback on their event loops, and takes no lock of ours.
        self._lock = threading.Lock()
        self._by_rollout: dict[str, set[Wait]] = {}

    def add(self, rollout_ids: Iterable[str], owner: object) -> Wait:
        """Begin a wait of a store object on the running event loop.

        Begin it before looking which rollouts are finished already: one that finishes between the look and a later
        beginning would never settle it.
        """
        wait = Wait(rollout_ids, owner)
        with self._lock:
            for rollout_id in wait.pending:
                self._by_rollout.setdefault(rollout_id, set()).add(wait)
            if not wait.pending:
                wait.settle()
        return wait

    def remove(self, wait: Wait) -> None:
        """End a wait, settled or not."""
        with self._lock:
            for rollout_id in list(wait.pending):
                self._forget(rollout_id, wait)

    def finished(self, rollout_ids: Iterable[str]) -> None:
        """Tell the waits that these rollouts are finished."""
        with self._lock:
            for rollout_id in rollout_ids:
                for wait in list(self._by_rollout.get(rollout_id, ())):
                    self._forget(rollout_id, wait)
                    if not wait.pending:
                        wait.settle()

    def settle_all(self, owner: object) -> None:
        """Let every wait of a store object go on, because it closes."""
        with self._lock:
            for wait in {wait for waits in self._by_rollout.values() for wait in waits}:
                if wait.owner is owner:
                    wait.settle()

    @property
    def rollout_ids(self) -> frozenset[str]:
        """What is waited for at the moment."""
        with self._lock:
            return frozenset(self._by_rollout)

    def after_fork_in_child(self) -> None:
        """Forget the waits of the parent's event loops; the lock is new, as a thread of the parent may have held it."""
        self._lock = threading.Lock()
        self._by_rollout = {}

    def _forget(self, rollout_id: str, wait: Wait) -> None:
        wait.pending.discard(rollout_id)
        waits = self._by_rollout.get(rollout_id)
        if waits is not None:
            waits.discard(wait)
            if not waits:
                del self._by_rollout[rollout_id]
