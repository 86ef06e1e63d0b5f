"""The adapters of Agent Lightning 0.3, by its names: callables from spans to rows, over :mod:`agentlightning.rows`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import _lazy

if TYPE_CHECKING:
    from .base import Adapter as Adapter
    from .base import OtelTraceAdapter as OtelTraceAdapter
    from .base import TraceAdapter as TraceAdapter
    from .messages import OpenAIMessages as OpenAIMessages
    from .messages import TraceToMessages as TraceToMessages
    from .triplet import TracerTraceToTriplet as TracerTraceToTriplet
    from .triplet import TraceToTripletBase as TraceToTripletBase
    from .triplet import TraceTree as TraceTree
    from .triplet import Transition as Transition

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    {
        ".base": ("Adapter", "OtelTraceAdapter", "TraceAdapter"),
        ".messages": ("OpenAIMessages", "TraceToMessages"),
        ".triplet": ("TraceToTripletBase", "TraceTree", "TracerTraceToTriplet", "Transition"),
    },
)
