"""How each instrumentation is switched on, and where its spans are caught.

A recorder is a context manager around the program. All but ``own`` catch the spans with a processor of this file, in
a plain OpenTelemetry provider or in the library's own, so a dialect is seen as its authors write it, without anything
that our recorder adds. Runs in the environment of the library.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider

Spans = list[dict[str, Any]]


class Catcher(SpanProcessor):
    """Keeps every span that ends."""

    def __init__(self) -> None:
        self.ended: list[ReadableSpan] = []

    def on_end(self, span: ReadableSpan) -> None:
        """Keep it."""
        self.ended.append(span)

    def spans(self) -> Spans:
        """Return what was caught."""
        return [plain(span) for span in self.ended]


def plain(span: Any) -> dict[str, Any]:
    """Return an OpenTelemetry span in the shape in which a store of ours gives it back."""
    context, parent = span.get_span_context(), span.parent
    return {
        "rollout_id": "",
        "attempt_id": "",
        "sequence_id": 0,
        "trace_id": f"{context.trace_id:032x}",
        "span_id": f"{context.span_id:016x}",
        "parent_id": f"{parent.span_id:016x}" if parent else None,
        "name": span.name,
        "status": {"status_code": span.status.status_code.name, "description": span.status.description},
        "attributes": values(span.attributes),
        "events": [
            {"name": event.name, "attributes": values(event.attributes), "timestamp": event.timestamp / 1e9}
            for event in span.events
        ],
        "links": [],
        "start_time": span.start_time / 1e9,
        "end_time": span.end_time / 1e9,
        "resource": {"attributes": values(span.resource.attributes), "schema_url": ""},
    }


def values(attributes: Any) -> dict[str, Any]:
    """Return attributes as JSON values."""
    return {str(name): _value(value) for name, value in dict(attributes or {}).items()}


def _value(value: Any) -> Any:
    if isinstance(value, dict):
        return values(value)
    if isinstance(value, (list, tuple)):
        return [_value(item) for item in value]
    if isinstance(value, bytes):
        return b64encode(value).decode("ascii")
    return value if value is None or isinstance(value, (str, bool, int, float)) else repr(value)


def _plain_provider() -> tuple[TracerProvider, Catcher]:
    provider, catcher = TracerProvider(), Catcher()
    provider.add_span_processor(catcher)
    trace.set_tracer_provider(provider)
    return provider, catcher


@contextlib.contextmanager
def instrumentor(name: str, **options: Any) -> Iterator[Callable[[], Spans]]:
    """An instrumentation of OpenTelemetry's form: ``module:Class``."""
    provider, catcher = _plain_provider()
    module, _, cls = name.partition(":")
    made = getattr(import_module(module), cls)()
    made.instrument(tracer_provider=provider, **options)
    yield catcher.spans


# ---------------------------------------------------------------------- ours


@contextlib.contextmanager
def own() -> Iterator[Callable[[], Spans]]:
    """Our own tracer and store."""
    from agentlightning import OtelTracer
    from agentlightning.store import open_store

    store, tracer = open_store("memory://"), OtelTracer()
    started = asyncio.run(store.start_rollout(input=None))
    ids = {"rollout_id": started.rollout_id, "attempt_id": started.attempt.attempt_id}
    found: list[Any] = []
    with tracer.lifespan(store):
        with tracer.trace_context(name="agent", store=store, **ids):
            yield lambda: [span.model_dump(mode="json") for span in found]
        found += asyncio.run(store.query_spans(started.rollout_id))


# ---------------------------------------------------------------------- AgentOps


def _agentops_environment() -> None:
    helper = os.environ["CORPUS_HELPER"]
    os.environ.update(
        AGENTOPS_API_KEY="00000000-0000-4000-8000-000000000000",
        AGENTOPS_API_ENDPOINT=helper,
        AGENTOPS_EXPORTER_ENDPOINT=f"{helper}/v1/traces",
        AGENTOPS_APP_URL=helper,
        AGENTOPS_LOGGING_TO_FILE="false",
        AGENTOPS_LOG_LEVEL="CRITICAL",
        TRACELOOP_METRICS_ENABLED="false",  # its metrics go to a fixed host
    )


@contextlib.contextmanager
def agentops() -> Iterator[Callable[[], Spans]]:
    """AgentOps 0.4 as its users run it, with its server on this machine."""
    _agentops_environment()
    library = import_module("agentops")
    import_module("openai")  # AgentOps patches what is imported
    catcher = Catcher()
    library.init(auto_start_session=False)
    _agentops_provider().add_span_processor(catcher)
    session = library.start_trace("corpus") if hasattr(library, "start_trace") else library.start_session()
    yield catcher.spans
    if hasattr(library, "end_trace"):
        library.end_trace(session, "Success")
    else:
        library.end_session(session)


def _agentops_provider() -> Any:
    core = import_module("agentops.sdk.core")
    get_instance = getattr(core.TracingCore, "get_instance", None)
    held = get_instance() if get_instance is not None else core.tracer
    return getattr(held, "provider", None) or held._provider  # noqa: SLF001 - it has no public name up to 0.4.14


@contextlib.contextmanager
def agentops_events() -> Iterator[Callable[[], Spans]]:
    """AgentOps 0.3, whose events are spans of a provider of each session."""
    _agentops_environment()
    library: Any = import_module("agentops")
    import_module("openai")
    library.check_agentops_update = lambda: None  # it asks a host far away
    library.init(auto_start_session=False, skip_auto_end_session=True)
    catcher, session = Catcher(), library.start_session()
    session._tracer_provider.add_span_processor(catcher)  # noqa: SLF001 - it has no public name
    yield catcher.spans
    session.end_session("Success")


# ---------------------------------------------------------------------- Agent Lightning 0.2 and 0.3


@contextlib.contextmanager
def agent_lightning() -> Iterator[Callable[[], Spans]]:
    """The tracer of Agent Lightning 0.2 or 0.3; the package of that name here is theirs."""
    _agentops_environment()
    catcher, tracer = Catcher(), import_module("agentlightning.tracer.agentops").AgentOpsTracer()
    tracer.init_worker(0)
    _agentops_provider().add_span_processor(catcher)
    with tracer._trace_context_sync():  # noqa: SLF001 - theirs; the public one is asynchronous
        yield catcher.spans
    tracer.teardown_worker(0)


# ---------------------------------------------------------------------- LiteLLM and others


@contextlib.contextmanager
def litellm_otel() -> Iterator[Callable[[], Spans]]:
    """LiteLLM's own callback for OpenTelemetry, with which the model proxy of Agent Lightning 0.3 records."""
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    provider, catcher = _plain_provider()
    import litellm
    from litellm.integrations.opentelemetry import OpenTelemetry, OpenTelemetryConfig

    if os.environ.get("CORPUS_LITELLM_PATCH"):
        import_module("agentlightning.instrumentation.litellm").instrument_litellm()
    litellm.callbacks = [OpenTelemetry(OpenTelemetryConfig(exporter="console"), tracer_provider=provider)]
    yield catcher.spans
    _wait(lambda: any(span.name == "litellm_request" for span in catcher.ended))


def _wait(condition: Callable[[], bool]) -> None:
    """LiteLLM tells its callbacks on a thread of its own."""
    deadline = time.monotonic() + 20
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)


@contextlib.contextmanager
def pydantic_ai(version: int = 5) -> Iterator[Callable[[], Spans]]:
    """Pydantic AI's own instrumentation, in one of its versions."""
    provider, catcher = _plain_provider()
    from pydantic_ai import Agent
    from pydantic_ai.models.instrumented import InstrumentationSettings

    Agent.instrument_all(InstrumentationSettings(tracer_provider=provider, version=version))
    yield catcher.spans


@contextlib.contextmanager
def strands() -> Iterator[Callable[[], Spans]]:
    """Strands, which traces into the global provider: messages are events of its spans."""
    _, catcher = _plain_provider()
    yield catcher.spans


RECORDERS: dict[str, Callable[[], contextlib.AbstractContextManager[Callable[[], Spans]]]] = {
    "own": own,
    "agentops": agentops,
    "agentops-events": agentops_events,
    "agent-lightning": agent_lightning,
    "litellm-otel": litellm_otel,
    "pydantic-ai": pydantic_ai,
    "strands": strands,
    "openinference-openai": lambda: instrumentor("openinference.instrumentation.openai:OpenAIInstrumentor"),
    "openinference-langchain": lambda: instrumentor(
        "openinference.instrumentation.langchain:LangChainInstrumentor"
    ),
    "openinference-litellm": lambda: instrumentor(
        "openinference.instrumentation.litellm:LiteLLMInstrumentor"
    ),
    "openinference-openai-agents": lambda: instrumentor(
        "openinference.instrumentation.openai_agents:OpenAIAgentsInstrumentor"
    ),
    "openllmetry-openai": lambda: instrumentor("opentelemetry.instrumentation.openai:OpenAIInstrumentor"),
    "openllmetry-langchain": lambda: instrumentor(
        "opentelemetry.instrumentation.langchain:LangchainInstrumentor"
    ),
    "otel-openai-v2": lambda: instrumentor("opentelemetry.instrumentation.openai_v2:OpenAIInstrumentor"),
}
