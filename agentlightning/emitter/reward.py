"""Rewards: what something in a rollout was worth.

``emit_reward`` records a span ``agentlightning.annotation`` with ``agentlightning.reward.<i>.name`` and
``.value``, the primary dimension first. Which model call it is for is decided by the adapter: by a link, if
the reward has one (``make_link_attributes``), else by time (``rows.matching``). NaN and infinities are
recorded as they are and read as unscored. Readers take our spans and OpenTelemetry's.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from ..rows.rewards import (
    PRIMARY,
    find_final_reward,
    find_reward_spans,
    get_reward_value,
    get_rewards_from_span,
    is_reward_span,
    reward_attributes,
    reward_dimensions,
    reward_number,
)
from ..semconv import AGL_ANNOTATION, AGL_OPERATION, AGL_REWARD, LightningSpanAttributes
from ..types import SpanCoreFields, SpanRecordingContext
from .annotation import FnType, record, record_span, to_flat, traced
from .provider import guard

__all__ = [
    "emit_reward",
    "find_final_reward",
    "find_reward_spans",
    "get_reward_value",
    "get_rewards_from_span",
    "is_reward_span",
    "reward",
]

_OPERATION_NAME = LightningSpanAttributes.OPERATION_NAME.value
_OUTPUT = LightningSpanAttributes.OPERATION_OUTPUT.value


def emit_reward(
    reward: float | dict[str, Any],
    *,
    primary_key: str | None = None,
    attributes: dict[str, Any] | None = None,
    propagate: bool = True,
) -> SpanCoreFields:
    """Record a reward, with one dimension or several named ones.

    Args:
        reward: A number (also a bool, a NumPy scalar or a tensor of one element), or name → number.
        primary_key: The dimension that counts where one number is wanted; required with a dict.
        attributes: Further attributes, such as ``make_link_attributes({"gen_ai.response.id": …})`` to name
            the call that the reward is for, or ``make_tag_attributes([…])``. Nested values are flattened.
        propagate: Whether the tracer records it; without, the span is only returned.

    Raises:
        TypeError: A reward is not a number.
        ValueError: A dict without ``primary_key``, or with one that it does not hold.
    """
    given = reward_dimensions(reward, primary_key)
    return record_span(
        AGL_ANNOTATION, {**to_flat(attributes), **reward_attributes(given)}, propagate=propagate
    )


def reward(fn: FnType) -> FnType:
    """Record what a reward function or coroutine returns as a reward (0.2; prefer :func:`emit_reward`).

    Each call makes a span ``agentlightning.operation`` named ``agentlightning.reward``. Model calls inside it
    are the judge's, not the agent's, and give no training rows. A result that is not a number is returned all
    the same, and recorded as no reward.
    """
    return traced(fn, AGL_OPERATION, {_OPERATION_NAME: AGL_REWARD}, observe=_record_reward)


def _record_reward(recording: SpanRecordingContext, result: Any) -> None:
    record(recording, _OUTPUT, result)
    try:
        dimensions = {PRIMARY: reward_number(result)}
    except (TypeError, ValueError):
        return
    with guard("recording a reward"):
        recording.record_attributes(reward_attributes(dimensions))


class _ModuleThatDecorates(ModuleType):
    """``agentlightning.emitter.reward`` is a module and, in 0.2 and 0.3, a decorator: this one is both."""

    def __call__(self, fn: FnType) -> FnType:
        return reward(fn)


# The class of a module may be changed (Python data model, 3.3.2.1); ``from agentlightning.emitter import reward``
# gives the function in any case.
sys.modules[__name__].__class__ = _ModuleThatDecorates
