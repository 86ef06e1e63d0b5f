"""Chooses what is done with the installed ``agentops``; only the module for its range of releases is imported."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from opentelemetry import trace

from ..._locks import reentrant_lock
from ...instrumentation.guard import Guard
from ...instrumentation.patch import Patches
from .probe import Found, probe
from .table import support

if TYPE_CHECKING:
    from .repairs import Join

_log = logging.getLogger(__name__)


def managed(found: Found, provider: Any, url: str, guard: Guard) -> Patches:
    """Start AgentOps as a guest on ``provider``, with nothing sent anywhere; see ``managed`` and ``legacy``."""
    if found.legacy:
        from .legacy import record_events

        return record_events(found, provider, guard, start=True)
    from .managed import manage

    return manage(found, provider, url, guard)


def unmanaged(found: Found, provider: Any, join: Join, guard: Guard) -> Patches:
    """Record an AgentOps that its user starts; see ``repairs`` and ``legacy``."""
    if found.legacy:
        from .legacy import record_events

        return record_events(found, provider, guard, start=False)
    from .repairs import repair

    return repair(found, join, guard)


_instrumented: list[Patches] = []
_lock = reentrant_lock()
"""Guards ``_instrumented``, so that two threads do not instrument twice; undoing happens after it was released."""


def instrument_agentops() -> bool:
    """Repair and record the ``agentops`` of this process, for good or until :func:`uninstrument_agentops` (0.3).

    ``AgentOpsTracer`` does this by itself; it is for those who set everything up on their own. The spans go where the
    global tracer provider sends them. A second call changes nothing.

    Returns:
        Whether there is an ``agentops`` that can be recorded; if not, an error is logged that names a cure.
    """
    found = probe()
    known = support(found)
    if known.verdict != "captured":
        _log.error("AgentOps is not recorded: %s", known.sentence)
        return False
    with _lock:
        if not _instrumented:
            guard = Guard()
            _instrumented.append(unmanaged(found, trace.get_tracer_provider(), lambda _provider: None, guard))
    return True


def uninstrument_agentops() -> None:
    """Undo :func:`instrument_agentops`; without it, and a second time, nothing happens."""
    with _lock:
        patches = _instrumented.pop() if _instrumented else None
    if patches is not None:
        patches.undo()


def instrument_all() -> None:
    """Repair and record every library that needs it and is installed; today that is AgentOps (0.3)."""
    instrument_agentops()


def uninstrument_all() -> None:
    """Undo :func:`instrument_all`."""
    uninstrument_agentops()
