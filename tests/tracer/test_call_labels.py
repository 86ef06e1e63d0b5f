"""What the agent's code says of its own calls reaches the rows."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from tracer_sample import new_attempt, read

from agentlightning import RowPolicy, build_rows, role, trainable
from agentlightning.rows import RowSet
from agentlightning.store import LightningStore
from agentlightning.testing.fake_openai import Answer, FakeOpenAI
from agentlightning.tracer import OtelTracer


@pytest.fixture
def client() -> Iterator[openai.OpenAI]:
    """The real client of a model that shows its token ids; each prompt has ids of its own."""
    asked = iter(range(100))

    def answer(_request: Any) -> Answer:
        number = next(asked)
        prompt_ids = number, 1
        return Answer.of(
            "yes", prompt_token_ids=prompt_ids, id=f"chatcmpl-{number}", ids="always", logprobs="always"
        )

    with FakeOpenAI(answer) as server, server.client() as opened:
        yield opened


def ask(client: openai.OpenAI) -> None:
    """Make one model call that can be trained on."""
    client.chat.completions.create(
        model="policy", messages=[{"role": "user", "content": "?"}], temperature=1.0, top_p=1.0
    )


async def rows_of(
    store: LightningStore, tracer: OtelTracer, client: openai.OpenAI, policy: RowPolicy
) -> RowSet:
    """Make five calls: the agent's, a judge's, one that is not to be trained, one inside that is, one on a thread."""
    rollout_id, attempt_id = await new_attempt(store)
    async with tracer.trace_context("calls", store=store, rollout_id=rollout_id, attempt_id=attempt_id):
        ask(client)
        with role("judge"):
            ask(client)
        with trainable(False):
            ask(client)
            with trainable():
                ask(client)
            await asyncio.to_thread(ask, client)
    return build_rows(await read(store, (rollout_id, attempt_id)), policy)


@pytest.mark.parametrize(
    ("policy", "codes"),
    [
        pytest.param(RowPolicy(), [None, "other_role", "untrainable", None, "untrainable"], id="default"),
        pytest.param(
            RowPolicy(roles={"judge"}),
            ["other_role", None, "untrainable", "other_role", "untrainable"],
            id="judge",
        ),
        pytest.param(RowPolicy(roles=None), [None, None, "untrainable", None, "untrainable"], id="all roles"),
    ],
)
def test_roles_and_trainable_scopes_decide_what_is_trained(
    store: LightningStore,
    tracer: OtelTracer,
    client: openai.OpenAI,
    policy: RowPolicy,
    codes: list[str | None],
) -> None:
    rows = asyncio.run(rows_of(store, tracer, client, policy))

    assert [decision.code for decision in rows.decisions] == codes
    assert len(rows) == codes.count(None)


def test_a_role_needs_a_name() -> None:
    with pytest.raises(ValueError, match="'judge'"), role(""):
        pass
