"""Model calls out of the spans of other instrumentations.

A span of Agent Lightning 0.3, AgentOps, Traceloop (OpenLLMetry), OpenInference or plain GenAI is turned back
into the request and the response that it was made from, and these are decoded like those of the wire. So a
foreign span passes the same checks. Only names and shapes of those projects are used here. Nothing raises.
"""

from __future__ import annotations

import ast
import dataclasses
import json
from collections.abc import Mapping
from typing import Any, Optional

from . import messages, openai_wire
from .attributes import indexed_attributes
from .model_call import Issue, ModelCall, none
from .raw_call import CallStart, RawCall

_PROMPT_IDS = ("prompt_token_ids", "llm.hosted_vllm.prompt_token_ids")
_RESPONSE_IDS = ("response_token_ids", "llm.hosted_vllm.response_token_ids")
_IDS = frozenset({*_PROMPT_IDS, *_RESPONSE_IDS})
_PREFIXES = ("gen_ai.prompt.", "gen_ai.completion.", "llm.input_messages.", "llm.output_messages.")
_OPERATIONS = frozenset({"chat", "text_completion", "generate_content", "completion"})
_OPERATION = ("gen_ai.operation.name", "llm.request.type", "gen_ai.request.type")
_DECIDING = (*_IDS, *_OPERATION, "openinference.span.kind", "agentops.span.kind")
"""Attributes one of which says that a span is a model call, or is none."""
_TEXT = frozenset({"text_completion", "completion"})

_MODEL = ("gen_ai.request.model", "llm.request.model_name", "llm.model_name")
_RESPONSE_MODEL = ("gen_ai.response.model", "llm.response.model_name")
_INPUT_TOKENS = ("gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens", "llm.token_count.prompt")
_OUTPUT_TOKENS = (
    "gen_ai.usage.output_tokens",
    "gen_ai.usage.completion_tokens",
    "llm.token_count.completion",
)
_STREAM = ("gen_ai.request.stream", "gen_ai.request.streaming", "gen_ai.is_streaming")
_SAMPLING: Mapping[str, tuple[str, ...]] = {
    "temperature": ("gen_ai.request.temperature",),
    "top_p": ("gen_ai.request.top_p",),
    "top_k": ("gen_ai.request.top_k", "llm.top_k"),
    "max_tokens": ("gen_ai.request.max_tokens",),
    "seed": ("gen_ai.request.seed",),
    "frequency_penalty": ("gen_ai.request.frequency_penalty", "llm.frequency_penalty"),
    "presence_penalty": ("gen_ai.request.presence_penalty", "llm.presence_penalty"),
    "repetition_penalty": ("gen_ai.request.repetition_penalty",),
    "n": ("gen_ai.request.choice.count", "gen_ai.request.candidate_count", "gen_ai.request.n"),
}


def read(attributes: Mapping[str, Any]) -> Optional[ModelCall]:
    """Return the call that a foreign span records, or ``None`` where it records none."""
    if not is_model_call(attributes):
        return None
    issues: list[Issue] = []
    try:
        request, response = _request(attributes, issues), _response(attributes, issues)
        start = CallStart(
            operation="text_completion" if _first(attributes, _OPERATION) in _TEXT else "chat",
            url="",
            model=request.get("model"),
            stream=bool(_first(attributes, _STREAM)),
        )
        raw = RawCall(
            start=start,
            request_body=json.dumps(request, default=str).encode(),
            status=200,
            content_type="application/json",
            response_body=json.dumps(response, default=str).encode(),
            complete=True,
        )
        call = openai_wire.decode(raw)
    except Exception as error:  # noqa: BLE001 - attributes of strangers
        issues.append(Issue("warn", "attribute_unreadable", type(error).__name__))
        return ModelCall(token_capture=none("foreign_span"), issues=tuple(issues), capture_source="span")
    verdict = none("foreign_span") if call.token_capture == none("no_token_ids") else call.token_capture
    return dataclasses.replace(
        call,
        issues=(*issues, *call.issues),
        token_capture=verdict,
        capture_source="span",
        http_status=None,
    )


def request_model(attributes: Mapping[str, Any]) -> Optional[str]:
    """Return the model that a foreign span says was asked, if it says so."""
    model = _first(attributes, _MODEL)
    return model if isinstance(model, str) else None


def is_model_call(attributes: Mapping[str, Any]) -> bool:
    """Whether attributes, so far as they are set, are those of a chat or completion call."""
    # The agent's thread asks this of every span that it starts: most have none of these attributes.
    if type(attributes) is dict and attributes.keys().isdisjoint(_DECIDING):
        return _has_messages(attributes)
    if not _IDS.isdisjoint(attributes):
        return True
    kind = attributes.get("openinference.span.kind")
    if kind is not None:
        return bool(kind == "LLM")
    operation = _first(attributes, _OPERATION)
    if operation is not None:
        return isinstance(operation, str) and operation in _OPERATIONS
    # AgentOps' instrumentations of frameworks start a model call with no more than its kind and its model. An event
    # of 0.2 or 0.3 is a report of a call that has its span already.
    if attributes.get("agentops.span.kind") == "llm" and "agentops.event.id" not in attributes:
        return True
    return _has_messages(attributes)


def _has_messages(attributes: Mapping[str, Any]) -> bool:
    # Two searches in all names at once are cheaper than four in each; few spans come to the second look.
    try:
        names = "\n".join(attributes)
    except TypeError:  # names that are no texts; a stranger's mapping may have them
        return any(str(key).startswith(_PREFIXES) for key in attributes)
    if "gen_ai." not in names and "put_messages." not in names:
        return False
    return any(str(key).startswith(_PREFIXES) for key in attributes)


def _request(attributes: Mapping[str, Any], issues: list[Issue]) -> dict[str, Any]:
    request = {"model": _first(attributes, _MODEL), **_invocation(attributes)}
    for name, keys in _SAMPLING.items():
        value = _first(attributes, keys)
        if value is not None:
            request[name] = value
    request["messages"] = [
        _with_role(message, "user", f"request message {index}", issues)
        for index, message in enumerate(_asked(attributes, issues))
    ]
    tools = _tools(attributes)
    if tools:
        request["tools"] = tools
    return request


def _invocation(attributes: Mapping[str, Any]) -> dict[str, Any]:
    found = _value(attributes.get("llm.invocation_parameters"))
    if not isinstance(found, dict):
        return {}
    return {name: value for name, value in found.items() if name in openai_wire.SAMPLING_FIELDS}


def _asked(attributes: Mapping[str, Any], issues: list[Issue]) -> list[dict[str, Any]]:
    structured = _genai(attributes.get("gen_ai.input.messages"), issues)
    if structured:
        system = attributes.get("gen_ai.system_instructions")
        return [
            *_genai([{"role": "system", "parts": _value(system)}] if system else None, issues),
            *structured,
        ]
    return _flat_messages(attributes, "gen_ai.prompt", "llm.input_messages", issues)


def _response(attributes: Mapping[str, Any], issues: list[Issue]) -> dict[str, Any]:
    answered = _genai(
        attributes.get("gen_ai.output.messages"), issues, keep="finish_reason"
    ) or _flat_messages(attributes, "gen_ai.completion", "llm.output_messages", issues)
    finish_reasons = _value(attributes.get("gen_ai.response.finish_reasons"))
    single = _first(attributes, ("gen_ai.response.finish_reason", "llm.finish_reason"))
    choices: list[dict[str, Any]] = []
    for index, message in enumerate(answered):
        reason = message.pop("finish_reason", None) or _at(finish_reasons, index) or single
        said = _with_role(message, "assistant", f"answer {index}", issues)
        choices.append({"index": index, "message": said, "finish_reason": reason})
    _add_tokens(attributes, choices)
    response: dict[str, Any] = {
        "id": attributes.get("gen_ai.response.id"),
        "model": _first(attributes, _RESPONSE_MODEL),
        "choices": choices,
        "prompt_token_ids": _value(_first(attributes, _PROMPT_IDS)),
    }
    counts = {
        "prompt_tokens": _first(attributes, _INPUT_TOKENS),
        "completion_tokens": _first(attributes, _OUTPUT_TOKENS),
    }
    if any(value is not None for value in counts.values()):
        response["usage"] = counts
    return response


def _add_tokens(attributes: Mapping[str, Any], choices: list[dict[str, Any]]) -> None:
    """Put the ids and log-probabilities of 0.3 into the choices: a list for the first, or a list for each."""
    ids = _value(_first(attributes, _RESPONSE_IDS))
    proxied = _value(attributes.get("llm.hosted_vllm.choices"))
    if ids is None and isinstance(proxied, list):
        ids = [choice.get("token_ids") if isinstance(choice, dict) else None for choice in proxied]
    lists = (
        ids
        if isinstance(ids, list) and ids and isinstance(ids[0], list)
        else [ids]
        if ids is not None
        else []
    )
    for index, each in enumerate(lists):
        if index == len(choices):
            choices.append({"index": index, "message": {}, "finish_reason": None})
        choices[index]["token_ids"] = each
    logprobs = _value(attributes.get("logprobs.content"))
    if isinstance(logprobs, list) and choices:
        entries = [_value(entry) for entry in logprobs]
        content = [entry if isinstance(entry, dict) else {"token": "", "logprob": entry} for entry in entries]
        choices[0]["logprobs"] = {"content": content}


def _flat_messages(
    attributes: Mapping[str, Any], numbered: str, open_inference: str, issues: list[Issue]
) -> list[dict[str, Any]]:
    found = indexed_attributes(attributes, numbered) or [
        entry.get("message") if isinstance(entry, dict) else entry
        for entry in indexed_attributes(attributes, open_inference)
    ]
    read = []
    for index, entry in enumerate(found):
        if isinstance(entry, dict):
            read.append(_flat_message(entry))
        else:
            issues.append(Issue("warn", "message_unreadable", f"{numbered}.{index}"))
    return read


def _flat_message(entry: Mapping[str, Any]) -> dict[str, Any]:
    content = entry.get("content")
    message: dict[str, Any] = {"role": entry.get("role"), "content": content}
    if content is None and isinstance(entry.get("contents"), list):
        message["content"] = [
            _open_inference_content(part) for part in entry["contents"] if isinstance(part, dict)
        ]
    for key in ("name", "tool_call_id", "finish_reason"):
        if entry.get(key) is not None:
            message[key] = entry[key]
    calls = entry.get("tool_calls")
    if isinstance(calls, list):
        message["tool_calls"] = [_flat_tool_call(call) for call in calls if isinstance(call, dict)]
    return message


def _open_inference_content(part: Mapping[str, Any]) -> dict[str, Any]:
    found = part.get("message_content")
    found = found if isinstance(found, dict) else {}
    image = found.get("image")
    if isinstance(image, dict):
        inner = image.get("image")
        return {
            "type": "image_url",
            "image_url": {"url": inner.get("url") if isinstance(inner, dict) else inner},
        }
    return {"type": "text", "text": found.get("text")}


def _flat_tool_call(call: Mapping[str, Any]) -> dict[str, Any]:
    found = call.get("tool_call")
    found = found if isinstance(found, dict) else call
    function = found.get("function")
    function = function if isinstance(function, dict) else found
    return {
        "id": found.get("id"),
        "type": "function",
        "function": {"name": function.get("name"), "arguments": function.get("arguments")},
    }


def _tools(attributes: Mapping[str, Any]) -> list[dict[str, Any]]:
    definitions = _value(attributes.get("gen_ai.tool.definitions"))
    if isinstance(definitions, list):
        return [each for each in definitions if isinstance(each, dict)]
    tools = []
    for prefix in ("gen_ai.request.functions", "llm.request.functions", "gen_ai.request.tools"):
        for entry in indexed_attributes(attributes, prefix):
            if isinstance(entry, dict):
                function = {**entry, "parameters": _value(entry.get("parameters"))}
                tools.append({"type": "function", "function": function})
    for entry in indexed_attributes(attributes, "llm.tools"):
        tool = entry.get("tool") if isinstance(entry, dict) else None
        schema = _value(tool.get("json_schema")) if isinstance(tool, dict) else None
        if isinstance(schema, dict):
            tools.append(schema)
    return tools


def _genai(value: Any, issues: list[Issue], keep: Optional[str] = None) -> list[dict[str, Any]]:
    found = _value(value)
    read = []
    for index, message in enumerate(found if isinstance(found, list) else ()):
        turned = messages.from_genai(message) if isinstance(message, dict) else None
        if not isinstance(turned, dict):
            issues.append(Issue("warn", "message_unreadable", f"message {index}"))
            continue
        read.append({**turned, keep: message.get(keep)} if keep else turned)
    return read


def _with_role(message: dict[str, Any], default: str, where: str, issues: list[Issue]) -> dict[str, Any]:
    if message.get("role"):
        return message
    role = "tool" if message.get("tool_call_id") else "assistant" if message.get("tool_calls") else default
    issues.append(Issue("info", "role_inferred", f"{where}: {role}"))
    return {**message, "role": role}


def _value(value: Any) -> Any:
    """Return what an attribute that may be JSON, or the ``repr`` of a list, stands for."""
    if not isinstance(value, str):
        return list(value) if isinstance(value, tuple) else value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None


def _at(value: Any, index: int) -> Any:
    return value[index] if isinstance(value, list) and index < len(value) else None


def _first(attributes: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    for name in names:
        value = attributes.get(name)
        if value is not None:
            return value
    return None
