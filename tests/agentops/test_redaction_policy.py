"""``redaction``: what the store, the AgentOps server and the training rows hold under each policy."""

from __future__ import annotations

import json
import urllib.request
from typing import Any

import openai
import pytest

from agentlightning.errors import ConfigurationError
from agentlightning.pipeline import RedactionPolicy
from agentlightning.rows import build_rows
from agentlightning.store import LightningStore
from agentlightning.testing.agentops_server import AgentOpsServer
from agentlightning.testing.fake_openai import Answer, FakeOpenAI
from agentlightning.tracer import AgentOpsTracer, OtelTracer, Tracer

SECRET = "ada.lovelace@example.co.uk"
PLACES = {
    None: (True, False),
    "egress": (True, False),
    RedactionPolicy.INGEST: (False, False),
    "off": (True, True),
}
"""Policy → whether the store has the secret, and whether the server has it."""


def recorded(url: str) -> str:
    with urllib.request.urlopen(f"{url}/_recorded", timeout=120) as answer:
        return str(answer.read().decode())


async def one_call(tracer: Tracer, server: FakeOpenAI, store: LightningStore) -> list[Any]:
    """Let the root span and the model say the secret; return what is stored."""
    server.enqueue(Answer.of(f"write to {SECRET}", prompt_token_ids=(1, 2, 3), id="chatcmpl-1"))
    question: Any = [{"role": "user", "content": "whom?"}]
    async with openai.AsyncOpenAI(base_url=server.base_url, api_key="unused") as client:
        async with tracer.trace_context(f"ask {SECRET}") as handle:
            reply = await client.chat.completions.create(
                model="policy", messages=question, temperature=1.0, top_p=1.0
            )
            assert reply.choices[0].message.content == f"write to {SECRET}"
    return list(await store.query_spans(handle.rollout_id))


@pytest.mark.asyncio
@pytest.mark.parametrize("policy", PLACES)
async def test_a_secret_is_where_the_policy_lets_it(
    policy: Any, agentops_server: AgentOpsServer, fake_openai: FakeOpenAI, store: LightningStore
) -> None:
    options: Any = {"redaction": policy, "endpoints": [fake_openai.base_url], "capture_tokens": "request"}
    with AgentOpsTracer(server=agentops_server.manager, **options).lifespan(store) as tracer:
        spans = await one_call(tracer, fake_openai, store)
    agentops_server.wait_for_spans(2)
    stored = json.dumps([span.model_dump(mode="json") for span in spans])
    assert (SECRET in stored, SECRET in recorded(agentops_server.url)) == PLACES[policy]


@pytest.mark.asyncio
async def test_rows_are_the_same_byte_by_byte_unless_the_store_is_masked(
    fake_openai: FakeOpenAI, store: LightningStore
) -> None:
    rows = {}
    for policy in RedactionPolicy:
        options: Any = {"endpoints": [fake_openai.base_url], "capture_tokens": "request"}
        with OtelTracer(redaction=policy, **options).lifespan(store) as tracer:
            rows[policy] = build_rows(await one_call(tracer, fake_openai, store))
    assert [reason.code for reason in rows[RedactionPolicy.INGEST].reasons] == ["redacted"]
    off, egress = (
        [(row.token_ids, row.loss_mask, row.logprobs) for row in rows[policy]]
        for policy in (RedactionPolicy.OFF, RedactionPolicy.EGRESS)
    )
    assert len(off) == 1
    assert repr(off) == repr(egress)


def test_the_policy_is_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGL_REDACTION", "ingest")
    tracer = OtelTracer()
    with tracer.lifespan(), tracer.trace_context() as handle:
        handle.start_span(f"write to {SECRET}").end()
    assert SECRET not in repr(handle.spans())
    monkeypatch.setenv("AGL_REDACTION", "everywhere")
    with pytest.raises(ConfigurationError, match="egress, ingest, off, not 'everywhere'"):
        OtelTracer()
    with pytest.raises(ConfigurationError, match="not 'on'"):
        OtelTracer(redaction="on")
