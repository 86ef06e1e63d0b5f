"""Work that is handed on carries the context of whoever handed it on.

OpenTelemetry's threading instrumentation does this for ``threading.Thread``, ``Timer`` and ``ThreadPoolExecutor``.
Here are the places that it leaves out: threads whose class has a ``run`` of its own, a pool of threads of
``multiprocessing``, pools of processes (see ``tracer.other_processes``), and what is put on queues and into channels
(see ``tracer.handed_items``).
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import TYPE_CHECKING, Any

from opentelemetry import context as otel_context
from opentelemetry.context import Context
from opentelemetry.instrumentation.threading import ThreadingInstrumentor

from .._locks import reentrant_lock
from ..instrumentation.guard import Guard
from ..instrumentation.imports import when_imported
from ..instrumentation.patch import AttributePatch, Patch, Patches
from .handed_items import item_patches
from .other_processes import carried, note_process
from .workers import start_as_worker, task_patch

if TYPE_CHECKING:
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing.pool import Pool
    from multiprocessing.process import BaseProcess

_users: list[object] = []
"""One for each recorder of this process for which the patches are on."""
_on: list[Patches] = []
"""The patches, while there are users."""
_lock = reentrant_lock()
"""Guards both: the patches are put on with the first recorder, and taken off with the last."""


def carry_handed_work() -> Callable[[], None]:
    """Let handed work carry its context, in this process.

    Returns:
        What takes it back when the last user is gone.
    """
    user = object()
    with _lock:
        if not _users:
            _on.append(Patches("handed work", _all_patches()))
        _users.append(user)
    return functools.partial(_leave, user)


def _leave(user: object) -> None:
    with _lock:
        if user not in _users:  # it has left before
            return
        _users.remove(user)
        if not _users:
            _on.pop().undo()


def _all_patches() -> list[Patch]:
    patches: list[Patch] = []
    instrumentor = ThreadingInstrumentor()
    if not instrumentor.is_instrumented_by_opentelemetry:
        instrumentor.instrument(skip_dep_check=True)
        patches.append(Patch("OpenTelemetry's threading instrumentation", instrumentor.uninstrument))
    return [
        *patches,
        AttributePatch(
            threading.Thread, "start", _around_start, "a run() of its own has its starter's context"
        ),
        *item_patches(),
        task_patch(),
        *_process_patches(),
    ]


def _process_patches() -> tuple[Patch, Patch]:
    """Return the patches of what starts processes and talks to them, and what waits for its imports.

    Most agents start no process: these modules of the standard library, and ``process_queues``, are then never loaded.
    """
    patches = Patches("processes")

    def adding(patches_of: Callable[[ModuleType], Iterable[Patch]]) -> Callable[[ModuleType], None]:
        def callback(module: ModuleType) -> None:
            for patch in patches_of(module):
                patches.add(patch)

        return callback

    waiting = when_imported(
        {
            "multiprocessing.pool": adding(_pool_patches),
            "multiprocessing.process": adding(_start_patches),
            "multiprocessing.queues": adding(_queue_patches),
            "concurrent.futures.process": adding(_executor_patches),
        },
        Guard(),
    )
    return patches, waiting


def _pool_patches(module: ModuleType) -> list[Patch]:
    wrap = functools.partial(_around_pool, module.ThreadPool)
    return [
        AttributePatch(module.Pool, name, wrap, "jobs have the submitter's context") for name in _OF_POOLS
    ]


def _start_patches(module: ModuleType) -> list[Patch]:
    effect = "names processes that record nothing"
    return [AttributePatch(module.BaseProcess, "start", _around_process, effect)]


def _queue_patches(module: ModuleType) -> Iterable[Patch]:
    del module
    from .process_queues import process_queue_patches

    return process_queue_patches()


def _executor_patches(module: ModuleType) -> list[Patch]:
    effect = "jobs have the submitter's rollout"
    return [AttributePatch(module.ProcessPoolExecutor, "submit", _around_submit, effect)]


# ---------------------------------------------------------------------- threads


def _around_start(original: Any, patch: Patch) -> Any:
    def start(thread: threading.Thread) -> None:
        begin = original.__get__(thread)  # OpenTelemetry's wrapper works as a method only
        if patch.active:
            start_as_worker(thread, functools.partial(_start, thread, begin))
        else:
            begin()

    return functools.wraps(original)(start)


def _start(thread: threading.Thread, begin: Callable[[], None]) -> None:
    if _has_own_run(thread):
        _carry_into_run(thread)
    begin()


def _has_own_run(thread: threading.Thread) -> bool:
    owner = next((each for each in type(thread).__mro__ if "run" in vars(each)), threading.Thread)
    return "run" not in vars(thread) and owner not in (threading.Thread, threading.Timer)


def _carry_into_run(thread: threading.Thread) -> None:
    """Let the thread's ``run`` begin in the present context; the thread is as it was once that has begun."""
    context = otel_context.get_current()

    def run() -> None:
        vars(thread).pop("run", None)  # this function, which stands before the method of the class until now
        token = otel_context.attach(context)
        try:
            thread.run()
        finally:
            otel_context.detach(token)

    vars(thread)["run"] = run


_OF_POOLS = ("apply_async", "_map_async", "imap", "imap_unordered")


def _around_pool(thread_pool: type[Pool], original: Any, patch: Patch) -> Any:
    def submit(pool: Pool, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if patch.active:
            in_threads = isinstance(pool, thread_pool)
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
