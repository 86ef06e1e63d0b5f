"""The agent of the version matrix: every style of calling a model, against a model whose tokens are known.

Each style asks for a model of its own name, so that its span is found by that name, whoever made it. What a style
returns is what the agent would see: the types of what it was given and their content, or what was raised.
"""

from __future__ import annotations

import gc
import inspect
import threading
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from pydantic import BaseModel

from agentlightning.testing import FakeOpenAI
from agentlightning.testing.fake_openai import (
    Answer,
    AnswerChoice,
    Fault,
    Scripted,
    ToolCallAnswer,
    tokens_of,
)

Outcome = list[str]
Style = Callable[[Any], Outcome | Awaitable[Outcome]]

TEXT = '{"left": 1, "right": 2}'
TOKENS = tokens_of(TEXT)
NEVER = threading.Event()
"""A stream waits for it after its second event: what its agent has not read is never sent."""


class Sum(BaseModel):
    """What ``parse`` is asked for."""

    left: int
    right: int


def prompt_ids(style: str) -> tuple[int, ...]:
    """The ids of a style's prompt, unlike those of the others."""
    return tuple(style.encode())


def answer(request: Any) -> Scripted:
    """What the model says."""
    style = request.json()["model"]
    if style == "refused":
        return Fault(400)
    calls = (ToolCallAnswer("add", TEXT),) if style == "tool" else ()
    choice = AnswerChoice(TOKENS, calls, "tool_calls" if calls else "stop")
    return Answer(
        (choice,),
        prompt_token_ids=prompt_ids(style),
        model=style,
        id=f"chatcmpl-{style}",
        ids="always",
        logprobs="always",
        gates={2: NEVER} if "left_half_way" in style else {},
    )


def asking(style: str) -> dict[str, Any]:
    """The arguments of a call."""
    return {
        "model": style,
        "messages": [{"role": "user", "content": "add"}],
        "temperature": 1.0,
        "top_p": 1.0,
    }


def kind(value: Any) -> str:
    """The type that an agent sees; openai's own modules move."""
    found = type(value)
    return f"{found.__module__.partition('.')[0]}:{found.__qualname__}"


def has_response(stream: Any) -> str:
    """Whether a stream shows the response that it reads."""
    return str(getattr(getattr(stream, "response", None), "status_code", "no .response"))


def text_of(chunks: Iterable[Any]) -> str:
    """The content of a stream's chunks."""
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def whole(reply: Any) -> Outcome:
    """What a plain answer shows."""
    choice = reply.choices[0]
    return [kind(reply), reply.id, str(choice.message.content), str(choice.finish_reason), str(reply.usage)]


def with_helpers(client: Any) -> Any:
    """Return where ``parse`` and ``stream`` are: under ``beta`` up to 1.91."""
    return (
        client.chat.completions if hasattr(client.chat.completions, "parse") else client.beta.chat.completions
    )


# ---------------------------------------------------------------------- styles


def plain(client: Any) -> Outcome:
    return whole(client.chat.completions.create(**asking("plain")))


def stream(client: Any) -> Outcome:
    found = client.chat.completions.create(**asking("stream"), stream=True)
    return [kind(found), has_response(found), text_of(found)]


def stream_in_with(client: Any) -> Outcome:
    with client.chat.completions.create(**asking("stream_in_with"), stream=True) as found:
        return [kind(found), text_of(found)]


def left_half_way(client: Any) -> Outcome:
    with client.chat.completions.create(**asking("left_half_way"), stream=True) as found:
        pieces = iter(found)
        return [kind(found), kind(next(pieces)), kind(next(pieces))]


def parse(client: Any) -> Outcome:
    found = with_helpers(client).parse(**asking("parse"), response_format=Sum)
    return [*whole(found), repr(found.choices[0].message.parsed)]


def stream_helper(client: Any) -> Outcome:
    with with_helpers(client).stream(**asking("stream_helper")) as found:
        return [kind(found), *(event.type for event in found), *whole(found.get_final_completion())]


def raw(client: Any) -> Outcome:
    found = client.chat.completions.with_raw_response.create(**asking("raw"))
    return [kind(found), str(found.status_code), *whole(found.parse())]


def streaming_response(client: Any) -> Outcome:
    with client.chat.completions.with_streaming_response.create(**asking("streaming_response")) as found:
        return [kind(found), *whole(found.parse())]


def refused(client: Any) -> Outcome:
    return whole(client.chat.completions.create(**asking("refused")))


def tool(client: Any) -> Outcome:
    add = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
    reply = client.chat.completions.create(**asking("tool"), tools=[add])
    (call,) = reply.choices[0].message.tool_calls
    return [kind(reply), call.function.name, call.function.arguments]


async def later(client: Any) -> Outcome:
    return whole(await client.chat.completions.create(**asking("later")))


async def later_stream(client: Any) -> Outcome:
    found = await client.chat.completions.create(**asking("later_stream"), stream=True)
    return [kind(found), has_response(found), text_of([chunk async for chunk in found])]


async def later_left_half_way(client: Any) -> Outcome:
    async with await client.chat.completions.create(**asking("later_left_half_way"), stream=True) as found:
        pieces = aiter(found)
        return [kind(found), kind(await anext(pieces)), kind(await anext(pieces))]


async def later_parse(client: Any) -> Outcome:
    found = await with_helpers(client).parse(**asking("later_parse"), response_format=Sum)
    return [*whole(found), repr(found.choices[0].message.parsed)]


async def later_raw(client: Any) -> Outcome:
    found = await client.chat.completions.with_raw_response.create(**asking("later_raw"))
    return [kind(found), str(found.status_code), *whole(found.parse())]


STYLES: tuple[Style, ...] = (
    plain,
    stream,
    stream_in_with,
    left_half_way,
    parse,
    stream_helper,
    raw,
    streaming_response,
    refused,
    tool,
    later,
    later_stream,
    later_left_half_way,
    later_parse,
    later_raw,
)
NAMES: tuple[str, ...] = tuple(style.__name__ for style in STYLES)
CUT_OFF = frozenset({"left_half_way", "later_left_half_way"})


async def outcome_of(style: Callable[[Any], Any], client: Any) -> Outcome:
    """Call in one style; what it raises is an outcome too."""
    try:
        found = style(client)
        result: Outcome = await found if inspect.isawaitable(found) else found
    except Exception as error:  # an outcome like any other
        return ["raised", kind(error), str(error)]
    return result


async def run_all(model: FakeOpenAI, around: Callable[[Style], Callable[[Any], Any]]) -> dict[str, Outcome]:
    """Call in every style; ``around`` says what a step of the agent is wrapped in."""
    found = {}
    # Of what is searched for garbage after each style, all that is imported would be nearly everything.
    gc.collect()
    gc.freeze()
    with model.client(max_retries=0) as client:
        async with model.async_client(max_retries=0) as later_client:
            for style in STYLES:
                is_later = inspect.iscoroutinefunction(style)
                found[style.__name__] = await outcome_of(around(style), later_client if is_later else client)
                # AgentOps' streams close nothing. One that Python collects inside of httpcore's pool closes itself
                # there, under a lock that is held already, and hangs for ever.
                gc.collect()
    return found
