"""The processor of openai-agents that sends to OpenAI; modules in the manner of the SDK's stand in its place."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest

from agentlightning.instrumentation.guard import Guard
from agentlightning.integrations.agentops.processors import nothing_to_openai


def processors(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the module of an SDK whose getter raises, as it does while the process ends."""

    class BatchTraceProcessor:
        def __init__(self) -> None:
            self.taken: list[str] = []

        def on_trace_start(self, trace: str) -> None:
            self.taken.append(trace)

        def on_span_end(self, span: str) -> None:
            self.taken.append(span)

    def default_processor() -> Any:
        raise RuntimeError("Tracing shutdown has started")

    module = ModuleType("agents.tracing.processors")
    vars(module).update(BatchTraceProcessor=BatchTraceProcessor, default_processor=default_processor)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


def test_the_default_processor_takes_nothing_and_none_is_made_for_the_comparison(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module, guard = processors(monkeypatch), Guard()
    module._global_processor = None

    class Own(module.BatchTraceProcessor):  # type: ignore[misc, name-defined]
        def on_span_end(self, span: str) -> None:
            super().on_span_end(span=f"my {span}")  # by keyword, as the SDK's signature allows

    patches = nothing_to_openai(guard)
    own, default = Own(), module.BatchTraceProcessor()
    own.on_trace_start("trace")
    own.on_span_end("span")
    assert own.taken == ["trace", "my span"]
    module._global_processor = default
    default.on_trace_start("trace")
    default.on_span_end(span="span")
    assert default.taken == []
    patches.undo()
    default.on_trace_start(trace="next")
    assert default.taken == ["next"]
    assert not guard.caught


def test_a_processor_goes_on_where_the_default_cannot_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    module, guard = processors(monkeypatch), Guard()  # an SDK that keeps it elsewhere
    patches = nothing_to_openai(guard)
    own = module.BatchTraceProcessor()
    own.on_trace_start("trace")
    patches.undo()
    assert own.taken == ["trace"]
    assert sum(guard.caught.values()) == 1
