"""A store that fails when it is told to.

:class:`FaultyStore` puts faults between a caller and any store. Reads pass untouched. A *write* is counted,
may be held back or slowed down, and then has one of three outcomes: it works, it is *refused* (nothing is
written), or its acknowledgement is *lost* (it is written and the caller gets an error all the same, as when a
connection breaks after the commit). Without faults it is a store like the one inside and passes the contract.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable
from typing import Any, Final, Literal

from ..errors import StoreUnavailable
from ..store.base import LightningStore, LightningStoreCapabilities
from ..store.primitives import PRIMITIVES, Primitive, perform
from ..store.wrapper import StoreWrapper

Outcome = Literal["work", "refuse", "lose"]

WRITES: Final = frozenset(name for name, primitive in PRIMITIVES.items() if primitive.writes)
"""Names of the primitives that change a store; the conveniences of the contract call these."""


class FaultyStore(StoreWrapper):
    """Any store, with faults that a test switches on and off while it is in use.

    Args:
        inner: The store that does the work; closing this one closes it.
        delay: Seconds that every write waits before it reaches ``inner``.
        fail_every: Refuse every n-th write (0 = none).
        lose_every: Lose the acknowledgement of every n-th write (0 = none).
        script: Outcomes of the first writes, one each; the rules above hold after them.
        only: Names of the primitives that have faults; default all of :data:`WRITES`.
        error: Makes the exception of a refused or lost write; default :class:`StoreUnavailable`.
    """

    def __init__(
        self,
        inner: LightningStore,
        *,
        delay: float = 0.0,
        fail_every: int = 0,
        lose_every: int = 0,
        script: Iterable[Outcome] = (),
        only: Collection[str] = WRITES,
        error: Callable[[], Exception] | None = None,
    ) -> None:
        super().__init__(inner)
        self.delay = delay
        self.fail_every = fail_every
        self.lose_every = lose_every
        self.only = frozenset(only)
        self.writes = 0
        """Writes that have begun, held ones included."""
        self.faults = 0
        """Writes that were refused or lost."""
        self._error = error or (lambda: StoreUnavailable("the test made this write fail"))
        self._script: deque[Outcome] = deque(script)
        self._broken = False
        self._held = False
        self._waiting: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []
        # Guards the counts, the script and who waits: each write has an outcome of its own, and one that comes while
        # others are let go is let go with them, or waits for the next time.
        self._lock = threading.Lock()

    # ------------------------------------------------------------------ faults

    def hold(self) -> None:
        """Keep every write from now on waiting until :meth:`release`: a store that hangs."""
        with self._lock:
            self._held = True

    def release(self) -> None:
        """Let held writes go on, in the order in which they came; callable from any thread."""
        with self._lock:
            self._held = False
            waiting, self._waiting = self._waiting, []
        # Outside of the lock: a callback of a future may come back to this store.
        for loop, future in waiting:
            # Who waited may be gone with its loop; a future of a closed loop cannot be resolved.
            if not loop.is_closed():
                loop.call_soon_threadsafe(_resolve, future)

    @property
    def held(self) -> int:
        """How many writes wait for :meth:`release`."""
        with self._lock:
            return sum(1 for _, future in self._waiting if not future.done())

    def fail_for_ever(self, error: Callable[[], Exception] | None = None) -> None:
        """Refuse every write until :meth:`heal`."""
        with self._lock:
            self._broken = True
            self._error = error or self._error

    def heal(self) -> None:
        """Take all faults away; held writes go on."""
        with self._lock:
            self._broken = False
            self.delay, self.fail_every, self.lose_every = 0.0, 0, 0
            self._script.clear()
        self.release()

    async def handle(self, primitive: Primitive, value: Any) -> Any:
        """Pass it on, or do what is asked for."""
        if primitive.name not in self.only:
            return await perform(self.inner, primitive, value)
        outcome = self._begin()
        if self.delay:
            await asyncio.sleep(self.delay)
        await self._pass_hold()
        # After the delay and the hold: a store that refuses does so late, too.
        if outcome == "refuse":
            raise self._error()
        answer = await perform(self.inner, primitive, value)
        # The write has happened, and nobody is told: what a client must take for "unknown", and repeat.
        if outcome == "lose":
            raise self._error()
        return answer

    def _begin(self) -> Outcome:
        with self._lock:
            self.writes += 1
            outcome = self._next_outcome()
            self.faults += outcome != "work"
            return outcome

    def _next_outcome(self) -> Outcome:
        if self._broken:
            return "refuse"
        if self._script:
            return self._script.popleft()
        if self.fail_every and self.writes % self.fail_every == 0:
            return "refuse"
        if self.lose_every and self.writes % self.lose_every == 0:
            return "lose"
        return "work"

    async def _pass_hold(self) -> None:
        with self._lock:
            if not self._held:
                return
            loop = asyncio.get_running_loop()
            future: asyncio.Future[None] = loop.create_future()
            self._waiting.append((loop, future))
        await future

    # ------------------------------------------------------------------ what the store is

    @property
    def capabilities(self) -> LightningStoreCapabilities:
        """Those of the store inside, except that faults do not travel to another process."""
        return LightningStoreCapabilities(**{**self.inner.capabilities, "zero_copy": False})


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
