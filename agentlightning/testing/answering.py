"""A model that needs no weights: what ``agl fake-model`` serves, and a script for :class:`~.fake_openai.FakeOpenAI`.

    with FakeOpenAI(fake_model) as server:
        ...

Where tools are offered, it calls the first, with numbers and words of the question as arguments; it repeats what the
tool has said, or the question where there is no tool. Where a call is required after a result, it calls the last. The
same request always gets the same answer. Its answers have what a trainer needs of an engine, in vLLM's fields: token
ids, log-probabilities, and prompts that go on where the answer before them ended. There is nothing to learn from them.

Of a JSON Schema it keeps ``type``, ``properties``, ``required``, ``items``, ``enum``, ``const``, ``$ref`` within the
schema, and the first of ``anyOf``, ``oneOf`` and ``allOf``. It does not keep what narrows a value (``minimum``,
``pattern``, ``minItems``, ``format``, …) nor the others of ``allOf``; a tool that checks these may refuse its
arguments.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any
from urllib.parse import unquote

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
_MOST_VALUES = 1_000
"""Values of a schema that are filled in; one that names itself in many places is wide at every level."""
_MOST_CHOICES = 128
"""The largest ``n``, as of the OpenAI API (https://platform.openai.com/docs/api-reference/chat/create)."""


class _RefusedError(ValueError):
    """What is asked has no answer; the text says why."""


def fake_model(request: ReceivedRequest) -> Answer | Fault:
    """Return the answer to a request: a tool call, JSON of the schema that is asked for, or a sentence.

    Settings that matter here: ``tools``, ``tool_choice``, ``response_format``, ``n``, and the largest number of tokens.
    What is not as the OpenAI API has it is refused with status 400 and a sentence.
    """
    try:
        return _answer(_asked(request))
    except _RefusedError as error:
        said = written_error(str(error), kind="invalid_request_error", code=400)
        return Fault(400, body=json.dumps(said).encode())


def _asked(request: ReceivedRequest) -> dict[str, Any]:
    try:
        asked = request.json()
        json.dumps(asked, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise _RefusedError("the body has half of a character: a surrogate without its pair") from error
    except (ValueError, RecursionError) as error:
        raise _RefusedError("the body is no JSON object") from error
    if not isinstance(asked, dict):
        raise _RefusedError("the body is no JSON object")
    return asked


def _answer(asked: Mapping[str, Any]) -> Answer:
    messages = [each for each in _list(asked, "messages") if isinstance(each, dict)]
    question = _words(next((each for each in reversed(messages) if each.get("role") == "user"), {}))
    name, parameters = _tool(asked, messages)
    schema = _answer_schema(asked)
    if name:
        call = ToolCallAnswer(
            name,
            json.dumps(_filled({"type": "object", **parameters}, question)),
            f"call_{len(messages)}",
        )
        choice = AnswerChoice(tokens_of_calls([call]), (call,), "tool_calls")
    elif schema is not None:
        choice = _cut(tokens_of(json.dumps(_filled(schema, question))), asked)
    elif result := _result(messages):
        choice = _cut(tokens_of(f"The answer is {_words(result)}."), asked)
    else:
        choice = _cut(tokens_of(f"You said: {question or asked.get('prompt')}"), asked)
    many = 1 if asked.get("n") is None else asked["n"]
    if not isinstance(many, int) or not 1 <= many <= _MOST_CHOICES:
        raise _RefusedError(f"n must be a whole number from 1 to {_MOST_CHOICES}")
    return Answer(
        (choice,) * many,
        prompt_token_ids=None,
        id=None,
        model=str(asked.get("model") or "fake-model"),
    )


def _list(found: Mapping[str, Any], name: str) -> list[Any]:
    """Return a list of a request or a schema; an empty one where there is none."""
    value = found.get(name)
    if value is not None and not isinstance(value, list):
        raise _RefusedError(f"{name} must be a list")
    return value or []


def _object(found: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return an object of a request or a schema; an empty one where there is none."""
    value = found.get(name)
    if value is not None and not isinstance(value, dict):
        raise _RefusedError(f"{name} must be an object")
    return value or {}


def _result(messages: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return what came of the last call of a tool, or ``None`` where the question has had none.

    It is not always the last message: some agents put one of their own behind each result, or tell it as the user.
    """
    begins, called = 0, None
    for at, message in enumerate(messages):
        if message.get("tool_calls") or message.get("function_call"):
            called = at
        elif message.get("role") == "user" and at and _is_answer(messages[at - 1]):
            begins, called = at, None  # a question of its own
    results = [each for each in messages[begins:] if each.get("role") in {"tool", "function"}]
    if not results and called is not None:
        results = messages[called + 1 :]
    return results[-1] if results else None


def _is_answer(message: Mapping[str, Any]) -> bool:
    is_call = message.get("tool_calls") or message.get("function_call")
    return message.get("role") == "assistant" and not is_call


def _words(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, list):
        return " ".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def _tool(asked: Mapping[str, Any], messages: list[dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    """Return the name and the schema of the tool that is called, or an empty name where none is."""
    offered = [_object(each, "function") for each in _list(asked, "tools") if isinstance(each, dict)]
    if any(not isinstance(each.get("name", ""), str) for each in offered):
        raise _RefusedError("the name of a tool must be a text")
    tools = {each["name"]: _object(each, "parameters") for each in offered if each.get("name")}
    wanted = asked.get("tool_choice")
    if isinstance(wanted, dict):
        named = wanted.get("function")
        name = str(named.get("name")) if isinstance(named, dict) else ""
        return (name, tools[name]) if name in tools else ("", {})
    is_answered = _result(messages) is not None
    if not tools or wanted == "none" or (is_answered and wanted != "required"):
        return "", {}
    # Agents that require a call each time end by one of them: smolagents offers ``final_answer`` as the last.
    return [*tools.items()][-1 if is_answered else 0]


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
    numbers = (text for text in _NUMBER.findall(question) if math.isfinite(float(text)))
    return _Filling(whole, question, numbers, count()).value(whole, 0)


@dataclass(frozen=True)
class _Filling:
    schema: Mapping[str, Any]
    """The whole, in which names are looked up."""
    text: str
    numbers: Iterator[str]
    made: Iterator[int]

    def value(self, schema: Any, depth: int) -> Any:
        if not isinstance(schema, dict) or depth > _DEEPEST or next(self.made) >= _MOST_VALUES:
            return None
        if "const" in schema:
            return schema["const"]
        if allowed := _list(schema, "enum"):
            return allowed[0]
        if isinstance(schema.get("$ref"), str):
            return self.value(self._named(schema["$ref"]), depth + 1)
        for each in ("anyOf", "oneOf", "allOf"):
            if schemas := _list(schema, each):
                return self.value(schemas[0], depth + 1)
        kind = schema.get("type") or ("object" if "properties" in schema else "string")
        kind = kind[0] if isinstance(kind, list) else kind
        if not isinstance(kind, str):
            raise _RefusedError("type must be a name, or a list of names")
        return self._of_kind(kind, schema, depth)

    def _of_kind(self, kind: str, schema: Mapping[str, Any], depth: int) -> Any:
        if kind == "object":
            properties = _object(schema, "properties")
            wanted = _list(schema, "required") if "required" in schema else properties
            return {name: self.value(properties[name], depth + 1) for name in properties if name in wanted}
        if kind == "array":
            return [self.value(schema.get("items"), depth + 1)]
        if kind in {"integer", "number"}:
            number = next(self.numbers, "1")
            # A whole number is not made a float on its way: that holds 15 digits.
            whole = int(number.partition(".")[0])
            return whole if kind == "integer" else float(number)
        return {"boolean": True, "null": None}.get(kind, self.text)

    def _named(self, reference: str) -> Any:
        """Return what a JSON Pointer in a URI's fragment leads to (RFC 6901, 4 and 6); ``None`` where to nothing."""
        found: Any = self.schema if reference.startswith("#") else None
        for part in reference.split("/")[1:]:
            name = unquote(part).replace("~1", "/").replace("~0", "~")
            if isinstance(found, list):
                found = found[int(name)] if name.isdecimal() and int(name) < len(found) else None
            else:
                found = found.get(name) if isinstance(found, dict) else None
        return found
