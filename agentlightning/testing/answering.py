"""A model that needs no weights: what ``agl fake-model`` serves, and a script for :class:`~.fake_openai.FakeOpenAI`.

    with FakeOpenAI(fake_model) as server:
        ...

Where tools are offered, it calls one, with numbers and words of the question as arguments; it repeats what the tool
has said, or the question where there is no tool. The same request always gets the same answer. Its answers have what a
trainer needs of an engine, in vLLM's fields: token ids, log-probabilities, and prompts that go on where the answer
before them ended. There is nothing to learn from them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..dialects.openai.errors import written_error
from .fake_openai import (
    Answer,
    AnswerChoice,
    Fault,
    ReceivedRequest,
    Token,
    ToolCallAnswer,
    tokens_of,
    tokens_of_calls,
)

_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_DEEPEST = 8
"""Levels of a schema that are filled in; one that names itself has no end."""


def fake_model(request: ReceivedRequest) -> Answer | Fault:
    """Return the answer to a request: a tool call, JSON of the schema that is asked for, or a sentence.

    Settings that matter here: ``tools``, ``tool_choice``, ``response_format``, ``n``, and the largest number of tokens.
    """
    try:
        asked = request.json()
    except ValueError:
        asked = None
    if not isinstance(asked, dict):
        error = written_error("the body is no JSON object", kind="invalid_request_error", code=400)
        return Fault(400, body=json.dumps(error).encode())
    messages = [each for each in asked.get("messages") or () if isinstance(each, dict)]
    question = _words(next((each for each in reversed(messages) if each.get("role") == "user"), {}))
    name, parameters = _tool(asked, messages)
    schema = _answer_schema(asked)
    if name:
        call = ToolCallAnswer(
            name,
            json.dumps(_filled({"type": "object", **(parameters or {})}, question)),
            f"call_{len(messages)}",
        )
        choice = AnswerChoice(tokens_of_calls([call]), (call,), "tool_calls")
    elif schema is not None:
        choice = _cut(tokens_of(json.dumps(_filled(schema, question))), asked)
    elif messages and messages[-1].get("role") == "tool":
        choice = _cut(tokens_of(f"The answer is {_words(messages[-1])}."), asked)
    else:
        choice = _cut(tokens_of(f"You said: {question or asked.get('prompt')}"), asked)
    many = asked.get("n")
    return Answer(
        (choice,) * (many if isinstance(many, int) and many > 0 else 1),
        prompt_token_ids=None,
        id=None,
        model=str(asked.get("model") or "fake-model"),
    )


def _words(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, list):
        return " ".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def _tool(asked: Mapping[str, Any], messages: list[dict[str, Any]]) -> tuple[str, Any]:
    """Return the name and the schema of the tool that is called, or an empty name where none is."""
    offered = [each.get("function") for each in asked.get("tools") or () if isinstance(each, dict)]
    tools = {
        each["name"]: each.get("parameters")
        for each in offered
        if isinstance(each, dict) and each.get("name")
    }
    wanted = asked.get("tool_choice")
    if isinstance(wanted, dict):
        named = wanted.get("function")
        name = str(named.get("name")) if isinstance(named, dict) else ""
        return (name, tools[name]) if name in tools else ("", None)
    has_answer = bool(messages) and messages[-1].get("role") == "tool"
    if not tools or wanted == "none" or (has_answer and wanted != "required"):
        return "", None
    return next(iter(tools.items()))


def _answer_schema(asked: Mapping[str, Any]) -> Any:
    """Return the schema that the answer has to fit, ``None`` where it may be any text."""
    wanted = asked.get("response_format")
    if not isinstance(wanted, dict) or wanted.get("type") not in {"json_schema", "json_object"}:
        return None
    inner = wanted.get("json_schema")
    return (inner.get("schema") if isinstance(inner, dict) else None) or {"type": "object"}


def _cut(tokens: tuple[Token, ...], asked: Mapping[str, Any]) -> AnswerChoice:
    limit = asked.get("max_completion_tokens") or asked.get("max_tokens")
    if isinstance(limit, int) and 0 < limit < len(tokens):
        return AnswerChoice(tokens[:limit], finish_reason="length")
    return AnswerChoice(tokens)


def _filled(schema: Any, question: str) -> Any:
    """Return a value that fits a JSON Schema: the numbers of the question in their order, and its words as texts."""
    whole = schema if isinstance(schema, dict) else {}
    return _Filling(whole, question, map(float, _NUMBER.findall(question))).value(whole, 0)


@dataclass(frozen=True)
class _Filling:
    schema: Mapping[str, Any]
    """The whole, in which names are looked up."""
    text: str
    numbers: Iterator[float]

    def value(self, schema: Any, depth: int) -> Any:
        if not isinstance(schema, dict) or depth > _DEEPEST:
            return None
        if "const" in schema:
            return schema["const"]
        if schema.get("enum"):
            return schema["enum"][0]
        if isinstance(schema.get("$ref"), str):
            return self.value(self._named(schema["$ref"]), depth + 1)
        for each in ("anyOf", "oneOf", "allOf"):
            if schema.get(each):
                return self.value(schema[each][0], depth + 1)
        kind = schema.get("type") or ("object" if "properties" in schema else "string")
        return self._of_kind(kind[0] if isinstance(kind, list) else kind, schema, depth)

    def _of_kind(self, kind: str, schema: Mapping[str, Any], depth: int) -> Any:
        if kind == "object":
            properties = schema.get("properties") or {}
            wanted = schema.get("required", properties)
            return {name: self.value(properties[name], depth + 1) for name in properties if name in wanted}
        if kind == "array":
            return [self.value(schema.get("items"), depth + 1)]
        number = next(self.numbers, 1.0) if kind in {"integer", "number"} else 0.0
        simple = {"integer": int(number), "number": number, "boolean": True, "null": None}
        return simple.get(kind, self.text)

    def _named(self, reference: str) -> Any:
        found: Any = self.schema
        for name in reference.removeprefix("#/").split("/"):
            found = found.get(name) if isinstance(found, dict) else None
        return found
