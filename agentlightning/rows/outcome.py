"""What an attempt was worth as a whole, and what its single answers were worth.

The outcome is made of the rewards for the rollout: those without a link, and those linked to the rollout or the
attempt. Each may have several named dimensions; of two with one name the later stands. A reward that names a call is
never the outcome, and one whose target is unknown is nobody's: it is returned as a problem, not guessed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from ..semconv import LightningResourceAttributes
from .analysis import Analysis
from .matching import MatchedBy, RewardMatch, is_for_rollout
from .policy import RowPolicy
from .reasons import RewardReason

ROLLOUT_ID = LightningResourceAttributes.ROLLOUT_ID.value
ATTEMPT_ID = LightningResourceAttributes.ATTEMPT_ID.value


@dataclass(frozen=True, slots=True)
class Outcome:
    """The reward of an attempt."""

    value: float | None = None
    """``None`` = unscored: none was given, or it is no finite number. Never 0 instead."""
    dimensions: Mapping[str, float | None] = field(default_factory=dict)
    """Name → value, in the order in which they were first given."""
    primary: str | None = None
    """Name of the dimension that ``value`` is; ``None`` where it is a weighted sum, or there is none."""
    span_ids: tuple[str, ...] = ()
    """Spans that gave it."""


@dataclass(frozen=True, slots=True)
class StepReward:
    """What one sampled answer, or a part of it, was worth."""

    call: str
    """Span id of the call."""
    choice: int | None
    """``None`` = every choice of it."""
    tokens: tuple[int, int] | None
    """``[start, end)`` over the sampled tokens; ``None`` = the whole answer."""
    value: float | None
    dimensions: Mapping[str, float | None]
    span_id: str
    """The span that gave it."""


@dataclass(frozen=True, slots=True)
class Rewards:
    """All rewards of an attempt."""

    outcome: Outcome
    steps: tuple[StepReward, ...]
    unknown: tuple[RewardMatch, ...]
    """Rewards that name a target which this attempt does not have."""


def rewards_of(analysis: Analysis, policy: RowPolicy) -> Rewards:
    """Return the rewards of an attempt as ``policy`` wants them."""
    for_rollout: list[RewardMatch] = []
    steps: list[StepReward] = []
    unknown: list[RewardMatch] = []
    for match in analysis.rewards:
        links = match.reward.links
        if match.reason in {RewardReason.LINK_UNRESOLVED, RewardReason.TOKENS_UNKNOWN}:
            unknown.append(match)
        elif is_for_rollout(links) and not _is_own(analysis, match):
            unknown.append(replace(match, call=None, by=None, reason=RewardReason.LINK_UNRESOLVED))
        elif links and not is_for_rollout(links):
            if match.call is not None:
                steps.append(_step(match))
        elif policy.step_rewards is not None and match.by not in {None, MatchedBy.OUTCOME}:
            steps.append(_step(match))
            for_rollout.append(match)  # as in 0.3: the last of them is the outcome, too
        else:
            for_rollout.append(match)
    return Rewards(_outcome(for_rollout, policy), tuple(steps), tuple(unknown))


def _is_own(analysis: Analysis, match: RewardMatch) -> bool:
    own = {ROLLOUT_ID: analysis.rollout_id, ATTEMPT_ID: analysis.attempt_id}
    return all(own.get(link.key_match) == link.value_match for link in match.reward.links)


def _step(match: RewardMatch) -> StepReward:
    assert match.call is not None
    return StepReward(
        match.call, match.choice, match.tokens, match.reward.value, match.reward.named(), match.span.span_id
    )


def _outcome(matches: Sequence[RewardMatch], policy: RowPolicy) -> Outcome:
    given = [match for match in matches if match.reward.reason is not RewardReason.NOT_GIVEN]
    if not given:
        return Outcome()
    dimensions: dict[str, float | None] = {}
    for match in given:
        dimensions.update(match.reward.dimensions)
    span_ids = tuple(match.span.span_id for match in given)
    weights = policy.reward_weights
    if weights is not None:
        parts = [(weight, dimensions.get(name)) for name, weight in weights.items()]
        known = [weight * part for weight, part in parts if part is not None]
        # A missing dimension makes the sum unknown; without it, it would be another reward.
        total = sum(known) if len(known) == len(parts) else math.nan
        value = total if math.isfinite(total) else None
        return Outcome(value, dimensions, None, span_ids)
    # Of the last reward: dimensions are collected from all, and the latest word says which one counts.
    primary = policy.primary_reward or given[-1].reward.dimensions[0][0]
    return Outcome(dimensions.get(primary), dimensions, primary, span_ids)
