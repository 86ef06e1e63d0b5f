"""What tests of documents have in common: Harbor's schema, and attempts to write."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema

from agentlightning.dialects.model_call import VALID, Choice, ModelCall, ToolCall, Usage
from agentlightning.dialects.spans.genai import call_attributes
from agentlightning.types import Span

SCHEMA = Path(__file__).resolve().parents[1] / "data" / "atif" / "harbor-0.26.0.schema.json"
"""``Trajectory.model_json_schema()`` of ``harbor.models.trajectories``, without texts for people."""
T0 = 1_700_000_000.0


@cache
def _validator() -> Any:
    return jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text(encoding="ascii")))


def check_atif(document: Any) -> None:
    """Fail where Harbor would: its schema, and the rules that its models have beside it."""
    text = json.dumps(document, allow_nan=False)
    text.encode()
    _validator().validate(json.loads(text))
    for each in trajectories(document):
        assert [step["step_id"] for step in each["steps"]] == list(range(1, len(each["steps"]) + 1))
        inner = [other["trajectory_id"] for other in each.get("subagent_trajectories", ())]
        assert len(inner) == len(set(inner))
        for step in each["steps"]:
            if step["source"] != "agent":
                only = {"model_name", "reasoning_effort", "reasoning_content", "tool_calls", "metrics"}
                assert not only & step.keys()
            asked = {call["tool_call_id"] for call in step.get("tool_calls", ())}
            for result in results(step):
                assert result.get("source_call_id") is None or result["source_call_id"] in asked
                for ref in result.get("subagent_trajectory_ref", ()):
                    assert ref["trajectory_id"] in inner


def trajectories(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a trajectory and those inside of it."""
    yield document
    for other in document.get("subagent_trajectories", ()):
        yield from trajectories(other)


def results(step: dict[str, Any]) -> list[dict[str, Any]]:
    """The results of a step."""
    found: list[dict[str, Any]] = step.get("observation", {}).get("results", [])
    return found


def ours(item: dict[str, Any]) -> dict[str, Any]:
    """What stands under our name in ``extra``."""
    found: dict[str, Any] = item.get("extra", {}).get("agentlightning", {})
    return found


def asks(tool: str, call_id: str | None = "c1", arguments: str = '{"a": 1}') -> Choice:
    """An answer that asks for a tool."""
    return Choice(
        tool_calls=(ToolCall(call_id, tool, arguments),), finish_reason="tool_calls", reasoning="hm"
    )


def says(text: str, **fields: Any) -> Choice:
    """An answer in words."""
    return Choice(**{"content": text, "finish_reason": "stop", **fields})


def sampled(text: str, ids: tuple[int, ...]) -> Choice:
    """An answer whose tokens were captured."""
    return says(text, token_ids=ids, logprobs=tuple(-0.5 for _ in ids), token_capture=VALID)


def call(
    number: int, asked: list[dict[str, Any]], *choices: Choice, parent: int | None = None, **fields: Any
) -> Span:
    """A model call, the ``number``-th thing that happens."""
    record = ModelCall(request_model="policy", request_messages=tuple(asked), choices=choices, **fields)
    return span(number, "chat policy", parent=parent, attributes=call_attributes(record))


def captured(number: int, asked: list[dict[str, Any]], text: str, **fields: Any) -> Span:
    """A model call whose token ids are valid."""
    ids = (5, 6, 7)
    return call(
        number,
        asked,
        sampled(text, ids),
        prompt_token_ids=tuple(range(10, 10 + 2 * len(asked))),
        usage=Usage(2 * len(asked), len(ids), cached_input_tokens=1),
        token_capture=VALID,
        **fields,
    )


def span(
    number: int, name: str, *, parent: int | None = None, attributes: dict[str, Any] | None = None
) -> Span:
    """A span of the attempt ``at-1`` of ``ro-1``."""
    return Span.from_attributes(
        name=name,
        attributes=attributes or {},
        rollout_id="ro-1",
        attempt_id="at-1",
        span_id=f"{number:016x}",
        parent_id=None if parent is None else f"{parent:016x}",
        start_time=T0 + number,
        end_time=T0 + number + 0.5,
        sequence_id=number,
        trace_id="1" * 32,
    )


def agent(number: int, name: str, *, parent: int | None = None) -> Span:
    """A span in which an agent works."""
    return span(
        number,
        f"invoke_agent {name}",
        parent=parent,
        attributes={"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": name},
    )


def user(text: str) -> dict[str, Any]:
    """A message of a user."""
    return {"role": "user", "content": text}


def tool(text: Any, call_id: str = "c1") -> dict[str, Any]:
    """What a tool returned."""
    return {"role": "tool", "tool_call_id": call_id, "content": text}
