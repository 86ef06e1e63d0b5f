"""What is done with each release of ``agentops``: captured, or refused in one sentence that names a cure.

One table serves the tracer, ``agl doctor`` and the page ``docs/reference/agentops.md``. A row is found by what the
probe saw; version numbers only tell releases apart that look alike.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from .probe import Found, installed_version, version_numbers

Verdict = Literal["captured", "refused", "absent"]

ADVISED: Final = "0.4.21"
"""The release that refusals name."""


@dataclass(frozen=True)
class Support:
    """What a user of one release gets."""

    verdict: Verdict
    sentence: str
    """In managed mode, one sentence; of a refusal with the cure."""
    unmanaged: tuple[str, ...] = ()
    """What the release itself breaks or loses where its user has started it, and what is done about it."""


@dataclass(frozen=True)
class Row:
    """Releases that are treated alike."""

    releases: str
    applies: Callable[[Found], bool]
    support: Support


def _between(first: str, last: str) -> Callable[[Found], bool]:
    low, high = version_numbers(first), version_numbers(last)
    return lambda found: low <= found.numbers <= high


def _in_range(name: str) -> Callable[[Found], bool]:
    return lambda found: found.range == name


def exporter_lost_its_session(found: Found) -> bool:
    """Whether this AgentOps' exporter uses what OpenTelemetry's exporter has no longer had since 1.45."""
    exporter = version_numbers(installed_version("opentelemetry-exporter-otlp-proto-http"))
    return exporter >= (1, 45) and found.mentions("sdk/exporters.py", "self._session")


_GENERATORS = (
    "streams become generators, without .response and with; with_raw_response, with_streaming_response and stream() "
    "raise AttributeError"
)
_HELPERS = "chat.completions.stream() raises TypeError, and so does parse() of openai 1.40"
_STREAMS = "streams lose .response and .close() under its instrumentation of openai"
_HANGS = (
    "a stream that is left half way is not closed, and can hang the process when Python collects it, without us as "
    "well (seen with 0.4.21 and openai 2.54); read streams to their end"
)
_GRAPHS = (
    "since 0.4.17 its instrumentation of LangGraph breaks create_agent and ToolNode and cannot be taken back; "
    "agentops.init(instrument_llm_calls=False) keeps it off"
)
_PROCESSORS = (
    "its instrumentation of openai-agents takes out the trace processors that were registered before it"
)
_METRICS = (
    "metrics that the agent records go to otlp.agentops.ai whatever endpoint is set, at the latest when the process "
    "ends, unless a meter provider was set before agentops.init"
)
_OWN_METRICS = "so do its own of openai; TRACELOOP_METRICS_ENABLED=false stops those"
_SINCE_0416 = (_STREAMS, _HANGS, _HELPERS, _GRAPHS, _PROCESSORS, _METRICS)
_EVENTS = "its events become spans; model calls are recorded from the HTTP response"
_GUEST = "its decorators, traces and sessions become spans; model calls are recorded from the HTTP response"

KEPT_OFF: Final[Mapping[str, str]] = {
    "google.adk": (
        "its instrumentation of Google's ADK stays off: ADK makes spans of its agents, tools and model calls by "
        "itself, and these would be second ones"
    ),
    "haystack": (
        "its instrumentation of Haystack stays off: in Haystack 3 nothing is left of what it wraps, and in Haystack 2 "
        "it makes a second span of each model call"
    ),
    "langgraph": (
        "its instrumentation of LangGraph stays off: it breaks add_node for all but plain functions (create_agent and "
        "ToolNode among them), sees no asynchronous run and cannot be taken back; LangChain's callbacks see the same"
    ),
}
"""Agent frameworks whose instrumentation by AgentOps is never started in managed mode, by their module, and why."""

TABLE: Final[tuple[Row, ...]] = (
    Row(
        "none",
        _in_range("none"),
        Support(
            "absent",
            "agentops is not installed; model calls are recorded from the HTTP response; nothing else is lost",
        ),
    ),
    Row(
        "0.4.7 without openai-agents",
        lambda found: found.numbers == (0, 4, 7) and importlib.util.find_spec("agents") is None,
        Support(
            "refused",
            "agentops 0.4.7 cannot be imported unless openai-agents is installed; install agentops "
            f"{ADVISED}, or pip install openai-agents",
        ),
    ),
    Row(
        "0.2.0 – 0.2.6",
        _in_range("L1"),
        Support(
            "captured",
            _EVENTS,
            (
                "a session that was there before us hangs for ever once 100 events wait; later ones are repaired",
            ),
        ),
    ),
    Row(
        "0.3.0 – 0.3.10",
        _in_range("L2"),
        Support(
            "captured",
            _EVENTS,
            (
                "a session that was there before us hangs for ever once its queue is full; later ones are repaired",
            ),
        ),
    ),
    Row(
        "0.3.11 – 0.3.18",
        _in_range("L3"),
        Support(
            "captured",
            _EVENTS,
            (
                "a session that was there before us hangs for ever once its queue is full; later ones are repaired",
            ),
        ),
    ),
    Row("0.3.21 – 0.3.26", _in_range("L4"), Support("captured", _EVENTS, (_GENERATORS,))),
    Row(
        "0.4.5",
        _between("0.4.5", "0.4.5"),
        Support(
            "captured",
            _GUEST,
            ("every streamed chat call raises AttributeError; install agentops 0.4.9 or later",),
        ),
    ),
    Row(
        "0.4.2 – 0.4.14",
        _in_range("A1"),
        Support(
            "captured",
            _GUEST,
            (
                "a stream that is left half way leaves its span open; it ends with its trace_context",
                _PROCESSORS,
                _METRICS,
                _OWN_METRICS,
            ),
        ),
    ),
    Row(
        "0.4.15",
        _in_range("A2"),
        Support(
            "captured",
            _GUEST,
            (
                "streamed chat is not recorded by it; our capture completes its span",
                _HELPERS,
                _PROCESSORS,
                _METRICS,
            ),
        ),
    ),
    Row(
        "0.4.16 – 0.4.18",
        lambda found: found.range == "A3" and found.numbers < (0, 4, 19),
        Support("captured", _GUEST, _SINCE_0416),
    ),
    Row(
        "0.4.19 – 0.4.21 with opentelemetry-exporter-otlp-proto-http ≥ 1.45",
        lambda found: found.range == "A3" and exporter_lost_its_session(found),
        Support(
            "captured",
            _GUEST,
            (
                "its exporter sends nothing with this OpenTelemetry; it is repaired while we trace",
                *_SINCE_0416,
            ),
        ),
    ),
    Row(
        "0.4.19 – 0.4.21",
        _in_range("A3"),
        Support("captured", _GUEST, _SINCE_0416),
    ),
)
"""Searched from the top; the first row that applies counts."""


def support(found: Found) -> Support:
    """Return what is done with the release that was found."""
    row = row_of(found)
    if row is not None:
        return row.support
    return Support(
        "refused",
        f"agentops {found.version or '(without a version)'} is no release that is known here; "
        f"install agentops {ADVISED}",
    )


def row_of(found: Found) -> Row | None:
    """Return the row of a release, or ``None``."""
    return next((row for row in TABLE if row.applies(found)), None)
