"""Calls that go on in steps: generators of both kinds, and coroutines.

Between two steps of a generator, whoever drives it goes on with work of its own, in the same context. ``Steps`` says
what belongs to the generator: how a step is taken, what comes before the first and after the last. The rest is what
``yield from`` does (PEP 380), what ``await`` does (PEP 492), and what asynchronous generators have no word for (PEP
525): values, exceptions and ``close`` go to the inner one, and its own come out.
"""

from __future__ import annotations

import functools
import sys
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from types import FrameType
from typing import Any, Generic, TypeVar, cast

T = TypeVar("T")


class Steps(ABC):
    """The steps of one call."""

    @abstractmethod
    def run(self, step: Callable[..., T], *args: Any) -> T:
        """Take a step."""

    @abstractmethod
    def begin(self, frame: FrameType) -> None:
        """Come before the first step; all of them are taken by this frame."""

    async def begin_async(self, frame: FrameType) -> None:
        """The same in an event loop."""
        self.begin(frame)

    def returned(self, result: Any) -> None:
        """Take note of what a generator has returned."""
        del result

    @abstractmethod
    def end(self, error: BaseException | None) -> None:
        """Come after the last step, which left with an error: ``GeneratorExit`` where nobody wanted a further one."""

    async def end_async(self, error: BaseException | None) -> None:
        """The same in an event loop."""
        self.end(error)

    def in_step(self, work: Awaitable[T]) -> Awaitable[T]:
        """Return something that does a piece of work in as many steps as it needs."""
        return _InStep(self, work)


Begin = Callable[[tuple[Any, ...], dict[str, Any]], Steps]
"""Arguments of one call → its steps."""


def raised(error: BaseException | None) -> tuple[Any, Any, Any]:
    """Return an exception as ``__exit__`` takes it."""
    return (None, None, None) if error is None else (type(error), error, error.__traceback__)


def awaited(fn: Callable[..., Any], begin: Begin) -> Callable[..., Any]:
    """Return a coroutine function like ``fn``, each of whose calls goes on in the steps that ``begin`` gives it."""

    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        steps = begin(args, kwargs)
        await steps.begin_async(sys._getframe())  # noqa: SLF001 - what `inspect` wraps
        async with _Ended(steps):
            return await steps.in_step(fn(*args, **kwargs))

    return wrapper


def generator(fn: Callable[..., Any], begin: Begin) -> Callable[..., Any]:
    """The same of a generator function."""

    @functools.wraps(fn)
    def wrapper(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        steps = begin(args, kwargs)
        steps.begin(sys._getframe())  # noqa: SLF001 - what `inspect` wraps
        with _Ended(steps):
            result = yield from _stepped(steps, fn(*args, **kwargs))
            steps.returned(result)
            return result

    return wrapper


def async_generator(fn: Callable[..., Any], begin: Begin) -> Callable[..., Any]:
    """The same of an asynchronous generator function."""

    @functools.wraps(fn)
    async def wrapper(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        steps = begin(args, kwargs)
        await steps.begin_async(sys._getframe())  # noqa: SLF001 - what `inspect` wraps
        async with _Ended(steps):
            inner = fn(*args, **kwargs)
            step, value = inner.asend, None
            while True:
                try:
                    item = await steps.in_step(step(value))
                except StopAsyncIteration:
                    return
                try:
                    step, value = inner.asend, (yield item)
                except GeneratorExit:
                    await steps.in_step(inner.aclose())
                    raise
                except BaseException as thrown:  # noqa: BLE001 - it belongs to the inner one
                    step, value = inner.athrow, thrown

    return wrapper


class _Ended:
    """Ends the steps of a call with the block, by what the block raises."""

    def __init__(self, steps: Steps) -> None:
        self._steps = steps

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self._steps.end(error)

    async def __aenter__(self) -> None: ...

    async def __aexit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        await self._steps.end_async(error)


class _InStep(Generic[T]):
    """Something to be awaited, each of whose steps is a step of a call."""

    def __init__(self, steps: Steps, work: Awaitable[T]) -> None:
        self._steps = steps
        self._work = work

    def __await__(self) -> Generator[Any, Any, T]:
        return (yield from _stepped(self._steps, self._work.__await__()))


def _stepped(steps: Steps, inner: Generator[Any, Any, T]) -> Generator[Any, Any, T]:
    """Do as ``yield from inner`` does, but with each step as ``steps`` takes it."""
    step: Callable[..., Any] = next
    given: tuple[Any, ...] = (inner,)
    while True:
        try:
            item = steps.run(step, *given)
        except StopIteration as stop:
            return cast("T", stop.value)
        try:
            value = yield item
        except GeneratorExit:
            steps.run(inner.close)
            raise
        except BaseException as thrown:  # noqa: BLE001 - it belongs to the inner one
            step, given = inner.throw, (thrown,)
        else:
            step, given = (next, (inner,)) if value is None else (inner.send, (value,))
