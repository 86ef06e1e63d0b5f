"""Several answers to one prompt: which of them is the agent's answer, and what is said where nobody can tell."""

from __future__ import annotations

from typing import Any

import pytest
from conversations import ROOT_ID, Ids, call, work

from agentlightning.rows import RowPolicy, RowSet, build_rows
from agentlightning.rows.rewards import reward_target
from agentlightning.types import Span

ROOT = work(ROOT_ID, None, 0.0, 1000.0)
OUTCOME = {"agentlightning.reward.0.name": "primary", "agentlightning.reward.0.value": 1.0}


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def answer(ids: Ids) -> dict[str, Any]:
    return {"role": "assistant", "content": " ".join(map(str, ids))}


def reward_for(span: Span, value: float = 1.0) -> Span:
    given = {**OUTCOME, "agentlightning.reward.0.value": value, **reward_target(span_id=span.span_id)}
    return work("d" * 16, ROOT_ID, 90.0, None, given, "agentlightning.annotation")


def trained(*spans: Span, **options: Any) -> tuple[list[Ids], dict[str, int]]:
    rows = build_rows([ROOT, *spans], RowPolicy(**options))
    return [row.token_ids for row in rows], rows.counts


@pytest.mark.parametrize("finish", ["abort", "error", "length"])
def test_the_answer_that_was_asked_for_after_an_unfinished_one_stands_in_its_place(finish: str) -> None:
    half, again = call(1, (1,), (2, 3), finish=finish), call(2, (1,), (4,))

    assert trained(half, again) == ([(1, 4)], {"asked_again": 1})
    alone = ([(1, 2, 3)], {}) if finish == "length" else ([], {"broken_off": 1})
    assert trained(half) == alone
    assert trained(half, again, abandoned="train") == ([(1, 2, 3), (1, 4)], {})


def test_a_half_answer_that_the_agent_goes_on_with_is_its_answer() -> None:
    half, again = call(1, (1,), (2,), finish="abort"), call(2, (1,), (3,))
    resumed = call(3, (1, 2), (5,))

    assert trained(half, again, resumed) == ([(1, 2, 5)], {"abandoned": 1})


@pytest.mark.parametrize("finish", ["abort", "error"])
def test_an_answer_that_was_broken_off_counts_only_where_it_shows_that_the_agent_went_on_with_it(
    finish: str,
) -> None:
    half = call(1, (1,), (2, 3), finish=finish, asked=[user("?")])
    by_tokens = call(2, (1, 2, 3, 8), (4,))
    by_text = call(2, (1, 23, 8), (4,), asked=[user("?"), answer((2, 3)), user("go on")])
    otherwise = call(2, (1, 20, 8), (4,), asked=[user("?"), answer((2,)), user("go on")])

    assert trained(half, by_tokens) == ([(1, 2, 3, 8, 4)], {})
    assert trained(half, by_text) == ([(1, 2, 3), (1, 23, 8, 4)], {})
    assert trained(half, otherwise) == ([(1, 20, 8, 4)], {"broken_off": 1})
    assert trained(half, reward_for(half)) == ([(1, 2, 3)], {})
    assert trained(half, otherwise, abandoned="train") == ([(1, 2, 3), (1, 20, 8, 4)], {})
    (reason,) = build_rows([ROOT, half]).reasons
    assert (reason.code, "ask again after an abort" in reason.cure) == ("broken_off", True)


def test_an_answer_that_the_agent_left_is_its_answer_where_it_went_on_with_these_tokens() -> None:
    left = call(1, (1,), (2, 3), left="unknown", asked=[user("?")])
    on = call(2, (1, 2, 3, 8), (4,))

    assert trained(left, on) == ([(1, 2, 3, 8, 4)], {})
    assert trained(left) == ([], {"left_by_agent": 1})
    shorter = call(2, (1, 2, 8), (4,))  # the agent's own stop stands inside of what had come
    assert trained(left, shorter) == ([(1, 2, 8, 4)], {"left_by_agent": 1})
    judge = call(2, (1, 2, 3, 8), (4,))
    judge.attributes.update(JUDGED["role"])
    assert trained(left, judge) == ([], {"left_by_agent": 1, "other_role": 1})


def test_an_answer_that_the_agent_left_is_its_answer_where_it_says_all_that_its_tokens_say() -> None:
    def found(tokens: str, said: Ids) -> tuple[list[Ids], dict[str, int]]:
        left = call(1, (1,), (2, 3), left=tokens, asked=[user("?")])
        return trained(left, call(2, (1, 23, 8), (4,), asked=[user("?"), answer(said), user("go on")]))

    assert found("whole", (2, 3)) == ([(1, 2, 3), (1, 23, 8, 4)], {})
    for tokens, said in (
        ("whole", (2,)),  # the agent shortened it
        ("unknown", (2, 3)),  # nothing says which text the tokens stand for
    ):
        assert found(tokens, said) == ([(1, 23, 8, 4)], {"left_by_agent": 1})


def test_a_reward_for_an_answer_that_the_agent_left_counts_where_its_tokens_say_all_of_it() -> None:
    whole, unknown = (call(1, (1,), (2, 3), left=tokens) for tokens in ("whole", "unknown"))

    assert trained(whole, reward_for(whole)) == ([(1, 2, 3)], {})
    assert trained(unknown, reward_for(unknown)) == ([], {"left_by_agent": 1})


def test_of_an_answer_that_the_agent_left_and_one_that_it_asked_for_again_it_is_the_one_it_went_on_with() -> (
    None
):
    left, again = call(1, (1,), (2, 3), left="unknown"), call(2, (1,), (2, 3, 4))

    assert trained(left, again, call(3, (1, 2, 3, 4, 8), (5,))) == (
        [(1, 2, 3, 4, 8, 5)],
        {"left_by_agent": 1},
    )
    assert trained(left, again, call(3, (1, 2, 3, 8), (5,))) == ([(1, 2, 3, 8, 5)], {"abandoned": 1})


def test_log_probabilities_of_an_answer_that_the_agent_left_are_given_with_its_tokens() -> None:
    (row,) = build_rows([ROOT, call(1, (1,), (2, 3), left="unknown"), call(2, (1, 2, 3, 8), (4,))])

    assert row.unproven == ()
    assert None not in row.logprobs


JUDGED = {"role": {"agentlightning.role": "judge"}, "reward": {}}


@pytest.mark.parametrize("by", ["tokens", "text"])
@pytest.mark.parametrize("judged", JUDGED)
def test_a_judge_who_is_shown_a_half_answer_does_not_make_it_the_agents(judged: str, by: str) -> None:
    half = call(1, (1,), (2, 3), finish="length", asked=[user("?")])
    shown = (1, 2, 3, 8) if by == "tokens" else (9,)
    judge = call(2, shown, (5,), asked=[user("?"), answer((2, 3)), user("how good is it?")])
    again = call(3, (1,), (4,), asked=[user("?")])
    judge.attributes.update(JUDGED[judged])
    if judged == "reward":
        judge.parent_id = "b" * 16
    operation = {"agentlightning.operation.name": "agentlightning.reward"}
    rating = work("b" * 16, ROOT_ID, 1.5, 5.0, operation, "agentlightning.operation")

    rows = build_rows([ROOT, half, judge, again, rating])

    assert [row.token_ids for row in rows] == [(1, 4)]
    assert {each.span_id: each.code for each in rows.decisions}[half.span_id] == "asked_again"


def test_an_answer_whose_text_a_later_request_repeats_is_the_agents() -> None:
    half = call(1, (1,), (2, 3), finish="length", asked=[user("?")])
    again = call(2, (1,), (4,), finish="length", asked=[user("?")])
    said_otherwise = call(3, (1, 40, 5), (6,), asked=[user("?"), answer((4,)), user("go on")])

    assert trained(half, again) == ([], {"retry_undecided": 2})
    assert trained(half, again, said_otherwise) == ([(1, 4), (1, 40, 5, 6)], {"abandoned": 1})


def test_where_nothing_tells_which_answer_counts_none_is_trained_and_the_reason_names_the_cure() -> None:
    spans = [ROOT, call(1, (1,), (2, 3), finish="length"), call(2, (1,), (4,), finish="length")]

    rows: RowSet = build_rows(spans)

    assert (len(rows), [each.code for each in rows.reasons]) == (0, ["retry_undecided"])
    assert "reward_target(response_id=" in rows.reasons[0].cure
    assert [each.detail for each in rows.decisions] == ["length", "length"]
    (row,) = build_rows([*spans, reward_for(spans[2])])
    assert row.token_ids == (1, 4)


def test_an_answer_that_only_undecided_answers_go_on_from_is_trained_itself() -> None:
    first = call(1, (1,), (2,))
    again = [call(number, (1, 2, 3), (number,), finish="abort") for number in (4, 5)]

    assert trained(first, *again) == ([(1, 2)], {"retry_undecided": 2})


def test_answers_that_were_asked_for_side_by_side_are_all_kept_whether_or_not_one_is_cut() -> None:
    cut = call(1, (1,), (2, 3), finish="length", end_time=9.0)
    whole = call(2, (1,), (4,), sequence_id=0)

    assert trained(cut, whole) == ([(1, 2, 3), (1, 4)], {})


def test_of_choices_of_one_call_none_was_asked_again() -> None:
    assert trained(call(1, (1,), (2,), (3,), finish="length")) == ([(1, 2), (1, 3)], {})


def test_a_clock_that_is_set_back_between_an_answer_and_its_retry_changes_nothing() -> None:
    half = call(1, (1,), (2, 3), start=100.0, finish="length")
    again = call(2, (1,), (4,), start=50.0)

    assert trained(half, again) == ([(1, 4)], {"asked_again": 1})


def test_where_clock_and_order_contradict_each_other_nobody_was_asked_first() -> None:
    half = call(1, (1,), (2, 3), start=100.0, end_time=110.0, finish="length")
    again = call(2, (1,), (4,), start=105.0, end_time=107.0)

    assert trained(half, again) == ([], {"retry_undecided": 2})


def test_a_half_answer_that_another_run_of_the_agent_asked_for_again_is_not_trained() -> None:
    agents = [
        work("a" * 16, ROOT_ID, 0.5, 1.9, {"gen_ai.agent.name": "solver"}),
        work("b" * 16, ROOT_ID, 1.95, 9.0, {"gen_ai.agent.name": "solver"}),
    ]
    half = call(1, (1,), (2, 3), finish="error", agent="a" * 16)
    again = call(2, (1,), (4,), agent="b" * 16)

    assert trained(*agents, half, again) == ([(1, 4)], {"asked_again": 1})


def test_a_branch_that_ended_by_itself_and_has_a_reward_of_its_own_is_trained() -> None:
    ended, other = call(1, (1,), (2,)), call(2, (1,), (3,))
    on = call(3, (1, 3, 4), (5,))

    assert trained(ended, other, on) == ([(1, 3, 4, 5)], {"abandoned": 1})
    rows = build_rows([ROOT, ended, other, on, reward_for(ended, 0.25)])
    assert sorted(row.token_ids for row in rows) == [(1, 2), (1, 3, 4, 5)]
    (own,) = (row for row in rows if row.token_ids == (1, 2))
    assert [step.value for step in own.segments[0].rewards] == [0.25]
