"""Rows are of one model, the policy: it is chosen, or the rollout's resources name it, or it is the only one."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
from conversations import FROZEN, NAMED, POLICY, ROOT_ID, Ids, Story, call, stories, work
from hypothesis import given, settings
from hypothesis import strategies as st

from agentlightning.adapter import TracerTraceToTriplet
from agentlightning.rows import RowPolicy, RowSet, build_rows, explain
from agentlightning.rows.rewards import reward_target
from agentlightning.types import LLM, PromptTemplate, Span

ROOT = work(ROOT_ID, None, 0.0, 1000.0)


def to(model: str | None, span: Span, *, asked: str | None = None, **attributes: Any) -> Span:
    """The same call, made to another model; ``asked`` is the name in the request."""
    named = {"gen_ai.response.model": model, "gen_ai.request.model": asked or model, **attributes}
    kept = {name: value for name, value in {**span.attributes, **named}.items() if value is not None}
    return span.model_copy(update={"attributes": kept})


def llm(model: str) -> LLM:
    return LLM(endpoint="http://127.0.0.1:8000/v1", model=model)


ASKED = call(1, (1,), (2,))
USER = to("frozen", call(2, (1, 2, 3), (4,)))
AGAIN = call(3, (1, 2, 3, 4, 5), (6,))
TALK = [ROOT, ASKED, USER, AGAIN]


def said(rows: RowSet) -> list[tuple[Ids, Ids]]:
    return [(row.token_ids, row.loss_mask) for row in rows]


def test_of_several_models_and_no_choice_none_is_trained_and_they_are_named() -> None:
    rows = build_rows(TALK)

    assert (len(rows), rows.counts) == (0, {"several_models": 3})
    (reason,) = rows.reasons
    assert (reason.code, reason.sentence.endswith("(frozen, policy)")) == ("several_models", True)
    assert "RowPolicy(model=" in reason.cure


@pytest.mark.parametrize(
    "chosen", ["policy", ["policy"], {"policy", "policy-v2"}], ids=["one", "a list", "names of it"]
)
def test_the_model_that_is_chosen_is_trained_and_the_others_are_context(chosen: Any) -> None:
    rows = build_rows(TALK, RowPolicy(model=chosen))

    assert said(rows) == [((1, 2, 3, 4, 5, 6), (0, 1, 0, 0, 0, 1))]
    assert [(each.code, each.detail) for each in rows.decisions] == [
        (None, ""),
        ("other_model", "frozen"),
        (None, ""),
    ]


@pytest.mark.parametrize("named", ["policy", "hosted_vllm/policy"])
def test_the_rollouts_resources_name_the_policy(named: str) -> None:
    prompt = PromptTemplate(template="{x}", engine="f-string")

    assert len(build_rows(TALK, resources={"main": llm(named), "prompt": prompt})) == 1
    assert build_rows(TALK, resources={"prompt": prompt}).counts == {"several_models": 3}
    assert said(build_rows([ROOT, ASKED], resources={"main": llm("another")})) == []
    assert len(build_rows(TALK, RowPolicy(model="frozen"), resources={"main": llm(named)})) == 1
    both = {"main": llm(named), "user": llm("frozen")}
    assert build_rows(TALK, resources=both).counts == {"several_models": 3}
    assert len(build_rows([ROOT, ASKED], resources=both)) == 1


def test_a_router_that_answers_with_several_models_is_not_one_model() -> None:
    routed = [to("small", ASKED, asked="auto"), to("large", AGAIN, asked="auto")]

    assert build_rows([ROOT, *routed]).counts == {"several_models": 2}
    # The user says that it is.
    assert build_rows([ROOT, *routed], RowPolicy(model="auto")).trained_tokens == 2


def test_calls_that_nobody_wants_to_train_are_of_no_model() -> None:
    judge = to("frozen", USER, **{"agentlightning.role": "judge"})
    hosted = to("gpt", call(4, (9,), (9,)), **{"agentlightning.token_capture": "none(no_token_ids)"})

    assert len(build_rows([ROOT, ASKED, judge, AGAIN, hosted])) == 1


def test_a_model_whose_tokens_cannot_be_trusted_may_be_the_policy_all_the_same() -> None:
    broken = to("frozen", call(2, (7,), (4,), flaw="prompt_length"))

    assert build_rows([ROOT, ASKED, broken]).counts == {"several_models": 1, "prompt_length": 1}


def test_a_reward_for_a_call_of_another_model_has_its_target_and_one_by_time_is_not_for_it() -> None:
    given_ = {"agentlightning.reward.0.name": "primary", "agentlightning.reward.0.value": 1.0}
    linked = {**given_, **reward_target(span_id=USER.span_id)}
    reward = work("d" * 16, ROOT_ID, 2.9, None, linked, "agentlightning.annotation")

    assert build_rows([*TALK, reward], RowPolicy(model="policy")).unknown_rewards == ()
    by_time = reward.model_copy(update={"attributes": given_})
    triplets = TracerTraceToTriplet(model="policy").adapt([*TALK, by_time])
    assert [(each.response["token_ids"], each.reward) for each in triplets] == [([2], 1.0), ([6], None)]


def test_triplets_are_of_all_models_unless_one_is_chosen_and_explain_says_which_was_left_out() -> None:
    assert len(TracerTraceToTriplet().adapt(TALK)) == 3  # as 0.3 has it
    adapter = TracerTraceToTriplet(model="nobody")
    assert adapter.adapt(TALK) == []
    explanation = adapter.explain(TALK)
    assert (explanation.codes[0], explanation.skipped) == ("no_selected_calls", {"other_model": 3})
    assert explain(TALK).rows == 3


def test_a_model_without_a_name_is_refused_as_a_choice() -> None:
    nothing: list[Any] = ["", []]
    for empty in nothing:
        with pytest.raises(ValueError, match="model is empty"):
            RowPolicy(model=empty)


@settings(max_examples=60)
@given(stories)
def test_who_names_no_policy_gets_rows_of_the_only_model_or_none(story: Story) -> None:
    rows = build_rows(story.spans)
    models = story.models()

    if len(models) > 1:
        assert (len(rows), {each.code for each in rows.decisions} & {None}) == (0, set())
        for decision in rows.decisions:
            if decision.code == "several_models":
                assert decision.detail == f"{FROZEN}, {POLICY}"
    else:
        assert said(rows) == said(build_rows(story.spans, RowPolicy(model=list(models) or "nobody")))
    named = {"main": llm(POLICY)}
    assert said(build_rows(story.spans, resources=named)) == said(build_rows(story.spans, NAMED))


@settings(max_examples=60)
@given(stories, st.randoms(use_true_random=False))
def test_rows_of_one_model_are_those_of_the_conversations_in_which_the_others_are_context(
    story: Story, chance: random.Random
) -> None:
    calls = sorted({answer.span_id for answer in story.answers})
    frozen = set(chance.sample(calls, chance.randint(0, len(calls))))
    spans = [to(FROZEN, span) if span.span_id in frozen else span for span in story.spans]
    story.answers = [
        replace(each, model=FROZEN) if each.span_id in frozen else each for each in story.answers
    ]

    rows = build_rows(spans, NAMED)

    assert said(rows) == [(row.token_ids, row.loss_mask) for row in story.rows()]
