"""The traces of ``tests/data/traces``: how they are read, and the form in which calls are compared.

A file is ``{"head": …, "spans": […]}`` in the JSON of ``codec.json_text``, which has words for NaN and lone
surrogates. The head says where the trace comes from and what must be read from it; a key that is absent there
must not be found: a reader that guesses fails as one that misses.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentlightning.codec import json_text
from agentlightning.codec.model_call import ModelCall
from agentlightning.types import Span

FOLDER = Path(__file__).resolve().parents[1] / "data" / "traces"


@dataclass(frozen=True)
class TraceFile:
    """One trace."""

    name: str
    head: dict[str, Any]
    spans: list[Span]

    @property
    def expect(self) -> dict[str, Any]:
        """What must come of it."""
        found: dict[str, Any] = self.head["expect"]
        return found


def names() -> list[str]:
    """Return the names of all traces."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def load(name: str) -> TraceFile:
    """Read one trace; spans that no validation would let pass are kept as they are."""
    found = json_text.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return TraceFile(name, found["head"], [Span.model_validate(span) for span in found["spans"]])


def dump(head: dict[str, Any], spans: list[dict[str, Any]]) -> str:
    """Return the text of a file: a line for each span, so that a change can be read."""
    shown = json.dumps(json.loads(json_text.dumps(head)), indent=1)
    lines = ",\n".join(json_text.dumps(span) for span in spans)
    return f'{{"head":{shown},\n"spans":[\n{lines}\n]}}\n'


def view(call: ModelCall) -> dict[str, Any]:
    """Return what of a call is compared: facts alone, what is absent left out."""
    usage = call.usage
    return without_nothing(
        {
            "model": call.request_model,
            "response_id": call.response_id,
            "messages": [message_view(message) for message in call.request_messages],
            "prompt": call.prompt,
            "tools": [(tool.get("function") or tool).get("name") for tool in call.tools],
            "answers": [
                without_nothing(
                    {
                        "text": choice.content,
                        "reasoning": choice.reasoning,
                        "tool_calls": [_tool_call(each.as_json()) for each in choice.tool_calls],
                        "finish_reason": choice.finish_reason,
                        "token_ids": None if choice.token_ids is None else list(choice.token_ids),
                        "logprobs": None if choice.logprobs is None else list(choice.logprobs),
                    }
                )
                for choice in call.choices
            ],
            "usage": None if usage is None else [usage.input_tokens, usage.output_tokens],
            "prompt_token_ids": None if call.prompt_token_ids is None else list(call.prompt_token_ids),
            "token_capture": call.token_capture,
        }
    )


def message_view(message: Any) -> dict[str, Any]:
    """Return a message of the OpenAI API in the form that is compared."""
    calls = message.get("tool_calls")
    return without_nothing(
        {
            "role": message.get("role"),
            "text": _text(message.get("content")),
            "reasoning": message.get("reasoning_content"),
            "tool_calls": [_tool_call(call) for call in calls] if isinstance(calls, list) else None,
            "tool_call_id": message.get("tool_call_id"),
        }
    )


def _text(content: Any) -> Any:
    if not isinstance(content, list):
        return content
    parts = [_part(part) for part in content]
    return parts[0] if len(parts) == 1 else parts


def _part(part: Any) -> Any:
    if isinstance(part, dict) and part.get("type") == "text":
        return part.get("text")
    if isinstance(part, dict) and part.get("type") == "image_url":
        return {"image": part["image_url"]["url"]}
    return part


def _tool_call(call: Any) -> dict[str, Any]:
    function = call.get("function") or {}
    arguments: Any = function.get("arguments")
    try:
        arguments = json.loads(arguments)
    except (TypeError, ValueError):
        pass
    return without_nothing({"id": call.get("id"), "name": function.get("name"), "arguments": arguments})


def without_nothing(found: dict[str, Any]) -> dict[str, Any]:
    """Leave out what is ``None``, an empty text or an empty list."""
    return {name: value for name, value in found.items() if value is not None and value not in ("", [])}
