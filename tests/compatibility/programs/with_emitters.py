"""What an agent says of itself: rewards, messages, objects, exceptions, annotations, operations."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import agentlightning as agl
from agentlightning.emitter import (
    emit_annotation,
    emit_exception,
    emit_message,
    emit_object,
    emit_reward,
    find_final_reward,
    find_reward_spans,
    get_message_value,
    get_object_value,
    get_reward_value,
    get_rewards_from_span,
    is_reward_span,
    operation,
    reward,
)
from agentlightning.utils.otel import (
    extract_links_from_attributes,
    extract_tags_from_attributes,
    make_link_attributes,
    make_tag_attributes,
    query_linked_spans,
)


async def agent() -> dict[str, Any]:
    # Made here, where a tracer is active: at import time 0.3 raises.
    @operation
    def add(a: int, b: int) -> int:
        return a + b

    @operation(name="look up", kind="tool")
    async def look_up(word: str) -> dict[str, Any]:
        await asyncio.sleep(0)
        return {"word": word, "length": len(word)}

    @operation
    def fail() -> None:
        raise RuntimeError("broken")

    @reward
    def judge(answer: str) -> float:
        return 0.25 if answer else 0.0

    facts: dict[str, Any] = {"sum": add(1, b=2), "looked up": await look_up("lamp"), "judged": judge("yes")}
    try:
        fail()
    except RuntimeError as error:
        facts["an operation raises what was raised"] = str(error)
        emit_exception(error)
    emit_message("on my way", attributes={"mood": "good"})
    emit_object({"b": [1, 2], "a": None})
    emit_object("text")
    emit_object(3.5)
    emit_object(True)
    emit_annotation({"phase": {"name": "search", "steps": [1, 2]}})
    emit_annotation(make_tag_attributes(["slow", "train"]))
    emit_reward(0.5, attributes=make_link_attributes({"gen_ai.response.id": "chatcmpl-1"}))
    emit_reward({"correct": 1.0, "style": 0.5}, primary_key="correct")
    with operation(name="by hand") as by_hand:
        by_hand.set_input("q", n=1)
        by_hand.set_output({"a": 2})
    facts["not propagated"] = emit_reward(0.75, propagate=False).name
    return facts


def told(span: agl.Span) -> dict[str, Any]:
    known = {
        name: value
        for name, value in span.attributes.items()
        if name.startswith("agentlightning.") or name in {"mood", "kind", "phase.name", "phase.steps"}
    }
    return {"name": span.name, "status": span.status.status_code, "attributes": known}


async def main() -> dict[str, Any]:
    store, tracer = agl.InMemoryLightningStore(), agl.OtelTracer()
    tracer.init()
    tracer.init_worker(0, store)
    rollout = await store.start_rollout(input="task")
    ids = {"rollout_id": rollout.rollout_id, "attempt_id": rollout.attempt.attempt_id}
    async with tracer.trace_context(store=store, **ids):
        facts = await agent()
    spans = list(await store.query_spans(**ids))
    tracer.teardown_worker(0)
    tracer.teardown()
    facts["spans"] = [told(span) for span in spans]
    facts["final reward"] = find_final_reward(spans)
    facts["reward spans"] = [get_reward_value(span) for span in find_reward_spans(spans)]
    facts["is a reward"] = [is_reward_span(span) for span in spans]
    facts["rewards"] = [
        [(each.name, each.value) for each in get_rewards_from_span(span)]
        for span in spans
        if is_reward_span(span)
    ]
    facts["messages"] = [text for span in spans if (text := get_message_value(span)) is not None]
    facts["objects"] = [get_object_value(span) for span in spans if span.name == "agentlightning.object"]
    tagged = [span.attributes for span in spans if "agentlightning.tag.0" in span.attributes]
    facts["tags"] = [extract_tags_from_attributes(attributes) for attributes in tagged]
    linking = [span.attributes for span in spans if "agentlightning.link.0.key_match" in span.attributes]
    links = [extract_links_from_attributes(attributes) for attributes in linking]
    facts["links"] = [[link.model_dump() for link in each] for each in links]
    answered = agl.Span.from_attributes(attributes={"gen_ai.response.id": "chatcmpl-1"}, name="call")
    facts["linked"] = [span.name for span in query_linked_spans([answered, *spans], links[0])]
    return facts


print(json.dumps(asyncio.run(main())), flush=True)
