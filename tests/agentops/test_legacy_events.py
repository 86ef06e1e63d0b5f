"""Events of AgentOps 0.2 and 0.3 as they are shaped in each release, without any of these releases installed."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from enum import Enum
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import context as otel_context
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from agentlightning.dialects.spans.foreign import is_model_call
from agentlightning.integrations.agentops.legacy_events import EventRecorder, json_text, nanoseconds

MOMENT = "2026-01-01T00:00:00.125Z"
MOMENT_NS = 1_767_225_600_125_000_000


class Recorded:
    """A recorder and what it made."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.recorder = EventRecorder(provider, "0.2.6")

    @property
    def spans(self) -> list[ReadableSpan]:
        return list(self._exporter.get_finished_spans())


@pytest.fixture
def recorded() -> Recorded:
    return Recorded()


def event(**fields: Any) -> SimpleNamespace:
    """An action as 0.2.6 makes it."""
    given: dict[str, Any] = {
        "event_type": "actions",
        "params": None,
        "returns": None,
        "init_timestamp": MOMENT,
        "end_timestamp": MOMENT,
        "agent_id": None,
        "id": "7e57",
    }
    return SimpleNamespace(**{**given, **fields})


# ---------------------------------------------------------------------- times


@given(st.datetimes(datetime(1970, 1, 1), datetime(2200, 1, 1)))  # noqa: DTZ001 - it takes bounds without a zone
def test_both_forms_of_a_moment_are_read_to_the_microsecond(moment: datetime) -> None:
    exact = moment.replace(tzinfo=UTC)
    expected = (exact - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1) * 1000
    assert nanoseconds(exact.isoformat()) == expected
    assert nanoseconds(moment.isoformat()) == expected
    assert nanoseconds(exact.astimezone(timezone(timedelta(hours=-7))).isoformat()) == expected
    cut_off = moment.isoformat(timespec="milliseconds") + "Z"
    assert nanoseconds(cut_off) == expected // 1_000_000 * 1_000_000


@pytest.mark.parametrize("odd", [None, "", "now", 12.5, "2026-13-01T00:00:00Z"])
def test_what_is_no_moment_is_none(odd: object) -> None:
    assert nanoseconds(odd) is None


def test_an_error_of_the_early_releases_is_a_moment(recorded: Recorded) -> None:
    recorded.recorder.event(
        SimpleNamespace(
            event_type="errors",
            trigger_event=None,
            exception=None,
            error_type="E",
            details="d",
            timestamp=MOMENT,
            logs="NoneType: None\n",
        )
    )
    (span,) = recorded.spans
    assert (span.start_time, span.end_time) == (MOMENT_NS, MOMENT_NS)
    assert dict(span.attributes or {}) == {
        "agentops.span.kind": "error",
        "exception.type": "E",
        "error.type": "E",
        "exception.message": "d",
    }


def test_a_time_that_cannot_be_read_is_kept_as_it_is_told(recorded: Recorded) -> None:
    recorded.recorder.event(event(action_type="x", init_timestamp="yesterday", end_timestamp=MOMENT))
    (span,) = recorded.spans
    assert (span.start_time, span.end_time) == (MOMENT_NS, MOMENT_NS)
    assert (span.attributes or {})["agentops.event.init_timestamp"] == "yesterday"


# ---------------------------------------------------------------------- what they say


class Kind(Enum):
    API = "apis"


@pytest.mark.parametrize(("kind", "name"), [(Kind.API, "operation"), ("dreams", "dreams"), ("llms", "llm")])
def test_an_event_without_a_name_is_called_after_its_kind(recorded: Recorded, kind: Any, name: str) -> None:
    recorded.recorder.event(event(event_type=kind))
    (span,) = recorded.spans
    assert span.name == name
    assert (span.attributes or {})["agentops.span.kind"] == name


def test_no_field_of_a_model_event_makes_it_a_model_call(recorded: Recorded) -> None:
    recorded.recorder.event(
        event(
            event_type="llms",
            prompt=[{"role": "user", "content": "hi"}],
            completion={"role": "assistant", "content": "ho"},
            prompt_tokens=1,
            completion_tokens=1,
            model="m",
            thread_id="t",
            params={"messages": []},
            returns={"prompt_token_ids": [1]},
        )
    )
    (span,) = recorded.spans
    attributes = dict(span.attributes or {})
    assert not is_model_call(attributes)
    assert not [key for key in attributes if key.startswith("gen_ai.")]
    assert attributes["agentops.event.returns"] == '{"prompt_token_ids": [1]}'


def test_a_method_is_recorded_without_its_object(recorded: Recorded) -> None:
    recorded.recorder.event(event(action_type="x", params={"self": object(), "a": 1}))
    assert (recorded.spans[0].attributes or {})["agentops.entity.input"] == '{"a": 1}'


def test_a_session_without_tags_and_reason_says_its_state_only(recorded: Recorded) -> None:
    session = SimpleNamespace(
        session_id="s", end_state="Fail", tags=None, video=None, init_timestamp=MOMENT, end_timestamp=MOMENT
    )
    recorded.recorder.session(session, None, otel_context.get_current())
    (span,) = recorded.spans
    assert span.status.status_code.name == "ERROR"
    assert dict(span.attributes or {}) == {
        "agentops.span.kind": "session",
        "agentops.session.id": "s",
        "agentops.session.end_state": "Fail",
    }


def test_what_is_remembered_for_links_is_bounded(recorded: Recorded) -> None:
    for number in range(4200):
        recorded.recorder.event(event(id=number))
    assert len(recorded.recorder._made) == 4096
    recorded.recorder.event(event(event_type="errors", error_type="E", trigger_event=event(id=0), id="e"))
    assert len(recorded.spans) == 4202  # the trigger was forgotten, so it is told again


class Broken:
    """What a stranger's object may do when it is asked for its form."""

    def __str__(self) -> str:
        raise RuntimeError("no")

    def model_dump(self, mode: str) -> Any:
        raise LookupError(mode)


values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text() | st.binary() | st.builds(Broken) | st.builds(object),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.tuples(st.integers()), inner),
    max_leaves=20,
)


@given(values)
def test_every_value_has_a_text(value: Any) -> None:
    assert isinstance(json.loads(json_text(value)), (dict, list, str, int, float, bool, type(None)))
