"""What a fault leaves in the numbers is told apart, and nothing is claimed that does not explain them."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from agentlightning.verify import (
    ComparedAnswer,
    ComparedRow,
    Difference,
    Explanation,
    Judgement,
    Verdict,
    agreement,
    judge,
)
from agentlightning.verify.patterns import CLOSE, fits, overall

TOLERANCE = 1e-4
any_number = st.floats() | st.floats(-20, 0) | st.sampled_from([0.0, -0.0, -1e-5, -1.0, -9999.0])


@st.composite
def any_answer(draw: st.DrawFn) -> ComparedAnswer:
    length = draw(st.integers(1, 6))
    numbers = st.lists(any_number, min_size=length, max_size=length).map(tuple)
    old = draw(numbers)
    names = st.lists(st.sampled_from([None, "1", "2"]), min_size=length, max_size=length).map(tuple)
    return ComparedAnswer(old, draw(st.just(old) | numbers), draw(names | st.just(())))


any_rows = st.lists(
    st.builds(ComparedRow, st.lists(any_answer(), max_size=4).map(tuple), st.integers(0, 3)), max_size=5
)


@st.composite
def rows_of_numbers(draw: st.DrawFn, rows: int = 2, version: str | None = None) -> list[ComparedRow]:
    """Rows whose recorded values are the recomputed ones; no two values are near each other."""
    chance = random.Random(draw(st.integers(0, 2**32)))
    found = []
    for _ in range(rows):
        answers = []
        for _ in range(draw(st.integers(1, 3))):
            values = tuple(-chance.uniform(0.1, 9.0) for _ in range(draw(st.integers(5, 12))))
            answers.append(
                ComparedAnswer(values, values, () if version is None else (version,) * len(values))
            )
        found.append(ComparedRow(tuple(answers)))
    return found


def codes(rows: list[ComparedRow], **more: object) -> list[Verdict]:
    return [finding.verdict for finding in judge(rows, TOLERANCE, **more)]  # type: ignore[arg-type]


def recorded(row: ComparedRow, *old: tuple[float, ...]) -> ComparedRow:
    """The row with other recorded values, one tuple for each answer."""
    pairs = zip(row.answers, old, strict=True)
    return replace(row, answers=tuple(replace(answer, old=values) for answer, values in pairs))


def news(row: ComparedRow) -> list[tuple[float, ...]]:
    return [answer.new for answer in row.answers]


# ------------------------------------------------------------------ any numbers


@given(any_rows, st.sampled_from([0.0, 1e-4, 1.0]), st.sampled_from([None, "1"]))
def test_no_numbers_make_it_raise_and_exact_means_every_token(
    rows: list[ComparedRow], tolerance: float, version: str | None
) -> None:
    findings = judge(rows, tolerance, None, version)

    assert len(findings) == len(rows)
    for row, finding in zip(rows, findings, strict=True):
        pairs = [pair for each in row.answers for pair in zip(each.old, each.new, strict=True)]
        same = all(abs(old - new) <= tolerance for old, new in pairs)
        assert same == (finding.verdict in {Verdict.EXACT, Verdict.NO_LOGPROBS})
        if same:
            assert (finding.verdict is Verdict.NO_LOGPROBS) == bool(row.missing)
    assert (overall(findings).verdict is Verdict.EXACT) == all(
        each.verdict is Verdict.EXACT for each in findings
    )


@given(any_rows, st.integers(0, 100))
def test_the_order_of_rows_changes_no_verdict(rows: list[ComparedRow], seed: int) -> None:
    order = list(range(len(rows)))
    random.Random(seed).shuffle(order)

    mixed = codes([rows[at] for at in order])

    assert mixed == [codes(rows)[at] for at in order]


@given(any_rows)
def test_a_shift_or_an_exchange_is_claimed_only_where_it_explains_each_token(rows: list[ComparedRow]) -> None:
    def near(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
        return len(one) == len(other) and all(
            abs(a - b) <= TOLERANCE for a, b in zip(one, other, strict=True)
        )

    everywhere = [answer.new for row in rows for answer in row.answers]
    for row, finding in zip(rows, judge(rows, TOLERANCE), strict=True):
        bad = [answer for answer in row.answers if not near(answer.old, answer.new)]
        if finding.verdict is Verdict.SHIFTED:
            assert all(near(each.old[:-1], each.new[1:]) for each in bad) or all(
                near(each.old[1:], each.new[:-1]) for each in bad
            )
        if finding.verdict is Verdict.EXCHANGED_ROLLOUTS:
            assert all(any(near(each.old, new) for new in everywhere) for each in bad)


# ------------------------------------------------------------------ planted faults


@given(rows_of_numbers())
def test_equal_values_are_exact(rows: list[ComparedRow]) -> None:
    assert codes(rows) == [Verdict.EXACT] * len(rows)
    almost = [
        recorded(row, *(tuple(value + 0.9 * TOLERANCE for value in new) for new in news(row))) for row in rows
    ]
    assert codes(almost) == [Verdict.EXACT] * len(rows)


@given(rows_of_numbers(), st.sampled_from([1, -1]), st.booleans())
def test_a_shifted_pairing_is_shifted(rows: list[ComparedRow], by: int, in_one_answer: bool) -> None:
    moved = [(*new[by:], -0.05) if by > 0 else (-0.05, *new[:by]) for new in news(rows[0])]
    if in_one_answer:
        moved = [moved[0], *news(rows[0])[1:]]

    assert codes([recorded(rows[0], *moved), rows[1]]) == [Verdict.SHIFTED, Verdict.EXACT]


@given(rows_of_numbers(), st.integers(0, 2**32))
def test_exchanged_values_are_exchanged(rows: list[ComparedRow], seed: int) -> None:
    chance = random.Random(seed)
    one = rows[0]
    other = ComparedRow(
        tuple(ComparedAnswer(*2 * (tuple(-chance.random() for _ in new),)) for new in news(one))
    )

    found = judge([recorded(one, *news(other)), recorded(other, *news(one))], TOLERANCE)

    assert [each.verdict for each in found] == [Verdict.EXCHANGED_ROLLOUTS] * 2
    assert [each.detail[-1] for each in found] == ["1", "0"]


@given(rows_of_numbers(), st.integers(0, 2**32))
def test_a_cause_that_the_model_confirms_is_named(rows: list[ComparedRow], seed: int) -> None:
    chance = random.Random(seed)
    for verdict in (
        Verdict.RAW_LOGPROBS,
        Verdict.WRONG_TEMPERATURE,
        Verdict.DROPPED_TOKEN,
        Verdict.WRONG_TEMPLATE,
    ):
        values = tuple(tuple(value - chance.uniform(0.1, 1.0) for value in new) for new in news(rows[0]))
        explains = Explanation(verdict, values, "so it is")
        found = judge([recorded(rows[0], *values), rows[1]], TOLERANCE, {0: [explains]})
        assert found == [Judgement(verdict, "so it is"), Judgement(Verdict.EXACT)]
        broken = Explanation(verdict, ((values[0][0] + 1, *values[0][1:]), *values[1:]))
        assert not fits(recorded(rows[0], *values), broken, TOLERANCE)
        assert (
            judge([recorded(rows[0], *values)], TOLERANCE, {0: [broken]})[0].verdict is Verdict.STALE_WEIGHTS
        )


@given(rows_of_numbers(), st.integers(0, 2**32))
def test_noise_all_over_is_stale_or_close_by_its_size(rows: list[ComparedRow], seed: int) -> None:
    chance = random.Random(seed)

    def noisy(least: float, most: float) -> list[ComparedRow]:
        return [
            recorded(row, *(tuple(v - chance.uniform(least, most) for v in new) for new in news(row)))
            for row in rows
        ]

    assert codes(noisy(0.06, 1.0)) == [Verdict.STALE_WEIGHTS] * len(rows)
    assert codes(noisy(0.01, CLOSE - 0.001)) == [Verdict.CLOSE] * len(rows)


@given(rows_of_numbers(version="7"), st.integers(0, 2**32))
def test_versions_tell_stale_weights_for_sure(rows: list[ComparedRow], seed: int) -> None:
    chance = random.Random(seed)
    old = [tuple(v - chance.uniform(0.001, 0.04) for v in new) for new in news(rows[0])]
    row = recorded(rows[0], *old)

    (finding,) = judge([row], TOLERANCE, None, "8")
    assert finding == Judgement(Verdict.STALE_WEIGHTS, "sampled by version 7, compared with 8", sure=True)

    answers = (
        row.answers[0],
        *(replace(answer, old=answer.new, versions=("8",) * len(answer.new)) for answer in rows[1].answers),
    )
    (finding,) = judge([ComparedRow(answers)], TOLERANCE)
    assert finding == Judgement(Verdict.STALE_WEIGHTS, "what version 7 sampled differs, what 8 sampled fits")


@given(rows_of_numbers(version="7"), st.integers(0, 2**32))
def test_a_row_that_differs_beside_one_of_the_same_weights_that_fits_has_another_context(
    rows: list[ComparedRow], seed: int
) -> None:
    chance = random.Random(seed)
    old = [tuple(v - chance.uniform(0.1, 1.0) for v in new) for new in news(rows[0])]

    assert codes([recorded(rows[0], *old), rows[1]]) == [Verdict.WRONG_TEMPLATE, Verdict.EXACT]


@given(rows_of_numbers(), st.integers(3, 8), st.integers(0, 2**32))
def test_where_the_values_stop_fitting_says_what_it_can_be(
    rows: list[ComparedRow], start: int, seed: int
) -> None:
    chance = random.Random(seed)
    row = rows[0]
    first = row.answers[0].new
    assume(start <= len(first) - 3)
    other = [tuple(v - chance.uniform(0.1, 1.0) for v in new) for new in news(row)]

    inside = recorded(row, (*first[:start], *other[0][start:]), *other[1:])
    assert codes([inside]) == [Verdict.BREAKS_OFF]
    if len(row.answers) > 1:
        between = recorded(row, first, *other[1:])
        assert codes([between]) == [Verdict.WRONG_TEMPLATE]


@given(rows_of_numbers(), st.integers(0, 2**32))
def test_single_tokens_that_differ_are_no_known_cause(rows: list[ComparedRow], seed: int) -> None:
    first = list(rows[0].answers[0].new)
    for at in (0, 4)[: 1 + seed % 2]:
        first[at] -= 0.5

    assert codes([recorded(rows[0], tuple(first), *news(rows[0])[1:])]) == [Verdict.UNKNOWN]


def test_tokens_that_are_certain_tell_nothing() -> None:
    sure = (-1e-7,) * 40
    row = ComparedRow((ComparedAnswer((*sure, -1.0, -2.0, -3.0), (*sure, -1.5, -2.5, -3.5)),))

    assert codes([row]) == [Verdict.STALE_WEIGHTS]


# ------------------------------------------------------------------ all rows together


def test_the_cause_of_most_rows_is_that_of_all() -> None:
    found = [
        Judgement(Verdict.EXACT),
        Judgement(Verdict.SHIFTED, "here"),
        Judgement(Verdict.SHIFTED, "here"),
        Judgement(Verdict.UNKNOWN),
        Judgement(Verdict.UNKNOWN),
        Judgement(Verdict.UNKNOWN),
    ]
    assert overall(found) == Judgement(Verdict.SHIFTED, "shifted in 2 of 6 rows, unknown in 3; here")
    assert overall(found[3:]).verdict is Verdict.UNKNOWN
    assert overall(found[:1]) == Judgement(Verdict.EXACT)


def test_every_verdict_has_a_code_a_sentence_and_a_cure() -> None:
    assert len({verdict.code for verdict in Verdict}) == len(Verdict)
    assert all(verdict.sentence and verdict.cure for verdict in Verdict)


# ------------------------------------------------------------------ statistics


@given(st.lists(st.tuples(st.floats(-30, 0), st.floats(-30, 0)), min_size=1, max_size=20))
def test_the_statistics_are_those_of_the_formulas(pairs: list[tuple[float, float]]) -> None:
    found = agreement([Difference(0, at, "s", *pair) for at, pair in enumerate(pairs)], TOLERANCE, missing=2)
    logs = [new - old for old, new in pairs]
    count = len(pairs)

    assert (found.tokens, found.missing) == (count, 2)
    assert found.ratio == pytest.approx(sum(map(math.exp, logs)) / count)
    assert found.k1 == pytest.approx(-sum(logs) / count)
    assert found.k3 == pytest.approx(sum(math.exp(log) - 1 - log for log in logs) / count)
    assert found.k3 >= -1e-9
    assert found.largest is not None
    assert found.largest.size == max(map(abs, logs))
    assert found.differing == sum(abs(log) > TOLERANCE for log in logs)


@given(st.lists(st.tuples(st.floats(), st.floats()), max_size=6))
def test_no_number_makes_the_statistics_raise(pairs: list[tuple[float, float]]) -> None:
    found = agreement([Difference(0, at, "s", *pair) for at, pair in enumerate(pairs)], TOLERANCE)
    assert found.tokens == len(pairs)


def test_an_estimate_of_a_known_divergence() -> None:
    """Two distributions of four tokens: the mean over samples of the old one is near KL(old ‖ new)."""
    chance = random.Random(3)
    old, new = (0.4, 0.3, 0.2, 0.1), (0.1, 0.2, 0.3, 0.4)
    exact = sum(p * math.log(p / q) for p, q in zip(old, new, strict=True))
    drawn = chance.choices(range(4), old, k=20_000)
    found = agreement(
        [Difference(0, at, "", math.log(old[token]), math.log(new[token])) for at, token in enumerate(drawn)],
        TOLERANCE,
    )
    assert found.ratio == pytest.approx(1.0, abs=0.03)
    assert found.k1 == pytest.approx(exact, abs=0.03)
    assert found.k3 == pytest.approx(exact, abs=0.03)
