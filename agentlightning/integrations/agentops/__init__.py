"""AgentOps: what it is patched with, and a server on this machine that stands in for its cloud."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ... import _lazy

if TYPE_CHECKING:
    from .attach import instrument_agentops as instrument_agentops
    from .attach import uninstrument_agentops as uninstrument_agentops
    from .legacy import record_events as record_events
    from .managed import manage as manage
    from .repairs import repair as repair
    from .server.manager import AgentOpsServerManager as AgentOpsServerManager
    from .table import support as support

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    {
        ".attach": ("instrument_agentops", "uninstrument_agentops"),
        ".legacy": ("record_events",),
        ".managed": ("manage",),
        ".repairs": ("repair",),
        ".server.manager": ("AgentOpsServerManager",),
        ".table": ("support",),
    },
)
