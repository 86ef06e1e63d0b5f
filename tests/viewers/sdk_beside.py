"""Two rollouts with another party's SDK in the process: ``sdk_beside.py URL SDK FIRST DOWN``; prints what is stored.

``FIRST`` and ``DOWN`` are ``theirs`` or ``ours``: whose start comes first, and whose end. Where theirs ends first, that
is between the rollouts. ``SDK`` is ``langfuse``, ``langfuse-all`` (with a filter that lets every span of a rollout
through), ``langfuse-openai`` (with its client in place of openai's), ``logfire`` or ``phoenix`` (its package
``arize-phoenix-otel``).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from viewer_agent import work

import agentlightning as agl
from agentlightning.testing.fake_openai import FakeOpenAI

Shutdown = Callable[[], Any]


def langfuse(url: str, **options: Any) -> Any:
    """Start Langfuse's SDK as its documentation says; return what ends it."""
    from langfuse import Langfuse

    return Langfuse(public_key="pk", secret_key="sk", base_url=url, **options).shutdown


def phoenix(url: str) -> Any:
    """Register a provider as Phoenix's documentation says; return what ends it."""
    from phoenix.otel import register

    options: dict[str, Any] = {"protocol": "http/protobuf", "project_name": "agents", "verbose": False}
    return register(endpoint=f"{url}/v1/traces", batch=True, **options).shutdown


def is_of_a_rollout(span: Any) -> bool:
    """Let through what docs/how-to/foreign-provider.md says."""
    return "agentlightning.rollout_id" in (span.attributes or {})


def langfuse_client(base_url: str, **options: Any) -> Any:
    """Return Langfuse's client, which makes spans of its own."""
    from langfuse.openai import OpenAI

    return OpenAI(base_url=base_url, api_key="none", **options)


def logfire(url: str) -> Any:
    """Start Logfire's SDK, with an exporter of OTLP in the place of its own; return what ends it."""
    import logfire
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    exporting = BatchSpanProcessor(OTLPSpanExporter(f"{url}/v1/traces"))
    logfire.configure(send_to_logfire=False, console=False, additional_span_processors=[exporting])
    return logfire.shutdown


def main(url: str, sdk: str, first: str, down: str) -> None:
    """See the module's docstring."""
    start: dict[str, Callable[[], Shutdown]] = {
        "langfuse": lambda: langfuse(url),
        "langfuse-openai": lambda: langfuse(url),
        "langfuse-all": lambda: langfuse(url, should_export_span=is_of_a_rollout),
        "logfire": lambda: logfire(url),
        "phoenix": lambda: phoenix(url),
    }
    tracer = agl.OtelTracer(capture_tokens="request")
    ended: list[Any] = []
    with FakeOpenAI() as server, agl.open_store("memory://") as store:
        make_client = partial(langfuse_client, server.base_url) if sdk == "langfuse-openai" else None
        shutdown = start[sdk]() if first == "theirs" else None
        with tracer.lifespan(store):
            shutdown = shutdown or start[sdk]()
            handles = [work(tracer, server, make_client)]
            if down == "theirs":
                ended.append(shutdown())
            handles.append(work(tracer, server, make_client))
        if down == "ours":
            shutdown()
        stored = [
            {
                "ids": [handle.rollout_id, handle.attempt_id],
                "names": sorted(
                    span.name for span in store.query_spans(handle.rollout_id, handle.attempt_id)
                ),
                "captured": [
                    span.attributes["agentlightning.token_capture"]
                    for span in store.query_spans(handle.rollout_id, handle.attempt_id)
                    if "agentlightning.token_capture" in span.attributes
                ],
                "whole": store.get_receipt(handle.rollout_id, handle.attempt_id).whole,
            }
            for handle in handles
        ]
    print(json.dumps(stored))


if __name__ == "__main__":
    main(*sys.argv[1:])
