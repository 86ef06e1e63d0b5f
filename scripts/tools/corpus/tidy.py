"""Make a recorded trace small, the same at each recording, and silent about the machine.

Ids are counted, times are ranks, ports and UUIDs are fixed; order, nesting and everything else stay as recorded.
"""

from __future__ import annotations

import json
import re
from typing import Any

_START = 1_700_000_000.0
_STEP = 0.001
_UUID = re.compile(r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b")
_MOMENT = re.compile(r"\b20\d\d-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(\+00:00|Z)?")
_PORT = re.compile(r"(127\.0\.0\.1|localhost):\d{4,5}")
_MEASURED = re.compile(
    r"duration|elapsed|time_to_first|time_to_generate|time_per|latency|_seconds$|first_chunk"
)
_CUT = frozenset({"exception.stacktrace", "server.port", "net.peer.port", "hidden_params"})
# What a framework's own steps were given and gave: long, and no part of a model call.
_STEPS = frozenset(
    {
        "traceloop.entity.input",
        "traceloop.entity.output",
        "gen_ai.task.input",
        "gen_ai.task.output",
        "metadata",
    }
)
_BODIES = frozenset({"input.value", "output.value"})


def tidy(spans: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the spans by start."""
    spans = sorted(spans, key=lambda span: (span["start_time"], span["end_time"]))
    text = json.dumps([_plain(span) for span in spans])
    for width in (32, 16):
        key = "trace_id" if width == 32 else "span_id"
        for number, known in enumerate(dict.fromkeys(span[key] for span in spans), 1):
            text = text.replace(known, f"{number:0{width}x}")
    for number, known in enumerate(dict.fromkeys(_UUID.findall(text)), 1):
        text = text.replace(known, f"00000000-0000-4000-8000-{number:012x}")
    text = _MOMENT.sub("2026-01-01T00:00:00.000000+00:00", text)
    return _ranked(json.loads(_PORT.sub(r"\1:8000", text)))


def _plain(span: dict[str, Any]) -> dict[str, Any]:
    return {
        **{
            key: value for key, value in span.items() if key not in {"context", "parent", "links", "resource"}
        },
        "rollout_id": "ro-corpus",
        "attempt_id": "at-corpus",
        "attributes": _attributes(span["attributes"]),
        "events": [{**event, "attributes": _attributes(event["attributes"])} for event in span["events"]],
    }


def _attributes(attributes: dict[str, Any]) -> dict[str, Any]:
    cut = _CUT | _STEPS
    if attributes.get("openinference.span.kind") == "CHAIN":
        cut |= _BODIES
    return {
        name: 0.001 if type(value) in {int, float} and _MEASURED.search(name) else value
        for name, value in sorted(attributes.items())
        if name not in cut
    }


def _ranked(spans: list[dict[str, Any]]) -> list[dict[str, Any]]:
    moments = sorted({moment for span in spans for moment in _moments(span)})
    rank = {moment: _START + _STEP * number for number, moment in enumerate(moments)}
    for number, span in enumerate(spans, 1):
        span["start_time"], span["end_time"] = rank[span["start_time"]], rank[span["end_time"]]
        span["sequence_id"] = number
        for event in span["events"]:
            event["timestamp"] = rank[event["timestamp"]]
    return spans


def _moments(span: dict[str, Any]) -> list[float]:
    return [span["start_time"], span["end_time"], *(event["timestamp"] for event in span["events"])]
