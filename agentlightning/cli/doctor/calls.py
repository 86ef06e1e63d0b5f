"""The model calls of the canary: what the model says to each, token by token, and so what has to be in the store."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from ...testing.fake_openai import Answer, AnswerChoice, ToolCallAnswer, tokens_of

MODEL: Final = "agl-doctor"
QUESTION: Final[dict[str, Any]] = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "What is 2 + 3?"}],
}
TOOL: Final[dict[str, Any]] = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add two numbers.",
        "parameters": {"type": "object", "properties": {"a": {"type": "number"}, "b": {"type": "number"}}},
    },
}


@dataclass(frozen=True)
class Call:
    """One call and its answer."""

    style: str
    """How it is made, and its name: ``plain``, ``tool call``, ``streamed``, ``in a thread``, ``async`` …"""
    answer: Answer

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        """Token ids of the prompt."""
        return self.answer.prompt_token_ids or ()

    @property
    def ids(self) -> tuple[int, ...]:
        """Token ids that were sampled."""
        return tuple(token.id for token in self.answer.choices[0].tokens)

    @property
    def logprobs(self) -> tuple[float | None, ...]:
        """Their log-probabilities."""
        return tuple(token.logprob for token in self.answer.choices[0].tokens)

    @property
    def said(self) -> str:
        """What the agent has to get: the text, or the tool that is called and with what."""
        choice = self.answer.choices[0]
        called = "".join(f"{tool.name}({tool.arguments})" for tool in choice.tool_calls)
        return called or str(choice.content)


def _call(style: str, text: str, tool: ToolCallAnswer | None = None) -> Call:
    choice = AnswerChoice(
        tokens_of(text), (tool,) if tool else (), finish_reason="tool_calls" if tool else "stop"
    )
    # A prompt of its own for each call, so that one cannot be taken for another.
    number = sum(map(ord, style))
    return Call(
        style,
        Answer(
            (choice,),
            prompt_token_ids=(101, 102, number),
            model=MODEL,
            id=f"chatcmpl-{style.replace(' ', '-')}",
            # Shown without being asked: what is tried here is the capture; asking is off by default.
            ids="always",
            logprobs="always",
        ),
    )


_ADD = ToolCallAnswer("add", '{"a": 2, "b": 3}')

SYNC: Final = (
    _call("tool call", "let me add these numbers", _ADD),
    _call("plain", "2 + 3 is 5"),
    _call("streamed", "the sum of both is five"),
    _call("streamed tool call", "once more with the tool", _ADD),
    _call("in a thread", "five it is"),
)
ASYNC: Final = (
    _call("async", "it is 5 again"),
    _call("async streamed", "a last time it is five"),
)
CALLS: Final = SYNC + ASYNC
