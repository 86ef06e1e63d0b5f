"""What the newest rollouts of a store earned, by time and by the version of the weights, and why calls were refused."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..rows import RowPolicy, build_rows, explain_rows
from ..rows.reasons import explained
from ..rows.rewards import find_final_reward
from ..store.base import LightningStore
from ..store.primitives import packed_spans
from ..store.sealing import resources_of
from ..types import Rollout
from . import output

BLOCKS = "▁▂▃▄▅▆▇█"
"""Eight heights of a column; ``·`` stands where no rollout was scored, which is not 0."""
NOTHING = "·"
UNKNOWN = "unknown"


@dataclass
class Outcomes:
    """Some rollouts, the oldest first."""

    rewards: list[float | None] = field(default_factory=list)
    by_version: dict[str, list[float]] = field(default_factory=dict)
    """Newest version of the weights that a rollout's rows were sampled by → rewards of those that were scored."""
    refused: Counter[str] = field(default_factory=Counter)
    """Code → model calls that give no row because of it."""
    calls: int = 0

    def as_json(self) -> dict[str, Any]:
        """Return the outcomes as a JSON value."""
        return {
            "rewards": self.rewards,
            "by_version": {
                version: {"rollouts": len(rewards), "mean": output.mean(rewards)}
                for version, rewards in self.by_version.items()
            },
            "calls": self.calls,
            "refused": {
                code: {"calls": count, "why": explained(code).sentence}
                for code, count in self.refused.items()
            },
        }


async def outcomes_of(store: LightningStore, rollouts: Sequence[Rollout], policy: RowPolicy) -> Outcomes:
    """Read the latest attempts of rollouts, which stand oldest first."""
    found = Outcomes()
    with output.progress(len(rollouts), "reading rollouts") as advance:
        for rollout in rollouts:
            spans = await packed_spans(store, rollout.rollout_id, "latest")
            resources = await resources_of(store, rollout)
            reward = find_final_reward(spans)
            found.rewards.append(reward)
            told = explain_rows(spans, policy, rollout=rollout, resources=resources)
            found.calls += len(told.calls)
            found.refused.update(told.skipped)
            rows = build_rows(spans, policy, rollout=rollout, resources=resources) if told.rows else []
            versions = [row.versions[1] for row in rows if row.versions is not None]
            if reward is not None and rows:
                name = str(max(versions)) if versions else UNKNOWN
                found.by_version.setdefault(name, []).append(reward)
            advance()
    return found


def columns(rewards: Sequence[float | None], width: int) -> list[float | None]:
    """Return mean rewards of at most ``width`` parts of equal size, in order; ``None`` where none was scored."""
    size = max(1, -(-len(rewards) // max(1, width)))
    means: list[float | None] = []
    for first in range(0, len(rewards), size):
        scored = [reward for reward in rewards[first : first + size] if reward is not None]
        means.append(output.mean(scored) if scored else None)
    return means


def drawn(means: Sequence[float | None]) -> str:
    """Return a column for each mean; the lowest is the lowest mean, the highest the highest."""
    known = [mean for mean in means if mean is not None]
    low, high = min(known, default=0.0), max(known, default=0.0)
    return "".join(NOTHING if mean is None else BLOCKS[_height(mean, low, high)] for mean in means)


def _height(value: float, low: float, high: float) -> int:
    if high <= low:  # all the same: neither low nor high
        return len(BLOCKS) // 2
    if math.isinf(high - low):
        value, low, high = value / 2, low / 2, high / 2
    return min(len(BLOCKS) - 1, int((value - low) / (high - low) * len(BLOCKS)))


def versions_in_order(by_version: Mapping[str, Sequence[float]]) -> list[str]:
    """Return the versions by number, then those that are none."""
    return sorted(
        by_version, key=lambda name: (not name.isdecimal(), int(name) if name.isdecimal() else 0, name)
    )
