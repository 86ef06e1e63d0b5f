"""SkyRL's documented shape (property E3); ``test_skyrl_trainer.py`` gives it to SkyRL's own code."""

from __future__ import annotations

import math
from itertools import groupby, permutations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_rows import FORKED, LINEAR, rollout_of, rows_of, spans_of, two_groups
from test_verifiers import trees

from agentlightning.errors import NotExportable
from agentlightning.exporters.skyrl import to_generator_output
from agentlightning.rows import build_rows
from agentlightning.rows.rewards import reward_target
from agentlightning.semconv import AGL_ANNOTATION
from agentlightning.types import Span


@settings(deadline=None, max_examples=20)
@given(st.lists(trees(), min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_e3_trajectories_are_contiguous_and_only_their_last_step_is_flagged(turns: Any, random: Any) -> None:
    rows = [
        row
        for number, each in enumerate(turns)
        for row in rows_of(each, f"ro-{number}", 0.5, f"g{number % 2}")
    ]
    random.shuffle(rows)
    output = to_generator_output(rows)

    ids, last = output["trajectory_ids"], output["is_last_step"]
    assert ids is not None
    assert last is not None
    assert len({each for each, _ in groupby(ids)}) == len([each for each, _ in groupby(ids)]) == len(turns)
    ends = [place for place, each in enumerate(ids) if place + 1 == len(ids) or ids[place + 1] != each]
    assert [place for place, flagged in enumerate(last) if flagged] == ends
    counts: list[int] = [len(value) for value in output.values() if isinstance(value, list)]
    assert set(counts) == {len(rows)}


def test_e3_lists_over_a_response_have_its_length_and_rewards_are_floats() -> None:
    rows = two_groups()
    output = to_generator_output(rows)

    assert output["rollout_logprobs"] is not None
    for place, row in enumerate(rows):
        assert output["prompt_token_ids"][place] == list(row.prompt_ids)
        assert output["response_ids"][place] == list(row.completion_ids)
        assert output["loss_masks"][place] == list(row.loss_mask[row.prompt_length :])
        assert output["rollout_logprobs"][place] == list(row.logprobs[row.prompt_length :])
    assert output["rewards"] == [1.0, 0.0, 0.0, 0.25, 0.75, 0.75]
    assert {type(reward) for reward in output["rewards"]} == {float}
    assert output["stop_reasons"] == ["stop"] * 6
    ids = [each.to_string() for each in output["trajectory_ids"] or []]
    assert ids == ["g1_0", "g1_1", "g1_1", "g2_0", "g2_1", "g2_1"]


def for_the_call(number: int, value: float, **target: Any) -> Span:
    given: dict[str, Any] = {
        "agentlightning.reward.0.name": "primary",
        "agentlightning.reward.0.value": value,
        **reward_target(span_id=f"{number:016x}", **target),
    }
    fields: dict[str, Any] = {"rollout_id": "ro-1", "attempt_id": "at-ro-1", "trace_id": "f" * 32}
    return Span.from_attributes(
        attributes=given, name=AGL_ANNOTATION, start_time=50.0, end_time=50.0, **fields
    )


@pytest.mark.parametrize("outcome", [None, 1.0])
def test_rewards_of_steps_stand_at_the_last_token_of_their_answer_and_that_of_the_rollout_at_the_end(
    outcome: float | None,
) -> None:
    calls = spans_of(LINEAR, "ro-1", outcome)
    numbers_ = [int(span.span_id, 16) for span in calls if span.name == "chat policy"]
    steps = [for_the_call(numbers_[0], 0.5), for_the_call(numbers_[1], 0.25, choice=0, tokens=(0, 1))]
    rows = build_rows([*calls, *steps], rollout=rollout_of("ro-1", "g"))
    (row,) = rows
    (values,) = to_generator_output(rows, rewards="steps")["rewards"]

    expected = [0.0] * len(row.completion_ids)
    expected[row.segments[0].end - 1 - row.prompt_length] = 0.5
    expected[row.segments[1].start - row.prompt_length] = 0.25
    expected[-1] = outcome or 0.0
    assert values == expected


def test_a_reward_of_a_step_that_is_no_number_and_a_rollout_without_any_are_refused() -> None:
    calls = spans_of(LINEAR, "ro-1", None)
    number = int(next(span.span_id for span in calls if span.name == "chat policy"), 16)
    for rewards in ([], [for_the_call(number, math.nan)]):
        rows = build_rows([*calls, *rewards], rollout=rollout_of("ro-1", "g"))
        with pytest.raises(NotExportable, match=r"0\.0 would train it as a failure"):
            to_generator_output(rows, rewards="steps")


def test_the_reward_of_a_rollout_with_several_rows_stands_once() -> None:
    output = to_generator_output(two_groups(), rewards="steps")

    assert [sum(each) for each in output["rewards"] if isinstance(each, list)] == [
        1.0,
        0.0,
        0.0,
        0.25,
        0.0,
        0.75,
    ]


def test_the_order_in_which_rollouts_come_changes_no_trajectory() -> None:
    groups = [list(rows_of(LINEAR, "a", 1.0)), list(rows_of(FORKED, "b", 0.0))]
    for first, second in permutations(groups):
        output = to_generator_output([*first, *second])
        assert len(output["response_ids"]) == 3
        assert len(set(output["trajectory_ids"] or [])) == 2


def test_unscored_and_ungrouped_rows_are_refused() -> None:
    with pytest.raises(NotExportable, match="unscored"):
        to_generator_output(rows_of(LINEAR, reward=None))
    with pytest.raises(NotExportable, match="has no group"):
        to_generator_output(rows_of(LINEAR, group_id=None))


@settings(deadline=None, max_examples=20)
@given(st.lists(trees(), min_size=1, max_size=3))
def test_e5_sibling_rows_share_the_id_of_their_rollout(turns: Any) -> None:
    """slime divides the loss by the mask of a rollout: siblings are found by ``rollout_id``, as documented there."""
    rows = [row for number, each in enumerate(turns) for row in rows_of(each, f"ro-{number}", 0.5, "g")]

    trained = {f"ro-{number}": sum(len(answer) for _, answer in each) for number, each in enumerate(turns)}
    found = {name: sum(row.trained_tokens for row in rows if row.rollout_id == name) for name in trained}
    assert found == trained
    assert [row.index for row in rows] == [
        place for _, own in groupby(rows, lambda row: row.rollout_id) for place, _ in enumerate(own)
    ]


def test_a_choice_of_rewards_that_there_is_not_is_refused() -> None:
    with pytest.raises(ValueError, match="rewards is 'rollout' or 'steps', not 'step'"):
        to_generator_output(two_groups(), rewards="step")  # type: ignore[arg-type]
