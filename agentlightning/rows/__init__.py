"""From spans to training rows: model calls, how they continue each other, and rows of token ids with a mask.

Pure functions of a trace, which no trace makes raise. Where a call or a token trains nothing, a code of
:mod:`agentlightning.rows.reasons` says why.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import _lazy

if TYPE_CHECKING:
    from .advantage import Formula as Formula
    from .advantage import group_advantages as group_advantages
    from .advantage import row_advantages as row_advantages
    from .explanation import CallVerdict as CallVerdict
    from .explanation import Explanation as Explanation
    from .explanation import RewardVerdict as RewardVerdict
    from .explanation import explain as explain
    from .explanation import explain_rows as explain_rows
    from .matching import RewardMatchPolicy as RewardMatchPolicy
    from .outcome import StepReward as StepReward
    from .policy import Decision as Decision
    from .policy import RowPolicy as RowPolicy
    from .policy import Use as Use
    from .reasons import ALL_CODES as ALL_CODES
    from .reasons import CallReason as CallReason
    from .reasons import Code as Code
    from .reasons import RewardReason as RewardReason
    from .reasons import TraceReason as TraceReason
    from .rewards import Reward as Reward
    from .rewards import read_reward as read_reward
    from .rewards import reward_target as reward_target
    from .training import RowSet as RowSet
    from .training import Segment as Segment
    from .training import TrainingRow as TrainingRow
    from .training import build_rows as build_rows

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    {
        ".advantage": ("Formula", "group_advantages", "row_advantages"),
        ".explanation": ("CallVerdict", "Explanation", "RewardVerdict", "explain", "explain_rows"),
        ".matching": ("RewardMatchPolicy",),
        ".outcome": ("StepReward",),
        ".policy": ("Decision", "RowPolicy", "Use"),
        ".reasons": ("ALL_CODES", "CallReason", "Code", "RewardReason", "TraceReason"),
        ".rewards": ("Reward", "read_reward", "reward_target"),
        ".training": ("RowSet", "Segment", "TrainingRow", "build_rows"),
    },
)
