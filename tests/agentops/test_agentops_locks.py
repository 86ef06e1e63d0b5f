"""Each lock of the AgentOps integration keeps what it guards, where threads change places after each instruction."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import psutil
import pytest
from opentelemetry import baggage
from opentelemetry import context as otel_context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from races import THREADS, together

from agentlightning.errors import AgentOpsServerError
from agentlightning.instrumentation.guard import Guard, reraise
from agentlightning.integrations.agentops import attach, legacy, legacy_events, legacy_guest
from agentlightning.integrations.agentops.legacy_events import EventRecorder
from agentlightning.integrations.agentops.legacy_guest import PerAttempt
from agentlightning.integrations.agentops.probe import Found
from agentlightning.integrations.agentops.server import AgentOpsServerManager
from agentlightning.integrations.agentops.server import faults as faults_module
from agentlightning.integrations.agentops.server import manager as manager_module
from agentlightning.integrations.agentops.server import process as process_module
from agentlightning.integrations.agentops.server import recorder as recorder_module
from agentlightning.integrations.agentops.server import wsgi as wsgi_module
from agentlightning.integrations.agentops.server.faults import MAX_FAULTS, Fault, Faults
from agentlightning.integrations.agentops.server.process import READY, ServerProcess
from agentlightning.integrations.agentops.server.recorder import Recorder
from agentlightning.integrations.agentops.server.wsgi import WsgiServer
from agentlightning.semconv import LightningResourceAttributes
from agentlightning.testing import wait_until

# ---------------------------------------------------------------------- instrumenting


@pytest.fixture
def _agentops_not_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is patched waits for an import: then ``sys.meta_path`` shows whether anybody waits."""
    if find_spec("agentops") is None:
        pytest.skip("agentops is not installed")
    for name in list(sys.modules):
        if name.partition(".")[0] == "agentops":
            monkeypatch.delitem(sys.modules, name)


@pytest.mark.usefixtures("_agentops_not_imported")
@pytest.mark.lock("integrations.agentops.attach:_lock")
def test_agentops_that_several_threads_instrument_is_as_it_was_after_it_was_undone_once() -> None:
    before = list(sys.meta_path)
    together(lambda _: attach.instrument_agentops(), 3, slow=(attach,))
    assert sys.meta_path != before
    attach.uninstrument_agentops()
    assert sys.meta_path == before


@pytest.mark.usefixtures("_agentops_not_imported")
@pytest.mark.lock("integrations.agentops.attach:_lock")
def test_agentops_that_threads_instrument_and_leave_is_as_it_was() -> None:
    before = list(sys.meta_path)

    def user(_number: int) -> None:
        for _ in range(2):
            attach.instrument_agentops()
            attach.uninstrument_agentops()

    together(user, 3, slow=(attach,))
    assert sys.meta_path == before


# ---------------------------------------------------------------------- 0.2 and 0.3: events


class Recorded:
    """A recorder of events, and what it made."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.recorder = EventRecorder(provider, "0.2.6")

    @property
    def attributes(self) -> list[Any]:
        return [span.attributes for span in self._exporter.get_finished_spans()]


def event(**fields: Any) -> SimpleNamespace:
    moment = "2026-01-01T00:00:00.125Z"
    return SimpleNamespace(
        **{
            "event_type": "actions",
            "init_timestamp": moment,
            "end_timestamp": moment,
            "agent_id": None,
            **fields,
        }
    )


REMEMBERED = 4096


@pytest.mark.lock("integrations.agentops.legacy_events:EventRecorder._lock")
def test_as_many_agents_are_known_as_there_is_room_for() -> None:
    recorded = Recorded()
    newest = deque((f"agent-{number}" for number in range(REMEMBERED - 1)), maxlen=REMEMBERED)
    for agent_id in newest:
        recorded.recorder.agent(agent_id, "name")
    for turn in range(10):
        names = [f"{turn}-{number}" for number in range(THREADS)]
        together(lambda number: recorded.recorder.agent(names[number], "name"), slow=(legacy_events,))  # noqa: B023
        newest.extend(names)
        # Looked at after each turn: one that was forgotten too many is made up for by the next that comes.
        recorded.recorder.event(event(agent_id=newest[0]))
        assert recorded.attributes[-1].get("agentops.event.agent_name") == "name"


@pytest.mark.lock("integrations.agentops.legacy_events:EventRecorder._lock")
def test_events_that_led_to_an_error_have_one_span_each_as_long_as_there_is_room_for_them() -> None:
    recorded = Recorded()
    newest = deque((f"before-{number}" for number in range(REMEMBERED - 1)), maxlen=REMEMBERED)
    for name in newest:
        recorded.recorder.event(event(id=name))
    for turn in range(10):
        names = [f"{turn}-{number}" for number in range(THREADS)]
        together(lambda number: recorded.recorder.event(event(id=names[number])), slow=(legacy_events,))  # noqa: B023
        newest.extend(names)
        before = len(recorded.attributes)
        oldest = event(id=newest[0])
        error = event(event_type="errors", id=f"error-{turn}", error_type="E", trigger_event=oldest)
        recorded.recorder.event(error)
        newest.append(error.id)
        assert len(recorded.attributes) == before + 1


# ---------------------------------------------------------------------- 0.3: objects of attempts


@contextlib.contextmanager
def attempt(number: int) -> Iterator[None]:
    context = baggage.set_baggage(LightningResourceAttributes.ROLLOUT_ID.value, "r")
    context = baggage.set_baggage(LightningResourceAttributes.ATTEMPT_ID.value, f"a{number}", context)
    token = otel_context.attach(context)
    try:
        yield
    finally:
        otel_context.detach(token)


@pytest.mark.lock("integrations.agentops.legacy_guest:PerAttempt._lock")
def test_threads_of_an_attempt_have_one_object_also_where_all_ask_first() -> None:
    made: list[list[int]] = []
    another = threading.Event()

    def make() -> list[int]:
        made.append([])
        if len(made) > 2:
            another.set()
        another.wait(0.1)  # long enough for the others to come in here, where nothing keeps them out
        return made[-1]

    objects: PerAttempt[list[int]] = PerAttempt(make)

    def agent(number: int) -> None:
        with attempt(number % 2):
            objects.here().append(number)

    together(agent, slow=(legacy_guest,))
    assert len(made) == 2
    assert sorted(map(sorted, objects.all())) == [[0, 2, 4], [1, 3, 5]]


@pytest.mark.lock("integrations.agentops.legacy_guest:PerAttempt._lock")
def test_objects_of_as_many_attempts_are_kept_as_there_is_room_for() -> None:
    objects: PerAttempt[list[int]] = PerAttempt(list)
    room = 1024
    for number in range(room):
        with attempt(number):
            objects.here()

    def agent(number: int) -> None:
        for index in range(4):
            with attempt(room + number * 4 + index):
                objects.here()
                assert len(objects.all()) == room

    together(agent, slow=(legacy_guest,))


# ---------------------------------------------------------------------- up to 0.3.18: the queue


class Worker:
    """The queue of 0.2.0 to 0.3.18: whoever fills it flushes it, and both take its lock."""

    MOST = 5

    def __init__(self) -> None:
        self.lock: Any = threading.Lock()
        self.queue: list[int] = []
        self.sent: list[int] = []

    def add_event(self, number: int) -> None:
        with self.lock:
            self.queue.append(number)
            if len(self.queue) >= self.MOST:
                self.flush_queue()

    def flush_queue(self) -> None:
        with self.lock:
            while self.queue:
                self.sent.append(self.queue[0])
                del self.queue[0]


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Worker]:
    """A queue that is made while we record."""
    for name in list(sys.modules):
        if name.partition(".")[0] == "agentops":
            monkeypatch.delitem(sys.modules, name)
    module = ModuleType("agentops.worker")
    kind = type("Worker", (Worker,), {"__init__": lambda self: Worker.__init__(self)})
    module.Worker = kind  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "agentops.worker", module)
    (tmp_path / "worker.py").touch()
    found = Found("L1", "0.2.6", tmp_path)
    patches = legacy.record_events(found, TracerProvider(shutdown_on_exit=False), Guard(reraise), start=False)
    yield kind()
    patches.undo()


@pytest.mark.lock("integrations.agentops.legacy:owner.lock")
def test_a_full_queue_of_agentops_is_flushed_by_whoever_fills_it(worker: Worker) -> None:
    def add(number: int) -> None:
        for index in range(10):
            worker.add_event(number * 10 + index)

    together(add, slow=(sys.modules[__name__],))
    assert worker.queue == []
    assert sorted(worker.sent) == list(range(10 * THREADS))


@pytest.mark.lock("integrations.agentops.legacy:owner.lock")
def test_an_event_is_sent_once_where_the_queue_is_flushed_while_it_is_filled(worker: Worker) -> None:
    def race(role: int) -> None:
        for index in range(9):
            if role % 2:
                worker.flush_queue()
            else:
                worker.add_event(role * 10 + index)

    together(race, slow=(sys.modules[__name__],))
    worker.flush_queue()
    assert sorted(worker.sent) == [role * 10 + index for role in (0, 2, 4) for index in range(9)]


# ---------------------------------------------------------------------- the server: faults


@pytest.mark.lock("integrations.agentops.server.faults:Faults._lock")
def test_a_fault_hits_as_many_requests_as_it_says() -> None:
    faults = Faults()
    faults.add(Fault(status=500, n=20))
    hit: list[bool] = []
    together(lambda _: hit.extend(faults.take("/v2") is not None for _ in range(5)), slow=(faults_module,))
    assert hit.count(True) == 20
    assert faults.open() == []


@pytest.mark.lock("integrations.agentops.server.faults:Faults._lock")
def test_no_more_faults_are_open_than_there_may_be() -> None:
    faults = Faults()
    for _ in range(MAX_FAULTS - 3):
        faults.add(Fault(status=500))
    refused: list[int] = []

    def order(number: int) -> None:
        try:
            faults.add(Fault(status=500))
        except ValueError:
            refused.append(number)

    together(order, slow=(faults_module,))
    assert (len(faults.open()), len(refused)) == (MAX_FAULTS, THREADS - 3)


# ---------------------------------------------------------------------- the server: what was received


@pytest.mark.lock("integrations.agentops.server.recorder:Recorder._lock")
def test_what_was_received_is_counted_to_the_byte() -> None:
    recorder = Recorder()
    texts = [[f'"{number}-{index}"' for index in range(5)] for number in range(THREADS)]
    together(lambda number: recorder.add_texts("logs", texts[number]), slow=(recorder_module,))
    kept = recorder.read("logs")
    assert recorder.last_number == 5 * THREADS
    assert sorted(kept) == sorted(text.encode() for each in texts for text in each)
    assert recorder.counts()["logs"] == {
        "received": 5 * THREADS,
        "kept": 5 * THREADS,
        "dropped": 0,
        "bytes": sum(map(len, kept)),
    }


@pytest.mark.lock("integrations.agentops.server.recorder:Recorder._lock")
def test_fields_that_come_for_one_object_at_one_moment_are_all_kept() -> None:
    recorder = Recorder(clock=lambda: 0.0)
    together(
        lambda number: recorder.merge("sessions", "one", {f"field-{number}": number}), slow=(recorder_module,)
    )
    (kept,) = recorder.read("sessions")
    assert recorder_module.from_kept(kept) == {
        "received": 0.0,
        **{f"field-{number}": number for number in range(THREADS)},
    }


# ---------------------------------------------------------------------- the server: connections


@contextlib.contextmanager
def wsgi_server(app: Any, **limits: int) -> Iterator[WsgiServer]:
    server = WsgiServer(socket.create_server(("127.0.0.1", 0)), app, **limits)
    try:
        yield server
    finally:
        server.server_close()


def no_app(_environ: Any, start: Any) -> Iterable[bytes]:
    start("200 OK", [])
    return [b"{}"]


@pytest.mark.lock("integrations.agentops.server.wsgi:_Room._lock")
def test_room_for_bodies_is_given_back_to_the_byte() -> None:
    with wsgi_server(no_app, max_bodies=1000) as server:

        def connection(number: int) -> None:
            for _ in range(5):
                assert server.room.take(number)
                server.room.give_back(number)

        together(connection, slow=(wsgi_module,))
        assert server.room.take(1000)
        assert not server.room.take(1)


@pytest.mark.lock("integrations.agentops.server.wsgi:_Room._lock")
def test_bodies_that_come_at_one_moment_take_no_more_room_than_there_is() -> None:
    with wsgi_server(no_app, max_bodies=100) as server:
        taken: list[bool] = []
        together(lambda _: taken.append(server.room.take(30)), slow=(wsgi_module,))
        assert taken.count(True) == 3


def ask(server: WsgiServer, answers: list[str]) -> None:
    with socket.create_connection(server.socket.getsockname(), timeout=60) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        with client.makefile("rb") as answer:
            answers.append(answer.readline().decode().split()[1])
            answer.read()


@contextlib.contextmanager
def serving(app: Any, connections: int) -> Iterator[WsgiServer]:
    with wsgi_server(app, max_connections=connections) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.lock("integrations.agentops.server.wsgi:WsgiServer._places")
def test_of_connections_that_come_at_one_moment_as_many_are_served_as_there_are_places() -> None:
    answers: list[str] = []

    def app(environ: Any, start: Any) -> Iterable[bytes]:
        wait_until(lambda: answers.count("503") == THREADS - 2, deadline=20)
        return no_app(environ, start)

    with serving(app, 2) as server:
        together(lambda _: ask(server, answers))
    assert sorted(answers) == ["200"] * 2 + ["503"] * (THREADS - 2)


@pytest.mark.lock("integrations.agentops.server.wsgi:WsgiServer._places")
def test_every_place_of_a_connection_is_free_again_when_it_has_ended() -> None:
    with serving(no_app, THREADS) as server:
        for _ in range(3):
            answers: list[str] = []
            together(lambda _, answers=answers: ask(server, answers))  # type: ignore[misc]
            assert answers == ["200"] * THREADS
            wait_until(lambda: not [each for each in threading.enumerate() if "process_request" in each.name])


# ---------------------------------------------------------------------- the server's process


class Started:
    """A process that does nothing, in place of the server, and its end of the channel."""

    def __init__(self, folder: Path, kind: Callable[..., subprocess.Popen[bytes]] = subprocess.Popen) -> None:
        ours, self.channel = socket.socketpair()
        stderr = (folder / "stderr").open("w+b")
        stderr.write(b"no word")
        stderr.flush()
        self.process = ServerProcess(kind(["sleep", "600"], stderr=stderr), stderr, ours, daemon=True)

    def close(self) -> None:
        self.process.stop()
        self.channel.close()


@pytest.mark.lock("integrations.agentops.server.process:ServerProcess._lock")
def test_what_a_server_has_said_can_be_read_while_it_is_stopped(tmp_path: Path) -> None:
    for _ in range(3):
        started = Started(tmp_path)
        said: list[str] = []

        def race(role: int, started: Started = started, said: list[str] = said) -> None:
            if role == 0:
                started.process.stop()
            else:
                said.extend(started.process.complaint() for _ in range(3))

        together(race, slow=(process_module,))
        assert set(said) <= {"no word", ""}
        started.close()


@pytest.mark.lock("integrations.agentops.server.process:ServerProcess._lock")
def test_a_signal_handler_may_stop_a_server_that_is_being_stopped(tmp_path: Path) -> None:
    handled: list[int] = []

    class Interrupted(subprocess.Popen):  # type: ignore[type-arg]
        def terminate(self) -> None:
            super().terminate()
            if not handled:
                signal.raise_signal(signal.SIGUSR1)

    started = Started(tmp_path, Interrupted)

    def handler(*_: object) -> None:
        handled.append(1)
        started.process.stop()

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        started.close()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert not started.process.is_alive()
    assert handled == [1]


@pytest.mark.lock("integrations.agentops.server.process:ServerProcess._ready_lock")
def test_all_threads_that_wait_for_a_server_go_on_with_its_one_word(tmp_path: Path) -> None:
    started = Started(tmp_path)
    started.channel.sendall(READY)
    started.channel.close()  # it says nothing more
    together(lambda _: started.process.wait_until_ready(), slow=(process_module,))
    assert started.process.is_alive()
    started.close()


@pytest.mark.lock("integrations.agentops.server.process:ServerProcess._ready_lock")
def test_all_threads_that_wait_for_a_server_that_fails_are_told(tmp_path: Path) -> None:
    started = Started(tmp_path)
    started.channel.close()
    started.process.kill()
    told: list[str] = []

    def wait(_number: int) -> None:
        with pytest.raises(AgentOpsServerError) as caught:
            started.process.wait_until_ready()
        told.append(str(caught.value))

    together(wait, slow=(process_module,))
    assert len(told) == THREADS
    started.close()


# ---------------------------------------------------------------------- the server's manager


def servers() -> set[int]:
    """Children of this process that are servers."""
    found = set()
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if process_module.TITLE in child.cmdline() or "-P" in child.cmdline():
                found.add(child.pid)
    return found


@pytest.mark.lock("integrations.agentops.server.manager:AgentOpsServerManager._lock")
def test_threads_that_start_a_server_at_one_moment_start_one() -> None:
    before = servers()
    manager = AgentOpsServerManager()
    together(lambda _: manager.start(), 3, slow=(manager_module,))
    try:
        process = manager.server_process
        assert process is not None
        assert servers() - before == {process.pid}
    finally:
        manager.stop()
    assert servers() == before


@pytest.mark.lock("integrations.agentops.server.manager:AgentOpsServerManager._lock")
def test_threads_that_stop_a_server_at_one_moment_stop_it_once() -> None:
    before = servers()
    manager = AgentOpsServerManager()
    manager.start(wait=False)
    together(lambda _: manager.stop(), slow=(manager_module,))
    assert manager.server_process is None
    assert servers() == before
