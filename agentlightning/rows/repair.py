"""Putting model calls under the agent that made them, where two tracing systems lost the parent.

Some frameworks report agents through one system and model calls through another, so that the calls float beside
their agent. A call that stands directly under the trace's first branching span is moved into the agent whose
span encloses it in time, the tightest one. Where agents that enclose it merely overlap, any of them may have
made the call, and it stays where it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from ..dialects.spans.genai import read_call
from ..semconv import AGL_OPERATION, AGL_WRITE_BACK
from .calls import Rules
from .rewards import is_reward_span
from .tree import VIRTUAL_ROOT, Tree, agent_name_of

Interval = tuple[float, float]


def repair(root: Tree, rules: Rules) -> None:
    """Move the calls of ``root`` that have lost their agent; changes the tree, not its spans."""
    branching = root
    if root.id == VIRTUAL_ROOT:  # rewards from outside and hand-backs stand beside the trace
        traces = [child for child in root.children if child.children or not _is_note(child)]
        branching = traces[0] if len(traces) == 1 else root
    # Down to the first span that has several children: above it there is nothing to choose from.
    while len(branching.children) == 1:
        branching = branching.children[0]
    agents = [
        node
        for node in branching.walk()
        # The calls of an operation know their parent: both are recorded by one system.
        if node is not branching and node.span.name != AGL_OPERATION and agent_name_of(node.span)
    ]
    for child in list(branching.children) if agents else ():
        if read_call(child.span) is None and not rules.llm_call_match.search(str(child.span.name)):
            continue
        home = _home(child, agents)
        if home is not None:
            branching.children.remove(child)
            home.children.append(child)


def _is_note(node: Tree) -> bool:
    return node.span.name == AGL_WRITE_BACK or is_reward_span(node.span)


def _home(call: Tree, agents: Sequence[Tree]) -> Tree | None:
    # A call that names its agent, or lacks a time, is left where it is.
    own = _interval(call)
    if own is None or agent_name_of(call.span):
        return None
    around: list[tuple[Interval, Tree]] = []
    inside = {node.id for node in call.walk()}  # parents in a circle put an agent inside of its own call
    for agent in agents:
        interval = _interval(agent)
        if interval is not None and agent.id not in inside and _encloses(interval, own) and interval != own:
            around.append((interval, agent))
    # The tightest first. Where two only overlap, either may have made the call.
    around.sort(key=lambda each: each[0][1] - each[0][0])
    nested = all(_encloses(outer, inner) and outer != inner for (inner, _), (outer, _) in pairwise(around))
    return around[0][1] if around and nested else None


def _interval(node: Tree) -> Interval | None:
    start, end = node.start_time, node.end_time
    return None if start is None or end is None else (start, end)


def _encloses(outer: Interval, inner: Interval) -> bool:
    return outer[0] <= inner[0] and outer[1] >= inner[1]
