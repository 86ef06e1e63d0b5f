"""Whatever a trace looks like, adapters return, change nothing, and depend on no order."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.sdk.trace import ReadableSpan

from agentlightning.adapter import TracerTraceToTriplet, TraceToMessages, TraceTree
from agentlightning.rows import (
    ALL_CODES,
    CallVerdict,
    RewardMatchPolicy,
    RewardVerdict,
    RowPolicy,
    build_rows,
    explain,
)
from agentlightning.rows.flat import training_row, triplet_of_row, triplet_row
from agentlightning.types import Span, TraceStatus

pytestmark = pytest.mark.long

garbage: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
ids = st.lists(st.integers(0, 5), max_size=3)
some_text = st.sampled_from(["a", "b", "", "r-1"])

known_attributes: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {},
    optional={
        "agentlightning.token_capture": st.sampled_from(["valid", "none(no_token_ids)", "invalid(x)"])
        | garbage,
        "agentlightning.prompt_token_ids": ids | garbage,
        "agentlightning.choice.0.token_ids": ids | garbage,
        "agentlightning.choice.0.logprobs": st.lists(st.floats(max_value=0.0), max_size=3) | garbage,
        "agentlightning.logprob_kind": st.sampled_from(["processed", "raw"]) | garbage,
        "agentlightning.sampling.effective": st.just("{}") | garbage,
        "agentlightning.policy_version": st.just('[[{"version": "1", "start": 0, "end": 1}]]') | garbage,
        "agentlightning.untrainable": garbage,
        "agentlightning.reward.0.name": some_text | garbage,
        "agentlightning.reward.0.value": st.floats() | garbage,
        "agentlightning.reward": garbage,
        "agentlightning.link.0.key_match": st.sampled_from(["span_id", "gen_ai.response.id", "choice_index"])
        | garbage,
        "agentlightning.link.0.value_match": some_text | garbage,
        "agentlightning.operation.name": st.sampled_from(["agentlightning.reward"]) | garbage,
        "agentops.task.output": st.just('{"type": "reward", "value": 1}') | garbage,
        "gen_ai.operation.name": st.just("chat") | garbage,
        "gen_ai.response.id": some_text | garbage,
        "gen_ai.input.messages": st.sampled_from(
            ['[{"role": "user", "parts": []}]', '[{"agentlightning.message": "no message"}]']
        )
        | garbage,
        "gen_ai.output.messages": st.just('[{"role": "assistant", "parts": []}]') | garbage,
        "gen_ai.prompt.0.content": garbage,
        "gen_ai.prompt": garbage,
        "gen_ai.request": garbage,
        "gen_ai.completion.0.role": garbage,
        "prompt_token_ids": ids | garbage,
        "response_token_ids": ids | garbage,
        "logprobs.content": garbage,
        "agent.name": some_text | garbage,
        "tool.name": garbage,
        "tool": garbage,
    },
)
times = st.none() | st.floats(0, 10) | st.sampled_from([float("nan"), float("inf")])
span_ids = st.sampled_from(["a", "b", "c", "d", "e", "root", "virtual-root"])


@st.composite
def any_span(draw: st.DrawFn) -> Span:
    return Span.model_construct(
        rollout_id="ro-1",
        attempt_id=draw(st.sampled_from(["at-1", "at-1", "at-2"])),
        sequence_id=draw(st.integers(0, 3)),
        trace_id="t",
        span_id=draw(span_ids),
        parent_id=draw(st.none() | span_ids | st.just("ghost")),
        name=draw(
            st.sampled_from(
                [
                    "chat m",
                    "openai.chat.completion",
                    "agentlightning.annotation",
                    "agentlightning.operation",
                    "",
                ]
            )
        ),
        status=TraceStatus(status_code="UNSET"),
        attributes={
            **draw(st.dictionaries(st.text(max_size=3), garbage, max_size=2)),
            **draw(known_attributes),
        },
        start_time=draw(times),
        end_time=draw(times),
    )


traces = st.lists(any_span(), max_size=6)
few = settings(max_examples=25)  # the strategies are slow; a run in random order draws others each time
adapters = st.builds(
    TracerTraceToTriplet,
    repair_hierarchy=st.booleans(),
    agent_match=st.none() | st.just("a"),
    exclude_llm_call_in_reward=st.booleans(),
    reward_match=st.sampled_from(RewardMatchPolicy),
    _skip_empty_token_spans=st.booleans(),
    require_logprobs=st.booleans(),
)


@few
@given(traces, adapters)
def test_no_trace_makes_the_triplet_adapter_raise_or_change_it(
    spans: list[Span], adapter: TracerTraceToTriplet
) -> None:
    before = copy.deepcopy(spans)

    first = adapter.adapt(spans)
    explanation = adapter.explain(spans)

    assert repr(spans) == repr(before)
    assert repr(adapter.adapt(spans)) == repr(first)
    assert explanation.rows == len(first) == sum(call.rows for call in explanation.calls)
    assert all((call.code is None) == (call.rows > 0) for call in explanation.calls)
    for row in first:
        triplet_of_row(triplet_row(row))
        if row.response["logprobs"] is not None:
            assert len(row.response["logprobs"]) == len(row.response["token_ids"])


@few
@given(traces, adapters, st.randoms(use_true_random=False))
def test_rows_do_not_depend_on_the_order_of_the_spans(
    spans: list[Span], adapter: TracerTraceToTriplet, chance: random.Random
) -> None:
    unique = list({(span.attempt_id, span.span_id): span for span in spans}.values())
    for index, span in enumerate(unique):
        span.sequence_id = index + 1  # two spans that agree in everything have no order
    shuffled = unique[:]
    chance.shuffle(shuffled)

    assert sorted(map(repr, adapter.adapt(shuffled))) == sorted(map(repr, adapter.adapt(unique)))


policies = st.builds(
    RowPolicy,
    repair_hierarchy=st.booleans(),
    agent_match=st.none() | st.just("a"),
    roles=st.none() | st.just(frozenset({"agent"})),
    step_rewards=st.none() | st.sampled_from(RewardMatchPolicy),
    require_logprobs=st.booleans(),
    min_version=st.none() | st.just(1),
    max_tokens=st.none() | st.integers(1, 4),
    reward_weights=st.none() | st.just({"a": 0.5}),
)


@few
@given(traces, policies)
def test_no_trace_makes_build_rows_raise_or_change_it(spans: list[Span], policy: RowPolicy) -> None:
    before = copy.deepcopy(spans)

    first = build_rows(spans, policy)

    assert repr(spans) == repr(before)
    assert repr(build_rows(spans, policy)) == repr(first)
    for row in first:
        assert len(row.token_ids) == len(row.loss_mask) == len(row.logprobs)
        assert row.versions is None or policy.min_version is None or row.versions[0] >= policy.min_version
        training_row(row)
    assert all((each.code is None) == (each.sentence == "") for each in first.decisions)


@few
@given(traces)
def test_no_trace_makes_the_message_adapter_raise_or_change_it(spans: list[Span]) -> None:
    before = repr(spans)

    found = TraceToMessages().adapt(spans)

    assert repr(spans) == before
    assert repr(TraceToMessages().adapt(spans)) == repr(found)


@few
@given(traces)
def test_any_spans_make_a_tree_that_holds_each_of_them_once(spans: list[Span]) -> None:
    if not spans:
        return
    tree = TraceTree.from_spans(spans)
    tree.repair_hierarchy()
    tree.names_tuple()
    tree.to_dot()

    real = [node.id for node in tree.traverse() if any(node.span is span for span in spans)]

    assert sorted(real) == sorted({span.span_id for span in spans})


@few
@given(traces)
def test_every_code_of_an_explanation_has_a_sentence(spans: list[Span]) -> None:
    explanation = explain(spans)

    verdicts: list[CallVerdict | RewardVerdict] = [*explanation.calls, *explanation.rewards]
    assert all((verdict.code is None) == (verdict.sentence == "") for verdict in verdicts)
    assert set(explanation.codes) <= set(ALL_CODES)


def test_what_is_no_span_is_left_out() -> None:
    strangers: Any = ["no span", None]

    assert TracerTraceToTriplet().adapt(strangers) == []
    assert TracerTraceToTriplet().adapt([]) == []


def test_opentelemetry_spans_are_adapted_too() -> None:
    attributes: dict[str, Any] = {
        "agentlightning.rollout_id": "ro-9",
        "agentlightning.attempt_id": "at-9",
        "prompt_token_ids": (1, 2),
        "response_token_ids": (3,),
        "gen_ai.response.id": "r",
    }
    span = ReadableSpan("openai.chat.completion", attributes=attributes, start_time=1, end_time=2)

    (row,) = TracerTraceToTriplet().adapt([span])

    assert (row.metadata["rollout_id"], row.metadata["attempt_id"]) == ("ro-9", "at-9")
    assert row.prompt["token_ids"] == [1, 2]


def test_an_agent_inside_of_a_call_does_not_take_that_call_in() -> None:
    def span(span_id: str, parent_id: str, start: float, end: float, **attributes: Any) -> Span:
        return Span.from_attributes(
            attributes=attributes,
            rollout_id="ro",
            attempt_id="at",
            span_id=span_id,
            parent_id=parent_id,
            name="chat",
            start_time=start,
            end_time=end,
        )

    call = {"agentlightning.token_capture": "none(no_token_ids)"}
    circle = [
        span("01", "03", 0, 1, **{"gen_ai.agent.name": "a"}),
        span("03", "04", 0, 1, **call),
        span("04", "01", 0, 1, **call),
        span("05", "01", 2, 3, **call),
        span("02", "05", 1, 9, **{"gen_ai.agent.name": "b"}),
        span("06", "02", 4, 5, **call),
    ]

    assert {verdict.span_id for verdict in explain(circle).calls} == {"03", "04", "05", "06"}
