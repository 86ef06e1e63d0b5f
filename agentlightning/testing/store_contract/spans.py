"""Spans: one door in, numbered without gap or repeat, whole or not at all; and the receipts that prove it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

import pytest
from opentelemetry.sdk.trace import TracerProvider

from ...errors import AttemptNotFound, NotFound, RolloutNotFound
from ...store.base import LightningStore, new_writer_id
from ...types import Account, Attempt, AttemptedRollout, Span
from ..clock import ManualClock
from ..processes import gone_writer_id
from ..values import account_of, ended, ids, open_span_of, span_of
from .attempts import attempt_now, rollout_of
from .base import RETRYING, ContractBase, in_threads

# Writers of this process, which is alive: receipts of their attempts are not interrupted.
WRITER = new_writer_id(1)
OTHER_WRITER = new_writer_id(2)


async def snapshot(store: LightningStore, rollout: AttemptedRollout) -> Sequence[Any]:
    """Return all that a write about this rollout could have changed."""
    return (
        await rollout_of(store, rollout),
        list(await store.query_attempts(rollout.rollout_id)),
        list(await store.query_spans(rollout.rollout_id)),
        list(await store.query_open_spans(rollout.rollout_id)),
        await store.get_receipt(rollout.rollout_id, rollout.attempt.attempt_id),
    )


def copies_of(attempted: AttemptedRollout, count: int) -> list[Span]:
    """Return spans that differ in their ids; faster to make than new ones."""
    span = span_of(attempted)
    return [span.model_copy(update={"span_id": f"{span.span_id}{number}"}) for number in range(count)]


def sequence_ids(spans: Sequence[Span]) -> list[int]:
    """Return the sequence ids, in order."""
    return [span.sequence_id for span in spans]


class AddSpansContract(ContractBase):
    """``add_many_spans``: what is stored, once, and under which number."""

    batches_of_a_writer: ClassVar[int] = 10
    """How long concurrent writers write; more takes longer, and may meet what is rare."""

    async def test_the_first_span_sets_things_running(
        self, store: LightningStore, clock: ManualClock
    ) -> None:
        rollout = await store.start_rollout("x")
        clock.shift(2.0)
        span = span_of(rollout)
        stored = await store.add_span(span)
        assert stored == span.model_copy(update={"sequence_id": 1})
        assert list(await store.query_spans(rollout.rollout_id)) == [stored]
        after = await rollout_of(store, rollout)
        assert isinstance(after, AttemptedRollout)
        assert (after.status, after.attempt.status) == ("running", "running")
        assert after.attempt.last_heartbeat_time == clock()

    async def test_numbers_run_from_one_in_the_order_of_the_batches(self, store: LightningStore) -> None:
        rollout = await store.start_rollout("x")
        spans = [span_of(rollout) for _ in range(7)]
        stored = [*await store.add_many_spans(spans[:4]), *await store.add_many_spans(spans[4:])]
        assert ids(stored) == ids(spans)
        assert sequence_ids(stored) == [1, 2, 3, 4, 5, 6, 7]
        assert list(await store.query_spans(rollout.rollout_id)) == stored

    async def test_each_attempt_has_numbers_of_its_own(self, store: LightningStore) -> None:
        one, two = await store.start_rollout("x"), await store.start_rollout("y")
        again = await store.start_attempt(one.rollout_id)
        stored = await store.add_many_spans([span_of(at) for at in (one, two, one, again, two)])
        assert sequence_ids(stored) == [1, 1, 2, 1, 2]

    async def test_a_repeat_stores_nothing(self, store: LightningStore) -> None:
        rollout = await store.start_rollout("x")
        span = span_of(rollout, attributes={"version": 1})
        stored = await store.add_span(span)
        # The first write wins: whoever sends a span again must not be able to change what was acknowledged.
        changed = span.model_copy(update={"attributes": {"version": 2}, "sequence_id": 9})
        assert await store.add_span(span) is None
        assert await store.add_span(changed) is None
        assert list(await store.query_spans(rollout.rollout_id)) == [stored]
        following = await store.add_span(span_of(rollout))
        assert following is not None
        assert following.sequence_id == 2

    async def test_what_was_stored_before_is_left_out_of_the_answer(self, store: LightningStore) -> None:
        rollout = await store.start_rollout("x")
        spans = [span_of(rollout) for _ in range(5)]
        # As after a lost acknowledgement of a part: the whole batch comes again, and only what is new is
        # stored and numbered.
        await store.add_many_spans([spans[1], spans[3]])
        stored = await store.add_many_spans(spans)
        assert ids(stored) == [spans[0].span_id, spans[2].span_id, spans[4].span_id]
        assert sequence_ids(stored) == [3, 4, 5]

    async def test_a_span_twice_in_one_batch_is_stored_once(self, store: LightningStore) -> None:
        rollout = await store.start_rollout("x")
        span = span_of(rollout)
        assert sequence_ids(await store.add_many_spans([span, span, span_of(rollout)])) == [1, 2]
        assert len(await store.query_spans(rollout.rollout_id)) == 2

    async def test_one_span_id_may_stand_in_two_attempts(self, store: LightningStore) -> None:
        one, two = await store.start_rollout("x"), await store.start_rollout("y")
        again = await store.start_attempt(one.rollout_id)
        spans = [span_of(at, span_id="a" * 16) for at in (one, two, again)]
        assert len(await store.add_many_spans(spans)) == 3

    async def test_an_empty_batch_is_harmless(self, store: LightningStore) -> None:
        rollout = await store.start_rollout("x")
        assert list(await store.add_many_spans([])) == []
        assert await rollout_of(store, rollout) == rollout

    async def test_a_given_number_is_kept_and_raises_the_counter(self, store: LightningStore) -> None:
        rollout = await store.start_rollout("x")
        # 0 asks for a number. A lower one that is given (3) is kept and does not take the counter back.
        batch = [span_of(rollout, sequence_id=number) for number in (0, 10, 0, 3, 0)]
        assert sequence_ids(await store.add_many_spans(batch)) == [1, 10, 11, 3, 12]
        assert await store.get_next_span_sequence_id(rollout.rollout_id, rollout.attempt.attempt_id) == 13
        assert sequence_ids(await store.query_spans(rollout.rollout_id)) == [1, 3, 10, 11, 12]

    async def test_reserved_numbers_come_from_the_same_counter(self, store: LightningStore) -> None:
        one, two = await store.start_rollout("x"), await store.start_rollout("y")
        pair, other = ((at.rollout_id, at.attempt.attempt_id) for at in (one, two))
        assert await store.get_next_span_sequence_id(*pair) == 1
        await store.add_span(span_of(one))
        # One trip for several attempts; the answer is in the order of the question.
        assert list(await store.get_many_span_sequence_ids([pair, other, pair])) == [3, 1, 4]
        kept = await store.add_span(span_of(one, sequence_id=3))
        following = await store.add_span(span_of(one))
        assert kept is not None
        assert following is not None
        assert (kept.sequence_id, following.sequence_id) == (3, 5)
        assert list(await store.get_many_span_sequence_ids([])) == []

    async def test_reserving_for_the_unknown_reserves_nothing(self, store: LightningStore) -> None:
        rollout = await store.start_rollout("x")
        pair = (rollout.rollout_id, rollout.attempt.attempt_id)
        with pytest.raises(AttemptNotFound):
            # The known pair comes first: what was reserved for it must be given back.
            await store.get_many_span_sequence_ids([pair, (rollout.rollout_id, "at-unknown")])
        with pytest.raises(RolloutNotFound):
            await store.get_many_span_sequence_ids([pair, ("ro-unknown", "at-unknown")])
        assert await store.get_next_span_sequence_id(*pair) == 1

    async def test_concurrent_writers_leave_no_gap_and_no_repeat(self, store: LightningStore) -> None:
        rollout = await store.start_rollout("x")
        count = self.batches_of_a_writer
        batches = [[copies_of(rollout, 20) for _ in range(count)] for _ in range(8)]

        async def write(mine: list[list[Span]]) -> list[Span]:
            return [span for batch in mine for span in await store.add_many_spans(batch)]

        written = await in_threads([partial(write, mine) for mine in batches])
        # 8 writers × their batches × 20 spans: no number twice, and none left out.
        numbers = list(range(1, 8 * count * 20 + 1))
        assert sorted(span.sequence_id for spans in written for span in spans) == numbers
        for mine, spans in zip(batches, written, strict=True):
            assert ids(spans) == [span.span_id for batch in mine for span in batch]
            # Each writer's own order is kept, whatever came between its batches.
            assert sequence_ids(spans) == sorted(sequence_ids(spans))
        found = await store.query_spans(rollout.rollout_id)
        assert sequence_ids(found) == numbers
        assert len(set(ids(found))) == len(numbers)

    @pytest.mark.parametrize("where", ["span", "opened", "account"])
    @pytest.mark.parametrize("unknown", ["rollout", "attempt", "other rollout's attempt"])
    async def test_one_bad_span_writes_nothing(self, store: LightningStore, where: str, unknown: str) -> None:
        rollout, other = await store.start_rollout("x"), await store.start_rollout("y")
        # A span, an open span or an account that belongs to nothing, in a batch that is right otherwise.
        stray = {
            "rollout": Attempt(rollout_id="ro-unknown", attempt_id="at-unknown", sequence_id=1, start_time=0),
            "attempt": rollout.attempt.model_copy(update={"attempt_id": "at-unknown"}),
            "other rollout's attempt": rollout.attempt.model_copy(
                update={"attempt_id": other.attempt.attempt_id}
            ),
        }[unknown]
        before = await snapshot(store, rollout), await snapshot(store, other)
        with pytest.raises(RolloutNotFound if unknown == "rollout" else AttemptNotFound):
            await store.add_many_spans(
                [span_of(rollout), span_of(other), *([span_of(stray)] if where == "span" else [])],
                opened=[open_span_of(rollout), *([open_span_of(stray)] if where == "opened" else [])],
                accounts=[
                    account_of(rollout, WRITER, started=2),
                    *([account_of(stray, WRITER)] if where == "account" else []),
                ],
            )
        # Neither rows nor statuses, heartbeats or accounts; and no number was used up.
        assert (await snapshot(store, rollout), await snapshot(store, other)) == before
        assert await store.get_next_span_sequence_id(rollout.rollout_id, rollout.attempt.attempt_id) == 1

    async def test_an_opentelemetry_span_is_stored_as_it_is(self, store: LightningStore) -> None:
        rollout = await store.start_rollout("x")
        tracer = TracerProvider().get_tracer("contract")
        with tracer.start_as_current_span("outer"), tracer.start_as_current_span("inner") as inner:
            inner.set_attribute("list", [1, 2])
            inner.add_event("seen", {"n": 1})
        where = (rollout.rollout_id, rollout.attempt.attempt_id)
        stored = await store.add_otel_span(*where, inner)  # type: ignore[arg-type]
        expected = Span.from_opentelemetry(inner, *where, 1)  # type: ignore[arg-type]
        assert stored == expected
        assert list(await store.query_spans(rollout.rollout_id)) == [expected]
        assert await store.add_otel_span(*where, inner) is None  # type: ignore[arg-type]

    async def test_an_opentelemetry_span_may_bring_its_number(self, store: LightningStore) -> None:
        rollout = await store.start_rollout("x")
        with TracerProvider().get_tracer("contract").start_as_current_span("one") as span:
            pass
        stored = await store.add_otel_span(
            rollout.rollout_id,
            rollout.attempt.attempt_id,
            span,  # type: ignore[arg-type]
            sequence_id=5,
        )
        assert stored is not None
        assert stored.sequence_id == 5


class OpenSpansContract(ContractBase):
    """Spans that have a start and no end."""

    async def test_an_open_span_is_kept_apart(self, store: LightningStore, clock: ManualClock) -> None:
        rollout = await store.start_rollout("x")
        clock.shift(1.0)
        begun = open_span_of(rollout, "begun")
        assert list(await store.add_many_spans([], opened=[begun])) == []
        assert list(await store.query_open_spans(rollout.rollout_id)) == [begun]
        assert len(await store.query_spans(rollout.rollout_id)) == 0
        after = await rollout_of(store, rollout)
        assert isinstance(after, AttemptedRollout)
        assert (after.status, after.attempt.status) == ("running", "running")
        assert after.attempt.last_heartbeat_time == clock()

    async def test_storing_a_span_closes_it(self, store: LightningStore) -> None:
        rollout = await store.start_rollout("x")
        begun, other = open_span_of(rollout, "begun"), open_span_of(rollout, "other")
        await store.add_many_spans([], opened=[begun, other])
        stored = await store.add_many_spans([ended(begun)])
        assert sequence_ids(stored) == [1]
        assert ids(await store.query_open_spans(rollout.rollout_id)) == [other.span_id]
        assert list(await store.query_spans(rollout.rollout_id)) == list(stored)

    async def test_opening_again_changes_nothing(self, store: LightningStore) -> None:
        rollout = await store.start_rollout("x")
        begun = open_span_of(rollout, "begun")
        await store.add_many_spans([], opened=[begun, begun])
        await store.add_many_spans([], opened=[begun.model_copy(update={"name": "renamed"})])
        assert list(await store.query_open_spans(rollout.rollout_id)) == [begun]

    async def test_a_stored_span_is_not_opened_again(self, store: LightningStore) -> None:
        rollout = await store.start_rollout("x")
        early, late = open_span_of(rollout), open_span_of(rollout)
        await store.add_many_spans([ended(early)])
        # A writer may report the start of a span after its end, where the two came in different batches.
        await store.add_many_spans([ended(late)], opened=[early, late])
        assert len(await store.query_open_spans(rollout.rollout_id)) == 0
        assert len(await store.query_spans(rollout.rollout_id)) == 2

    async def test_open_spans_come_by_start_time(self, store: LightningStore) -> None:
        rollout = await store.start_rollout("x")
        again = await store.start_attempt(rollout.rollout_id)
        begun = [
            # Two attempts and no order: the answer is by start, also across attempts.
            open_span_of(rollout, start_time=30.0),
            open_span_of(again, start_time=20.0),
            open_span_of(rollout, start_time=10.0),
        ]
        await store.add_many_spans([], opened=begun)
        found = await store.query_open_spans(rollout.rollout_id)
        assert ids(found) == ids([begun[2], begun[1], begun[0]])
        assert all(span.end_time is None and span.sequence_id == 0 for span in found)
        of_one = await store.query_open_spans(rollout.rollout_id, rollout.attempt.attempt_id)
        assert ids(of_one) == ids([begun[2], begun[0]])

    async def test_an_open_span_may_end_after_its_attempt(self, store: LightningStore) -> None:
        rollout = await store.start_rollout("x")
        begun = open_span_of(rollout)
        await store.add_many_spans([], opened=[begun])
        await store.update_attempt(rollout.rollout_id, "latest", status="succeeded")
        assert ids(await store.query_open_spans(rollout.rollout_id)) == [begun.span_id]
        assert len(await store.add_many_spans([ended(begun)])) == 1
        assert len(await store.query_open_spans(rollout.rollout_id)) == 0
        assert (await attempt_now(store, rollout)).status == "succeeded"

    async def test_unknown_ids_have_no_open_spans(self, store: LightningStore) -> None:
        rollout = await store.start_rollout("x")
        assert len(await store.query_open_spans("ro-unknown")) == 0
        assert len(await store.query_open_spans(rollout.rollout_id, "at-unknown")) == 0


class ReceiptContract(ContractBase):
    """Receipts: what writers say beside what the store counts."""

    async def test_a_new_attempt_has_an_empty_receipt(self, store: LightningStore) -> None:
        rollout = await store.start_rollout("x")
        receipt = await store.get_receipt(rollout.rollout_id, "latest")
        assert (receipt.rollout_id, receipt.attempt_id) == (rollout.rollout_id, rollout.attempt.attempt_id)
        assert (receipt.started, receipt.stored, receipt.open, receipt.dropped) == (0, 0, 0, {})
        # Nothing was started, so nothing is missing: an empty attempt is whole.
        assert (receipt.late, receipt.truncated, receipt.interrupted) == (0, False, False)
        assert receipt.whole

    async def test_spans_that_no_writer_declared_count_as_started(self, store: LightningStore) -> None:
        rollout = await store.start_rollout("x")
        await store.add_many_spans([span_of(rollout), span_of(rollout)])
        receipt = await store.get_receipt(rollout.rollout_id, rollout.attempt.attempt_id)
        assert (receipt.started, receipt.stored) == (2, 2)
        assert receipt.whole

    # A program may add spans by itself beside a tracer: those are in no account and must be counted once.
    async def test_declared_and_undeclared_spans_add_up(self, store: LightningStore) -> None:
        rollout = await store.start_rollout("x")
        await store.add_span(span_of(rollout, "by hand"))
        await store.add_many_spans(
            [span_of(rollout), span_of(rollout)], accounts=[account_of(rollout, WRITER, started=2)]
        )
        await store.add_span(span_of(rollout, "by hand"))
        receipt = await store.get_receipt(rollout.rollout_id, "latest")
        assert (receipt.started, receipt.stored) == (4, 4)
        assert receipt.whole

    async def test_a_span_is_declared_once_whoever_sends_it_when(self, store: LightningStore) -> None:
        rollout = await store.start_rollout("x")
        # ``by_hand`` comes first without an account and then with one; ``begun`` is declared when it starts
        # and not when it ends. Each is to be counted once.
        by_hand, begun = span_of(rollout), open_span_of(rollout)
        account = account_of(rollout, WRITER, revision=1, started=1)
        await store.add_many_spans([by_hand])
        await store.add_many_spans([], opened=[begun], accounts=[account])
        await store.add_many_spans([ended(begun)])
        receipt = await store.get_receipt(rollout.rollout_id, "latest")
        assert (receipt.started, receipt.stored) == (2, 2)
        await store.add_many_spans(
            [by_hand], accounts=[account.model_copy(update={"revision": 2, "started": 2})]
        )
        receipt = await store.get_receipt(rollout.rollout_id, "latest")
        assert (receipt.started, receipt.stored) == (2, 2)
        assert receipt.whole

    async def test_what_started_is_stored_dropped_or_open(self, store: LightningStore) -> None:
        rollout = await store.start_rollout("x")
        begun = open_span_of(rollout)
        account = account_of(rollout, WRITER, revision=1, started=5, dropped={"not_encodable": 2}, late=1)
        await store.add_many_spans([span_of(rollout), span_of(rollout)], opened=[begun], accounts=[account])
        receipt = await store.get_receipt(rollout.rollout_id, "latest")
        assert (receipt.started, receipt.stored, receipt.open) == (5, 2, 1)
        assert (receipt.dropped, receipt.late, receipt.truncated) == ({"not_encodable": 2}, 1, False)
        assert receipt.balanced
        assert not receipt.whole
        await store.add_many_spans(
            [ended(begun)], accounts=[account.model_copy(update={"revision": 2, "closed": True})]
        )
        receipt = await store.get_receipt(rollout.rollout_id, "latest")
        assert (receipt.started, receipt.stored, receipt.open) == (5, 3, 0)
        assert receipt.balanced

    async def test_writers_add_up(self, store: LightningStore) -> None:
        rollout = await store.start_rollout("x")
        await store.add_many_spans(
            [span_of(rollout)],
            accounts=[
                # 7 were started: 1 stored + 6 dropped. A full queue loses the newest spans, so the
                # tail is missing: truncated.
                account_of(rollout, WRITER, started=3, dropped={"pipeline": 1, "queue_full": 1}, late=1),
                account_of(rollout, OTHER_WRITER, started=4, dropped={"queue_full": 4}, late=2),
            ],
        )
        receipt = await store.get_receipt(rollout.rollout_id, "latest")
        assert (receipt.started, receipt.dropped) == (7, {"pipeline": 1, "queue_full": 5})
        assert (receipt.late, receipt.truncated) == (3, True)
        assert receipt.balanced

    async def test_the_highest_revision_of_a_writer_counts(self, store: LightningStore) -> None:
        rollout = await store.start_rollout("x")

        async def say(revision: int, started: int) -> int:
            account = account_of(
                rollout, WRITER, revision=revision, started=started, dropped={"pipeline": started}
            )
            await store.add_many_spans([], accounts=[account])
            receipt = await store.get_receipt(rollout.rollout_id, "latest")
            assert receipt.balanced
            return receipt.started

        # Accounts are totals. A batch that was held up arrives after a newer one and must not take the
        # count back.
        assert await say(3, 30) == 30
        assert await say(2, 40) == 30
        assert await say(3, 50) == 30
        assert await say(4, 10) == 10

    async def test_accounts_are_of_one_attempt(self, store: LightningStore) -> None:
        rollout = await store.start_rollout("x")
        again = await store.start_attempt(rollout.rollout_id)
        await store.add_many_spans(
            [span_of(rollout), span_of(again)],
            accounts=[
                account_of(rollout, WRITER, started=1),
                account_of(again, WRITER, started=2, dropped={"pipeline": 1}),
            ],
        )
        first = await store.get_receipt(rollout.rollout_id, rollout.attempt.attempt_id)
        latest = await store.get_receipt(rollout.rollout_id, "latest")
        assert (first.started, first.attempt_id) == (1, rollout.attempt.attempt_id)
        assert (latest.started, latest.attempt_id) == (2, again.attempt.attempt_id)
        assert first.whole
        assert latest.balanced

    async def test_an_open_span_that_was_dropped_is_no_longer_open(self, store: LightningStore) -> None:
        rollout = await store.start_rollout("x")
        lost, kept = open_span_of(rollout), open_span_of(rollout)
        account = account_of(rollout, WRITER, revision=1, started=2)
        await store.add_many_spans([], opened=[lost, kept], accounts=[account])
        dropped: dict[str, Any] = {"dropped": {"not_encodable": 1}, "unstored": [lost.span_id]}
        await store.add_many_spans([], accounts=[account.model_copy(update={"revision": 2, **dropped})])
        assert ids(await store.query_open_spans(rollout.rollout_id)) == [kept.span_id]
        receipt = await store.get_receipt(rollout.rollout_id, "latest")
        assert (receipt.started, receipt.open, receipt.dropped) == (2, 1, {"not_encodable": 1})
        assert receipt.balanced

    async def test_a_writer_that_is_gone_interrupts_unless_it_closed(self, store: LightningStore) -> None:
        gone = gone_writer_id()
        # Whether a process of another machine is alive cannot be told from here, so it does not interrupt.
        elsewhere = "another-host:1:1:1"
        for writer, closed, interrupted in (
            # Writer, whether its account is closed, whether the attempt is interrupted.
            (gone, False, True),
            (gone, True, False),
            (WRITER, False, False),
            (WRITER, True, False),
            (elsewhere, False, False),
        ):
            rollout = await store.start_rollout("x")
            account = account_of(rollout, writer, started=1, closed=closed)
            await store.add_many_spans([span_of(rollout)], accounts=[account])
            receipt = await store.get_receipt(rollout.rollout_id, "latest")
            assert receipt.interrupted is interrupted
            assert receipt.balanced
            assert receipt.whole is not interrupted

    async def test_a_repeated_batch_changes_no_receipt(self, store: LightningStore) -> None:
        rollout = await store.start_rollout("x")
        spans, begun = [span_of(rollout) for _ in range(3)], open_span_of(rollout)
        account = account_of(rollout, WRITER, revision=1, started=4)
        await store.add_many_spans(spans, opened=[begun], accounts=[account])
        before = await store.get_receipt(rollout.rollout_id, "latest")
        assert len(await store.add_many_spans(spans, opened=[begun], accounts=[account])) == 0
        assert await store.get_receipt(rollout.rollout_id, "latest") == before

    async def test_receipts_of_the_unknown_are_refused(self, store: LightningStore) -> None:
        queued = await store.enqueue_rollout("x")
        with pytest.raises(RolloutNotFound):
            await store.get_receipt("ro-unknown", "latest")
        with pytest.raises(AttemptNotFound):
            await store.get_receipt(queued.rollout_id, "latest")
        with pytest.raises(AttemptNotFound):
            await store.get_receipt(queued.rollout_id, "at-unknown")
        account = Account(rollout_id=queued.rollout_id, attempt_id="at-unknown", writer_id=WRITER)
        with pytest.raises(NotFound):
            await store.add_many_spans([], accounts=[account])

    async def test_a_revived_rollout_keeps_its_receipt(self, store: LightningStore) -> None:
        rollout = await store.start_rollout("x", config=RETRYING)
        await store.add_many_spans(
            [span_of(rollout)], accounts=[account_of(rollout, WRITER, revision=1, started=1)]
        )
        # The watchdog gave the attempt up, and a span of it comes all the same: it was only silent.
        await store.update_attempt(rollout.rollout_id, "latest", status="unresponsive")
        await store.add_many_spans(
            [span_of(rollout)], accounts=[account_of(rollout, WRITER, revision=2, started=2, closed=True)]
        )
        receipt = await store.get_receipt(rollout.rollout_id, "latest")
        assert (receipt.started, receipt.stored) == (2, 2)
        assert receipt.whole
