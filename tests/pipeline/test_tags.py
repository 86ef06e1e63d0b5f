"""Tags on every span, also on those of a spawned worker's tracer."""

from __future__ import annotations

import pickle

import pytest

from agentlightning.codec.attributes import extract_tags_from_attributes, make_tag_attributes
from agentlightning.pipeline import Tagging
from agentlightning.store import LightningStore
from agentlightning.tracer import OtelTracer
from agentlightning.types import Span


def test_tags_come_after_those_of_the_span_and_each_once() -> None:
    span = Span.from_attributes(attributes={"a": 1, **make_tag_attributes(["own", "both"])})
    before = dict(span.attributes)
    tagged = Tagging(("both", "new"))(span)
    assert extract_tags_from_attributes(tagged.attributes) == ["own", "both", "new"]
    assert tagged.attributes["a"] == 1
    assert span.attributes == before
    assert Tagging(("own",))(span) is span


@pytest.mark.asyncio
async def test_default_tags_are_on_every_span(store: LightningStore) -> None:
    tracer: OtelTracer = pickle.loads(pickle.dumps(OtelTracer(default_tags=["nightly", "gpt"])))
    with tracer.lifespan(store):
        async with tracer.trace_context() as trace:
            with trace.start_as_current_span("work", attributes=make_tag_attributes(["mine"])):
                pass
    found = {
        span.name: extract_tags_from_attributes(span.attributes)
        for span in await store.query_spans(trace.rollout_id)
    }
    assert [rollout.rollout_id for rollout in await store.query_rollouts(tags=["gpt", "mine"])] == [
        trace.rollout_id
    ]
    assert found == {"work": ["mine", "nightly", "gpt"], "rollout": ["nightly", "gpt"]}
