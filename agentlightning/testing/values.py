"""Values that tests are made of: spans and accounts of an attempt, and when two values are the same."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from ..types import Account, Attempt, AttemptedRollout, Span, TraceStatus

Attempted = AttemptedRollout | Attempt


def attempt_of(attempted: Attempted) -> Attempt:
    """Return the attempt itself."""
    return attempted.attempt if isinstance(attempted, AttemptedRollout) else attempted


def span_of(attempted: Attempted, name: str = "work", **fields: Any) -> Span:
    """Return a new ended span of an attempt; ``fields`` are those of ``Span.from_attributes``."""
    attempt = attempt_of(attempted)
    return Span.from_attributes(
        **{"attributes": {}, **fields},
        name=name,
        rollout_id=attempt.rollout_id,
        attempt_id=attempt.attempt_id,
    )


def open_span_of(attempted: Attempted, name: str = "work", **fields: Any) -> Span:
    """Return a new span that has started and not ended."""
    span = span_of(attempted, name, **fields)
    return span.model_copy(update={"end_time": None, "status": TraceStatus(status_code="UNSET")})


def ended(span: Span, **fields: Any) -> Span:
    """Return an open span as it looks once it has ended."""
    return span.model_copy(
        update={"end_time": (span.start_time or 0.0) + 1.0, "status": TraceStatus(status_code="OK"), **fields}
    )


def account_of(attempted: Attempted, writer_id: str, **fields: Any) -> Account:
    """Return what a writer says of an attempt."""
    attempt = attempt_of(attempted)
    return Account(
        rollout_id=attempt.rollout_id, attempt_id=attempt.attempt_id, writer_id=writer_id, **fields
    )


def ids(spans: Sequence[Span]) -> list[str]:
    """Return the span ids, in order."""
    return [span.span_id for span in spans]


def same_value(left: Any, right: Any) -> bool:
    """Whether two values are the same to the bit of a number and the type of a leaf.

    Stricter than ``==``, which takes 1 for ``True`` and 0.0 for -0.0, and wider: NaN is the same as NaN. The order of
    keys of a map does not matter.
    """
    if type(left) is not type(right):
        return False
    if isinstance(left, BaseModel):
        return same_value(
            # Not ``model_dump``, which turns values into others before they are compared.
            {**vars(left), **(left.model_extra or {})},
            {**vars(right), **(right.model_extra or {})},
        )
    if isinstance(left, Mapping):
        return left.keys() == right.keys() and all(same_value(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same_value, left, right))
    if isinstance(left, float):
        if math.isnan(left) or math.isnan(right):
            return math.isnan(left) and math.isnan(right)
        # -0.0 equals 0.0, but not to the bit.
        return left == right and math.copysign(1.0, left) == math.copysign(1.0, right)
    return bool(left == right)
