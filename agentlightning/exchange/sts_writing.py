"""The conversations of an attempt as sessions in Hugging Face's Session Trace Simple Format (STS-Format).

Format: huggingface.co/docs/hub/session-traces-format: JSON Lines, one session a file; the first line names the session,
each of the others is one message with text. The format has places for roles, text, reasoning, tool calls and what they
answer, times in milliseconds and the model. It has none for images and other parts that are no text (the first line
says how many were left out), token ids, usage or rewards; any key may stand in the first line, and rewards, mode,
group, how it ended and the ids of rollout and attempt stand there under ``agentlightning``, as in ``extra`` of ATIF.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from ..semconv import GROUP_ID
from ..types import Attempt, Rollout
from .content import OURS, text_of, without_nothing, writable
from .trajectories import Recorded, Step, Trajectory, tool_calls_of

HARNESS = "agentlightning"
"""What the Hub is told of who wrote a session; its viewer shows one that it does not know without an icon."""

_ROLES = {"user": "user", "assistant": "assistant", "tool": "tool", "function": "user"}


def to_sessions(
    found: Recorded,
    *,
    rollout: Rollout | None = None,
    attempt: Attempt | None = None,
    name: str | None = None,
) -> list[list[dict[str, Any]]]:
    """Return the sessions of an attempt, each as its lines: the main conversation first, then those of sub-agents.

    Args:
        found: Its conversations.
        rollout: Its rollout, for mode, group and status.
        attempt: The attempt itself, for how it ended.
        name: A title for a person.
    """
    main = found.trajectory
    outcome = found.outcome
    of_main = without_nothing(
        [
            ("mode", None if rollout is None else rollout.mode),
            (GROUP_ID, None if rollout is None else (rollout.metadata or {}).get(GROUP_ID)),
            ("rollout_status", None if rollout is None else rollout.status),
            ("attempt_status", None if attempt is None else attempt.status),
            ("reward", outcome.value),
            ("rewards", dict(outcome.dimensions)),
        ]
    )
    return [
        [dict(writable(line)) for line in _lines(each, found, of_main if each is main else None, name)]
        for each in main.walk()
    ]


def _lines(
    trajectory: Trajectory, found: Recorded, of_main: Mapping[str, Any] | None, name: str | None
) -> Iterator[dict[str, Any]]:
    left_out: Counter[str] = Counter()
    messages = [message for step in trajectory.steps for message in _messages(step, left_out)]
    ours = without_nothing(
        [
            ("rollout_id", found.rollout_id),
            ("attempt_id", found.attempt_id),
            ("agent", trajectory.agent),
            ("parent_id", found.trajectory.id if of_main is None else None),
            *(of_main or {}).items(),
            ("left_out", dict(left_out)),
        ]
    )
    title = trajectory.agent if of_main is None else name
    yield without_nothing(
        [
            ("type", "session"),
            ("harness", HARNESS),
            ("id", trajectory.id),
            ("name", title or None),
            (OURS, ours),
        ]
    )
    for message in messages:
        yield {"type": "message", "message": message}


def _messages(step: Step, left_out: Counter[str]) -> Iterator[dict[str, Any]]:
    reasoning = step.message.get("reasoning_content")
    yield {
        "role": _ROLES.get(step.role, "system"),
        "content": _text(step.message.get("content"), left_out),
        **without_nothing(
            [
                ("reasoningContent", reasoning if isinstance(reasoning, str) and reasoning else None),
                (
                    "toolCalls",
                    [_tool_call(call, place) for place, call in enumerate(tool_calls_of(step.message))],
                ),
                ("toolCallId", step.message.get("tool_call_id") if step.role == "tool" else None),
                ("timestamp", _milliseconds(step)),
                ("model", _model(step)),
            ]
        ),
    }
    for result in step.results:
        if result.content is not None:
            yield {
                "role": "tool",
                **({"toolCallId": result.call_id} if result.call_id is not None else {}),
                "content": _text(result.content, left_out),
            }


def _text(content: Any, left_out: Counter[str]) -> str:
    text, others = text_of(content)
    left_out.update(others)
    return text


def _tool_call(call: Mapping[str, Any], place: int) -> dict[str, Any]:
    function = call.get("function")
    named: Mapping[str, Any] = function if isinstance(function, Mapping) else {}
    arguments = named.get("arguments")
    return {
        "id": call["id"] if isinstance(call.get("id"), str) else f"unnamed-{place + 1}",
        "function": {
            "name": str(named.get("name") or ""),
            "arguments": arguments
            if isinstance(arguments, str)
            else json.dumps(arguments or {}, ensure_ascii=False, default=str),
        },
    }


def _milliseconds(step: Step) -> int | None:
    at = None if step.call is None else step.call.span.start_time
    return None if at is None or not math.isfinite(at) else round(at * 1000)


def _model(step: Step) -> str | None:
    record = None if step.call is None else step.call.record
    return None if record is None else record.response_model or record.request_model
