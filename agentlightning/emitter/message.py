"""Messages: a line of text worth keeping in the trace."""

from __future__ import annotations

from typing import Any

from ..codec.emitted import get_message_value
from ..semconv import AGL_MESSAGE, LightningSpanAttributes
from .annotation import record_span, to_flat

__all__ = ["emit_message", "get_message_value"]

_BODY = LightningSpanAttributes.MESSAGE_BODY.value


def emit_message(message: str, attributes: dict[str, Any] | None = None, propagate: bool = True) -> None:
    """Record a span ``agentlightning.message`` with this text.

    Raises:
        TypeError: ``message`` is not a string.
    """
    if not isinstance(message, str):
        raise TypeError(f"message must be a str, got {type(message).__name__}; emit_object takes anything")
    record_span(AGL_MESSAGE, {_BODY: message, **to_flat(attributes)}, propagate=propagate)
