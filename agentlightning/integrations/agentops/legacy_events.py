"""Events and sessions of AgentOps 0.2 and 0.3 as spans.

These releases know no spans: an event is an object with two timestamps, and a session is told of its end. Each
becomes one span, made at the moment it is recorded, in the OpenTelemetry context of that moment, with the times that
it names. Attributes are those of AgentOps 0.4 where it has one for the thing; all other fields stand under
``agentops.event.``.

An event of a model call is a span of kind ``llm`` and nothing more: it carries no ``gen_ai.*`` attribute, so it never
counts as a second model call beside the one that was seen at the wire.
"""

from __future__ import annotations

import json
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Any, Final
from uuid import UUID

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.trace import Link, SpanContext, Status, StatusCode

from ..._locks import reentrant_lock
from .managed import set_status_of_state

SESSION_SPAN: Final = "agentops.session"

_KINDS: Final = {
    "actions": "operation",
    "apis": "operation",
    "tools": "tool",
    "llms": "llm",
    "errors": "error",
}
_NAMES: Final = {"actions": "action_type", "tools": "name", "errors": "error_type"}
_INPUTS: Final = {"llms": "prompt"}
_OUTPUTS: Final = {"llms": "completion"}
_TIMES: Final = ("init_timestamp", "end_timestamp")
_NOT_FIELDS: Final = frozenset({"event_type", "trigger_event", "exception", "session_id"})
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_REMEMBERED: Final = 4096
"""Events whose span an error may be linked to, the newest of them; each is an id and a span context."""


class EventRecorder:
    """Makes the spans; shared by all threads.

    Args:
        provider: The tracer provider that they go to.
        version: The release of AgentOps, which names the instrumentation scope.
    """

    def __init__(self, provider: trace.TracerProvider, version: str | None) -> None:
        self._tracer = provider.get_tracer("agentops", version or "")
        self._made: OrderedDict[str, SpanContext] = OrderedDict()
        self._agents: OrderedDict[str, str] = OrderedDict()
        # Guards ``_made`` and ``_agents`` while they are changed: two threads that find one entry too many would each
        # forget one. Spans are made without it, since a processor of the provider may take locks of its own.
        self._lock = reentrant_lock()

    def event(self, event: Any, session_id: object = None) -> None:
        """Record an event; of an error also the event that led to it, unless that one has its span already."""
        trigger = getattr(event, "trigger_event", None)
        links = []
        if trigger is not None:
            with self._lock:
                known = self._made.get(str(trigger.id))
            led_to_it = known or self._record(trigger, session_id, failed=_message(event))
            links.append(Link(led_to_it, {"agentops.event.id": str(trigger.id)}))
        self._record(event, session_id, links=links)

    def agent(self, agent_id: object, name: object) -> None:
        """Note the name of an agent, for its events."""
        with self._lock:
            _remember(self._agents, str(agent_id), str(name))

    def session(self, session: Any, reason: object, context: otel_context.Context) -> None:
        """Record a session that has ended, in the context that it was started in."""
        attributes: dict[str, Any] = {
            "agentops.span.kind": "session",
            "agentops.session.id": str(session.session_id),
            "agentops.session.end_state": str(session.end_state),
        }
        if reason is not None:
            attributes["agentops.session.end_state_reason"] = str(reason)
        if session.tags:
            attributes["agentops.tags"] = [str(tag) for tag in session.tags]
        if session.video is not None:
            attributes["agentops.session.video"] = str(session.video)
        start, end = nanoseconds(session.init_timestamp), nanoseconds(session.end_timestamp)
        span = self._tracer.start_span(SESSION_SPAN, context=context, start_time=start, attributes=attributes)
        set_status_of_state(span)
        span.end(end)

    def _record(
        self, event: Any, session_id: object, *, links: Sequence[Link] = (), failed: str | None = None
    ) -> SpanContext:
        kind = str(getattr(event.event_type, "value", event.event_type))
        attributes = _attributes(event, kind, self._agents)
        session = getattr(event, "session_id", None) or session_id
        if session is not None:
            attributes["agentops.session.id"] = str(session)
        if kind == "errors":
            failed = _message(event)
        start, end = _times(event)
        span = self._tracer.start_span(
            _name(event, kind), start_time=start, attributes=attributes, links=list(links)
        )
        if failed is not None:
            span.set_status(Status(StatusCode.ERROR, failed))
        span.end(end)
        made = span.get_span_context()
        if hasattr(event, "id"):
            with self._lock:
                _remember(self._made, str(event.id), made)
        return made


def nanoseconds(moment: object) -> int | None:
    """Return a moment in nanoseconds since 1970, or ``None`` for what is none.

    AgentOps writes ``2026-01-01T00:00:00.000Z`` up to 0.3.0 and ``2026-01-01T00:00:00.000000+00:00`` later; a user's
    own text without a zone is UTC too, as its documentation says.
    """
    try:
        read = datetime.fromisoformat(str(moment))
    except ValueError:
        return None
    if read.tzinfo is None:
        read = read.replace(tzinfo=UTC)
    return (read - _EPOCH) // timedelta(microseconds=1) * 1000


def json_text(value: object) -> str:
    """Return a value as JSON text; what JSON has no form for becomes text, and a circle does so as a whole."""
    try:
        return json.dumps(value, default=_plain, ensure_ascii=False)
    except Exception:  # noqa: BLE001 - what strangers' objects raise when they are asked for their form
        return json.dumps(_text(value), ensure_ascii=False)


def _plain(value: object) -> Any:
    dump = getattr(value, "model_dump", None)  # pydantic: the answers of model clients
    if callable(dump) and not isinstance(value, type):
        return dump(mode="json")
    if isinstance(value, (set, frozenset)):
        return list(value)
    return _text(value)


def _text(value: object) -> str:
    try:
        return str(value)
    except Exception:  # noqa: BLE001 - a stranger's broken __str__
        return f"[{type(value).__name__}: no text]"


def _remember(known: OrderedDict[str, Any], key: str, value: object) -> None:
    known[key] = value
    while len(known) > _REMEMBERED:
        known.popitem(last=False)


# ---------------------------------------------------------------------- one event


def _name(event: Any, kind: str) -> str:
    named = getattr(event, _NAMES.get(kind, ""), None)
    return str(named) if named else _KINDS.get(kind, kind)


def _times(event: Any) -> tuple[int, int]:
    """Return start and end; an event without an end ends now, and one without a start starts at its end.

    AgentOps counts an end that equals the start as none.
    """
    if not hasattr(event, "init_timestamp"):  # errors up to 0.3.18 are moments
        moment = nanoseconds(getattr(event, "timestamp", None)) or time.time_ns()
        return moment, moment
    told = None if event.end_timestamp == event.init_timestamp else event.end_timestamp
    end = nanoseconds(told) or time.time_ns()
    return nanoseconds(event.init_timestamp) or end, end


def _attributes(event: Any, kind: str, agents: Mapping[str, str]) -> dict[str, Any]:
    fields = {
        name: value for name, value in vars(event).items() if value is not None and name not in _NOT_FIELDS
    }
    attributes: dict[str, Any] = {"agentops.span.kind": _KINDS.get(kind, kind)}
    name = fields.pop(_NAMES.get(kind, ""), None)
    if kind == "errors":
        attributes.update(_exception(fields, name))
        trigger = getattr(event, "trigger_event", None)
        if trigger is not None:
            fields["trigger_event_id"], fields["trigger_event_type"] = trigger.id, trigger.event_type
    elif name is not None:
        attributes["operation.name"] = str(name)
        if kind == "tools":
            attributes["tool.name"] = str(name)
    for attribute, field in (
        ("agentops.entity.input", _INPUTS.get(kind, "params")),
        ("agentops.entity.output", _OUTPUTS.get(kind, "returns")),
    ):
        if field in fields:
            attributes[attribute] = json_text(_without_self(fields.pop(field)))
    for field in (*_TIMES, "timestamp"):
        if nanoseconds(fields.get(field)) is not None:
            del fields[field]  # it is the span's own time
    for field, value in fields.items():
        attributes[f"agentops.event.{field}"] = _value(value)
    agent = agents.get(str(fields.get("agent_id")))
    if agent is not None:
        attributes["agentops.event.agent_name"] = agent
    return attributes


def _exception(fields: dict[str, Any], error_type: object) -> dict[str, Any]:
    """Return OpenTelemetry's ``exception.*`` for an error; takes out of ``fields`` what is said by them."""
    found: dict[str, Any] = {}
    if error_type is not None:
        found["exception.type"] = found["error.type"] = str(error_type)
    if "details" in fields:
        found["exception.message"] = _value(fields.pop("details"))
    logs = fields.get("logs")
    if isinstance(logs, str) and logs.startswith("Traceback"):
        found["exception.stacktrace"] = fields.pop("logs")
    elif logs == "NoneType: None\n":  # what traceback.format_exc() says where nothing was raised
        del fields["logs"]
    return found


def _message(error: Any) -> str:
    details = getattr(error, "details", None)
    return _text(details if details is not None else getattr(error, "error_type", None) or "error")


def _without_self(params: object) -> object:
    """Leave out the object that a decorated method belongs to, as AgentOps does before it sends."""
    if isinstance(params, dict) and "self" in params:
        return {name: value for name, value in params.items() if name != "self"}
    return params


def _value(value: object) -> str | bool | int | float:
    """Return an attribute's value: numbers and text as they are, ids as text, the rest as JSON text."""
    if isinstance(value, (UUID, Enum)):
        return str(getattr(value, "value", value))
    if isinstance(value, (str, bool, int, float)):
        return value
    return json_text(value)
