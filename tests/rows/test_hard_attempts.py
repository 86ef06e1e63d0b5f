"""Attempts that nobody would make on purpose: rows or a reason, never an exception, no token trained twice."""

from __future__ import annotations

import json
import math
import random
from typing import Any

import pytest
from conversations import ROOT_ID, Ids, Story, call, lookalikes, rows_of, stories, work
from hypothesis import given, settings
from hypothesis import strategies as st

from agentlightning.dialects.spans import messages
from agentlightning.rows import ALL_CODES, RowPolicy, RowSet, build_rows
from agentlightning.rows.continuity import Prefix, continuity
from agentlightning.rows.flat import training_row
from agentlightning.types import Span

some = settings(max_examples=40)
ROOT = work(ROOT_ID, None, 0.0, 1000.0)

POLICIES = st.builds(
    RowPolicy,
    agent_match=st.none() | st.just("agent-0000000[12]"),
    roles=st.none() | st.just({"agent"}) | st.just({"judge"}),
    trains=st.none() | st.just(lambda each: len(each.span.span_id) % 2 == 0),
    abandoned=st.sampled_from(["skip", "train"]),
    require_logprobs=st.booleans(),
    min_version=st.none() | st.integers(0, 3),
    max_tokens=st.none() | st.integers(1, 12),
    max_prompt_tokens=st.none() | st.integers(1, 12),
    over_long=st.sampled_from(["cut", "drop"]),
    exclude_llm_call_in_reward=st.booleans(),
    repair_hierarchy=st.booleans(),
)


def checked(rows: RowSet) -> RowSet:
    """Check what holds of any rows, whatever they were made of."""
    trained: list[tuple[str, str, int]] = []
    for row in rows:
        assert len(row.token_ids) == len(row.loss_mask) == len(row.logprobs)
        assert set(row.loss_mask) <= {0, 1}
        assert row.loss_mask[-1] == 1
        assert row.span_of(0) is None
        at = row.prompt_length
        for segment in row.segments:
            assert at <= segment.start < segment.end <= len(row)
            at = segment.end
            output = segment.choice.token_ids or ()
            assert row.token_ids[segment.start : segment.end] == output[: segment.end - segment.start]
            given = None if segment.unproven else segment.choice.logprobs
            said = given or (None,) * len(output)
            expected = said[: segment.end - segment.start] if segment.trained else (0.0,) * len(output)
            assert row.logprobs[segment.start : segment.end] == expected[: segment.end - segment.start]
            assert set(row.loss_mask[segment.start : segment.end]) == {int(segment.trained)}
            if segment.trained:
                trained.append((row.attempt_id, segment.span_id, segment.choice.index))
        inside = sum(each.end - each.start for each in row.segments if each.trained)
        assert inside == row.trained_tokens
        for logprob in row.logprobs:
            assert logprob is None or (math.isfinite(logprob) and logprob <= 0.0)
        assert row.versions is None or row.versions[0] <= row.versions[1]
        json.dumps(training_row(row))
    assert len(trained) == len(set(trained))
    assert sum(each.use.value == "train" for each in rows.decisions) == len(trained)
    assert all((each.code is None) == (each.use.value == "train") for each in rows.decisions)
    assert all(each.code is None or each.sentence for each in rows.decisions)
    return rows


@settings(max_examples=60)
@given(stories | lookalikes, POLICIES)
def test_whatever_the_policy_a_token_is_trained_once_or_left_out_for_a_reason(
    story: Story, policy: RowPolicy
) -> None:
    rows = checked(build_rows(story.spans, policy))

    assert set(rows.counts) <= set(ALL_CODES)
    usable = {answer.key for answer in story.answers if answer.usable}
    assert {(each.span_id, each.choice) for each in rows.decisions if each.choice is not None} == usable


BROKEN: list[tuple[str, Any]] = [
    ("agentlightning.prompt_token_ids", [1, "2"]),
    ("agentlightning.prompt_token_ids", "12"),
    ("agentlightning.prompt_token_ids", 7),
    ("agentlightning.prompt_token_ids", [True, 1]),
    ("agentlightning.prompt_token_ids", [2**40]),
    ("agentlightning.prompt_token_ids", []),
    ("agentlightning.choice.0.token_ids", [-1, 2]),
    ("agentlightning.choice.0.token_ids", {"0": 3}),
    ("agentlightning.choice.0.token_ids", [3.0, 4.0]),
    ("agentlightning.choice.0.logprobs", [-0.5]),
    ("agentlightning.choice.0.logprobs", [-0.5, 0.5]),
    ("agentlightning.choice.0.logprobs", [-0.5, math.nan]),
    ("agentlightning.choice.0.logprobs", [-0.5, -math.inf]),
    ("agentlightning.choice.0.logprobs", [-0.5, -9999.0]),
    ("agentlightning.choice.0.logprobs", ["-0.5", None]),
    ("agentlightning.token_capture", "valid(?"),
    ("agentlightning.token_capture", None),
    ("agentlightning.sampling.effective", "[]"),
    ("agentlightning.sampling.effective", '{"temperature": "hot"}'),
    ("agentlightning.policy_version", '[[{"version": "1", "start": "x", "end": null}]]'),
    ("agentlightning.policy_version", "[5]"),
    ("agentlightning.role", 7),
    ("agentlightning.untrainable", {"why": "not"}),
    ("gen_ai.response.id", ["list"]),
    ("gen_ai.input.messages", "[{}, 5, null]"),
    ("gen_ai.input.messages", [{"role": ["user"], "content": {"a": [1]}, "tool_calls": 5}]),
    ("gen_ai.output.messages", '[{"role": "assistant", "index": [1]}]'),
    ("gen_ai.output.messages", '[{"role": "assistant"}, {"role": "assistant", "index": 0}]'),
    ("gen_ai.output.messages", '[{"role": "assistant", "index": true}]'),
]


@pytest.mark.parametrize(("name", "value"), BROKEN, ids=str)
def test_a_broken_attribute_costs_its_own_call_alone(name: str, value: Any) -> None:
    spans = [ROOT, call(1, (1,), (2, 3)), call(2, (1, 2, 3, 4), (5, 6)), call(3, (1, 2, 3, 4, 5, 6, 7), (8,))]
    spans[2].attributes[name] = value

    rows = checked(build_rows(spans))

    (row,) = rows
    assert row.token_ids == (1, 2, 3, 4, 5, 6, 7, 8)
    assert [row.loss_mask[at] for at in (1, 2, 7)] == [1, 1, 1]


@some
@given(stories, st.lists(st.sampled_from(BROKEN), min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_broken_attributes_anywhere_cost_no_exception_and_no_token_twice(
    story: Story, broken: list[tuple[str, Any]], chance: random.Random
) -> None:
    for name, value in broken:
        chance.choice(story.spans).attributes[name] = value

    checked(rows_of(story))


CALLED: Any = [5, "x", {"a": 1}, [None], [{"function": 7}], [{"function": {"name": None, "arguments": [1]}}]]


@pytest.mark.parametrize("written", CALLED, ids=str)
def test_tool_calls_that_are_none_are_compared_all_the_same(written: Any) -> None:
    spans = [ROOT, call(1, (1, 2), (3, 4)), call(2, (1, 2, 3, 9), (5,))]
    odd = {"role": "assistant", "content": "x", "tool_calls": written}
    for span in spans[1:]:
        span.attributes["gen_ai.input.messages"] = json.dumps([messages.to_genai(odd)])

    assert len(checked(build_rows(spans))) == 2


TIMES: list[tuple[Any, Any]] = [
    (None, None),
    (math.nan, math.nan),
    (math.inf, -math.inf),
    (5.0, 1.0),
    (-1e300, 1e300),
    (1.0, 1.0),
]


@pytest.mark.parametrize("times", TIMES, ids=str)
def test_times_that_are_wrong_change_no_row(times: tuple[Any, Any]) -> None:
    spans = [call(1, (1,), (2,)), call(2, (1, 2, 3), (4,)), call(3, (1, 2, 3, 4, 5), (6,))]
    late = {"start_time": times[0], "end_time": times[1]}

    for wrong in range(3):
        given_ = [span.model_copy(update=late) if at == wrong else span for at, span in enumerate(spans)]
        (row,) = checked(build_rows([ROOT, *given_]))
        assert (row.token_ids, row.trained_tokens) == ((1, 2, 3, 4, 5, 6), 3)
    (row,) = checked(build_rows([span.model_copy(update=late) for span in spans]))
    assert (row.token_ids, row.trained_tokens) == ((1, 2, 3, 4, 5, 6), 3)


def test_a_circle_of_parents_and_parents_that_are_missing_lose_no_call() -> None:
    spans = [call(1, (1,), (2,)), call(2, (1, 2, 3), (4,)), call(3, (9,), (8,))]
    circle = [
        spans[0].model_copy(update={"parent_id": spans[1].span_id}),
        spans[1].model_copy(update={"parent_id": spans[0].span_id}),
        spans[2].model_copy(update={"parent_id": "c" * 16}),
    ]

    rows = checked(build_rows(circle))

    assert sorted(row.token_ids for row in rows) == [(1, 2, 3, 4), (9, 8)]


def test_a_call_inside_of_a_call_is_a_call_of_its_own() -> None:
    outer, inner = call(1, (1,), (2,)), call(2, (5,), (6,))
    inner = inner.model_copy(update={"parent_id": outer.span_id})

    assert [row.token_ids for row in checked(build_rows([ROOT, outer, inner]))] == [(1, 2), (5, 6)]


def test_a_span_that_came_twice_is_one_call() -> None:
    spans = [ROOT, call(1, (1,), (2,)), call(2, (1, 2, 3), (4,))]

    assert len(checked(build_rows([*spans, *spans]))) == 1


def test_several_answers_that_are_the_same_are_continued_by_the_one_that_ended_before() -> None:
    first, twin, child = call(1, (1,), (2,)), call(2, (1,), (2,)), call(3, (1, 2, 3), (4,), start=2.2)

    # The twin's answer came after the child's prompt.
    (row,) = checked(build_rows([ROOT, first, twin, child]))

    assert [segment.span_id for segment in row.segments] == [first.span_id, child.span_id]


ids = st.lists(st.integers(0, 1), max_size=10).map(tuple)


@given(ids, ids, ids)
def test_where_a_prompt_meets_the_old_one_again_is_found_as_by_looking_everywhere(
    prompt: Ids, response: Ids, following: Ids
) -> None:
    whole = prompt + response
    relation = continuity(prompt, response, following)

    rest, new = whole[relation.position :], following[relation.position :]
    met = any(rest[at:] == new[: len(rest) - at] for at in range(len(rest) - 3))
    cut = relation.kind in {Prefix.RESPONSE_CUT, Prefix.HISTORY_CUT}
    changed = relation.kind in {Prefix.RESPONSE_REWRITTEN, Prefix.PROMPT_CHANGED}
    if cut or changed:
        assert cut == met
        assert rest
        assert new
    assert whole[: relation.position] == following[: relation.position]


def test_a_prompt_of_one_token_over_and_over_is_compared_at_once() -> None:
    length = 50_000
    spans = [ROOT, call(1, (7,) + (0,) * length + (5,), (0,) * 9), call(2, (7,) + (0,) * (length - 9), (1,))]

    rows = checked(build_rows(spans))

    assert [len(row) for row in rows] == [length + 11, length - 7]


def test_nothing_gives_no_rows_and_says_so() -> None:
    assert (len(build_rows([])), [each.code for each in build_rows([]).reasons]) == (0, ["no_model_calls"])
    assert [each.code for each in build_rows([ROOT]).reasons] == ["no_model_calls"]
    strangers: Any = ["no span", None, 7]
    assert len(build_rows(strangers)) == 0


def test_a_row_tells_the_span_of_each_token_and_nothing_behind_its_end() -> None:
    (row,) = build_rows([ROOT, call(1, (1,), (2,)), call(2, (1, 2, 3), (4,))])

    assert [row.span_of(at) for at in range(4)] == [None, f"{1:016x}", None, f"{2:016x}"]
    for outside in (-1, 4):
        with pytest.raises(IndexError, match="of a row of 4 tokens"):
            row.span_of(outside)


def test_a_limit_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="max_tokens is a number of tokens of at least 1, not 0"):
        RowPolicy(max_tokens=0)
    with pytest.raises(ValueError, match="max_prompt_tokens is a number of tokens of at least 1, not -1"):
        RowPolicy(max_prompt_tokens=-1)


def deep(span: Span) -> Span:
    nested: Any = []
    for _ in range(40):
        nested = [nested]
    return span.model_copy(update={"attributes": {**span.attributes, "nested": nested}})


def test_what_a_span_holds_beside_is_of_no_consequence() -> None:
    spans = [ROOT, call(1, (1,), (2,)), call(2, (1, 2, 3), (4,))]

    assert [row.token_ids for row in build_rows(map(deep, spans))] == [(1, 2, 3, 4)]
