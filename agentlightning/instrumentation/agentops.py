"""0.3's import path of the patches of AgentOps, which are in :mod:`agentlightning.integrations.agentops`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import _lazy

if TYPE_CHECKING:
    from ..integrations.agentops.attach import instrument_agentops as instrument_agentops
    from ..integrations.agentops.attach import uninstrument_agentops as uninstrument_agentops

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    {"agentlightning.integrations.agentops.attach": ("instrument_agentops", "uninstrument_agentops")},
)
