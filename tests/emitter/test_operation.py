from __future__ import annotations

import asyncio
import contextvars
import gc
import inspect
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from opentelemetry import trace

from agentlightning.emitter import OperationContext, emit_message, operation, reward
from agentlightning.tracer.base import Tracer, clear_active_tracer, set_active_tracer
from agentlightning.tracer.otel import OtelTracer
from agentlightning.types import Span, SpanRecordingContext

NAME = "agentlightning.operation.name"
INPUT = "agentlightning.operation.input"
OUTPUT = "agentlightning.operation.output"


@pytest.fixture
def tracer() -> Iterator[OtelTracer]:
    tracer = OtelTracer()
    with tracer.lifespan():
        yield tracer


def recorded(tracer: OtelTracer, work: Callable[[], Any]) -> list[Span]:
    with tracer.trace_context():
        work()
    return spans_of(tracer)


def spans_of(tracer: OtelTracer) -> list[Span]:
    return [span for span in tracer.get_last_trace() if span.name.startswith("agentlightning.")]


@operation
def decorated_at_import(x: int, *rest: int, flag: bool = False, **more: Any) -> int:
    """Adds one."""
    return x + 1


def test_a_function_decorated_at_import_time_is_recorded_when_it_runs(tracer: OtelTracer) -> None:
    (span,) = recorded(tracer, lambda: decorated_at_import(1, 5, 6, more={"a": [1, 2]}))

    assert span.name == "agentlightning.operation"
    assert span.attributes == {
        NAME: "decorated_at_import",
        f"{INPUT}.x": 1,
        f"{INPUT}.rest.0": 5,
        f"{INPUT}.rest.1": 6,
        f"{INPUT}.flag": False,
        f"{INPUT}.more.more.a": [1, 2],
        OUTPUT: 2,
    }
    assert decorated_at_import.__doc__ == "Adds one."


def test_a_module_with_operations_is_imported_without_a_tracer() -> None:
    code = "from agentlightning import operation\n@operation\ndef f(): return 1\nassert f() == 1"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_arguments_of_the_decorator_become_attributes(tracer: OtelTracer) -> None:
    @operation(name="search", category={"kind": "tool"})
    def find() -> dict[str, Any]:
        return {"hits": [{"id": 1}]}

    (span,) = recorded(tracer, find)

    assert span.attributes == {NAME: "search", "category.kind": "tool", f"{OUTPUT}.hits.0.id": 1}


def test_an_exception_is_recorded_and_goes_on(tracer: OtelTracer) -> None:
    error = KeyError("missing")

    @operation
    def fail() -> None:
        raise error

    with tracer.trace_context(), pytest.raises(KeyError) as caught:
        fail()

    (span,) = spans_of(tracer)
    assert caught.value is error
    assert span.status.status_code == "ERROR"
    assert span.attributes["exception.type"] == "KeyError"


def test_a_coroutine_is_recorded_around_its_work(tracer: OtelTracer) -> None:
    @operation
    async def work(n: int) -> int:
        await asyncio.sleep(0)
        emit_message("inside")
        return n * 2

    async def main() -> list[int]:
        async with tracer.trace_context():
            return list(await asyncio.gather(work(1), work(2)))

    assert inspect.iscoroutinefunction(work)
    assert asyncio.run(main()) == [2, 4]
    spans = {span.span_id: span for span in spans_of(tracer)}
    messages = [span for span in spans.values() if span.name == "agentlightning.message"]
    assert [spans[str(span.parent_id)].attributes[f"{INPUT}.n"] for span in messages] == [1, 2]


def test_a_generator_is_recorded_from_its_first_value_to_its_end(tracer: OtelTracer) -> None:
    @operation
    def count(n: int) -> Generator[int, None, str]:
        for i in range(n):
            emit_message(f"inside {i}")
            yield i
        return "done"

    seen: list[Any] = []
    with tracer.trace_context():
        outer = trace.get_current_span()
        for item in count(2):
            assert trace.get_current_span() is outer
            emit_message(f"outside {item}")
            seen.append(item)
        assert trace.get_current_span() is outer

    spans = spans_of(tracer)
    (span,) = [span for span in spans if span.name == "agentlightning.operation"]
    parents = {s.attributes["agentlightning.message.body"]: s.parent_id for s in spans if s is not span}
    assert seen == [0, 1]
    assert span.attributes[OUTPUT] == "done"
    assert parents["inside 0"] == parents["inside 1"] == span.span_id
    assert parents["outside 0"] == parents["outside 1"] == span.parent_id


def test_a_generator_keeps_its_protocol(tracer: OtelTracer) -> None:
    @operation
    def echo() -> Iterator[Any]:
        got = None
        while True:
            try:
                got = yield got
            except ValueError as error:
                got = f"caught {error}"

    with tracer.trace_context():
        generator: Any = echo()
        assert next(generator) is None
        assert generator.send("a") == "a"
        assert generator.throw(ValueError("b")) == "caught b"
        generator.close()

    (span,) = spans_of(tracer)
    assert inspect.isgeneratorfunction(echo)
    assert span.status.status_code != "ERROR"


def test_an_error_inside_a_generator_is_recorded(tracer: OtelTracer) -> None:
    @operation
    def broken() -> Iterator[int]:
        yield 1
        raise KeyError("x")

    with tracer.trace_context(), pytest.raises(KeyError):
        list(broken())

    assert spans_of(tracer)[0].status.status_code == "ERROR"


def test_an_asynchronous_generator_is_recorded_and_keeps_its_protocol(tracer: OtelTracer) -> None:
    @operation
    async def stream(n: int) -> AsyncIterator[Any]:
        for i in range(n):
            await asyncio.sleep(0)
            emit_message("inside")
            try:
                yield i
            except ValueError:
                yield "caught"

    async def main() -> list[Any]:
        async with tracer.trace_context():
            outer = trace.get_current_span()
            items = [item async for item in stream(2)]
            abandoned: Any = stream(9)
            items.append(await anext(abandoned))
            items.append(await abandoned.athrow(ValueError()))
            assert trace.get_current_span() is outer
            await abandoned.aclose()
            return items

    assert inspect.isasyncgenfunction(stream)
    assert asyncio.run(main()) == [0, 1, 0, "caught"]
    spans = spans_of(tracer)
    operations = [span for span in spans if span.name == "agentlightning.operation"]
    assert [span.status.status_code for span in operations].count("ERROR") == 0
    assert len(operations) == 2
    assert {span.parent_id for span in spans if span not in operations} == {
        span.span_id for span in operations
    }


def test_what_a_generator_makes_current_stays_current_in_its_later_steps(tracer: OtelTracer) -> None:
    @operation
    def steps() -> Iterator[int]:
        with trace.get_tracer("agent").start_as_current_span("inner"):
            emit_message("inner")
            yield 1
            emit_message("inner")
        emit_message("operation")

    async def rollout(task: str) -> Any:
        async with tracer.rollout(task) as rollout:
            await asyncio.sleep(0)
            emit_message("of a rollout inside")
        return rollout

    @operation
    async def stream() -> AsyncIterator[Any]:
        with trace.get_tracer("agent").start_as_current_span("inner"):
            emit_message("inner")
            await asyncio.sleep(0)
            emit_message("inner")
            yield None
            emit_message("inner")
        emit_message("operation")
        yield await rollout("inside")

    async def main() -> Any:
        async with tracer.trace_context():
            around = trace.get_current_span()
            for _ in steps():
                assert trace.get_current_span() is around
            made: list[Any] = []
            async for item in stream():
                assert trace.get_current_span() is around
                made.append(item)
        return made[-1]

    inside = asyncio.run(main())
    spans = {span.span_id: span for span in tracer.get_last_trace()}
    messages = [span for span in spans.values() if span.name == "agentlightning.message"]
    parents = [spans[str(message.parent_id)].name.rpartition(".")[2] for message in messages]
    assert parents == [message.attributes["agentlightning.message.body"] for message in messages]
    assert len(parents) == 7
    assert [span.name for span in inside.spans()] == ["agentlightning.message", "rollout"]


def test_what_a_generator_makes_current_ends_where_each_step_has_another_context(tracer: OtelTracer) -> None:
    @operation(name="steps")
    def steps() -> Iterator[int]:
        with operation(name="before"):
            yield 1
        with operation(name="between"):
            yield 2
        emit_message("after")

    @operation(name="stream")
    async def stream() -> AsyncIterator[int]:
        with operation(name="before"):
            yield 1
        with operation(name="between"):
            yield 2
        emit_message("after")

    async def main() -> None:
        async with tracer.trace_context():
            in_steps = steps()
            while contextvars.copy_context().run(next, in_steps, None):
                pass
            in_stream = stream()

            async def step() -> int | None:
                return await anext(in_stream, None)

            while await asyncio.create_task(step()):
                pass

    asyncio.run(main())
    spans = {span.span_id: span for span in tracer.get_last_trace()}
    parents = [
        str(spans[span.parent_id].attributes.get(NAME))
        for span in spans.values()
        if span.attributes.get(NAME) in {"before", "between"} or span.name == "agentlightning.message"
        if span.parent_id is not None
    ]
    assert sorted(parents) == ["steps"] * 3 + ["stream"] * 3


def test_an_asynchronous_generator_that_waits_inside_a_step_may_be_stopped_from_another_context(
    tracer: OtelTracer, caplog: pytest.LogCaptureFixture
) -> None:
    @operation
    async def stream() -> AsyncIterator[int]:
        await asyncio.sleep(0)
        yield 1

    async def main() -> None:
        async with tracer.trace_context():
            around = trace.get_current_span()
            generator: Any = stream()
            step = generator.asend(None)
            step.send(None)  # as far as the sleep
            assert trace.get_current_span() is around
            with pytest.raises(asyncio.CancelledError):
                contextvars.copy_context().run(step.throw, asyncio.CancelledError())

    asyncio.run(main())
    assert [span.name for span in spans_of(tracer)] == ["agentlightning.operation"]
    assert not caplog.records


def test_a_generator_that_is_forgotten_is_closed_and_recorded(tracer: OtelTracer) -> None:
    @operation
    async def stream() -> AsyncIterator[int]:
        yield 1
        yield 2

    async def main() -> None:
        async with tracer.trace_context():
            generator = stream()
            async for _ in generator:
                break
            del generator
            gc.collect()
            await asyncio.sleep(0)
            await asyncio.sleep(0)

    asyncio.run(main())

    assert len(spans_of(tracer)) == 1


def test_methods_are_recorded_without_their_object(tracer: OtelTracer) -> None:
    class Client:
        api_key = "sk-secret"

        @operation
        def ask(self, text: str) -> str:
            return text

        @operation
        @classmethod
        def build(cls, n: int) -> int:
            return n

        @operation
        @staticmethod
        def add(a: int, b: int) -> int:
            return a + b

    spans = recorded(
        tracer, lambda: (Client().ask("hi"), Client.build(1), Client.add(1, 2), Client().add(1, 2))
    )

    assert [sorted(k for k in span.attributes if k.startswith(INPUT)) for span in spans] == [
        [f"{INPUT}.text"],
        [f"{INPUT}.n"],
        [f"{INPUT}.a", f"{INPUT}.b"],
        [f"{INPUT}.a", f"{INPUT}.b"],
    ]


def test_a_call_with_wrong_arguments_raises_what_it_would_have_raised(tracer: OtelTracer) -> None:
    with tracer.trace_context(), pytest.raises(TypeError, match="missing 1 required positional argument"):
        decorated_at_import()  # type: ignore[call-arg]


def test_a_with_block_records_what_it_is_told(tracer: OtelTracer) -> None:
    context = operation(name="step", user=3)
    with tracer.trace_context(), context as op:
        op.set_input(1, 2, data={"x": [1]})
        op.set_output({"y": None})
        emit_message("inside")
        with pytest.raises(RuntimeError, match="not ended"):
            op.span()

    message, span = spans_of(tracer)
    assert isinstance(context, OperationContext)
    assert span.attributes == {
        NAME: "step",
        "user": 3,
        f"{INPUT}.args.0": 1,
        f"{INPUT}.args.1": 2,
        f"{INPUT}.data.x": [1],
        f"{OUTPUT}.y": "null",
    }
    assert message.parent_id == span.span_id
    assert op.span().attributes == span.attributes
    with pytest.raises(RuntimeError, match="inside the with block"):
        op.set_output(1)


def test_an_error_in_a_with_block_is_recorded_and_goes_on(tracer: OtelTracer) -> None:
    with tracer.trace_context(), pytest.raises(KeyError), operation(name="step") as op:
        raise KeyError("x")

    assert spans_of(tracer)[0].status.status_code == "ERROR"
    assert op.span().status.status_code == "ERROR"


def test_without_propagate_nothing_is_recorded_and_the_span_is_there(tracer: OtelTracer) -> None:
    with tracer.trace_context(), operation(propagate=False, name="aside") as op:
        op.set_output(1)

    assert spans_of(tracer) == []
    assert op.span().attributes == {NAME: "aside", OUTPUT: 1}


def test_wrong_arguments_are_refused() -> None:
    twice: Any = {NAME: "b"}
    with pytest.raises(ValueError, match="not as both"):
        operation(None, name="a", **twice)
    with pytest.raises(ValueError, match="got str"):
        operation("name")  # type: ignore[call-overload]


class BrokenTracer(Tracer):
    """Fails at one point of an operation."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where

    @contextmanager
    def operation_context(self, name: str, *args: Any, **kwargs: Any) -> Iterator[SpanRecordingContext]:
        if self.where == "begin":
            raise OSError
        from agentlightning.tracer.dummy import DummySpanRecordingContext

        class Recording(DummySpanRecordingContext):
            def record_attributes(self, attributes: Any) -> None:
                if where == "record":
                    raise OSError

        where = self.where
        yield Recording(name)
        if where == "end":
            raise OSError


@pytest.mark.parametrize("where", ["begin", "record", "end"])
def test_a_tracer_that_fails_does_not_reach_the_work(where: str) -> None:
    set_active_tracer(BrokenTracer(where))
    try:
        assert decorated_at_import(1) == 2
        with operation(name="x") as op:
            op.set_output(1)
    finally:
        clear_active_tracer()


def test_a_tracer_that_fails_does_not_reach_a_reward_function() -> None:
    @reward
    def score() -> float:
        return 0.5

    set_active_tracer(BrokenTracer("record"))
    try:
        assert score() == 0.5
    finally:
        clear_active_tracer()


def test_arguments_that_cannot_be_printed_cost_themselves_only(tracer: OtelTracer) -> None:
    class Mute:
        def __repr__(self) -> str:
            raise RuntimeError

        __str__ = __repr__

    (span,) = recorded(tracer, lambda: decorated_at_import(1, flag=Mute()))  # type: ignore[arg-type]

    assert span.attributes[f"{INPUT}.x"] == 1
    assert span.attributes[OUTPUT] == 2


def test_tasks_that_share_an_operation_have_spans_of_their_own(tracer: OtelTracer) -> None:
    search = operation(name="search")
    first_is_in, second_is_done = asyncio.Event(), asyncio.Event()

    async def first() -> None:
        with search:
            search.set_input("first")
            first_is_in.set()
            await second_is_done.wait()
            search.set_output("of the first")

    async def second() -> None:
        await first_is_in.wait()
        with search:
            search.set_input("second")
            search.set_output("of the second")
        second_is_done.set()

    async def both() -> None:
        async with tracer.trace_context():
            await asyncio.gather(first(), second())

    asyncio.run(both())
    said = {span.attributes[f"{INPUT}.args.0"]: span.attributes[OUTPUT] for span in spans_of(tracer)}
    assert said == {"first": "of the first", "second": "of the second"}


def test_an_operation_inside_of_itself_ends_the_inner_one_first(tracer: OtelTracer) -> None:
    again = operation(name="again")

    def work() -> None:
        with again:
            with again:
                again.set_output("inner")
            again.set_output("outer")

    outer, inner = sorted(recorded(tracer, work), key=lambda span: span.start_time or 0.0)
    assert (outer.attributes[OUTPUT], inner.attributes[OUTPUT]) == ("outer", "inner")
    assert inner.parent_id == outer.span_id


def test_what_cannot_be_placed_is_not_recorded_on_another_block(
    tracer: OtelTracer, caplog: pytest.LogCaptureFixture
) -> None:
    shared = operation(name="shared")

    def work() -> None:
        with shared, ThreadPoolExecutor(1) as threads:
            threads.submit(shared.set_output, "by a thread").result()
            with shared:
                threads.submit(shared.set_output, "of nobody").result()

    outer, inner = sorted(recorded(tracer, work), key=lambda span: span.start_time or 0.0)
    assert outer.attributes[OUTPUT] == "by a thread"
    assert OUTPUT not in inner.attributes
    assert "while several of them are open: not recorded" in caplog.text
