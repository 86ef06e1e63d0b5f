"""An ordinary agent: asks a model which tool to use, uses it, and asks the model for the answer.

It is written with the official ``openai`` client and knows nothing of the package that records it, of tokens, or
of training. With ``seed``, the same question can be sampled several times, and repeatably.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from openai import AsyncOpenAI
from openai.types.chat import ChatCompletionMessage, ChatCompletionMessageParam, ChatCompletionToolParam

TOOLS: Mapping[str, Callable[[int, int], int]] = {
    "add": lambda a, b: a + b,
    "subtract": lambda a, b: a - b,
    "multiply": lambda a, b: a * b,
}


@dataclass(frozen=True)
class Solution:
    """What the agent did: the tool that it called last, with what, and what it answered."""

    tool: str
    arguments: Mapping[str, Any]
    answer: str


async def solve(question: str, client: AsyncOpenAI, seed: int) -> Solution:
    """Answer ``question`` in two turns: a tool call, and what to make of its result."""
    messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": question}]
    tool, arguments = "", {}

    reply = await ask(client, messages, seed)
    for call in reply.tool_calls or ():
        if call.type == "function":
            tool, written = call.function.name, call.function.arguments
            arguments = json.loads(written)
            messages += [
                {
                    "role": "assistant",
                    "tool_calls": [
                        {"id": call.id, "type": "function", "function": {"name": tool, "arguments": written}}
                    ],
                },
                {"role": "tool", "tool_call_id": call.id, "content": use_tool(tool, arguments)},
            ]

    reply = await ask(client, messages, seed)
    return Solution(tool, arguments, reply.content or "")


async def ask(
    client: AsyncOpenAI, messages: list[ChatCompletionMessageParam], seed: int
) -> ChatCompletionMessage:
    """Sample one reply of the model."""
    completion = await client.chat.completions.create(
        model="calc",
        messages=messages,
        tools=[describe(name) for name in TOOLS],
        seed=seed,
        temperature=1.0,
        top_p=1.0,
        max_tokens=4,
    )
    return completion.choices[0].message


def describe(name: str) -> ChatCompletionToolParam:
    """Return the definition of a tool of two whole numbers, as the chat API wants it."""
    number = {"type": "integer"}
    parameters: dict[str, object] = {
        "type": "object",
        "properties": {"a": number, "b": number},
        "required": ["a", "b"],
    }
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def use_tool(name: str, arguments: Mapping[str, Any]) -> str:
    """Return the result of a tool, or ``error`` where the model asked for something that does not exist."""
    a, b = arguments.get("a"), arguments.get("b")
    if name not in TOOLS or not isinstance(a, int) or not isinstance(b, int):
        return "error"
    return str(TOOLS[name](a, b))
