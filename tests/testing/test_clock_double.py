"""A clock that only a test moves, and waiting that gives up."""

from __future__ import annotations

import asyncio

import pytest

from agentlightning.testing import ManualClock, wait_until, wait_until_async


def test_the_clock_stands_still_until_it_is_moved() -> None:
    clock = ManualClock(100.0)
    assert (clock(), clock()) == (100.0, 100.0)
    assert clock.shift(2.5) == 102.5
    assert clock.shift(-10.0) == clock() == 92.5
    assert repr(clock) == "ManualClock(92.5)"


def test_waiting_returns_what_the_condition_returned() -> None:
    answers = iter([None, 0, "", "yes"])
    assert wait_until(lambda: next(answers)) == "yes"


def test_waiting_gives_up_and_says_for_what() -> None:
    with pytest.raises(TimeoutError, match=r"the moon to fall: not true after 0\.01 s"):
        wait_until(lambda: False, deadline=0.01, what="the moon to fall")


@pytest.mark.asyncio
async def test_waiting_leaves_the_loop_to_others() -> None:
    done = asyncio.Event()
    asyncio.get_running_loop().call_later(0.01, done.set)

    async def answer() -> bool:
        return done.is_set()

    assert await wait_until_async(done.is_set) is True
    assert await wait_until_async(answer) is True
    with pytest.raises(TimeoutError):
        await wait_until_async(lambda: False, deadline=0.01)
