"""Each lock of the doubles keeps what it guards, where threads change places after each instruction."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from races import THREADS, together

from agentlightning.dialects.raw_call import CallStart
from agentlightning.errors import StoreUnavailable
from agentlightning.store import InMemoryLightningStore
from agentlightning.testing import FaultyStore, ManualClock, RecordedCalls
from agentlightning.testing import clock as clock_module
from agentlightning.testing import fake_openai as fake_openai_module
from agentlightning.testing import faults as faults_module
from agentlightning.testing import recorded_calls as recorded_calls_module
from agentlightning.testing.fake_openai import Answer, FakeOpenAI, Fault, ReceivedRequest

# ---------------------------------------------------------------------- the clock


@pytest.mark.lock("testing.clock:ManualClock._lock")
def test_no_shift_of_a_clock_is_lost() -> None:
    clock = ManualClock(0.0)
    together(lambda number: [clock.shift(number) for _ in range(10)], slow=(clock_module,))
    assert clock() == 10 * sum(range(THREADS))


@pytest.mark.lock("testing.clock:ManualClock._lock")
def test_a_shift_of_a_clock_returns_the_time_that_it_has_made() -> None:
    clock = ManualClock(0.0)
    times: list[float] = []

    def shift(_: int) -> None:
        for _ in range(10):
            times.append(clock.shift(1))

    together(shift, slow=(clock_module,))
    assert sorted(times) == list(range(1, 10 * THREADS + 1))


# ---------------------------------------------------------------------- faults


def written(store: FaultyStore, writes: int) -> list[bool]:
    """Write from several threads, so often in each; return of each write whether it worked."""
    worked: list[bool] = []

    def writer(_number: int) -> None:
        for _ in range(writes):
            try:
                asyncio.run(store.start_rollout("task"))
            except StoreUnavailable:
                worked.append(False)
            else:
                worked.append(True)

    together(writer, slow=(faults_module,))
    asyncio.run(store.close())
    return worked


@pytest.mark.lock("testing.faults:FaultyStore._lock")
def test_every_nth_write_fails_whatever_threads_write() -> None:
    store = FaultyStore(InMemoryLightningStore(), fail_every=4)
    worked = written(store, 4)
    assert (store.writes, store.faults) == (len(worked), len(worked) // 4)
    assert worked.count(False) == len(worked) // 4


@pytest.mark.lock("testing.faults:FaultyStore._lock")
def test_each_outcome_of_a_script_is_that_of_one_write() -> None:
    store = FaultyStore(InMemoryLightningStore(), script=["refuse", "work", "lose"] * 3)
    worked = written(store, 3)
    assert worked.count(False) == store.faults == 6


# ---------------------------------------------------------------------- the model server


REQUEST = ReceivedRequest("POST", "/v1/chat/completions", {}, b'{"messages": []}', b"")


@pytest.mark.lock("testing.fake_openai:FakeOpenAI._lock")
def test_each_answer_on_the_queue_is_said_once() -> None:
    server = FakeOpenAI(Fault(418))
    server.enqueue(*(Fault(500 + number) for number in range(12)))
    said: list[Any] = []
    together(lambda _: said.extend(server.answer_to(REQUEST) for _ in range(3)), slow=(fake_openai_module,))
    assert sorted(answer.status for answer in said) == [418] * 6 + list(range(500, 512))


@pytest.mark.lock("testing.fake_openai:FakeOpenAI._lock")
def test_each_answer_has_the_number_of_its_request() -> None:
    server = FakeOpenAI(Answer.of("word", id=None))
    said: list[Any] = []
    together(lambda _: said.extend(server.answer_to(REQUEST) for _ in range(3)), slow=(fake_openai_module,))
    assert sorted(answer.id for answer in said) == sorted(f"chatcmpl-{number}" for number in range(1, 19))
    assert len(server.requests) == 18


# ---------------------------------------------------------------------- recorded calls


def start_of(name: str) -> CallStart:
    return CallStart("chat", "http://model/v1/chat/completions", name, stream=False)


@pytest.mark.lock("testing.recorded_calls:RecordedCalls._lock")
def test_each_call_that_starts_has_a_place_of_its_own() -> None:
    recorded = RecordedCalls()
    places: list[int] = []
    together(
        lambda _: places.extend(recorded.started(start_of("m")) for _ in range(5)),
        slow=(recorded_calls_module,),
    )
    assert sorted(places) == list(range(5 * THREADS))


@pytest.mark.lock("testing.recorded_calls:RecordedCalls._lock")
def test_the_place_of_a_call_is_where_its_start_is_kept() -> None:
    recorded = RecordedCalls()
    places: dict[str, int] = {}

    def agent(number: int) -> None:
        for index in range(5):
            name = f"{number}-{index}"
            places[name] = recorded.started(start_of(name))

    together(agent, slow=(recorded_calls_module,))
    assert {name: recorded.starts[place].model for name, place in places.items()} == {
        name: name for name in places
    }
