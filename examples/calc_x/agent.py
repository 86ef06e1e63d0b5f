"""An ordinary agent with tools from an MCP server, written with the official ``openai`` and ``mcp`` clients.

It knows nothing of the package that records it. What a tool did is told in OpenTelemetry's own way, by a span with
the names of the GenAI conventions; without somebody who records, such a span costs nothing and goes nowhere.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from mcp import Client
from mcp.types import CallToolResult, TextContent, Tool
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletionMessage, ChatCompletionMessageParam, ChatCompletionToolParam
from opentelemetry import trace

MAX_TURNS = 4
"""Replies of the model, tool calls and the answer together."""


@dataclass
class Answer:
    """What the agent says, and what it asked of its tools on the way."""

    text: str = ""
    """Empty where the model only ever called tools."""
    calls: list[dict[str, Any]] = field(default_factory=list)
    """The arguments of each tool call."""


async def solve(question: str, model: AsyncOpenAI, tools: Client, seed: int) -> Answer:
    """Answer ``question``: offer the tools of the MCP server to the model, and use them until it answers."""
    offered = [described(tool) for tool in (await tools.list_tools()).tools]
    messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": question}]
    answer = Answer()

    for _ in range(MAX_TURNS):
        reply = await ask(model, messages, offered, seed)
        calls = [call for call in reply.tool_calls or () if call.type == "function"]
        if not calls:
            answer.text = reply.content or ""
            break
        messages.append(
            {
                "role": "assistant",
                "tool_calls": [
                    {
                        "id": call.id,
                        "type": "function",
                        "function": {"name": call.function.name, "arguments": call.function.arguments},
                    }
                    for call in calls
                ],
            }
        )
        for call in calls:
            answer.calls.append(json.loads(call.function.arguments))
            result = await use(tools, call.id, call.function.name, call.function.arguments)
            messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
    return answer


def described(tool: Tool) -> ChatCompletionToolParam:
    """Return an MCP server's description of a tool as the chat API wants it."""
    return {
        "type": "function",
        "function": {
            "name": tool.name,
            "description": tool.description or "",
            "parameters": tool.input_schema,
        },
    }


async def ask(
    model: AsyncOpenAI,
    messages: list[ChatCompletionMessageParam],
    tools: list[ChatCompletionToolParam],
    seed: int,
) -> ChatCompletionMessage:
    """Sample one reply of the model."""
    completion = await model.chat.completions.create(
        model="calc", messages=messages, tools=tools, seed=seed, temperature=1.0, top_p=1.0, max_tokens=4
    )
    return completion.choices[0].message


async def use(tools: Client, call_id: str, name: str, arguments: str) -> str:
    """Call a tool over MCP and return what the model gets to read, an error included."""
    with trace.get_tracer(__name__).start_as_current_span(f"execute_tool {name}") as span:
        span.set_attributes(
            {
                "gen_ai.operation.name": "execute_tool",
                "gen_ai.tool.name": name,
                "gen_ai.tool.call.id": call_id,
                "gen_ai.tool.call.arguments": arguments,
            }
        )
        result = await tools.call_tool(name, json.loads(arguments))
        text = text_of(result)
        span.set_attribute("gen_ai.tool.call.result", text)
        if result.is_error:
            span.set_attribute("error.type", "tool_error")
            span.set_status(trace.StatusCode.ERROR, text)
        return text


def text_of(result: CallToolResult) -> str:
    """Return the text of a tool's result."""
    return "\n".join(part.text for part in result.content if isinstance(part, TextContent))
