"""Attribute values: JSON values, and how they are got from OpenTelemetry's objects. Loads no pydantic."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from typing import Any

AttributeValue = Any
"""A JSON value: str, bool, int, float, None, a list or a dict of them."""

_PLAIN = frozenset({str, bool, int, float, type(None)})


def to_attribute_value(value: Any) -> AttributeValue:
    """Return ``value`` as a JSON value; never raises.

    Tuples become lists, bytes base64, enums their value, mappings get string keys; anything else becomes its
    ``repr``. Numbers stay numbers (also NaN and infinities), strings stay as they are.
    """
    return _to_value(value, 0)


def _to_value(value: Any, depth: int) -> AttributeValue:
    kind = type(value)
    if kind in _PLAIN:
        return value
    if (kind is tuple or kind is list) and set(map(type, value)) <= _PLAIN:
        return list(value)
    if depth > 50:  # deeper than any sane payload; a cycle would never end
        return "[too deep]"
    if isinstance(value, Enum):
        return _to_value(value.value, depth + 1)
    if isinstance(value, (bool, int, float, str)):  # subclasses, such as numpy.float64
        for plain in (bool, int, float, str):
            if isinstance(value, plain):
                return plain(value)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return b64encode(bytes(value)).decode("ascii")
    if isinstance(value, Mapping):
        return {str(key): _to_value(item, depth + 1) for key, item in value.items()}
    if isinstance(value, (Sequence, set, frozenset)):
        return [_to_value(item, depth + 1) for item in value]
    tolist = getattr(value, "tolist", None)  # array.array, numpy
    try:
        return _to_value(tolist(), depth + 1) if callable(tolist) else repr(value)
    except Exception:  # noqa: BLE001 - a broken __repr__ of a stranger must not reach user code
        return f"[{type(value).__name__}: no repr]"


def to_attributes(attributes: Mapping[Any, Any] | None) -> dict[str, AttributeValue]:
    """Return a new dict with string keys and JSON values; never raises."""
    if not attributes:
        return {}
    plain = _PLAIN  # most values are plain, and a call for each of 25 would be felt
    return {
        key if type(key) is str else str(key): value if type(value) in plain else _to_value(value, 0)
        for key, value in attributes.items()
    }


def is_plain(values: Iterable[Any]) -> bool:
    """Whether all of ``values`` are JSON values that cannot be changed."""
    return _PLAIN.issuperset(map(type, values))


def attributes_of(src: Any) -> Mapping[str, Any]:
    """Return the attributes of an OpenTelemetry span, event, link or resource, to be read only.

    The SDK's own containers copy themselves under a lock, or read key by key, for every public way of reading; the
    dict inside is taken where it is found. So what is read here is a dict, which encoders in C take: the views that the
    public properties return they refuse.
    """
    held = getattr(src, "_attributes", None)
    inner = getattr(held, "_dict", held)
    if type(inner) is dict:
        return inner
    return getattr(src, "attributes", None) or {}


def has_events(src: Any) -> bool:
    """Whether an OpenTelemetry span has events; the SDK's public property copies them under a lock."""
    held = getattr(src, "_events", True)
    return bool(getattr(held, "_dq", held))


def events_of(src: Any) -> Iterable[Any]:
    """Return the events of an OpenTelemetry span as they were recorded."""
    if not has_events(src):
        return ()
    # A container of the tracer's (``shared_spans``) shows more than was recorded.
    recorded: Iterable[Any] | None = getattr(getattr(src, "_events", None), "recorded", None)
    shown: Iterable[Any] = src.events if recorded is None else recorded
    return shown


def description_of(status: Any) -> str | None:
    """Return the description of an OpenTelemetry status as it was recorded; see ``events_of``."""
    description: str | None = getattr(status, "recorded", status).description
    return description


def name_of(src: Any) -> str:
    """Return the name of an OpenTelemetry span as it was recorded; see ``events_of``."""
    recorded: str | None = getattr(src, "recorded_name", None)
    shown: str = src.name if recorded is None else recorded
    return shown


def links_of(src: Any) -> Sequence[Any]:
    """Return the links of an OpenTelemetry span as they were recorded; see ``events_of``."""
    held = getattr(src, "_links", True)
    if not getattr(held, "_dq", held):
        return ()
    recorded: Sequence[Any] | None = getattr(held, "recorded", None)
    given: Sequence[Any] = src.links if recorded is None else recorded
    return given
