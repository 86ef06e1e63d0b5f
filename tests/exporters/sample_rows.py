"""Rows for exporters: groups of rollouts with forks, tools between answers, several versions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from agentlightning.dialects.model_call import VALID, Choice, ModelCall, PolicySpan
from agentlightning.dialects.spans.genai import call_attributes
from agentlightning.rows import RowSet, build_rows
from agentlightning.semconv import AGL_ANNOTATION
from agentlightning.types import Rollout, Span

Turn = tuple[Sequence[int], Sequence[int]]
"""Prompt and answer."""

LINEAR: list[Turn] = [
    ((1, 2, 3), (10, 11)),
    ((1, 2, 3, 10, 11, 4), (12,)),
    ((1, 2, 3, 10, 11, 4, 12, 5, 6), (13, 14, 15)),
]
"""Three turns of one conversation: one row of 12 tokens, 6 of them trained."""
FORKED: list[Turn] = [((1, 2, 3), (20, 21)), ((1, 2, 3, 20, 21, 7), (22,)), ((1, 2, 3, 20, 21, 8), (23, 24))]
"""One answer that two others go on with: two rows, 5 tokens trained."""


More = Callable[[int, Turn], dict[str, Any]]
"""Number and turn of a call → more fields of its choice."""


def spans_of(
    turns: Sequence[Turn],
    rollout_id: str,
    reward: float | None,
    *,
    more: More | None = None,
    asked: dict[str, Any] | None = None,
    **fields: Any,
) -> list[Span]:
    """Return the spans of an attempt: one call per turn, and a reward where there is one."""
    ids: dict[str, Any] = {"rollout_id": rollout_id, "attempt_id": f"at-{rollout_id}"}
    spans = []
    for number, (prompt, answer) in enumerate(turns):
        choice = Choice(
            content=f"answer {number}",
            token_ids=tuple(answer),
            logprobs=tuple(-0.125 * (place + 1) for place in range(len(answer))),
            finish_reason="stop",
            policy=(PolicySpan(str(number), 0, len(answer)),),
            token_capture=VALID,
        )
        choice = choice if more is None else replace(choice, **more(number, (prompt, answer)))
        messages: list[dict[str, Any]] = [{"role": "user", "content": f"{list(prompt)}"}]
        call = ModelCall(
            prompt_token_ids=tuple(prompt),
            choices=(choice,),
            token_capture=VALID,
            response_id=f"{rollout_id}-{number}",
            request_model="policy",
            request_messages=tuple(messages),
            sampling_requested=asked or {},
            sampling_effective={"temperature": 1.0},
            sampling_defaults={},
            logprob_kind="processed",
        )
        call_fields = {**call_attributes(call), **fields}
        times: dict[str, Any] = {"start_time": float(number), "end_time": number + 0.5}
        spans.append(
            Span.from_attributes(
                attributes=call_fields, name="chat policy", span_id=f"{number:016x}", **ids, **times
            )
        )
    if reward is not None:
        given = {"agentlightning.reward.0.name": "primary", "agentlightning.reward.0.value": reward}
        last: dict[str, Any] = {"start_time": 100.0, "end_time": 100.0}
        spans.append(Span.from_attributes(attributes=given, name=AGL_ANNOTATION, **ids, **last))
    return spans


def rollout_of(rollout_id: str, group_id: str | None) -> Rollout:
    """Return a finished rollout of a group."""
    metadata = None if group_id is None else {"group_id": group_id}
    return Rollout(rollout_id=rollout_id, input="x", start_time=0.0, metadata=metadata, status="succeeded")


def rows_of(
    turns: Sequence[Turn],
    rollout_id: str = "ro-1",
    reward: float | None = 1.0,
    group_id: str | None = "g",
    **fields: Any,
) -> RowSet:
    """Return the rows of an attempt."""
    spans = spans_of(turns, rollout_id, reward, **fields)
    return build_rows(spans, rollout=rollout_of(rollout_id, group_id))


def two_groups() -> list[Any]:
    """Return the rows of two groups of two rollouts; one of each forks."""
    return [
        *rows_of(LINEAR, "ro-1", 1.0, "g1"),
        *rows_of(FORKED, "ro-2", 0.0, "g1"),
        *rows_of(LINEAR, "ro-3", 0.25, "g2"),
        *rows_of(FORKED, "ro-4", 0.75, "g2"),
    ]
