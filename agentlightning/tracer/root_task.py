"""The input of a rollout on its way to the root span, for what other exporters see of that.

It travels in the context in which the root starts, and in no other: nothing of the recorder holds on to it.
"""

from __future__ import annotations

from typing import Any

from opentelemetry import context as otel_context

_KEY = otel_context.create_key("agentlightning-task")


def context_with_task(task: Any, context: otel_context.Context) -> otel_context.Context:
    """Return the context for the start of the root of a rollout with this input."""
    return otel_context.set_value(_KEY, task, context)


def task_in(context: otel_context.Context) -> Any:
    """Return the input of the rollout whose root starts in a context; ``None``: no root does, or it is not known."""
    return otel_context.get_value(_KEY, context)
