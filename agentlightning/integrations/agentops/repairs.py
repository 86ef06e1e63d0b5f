"""What is put right in an AgentOps that its user has started: it keeps sending where it sends."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from ...instrumentation.guard import Guard
from ...instrumentation.imports import when_imported
from ...instrumentation.patch import AttributePatch, Patch, Patches
from .managed import core_provider, end_states
from .probe import Found
from .table import exporter_lost_its_session

FLUSH_MILLISECONDS = 3000
Join = Callable[[Any], None]
"""Records the spans of one more tracer provider."""


def repair(found: Found, join: Join, guard: Guard) -> Patches:
    """Record what a user's AgentOps 0.4 makes, started already or later, and repair what it loses.

    Nothing is imported: what the agent never uses is never touched.
    """
    patches = Patches(f"AgentOps {found.version} as its user has set it up")

    def on_core(core: ModuleType) -> None:
        patches.add(end_states(core))
        provider = core_provider(core)
        if provider is not None:
            join(provider)
        for patch in _joining(core, join):
            patches.add(patch)

    def on_exporters(exporters: ModuleType) -> None:
        if exporter_lost_its_session(found):
            patches.add(exporter_repair(exporters))
            patches.add(
                Patch("what is queued is sent while the repair holds", lambda: _send_what_is_queued(guard))
            )

    patches.add(
        when_imported(
            {"agentops.sdk.core": on_core, "agentops.sdk.exporters": on_exporters},
            guard,
        )
    )
    return patches


def _joining(core: ModuleType, join: Join) -> list[Patch]:
    """Record the provider that a later ``agentops.init`` makes."""

    def wrap(original: Any, patch: Patch) -> Any:
        @functools.wraps(original)
        def initialize(held: Any, *args: Any, **kwargs: Any) -> Any:
            result = original(held, *args, **kwargs)
            provider = getattr(held, "provider", None) or getattr(held, "_provider", None)
            if patch.active and provider is not None:
                join(provider)
            return result

        return initialize

    return [
        AttributePatch(core.TracingCore, "initialize", wrap, "the spans of its provider are recorded too")
    ]


def _send_what_is_queued(guard: Guard) -> None:
    core = sys.modules.get("agentops.sdk.core")
    provider = core_provider(core) if core is not None else None
    if provider is not None:
        with guard("sending what AgentOps has queued"):
            provider.force_flush(FLUSH_MILLISECONDS)


def exporter_repair(exporters: ModuleType) -> Patch:
    """Give AgentOps' exporter its header back.

    Since 1.45 OpenTelemetry's exporter has neither ``_headers`` nor ``_session``; with releases that have them the
    original runs. The token goes where the base class now keeps its headers.
    """
    return AttributePatch(
        exporters.AuthenticatedOTLPExporter,
        "export",
        _export,
        "sends with OpenTelemetry 1.45 and later as well",
    )


def _export(original: Any, patch: Patch) -> Any:
    base = importlib.import_module("opentelemetry.exporter.otlp.proto.http.trace_exporter").OTLPSpanExporter

    @functools.wraps(original)
    def export(exporter: Any, spans: Any) -> Any:
        client = getattr(exporter, "_client", None)
        headers = getattr(client, "_headers", None)
        if not patch.active or hasattr(exporter, "_session") or headers is None:
            return original(exporter, spans)
        token = exporter._get_current_jwt()  # noqa: SLF001 - its own way to the token
        if token:
            client._headers = {**headers, "Authorization": f"Bearer {token}"}  # type: ignore[union-attr]  # noqa: SLF001
        return base.export(exporter, spans)

    return export
