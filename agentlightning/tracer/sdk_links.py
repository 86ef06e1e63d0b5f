"""Links of a span that was masked or changed, as the SDK's."""

from __future__ import annotations

from collections.abc import Iterable

from opentelemetry import trace

from .. import types
from ..codec.attributes import sanitize_attributes


def sdk_links(links: Iterable[types.Link], recorded: Iterable[trace.Link]) -> list[trace.Link]:
    """Return links as the SDK's.

    Args:
        links: What is left: some may be gone, their attributes and trace states may be masked.
        recorded: What they were made of, which alone has the flags of their traces.
    """
    flags = {(each.context.trace_id, each.context.span_id): each.context.trace_flags for each in recorded}
    found = []
    for link in links:
        trace_id, span_id = int(link.context.trace_id, 16), int(link.context.span_id, 16)
        context = trace.SpanContext(
            trace_id,
            span_id,
            link.context.is_remote,
            flags.get((trace_id, span_id)),
            trace.TraceState([*link.context.trace_state.items()]),
        )
        found.append(trace.Link(context, dict(sanitize_attributes(link.attributes or {}))))
    return found
