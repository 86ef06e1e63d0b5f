"""From a chat on the wire to a Parquet file and back: not one id, log-probability or message changes."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import openai
import pyarrow.parquet
import pytest

from agentlightning.adapter import TracerTraceToTriplet
from agentlightning.cli import main
from agentlightning.dialects.spans.genai import read_call
from agentlightning.emitter import emit_reward
from agentlightning.rows.flat import triplet_of_row
from agentlightning.store import open_store
from agentlightning.testing.fake_openai import Answer, AnswerChoice, FakeOpenAI, Token
from agentlightning.tracer import OtelTracer

MESSAGES, IDS = 500, 20_000


def sampled(count: int) -> list[Token]:
    dice = random.Random(1)
    return [
        Token(text=f"t{number} ", id=dice.randrange(2**31), logprob=-dice.random()) for number in range(count)
    ]


@pytest.mark.asyncio
async def test_a_long_chat_arrives_bit_for_bit(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'store.db'}"
    tokens = sampled(IDS)
    prompt_ids = tuple(random.Random(2).randrange(2**31) for _ in range(IDS))
    messages: Any = [
        {"role": "user" if n % 2 == 0 else "assistant", "content": f"message {n} é"} for n in range(MESSAGES)
    ]
    answer = Answer(
        choices=(AnswerChoice(tuple(tokens)),), prompt_token_ids=prompt_ids, ids="always", logprobs="always"
    )
    async with open_store(url) as store:
        with FakeOpenAI(answer) as server, OtelTracer(endpoints=[server.endpoint]).lifespan(store) as tracer:
            async with openai.AsyncOpenAI(base_url=server.base_url, api_key="unused") as client:
                async with tracer.trace_context("long chat") as handle:
                    reply = await client.chat.completions.create(
                        model="policy",
                        messages=messages,
                        temperature=1.0,
                        top_p=1.0,
                        logprobs=True,
                    )
                    emit_reward(0.1)
        ids = handle.rollout_id, handle.attempt_id
        spans = await store.query_spans(*ids)
        assert (await store.get_receipt(*ids)).whole
    text = "".join(token.text for token in tokens)
    assert reply.choices[0].message.content == text

    (call,) = [found for found in map(read_call, spans) if found is not None]
    assert [message["content"] for message in call.request_messages] == [each["content"] for each in messages]
    assert call.token_capture == "valid"

    (triplet,) = TracerTraceToTriplet().adapt(spans)
    assert triplet.prompt["token_ids"] == list(prompt_ids)
    assert triplet.response["token_ids"] == [token.id for token in tokens]
    assert [entry["logprob"] for entry in triplet.response["logprobs"]] == [token.logprob for token in tokens]
    assert triplet.reward == 0.1

    target = tmp_path / "rows.parquet"
    export = ["export", "--store", url, "--what", "triplets", "-o", str(target)]
    assert await asyncio.to_thread(main, export) == 0
    (row,) = pyarrow.parquet.read_table(target).to_pylist()
    back = triplet_of_row(row)
    assert back.prompt["token_ids"] == triplet.prompt["token_ids"]
    assert back.response["token_ids"] == triplet.response["token_ids"]
    assert back.response["logprobs"] == triplet.response["logprobs"]
    assert back.reward == triplet.reward
