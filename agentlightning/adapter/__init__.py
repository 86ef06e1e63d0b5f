"""From spans to training rows: pure functions of a trace, which no trace makes raise."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import _lazy

if TYPE_CHECKING:
    from .base import Adapter as Adapter
    from .base import OtelTraceAdapter as OtelTraceAdapter
    from .base import TraceAdapter as TraceAdapter
    from .explanation import CallVerdict as CallVerdict
    from .explanation import Explanation as Explanation
    from .explanation import RewardVerdict as RewardVerdict
    from .explanation import explain as explain
    from .messages import OpenAIMessages as OpenAIMessages
    from .messages import TraceToMessages as TraceToMessages
    from .reasons import ALL_CODES as ALL_CODES
    from .reasons import CallReason as CallReason
    from .reasons import Code as Code
    from .reasons import RewardReason as RewardReason
    from .reasons import TraceReason as TraceReason
    from .rewards import Reward as Reward
    from .rewards import read_reward as read_reward
    from .triplet import RewardMatchPolicy as RewardMatchPolicy
    from .triplet import TracerTraceToTriplet as TracerTraceToTriplet
    from .triplet import TraceToTripletBase as TraceToTripletBase
    from .triplet import TraceTree as TraceTree
    from .triplet import Transition as Transition

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    {
        ".base": ("Adapter", "OtelTraceAdapter", "TraceAdapter"),
        ".explanation": ("CallVerdict", "Explanation", "RewardVerdict", "explain"),
        ".messages": ("OpenAIMessages", "TraceToMessages"),
        ".reasons": ("ALL_CODES", "CallReason", "Code", "RewardReason", "TraceReason"),
        ".rewards": ("Reward", "read_reward"),
        ".triplet": (
            "RewardMatchPolicy",
            "TraceToTripletBase",
            "TraceTree",
            "TracerTraceToTriplet",
            "Transition",
        ),
    },
)
