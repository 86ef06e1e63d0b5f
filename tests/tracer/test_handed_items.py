"""What is sent through a channel is filed under the rollout that sent it, or under none."""

from __future__ import annotations

import asyncio
import contextvars
import queue
import threading
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import anyio
import pytest
from opentelemetry import trace
from tracer_sample import new_attempt, read, spans_in

from agentlightning.store import LightningStore
from agentlightning.tracer import OtelTracer

Channel = tuple[Any, Any]


def call(name: str) -> None:
    """An agent knows nothing of us: it uses the global API."""
    trace.get_tracer("agent").start_span(name).end()


def in_anyio(size: float) -> Channel:
    return anyio.create_memory_object_stream[Any](size)


def in_trio(size: float) -> Channel:
    trio = pytest.importorskip("trio")
    channel: Channel = trio.open_memory_channel(size)
    return channel


KINDS = [("asyncio", in_anyio), ("trio", in_anyio), ("trio", in_trio)]


def run(backend: str, program: Callable[[], Awaitable[None]]) -> None:
    pytest.importorskip(backend)
    anyio.run(program, backend=backend)


async def names(store: LightningStore, ids: tuple[str, str]) -> list[str]:
    return [span.name for span in await read(store, ids) if span.name != "rollout"]


@pytest.mark.parametrize(("backend", "channel"), KINDS)
@pytest.mark.parametrize("size", [0, 10])
def test_a_task_that_lives_on_does_the_work_of_whoever_sent_it(
    store: LightningStore, tracer: OtelTracer, backend: str, channel: Callable[[float], Channel], size: int
) -> None:
    found: list[list[str]] = []

    async def program() -> None:
        ids = [await new_attempt(store, number) for number in range(3)]
        send, receive = channel(size)
        async with anyio.create_task_group() as tasks, send, receive:
            for number, each in enumerate(ids):
                async with tracer.trace_context(store=store, rollout_id=each[0], attempt_id=each[1]):
                    if not number:
                        tasks.start_soon(serve, receive)
                    done = anyio.Event()
                    await send.send((f"call-{number}", done))
                    await done.wait()
                    call(f"own-{number}")
            tasks.cancel_scope.cancel()
        found.extend([sorted(await names(store, each)) for each in ids])

    async def serve(receive: Any) -> None:
        async for name, done in receive:
            call(name)
            done.set()

    run(backend, program)
    assert found == [[f"call-{number}", f"own-{number}"] for number in range(3)]


@pytest.mark.parametrize(("backend", "channel"), KINDS)
def test_a_task_of_an_open_rollout_does_nothing_for_it_that_others_have_sent(
    store: LightningStore, tracer: OtelTracer, backend: str, channel: Callable[[float], Channel]
) -> None:
    found: list[list[str]] = []

    async def program() -> None:
        ids = [await new_attempt(store, number) for number in range(2)]
        send, receive = channel(0)
        asked: list[tuple[str, Any]] = []

        async def ask(name: str) -> None:
            done = anyio.Event()
            await send.send((name, done))
            await done.wait()

        async def serve() -> None:
            async for name, done in receive:
                call(name)
                done.set()

        async def others() -> None:
            while asked:
                name, done = asked.pop()
                if name == "of nobody":
                    await ask(name)
                else:
                    each = ids[1]
                    async with tracer.trace_context(store=store, rollout_id=each[0], attempt_id=each[1]):
                        await ask(name)
                done.set()

        async def let_others_ask(name: str) -> None:
            """In a task that was started outside of every rollout."""
            done = anyio.Event()
            asked.append((name, done))
            outside.run(tasks.start_soon, others)
            await done.wait()

        outside = contextvars.copy_context()
        async with AsyncExitStack() as ends:
            tasks = await ends.enter_async_context(anyio.create_task_group())
            await ends.enter_async_context(send)
            await ends.enter_async_context(receive)
            async with tracer.trace_context(store=store, rollout_id=ids[0][0], attempt_id=ids[0][1]):
                tasks.start_soon(serve)
                await ask("own")
                await let_others_ask("of the other one")
                await let_others_ask("of nobody")
                await ask("own again")
            tasks.cancel_scope.cancel()
        found.extend([await names(store, each) for each in ids])

    run(backend, program)
    assert found == [["own", "own again"], []]
    assert tracer.processor.unattributed_count == 2


@pytest.mark.parametrize(("backend", "channel"), KINDS)
def test_an_answer_that_comes_into_a_tasks_own_channel_takes_it_from_no_rollout(
    store: LightningStore, tracer: OtelTracer, backend: str, channel: Callable[[float], Channel]
) -> None:
    """As a client of MCP does, whose connection was opened before the rollout."""
    found: list[str] = []

    async def program() -> None:
        ids = await new_attempt(store)
        wanted, served = anyio.Event(), anyio.Event()
        answers: list[Any] = []

        async def server() -> None:
            await wanted.wait()
            await answers[0].send("an answer")
            served.set()

        async def tool() -> None:
            send, receive = channel(1)
            async with send, receive:
                answers.append(send)
                wanted.set()
                await served.wait()
                call(f"with {await receive.receive()}")

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(server)
            async with tracer.trace_context(store=store, rollout_id=ids[0], attempt_id=ids[1]):
                async with anyio.create_task_group() as own:
                    own.start_soon(tool)
        found.extend(await names(store, ids))

    run(backend, program)
    assert found == ["with an answer"]


def test_a_job_that_found_no_room_at_first_is_of_whoever_put_it(
    store: LightningStore, tracer: OtelTracer
) -> None:
    ids, others = (asyncio.run(new_attempt(store, number)) for number in range(2))
    work: queue.Queue[Any] = queue.Queue(1)
    work.put("another one")
    job = object()

    def serve() -> None:
        assert work.get(timeout=120) is job
        call("for the other one")

    worker = threading.Thread(target=serve)

    def other() -> None:
        with tracer.trace_context(store=store, rollout_id=others[0], attempt_id=others[1]):
            with pytest.raises(queue.Full):
                work.put_nowait(job)
            work.get_nowait()
            work.put_nowait(job)
            inside.run(worker.start)
            worker.join()

    outside = contextvars.copy_context()
    with tracer.trace_context(store=store, rollout_id=ids[0], attempt_id=ids[1]):
        inside = contextvars.copy_context()
        outside.run(other)
    found = [[span.name for span in spans_in(store, each)] for each in (ids, others)]
    assert found == [["rollout"], ["rollout"]]
