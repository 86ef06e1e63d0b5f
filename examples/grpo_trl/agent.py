"""An ordinary agent with one tool, written with the official ``openai`` client.

It knows nothing of the package that records it, of tokens, or of training. With ``seed``, the same question can be
sampled several times, and repeatably.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from openai import AsyncOpenAI
from openai.types.chat import ChatCompletionMessage, ChatCompletionMessageParam, ChatCompletionToolParam

from .task import Played

MAX_TURNS = 3
"""Replies of the model, tool calls and the answer together."""
MAX_TOKENS = 32
"""Of one reply."""

OPEN: ChatCompletionToolParam = {
    "type": "function",
    "function": {
        "name": "open",
        "description": "Open a box.",
        "parameters": {
            "type": "object",
            "properties": {"box": {"type": "integer"}},
            "required": ["box"],
        },
    },
}


async def hunt(
    question: str,
    boxes: Mapping[int, str],
    client: AsyncOpenAI,
    seed: int | None = None,
    temperature: float = 1.0,
) -> Played:
    """Let the model open boxes until it answers in words, or has no turn left."""
    messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": question}]
    played = Played()
    for _ in range(MAX_TURNS):
        reply = await ask(client, messages, seed, temperature)
        calls = [call for call in reply.tool_calls or () if call.type == "function"]
        if not calls:
            played.answer = reply.content or ""
            break
        messages.append(
            {
                "role": "assistant",
                "content": reply.content,
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
            number = box_of(call.function.name, call.function.arguments)
            played.opened.append(number)
            found = boxes.get(number, "nothing")
            messages.append({"role": "tool", "tool_call_id": call.id, "content": found})
    return played


async def ask(
    client: AsyncOpenAI, messages: list[ChatCompletionMessageParam], seed: int | None, temperature: float
) -> ChatCompletionMessage:
    """Sample one reply of the model."""
    completion = await client.chat.completions.create(
        model="tiny",
        messages=messages,
        tools=[OPEN],
        seed=seed,
        temperature=temperature,
        top_p=1.0,
        max_tokens=MAX_TOKENS,
    )
    return completion.choices[0].message


def box_of(name: str, arguments: str) -> int:
    """Return the number of the box that a tool call asks for; 0 where it asks for none."""
    try:
        found = json.loads(arguments)
    except ValueError:
        return 0
    number = found.get("box") if name == "open" and isinstance(found, dict) else None
    return number if isinstance(number, int) and not isinstance(number, bool) else 0
