"""How far recorded log-probabilities are from recomputed ones: pure functions of two lists.

With ``r = exp(new - old)`` over tokens that were sampled by the old policy, the estimates of KL(old ‖ new) are those
of John Schulman, "Approximating KL Divergence" (2020, http://joschu.net/blog/kl-approx.html): k1 is the mean of
``-log r``, unbiased and of either sign; k3 is the mean of ``(r - 1) - log r``, unbiased and never negative.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

LARGEST_EXPONENT = 700.0
"""``exp`` of more overflows a float of 64 bits."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A token whose recorded and recomputed log-probability differ."""

    row: int
    """Index among the rows that were given."""
    position: int
    """In the row's token ids."""
    span_id: str
    """The span in which the token was sampled."""
    old: float
    """Recorded."""
    new: float
    """Recomputed."""

    @property
    def size(self) -> float:
        """Absolute difference, in nats; infinite where one of the two is no number."""
        return distance(self.old, self.new)


@dataclass(frozen=True, slots=True)
class Agreement:
    """Statistics over compared tokens, in nats where they have a unit."""

    tokens: int = 0
    """Trained tokens that were compared."""
    missing: int = 0
    """Trained tokens without a recorded log-probability."""
    differing: int = 0
    """Compared tokens whose difference is larger than the tolerance."""
    ratio: float = 1.0
    """Mean of the importance ratio ``exp(new - old)``."""
    k1: float = 0.0
    k3: float = 0.0
    mean_difference: float = 0.0
    """Mean of ``|new - old|``."""
    largest: Difference | None = None
    """``None`` where nothing was compared."""


def agreement(differences: Iterable[Difference], tolerance: float, missing: int = 0) -> Agreement:
    """Summarise tokens: each a :class:`Difference`, also where it is 0."""
    found = list(differences)
    if not found:
        return Agreement(missing=missing)
    # Infinities stay: a sampled token that the model thinks impossible must be seen in every mean.
    logs = [each.new - each.old for each in found]
    ratios = [ratio(log) for log in logs]
    return Agreement(
        tokens=len(found),
        missing=missing,
        differing=sum(each.size > tolerance for each in found),
        ratio=_mean(ratios),
        k1=_mean([-log for log in logs]),
        k3=_mean([one - 1.0 - log for one, log in zip(ratios, logs, strict=True)]),
        mean_difference=_mean([each.size for each in found]),
        largest=max(found, key=lambda each: each.size),
    )


def ratio(log: float) -> float:
    """Return ``exp(log)``, infinite where that is too large."""
    return math.exp(log) if log <= LARGEST_EXPONENT or math.isnan(log) else math.inf


def distance(one: float, other: float) -> float:
    """Return ``|one - other|``; infinite where one of the two is no finite number."""
    found = abs(one - other)
    return found if math.isfinite(found) else math.inf


def _mean(values: Sequence[float]) -> float:
    if not all(map(math.isfinite, values)):  # fsum refuses infinities of both signs
        return sum(values) / len(values)
    try:
        return math.fsum(values) / len(values)
    except OverflowError:
        return math.inf if sum(value > 0 for value in values) else -math.inf
