"""Model calls out of the spans of other instrumentations.

A span of Agent Lightning 0.3, AgentOps, Traceloop (OpenLLMetry), OpenInference or plain GenAI is turned back
into the request and the response that it was made from, and these are read as those of the wire are. So a
foreign span passes the same checks. Only names and shapes of those projects are used here. Nothing raises.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ...codec.json_values import PLAIN, as_json
from ..distribution import CONTENT, SETTINGS
from ..model_call import Issue, ModelCall, none
from ..openai import reading
from ..raw_call import CallStart, ParsedCall
from . import messages, span_events, whole_bodies
from .attribute_values import first, value_of
from .flat_attributes import numbered_messages, numbered_texts, openai_message, tool_definitions
from .span_events import EventMessages
from .whole_bodies import Bodies

if TYPE_CHECKING:
    from ...types import SpanLike

_PROMPT_IDS = ("prompt_token_ids", "llm.hosted_vllm.prompt_token_ids")
_RESPONSE_IDS = ("response_token_ids", "llm.hosted_vllm.response_token_ids")
_IDS = frozenset({*_PROMPT_IDS, *_RESPONSE_IDS})
_PREFIXES = ("gen_ai.prompt.", "gen_ai.completion.", "llm.input_messages.", "llm.output_messages.")
_OPERATIONS = frozenset(
    {"chat", "text_completion", "generate_content", "completion", "acompletion", "atext_completion"}
)
_OPERATION = ("gen_ai.operation.name", "llm.request.type", "gen_ai.request.type")
_LANGFUSE_KIND = "langfuse.observation.type"
_DECIDING = (*_IDS, *_OPERATION, "openinference.span.kind", "agentops.span.kind", _LANGFUSE_KIND)
"""Attributes one of which says that a span is a model call, or is none."""

_MODEL = (
    "gen_ai.request.model",
    "llm.request.model_name",
    "llm.model_name",
    "langfuse.observation.model.name",
)
_RESPONSE_MODEL = ("gen_ai.response.model", "llm.response.model_name")
_INPUT_TOKENS = ("gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens", "llm.token_count.prompt")
_OUTPUT_TOKENS = (
    "gen_ai.usage.output_tokens",
    "gen_ai.usage.completion_tokens",
    "llm.token_count.completion",
)
_CACHED_TOKENS = (
    "gen_ai.usage.cache_read.input_tokens",
    "gen_ai.usage.cache_read_input_tokens",
    "llm.token_count.prompt_details.cache_read",
)
_REASONING_TOKENS = (
    "gen_ai.usage.reasoning.output_tokens",
    "gen_ai.usage.reasoning_tokens",
    "llm.token_count.completion_details.reasoning",
)
_FIRST_CHUNK = ("gen_ai.response.time_to_first_chunk", "gen_ai.streaming.time_to_first_token")
_CHAT = re.compile(r"gen_ai\.prompt\.\d+\.role$|gen_ai\.input\.messages$")
_STREAM = ("gen_ai.request.stream", "gen_ai.request.streaming", "gen_ai.is_streaming", "llm.is_streaming")
_REQUEST_FIELDS = SETTINGS | {"model", "messages", "prompt", "tools", "functions", "stream"}
"""Of a body that may hold the response as well."""
_ID_FIELDS = frozenset({"token_ids", "response_token_ids", "prompt_token_ids", "provider_specific_fields"})
_SAMPLING: Mapping[str, tuple[str, ...]] = {
    "temperature": ("gen_ai.request.temperature",),
    "top_p": ("gen_ai.request.top_p",),
    "top_k": ("gen_ai.request.top_k", "llm.top_k"),
    "max_tokens": ("gen_ai.request.max_tokens",),
    "seed": ("gen_ai.request.seed",),
    "frequency_penalty": ("gen_ai.request.frequency_penalty", "llm.frequency_penalty"),
    "presence_penalty": ("gen_ai.request.presence_penalty", "llm.presence_penalty"),
    "repetition_penalty": ("gen_ai.request.repetition_penalty",),
    "stop": ("gen_ai.request.stop_sequences", "llm.chat.stop_sequences"),
    "n": ("gen_ai.request.choice.count", "gen_ai.request.candidate_count", "gen_ai.request.n"),
}


def read(span: SpanLike) -> ModelCall | None:
    """Return the call that a foreign span records, or ``None`` where it records none."""
    attributes = span.attributes or {}
    is_sure = is_model_call(attributes)
    if not is_sure and not _may_record_call(span, attributes):
        return None
    issues: list[Issue] = []
    try:
        said = _said_in_events(span, attributes, issues)
        if not is_sure and not _records_call(attributes, said):
            return None
        return _read(span, {**said.attributes, **_as_json(attributes, issues)}, said, issues)
    except Exception as error:  # noqa: BLE001 - attributes of other libraries, of any type
        if not is_sure:
            return None
        issues.append(Issue("warn", "attribute_unreadable", type(error).__name__))
        return ModelCall(token_capture=none("foreign_span"), issues=tuple(issues), capture_source="span")


def _read(
    span: SpanLike, attributes: Mapping[str, Any], said: EventMessages, issues: list[Issue]
) -> ModelCall:
    call = reading.read(_as_call(attributes, said, issues))
    failure = _failure(span, attributes)
    silent = {none("no_token_ids")} if failure is not None else {none("no_token_ids"), none("no_choices")}
    return dataclasses.replace(
        call,
        issues=(*issues, *call.issues),
        # A dialect without answers does not say that there was none.
        token_capture=none("foreign_span") if call.token_capture in silent else call.token_capture,
        capture_source="span",
        http_status=None,
        error=failure,
        first_chunk_seconds=_seconds(first(attributes, _FIRST_CHUNK)),
    )


_COUNTS = (*_INPUT_TOKENS, *_OUTPUT_TOKENS)
_JSON = (
    *_PROMPT_IDS,
    *_RESPONSE_IDS,
    "gen_ai.input.messages",
    "gen_ai.output.messages",
    "gen_ai.tool.definitions",
    "llm.invocation_parameters",
    "logprobs.content",
    "event.data",
)
"""Attributes that are JSON, or the ``repr`` of a list, where they are text."""


def request_model(attributes: Mapping[str, Any]) -> str | None:
    """Return the model that a foreign span says was asked, if it says so."""
    model = first(attributes, _MODEL)
    return model if isinstance(model, str) else None


def is_model_call(attributes: Mapping[str, Any]) -> bool:
    """Whether attributes, so far as they are set, are those of a chat or completion call."""
    # The agent's thread asks this of every span that it starts. What the next two answers hold for are most of them:
    # spans that name their operation as the GenAI conventions do, and those that have none of these attributes.
    operation = attributes.get("gen_ai.operation.name")
    if type(operation) is str and operation in _OPERATIONS and "openinference.span.kind" not in attributes:
        return True
    if type(attributes) is dict and attributes.keys().isdisjoint(_DECIDING):
        return _has_messages(attributes)
    if not attributes.keys().isdisjoint(_IDS):
        return True
    kind = attributes.get("openinference.span.kind")
    if kind is not None:
        return bool(kind == "LLM")
    if _LANGFUSE_KIND in attributes:
        return bool(attributes[_LANGFUSE_KIND] == "generation")
    operation = first(attributes, _OPERATION)
    if operation is not None:
        return isinstance(operation, str) and operation in _OPERATIONS
    # AgentOps' instrumentations of frameworks start a model call with no more than its kind and its model. An event
    # of 0.2 or 0.3 is a report of a call that has its span already.
    if attributes.get("agentops.span.kind") == "llm" and "agentops.event.id" not in attributes:
        return True
    return _has_messages(attributes)


def says_later(scope_name: str | None) -> bool:
    """Whether a library's spans say what they are after they have started, whatever attributes they have before."""
    return scope_name == "langfuse-sdk"


def _has_messages(attributes: Mapping[str, Any]) -> bool:
    # Two searches in all names at once are cheaper than four in each; few spans come to the second look.
    try:
        names = "\n".join(attributes)
    except TypeError:  # names that are no texts, in a mapping that no tracer has made
        return any(str(key).startswith(_PREFIXES) for key in attributes)
    if "gen_ai." not in names and "put_messages." not in names:
        return False
    return any(str(key).startswith(_PREFIXES) for key in attributes)


def _may_record_call(span: SpanLike, attributes: Mapping[str, Any]) -> bool:
    """Whether a span that is not known for a call at its start has to be looked at: most are not."""
    if "event.type" in attributes:
        return True
    if first(attributes, (*_OPERATION, "openinference.span.kind")) is not None:
        return False
    return bool(span.events) or "events" in attributes or whole_bodies.raw_prefix(attributes) is not None


def _records_call(attributes: Mapping[str, Any], said: EventMessages) -> bool:
    """Whether a span that has ended records a model call; more is known of it than at its start."""
    if whole_bodies.event_of(attributes) is not None:
        return True
    return bool(said.choices or said.attributes) or whole_bodies.raw_prefix(attributes) is not None


def _as_json(attributes: Mapping[str, Any], issues: list[Issue]) -> dict[str, Any]:
    """Return attributes whose values are values of JSON: others may be tuples, and objects of any kind."""
    found: dict[str, Any] = {}
    for name, value in attributes.items():
        try:
            found[name] = value if type(value) in PLAIN else as_json(value)
        except Exception:  # noqa: BLE001 - objects of other libraries, whose own methods are called
            issues.append(Issue("warn", "attribute_unreadable", str(name)))
    return found


def _said_in_events(span: SpanLike, attributes: Mapping[str, Any], issues: list[Issue]) -> EventMessages:
    events = [(str(event.name), _as_json(event.attributes or {}, issues)) for event in span.events or ()]
    return span_events.messages_of([*events, *span_events.events_in(attributes.get("events"))])


def _seconds(value: Any) -> float | None:
    return float(value) if type(value) in {int, float} and 0 <= value < 1e9 else None


def _failure(span: SpanLike, attributes: Mapping[str, Any]) -> str | None:
    """Return the error that a span tells of, or ``None``."""
    kind = first(attributes, ("error.type", "exception.type"))
    for event in span.events or ():
        if kind is None and event.name == "exception":
            kind = (event.attributes or {}).get("exception.type")
    code = getattr(span.status, "status_code", None)
    if kind is None and getattr(code, "name", code) == "ERROR":
        kind = "error"
    return None if kind is None else str(kind)


def _as_call(attributes: Mapping[str, Any], said: EventMessages, issues: list[Issue]) -> ParsedCall:
    """Return the exchange that a span was made from, so far as it tells."""
    bodies = whole_bodies.bodies_of(attributes)
    is_text = _is_text(attributes, bodies)
    _name_unreadable(attributes, issues)
    # The body itself is exact; attributes fill in what it does not say.
    request = {
        **_request(attributes, said, is_text, issues),
        **{name: value for name, value in bodies.request.items() if name in _REQUEST_FIELDS},
    }
    response = _response(attributes, said, is_text, issues)
    response.update({name: value for name, value in bodies.response.items() if value is not None})
    _add_tokens(attributes, response)
    if bodies.response.get("object") == "chat.completion.chunk":
        _doubt_ids(response, issues)
    return ParsedCall(
        start=CallStart(
            operation="text_completion" if is_text else "chat",
            url="",
            model=request.get("model"),
            stream=bool(first(attributes, _STREAM) or request.get("stream")),
        ),
        request=request,
        responses=(response,),
        has_all_fields=False,
    )


def _name_unreadable(attributes: Mapping[str, Any], issues: list[Issue]) -> None:
    for name in _JSON:
        value = attributes.get(name)
        if isinstance(value, str) and value and value_of(value) is None:
            issues.append(Issue("warn", "attribute_unreadable", name))
    for name in _COUNTS:
        value = attributes.get(name)
        if value is not None and (type(value) is not int or value < 0):
            issues.append(Issue("warn", "attribute_unreadable", name))


def _is_text(attributes: Mapping[str, Any], bodies: Bodies) -> bool:
    """Whether the call is a completion of a text; some name every call a completion."""
    if bodies.response.get("object") in {"text_completion", "chat.completion"}:
        return bool(bodies.response["object"] == "text_completion")
    operation = first(attributes, _OPERATION)
    if operation == "completion":  # so OpenLLMetry called completions of texts, and LiteLLM calls chats
        return not any(map(_CHAT.match, map(str, attributes)))
    return operation in {"text_completion", "atext_completion"} or "llm.prompts.0.prompt.text" in attributes


def _doubt_ids(response: dict[str, Any], issues: list[Issue]) -> None:
    """Take the ids out of a stream that another library put together, where no count confirms that all are there."""
    usage = response.get("usage")
    if isinstance(usage, dict) and usage.get("completion_tokens") is not None:
        return
    choices = [choice for choice in response.get("choices") or () if isinstance(choice, dict)]
    if any("token_ids" in choice for choice in choices):
        issues.append(
            Issue("warn", "usage_absent", "ids of a stream that was put together by its instrumentation")
        )
    response["choices"] = [
        {name: value for name, value in choice.items() if name not in _ID_FIELDS} for choice in choices
    ]
    response.pop("prompt_token_ids", None)


def _request(
    attributes: Mapping[str, Any], said: EventMessages, is_text: bool, issues: list[Issue]
) -> dict[str, Any]:
    request = {"model": first(attributes, _MODEL), **_invocation(attributes)}
    for name, keys in _SAMPLING.items():
        value = first(attributes, keys)
        if value is not None:
            request[name] = value
    asked = _asked(attributes, said, issues)
    if is_text:
        request["prompt"] = _prompt(asked)
    else:
        request["messages"] = [
            _with_role(message, "user", f"request message {message.pop('index', position)}", issues)
            for position, message in enumerate(asked)
        ]
    tools = tool_definitions(attributes)
    if tools:
        request["tools"] = tools
    return request


def _prompt(asked: Sequence[Mapping[str, Any]]) -> Any:
    texts = [message.get("content") for message in asked]
    return (texts[0] if len(texts) == 1 else texts) if texts else None


def _invocation(attributes: Mapping[str, Any]) -> dict[str, Any]:
    found = value_of(attributes.get("llm.invocation_parameters"))
    if not isinstance(found, dict):
        return {}
    return {
        name: value for name, value in found.items() if name in {"model", "stream"} or name not in CONTENT
    }


def _asked(attributes: Mapping[str, Any], said: EventMessages, issues: list[Issue]) -> list[dict[str, Any]]:
    # The first convention that has messages counts: what writes two of them says the same in both.
    structured = _genai(attributes.get("gen_ai.input.messages"), issues)
    if structured:
        return [*_system(attributes.get("gen_ai.system_instructions"), issues), *structured]
    flat = numbered_messages(attributes, "gen_ai.prompt", "llm.input_messages", issues)
    # Of two names for the system's prompt, some write both: it is not said twice.
    if flat and all(message["role"] != "system" for message in flat):
        flat = [*_system(attributes.get("gen_ai.request.system_instruction"), issues), *flat]
    return flat or numbered_texts(attributes, "llm.prompts", "prompt") or _dicts(said.asked, "event", issues)


def _system(value: Any, issues: list[Issue]) -> list[dict[str, Any]]:
    if not value:
        return []
    parts = value_of(value)
    parts = parts if isinstance(parts, list) else [{"type": "text", "content": value}]
    return _genai([{"role": "system", "parts": parts}], issues)


def _dicts(found: Sequence[Any], what: str, issues: list[Issue]) -> list[dict[str, Any]]:
    for index, each in enumerate(found):
        if not isinstance(each, dict):
            issues.append(Issue("warn", "message_unreadable", f"{what} {index}"))
    return [dict(openai_message(each)) for each in found if isinstance(each, dict)]


def _response(
    attributes: Mapping[str, Any], said: EventMessages, is_text: bool, issues: list[Issue]
) -> dict[str, Any]:
    choices = _answers(attributes, said, issues)
    if is_text:
        choices = [_as_text(choice) for choice in choices]
    response: dict[str, Any] = {
        "id": first(attributes, ("gen_ai.response.id", "llm.response.id")),
        "model": first(attributes, _RESPONSE_MODEL),
        "choices": choices,
        "prompt_token_ids": value_of(first(attributes, _PROMPT_IDS)),
    }
    counts = {
        "prompt_tokens": first(attributes, _INPUT_TOKENS),
        "completion_tokens": first(attributes, _OUTPUT_TOKENS),
        "prompt_tokens_details": {"cached_tokens": first(attributes, _CACHED_TOKENS)},
        "completion_tokens_details": {"reasoning_tokens": first(attributes, _REASONING_TOKENS)},
    }
    if any(counts[name] is not None for name in ("prompt_tokens", "completion_tokens")):
        response["usage"] = counts
    return response


def _answers(attributes: Mapping[str, Any], said: EventMessages, issues: list[Issue]) -> list[dict[str, Any]]:
    answered = _genai(attributes.get("gen_ai.output.messages"), issues, keep="finish_reason")
    answered = answered or numbered_messages(attributes, "gen_ai.completion", "llm.output_messages", issues)
    answered = answered or numbered_texts(attributes, "llm.choices", "completion")
    if not answered:
        return [{**choice, "message": openai_message(choice["message"])} for choice in _named(said, issues)]
    finish_reasons = value_of(attributes.get("gen_ai.response.finish_reasons"))
    single = first(attributes, ("gen_ai.response.finish_reason", "llm.finish_reason"))
    found: list[dict[str, Any]] = []
    for position, message in enumerate(answered):
        index = message.pop("index", position)
        reason = message.pop("finish_reason", None) or _at(finish_reasons, index) or single
        role = _with_role(message, "assistant", f"answer {index}", issues)
        found.append({"index": index, "message": role, "finish_reason": reason})
    return found


def _named(said: EventMessages, issues: list[Issue]) -> list[dict[str, Any]]:
    for index, choice in enumerate(said.choices):
        if not isinstance(choice["message"], dict):
            issues.append(Issue("warn", "message_unreadable", f"choice {index}"))
    return [choice for choice in said.choices if isinstance(choice["message"], dict)]


def _as_text(choice: dict[str, Any]) -> dict[str, Any]:
    said = choice.get("message") or {}
    return {
        **{name: value for name, value in choice.items() if name != "message"},
        "text": said.get("content"),
    }


def _add_tokens(attributes: Mapping[str, Any], response: dict[str, Any]) -> None:
    """Put the ids and log-probabilities of 0.3 into the choices: a list for the first, or a list for each."""
    found = response["choices"] if isinstance(response["choices"], list) else []
    # Copies: they may be the very objects that the span has.
    choices: list[Any] = [dict(each) if isinstance(each, dict) else each for each in found]
    ids = value_of(first(attributes, _RESPONSE_IDS))
    several = isinstance(ids, list) and ids and isinstance(ids[0], list)
    for index, each in enumerate(ids if several else [] if ids is None else [ids]):
        choice = next((known for known in choices if _index(known) == index), None)
        if choice is None:
            choice = {"index": index, "message": {}, "finish_reason": None}
            choices.append(choice)
        choice["response_token_ids"] = each
    logprobs = value_of(attributes.get("logprobs.content"))
    chosen = next((known for known in choices if _index(known) == 0), None)
    if isinstance(logprobs, list) and chosen is not None:
        entries = [value_of(entry) for entry in logprobs]
        content = [entry if isinstance(entry, dict) else {"token": "", "logprob": entry} for entry in entries]
        chosen["logprobs"] = {"content": content}
    response["choices"] = choices


def _index(choice: Any) -> Any:
    return choice.get("index") if isinstance(choice, dict) else None


def _genai(value: Any, issues: list[Issue], keep: str | None = None) -> list[dict[str, Any]]:
    found = value_of(value)
    read = []
    for index, message in enumerate(found if isinstance(found, list) else ()):
        for part in _one_result_each(message):
            turned = messages.from_genai(part) if isinstance(part, dict) else None
            if not isinstance(turned, dict):
                issues.append(Issue("warn", "message_unreadable", f"message {index}"))
                continue
            read.append({**turned, keep: message.get(keep)} if keep else dict(turned))
    return read


def _one_result_each(message: Any) -> list[Any]:
    """Return a message for each tool result of a message, and one for what else is in it."""
    # The GenAI conventions allow several results in one message; the OpenAI API has a message for each.
    parts = message.get("parts") if isinstance(message, dict) and messages.ORIGINAL not in message else None
    if not isinstance(parts, list) or len(parts) < 2:
        return [message]
    results = [part for part in parts if isinstance(part, dict) and part.get("type") == "tool_call_response"]
    rest = [part for part in parts if part not in results]
    if not results:
        return [message]
    groups = [*([part] for part in results), *([rest] if rest else [])]
    return [{**message, "parts": group} for group in groups]


def _with_role(message: dict[str, Any], default: str, where: str, issues: list[Issue]) -> dict[str, Any]:
    if message.get("role"):
        return message
    role = "tool" if message.get("tool_call_id") else "assistant" if message.get("tool_calls") else default
    issues.append(Issue("info", "role_inferred", f"{where}: {role}"))
    return {**message, "role": role}


def _at(value: Any, index: int) -> Any:
    return value[index] if isinstance(value, list) and index < len(value) else None
