"""Spans as another party's viewer reads them: what a store keeps in our own words becomes the conventions' words.

A copy says what the span says and nothing more: a count, a usage or a finish reason that is not known is absent. The
root of an attempt is the invocation of an agent, whose message is the rollout's task; a function's span has the
function's name. It leaves out what is kept of each token (ids, log-probabilities, masks, experts, versions), which no
viewer shows and which is most of a span's bytes, unless it is asked for.

Formats: OpenTelemetry's semantic conventions for generative AI, 0.1.0 (``gen_ai.*``; the JSON schemas of
``gen_ai.input.messages``, ``gen_ai.output.messages`` and ``gen_ai.tool.definitions``; the event
``gen_ai.evaluation.result``), and OpenInference's (``openinference``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import isfinite
from typing import Any, NamedTuple

from ...codec import json_values
from ...codec.attributes import attributes_below, unflatten_attributes
from ...codec.task_text import only_text
from ...semconv import (
    AGL_OPERATION,
    AGL_REWARD,
    LightningResourceAttributes,
    LightningSpanAttributes,
    LinkAttributes,
    RewardAttributes,
)
from ...types.attributes import AttributeValue
from ..conventions import Conventions
from ..model_call import ModelCall
from . import openinference
from .attribute_values import dumped
from .genai import (
    FINISH_REASONS,
    INPUT_MESSAGES,
    OPERATION_NAME,
    OUTPUT_MESSAGES,
    RESPONSE_ID,
    TOOL_DEFINITIONS,
)
from .messages import ORIGINAL

EVALUATION_EVENT = "gen_ai.evaluation.result"
EVALUATION_NAME = "gen_ai.evaluation.name"
EVALUATION_SCORE = "gen_ai.evaluation.score.value"

_ARGUMENTS, _RESULT = "gen_ai.tool.call.arguments", "gen_ai.tool.call.result"
CONTENT = (INPUT_MESSAGES, OUTPUT_MESSAGES, TOOL_DEFINITIONS, _ARGUMENTS, _RESULT)
"""Attributes that hold what was said."""
_EMITTED = (
    LightningSpanAttributes.MESSAGE_BODY.value,
    LightningSpanAttributes.OBJECT_LITERAL.value,
    LightningSpanAttributes.OBJECT_JSON.value,
    LightningSpanAttributes.OPERATION_INPUT.value,
    LightningSpanAttributes.OPERATION_OUTPUT.value,
)
"""Beginnings of the names of those that hold what an agent has emitted, or an operation's arguments and result."""

_PER_TOKEN = re.compile(
    r"agentlightning\.(?:prompt_token_ids|prompt_logprobs|policy_version"
    r"|choice\.[^.]*\.(?:token_ids|logprobs|routed_experts|sampling_mask)|write_back\..*)"
)
_EXCHANGE = "agentlightning.exchange."
"""Beginning of what a document that was imported says beside its spans, token ids among it; to write it again, and for
no viewer."""
_DATA_URL = re.compile(r"data:(?P<type>[^;,]*)(?:;[^,]*)?;base64,(?P<data>.*)", re.DOTALL)
_REWARD = LightningSpanAttributes.REWARD.value
_LINK = LightningSpanAttributes.LINK.value
_OPERATION = LightningSpanAttributes.OPERATION_NAME.value
_OURS = "agentlightning."
_OF_LIBRARIES = (
    *("http.", "url.", "rpc.", "db.", "messaging.", "faas.", "graphql."),
    *("gen_ai.", "llm.", "openinference.", "traceloop.", "agentops."),
)
"""Beginnings of attributes by OpenTelemetry's conventions, and by others' for agents."""
_TOOL_WORDS = ("kind", "type")
"""Attributes in which users of ``operation`` write what it is: ``@operation(kind="tool")``."""


class Copying(NamedTuple):
    """What a copy has."""

    conventions: Conventions = "gen_ai"
    content: bool = True
    """Whether messages and definitions of tools are in it."""
    tokens: bool = False
    """Whether ids, log-probabilities and the like of each token are in it."""


def task_text(task: Any) -> str:
    """Return a rollout's input as a text; a mapping with one text is that text. Empty where there is none.

    The keys of a mapping may be lost, and with them what says that a value is a secret: it is masked before this.
    """
    found = only_text(task)
    return dumped(task) if found is None else found


def name_of_copy(name: str, attributes: Mapping[str, Any]) -> str:
    """Return what the copy of a span is called: an operation by its own name, such as that of its function."""
    own = attributes.get(_OPERATION) if name == AGL_OPERATION else None
    return own if isinstance(own, str) and own and own != AGL_REWARD else name


def copy_of(
    name: str,
    attributes: Mapping[str, Any],
    call: ModelCall | None,
    copying: Copying,
    *,
    ids: tuple[str, str] = ("", ""),
    is_root: bool = False,
    task: str = "",
) -> dict[str, AttributeValue]:
    """Return the attributes of the copy of a span.

    Args:
        name: That of the span.
        attributes: Those of the span, as a store keeps them.
        call: The model call that they record, where they do.
        copying: What the copy has.
        ids: Rollout and attempt; empty ones are left out.
        is_root: Whether the span is the first of its attempt.
        task: What a root was asked: the rollout's input, masked as the attributes are, by :func:`task_text`.
    """
    found = {
        key: value
        for key, value in attributes.items()
        if not key.startswith(_EXCHANGE) and (copying.tokens or not _PER_TOKEN.fullmatch(key))
    }
    work = _work_of(name, attributes)
    is_agent = (
        is_root and call is None and not name.startswith(_OURS) and not any(map(_says_what_it_is, found))
    )
    found.update(ids_of_copy(ids, copying))
    _put_plain(found, call)
    if is_agent:
        found[OPERATION_NAME] = "invoke_agent"
        if task and task != name:
            found[INPUT_MESSAGES] = dumped([{"role": "user", "parts": [{"type": "text", "content": task}]}])
    if work is not None and work.is_tool:
        found.update(_tool_call(work))
    evaluated = evaluations(attributes)
    if evaluated:  # for viewers that show no events; the first is the primary one
        found.update(evaluated[0])
    if copying.conventions == "openinference":
        kind = "AGENT" if is_agent else "TOOL" if work is not None and work.is_tool else "CHAIN"
        given = (task or None if is_agent else None, None) if work is None else (work.given, work.result)
        found |= openinference.attributes_of_copy(call, found, kind=kind, work=given)
    if not copying.content:
        found = {key: value for key, value in found.items() if not _says_something(key)}
    return found


class _Work(NamedTuple):
    """What an operation was given, and what came of it; ``None``: that was not recorded."""

    name: str
    given: Any
    result: Any
    is_tool: bool


def _work_of(name: str, attributes: Mapping[str, Any]) -> _Work | None:
    if name != AGL_OPERATION:
        return None
    given, result = (
        attributes[prefix] if prefix in attributes else _nested(attributes_below(attributes, prefix))
        for prefix in (
            LightningSpanAttributes.OPERATION_INPUT.value,
            LightningSpanAttributes.OPERATION_OUTPUT.value,
        )
    )
    is_tool = any(str(attributes.get(key)).lower() == "tool" for key in _TOOL_WORDS)
    return _Work(name_of_copy(name, attributes), given, result, is_tool)


def _nested(below: Mapping[str, Any]) -> Any:
    return unflatten_attributes(below) if below else None


def _tool_call(work: _Work) -> dict[str, AttributeValue]:
    """Return the attributes of a span ``execute_tool``."""
    found: dict[str, AttributeValue] = {OPERATION_NAME: "execute_tool", "gen_ai.tool.name": work.name}
    for key, value in ((_ARGUMENTS, work.given), (_RESULT, work.result)):
        if value is not None:
            found[key] = value if isinstance(value, str) else dumped(value)
    return found


def ids_of_copy(ids: tuple[str, str], copying: Copying) -> dict[str, AttributeValue]:
    """Return the attributes that name rollout and attempt; OpenInference's session is the rollout."""
    found = {name: value for name, value in zip((_ROLLOUT_ID, _ATTEMPT_ID), ids, strict=True) if value}
    if copying.conventions == "openinference" and ids[0]:
        found[openinference.SESSION] = ids[0]
    return found


_ROLLOUT_ID = LightningResourceAttributes.ROLLOUT_ID.value
_ATTEMPT_ID = LightningResourceAttributes.ATTEMPT_ID.value


def evaluations(attributes: Mapping[str, Any]) -> list[dict[str, AttributeValue]]:
    """Return the attributes of an event ``gen_ai.evaluation.result`` for each reward, the primary one first.

    A reward without a finite value is unscored: its event has no score. One that is linked to a response names it.
    """
    found = []
    index = 0
    while f"{_REWARD}.{index}.{_VALUE}" in attributes:
        value = attributes[f"{_REWARD}.{index}.{_VALUE}"]
        event: dict[str, AttributeValue] = {
            EVALUATION_NAME: str(attributes.get(f"{_REWARD}.{index}.{_NAME}", "reward"))
        }
        if isinstance(value, (int, float)) and isfinite(value):
            event[EVALUATION_SCORE] = float(value)
        linked = _linked_response(attributes)
        if linked is not None:
            event[RESPONSE_ID] = linked
        found.append(event)
        index += 1
    return found


_NAME, _VALUE = RewardAttributes.REWARD_NAME.value, RewardAttributes.REWARD_VALUE.value


def _linked_response(attributes: Mapping[str, Any]) -> str | None:
    index = 0
    while (key := attributes.get(f"{_LINK}.{index}.{LinkAttributes.KEY_MATCH.value}")) is not None:
        if key == RESPONSE_ID:
            return str(attributes.get(f"{_LINK}.{index}.{LinkAttributes.VALUE_MATCH.value}"))
        index += 1
    return None


def _says_what_it_is(name: str) -> bool:
    """Whether an attribute belongs to a library's span of its own, such as that of a web server or of a framework."""
    return name.startswith(_OF_LIBRARIES)


def _says_something(name: str) -> bool:
    return name in CONTENT or name.startswith(_EMITTED) or openinference.is_content(name)


# -- the conventions' own form


def _put_plain(found: dict[str, Any], call: ModelCall | None) -> None:
    """Bring messages, tools and finish reasons into the form of the conventions' schemas, without what is ours."""
    for name, write in ((INPUT_MESSAGES, _message), (OUTPUT_MESSAGES, _message), (TOOL_DEFINITIONS, _tool)):
        items = _list(found.get(name))
        if items is not None:
            found[name] = dumped([write(each) for each in items])
    if call is not None and call.choices:
        # The server's own word. Where there was none, ours would be a guess.
        reasons = [choice.finish_reason_raw for choice in call.choices]
        if None in reasons:  # one for each answer, or none: a gap would shift the others
            found.pop(FINISH_REASONS, None)
        else:
            found[FINISH_REASONS] = reasons
        answers = _list(found.get(OUTPUT_MESSAGES))
        if answers is not None and None in reasons and len(answers) == len(reasons):
            found[OUTPUT_MESSAGES] = dumped(
                [
                    _without_reason(each) if reason is None else each
                    for each, reason in zip(answers, reasons, strict=True)
                ]
            )


def _list(value: Any) -> list[Any] | None:
    if not isinstance(value, str):
        return None
    try:
        items = json_values.parse(value)
    except ValueError:
        return None
    return items if isinstance(items, list) else None


def _message(message: Any) -> Any:
    if not isinstance(message, dict):
        return message
    found = {key: value for key, value in message.items() if key != ORIGINAL}
    if not found.get("finish_reason"):
        found.pop("finish_reason", None)
    if isinstance(found.get("parts"), list):
        found["parts"] = [_part(part) for part in found["parts"]]
    return found


def _without_reason(message: Any) -> Any:
    return (
        {key: value for key, value in message.items() if key != "finish_reason"}
        if isinstance(message, dict)
        else message
    )


def _part(part: Any) -> Any:
    """Return a part of a message; bytes that are written as a URL are a ``blob``."""
    if not isinstance(part, dict) or part.get("type") != "uri":
        return part
    inline = _DATA_URL.fullmatch(str(part.get("uri")))
    if inline is None:
        return part
    blob = {"type": "blob", "modality": part.get("modality"), "content": inline["data"]}
    return {**blob, "mime_type": inline["type"]} if inline["type"] else blob


def _tool(tool: Any) -> Any:
    """Return a tool's definition flat, as the conventions have it; the OpenAI API nests it under ``function``."""
    if isinstance(tool, dict) and isinstance(tool.get("function"), dict):
        return {"type": "function", **tool["function"]}
    return tool
