"""What is put on a queue between processes is worked on under the rollout of whoever put it.

The rule is that of ``tracer.handed_items``: a worker whose own rollout is over, or who has none, goes on in that of the
item, and one whose own is open and another one goes on in none. The item comes out as it was put, also in a process
that records nothing. What a worker has recorded of an item is stored before it puts a result, says that it is done, or
gets the next one. Pipes, and queues of managers, are not watched.
"""

from __future__ import annotations

import functools
import inspect
import os
import pickle
from collections.abc import Iterator
from contextvars import ContextVar
from multiprocessing import parent_process
from multiprocessing.queues import JoinableQueue, Queue, SimpleQueue
from typing import Any, NamedTuple

from opentelemetry import context as otel_context
from opentelemetry.context import Context

from .._arrival import Brought, take_along
from ..instrumentation.patch import AttributePatch, Patch
from ..recorder.scope import context_without_scope, current_worker, is_any_open, scope_in
from .handed_items import is_worker_thread
from .other_processes import FLUSH_SECONDS, Arrived, Handed, arrive, handed_here
from .workers import without_worker

_POOLS = frozenset({"multiprocessing.pool", "concurrent.futures.process"})
"""Modules whose queues carry jobs, each of which knows its rollout, and their results."""


class _Item(NamedTuple):
    """What a worker works on."""

    own: Context
    """The worker's own context."""
    context: Context
    """The one that it goes on in."""
    arrived: Arrived | None
    """The rollout of the item, where it was opened here for its sake."""


_item: ContextVar[_Item | None] = ContextVar("agentlightning_item_of_process", default=None)


def process_queue_patches() -> Iterator[Patch]:
    """Yield what lets items carry their rollout to other processes."""
    for kind in (Queue, JoinableQueue, SimpleQueue):
        for name, wrap in (("put", _around_put), ("get", _around_get), ("task_done", _around_done)):
            if name in vars(kind):
                yield AttributePatch(kind, name, wrap, "items carry the rollout of whoever puts them")


def _around_put(original: Any, patch: Patch) -> Any:
    def put(queue: Any, obj: Any, *args: Any, **kwargs: Any) -> Any:
        if patch.active and _is_watched(queue):
            _store_what_was_done()
            obj = _with_rollout(obj)
        return original(queue, obj, *args, **kwargs)

    return functools.wraps(original)(put)


def _around_get(original: Any, patch: Patch) -> Any:
    def get(queue: Any, *args: Any, **kwargs: Any) -> Any:
        if not patch.active or not _is_watched(queue):
            return original(queue, *args, **kwargs)
        _end_item()
        take_along()  # what an item that nobody has got brought along must not count for this one
        item = original(queue, *args, **kwargs)
        _go_on_with(take_along())
        return item

    return functools.wraps(original)(get)


def _around_done(original: Any, patch: Patch) -> Any:
    def task_done(queue: Any) -> Any:
        if patch.active:
            _store_what_was_done()
        return original(queue)

    return functools.wraps(original)(task_done)


def _is_watched(queue: Any) -> bool:
    """Whether an agent uses a queue: pools have their own, and read what they have put in their own ways."""
    frame = inspect.currentframe()
    for _ in range(2):  # this function, and the wrapper of ``put`` or ``get`` that has called it
        frame = None if frame is None else frame.f_back
    if frame is not None and frame.f_globals.get("__name__") in _POOLS:
        return False
    # The queue of a ``ProcessPoolExecutor`` is of a class that has its own such method, whoever calls it.
    on_error = getattr(type(queue), "_on_queue_feeder_error", None)
    return on_error is None or on_error is Queue._on_queue_feeder_error  # type: ignore[attr-defined] # noqa: SLF001


def _with_rollout(obj: Any) -> Any:
    handed = handed_here()
    if handed is None or (handed.ids is None and not is_any_open()):
        return obj
    return Brought(obj, pickle.dumps((os.getpid(), handed)))


def _go_on_with(along: bytes | None) -> None:
    if along is None:
        return
    own = otel_context.get_current()
    inherited = scope_in(own)
    if inherited is None:
        if parent_process() is None and not is_worker_thread():
            return  # whoever drives the rollouts reads their results
    elif inherited.body.opened_by is current_worker() and not inherited.body.is_inherited:
        return
    pid, handed = pickle.loads(along)  # noqa: S301 - came with the item, which was pickled as well
    arrived, context = _context_of(pid, handed, own)
    if context is not own:
        otel_context.attach(context)
        _item.set(_Item(own, context, arrived))


def _context_of(pid: int, handed: Handed, own: Context) -> tuple[Arrived | None, Context]:
    """Return the rollout of an item, if it is opened here, and the context in which the worker goes on."""
    inherited = scope_in(own)
    is_in_doubt = inherited is not None and not inherited.closed
    if is_in_doubt and inherited is not None and handed.ids == (inherited.rollout_id, inherited.attempt_id):
        return None, without_worker(own)
    if handed.ids is None or pid == os.getpid():  # threads of one process, which have queues for that
        return None, own if inherited is None else context_without_scope(own)
    arrived = arrive(handed)  # also in doubt: it counts what is unattributed
    if arrived is None:
        return None, context_without_scope(own) if is_in_doubt else own
    return arrived, context_without_scope(own) if is_in_doubt else arrived.context


def _end_item() -> None:
    """Leave the item that was got before, whose rollout is known to be no longer at work here."""
    item = _item.get()
    if item is None:
        return
    _item.set(None)
    if otel_context.get_current() is item.context:
        otel_context.attach(item.own)
    if item.arrived is not None:
        item.arrived.end()


def _store_what_was_done() -> None:
    item = _item.get()
    if item is not None and item.arrived is not None:
        item.arrived.store(FLUSH_SECONDS)
