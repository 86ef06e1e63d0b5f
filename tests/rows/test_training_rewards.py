"""Rewards and advantages of rows: properties C1-C8."""

from __future__ import annotations

import json
import math
import random
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conversations import ROOT_ID, call, work
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from agentlightning.cli.columns import TRAINING_COLUMNS, training_rows
from agentlightning.cli.parquet import ParquetWriter
from agentlightning.codec.attributes import make_link_attributes
from agentlightning.codec.rows import decode_span, encode_span
from agentlightning.rows import RewardMatchPolicy, RowPolicy, RowSet, TrainingRow, build_rows
from agentlightning.rows.advantage import Formula, group_advantages, row_advantages
from agentlightning.rows.flat import training_row
from agentlightning.types import Rollout, Span

some = settings(max_examples=40)
ROOT = work(ROOT_ID, None, 0.0, 1000.0)
NOT_SCORED = [math.nan, math.inf, -math.inf, None]
finite = st.floats(allow_nan=False, allow_infinity=False)
scores = st.floats(-1e6, 1e6) | st.sampled_from([0.0, 1.0, 0.1])


def reward(number: int, given: Mapping[str, Any] | float | None, **links: str) -> Span:
    dimensions = given if isinstance(given, Mapping) else {"primary": given}
    attributes: dict[str, Any] = {}
    for index, (name, value) in enumerate(dimensions.items()):
        attributes[f"agentlightning.reward.{index}.name"] = name
        attributes[f"agentlightning.reward.{index}.value"] = value
    attributes |= make_link_attributes({key.replace("__", "."): value for key, value in links.items()})
    return work(
        f"{number:08x}{'d' * 8}", ROOT_ID, 100.0 + number, None, attributes, "agentlightning.annotation"
    )


def rows_of(*rewards: Span, **options: Any) -> RowSet:
    """Two conversations: two rows."""
    spans = [ROOT, call(1, (1,), (2, 3)), call(2, (5,), (6,)), *rewards]
    return build_rows(spans, RowPolicy(**options))


def rollout_of(name: str, group: str | None, reward_: float | None, ways: int) -> list[TrainingRow]:
    """The rows of a rollout that went ``ways`` ways."""
    spans = [ROOT, *(call(number, (number,), (9, number)) for number in range(1, ways + 1))]
    if reward_ is not None:
        spans.append(reward(1, reward_))
    own = [span.model_copy(update={"rollout_id": name, "attempt_id": f"{name}-a"}) for span in spans]
    metadata = None if group is None else {"group_id": group}
    rollout = Rollout(rollout_id=name, input="the same for all", start_time=0.0, metadata=metadata)
    rows = build_rows(own, rollout=rollout)
    assert len(rows) == ways
    return list(rows)


# ------------------------------------------------------------------ C1


@pytest.mark.parametrize("given", [*NOT_SCORED, "1.0", [1.0], 10**400], ids=repr)
def test_c1_a_reward_that_is_no_finite_number_is_unscored_and_never_zero(given: Any) -> None:
    assert [row.reward for row in rows_of(reward(1, given))] == [None, None]
    assert [row.reward for row in rows_of()] == [None, None]


@given(st.lists(scores | st.sampled_from(NOT_SCORED), max_size=6), st.sampled_from(Formula))
def test_c1_the_unscored_take_no_part_in_the_baseline_and_have_no_advantage(
    rewards: list[float | None], formula: Formula
) -> None:
    scored = [each for each in rewards if each is not None and math.isfinite(each)]

    advantages = group_advantages(rewards, formula)

    assert [each for each in advantages if each is not None] == group_advantages(scored, formula)
    for given_, advantage in zip(rewards, advantages, strict=True):
        assert (advantage is None) == (given_ is None or not math.isfinite(given_))


def test_c1_an_unscored_rollout_is_not_trained_as_a_failure() -> None:
    scored = [row for index in range(2) for row in rollout_of(f"s{index}", "g", float(index), 1)]
    unscored = rollout_of("u", "g", None, 2)

    assert row_advantages([*scored, *unscored], "center") == [-0.5, 0.5, None, None]


# ------------------------------------------------------------------ C2-C4

groups = st.lists(
    st.tuples(st.sampled_from("gh"), st.none() | st.floats(-10, 10), st.integers(1, 4)),
    min_size=1,
    max_size=6,
)


@some
@given(groups, st.sampled_from(Formula), st.randoms(use_true_random=False))
def test_c2_c3_c4_the_baseline_is_one_of_rollouts_in_their_explicit_group(
    rollouts: list[tuple[str, float | None, int]], formula: Formula, chance: random.Random
) -> None:
    rows = [
        row
        for number, (group, given_, ways) in enumerate(rollouts)
        for row in rollout_of(f"ro-{number}", group, given_, ways)
    ]
    chance.shuffle(rows)

    found: dict[str, set[float | None]] = {}
    for row, advantage in zip(rows, row_advantages(rows, formula), strict=True):
        found.setdefault(row.rollout_id, set()).add(advantage)

    for group in "gh":
        members = [(f"ro-{n}", given_) for n, (name, given_, _) in enumerate(rollouts) if name == group]
        expected = group_advantages([given_ for _, given_ in members], formula)
        for (name, _), advantage in zip(members, expected, strict=True):
            assert len(found[name]) == 1
            (own,) = found[name]
            assert own == advantage if advantage is None else own == pytest.approx(advantage, abs=1e-9)


@some
@given(st.integers(1, 5), st.floats(-3, 3), st.floats(-3, 3))
def test_c2_how_many_rows_a_rollout_has_changes_no_advantage(ways: int, one: float, other: float) -> None:
    single = row_advantages([*rollout_of("a", "g", one, 1), *rollout_of("b", "g", other, 1)])
    several = row_advantages([*rollout_of("a", "g", one, ways), *rollout_of("b", "g", other, 1)])

    assert several == [single[0]] * ways + [single[1]]


def test_c3_all_rows_of_an_attempt_have_its_reward() -> None:
    assert [row.reward for row in rows_of(reward(1, 0.25))] == [0.25, 0.25]


def test_c4_a_group_is_named_and_not_guessed_from_what_was_asked() -> None:
    rows = [*rollout_of("a", "1", 0.0, 1), *rollout_of("b", "2", 1.0, 1)]

    assert [row.group_id for row in rows] == ["1", "2"]
    assert row_advantages(rows, "center") == [0.0, 0.0]
    with pytest.raises(ValueError, match="rollout c has no group"):
        row_advantages([*rows, *rollout_of("c", None, 1.0, 1)])


def test_c4_a_group_takes_part_whatever_its_size() -> None:
    rows = [row for index in range(3) for row in rollout_of(f"g{index}", "g", float(index), 1)]
    rows += rollout_of("alone", "h", 7.0, 1)

    assert row_advantages(rows, "center") == [-1.0, 0.0, 1.0, 0.0]


# ------------------------------------------------------------------ C5, C6


@given(scores)
def test_c5_a_group_of_one_is_what_its_trainer_makes_of_it(given: float) -> None:
    expected = {**dict.fromkeys(Formula, 0.0), Formula.VERL: given / (1 + 1e-6)}

    assert {formula: group_advantages([given], formula)[0] for formula in Formula} == expected


DEVIATIONS: dict[Formula, tuple[int, float]] = {
    Formula.TRL: (1, 1e-4),
    Formula.TRL_ASYNC: (0, 1e-8),
    Formula.VERL: (1, 1e-6),
    Formula.ART: (0, 1e-6),
}


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=8))
def test_c6_each_formula_divides_by_the_deviation_of_its_trainer(rewards: list[float]) -> None:
    values = np.array(rewards, dtype=np.float64)
    assume(np.std(values) > 1e-3 or np.ptp(values) == 0)
    centred = values - values.mean()

    assert group_advantages(rewards, Formula.CENTER) == pytest.approx(centred.tolist(), abs=1e-9)
    for formula, (lost, epsilon) in DEVIATIONS.items():
        expected = centred / (np.std(values, ddof=lost) + epsilon)
        assert group_advantages(rewards, formula) == pytest.approx(expected.tolist(), rel=1e-6, abs=1e-5)


def test_c6_a_formula_of_ones_own_sees_the_rewards_of_a_group() -> None:
    rows = [*rollout_of("a", "g", 1.0, 2), *rollout_of("b", "g", None, 1)]
    seen: list[Any] = []

    def ranked(rewards: Any) -> list[float | None]:
        seen.append(list(rewards))
        return [None if each is None else 5.0 for each in rewards]

    assert row_advantages(rows, ranked) == [5.0, 5.0, None]
    assert seen == [[1.0, None]]
    with pytest.raises(ValueError, match="is not a valid Formula"):
        row_advantages(rows, "magic")


# ------------------------------------------------------------------ C7


@some
@given(finite | st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_c7_a_reward_is_kept_to_the_last_bit(given: float) -> None:
    span = reward(1, given)
    stored = decode_span(span.rollout_id, span.attempt_id, span.sequence_id, encode_span(span))
    sent = Span.model_validate_json(stored.model_dump_json())

    for kept in (span, stored, sent):
        row = rows_of(kept)[0]
        written = json.loads(json.dumps(training_row(row)))
        assert bits(row.reward) == bits(written["reward"]) == bits(given)
        assert bits(row.rewards["primary"]) == bits(given)


def bits(number: Any) -> bytes:
    return struct.pack("<d", number)


def test_c7_a_tenth_in_float32_is_that_tenth_in_a_file(tmp_path: Path) -> None:
    tenth = float(np.float32(0.1))
    rows = rows_of(reward(1, tenth))
    with ParquetWriter(tmp_path / "rows.parquet", TRAINING_COLUMNS) as writer:
        for each in training_rows(rows):
            writer.write(each)
    import pyarrow.parquet

    (first, _) = pyarrow.parquet.read_table(tmp_path / "rows.parquet").to_pylist()
    assert first["reward"] == tenth
    assert np.float32(first["reward"]) == np.float32(0.1)


# ------------------------------------------------------------------ C8

names = st.sampled_from(["correct", "brief", "polite"])
dimensions = st.dictionaries(names, st.floats(-9, 9) | st.sampled_from([math.nan]), min_size=1)


@some
@given(st.lists(dimensions, min_size=1, max_size=4))
def test_c8_dimensions_have_names_and_the_later_stands(given: list[dict[str, float]]) -> None:
    row = rows_of(*(reward(number, each) for number, each in enumerate(given)))[0]

    expected: dict[str, float | None] = {}
    for each in given:
        expected |= {name: None if math.isnan(value) else value for name, value in each.items()}
    assert dict(row.rewards) == expected
    assert list(row.rewards) == list(dict.fromkeys(name for each in given for name in each))
    # The first dimension of the last reward is the primary one.
    assert row.reward == expected[next(iter(given[-1]))]


@some
@given(dimensions, names)
def test_c8_the_primary_one_can_be_named(given: dict[str, float], primary: str) -> None:
    row = rows_of(reward(1, given), primary_reward=primary)[0]

    value = given.get(primary, math.nan)
    assert row.reward == (None if math.isnan(value) else value)


@some
@given(dimensions, st.dictionaries(names, st.floats(-2, 2), min_size=1))
def test_c8_a_weighted_sum_is_unscored_where_a_part_of_it_is(
    given: dict[str, float], weights: dict[str, float]
) -> None:
    row = rows_of(reward(1, given), reward_weights=weights)[0]

    parts = [weight * given.get(name, math.nan) for name, weight in weights.items()]
    if any(math.isnan(given.get(name, math.nan)) for name in weights):
        assert row.reward is None
    else:
        assert row.reward == pytest.approx(sum(parts))


def test_c8_weights_that_name_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="reward_weights is empty"):
        RowPolicy(reward_weights={})


@some
@given(
    st.lists(st.tuples(scores, st.floats(-1e9, 1e9)), min_size=1, max_size=5),
    st.randoms(use_true_random=False),
)
def test_c8_the_reward_that_came_last_counts_whatever_the_clock_said(
    given: list[tuple[float, float]], chance: random.Random
) -> None:
    spans = [
        at(reward(number, value), moment).model_copy(update={"sequence_id": 10 + number})
        for number, (value, moment) in enumerate(given)
    ]
    linked = [
        span.model_copy(
            update={
                "span_id": f"{number:08x}{'f' * 8}",
                "sequence_id": 100 + number,
                "attributes": {**span.attributes, **make_link_attributes({"span_id": f"{1:016x}"})},
            }
        )
        for number, span in enumerate(spans)
    ]
    arrived = [*spans, *linked]
    chance.shuffle(arrived)

    row = rows_of(*arrived)[0]

    assert row.reward == given[-1][0]
    assert [step.value for step in row.segments[0].rewards] == [given[-1][0]]


def test_c8_where_nothing_is_numbered_there_is_only_the_clock() -> None:
    later, earlier = (
        each.model_copy(update={"sequence_id": 0})
        for each in (at(reward(1, 0.5), 9.0), at(reward(2, 0.25), 8.0))
    )

    assert rows_of(later, earlier)[0].reward == 0.5


def test_a_log_probability_that_rounding_put_above_0_is_0_and_one_that_is_higher_is_no_log_probability() -> (
    None
):
    rounded, wrong = (call(1, (1,), (2, 3), logprobs=(above, -0.5)) for above in (1e-7, 1e-3))

    (row,) = build_rows([ROOT, rounded])

    assert row.logprobs == (0.0, 0.0, -0.5)
    assert build_rows([ROOT, wrong]).counts == {"logprob_positive": 1}


# ------------------------------------------------------------------ targets


def test_a_reward_for_a_call_a_choice_or_tokens_stays_there_and_is_not_the_outcome() -> None:
    first = f"chatcmpl-{1:016x}"
    rows = rows_of(
        reward(1, 0.5, gen_ai__response__id=first),
        reward(2, 0.25, gen_ai__response__id=first, choice_index="0", token_range="1:2"),
        reward(3, 1.0),
    )

    assert [row.reward for row in rows] == [1.0, 1.0]
    steps = [[(step.value, step.tokens) for step in row.segments[0].rewards] for row in rows]
    assert steps == [[(0.5, None), (0.25, (1, 2))], []]
    assert rows.unknown_rewards == ()
    assert [step.value for step in rows.step_rewards] == [0.5, 0.25]


@pytest.mark.parametrize(
    "links",
    [
        {"gen_ai__response__id": "somebody-else"},
        {"span_id": f"{1:016x}", "choice_index": "7", "token_range": "0:1"},
        {"span_id": f"{1:016x}", "token_range": "0:9"},
        {"agentlightning__rollout_id": "another-rollout"},
        {"agentlightning__attempt_id": "at-2"},
        {"agentlightning__rollout_id": "ro-1", "agentlightning__attempt_id": "at-2"},
    ],
    ids=str,
)
def test_a_reward_for_what_is_not_there_is_an_error_and_nobodys(links: dict[str, str]) -> None:
    rows = rows_of(reward(1, 0.5, **links))

    assert [row.reward for row in rows] == [None, None]
    assert [segment.rewards for row in rows for segment in row.segments] == [(), ()]
    assert [match.reward.value for match in rows.unknown_rewards] == [0.5]
    assert all(match.reason is not None and match.call is None for match in rows.unknown_rewards)


def test_a_reward_for_this_rollout_or_attempt_is_the_outcome() -> None:
    links: list[dict[str, str]] = [
        {"agentlightning__rollout_id": "ro-1"},
        {"agentlightning__attempt_id": "at-1"},
        {"agentlightning__rollout_id": "ro-1", "agentlightning__attempt_id": "at-1"},
    ]
    for each in links:
        assert [row.reward for row in rows_of(reward(1, 0.5, **each))] == [0.5, 0.5]


def test_a_reward_for_an_answer_that_no_row_trains_is_shown() -> None:
    spans = [ROOT, call(1, (1,), (2,), flaw="forced_unknown"), call(2, (5,), (6,))]
    judged = reward(1, 0.5, span_id=f"{1:016x}")

    rows = build_rows([*spans, judged])

    assert [(step.value, step.call) for step in rows.step_rewards] == [(0.5, f"{1:016x}")]
    assert [segment.rewards for row in rows for segment in row.segments] == [()]


def test_rewards_are_dealt_out_by_time_where_the_user_asks_for_it() -> None:
    early = at(reward(1, 0.5), 1.7)
    late = at(reward(2, 0.75), 2.7)

    rows = rows_of(early, late, step_rewards=RewardMatchPolicy.FIRST_OCCURRENCE)

    assert [[step.value for step in row.segments[0].rewards] for row in rows] == [[0.5], [0.75]]
    assert [row.reward for row in rows] == [0.75, 0.75]
    assert [row.segments[0].rewards for row in rows_of(early, late)] == [(), ()]


def at(span: Span, moment: float) -> Span:
    return span.model_copy(update={"start_time": moment, "end_time": moment})


@pytest.mark.parametrize("formula", list(Formula))
def test_advantages_of_huge_rewards_are_those_of_small_ones(formula: Formula) -> None:
    small = group_advantages([1.0, 0.0, None], formula)
    huge = group_advantages([1e200, 0.0, None], formula)
    scale = 1e200 if formula is Formula.CENTER else 1.0
    for one, other in zip(small, huge, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            assert other == pytest.approx(one * scale, rel=1e-3)
    assert None not in group_advantages([1e308, -1e308], formula)
