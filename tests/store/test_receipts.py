"""``started = stored + dropped + open``, for every attempt and at every moment, whatever goes wrong.

A writer keeps accounts as the tracer's does: it counts a span once its fate goes out in a batch, repeats a batch
until it is acknowledged, and may be killed at any moment. Between it and the store stands a :class:`FaultyStore`
that refuses writes and loses acknowledgements.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections import Counter
from collections import Counter as CounterOf
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentlightning.errors import StoreUnavailable
from agentlightning.store import InMemoryLightningStore, LightningStore, SqliteLightningStore
from agentlightning.store.base import new_writer_id
from agentlightning.testing import FaultyStore, Outcome, account_of, ended, gone_writer_id, open_span_of
from agentlightning.types import AttemptedRollout, Receipt, Span

Step = tuple[Literal["start", "end", "drop", "lose open", "flush", "close", "kill"], int]

STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ["start", "start", "start", "end", "end", "drop", "lose open", "flush", "flush", "close", "kill"]
        ),
        st.integers(0, 5),
    ),
    max_size=30,
)
OUTCOMES: st.SearchStrategy[list[Outcome]] = st.lists(st.sampled_from(["work", "work", "refuse", "lose"]))


@dataclass
class Writer:
    """Carries the spans of one attempt to a store and keeps the account of it."""

    writer_id: str
    revision: int = 0
    committed: set[str] = field(default_factory=set)
    """Spans whose fate was in a batch that the store may have."""
    opened: dict[str, Span] = field(default_factory=dict)
    """Open spans that were sent."""
    begun: dict[str, Span] = field(default_factory=dict)
    """Open spans that were not sent yet."""
    queue: dict[str, Span] = field(default_factory=dict)
    """Ended spans that are not acknowledged."""
    dropped: CounterOf[str] = field(default_factory=Counter)
    unstored: list[str] = field(default_factory=list)
    started: int = 0
    closed: bool = False

    def start(self, span: Span) -> None:
        self.begun[span.span_id] = span
        self.closed = False

    def end(self, choice: int) -> None:
        running = {**self.opened, **self.begun}
        if running:
            span = list(running.values())[choice % len(running)]
            self.opened.pop(span.span_id, None)
            self.begun.pop(span.span_id, None)
            self.queue[span.span_id] = ended(span)

    def drop(self, span: Span) -> None:
        """Lose a span before any of it was sent: the queue is full."""
        self.dropped["queue_full"] += 1
        self.started += 1
        self.closed = False

    def lose_open(self, choice: int) -> None:
        """Lose a span whose start was sent: its end cannot be encoded."""
        if self.opened:
            span_id = sorted(self.opened)[choice % len(self.opened)]
            del self.opened[span_id]
            self.dropped["not_encodable"] += 1
            self.unstored.append(span_id)

    def close(self) -> None:
        self.closed = not (self.begun or self.opened)

    async def flush(self, store: LightningStore, attempted: AttemptedRollout) -> bool:
        """Send all there is; ``False`` where the store did not acknowledge it."""
        for span_id in [*self.queue, *self.begun]:
            if span_id not in self.committed:
                self.committed.add(span_id)
                self.started += 1
        self.opened.update(self.begun)
        self.begun.clear()
        self.revision += 1
        sent = list(self.queue)
        account = account_of(
            attempted,
            self.writer_id,
            revision=self.revision,
            started=self.started,
            dropped=dict(self.dropped),
            unstored=list(self.unstored),
            closed=self.closed,
        )
        try:
            await store.add_many_spans(
                list(self.queue.values()), opened=list(self.opened.values()), accounts=[account]
            )
        except StoreUnavailable:
            return False
        for span_id in sent:
            del self.queue[span_id]
        return True


async def live(store: FaultyStore, steps: list[Step], killed: list[str]) -> None:
    """Let writers go through the steps, and prove the receipt after each and at the end."""
    attempted = await store.inner.start_rollout("x")
    writers = [Writer(new_writer_id(1))]
    for step, choice in steps:
        writer = writers[-1]
        if step == "start":
            writer.start(open_span_of(attempted))
        elif step == "end":
            writer.end(choice)
        elif step == "drop":
            writer.drop(open_span_of(attempted))
        elif step == "lose open":
            writer.lose_open(choice)
        elif step == "close":
            writer.close()
            await writer.flush(store, attempted)
        elif step == "flush":
            await writer.flush(store, attempted)
        elif killed and writer.revision == 0:
            writers[-1] = Writer(killed.pop())  # a writer whose process dies before its next word
        await prove(store, attempted)
    store.heal()
    for writer in writers:
        writer.close()
        assert await writer.flush(store, attempted)
    receipt = await prove(store, attempted)
    (last,) = writers
    assert receipt.started == last.started
    assert receipt.dropped == dict(last.dropped)
    assert receipt.open == len(last.opened)
    assert receipt.stored == last.started - last.dropped.total() - len(last.opened)
    assert receipt.truncated == (last.dropped["queue_full"] > 0)
    assert receipt.interrupted == (not last.closed and last.writer_id != new_writer_id(1))


async def prove(store: FaultyStore, attempted: AttemptedRollout) -> Receipt:
    """Check the receipt against itself and against what can be read."""
    where = attempted.rollout_id, attempted.attempt.attempt_id
    receipt = await store.get_receipt(*where)
    spans = await store.query_spans(*where)
    opened = await store.query_open_spans(*where)
    assert receipt.balanced, receipt
    assert (receipt.stored, receipt.open) == (len(spans), len(opened))
    names = [span.span_id for span in [*spans, *opened]]
    assert len(set(names)) == len(names)
    assert [span.sequence_id for span in spans] == list(range(1, len(spans) + 1))
    return receipt


@pytest.fixture(scope="module")
def gone() -> str:
    """The id of a writer whose process is dead."""
    return gone_writer_id()


def run(
    make: Callable[[], InMemoryLightningStore | SqliteLightningStore],
    steps: list[Step],
    outcomes: list[Outcome],
    killed: list[str],
) -> None:
    async def main() -> None:
        async with FaultyStore(make(), script=outcomes, only={"add_many_spans"}) as store:
            await live(store, steps, killed)

    asyncio.run(main())


@settings(max_examples=150)
@given(steps=STEPS, outcomes=OUTCOMES)
def test_receipts_balance_under_random_faults(gone: str, steps: Any, outcomes: Any) -> None:
    run(InMemoryLightningStore, steps, outcomes, [gone])


@settings(max_examples=25)
@given(steps=STEPS, outcomes=OUTCOMES)
def test_receipts_balance_under_random_faults_in_a_file(gone: str, steps: Any, outcomes: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run(lambda: SqliteLightningStore(Path(folder) / "store.db"), steps, outcomes, [gone])


@pytest.mark.soak
@pytest.mark.timeout(3600)
@settings(max_examples=3000)
@given(steps=STEPS, outcomes=OUTCOMES)
def test_receipts_balance_under_random_faults_for_long(gone: str, steps: Any, outcomes: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run(lambda: SqliteLightningStore(Path(folder) / "store.db"), steps, outcomes, [gone])


async def _writer_and_its_loss(store: LightningStore, crash: bool) -> Receipt:
    attempted = await store.start_rollout("x")
    writer = Writer(gone_writer_id() if crash else new_writer_id(1))
    for _ in range(3):
        writer.start(open_span_of(attempted))
    await writer.flush(store, attempted)
    writer.end(0)
    writer.end(0)
    writer.start(open_span_of(attempted))
    if not crash:
        writer.end(1)
        await writer.flush(store, attempted)
    return await store.get_receipt(attempted.rollout_id, "latest")


@pytest.mark.asyncio
async def test_what_a_killed_writer_had_committed_balances_and_is_marked() -> None:
    async with InMemoryLightningStore() as store:
        receipt = await _writer_and_its_loss(store, crash=True)
    assert (receipt.started, receipt.stored, receipt.open) == (3, 0, 3)
    assert receipt.balanced
    assert receipt.interrupted
    assert not receipt.whole


@pytest.mark.asyncio
async def test_a_living_writer_with_open_spans_is_not_interrupted() -> None:
    async with InMemoryLightningStore() as store:
        receipt = await _writer_and_its_loss(store, crash=False)
    assert (receipt.started, receipt.stored, receipt.open) == (4, 3, 1)
    assert receipt.balanced
    assert not receipt.interrupted
