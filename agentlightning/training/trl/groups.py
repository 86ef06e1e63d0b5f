"""Rollouts of one task, gathered until all of them are there, and what each was worth among them."""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from ...errors import NotExportable
from ...exporters.checks import Weights, shares
from ...rows.advantage import AdvantageFunction, Formula, group_advantages
from ...rows.training import TrainingRow

OPEN_GROUPS = 1024
"""Groups that may be incomplete at a time; of more, the oldest goes on without those that are missing."""


@dataclass(slots=True)
class Group:
    """The rollouts of one task that have come."""

    number: int
    """In the order in which groups began, from 0."""
    rollouts: list[Sequence[TrainingRow]] = field(default_factory=list)
    """One per rollout; without rows where it was refused."""
    reasons: Counter[str] = field(default_factory=Counter)
    """Why rollouts of it train nothing: codes of those that were refused, and ``unscored``."""


class Groups:
    """Groups that wait for more rollouts."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._open: OrderedDict[str, Group] = OrderedDict()
        self._begun = 0

    def add(self, group_id: str, rows: Sequence[TrainingRow]) -> Group:
        """Put a rollout into its group, and return that."""
        group = self._open.get(group_id)
        # Numbered as they begin: TRL compares rows of one number.
        if group is None:
            group = self._open[group_id] = Group(self._begun)
            self._begun += 1
        group.rollouts.append(rows)
        return group

    def take_due(self, group_id: str) -> Group | None:
        """Return the group where it is complete; else the oldest, where too many are open; it is no longer here."""
        if len(self._open[group_id].rollouts) >= self.size:
            return self._open.pop(group_id)
        return self._open.popitem(last=False)[1] if len(self._open) > OPEN_GROUPS else None

    def take_all(self) -> Iterator[Group]:
        """Take out the groups that are left, the oldest first."""
        while self._open:
            yield self._open.popitem(last=False)[1]


@dataclass(frozen=True, slots=True)
class Scored:
    """What a rollout was worth, and its rows with the advantage of each."""

    reward: float | None
    """``None`` = unscored: it takes no part."""
    rows: Sequence[tuple[TrainingRow, float]]


@dataclass(frozen=True, slots=True)
class Scoring:
    """How rollouts of a group are compared; the arguments are those of ``TraceRolloutWorker``."""

    reward: Callable[[Sequence[TrainingRow]], float | None]
    advantage: Formula | str | AdvantageFunction
    weights: Weights

    def score(self, group: Group) -> tuple[list[Scored], float]:
        """Return each rollout that has rows, and the standard deviation (of the whole group) of the rewards."""
        rewards = [_finite(self.reward(rows)) if rows else None for rows in group.rollouts]
        formula = self.advantage
        advantages = formula(rewards) if callable(formula) else group_advantages(rewards, formula)
        found = []
        for rows, reward, advantage in zip(group.rollouts, rewards, advantages, strict=True):
            # A rollout without rows has nothing that could be unscored.
            if reward is None or advantage is None:
                found += [Scored(None, ())] if rows else []
                continue
            parts = zip(rows, shares(rows, self.weights), strict=True)
            found.append(Scored(reward, [(row, advantage * share) for row, share in parts]))
        return found, _spread([reward for reward in rewards if reward is not None])


def _finite(reward: float | None) -> float | None:
    return reward if reward is not None and math.isfinite(reward) else None


def _spread(rewards: Sequence[float]) -> float:
    if not rewards:
        return 0.0
    mean = math.fsum(rewards) / len(rewards)
    return math.sqrt(math.fsum((each - mean) ** 2 for each in rewards) / len(rewards))


class NothingToTrain(NotExportable):
    """None of the last rollouts could be trained; errors of a source may be a ``NotExportable``, too."""


class Barren:
    """Counts rollouts since the last group that could be trained: TRL would wait for a row without end."""

    def __init__(self, give_up_after: int | None) -> None:
        self._limit = math.inf if give_up_after is None else give_up_after
        self._rollouts = 0
        self._reasons: Counter[str] = Counter()

    def note(self, group: Group, *, trained: bool) -> None:
        """Take note of a group that is done with.

        Raises:
            NothingToTrain: That makes too many that gave nothing.
        """
        if trained:
            self._rollouts, self._reasons = 0, Counter()
            return
        self._reasons.update(group.reasons)
        self._rollouts += len(group.rollouts)
        if self._rollouts >= self._limit:
            raise NothingToTrain(
                f"none of the last {self._rollouts} rollouts can be trained: {dict(self._reasons)}"
            )
