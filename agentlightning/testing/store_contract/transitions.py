"""Every pair of statuses, and what time alone does.

``lifecycle`` declares which changes there are; a store allows those and no other. The sets below say
independently of it what must be and what must never be, so that a mistake in the tables does not prove itself.
"""

from __future__ import annotations

import asyncio
from typing import Any, get_args

import pytest

from ...errors import InvalidTransition
from ...store.base import FINISHED, LightningStore
from ...store.lifecycle import ATTEMPT_TRANSITIONS, ROLLOUT_TRANSITIONS
from ...types import AttemptedRollout, AttemptStatus, RolloutConfig, RolloutStatus
from ..clock import ManualClock, wait_until_async
from ..values import span_of
from .attempts import attempt_now, rollout_of, worker_now
from .base import RETRYING, ContractBase
from .rollouts import drain, in_status
from .waiting import PATIENCE

ROLLOUT_STATUSES: tuple[RolloutStatus, ...] = get_args(RolloutStatus)
ATTEMPT_STATUSES: tuple[AttemptStatus, ...] = get_args(AttemptStatus)

ROLLOUT_MUST: frozenset[tuple[str, str]] = frozenset(
    {
        ("queuing", "preparing"),
        ("queuing", "cancelled"),
        ("preparing", "running"),
        ("preparing", "cancelled"),
        ("preparing", "failed"),
        ("preparing", "requeuing"),
        ("running", "preparing"),
        ("running", "succeeded"),
        ("running", "failed"),
        ("running", "cancelled"),
        ("running", "requeuing"),
        ("requeuing", "preparing"),
        ("requeuing", "running"),
        ("requeuing", "cancelled"),
        ("requeuing", "succeeded"),
    }
)
"""Changes that the life of a rollout needs: claims, results, retries, revival, a new attempt by hand."""

ATTEMPT_MUST: frozenset[tuple[str, str]] = frozenset(
    {
        ("preparing", "running"),
        ("preparing", "succeeded"),
        ("preparing", "failed"),
        ("preparing", "timeout"),
        ("preparing", "unresponsive"),
        ("running", "succeeded"),
        ("running", "failed"),
        ("running", "timeout"),
        ("running", "unresponsive"),
        ("unresponsive", "running"),
        ("unresponsive", "succeeded"),
        ("unresponsive", "failed"),
    }
)
"""Changes that the life of an attempt needs."""

ATTEMPT_MUST_NOT: frozenset[tuple[str, str]] = frozenset(
    {("running", "preparing"), ("timeout", "preparing"), ("unresponsive", "preparing")}
    | {("timeout", "running"), ("timeout", "unresponsive")}
    | {(ended, other) for ended in ("succeeded", "failed") for other in ATTEMPT_STATUSES if other != ended}
)
"""Nothing begins twice, an end is final, and only silence, not lateness, is undone by a sign of life."""


def _pairs(table: Any) -> set[tuple[str, str]]:
    return {(status, following) for status, allowed in table.items() for following in allowed}


async def attempt_in(store: LightningStore, status: AttemptStatus) -> AttemptedRollout:
    """Make an attempt that has this status."""
    rollout = await store.start_rollout("x", config=RETRYING)
    if status != "preparing":
        await store.update_attempt(rollout.rollout_id, "latest", status="running")
        await store.update_attempt(rollout.rollout_id, "latest", status=status)
    return rollout


class TransitionsContract(ContractBase):
    """Statuses change as declared and in no other way."""

    async def test_the_tables_declare_what_must_be_and_nothing_else(self, store: LightningStore) -> None:
        rollouts, attempts = _pairs(ROLLOUT_TRANSITIONS), _pairs(ATTEMPT_TRANSITIONS)
        assert set(ROLLOUT_TRANSITIONS) == set(ROLLOUT_STATUSES)
        assert set(ATTEMPT_TRANSITIONS) == set(ATTEMPT_STATUSES)
        assert rollouts >= ROLLOUT_MUST
        assert not {pair for pair in rollouts if pair[0] in FINISHED}
        assert attempts >= ATTEMPT_MUST
        assert not attempts & ATTEMPT_MUST_NOT
        assert store.capabilities is not None

    @pytest.mark.parametrize("status", ROLLOUT_STATUSES)
    async def test_a_rollout_moves_as_declared(self, store: LightningStore, status: RolloutStatus) -> None:
        for following in ROLLOUT_STATUSES:
            rollout_id = await in_status(store, status)
            before = await store.get_rollout_by_id(rollout_id)
            assert before is not None
            assert before.status == status
            if following == status or following in ROLLOUT_TRANSITIONS[status]:
                after = await store.update_rollout(rollout_id, status=following)
                assert after.status == following
                assert (after.end_time is not None) == (following in FINISHED)
            else:
                with pytest.raises(InvalidTransition):
                    await store.update_rollout(rollout_id, status=following, input="changed")
                assert await store.get_rollout_by_id(rollout_id) == before
            # Whether it waits in the queue follows from the status alone; this also empties the queue
            # for the next round.
            queued = rollout_id in {r.rollout_id for r in await store.dequeue_many_rollouts(limit=9)}
            assert queued == (following in {"queuing", "requeuing"} and status not in FINISHED)

    @pytest.mark.parametrize("status", ATTEMPT_STATUSES)
    async def test_an_attempt_moves_as_declared(self, store: LightningStore, status: AttemptStatus) -> None:
        for following in ATTEMPT_STATUSES:
            rollout = await attempt_in(store, status)
            before = await attempt_now(store, rollout)
            assert before.status == status
            if following == status or following in ATTEMPT_TRANSITIONS[status]:
                after = await store.update_attempt(rollout.rollout_id, "latest", status=following)
                assert after.status == following
                assert (after.end_time is not None) == (following in {"succeeded", "failed"})
            else:
                with pytest.raises(InvalidTransition):
                    await store.update_attempt(
                        rollout.rollout_id, "latest", status=following, metadata={"changed": 1}
                    )
                assert await attempt_now(store, rollout) == before

    async def test_a_success_after_the_timeout_still_counts_while_nobody_else_tries(
        self, store: LightningStore
    ) -> None:
        rollout = await attempt_in(store, "unresponsive")
        assert (await rollout_of(store, rollout)).status == "requeuing"
        await store.update_attempt(rollout.rollout_id, "latest", status="succeeded")
        assert (await rollout_of(store, rollout)).status == "succeeded"
        assert await store.dequeue_rollout() is None

    async def test_time_turns_late_and_silent_attempts(
        self, store: LightningStore, clock: ManualClock
    ) -> None:
        policies: dict[str, RolloutConfig] = {
            # Late: the attempt is too old. Silent: its last sign of life is. Each with a retry and
            # without.
            "late": RolloutConfig(timeout_seconds=100, max_attempts=2, retry_condition=["timeout"]),
            "silent": RolloutConfig(
                unresponsive_seconds=100, max_attempts=2, retry_condition=["unresponsive"]
            ),
            "late, no retry": RolloutConfig(timeout_seconds=100),
            "silent, no retry": RolloutConfig(unresponsive_seconds=100, retry_condition=["timeout"]),
            "patient": RolloutConfig(timeout_seconds=1e6, unresponsive_seconds=1e6),
            "no limit": RolloutConfig(),
        }
        begun = {
            name: await store.start_rollout(name, config=config, worker_id=f"w {name}")
            for name, config in policies.items()
        }
        for rollout in begun.values():
            await store.add_span(span_of(rollout))
        # Nobody calls the store meanwhile but this wait: time has to turn them by itself.
        ends = [begun["late, no retry"].rollout_id, begun["silent, no retry"].rollout_id]
        wait = asyncio.create_task(store.wait_for_rollouts(rollout_ids=ends))
        clock.shift(101.0)
        failed = await asyncio.wait_for(wait, PATIENCE)
        assert [rollout.status for rollout in failed] == ["failed", "failed"]
        assert all(rollout.end_time is not None for rollout in failed)

        async def statuses() -> list[tuple[str, str]]:
            now = [(await attempt_now(store, r), await rollout_of(store, r)) for r in begun.values()]
            return [(attempt.status, rollout.status) for attempt, rollout in now]

        expected = [
            ("timeout", "requeuing"),
            ("unresponsive", "requeuing"),
            ("timeout", "failed"),
            ("unresponsive", "failed"),
            ("running", "running"),
            ("running", "running"),
        ]

        async def turned() -> bool:
            return await statuses() == expected

        # Which of them is looked at first is the store's choice, so those without a wait may turn a moment
        # later.
        await wait_until_async(turned, deadline=PATIENCE, what=f"attempts turn into {expected}")
        assert [(await worker_now(store, f"w {name}")).status for name in policies] == [
            *["unknown"] * 4,
            *["busy"] * 2,
        ]
        assert sorted(await drain(store)) == ["late", "silent"]

    async def test_a_heartbeat_keeps_an_attempt_alive(
        self, store: LightningStore, clock: ManualClock
    ) -> None:
        config = RolloutConfig(unresponsive_seconds=100)
        quiet, by_span, by_hand = [await store.start_rollout(n, config=config) for n in range(3)]
        clock.shift(60.0)
        await store.add_span(span_of(by_span))
        await store.update_attempt(by_hand.rollout_id, "latest", last_heartbeat_time=clock())
        clock.shift(60.0)
        await asyncio.wait_for(store.wait_for_rollouts(rollout_ids=[quiet.rollout_id]), PATIENCE)
        assert (await attempt_now(store, quiet)).status == "unresponsive"
        assert (await attempt_now(store, by_span)).status == "running"
        assert (await attempt_now(store, by_hand)).status == "preparing"
