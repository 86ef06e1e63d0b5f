"""Rewards that come later, from other processes; and what a trainer hands back."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from agentlightning.dialects.model_call import VALID, Choice, ModelCall
from agentlightning.dialects.spans.genai import call_attributes
from agentlightning.errors import (
    AlreadySealed,
    AttemptNotFound,
    MisalignedWriteBack,
    RewardTargetNotFound,
    RolloutNotFound,
)
from agentlightning.rows import TrainingRow, build_rows, reward_target
from agentlightning.rows.write_back import read_write_backs
from agentlightning.store import LightningStore, open_store
from agentlightning.testing.values import span_of
from agentlightning.training import SealedAttempt, add_reward, seal, write_back
from agentlightning.types import AttemptedRollout, Span


def call(rollout: AttemptedRollout, prompt: tuple[int, ...], start: float, response_id: str) -> Span:
    """Make a model call with two choices of two tokens."""
    choices = tuple(
        Choice(index=index, token_ids=(3 + index, 4), logprobs=(-0.5, -0.25), token_capture=VALID)
        for index in range(2)
    )
    record = ModelCall(
        prompt_token_ids=prompt,
        choices=choices,
        token_capture=VALID,
        response_id=response_id,
        sampling_effective={"temperature": 1.0},
    )
    times = {"start_time": start, "end_time": start + 0.5}
    return span_of(rollout, "chat", attributes=call_attributes(record), **times)


async def two_calls(store: LightningStore) -> AttemptedRollout:
    """Make an attempt of two calls that are alone: four rows."""
    rollout = await store.start_rollout("x")
    await store.add_many_spans([call(rollout, (1, 2), 1.0, "r1"), call(rollout, (7, 8), 2.0, "r2")])
    return rollout


async def rows_of(store: LightningStore, rollout: AttemptedRollout) -> Any:
    return build_rows(await store.query_spans(rollout.rollout_id))


@pytest.mark.asyncio
async def test_a_reward_without_a_target_is_the_outcome_of_every_row(store: LightningStore) -> None:
    rollout = await two_calls(store)
    await add_reward(store, rollout.rollout_id, {"quality": 0.1, "cost": -2.0}, primary_key="quality")
    rows = await rows_of(store, rollout)

    assert [row.reward for row in rows] == [0.1] * 4
    assert rows[0].rewards == {"quality": 0.1, "cost": -2.0}


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        pytest.param({"response_id": "r2"}, [[], [], [None], [None]], id="call"),
        pytest.param({"response_id": "r1", "choice": 1}, [[], [None], [], []], id="choice"),
        pytest.param(
            {"response_id": "r1", "choice": 0, "tokens": (1, 2)}, [[(1, 2)], [], [], []], id="tokens"
        ),
    ],
)
@pytest.mark.asyncio
async def test_a_reward_stands_on_its_target_and_nowhere_else(
    store: LightningStore, target: dict[str, Any], expected: Any
) -> None:
    rollout = await two_calls(store)
    await add_reward(store, rollout.rollout_id, 0.5, target=reward_target(**target), source="judge")
    rows = await rows_of(store, rollout)

    found = [[step.tokens for segment in row.segments for step in segment.rewards] for row in rows]
    assert found == expected
    assert [row.reward for row in rows] == [None] * 4
    assert rows.unknown_rewards == ()


@pytest.mark.parametrize(
    "target",
    [
        pytest.param({"response_id": "nobody"}, id="call"),
        pytest.param({"response_id": "r1", "choice": 0, "tokens": (1, 3)}, id="tokens"),
        pytest.param({"response_id": "r1", "tokens": (0, 1)}, id="tokens of which choice"),
        pytest.param({"response_id": "r1", "choice": 5, "tokens": (0, 1)}, id="choice"),
    ],
)
@pytest.mark.asyncio
async def test_a_reward_for_what_is_not_there_is_refused_and_not_written(
    store: LightningStore, target: dict[str, Any]
) -> None:
    rollout = await two_calls(store)
    before = await store.query_spans(rollout.rollout_id)
    with pytest.raises(RewardTargetNotFound):
        await add_reward(store, rollout.rollout_id, 0.5, target=reward_target(**target))
    assert await store.query_spans(rollout.rollout_id) == before


@pytest.mark.asyncio
async def test_bad_rewards_and_unknown_attempts_are_refused(store: LightningStore) -> None:
    rollout = await two_calls(store)
    with pytest.raises(RolloutNotFound):
        await add_reward(store, "ro-unknown", 1.0)
    with pytest.raises(AttemptNotFound):
        await add_reward(store, rollout.rollout_id, 1.0, attempt_id="at-unknown")
    with pytest.raises(TypeError, match="float"):
        await add_reward(store, rollout.rollout_id, "good")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="primary_key"):
        await add_reward(store, rollout.rollout_id, {"a": 1.0})


@pytest.mark.asyncio
async def test_a_sealed_attempt_takes_no_reward_and_takes_a_hand_back(store: LightningStore) -> None:
    rollout = await two_calls(store)
    once = {"span_id": "ab" * 8, "source": "bench"}
    await add_reward(store, rollout.rollout_id, 1.0, **once)  # type: ignore[arg-type]
    await add_reward(store, rollout.rollout_id, 1.0, **once)  # type: ignore[arg-type]
    await store.update_attempt(rollout.rollout_id, "latest", status="succeeded")
    sealed = await seal(store, rollout.rollout_id)
    assert isinstance(sealed, SealedAttempt)
    assert len(sealed.spans) == 3

    with pytest.raises(AlreadySealed):
        await add_reward(store, rollout.rollout_id, 2.0)
    row = sealed.rows()[0]
    for _ in range(2):
        await write_back(
            store,
            row,
            run_id="run",
            step=3,
            token_ids=row.token_ids,
            advantages=0.5,
            logprobs=[9, 9, -0.4, -0.3],
        )
    spans = await store.query_spans(rollout.rollout_id)
    (back,) = read_write_backs(spans)
    assert (back.call, back.choice, back.step) == (row.segments[0].span_id, 0, 3)
    assert (back.token_ids, back.mask) == ((3, 4), (1, 1))
    assert (back.advantages, back.logprobs) == ((0.5, 0.5), (-0.4, -0.3))
    again = await seal(store, rollout.rollout_id)
    assert isinstance(again, SealedAttempt)
    assert again.rows() == sealed.rows()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param({"token_ids": [1, 2, 3, 5]}, "token 4 at 3, 5 was handed back", id="another token"),
        pytest.param({"token_ids": [1, 2, 3]}, "4 tokens, 3", id="a token short"),
        pytest.param({"advantages": [0.0, 0.0, 1.0]}, "3 entries for 4", id="an advantage short"),
        pytest.param(
            {"advantages": [0.0, 0.0, 1.0, None]}, "None for the trained token at 3", id="no number"
        ),
        pytest.param({"logprobs": [0.0, 0.0, float("nan"), -1.0]}, "nan for the trained token", id="NaN"),
        pytest.param({"mask": [0, 1, 1, 1]}, "the token at 1", id="trains context"),
        pytest.param({"mask": [0, 1]}, "2 entries for 4", id="mask short"),
    ],
)
@pytest.mark.asyncio
async def test_a_hand_back_that_does_not_fit_is_refused_and_not_written(
    store: LightningStore, change: dict[str, Any], words: str
) -> None:
    rollout = await two_calls(store)
    row: TrainingRow = (await rows_of(store, rollout))[0]
    given: dict[str, Any] = {"token_ids": row.token_ids, "advantages": 1.0, **change}
    with pytest.raises(MisalignedWriteBack, match=words):
        await write_back(store, row, run_id="run", step=0, **given)
    assert len(await store.query_spans(rollout.rollout_id)) == 2


OTHER_PROCESS = """
import asyncio, sys
from agentlightning.store import open_store
from agentlightning.training import add_reward

async def main(url, rollout_id):
    async with open_store(url) as store:
        await add_reward(store, rollout_id, 0.1, source="elsewhere")

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.asyncio
async def test_a_reward_comes_from_another_process(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'store.db'}"
    async with open_store(url) as store:
        rollout = await two_calls(store)
        await store.update_attempt(rollout.rollout_id, "latest", status="succeeded")
        command = [sys.executable, "-c", OTHER_PROCESS, url, rollout.rollout_id]
        await asyncio.to_thread(subprocess.run, command, check=True, timeout=60)
        rows = await rows_of(store, rollout)
    found: float | None = rows[0].reward
    assert found == 0.1
