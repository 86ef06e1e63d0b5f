"""What ``emit_message`` and ``emit_object`` recorded, read from the attributes of a span; records nothing itself."""

from __future__ import annotations

import binascii
import json
from base64 import b64decode
from collections.abc import Callable
from typing import Any

from ..semconv import AGL_MESSAGE, AGL_OBJECT, LightningSpanAttributes
from ..types import SpanAttributeNames, SpanLike
from .attributes import attributes_of

_BODY = LightningSpanAttributes.MESSAGE_BODY.value
_TYPE = LightningSpanAttributes.OBJECT_TYPE.value
_LITERAL = LightningSpanAttributes.OBJECT_LITERAL.value
_JSON = LightningSpanAttributes.OBJECT_JSON.value


def get_message_value(span: SpanLike) -> str | None:
    """Return the text of a message span (0.3's form, then 0.2's), or ``None``."""
    attributes = attributes_of(span)
    body = attributes.get(_BODY)
    if body is None and getattr(span, "name", None) == AGL_MESSAGE:
        body = attributes.get(SpanAttributeNames.MESSAGE.value)
    return body if isinstance(body, str) else None


def get_object_value(span: SpanLike) -> Any:
    """Return the value of an object span (0.3's form, then 0.2's).

    ``None`` where there is none; a text that does not fit its type is returned as text.
    """
    attributes = attributes_of(span)
    if _JSON in attributes:
        return _loaded(attributes[_JSON])
    if _LITERAL in attributes:
        return _literal(attributes[_LITERAL], attributes.get(_TYPE))
    if getattr(span, "name", None) == AGL_OBJECT:
        return _loaded(attributes.get(SpanAttributeNames.OBJECT.value))
    return None


def _loaded(text: Any) -> Any:
    if not isinstance(text, str):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


_READ: dict[str, Callable[[str], Any]] = {
    "int": int,
    "float": float,
    # Not ``bool``, to which every text but the empty one is true; ``KeyError`` is caught below.
    "bool": lambda text: {"true": True, "false": False}[text.lower()],
    "bytes": lambda text: b64decode(text, validate=True),
}


def _literal(text: Any, kind: Any) -> Any:
    read = _READ.get(str(kind))
    if read is None or not isinstance(text, str):
        return text
    try:
        return read(text)
    except (ValueError, KeyError, binascii.Error):
        return text
