"""Exceptions: an error that the agent dealt with and that the trace should show."""

from __future__ import annotations

from typing import Any

from ..codec.attributes import format_exception_attributes
from ..semconv import AGL_EXCEPTION
from .annotation import record_span, to_flat


def emit_exception(
    exception: BaseException, attributes: dict[str, Any] | None = None, propagate: bool = True
) -> None:
    """Record a span ``agentlightning.exception`` with type, message and stack.

    The span's status stays OK: whether a dealt-with error is a failure is not known here.

    Raises:
        TypeError: ``exception`` is not an exception.
    """
    if not isinstance(exception, BaseException):
        raise TypeError(f"exception must be an exception, got {type(exception).__name__}")
    record_span(
        AGL_EXCEPTION, {**format_exception_attributes(exception), **to_flat(attributes)}, propagate=propagate
    )
