"""Each lock of the recorder keeps what it guards, where threads change places after a microsecond."""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanContext, TraceFlags
from races import THREADS, together

from agentlightning.dialects.raw_call import CallStart, RawCall
from agentlightning.recorder import flushes as flushes_module
from agentlightning.recorder import overflow as overflow_module
from agentlightning.recorder import queue as queue_module
from agentlightning.recorder import thread as thread_module
from agentlightning.recorder.delivery import Delivery
from agentlightning.recorder.flushes import Flushes
from agentlightning.recorder.kept_aside import MOST_SPANS, KeptAside
from agentlightning.recorder.ledger import Ledger, PendingBatch
from agentlightning.recorder.overflow import MovedCalls, Overflow
from agentlightning.recorder.queue import SpanQueue
from agentlightning.recorder.recent_scopes import Ids, RecentScopes
from agentlightning.recorder.scope import FinishedSpan, Record, Scope
from agentlightning.recorder.settings import WriterSettings
from agentlightning.recorder.sizes import size_of
from agentlightning.recorder.spool import Spool
from agentlightning.recorder.thread import WriterThread
from agentlightning.store import InMemoryLightningStore
from agentlightning.testing import wait_until
from agentlightning.types import Receipt, Span

ROUNDS = 100
MB = 1024 * 1024
ENDLESS = WriterSettings(flush_interval=3_600_000)


def books(settings: WriterSettings = ENDLESS) -> tuple[Ledger, SpanQueue, Scope]:
    """A ledger, its queue, and an attempt."""
    queue = SpanQueue(settings)
    ledger = Ledger(queue, settings)
    return ledger, queue, Scope(InMemoryLightningStore(), "r", "a", counts=ledger.new_counts())


def record_of(scope: Scope, number: int = 1) -> Record:
    return Record(scope, SpanContext(1, number, is_remote=False, trace_flags=TraceFlags(1)))


def finished(record: Record, size: int = 1000) -> FinishedSpan:
    return FinishedSpan(ReadableSpan("step"), record, size)


def take_all(ledger: Ledger) -> Iterator[PendingBatch]:
    while True:
        batches = ledger.take(1000) or ledger.take_costly()
        if not batches:
            return
        yield from batches


def whole_call(text: bytes) -> RawCall:
    return RawCall(
        start=CallStart("chat", "http://localhost/v1/chat/completions", "m", stream=False),
        request_body=b"{}",
        status=200,
        content_type="application/json",
        response_body=text,
        complete=True,
    )


# ---------------------------------------------------------------------- ledger


@pytest.mark.lock("recorder.ledger:Ledger._lock")
def test_every_span_that_was_started_is_counted_once_whatever_becomes_of_it() -> None:
    settings = WriterSettings(max_queue_size=THREADS * ROUNDS // 2, flush_interval=3_600_000, block_timeout=0)
    ledger, queue, scope = books(settings)

    def agent(number: int) -> None:
        for index in range(ROUNDS):
            record = record_of(scope, 1 + number * ROUNDS + index)
            ledger.start(record)
            assert ledger.end(finished(record))

    together(agent)
    for batch in take_all(ledger):
        queue.free(ledger.settle(batch))
    receipt: Receipt = ledger.receipt(scope)
    assert receipt.started == THREADS * ROUNDS
    assert receipt.open == 0
    assert receipt.stored + sum(receipt.dropped.values()) == receipt.started
    assert set(receipt.dropped) == {"queue_full"}
    assert (len(queue), queue.held_bytes) == (0, 0)


@pytest.mark.lock("recorder.ledger:Ledger._lock")
def test_a_span_is_claimed_by_one_call_and_never_after_it_has_ended() -> None:
    ledger, queue, scope = books()
    for number in range(1, ROUNDS + 1):
        record = record_of(scope, number)
        claimed: list[int] = []
        ledger.start(record)

        def race(role: int, record: Record = record, claimed: list[int] = claimed) -> None:
            if role == 0:
                ledger.end(finished(record))
            elif ledger.claim(record, Any, ()):  # type: ignore[arg-type]  # what it is does not matter here
                claimed.append(role)

        together(race, 3)
        assert len(claimed) <= 1
        assert record.ended is not bool(claimed)
        if claimed:
            ended, _ = ledger.complete(record, whole_call(b"{}"))
            assert ended is not None
            assert ledger.end(FinishedSpan(ended, record, 1000))
    assert len(queue) == ROUNDS


@pytest.mark.lock("recorder.ledger:Ledger._lock")
def test_accounts_that_are_counted_meanwhile_speak_of_no_span_that_is_not_with_them() -> None:
    ledger, queue, scope = books()
    written = 0
    sent = []
    over = threading.Event()

    def write() -> None:
        nonlocal written
        while True:
            is_last = over.is_set()
            for batch in ledger.take(1000):
                account = ledger.snapshot(batch, batch.scopes).accounts[0]
                written += len(batch.entries)
                sent.append((account.started, written))
                queue.free(ledger.settle(batch))
            if is_last:
                return

    def agent(number: int) -> None:
        for index in range(ROUNDS):
            record = record_of(scope, 1 + number * ROUNDS + index)
            ledger.start(record)
            ledger.end(finished(record))

    writer = threading.Thread(target=write)
    writer.start()
    together(agent)
    over.set()
    writer.join()
    assert all(started == spans for started, spans in sent)
    assert written == THREADS * ROUNDS


# ---------------------------------------------------------------------- queue


@pytest.mark.lock("recorder.queue:SpanQueue._lock")
def test_memory_for_answers_that_arrive_is_given_back_to_the_byte() -> None:
    queue = SpanQueue(WriterSettings(max_queue_bytes=THREADS * 1000))

    def read(number: int) -> None:
        for index in range(20):
            size = 1 + (number * 31 + index * 7) % 2000
            if queue.reserve(size):
                assert queue.held_bytes <= 2 * THREADS * 1000
                queue.release(size)

    together(read, slow=(queue_module,))
    assert queue.held_bytes == 0


@pytest.mark.lock("recorder.queue:SpanQueue._lock")
@pytest.mark.lock("recorder.overflow:Overflow._lock")
def test_bodies_that_are_moved_while_their_span_is_written_are_given_back_once(tmp_path: Path) -> None:
    ledger, queue, scope = books()
    overflow = Overflow(tmp_path, "bodies", 100 * MB)
    entries = []
    for number in range(1, ROUNDS + 1):
        record = record_of(scope, number)
        ledger.start(record)
        record.calls = [whole_call(b"x" * 1000)]
        entries.append(finished(record, 2000))
        ledger.end(entries[-1])

    def race(role: int) -> None:
        for entry in entries:
            calls = entry.record.calls
            if role == 1:
                queue.free([entry])
            elif calls is not None:
                moved = overflow.move(calls)
                assert moved is not None
                queue.replace_calls(entry, calls, moved)

    together(race, 2, slow=(queue_module,))
    assert queue.held_bytes == 0
    assert overflow.size == 0
    overflow.close()


@pytest.mark.lock("recorder.overflow:Overflow._lock")
def test_files_of_bodies_go_with_the_last_body_that_is_needed_of_them(tmp_path: Path) -> None:
    many = 40
    overflow = Overflow(tmp_path, "bodies", 100 * MB, file_bytes=5_000)
    moved: deque[tuple[bytes, MovedCalls | None]] = deque()

    def take() -> Any:
        return moved and moved.popleft()

    def race(role: int) -> None:
        if role == 0:
            for number in range(many):
                text = bytes([number]) * 1000
                found = overflow.move([whole_call(text)])
                assert found is not None
                moved.extend([(text, found)])
            moved.extend([(b"", None)] * 3)  # the end, for each who reads
            return
        while True:
            body, calls = wait_until(take, deadline=120)
            if calls is None:
                return
            (call,) = calls.read()
            assert call.response_body == body
            calls.free()

    together(race, 4, slow=(overflow_module,))
    assert overflow.size == 0
    overflow.close()


# ---------------------------------------------------------------------- flushes


@pytest.mark.lock("recorder.flushes:Flushes._lock")
def test_whoever_waits_while_the_writer_stops_is_told() -> None:
    for _ in range(5):
        ledger, _, _ = books()
        flushes = Flushes(ledger)
        futures: list[Any] = []

        def race(role: int, flushes: Flushes = flushes, futures: list[Any] = futures) -> None:
            for turn in range(4):
                futures.append(flushes.wait(None, has_work=True, may_wait=True))
                flushes.resolve(delivers=True)
                if role == 0 and turn == 2:  # while the others are among those who wait
                    flushes.close()
                    flushes.resolve(delivers=False)

        together(race, slow=(flushes_module,))
        flushes.resolve(delivers=False)
        assert len(futures) == 4 * THREADS
        assert all(future.done() for future in futures)


@pytest.mark.lock("recorder.flushes:Flushes._lock")
def test_what_is_to_be_done_after_spans_is_done_or_named_in_the_end_and_never_both() -> None:
    ledger, _, scope = books()

    async def nothing() -> None:
        return

    for _ in range(10):
        flushes = Flushes(ledger)
        accepted: list[str] = []
        done: list[str] = []
        undone: list[str] = []

        def race(
            role: int,
            flushes: Flushes = flushes,
            accepted: list[str] = accepted,
            done: list[str] = done,
            undone: list[str] = undone,
        ) -> None:
            if role == 0:
                for job in flushes.due():
                    flushes.done(job)
                    done.append(job.otherwise)
                undone.extend(job.otherwise for job in flushes.close())
                return
            # Until it is too late: so that all are about to add one when the list is closed.
            for index in itertools.count():
                name = f"{role}-{index}"
                if not flushes.after(scope, nothing, name):
                    return
                accepted.append(name)

        together(race, slow=(flushes_module,))
        assert sorted(done + undone) == sorted(accepted)
        assert not flushes.after(scope, nothing, "too late")


@pytest.mark.lock("recorder.thread:WriterThread._lock")
def test_there_is_one_thread_at_a_time_however_many_wake_it_up(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[str] = []
    start = threading.Thread.start

    def noted(thread: threading.Thread) -> None:
        started.append(thread.name)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", noted)
    for _ in range(5):
        at_work: list[int] = []
        over = threading.Event()

        def work(at_work: list[int] = at_work, over: threading.Event = over) -> None:
            at_work.append(1)
            over.wait(60)

        started.clear()
        thread = WriterThread(work)
        together(lambda _, thread=thread: thread.wake(), slow=(thread_module,))  # type: ignore[misc]
        wait_until(at_work.__len__)
        over.set()
        thread.join(60)
        assert len(at_work) == started.count(thread_module.THREAD_NAME) == 1


@pytest.mark.lock("recorder.thread:WriterThread._lock")
def test_a_thread_that_has_been_stopped_is_never_started_again() -> None:
    for _ in range(5):
        runs: list[int] = []
        thread = WriterThread(partial(runs.append, 1))

        def race(role: int, thread: WriterThread = thread) -> None:
            if role == 0:
                thread.stop()
            else:
                thread.wake()

        together(race, slow=(thread_module,))
        thread.join(60)
        before = len(runs)
        thread.wake()
        thread.join(60)
        assert len(runs) == before


# ---------------------------------------------------------------------- disk


@pytest.fixture
def spooling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Ledger, Delivery, Scope]:
    """What puts spans of an attempt on disk."""
    monkeypatch.setenv("AGL_SPOOL_DIR", str(tmp_path / "spool"))
    ledger, queue, scope = books()
    return ledger, Delivery(ledger, queue, 30.0), scope


def batch_of(ledger: Ledger, scope: Scope, number: int) -> PendingBatch:
    """A batch of one span, made."""
    record = record_of(scope, number)
    ledger.start(record)
    entry = finished(record)
    entry.span = Span.from_attributes(
        attributes={}, rollout_id="r", attempt_id="a", span_id=record.span_id, trace_id=f"{1:032x}"
    )
    batch = PendingBatch(scope.store)  # type: ignore[arg-type]  # it has one
    batch.entries.append(entry)
    batch.scopes[scope] = 1
    batch.made["a", record.span_id] = entry
    return batch


@pytest.mark.lock("recorder.delivery:Delivery._disk")
def test_batches_go_to_the_disk_one_after_the_other_and_each_once(
    spooling: tuple[Ledger, Delivery, Scope],
) -> None:
    ledger, delivery, scope = spooling
    order: list[int] = []

    def put(number: int) -> None:
        def batches() -> Iterator[PendingBatch]:
            for index in range(3):
                order.append(number)
                yield batch_of(ledger, scope, 1 + number * 3 + index)

        delivery.put_aside(batches(), lambda _: [])

    together(put)
    assert scope.store is not None
    assert order == [number for number in dict.fromkeys(order) for _ in range(3)]
    assert Spool(scope.store).waiting_spans() == {("r", "a"): THREADS * 3}
    assert ledger.receipt(scope).dropped == {"spooled": THREADS * 3}


@pytest.mark.lock("recorder.delivery:Delivery._disk")
def test_whoever_shuts_down_second_waits_until_the_first_has_all_on_disk(
    spooling: tuple[Ledger, Delivery, Scope],
) -> None:
    ledger, delivery, scope = spooling
    begun = threading.Event()
    there: list[int] = []

    def race(role: int) -> None:
        assert scope.store is not None
        if role == 0:

            def batches() -> Iterator[PendingBatch]:
                begun.set()
                for number in range(1, 6):
                    yield batch_of(ledger, scope, number)

            delivery.put_aside(batches(), lambda _: [])
            return
        begun.wait()
        delivery.wait_for_disk()
        there.append(sum(Spool(scope.store).waiting_spans().values()))

    together(race)
    assert there == [5] * (THREADS - 1)


# ---------------------------------------------------------------------- unattributed spans


def add_spans(aside: KeptAside, number: int, many: int) -> None:
    for _ in range(many):
        aside.add(ReadableSpan("x" * (1 + number)))


@pytest.mark.lock("recorder.kept_aside:KeptAside._lock")
def test_the_bytes_of_what_is_kept_aside_are_those_of_the_spans_that_are_there() -> None:
    aside = KeptAside()
    together(lambda number: add_spans(aside, number, ROUNDS))
    assert aside.count == len(aside.spans) == THREADS * ROUNDS
    assert aside.bytes == sum(map(size_of, aside.spans))


@pytest.mark.lock("recorder.kept_aside:KeptAside._lock")
def test_where_more_is_kept_aside_than_there_is_room_for_the_oldest_go_and_all_are_counted() -> None:
    aside = KeptAside()
    together(lambda number: add_spans(aside, number, 300))
    assert aside.count == THREADS * 300
    assert len(aside.spans) == MOST_SPANS
    assert aside.bytes == sum(map(size_of, aside.spans))


# ---------------------------------------------------------------------- attempts that are known by their ids


@pytest.mark.lock("recorder.recent_scopes:RecentScopes._lock")
def test_an_attempt_that_several_threads_name_first_has_one_scope() -> None:
    for _ in range(20):
        recent = RecentScopes(10, lambda ids: Scope(None, *ids), lambda scope: None)
        found: list[Scope] = []
        together(lambda _, recent=recent, found=found: found.append(recent.get(("r", "a"))))  # type: ignore[misc]
        assert len(set(found)) == 1


@pytest.mark.lock("recorder.recent_scopes:RecentScopes._lock")
def test_every_scope_that_was_made_is_among_the_recent_ones_or_was_closed_once() -> None:
    made: list[Scope] = []
    closed: list[Scope] = []

    def make(ids: Ids) -> Scope:
        made.append(Scope(None, *ids))
        return made[-1]

    recent = RecentScopes(5, make, closed.append)
    together(lambda number: [recent.get(("r", f"a{(number + index) % 20}")) for index in range(ROUNDS)])
    assert len(list(recent)) == 5
    assert sorted(map(id, [*closed, *recent])) == sorted(map(id, made))
