"""What the agent's code says of its own model calls: in which role they are made, and whether they may be trained.

They travel in the OpenTelemetry context, as the rollout does: into tasks and ``asyncio.to_thread``, not into
other processes. Every span that starts inside carries them; rows are made by them (``rows.RowPolicy``).

>>> with role("judge"):
...     verdict = client.chat.completions.create(...)
>>> with trainable(False):
...     summary = client.chat.completions.create(...)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

from opentelemetry import context as otel_context

from ..semconv import SpanFlagAttributes

_LABELS_KEY = otel_context.create_key("agentlightning-call-labels")
_UNTRAINABLE = SpanFlagAttributes.UNTRAINABLE.value
_ROLE = SpanFlagAttributes.ROLE.value

MARKED = "untrainable"
"""Code of a call that was made inside ``trainable(False)``."""


@contextmanager
def trainable(flag: bool = True) -> Iterator[None]:
    """Say whether the model calls inside may be trained; the innermost says it."""
    with _labelled({_UNTRAINABLE: None if flag else MARKED}):
        yield


@contextmanager
def role(name: str) -> Iterator[None]:
    """Say in which role the model calls inside are made: ``agent``, ``auxiliary``, ``judge`` or a word of yours.

    Rows train ``agent`` unless ``RowPolicy(roles=…)`` says otherwise.

    Raises:
        ValueError: The name is empty.
    """
    if not name:
        raise ValueError("a role needs a name, such as 'judge'")
    with _labelled({_ROLE: name}):
        yield


def labels_in(context: otel_context.Context) -> Mapping[str, Any] | None:
    """Return the attributes that spans started in ``context`` get, or ``None`` where there are none."""
    return context.get(_LABELS_KEY) or None  # type: ignore[return-value]  # what ``_labelled`` has put there


@contextmanager
def _labelled(labels: Mapping[str, Any]) -> Iterator[None]:
    context = otel_context.get_current()
    both = {**(labels_in(context) or {}), **labels}
    kept = MappingProxyType({name: value for name, value in both.items() if value is not None})
    token = otel_context.attach(otel_context.set_value(_LABELS_KEY, kept, context))
    try:
        yield
    finally:
        otel_context.detach(token)
