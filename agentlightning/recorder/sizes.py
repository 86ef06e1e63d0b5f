"""How many bytes of memory a finished span takes while it waits, and what of it is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import length_hint
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.trace import ReadableSpan

from ..types.attributes import attributes_of, events_of, has_events, links_of, name_of

if TYPE_CHECKING:
    from ..dialects.raw_call import RawCall

_ENTRY_OVERHEAD = 600
"""Bytes that a span without attributes occupies in the queue, roughly (CPython 3.11)."""
_PART_OVERHEAD = 300
"""The same of an event or a link."""
_NUMBERS = frozenset({int, float, bool})
"""Values that take no room beside the 80 bytes that each attribute is reckoned with."""
_FLAT = _NUMBERS | {str}
_LEVELS_SIZED = 5
"""How deep a nested value is looked into; a value may contain itself."""


def kept_of(span: ReadableSpan, calls: Sequence[RawCall] | None) -> tuple[ReadableSpan, int]:
    """Return what is kept of a finished span until it is written, and the bytes that it and its model calls occupy.

    The bytes are an estimate. Most of the SDK's object are locks and empty lists. Without them a span that waits takes
    half of the memory, and the garbage collector, which runs on the agent's threads, visits a third of the objects.
    """
    attributes = attributes_of(span)
    events = tuple(events_of(span)) if has_events(span) else ()
    links = links_of(span)
    name = name_of(span)
    size = _size_of_parts(name, attributes, (*events, *links) if events or links else ())
    for call in calls or ():
        size += len(call.request_body) + len(call.response_body)
    if span.dropped_attributes:  # the SDK's container of attributes has their number
        return span, size
    kept = ReadableSpan(
        name,
        span.get_span_context(),
        span.parent,
        span.resource,
        attributes,
        events,
        links,
        status=span.status,
        start_time=span.start_time,
        end_time=span.end_time,
    )
    return kept, size


def size_of(span: ReadableSpan) -> int:
    """Estimate the bytes that a finished span occupies."""
    return _size_of_parts(name_of(span), attributes_of(span), (*events_of(span), *links_of(span)))


def _size_of_parts(name: str, attributes: Mapping[str, Any], parts: Sequence[object]) -> int:
    size = _ENTRY_OVERHEAD + len(name)
    if attributes:
        size += _size_of_all(attributes)
    for part in parts:
        size += _PART_OVERHEAD + _size_of_all(attributes_of(part))
    return size


def _size_of_all(attributes: Mapping[str, Any], depth: int = 0) -> int:
    values = attributes.values()
    size = 80 * len(attributes)
    # Two passes without a line of Python for each value: they are texts and numbers, but for a few spans.
    if _FLAT.issuperset(map(type, values)):
        return size + sum(map(length_hint, values))
    for value in values:
        if type(value) is str:
            size += len(value)
        elif type(value) not in _NUMBERS:
            size += _size_of_value(value, depth)
    return size


def _size_of_value(value: Any, depth: int) -> int:
    if isinstance(value, (str, bytes)):
        return len(value)
    if isinstance(value, (tuple, list)):  # before the check for a mapping, which is a call of Python's own
        if depth == _LEVELS_SIZED or not value or isinstance(value[0], (int, float)):
            return 32 * len(value)
        return sum(32 + _size_of_value(item, depth + 1) for item in value)
    if depth < _LEVELS_SIZED and isinstance(value, Mapping):
        return _size_of_all(value, depth + 1)
    return 32
