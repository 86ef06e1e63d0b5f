"""What tests of frameworks look for in a store."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any

import framework_agents as agents
import pytest

from agentlightning.adapter import TracerTraceToTriplet
from agentlightning.semconv import ModelCallAttributes
from agentlightning.store import LightningStore
from agentlightning.testing.fake_openai import tokens_of
from agentlightning.types import Span

PROMPT_IDS = ModelCallAttributes.PROMPT_TOKEN_IDS.value
RESPONSE_IDS = ModelCallAttributes.RESPONSE_TOKEN_IDS.value.format(i=0)
CAPTURE = ModelCallAttributes.TOKEN_CAPTURE.value


def needs(*distributions: str) -> pytest.MarkDecorator:
    """Skip a test where one of these is not installed."""
    missing = []
    for name in distributions:
        try:
            version(name)
        except PackageNotFoundError:
            missing.append(name)
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


async def spans_of(store: LightningStore, handle: Any) -> list[Span]:
    """Return the spans of a rollout; its receipt is whole and nothing was counted twice."""
    receipt = await store.get_receipt(handle.rollout_id, handle.attempt_id)
    assert receipt.whole
    assert (receipt.open, receipt.dropped) == (0, {})
    return list(await store.query_spans(handle.rollout_id))


def calls_among(spans: list[Span], number: int = 5, turns: int = 2) -> list[Span]:
    """Return the model calls, in order; they are the conversation with the very ids that were sampled."""
    calls = sorted(
        (span for span in spans if PROMPT_IDS in span.attributes), key=lambda span: span.start_time or 0
    )
    sampled = [[1000 + number], [token.id for token in tokens_of(agents.answer(number))]]
    expected = [(list(agents.prompt_ids(number, turn)), sampled[turn], "valid") for turn in range(turns)]
    assert [
        (call.attributes[PROMPT_IDS], call.attributes[RESPONSE_IDS], call.attributes[CAPTURE])
        for call in calls
    ] == expected
    rows = TracerTraceToTriplet().adapt(spans)  # a second span of a call would be a second row
    assert [row.prompt["token_ids"] for row in rows] == [prompt for prompt, _, _ in expected]
    assert [row.response["token_ids"] for row in rows] == [response for _, response, _ in expected]
    return calls


def path(spans: list[Span], span: Span) -> str:
    """Return the names from the root to a span."""
    by_id = {each.span_id: each for each in spans}
    names = [span.name]
    while span.parent_id in by_id:
        span = by_id[span.parent_id]
        names.append(span.name)
    return " > ".join(reversed(names))
