"""What keeps exceptions of the recorder out of the agent.

All code of ours that runs inside of an agent's calls runs in ``with guard(...)``. An ``Exception`` ends there: it is
counted and handed to a policy, and the agent goes on. The default policy logs each kind once; tests inject
:func:`reraise`, so that a fault shows where it happens. What is no ``Exception`` (cancellation, ``KeyboardInterrupt``)
passes, since it is meant for the agent.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from types import TracebackType

logger = logging.getLogger(__name__)

Policy = Callable[[str, Exception], None]
"""Called with what was being done and the exception; what it raises reaches the agent."""


class LogOnce:
    """Logs the first exception of each kind, by its type alone: a message may quote a header or a prompt."""

    def __init__(self) -> None:
        self._seen: set[tuple[str, type[Exception]]] = set()

    def __call__(self, doing: str, error: Exception) -> None:
        """Log ``error`` if it is the first of its kind."""
        kind = (doing, type(error))
        if kind in self._seen:
            return
        self._seen.add(kind)
        logger.warning(
            "%s failed with %s; the agent goes on, this is logged once", doing, type(error).__name__
        )
        logger.debug("%s failed", doing, exc_info=error)


def reraise(doing: str, error: Exception) -> None:
    """Let the exception out: the policy of tests."""
    del doing
    raise error


class Guard:
    """``with guard("noting a chunk"): …`` hands exceptions to the policy; reentrant and shared by threads.

    A function that returns its result inside of the block returns its fallback after it.
    """

    def __init__(self, policy: Policy | None = None) -> None:
        self._policy = policy or LogOnce()
        self.caught: Counter[str] = Counter()
        """What was being done → how often it failed."""

    def __call__(self, doing: str) -> _Guarded:
        """Return a context manager around what ``doing`` names."""
        return _Guarded(doing, self)

    def catch(self, doing: str, error: Exception) -> None:
        """Count ``error`` and hand it to the policy."""
        self.caught[doing] += 1
        self._policy(doing, error)


class _Guarded:
    __slots__ = ("_doing", "_guard")

    def __init__(self, doing: str, guard: Guard) -> None:
        self._doing = doing
        self._guard = guard

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        if not isinstance(error, Exception):
            return False  # nothing was raised, or something that is for the agent
        self._guard.catch(self._doing, error)
        return True
