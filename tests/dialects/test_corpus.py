"""Traces of every dialect: what is read from them is what was on the wire, and each gives rows or a reason."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

import pytest
from corpus_files import FOLDER, PAGE, TraceFile, load, names, page_with_table, view
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentlightning.adapter import TracerTraceToTriplet, TraceToMessages
from agentlightning.dialects.model_call import CODES, VALID
from agentlightning.dialects.spans.genai import read_call
from agentlightning.rows import explain
from agentlightning.types import Span

TRACES = [load(name) for name in names()]
every_trace = pytest.mark.parametrize("trace", TRACES, ids=[trace.name for trace in TRACES])


def calls_of(spans: list[Span]) -> dict[str, Any]:
    found = {span.span_id: read_call(span) for span in spans}
    return {span_id: call for span_id, call in found.items() if call is not None}


def in_order(found: dict[str, Any]) -> str:
    """Return a text to compare: NaN is equal to itself there, and true is not 1."""
    return json.dumps(found, sort_keys=True, indent=1)


def rows_of(spans: list[Span]) -> list[list[Any]]:
    return [
        [row.prompt["token_ids"], row.response["token_ids"]] for row in TracerTraceToTriplet().adapt(spans)
    ]


def check_rows_or_reason(spans: list[Span]) -> None:
    """No exception, no row without its tokens, and where there is no row, a reason for each call and the whole."""
    before = repr(spans)
    calls = calls_of(spans)
    for call in calls.values():
        assert call.token_capture == VALID or call.capture_code in CODES
        assert {issue.code for issue in call.issues} <= CODES.keys()
    rows, explanation = rows_of(spans), explain(spans)
    assert rows == rows_of(spans)
    assert repr(explain(spans)) == repr(explanation)
    assert explanation.rows == len(rows) == sum(call.rows for call in explanation.calls)
    assert {call.span_id for call in explanation.calls} >= calls.keys()
    assert all((call.code is None) == (call.rows > 0) for call in explanation.calls)
    assert all(call.sentence for call in explanation.calls if call.code is not None)
    if not rows:
        assert set(explanation.codes) - {"no_reward", "reward_unscored"}
    assert all(prompt and response for prompt, response in rows)
    TraceToMessages().adapt(spans)
    assert repr(spans) == before


@every_trace
def test_each_call_is_read_as_it_was(trace: TraceFile) -> None:
    calls = calls_of(trace.spans)
    assert list(calls) == [expected["span"] for expected in trace.expect["calls"]]
    for expected in trace.expect["calls"]:
        call = calls[expected["span"]]
        assert set(expected.get("issues", ())) <= {issue.code for issue in call.issues}
        if "unsound" not in expected:
            wanted = {key: value for key, value in expected.items() if key not in {"span", "issues"}}
            assert in_order(view(call)) == in_order(wanted)


@every_trace
def test_each_trace_gives_its_rows_or_its_reasons(trace: TraceFile) -> None:
    check_rows_or_reason(trace.spans)
    explanation = explain(trace.spans)
    assert rows_of(trace.spans) == trace.expect["rows"]
    assert sorted(explanation.codes) == trace.expect["reasons"]
    if "verdicts" in trace.expect:
        assert [call.code for call in explanation.calls] == trace.expect["verdicts"]


@every_trace
def test_the_order_of_the_spans_does_not_matter(trace: TraceFile) -> None:
    assert rows_of(trace.spans[::-1]) == trace.expect["rows"]


def test_the_corpus_holds_what_it_promises() -> None:
    recorded = [trace for trace in TRACES if trace.head["made"] != "by hand"]
    assert len(TRACES) >= 60
    assert len(recorded) >= 35
    assert len(TRACES) - len(recorded) >= 25
    assert all(trace.head["libraries"] for trace in recorded)
    assert all(trace.head["point"] for trace in TRACES if trace not in recorded)
    dialects = {trace.head["dialect"] for trace in recorded}
    assert dialects >= {
        "agentlightning",
        "agentlightning-0.2",
        "agentlightning-0.3",
        "agentops",
        "genai",
        "litellm",
        "openinference",
        "openllmetry",
    }
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 2_000_000


def test_the_page_on_dialects_says_what_the_corpus_holds() -> None:
    assert PAGE.read_text(encoding="utf-8") == page_with_table(), "run scripts/corpus --page"


# ---------------------------------------------------------------------- broken at random

values: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 10**20)
    | st.floats()
    | st.sampled_from(
        ["", "[1, 2]", "[[3], null]", "{'a': 1}", '{"role": "user"}', "[", "\ud800", "token_id:3"]
    )
    | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)


def retyped(value: Any) -> Any:
    """Return the same in another type, as careless exporters do."""
    if isinstance(value, list):
        return repr(value)
    if isinstance(value, str):
        return [value]
    return str(value)


def broken(trace: TraceFile, chance: random.Random, value: Any) -> list[Span]:
    """Return the spans with attributes dropped, retyped, exchanged or replaced, in another order."""
    spans = [copy.deepcopy(span) for span in trace.spans if chance.random() > 0.1]
    for span in spans:
        for name in [each for each in span.attributes if chance.random() < 0.2]:
            change = chance.randrange(4)
            if change == 0:
                del span.attributes[name]
            elif change == 1:
                span.attributes[name] = retyped(span.attributes[name])
            elif change == 2:
                span.attributes[name] = span.attributes[chance.choice(sorted(span.attributes))]
            else:
                span.attributes[name] = value
        if chance.random() < 0.2:
            earlier = [each.span_id for each in spans if (each.start_time or 0) < (span.start_time or 0)]
            span.parent_id = chance.choice([None, "ghost", *earlier])
        if chance.random() < 0.2:
            span.events = chance.choice(spans).events
    chance.shuffle(spans)
    return spans


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.sampled_from(TRACES), st.randoms(use_true_random=False), values)
def test_a_broken_trace_gives_rows_or_a_reason_too(
    trace: TraceFile, chance: random.Random, value: Any
) -> None:
    check_rows_or_reason(broken(trace, chance, value))
