"""``TraceToMessages``: the model calls of a trace as conversations, in the shape of OpenAI's fine-tuning files.

Each choice of each call becomes one conversation: the messages of the request and the answer. Calls are read
by ``dialects.spans.genai``, so spans of other instrumentations serve as well as ours; a message that cannot be read is
left out there and costs nothing else. No trace makes the adapter raise.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypedDict

from .. import _lazy
from ..codec.attributes import filter_and_unflatten_attributes, is_late
from ..dialects.model_call import Choice, ModelCall
from ..dialects.spans.genai import read_call
from ..rows.tree import as_spans
from ..types import Span
from .base import TraceAdapter

if not TYPE_CHECKING:  # a checker would take any name for one of this module
    __getattr__ = _lazy.without_absent(__name__)


class OpenAIMessages(TypedDict):
    """One conversation."""

    messages: list[dict[str, Any]]
    """In the shape of the OpenAI chat API; the last one is the answer, if there was any."""
    tools: list[dict[str, Any]] | None
    """Tool definitions of the request; ``None`` where it had none."""


class TraceToMessages(TraceAdapter[list[OpenAIMessages]]):
    """Makes conversations of the model calls of a trace, by start time; see the module's docstring."""

    def adapt(self, source: Sequence[Span], /) -> list[OpenAIMessages]:
        """Return one conversation per choice of each call that says anything."""
        spans = [span for span in as_spans(source) if not is_late(span.attributes)]
        found: list[OpenAIMessages] = []
        for span in spans:
            call = read_call(span)
            if call is not None:
                found += self._conversations(span, call, spans)
        return found

    def get_tool_calls(self, completion: Span, all_spans: Sequence[Span], /) -> Iterable[dict[str, Any]]:
        """Yield the attributes under ``tool.`` of the direct children of a call, nested.

        AgentOps records a tool call as a child span of the completion that asked for it.
        """
        for span in all_spans:
            # Parents in a circle put a span under itself.
            if span.parent_id == completion.span_id and span is not completion:
                tool = _tool(span)
                if tool:
                    yield tool

    def _conversations(self, span: Span, call: ModelCall, spans: Sequence[Span]) -> Iterable[OpenAIMessages]:
        asked = _asked(call)
        tools = [copy.deepcopy(dict(tool)) for tool in call.tools] or None
        # A call that failed still says what was asked.
        if not call.choices and asked:
            yield OpenAIMessages(messages=asked, tools=tools)
        for choice in call.choices:
            answer = _answer(choice)
            # With several choices nobody can tell which of them asked for the tools.
            if "tool_calls" not in answer and len(call.choices) == 1:
                children = [_openai_tool_call(tool) for tool in self.get_tool_calls(span, spans)]
                if children:
                    answer["tool_calls"] = children
            if asked or answer.get("content") is not None or "tool_calls" in answer:
                # Copies: spans must not change when a user edits a conversation, nor one choice when another is edited.
                yield OpenAIMessages(messages=[*copy.deepcopy(asked), answer], tools=tools)


def _asked(call: ModelCall) -> list[dict[str, Any]]:
    if call.operation == "text_completion":
        return [{"role": "user", "content": call.prompt}] if isinstance(call.prompt, str) else []
    return [copy.deepcopy(dict(message)) for message in call.request_messages]


def _answer(choice: Choice) -> dict[str, Any]:
    return copy.deepcopy(choice.message())


def _tool(span: Span) -> dict[str, Any]:
    try:
        found = filter_and_unflatten_attributes(span.attributes, "tool")
    except ValueError:  # an attribute that is called ``tool`` exactly
        return {}
    return found if isinstance(found, dict) else {}


def _openai_tool_call(tool: dict[str, Any]) -> dict[str, Any]:
    identity, kind = _identity(tool.get("call"))
    return {
        "id": identity,
        "type": kind,
        "function": {"name": tool.get("name"), "arguments": tool.get("parameters")},
    }


def _identity(call: Any) -> tuple[str | None, str]:
    known = call if isinstance(call, dict) else {}
    return known.get("id"), known.get("type") or "function"
