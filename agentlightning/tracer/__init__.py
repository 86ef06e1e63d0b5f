"""Recording: span processor, tracers, exporter, and the writer that carries spans to the store."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import _lazy

if TYPE_CHECKING:
    from ..integrations.agentops.tracer import AgentOpsTracer as AgentOpsTracer
    from ..recorder.settings import WriterSettings as WriterSettings
    from .base import Tracer as Tracer
    from .base import clear_active_tracer as clear_active_tracer
    from .base import get_active_tracer as get_active_tracer
    from .base import set_active_tracer as set_active_tracer
    from .base import with_active_tracer_context as with_active_tracer_context
    from .call_labels import role as role
    from .call_labels import trainable as trainable
    from .contexts import TraceContext as TraceContext
    from .dummy import DummySpanRecordingContext as DummySpanRecordingContext
    from .dummy import DummyTracer as DummyTracer
    from .exporter import LightningSpanExporter as LightningSpanExporter
    from .otel import OtelSpanRecordingContext as OtelSpanRecordingContext
    from .otel import OtelTracer as OtelTracer
    from .processor import LightningSpanProcessor as LightningSpanProcessor

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    {
        "agentlightning.integrations.agentops.tracer": ("AgentOpsTracer",),
        "agentlightning.recorder.settings": ("WriterSettings",),
        ".base": (
            "Tracer",
            "clear_active_tracer",
            "get_active_tracer",
            "set_active_tracer",
            "with_active_tracer_context",
        ),
        ".contexts": ("TraceContext",),
        ".dummy": ("DummySpanRecordingContext", "DummyTracer"),
        ".exporter": ("LightningSpanExporter",),
        ".call_labels": ("role", "trainable"),
        ".otel": ("OtelSpanRecordingContext", "OtelTracer"),
        ".processor": ("LightningSpanProcessor",),
    },
)
