"""What the tracer records of the agent's calls is what the engine sampled: ids, log-probabilities and versions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
import pytest_asyncio
from openai import AsyncOpenAI

from agentlightning import LLM, LightningStore, OtelTracer, emit_reward, find_final_reward, open_store
from agentlightning.dialects.distribution import unproven
from agentlightning.dialects.model_call import ModelCall
from agentlightning.dialects.raw_call import LogprobKind
from agentlightning.dialects.spans.genai import read_call

pytest.importorskip("torch", reason="needs pip install 'agentlightning-otel[trl]'")
pytest.importorskip("transformers", reason="needs pip install 'agentlightning-otel[trl]'")

from ..agent import OPEN, hunt
from ..engine import Engine
from ..model import call, make_model, make_tokenizer
from ..sampling import LogprobsMode
from ..task import Played, Task, all_tasks, score, split
from ..wire import Answer
from .scripted import scripted

TASK = Task((4, 7), "pearl")


class RememberingEngine(Engine):
    """Keeps what it has answered, to hold the record against it."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.answers: list[Answer] = []

    def end(self, answer: Answer) -> None:
        """Remember the answer."""
        super().end(answer)
        self.answers.append(answer)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return make_tokenizer()


@pytest_asyncio.fixture
async def store() -> AsyncIterator[LightningStore]:
    async with open_store("memory://") as opened:
        yield opened


def hunter(
    tokenizer: Any, *, keep_ids: bool = True, mode: LogprobsMode = "processed_logprobs"
) -> RememberingEngine:
    """Return an engine whose model opens box 4 or 7, or says pearl, as chance will have it."""
    model = scripted(tokenizer, call(4), call(7), "pearl")
    return RememberingEngine(model, tokenizer, keep_ids=keep_ids, logprobs_mode=mode)


def traced(engine: Engine, kind: LogprobKind = "processed") -> OtelTracer:
    endpoint = LLM(endpoint=engine.url, model=engine.name, sampling_defaults={}, logprob_kind=kind)
    return OtelTracer(capture_tokens="request", endpoints=[endpoint], max_wait_time=60_000)


async def recorded(
    engine: Engine, tracer: OtelTracer, store: LightningStore, seeds: Sequence[int], temperature: float = 1.0
) -> list[list[ModelCall]]:
    """Let the agent hunt once for each seed, all at the same time; return the recorded calls of each rollout."""

    async def rollout(client: AsyncOpenAI, seed: int) -> list[ModelCall]:
        started = await store.start_rollout({"path": TASK.path}, "train")
        rollout_id, attempt_id = started.rollout_id, started.attempt.attempt_id
        async with tracer.trace_context("hunt", rollout_id=rollout_id, attempt_id=attempt_id):
            played = await hunt(TASK.question, TASK.boxes, client, seed, temperature)
            emit_reward(score(played, TASK))
        receipt = await store.get_receipt(rollout_id, "latest")
        assert receipt.whole
        spans = await store.query_spans(rollout_id, "latest")
        assert find_final_reward(spans) == pytest.approx(score(played, TASK))
        return [found for span in spans if (found := read_call(span)) is not None]

    with tracer.lifespan(store):
        async with AsyncOpenAI(base_url=engine.url, api_key="none", max_retries=0) as client:
            return list(await asyncio.gather(*(rollout(client, seed) for seed in seeds)))


def tokens(calls: Sequence[ModelCall]) -> list[Any]:
    """Return everything that a record says of tokens, in an order of its own."""
    return sorted(
        (call.prompt_token_ids, choice.token_ids, choice.logprobs, choice.policy[0].version)
        for call in calls
        for choice in call.choices
    )


def sampled(engine: RememberingEngine) -> list[Any]:
    """Return the same of what the engine has sampled."""
    return sorted(
        (
            tuple(choice.prompt),
            tuple(choice.ids),
            tuple(token.logprob for token in choice.tokens),
            choice.tokens[0].version,
        )
        for answer in engine.answers
        for choice in answer.choices
    )


@pytest.mark.asyncio
async def test_the_record_holds_exactly_what_was_sampled(store: LightningStore, tokenizer: Any) -> None:
    with hunter(tokenizer) as engine:
        rollouts = await recorded(engine, traced(engine), store, range(8))
    calls = [each for rollout in rollouts for each in rollout]
    assert len(calls) == len(engine.answers)
    assert {len(rollout) for rollout in rollouts} == {1, 2, 3}
    assert tokens(calls) == sampled(engine)
    assert {each.token_capture for each in calls} == {"valid"}
    assert {unproven(each) for each in calls} == {None}
    assert {each.choices[0].finish_reason for each in calls} == {"stop", "tool_calls"}
    for rollout in rollouts:
        known: tuple[int, ...] = ()
        for each in rollout:
            assert each.prompt_token_ids is not None
            assert each.choices[0].token_ids is not None
            assert (*each.prompt_token_ids[: len(known)],) == known
            known = (*each.prompt_token_ids, *each.choices[0].token_ids)


@pytest.mark.asyncio
async def test_a_random_model_is_recorded_as_exactly(store: LightningStore, tokenizer: Any) -> None:
    with RememberingEngine(make_model(tokenizer, seed=1), tokenizer, version="5") as engine:
        rollouts = await recorded(engine, traced(engine), store, range(4), temperature=0.7)
    calls = [each for rollout in rollouts for each in rollout]
    assert tokens(calls) == sampled(engine)
    assert {each.token_capture for each in calls} == {"valid"}
    assert {unproven(each) for each in calls} == {None}


@pytest.mark.asyncio
async def test_raw_log_probabilities_are_known_as_such(store: LightningStore, tokenizer: Any) -> None:
    with hunter(tokenizer, mode="raw_logprobs") as engine:
        ((first, *_),) = await recorded(engine, traced(engine, "raw"), store, [0], temperature=0.7)
    assert first.token_capture == "valid"
    why = unproven(first)
    assert why is not None
    assert why.code == "temperature"


async def streamed(client: AsyncOpenAI, n: int) -> None:
    """Read a stream of ``n`` choices to its end; it shows nothing that was not asked for."""
    stream = await client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "box 4"}],
        tools=[OPEN],
        n=n,
        max_tokens=12,
        stream=True,
    )
    async for chunk in stream:
        assert "token_ids" not in chunk.model_dump_json()


@pytest.mark.asyncio
async def test_streams_are_recorded_as_plain_answers_are(store: LightningStore, tokenizer: Any) -> None:
    with RememberingEngine(make_model(tokenizer, seed=1), tokenizer) as engine:
        tracer = traced(engine)
        async with AsyncOpenAI(base_url=engine.url, api_key="none", max_retries=0) as client:
            with tracer.lifespan(store):
                async with tracer.trace_context("streams"):
                    for n in (1, 2):
                        await streamed(client, n)
                calls = [found for span in tracer.get_last_trace() if (found := read_call(span)) is not None]
    assert tokens(calls) == sampled(engine)
    assert {each.token_capture for each in calls} == {"valid"}
    assert {each.stream for each in calls} == {True}


# ------------------------------------------------------------------ the task


@pytest.mark.parametrize(
    ("played", "reward"),
    [
        (Played([4, 7], "pearl"), 1.0),
        (Played([4, 7], "ruby"), 0.6),
        (Played([4, 7]), 0.5),
        (Played([4], "pearl"), 0.75),
        (Played([4, 3], "nothing"), 0.125),
        (Played([3, 4], "ruby"), 0.1),
        (Played([], "pearl"), 0.5),
        (Played(), 0.0),
    ],
)
def test_a_reward_is_for_each_part_of_the_way(played: Played, reward: float) -> None:
    assert score(played, TASK) == pytest.approx(reward)


def test_no_task_is_trained_and_tested_on() -> None:
    train, test = split(seed=0)
    assert len(train) + len(test) == len(all_tasks()) == len({*train, *test})
    assert split(seed=0) == (train, test)
    assert split(seed=1) != (train, test)
