"""Rewards from outside of the traced process: a judge, a test bench, a person, after the agent has ended."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import AlreadySealed, AttemptNotFound, RewardTargetNotFound, RolloutNotFound
from ..rows.rewards import reward_attributes, reward_dimensions
from ..rows.training import build_rows
from ..semconv import AGL_ANNOTATION
from ..store.base import LATEST, LightningStore
from ..store.primitives import packed_spans
from ..types import Attempt, Span

SOURCE = "agentlightning.reward.source"
"""Attribute of a reward span: who gave it."""


async def add_reward(
    store: LightningStore,
    rollout_id: str,
    reward: float | dict[str, Any],
    *,
    attempt_id: str = LATEST,
    target: Mapping[str, Any] | None = None,
    primary_key: str | None = None,
    source: str | None = None,
    span_id: str | None = None,
) -> Span:
    """Store a reward of an attempt, from any process, and return its span.

    Args:
        store: Where the attempt is.
        rollout_id: Its rollout.
        reward: A number, or name → number.
        attempt_id: The attempt; default: the latest.
        target: What it is for, from ``reward_target(…)``; default: the attempt as a whole. The call must be
            stored: a reward is never put on a target that is not there.
        primary_key: With named rewards, the one that counts.
        source: Who gave it, for people who read the trace.
        span_id: 16 hex digits of your own, so that giving it again changes nothing; default: a new one.

    Raises:
        RolloutNotFound, AttemptNotFound: The id is unknown.
        RewardTargetNotFound: The attempt has no such call, choice or tokens; nothing was written.
        AlreadySealed: The attempt is sealed: what it is trained on does not change any more.
        TypeError: A reward is not a number.
        ValueError: Named rewards without ``primary_key``, or with one that they do not hold.
    """
    attributes = reward_attributes(reward_dimensions(reward, primary_key))
    attempt = await _attempt(store, rollout_id, attempt_id)
    if attempt.seal is not None:
        raise AlreadySealed(f"attempt {attempt.attempt_id} is sealed; a reward for it comes too late")
    named = {} if source is None else {SOURCE: source}
    span = Span.from_attributes(
        attributes={**attributes, **(target or {}), **named},
        rollout_id=rollout_id,
        attempt_id=attempt.attempt_id,
        span_id=span_id,
        name=AGL_ANNOTATION,
    )
    if target:
        # The rows say what a link means; asking them keeps that in one place.
        spans = await packed_spans(store, rollout_id, attempt.attempt_id)
        lost = {match.span.span_id for match in build_rows([*spans, span]).unknown_rewards}
        if span.span_id in lost:
            raise RewardTargetNotFound(", ".join(f"{value}" for value in target.values()))
    stored = await store.add_span(span)
    # The attempt may have been sealed between the look above and the write: the place of the span tells.
    after = await _attempt(store, rollout_id, attempt.attempt_id)
    if stored is not None and after.seal is not None and stored.sequence_id > after.seal.sequence_id:
        raise AlreadySealed(f"attempt {attempt.attempt_id} was sealed meanwhile; its reward came too late")
    return stored or span


async def _attempt(store: LightningStore, rollout_id: str, attempt_id: str) -> Attempt:
    attempts = await store.query_attempts(rollout_id)
    found = [attempt for attempt in attempts if attempt_id in {LATEST, attempt.attempt_id}]
    if not found:
        if await store.get_rollout_by_id(rollout_id) is None:
            raise RolloutNotFound(rollout_id)
        raise AttemptNotFound(attempt_id)
    return found[-1]
