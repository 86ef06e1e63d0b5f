"""Which rollout's generator is at work.

A generator shares the context of whoever drives it. A ``trace_context`` that it opens stays current while it waits at a
``yield``, so what is current then says nothing of who runs: another generator of the same driver, the driver itself,
or what these have started. Two things are known for certain, and spans are placed by them alone:

* the innermost generator on the call stack that has opened a ``trace_context`` is the one at work;
* a generator that waits at a ``yield`` is not at work.

Generators whose body is meant to be around somebody else's code, as those of ``contextlib.contextmanager`` and of
pytest's fixtures, are no rollouts of their own: their ``trace_context`` belongs to the ``with`` that they serve.
"""

from __future__ import annotations

import dis
import inspect
from inspect import CO_ASYNC_GENERATOR, CO_COROUTINE, CO_GENERATOR, CO_ITERABLE_COROUTINE
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import CodeType, FrameType

    from ..recorder.scope import Scope

_GENERATOR = CO_GENERATOR | CO_ASYNC_GENERATOR
_AWAITED = CO_COROUTINE | CO_ITERABLE_COROUTINE
_HANDED_OUT_BY = ("_pytest", "pytest_asyncio")
"""Packages that drive a generator whose body is around somebody else's code."""
_YIELD_VALUE = dis.opmap["YIELD_VALUE"]
_RESUME = dis.opmap.get("RESUME")
_AFTER_AWAIT = 3


class Generators:
    """The generators that have opened a ``trace_context`` which is open, and the scopes of each."""

    def __init__(self) -> None:
        self.scopes: dict[FrameType, list[Scope]] = {}

    def opened(self, scope: Scope, frame: FrameType | None) -> None:
        """Note who opened a scope.

        Args:
            scope: The scope.
            frame: The frame that entered its ``trace_context``.
        """
        scope.body.opened_inside = self.at_work(frame) if self.scopes else None
        opener = _opener(frame)
        if opener is not None:
            scope.body.generator = opener
            self.scopes[opener] = [*self.scopes.get(opener, ()), scope]

    def goes_on_in(self, scope: Scope, frame: FrameType) -> None:
        """Note that a scope is current only while this frame runs, in a context that nothing else has."""
        self.closed(scope)
        scope.body.generator, scope.body.is_apart = frame, True
        self.scopes[frame] = [*self.scopes.get(frame, ()), scope]

    def closed(self, scope: Scope) -> None:
        """Forget a scope."""
        frame, scope.body.generator = scope.body.generator, None
        if frame is None:
            return
        left = [other for other in self.scopes.get(frame, ()) if other is not scope]
        if left:
            self.scopes[frame] = left
        else:
            self.scopes.pop(frame, None)

    def forget_inherited(self) -> None:
        """Forget the generators of the process that this one was forked from, which are on its stack."""
        self.scopes = {
            frame: own
            for frame, scopes in self.scopes.items()
            if (own := [scope for scope in scopes if not scope.body.is_inherited])
        }

    def at_work(self, frame: FrameType | None = None) -> Scope | None:
        """Return the scope of the innermost generator on this thread's stack that has opened one, or ``None``."""
        frame = inspect.currentframe() if frame is None else frame
        while frame is not None:
            scopes = self.scopes.get(frame)
            if scopes:
                return scopes[-1]
            frame = frame.f_back
        return None


def waits_at_yield(frame: FrameType) -> bool:
    """Whether a generator's frame waits at a ``yield``; one that runs, or awaits something, is at work."""
    if frame.f_back is not None:  # something has called it and has not come back: it runs
        return False
    code = frame.f_code
    if code.co_flags & _AWAITED:  # it never yields to a reader
        return False
    at = frame.f_lasti
    instructions = code.co_code
    # ``f_lasti`` is the last instruction that it has executed, -1 before the first one.
    if at < 0 or instructions[at] != _YIELD_VALUE:
        return False
    # An async generator executes ``YIELD_VALUE`` for an ``await``, too, and is at work while it awaits.
    return not (code.co_flags & CO_ASYNC_GENERATOR and _resumes_after_await(code, at))


def _resumes_after_await(code: CodeType, at: int) -> bool:
    """Whether a ``YIELD_VALUE`` belongs to an ``await``: the ``RESUME`` after it says so (see ``dis``)."""
    instructions = code.co_code
    following = at + 2
    if _RESUME is None or following + 1 >= len(instructions) or instructions[following] != _RESUME:
        return False
    return instructions[following + 1] & 3 == _AFTER_AWAIT


def _opener(frame: FrameType | None) -> FrameType | None:
    """Return the generator whose ``with`` it is; ``None`` where it is no generator's."""
    while frame is not None:
        driver = _package(frame.f_back)
        # ``__enter__`` of a trace_context, or of an ExitStack that it was entered through: the opener is further out.
        if _package(frame) in {"contextlib", "agentlightning"}:
            frame = frame.f_back
        elif not frame.f_code.co_flags & _GENERATOR or driver in _HANDED_OUT_BY:
            return None
        elif driver == "contextlib":  # a context manager made of a generator: its scope is that of its user
            frame = frame.f_back
        else:
            return frame
    return None


def _package(frame: FrameType | None) -> str:
    return "" if frame is None else str(frame.f_globals.get("__name__", "")).partition(".")[0]
