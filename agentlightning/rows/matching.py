"""Which reward is for which model call: one documented precedence.

1. **Link.** A reward that names a target (``agentlightning.link.<i>.*``, all of them together) is for that call;
   a link to another span is for the last call inside of it; a link to ``agentlightning.rollout_id`` or
   ``agentlightning.attempt_id`` makes it the outcome. ``choice_index`` and ``token_range`` beside the call name a
   part of it; a part that was not sampled is refused. The last of several rewards for one call stands, by the
   numbers that the store gave them: a clock may be set back between the two. A link
   that finds nothing leaves the reward without a call: another target is never guessed.
2. **Time.** The others are dealt out in the order of their start. Each goes to the latest call that had ended
   before and has no reward yet: of the whole trace (``first_occurrence``), or of the calls with the same parent
   span as the reward (``first_sibling``).
3. **Outcome.** Where no call that gives a row has a reward after that, and there is a single reward without a
   link, or one linked to the rollout, it goes to the last call that gives a row.

Only the agent's own calls take part: not those of other agents, of reward functions, or recorded twice. Rewards
that are ``None`` take no part either; NaN and infinities do, and leave their call unscored.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum

from ..codec.attributes import LinkedSpans
from ..dialects.spans.genai import RESPONSE_ID
from ..semconv import LightningResourceAttributes
from ..types import Span
from ..types.semconv import LinkPydanticModel
from .calls import Call
from .reasons import CallReason, RewardReason
from .rewards import CHOICE_INDEX, TOKEN_RANGE, Reward, read_reward
from .tree import Tree, moment, order_key, sequence_of

_ROLLOUT_ID = LightningResourceAttributes.ROLLOUT_ID.value
_ATTEMPT_ID = LightningResourceAttributes.ATTEMPT_ID.value
_ROLLOUT_KEYS = frozenset({_ROLLOUT_ID, _ATTEMPT_ID})


class RewardMatchPolicy(str, Enum):
    """How rewards without a link find their call."""

    FIRST_SIBLING = "first_sibling"
    """The latest call before the reward that has the same parent span and no reward yet."""
    FIRST_OCCURRENCE = "first_occurrence"
    """The latest call before the reward, anywhere in the trace, that has no reward yet."""


class MatchedBy(str, Enum):
    """Which rule gave a reward its call."""

    LINK = "link"
    FIRST_SIBLING = "first_sibling"
    FIRST_OCCURRENCE = "first_occurrence"
    OUTCOME = "outcome"


@dataclass(frozen=True, slots=True)
class RewardMatch:
    """One reward and where it went."""

    span: Span
    reward: Reward
    call: str | None = None
    """Span id of the call; ``None`` = of none."""
    choice: int | None = None
    """The only choice that it is for; ``None`` = every one."""
    by: MatchedBy | None = None
    reason: RewardReason | None = None
    """Why it has no value, no call, or a call that gives no row."""
    tokens: tuple[int, int] | None = None
    """The only sampled tokens that it is for, ``[start, end)``; ``None`` = the whole answer."""


@dataclass(frozen=True, slots=True)
class _Given:
    span: Span
    reward: Reward
    parent: str | None


def match_rewards(root: Tree, calls: Sequence[Call], policy: RewardMatchPolicy) -> list[RewardMatch]:
    """Return every reward beneath ``root`` in the order in which they came, with the call that it is for."""
    nodes = root.traverse()
    parents = {child.id: node.id for node in nodes for child in node.children}
    given = _rewards(nodes, parents)
    taking_part = [call for call in calls if call.selected]
    linked = _linked(nodes, given, calls, taking_part)
    taken = {match.call for match in linked.values() if match.call is not None}
    other = CallReason.OTHER_MODEL.code  # a link may name such a call; by time, none is for it
    free = [call for call in taking_part if call.span_id not in taken and call.reason != other]
    by_time = _by_time([each for each in given if _deals(each)], free, parents, policy)
    matches = {**{id(each): RewardMatch(each.span, each.reward) for each in given}, **linked, **by_time}
    for each in given:
        if is_for_rollout(each.reward.links) and not _is_own(each):
            matches[id(each)] = RewardMatch(each.span, each.reward, reason=RewardReason.LINK_UNRESOLVED)
    _give_outcome(given, matches, taking_part)
    rowless = {call.span_id for call in taking_part if call.reason is not None}
    return [_with_reason(matches[id(each)], rowless) for each in given]


def _rewards(nodes: Iterable[Tree], parents: Mapping[str, str]) -> list[_Given]:
    read = [(node, read_reward(node.span)) for node in nodes]
    found = [_Given(node.span, reward, parents.get(node.id)) for node, reward in read if reward is not None]
    # The store's numbers stand as rewards came, also where a clock went back; all have one, or none counts.
    if any(sequence_of(each.span) is None for each in found):  # of a file, say: there is only the clock
        return sorted(found, key=lambda each: order_key(each.span))
    return sorted(found, key=lambda each: (sequence_of(each.span), order_key(each.span)))


def _deals(given: _Given) -> bool:
    return not given.reward.links and given.reward.reason is not RewardReason.NOT_GIVEN


def is_for_rollout(links: Sequence[LinkPydanticModel]) -> bool:
    """Whether these links name the rollout or attempt as a whole."""
    return bool(links) and all(link.key_match in _ROLLOUT_KEYS for link in links)


def _is_own(given: _Given) -> bool:
    span = given.span
    own = {_ROLLOUT_ID: span.rollout_id, _ATTEMPT_ID: span.attempt_id}
    return all(own.get(link.key_match) == link.value_match for link in given.reward.links)


# ---------------------------------------------------------------------- 1. links


def _linked(
    nodes: Sequence[Tree], given: Sequence[_Given], calls: Sequence[Call], taking_part: Sequence[Call]
) -> dict[int, RewardMatch]:
    linking = [each for each in given if each.reward.links and not is_for_rollout(each.reward.links)]
    if not linking:  # as in most attempts
        return {}
    targets = _Targets(nodes, calls, taking_part)
    by_id = {call.span_id: call for call in taking_part}
    matches: dict[int, RewardMatch] = {}
    holder: dict[_Target, int] = {}
    for each in linking:
        place, links = _place(each.reward.links)
        call_id = targets.call_of(links, each.span)
        match = RewardMatch(each.span, each.reward)
        if call_id is None or place is None:
            match = replace(match, reason=RewardReason.LINK_UNRESOLVED)
        elif not _has(by_id[call_id], *place):
            match = replace(match, reason=RewardReason.TOKENS_UNKNOWN)
        else:
            choice, tokens = place
            target = (call_id, choice, tokens)
            match = replace(match, call=call_id, choice=choice, by=MatchedBy.LINK, tokens=tokens)
            # The last reward for a target stands; the one before it says why it does not count.
            if target in holder:
                earlier = holder[target]
                matches[earlier] = replace(matches[earlier], call=None, by=None, reason=RewardReason.REPLACED)
            holder[target] = id(each)
        matches[id(each)] = match
    return matches


_Place = tuple[int | None, tuple[int, int] | None]
_Target = tuple[str, int | None, tuple[int, int] | None]


def _place(links: Sequence[LinkPydanticModel]) -> tuple[_Place | None, list[LinkPydanticModel]]:
    """Split the place inside of a call that is named from the links that name the call; ``None``: it is none."""
    rest = [link for link in links if link.key_match not in {CHOICE_INDEX, TOKEN_RANGE}]
    named = {link.key_match: link.value_match for link in links}
    choice: int | None = None
    tokens: tuple[int, int] | None = None
    if CHOICE_INDEX in named:
        if not _is_number(named[CHOICE_INDEX]):
            return None, rest
        choice = int(named[CHOICE_INDEX])
    if TOKEN_RANGE in named:
        start, colon, end = named[TOKEN_RANGE].partition(":")
        if not (colon and _is_number(start) and _is_number(end)):
            return None, rest
        tokens = int(start), int(end)
    return (choice, tokens), rest


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _has(call: Call, choice: int | None, tokens: tuple[int, int] | None) -> bool:
    """Whether the call sampled these tokens; a call whose tokens are not known is asked for none."""
    choices = () if call.record is None else call.record.choices
    named = [each for each in choices if choice is None or each.index == choice]
    if tokens is None:
        return choice is None or bool(named)
    start, end = tokens
    return len(named) == 1 and start < end <= len(named[0].token_ids or ())


class _Targets:
    """Finds the calls that links name."""

    def __init__(self, nodes: Sequence[Tree], calls: Sequence[Call], taking_part: Sequence[Call]) -> None:
        self._nodes: dict[str, Tree] = {}
        for node in nodes:
            self._nodes.setdefault(node.id, node)
        self._spans = LinkedSpans([node.span for node in nodes])
        self._repeats = {call.span_id: call.same_as for call in calls if call.same_as is not None}
        self._places = {call.span_id: place for place, call in enumerate(taking_part)}

    def call_of(self, links: Sequence[LinkPydanticModel], reward: Span) -> str | None:
        """Return the call that the linked spans stand for: one of them, the one they repeat, or the last inside."""
        ids = {span.span_id for span in self._spans.find(links) if span is not reward} if links else set()
        ids |= {self._repeats[span_id] for span_id in ids & self._repeats.keys()}
        direct = ids & self._places.keys()
        if not direct:
            nodes = (self._nodes[span_id] for span_id in ids if span_id in self._nodes)
            direct = {below.id for node in nodes for below in node.walk()} & self._places.keys()
        elif len(direct) > 1 and any(link.key_match == RESPONSE_ID for link in links):
            return None  # the server gives several responses one id
        return max(direct, key=self._places.__getitem__, default=None)


# ---------------------------------------------------------------------- 2. time


def _by_time(
    given: Sequence[_Given], free: list[Call], parents: Mapping[str, str], policy: RewardMatchPolicy
) -> dict[int, RewardMatch]:
    siblings = policy is RewardMatchPolicy.FIRST_SIBLING
    matches: dict[int, RewardMatch] = {}
    for each in given:
        # From the latest call back; a call has one reward, so it leaves the list.
        for index in reversed(range(len(free))):
            call = free[index].span
            if siblings and parents.get(call.span_id) != each.parent:
                continue
            if _ended_before(call, each.span):
                del free[index]
                by = MatchedBy(policy.value)
                matches[id(each)] = RewardMatch(each.span, each.reward, call.span_id, by=by)
                break
    return matches


def _ended_before(call: Span, reward: Span) -> bool:
    end, start = moment(call.end_time), moment(reward.start_time)
    if end is None or start is None:
        return order_key(call)[1] < order_key(reward)[1]
    return end <= start


# ---------------------------------------------------------------------- 3. outcome


def _give_outcome(
    given: Sequence[_Given], matches: dict[int, RewardMatch], taking_part: Sequence[Call]
) -> None:
    rows = [call.span_id for call in taking_part if call.reason is None]
    # Only where no call that gives a row has one: else that reward is the better word.
    if not rows or any(match.call in rows for match in matches.values()):
        return
    unlinked = [each for each in given if _deals(each)]
    for_rollout = [each for each in given if is_for_rollout(each.reward.links) and _is_own(each)]
    outcome = for_rollout[-1] if for_rollout else unlinked[0] if len(unlinked) == 1 else None
    if outcome is not None:
        matches[id(outcome)] = RewardMatch(outcome.span, outcome.reward, rows[-1], by=MatchedBy.OUTCOME)


def _with_reason(match: RewardMatch, rowless: set[str]) -> RewardMatch:
    if match.reward.reason is not None:
        return replace(match, reason=match.reward.reason)
    if match.reason is not None:
        return match
    if match.call is None:
        return replace(match, reason=RewardReason.NO_CALL)
    return replace(match, reason=RewardReason.CALL_SKIPPED) if match.call in rowless else match
