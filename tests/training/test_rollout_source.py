"""``rollout_source`` and ``rollout(seal=…)``: what an agent does is sealed, or refused with the reason; nothing is left open."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import aclosing
from typing import Any

import openai
import pytest

from agentlightning.errors import ContextArgumentsError
from agentlightning.store import InMemoryLightningStore, LightningStore
from agentlightning.testing import FakeOpenAI, FaultyStore
from agentlightning.tracer import OtelTracer
from agentlightning.training import RefusedAttempt, SealedAttempt, Sealing, rollout_source


@pytest.fixture
def client() -> Iterator[openai.OpenAI]:
    with FakeOpenAI() as model, model.client() as client:
        yield client


def ask(client: openai.OpenAI) -> None:
    client.chat.completions.create(
        model="policy",
        messages=[{"role": "user", "content": "a colour?"}],
        extra_body={"return_token_ids": True},
    )


async def statuses(store: LightningStore) -> list[str]:
    return [rollout.status for rollout in await store.query_rollouts()]


@pytest.mark.asyncio
async def test_a_rollout_is_sealed_before_the_next_line_or_refused_with_the_reason(
    tracer: OtelTracer, store: LightningStore, client: openai.OpenAI
) -> None:
    async with tracer.rollout("whole", group="7", seal=True) as whole:
        await asyncio.to_thread(ask, client)
        whole.reward(1.0)
    assert isinstance(whole.sealed, SealedAttempt)
    (row,) = whole.sealed.rows()
    assert (row.reward, row.group_id) == (1.0, "7")
    async with tracer.rollout("unscored", seal=True) as unscored:
        await asyncio.to_thread(ask, client)
    assert isinstance(unscored.sealed, RefusedAttempt)
    assert unscored.sealed.codes == ("no_reward",)
    async with tracer.rollout("declared", seal=Sealing(reward="optional")) as declared:
        await asyncio.to_thread(ask, client)
    assert isinstance(declared.sealed, SealedAttempt)

    def plain() -> Any:
        with tracer.rollout("in a thread", seal=Sealing(reward="optional")) as rollout:
            ask(client)
        return rollout.sealed

    assert isinstance(await asyncio.to_thread(plain), SealedAttempt)
    with pytest.raises(ContextArgumentsError, match="async with"), tracer.rollout("blocks", seal=True):
        pass
    assert await statuses(store) == ["succeeded"] * 4


@pytest.mark.asyncio
async def test_each_prompt_is_played_by_one_agent_that_cannot_fail_the_others(
    tracer: OtelTracer, store: LightningStore, client: openai.OpenAI
) -> None:
    def agent(prompt: str) -> float:
        ask(client)
        if prompt == "broken":
            raise ValueError("the agent's own")
        return 0.5

    source = rollout_source(agent, ["good", "broken"], store=store, tracer=tracer, group_size=2)
    played = [each async for each in source]
    sealed = [each for each in played if isinstance(each, SealedAttempt)]
    refused = [each for each in played if isinstance(each, RefusedAttempt)]
    assert [each.rollout.input for each in sealed] == ["good", "good"]
    assert len({row.group_id for each in sealed for row in each.rows()}) == 1
    assert {row.reward for each in sealed for row in each.rows()} == {0.5}
    assert [(each.rollout.input, each.codes) for each in refused] == [("broken", ("agent_failed",))] * 2
    assert all(each.attempt is not None and each.attempt.status == "failed" for each in refused)
    assert sorted(await statuses(store)) == ["failed", "failed", "succeeded", "succeeded"]


@pytest.mark.parametrize("closes", [True, False])
@pytest.mark.asyncio
async def test_a_loop_that_is_left_early_fails_no_rollout_and_leaves_none_running(
    tracer: OtelTracer, store: LightningStore, client: openai.OpenAI, closes: bool
) -> None:
    is_waiting = asyncio.Event()

    async def agent(prompt: str) -> float:
        if prompt == "waits":
            is_waiting.set()
            await asyncio.Event().wait()
        await is_waiting.wait()
        await asyncio.to_thread(ask, client)
        return 1.0

    source = rollout_source(agent, ["waits", "good"], store=store, tracer=tracer, group_size=1)
    if closes:
        async with aclosing(source):  # type: ignore[type-var]
            async for _ in source:
                break
    else:
        async for _ in source:
            break
        del source  # nobody closes it: the event loop does, in a task of its own
        others = asyncio.all_tasks() - {asyncio.current_task()}
        while others:
            await asyncio.wait(others)
            others = asyncio.all_tasks() - {asyncio.current_task()}
    assert sorted(await statuses(store)) == ["cancelled", "succeeded"]


@pytest.mark.asyncio
async def test_a_store_that_fails_is_no_failure_of_the_agent() -> None:
    async def agent(prompt: str) -> float:
        raise AssertionError("it has begun, though its rows can never be read")

    store = FaultyStore(InMemoryLightningStore())
    tracer = OtelTracer()
    with tracer.lifespan(store):
        store.fail_for_ever(lambda: OSError(28, "No space left on device"))
        source = rollout_source(agent, ["a"], store=store, tracer=tracer, group_size=1)
        with pytest.raises(OSError, match="No space left"):
            await anext(source)
        store.heal()
