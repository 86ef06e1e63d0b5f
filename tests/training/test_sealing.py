"""Trainers get complete attempts only, and a reason for each that is not."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import openai
import pytest

from agentlightning import emit_reward
from agentlightning.codec.token_ids import TokenIds
from agentlightning.dialects.model_call import VALID, Choice, ModelCall, invalid
from agentlightning.dialects.spans.genai import call_attributes
from agentlightning.rows import RowPolicy
from agentlightning.semconv import AGL_ANNOTATION
from agentlightning.store import InMemoryLightningStore, LightningStore, SqliteLightningStore
from agentlightning.testing import FaultyStore, wait_until
from agentlightning.testing.fake_openai import Answer, FakeOpenAI
from agentlightning.testing.values import account_of, span_of
from agentlightning.tracer import OtelTracer
from agentlightning.training import RefusedAttempt, SealedAttempt, seal, wait_sealed
from agentlightning.types import Attempt, AttemptedRollout, AttemptStatus, Receipt, Span

PATIENCE = 20.0
FOR_THE_CALL = {
    "agentlightning.link.0.key_match": "agentlightning.endpoint",
    "agentlightning.link.0.value_match": "http://policy/v1",
}


def call(rollout: AttemptedRollout, verdict: str = VALID) -> Span:
    """Make a model call that sampled two tokens."""
    choice = Choice(token_ids=(3, 4), logprobs=(-0.5, -0.25), token_capture=verdict)
    record = ModelCall(
        endpoint="http://policy/v1",
        prompt_token_ids=(1, 2),
        choices=(choice,),
        token_capture=verdict,
        sampling_effective={"temperature": 1.0},
    )
    return span_of(rollout, "chat policy", attributes=call_attributes(record))


def reward(rollout: AttemptedRollout, value: float, **attributes: Any) -> Span:
    """Make a reward."""
    named = {"agentlightning.reward.0.name": "primary", "agentlightning.reward.0.value": value}
    return span_of(rollout, AGL_ANNOTATION, attributes={**named, **attributes})


async def attempt(
    store: LightningStore, spans: list[Any], status: AttemptStatus = "succeeded"
) -> AttemptedRollout:
    """Make an attempt of these spans, each made for its rollout, which then ends."""
    rollout = await store.start_rollout("x", metadata={"group_id": "g"})
    await store.add_many_spans([make(rollout) for make in spans])
    await store.update_attempt(rollout.rollout_id, "latest", status=status)
    return rollout


@pytest.mark.asyncio
async def test_a_complete_attempt_is_sealed_and_read_as_it_was_sealed(store: LightningStore) -> None:
    rollout = await attempt(store, [call, lambda of: reward(of, 0.5)])
    batch = await wait_sealed(store, [rollout.rollout_id], timeout=PATIENCE)

    (sealed,) = batch.sealed
    assert sealed.attempt.seal is not None
    await store.add_many_spans([call(rollout), reward(rollout, 1.0)])  # too late
    again = await seal(store, rollout.rollout_id)
    assert isinstance(again, SealedAttempt)
    assert again.spans == sealed.spans
    (row,) = again.rows()
    assert (row.token_ids, row.reward, row.group_id) == ((1, 2, 3, 4), 0.5, "g")


@pytest.mark.parametrize(
    ("spans", "code"),
    [
        pytest.param([call], "no_reward", id="no reward"),
        pytest.param([call, lambda of: reward(of, float("nan"))], "reward_unscored", id="NaN"),
        pytest.param([lambda of: reward(of, 1.0)], "no_model_calls", id="no call"),
        pytest.param(
            [lambda of: call(of, invalid("response_length")), lambda of: reward(of, 1.0)],
            "token_capture_invalid",
            id="tokens disagree",
        ),
        pytest.param(
            [call, lambda of: reward(of, 1.0, **FOR_THE_CALL)],
            "step_rewards_only",
            id="a reward for a call only",
        ),
        pytest.param(
            [
                call,
                lambda of: reward(of, 1.0),
                lambda of: reward(
                    of,
                    1.0,
                    **{
                        "agentlightning.link.0.key_match": "gen_ai.response.id",
                        "agentlightning.link.0.value_match": "nobody",
                    },
                ),
            ],
            "reward_unknown_target",
            id="a reward for nobody",
        ),
    ],
)
@pytest.mark.asyncio
async def test_an_attempt_that_is_not_complete_comes_with_the_reason(
    store: LightningStore, spans: list[Any], code: str
) -> None:
    rollout = await attempt(store, spans)
    batch = await wait_sealed(store, [rollout.rollout_id], timeout=PATIENCE)

    assert batch.sealed == ()
    (refused,) = batch.refused
    assert code in refused.codes
    assert batch.counts[code] == 1
    assert refused.attempt is not None
    assert refused.attempt.seal is None


@pytest.mark.asyncio
async def test_one_call_that_cannot_be_trusted_costs_the_attempt_its_own_tokens_alone(
    store: LightningStore,
) -> None:
    rollout = await attempt(
        store, [lambda of: call(of, invalid("response_length")), call, lambda of: reward(of, 1.0)]
    )

    found = await seal(store, rollout.rollout_id)

    assert isinstance(found, SealedAttempt)
    assert [row.token_ids for row in found.rows()] == [(1, 2, 3, 4)]
    assert found.rows().counts == {"response_length": 1}


@pytest.mark.asyncio
async def test_rewards_of_single_answers_are_enough_for_a_trainer_that_takes_them(
    store: LightningStore,
) -> None:
    spans = [call, lambda of: reward(of, 0.25, **FOR_THE_CALL)]
    rollout = await attempt(store, spans)
    unscored = await attempt(store, [*spans, lambda of: reward(of, float("nan"), **FOR_THE_CALL)])

    found = await seal(store, rollout.rollout_id, reward="steps")
    refused = await seal(store, unscored.rollout_id, reward="steps")

    assert isinstance(found, SealedAttempt)
    (row,) = found.rows()
    assert (row.reward, [step.value for step in row.segments[0].rewards]) == (None, [0.25])
    assert isinstance(refused, RefusedAttempt)
    assert refused.codes == ("reward_unscored",)


@pytest.mark.asyncio
async def test_the_absence_of_a_reward_can_be_declared(store: LightningStore) -> None:
    rollout = await attempt(store, [call])

    assert isinstance(await seal(store, rollout.rollout_id), RefusedAttempt)
    assert isinstance(await seal(store, rollout.rollout_id, reward="optional"), SealedAttempt)


@pytest.mark.asyncio
async def test_a_policy_that_trains_nothing_refuses(store: LightningStore) -> None:
    rollout = await attempt(store, [call, lambda of: reward(of, 1.0)])
    found = await seal(store, rollout.rollout_id, policy=RowPolicy(agent_match="planner"))

    assert isinstance(found, RefusedAttempt)
    assert "other_agent" in found.codes


@pytest.mark.asyncio
async def test_each_rollout_is_in_exactly_one_place_in_the_order_that_was_asked_for(
    store: LightningStore,
) -> None:
    good = [await attempt(store, [call, lambda of: reward(of, 1.0)]) for _ in range(3)]
    bad = await attempt(store, [call])
    running = await store.start_rollout("x")
    cancelled = await store.enqueue_rollout("x")
    await store.update_rollout(cancelled.rollout_id, status="cancelled")
    wanted = [
        running.rollout_id,
        good[2].rollout_id,
        bad.rollout_id,
        good[0].rollout_id,
        cancelled.rollout_id,
    ]
    batch = await wait_sealed(store, wanted, timeout=0.05)

    assert [each.rollout.rollout_id for each in batch.sealed] == [wanted[1], wanted[3]]
    assert [each.rollout.rollout_id for each in batch.refused] == [wanted[2], wanted[4]]
    assert batch.unfinished == (running.rollout_id,)


@pytest.mark.asyncio
async def test_it_waits_for_spans_that_are_under_way_and_not_for_ever(store: LightningStore) -> None:
    rollout = await store.start_rollout("x")
    working = account_of(rollout, "elsewhere:1:1:1", revision=1, started=2, closed=False)
    await store.add_many_spans([call(rollout), reward(rollout, 1.0)], accounts=[working])
    await store.update_attempt(rollout.rollout_id, "latest", status="succeeded")

    refused = await wait_sealed(store, [rollout.rollout_id], settle=0.1)
    assert refused.counts == {"not_sealable": 1}
    assert "under way" in refused.refused[0].reasons[0].sentence

    waiting = asyncio.create_task(wait_sealed(store, [rollout.rollout_id], settle=PATIENCE))
    done = account_of(rollout, "elsewhere:1:1:1", revision=2, started=3, closed=True)
    await store.add_many_spans([call(rollout)], accounts=[done])
    assert len((await waiting).sealed) == 1


class LateBatch(InMemoryLightningStore):
    """A store that gets the writer's last batch just before it is asked for a receipt."""

    def __init__(self) -> None:
        super().__init__()
        self.late: list[Span] = []

    async def get_receipt(self, rollout_id: str, attempt_id: str) -> Receipt:
        late, self.late = self.late, []
        if late:
            await self.add_many_spans(late)
        return await super().get_receipt(rollout_id, attempt_id)


class TriedAgain(InMemoryLightningStore):
    """Somebody tries the rollout again just when its attempt is sealed."""

    async def seal_attempt(self, rollout_id: str, attempt_id: str, **options: Any) -> Attempt:
        sealed = await super().seal_attempt(rollout_id, attempt_id, **options)
        await self.start_attempt(rollout_id)
        return sealed


@pytest.mark.asyncio
async def test_an_attempt_is_not_handed_out_as_the_last_where_its_rollout_was_tried_again() -> None:
    async with TriedAgain() as store:
        rollout = await attempt(store, [call, lambda to: reward(to, 0.0)], status="failed")
        batch = await wait_sealed(store, [rollout.rollout_id], timeout=PATIENCE)

        assert (batch.sealed, batch.refused, batch.unfinished) == ((), (), (rollout.rollout_id,))
        first, second = await store.query_attempts(rollout.rollout_id)
        assert first.seal is not None
        assert second.seal is None


@pytest.mark.asyncio
async def test_spans_of_a_sealed_attempt_have_lists_and_its_rows_are_made_of_packed_ids(
    tmp_path: Path,
) -> None:
    prompts = ([*range(2_000)], [*range(2_100)])

    def long_call(number: int, rollout: AttemptedRollout) -> Span:
        ids = {"agentlightning.prompt_token_ids": prompts[number]}
        return call(rollout).model_copy(update={"attributes": {**call(rollout).attributes, **ids}})

    async with SqliteLightningStore(tmp_path / "spans.db") as store:
        spans = [partial(long_call, 0), partial(long_call, 1), lambda of: reward(of, 1.0)]
        sealed = await seal(store, (await attempt(store, spans)).rollout_id)

    assert isinstance(sealed, SealedAttempt)
    first, second = [span.attributes["agentlightning.prompt_token_ids"] for span in sealed.packed_spans[:2]]
    assert (type(first), first.whole_buffer()) == (TokenIds, None)  # the bytes are those of the second
    assert [row.prompt_length for row in sealed.rows()] == [2_000, 2_100]
    assert list(sealed.spans) == list(sealed.packed_spans)
    assert [span.attributes["agentlightning.prompt_token_ids"] for span in sealed.spans[:2]] == [
        first,
        second,
    ]
    assert all(type(span.attributes["agentlightning.prompt_token_ids"]) is list for span in sealed.spans[:2])


@pytest.mark.asyncio
async def test_the_seal_names_why_answers_have_no_log_probabilities(store: LightningStore) -> None:
    rollout = await attempt(store, [call, lambda to: reward(to, 1.0)])
    sealed = await seal(store, rollout.rollout_id)

    assert isinstance(sealed, SealedAttempt)
    assert sealed.attempt.seal is not None
    assert sealed.attempt.seal.unproven == sealed.rows().unproven != {}
    assert sealed.attempt.seal.unproven.keys() == {code.code for code in sealed.unproven()}


@pytest.mark.asyncio
async def test_a_last_batch_that_lands_while_it_looks_is_not_missed() -> None:
    async with LateBatch() as store:
        rollout = await attempt(store, [call])
        store.late = [reward(rollout, 1.0)]
        batch = await wait_sealed(store, [rollout.rollout_id], settle=PATIENCE)
        assert batch.counts == {}
        assert [len(sealed.spans) for sealed in batch.sealed] == [2]


@pytest.mark.asyncio
async def test_what_another_trainer_seals_meanwhile_is_handed_out_as_it_was_sealed(
    store: LightningStore,
) -> None:
    rollouts = [await attempt(store, [call, lambda of: reward(of, 0.5)]) for _ in range(2)]
    wanted = [rollout.rollout_id for rollout in rollouts]
    slow = FaultyStore(store, only={"seal_attempt"})
    slow.hold()
    waiting = asyncio.create_task(wait_sealed(slow, wanted, settle=PATIENCE))
    await asyncio.to_thread(wait_until, lambda: slow.held == len(wanted), deadline=PATIENCE)
    await seal(store, wanted[0])
    await store.add_many_spans([reward(rollouts[0], 1.0)])  # too late
    slow.release()
    batch = await waiting
    assert [sealed.rollout.rollout_id for sealed in batch.sealed] == wanted
    assert [row.reward for sealed in batch.sealed for row in sealed.rows()] == [0.5, 0.5]


@pytest.fixture
def client() -> Iterator[openai.OpenAI]:
    """The real client of a model that shows its token ids."""
    answer = Answer.of("hello", prompt_token_ids=(5, 6), ids="always", logprobs="always")
    with FakeOpenAI(lambda _request: answer) as server, server.client() as opened:
        yield opened


def ask(client: openai.OpenAI) -> None:
    """Make a model call that can be trained on."""
    client.chat.completions.create(
        model="policy", messages=[{"role": "user", "content": "hi"}], temperature=1.0, top_p=1.0
    )


@pytest.mark.asyncio
async def test_what_the_tracer_records_is_sealed_as_soon_as_the_rollout_has_finished(
    store: LightningStore, tracer: OtelTracer, client: openai.OpenAI
) -> None:
    async def agent(value: float | None) -> str:
        rollout = await store.start_rollout("x")
        ids = {"rollout_id": rollout.rollout_id, "attempt_id": rollout.attempt.attempt_id}
        async with tracer.trace_context("agent", store=store, **ids):
            await asyncio.to_thread(ask, client)
            if value is not None:
                emit_reward(value)
        await store.update_attempt(rollout.rollout_id, "latest", status="succeeded")
        return rollout.rollout_id

    rollout_ids = [await agent(1.0), await agent(None)]
    batch = await wait_sealed(store, rollout_ids, timeout=PATIENCE)

    assert [each.rollout.rollout_id for each in batch.sealed] == rollout_ids[:1]
    assert batch.counts == {"no_reward": 1}
