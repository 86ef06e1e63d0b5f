"""Whether an attempt can be trusted as a whole: nothing lost, an answer that can be trained, a reward that is known.

What is judged here is the content; whether all spans are there is the store's to say (``seal_attempt``). A call whose
tokens cannot be trusted is left out of the rows and is no reason to refuse the others: each answer has a prompt of its
own, and a row holds only prompts and answers that agree.
"""

from __future__ import annotations

from typing import Literal

from ..dialects.model_call import VALID
from .policy import Decision
from .reasons import CallReason, Code, TraceReason, explained
from .training import RowSet

RewardRule = Literal["required", "steps", "optional"]
"""Which rewards an attempt needs: one for the rollout (``required``); one for the rollout or, for trainers that take
rewards per step, for an answer that is trained (``steps``); or none at all (``optional``)."""


def incomplete(rows: RowSet, reward: RewardRule = "required") -> list[Code]:
    """Return why the attempt of ``rows`` is not complete; empty where it is."""
    found = list(rows.reasons)
    if found and any(_disagrees(decision) for decision in rows.decisions):
        found.append(explained(TraceReason.TOKEN_CAPTURE_INVALID.code))
    if rows.unknown_rewards:
        found.append(explained(TraceReason.REWARD_UNKNOWN_TARGET.code))
    missing = None if reward == "optional" else missing_reward(rows, steps_count=reward == "steps")
    if missing is not None:
        found.append(explained(missing.code))
    return list({code.code: code for code in found}.values())


def missing_reward(rows: RowSet, *, steps_count: bool = False) -> TraceReason | None:
    """Return what the attempt lacks of a reward; ``None`` where it is known.

    Args:
        rows: Its rows.
        steps_count: Whether rewards for answers that are trained will do.
    """
    outcome = rows.outcome
    if outcome.value is not None:
        return None
    if outcome.span_ids:
        return TraceReason.REWARD_UNSCORED
    # Only rewards for answers that are trained reach a trainer.
    steps = [step for row in rows for segment in row.segments if segment.trained for step in segment.rewards]
    if any(step.value is None for step in steps):
        return TraceReason.REWARD_UNSCORED
    if steps:
        return None if steps_count else TraceReason.STEP_REWARDS_ONLY
    return TraceReason.NO_REWARD


_NOTHING_SAMPLED = frozenset({CallReason.EMPTY_RESPONSE.code, CallReason.NO_PROMPT.code})
_CUT_OFF = frozenset({"partial", "left_by_agent"})
"""Answers that were left half way: nothing disagrees, and they are not trained."""


def _disagrees(decision: Decision) -> bool:
    call = decision.call
    if call.tokens is None or not call.selected or call.record is None:
        return False
    # A verdict that the ids agree, and a fault that was found in them afterwards.
    if call.record.token_capture == VALID:
        return call.tokens not in _NOTHING_SAMPLED
    return call.record.token_capture.startswith("invalid(") and call.tokens not in _CUT_OFF
