"""Objects: any JSON value worth keeping in the trace."""

from __future__ import annotations

import json
from base64 import b64encode
from typing import Any

from ..codec.attributes import full_qualified_name
from ..codec.emitted import get_object_value
from ..semconv import AGL_OBJECT, LightningSpanAttributes
from ..types import SpanCoreFields
from .annotation import record_span, to_flat

__all__ = ["emit_object", "encode_object", "get_object_value"]

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
