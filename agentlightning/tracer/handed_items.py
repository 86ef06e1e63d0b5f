"""What is put on a queue or into a channel is worked on in the context of whoever put it.

Watched are the queues of ``queue`` and ``asyncio``, in whatever order they hand out, and the memory channels of anyio
and trio.

A worker that reads a queue inherits the context of the rollout that happened to start it. Where that is over, or there
was none, the worker goes on in the context in which the item was put that it gets. Where that is open and another
rollout has put the item, either could be at work (the item may be a borrowed client, say), and the worker goes on
without any rollout. So does one that gets what was put under no rollout at all while its own was open: whoever put it
works for others, unless it is an answer, which comes into a channel that the worker itself has opened. What lay on the
queue before says nothing. A worker that has opened a ``trace_context`` of its own stays in it. Items stay as they are:
who put one is kept beside the queue, and what a worker puts back was only borrowed. What can be closed and is handed
out last in, first out is a connection of a pool, and says nothing of work.
"""

from __future__ import annotations

import asyncio
import functools
import threading
import weakref
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from queue import LifoQueue, Queue
from types import AsyncGeneratorType, CoroutineType, GeneratorType, ModuleType
from typing import Any, NamedTuple

from opentelemetry import context as otel_context
from opentelemetry.context import Context

from .._locks import reentrant_lock
from ..instrumentation.guard import Guard
from ..instrumentation.imports import when_imported
from ..instrumentation.patch import AttributePatch, Patch, Patches
from ..recorder.scope import (
    Scope,
    context_without_scope,
    current_scope,
    current_worker,
    is_any_open,
    now,
    scope_in,
)
from .workers import without_worker

_lock = reentrant_lock()
"""Guards what is known of every queue: who finds a queue, item or put there also changes it, in one step."""

_VALUES = (tuple, list, dict, str, bytes, bytearray, int, float, complex)
"""What is work and nothing that one borrows; such a value that is put again is put by whoever does it."""
_ITEMS_REMEMBERED = 10_000
"""Of one queue. An item that is taken out by a method that is not watched would stay remembered without this bound."""


def item_patches() -> Iterator[Patch]:
    """Yield what lets items carry their context; channels are watched when their library is imported."""
    if "put" in vars(Queue):  # gevent puts a compiled one of its own in its place
        yield AttributePatch(Queue, "put", _around_put, "remembers who put an item")
        yield AttributePatch(Queue, "get", _around_get, "the item's context is current")
    yield AttributePatch(asyncio.Queue, "put_nowait", _around_put, "remembers who put an item")
    yield AttributePatch(asyncio.Queue, "get_nowait", _around_get, "the item's context is current")
    channels = Patches("channels")
    yield channels
    yield when_imported(
        {"anyio.streams.memory": _channels_of_anyio(channels), "trio": _channels_of_trio(channels)}, Guard()
    )


def _channels_of_anyio(patches: Patches) -> Callable[[ModuleType], None]:
    def patch(module: ModuleType) -> None:
        _patch_channels(
            patches, module.MemoryObjectSendStream, module.MemoryObjectReceiveStream, "__post_init__"
        )

    return patch


def _channels_of_trio(patches: Patches) -> Callable[[ModuleType], None]:
    def patch(module: ModuleType) -> None:
        _patch_channels(patches, module.MemorySendChannel, module.MemoryReceiveChannel, "__attrs_post_init__")

    return patch


def _patch_channels(patches: Patches, sends: type, receives: type, opening: str) -> None:
    patches.add(AttributePatch(receives, opening, _around_opening, "remembers who opened the channel"))
    patches.add(AttributePatch(sends, "send_nowait", _around_send_nowait, "remembers who sent an item"))
    patches.add(AttributePatch(sends, "send", _around_send, "remembers who sent an item"))
    patches.add(
        AttributePatch(receives, "receive_nowait", _around_receive_nowait, "the item's context is current")
    )
    patches.add(AttributePatch(receives, "receive", _around_receive, "the item's context is current"))


class _Put(NamedTuple):
    """That an item was put on a queue."""

    context: Context
    moment: int
    """See ``scope.now``."""


class _Items:
    """What is known of the items of one queue; changed under ``_lock``."""

    def __init__(self) -> None:
        self.put: dict[int, tuple[Any, list[_Put]]] = {}
        """By identity: an item, which is kept so that its identity stays its own, and how often it was put."""
        self.borrowed: dict[int, tuple[Callable[[], Any], int]] = {}
        """Identity of a thing that was got → what returns it while it lives, and the identity of the worker."""
        self.opened_by: Callable[[], object] = lambda: None
        """Returns the task or thread that opened the channel under a rollout, where that was seen and while it
        lives."""


class _Queues:
    """Queues and states of channels by identity, while they live; they need not be hashable."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Any, _Items]] = {}

    def find(self, queue: Any) -> _Items | None:
        known = self._known.get(id(queue))
        return None if known is None else known[1]

    def find_or_add(self, queue: Any) -> _Items:
        """Return what is known of a queue (under ``_lock``)."""
        key = id(queue)
        known = self._known.get(key)
        if known is None:
            # Called before the memory, and with it the identity, can be given to another object.
            reference = weakref.ref(queue, lambda _: self._known.pop(key, None))
            known = self._known[key] = reference, _Items()
        return known[1]


class _Switch(NamedTuple):
    """A worker's own context, and the one that it goes on in for an item."""

    own: Context
    of_item: Context


_queues = _Queues()
_switch: ContextVar[_Switch | None] = ContextVar("agentlightning_item_context", default=None)
_inside: ContextVar[object] = ContextVar("agentlightning_inside_channel", default=None)
"""The channel whose ``send`` or ``receive`` is under way: that calls the method which does not wait."""


# ---------------------------------------------------------------------- queues


def _around_put(original: Any, patch: Patch) -> Any:
    def put(queue: Any, item: Any, *args: Any, **kwargs: Any) -> Any:
        noted = _note(queue, item) if patch.active and not _is_of_a_pool(queue, item) else None
        try:
            return original(queue, item, *args, **kwargs)
        except BaseException:  # the queue is full, or the wait for room was interrupted
            if noted is not None:
                _forget(queue, item, noted)
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


# ---------------------------------------------------------------------- channels


def _state_of(channel: Any) -> Any:
    """Return what both ends of a channel share, and all their clones."""
    return channel._state  # noqa: SLF001 - nothing public says which ends belong together


def _around_opening(original: Any, patch: Patch) -> Any:
    def opened(channel: Any) -> None:
        original(channel)
        if patch.active and current_scope() is not None and _queues.find(_state_of(channel)) is None:
            with _lock:
                _queues.find_or_add(_state_of(channel)).opened_by = _reference(current_worker())

    return functools.wraps(original)(opened)


def _around_send_nowait(original: Any, patch: Patch) -> Any:
    def send_nowait(channel: Any, item: Any) -> Any:
        noted = _note(_state_of(channel), item) if patch.active and _inside.get() is not channel else None
        try:
            return original(channel, item)
        except BaseException:  # there is no room, or nobody to receive it
            if noted is not None:
                _forget(_state_of(channel), item, noted)
            raise

    return functools.wraps(original)(send_nowait)


def _around_send(original: Any, patch: Patch) -> Any:
    async def send(channel: Any, item: Any) -> Any:
        noted = _note(_state_of(channel), item) if patch.active else None
        before = _inside.get()
        _inside.set(channel)
        try:
            return await original(channel, item)
        except BaseException:  # as above, or the wait for room was cancelled
            if noted is not None:
                _forget(_state_of(channel), item, noted)
            raise
        finally:
            _inside.set(before)  # no reset: a coroutine may be closed in another context

    return functools.wraps(original)(send)


def _around_receive_nowait(original: Any, patch: Patch) -> Any:
    def receive_nowait(channel: Any) -> Any:
        item = original(channel)
        if patch.active and _inside.get() is not channel:
            _go_on_with(_state_of(channel), item)
        return item

    return functools.wraps(original)(receive_nowait)


def _around_receive(original: Any, patch: Patch) -> Any:
    async def receive(channel: Any) -> Any:
        before = _inside.get()
        _inside.set(channel)
        try:
            item = await original(channel)
        finally:
            _inside.set(before)  # no reset: a coroutine may be closed in another context
        if patch.active:
            _go_on_with(_state_of(channel), item)
        return item

    return functools.wraps(original)(receive)


# ---------------------------------------------------------------------- who put an item


def _note(queue: Any, item: Any) -> _Put | None:
    """Remember who puts an item, before anybody can get it; where no rollout is open there is nothing to remember."""
    context = otel_context.get_current()
    matters = scope_in(context) is not None or is_any_open()
    if not matters and _queues.find(queue) is None:
        return None
    with _lock:
        known = _queues.find_or_add(queue)
        lent = known.borrowed.pop(id(item), None)
        is_put_back = lent is not None and lent[0]() is item and lent[1] == id(current_worker())
        if (is_put_back and not _is_switched(context)) or (not matters and id(item) not in known.put):
            return None
        put = _Put(context, now())
        known.put.setdefault(id(item), (item, []))[1].append(put)
        _bound(known.put)
    return put


def _forget(queue: Any, item: Any, put: _Put) -> None:
    """Forget that an item was put where it was not put after all."""
    with _lock:
        known = _queues.find(queue)
        noted = None if known is None else known.put.get(id(item))
        if known is None or noted is None:  # somebody has got it all the same
            return
        noted[1][:] = [other for other in noted[1] if other is not put]
        if not noted[1]:
            del known.put[id(item)]


def _take(queue: Any, item: Any) -> tuple[_Put, ...]:
    """Return in which contexts an item that leaves the queue may have been put."""
    if _queues.find(queue) is None and current_scope() is None:
        return ()
    with _lock:
        known = _queues.find_or_add(queue)
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


def _bound(items: dict[int, Any]) -> None:
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
    if inherited.body.opened_by is current_worker() if inherited is not None else not is_worker_thread():
        return
    then = _context_of(puts, own, is_opener=_is_opener(queue))
    if then is not present:
        otel_context.attach(then)
        _switch.set(_Switch(own, then))


def _is_switched(context: Context) -> bool:
    switch = _switch.get()
    return switch is not None and switch.of_item is context


def _is_opener(queue: Any) -> bool:
    """Whether this task or thread has opened the channel itself: what comes into it are answers."""
    known = _queues.find(queue)
    return known is not None and known.opened_by() is current_worker()


def _context_of(puts: tuple[_Put, ...], own: Context, *, is_opener: bool) -> Context:
    """Return the context in which a worker goes on for an item."""
    inherited = scope_in(own)
    contexts = [put.context for put in puts if _says_something(put, inherited, is_opener=is_opener)]
    scopes = [scope_in(context) for context in contexts]
    if not scopes:
        return own
    if all(scope is inherited for scope in scopes):
        return without_worker(own)
    is_sure = all(scope is scopes[0] for scope in scopes) and (inherited is None or inherited.closed)
    return contexts[0] if is_sure else context_without_scope(own)


def _says_something(put: _Put, inherited: Scope | None, *, is_opener: bool) -> bool:
    """Whether it tells anything of whose work it is.

    What nobody's code put before the rollout began does not, nor what it answers to those who have asked.
    """
    if scope_in(put.context) is not None or inherited is None:
        return True
    return put.moment > inherited.body.opened_at and not is_opener


def is_worker_thread() -> bool:
    """Whether a thread runs here that is none of the program's own, and no event loop."""
    worker = current_worker()
    return (
        isinstance(worker, threading.Thread)
        and worker is not threading.main_thread()
        and asyncio._get_running_loop() is None  # noqa: SLF001 - cheaper than an exception for each item
    )
