"""Rollouts, their queue, and how an attempt begins."""

from __future__ import annotations

from typing import Any

import pytest

from ...errors import (
    InvalidArgument,
    InvalidTransition,
    ResourcesNotFound,
    RolloutExists,
    RolloutNotFound,
)
from ...store.base import FINISHED, LightningStore
from ...types import (
    AttemptedRollout,
    EnqueueRolloutRequest,
    PromptTemplate,
    RolloutConfig,
    RolloutStatus,
)
from ..clock import ManualClock
from ..values import span_of
from .base import RETRYING, ContractBase


def requests(*inputs: Any) -> list[EnqueueRolloutRequest]:
    """Return one request for each input."""
    return [EnqueueRolloutRequest(input=value) for value in inputs]


async def drain(store: LightningStore) -> list[Any]:
    """Claim everything that is queued and return the inputs, in order."""
    return [rollout.input for rollout in await store.dequeue_many_rollouts(limit=1000)]


async def in_status(store: LightningStore, status: RolloutStatus) -> str:
    """Make a rollout that has this status and return its id."""
    if status == "queuing":
        return (await store.enqueue_rollout("x", config=RETRYING)).rollout_id
    rollout = await store.start_rollout("x", config=RETRYING)
    if status == "preparing":
        return rollout.rollout_id
    await store.add_span(span_of(rollout))
    if status == "requeuing":
        await store.update_attempt(rollout.rollout_id, "latest", status="failed")
    elif status != "running":
        await store.update_rollout(rollout.rollout_id, status=status)
    return rollout.rollout_id


class QueueContract(ContractBase):
    """The queue: who comes in, in what order, and who gets out."""

    async def test_a_rollout_has_the_id_that_it_is_given_and_no_second_one_gets_it(
        self, store: LightningStore
    ) -> None:
        started = await store.start_rollout("x", rollout_id="mine/1")
        queued = await store.enqueue_rollout("y", rollout_id="mine/2")
        assert [started.rollout_id, queued.rollout_id] == ["mine/1", "mine/2"]
        assert started.attempt.rollout_id == "mine/1"
        for taken in ("mine/1", "mine/2"):
            with pytest.raises(RolloutExists, match=taken):
                await store.start_rollout("z", rollout_id=taken)
        twice = [EnqueueRolloutRequest(input=n, rollout_id=f"mine/{n}") for n in (3, 4, 3)]
        with pytest.raises(RolloutExists, match="mine/3"):
            await store.enqueue_many_rollouts(twice)
        with pytest.raises(InvalidArgument, match="rollout_id"):
            await store.start_rollout("z", rollout_id="")
        assert [each.input for each in await store.query_rollouts()] == ["x", "y"]

    async def test_an_enqueued_rollout_waits(self, store: LightningStore, clock: ManualClock) -> None:
        config = RolloutConfig(timeout_seconds=9.5, max_attempts=2, retry_condition=["failed"])
        rollout = await store.enqueue_rollout({"q": 1}, mode="val", config=config, metadata={"k": [1, None]})
        assert rollout.status == "queuing"
        assert (rollout.input, rollout.mode, rollout.config) == ({"q": 1}, "val", config)
        assert (rollout.metadata, rollout.resources_id) == ({"k": [1, None]}, None)
        assert (rollout.start_time, rollout.end_time) == (clock(), None)
        found = await store.get_rollout_by_id(rollout.rollout_id)
        assert found == rollout
        assert not isinstance(found, AttemptedRollout)
        assert await store.get_latest_attempt(rollout.rollout_id) is None

    async def test_what_is_not_given_has_the_defaults(self, store: LightningStore) -> None:
        rollout = await store.enqueue_rollout("x")
        assert (rollout.mode, rollout.resources_id, rollout.metadata) == (None, None, None)
        assert rollout.config == RolloutConfig()

    async def test_rollouts_are_claimed_first_in_first_out(self, store: LightningStore) -> None:
        await store.enqueue_rollout(0)
        created = await store.enqueue_many_rollouts(requests(1, 2, 3))
        assert [rollout.input for rollout in created] == [1, 2, 3]
        await store.enqueue_rollout(4)
        one = await store.dequeue_rollout()
        assert one is not None
        assert one.input == 0
        assert await drain(store) == [1, 2, 3, 4]

    async def test_order_does_not_depend_on_the_clock(
        self, store: LightningStore, clock: ManualClock
    ) -> None:
        for value in range(3):
            await store.enqueue_rollout(value)
            # The place in the queue is the order of arrival; a clock that is set back lets nobody in
            # before others.
            clock.shift(-100.0)
        assert await drain(store) == [0, 1, 2]

    async def test_ids_are_unique(self, store: LightningStore) -> None:
        created = await store.enqueue_many_rollouts(requests(*range(300)))
        assert len({rollout.rollout_id for rollout in created}) == 300

    async def test_enqueueing_nothing_is_harmless(self, store: LightningStore) -> None:
        assert list(await store.enqueue_many_rollouts([])) == []
        assert await store.dequeue_rollout() is None

    async def test_one_bad_request_enqueues_nothing(self, store: LightningStore) -> None:
        bad = EnqueueRolloutRequest(input="bad", resources_id="rs-unknown")
        with pytest.raises(ResourcesNotFound):
            # The good one stands first: it must not be in the queue after the second was refused.
            await store.enqueue_many_rollouts([*requests("good"), bad])
        assert len(await store.query_rollouts()) == 0
        assert await store.dequeue_rollout() is None

    async def test_a_claim_begins_an_attempt(self, store: LightningStore, clock: ManualClock) -> None:
        queued = await store.enqueue_rollout("x")
        clock.shift(5.0)
        claimed = await store.dequeue_rollout()
        assert claimed is not None
        assert claimed.rollout_id == queued.rollout_id
        assert (claimed.status, claimed.start_time, claimed.end_time) == (
            "preparing",
            queued.start_time,
            None,
        )
        attempt = claimed.attempt
        assert (attempt.status, attempt.sequence_id, attempt.worker_id) == ("preparing", 1, None)
        assert (attempt.start_time, attempt.end_time) == (clock(), None)
        assert await store.get_rollout_by_id(queued.rollout_id) == claimed
        assert await store.get_latest_attempt(queued.rollout_id) == attempt

    async def test_an_empty_queue_gives_nothing(self, store: LightningStore) -> None:
        assert await store.dequeue_rollout() is None
        assert await store.dequeue_rollout("w") is None
        assert len(await store.dequeue_many_rollouts(limit=5)) == 0

    async def test_a_claim_takes_up_to_its_limit(self, store: LightningStore) -> None:
        await store.enqueue_many_rollouts(requests(*range(5)))
        assert [r.input for r in await store.dequeue_many_rollouts(limit=2)] == [0, 1]
        # Without a limit it is one, as in 0.3.
        assert [r.input for r in await store.dequeue_many_rollouts()] == [2]
        assert [r.input for r in await store.dequeue_many_rollouts(limit=100)] == [3, 4]

    @pytest.mark.parametrize("limit", [0, -1])
    async def test_a_claim_of_less_than_one_is_refused(self, store: LightningStore, limit: int) -> None:
        await store.enqueue_rollout("x")
        with pytest.raises(InvalidArgument):
            await store.dequeue_many_rollouts(limit=limit)
        assert await drain(store) == ["x"]

    async def test_a_requeued_rollout_stands_at_the_end(self, store: LightningStore) -> None:
        await store.enqueue_many_rollouts(
            [EnqueueRolloutRequest(input=value, config=RETRYING) for value in range(3)]
        )
        first = await store.dequeue_rollout()
        assert first is not None
        await store.update_attempt(first.rollout_id, first.attempt.attempt_id, status="failed")
        again = await store.get_rollout_by_id(first.rollout_id)
        assert again is not None
        assert again.status == "requeuing"
        claimed = await store.dequeue_many_rollouts(limit=10)
        assert [rollout.input for rollout in claimed] == [1, 2, 0]
        assert [rollout.attempt.sequence_id for rollout in claimed] == [1, 1, 2]

    async def test_a_claim_makes_its_worker_busy_with_the_last_one(
        self, store: LightningStore, clock: ManualClock
    ) -> None:
        await store.enqueue_many_rollouts(requests(1, 2))
        claimed = await store.dequeue_many_rollouts(limit=2, worker_id="w")
        assert [rollout.attempt.worker_id for rollout in claimed] == ["w", "w"]
        worker = await store.get_worker_by_id("w")
        assert worker is not None
        assert worker.status == "busy"
        assert worker.current_rollout_id == claimed[-1].rollout_id
        assert worker.current_attempt_id == claimed[-1].attempt.attempt_id
        assert (worker.last_dequeue_time, worker.last_busy_time) == (clock(), clock())

    async def test_an_empty_claim_makes_its_worker_idle(
        self, store: LightningStore, clock: ManualClock
    ) -> None:
        assert await store.dequeue_rollout("w") is None
        worker = await store.get_worker_by_id("w")
        assert worker is not None
        assert (worker.status, worker.current_rollout_id, worker.current_attempt_id) == ("idle", None, None)
        assert (worker.last_dequeue_time, worker.last_idle_time) == (clock(), clock())

    async def test_a_claim_without_a_worker_makes_none(self, store: LightningStore) -> None:
        await store.enqueue_rollout("x")
        await store.dequeue_rollout()
        assert len(await store.query_workers()) == 0


class StartContract(ContractBase):
    """``start_rollout`` and ``start_attempt``: past the queue."""

    async def test_a_started_rollout_is_past_the_queue(
        self, store: LightningStore, clock: ManualClock
    ) -> None:
        rollout = await store.start_rollout("x", mode="train", metadata={"a": 1}, worker_id="w")
        assert (rollout.status, rollout.attempt.status) == ("preparing", "preparing")
        assert (rollout.attempt.sequence_id, rollout.attempt.worker_id) == (1, "w")
        assert (rollout.start_time, rollout.attempt.start_time) == (clock(), clock())
        assert await store.get_rollout_by_id(rollout.rollout_id) == rollout
        assert await store.dequeue_rollout() is None
        worker = await store.get_worker_by_id("w")
        assert worker is not None
        assert (worker.status, worker.current_attempt_id) == ("busy", rollout.attempt.attempt_id)
        assert worker.last_busy_time == clock()

    async def test_starting_with_unknown_resources_writes_nothing(self, store: LightningStore) -> None:
        with pytest.raises(ResourcesNotFound):
            await store.start_rollout("x", resources_id="rs-unknown", worker_id="w")
        assert len(await store.query_rollouts()) == 0
        assert len(await store.query_workers()) == 0

    async def test_the_latest_resources_of_the_moment_are_taken(self, store: LightningStore) -> None:
        before = await store.enqueue_rollout("x")
        first = await store.add_resources({"p": PromptTemplate(template="1", engine="f-string")})
        second = await store.add_resources({"p": PromptTemplate(template="2", engine="f-string")})
        enqueued = await store.enqueue_rollout("x")
        started = await store.start_rollout("x")
        named = await store.enqueue_rollout("x", resources_id=first.resources_id)
        # Now the first is the newest; what was enqueued before keeps what was the latest then.
        await store.update_resources(first.resources_id, {})
        for rollout, expected in (
            (before, None),
            (enqueued, second.resources_id),
            (started, second.resources_id),
            (named, first.resources_id),
        ):
            found = await store.get_rollout_by_id(rollout.rollout_id)
            assert found is not None
            assert found.resources_id == rollout.resources_id == expected

    async def test_an_attempt_by_hand_gives_up_the_place_in_the_queue(self, store: LightningStore) -> None:
        queued = await store.enqueue_rollout("x")
        started = await store.start_attempt(queued.rollout_id, worker_id="w")
        assert (started.status, started.attempt.status) == ("preparing", "preparing")
        assert (started.attempt.sequence_id, started.attempt.worker_id) == (1, "w")
        assert await store.dequeue_rollout() is None
        worker = await store.get_worker_by_id("w")
        assert worker is not None
        assert (worker.status, worker.current_attempt_id) == ("busy", started.attempt.attempt_id)

    async def test_an_attempt_by_hand_becomes_the_latest(self, store: LightningStore) -> None:
        rollout = await store.start_rollout("x")
        await store.add_span(span_of(rollout))
        second = await store.start_attempt(rollout.rollout_id)
        assert (second.status, second.attempt.sequence_id) == ("preparing", 2)
        assert second.attempt.attempt_id != rollout.attempt.attempt_id
        assert await store.get_latest_attempt(rollout.rollout_id) == second.attempt
        former, latest = await store.query_attempts(rollout.rollout_id)
        assert (former.attempt_id, former.status) == (rollout.attempt.attempt_id, "running")
        assert latest == second.attempt

    async def test_an_attempt_of_nothing_is_refused(self, store: LightningStore) -> None:
        with pytest.raises(RolloutNotFound):
            await store.start_attempt("ro-unknown", worker_id="w")
        assert len(await store.query_workers()) == 0

    async def test_a_failed_rollout_is_tried_again_by_hand(self, store: LightningStore) -> None:
        # A person may try again what the policy gave up; nobody else may.
        rollout_id = await in_status(store, "failed")
        again = await store.start_attempt(rollout_id, worker_id="w")
        assert (again.status, again.end_time, again.attempt.sequence_id) == ("preparing", None, 2)
        assert await store.dequeue_rollout() is None
        await store.update_attempt(rollout_id, again.attempt.attempt_id, status="succeeded")
        (finished,) = await store.wait_for_rollouts(rollout_ids=[rollout_id], timeout=0)
        assert finished.status == "succeeded"
        assert finished.end_time is not None

    @pytest.mark.parametrize("status", sorted(FINISHED - {"failed"}))
    async def test_a_finished_rollout_begins_no_attempt(
        self, store: LightningStore, status: RolloutStatus
    ) -> None:
        rollout_id = await in_status(store, status)
        with pytest.raises(InvalidTransition):
            await store.start_attempt(rollout_id, worker_id="w")
        assert len(await store.query_attempts(rollout_id)) == 1
        assert len(await store.query_workers()) == 0


class UpdateRolloutContract(ContractBase):
    """``update_rollout``: fields, statuses, and what a finished rollout keeps."""

    @pytest.mark.parametrize(
        "change",
        [
            {"input": {"new": True}},
            {"input": None},
            {"mode": "test"},
            {"mode": None},
            {"resources_id": None},
            {"config": RolloutConfig(max_attempts=7)},
            {"metadata": {"b": 2}},
            {"metadata": None},
        ],
        ids=repr,
    )
    async def test_only_the_given_field_changes(self, store: LightningStore, change: dict[str, Any]) -> None:
        await store.add_resources({})
        before = await store.enqueue_rollout("x", mode="train", metadata={"a": 1})
        updated = await store.update_rollout(before.rollout_id, **change)
        assert updated.model_dump() == before.model_copy(update=change).model_dump()
        assert await store.get_rollout_by_id(before.rollout_id) == updated
        assert await drain(store) == [updated.input]

    async def test_nothing_given_changes_nothing(self, store: LightningStore) -> None:
        before = await store.enqueue_rollout("x", mode="train", metadata={"a": 1})
        assert await store.update_rollout(before.rollout_id) == before
        assert await drain(store) == ["x"]

    async def test_resources_of_a_rollout_must_exist(self, store: LightningStore) -> None:
        rollout = await store.enqueue_rollout("x")
        with pytest.raises(ResourcesNotFound):
            await store.update_rollout(rollout.rollout_id, input="y", resources_id="rs-unknown")
        assert await store.get_rollout_by_id(rollout.rollout_id) == rollout
        resources = await store.add_resources({})
        updated = await store.update_rollout(rollout.rollout_id, resources_id=resources.resources_id)
        assert updated.resources_id == resources.resources_id

    async def test_an_unknown_rollout_cannot_be_changed(self, store: LightningStore) -> None:
        with pytest.raises(RolloutNotFound):
            await store.update_rollout("ro-unknown", input="y")
        assert await store.get_rollout_by_id("ro-unknown") is None

    async def test_a_value_that_a_rollout_does_not_allow_writes_nothing(self, store: LightningStore) -> None:
        wrong: list[dict[str, Any]] = [
            {"status": "done"},
            {"status": None},
            {"mode": "holiday"},
            {"config": None},
            {"config": "fast"},
            {"metadata": "text"},
            {"metadata": {"a": object()}},
        ]
        before = await store.enqueue_rollout("x", metadata={"a": 1})
        for change in wrong:
            with pytest.raises(InvalidArgument):
                await store.update_rollout(before.rollout_id, **{"input": "y", **change})
            assert await store.get_rollout_by_id(before.rollout_id) == before, change
        assert await drain(store) == ["x"]

    @pytest.mark.parametrize("status", sorted(FINISHED))
    async def test_the_end_is_recorded(
        self, store: LightningStore, clock: ManualClock, status: RolloutStatus
    ) -> None:
        rollout_id = await in_status(store, "running")
        clock.shift(3.0)
        updated = await store.update_rollout(rollout_id, status=status)
        assert (updated.status, updated.end_time) == (status, clock())

    @pytest.mark.parametrize("status", sorted(FINISHED))
    async def test_a_finished_rollout_keeps_its_status_and_end(
        self, store: LightningStore, clock: ManualClock, status: RolloutStatus
    ) -> None:
        rollout_id = await in_status(store, status)
        before = await store.get_rollout_by_id(rollout_id)
        clock.shift(3.0)
        assert before is not None
        every: list[RolloutStatus] = [
            "queuing", "preparing", "running", "failed", "succeeded", "cancelled", "requeuing",
        ]  # fmt: skip
        for other in every:
            if other != status:
                with pytest.raises(InvalidTransition):
                    await store.update_rollout(rollout_id, status=other, input="changed")
        repeated = await store.update_rollout(rollout_id, status=status)
        assert (repeated.status, repeated.end_time) == (status, before.end_time)
        assert await store.get_rollout_by_id(rollout_id) == before
        assert await store.dequeue_rollout() is None

    async def test_other_fields_of_a_finished_rollout_may_change(self, store: LightningStore) -> None:
        rollout_id = await in_status(store, "succeeded")
        updated = await store.update_rollout(rollout_id, metadata={"note": "seen"})
        assert (updated.metadata, updated.status) == ({"note": "seen"}, "succeeded")

    @pytest.mark.parametrize("status", ["queuing", "requeuing"])
    async def test_cancelling_takes_out_of_the_queue(
        self, store: LightningStore, status: RolloutStatus
    ) -> None:
        rollout_id = await in_status(store, status)
        updated = await store.update_rollout(rollout_id, status="cancelled")
        assert updated.status == "cancelled"
        assert await store.dequeue_rollout() is None

    async def test_requeuing_by_hand_puts_it_at_the_end_once(self, store: LightningStore) -> None:
        rollout_id = await in_status(store, "running")
        await store.enqueue_rollout("before")
        await store.update_rollout(rollout_id, status="requeuing")
        await store.update_rollout(rollout_id, status="requeuing")
        assert await drain(store) == ["before", "x"]
        attempts = await store.query_attempts(rollout_id)
        # Claimed once: there is no third attempt.
        assert [attempt.sequence_id for attempt in attempts] == [1, 2]

    @pytest.mark.parametrize("status", ["queuing", "requeuing", "preparing", "running"])
    async def test_the_present_status_of_a_rollout_again_is_harmless(
        self, store: LightningStore, status: RolloutStatus
    ) -> None:
        rollout_id = await in_status(store, status)
        before = await store.get_rollout_by_id(rollout_id)
        await store.update_rollout(rollout_id, status=status)
        assert await store.get_rollout_by_id(rollout_id) == before
        claims = [rollout.rollout_id for rollout in await store.dequeue_many_rollouts(limit=10)]
        assert claims == ([rollout_id] if status in {"queuing", "requeuing"} else [])
