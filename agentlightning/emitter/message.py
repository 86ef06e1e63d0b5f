"""Messages: a line of text worth keeping in the trace."""

from __future__ import annotations

from typing import Any

from ..codec.attributes import attributes_of
from ..semconv import AGL_MESSAGE, LightningSpanAttributes
from ..types import SpanAttributeNames, SpanLike
from .annotation import record_span, to_flat

_BODY = LightningSpanAttributes.MESSAGE_BODY.value


def emit_message(message: str, attributes: dict[str, Any] | None = None, propagate: bool = True) -> None:
    """Record a span ``agentlightning.message`` with this text.

    Raises:
        TypeError: ``message`` is not a string.
    """
    if not isinstance(message, str):
        raise TypeError(f"message must be a str, got {type(message).__name__}; emit_object takes anything")
    record_span(AGL_MESSAGE, {_BODY: message, **to_flat(attributes)}, propagate=propagate)


def get_message_value(span: SpanLike) -> str | None:
    """Return the text of a message span (0.3's form, then 0.2's), or ``None``."""
    attributes = attributes_of(span)
    body = attributes.get(_BODY)
    if body is None and getattr(span, "name", None) == AGL_MESSAGE:
        body = attributes.get(SpanAttributeNames.MESSAGE.value)
    return body if isinstance(body, str) else None
