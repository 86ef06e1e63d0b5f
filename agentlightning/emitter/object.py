"""Objects: any JSON value worth keeping in the trace."""

from __future__ import annotations

import binascii
import json
from base64 import b64decode, b64encode
from collections.abc import Callable
from typing import Any

from ..codec.attributes import attributes_of, full_qualified_name
from ..semconv import AGL_OBJECT, LightningSpanAttributes
from ..types import SpanAttributeNames, SpanCoreFields, SpanLike
from .annotation import record_span, to_flat

_TYPE = LightningSpanAttributes.OBJECT_TYPE.value
_LITERAL = LightningSpanAttributes.OBJECT_LITERAL.value
_JSON = LightningSpanAttributes.OBJECT_JSON.value


def emit_object(
    object: Any,  # noqa: A002 - 0.3's name
    attributes: dict[str, Any] | None = None,
    propagate: bool = True,
) -> SpanCoreFields:
    """Record a span ``agentlightning.object`` that holds a JSON value.

    Raises:
        RuntimeError: ``object`` is not a JSON value.
    """
    return record_span(AGL_OBJECT, {**encode_object(object), **to_flat(attributes)}, propagate=propagate)


def encode_object(object: Any) -> dict[str, Any]:  # noqa: A002 - 0.3's name
    """Return the attributes that hold ``object``.

    Strings, numbers and booleans are kept as their text, bytes as base64, everything else as JSON; the
    attribute ``agentlightning.object.type`` names the type.

    Raises:
        RuntimeError: ``object`` is not a JSON value.
    """
    if isinstance(object, (str, bool, int, float)):
        return {_TYPE: type(object).__name__, _LITERAL: str(object)}
    if isinstance(object, bytes):
        return {_TYPE: "bytes", _LITERAL: b64encode(object).decode("ascii")}
    try:
        return {_TYPE: full_qualified_name(type(object)), _JSON: json.dumps(object)}
    except (TypeError, ValueError, RecursionError) as exc:
        raise RuntimeError(f"object must be a JSON value, got {type(object).__name__}: {exc}") from exc


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
