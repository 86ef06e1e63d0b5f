"""Reversible patches that let us see what an agent's libraries do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import _lazy

if TYPE_CHECKING:
    from ..integrations.agentops.attach import instrument_agentops as instrument_agentops
    from ..integrations.agentops.attach import instrument_all as instrument_all
    from ..integrations.agentops.attach import uninstrument_agentops as uninstrument_agentops
    from ..integrations.agentops.attach import uninstrument_all as uninstrument_all

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    {
        "agentlightning.integrations.agentops.attach": (
            "instrument_agentops",
            "instrument_all",
            "uninstrument_agentops",
            "uninstrument_all",
        ),
    },
)
