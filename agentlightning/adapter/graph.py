"""The model calls of one attempt as a graph: which sampled answer does a prompt continue, token by token?

A node is one sampled answer: a choice of a call whose token ids are what the engine saw and said. Its parent is the
answer whose prompt and tokens its own prompt begins with, the longest such one, whenever it arrived and whatever
was sampled in between. Agents that run side by side, a conversation that forks, one that starts anew after its
context was shortened: each comes out as paths of its own, without anybody saying where one begins.

Several answers may be the same, token by token (a greedy retry, two runs of one agent). Then a prompt continues the
one of its own agent's span, which had ended before, which nothing continues yet, the latest of those, in this order.

An answer that nothing continues, beside another one to the same prompt that something does continue, was given up
by the agent: it is *abandoned*. Of answers that all end there, none is.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Dict, FrozenSet, List, Optional, Set, Tuple

from ..codec.model_call import Choice
from .calls import Call
from .continuity import Continuity, PastCall, Prefix, packed_ids, relate
from .reasons import CallReason
from .tree import moment

Ids = Tuple[int, ...]

_ELSEWHERE = frozenset({CallReason.DUPLICATE_RESPONSE.code, CallReason.NESTED_CALL.code})
"""Spans that record what another span records."""


@dataclass(frozen=True, slots=True)
class Node:
    """One sampled answer."""

    index: int
    """Its place: by start time of the call, then by choice."""
    call: Call
    choice: Choice
    prompt: Ids
    output: Ids
    """What was sampled; never empty."""
    parent: Optional[int]
    """Index of the answer that the prompt continues."""
    packed: bytes = field(repr=False)
    """Prompt and output as ``continuity.packed_ids``."""

    @property
    def start(self) -> int:
        """Position of the first sampled token in the path."""
        return len(self.prompt)

    @property
    def end(self) -> int:
        """Position behind the last sampled token in the path."""
        return len(self.prompt) + len(self.output)


@dataclass(frozen=True, slots=True)
class CallGraph:
    """The answers of one attempt and how they continue each other."""

    nodes: Tuple[Node, ...]
    children: Tuple[Tuple[int, ...], ...]
    """Of each node, by index."""
    abandoned: FrozenSet[int]
    """Nodes that the agent gave up for another answer to the same prompt."""

    def path(self, index: int) -> Tuple[Node, ...]:
        """Return the nodes from the first of the conversation to this one."""
        found: List[Node] = []
        at: Optional[int] = index
        while at is not None:
            found.append(self.nodes[at])
            at = self.nodes[at].parent
        return tuple(reversed(found))

    def leaves(self) -> Tuple[int, ...]:
        """Return the nodes that nothing continues, without the abandoned ones."""
        return tuple(
            node.index
            for node in self.nodes
            if not self.children[node.index] and node.index not in self.abandoned
        )

    def relations(self) -> Dict[str, Continuity]:
        """Return for each call, by span id, how its prompt continues an earlier one, or how it breaks."""
        relations: Dict[str, Continuity] = {}
        past: List[PastCall] = []
        for _, group in groupby(self.nodes, key=lambda node: node.call.span.span_id):
            choices = list(group)
            first = choices[0]
            if first.parent is None:
                relation = relate(first.prompt, first.call, past)
            else:
                parent = self.nodes[first.parent]
                span_id = parent.call.span.span_id
                relation = Continuity(Prefix.EXTENDS, parent.end, parent.end, span_id)
            relations[first.call.span.span_id] = relation
            past += [
                PastCall(node.call, node.choice, node.prompt, node.output, node.packed) for node in choices
            ]
        return relations


def build_graph(calls: Sequence[Call]) -> CallGraph:
    """Return the graph of ``calls``, which stand by start time; calls without usable token ids are left out."""
    found = [
        (call, choice, prompt, choice.token_ids)
        for call in calls
        if call.tokens is None and call.reason not in _ELSEWHERE and call.record is not None
        for prompt in (call.record.prompt_token_ids,)
        for choice in call.record.choices
        if prompt and choice.token_ids
    ]
    packed: List[Tuple[bytes, bytes]] = []
    for number, (call, _, prompt, output) in enumerate(found):
        same = number and call is found[number - 1][0]
        head = packed[-1][0] if same else packed_ids(prompt)
        packed.append((head, head + packed_ids(output)))
    parents = _parents([call for call, *_ in found], packed)
    nodes = tuple(
        Node(index, call, choice, prompt, output, parents[index], packed[index][1])
        for index, (call, choice, prompt, output) in enumerate(found)
    )
    children: List[List[int]] = [[] for _ in nodes]
    for node in nodes:
        if node.parent is not None:
            children[node.parent].append(node.index)
    return CallGraph(nodes, tuple(map(tuple, children)), _abandoned(nodes, children))


def _parents(calls: Sequence[Call], packed: Sequence[Tuple[bytes, bytes]]) -> List[Optional[int]]:
    parents: List[Optional[int]] = []
    claimed: Set[int] = set()
    for index, same in enumerate(_longest_beginnings(packed)):
        if index and calls[index] is calls[index - 1]:  # one prompt for all choices of a call
            parents.append(parents[-1])
            continue
        best = max(same, key=lambda at: _likeness(calls, at, index, claimed), default=None)
        parents.append(best)
        if best is not None:
            claimed.add(best)
    return parents


def _longest_beginnings(packed: Sequence[Tuple[bytes, bytes]]) -> List[List[int]]:
    """Return for each prompt the answers, all of one length, that make up the longest beginning of it.

    In the order of their bytes, what begins with an answer stands directly behind it.
    """
    wholes = ((whole, False, index) for index, (_, whole) in enumerate(packed))
    prompts = ((prompt, True, index) for index, (prompt, _) in enumerate(packed))
    found: List[List[int]] = [[] for _ in packed]
    around: List[Tuple[bytes, List[int]]] = []
    for ids, is_prompt, index in sorted([*wholes, *prompts]):
        while around and not ids.startswith(around[-1][0]):
            around.pop()
        if is_prompt:
            found[index] = around[-1][1] if around else []
        elif around and len(around[-1][0]) == len(ids):
            around[-1][1].append(index)
        else:
            around.append((ids, [index]))
    return found


def _likeness(
    calls: Sequence[Call], candidate: int, child: int, claimed: Collection[int]
) -> Tuple[bool, bool, bool, int]:
    own, other = calls[child], calls[candidate]
    ended, started = moment(other.span.end_time), moment(own.span.start_time)
    before = ended is not None and started is not None and ended <= started
    return own.agent_span == other.agent_span, before, candidate not in claimed, candidate


def _abandoned(nodes: Sequence[Node], children: Sequence[Sequence[int]]) -> FrozenSet[int]:
    siblings: Dict[Tuple[Optional[int], Optional[str], Ids], List[int]] = {}
    for node in nodes:
        key = (node.parent, node.call.agent_span, node.prompt)
        siblings.setdefault(key, []).append(node.index)
    return frozenset(
        index
        for same in siblings.values()
        if any(children[index] for index in same)
        for index in same
        if not children[index]
    )
