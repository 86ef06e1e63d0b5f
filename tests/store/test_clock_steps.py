"""A clock that is set while attempts are at work: none is ended by it, and order and rewards stay what they are."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st

from agentlightning.store import InMemoryLightningStore, LightningStore, SqliteLightningStore
from agentlightning.store.clock_steps import ClockSteps
from agentlightning.testing import ManualClock, span_of
from agentlightning.types import Attempt, AttemptedRollout, RolloutConfig

HOUR = 3600.0
LIMITS = [RolloutConfig(timeout_seconds=600), RolloutConfig(unresponsive_seconds=600)]


class Machine:
    """A machine with a clock that may be set, and one that only runs."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.steady = ManualClock(100.0)

    def passes(self, seconds: float) -> None:
        self.clock.shift(seconds)
        self.steady.shift(seconds)

    def is_set(self, seconds: float) -> None:
        """Somebody sets the clock, or (forwards) the machine was asleep."""
        self.clock.shift(seconds)


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest_asyncio.fixture(params=["memory", "sqlite"])
async def store(
    request: pytest.FixtureRequest, tmp_path: Path, machine: Machine
) -> AsyncIterator[LightningStore]:
    found: LightningStore = (
        InMemoryLightningStore(clock=machine.clock, steady=machine.steady)
        if request.param == "memory"
        else SqliteLightningStore(tmp_path / "store.db", clock=machine.clock, steady=machine.steady)
    )
    async with found:
        yield found


async def attempt_of(store: LightningStore, rollout: AttemptedRollout) -> Attempt:
    found = await store.get_latest_attempt(rollout.rollout_id)
    assert found is not None
    return found


@pytest.mark.asyncio
@pytest.mark.parametrize("config", LIMITS, ids=["timeout", "unresponsive"])
@pytest.mark.parametrize("step", [HOUR, -HOUR, 48 * HOUR, 30.0])
async def test_a_clock_that_is_set_ends_no_attempt_and_time_that_passes_does(
    store: LightningStore, machine: Machine, config: RolloutConfig, step: float
) -> None:
    rollout = await store.start_rollout("x", config=config)
    machine.passes(500)
    machine.is_set(step)
    assert (await attempt_of(store, rollout)).status == "preparing"
    machine.passes(99)
    assert (await attempt_of(store, rollout)).status == "preparing"
    if step > 0:  # set back, nobody can tell on which side of the step a moment lies: late, and never early
        machine.passes(1)
        assert (await attempt_of(store, rollout)).status in ("timeout", "unresponsive")
    machine.passes(2 * HOUR)
    assert (await attempt_of(store, rollout)).status in ("timeout", "unresponsive")


@pytest.mark.asyncio
@pytest.mark.parametrize("step", [HOUR, -HOUR])
async def test_signs_of_life_count_on_both_sides_of_a_step(
    store: LightningStore, machine: Machine, step: float
) -> None:
    rollout = await store.start_rollout("x", config=RolloutConfig(unresponsive_seconds=600))
    for _ in range(5):
        await store.add_span(span_of(rollout))
        machine.passes(400)
        machine.is_set(step)
        assert (await attempt_of(store, rollout)).status != "unresponsive"
    machine.passes(601 + (5 * HOUR if step < 0 else 0.0))
    assert (await attempt_of(store, rollout)).status == "unresponsive"


@pytest.mark.asyncio
@pytest.mark.parametrize("steps", [[HOUR, HOUR, 60.0], [-HOUR, -HOUR]])
async def test_an_attempt_that_begins_after_a_step_has_its_whole_time_and_no_more(
    store: LightningStore, machine: Machine, steps: list[float]
) -> None:
    await store.start_rollout("x", config=LIMITS[0])
    for step in steps:
        machine.is_set(step)
        rollout = await store.start_rollout("y", config=LIMITS[0])
        machine.passes(599)
        assert (await attempt_of(store, rollout)).status == "preparing"
        machine.passes(1)
        assert (await attempt_of(store, rollout)).status == "timeout"


@pytest.mark.asyncio
async def test_the_watchdog_ends_no_attempt_for_a_clock_that_is_set(
    store: LightningStore, machine: Machine
) -> None:
    rollout = await store.start_rollout("x", config=LIMITS[0])
    waiting = asyncio.create_task(store.wait_for_rollouts(rollout_ids=[rollout.rollout_id]))
    machine.is_set(HOUR)
    assert not (await asyncio.wait([waiting], timeout=0.05))[0]
    machine.passes(601)
    (ended,) = await asyncio.wait_for(waiting, 60)
    assert ended.status == "failed"


@pytest.mark.asyncio
async def test_attempts_and_spans_keep_their_order_where_the_clock_is_set_back_between_them(
    store: LightningStore, machine: Machine
) -> None:
    config = RolloutConfig(max_attempts=2, retry_condition=["failed"])
    first = await store.start_rollout("x", config=config)
    await store.update_attempt(first.rollout_id, first.attempt.attempt_id, status="failed")
    machine.is_set(-HOUR)
    second = await store.dequeue_rollout("w")
    assert second is not None
    assert (await attempt_of(store, first)).attempt_id == second.attempt.attempt_id
    attempts = await store.query_attempts(first.rollout_id)
    assert [each.sequence_id for each in attempts] == [1, 2]
    for name in ("before", "after"):
        await store.add_span(span_of(second, name=name, start_time=machine.clock(), end_time=machine.clock()))
        machine.is_set(-HOUR)
    spans = await store.query_spans(second.rollout_id, "latest")
    assert [span.name for span in spans] == ["before", "after"]
    ended = await store.update_attempt(second.rollout_id, second.attempt.attempt_id, status="succeeded")
    assert (ended.status, (ended.end_time or 0.0) >= ended.start_time) == ("succeeded", True)


@given(
    st.lists(
        st.tuples(
            st.floats(0, 1e4),
            st.integers(-100_000, 100_000).map(float).filter(lambda step: abs(step) > 1 or step == 0),
        ),
        max_size=8,
    )
)
def test_a_recorded_moment_is_never_shown_as_longer_ago_than_it_is(story: list[tuple[float, float]]) -> None:
    machine = Machine()
    steps = ClockSteps(machine.clock, machine.steady)
    recorded = [(steps.now(), machine.steady())]
    for seconds, step in story:
        machine.passes(seconds)
        recorded.append((steps.now(), machine.steady()))
        machine.is_set(step)
        recorded.append((steps.now(), machine.steady()))
    now = steps.now()
    for wall, steady in recorded:
        assert now - steps.shown(wall) <= machine.steady() - steady + 1e-3
    if all(step >= 0 for _, step in story):
        for wall, steady in recorded:
            assert now - steps.shown(wall) == pytest.approx(machine.steady() - steady, abs=1e-3)


def test_a_child_that_is_forked_while_a_thread_reads_the_clock_can_read_it() -> None:
    is_reading, may_go_on = threading.Event(), threading.Event()

    def clock() -> float:
        if threading.current_thread().name == "slow":
            is_reading.set()
            may_go_on.wait()
        return 1.0

    steps = ClockSteps(clock)
    thread = threading.Thread(target=steps.now, name="slow")
    thread.start()
    is_reading.wait()
    child = os.fork()
    if child == 0:
        signal.alarm(60)  # ends a child that waits for ever
        os._exit(0 if steps.now() == 1.0 else 1)
    may_go_on.set()
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
