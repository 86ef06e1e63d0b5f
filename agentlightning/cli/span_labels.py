"""What a span is to a person: an agent, a model call, a tool, a reward … and the name that its program gave it.

Names of spans are those of a library (``agentlightning.operation``, ``ChatOpenAI.chat``); what a person looks for
stands in attributes: the function, the tool, the type of an exception, the value of a reward. The conventions that are
read are OpenTelemetry's GenAI, OpenInference, OpenLLMetry, AgentOps and our own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from ..codec.attributes import attributes_below
from ..codec.emitted import get_message_value, get_object_value
from ..dialects.model_call import ModelCall
from ..rows.rewards import PRIMARY, read_reward
from ..rows.tree import agent_name_of
from ..semconv import (
    AGL_ANNOTATION,
    AGL_EXCEPTION,
    AGL_MESSAGE,
    AGL_OBJECT,
    AGL_OPERATION,
    AGL_UNCAPTURED,
    AGL_WRITE_BACK,
    ExchangeAttributes,
    LightningSpanAttributes,
    SpanFlagAttributes,
    WriteBackAttributes,
)
from ..types import Span
from . import output

LONGEST_NAME = 60
_ARGUMENT = 40
"""Characters of one argument that a preview shows."""

_SAID_BY = ExchangeAttributes.SOURCE.value
_OPERATION = LightningSpanAttributes.OPERATION_NAME.value
_INPUT = LightningSpanAttributes.OPERATION_INPUT.value
_OUTPUT = LightningSpanAttributes.OPERATION_OUTPUT.value
_KINDS = (
    "gen_ai.operation.name",
    "openinference.span.kind",
    "agentops.span.kind",
    "traceloop.span.kind",
    "kind",  # what users of ``operation`` write
    "type",
)
_TOOL_WORDS = frozenset({"execute_tool", "tool"})
_AGENT_WORDS = frozenset({"invoke_agent", "create_agent", "agent"})
_STEP_WORDS = frozenset({"chain", "workflow", "task", "operation", "session", "invoke_workflow"})
_TOOL_NAMES = ("gen_ai.tool.name", "tool.name", "traceloop.entity.name", "operation.name", _OPERATION)
_STEP_NAMES = (_OPERATION, "traceloop.entity.name", "operation.name")
_ARGUMENTS = (
    "gen_ai.tool.call.arguments",
    "tool.parameters",
    "input.value",
    "traceloop.entity.input",
    "agentops.entity.input",
)
_RESULTS = (
    "gen_ai.tool.call.result",
    _OUTPUT,
    "output.value",
    "traceloop.entity.output",
    "agentops.entity.output",
)


class Kind(Enum):
    """What a span stands for; the value is the word of the legend."""

    AGENT = "agent"
    CALL = "model call"
    TOOL = "tool"
    STEP = "function"
    REWARD = "reward"
    EXCEPTION = "caught exception"
    NOTE = "message or value"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Label:
    """A kind and a name; spans with equal labels are repeats of each other."""

    kind: Kind
    name: str


def label_of(span: Span, record: ModelCall | None) -> Label:
    """Return what a span is called, given the model call that it records, if it does."""
    kind, name = _kind_and_name(span, record)
    return Label(kind, output.one_line(name or span.name, LONGEST_NAME) or "(no name)")


def _kind_and_name(span: Span, record: ModelCall | None) -> tuple[Kind, str | None]:
    attributes, name = span.attributes, str(span.name)
    if record is not None:
        model = record.request_model or record.response_model
        operation = "complete" if record.operation == "text_completion" else record.operation
        return Kind.CALL, f"{operation} {model}" if model else None
    reward = read_reward(span)
    if reward is not None:
        given = reward.dimensions[0][0]
        return Kind.REWARD, "reward" if given == PRIMARY else given
    if name == AGL_EXCEPTION:
        return Kind.EXCEPTION, str(attributes.get("exception.type") or "exception")
    if name in {AGL_MESSAGE, AGL_OBJECT, AGL_ANNOTATION}:
        said_by = attributes.get(_SAID_BY)  # of a message that was imported
        return Kind.NOTE, said_by if isinstance(said_by, str) and said_by else name.rpartition(".")[2]
    if name == AGL_WRITE_BACK:
        return Kind.NOTE, f"trained in step {attributes.get(WriteBackAttributes.STEP.value, '?')}"
    if name == AGL_UNCAPTURED:
        server = attributes.get(SpanFlagAttributes.UNCAPTURED_SERVER.value, "a model server")
        return Kind.EXCEPTION, f"calls to {server} were not captured"
    return _worker(span, name)


def _worker(span: Span, name: str) -> tuple[Kind, str | None]:
    """Return the label of a span in which something works: a tool, an agent, a function."""
    attributes = span.attributes
    words = {str(attributes[key]).lower() for key in _KINDS if key in attributes}
    if words & _TOOL_WORDS:
        return Kind.TOOL, _first(attributes, _TOOL_NAMES)
    agent = agent_name_of(span)
    if agent is not None or words & _AGENT_WORDS:
        return Kind.AGENT, agent or _first(attributes, _STEP_NAMES)
    if name == AGL_OPERATION:
        return Kind.STEP, _first(attributes, (_OPERATION,)) or "operation"
    if words & _STEP_WORDS:
        return Kind.STEP, _first(attributes, _STEP_NAMES)
    return Kind.OTHER, None


def preview_of(span: Span, kind: Kind, record: ModelCall | None) -> str:
    """Return the beginning of what a span says: an answer, arguments and result, a text; empty where there is none."""
    if record is not None:
        return _answer(record)
    match kind:
        case Kind.NOTE | Kind.EXCEPTION:
            return _said(span)
        case Kind.TOOL | Kind.STEP | Kind.AGENT:
            given, result = _arguments(span.attributes), _result(span.attributes)
            return f"{given} → {result}".strip() if result else given
        case _:
            return ""


def _answer(record: ModelCall) -> str:
    words: list[str] = []
    for choice in record.choices[:1]:
        words += [output.one_line(choice.content or choice.refusal or "", 200)]
        words += [
            f"→ {output.one_line(call.name)}({output.one_line(call.arguments, _ARGUMENT)})"
            for call in choice.tool_calls
        ]
    return " ".join(word for word in words if word)


def _said(span: Span) -> str:
    attributes = span.attributes
    if span.name == AGL_EXCEPTION:
        return output.one_line(attributes.get("exception.message") or "", 200)
    message = get_message_value(span)
    if message is not None:
        return output.one_line(message, 200)
    value = get_object_value(span)
    if value is not None:
        return output.one_line(value if isinstance(value, str) else output.to_json(value), 200)
    if span.name == AGL_ANNOTATION:
        return _pairs(attributes)
    return ""


def _arguments(attributes: Mapping[str, Any]) -> str:
    own = attributes_below(attributes, _INPUT)
    if own:
        return f"({_pairs(own)})"
    given = _first(attributes, _ARGUMENTS)
    if not given:
        return ""
    parsed = _parsed(given)
    return (
        f"({_pairs(parsed)})" if isinstance(parsed, dict) and parsed else f"({output.one_line(given, 120)})"
    )


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{output.one_line(key, 30)}={output.one_line(output.to_json(value), _ARGUMENT)}"
        for key, value in values.items()
    )


def _result(attributes: Mapping[str, Any]) -> str:
    leaves = attributes_below(attributes, _OUTPUT)
    if leaves:
        return _pairs(leaves)
    found = next((attributes[key] for key in _RESULTS if attributes.get(key) is not None), None)
    return "" if found is None else output.one_line(found, 200)


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _first(attributes: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
    return next((str(attributes[name]) for name in names if attributes.get(name) not in (None, "")), None)
