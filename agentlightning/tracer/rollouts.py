"""``tracer.rollout``: one rollout for a block, or for each call of a function."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import logging
import weakref
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, cast

from ..errors import ContextArgumentsError
from ..semconv import GROUP_ID
from ..store.base import UNSET
from .contexts import TraceContext
from .steps import Steps, async_generator, awaited, generator, raised

if TYPE_CHECKING:
    from ..store.sealing import Sealing

_log = logging.getLogger(__name__)

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")

_LEVELS_SAID = 3
"""Levels of an argument that are kept item by item where JSON cannot say it whole."""

OpenRollout = Callable[[Any, str | None], TraceContext]
"""What the rollout is about, and its name if nobody else has one → its ``trace_context``, not yet entered."""


class RolloutContext(TraceContext):
    """What ``tracer.rollout`` returns: a rollout for a ``with`` or ``async with``, or one for each call of a function.

    Args:
        opened: Makes the ``trace_context`` of one rollout, when it begins.
        given: What the rollout is about; ``UNSET``: for a function, its arguments.
    """

    def __init__(self, opened: OpenRollout, given: Any) -> None:
        self._opened = opened
        self._given = given
        self._context: TraceContext | None = None

    def __enter__(self) -> Any:
        return self._begin().__enter__()

    async def __aenter__(self) -> Any:
        return await self._begin().__aenter__()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
        /,
    ) -> None:
        self._end().__exit__(exc_type, exc, tb)

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
        /,
    ) -> None:
        await self._end().__aexit__(exc_type, exc, tb)

    def __call__(self, fn: F) -> F:
        """Return ``fn``, of which each call then is a rollout of its own; see :meth:`Tracer.rollout`."""
        if isinstance(fn, (staticmethod, classmethod)):
            # The function behind the descriptor is wrapped, and the descriptor made anew around it.
            return type(fn)(self(fn.__func__))
        if not callable(fn):
            raise ContextArgumentsError(f"rollout(…) decorates functions, not {type(fn).__qualname__}")
        return cast("F", _decorated(fn, self._opened, self._given))

    def _begin(self) -> TraceContext:
        if self._context is not None:
            raise ContextArgumentsError(
                "this rollout has begun already; call tracer.rollout(…) for another one"
            )
        self._context = self._opened(self._given, None)
        return self._context

    def _end(self) -> TraceContext:
        assert self._context is not None
        return self._context


def rollout_context(opened: OpenRollout, task: Any) -> Any:
    """Return the context of ``tracer.rollout(task)``, or the decorated function where ``task`` is one."""
    is_bare = inspect.isroutine(task) or isinstance(task, (staticmethod, classmethod, functools.partial))
    return RolloutContext(opened, UNSET)(task) if is_bare else RolloutContext(opened, task)


def rollout_metadata(given: Mapping[str, Any] | None, group: str | None, name: str | None) -> dict[str, Any]:
    """Return the metadata of a rollout of this group and name.

    Raises:
        ContextArgumentsError: They name another group.
    """
    kept = dict(given or {})
    if group is not None and kept.setdefault(GROUP_ID, group) != group:
        raise ContextArgumentsError(f"group is {group!r}, and metadata[{GROUP_ID!r}] is {kept[GROUP_ID]!r}")
    if name is not None:
        kept.setdefault("name", name)
    return kept


def sealing_of(seal: bool | Sealing) -> Sealing | None:
    """Return how a rollout is sealed at its end; ``None``: it is not."""
    if seal is not True:
        return seal or None
    from ..store.sealing import Sealing  # loads what makes rows, which most agents never ask for

    return Sealing()


# ---------------------------------------------------------------------- decorated functions


def _decorated(fn: Callable[..., Any], opened: OpenRollout, given: Any) -> Callable[..., Any]:
    """Return a function of the same kind as ``fn`` that makes one rollout of each call.

    The rollout of a generator begins with its first step and not when it is called, and it is current only while the
    generator runs: what drives it, and what that does meanwhile, is no part of it.
    """
    try:
        signature: inspect.Signature | None = inspect.signature(fn)
    except (TypeError, ValueError):  # builtins without one
        signature = None
    name = getattr(fn, "__name__", None) or type(fn).__name__

    def begin(args: tuple[Any, ...], kwargs: dict[str, Any]) -> TraceContext:
        return opened(_task_of(signature, args, kwargs) if given is UNSET else given, name)

    # ``iscoroutinefunction`` and its like look through ``functools.partial``, and not at an object's ``__call__``.
    kind: Any = fn if inspect.isroutine(fn) or isinstance(fn, functools.partial) else type(fn).__call__
    if inspect.isasyncgenfunction(kind):
        return async_generator(fn, lambda *call: _Steps(begin(*call)))
    if inspect.isgeneratorfunction(kind):
        return generator(fn, lambda *call: _Steps(begin(*call)))
    return (_coroutine if inspect.iscoroutinefunction(kind) else _function)(fn, begin)


def _task_of(signature: inspect.Signature | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return what one call is about: its only argument, or its arguments by name.

    Of what JSON cannot say, such as a client, only the type is kept: its text may hold a key.
    """
    arguments: dict[str, Any] = {**{str(place): value for place, value in enumerate(args)}, **kwargs}
    if signature is not None:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError:  # the call itself is about to raise it
            pass
        else:
            bound.apply_defaults()
            arguments = dict(bound.arguments)
    first = next(iter(arguments), "")
    sayable = {
        name: _sayable(name, value)
        for name, value in arguments.items()
        if name != first or name not in {"self", "cls"}
    }
    return next(iter(sayable.values())) if len(sayable) == 1 else sayable


def _sayable(name: str, value: Any, around: tuple[int, ...] = ()) -> Any:
    from ..codec.json_copy import (
        json_copy,
    )  # loads pydantic, and a process that only imports the tracer shall not

    try:
        return json_copy(name, value)
    except Exception:  # noqa: BLE001 - an argument may raise anything when it is looked at, and the agent needs it
        with suppress(Exception):
            if _may_look_into(value, around):
                return {key: _sayable(key, item, (*around, id(value))) for key, item in value.items()}
    return f"<{type(value).__module__}.{type(value).__qualname__}>"


def _may_look_into(value: Any, around: tuple[int, ...]) -> bool:
    """Whether a map that JSON cannot say is said item by item; ``around``: ids of the maps that it is inside of."""
    is_new = len(around) < _LEVELS_SAID and id(value) not in around
    return is_new and isinstance(value, Mapping) and all(isinstance(key, str) for key in value)


Begin = Callable[[tuple[Any, ...], dict[str, Any]], TraceContext]
"""Arguments of one call → the ``trace_context`` of its rollout, not yet entered."""


def _function(fn: Callable[..., Any], begin: Begin) -> Callable[..., Any]:
    @functools.wraps(fn)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        context = begin(args, kwargs)
        context.__enter__()
        try:
            result = fn(*args, **kwargs)
            going_on = _going_on(result, context)
        except BaseException as error:
            context.__exit__(type(error), error, error.__traceback__)
            raise
        if going_on is None:
            context.__exit__(None, None, None)
        return result if going_on is None else going_on

    return wrapper


def _coroutine(fn: Callable[..., Any], begin: Begin) -> Callable[..., Any]:
    @functools.wraps(fn)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        async with begin(args, kwargs):
            return await fn(*args, **kwargs)

    return wrapper


def _going_on(result: Any, context: TraceContext) -> Any:
    """Return what stands for a result whose work is still to be done, and ends the rollout then; else ``None``.

    A future stands for itself: whoever made it, and whoever waits for it, has this very object.
    """
    is_future = asyncio.isfuture(result) or isinstance(result, Future)
    if is_future and context.goes_on_until(result):
        return result
    kinds: dict[Callable[[Any], bool], Callable[..., Any]] = {
        inspect.iscoroutine: awaited,
        inspect.isgenerator: generator,
        inspect.isasyncgen: async_generator,
    }
    resume = next((resume for is_kind, resume in kinds.items() if is_kind(result)), None)
    if resume is None:
        if is_future or inspect.isawaitable(result):
            _say_that_it_is_not_awaited(type(result))
        return None
    steps = _Steps(context, is_open=True)
    going_on = resume(lambda: result, lambda *_: steps)()
    # Nothing of it may ever be asked for; then its body does not run, and cannot end anything.
    weakref.finalize(going_on, context.give_up).atexit = False
    return going_on


def _say_that_it_is_not_awaited(kind: type) -> None:
    if kind not in _not_awaited:
        _not_awaited.add(kind)
        _log.warning(
            "a rollout has ended when its function returned a %s.%s, and what is awaited of that is no part of it: "
            "decorate a coroutine, or return a coroutine, task or future",
            kind.__module__,
            kind.__qualname__,
        )


_not_awaited: weakref.WeakSet[type] = weakref.WeakSet()
"""Types of results that this has been said of."""


class _Steps(Steps):
    """The steps of one rollout that rests between them, in a context that only they have.

    Args:
        context: Its ``trace_context``.
        is_open: Whether that has been entered, in the context that is current: it is left current for the steps alone.
    """

    def __init__(self, context: TraceContext, *, is_open: bool = False) -> None:
        self._context = context
        self._is_open = is_open
        self._inside = contextvars.copy_context()
        if is_open:
            context.rest()

    def begin(self, frame: FrameType) -> None:
        """Open the rollout; its steps are taken by this frame."""
        if not self._is_open:
            self._inside.run(self._context.__enter__)
        self._context.goes_on_in(frame)

    async def begin_async(self, frame: FrameType) -> None:
        """The same in an event loop."""
        if not self._is_open:
            await self.in_step(self._context.__aenter__())
        self._context.goes_on_in(frame)

    def run(self, step: Callable[..., T], *args: Any) -> T:
        """Take a step."""
        return self._inside.run(step, *args)

    def end(self, error: BaseException | None) -> None:
        """End the rollout."""
        self.run(self._context.__exit__, *raised(error))

    async def end_async(self, error: BaseException | None) -> None:
        """The same in an event loop."""
        await self.in_step(self._context.__aexit__(*raised(error)))
