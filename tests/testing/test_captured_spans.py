"""A live list of a store's spans: it says what is stored at each look, from anywhere."""

from __future__ import annotations

import asyncio
import re

import pytest

from agentlightning.store import LightningStore
from agentlightning.testing import CapturedSpans, span_of


@pytest.mark.asyncio
async def test_each_look_reads_anew_also_in_a_running_loop(store: LightningStore) -> None:
    spans = CapturedSpans(store)
    assert spans == []
    assert repr(spans) == "<captured spans: none>"
    first, second = await store.start_rollout("a"), await store.start_rollout("b")
    await store.add_many_spans([span_of(second, "late"), span_of(first, "one"), span_of(first, "two")])
    assert [span.name for span in spans] == ["one", "two", "late"]
    assert len(spans) == 3
    assert spans[-1].name == "late"
    assert [span.name for span in spans[:2]] == ["one", "two"]
    assert spans == list(spans)
    assert spans != spans[:2]
    assert spans != "one"
    assert spans.named("two") == [spans[1]]
    assert repr(spans) == "<captured spans: one, two, late>"


def test_model_calls_and_rows_are_those_of_the_recorded_calls(store: LightningStore) -> None:
    attempt = asyncio.run(store.start_rollout("a"))
    call = span_of(
        attempt, "chat m", attributes={"gen_ai.operation.name": "chat", "gen_ai.request.model": "m"}
    )
    asyncio.run(store.add_many_spans([span_of(attempt, "tool"), call]))
    spans = CapturedSpans(store)
    assert [span.name for span in spans.model_calls()] == ["chat m"]
    assert spans.triplets() == []
    with pytest.raises(re.error):
        spans.triplets(llm_call_match="(")


def test_what_has_ended_is_settled_before_each_look(store: LightningStore) -> None:
    attempt = asyncio.run(store.start_rollout("a"))
    waiting = [span_of(attempt, "first"), span_of(attempt, "second")]
    spans = CapturedSpans(store, settle=lambda: asyncio.run(store.add_many_spans([waiting.pop(0)])))
    assert [span.name for span in spans] == ["first"]
    assert [span.name for span in spans] == ["first", "second"]
