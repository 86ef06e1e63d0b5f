"""The final reward that is read from the newest spans is the one that all spans say."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from agentlightning.cli.final_reward import FinalReward, final_reward
from agentlightning.rows.rewards import find_final_reward
from agentlightning.store import InMemoryLightningStore
from agentlightning.testing import span_of

spans = st.lists(
    st.tuples(st.sampled_from(["work"] * 6 + ["good", "bad", "none", "nan", "agentops"]), st.integers(1, 12)),
    max_size=24,
)
NAN = float("nan")
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "work": ("work", {}),
    "good": (
        "agentlightning.annotation",
        {"agentlightning.reward.0.name": "r", "agentlightning.reward.0.value": 1.0},
    ),
    "bad": (
        "agentlightning.annotation",
        {"agentlightning.reward.0.name": "r", "agentlightning.reward.0.value": 0.0},
    ),
    "nan": (
        "agentlightning.annotation",
        {"agentlightning.reward.0.name": "r", "agentlightning.reward.0.value": NAN},
    ),
    "none": ("agentlightning.reward", {"reward": None}),
    "agentops": ("score.task", {"agentops.task.output": '{"type": "reward", "value": 0.5}'}),
}


@given(spans, st.booleans())
@settings(max_examples=200)
def test_it_is_what_all_spans_say(made: list[tuple[str, int]], is_numbered: bool) -> None:
    async def check() -> None:
        async with InMemoryLightningStore() as store:
            at = await store.start_rollout("task")
            for kind, number in made:
                name, attributes = KINDS[kind]
                span = span_of(at, name, attributes=attributes)
                await store.add_span(span.model_copy(update={"sequence_id": number if is_numbered else 0}))
            every = await store.query_spans(at.rollout_id)
            assert await final_reward(store, at.rollout_id) == FinalReward(
                find_final_reward(every), len(made)
            )

    asyncio.run(check())
