"""Advantages: how much better a rollout was than the others of its group, by the formula of each trainer.

Rewards are the primary fact, and rows hold no advantage: trainers disagree on the formula. Where a target wants one,
it is computed here, per rollout, and every row of the rollout has the same. Unscored rollouts take no part in any
mean or deviation, and have no advantage (``None``); they are never counted as 0.

Formulas, with ``m`` the mean and ``s`` the standard deviation of the scored rewards of a group:

=========== ============================== ============= =============================================================
name        advantage                      group of one  source
=========== ============================== ============= =============================================================
trl         (r - m) / (s + 1e-4), n - 1    0             TRL 1.16, ``GRPOTrainer``, ``scale_rewards="group"``
trl_async   (r - m) / (s + 1e-8), n        0             TRL 1.16, ``AsyncGRPOTrainer``
verl        (r - m) / (s + 1e-6), n - 1    r / (1+1e-6)  verl 0.9.1, ``compute_grpo_outcome_advantage``
center      r - m                          0             Tinker cookbook 0.6, ``compute_advantages``; Dr. GRPO
art         (r - m) / (s + 1e-6), n        0             ART 0.5.18
=========== ============================== ============= =============================================================

"n - 1" and "n" are the divisors of the deviation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

from .training import TrainingRow


class Formula(str, Enum):
    """How a trainer computes advantages; see the module's table."""

    TRL = "trl"
    TRL_ASYNC = "trl_async"
    VERL = "verl"
    CENTER = "center"
    ART = "art"


@dataclass(frozen=True, slots=True)
class _Scale:
    epsilon: float
    lost: int
    """Degrees of freedom that the deviation loses: its divisor is n - ``lost``."""


_SCALES = {
    Formula.TRL: _Scale(1e-4, 1),
    Formula.TRL_ASYNC: _Scale(1e-8, 0),
    Formula.VERL: _Scale(1e-6, 1),
    Formula.ART: _Scale(1e-6, 0),
}

_LARGEST = 1e100

AdvantageFunction = Callable[[Sequence[float | None]], Sequence[float | None]]
"""Rewards of one group, one per rollout, ``None`` = unscored → advantages in the same order."""


def group_advantages(
    rewards: Sequence[float | None], formula: Formula | str = Formula.TRL
) -> list[float | None]:
    """Return the advantages of one group.

    Args:
        rewards: One per rollout; ``None`` = unscored, and so are NaN and infinities.
        formula: See the module's table.

    Raises:
        ValueError: There is no such formula.
    """
    formula = Formula(formula)
    # Unscored rollouts are no failures: as 0 they would lower the baseline of their group.
    scored = [float(reward) for reward in rewards if reward is not None and math.isfinite(reward)]
    if not scored:
        return [None] * len(rewards)
    unit = max(1.0, max(map(abs, scored)) / _LARGEST)  # the squares of larger ones are no floats
    small = [reward / unit for reward in scored]
    mean = math.fsum(small) / len(small)
    scale = _SCALES.get(formula)
    divisor = 1.0 / unit
    if scale is not None and len(small) > 1:
        squares = math.fsum((reward - mean) ** 2 for reward in small)
        divisor = math.sqrt(squares / (len(small) - scale.lost)) + scale.epsilon / unit
    elif formula is Formula.VERL:
        mean, divisor = 0.0, (1.0 + _SCALES[formula].epsilon) / unit  # it takes 0 and 1 for a group of one
    return [
        None if reward is None or not math.isfinite(reward) else (reward / unit - mean) / divisor
        for reward in rewards
    ]


def row_advantages(
    rows: Iterable[TrainingRow],
    formula: Formula | str | AdvantageFunction = Formula.TRL,
    *,
    without_rows: Iterable[tuple[str, float | None]] = (),
) -> list[float | None]:
    """Return the advantage of each row: that of its rollout among the rollouts of its group.

    How many rows a rollout has changes nothing. ``None`` = unscored.

    Args:
        rows: Rows of whole groups.
        formula: See the module's table; or a function of the rewards of one group.
        without_rows: Group and reward of further rollouts, which count in the baseline and give no row.

    Raises:
        ValueError: A row has no group: put ``metadata={"group_id": …}`` on its rollout.
    """
    given = list(rows)
    groups: dict[str, dict[tuple[str, str], float | None]] = {}
    for row in given:
        if row.group_id is None:
            raise ValueError(
                f"rollout {row.rollout_id} has no group: enqueue it with metadata={{'group_id': …}}, the same "
                "for all samples of one task"
            )
        # By rollout, so that one with several rows counts once.
        groups.setdefault(row.group_id, {})[row.rollout_id, row.attempt_id] = row.reward
    for number, (group_id, reward) in enumerate(without_rows):
        groups.setdefault(group_id, {})["", str(number)] = reward
    found: dict[tuple[str, tuple[str, str]], float | None] = {}
    for group_id, rewards in groups.items():
        values = list(rewards.values())
        own = formula(values) if callable(formula) else group_advantages(values, formula)
        found |= {(group_id, unit): value for unit, value in zip(rewards, own, strict=True)}
    return [found[str(row.group_id), (row.rollout_id, row.attempt_id)] for row in given]
