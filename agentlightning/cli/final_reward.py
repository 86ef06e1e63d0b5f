"""The final reward of an attempt, from its newest spans: it is given near the end, so the others need not be read."""

from __future__ import annotations

from typing import NamedTuple

from ..rows.rewards import find_final_reward
from ..store.base import LightningStore
from ..store.primitives import newest_spans, packed_spans

_NEWEST = 8
"""So many are read first. The root span ends last, and a reward is mostly given right before."""


class FinalReward(NamedTuple):
    """What an attempt was worth, and how many spans it has."""

    value: float | None
    """``None`` where it has none, or is unscored."""
    spans: int


async def final_reward(store: LightningStore, rollout_id: str, attempt_id: str = "latest") -> FinalReward:
    """Return what ``find_final_reward`` finds among all spans of an attempt."""
    newest = await newest_spans(store, rollout_id, attempt_id, _NEWEST)
    total = getattr(newest, "total", None)
    if total is not None:
        is_all = total <= len(newest)
        # A store keeps the numbers that it is given: behind the page, others may stand that are equal to its last.
        in_order = sorted(newest, key=lambda span: span.sequence_id)
        value = find_final_reward(
            [span for span in in_order if is_all or span.sequence_id > in_order[0].sequence_id]
        )
        if is_all or value is not None:
            return FinalReward(value, total)
    spans = await packed_spans(store, rollout_id, attempt_id)
    return FinalReward(find_final_reward(spans), len(spans))
