"""Work that is handed on carries the context of whoever handed it on.

OpenTelemetry's threading instrumentation does this for ``threading.Thread``, ``Timer`` and ``ThreadPoolExecutor``.
Here are the places that it leaves out: threads whose class has a ``run`` of its own, a pool of threads of
``multiprocessing``, pools of processes (see ``tracer.other_processes``), and what is put on queues and into channels
(see ``tracer.handed_items``).
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.pool import Pool, ThreadPool
from multiprocessing.process import BaseProcess
from typing import Any

from opentelemetry import context as otel_context
from opentelemetry.context import Context

from .._locks import reentrant_lock
from ..instrumentation.patch import AttributePatch, Patch, Patches
from .handed_items import item_patches
from .other_processes import carried, note_process
from .process_queues import process_queue_patches
from .workers import start_as_worker, task_patch

_users = 0
"""Recorders of this process for which the patches are on."""
_patches: Patches | None = None
_lock = reentrant_lock()
"""Guards both: the patches are put on with the first recorder, and taken off with the last."""


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


def _all_patches() -> list[Patch]:
    patches: list[Patch] = []
    # Here, because the import takes a tenth of ours: most processes that import the tracer never record.
    from opentelemetry.instrumentation.threading import ThreadingInstrumentor

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
        *item_patches(),
        *process_queue_patches(),
        task_patch(),
    ]


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
