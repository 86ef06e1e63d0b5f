"""Requests and responses that a foreign span holds whole, beside or in place of attributes for each field.

Where an instrumentation keeps the very body, the body is read: it has the token ids, the response id and the tool
calls for which its dialect has no name. Pure functions; nothing raises. Who keeps what, and where:

* OpenInference both bodies, as JSON in ``input.value`` and ``output.value`` (openinference-instrumentation-openai
  0.1.66); around LangChain it is LangChain's result, which still has the response id;
* LiteLLM each field of both under ``llm.<provider>.``, as JSON or ``repr`` (litellm 1.106, ``raw_gen_ai_request``);
* AgentOps 0.3 the event of the call in ``event.data`` (agentops 0.3.26).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .attribute_values import value_of

_RAW = re.compile(r"llm\.[^.]+\.choices")
_ANSWERS = frozenset({"chat.completion", "chat.completion.chunk", "text_completion"})


@dataclass(frozen=True, slots=True)
class Bodies:
    """What a span holds whole; each empty where it holds none."""

    request: Mapping[str, Any] = field(default_factory=dict)
    response: Mapping[str, Any] = field(default_factory=dict)


def bodies_of(attributes: Mapping[str, Any]) -> Bodies:
    """Return the request and the response that are held whole."""
    event = event_of(attributes)
    if event is not None:
        return _of_event(event)
    prefix = raw_prefix(attributes)
    if prefix is not None:
        return _of_raw(attributes, prefix)
    return Bodies(_question(attributes.get("input.value")), _answer(attributes.get("output.value")))


def raw_prefix(attributes: Mapping[str, Any]) -> str | None:
    """Return ``llm.<provider>.`` of a span in which LiteLLM keeps the fields of both bodies."""
    try:
        # Ten times faster than a look at each, and few spans have it.
        if ".choices" not in "\n".join(attributes):
            return None
    except TypeError:  # a key that is no text
        pass
    found = (str(name) for name in attributes if _RAW.fullmatch(str(name)))
    return next((name.removesuffix("choices") for name in found), None)


def event_of(attributes: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the event of a model call that a span of AgentOps 0.3 stands for."""
    if attributes.get("event.type") != "llms":
        return None
    return _object(attributes.get("event.data"))


def _of_event(event: Mapping[str, Any]) -> Bodies:
    asked = _object(event.get("params"))
    request = asked if isinstance(asked.get("messages"), list) else {**asked, **_asked(event.get("prompt"))}
    if not request.get("model"):
        request = {**request, "model": event.get("model")}
    raw = _answer(event.get("returns"))  # blank from 0.3.21 on
    if raw:
        return Bodies(request, raw)
    said = event.get("completion")
    message = said if isinstance(said, dict) else {"role": "assistant", "content": said}
    counts = {name: event.get(name) for name in ("prompt_tokens", "completion_tokens")}
    choices = [] if said is None else [{"index": 0, "message": message}]
    usage = counts if any(count is not None for count in counts.values()) else None
    return Bodies(request, {"model": event.get("model"), "choices": choices, "usage": usage})


def _asked(prompt: Any) -> dict[str, Any]:
    if isinstance(prompt, list):
        return {"messages": prompt}
    return {} if prompt is None else {"messages": [{"role": "user", "content": prompt}]}


def _of_raw(attributes: Mapping[str, Any], prefix: str) -> Bodies:
    # Fields of both stand under one prefix; no name is in both but `model`, which servers repeat.
    fields = {
        key.removeprefix(prefix): _field(value)
        for key, value in attributes.items()
        if isinstance(key, str) and key.startswith(prefix)
    }
    request = fields if isinstance(fields.get("messages"), list) or fields.get("prompt") is not None else {}
    return Bodies(request, fields)


def _field(value: Any) -> Any:
    if not isinstance(value, str) or not value.startswith(("{", "[")):
        return value
    found = value_of(value)
    return value if found is None else found


def _question(value: Any) -> Mapping[str, Any]:
    """Return a request of the OpenAI API; LangChain keeps messages of another shape in the same place."""
    found = _object(value)
    asked = found.get("messages", [])
    known = isinstance(asked, list) and all(isinstance(each, dict) and "role" in each for each in asked)
    return found if known else {}


def _answer(value: Any) -> Mapping[str, Any]:
    """Return a response of the OpenAI API, and nothing that is only like one."""
    found = _object(value)
    if "generations" in found:
        return _of_langchain(found)
    if found.get("object") == "response":  # of the Responses API, whose other fields have other forms
        return {name: found.get(name) for name in ("id", "model", "object")}
    return found if found.get("object") in _ANSWERS else {}


def _of_langchain(result: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the id that LangChain keeps of a response, in the first message of its result."""
    found: Any = result
    for key in ("generations", 0, 0, "message", "kwargs", "response_metadata", "id"):
        try:
            found = found[key]
        except (KeyError, IndexError, TypeError):
            return {}
    return {"id": found}


def _object(value: Any) -> Mapping[str, Any]:
    # Looked at before it is parsed: most values are plain text.
    found = value_of(value) if not isinstance(value, str) or value.lstrip().startswith("{") else None
    return found if isinstance(found, dict) else {}
