"""The model calls of one attempt as a graph: which sampled answer does a prompt continue, token by token?

A node is one sampled answer: a choice of a call whose token ids are what the engine saw and said. Its parent is the
answer whose prompt and tokens its own prompt begins with, and whose images, audio and files: the longest such one,
whenever it arrived and whatever was sampled in between. Agents that run side by side, a conversation that forks, one
that starts anew after its context was shortened: each comes out as paths of its own, without anybody saying where one
begins.

Several answers may be the same, token by token (a greedy retry, two runs of one agent). Then a prompt continues the
one of its own agent's span, which had ended before, which nothing continues yet, the latest of those, in this order.

Of several answers to one prompt, the one that the agent went on with is its answer. Which one that is, is told by
tokens (a later prompt continues it), else by text (the messages of a later call repeat it); a judge, who is only shown
an answer, goes on with none. The others are *abandoned*. Where all of them end the conversation and one was broken off
or cut at its limit, a complete answer that was asked for after it stands in its place (``asked_again``); where there is
none, nobody can tell which of them counts, and none is trained (``retry_undecided``). Complete answers that all end
there are all kept, and so is each answer with a reward of its own: whoever gave it says that the answer counts.

An answer that the engine broke off and nobody asked for again counts where the agent went on with it, told by the same
two means; else nobody can tell (``broken_off``). One that the agent left itself is an answer here where the agent went
on with it: by tokens, or by text of which its tokens are known to say all.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from .._frozen import maker
from ..codec.token_ids import TokenIds, in_order_of_beginnings
from ..dialects.model_call import TOKENS_SAY_ALL, Choice
from .calls import Call, is_judge
from .continuity import Continuity, PastCall, Prefix, Saying, relate, saying
from .media import Media, MediaReader
from .reasons import CallReason
from .tree import moment, sequence_of

_ELSEWHERE = frozenset({CallReason.DUPLICATE_RESPONSE.code, CallReason.NESTED_CALL.code})
"""Spans that record what another span records."""

_LEFT = CallReason.LEFT_BY_AGENT.code

Target = tuple[str, int | None]
"""Span id of a call and index of a choice; ``None`` = every choice."""


@dataclass(frozen=True, slots=True)
class Node:
    """One sampled answer."""

    index: int
    """Its place: by start time of the call, then by choice."""
    call: Call
    choice: Choice
    prompt: TokenIds
    output: TokenIds
    """What was sampled; never empty."""
    parent: int | None
    """Index of the answer that the prompt continues."""
    start: int
    """Position of the first sampled token in the path: the length of the prompt."""
    end: int
    """Position behind the last sampled token in the path."""
    media: tuple[Media, ...] = ()
    """Images, audio and files of the prompt."""


_new_node = maker(Node)


@dataclass(frozen=True, slots=True)
class CallGraph:
    """The answers of one attempt and how they continue each other."""

    nodes: tuple[Node, ...]
    children: tuple[tuple[int, ...], ...]
    """Of each node, by index."""
    given_up: Mapping[int, CallReason]
    """Nodes that are not the agent's answer to their prompt, and why: ``ABANDONED``, ``ASKED_AGAIN``,
    ``RETRY_UNDECIDED`` or ``BROKEN_OFF``."""

    def path(self, index: int) -> tuple[Node, ...]:
        """Return the nodes from the first of the conversation to this one."""
        found: list[Node] = []
        at: int | None = index
        while at is not None:
            found.append(self.nodes[at])
            at = self.nodes[at].parent
        return tuple(reversed(found))

    def leaves(self, *, given_up: bool = False) -> tuple[int, ...]:
        """Return the nodes at which a way through the attempt ends: nothing continues them that was not given up.

        Args:
            given_up: Whether ways end at nodes that were given up, too.
        """
        left_out = frozenset() if given_up else self.given_up.keys()
        return tuple(
            node.index
            for node in self.nodes
            if node.index not in left_out and left_out >= set(self.children[node.index])
        )

    def relations(self) -> dict[str, Continuity]:
        """Return for each call, by span id, how its prompt continues an earlier one, or how it breaks."""
        relations: dict[str, Continuity] = {}
        past: list[PastCall] = []
        for node in self.nodes:
            span_id = node.call.span_id
            if span_id in relations:  # another choice of the call
                continue
            if node.parent is None:
                # Most prompts extend an earlier call, and what lies before them is never looked at.
                past += [
                    PastCall(each.call, each.choice, each.prompt, each.output)
                    for each in self.nodes[len(past) : node.index]
                ]
                relations[span_id] = relate(node.prompt, node.call, past)
            else:
                parent = self.nodes[node.parent]
                relations[span_id] = Continuity(Prefix.EXTENDS, parent.end, parent.end, parent.call.span_id)
        return relations


def build_graph(calls: Sequence[Call], rewarded: Collection[Target] = ()) -> CallGraph:
    """Return the graph of ``calls``, which stand by start time; calls without usable token ids are left out.

    Args:
        calls: All calls of the attempt.
        rewarded: Answers that somebody gave a reward of their own.
    """
    nodes = _nodes(calls)
    left = [node for node in nodes if node.call.tokens == _LEFT]
    # What the agent left and did not go on with is no answer, and must not be the parent of one.
    if left:
        taken = _taken(left, nodes, calls, rewarded)
        dropped = {id(node.call) for node in left if node.index not in taken}
        nodes = _nodes([call for call in calls if id(call) not in dropped]) if dropped else nodes
    children: list[list[int]] = [[] for _ in nodes]
    for node in nodes:
        if node.parent is not None:
            children[node.parent].append(node.index)
    return CallGraph(nodes, tuple(map(tuple, children)), _given_up(nodes, calls, rewarded))


def _nodes(calls: Sequence[Call]) -> tuple[Node, ...]:
    """Return the sampled answers of calls whose token ids are usable, or would be if the agent had not left them."""
    found = [
        (call, choice, prompt, _as_ids(choice.token_ids))
        for call in calls
        if call.tokens in (None, _LEFT) and call.reason not in _ELSEWHERE and call.record is not None
        if call.record.prompt_token_ids
        for prompt in (_as_ids(call.record.prompt_token_ids),)
        for choice in call.record.choices
        if choice.token_ids
    ]
    prompts = [prompt for _, _, prompt, _ in found]
    outputs = [output for *_, output in found]
    reader = MediaReader()
    shown = [() if call.record is None else reader.read(call.record) for call, *_ in found]
    parents = _parents([call for call, *_ in found], _longest_beginnings(prompts, outputs, shown))
    return tuple(
        _new_node(
            index,
            call,
            choice,
            prompt,
            output,
            parents[index],
            len(prompt),
            len(prompt) + len(output),
            shown[index],
        )
        for index, (call, choice, prompt, output) in enumerate(found)
    )


def _as_ids(ids: Sequence[int]) -> TokenIds:
    return ids if type(ids) is TokenIds else TokenIds(ids)


def _taken(
    left: Sequence[Node], nodes: Sequence[Node], calls: Sequence[Call], rewarded: Collection[Target]
) -> set[int]:
    """Return which of the answers that the agent left it went on with, as far as they had come.

    A prompt that begins with the tokens of one is proof, whatever else was lost. Text is where the tokens say all of
    it, and so is a reward for the answer.
    """
    later = _LaterMessages([call for call in calls if not is_judge(call)])
    taken = {node.parent for node in nodes if node.parent is not None and not is_judge(node.call)}
    return {
        node.index
        for node in left
        if node.index in taken
        or (_says_all(node.call) and (_has_reward(node, rewarded) or later.went_on_with([node])))
    }


def _says_all(call: Call) -> bool:
    return call.record is not None and any(issue.code == TOKENS_SAY_ALL for issue in call.record.issues)


def _parents(calls: Sequence[Call], beginnings: Sequence[Sequence[int]]) -> list[int | None]:
    """Return the parent of each answer, of those that its prompt may continue; ``calls`` are those of the answers."""
    parents: list[int | None] = []
    claimed: set[int] = set()
    for index, same in enumerate(beginnings):
        # Claimed once for the call, not once for each of its choices.
        if index and calls[index] is calls[index - 1]:  # one prompt for all choices of a call
            parents.append(parents[-1])
            continue
        best = same[0] if same else None
        if len(same) > 1:
            best = max(same, key=lambda at: _likeness(calls, at, index, claimed))
        parents.append(best)
        if best is not None:
            claimed.add(best)
    return parents


def _longest_beginnings(
    prompts: Sequence[TokenIds], outputs: Sequence[TokenIds], shown: Sequence[tuple[Media, ...]]
) -> list[list[int]]:
    """Return for each prompt the answers that, behind their own prompts, make up the longest beginning of it.

    The prompt of each of them showed the same media, in the same order, as the beginning of this one.

    In the order of their bytes, what begins with a prompt stands directly behind it. So a stack has all prompts that
    the one at hand begins with, the longest at the end; nothing is copied of them.
    """
    found: list[list[int]] = [[] for _ in prompts]
    longest = max(map(len, outputs), default=0)
    around: list[tuple[TokenIds, dict[int, dict[bytes, list[int]]]]] = []
    for index in in_order_of_beginnings(prompts):
        prompt = prompts[index]
        while around and not prompt.begins_with(around[-1][0]):
            around.pop()
        # From the longest beginning down; an answer of any length may follow each of them.
        best = 0
        for beginning, answers in reversed(around):
            # Not even the longest answer would reach as far.
            if len(beginning) + longest < best:  # nor are those below long enough
                break
            for length, said in answers.items():
                end = len(beginning) + length
                if best <= end <= len(prompt):
                    alike = said.get(prompt.tobytes(len(beginning), end), ())
                    alike = [at for at in alike if _begins(shown[index], shown[at])]
                    if alike:
                        found[index] = found[index] + alike if end == best else alike
                        best = end
        if not around or len(around[-1][0]) < len(prompt):
            around.append((prompt, {}))
        around[-1][1].setdefault(len(outputs[index]), {}).setdefault(outputs[index].tobytes(), []).append(
            index
        )
    return found


def _begins(media: tuple[Media, ...], beginning: tuple[Media, ...]) -> bool:
    return media[: len(beginning)] == beginning


def _likeness(
    calls: Sequence[Call], candidate: int, child: int, claimed: Collection[int]
) -> tuple[bool, bool, bool, int]:
    own, other = calls[child], calls[candidate]
    ended, started = moment(other.span.end_time), moment(own.span.start_time)
    before = ended is not None and started is not None and ended <= started
    return own.agent_span == other.agent_span, before, candidate not in claimed, candidate


# ---------------------------------------------------------------------- several answers to one prompt


def _given_up(
    nodes: Sequence[Node],
    calls: Sequence[Call],
    rewarded: Collection[Target],
) -> dict[int, CallReason]:
    found: dict[int, CallReason] = {}
    later = _LaterMessages([call for call in calls if not is_judge(call)])
    goes_on = {node.parent for node in nodes if node.parent is not None and not is_judge(node.call)}
    for same in _siblings(nodes):
        ends = [node for node in same if node.index not in goes_on]
        if not ends:
            continue
        # No tokens continue any of them: the text of later messages is the weaker evidence, and is asked only then.
        if len(ends) == len(same):
            goes_on |= later.went_on_with(same)
        # One is the agent's, so the others that end here are not.
        if any(node.index in goes_on for node in same):
            found.update({node.index: CallReason.ABANDONED for node in ends if node.index not in goes_on})
        else:
            found.update(_asked_again(same))
    found.update(_asked_in_another_run(nodes, goes_on | found.keys()))
    for node in filter(_is_broken_off, nodes):
        if node.index not in goes_on | found.keys() and not later.went_on_with([node]):
            found[node.index] = CallReason.BROKEN_OFF
    return {index: reason for index, reason in found.items() if not _has_reward(nodes[index], rewarded)}


def _has_reward(node: Node, rewarded: Collection[Target]) -> bool:
    span_id = node.call.span_id
    return (span_id, node.choice.index) in rewarded or (span_id, None) in rewarded


def _asked_in_another_run(
    nodes: Sequence[Node], decided: Collection[int]
) -> Iterable[tuple[int, CallReason]]:
    """Yield the half answers to prompts that another run of an agent, which has a span of its own, asked for whole."""
    broken = [node for node in nodes if _is_broken_off(node) and node.index not in decided]
    whole: dict[tuple[TokenIds, tuple[Media, ...]], set[str | None]] = {}
    # In most attempts nothing broke off, and no prompt is looked at.
    for node in nodes if broken else ():
        if not _is_broken_off(node):
            whole.setdefault((node.prompt, node.media), set()).add(node.call.agent_span)
    for node in broken:
        if whole.get((node.prompt, node.media), set()) - {node.call.agent_span}:
            yield node.index, CallReason.ASKED_AGAIN


def _siblings(nodes: Sequence[Node]) -> Iterable[list[Node]]:
    """Yield the answers of each prompt that has several."""
    alike: dict[tuple[int | None, str | None, int, tuple[Media, ...]], list[Node]] = {}
    for node in nodes:
        key = (node.parent, node.call.agent_span, node.start, node.media)
        alike.setdefault(key, []).append(node)
    for candidates in alike.values():
        if len(candidates) == 1:  # as in most conversations: no need to look at the ids of a long prompt
            continue
        siblings: dict[TokenIds, list[Node]] = {}
        for node in candidates:
            siblings.setdefault(node.prompt, []).append(node)
        yield from (same for same in siblings.values() if len(same) > 1)


def _asked_again(same: Sequence[Node]) -> dict[int, CallReason]:
    """Return which of several answers, all of which end the conversation, are not the agent's, and why."""
    found: dict[int, CallReason] = {}
    for node in same:
        if not _is_unfinished(node):
            continue
        broken = _is_broken_off(node)
        others = [other for other in same if other.call is not node.call]
        if not broken:
            order = [_asked_after(node.call, other.call) for other in others]
            others = [other for other, after in zip(others, order, strict=True) if after is not False]
            if None in order:  # nobody knows who was asked first, so nobody knows whose place it takes
                found.update({each.index: CallReason.RETRY_UNDECIDED for each in (node, *others)})
                continue
        is_less = _is_broken_off if broken else _is_unfinished
        if not all(map(is_less, others)):
            found.setdefault(node.index, CallReason.ASKED_AGAIN)
        elif others:
            found.update({each.index: CallReason.RETRY_UNDECIDED for each in (node, *others)})
    return found


def _is_broken_off(node: Node) -> bool:
    return not node.choice.has_ended


def _is_unfinished(node: Node) -> bool:
    return not node.choice.has_ended or node.choice.finish_reason == "length"


def _asked_after(first: Call, second: Call) -> bool | None:
    """Return whether ``second`` was asked when ``first`` had ended; ``None`` where that cannot be told.

    The store numbers spans as they end, and unlike a clock it never goes back: where the clock puts two calls one
    behind the other, their numbers say which came first.
    """
    start, end = moment(first.span.start_time), moment(first.span.end_time)
    other_start, other_end = moment(second.span.start_time), moment(second.span.end_time)
    if start is None or end is None or other_start is None or other_end is None:
        return None
    number, other_number = sequence_of(first.span), sequence_of(second.span)
    numbered = number is not None and other_number is not None and number != other_number
    earlier = numbered and (number or 0) < (other_number or 0)
    if other_start >= end or start >= other_end:
        return earlier if numbered else other_start >= end
    if numbered and end != other_end and earlier != (end < other_end):
        return None  # the clock was set back between the two
    return False  # they were asked side by side


class _LaterMessages:
    """What the calls of an attempt say, to find the answer that a later call repeats; read when it is asked for."""

    def __init__(self, calls: Sequence[Call]) -> None:
        self._calls = calls
        self._says: dict[str, list[Saying]] = {}

    def went_on_with(self, same: Sequence[Node]) -> set[int]:
        """Return which of the answers to one prompt stand in later messages.

        Of a whole answer and an unfinished one that say the same, it is the whole one.
        """
        own = {node.call.span_id for node in same}
        agent = same[0].call.agent_span
        others = [each for each in self._calls if each.span_id not in own and each.agent_span == agent]
        repeated = [node for node in same if any(self._repeats(other, node) for other in others)]
        whole = [saying(each.choice.message()) for each in repeated if not _is_unfinished(each)]
        return {
            node.index
            for node in repeated
            if not _is_unfinished(node) or saying(node.choice.message()) not in whole
        }

    def _repeats(self, other: Call, node: Node) -> bool:
        asked = self._of(node.call)
        says = self._of(other)
        if not asked or len(says) <= len(asked) or says[len(asked)] != saying(node.choice.message()):
            return False
        return says[: len(asked)] == asked

    def _of(self, call: Call) -> list[Saying]:
        span_id = call.span_id
        if span_id not in self._says:
            messages = () if call.record is None else call.record.request_messages
            self._says[span_id] = [saying(message) for message in messages]
        return self._says[span_id]
