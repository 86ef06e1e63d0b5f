"""AgentOps' callback handler for LangChain, in its place: under the rollout, in the context of the run.

Theirs gives every run a trace of its own, runs beside an asynchronous agent instead of in its context, records all
chat prompts as ``[]``, knows few names, and ends failed runs without the status ERROR. Here the span of a run hangs
under that of the run around it, or under the current span; and the span of a model run adopts the call that it makes,
so there is no second one.
"""

from __future__ import annotations

import importlib
from typing import Any

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.trace import Status, StatusCode

from .managed import core_provider


def callback_handler(tags: list[str] | None = None) -> Any:
    """Return a handler for ``config={"callbacks": [handler]}``; it may be shared by runs at the same time.

    Raises:
        ImportError: This ``agentops`` has none, or LangChain is not installed.
    """
    theirs = importlib.import_module("agentops.integration.callbacks.langchain").LangchainCallbackHandler
    return type("LangchainCallbackHandler", (_InPlace, theirs), {})(auto_session=False, tags=tags)


class _InPlace:
    """What is put right; the methods beneath are those of AgentOps' handler since 0.4.5."""

    run_inline = True
    """LangChain then calls the handler in the context of an asynchronous run, not in a copy of it."""

    active_spans: dict[Any, trace.Span]
    context_tokens: dict[Any, Any]
    token_counts: dict[Any, int]

    def on_llm_start(self, serialized: Any, prompts: list[Any], **kwargs: Any) -> None:
        theirs: Any = super()
        theirs.on_llm_start(_with_model(serialized, kwargs), prompts, **kwargs)

    def on_chat_model_start(self, serialized: Any, messages: list[Any], **kwargs: Any) -> None:
        theirs: Any = super()
        batch = messages[0] if messages and isinstance(messages[0], list) else messages
        theirs.on_chat_model_start(_with_model(serialized, kwargs), batch, **kwargs)

    def on_chain_start(self, serialized: Any, inputs: Any, **kwargs: Any) -> None:
        theirs: Any = super()
        theirs.on_chain_start(_with_name(serialized, kwargs), inputs, **kwargs)

    def on_tool_start(self, serialized: Any, input_str: str, **kwargs: Any) -> None:
        theirs: Any = super()
        theirs.on_tool_start(_with_name(serialized, kwargs), input_str, **kwargs)

    def _create_span(
        self,
        operation_name: str,
        span_kind: str,
        run_id: Any = None,
        attributes: dict[str, Any] | None = None,
        parent_run_id: Any = None,
    ) -> trace.Span:
        core = importlib.import_module("agentops.sdk.core")
        provider = core_provider(core) or trace.get_tracer_provider()
        before = otel_context.get_current()
        parent = self.active_spans.get(parent_run_id)
        span: trace.Span = provider.get_tracer("agentops").start_span(
            f"{operation_name}.{span_kind}",
            context=before if parent is None else trace.set_span_in_context(parent, before),
            attributes={
                **(attributes or {}),
                "agentops.span.kind": span_kind,
                "agentops.operation.name": operation_name,
            },
        )
        self.active_spans[run_id] = span
        self.context_tokens[run_id] = before
        otel_context.attach(trace.set_span_in_context(span, before))
        return span

    def _end_span(self, run_id: Any) -> None:
        span = self.active_spans.pop(run_id, None)
        before = self.context_tokens.pop(run_id, None)
        self.token_counts.pop(run_id, None)
        if span is None:
            return
        if before is not None and trace.get_current_span() is span:
            # A run may end in another context than it began in, where no token is valid.
            otel_context.attach(before)
        said = getattr(span, "attributes", None) or {}
        if said.get("error"):
            span.set_status(Status(StatusCode.ERROR, str(said.get("error.message", ""))))
        span.end()


def _with_model(serialized: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return what they read the model's name from: for want of one they take the name of the class."""
    asked = kwargs.get("invocation_params") or {}
    model = asked.get("model") or asked.get("model_name")
    return {**(serialized or {}), **({"model_name": model} if isinstance(model, str) else {})}


def _with_name(serialized: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return what they read a name from; current LangChain gives it beside ``serialized``, which may be ``None``."""
    name = kwargs.get("name")
    return {**(serialized or {}), **({"name": name} if name else {})}
