"""One attempt, analysed: its model calls with a verdict each, its rewards with their calls, its graph.

``analyse`` is the only way from spans to rows of any kind: one per call (``transition``), one per path
(``training``). It is a pure function: the spans stay as they are, their order does not matter, and no trace makes
it raise.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..codec.attributes import is_late
from ..types import Span, SpanLike
from .calls import Call, Rules, find_calls
from .graph import CallGraph, build_graph
from .matching import MatchedBy, RewardMatch, RewardMatchPolicy, is_for_rollout, match_rewards
from .reasons import RewardReason
from .repair import repair
from .tree import Tree, as_spans, sequence_of


@dataclass(frozen=True, slots=True)
class Analysis:
    """Everything that the adapter knows of one attempt."""

    rollout_id: str
    attempt_id: str
    spans: tuple[Span, ...]
    calls: tuple[Call, ...]
    """By start time."""
    rewards: tuple[RewardMatch, ...]
    """In the order in which they came."""
    final_reward: float | None
    """The last reward that was given, whatever it is for but another attempt; see ``rewards.find_final_reward``."""
    graph: CallGraph
    """How the sampled answers continue each other."""
    rules: Rules
    """What the verdicts were made by."""


def analyse(
    source: Iterable[SpanLike],
    rules: Rules,
    policy: RewardMatchPolicy,
    *,
    repair_hierarchy: bool = True,
) -> list[Analysis]:
    """Return an analysis of each attempt that ``source`` holds spans of, in the order of their first spans."""
    attempts: dict[tuple[str, str], list[Span]] = {}
    for span in as_spans(source):
        if rules.late or not is_late(span.attributes):
            attempts.setdefault((span.rollout_id, span.attempt_id), []).append(span)
    found = []
    for spans in map(_numbered, attempts.values()) if rules.late else attempts.values():
        root = Tree.from_ordered(spans)
        # Changes the tree, and the spans stay as they are: calls may be analysed twice.
        if repair_hierarchy:
            repair(root, rules)
        found.append(analyse_tree(root, rules, policy, spans))
    return found


def _numbered(spans: list[Span]) -> list[Span]:
    """Give late spans, which have no place in their attempt, the places after the last of its own."""
    last = max((sequence_of(span) or 0 for span in spans), default=0)
    numbers = itertools.count(last + 1)
    return [
        span.model_copy(update={"sequence_id": next(numbers)})
        if is_late(span.attributes) and sequence_of(span) is None
        else span
        for span in spans
    ]


def analyse_tree(root: Tree, rules: Rules, policy: RewardMatchPolicy, spans: Sequence[Span]) -> Analysis:
    """Return the analysis of one tree, whose spans are ``spans``."""
    calls = find_calls(root, rules)
    rewards = match_rewards(root, calls, policy)
    return Analysis(
        rollout_id=root.span.rollout_id,
        attempt_id=root.span.attempt_id,
        spans=tuple(spans),
        calls=tuple(calls),
        rewards=tuple(rewards),
        final_reward=_final_reward(rewards),
        graph=build_graph(calls, _rewarded(rewards)),
        rules=rules,
    )


def _final_reward(rewards: Sequence[RewardMatch]) -> float | None:
    for match in reversed(rewards):
        # A link to another rollout or attempt: that reward is not this one's outcome.
        is_of_another = match.reason is RewardReason.LINK_UNRESOLVED and is_for_rollout(match.reward.links)
        if match.reward.reason is not RewardReason.NOT_GIVEN and not is_of_another:
            return match.reward.value
    return None


def _rewarded(rewards: Iterable[RewardMatch]) -> set[tuple[str, int | None]]:
    """Return the calls, and choices of calls, that a reward names: one that was dealt out by time is a guess."""
    return {
        (match.call, match.choice)
        for match in rewards
        if match.call is not None
        and match.by is MatchedBy.LINK
        and match.reward.reason is not RewardReason.NOT_GIVEN
    }
