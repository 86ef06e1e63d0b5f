"""What a ``trace_context`` asks of its store before its body begins, with a deadline.

The store is asked on another thread (see ``questions``): the caller may be a signal handler that has interrupted what
the store waits for, or may be interrupted or cancelled itself, and the store's own deadlines may be long. A rollout
that is started after nobody waits for it any more is cancelled.
"""

from __future__ import annotations

import functools
import inspect
import logging
import signal
import threading
from collections.abc import Awaitable, Callable, Mapping
from types import CodeType
from typing import TYPE_CHECKING, Any, NamedTuple

from ..dialects.raw_call import Endpoint
from .endings import end_attempt
from .questions import Questions

if TYPE_CHECKING:
    from ..store.base import LightningStore
    from ..types import AttemptedRollout, Rollout

_log = logging.getLogger(__name__)

OPEN_TIMEOUT = 5.0
"""Seconds that the beginning of a ``trace_context`` may wait for its store."""
SIGNAL_TIMEOUT = 0.4
"""The same inside of a signal handler: what the store waits for may be what the handler has interrupted."""


class Opened(NamedTuple):
    """What the store has said."""

    ids: tuple[str, str] | None
    """The rollout and attempt that were started; ``None`` where the caller named them."""
    endpoints: list[Endpoint] | None
    """Model endpoints of the rollout; ``None`` where nobody asked for them."""
    rollout: Rollout | None = None
    """The rollout that was started."""


class Opening:
    """One question to a store, under way.

    Args:
        store: Whom to ask.
        start: Arguments for ``start_rollout``; ``None`` where none is to be started.
        questions: Where stores are asked.
        endpoints_of: Finds the endpoints of the rollout that was started, or of the caller's where its argument is
            ``None``; ``None`` where nobody asks for them.
    """

    def __init__(
        self,
        store: LightningStore,
        start: Mapping[str, Any] | None,
        endpoints_of: Callable[[str | None], Awaitable[list[Endpoint]]] | None,
        questions: Questions,
    ) -> None:
        self._store = store
        self._start = start
        self._endpoints_of = endpoints_of
        self._started: tuple[str, str] | None = None
        self._first = [True]
        """Popped by the start of the rollout, or by whoever gives up the wait for it. The one that comes second, and
        finds nothing, cancels the rollout: so that happens once, and without a lock, which a signal handler that opens
        a context, or a fork, could find taken."""
        self._questions = questions
        self._question = questions.ask(self._ask)

    def result(self) -> Opened:
        """Wait for the answer.

        Raises:
            TimeoutError: It has not come within ``OPEN_TIMEOUT``, in a signal handler ``SIGNAL_TIMEOUT``.
            Exception: What the store has raised.
        """
        try:
            return self._question.result(patience(OPEN_TIMEOUT))
        except BaseException:  # also what a signal handler raises here
            self._abandon()
            raise

    async def result_async(self) -> Opened:
        """Await the answer; see :meth:`result`."""
        try:
            return await self._question.result_async(OPEN_TIMEOUT)
        except BaseException:  # also a cancellation
            self._abandon()
            raise

    async def _ask(self) -> Opened:
        ids: tuple[str, str] | None = None
        started: AttemptedRollout | None = None
        if self._start is not None:
            started = await self._store.start_rollout(**self._start)
            ids = self._started = started.rollout_id, started.attempt.attempt_id
            if not self._comes_first():  # nobody waits any more
                await self._cancel()
                return Opened(ids, None)
        endpoints = None if self._endpoints_of is None else await self._endpoints_of(ids[0] if ids else None)
        return Opened(ids, endpoints, started)

    def _abandon(self) -> None:
        if not self._comes_first():  # it has started
            self._questions.ask(self._cancel)

    def _comes_first(self) -> bool:
        try:
            return self._first.pop()
        except IndexError:
            return False

    async def _cancel(self) -> None:
        assert self._started is not None
        try:
            await end_attempt(self._store, *self._started, "cancelled")
        except Exception as error:  # noqa: BLE001 - a store may raise anything
            _log.warning("rollout %s could not be cancelled: %r", self._started[0], error)


def patience(seconds: float) -> float:
    """Return how long this thread may wait for a store: where a signal handler runs, no longer than that allows."""
    return min(seconds, SIGNAL_TIMEOUT) if _is_in_signal_handler() else seconds


def _is_in_signal_handler() -> bool:
    """Whether a signal's handler is at work: handlers run in the main thread, on top of its stack."""
    if threading.current_thread() is not threading.main_thread():
        return False
    handlers = {_code_of(signal.getsignal(number)) for number in signal.valid_signals()} - {None}
    handlers.discard(_code_of(signal.default_int_handler))  # Python's own for Ctrl-C, which only raises
    frame = inspect.currentframe() if handlers else None
    while frame is not None:
        if frame.f_code in handlers:
            return True
        frame = frame.f_back
    return False


def _code_of(handler: Any) -> CodeType | None:
    # What shows on the stack is the code of a function, whatever it was wrapped in when it was made the handler.
    while isinstance(handler, functools.partial):
        handler = handler.func
    if not callable(handler):
        return None
    function = getattr(handler, "__func__", handler)
    if not hasattr(function, "__code__"):
        function = vars(type(handler)).get("__call__")
    found = getattr(function, "__code__", None)
    return found if isinstance(found, CodeType) else None
