"""The traces of ``tests/data/traces``: how they are read, and the form in which calls are compared.

A file is ``{"head": …, "spans": […]}`` in the JSON of ``codec.json_text``, which has words for NaN and lone
surrogates. The head says where the trace comes from and what must be read from it; a key that is absent there
must not be found: a reader that guesses fails as one that misses.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentlightning.codec import json_text
from agentlightning.dialects.model_call import ModelCall
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
                        "broken_off": choice.broken_off or None,
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


# ---------------------------------------------------------------------- what is published of it

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "dialects.md"
TABLE = re.compile(r"(<!-- recorded: traces -->\n).*?(<!-- end -->)", re.DOTALL)

_TOOLS = frozenset({"openai_agents", "pydantic_ai", "strands", "langchain_agent", "langgraph_agent"})
_FACTS = ("messages", "tools", "tool_calls", "finish_reason", "usage", "response_id", "token_ids")


def page_with_table() -> str:
    """Return the page on dialects with the table that the recorded traces give."""
    return TABLE.sub(rf"\1\n{_table()}\n\2", PAGE.read_text(encoding="utf-8"))


def _table() -> str:
    groups: dict[tuple[str, str], list[TraceFile]] = {}
    for trace in map(load, names()):
        libraries = trace.head.get("libraries")
        if libraries and trace.head["dialect"] != "agentlightning":
            recorded = ", ".join(f"{name} {version}" for name, version in libraries.items())
            groups.setdefault((trace.head["dialect"], recorded), []).append(trace)
    lines = [["dialect", "recorded with", *(fact.replace("_", " ") for fact in _FACTS)]]
    lines.append(["---"] * len(lines[0]))
    for (dialect, recorded), traces in sorted(groups.items()):
        lines.append([dialect, recorded, *(_how_often(fact, traces) for fact in _FACTS)])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _how_often(fact: str, traces: list[TraceFile]) -> str:
    seen = {held for trace in traces for held in _held(fact, trace)}
    return "" if not seen else "some" if len(seen) == 2 else "yes" if seen == {True} else "–"


def _held(fact: str, trace: TraceFile) -> list[bool]:
    """Return for each call that could have a fact whether the trace has it."""
    with_tools = trace.head["program"] in _TOOLS or trace.head["program"].endswith("_tools")
    calls = [call for call in trace.expect["calls"] if "calls_failed" not in trace.expect["reasons"]]
    if fact == "tool_calls":  # one answer of each conversation with tools has them
        return [
            any("tool_calls" in answer for call in calls for answer in call.get("answers", ()))
        ] * with_tools
    if fact in {"finish_reason", "token_ids"}:
        return [any(fact in answer for answer in call.get("answers", ())) for call in calls]
    if fact == "messages":
        return ["messages" in call or "prompt" in call for call in calls]
    return [fact in call for call in calls] if fact != "tools" or with_tools else []
