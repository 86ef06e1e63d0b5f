"""Which suppression keys of the OpenTelemetry context the capture obeys: its own only.

OpenTelemetry's instrumentations, logfire and OpenInference set keys of the context while a library of theirs works, or
while their user wants none of their spans. Those keys are about their spans, so calls are captured all the same. HTTP
requests of the recorder itself (of a store or an exporter) are made under a key of its own, and are never captured.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry import context
from opentelemetry.context import Context

_OURS = context.create_key("agentlightning-own-work")


def own_work(current: Context | None = None) -> Context:
    """Return a context in which nothing is captured."""
    return context.set_value(_OURS, True, current)


def is_own_work() -> bool:
    """Whether what happens now is the recorder's own."""
    return bool(context.get_value(_OURS))


@contextmanager
def without_foreign_suppression() -> Iterator[None]:
    """Go on in a context without the suppression keys of others, in which their providers would start no span."""
    current = context.get_current()
    kept = {key: value for key, value in current.items() if not key.startswith("suppress")}
    if len(kept) == len(current):
        yield
        return
    token = context.attach(Context(kept))
    try:
        yield
    finally:
        context.detach(token)
