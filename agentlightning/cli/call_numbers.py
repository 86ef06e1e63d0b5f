"""Numbers of the model calls of an attempt: ``#1`` is the same call in ``show``, ``rows`` and ``explain``.

Counted over the spans that have ended, by the time at which they started; late spans, which belong to no attempt, come
after all others. Which calls are trained, or asked for by a filter, does not change a number.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..codec.attributes import is_late
from ..dialects.model_call import ModelCall
from ..dialects.spans.genai import CallReader
from ..errors import UsageError
from ..rows.calls import LLM_CALL_MATCH
from ..rows.tree import order_key
from ..types import Span
from . import output


@dataclass(frozen=True, slots=True)
class NumberedCall:
    """One model call with its number, from 1."""

    number: int
    span: Span
    record: ModelCall | None
    """``None`` where the span is named like a model call and records none."""


def numbered_calls(spans: Sequence[Span]) -> list[NumberedCall]:
    """Return the model calls among the ended spans of an attempt, in the order of their numbers."""
    # One reader for all, by time: what a call repeats of the one before it is read once.
    reader = CallReader()
    found: list[NumberedCall] = []
    seen: set[str] = set()
    for span in sorted(spans, key=lambda span: (is_late(span.attributes), order_key(span))):
        record = reader.read(span)
        if span.span_id in seen or (record is None and not re.search(LLM_CALL_MATCH, str(span.name))):
            continue
        seen.add(span.span_id)
        found.append(NumberedCall(len(found) + 1, span, record))
    return found


def call_numbers(spans: Sequence[Span]) -> Mapping[str, int]:
    """Return span id → number of the calls of an attempt."""
    return {call.span.span_id: call.number for call in numbered_calls(spans)}


def wanted_call(calls: Sequence[NumberedCall], number: int) -> NumberedCall:
    """Return the call with this number.

    Raises:
        UsageError: There is none.
    """
    if not 0 < number <= len(calls):
        has = f"it has {output.count(len(calls), 'call')}" if calls else "it has no model call"
        raise UsageError(f"there is no call {number} in this attempt; {has}")
    return calls[number - 1]


def tokens_of(record: ModelCall) -> tuple[int, int] | None:
    """Return how many tokens went in and came out (all choices), or ``None`` where the call does not say."""
    answers = [len(choice.token_ids) for choice in record.choices if choice.token_ids is not None]
    # The ids themselves; the server's own count only where there are none.
    if record.prompt_token_ids is not None and answers:
        return len(record.prompt_token_ids), sum(answers)
    usage = record.usage
    if usage is None or (usage.input_tokens is None and usage.output_tokens is None):
        return None
    return usage.input_tokens or 0, usage.output_tokens or 0
