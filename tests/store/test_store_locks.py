"""Each lock of the stores keeps what it guards, where threads change places after each instruction."""

from __future__ import annotations

import _weakrefset
import asyncio
import gc
import os
import signal
import sqlite3
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from itertools import count
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from races import THREADS, together

from agentlightning import _weak_objects
from agentlightning._weak_objects import WeakObjects
from agentlightning.errors import StoreBusy, StoreClosed
from agentlightning.store import (
    InMemoryLightningStore,
    LightningStore,
    LightningStoreThreaded,
    SqliteLightningStore,
    open_store,
)
from agentlightning.store.base import LightningStoreCapabilities
from agentlightning.store.clock_steps import ClockSteps
from agentlightning.store.primitives import Primitive
from agentlightning.store.sqlite.connection import connect, patiently, prepare_file
from agentlightning.store.sqlite.engine import READERS, Engine
from agentlightning.store.sqlite.opened import StoreConnection
from agentlightning.store.sqlite.poller import Poller
from agentlightning.store.sqlite.presence import Presence
from agentlightning.store.sqlite.thread_connections import Connections, ThreadConnection
from agentlightning.store.sqlite.threads import Gate, Thread
from agentlightning.store.tables import Tables
from agentlightning.store.transaction import Command
from agentlightning.store.waiting import Wait, Waits
from agentlightning.store.watchdog import Watchdog
from agentlightning.store.wrapper import StoreWrapper
from agentlightning.testing import ManualClock, span_of, wait_until
from agentlightning.types import Span

pytestmark = pytest.mark.long

LOOK = 20.0
"""Seconds after which a test gives up to wait for what a lost change would have brought about."""


def module_of(thing: Any) -> Any:
    """The module in which a class is made; packages here hand out names of others."""
    return sys.modules[thing.__module__]


def running(name: str) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith(name)]


# ---------------------------------------------------------------------- the clock


@pytest.mark.lock("store.clock_steps:ClockSteps._lock")
def test_a_clock_that_threads_read_at_one_moment_was_not_set() -> None:
    ticks = count(0, 10)  # each look at either clock is ten seconds later
    reading: list[int] = []

    def wall() -> float:
        reading.append(threading.get_ident())
        return float(next(ticks))

    def steady() -> float:
        # The same moment as the look before, where no other thread has looked in between.
        return float(next(ticks) - 10) if reading[-1] == threading.get_ident() else float(next(ticks))

    steps = ClockSteps(wall, steady)
    together(lambda _: [steps.now() for _ in range(20)], slow=(module_of(ClockSteps),))
    assert steps.seconds == 0.0


@pytest.mark.lock("store.clock_steps:ClockSteps._lock")
def test_a_clock_that_is_set_forward_while_threads_read_it_was_set_once() -> None:
    wall, steady = ManualClock(), ManualClock(0.0)
    steps = ClockSteps(wall, steady)

    def race(role: int) -> None:
        for index in range(10):
            if role == 0 and index == 5:
                wall.shift(100.0)
            steps.now()

    together(race, slow=(module_of(ClockSteps),))
    assert steps.seconds == 100.0


# ---------------------------------------------------------------------- the watchdog


class Scanned:
    """A store with overdue work, which a scan does."""

    def __init__(self) -> None:
        self.overdue = 0
        self.threads: set[int] = set()

    async def scan(self) -> float | None:
        self.threads.add(threading.get_ident())
        self.overdue = 0
        return None


@contextmanager
def watchdog_of(store: Scanned, clock: Callable[[], float]) -> Iterator[Watchdog]:
    watchdog = Watchdog(store, clock)
    try:
        yield watchdog
    finally:
        watchdog.stop()
        wait_until(lambda: not running("agl-store-watchdog"))


@pytest.mark.lock("store.watchdog:Watchdog._lock")
def test_deadlines_that_are_set_at_one_moment_are_watched_by_one_thread() -> None:
    for _ in range(3):
        store, clock = Scanned(), ManualClock()
        with watchdog_of(store, clock) as watchdog:
            together(
                lambda number, watchdog=watchdog, clock=clock: watchdog.expect(clock() + 1000 - number),  # type: ignore[misc]
                slow=(module_of(Watchdog),),
            )
            assert len(running("agl-store-watchdog")) == 1


@pytest.mark.lock("store.watchdog:Watchdog._lock")
def test_a_deadline_that_is_set_while_the_thread_ends_is_seen() -> None:
    store, clock = Scanned(), ManualClock()
    with watchdog_of(store, clock) as watchdog:

        def write(_number: int) -> None:
            for _ in range(4):
                store.overdue += 1
                watchdog.expect(clock())
                wait_until(lambda: not store.overdue, deadline=LOOK)

        together(write, 3, slow=(module_of(Watchdog),))
        wait_until(lambda: not running("agl-store-watchdog"), deadline=LOOK)


# ---------------------------------------------------------------------- waits


@pytest.mark.lock("store.waiting:Waits._lock")
def test_a_wait_that_begins_while_others_end_is_settled() -> None:
    waits = Waits()
    pending = threading.Semaphore(0)
    settled: list[bool] = []

    async def wait() -> None:
        begun = waits.add(["r"], None)
        pending.release()
        await begun.until(LOOK)
        settled.append(not begun.pending)

    def race(role: int) -> None:
        if role:
            for _ in range(5):
                asyncio.run(wait())
            return
        for _ in range(3 * 5):  # one for each wait: the last of them comes after the last wait has begun
            pending.acquire()
            waits.finished(["r"])

    together(race, 4, slow=(module_of(Waits),))
    assert settled == [True] * 15
    assert not waits.rollout_ids


@pytest.mark.lock("store.waiting:Waits._lock")
def test_waits_for_several_rollouts_that_finish_at_one_moment_leave_nothing_behind() -> None:
    ids = [f"r{number}" for number in range(THREADS)]

    async def begin(waits: Waits) -> list[Wait]:
        begun = [waits.add(ids, None) for _ in range(5)]

        def race(role: int) -> None:
            waits.finished(ids[role:] + ids[:role])
            waits.remove(begun[role % 5])

        await asyncio.to_thread(together, race, slow=(module_of(Waits),))
        for each in begun:
            await each.until(LOOK)
        return begun

    for _ in range(10):
        waits = Waits()
        assert [each.pending for each in asyncio.run(begin(waits))] == [set()] * 5
        assert not waits.rollout_ids


@pytest.mark.lock("store.memory:MemoryData.lock")
def test_a_rollout_on_the_queue_is_given_out_once() -> None:
    store = InMemoryLightningStore()
    queued = [asyncio.run(store.enqueue_rollout(number)).rollout_id for number in range(12)]
    taken: list[str] = []

    def runner(_number: int) -> None:
        while (attempted := asyncio.run(store.dequeue_rollout())) is not None:
            taken.append(attempted.rollout_id)

    together(runner, 4, slow=(module_of(InMemoryLightningStore),))
    asyncio.run(store.close())
    assert sorted(taken) == sorted(queued)


@pytest.mark.lock("store.memory:MemoryData.lock")
def test_spans_that_come_at_one_moment_have_numbers_without_a_gap() -> None:
    store = InMemoryLightningStore()
    rollout = asyncio.run(store.start_rollout("task"))

    def writer(_number: int) -> None:
        for _ in range(4):
            asyncio.run(store.add_span(span_of(rollout)))

    together(writer, 4, slow=(module_of(InMemoryLightningStore),))
    spans = asyncio.run(store.query_spans(rollout.rollout_id))
    asyncio.run(store.close())
    assert [span.sequence_id for span in spans] == list(range(1, 17))


def opened_at_one_moment(*names: str) -> list[set[str]]:
    """Open stores by names, each in several threads; return of each which rollouts it has, one made in each."""
    stores: list[tuple[LightningStore, str]] = []

    def opener(number: int) -> None:
        name = names[number % len(names)]
        store = open_store(f"memory://{name}")
        stores.append((store, name))
        asyncio.run(store.start_rollout(name))

    together(opener, slow=(module_of(InMemoryLightningStore),))
    inputs = [[rollout.input for rollout in asyncio.run(store.query_rollouts())] for store, _ in stores]
    for (store, name), found in zip(stores, inputs, strict=True):
        assert found == [name] * (THREADS // len(names))
        asyncio.run(store.close())
    return [set(found) for found in inputs]


@pytest.mark.lock("store.memory:_named_lock")
def test_a_name_that_is_opened_by_several_threads_first_is_one_store() -> None:
    for index in range(3):
        assert opened_at_one_moment(f"locks-{index}") == [{f"locks-{index}"}] * THREADS


@pytest.mark.lock("store.memory:_named_lock")
def test_two_names_that_are_opened_at_one_moment_are_two_stores() -> None:
    for index in range(3):
        found = opened_at_one_moment(f"left-{index}", f"right-{index}")
        assert sorted(map(min, found)) == [f"left-{index}"] * 3 + [f"right-{index}"] * 3
        gc.collect()  # the names are free again


# ---------------------------------------------------------------------- forks


def forks_while_others_open(make: Callable[[], LightningStore]) -> None:
    """Fork several times while another thread opens and closes stores; what fails before a fork is a warning."""
    opened = [make() for _ in range(3)]
    over = threading.Event()

    def race(role: int) -> None:
        if role:
            while not over.is_set():
                asyncio.run(make().close())
            return
        try:
            for _ in range(3):
                child = os.fork()
                if child == 0:
                    os._exit(0)
                assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        finally:
            over.set()

    together(race, 3, slow=(_weakrefset, weakref, _weak_objects))
    for store in opened:
        asyncio.run(store.close())


def test_a_fork_waits_for_the_stores_in_memory_also_while_others_are_opened() -> None:
    forks_while_others_open(InMemoryLightningStore)


def test_a_fork_waits_for_the_files_also_while_others_are_opened(path: Path) -> None:
    forks_while_others_open(lambda: SqliteLightningStore(path))


def test_a_transaction_that_forks_is_not_waited_for_by_the_fork() -> None:
    """As a signal handler does that has interrupted one."""
    children: list[int] = []

    def forking(_span: Span) -> int:
        child = os.fork()
        if child == 0:
            is_free = data.lock.acquire(blocking=False)
            os._exit(0 if is_free else 1)
        children.append(child)
        return 1

    store = InMemoryLightningStore(span_size_estimator=forking)
    data = store._data
    rollout = asyncio.run(store.start_rollout("task"))
    asyncio.run(store.add_span(span_of(rollout)))
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0]
    assert len(asyncio.run(store.query_spans(rollout.rollout_id))) == 1
    asyncio.run(store.close())


def test_objects_that_come_while_others_are_listed_are_listed_or_not_and_those_that_went_are_not() -> None:
    objects: WeakObjects[Event] = WeakObjects()
    kept = [Event() for _ in range(10)]
    for each in kept:
        objects.add(each)

    def race(role: int) -> None:
        for _ in range(5):
            if role:
                objects.add(Event())
            else:
                assert set(map(id, kept)) <= {id(each) for each in objects}

    together(race, slow=(weakref, _weak_objects))
    gc.collect()
    assert set(map(id, objects)) == set(map(id, kept))


# ---------------------------------------------------------------------- a store that is not safe


class Unsafe(StoreWrapper):
    """A stranger's store: it counts how many calls are at work."""

    def __init__(self) -> None:
        super().__init__(InMemoryLightningStore())
        self.at_work = 0
        self.most = 0
        self.calls = 0

    @property
    def capabilities(self) -> LightningStoreCapabilities:
        return LightningStoreCapabilities(**{**self.inner.capabilities, "thread_safe": False})

    async def handle(self, primitive: Primitive, value: Any) -> Any:
        self.at_work += 1
        self.calls += 1
        self.most = max(self.most, self.at_work)
        for _ in range(3):
            await asyncio.sleep(0)
        try:
            return await super().handle(primitive, value)
        finally:
            self.at_work -= 1

    async def close(self) -> None:
        assert not self.at_work, "closed while a call is at work"
        await self.inner.close()


@pytest.mark.lock("store.threading:LightningStoreThreaded._lock")
def test_of_an_unsafe_store_one_call_is_at_work_whatever_threads_and_tasks_they_come_from() -> None:
    unsafe = Unsafe()
    store = LightningStoreThreaded(unsafe)

    async def tasks() -> None:
        await asyncio.gather(*(store.start_rollout("task") for _ in range(4)))

    together(lambda _: asyncio.run(tasks()), 3)
    assert (unsafe.calls, unsafe.most) == (12, 1)
    asyncio.run(store.close())


@pytest.mark.lock("store.threading:LightningStoreThreaded._lock")
def test_an_unsafe_store_is_closed_between_two_calls() -> None:
    store = LightningStoreThreaded(Unsafe())
    refused: list[str] = []

    async def agent(role: int) -> None:
        await asyncio.sleep(0)
        if role == 0:
            await store.close()
            return
        for _ in range(3):
            try:
                await store.start_rollout("task")
            except StoreClosed:
                refused.append("closed")

    together(lambda role: asyncio.run(agent(role)), 4)
    with pytest.raises(StoreClosed):
        asyncio.run(store.start_rollout("task"))


# ---------------------------------------------------------------------- SQLite: the gate


@pytest.mark.lock("store.sqlite.threads:Gate._lock")
def test_nobody_is_inside_a_gate_that_has_closed() -> None:
    gate = Gate()
    inside: list[int] = []
    seen: list[list[int]] = []

    def race(role: int) -> None:
        for _ in range(6):
            if role == 0:
                assert gate.close(LOOK)
                seen.append(inside.copy())
                gate.open()
            else:
                with gate.entered():
                    inside.append(role)
                    inside.remove(role)

    together(race, 4, slow=(module_of(Gate), sys.modules[__name__]))
    assert seen == [[]] * 6


@pytest.mark.lock("store.sqlite.threads:Gate._lock")
def test_a_gate_knows_how_many_are_inside() -> None:
    gate = Gate()

    def pass_through(_number: int) -> None:
        for _ in range(10):
            with gate.entered():
                pass

    together(pass_through, slow=(module_of(Gate),))
    assert gate.close(0.0)
    gate.open()


# ---------------------------------------------------------------------- SQLite: the engine


class EngineAtTheEnd(Engine):
    """An engine that gets no thread, as at the end of the interpreter with the first releases of Python 3.12."""

    def _start(self, role: str, target: Callable[[], None]) -> Thread | None:
        del role, target
        return None


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


def engine_at(path: Path, kind: type[Engine] = Engine, busy_timeout: float = 30.0) -> Engine:
    prepared = prepare_file(path, busy_timeout)
    return kind(path, prepared.store_id, "normal", busy_timeout, Waits())


def nothing(tables: Tables) -> None:
    del tables


@pytest.mark.lock("store.sqlite.engine:Engine._lock")
def test_questions_that_come_at_one_moment_start_no_more_readers_than_there_may_be(path: Path) -> None:
    engine = engine_at(path)
    together(lambda _: [engine.read(nothing).result(LOOK) for _ in range(2)], slow=(module_of(Engine),))
    names = [thread.name for thread in running("agl-store-reader")]
    engine.shutdown()
    assert len(set(names)) == len(names) <= READERS


@pytest.mark.lock("store.sqlite.engine:Engine._lock")
def test_a_command_is_refused_or_done_where_the_engine_stops_meanwhile(path: Path) -> None:
    for _ in range(3):
        engine = engine_at(path)
        accepted: list[Any] = []
        refused: list[int] = []

        def race(
            role: int,
            engine: Engine = engine,
            accepted: list[Any] = accepted,
            refused: list[int] = refused,
        ) -> None:
            if role == 0:
                engine.stop()
                return
            for _ in range(2):
                try:
                    accepted.append(engine.write(Command(nothing)))
                except StoreClosed:
                    refused.append(role)

        together(race, slow=(module_of(Engine),))
        assert len(running("agl-store-writer")) <= 1
        for future in accepted:
            future.result(LOOK)
        assert len(accepted) + len(refused) == 2 * (THREADS - 1)
        engine.shutdown()


@pytest.mark.lock("store.sqlite.engine:Engine._here")
def test_threads_that_work_themselves_leave_one_word_of_the_opening(path: Path) -> None:
    engine = engine_at(path, EngineAtTheEnd)
    modules = [module_of(each) for each in (Engine, Presence, ThreadConnection, StoreConnection)]
    together(lambda _: engine.write(Command(nothing)).result(0), slow=tuple(modules))
    engine.shutdown()
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT number FROM latest_mark").fetchall() == [(1,)]


@pytest.mark.lock("store.sqlite.engine:Engine._here")
def test_a_signal_handler_that_writes_while_its_thread_works_itself_is_told_that_it_cannot(
    path: Path,
) -> None:
    engine = engine_at(path, EngineAtTheEnd, busy_timeout=0.1)
    told: list[BaseException] = []

    def handler(*_: object) -> None:
        try:
            engine.write(Command(nothing)).result(0)
        except StoreBusy as error:
            told.append(error)

    def interrupted(tables: Tables) -> None:
        del tables
        signal.raise_signal(signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        engine.write(Command(interrupted)).result(0)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert len(told) == 1
    engine.shutdown()


# ---------------------------------------------------------------------- SQLite: waiting for other processes


def poller_of(waits: Waits) -> tuple[Poller, list[Thread]]:
    """A poller that finds every rollout finished, and the threads that it starts."""
    started: list[Thread] = []

    class NoConnection:
        def drop(self) -> None:
            """Be closed."""

    def start(role: str, target: Callable[[], None]) -> Thread:
        started.append(Thread(target, f"test-{role}"))
        started[-1].start()
        return started[-1]

    versions = count()
    poller = Poller(
        waits,
        NoConnection,  # type: ignore[arg-type]  # only ``drop`` is called
        lambda _: next(versions),
        lambda ids, _: list(ids),
        start,
    )
    return poller, started


@pytest.mark.lock("store.sqlite.poller:Poller._lock")
def test_waits_that_begin_at_one_moment_have_one_thread_that_looks() -> None:
    waits = Waits()

    async def wait() -> None:
        kept = waits.add(["never"], None)
        poller, started = poller_of(Waits())
        poller._waits = waits
        await asyncio.to_thread(together, lambda _: poller.watch(), slow=(module_of(Poller),))
        poller.stop()
        for thread in started:
            thread.join()
        assert len(started) == 1
        waits.remove(kept)

    asyncio.run(wait())


@pytest.mark.lock("store.sqlite.poller:Poller._lock")
def test_a_wait_that_begins_while_the_thread_that_looks_ends_is_looked_for() -> None:
    waits = Waits()
    poller, started = poller_of(waits)

    async def wait() -> bool:
        begun = waits.add(["r"], None)
        assert poller.watch()
        await begun.until(LOOK)
        waits.remove(begun)
        return not begun.pending

    settled: list[bool] = []
    together(lambda _: settled.extend(asyncio.run(wait()) for _ in range(3)), 3, slow=(module_of(Poller),))
    poller.stop()
    for thread in started:
        thread.join()
    assert settled == [True] * 9


# ---------------------------------------------------------------------- SQLite: connections


def open_patiently(connections: Connections) -> StoreConnection:
    """Open one as the engine does: while the last connection of a file is closed, SQLite lets nobody in."""
    connection = patiently(lambda: connections.open(100), LOOK, connections.path)
    assert connection is not None
    return connection


def is_closed(connection: StoreConnection) -> bool:
    try:
        connection.execute("SELECT 1")
    except sqlite3.ProgrammingError:
        return True
    return False


@pytest.mark.lock("store.sqlite.thread_connections:Connections._lock")
def test_a_connection_that_its_thread_closes_while_all_are_closed_is_closed_once(path: Path) -> None:
    connections = Connections(path, prepare_file(path, 30.0).store_id, "normal")
    opened: list[StoreConnection] = []

    def race(role: int) -> None:
        for _ in range(3):
            if role == 0:
                connections.close_all()
            else:
                opened.append(open_patiently(connections))
                connections.close(opened[-1])

    together(race, 4, slow=(module_of(Connections),))
    assert [is_closed(each) for each in opened] == [True] * 9


@pytest.mark.lock("store.sqlite.thread_connections:Connections._lock")
def test_no_connection_is_opened_past_those_that_are_closed_before_a_fork(path: Path) -> None:
    connections = Connections(path, prepare_file(path, 30.0).store_id, "normal")
    opened: list[tuple[int, StoreConnection]] = []
    alive: list[StoreConnection] = []

    def race(role: int) -> None:
        for _ in range(3):
            if role == 0:
                connections.before_fork(at_rest=True)
                alive.extend(each for generation, each in opened.copy() if not is_closed(each))
                connections.after_fork_in_parent()
            else:
                connection = open_patiently(connections)
                opened.append((connections.generation, connection))

    together(race, 4, slow=(module_of(Connections),))
    connections.close_all()
    assert alive == []
    assert [is_closed(each) for _, each in opened] == [True] * 9


def closed_at_one_moment(path: Path) -> None:
    """Write a row through one of several connections, and close all of them, each in a thread of its own."""
    store_id = prepare_file(path, 30.0).store_id
    opened = [connect(path, store_id=store_id) for _ in range(2 * THREADS)]
    opened[0].execute("CREATE TABLE IF NOT EXISTS of_this_test (value)")
    opened[0].execute("INSERT INTO of_this_test VALUES (1)")
    together(lambda number: opened[number].close(), 2 * THREADS)


@pytest.mark.lock("store.sqlite.opened:_closing")
def test_connections_that_are_closed_at_one_moment_leave_no_log(path: Path) -> None:
    for _ in range(20):
        closed_at_one_moment(path)
        assert not Path(f"{path}-wal").exists()


@pytest.mark.lock("store.sqlite.opened:_closing")
def test_what_was_written_is_in_the_file_once_all_connections_are_closed(path: Path) -> None:
    for number in range(1, 21):
        closed_at_one_moment(path)
        copy = path.with_name("copy.db")  # of the file alone
        copy.write_bytes(path.read_bytes())
        with closing(sqlite3.connect(copy)) as connection:
            assert connection.execute("SELECT count(*) FROM of_this_test").fetchall() == [(number,)]
