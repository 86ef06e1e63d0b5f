"""AgentOps' instrumentations of agent frameworks: each gets its turn, and is taken back whole.

AgentOps' own way replaces ``builtins.__import__``, takes a relative import of ``agents`` for the package of that name,
stops at the first framework, and gives back next to nothing: its instrumentations name what they have wrapped wrongly,
or not at all, so that the next start would wrap it twice. Here each framework is instrumented when it is imported, what
was replaced meanwhile is written down, and undoing restores it, object by object. Those that harm an agent stay off, or
are put right by ``runs``.
"""

from __future__ import annotations

import importlib
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, Final

from ...instrumentation.guard import Guard
from ...instrumentation.imports import when_imported
from ...instrumentation.patch import AttributePatch, Patch, Patches
from .probe import Found
from .processors import Processors
from .runs import lasting_runs
from .table import KEPT_OFF

_log = logging.getLogger(__name__)

_MISSING: Final = object()


def instrument_frameworks(found: Found, provider: Any, guard: Guard) -> Patch | None:
    """Let AgentOps instrument the agent frameworks that it knows, now or when they are imported; since 0.4.13."""
    if not found.mentions("instrumentation/__init__.py", "def _perform_instrumentation"):
        return None
    instrumentation: Any = importlib.import_module("agentops.instrumentation")
    if not hasattr(instrumentation, "AGENTIC_LIBRARIES"):
        return None
    patches = Patches("AgentOps' instrumentations of agent frameworks")

    def instrument(module: ModuleType) -> None:
        name = module.__name__
        is_installed = getattr(instrumentation, "_is_installed_package", None)
        if is_installed is not None and not is_installed(module, name):
            return
        started = _start(instrumentation, name, provider, guard)
        if started is not None:
            patches.add(started)

    names = [name for name in instrumentation.AGENTIC_LIBRARIES if name not in KEPT_OFF]
    patches.add(when_imported(dict.fromkeys(names, instrument), guard))
    return patches


def _start(instrumentation: Any, name: str, provider: Any, guard: Guard) -> Patch | None:
    """Start one instrumentation; ``None`` where it is not meant for this release of the framework."""
    loader = instrumentation.InstrumentorLoader(**instrumentation.AGENTIC_LIBRARIES[name])
    if not loader.should_activate:
        _log.debug("AgentOps does not instrument this release of %s", name)
        return None
    instrumentor = loader.get_instance()
    patches = Patches(f"AgentOps' instrumentation of {name}")
    for patch in lasting_runs(name, importlib.import_module(type(instrumentor).__module__), guard):
        patches.add(patch)
    processors = Processors() if name == "agents" else None
    patches.add(
        Patch(f"the end of its instrumentation of {name}", lambda: _end(instrumentor, processors, guard))
    )
    try:
        with _recorded(patches):
            # Of what it says it needs, the framework is there; smolagents' would ask for LiteLLM too, and not use it.
            instrumentor.instrument(tracer_provider=provider, skip_dep_check=True)
    except BaseException:
        patches.undo()
        raise
    if processors is not None:
        processors.keep()
    return patches


def _end(instrumentor: Any, processors: Processors | None, guard: Guard) -> None:
    afterwards = processors.after() if processors is not None else ()
    with guard("taking back an instrumentation of AgentOps"):
        if getattr(instrumentor, "_is_instrumented_by_opentelemetry", True):
            instrumentor.uninstrument()
    if processors is not None:
        processors.restore(afterwards)


# ---------------------------------------------------------------------- what it has wrapped


@contextmanager
def _recorded(patches: Patches) -> Iterator[None]:
    """Add a patch for each thing that AgentOps wraps meanwhile; undone before its own end, which then finds nothing."""
    library: Any = importlib.import_module("wrapt.patches")
    thread = threading.get_ident()

    def wrap(original: Callable[..., None], patch: Patch) -> Callable[..., None]:
        def apply_patch(parent: Any, attribute: str, replacement: Any) -> None:
            before = vars(parent).get(attribute, _MISSING)
            original(parent, attribute, replacement)
            if patch.active and threading.get_ident() == thread and _is_theirs(replacement):
                patches.add(_wrapped(parent, attribute, before, replacement))

        return apply_patch

    recording = AttributePatch(library, "apply_patch", wrap, "what AgentOps wraps is written down")
    try:
        yield
    finally:
        recording.undo()


def _is_theirs(replacement: Any) -> bool:
    """Whether a wrapper is AgentOps', or ours for it; a framework that is imported meanwhile may wrap things too."""
    wrapper = getattr(replacement, "_self_wrapper", None)
    return str(getattr(wrapper, "__module__", "")).partition(".")[0] in {
        "agentops",
        __name__.partition(".")[0],
    }


def _wrapped(parent: Any, attribute: str, before: Any, replacement: Any) -> Patch:
    def undo() -> None:
        if vars(parent).get(attribute) is not replacement:
            replacement._self_enabled = False  # noqa: SLF001 - somebody has wrapped it: wrapt then calls straight through
        elif before is _MISSING:  # inherited
            delattr(parent, attribute)
        else:
            setattr(parent, attribute, before)

    return Patch(f"{getattr(parent, '__qualname__', parent)}.{attribute}: AgentOps makes a span of it", undo)
