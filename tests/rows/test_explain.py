from __future__ import annotations

import json
import math
import re
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from conversations import NAMED, Story, stories
from conversations import call as played
from hypothesis import given, settings
from hypothesis import strategies as st

from agentlightning.dialects.model_call import Choice, ModelCall, invalid, none
from agentlightning.dialects.spans.genai import call_attributes
from agentlightning.rows import ALL_CODES, Decision, RowPolicy, build_rows, explain, explain_rows
from agentlightning.rows.calls import Rules
from agentlightning.types import Receipt, Rollout, Span

CHOICE = Choice(content="ok", token_ids=(3, 4), logprobs=(-0.1, -0.2), token_capture="valid")
GOOD = ModelCall(
    request_model="policy",
    choices=(CHOICE,),
    prompt_token_ids=(1, 2),
    sampling_effective={"temperature": 1.0},
    sampling_defaults={},
    logprob_kind="processed",
    token_capture="valid",
)
HOSTED = replace(
    GOOD,
    prompt_token_ids=None,
    token_capture=none("no_token_ids"),
    choices=(replace(CHOICE, token_ids=None, logprobs=None),),
)


def span(span_id: str, start: float, name: str = "work", **attributes: Any) -> Span:
    return Span.from_attributes(
        attributes=attributes,
        rollout_id="ro-1",
        attempt_id="at-1",
        span_id=span_id,
        name=name,
        start_time=start,
        end_time=start + 0.1,
    )


def call(span_id: str, start: float, record: ModelCall, **attributes: Any) -> Span:
    return span(span_id, start, "chat", **call_attributes(replace(record, response_id=span_id)), **attributes)


def reward(start: float, value: float, **attributes: Any) -> Span:
    fields = {"agentlightning.reward.0.name": "primary", "agentlightning.reward.0.value": value}
    return span("r", start, "agentlightning.annotation", **fields, **attributes)


REWARD = reward(9.0, 1.0)
UNKNOWN = {"agentlightning.link.0.key_match": "span_id", "agentlightning.link.0.value_match": "?"}


@pytest.mark.parametrize(
    ("spans", "codes"),
    [
        ([], ("no_spans",)),
        ([span("a", 1.0), REWARD], ("no_model_calls",)),
        (
            [call("a", 1.0, ModelCall(token_capture=none("http_error"), http_status=500)), REWARD],
            ("calls_failed",),
        ),
        ([call("a", 1.0, HOSTED), REWARD], ("no_token_ids",)),
        (
            [call("a", 1.0, replace(GOOD, token_capture=invalid("prompt_length"))), REWARD],
            ("token_capture_invalid",),
        ),
        (
            [call("a", 1.0, replace(GOOD, sampling_effective={"temperature": 0})), REWARD],
            ("logprobs_unproven",),
        ),
        (
            [
                call("a", 1.0, replace(GOOD, sampling_effective={"guided_regex": "a"}, logprob_kind="raw")),
                REWARD,
            ],
            ("not_comparable",),
        ),
        (
            [call("a", 1.0, replace(GOOD, choices=(replace(CHOICE, logprobs=None),))), REWARD],
            ("no_logprobs",),
        ),
        ([call("a", 1.0, GOOD, **{"agentlightning.untrainable": "redacted"}), REWARD], ("untrainable",)),
        (
            [
                call("a", 1.0, HOSTED),
                call("b", 2.0, replace(GOOD, sampling_effective={"best_of": 5})),
                REWARD,
            ],
            ("no_trainable_calls",),
        ),
        ([call("a", 1.0, GOOD)], ("no_reward",)),
        ([call("a", 1.0, GOOD), reward(9.0, math.inf)], ("reward_unscored",)),
        ([call("a", 1.0, GOOD), reward(9.0, 1.0, **UNKNOWN)], ("reward_unmatched",)),
        ([call("a", 1.0, GOOD, **{"agentlightning.dropped_attributes": 3}), REWARD], ("attributes_dropped",)),
        ([call("a", 1.0, GOOD), REWARD], ()),
    ],
)
def test_each_way_to_fail_has_a_code_of_its_own(spans: list[Span], codes: tuple[str, ...]) -> None:
    assert explain(spans).codes == codes


def test_calls_that_agent_match_leaves_out_are_said_to_be_left_out() -> None:
    explanation = explain([call("a", 1.0, GOOD), REWARD], rules=Rules(agent_match=re.compile("planner")))

    assert explanation.codes == ("no_selected_calls",)
    assert explanation.skipped == {"other_agent": 1}


@pytest.mark.parametrize(
    ("receipt", "code"),
    [
        (Receipt(rollout_id="ro-1", attempt_id="at-1", truncated=True), "truncated"),
        (Receipt(rollout_id="ro-1", attempt_id="at-1", interrupted=True), "interrupted"),
        (Receipt(rollout_id="ro-1", attempt_id="at-1", dropped={"queue_full": 2}), "spans_dropped"),
        (Receipt(rollout_id="ro-1", attempt_id="at-1", open=1), "spans_open"),
    ],
)
def test_what_a_receipt_misses_is_said(receipt: Receipt, code: str) -> None:
    assert explain([call("a", 1.0, GOOD), REWARD], receipt=receipt).codes == (code,)


def test_a_failed_rollout_and_several_attempts_are_said() -> None:
    other = call("b", 2.0, GOOD)
    other.attempt_id = "at-2"
    rollout = Rollout(rollout_id="ro-1", input=None, start_time=0.0, status="failed")

    explanation = explain([call("a", 1.0, GOOD), REWARD, other], rollout=rollout)

    assert explanation.codes == ("several_attempts", "attempt_failed")
    assert explanation.rows == 2
    assert [each.attempt_id for each in explanation.calls] == ["at-1", "at-2"]


def test_every_call_and_reward_is_listed_with_what_became_of_it() -> None:
    following = replace(GOOD, prompt_token_ids=(1, 2, 3, 4, 5))
    cut = replace(GOOD, token_capture=invalid("partial"), partial=True)

    explanation = explain([call("a", 1.0, GOOD), call("b", 2.0, cut), call("c", 3.0, following), REWARD])

    assert explanation.rows == 2
    assert explanation.final_reward == 1.0
    assert [(each.span_id, each.rows, each.code, each.reward) for each in explanation.calls] == [
        ("a", 1, None, None),
        ("b", 0, "partial", None),
        ("c", 1, None, 1.0),
    ]
    first, second, third = explanation.calls
    assert second.sentence == "the answer was cut off before its end"
    assert (first.prompt_tokens, first.response_tokens) == (2, 2)
    assert third.prefix == {"kind": "extends", "position": 4, "expected": 4, "of": "a", "cause": None}
    (given,) = explanation.rewards
    assert (given.call, given.by, given.value, given.dimensions) == (
        "c",
        "first_occurrence",
        1.0,
        {"primary": 1.0},
    )
    assert explanation.skipped == {"partial": 1}


@settings(max_examples=60)
@given(stories, st.sampled_from([NAMED, RowPolicy(), RowPolicy(abandoned="train"), RowPolicy(max_tokens=9)]))
def test_explaining_rows_says_what_build_rows_decides(story: Story, policy: RowPolicy) -> None:
    rows = build_rows(story.spans, policy)
    explanation = explain_rows(story.spans, policy)

    assert explanation.rows == len(rows)
    decided: dict[str, list[Decision]] = {}
    for decision in rows.decisions:
        decided.setdefault(decision.span_id, []).append(decision)
    assert {each.span_id for each in explanation.calls} == decided.keys()
    for call in explanation.calls:
        codes = [each.code for each in decided[call.span_id]]
        trained = [each for each in decided[call.span_id] if each.code is None]
        assert (call.rows, call.response_tokens) == (len(trained), sum(each.tokens for each in trained))
        assert call.code == (None if trained else codes[0])
        assert call.left_out == (Counter(code for code in codes if code) if trained else {})
        assert call.sentence or call.code is None
    assert explanation.unproven.keys() == rows.unproven.keys()
    assert bool(set(explanation.codes) - {"no_reward", "step_rewards_only"}) == (not rows)
    json.dumps(explanation.as_json())


@pytest.mark.parametrize("finish", ["abort", "length"])
def test_an_answer_that_was_asked_again_is_said_to_be(finish: str) -> None:
    half, again = played(1, (1,), (2, 3), finish=finish), played(2, (1,), (4,))

    assert explain([half, again]).rows == 2  # one for each call, as in 0.3
    explanation = explain_rows([half, again, REWARD])
    assert (explanation.rows, explanation.codes, explanation.final_reward) == (1, (), 1.0)
    assert [(each.code, each.rows) for each in explanation.calls] == [("asked_again", 0), (None, 1)]
    undecided = explain_rows([half, played(2, (1,), (4,), finish=finish), REWARD])
    assert undecided.codes == ("retry_undecided",)
    (given_,) = explanation.rewards
    assert (given_.call, given_.by, given_.code) == (None, "outcome", None)


def test_several_models_are_named_and_a_seal_would_say_the_same_of_rewards() -> None:
    other = call("b", 2.0, replace(GOOD, request_model="frozen"))
    explanation = explain_rows([call("a", 1.0, GOOD), other])

    assert explanation.codes == ("several_models", "no_reward")
    assert explanation.reasons[0].sentence.endswith("(frozen, policy)")
    assert explain_rows([call("a", 1.0, GOOD), other], RowPolicy(model="policy")).codes == ("no_reward",)
    linked = {"agentlightning.link.0.key_match": "span_id", "agentlightning.link.0.value_match": "a"}
    assert explain_rows([call("a", 1.0, GOOD), reward(9.0, 1.0, **linked)]).codes == ("step_rewards_only",)
    assert explain_rows([call("a", 1.0, GOOD), reward(9.0, 1.0, **UNKNOWN)]).codes == (
        "reward_unknown_target",
        "no_reward",
    )


def test_an_explanation_is_json() -> None:
    explanation = explain([call("a", 1.0, HOSTED), REWARD])

    document = json.loads(json.dumps(explanation.as_json()))

    assert document["codes"] == ["no_token_ids"]
    assert document["calls"][0]["code"] == "no_token_ids"
    assert document["reasons"][0]["cure"].startswith("see the code of each call")


def test_every_code_has_a_sentence_and_says_what_to_do_or_that_nothing_can_be_done() -> None:
    assert all(each.sentence for each in ALL_CODES.values())
    assert all(code == each.code for code, each in ALL_CODES.items())
    assert [code for code, each in ALL_CODES.items() if not each.cure or each.cure.startswith("none")] == []
    nothing = {each.cure for each in ALL_CODES.values() if each.cure.startswith("nothing")}
    begins = ("nothing needs to be done", "nothing can be done for these calls; ")
    assert [cure for cure in nothing if not cure.startswith(begins)] == []


@pytest.mark.parametrize("code", ["no_response", "http_error"])
def test_a_call_that_nobody_answered_is_told_with_the_command_that_asks_its_endpoint(code: str) -> None:
    record = ModelCall(
        endpoint="http://127.0.0.1:8123/v1/chat/completions", request_model="policy", token_capture=none(code)
    )
    (verdict,) = explain([call("a", 1.0, record), REWARD]).calls
    assert verdict.code == code
    assert verdict.cure == "agl doctor --endpoint http://127.0.0.1:8123/v1 --model policy"
    assert "http://127.0.0.1:8123/v1" in verdict.sentence
