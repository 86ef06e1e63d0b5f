"""The ground of the contract suite: how a test gets its store and its clock, and runs in many threads."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import pytest
import pytest_asyncio

from ...store.base import LightningStore
from ...types import RolloutConfig
from ..clock import ManualClock

Clock = Callable[[], float]

RETRYING = RolloutConfig(max_attempts=3, retry_condition=["failed", "timeout", "unresponsive"])
"""A policy that tries again whatever went wrong."""


async def in_threads(calls: Sequence[Callable[[], Awaitable[Any]]]) -> list[Any]:
    """Run each call in a thread and an event loop of its own, all at once; return the answers in order."""
    answers: list[Any] = [None] * len(calls)
    errors: list[BaseException] = []
    # All threads begin at one moment: started one after the other, the first would be done before the last one
    # is there.
    together = threading.Barrier(len(calls))

    def work(index: int) -> None:
        async def main() -> Any:
            return await calls[index]()

        try:
            together.wait(timeout=30.0)
            # A loop of its own for each thread: a store must not depend on the loop in which it was
            # opened.
            answers[index] = asyncio.run(main())
        except BaseException as error:  # noqa: BLE001 - raised again in the test's own thread
            errors.append(error)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        # Not joined on the loop: a store may need it to answer the threads.
        await asyncio.to_thread(thread.join)
    if errors:
        raise errors[0]
    return answers


@pytest.mark.asyncio
class ContractBase:
    """How a suite gets its stores; see :class:`StoreContract`."""

    async def open_store(self, clock: Clock) -> LightningStore:
        """Open a new, empty store that takes its time from ``clock``; called once in a test."""
        raise NotImplementedError(f"{type(self).__name__} must say how its store is opened")

    async def reopen(self, clock: Clock) -> LightningStore:
        """Open what this test's store has kept; only asked of a store that declares to be ``durable``."""
        raise NotImplementedError(f"{type(self).__name__} declares a durable store: it must define reopen()")

    @pytest.fixture
    def clock(self) -> ManualClock:
        """The clock of the store."""
        return ManualClock()

    @pytest_asyncio.fixture
    async def store(self, clock: ManualClock) -> AsyncIterator[LightningStore]:
        """An empty store, closed after the test."""
        store = await self.open_store(clock)
        try:
            yield store
        finally:
            await store.close()
