from __future__ import annotations

import json
from typing import Any

from agentlightning.adapter import TraceToMessages
from agentlightning.dialects.model_call import Choice, ModelCall, ToolCall
from agentlightning.dialects.spans.genai import call_attributes
from agentlightning.types import Span

SCHEMA = {"type": "object", "properties": {"date": {"type": "string"}}}
ARGUMENTS = json.dumps({"date": "2026-11-20"})


def span(sequence_id: int, name: str, attributes: dict[str, Any], parent: str | None = None) -> Span:
    span = Span.from_attributes(
        attributes=attributes, sequence_id=sequence_id, span_id=f"s{sequence_id}", parent_id=parent, name=name
    )
    return span.model_copy(update={"start_time": None, "end_time": None})


def test_a_conversation_of_agentops_spans_gets_its_tool_calls_from_child_spans() -> None:
    tool = {
        "tool.name": "rooms",
        "tool.parameters": ARGUMENTS,
        "tool.call.id": "call-1",
        "tool.call.type": "function",
    }
    asked = {
        "gen_ai.request.type": "chat",
        "gen_ai.prompt.0.role": "system",
        "gen_ai.prompt.0.content": "You book rooms.",
        "gen_ai.prompt.1.role": "user",
        "gen_ai.prompt.1.content": "Find one.",
        "gen_ai.request.functions.0.name": "rooms",
        "gen_ai.request.functions.0.description": "Lists rooms",
        "gen_ai.request.functions.0.parameters": json.dumps(SCHEMA),
        "gen_ai.completion.0.role": "assistant",
        "gen_ai.completion.0.finish_reason": "tool_calls",
    }
    answered = {
        "gen_ai.prompt.0.role": "user",
        "gen_ai.prompt.0.content": "Find one.",
        "gen_ai.prompt.1.tool_calls.0.id": "call-1",
        "gen_ai.prompt.1.tool_calls.0.name": "rooms",
        "gen_ai.prompt.1.tool_calls.0.arguments": ARGUMENTS,
        "gen_ai.prompt.2.tool_call_id": "call-1",
        "gen_ai.prompt.2.content": "[]",
        "gen_ai.completion.0.role": "assistant",
        "gen_ai.completion.0.content": "None is free.",
    }
    spans = [
        span(0, "tool_call.rooms", tool, parent="s1"),
        span(1, "openai.chat.completion", asked),
        span(2, "openai.chat.completion", answered),
        span(3, "other", {"a": 1}),
    ]
    tool_call = {"id": "call-1", "type": "function", "function": {"name": "rooms", "arguments": ARGUMENTS}}

    assert TraceToMessages().adapt(spans) == [
        {
            "messages": [
                {"role": "system", "content": "You book rooms."},
                {"role": "user", "content": "Find one."},
                {"role": "assistant", "content": None, "tool_calls": [tool_call]},
            ],
            "tools": [
                {
                    "type": "function",
                    "function": {"name": "rooms", "description": "Lists rooms", "parameters": SCHEMA},
                }
            ],
        },
        {
            "messages": [
                {"role": "user", "content": "Find one."},
                {"role": "assistant", "content": None, "tool_calls": [tool_call]},
                {"role": "tool", "tool_call_id": "call-1", "content": "[]"},
                {"role": "assistant", "content": "None is free."},
            ],
            "tools": None,
        },
    ]


def test_each_choice_of_our_own_calls_is_a_conversation() -> None:
    call = ModelCall(
        request_messages=(
            {
                "role": "user",
                "content": [{"type": "text", "text": "hi"}, {"type": "image_url", "image_url": {"url": "u"}}],
            },
        ),
        tools=({"type": "function", "function": {"name": "add"}},),
        choices=(
            Choice(content="one"),
            Choice(index=1, tool_calls=(ToolCall("c", "add", "{}"),)),
        ),
    )

    first, second = TraceToMessages()([span(1, "chat", call_attributes(call))])

    assert first["messages"] == [dict(call.request_messages[0]), {"role": "assistant", "content": "one"}]
    assert second["messages"][-1]["tool_calls"][0]["function"] == {"name": "add", "arguments": "{}"}
    assert first["tools"] == [{"type": "function", "function": {"name": "add"}}]
    first["messages"].clear()
    assert len(second["messages"]) == 2


def test_a_completion_of_a_plain_prompt_is_a_conversation() -> None:
    call = ModelCall(operation="text_completion", prompt="Once", choices=(Choice(content=" upon"),))

    assert TraceToMessages().adapt([span(1, "text_completion", call_attributes(call))]) == [
        {
            "messages": [{"role": "user", "content": "Once"}, {"role": "assistant", "content": " upon"}],
            "tools": None,
        }
    ]


def test_a_call_without_an_answer_keeps_its_question() -> None:
    call = ModelCall(request_messages=({"role": "user", "content": "hi"},), http_status=500, error="Timeout")

    (found,) = TraceToMessages().adapt([span(1, "chat", call_attributes(call))])

    assert found == {"messages": [{"role": "user", "content": "hi"}], "tools": None}
