"""The trace processors of openai-agents: AgentOps' instrumentation replaces all of them by its own.

Those that were registered before stay in force beside it, in their order; undoing restores the list as it was, with
what the user has added since. The SDK's default processor, which sends traces to OpenAI, takes nothing in managed
mode, whether AgentOps instruments the SDK or not: only what it has taken before is still sent.
"""

from __future__ import annotations

import functools
import importlib
from types import ModuleType
from typing import Any, Final

from ...instrumentation.guard import Guard
from ...instrumentation.imports import when_imported
from ...instrumentation.patch import AttributePatch, Patch, Patches


def nothing_to_openai(guard: Guard) -> Patches:
    """Let the SDK's default processor take no trace and no span, now or when the SDK is imported.

    It takes nothing, instead of not sending: what it had taken, it would send after this is undone. Processors that the
    user has made, of the same class too, are not touched.
    """
    patches = Patches("openai-agents' traces for OpenAI")

    def silence(module: ModuleType) -> None:
        for method in ("on_trace_start", "on_span_end"):
            description = "the processor that sends traces to OpenAI takes nothing"
            patches.add(
                AttributePatch(
                    module.BatchTraceProcessor, method, _unless_default(module, guard), description
                )
            )

    patches.add(when_imported({"agents.tracing.processors": silence}, guard))
    return patches


def _unless_default(module: Any, guard: Guard) -> Any:
    def wrap(original: Any, patch: Patch) -> Any:
        @functools.wraps(original)
        def take(processor: Any, /, *args: Any, **kwargs: Any) -> Any:
            is_default = False
            with guard("telling openai-agents' own processor"):
                is_default = patch.active and processor is _default(module)
            return None if is_default else original(processor, *args, **kwargs)

        return take

    return wrap


def _default(module: Any) -> Any:
    """Return the processor that sends to OpenAI; ``None``: there is none so far.

    Its getter makes one in newer releases, and may raise while the process ends. The variable is that of 0.24.0, and of
    those seen before and after it.
    """
    fields = vars(module)
    return fields[_PROCESSOR] if _PROCESSOR in fields else module.default_processor()


_PROCESSOR: Final = "_global_processor"


class Processors:
    """The list as it was before AgentOps."""

    def __init__(self) -> None:
        self._holder = _holder()
        self._before = self._now()
        self._during: tuple[Any, ...] = ()

    def keep(self) -> None:
        """Put the processors of before in front of AgentOps', which has just replaced them."""
        self._during = self._before + self._now()
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
