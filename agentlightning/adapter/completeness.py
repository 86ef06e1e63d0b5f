"""Whether an attempt can be trusted as a whole: nothing lost, tokens that agree, a reward that is known.

What is judged here is the content; whether all spans are there is the store's to say (``seal_attempt``).
"""

from __future__ import annotations

from typing import List, Literal

from ..codec.model_call import VALID
from .policy import Decision
from .reasons import CallReason, Code, TraceReason, explained
from .training import RowSet

RewardRule = Literal["required", "optional"]
"""Whether an attempt without a scored reward is complete: only where its absence is declared (``optional``)."""


def incomplete(rows: RowSet, reward: RewardRule = "required") -> List[Code]:
    """Return why the attempt of ``rows`` is not complete; empty where it is."""
    found = list(rows.reasons)
    if any(_disagrees(decision) for decision in rows.decisions):
        found.append(explained(TraceReason.TOKEN_CAPTURE_INVALID.code))
    if rows.unknown_rewards:
        found.append(explained(TraceReason.REWARD_UNKNOWN_TARGET.code))
    if reward == "required" and rows.outcome.value is None:
        missing = TraceReason.REWARD_UNSCORED if rows.outcome.span_ids else TraceReason.NO_REWARD
        if not rows.step_rewards or any(step.value is None for step in rows.step_rewards):
            found.append(explained(missing.code))
    return list({code.code: code for code in found}.values())


_NOTHING_SAMPLED = frozenset({CallReason.EMPTY_RESPONSE.code, CallReason.NO_PROMPT.code})
_CUT_OFF = "partial"
"""An answer that the agent left half way: nothing disagrees, and it is not trained."""


def _disagrees(decision: Decision) -> bool:
    call = decision.call
    if call.tokens is None or not call.selected or call.record is None:
        return False
    if call.record.token_capture == VALID:
        return call.tokens not in _NOTHING_SAMPLED
    return call.record.token_capture.startswith("invalid(") and call.tokens != _CUT_OFF
