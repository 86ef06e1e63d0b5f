"""Rewards as they stand on spans: what was given, to what, and whether it can be used.

Three forms are read, the first that fits:

1. 0.3 and ours: a span ``agentlightning.annotation``, or ``agentlightning.operation`` with the operation name
   ``agentlightning.reward``, with ``agentlightning.reward.<i>.name`` and ``.value``; 0 is the primary reward.
2. AgentOps and 0.1: ``agentops.task.output`` or ``agentops.entity.output`` holding
   ``{"type": "reward", "value": …}`` as JSON.
3. 0.2: a span ``agentlightning.reward``, and 0.3's ``emit_annotation({"reward": …})``: the attribute ``reward``.

A reward that is no finite number is *unscored*: its value is ``None`` with a reason, never 0.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from numbers import Real
from typing import Any

from ..codec.attributes import (
    attributes_of,
    extract_links_from_attributes,
    indexed_attributes,
    make_link_attributes,
)
from ..semconv import AGL_ANNOTATION, AGL_OPERATION, AGL_REWARD, LightningSpanAttributes, RewardAttributes
from ..types import SpanLike
from ..types.semconv import LinkPydanticModel, RewardPydanticModel
from .reasons import RewardReason

CHOICE_INDEX = "choice_index"
"""Link key that names one choice of the linked call."""
TOKEN_RANGE = "token_range"  # noqa: S105 - the name of a key
"""Link key that names sampled tokens of the linked choice: ``<start>:<end>``, half-open, from 0."""

PRIMARY = "primary"
"""Name of the only dimension of a reward that was given as a number."""

_RESPONSE_ID = "gen_ai.response.id"
_REWARDS = LightningSpanAttributes.REWARD.value  # an enumeration looks its value up at every use
_OPERATION_NAME = LightningSpanAttributes.OPERATION_NAME.value
_OUTPUTS = ("agentops.task.output", "agentops.entity.output")
_NAMES = (AGL_ANNOTATION, AGL_OPERATION, AGL_REWARD)


@dataclass(frozen=True, slots=True)
class Reward:
    """What one span says about the worth of something."""

    value: float | None
    """The primary dimension; ``None`` where it is unscored."""
    dimensions: tuple[tuple[str, float | None], ...]
    """Name and value of every dimension, the primary one first."""
    reason: RewardReason | None = None
    """Why ``value`` is ``None``."""
    links: tuple[LinkPydanticModel, ...] = ()
    """What the reward is for, where it says so; all links together name the target."""

    def named(self) -> dict[str, float | None]:
        """Return name → value of every dimension."""
        return dict(self.dimensions)


def read_reward(span: SpanLike) -> Reward | None:
    """Return the reward that ``span`` carries, or ``None`` where it carries none. Never raises."""
    attributes, name = attributes_of(span), getattr(span, "name", None)
    if name not in _NAMES and _OUTPUTS[0] not in attributes and _OUTPUTS[1] not in attributes:
        return None  # as most spans
    dimensions = _dimensions(span, attributes, name)
    if not dimensions:
        return None
    _, raw = dimensions[0]
    value = _number(raw)
    reason = None
    if value is None:
        reason = RewardReason.NOT_GIVEN if raw is None else RewardReason.NOT_FINITE
        if raw is not None and not isinstance(raw, float):
            reason = RewardReason.NOT_A_NUMBER
    return Reward(
        value=value,
        dimensions=tuple((name, _number(given)) for name, given in dimensions),
        reason=reason,
        links=tuple(extract_links_from_attributes(attributes)),
    )


def get_rewards_from_span(span: SpanLike) -> list[RewardPydanticModel]:
    """Return the dimensions under ``agentlightning.reward.<i>`` as they were given, the primary one first."""
    given = [(name, _float(value)) for name, value in _listed(span)]
    return [RewardPydanticModel(name=name, value=value) for name, value in given if value is not None]


def get_reward_value(span: SpanLike) -> float | None:
    """Return the primary reward of a reward span, or ``None`` where it has none or is unscored."""
    reward = read_reward(span)
    return None if reward is None else reward.value


def is_reward_span(span: SpanLike) -> bool:
    """Whether the span carries a reward, also an unscored one."""
    return read_reward(span) is not None


def is_reward_operation(span: SpanLike) -> bool:
    """Whether the span is the work of computing a reward: model calls beneath it are not the agent's."""
    named = getattr(span, "name", None) == AGL_OPERATION
    return named and attributes_of(span).get(_OPERATION_NAME) == AGL_REWARD


def find_reward_spans(spans: Sequence[SpanLike]) -> list[SpanLike]:
    """Return the spans that carry a reward, in their order."""
    return [span for span in spans if is_reward_span(span)]


def find_final_reward(spans: Sequence[SpanLike]) -> float | None:
    """Return the last reward of ``spans``: the outcome of a rollout.

    A reward that was not given (``None``) says nothing and is passed over. One that was given and is no finite
    number is the outcome all the same: ``None``, unscored.
    """
    for span in reversed(spans):
        reward = read_reward(span)
        if reward is not None and reward.reason is not RewardReason.NOT_GIVEN:
            return reward.value
    return None


# ---------------------------------------------------------------------- writing


def reward_dimensions(rewards: Any, primary_key: str | None = None) -> dict[str, float]:
    """Return name → value of a reward that is given as a number or as a dict, the primary one first.

    Raises:
        TypeError: A reward is not a number.
        ValueError: A dict without ``primary_key``, or with one that it does not hold.
    """
    if not isinstance(rewards, Mapping):
        return {PRIMARY: reward_number(rewards)}
    if primary_key is None:
        raise ValueError("a reward with several dimensions needs primary_key=")
    if primary_key not in rewards:
        raise ValueError(
            f"primary_key {primary_key!r} is not one of the rewards: {', '.join(map(str, rewards))}"
        )
    ordered = [primary_key, *(key for key in rewards if key != primary_key)]
    return {str(key): reward_number(rewards[key]) for key in ordered}


def reward_attributes(dimensions: Mapping[str, float]) -> dict[str, Any]:
    """Return the attributes of a span that carries these dimensions, the primary one first."""
    prefix = LightningSpanAttributes.REWARD.value
    flat: dict[str, Any] = {}
    for index, (name, value) in enumerate(dimensions.items()):
        flat[f"{prefix}.{index}.{RewardAttributes.REWARD_NAME.value}"] = name
        flat[f"{prefix}.{index}.{RewardAttributes.REWARD_VALUE.value}"] = value
    return flat


def reward_number(value: Any) -> float:
    """Return a reward as a float: a number, also a bool, a NumPy scalar or a tensor of one element.

    Raises:
        TypeError: It is not a number.
        ValueError: It is a number that a float cannot hold.
    """
    given = value
    if not isinstance(value, (Real, Decimal)):
        try:
            value = value.item()  # NumPy's bool, arrays and tensors of one element
        except Exception:  # noqa: BLE001 - whatever a stranger's item() raises
            value = None
    if not isinstance(value, (Real, Decimal)):
        raise TypeError(f"Reward must be a float, got {type(given).__name__}")
    try:
        return float(value)
    except OverflowError:
        raise ValueError("Reward must be a float: this number is too large for one") from None


def reward_target(
    *,
    response_id: str | None = None,
    span_id: str | None = None,
    choice: int | None = None,
    tokens: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """Return the attributes that say which model call, or which part of its answer, a reward is for.

    ``emit_reward(0.5, attributes=reward_target(response_id=response.id))``. A reward without a target is for the
    rollout.

    Args:
        response_id: The server's id of the response (``response.id`` of the OpenAI client).
        span_id: The call's span, 16 hex digits; or a span around calls, which means the last of them.
        choice: One choice of the call, by index; default: every one.
        tokens: ``[start, end)`` over the sampled tokens of the one choice; default: the whole answer.

    Raises:
        ValueError: Neither or both ids are given, or a place is none.
    """
    if (response_id is None) == (span_id is None):
        raise ValueError("a reward's target is named by response_id or by span_id, one of them")
    links: dict[str, str] = {"span_id": span_id} if span_id is not None else {_RESPONSE_ID: str(response_id)}
    if choice is not None:
        if choice < 0:
            raise ValueError(f"a choice is named by its index from 0, not {choice}")
        links[CHOICE_INDEX] = str(choice)
    if tokens is not None:
        start, end = tokens
        if not 0 <= start < end:
            raise ValueError(f"tokens are a range [start, end) of at least one, not [{start}, {end})")
        links[TOKEN_RANGE] = f"{start}:{end}"
    return make_link_attributes(links)


# ---------------------------------------------------------------------- reading


def _dimensions(span: SpanLike, attributes: Mapping[str, Any], name: str | None) -> list[tuple[str, Any]]:
    if name == AGL_ANNOTATION or is_reward_operation(span):
        listed = _listed(span)
        if listed:
            return listed
    # AgentOps keeps what a decorated function returned as JSON text.
    for key in _OUTPUTS:
        output = _mapping(attributes.get(key))
        if output.get("type") == "reward":
            return [(PRIMARY, output.get("value"))]
    if name in {AGL_REWARD, AGL_ANNOTATION} and "reward" in attributes:
        return [(PRIMARY, attributes["reward"])]
    return []


def _listed(span: SpanLike) -> list[tuple[str, Any]]:
    listed = indexed_attributes(attributes_of(span), _REWARDS)
    return [
        (item["name"], item["value"])
        for item in listed
        if isinstance(item, Mapping) and isinstance(item.get("name"), str) and "value" in item
    ]


def _mapping(value: Any) -> Mapping[str, Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return {}
    return value if isinstance(value, Mapping) else {}


def _float(value: Any) -> float | None:
    if not isinstance(value, (int, float)):  # a bool is an int: True is 1.0
        return None
    try:
        return float(value)
    except OverflowError:
        return None


def _number(value: Any) -> float | None:
    number = _float(value)
    return None if number is None or not math.isfinite(number) else number
