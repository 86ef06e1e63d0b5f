"""Rows of spans that were read packed: they are those of lists, and on the way to them no list of ids is made."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentlightning.codec.token_ids import TokenIds
from agentlightning.dialects.model_call import VALID, Choice, ModelCall
from agentlightning.dialects.spans.genai import call_attributes
from agentlightning.rows import build_rows
from agentlightning.store import SqliteLightningStore
from agentlightning.testing import span_of

PROMPT = "agentlightning.prompt_token_ids"


@pytest.mark.asyncio
async def test_rows_are_made_of_the_very_ids_that_were_read(tmp_path: Path) -> None:
    conversation = [*range(2_000)]
    async with SqliteLightningStore(tmp_path / "spans.db") as store:
        rollout = await store.start_rollout("task")
        for number in range(4):
            answer = tuple(range(number * 100, number * 100 + 20))
            call = ModelCall(
                prompt_token_ids=tuple(conversation),
                choices=(Choice(token_ids=answer, token_capture=VALID),),
                token_capture=VALID,
                sampling_effective={"temperature": 1.0},
            )
            attributes = call_attributes(call)
            await store.add_span(span_of(rollout, start_time=float(number), attributes=attributes))
            conversation += [*answer, 7, 8, 9]
        lists = await store.query_spans(rollout.rollout_id)
        packed = await store.query_spans(rollout.rollout_id, packed=True)

    (row,) = rows = build_rows(packed)
    (expected,) = build_rows(lists)
    assert (row.token_ids, row.loss_mask) == (expected.token_ids, expected.loss_mask)
    assert row.token_ids == tuple(conversation[:-3])
    records = [decision.call.record for decision in rows.decisions]
    for span, record in zip(packed[:-1], records[:-1], strict=True):
        assert record is not None
        assert record.prompt_token_ids is span.attributes[PROMPT]
    longest = records[-1] and records[-1].prompt_token_ids
    assert isinstance(longest, TokenIds)
    assert longest.whole_buffer() is packed[-1].attributes[PROMPT].whole_buffer()
