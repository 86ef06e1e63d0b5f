"""Work that is handed on carries the context of whoever handed it on.

OpenTelemetry's threading instrumentation does this for ``threading.Thread``, ``Timer`` and ``ThreadPoolExecutor``.
Here are the places that it leaves out: threads whose class has a ``run`` of its own, a pool of threads of
``multiprocessing``, pools of processes (see ``tracer.other_processes``), and what is put on a queue of ``queue`` or
``asyncio``, in whatever order that hands it out.

A worker that reads a queue inherits the context of the rollout that happened to start it. Where that is over, or there
was none, the worker goes on in the context in which the item was put that it gets. Where that is open and another
rollout has put the item, either could be at work (the item may be a borrowed client, say), and the worker goes on
without any rollout. So does one that gets what was put under no rollout at all while its own was open: whoever put it
works for others. What lay on the queue before says nothing. A worker that has opened a ``trace_context`` of its own
stays in it. Items stay as they are: who put one is kept beside the queue, and what a worker puts back was only
borrowed. What can be closed and is handed out last in, first out is a connection of a pool, and says nothing of work.
"""

from __future__ import annotations

import asyncio
import functools
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextvars import ContextVar
from multiprocessing.pool import Pool, ThreadPool
from multiprocessing.process import BaseProcess
from queue import LifoQueue, Queue
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import Any, Dict, List, NamedTuple, Optional, Tuple
from weakref import WeakKeyDictionary

from opentelemetry import context as otel_context
from opentelemetry.context import Context
from opentelemetry.instrumentation.threading import ThreadingInstrumentor

from ..instrumentation.patch import AttributePatch, Patch, Patches
from .other_processes import carried, note_process
from .scope import Scope, context_without_scope, current_scope, current_worker, is_any_open, now, scope_in

_users = 0
"""Recorders of this process for which the patches are on."""
_patches: Optional[Patches] = None
_lock = threading.RLock()  # re-entrant: a signal handler may put something on a queue

_VALUES = (tuple, list, dict, str, bytes, bytearray, int, float, complex)
"""What is work and nothing that one borrows; such a value that is put again is put by whoever does it."""
_ITEMS_REMEMBERED = 10_000
"""Of one queue. What is taken out of a queue behind our back would be remembered for ever."""


def carry_handed_work() -> Callable[[], None]:
    """Let handed work carry its context, in this process.

    Returns:
        What takes it back when the last user is gone.
    """
    global _users, _patches  # noqa: PLW0603 - the patches are one per process
    with _lock:
        if not _users:
            _patches = Patches("handed work", _all_patches())
        _users += 1
    return _leave


def _leave() -> None:
    global _users, _patches  # noqa: PLW0603 - as above
    with _lock:
        _users -= 1
        if not _users and _patches is not None:
            _patches.undo()
            _patches = None


def _all_patches() -> List[Patch]:
    patches: List[Patch] = []
    instrumentor = ThreadingInstrumentor()
    if not instrumentor.is_instrumented_by_opentelemetry:
        instrumentor.instrument(skip_dep_check=True)
        patches.append(Patch("OpenTelemetry's threading instrumentation", instrumentor.uninstrument))
    return [
        *patches,
        AttributePatch(
            threading.Thread, "start", _around_start, "a run() of its own has its starter's context"
        ),
        *(
            AttributePatch(Pool, name, _around_pool, "jobs have the submitter's context")
            for name in _OF_POOLS
        ),
        AttributePatch(ProcessPoolExecutor, "submit", _around_submit, "jobs have the submitter's rollout"),
        AttributePatch(BaseProcess, "start", _around_process, "names processes that record nothing"),
        *_of_queues(),
        AttributePatch(asyncio.Queue, "put_nowait", _around_put, "remembers who put an item"),
        AttributePatch(asyncio.Queue, "get_nowait", _around_get, "the item's context is current"),
    ]


def _of_queues() -> Iterator[Patch]:
    if "put" in vars(Queue):  # gevent puts a compiled one of its own in its place
        yield AttributePatch(Queue, "put", _around_put, "remembers who put an item")
        yield AttributePatch(Queue, "get", _around_get, "the item's context is current")


# ---------------------------------------------------------------------- threads


def _around_start(original: Any, patch: Patch) -> Any:
    def start(thread: threading.Thread) -> None:
        if patch.active and _has_own_run(thread):
            _carry_into_run(thread)
        original.__get__(thread)()  # OpenTelemetry's wrapper works as a method only

    return functools.wraps(original)(start)


def _has_own_run(thread: threading.Thread) -> bool:
    owner = next((each for each in type(thread).__mro__ if "run" in vars(each)), threading.Thread)
    return "run" not in vars(thread) and owner not in (threading.Thread, threading.Timer)


def _carry_into_run(thread: threading.Thread) -> None:
    """Let the thread's ``run`` begin in the present context; the thread is as it was once that has begun."""
    context = otel_context.get_current()

    def run() -> None:
        vars(thread).pop("run", None)
        token = otel_context.attach(context)
        try:
            thread.run()
        finally:
            otel_context.detach(token)

    vars(thread)["run"] = run


_OF_POOLS = ("apply_async", "_map_async", "imap", "imap_unordered")


def _around_pool(original: Any, patch: Patch) -> Any:
    def submit(pool: Pool, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if patch.active:
            in_threads = isinstance(pool, ThreadPool)
            func = _in_context(func, otel_context.get_current()) if in_threads else carried(func)
        return original(pool, func, *args, **kwargs)

    return functools.wraps(original)(submit)


def _around_submit(original: Any, patch: Patch) -> Any:
    def submit(pool: ProcessPoolExecutor, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        return original(pool, carried(fn) if patch.active else fn, *args, **kwargs)

    return functools.wraps(original)(submit)


def _in_context(func: Callable[..., Any], context: Context) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        token = otel_context.attach(context)
        try:
            return func(*args, **kwargs)
        finally:
            otel_context.detach(token)

    return run


def _around_process(original: Any, patch: Patch) -> Any:
    def start(process: BaseProcess) -> None:
        if patch.active:
            note_process(process)
        original(process)

    return functools.wraps(original)(start)


# ---------------------------------------------------------------------- queues


class _Put(NamedTuple):
    """That an item was put on a queue."""

    context: Context
    moment: int
    """See ``scope.now``."""


class _Items:
    """What is known of the items of one queue; changed under ``_lock``."""

    def __init__(self) -> None:
        self.put: Dict[int, Tuple[Any, List[_Put]]] = {}
        """By identity: an item, which is kept so that its identity stays its own, and how often it was put."""
        self.borrowed: Dict[int, Tuple[Callable[[], Any], int]] = {}
        """Identity of a thing that was got → what returns it while it lives, and the identity of the worker."""


class _Switch(NamedTuple):
    """A worker's own context, and the one that it goes on in for an item."""

    own: Context
    of_item: Context


_queues: WeakKeyDictionary[Any, _Items] = WeakKeyDictionary()
_switch: ContextVar[Optional[_Switch]] = ContextVar("agentlightning_item_context", default=None)


def _around_put(original: Any, patch: Patch) -> Any:
    def put(queue: Any, item: Any, *args: Any, **kwargs: Any) -> Any:
        noted = patch.active and not _is_of_a_pool(queue, item) and _note(queue, item)
        try:
            return original(queue, item, *args, **kwargs)
        except BaseException:  # the queue is full, or the wait for room was interrupted
            if noted:
                _take(queue, item)
            raise

    return functools.wraps(original)(put)


def _around_get(original: Any, patch: Patch) -> Any:
    def get(queue: Any, *args: Any, **kwargs: Any) -> Any:
        item = original(queue, *args, **kwargs)
        if patch.active and not _is_of_a_pool(queue, item):
            _go_on_with(queue, item)
        return item

    return functools.wraps(original)(get)


def _is_of_a_pool(queue: Any, item: Any) -> bool:
    return isinstance(queue, (LifoQueue, asyncio.LifoQueue)) and (
        item is None  # stands for a connection that is yet to be opened
        or (
            any(callable(getattr(type(item), name, None)) for name in ("close", "disconnect"))
            and not isinstance(item, (CoroutineType, GeneratorType, AsyncGeneratorType))
        )
    )


def _note(queue: Any, item: Any) -> bool:
    """Remember who puts an item, before anybody can get it; where no rollout is open there is nothing to remember."""
    context = otel_context.get_current()
    matters = scope_in(context) is not None or is_any_open()
    if not matters and queue not in _queues:
        return False
    with _lock:
        known = _queues.setdefault(queue, _Items())
        lent = known.borrowed.pop(id(item), None)
        is_put_back = lent is not None and lent[0]() is item and lent[1] == id(current_worker())
        if (is_put_back and not _is_switched(context)) or (not matters and id(item) not in known.put):
            return False
        known.put.setdefault(id(item), (item, []))[1].append(_Put(context, now()))
        _bound(known.put)
    return True


def _take(queue: Any, item: Any) -> Tuple[_Put, ...]:
    """Return in which contexts an item that leaves the queue may have been put."""
    if queue not in _queues and current_scope() is None:
        return ()
    with _lock:
        known = _queues.setdefault(queue, _Items())
        if not isinstance(item, _VALUES):
            known.borrowed[id(item)] = _reference(item), id(current_worker())
            _bound(known.borrowed)
        put = known.put.get(id(item))
        if put is None:
            return ()
        puts = tuple(put[1])
        put[1].pop()
        if not put[1]:
            del known.put[id(item)]
        elif any(scope_in(each.context) is not scope_in(puts[0].context) for each in puts):
            # Which of them was taken is not known, so each that is left may be of any.
            put[1][:] = [_Put(context_without_scope(puts[0].context), now())] * len(put[1])
        return puts


def _reference(item: Any) -> Callable[[], Any]:
    try:
        return weakref.ref(item)
    except TypeError:
        return lambda: item


def _bound(items: Dict[int, Any]) -> None:
    if len(items) > _ITEMS_REMEMBERED:
        del items[next(iter(items))]


def _go_on_with(queue: Any, item: Any) -> None:
    """Go on in the context of whoever put an item, where the present one is only inherited."""
    puts = _take(queue, item)
    present = otel_context.get_current()
    before = _switch.get()
    own = before.own if before is not None and before.of_item is present else present
    if not puts and own is present:
        return
    inherited = scope_in(own)
    if inherited.opened_by is current_worker() if inherited is not None else not _is_worker_thread():
        return
    then = _context_of(puts, own)
    if then is not present:
        otel_context.attach(then)
        _switch.set(_Switch(own, then))


def _is_switched(context: Context) -> bool:
    switch = _switch.get()
    return switch is not None and switch.of_item is context


def _context_of(puts: Tuple[_Put, ...], own: Context) -> Context:
    """Return the context in which a worker goes on for an item."""
    inherited = scope_in(own)
    contexts = [put.context for put in puts if _says_something(put, inherited)]
    scopes = [scope_in(context) for context in contexts]
    if not scopes or all(scope is inherited for scope in scopes):
        return own
    is_sure = all(scope is scopes[0] for scope in scopes) and (inherited is None or inherited.closed)
    return contexts[0] if is_sure else context_without_scope(own)


def _says_something(put: _Put, inherited: Optional[Scope]) -> bool:
    """Whether it tells anything of whose work it is: what nobody's code put before the rollout began does not."""
    return scope_in(put.context) is not None or inherited is None or put.moment > inherited.opened_at


def _is_worker_thread() -> bool:
    return (
        threading.current_thread() is not threading.main_thread() and asyncio._get_running_loop() is None  # noqa: SLF001 - cheaper than an exception for each item
    )


def _after_fork_in_child() -> None:
    global _lock  # noqa: PLW0603 - another thread of the parent may have held it
    _lock = threading.RLock()


os.register_at_fork(after_in_child=_after_fork_in_child)
