"""``with open_store(…)``: the store for code that awaits nothing, in any thread, also where an event loop is running."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import threading
from collections.abc import Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from inspect import signature
from pathlib import Path
from typing import assert_type

import pytest
from races import together

from agentlightning import OtelTracer
from agentlightning.errors import RolloutNotFound, StoreClosed
from agentlightning.store import LightningStore, SqliteLightningStore, SyncStore, open_store, sync
from agentlightning.store.primitives import PRIMITIVES
from agentlightning.testing import wait_until
from agentlightning.types import Rollout


def test_a_path_is_opened_and_every_method_waits_for_its_answer(tmp_path: Path) -> None:
    path = tmp_path / "50% of #1, or less?.db"
    with open_store(path) as store:
        started = store.start_rollout({"question": "2 + 3?"}, mode="val")
        store.update_attempt(started.rollout_id, started.attempt.attempt_id, status="succeeded")
        found = assert_type(store.query_rollouts(status_in=["succeeded"]), Sequence[Rollout])
        assert [each.rollout_id for each in found] == [started.rollout_id]
        assert store.capabilities["durable"]
        assert assert_type(store.store, LightningStore).local_path == str(path)
        with pytest.raises(RolloutNotFound):
            store.update_rollout("ro-0", status="failed")
        with pytest.raises(TypeError):
            store.query_rollouts(colour="blue")  # type: ignore[call-arg]
    with pytest.raises(StoreClosed):
        store.statistics()
    store.close()  # a repeat
    assert path.exists()


def test_every_primitive_is_there_with_the_signature_of_the_contract() -> None:
    with open_store("memory://") as store:
        assert {row.name for row in PRIMITIVES.values()} <= set(dir(store))
        ours, contract = signature(store.query_spans), signature(LightningStore.query_spans)
        assert list(ours.parameters) == list(contract.parameters)[1:]
        with pytest.raises(AttributeError):
            store.query_everything()  # type: ignore[attr-defined]


@pytest.mark.asyncio
async def test_it_answers_inside_of_a_running_event_loop_and_in_several_threads() -> None:
    with open_store("memory://") as store, ThreadPoolExecutor(8) as threads:
        store.enqueue_rollout("in a notebook")
        list(threads.map(store.enqueue_rollout, range(8)))
        again = pickle.loads(pickle.dumps(LightningStore.__enter__))  # a method of the class, as any other
        assert again is LightningStore.__enter__
        assert len(store.query_rollouts()) == 9


def test_a_forked_child_asks_on_a_thread_of_its_own(tmp_path: Path) -> None:
    with open_store(tmp_path / "a.db") as store:
        store.enqueue_rollout("parent")
        child = os.fork()
        if child == 0:
            try:
                store.enqueue_rollout("child")
            finally:
                os._exit(len(store.query_rollouts()))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2
        assert [each.input for each in store.query_rollouts()] == ["parent", "child"]


def test_an_interrupted_wait_ends_and_the_store_goes_on() -> None:
    def interrupt(*_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with open_store("memory://") as store:
            waiting = store.enqueue_rollout("for ever").rollout_id

            def wait() -> None:
                # Again and again: one that another thread gets wakes nobody here.
                signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
                store.wait_for_rollouts(rollout_ids=[waiting])

            with pytest.raises(KeyboardInterrupt):
                wait()
            assert store.statistics()["total_rollouts"] == 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_tracer_takes_a_path_a_url_and_the_store_of_a_with(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    with OtelTracer().lifespan(path) as tracer, tracer.rollout("a path"):
        pass
    with OtelTracer().lifespan(f"sqlite:///{path}") as tracer, tracer.rollout("a URL"):
        pass
    with open_store(path) as store:
        with OtelTracer().lifespan(store) as tracer, tracer.rollout("a store"):
            pass
        with OtelTracer().lifespan() as tracer, tracer.rollout("its own", store=store):
            pass
        assert [(each.status, each.input) for each in store.query_rollouts()] == [
            ("succeeded", "a path"),
            ("succeeded", "a URL"),
            ("succeeded", "a store"),
            ("succeeded", "its own"),
        ]


def test_a_store_is_its_own_in_both_ways(tmp_path: Path) -> None:
    store = SqliteLightningStore(tmp_path / "a.db")
    with SyncStore(store) as waits:
        waits.enqueue_rollout(1)
        assert len(asyncio.run(store.query_rollouts())) == 1


def answering_threads() -> set[threading.Thread]:
    """Return the threads on which stores are asked."""
    return {thread for thread in threading.enumerate() if thread.name == sync.THREAD_NAME}


@pytest.mark.lock("store.sync:SyncStore._lock")
def test_who_asks_first_at_one_moment_starts_one_thread() -> None:
    before = answering_threads()
    with open_store("memory://") as store:
        together(store.enqueue_rollout, slow=(sync,))
        assert len(answering_threads() - before) == 1
        assert len(store.query_rollouts()) == 6
    assert answering_threads() == before


@pytest.mark.lock("store.sync:SyncStore._lock")
def test_nobody_waits_for_a_store_that_another_thread_has_closed() -> None:
    for _ in range(5):
        store = open_store("memory://").__enter__()
        answers: list[object] = []

        def ask(number: int, store: SyncStore = store, answers: list[object] = answers) -> None:
            try:
                store.close() if number == 0 else answers.append(store.query_rollouts())
            except (StoreClosed, CancelledError) as error:
                answers.append(error)

        together(ask, slow=(sync,))
        assert len(answers) == 5
        store.close()


def test_a_wait_ends_where_the_store_is_closed() -> None:
    store = open_store("memory://").__enter__()
    rollout = store.enqueue_rollout("nobody works on it")
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(store.wait_for_rollouts, rollout_ids=[rollout.rollout_id], timeout=None)
        wait_until(waiting.running)
        store.close()
        with pytest.raises((StoreClosed, CancelledError)):
            waiting.result(timeout=60)
