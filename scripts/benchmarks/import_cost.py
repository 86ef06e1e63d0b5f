"""What ``import agentlightning`` costs, beside importing the OpenTelemetry SDK."""

from __future__ import annotations

from harness import Aim, Figure, Line, Subject

RECORD = """
from agentlightning.store import open_store
agentlightning.tracer.otel.OtelTracer().init_worker(0, open_store("memory://"))
"""


def _code(*modules: str, after: str = "sys", then: str = "") -> str:
    """Return a program that prints how long the imports took and how many modules they loaded, ``after`` another."""
    return (
        # The clock is looked up before it is read: its import is in no figure.
        f"import {after}; import sys; from time import perf_counter as now; had = len(sys.modules); began = now()\n"
        f"import {', '.join(modules)}\n{then}"
        "took = now() - began; got = len(sys.modules) - had\n"
        # An empty line first: what an import printed without a line's end stands before it.
        "import json; print(); print(json.dumps({'ms': took * 1000, 'modules': got}))\n"
    )


FIGURE = Figure(
    name="import_cost",
    title="Importing",
    how="A fresh interpreter each time, files in the page cache. `modules` are those that the import added.",
    subjects=(
        Subject("sdk", code=_code("opentelemetry.sdk.trace")),
        Subject("ours", code=_code("agentlightning")),
        Subject("ours_tracer", code=_code("agentlightning.tracer.otel")),
        Subject("ours_recording", code=_code("agentlightning.tracer.otel", then=RECORD)),
        Subject("pytest_plugin", code=_code("agentlightning.pytest_plugin", after="pytest")),
        Subject("peer", peer="0.3.0", code=_code("agentlightning")),
    ),
    lines=(
        Line("`import agentlightning`", "ours", "ms", "ms", "sdk", aim=Aim("<=", 1.2)),
        Line("… modules", "ours", "modules", "", "sdk"),
        Line("`import agentlightning.tracer.otel`", "ours_tracer", "ms", "ms", "sdk", aim=Aim("<=", 2.0)),
        Line("… modules", "ours_tracer", "modules", "", "sdk"),
        Line("… and its first `init_worker`, which loads the rest", "ours_recording", "ms", "ms", "sdk"),
        Line("… modules", "ours_recording", "modules", "", "sdk"),
        Line("pytest loads our plugin, and no test uses it", "pytest_plugin", "ms", "ms", aim=Aim("<=", 50)),
        Line("… modules", "pytest_plugin", "modules", ""),
        Line("ours beside 0.3: `import agentlightning`", "ours", "ms", "ms", "peer"),
        Line("… modules", "ours", "modules", "", "peer"),
    ),
    sizes={"tiny": {}, "quick": {}, "normal": {}, "full": {}},
    rounds={"tiny": 1, "quick": 5, "normal": 15, "full": 31},
)
