"""Values at the border of a store: checked on the way in, and never shared with what is kept.

A store keeps JSON values. What a caller hands in is copied into plain lists, dicts and scalars, so that the
caller's objects and the store's never meet; what JSON cannot say is refused by name and place. Only the input of a
rollout may be more, in a store that keeps objects.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any, TypeVar, cast

from pydantic import BaseModel, TypeAdapter, ValidationError

from ..codec.json_copy import DEEPEST, json_copy, too_deep
from ..codec.json_text import is_utf8
from ..codec.recorded_span import RecordedSpan
from ..errors import InvalidArgument
from ..types import (
    Account,
    Event,
    Link,
    NamedResources,
    OtelResource,
    RolloutConfig,
    RolloutMode,
    Span,
    SpanContext,
    TraceStatus,
)
from ..types._model import Model
from ..types.attributes import to_attributes
from ..types.tracer import build

M = TypeVar("M", bound=BaseModel)
W = TypeVar("W", bound=str)

MODES: frozenset[RolloutMode] = frozenset({"train", "val", "test"})
_RESOURCES: TypeAdapter[NamedResources] = TypeAdapter(NamedResources)
_LARGEST_NUMBER = 2**62  # leaves a 64-bit counter room to go on
_LARGEST_OF_SQL = 2**63 - 1  # what SQLite's and PostgreSQL's integers hold, and LIMIT and OFFSET take
_LONGEST_WAIT = 1e9  # seconds, 31 years: clocks of event loops and locks count to it


def object_copy(name: str, value: Any, depth: int = 0) -> Any:
    """Return a copy of the lists, tuples and dicts of a value; every other object is the same, whatever it is.

    Raises:
        InvalidArgument: It is nested too deeply, or contains itself.
    """
    if depth > DEEPEST:
        raise too_deep(name)
    if type(value) is dict:
        return {key: object_copy(name, item, depth + 1) for key, item in value.items()}
    if type(value) is list or type(value) is tuple:
        return type(value)(object_copy(name, item, depth + 1) for item in value)
    return value


def json_dict(name: str, value: Any) -> dict[str, Any]:
    """Return a deep copy of a JSON object.

    Raises:
        InvalidArgument: It is no dict, or something inside is not JSON.
    """
    if not isinstance(value, Mapping):
        raise InvalidArgument(f"{name} must be a dict, not {type(value).__qualname__}")
    return cast("dict[str, Any]", json_copy(name, value))


def optional_json_dict(name: str, value: Any) -> dict[str, Any] | None:
    """Like :func:`json_dict`, and ``None`` stays ``None``."""
    return None if value is None else json_dict(name, value)


def optional_counts(name: str, value: Any) -> dict[str, int] | None:
    """Return name → number, of numbers from 0; ``None`` stays ``None``.

    Raises:
        InvalidArgument: It is something else.
    """
    if value is None:
        return None
    if isinstance(value, Mapping):
        found = dict(value)
        if all(type(key) is str and type(count) is int and count >= 0 for key, count in found.items()):
            return found
    raise InvalidArgument(f"{name} is a mapping of names to numbers from 0, not {value!r}")


def word(name: str, value: Any, allowed: frozenset[W] | Mapping[W, Any]) -> W:
    """Return ``value`` if it is one of the allowed words.

    Raises:
        InvalidArgument: It is not.
    """
    if isinstance(value, str) and value in allowed:
        return cast("W", value)
    raise InvalidArgument(f"{value!r} is no {name}; it is one of {', '.join(sorted(allowed))}")


def optional_mode(value: Any) -> RolloutMode | None:
    """Return a rollout's mode, or ``None``."""
    return None if value is None else word("mode", value, MODES)


def text(name: str, value: Any) -> str:
    """Return ``value`` if it can be an id: text that is not empty and has no lone surrogates."""
    if isinstance(value, str) and value and is_utf8(value):
        return str.__str__(value)  # without what a subclass, such as an enumeration, adds
    raise InvalidArgument(f"{name} must be text that is not empty, not {value!r}")


def optional_text(name: str, value: Any) -> str | None:
    """Like :func:`text`, and ``None`` stays ``None``."""
    return None if value is None else text(name, value)


def sought(value: Any) -> str:
    """Return what an id is looked for by: of what is no text, a text that can be no id, so that nothing is found."""
    return str.__str__(value) if isinstance(value, str) else "\ud800"


def pairs_of_ids(name: str, value: Any) -> list[tuple[Any, Any]]:
    """Return pairs of ids, which nobody has looked for yet.

    Raises:
        InvalidArgument: It is no sequence of pairs.
    """
    pairs = list(value) if isinstance(value, Iterable) else [value]
    for pair in pairs:
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise InvalidArgument(f"{name} takes pairs of two ids, not {_shortened(pair)}")
    return [(first, second) for first, second in pairs]


def moment(name: str, value: Any) -> float:
    """Return ``value`` if it is a time in seconds."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        # An integer may have more digits than any float: 10**400 is no time either.
        with suppress(OverflowError):
            if math.isfinite(value):
                return float(value)
    raise InvalidArgument(f"{name} must be a time in seconds, not {_shortened(value)}")


def timeout(value: Any) -> float | None:
    """Return how long to wait, in seconds; ``None`` for ever, as for what no clock can count.

    Raises:
        InvalidArgument: It is negative, or no number.
    """
    if value is None:
        return None
    if not isinstance(value, (int, float)) or not value >= 0:  # NaN is not
        raise InvalidArgument(f"timeout must be None or at least 0 seconds, not {_shortened(value)}")
    return None if value > _LONGEST_WAIT else float(value)


def list_of_ids(name: str, value: Any) -> list[str]:
    """Return the texts of a sequence, each once, in its order.

    Raises:
        InvalidArgument: It is a single text, no sequence, or has something else than text in it.
    """
    if isinstance(value, str):  # a sequence of texts, too: its letters would be looked for
        raise InvalidArgument(f"{name} takes a list of texts, not the single text {value!r}")
    if not isinstance(value, Iterable):
        raise InvalidArgument(f"{name} takes a list of texts, not {_shortened(value)}")
    ids = list(value)
    for each in ids:
        if not isinstance(each, str):
            raise InvalidArgument(f"{name} takes texts, not {type(each).__name__}")
    return list(dict.fromkeys(ids))


def whole(name: str, value: Any, least: int) -> int:
    """Return a whole number; one that no database can count to becomes the largest that it can.

    Raises:
        InvalidArgument: It is none, or less than ``least``.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InvalidArgument(f"{name} must be a whole number of at least {least}, not {_shortened(value)}")
    return min(value, _LARGEST_OF_SQL)


def _shortened(value: Any) -> str:
    """Return ``repr`` of a value, as far as it belongs into a message; Python refuses to print 10**5000."""
    is_huge = isinstance(value, int) and abs(value) > _LARGEST_OF_SQL
    return f"a number of {value.bit_length()} bits" if is_huge else repr(value)


def rollout_config(value: Any) -> RolloutConfig:
    """Return a validated copy of a rollout's config.

    Raises:
        InvalidArgument: It is none.
    """
    try:
        # By way of a dict: pydantic takes a model as it is, also one whose fields were changed since.
        data = value.model_dump(warnings=False) if isinstance(value, BaseModel) else value
        return RolloutConfig.model_validate(data)
    except ValidationError as error:
        raise InvalidArgument(f"config: {_first(error)}") from None


def named_resources(value: Any) -> NamedResources:
    """Return a validated copy of named resources.

    Raises:
        InvalidArgument: They are none.
    """
    try:
        # Not by way of JSON text: pydantic writes NaN as null and refuses lone surrogates.
        plain = json_copy("resources", _RESOURCES.dump_python(_RESOURCES.validate_python(value)))
        return _RESOURCES.validate_python(plain)
    except ValidationError as error:
        raise InvalidArgument(f"resources: {_first(error)}") from None


def _first(error: ValidationError) -> str:
    # Without the input itself: it may hold an API key.
    detail = error.errors(include_url=False, include_input=False, include_context=False)[0]
    return f"{'.'.join(map(str, detail['loc'])) or 'value'}: {detail['msg']}"


def check_span(span: Any) -> None:
    """Refuse what is no span or cannot be filed.

    Raises:
        InvalidArgument: It is no :class:`Span`, an id is not text, or the sequence id is out of range.
    """
    if not isinstance(span, (Span, RecordedSpan)):
        raise InvalidArgument(f"a span must be an agentlightning.Span, not {type(span).__qualname__}")
    for name in ("rollout_id", "attempt_id", "span_id", "trace_id"):
        value = getattr(span, name)
        if type(value) is str and value.isascii():  # as nearly all are
            continue
        if not isinstance(value, str) or not is_utf8(value):
            raise InvalidArgument(f"the {name} of a span must be text, not {value!r}")
    number = span.sequence_id
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number <= _LARGEST_NUMBER:
        raise InvalidArgument(
            f"the sequence_id of a span must be 0 or a positive 64-bit number, not {number!r}"
        )


def account(value: Any) -> Account:
    """Return a validated copy of an account.

    Raises:
        InvalidArgument: It is none, or a total of it is out of range.
    """
    if not isinstance(value, Account):
        raise InvalidArgument(
            f"an account must be an agentlightning.types.Account, not {type(value).__qualname__}"
        )
    try:
        copy = Account.model_validate(value.model_dump(warnings=False))
    except ValidationError as error:
        raise InvalidArgument(f"account: {_first(error)}") from None
    for name in ("rollout_id", "attempt_id", "writer_id"):
        text(name, getattr(copy, name))
    totals = (copy.started, copy.late, copy.unattributed)
    numbers = (copy.revision, *totals, *copy.dropped.values(), *copy.late_dropped.values())
    if not all(-_LARGEST_NUMBER <= number <= _LARGEST_NUMBER for number in numbers):
        raise InvalidArgument(f"a total of the account of {copy.writer_id!r} is out of range")
    return copy


# ---------------------------------------------------------------------- copies of values known to be good


def copy_model(model: M) -> M:
    """Return a copy that shares nothing mutable, but objects in a rollout's input that are no JSON values."""
    if isinstance(model, Span):
        return cast("M", copy_span(model))
    fields = {name: copy_value(value) for name, value in model.__dict__.items()}
    return type(model).model_construct(model.model_fields_set, **fields)


def copy_value(value: Any) -> Any:
    """Copy one field, or anything that a store returns: our models, lists, tuples and dicts of them, JSON values.

    What else is in a rollout's input is the same object.
    """
    if isinstance(value, Model):
        return copy_model(value)
    kind = type(value)
    if kind is dict:
        return {key: copy_value(item) for key, item in value.items()}
    if kind is list or kind is tuple:
        return kind(map(copy_value, value))
    return value


def numbered(span: Span, sequence_id: int) -> Span:
    """Return a span with its sequence id; what is inside is shared."""
    if type(span) is not Span:
        return copy_span(span, sequence_id)
    return build(Span, {**span.__dict__, "sequence_id": sequence_id}, span.model_extra)


def copy_span(span: Span, sequence_id: int | None = None) -> Span:
    """Return a deep copy of a span, with its attribute values made JSON values."""
    return build(
        Span,
        {
            "rollout_id": span.rollout_id,
            "attempt_id": span.attempt_id,
            "sequence_id": span.sequence_id if sequence_id is None else sequence_id,
            "trace_id": span.trace_id,
            "span_id": span.span_id,
            "parent_id": span.parent_id,
            "name": span.name,
            "status": _copy_status(span.status),
            "attributes": to_attributes(span.attributes),
            "events": [_copy_event(event) for event in span.events],
            "links": [_copy_link(link) for link in span.links],
            "start_time": span.start_time,
            "end_time": span.end_time,
            "context": None if span.context is None else _copy_context(span.context),
            "parent": None if span.parent is None else _copy_context(span.parent),
            "resource": _copy_resource(span.resource),
        },
        to_attributes(span.model_extra),
    )


def _copy_status(status: TraceStatus) -> TraceStatus:
    fields = {"status_code": status.status_code, "description": status.description}
    return build(TraceStatus, fields, to_attributes(status.model_extra))


def _copy_event(event: Event) -> Event:
    attributes = to_attributes(event.attributes)
    fields = {"name": event.name, "attributes": attributes, "timestamp": event.timestamp}
    return build(Event, fields, to_attributes(event.model_extra))


def _copy_link(link: Link) -> Link:
    attributes = None if link.attributes is None else to_attributes(link.attributes)
    fields = {"context": _copy_context(link.context), "attributes": attributes}
    return build(Link, fields, to_attributes(link.model_extra))


def _copy_resource(resource: OtelResource) -> OtelResource:
    attributes = to_attributes(resource.attributes)
    return build(OtelResource, {"attributes": attributes, "schema_url": resource.schema_url})


def _copy_context(context: SpanContext) -> SpanContext:
    return build(
        SpanContext,
        {
            "trace_id": context.trace_id,
            "span_id": context.span_id,
            "is_remote": context.is_remote,
            "trace_state": dict(context.trace_state),
        },
        to_attributes(context.model_extra),
    )
