"""Attempts: their statuses, retries, late results, and the workers that follow them."""

from __future__ import annotations

from typing import Any

import pytest

from ...errors import AttemptNotFound, InvalidArgument, InvalidTransition, RolloutNotFound
from ...store.base import LightningStore
from ...types import Attempt, AttemptedRollout, AttemptStatus, Rollout, RolloutConfig, RolloutStatus, Worker
from ..clock import ManualClock
from ..values import span_of
from .base import RETRYING, ContractBase
from .rollouts import drain

ENDED = ("failed", "succeeded")
# ``timeout`` and ``unresponsive`` are verdicts of the watchdog. They are no end: what was silent may still report.
FAULTS = ("failed", "timeout", "unresponsive")


async def running(store: LightningStore, **fields: Any) -> AttemptedRollout:
    """Start a rollout whose attempt has reported a span."""
    rollout = await store.start_rollout("x", **fields)
    await store.add_span(span_of(rollout))
    return rollout


async def rollout_of(store: LightningStore, rollout: Rollout) -> Rollout:
    """Return the rollout as it is now."""
    found = await store.get_rollout_by_id(rollout.rollout_id)
    assert found is not None
    return found


async def attempt_now(store: LightningStore, rollout: AttemptedRollout) -> Attempt:
    """Return an attempt as it is now."""
    for attempt in await store.query_attempts(rollout.rollout_id):
        if attempt.attempt_id == rollout.attempt.attempt_id:
            return attempt
    raise AssertionError(f"attempt {rollout.attempt.attempt_id} is gone")


async def worker_now(store: LightningStore, worker_id: str) -> Worker:
    """Return a worker as it is now."""
    worker = await store.get_worker_by_id(worker_id)
    assert worker is not None
    return worker


class AttemptStatusContract(ContractBase):
    """What an attempt reports, and what becomes of its rollout."""

    async def test_success_ends_both(self, store: LightningStore, clock: ManualClock) -> None:
        rollout = await running(store)
        clock.shift(7.0)
        attempt = await store.update_attempt(
            rollout.rollout_id, rollout.attempt.attempt_id, status="succeeded"
        )
        assert (attempt.status, attempt.end_time) == ("succeeded", clock())
        assert await store.get_latest_attempt(rollout.rollout_id) == attempt
        after = await rollout_of(store, rollout)
        assert (after.status, after.end_time) == ("succeeded", clock())
        assert isinstance(after, AttemptedRollout)
        assert after.attempt == attempt

    async def test_an_attempt_may_succeed_without_any_span(self, store: LightningStore) -> None:
        rollout = await store.start_rollout("x")
        await store.update_attempt(rollout.rollout_id, "latest", status="succeeded")
        assert (await rollout_of(store, rollout)).status == "succeeded"

    async def test_running_takes_its_rollout_along(self, store: LightningStore) -> None:
        rollout = await store.start_rollout("x")
        attempt = await store.update_attempt(rollout.rollout_id, "latest", status="running")
        assert (attempt.status, attempt.end_time) == ("running", None)
        assert (await rollout_of(store, rollout)).status == "running"

    @pytest.mark.parametrize("status", FAULTS)
    async def test_without_a_policy_a_fault_fails_the_rollout(
        self, store: LightningStore, clock: ManualClock, status: AttemptStatus
    ) -> None:
        rollout = await running(store)
        clock.shift(1.0)
        attempt = await store.update_attempt(rollout.rollout_id, "latest", status=status)
        assert (attempt.status, attempt.end_time) == (status, clock() if status == "failed" else None)
        after = await rollout_of(store, rollout)
        assert (after.status, after.end_time) == ("failed", clock())
        assert await store.dequeue_rollout() is None

    @pytest.mark.parametrize("status", FAULTS)
    async def test_the_policy_queues_it_again_until_the_attempts_are_used_up(
        self, store: LightningStore, status: AttemptStatus
    ) -> None:
        config = RolloutConfig(max_attempts=2, retry_condition=[status])
        rollout = await running(store, config=config)
        # Somebody else waits already: what is tried again has to stand behind it.
        await store.enqueue_rollout("before")
        await store.update_attempt(rollout.rollout_id, "latest", status=status)
        after = await rollout_of(store, rollout)
        assert (after.status, after.end_time) == ("requeuing", None)
        assert await drain(store) == ["before", "x"]
        await store.update_attempt(rollout.rollout_id, "latest", status=status)
        after = await rollout_of(store, rollout)
        assert after.status == "failed"
        assert after.end_time is not None
        assert await store.dequeue_rollout() is None

    @pytest.mark.parametrize("status", FAULTS)
    async def test_a_fault_that_the_policy_does_not_name_fails_the_rollout(
        self, store: LightningStore, status: AttemptStatus
    ) -> None:
        named: Any = [other for other in FAULTS if other != status]
        rollout = await running(store, config=RolloutConfig(max_attempts=5, retry_condition=named))
        await store.update_attempt(rollout.rollout_id, "latest", status=status)
        assert (await rollout_of(store, rollout)).status == "failed"

    # ``max_attempts`` bounds all attempts, not only those that the queue made.
    async def test_attempts_by_hand_count_too(self, store: LightningStore) -> None:
        config = RolloutConfig(max_attempts=2, retry_condition=["failed"])
        rollout = await running(store, config=config)
        await store.start_attempt(rollout.rollout_id)
        await store.update_attempt(rollout.rollout_id, "latest", status="failed")
        assert (await rollout_of(store, rollout)).status == "failed"

    @pytest.mark.parametrize("status", ENDED)
    async def test_an_ended_attempt_keeps_its_status_and_end(
        self, store: LightningStore, clock: ManualClock, status: AttemptStatus
    ) -> None:
        rollout = await running(store)
        before = await store.update_attempt(rollout.rollout_id, "latest", status=status)
        clock.shift(9.0)
        every: list[AttemptStatus] = [
            "preparing", "running", "failed", "succeeded", "unresponsive", "timeout",
        ]  # fmt: skip
        for other in every:
            # The metadata that comes with a refused status is not written either.
            if other != status:
                with pytest.raises(InvalidTransition):
                    await store.update_attempt(
                        rollout.rollout_id, "latest", status=other, metadata={"changed": True}
                    )
        assert await store.update_attempt(rollout.rollout_id, "latest", status=status) == before
        assert await store.get_latest_attempt(rollout.rollout_id) == before

    async def test_a_running_attempt_does_not_go_back_to_preparing(self, store: LightningStore) -> None:
        rollout = await running(store)
        with pytest.raises(InvalidTransition):
            await store.update_attempt(rollout.rollout_id, "latest", status="preparing")
        assert (await attempt_now(store, rollout)).status == "running"

    @pytest.mark.parametrize("status", ["preparing", "running", "failed", "timeout", "unresponsive"])
    async def test_the_present_status_of_an_attempt_again_is_harmless(
        self, store: LightningStore, status: AttemptStatus
    ) -> None:
        rollout = await store.start_rollout("x", config=RETRYING)
        if status != "preparing":
            await store.update_attempt(rollout.rollout_id, "latest", status="running")
            await store.update_attempt(rollout.rollout_id, "latest", status=status)
        before = await rollout_of(store, rollout)
        await store.update_attempt(rollout.rollout_id, "latest", status=status)
        assert await rollout_of(store, rollout) == before
        # Said twice, the fault queues the rollout once.
        assert await drain(store) == (["x"] if status in FAULTS else [])


class LateResultContract(ContractBase):
    """What comes after it was decided otherwise changes nothing but the record of who reports it."""

    @pytest.mark.parametrize("status", ["succeeded", "failed", "timeout", "unresponsive", "running"])
    async def test_a_superseded_attempt_changes_its_own_record_only(
        self, store: LightningStore, status: AttemptStatus
    ) -> None:
        former = await running(store, config=RETRYING)
        latest = await store.start_attempt(former.rollout_id)
        before = await rollout_of(store, latest)
        # The former attempt speaks after it was replaced: that is on its own record, and decides nothing.
        reported = await store.update_attempt(former.rollout_id, former.attempt.attempt_id, status=status)
        assert reported.status == status
        assert await attempt_now(store, former) == reported
        assert await rollout_of(store, latest) == before
        assert await store.dequeue_rollout() is None

    async def test_a_span_of_a_superseded_attempt_changes_its_own_record_only(
        self, store: LightningStore, clock: ManualClock
    ) -> None:
        former = await store.start_rollout("x")
        latest = await store.start_attempt(former.rollout_id)
        clock.shift(1.0)
        assert await store.add_span(span_of(former)) is not None
        assert (await attempt_now(store, former)).last_heartbeat_time == clock()
        assert await rollout_of(store, latest) == latest

    @pytest.mark.parametrize("status", ["succeeded", "failed", "timeout", "unresponsive"])
    @pytest.mark.parametrize("verdict", ["cancelled", "failed", "succeeded"])
    async def test_a_late_result_leaves_a_finished_rollout_as_it_is(
        self, store: LightningStore, clock: ManualClock, status: AttemptStatus, verdict: RolloutStatus
    ) -> None:
        rollout = await running(store, config=RETRYING)
        done = await store.update_rollout(rollout.rollout_id, status=verdict)
        clock.shift(60.0)
        reported = await store.update_attempt(rollout.rollout_id, rollout.attempt.attempt_id, status=status)
        assert reported.status == status
        after = await rollout_of(store, rollout)
        assert (after.status, after.end_time) == (verdict, done.end_time)
        assert await store.dequeue_rollout() is None

    async def test_a_late_span_leaves_a_finished_rollout_as_it_is(
        self, store: LightningStore, clock: ManualClock
    ) -> None:
        rollout = await store.start_rollout("x")
        done = await store.update_rollout(rollout.rollout_id, status="cancelled")
        clock.shift(60.0)
        assert await store.add_span(span_of(rollout)) is not None
        after = await rollout_of(store, rollout)
        assert (after.status, after.end_time) == ("cancelled", done.end_time)

    @pytest.mark.parametrize("status", ["succeeded", "failed", "timeout"])
    async def test_a_span_of_an_ended_attempt_is_stored_and_changes_no_status(
        self, store: LightningStore, status: AttemptStatus
    ) -> None:
        rollout = await running(store, config=RETRYING)
        await store.update_attempt(rollout.rollout_id, "latest", status=status)
        before = await rollout_of(store, rollout)
        assert await store.add_span(span_of(rollout, "late")) is not None
        assert (await attempt_now(store, rollout)).status == status
        # A span that comes after the end is kept, since it happened; it does not reopen anything.
        assert (await rollout_of(store, rollout)).status == before.status
        assert len(await store.query_spans(rollout.rollout_id)) == 2
        assert await drain(store) == (["x"] if before.status == "requeuing" else [])

    # A sign of life takes the retry back, as long as nobody has claimed it.
    async def test_a_span_revives_an_unresponsive_attempt(self, store: LightningStore) -> None:
        rollout = await running(store, config=RETRYING)
        await store.update_attempt(rollout.rollout_id, "latest", status="unresponsive")
        assert (await rollout_of(store, rollout)).status == "requeuing"
        await store.add_span(span_of(rollout))
        assert (await attempt_now(store, rollout)).status == "running"
        assert (await rollout_of(store, rollout)).status == "running"
        assert await store.dequeue_rollout() is None
        await store.update_attempt(rollout.rollout_id, "latest", status="succeeded")
        assert (await rollout_of(store, rollout)).status == "succeeded"

    async def test_an_unresponsive_attempt_may_still_report(self, store: LightningStore) -> None:
        rollout = await running(store, config=RETRYING)
        await store.update_attempt(rollout.rollout_id, "latest", status="unresponsive")
        await store.update_attempt(rollout.rollout_id, "latest", status="succeeded")
        assert (await rollout_of(store, rollout)).status == "succeeded"
        assert await store.dequeue_rollout() is None

    async def test_a_span_revives_a_superseded_attempt_alone(self, store: LightningStore) -> None:
        rollout = await running(store, config=RETRYING)
        await store.update_attempt(rollout.rollout_id, "latest", status="unresponsive")
        # The retry has been claimed: two attempts now run, and only the second decides about the rollout.
        second = await store.dequeue_rollout()
        assert second is not None
        await store.add_span(span_of(rollout))
        assert (await attempt_now(store, rollout)).status == "running"
        assert await rollout_of(store, rollout) == second


class UpdateAttemptContract(ContractBase):
    """The other fields of an attempt."""

    async def test_only_the_given_fields_change(self, store: LightningStore) -> None:
        rollout = await store.start_rollout("x", worker_id="w")
        before = rollout.attempt
        changed = await store.update_attempt(
            rollout.rollout_id,
            before.attempt_id,
            metadata={"a": [1]},
            last_heartbeat_time=before.start_time + 5,
        )
        expected = {"metadata": {"a": [1]}, "last_heartbeat_time": before.start_time + 5}
        assert changed == before.model_copy(update=expected)
        assert await store.get_latest_attempt(rollout.rollout_id) == changed
        assert await store.update_attempt(rollout.rollout_id, "latest") == changed
        # ``None`` is a value, and an argument that is left out is none.
        cleared = await store.update_attempt(rollout.rollout_id, "latest", metadata=None)
        assert cleared == changed.model_copy(update={"metadata": None})
        assert (await rollout_of(store, rollout)).status == "preparing"

    async def test_a_worker_may_be_named_later(self, store: LightningStore) -> None:
        rollout = await store.start_rollout("x")
        changed = await store.update_attempt(rollout.rollout_id, "latest", worker_id="w2")
        assert changed.worker_id == "w2"
        assert (await attempt_now(store, rollout)).worker_id == "w2"

    async def test_latest_is_the_one_with_the_highest_number(self, store: LightningStore) -> None:
        former = await store.start_rollout("x")
        latest = await store.start_attempt(former.rollout_id)
        changed = await store.update_attempt(former.rollout_id, "latest", metadata={"here": 1})
        assert changed.attempt_id == latest.attempt.attempt_id
        assert (await attempt_now(store, former)).metadata is None

    async def test_heartbeats_never_go_backwards(self, store: LightningStore, clock: ManualClock) -> None:
        rollout = await store.start_rollout("x")
        ahead = clock() + 100.0
        await store.update_attempt(rollout.rollout_id, "latest", last_heartbeat_time=ahead)
        changed = await store.update_attempt(rollout.rollout_id, "latest", last_heartbeat_time=ahead - 50.0)
        assert changed.last_heartbeat_time == ahead
        # The clock of the store may be set back; a heartbeat that goes back would make a live attempt look
        # silent.
        clock.shift(-3600.0)
        await store.add_span(span_of(rollout))
        assert (await attempt_now(store, rollout)).last_heartbeat_time == ahead

    async def test_unknown_ids_are_refused(self, store: LightningStore) -> None:
        queued = await store.enqueue_rollout("x")
        one = await store.start_rollout("x")
        other = await store.start_rollout("x")
        with pytest.raises(RolloutNotFound):
            await store.update_attempt("ro-unknown", "latest", status="running")
        with pytest.raises(RolloutNotFound):
            await store.update_attempt("ro-unknown", one.attempt.attempt_id, status="running")
        with pytest.raises(AttemptNotFound):
            await store.update_attempt(queued.rollout_id, "latest", status="running")
        with pytest.raises(AttemptNotFound):
            await store.update_attempt(one.rollout_id, "at-unknown", status="running")
        with pytest.raises(AttemptNotFound):
            await store.update_attempt(one.rollout_id, other.attempt.attempt_id, status="running")
        assert await rollout_of(store, one) == one
        assert await rollout_of(store, other) == other

    async def test_a_value_that_an_attempt_does_not_allow_writes_nothing(self, store: LightningStore) -> None:
        wrong: list[dict[str, Any]] = [
            {"status": "done"},
            {"status": None},
            {"status": "cancelled"},
            {"metadata": "text"},
            {"metadata": {"a": object()}},
            {"last_heartbeat_time": "noon"},
            {"last_heartbeat_time": None},
            {"worker_id": None},
            {"worker_id": 7},
        ]
        rollout = await store.start_rollout("x", worker_id="w")
        for change in wrong:
            # Beside arguments that are right, which must not be written alone.
            arguments = {"status": "running", "metadata": {"a": 1}, **change}
            with pytest.raises(InvalidArgument):
                await store.update_attempt(rollout.rollout_id, "latest", **arguments)
            assert await rollout_of(store, rollout) == rollout, change

    async def test_an_undeclared_change_writes_nothing(self, store: LightningStore) -> None:
        rollout = await running(store)
        before = await store.update_attempt(rollout.rollout_id, "latest", status="succeeded")
        with pytest.raises(InvalidTransition):
            await store.update_attempt(
                rollout.rollout_id, "latest", status="running", worker_id="w", metadata={"a": 1}
            )
        assert await store.get_latest_attempt(rollout.rollout_id) == before


class WorkerContract(ContractBase):
    """Workers: heartbeats, and the status that follows their attempt."""

    async def test_a_heartbeat_makes_a_worker(self, store: LightningStore, clock: ManualClock) -> None:
        worker = await store.update_worker("w")
        assert worker == Worker(worker_id="w", status="unknown", last_heartbeat_time=clock())
        assert await store.get_worker_by_id("w") == worker
        clock.shift(4.0)
        stats = {"cpu": 0.5, "nested": {"list": [1, None]}}
        worker = await store.update_worker("w", heartbeat_stats=stats)
        assert (worker.heartbeat_stats, worker.last_heartbeat_time) == (stats, clock())
        assert (await store.update_worker("w")).heartbeat_stats == stats

    async def test_a_heartbeat_changes_no_status(self, store: LightningStore) -> None:
        rollout = await store.start_rollout("x", worker_id="w")
        worker = await store.update_worker("w", {"n": 1})
        assert (worker.status, worker.current_attempt_id) == ("busy", rollout.attempt.attempt_id)

    async def test_stats_that_are_no_map_of_values_are_refused(self, store: LightningStore) -> None:
        wrong: list[Any] = [None, "text", [1], {"a": object()}]
        for stats in wrong:
            with pytest.raises(InvalidArgument):
                await store.update_worker("w", heartbeat_stats=stats)
            assert await store.get_worker_by_id("w") is None

    @pytest.mark.parametrize(
        ("status", "expected"),
        [("succeeded", "idle"), ("failed", "idle"), ("timeout", "unknown"), ("unresponsive", "unknown")],
    )
    async def test_the_end_of_an_attempt_sets_its_worker_free(
        self, store: LightningStore, clock: ManualClock, status: AttemptStatus, expected: str
    ) -> None:
        rollout = await running(store, worker_id="w")
        clock.shift(2.0)
        await store.update_attempt(rollout.rollout_id, "latest", status=status)
        worker = await worker_now(store, "w")
        assert (worker.status, worker.current_rollout_id, worker.current_attempt_id) == (expected, None, None)
        # Of an attempt that was given up nobody knows whether its worker is free.
        assert worker.last_idle_time == (clock() if expected == "idle" else None)

    async def test_a_worker_that_works_on_something_else_stays_busy(self, store: LightningStore) -> None:
        # One worker, two attempts: the end of the first must not set free who works on the second.
        former = await running(store, worker_id="w")
        latter = await running(store, worker_id="w")
        await store.update_attempt(former.rollout_id, "latest", status="succeeded")
        worker = await worker_now(store, "w")
        assert (worker.status, worker.current_attempt_id) == ("busy", latter.attempt.attempt_id)

    async def test_a_superseded_attempt_sets_its_own_worker_free(self, store: LightningStore) -> None:
        former = await running(store, worker_id="old")
        latest = await store.start_attempt(former.rollout_id, worker_id="new")
        await store.update_attempt(former.rollout_id, former.attempt.attempt_id, status="failed")
        assert (await worker_now(store, "old")).status == "idle"
        worker = await worker_now(store, "new")
        assert (worker.status, worker.current_attempt_id) == ("busy", latest.attempt.attempt_id)

    async def test_an_unknown_worker_is_none(self, store: LightningStore) -> None:
        worker: Worker | None = await store.get_worker_by_id("unknown")
        assert worker is None
