"""Triplets and messages of spans that were recorded elsewhere, with the names of 0.3."""

from __future__ import annotations

import json
from typing import Any

from agentlightning.adapter import TracerTraceToTriplet, TraceToMessages
from agentlightning.adapter.triplet import RewardMatchPolicy, TraceTree
from agentlightning.types import Span

IDS = {"rollout_id": "ro-1", "attempt_id": "at-1", "trace_id": "1" * 32}


def span(number: int, name: str, parent: int | None, attributes: dict[str, Any]) -> Span:
    return Span.from_attributes(
        attributes=attributes,
        name=name,
        sequence_id=number,
        span_id=f"{number:016x}",
        parent_id=None if parent is None else f"{parent:016x}",
        start_time=float(number),
        end_time=number + (20.0 if parent is None else 0.5),
        **IDS,
    )


def call(number: int, parent: int, prompt: list[int], response: list[int]) -> Span:
    said = [{"token": f"t{n}", "logprob": -n / 100, "bytes": None, "top_logprobs": []} for n in response]
    return span(
        number,
        "openai.chat.completion",
        parent,
        {
            "gen_ai.system": "OpenAI",
            "gen_ai.operation.name": "chat",
            "gen_ai.request.type": "chat",
            "gen_ai.request.model": "policy",
            "gen_ai.response.model": "policy",
            "gen_ai.response.id": f"chatcmpl-{number}",
            "gen_ai.request.temperature": 1.0,
            "gen_ai.request.top_p": 1.0,
            "gen_ai.prompt.0.role": "system",
            "gen_ai.prompt.0.content": "Be short.",
            "gen_ai.prompt.1.role": "user",
            "gen_ai.prompt.1.content": f"Question {number}",
            "gen_ai.completion.0.role": "assistant",
            "gen_ai.completion.0.content": f"Answer {number}",
            "gen_ai.completion.0.finish_reason": "stop",
            "gen_ai.usage.prompt_tokens": len(prompt),
            "gen_ai.usage.completion_tokens": len(response),
            "prompt_token_ids": prompt,
            "response_token_ids": response,
            "logprobs.content": json.dumps(said),
        },
    )


def rewarded(number: int, parent: int, value: float) -> Span:
    return span(
        number,
        "agentlightning.annotation",
        parent,
        {"agentlightning.reward.0.name": "primary", "agentlightning.reward.0.value": value},
    )


SPANS = [
    span(1, "session", None, {}),
    span(
        2,
        "solver.agent",
        1,
        {"agentops.span.kind": "agent", "operation.name": "solver", "agent.name": "solver"},
    ),
    call(3, 2, [1, 2, 3], [4, 5]),
    rewarded(4, 2, 0.25),
    call(5, 2, [1, 2, 3, 4, 5, 6], [7, 8, 9]),
    span(
        6,
        "critic.agent",
        1,
        {"agentops.span.kind": "agent", "operation.name": "critic", "agent.name": "critic"},
    ),
    call(7, 6, [30, 31], [32]),
    rewarded(8, 1, 1.0),
]


def rows(adapter: TracerTraceToTriplet) -> list[dict[str, Any]]:
    return [
        {
            "prompt": list(each.prompt["token_ids"]),
            "response": list(each.response["token_ids"]),
            "logprobs": [entry["logprob"] for entry in each.response.get("logprobs") or []],
            "reward": each.reward,
        }
        for each in adapter.adapt(SPANS)
    ]


def main() -> dict[str, Any]:
    tree = TraceTree.from_spans(SPANS)
    return {
        "rows": rows(TracerTraceToTriplet()),
        "rows of one agent": rows(TracerTraceToTriplet(agent_match="solver")),
        "rows of siblings": rows(TracerTraceToTriplet(reward_match=RewardMatchPolicy.FIRST_SIBLING)),
        "rows of no call": rows(TracerTraceToTriplet(llm_call_match="nothing")),
        "called as a function": len(TracerTraceToTriplet()(SPANS)),
        "tree": [(each.span.name, len(each.children)) for each in tree.traverse()],
        "agents": [each.agent_name() for each in tree.traverse() if each.agent_name()],
        "messages": TraceToMessages().adapt(SPANS),
    }


print(json.dumps(main()), flush=True)
