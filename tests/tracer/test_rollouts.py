"""``tracer.rollout``: a rollout of a block or of each call, ended by how it was left, and nobody else's spans in it."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import gc
from collections import UserDict
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, suppress
from operator import is_
from threading import Event
from typing import Any

import pytest
from openai import OpenAI
from opentelemetry import trace

from agentlightning import emit_message, emit_reward
from agentlightning.errors import ContextArgumentsError, InvalidArgument, RolloutEnded, RolloutExists
from agentlightning.store import InMemoryLightningStore, LightningStore, SqliteLightningStore
from agentlightning.testing import FakeOpenAI, FaultyStore, wait_until_async
from agentlightning.tracer import DummyTracer, OtelTracer
from agentlightning.types import RolloutConfig


async def stored(tracer: OtelTracer, store: LightningStore) -> list[tuple[str, Any, list[str]]]:
    """Return status, input and messages of each rollout, as they began; the rewards of the process are told apart."""
    assert await asyncio.to_thread(tracer.processor.force_flush, 5000)
    found: list[tuple[str, Any, list[str]]] = []
    for rollout in await store.query_rollouts():
        spans = await store.query_spans(rollout.rollout_id)
        said = [
            str(span.attributes["agentlightning.message.body"]) for span in spans if "message" in span.name
        ]
        found.append((rollout.status, rollout.input, said))
    return found


ENDS: list[tuple[BaseException | None, str]] = [
    (None, "succeeded"),
    (ValueError("wrong"), "failed"),
    (asyncio.CancelledError(), "cancelled"),
    (KeyboardInterrupt(), "cancelled"),
    (SystemExit(), "succeeded"),
    (SystemExit(0), "succeeded"),
    (SystemExit(2), "failed"),
    (SystemExit("no key"), "failed"),
    (SystemExit(""), "failed"),  # whatever is no number ends a program with 1
    (SystemExit(False), "succeeded"),
    (GeneratorExit(), "succeeded"),
    (BaseExceptionGroup("", [asyncio.CancelledError(), GeneratorExit()]), "cancelled"),
    (BaseExceptionGroup("", [KeyboardInterrupt(), ValueError()]), "failed"),
]


@pytest.mark.asyncio
async def test_a_rollout_ends_as_its_body_was_left(tracer: OtelTracer, store: LightningStore) -> None:
    for number, (error, _) in enumerate(ENDS):
        try:
            async with tracer.rollout(number):
                if error is not None:
                    raise error
        except BaseException as raised:
            if raised is not error:
                raise
    expected: list[Any] = [(status, number, []) for number, (_, status) in enumerate(ENDS)]
    assert await stored(tracer, store) == expected
    ended = [await store.get_latest_attempt(each.rollout_id) for each in await store.query_rollouts()]
    assert [each and each.status for each in ended] == [
        "succeeded" if status == "succeeded" else "failed" for _, status in ENDS
    ]
    assert [each and each.was_cancelled for each in ended] == [status == "cancelled" for _, status in ENDS]
    roots = [await store.query_spans(each.rollout_id) for each in await store.query_rollouts()]
    assert [root.status.status_code == "ERROR" for (root,) in roots] == [
        status != "succeeded" for _, status in ENDS
    ]


@pytest.mark.asyncio
async def test_what_somebody_has_said_of_a_rollout_stands(tracer: OtelTracer, store: LightningStore) -> None:
    for said in ("succeeded", "failed"):
        with suppress(asyncio.CancelledError):
            async with tracer.rollout(1) as rollout:
                await store.update_attempt(rollout.rollout_id, rollout.attempt_id, status=said)
                raise asyncio.CancelledError
        attempt = await store.get_latest_attempt(rollout.rollout_id)
        assert attempt is not None
        assert (attempt.status, attempt.was_cancelled, attempt.metadata) == (said, False, None)
    assert [status for status, _, _ in await stored(tracer, store)] == ["succeeded", "failed"]


class Watched(InMemoryLightningStore):
    """Somebody writes a note on each attempt when its rollout's status changes."""

    async def update_rollout(self, rollout_id: str, *fields: Any, **more: Any) -> Any:
        await self.update_attempt(rollout_id, "latest", metadata={"note": more["status"]})
        return await super().update_rollout(rollout_id, *fields, **more)


@pytest.mark.asyncio
async def test_what_somebody_writes_on_an_attempt_that_is_being_cancelled_stays() -> None:
    store, tracer = Watched(), OtelTracer()
    with tracer.lifespan(store), suppress(asyncio.CancelledError):
        async with tracer.rollout(1) as rollout:
            raise asyncio.CancelledError
    attempt = await store.get_latest_attempt(rollout.rollout_id)
    assert attempt is not None
    assert (attempt.was_cancelled, attempt.metadata and attempt.metadata["note"]) == (True, "cancelled")


@pytest.mark.asyncio
async def test_an_attempt_that_was_given_up_or_superseded_cancels_no_rollout(
    tracer: OtelTracer, store: LightningStore
) -> None:
    retries = RolloutConfig(max_attempts=3, retry_condition=["timeout"])
    given_up = asyncio.Event()

    async def stuck(task: str) -> None:
        async with tracer.rollout(task) as rollout:
            await store.update_rollout(rollout.rollout_id, config=retries)
            await store.update_attempt(rollout.rollout_id, rollout.attempt_id, status="timeout")
            if task == "superseded":
                await store.start_attempt(rollout.rollout_id)
            given_up.set()
            await asyncio.Event().wait()

    for task in ("given up", "superseded"):
        given_up.clear()
        working = asyncio.create_task(stuck(task))
        await given_up.wait()
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
    assert await stored(tracer, store) == [("requeuing", "given up", []), ("preparing", "superseded", [])]
    attempts = [await store.query_attempts(each.rollout_id) for each in await store.query_rollouts()]
    assert [[each.was_cancelled for each in of] for of in attempts] == [[True], [True, False]]
    attempts = [await store.query_attempts(each.rollout_id) for each in await store.query_rollouts()]
    assert [[attempt.status for attempt in each] for each in attempts] == [
        ["failed"],
        ["failed", "preparing"],
    ]


@pytest.mark.asyncio
async def test_what_is_given_stands_in_the_store_and_on_the_handle(
    tracer: OtelTracer, store: LightningStore
) -> None:
    task = {"question": "a colour?"}
    async with tracer.rollout(task, name="guess", group="7", mode="val", metadata={"sample": 1}) as rollout:
        rollout.reward({"quality": 0.5, "length": 2.0}, primary_key="quality")
    kept = await store.get_rollout_by_id(rollout.rollout_id)
    assert kept is not None
    assert (kept.input, kept.mode) == ({"question": "a colour?"}, "val")
    assert kept.metadata == {"group_id": "7", "sample": 1, "name": "guess"}
    spans = await store.query_spans(rollout.rollout_id, rollout.attempt_id)
    assert [span.name for span in spans] == ["agentlightning.annotation", "guess"]
    assert rollout.spans() == [*spans]
    with pytest.raises(RolloutEnded, match="add_reward"):
        rollout.reward(1.0)
    with (
        pytest.raises(ContextArgumentsError, match="group_id"),
        tracer.rollout(1, group="8", metadata={"group_id": 9}),
    ):
        pass


def test_rows_are_there_in_the_next_line(tracer: OtelTracer) -> None:
    with FakeOpenAI() as model, model.client() as client:
        model.enqueue("blue")
        with tracer.rollout("a colour?", group="7", mode="train") as rollout:
            client.chat.completions.create(
                model="policy", messages=[{"role": "user", "content": "a colour?"}]
            )
            rollout.reward(1.0)
    (row,) = rollout.rows()
    assert (row.reward, row.group_id, row.mode, row.rollout_id) == (1.0, "7", "train", rollout.rollout_id)


def say(task: str) -> str:
    emit_message(task)
    return task.upper()


async def say_later(task: str, *, client: OpenAI | None = None) -> str:
    await asyncio.sleep(0)
    return say(task)


def spell(task: str) -> Iterator[str]:
    for letter in task:
        yield say(letter)


async def spell_later(task: str) -> AsyncIterator[str]:
    for letter in task:
        yield await say_later(letter)


class Agent:
    async def __call__(self, task: str) -> str:
        return await say_later(task)


@pytest.mark.asyncio
async def test_each_call_of_a_function_of_any_kind_is_a_rollout(store: LightningStore) -> None:
    tracer = OtelTracer()

    class Decorated:
        @tracer.rollout  # before the tracer is ready
        def method(self, task: str) -> str:
            return say(task)

        @tracer.rollout(mode="train")
        @staticmethod
        def static(task: str) -> str:
            return say(task)

    def returning(fn: Callable[[str], Any]) -> Callable[[str], Any]:
        return tracer.rollout("given")(lambda task: fn(task))

    with OpenAI(api_key="sk-secret") as client, tracer.lifespan(store):
        assert tracer.rollout(say)("ab") == "AB"
        assert await tracer.rollout(mode="train")(say_later)("ab", client=client) == "AB"
        assert list(tracer.rollout(spell)("ab")) == ["A", "B"]
        assert [letter async for letter in tracer.rollout(spell_later)("ab")] == ["A", "B"]
        assert Decorated().method("m") == "M"
        assert Decorated.static("s") == "S"
        assert await tracer.rollout(name="object")(Agent())("o") == "O"
        assert await tracer.rollout(functools.partial(say_later, "p"))() == "P"
        assert await returning(say_later)("ab") == "AB"
        assert list(returning(spell)("ab")) == ["A", "B"]
        assert [letter async for letter in returning(spell_later)("ab")] == ["A", "B"]
        assert await stored(tracer, store) == [
            ("succeeded", "ab", ["ab"]),
            ("succeeded", {"task": "ab", "client": "<openai.OpenAI>"}, ["ab"]),
            ("succeeded", "ab", ["a", "b"]),
            ("succeeded", "ab", ["a", "b"]),
            ("succeeded", "m", ["m"]),
            ("succeeded", "s", ["s"]),
            ("succeeded", "o", ["o"]),
            ("succeeded", None, ["p"]),
            ("succeeded", "given", ["ab"]),
            ("succeeded", "given", ["a", "b"]),
            ("succeeded", "given", ["a", "b"]),
        ]


@pytest.mark.asyncio
async def test_a_stream_that_is_left_early_has_succeeded_and_one_that_is_cancelled_is_cancelled(
    tracer: OtelTracer, store: LightningStore
) -> None:
    @tracer.rollout
    def generator(task: str) -> Iterator[str]:
        while True:
            yield task

    @tracer.rollout
    async def stream(task: str) -> AsyncGenerator[str, None]:
        while True:
            yield task

    @tracer.rollout
    async def forgotten(task: str) -> AsyncIterator[str]:
        yield task

    for _ in generator("break"):
        break
    async for _ in stream("break"):
        break
    async with aclosing(stream("closed")) as letters:
        await anext(letters)
    never_begun = (generator("never"), stream("never"), forgotten("never"))
    del never_begun
    is_reading = asyncio.Event()

    async def read() -> None:
        async with aclosing(stream("cancelled")) as letters:
            await anext(letters)
            is_reading.set()
            await asyncio.Event().wait()

    async def read_and_drop() -> None:
        async for _ in stream("dropped"):  # closed by the event loop, in a task of its own
            is_reading.set()
            await asyncio.Event().wait()

    for reads in (read, read_and_drop):
        is_reading.clear()
        reading = asyncio.create_task(reads())
        await is_reading.wait()
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
    gc.collect()
    closing = asyncio.all_tasks() - {asyncio.current_task()}  # what was left
    await asyncio.gather(*closing)
    assert await stored(tracer, store) == [
        ("succeeded", "break", []),
        ("succeeded", "break", []),
        ("succeeded", "closed", []),
        ("cancelled", "cancelled", []),
        ("cancelled", "dropped", []),
    ]


@pytest.mark.asyncio
async def test_a_stream_that_nobody_reads_to_its_end_has_succeeded_when_recording_ends(
    store: LightningStore, caplog: pytest.LogCaptureFixture
) -> None:
    tracer = OtelTracer()

    def opens(task: str) -> Iterator[int]:
        with tracer.rollout(task):
            yield 1
            yield 2

    async def opens_later(task: str) -> AsyncGenerator[int, None]:
        async with tracer.rollout(task):
            yield 1
            yield 2

    with tracer.lifespan(store):
        unread = [
            tracer.rollout(spell)("spell"),
            opens("opens"),
            iter(tracer.rollout(lambda: spell("plain"))()),
        ]
        for steps in unread:
            next(steps)
        unread_later = [tracer.rollout(spell_later)("later"), opens_later("opens later")]
        for later in unread_later:
            await anext(later)
        never_asked = tracer.rollout("never")(lambda: (letter for letter in "ab"))()
        tracer.teardown_worker(0)
        ended = {str(each.input): each.status for each in await store.query_rollouts()}
        succeeded = dict.fromkeys(["spell", "opens", "{}", "later", "opens later"], "succeeded")
        assert ended == {**succeeded, "never": "cancelled"}
        receipts = [
            await store.get_receipt(each.rollout_id, "latest") for each in await store.query_rollouts()
        ]
        assert [(each.stored == each.started > 0, each.open) for each in receipts] == [(True, 0)] * 6
        assert list(never_asked) == ["a", "b"]  # after all, when nothing records any more
        for steps in unread:
            steps.close()  # type: ignore[attr-defined]  # as Python does with them in the end
        for later in unread_later:
            await later.aclose()  # type: ignore[attr-defined]
    assert [record.message for record in caplog.records] == []


@pytest.mark.asyncio
async def test_work_that_is_under_way_when_recording_ends_has_not_succeeded(store: LightningStore) -> None:
    tracer = OtelTracer()
    begun, goes_on = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        begun.set()
        await goes_on.wait()

    with tracer.lifespan(store):
        working = asyncio.ensure_future(tracer.rollout("work")(lambda: work())())
        await begun.wait()
        tracer.teardown_worker(0)
        goes_on.set()
        await working
        (rollout,) = await store.query_rollouts()
    assert rollout.status not in {"succeeded", "cancelled"}


def test_a_stream_is_read_by_several_threads_and_its_input_is_left_alone(
    tracer: OtelTracer, store: LightningStore, caplog: pytest.LogCaptureFixture
) -> None:
    @tracer.rollout
    def relay(items: Iterator[str]) -> Iterator[str]:
        with trace.get_tracer("agent").start_as_current_span("relays"):
            for item in items:
                yield say(item)

    steps = relay(letter for letter in "abc")
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
        assert [threads.submit(next, steps).result() for threads in (one, other, one)] == ["A", "B", "C"]
        other.submit(steps.close).result()  # type: ignore[attr-defined]
    (found,) = asyncio.run(stored(tracer, store))
    assert found == ("succeeded", "<builtins.generator>", ["a", "b", "c"])
    spans = asyncio.run(store.query_spans(asyncio.run(store.query_rollouts())[0].rollout_id))
    by_name = {span.name: span for span in spans}
    assert by_name["relays"].parent_id == by_name["relay"].span_id
    assert {span.parent_id for span in spans if "message" in span.name} == {by_name["relays"].span_id}
    assert [record.message for record in caplog.records] == []


@pytest.mark.asyncio
async def test_a_coroutine_that_a_plain_function_returns_and_nobody_awaits_is_cancelled(
    tracer: OtelTracer, store: LightningStore
) -> None:
    async def work() -> None:
        raise AssertionError("never begun")

    @tracer.rollout("unawaited")
    def agent() -> Any:
        coroutine = work()
        return coroutine

    going_on = agent()
    inner = going_on.cr_frame.f_locals["fn"]()  # closed, so that Python does not complain of it
    going_on.close()
    inner.close()
    del going_on

    async def is_cancelled() -> (
        bool
    ):  # by a thread of ours: the garbage collector may have come to it anywhere
        return await stored(tracer, store) == [("cancelled", "unawaited", [])]

    await wait_until_async(is_cancelled)


@pytest.mark.asyncio
async def test_a_future_that_a_plain_function_returns_is_the_same_one_and_ends_the_rollout_when_it_is_done(
    tracer: OtelTracer, store: LightningStore, caplog: pytest.LogCaptureFixture
) -> None:
    go_on, made = asyncio.Event(), list[Any]()

    async def work(task: str) -> str:
        say(f"{task} begins")
        await go_on.wait()
        if task == "fails":
            raise ValueError(task)
        return say(task)

    def task_of(task: str) -> Any:
        made.append(asyncio.create_task(work(task)))
        return made[-1]

    def all_of(task: str) -> Any:
        made.append(asyncio.gather(work(task), work("b")))
        return made[-1]

    def already(task: str) -> Any:
        made.append(asyncio.get_running_loop().create_future())
        made[-1].set_result(say(task))
        return made[-1]

    running = [tracer.rollout(task_of)(task) for task in ("a", "fails", "cancelled")]
    running += [tracer.rollout(all_of)("all"), tracer.rollout(already)("already")]
    assert all(map(is_, running, made))
    await asyncio.sleep(0)
    say("of nobody")  # nothing of theirs is current here
    running[2].cancel()
    await asyncio.wait(running[2:3])
    statuses = [status for status, _, _ in await stored(tracer, store)]
    assert statuses == ["running", "running", "cancelled", "running", "succeeded"]
    go_on.set()
    await asyncio.wait(running)
    assert running[1].exception() is not None
    assert [(status, task, sorted(said)) for status, task, said in await stored(tracer, store)] == [
        ("succeeded", "a", ["a", "a begins"]),
        ("failed", "fails", ["fails begins"]),
        ("cancelled", "cancelled", ["cancelled begins"]),
        ("succeeded", "all", ["all", "all begins", "b", "b begins"]),
        ("succeeded", "already", ["already"]),
    ]
    assert "'with' block" not in caplog.text


@pytest.mark.asyncio
async def test_an_exception_of_a_future_that_nobody_asks_for_is_told_as_without_us(
    tracer: OtelTracer,
) -> None:
    told: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["message"]))

    def agent() -> Any:
        future = asyncio.get_running_loop().create_future()
        future.set_exception(ValueError("forgotten"))
        return future

    for function in (agent, tracer.rollout("forgotten")(agent)):
        function()
        gc.collect()
    assert told == ["Future exception was never retrieved"] * 2


def test_work_of_a_pool_ends_its_rollout_when_it_is_done(tracer: OtelTracer, store: LightningStore) -> None:
    go_on = Event()

    @tracer.rollout
    def submit(task: str) -> Any:
        return pool.submit(lambda: (go_on.wait(60), say(task))[1])

    with ThreadPoolExecutor(1) as pool:
        future = submit("work")
        ((status, _, _),) = asyncio.run(stored(tracer, store))
        go_on.set()
        assert (status, future.result(60)) == ("running", "WORK")
    assert asyncio.run(stored(tracer, store)) == [("succeeded", "work", ["work"])]


@pytest.mark.asyncio
async def test_a_future_that_everybody_forgets_is_cancelled_and_one_under_way_stays_as_it_is(
    store: LightningStore,
) -> None:
    tracer = OtelTracer()
    with tracer.lifespan(store):
        tracer.rollout("forgotten")(lambda: asyncio.get_running_loop().create_future())()
        kept = tracer.rollout("kept")(lambda: asyncio.get_running_loop().create_future())()
        gc.collect()
        tracer.teardown_worker(0)
        kept.set_result(None)
        await asyncio.sleep(0)
        ended = {str(each.input): each.status for each in await store.query_rollouts()}
    assert ended["forgotten"] == "cancelled"
    assert ended["kept"] not in {"cancelled", "failed"}


@pytest.mark.asyncio
async def test_a_rollout_that_ends_before_what_its_function_returns_is_awaited_says_so(
    tracer: OtelTracer, store: LightningStore, caplog: pytest.LogCaptureFixture
) -> None:
    class Request:
        def __await__(self) -> Any:
            return say_later("later").__await__()

    for _ in range(2):
        assert await tracer.rollout("asked")(Request)() == "LATER"
    assert [status for status, _, _ in await stored(tracer, store)] == ["succeeded"] * 2
    said = [record.message for record in caplog.records if "no part of it" in record.message]
    assert len(said) == 1
    assert "Request, and what is awaited of that" in said[0]


def test_arguments_of_any_kind_leave_the_agent_alone(tracer: OtelTracer, store: LightningStore) -> None:
    @dataclasses.dataclass
    class Unset:
        later: int = dataclasses.field(init=False)

    class Broken(UserDict[str, int]):
        def items(self) -> Any:
            raise OSError("its server is gone")

    cycle: dict[str, Any] = {"size": 1}
    cycle["again"] = cycle
    agent = tracer.rollout(lambda task: type(task).__name__)
    given = [Unset(), cycle, Broken(), {"client": object(), "size": 2}]
    assert [agent(task) for task in given] == ["Unset", "dict", "Broken", "dict"]
    module = __name__
    prefix = "test_arguments_of_any_kind_leave_the_agent_alone.<locals>"
    assert [task for _, task, _ in asyncio.run(stored(tracer, store))] == [
        f"<{module}.{prefix}.Unset>",
        {"size": 1, "again": "<builtins.dict>"},
        f"<{module}.{prefix}.Broken>",
        {"client": "<builtins.object>", "size": 2},
    ]


def test_generators_are_driven_as_they_were_without_us(tracer: OtelTracer, store: LightningStore) -> None:
    @tracer.rollout
    def agent(task: str) -> Generator[Any, Any, str]:
        try:
            said = yield task
        except KeyError:
            said = yield "caught"
        yield said
        return "done"

    def whole() -> Generator[Any, Any, str]:
        result: str = yield from agent("a")
        return result

    steps = whole()
    assert [next(steps), steps.send("b")] == ["a", "b"]
    with pytest.raises(StopIteration) as stop:
        next(steps)
    assert stop.value.value == "done"
    steps = agent("a")
    assert [next(steps), steps.throw(KeyError())] == ["a", "caught"]
    with pytest.raises(ValueError, match="mine"):
        steps.throw(ValueError("mine"))
    assert [status for status, _, _ in asyncio.run(stored(tracer, store))] == ["succeeded", "failed"]


@pytest.mark.asyncio
async def test_no_span_is_under_the_rollout_of_another_stream(
    tracer: OtelTracer, store: LightningStore
) -> None:
    @tracer.rollout
    def generator(task: str) -> Iterator[str]:
        for number in range(2):
            emit_message(f"{task}{number}")
            yield task

    @tracer.rollout
    async def stream(task: str) -> AsyncIterator[str]:
        queue = asyncio.Queue[int]()

        async def produce() -> None:
            for number in range(3):
                await asyncio.sleep(0)
                emit_message(f"{task}{number}")
                queue.put_nowait(number)

        producing = asyncio.create_task(produce())  # goes on while the stream rests
        for _ in range(3):
            await queue.get()
            yield task
        await producing

    def drives(task: str, given: Iterator[str]) -> Iterator[str]:
        with tracer.rollout(task):  # a generator of its own, which takes the steps of another one
            for item in given:
                emit_message(task)
                yield item

    async def read(task: str) -> None:
        async for _ in stream(task):
            for _ in range(5):
                await asyncio.sleep(0)

    async with tracer.rollout("driver"):
        first, second = generator("f"), generator("s")
        for _ in zip(first, second, strict=True):
            emit_message("driver")
        given = generator("g")
        next(given)
        for _ in drives("d", given):
            pass
        await asyncio.gather(read("x"), read("y"))
        emit_message("driver")
    found = {task: (status, said) for status, task, said in await stored(tracer, store)}
    assert found == {
        "driver": ("succeeded", ["driver"] * 3),
        "f": ("succeeded", ["f0", "f1"]),
        "s": ("succeeded", ["s0", "s1"]),
        "g": ("succeeded", ["g0", "g1"]),
        "d": ("succeeded", ["d"]),
        "x": ("succeeded", ["x0", "x1", "x2"]),
        "y": ("succeeded", ["y0", "y1", "y2"]),
    }


def test_a_stream_that_is_not_read_yet_gets_nothing_of_the_generator_that_asked_for_it(
    tracer: OtelTracer, store: LightningStore
) -> None:
    agent = tracer.rollout(lambda task: spell(task))

    def drives() -> Iterator[str]:
        with tracer.rollout("driver"):
            letters = agent("ab")
            emit_message("driver")
            yield from letters

    def has_no_rollout() -> Iterator[str]:
        letters = agent("cd")
        emit_message("of nobody")
        yield from letters

    assert [*drives(), *has_no_rollout()] == ["A", "B", "C", "D"]
    found = {task: said for _, task, said in asyncio.run(stored(tracer, store))}
    assert found == {"driver": ["driver"], "ab": ["a", "b"], "cd": ["c", "d"]}


@pytest.mark.asyncio
async def test_rollouts_side_by_side_and_inside_of_each_other_keep_their_rewards(
    tracer: OtelTracer, store: LightningStore
) -> None:
    @tracer.rollout
    def helper(task: str) -> None:
        emit_message(task)

    async def team(task: str) -> None:
        async with tracer.rollout(task) as outer:
            async with tracer.rollout(f"{task}/part") as inner:
                outer.reward(1.0)  # inside of another rollout
                inner.reward(2.0)
                await asyncio.to_thread(helper, f"{task}/helper")
            with ThreadPoolExecutor(1) as threads:
                await asyncio.wrap_future(threads.submit(emit_reward, 3.0))

    await asyncio.gather(*(team(str(number)) for number in range(4)))
    assert await asyncio.to_thread(tracer.processor.force_flush, 5000)
    rewards: dict[str, list[Any]] = {}
    for rollout in await store.query_rollouts():
        assert rollout.status == "succeeded"
        spans = await store.query_spans(rollout.rollout_id)
        rewards[rollout.input] = [
            span.attributes["agentlightning.reward.0.value"]
            for span in spans
            if span.name == "agentlightning.annotation"
        ]
    assert rewards == {
        key: value
        for number in range(4)
        for key, value in ((f"{number}", [1.0, 3.0]), (f"{number}/part", [2.0]), (f"{number}/helper", []))
    }


@pytest.mark.asyncio
async def test_a_store_that_fails_keeps_no_agent_from_its_work_and_a_wrong_argument_does(
    tmp_path: Any,
) -> None:
    async with SqliteLightningStore(tmp_path / "a.db") as inner:
        store = FaultyStore(inner)
        tracer = OtelTracer()
        with tracer.lifespan(store):
            with pytest.raises(InvalidArgument, match="input"):
                async with tracer.rollout(object()):
                    raise AssertionError("it has begun")
            async with tracer.rollout("mine", rollout_id="mine") as rollout:
                assert rollout.rollout_id == "mine"
            with pytest.raises(RolloutExists, match="mine"):
                async with tracer.rollout("mine", rollout_id="mine"):
                    raise AssertionError("it has begun")
            store.fail_for_ever(lambda: OSError(28, "No space left on device"))
            async with tracer.rollout("task") as rollout:
                rollout.reward(1.0)
            assert rollout.receipt().dropped == {"no_rollout": 2}
            store.heal()


def test_a_block_begins_once_and_a_tracer_that_records_nothing_takes_the_same_calls(
    tracer: OtelTracer,
) -> None:
    block = tracer.rollout("once")
    with block, pytest.raises(ContextArgumentsError, match="another one"):
        block.__enter__()
    with pytest.raises(ContextArgumentsError, match="not str"):
        tracer.rollout("x")("text")  # type: ignore[type-var]
    silent = DummyTracer()
    with silent.rollout("task", group="7") as rollout:
        rollout.reward(1.0)
        assert (rollout.rollout_id, rollout.spans(), list(rollout.rows())) == ("", [], [])
    assert list(silent.rollout(lambda: iter("ab"))()) == ["a", "b"]
