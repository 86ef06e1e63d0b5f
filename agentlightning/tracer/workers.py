"""Threads and tasks that live longer than the rollout that started them.

A worker may be handed its work in ways that nobody can see: ``queue.SimpleQueue``, a list with a lock, a socket. What
it has inherited says who started it, and not for whom it works. That shows when the rollout ends: what was started for
it alone is over by then. Of a worker that lives on, the calls that it made while other rollouts were open may be
theirs, so the root span names these calls, and no row is made of them. What a worker has opened a ``trace_context`` of
its own for, has attached the context of, or has got from a queue that is watched, is not in question.

Each thread and task carries in its context by which workers it was started, because a worker may start another one
for each piece of work, as servers do. Tasks are known that the event loops of ``asyncio`` itself create.
"""

from __future__ import annotations

import asyncio
import functools
import threading
import weakref
from asyncio.base_events import BaseEventLoop
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from opentelemetry import context as otel_context
from opentelemetry.context import Context
from opentelemetry.trace import SpanContext

from ..instrumentation.patch import AttributePatch, Patch
from ..recorder.scope import Scope, current_worker, is_another_open, scope_in

_KEY = otel_context.create_key("agentlightning-worker")

SPANS_REMEMBERED = 1_000
"""Of one rollout; where its workers have made more, none of its calls is trained if one of them lives on."""
TURNS = 10
"""Turns of the event loop in which tasks that are about to end may do so, before it is said that they live on."""
JOIN_SECONDS = 0.1
"""The same for threads."""
_BETWEEN_LOOKS = 0.005
"""Seconds between two looks whether threads have ended, where nobody may be held up by joining them."""


class Worker:
    """A thread or task that was started under a rollout."""

    __slots__ = ("scope", "started_by", "who")

    def __init__(self, scope: Scope, started_by: Worker | None) -> None:
        self.scope = scope
        self.started_by = started_by
        """The nearest one of the same rollout that was not over."""
        self.who: Callable[[], Any] | None = None
        """Returns the thread or task while it exists; ``None`` while it is being started."""

    @property
    def is_over(self) -> bool:
        """Whether it does nothing any more, or has been told to stop."""
        if self.who is None:
            return False
        who = self.who()
        if isinstance(who, threading.Thread):
            return not who.is_alive()
        return who is None or who.done() or who.cancelling() > 0  # a task that was cancelled works for nobody

    def alive(self) -> Iterator[Worker]:
        """Yield those of itself and of the workers that started it that are not over."""
        worker: Worker | None = self
        while worker is not None:
            if not worker.is_over:
                yield worker
            worker = worker.started_by


_spans: weakref.WeakKeyDictionary[Scope, list[tuple[Worker, int]]] = weakref.WeakKeyDictionary()
"""Rollout that is open → ids of spans that its threads and tasks have started while another rollout was open."""


def note_span(scope: Scope, context: Context, span: SpanContext) -> None:
    """Remember which worker has started a span, where another rollout is open that it could work for."""
    worker = context.get(_KEY)
    if isinstance(worker, Worker) and worker.scope is scope and is_another_open():
        spans = _spans.setdefault(scope, [])
        if len(spans) <= SPANS_REMEMBERED:  # one more than is remembered: it shows that there were more
            spans.append((worker, span.span_id))


def forget_spans(scope: Scope) -> None:
    """Forget the spans of a rollout that has ended."""
    _spans.pop(scope, None)


def spans_of_living_workers(scope: Scope, ended_by: object = None) -> dict[int, Worker]:
    """Return the spans that may be of another rollout, by their ids, and whose work they are.

    Args:
        scope: The rollout.
        ended_by: The thread or task that ends it, and so works for it. Default: the one that asks.
    """
    found: dict[int, Worker] = {}
    spans = _spans.get(scope)
    asking = (ended_by or current_worker()) if spans else None
    for worker, span_id in spans or ():
        for alive in worker.alive():
            if alive.who is None or alive.who() is not asking:
                found[span_id] = alive
                break
    return found


async def let_tasks_end(scope: Scope) -> None:
    """Wait for tasks that need only a few turns of the event loop to end."""
    for _ in range(TURNS):
        if not spans_of_living_workers(scope):
            return
        await asyncio.sleep(0)


def let_threads_end(scope: Scope) -> None:
    """Wait for threads that are about to end."""
    patience = JOIN_SECONDS
    for worker in set(spans_of_living_workers(scope).values()):
        thread = worker.who() if worker.who is not None else None
        if isinstance(thread, threading.Thread) and patience > 0:
            thread.join(patience)
            patience = 0.0 if thread.is_alive() else patience


async def let_workers_end(scope: Scope, ended_by: object) -> None:
    """Wait, on a thread of ours, for threads and tasks of other threads that are about to end."""
    for _ in range(round(JOIN_SECONDS / _BETWEEN_LOOKS)):
        if not spans_of_living_workers(scope, ended_by):
            return
        await asyncio.sleep(_BETWEEN_LOOKS)


def names_of(workers: dict[int, Worker]) -> list[str]:
    """Return what the threads and tasks are called."""
    found: dict[str, None] = {}
    for worker in workers.values():
        who = None if worker.who is None else worker.who()
        found[who.get_name() if isinstance(who, asyncio.Task) else getattr(who, "name", "a worker")] = None
    return list(found)


def without_worker(context: Context) -> Context:
    """Return a context of which it is known for which rollout the worker works that has it."""
    return otel_context.set_value(_KEY, None, context) if context.get(_KEY) is not None else context


def start_as_worker(thread: threading.Thread, start: Callable[[], None]) -> None:
    """Start a thread that knows under which rollout it was started."""
    worker = _new_worker()
    if worker is None:
        start()
        return
    worker.who = weakref.ref(thread)
    token = otel_context.attach(otel_context.set_value(_KEY, worker))
    try:
        start()
    finally:
        otel_context.detach(token)


def task_patch() -> Patch:
    """Return what lets the tasks of asyncio's own event loops know under which rollout they were started."""
    return AttributePatch(BaseEventLoop, "create_task", _around_create_task, "remembers who started a task")


def _around_create_task(original: Any, patch: Patch) -> Any:
    def create_task(loop: Any, *args: Any, **kwargs: Any) -> Any:
        worker = _new_worker() if patch.active and kwargs.get("context") is None else None
        if worker is None:
            return original(loop, *args, **kwargs)
        token = otel_context.attach(otel_context.set_value(_KEY, worker))
        try:
            task = original(loop, *args, **kwargs)
        finally:
            otel_context.detach(token)
        with suppress(TypeError):  # a task of somebody else's that nothing can refer to weakly
            worker.who = weakref.ref(task)
        return task

    return functools.wraps(original)(create_task)


def _new_worker() -> Worker | None:
    context = otel_context.get_current()
    scope = scope_in(context)
    if scope is None or scope.closed:
        return None
    starter = context.get(_KEY)
    if not isinstance(starter, Worker) or starter.scope is not scope:
        return Worker(scope, None)
    return Worker(scope, next(starter.alive(), None))
