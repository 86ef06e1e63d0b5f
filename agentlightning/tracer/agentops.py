"""0.3's import path of the tracer of AgentOps, which is in :mod:`agentlightning.integrations.agentops.tracer`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import _lazy

if TYPE_CHECKING:
    from ..integrations.agentops.tracer import AgentOpsTracer as AgentOpsTracer
    from .processor import LightningSpanProcessor as LightningSpanProcessor

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    {
        "agentlightning.integrations.agentops.tracer": ("AgentOpsTracer",),
        "agentlightning.tracer.processor": ("LightningSpanProcessor",),
    },
)
