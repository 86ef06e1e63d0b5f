"""The state machine itself: transitions, retries, deadlines, workers, interrupted accounts."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentlightning.errors import InvalidTransition
from agentlightning.store import lifecycle
from agentlightning.store.base import FINISHED, QUEUING, RUNNING
from agentlightning.store.utils import rollout_status_from_attempt, scan_unhealthy_rollouts
from agentlightning.types import (
    Account,
    Attempt,
    AttemptedRollout,
    AttemptStatus,
    Rollout,
    RolloutConfig,
    RolloutStatus,
    Worker,
)

ROLLOUT_STATUSES: list[RolloutStatus] = list(get_args(RolloutStatus))
ATTEMPT_STATUSES: list[AttemptStatus] = list(get_args(AttemptStatus))
RETRY_ALL = RolloutConfig(max_attempts=2, retry_condition=["failed", "timeout", "unresponsive"])


def rollout(status: RolloutStatus = "running", config: RolloutConfig | None = None) -> Rollout:
    return Rollout(
        rollout_id="ro", input=None, start_time=100.0, status=status, config=config or RolloutConfig()
    )


def attempt(status: AttemptStatus = "running", **fields: Any) -> Attempt:
    return Attempt(
        **{
            "rollout_id": "ro",
            "attempt_id": "at",
            "sequence_id": 1,
            "start_time": 100.0,
            "status": status,
            **fields,
        }
    )


def worker(**fields: Any) -> Worker:
    return Worker(worker_id="w", **fields)


# ---------------------------------------------------------------------- transitions


def test_every_status_has_its_transitions() -> None:
    assert set(lifecycle.ROLLOUT_TRANSITIONS) == set(ROLLOUT_STATUSES) == QUEUING | RUNNING | FINISHED
    assert set(lifecycle.ATTEMPT_TRANSITIONS) == set(ATTEMPT_STATUSES)
    groups = (lifecycle.LIVE_ATTEMPT, lifecycle.GIVEN_UP_ATTEMPT, lifecycle.ENDED_ATTEMPT)
    assert sorted(status for group in groups for status in group) == sorted(ATTEMPT_STATUSES)


@pytest.mark.parametrize("final", sorted(FINISHED))
@pytest.mark.parametrize("status", ROLLOUT_STATUSES)
def test_a_finished_rollout_never_changes(final: RolloutStatus, status: RolloutStatus) -> None:
    finished = rollout(final).model_copy(update={"end_time": 200.0})

    if status == final:
        assert lifecycle.move_rollout(finished, status, 300.0) is finished
    else:
        with pytest.raises(InvalidTransition, match=final):
            lifecycle.move_rollout(finished, status, 300.0)


@pytest.mark.parametrize("before", ATTEMPT_STATUSES)
@pytest.mark.parametrize("after", ATTEMPT_STATUSES)
def test_an_attempt_moves_only_along_its_transitions(before: AttemptStatus, after: AttemptStatus) -> None:
    given_attempt = attempt(before)

    if before == after:
        assert lifecycle.move_attempt(given_attempt, after, 300.0) is given_attempt
    elif after in lifecycle.ATTEMPT_TRANSITIONS[before]:
        assert lifecycle.move_attempt(given_attempt, after, 300.0).status == after
    else:
        with pytest.raises(InvalidTransition, match=before):
            lifecycle.move_attempt(given_attempt, after, 300.0)


@pytest.mark.parametrize("status", ATTEMPT_STATUSES)
def test_only_a_reported_end_has_an_end_time(status: AttemptStatus) -> None:
    moved = (
        lifecycle.move_attempt(attempt("unresponsive"), status, 300.0) if status != "preparing" else attempt()
    )

    assert moved.end_time == (300.0 if status in ("succeeded", "failed") else None)


def test_an_end_is_never_before_the_start() -> None:
    assert lifecycle.move_attempt(attempt(), "failed", 50.0).end_time == 100.0
    assert lifecycle.move_rollout(rollout(), "failed", 50.0).end_time == 100.0


# ---------------------------------------------------------------------- what a rollout makes of its attempt


@pytest.mark.parametrize("status", ["preparing", "running", "succeeded"])
def test_a_rollout_takes_the_word_of_its_attempt(status: AttemptStatus) -> None:
    assert lifecycle.rollout_status(attempt(status), RETRY_ALL) == status


@pytest.mark.parametrize("status", ["failed", "timeout", "unresponsive"])
def test_a_failure_is_tried_again_as_often_as_the_policy_says(status: AttemptStatus) -> None:
    other = RolloutConfig(max_attempts=2, retry_condition=[])

    assert lifecycle.rollout_status(attempt(status), RETRY_ALL) == "requeuing"
    assert lifecycle.rollout_status(attempt(status, sequence_id=2), RETRY_ALL) == "failed"
    assert lifecycle.rollout_status(attempt(status), other) == "failed"
    assert lifecycle.rollout_status(attempt(status), RolloutConfig(retry_condition=[status])) == "failed"


@pytest.mark.parametrize("final", sorted(FINISHED))
@pytest.mark.parametrize("status", ATTEMPT_STATUSES)
def test_a_late_attempt_does_not_touch_a_finished_rollout(
    final: RolloutStatus, status: AttemptStatus
) -> None:
    assert lifecycle.rollout_after(rollout(final), "unresponsive", attempt(status)) == final


def test_a_late_failure_does_not_take_back_a_granted_retry() -> None:
    queued = rollout("requeuing", RolloutConfig(max_attempts=2, retry_condition=["timeout"]))

    assert lifecycle.rollout_after(queued, "timeout", attempt("failed")) == "requeuing"
    assert lifecycle.rollout_after(queued, "unresponsive", attempt("timeout")) == "requeuing"


def test_a_late_success_or_a_sign_of_life_still_counts_while_the_retry_waits() -> None:
    queued = rollout("requeuing", RETRY_ALL)

    assert lifecycle.rollout_after(queued, "timeout", attempt("succeeded")) == "succeeded"
    assert lifecycle.rollout_after(queued, "unresponsive", attempt("running")) == "running"


@pytest.mark.parametrize("status", ATTEMPT_STATUSES)
def test_a_span_makes_an_attempt_run_unless_it_is_over(status: AttemptStatus) -> None:
    runs = {"preparing", "running", "unresponsive"}

    assert lifecycle.status_after_span(status) == ("running" if status in runs else status)


# ---------------------------------------------------------------------- time


@pytest.mark.parametrize(
    ("now", "beat", "expected"),
    [
        (109.0, None, None),
        (110.0, None, "unresponsive"),
        (112.0, 105.0, None),
        (115.0, 105.0, "unresponsive"),
        (119.9, 119.0, None),
        (120.0, 119.0, "timeout"),
        (500.0, None, "timeout"),
        (0.0, None, None),
        (105.0, 20.0, None),  # a heartbeat from before the start counts from the start
    ],
)
def test_what_time_makes_of_an_attempt(
    now: float, beat: float | None, expected: AttemptStatus | None
) -> None:
    config = RolloutConfig(timeout_seconds=20.0, unresponsive_seconds=10.0)

    assert lifecycle.overdue(attempt(last_heartbeat_time=beat), config, now) == expected


@given(
    st.sampled_from(ATTEMPT_STATUSES),
    st.none() | st.floats(0, 1e6),
    st.none() | st.floats(0, 1e3),
    st.none() | st.floats(0, 1e3),
    st.floats(0, 1e6),
)
def test_an_attempt_is_overdue_from_its_deadline_on_and_not_before(
    status: AttemptStatus,
    beat: float | None,
    limit: float | None,
    silence: float | None,
    now: float,
) -> None:
    config = RolloutConfig(timeout_seconds=limit, unresponsive_seconds=silence)
    late = attempt(status, last_heartbeat_time=beat)

    deadline = lifecycle.deadline(late, config)

    assert (lifecycle.overdue(late, config, now) is not None) == (deadline is not None and now >= deadline)


def test_a_heartbeat_never_goes_backwards() -> None:
    beaten = lifecycle.heartbeat(attempt(), 150.0)

    assert beaten.last_heartbeat_time == 150.0
    assert lifecycle.heartbeat(beaten, 140.0) is beaten


# ---------------------------------------------------------------------- workers


def test_a_worker_follows_the_attempt_that_it_works_on() -> None:
    busy = lifecycle.worker_busy(worker(), attempt(), 100.0)
    assert (busy.status, busy.current_rollout_id, busy.current_attempt_id) == ("busy", "ro", "at")

    idle = lifecycle.worker_after(busy, attempt("succeeded"), 110.0)
    assert (idle.status, idle.current_attempt_id, idle.last_idle_time) == ("idle", None, 110.0)

    lost = lifecycle.worker_after(busy, attempt("unresponsive"), 110.0)
    assert (lost.status, lost.current_attempt_id) == ("unknown", None)
    assert lifecycle.worker_after(lost, attempt("running"), 120.0).current_attempt_id == "at"
    assert lifecycle.worker_after(lost, attempt("failed"), 120.0).status == "idle"


@pytest.mark.parametrize("status", ATTEMPT_STATUSES)
def test_a_worker_that_has_moved_on_is_left_alone(status: AttemptStatus) -> None:
    elsewhere = lifecycle.worker_busy(worker(), attempt(attempt_id="other"), 100.0)

    assert lifecycle.worker_after(elsewhere, attempt(status), 110.0) is elsewhere


def test_the_times_of_a_worker_never_go_backwards() -> None:
    late = worker(last_heartbeat_time=9.0, last_dequeue_time=9.0, last_busy_time=9.0, last_idle_time=9.0)
    for change in (
        lifecycle.worker_heartbeat(late, 1.0),
        lifecycle.worker_dequeued(late, 1.0),
        lifecycle.worker_busy(late, attempt(), 1.0),
        lifecycle.worker_idle(late, 1.0),
    ):
        assert {change.last_heartbeat_time, change.last_dequeue_time} == {9.0}
        assert {change.last_busy_time, change.last_idle_time} == {9.0}


# ---------------------------------------------------------------------- accounts


def account(**fields: Any) -> Account:
    return Account(rollout_id="ro", attempt_id="at", writer_id="host:1:1:1", **fields)


def test_the_higher_revision_of_an_account_holds() -> None:
    assert lifecycle.is_newer(account(revision=0), None)
    assert lifecycle.is_newer(account(revision=2), 1)
    assert not lifecycle.is_newer(account(revision=2), 2)
    assert not lifecycle.is_newer(account(revision=1), 2)


@pytest.mark.parametrize("status", ATTEMPT_STATUSES)
@pytest.mark.parametrize("gone", [True, False])
@pytest.mark.parametrize("closed", [True, False])
def test_interrupted_means_that_an_account_will_not_be_closed(
    status: AttemptStatus, gone: bool, closed: bool
) -> None:
    expected = not closed and (gone or status in ("timeout", "unresponsive"))

    assert lifecycle.interrupted([account(closed=closed)], status, lambda _: gone) == expected
    assert not lifecycle.interrupted([], status, lambda _: gone)


# ---------------------------------------------------------------------- 0.3's names


@pytest.mark.asyncio
async def test_the_names_of_0_3_give_the_same_answers() -> None:
    late = AttemptedRollout(
        **rollout(config=RolloutConfig(timeout_seconds=1.0)).model_dump(), attempt=attempt()
    )

    assert await scan_unhealthy_rollouts([late]) == {("ro", "at"): "timeout"}
    assert await rollout_status_from_attempt(attempt("failed"), RETRY_ALL) == "requeuing"
