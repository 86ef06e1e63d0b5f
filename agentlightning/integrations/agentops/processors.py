"""The trace processors of openai-agents, which AgentOps' instrumentation replaces all by its own.

Those that the user has registered stay in force beside it, in their order. The one that sends the SDK's traces to
OpenAI is left out meanwhile: in managed mode nothing leaves the machine. Undoing restores the list as it was, with
what the user has added since.
"""

from __future__ import annotations

import importlib
from typing import Any


class Processors:
    """The list as it was before AgentOps."""

    def __init__(self) -> None:
        self._holder = _holder()
        self._before = self._now()
        self._during: tuple[Any, ...] = ()

    def keep(self) -> None:
        """Put the user's processors before AgentOps', which has just replaced them."""
        library: Any = importlib.import_module("agents.tracing.processors")
        to_openai = library.default_processor()
        self._during = tuple(each for each in self._before if each is not to_openai) + self._now()
        self._set(self._during)

    def after(self) -> tuple[Any, ...]:
        """Return the list for afterwards: as it was, and what has come since."""
        now = self._now()
        if not self._during or not any(each is self._during[-1] for each in now):
            return now  # the user has set a list of their own since
        return self._before + tuple(each for each in now if not any(each is known for known in self._during))

    def restore(self, processors: tuple[Any, ...]) -> None:
        """Set the list, which AgentOps' end has replaced once more."""
        self._set(processors)

    def _now(self) -> tuple[Any, ...]:
        return tuple(self._holder._processors) if self._holder is not None else ()  # noqa: SLF001 - nothing public

    def _set(self, processors: tuple[Any, ...]) -> None:
        if self._holder is not None:
            # The SDK's own lock, under which it adds processors: without it, one that is added now could be lost.
            with self._holder._lock:  # noqa: SLF001
                self._holder._processors = processors  # noqa: SLF001


def _holder() -> Any | None:
    """Return what holds the list; ``None`` where the user's own trace provider stands in for the SDK's."""
    setup: Any = importlib.import_module("agents.tracing.setup")
    get = getattr(setup, "get_trace_provider", None)
    provider = get() if get is not None else setup.GLOBAL_TRACE_PROVIDER
    holder = getattr(provider, "_multi_processor", None)
    return holder if isinstance(getattr(holder, "_processors", None), tuple) else None
