"""Group relative policy optimisation (GRPO): what several attempts at the same task teach.

DeepSeekMath, https://arxiv.org/abs/2402.03300, section 4.1: a task is tried several times, and the advantage of
a try is its reward, less the mean of its group, over the group's standard deviation (4.1.2, outcome supervision).
All tokens of a try share it, in PPO's clipped objective. Three things differ here. The objective is the mean over
the tokens of all tries. There is no reference policy to stay close to, since this policy starts from nothing. And
a bonus on entropy keeps it curious.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .policy import Floats, Policy, Weights, view, zeros

EPSILON = 1e-4
"""Added to a group's standard deviation, which is 0 where all rewards are equal."""


@dataclass(frozen=True)
class Row:
    """One model call to learn from."""

    rollout_id: str
    group: int
    """Rollouts of the same task in the same iteration share it."""
    prompt: list[int]
    response: list[int]
    logprobs: list[float]
    """One for each token of the response, as it was when the token was sampled."""
    version: str
    """Of the weights that sampled the response."""
    reward: float
    """Of the whole rollout."""


def advantages(rows: Sequence[Row]) -> dict[str, float]:
    """Return rollout id → advantage; a rollout counts once, however many rows it has."""
    groups: defaultdict[int, dict[str, float]] = defaultdict(dict)
    for row in rows:
        groups[row.group][row.rollout_id] = row.reward
    found: dict[str, float] = {}
    for rewards in groups.values():
        values = np.array(list(rewards.values()))
        normalised = (values - values.mean()) / (values.std() + EPSILON)
        found |= dict(zip(rewards, normalised.tolist(), strict=True))
    return found


def self_check(policy: Policy, rows: Sequence[Row]) -> float:
    """Return the largest difference between a recorded log-probability and the same one computed now.

    Before the first update after sampling it is 0, if each row holds the tokens that were sampled, in their order,
    after the prompt that they were sampled from. A wrong id, prompt or order anywhere makes it large.
    """
    differences = [0.0]
    for row in rows:
        seen = view(row.prompt)
        for position, (token, recorded) in enumerate(zip(row.response, row.logprobs, strict=True)):
            differences.append(abs(policy.log_probabilities(seen, position)[token] - recorded))
    return float(max(differences))


class Learner:
    """Improves a policy from rows by gradient ascent.

    Args:
        policy: What learns; its weights are changed in place.
        passes: Steps on the same rows.
        step: Size of a step.
        clip: A token whose probability has grown by more than this, relative to when it was sampled, is not pushed
            up any further; nor down, if it has shrunk by more. 1 = at most doubled, since a right word that is
            still rare must become common within few iterations.
        curiosity: Weight of the entropy bonus.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        passes: int = 3,
        step: float = 40.0,
        clip: float = 1.0,
        curiosity: float = 0.07,
    ) -> None:
        self.policy = policy
        self.passes = passes
        self.step = step
        self.clip = clip
        self.curiosity = curiosity

    def learn(self, rows: Sequence[Row]) -> None:
        """Make the weights better by the rows of one iteration; they get a new version."""
        worth = advantages(rows)
        for _ in range(self.passes):
            for name, slope in self.gradient(rows, worth).items():
                self.policy.weights[name] += self.step * slope
        self.policy.version += 1

    def gradient(self, rows: Sequence[Row], worth: dict[str, float]) -> Weights:
        """Return the derivative of the objective with respect to the weights."""
        gradient = zeros()
        tokens = sum(len(row.response) for row in rows)
        for row in rows:
            seen, advantage = view(row.prompt), worth[row.rollout_id]
            for position, (token, old) in enumerate(zip(row.response, row.logprobs, strict=True)):
                now = self.policy.log_probabilities(seen, position)
                slope = self._slope(now, token, old, advantage) / tokens
                self.policy.add_gradient(gradient, seen, position, slope)
        return gradient

    def _slope(self, logprobs: Floats, token: int, old: float, advantage: float) -> Floats:
        """Return the derivative of one token's objective with respect to the logits at its position."""
        probabilities = np.exp(logprobs)
        entropy = -(probabilities * logprobs).sum()
        slope = -self.curiosity * probabilities * (logprobs + entropy)

        ratio = np.exp(logprobs[token] - old)
        clipped = ratio > 1 + self.clip if advantage > 0 else ratio < 1 - self.clip
        if not clipped:
            slope -= advantage * ratio * probabilities
            slope[token] += advantage * ratio
        return np.asarray(slope)
