"""Spans as a tree, whatever state they are in.

The tree of a set of spans does not depend on their order: siblings stand by start time, then sequence id.
Parents that are missing become virtual nodes; of spans with the same id the first stands; a circle of parents
is opened at its first span. Nothing here recurses: traces may be nested deeper than Python is.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Self

from ..semconv import AGL_OPERATION, LightningResourceAttributes, LightningSpanAttributes
from ..types import OtelResource, Span, SpanContext, SpanLike, SpanNames, TraceStatus
from ..types.tracer import build

VIRTUAL_ROOT = "virtual-root"

OrderKey = tuple[float, int, float, str]


def moment(seconds: Any) -> float | None:
    """Return a time in seconds, or ``None`` where it is no finite number."""
    if type(seconds) is float:  # as almost always
        return seconds if math.isfinite(seconds) else None
    if isinstance(seconds, (int, float)) and math.isfinite(seconds):
        return float(seconds)
    return None


def sequence_of(span: Span) -> int | None:
    """Return the number that the store gave the span when it came, from 1; ``None`` where it has none."""
    number = span.sequence_id
    return number if type(number) is int and number > 0 else None


def order_key(span: Span) -> OrderKey:
    """Sort key of spans: by start, sequence id, end and span id; without a start, last."""
    fields = span.__dict__  # a model looks up each field by way of a hook, which takes ten times as long
    start, end, sequence = moment(fields["start_time"]), moment(fields["end_time"]), fields["sequence_id"]
    return (
        math.inf if start is None else start,
        sequence if isinstance(sequence, int) else 0,
        math.inf if end is None else end,
        str(fields["span_id"]),
    )


def as_spans(source: Iterable[SpanLike]) -> list[Span]:
    """Return our spans, in order; OpenTelemetry's are converted, what is neither is left out."""
    spans = [each if isinstance(each, Span) else _converted(each) for each in source]
    return sorted((span for span in spans if span is not None), key=order_key)


def _converted(span: Any) -> Span | None:
    # Who has a span of the SDK has loaded the SDK; who reads a store need not.
    sdk = sys.modules.get("opentelemetry.sdk.trace")
    if sdk is None or not isinstance(span, sdk.ReadableSpan):
        return None
    known = {**dict(span.resource.attributes), **dict(span.attributes or {})}
    ids = (LightningResourceAttributes.ROLLOUT_ID, LightningResourceAttributes.ATTEMPT_ID)
    rollout_id, attempt_id = (str(known.get(name.value, "")) for name in ids)
    sequence = known.get(LightningResourceAttributes.SPAN_SEQUENCE_ID.value, 0)
    return Span.from_opentelemetry(span, rollout_id, attempt_id, sequence if isinstance(sequence, int) else 0)


class Tree:
    """A span and what happened inside it."""

    def __init__(self, id: str, span: Span, children: list[Any] | None = None) -> None:  # noqa: A002 - 0.3's
        self.id = id
        self.span = span
        self.children: list[Self] = children if children is not None else []

    @property
    def start_time(self) -> float | None:
        """Start in seconds since the epoch."""
        return moment(self.span.start_time)

    @property
    def end_time(self) -> float | None:
        """End in seconds since the epoch."""
        return moment(self.span.end_time)

    @classmethod
    def from_spans(cls, spans: Sequence[SpanLike]) -> Self:
        """Build the tree of one trace; several roots stand under a virtual one.

        Raises:
            ValueError: There is no span.
        """
        return cls.from_ordered(as_spans(spans))

    @classmethod
    def from_ordered(cls, spans: Sequence[Span]) -> Self:
        """Build the tree of spans that stand as :func:`as_spans` returns them.

        Raises:
            ValueError: There is no span.
        """
        # A span that came twice, such as from two files, is one node: the first stands.
        nodes: dict[str, Self] = {}
        for span in spans:
            nodes.setdefault(span.span_id, cls(span.span_id, span))
        if not nodes:
            raise ValueError("no spans to make a tree of")
        roots: list[Self] = _link(cls, nodes)
        if len(roots) == 1:
            return roots[0]
        return cls(VIRTUAL_ROOT, _virtual(VIRTUAL_ROOT, VIRTUAL_ROOT, roots), roots)

    def add_child(self, child: Self) -> None:
        """Append a child."""
        self.children.append(child)

    def traverse(self) -> list[Self]:
        """Return this node and everything inside it, depth first."""
        return list(self.walk())

    def walk(self) -> Iterator[Self]:
        """Yield this node and everything inside it, depth first."""
        pending = [self]
        while pending:
            node = pending.pop()
            yield node
            pending.extend(reversed(node.children))

    def find_id(self, id: str) -> Self | None:  # noqa: A002 - 0.3's name
        """Return the node with this span id, or ``None``."""
        return next((node for node in self.walk() if node.id == id), None)

    def agent_name(self) -> str | None:
        """Return the name of the agent that this span stands for, or ``None`` where it stands for none."""
        return agent_name_of(self.span)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.id!r}, {self.span.name!r}, {len(self.children)} children)"


def _link(cls: type[Any], nodes: dict[str, Any]) -> list[Any]:
    """Give each node its children and return the roots."""
    roots: list[Any] = []
    missing: dict[str, list[Any]] = {}
    for node in nodes.values():
        parent_id = node.span.parent_id
        if not parent_id:
            roots.append(node)
        elif parent_id in nodes:
            nodes[parent_id].children.append(node)
        else:
            missing.setdefault(parent_id, []).append(node)
    # Spans whose parent is missing stay together: it may be a span that was not stored yet.
    roots += [cls(id_, _virtual(id_, None, children), children) for id_, children in missing.items()]
    return roots + _opened_circles(nodes, roots)


def _opened_circles(nodes: dict[str, Any], roots: list[Any]) -> list[Any]:
    """Return the first node of each circle of parents, taken out of the circle."""
    reached: set[str] = set()
    pending = list(roots)
    while pending:
        node = pending.pop()
        reached.add(node.id)
        pending += node.children
    opened = []
    for node in nodes.values():
        # Only spans in a circle are reached from no root.
        if node.id not in reached:
            nodes[node.span.parent_id].children.remove(node)
            opened.append(node)
            reached.update(below.id for below in node.walk())
    return opened


def _virtual(span_id: str, name: str | None, children: Sequence[Tree]) -> Span:
    starts = [start for start in (moment(child.span.start_time) for child in children) if start is not None]
    ends = [end for end in (moment(child.span.end_time) for child in children) if end is not None]
    first = children[0].span
    return build(
        Span,
        {
            "rollout_id": first.rollout_id,
            "attempt_id": first.attempt_id,
            "sequence_id": first.sequence_id,
            "trace_id": first.trace_id,
            "span_id": span_id,
            "parent_id": None,
            "name": name or SpanNames.VIRTUAL.value,
            "status": build(TraceStatus, {"status_code": "OK", "description": None}),
            "attributes": {},
            "events": [],
            "links": [],
            "start_time": min(starts, default=0.0),
            "end_time": max(ends, default=0.0),
            "context": build(
                SpanContext,
                {"trace_id": first.trace_id, "span_id": span_id, "is_remote": False, "trace_state": {}},
            ),
            "parent": None,
            "resource": build(OtelResource, {"attributes": {}, "schema_url": ""}),
        },
    )


# ---------------------------------------------------------------------- agents


_NAMING = frozenset(
    {
        "gen_ai.agent.name", "agent.name", "operation.name", "recipient_agent_type", "langchain.chain.type",
        "executor.id", "agentlightning.operation.input.name", "lc_name", "kind",
    }
)  # fmt: skip
_OPERATION_NAME = LightningSpanAttributes.OPERATION_NAME.value


def agent_name_of(span: Span) -> str | None:
    """Return the agent's name in the forms of GenAI, OpenAI Agents, AgentOps, AutoGen, LangGraph and others.

    An ``operation`` of kind ``agent`` is the agent of its function's name.
    """
    attributes = span.attributes
    if _NAMING.isdisjoint(attributes):  # as for most spans
        return None
    candidates = [
        attributes.get("gen_ai.agent.name"),
        attributes.get("agent.name"),
        attributes.get("operation.name") if attributes.get("agentops.span.kind") == "agent" else None,
        attributes.get("recipient_agent_type"),
        attributes.get("langchain.chain.type"),
        attributes.get("executor.id"),
        attributes.get("agentlightning.operation.input.name") if attributes.get("type") == "agent" else None,
        attributes.get("lc_name") if str(span.name).startswith("langchain.Chain.") else None,
        attributes.get(_OPERATION_NAME)
        if attributes.get("kind") == "agent" and span.name == AGL_OPERATION
        else None,
    ]
    return next((name for name in candidates if isinstance(name, str) and name), None)
