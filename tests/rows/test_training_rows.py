"""Rows against the truth: properties B1-B10 and B12-B14 over generated conversations, and the cases they came from."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from conversations import (
    ACTIONS,
    CLOCKS,
    FLAWS,
    NAMED,
    ROOT_ID,
    Answer,
    Ids,
    Key,
    Step,
    Story,
    call,
    lookalikes,
    rows_of,
    steps,
    stories,
    tell,
    work,
)
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st

from agentlightning.rows import RowPolicy, RowSet, TrainingRow, Use, build_rows
from agentlightning.types import Span

pytestmark = pytest.mark.long

some = settings(max_examples=40)
anything = stories | lookalikes
ROOT = work(ROOT_ID, None, 0.0, 1000.0)


GIVEN_UP = {"abandoned", "asked_again", "retry_undecided"}


def keys_of(row: TrainingRow) -> tuple[Key, ...]:
    return tuple((segment.span_id, segment.choice.index) for segment in row.segments)


def trained_of(row: TrainingRow) -> tuple[Key, ...]:
    return tuple((each.span_id, each.choice.index) for each in row.segments if each.trained)


def said(rows: RowSet) -> list[Any]:
    """What the rows say, without their numbers and the times of their spans."""
    return [
        (
            row.token_ids,
            row.loss_mask,
            row.logprobs,
            keys_of(row),
            trained_of(row),
            tuple(each.sha256 for each in row.media),
        )
        for row in rows
    ]


def by_key(story: Story) -> dict[Key, Answer]:
    return {answer.key: answer for answer in story.answers}


def trained_once(rows: RowSet) -> set[Key]:
    """Check that no answer is trained twice, and return those that are trained."""
    trained = [key for row in rows for key in trained_of(row)]
    assert len(trained) == len(set(trained))
    return set(trained)


# ------------------------------------------------------------------ the generator


def test_the_hard_cases_come_often() -> None:
    seen: Counter[str] = Counter()

    @settings(max_examples=300, derandomize=True, phases=[Phase.generate])
    @given(stories)
    def look(story: Story) -> None:
        seen.update(name for name, times in story.seen.items() if times)
        seen.update(set(story.given_up().values()))
        parents = Counter(answer.parent for answer in story.answers if answer.usable and answer.parent)
        seen["goes on in two ways"] += any(times > 1 for times in parents.values())
        seen["goes on"] += bool(parents)
        seen["several rows"] += len(story.rows()) > 1

    look()
    rare = {name: seen[name] for name in (*ACTIONS, *filter(None, FLAWS)) if seen[name] < 10}
    assert not rare
    for name in ("asked_again", "retry_undecided", "rewarded"):
        assert seen[name] >= 15, (name, seen)
    for name in ("abandoned", "goes on in two ways", "several choices", "2 conversations", "3 conversations"):
        assert seen[name] >= 30, (name, seen)
    for name in ("goes on", "several rows", "two version", "none version"):
        assert seen[name] >= 75, (name, seen)


# ------------------------------------------------------------------ B1-B5


@given(stories)
def test_b1_to_b9_rows_are_the_ways_that_the_agents_went(story: Story) -> None:
    rows = rows_of(story)

    assert said(rows) == [
        (row.token_ids, row.loss_mask, row.logprobs, row.keys, row.trained, row.media) for row in story.rows()
    ]


@some
@given(anything)
def test_b1_a_row_is_the_last_prompt_and_its_answer_bit_for_bit(story: Story) -> None:
    answers = by_key(story)
    for row in rows_of(story):
        last = answers[keys_of(row)[-1]]
        assert row.token_ids == last.prompt + last.output
        assert row.prompt_ids + row.completion_ids == row.token_ids
        assert row.prompt_ids == answers[keys_of(row)[0]].prompt
        assert len(row) == len(row.loss_mask) == len(row.logprobs) == len(row.token_ids)


@some
@given(anything)
def test_b2_every_sampled_token_is_trained_once_or_left_out_for_a_reason(story: Story) -> None:
    rows = rows_of(story)
    usable = {answer.key: answer for answer in story.answers if answer.usable}
    trained = trained_once(rows)

    assert sum(sum(row.loss_mask) for row in rows) == sum(len(usable[key].output) for key in trained)
    assert rows.trained_tokens == sum(sum(row.loss_mask) for row in rows)
    decided = {(each.span_id, each.choice): each for each in rows.decisions if each.choice is not None}
    assert decided.keys() == usable.keys()
    for key, decision in decided.items():
        assert (decision.use is Use.TRAIN) == (key in trained) == (decision.code is None)
        assert bool(decision.rows) == (decision.use is not Use.SKIP)
        assert decision.tokens == len(usable[key].output)
        assert decision.sentence or decision.code is None
        if usable[key].refused:
            assert decision.code == usable[key].refused
    left_out = {key for key, answer in usable.items() if not answer.refused} - trained
    assert {decided[key].code for key in left_out} <= GIVEN_UP
    lost = {answer.span_id for answer in story.answers} - {span_id for span_id, _ in usable}
    assert {each.span_id for each in rows.decisions if each.choice is None} == lost
    assert all(each.code for each in rows.decisions if each.choice is None)


@some
@given(anything)
def test_b3_a_trained_token_has_the_engines_log_probability_and_context_has_none(story: Story) -> None:
    answers = by_key(story)
    for row in rows_of(story):
        for segment in row.segments:
            if segment.trained:
                answer = answers[segment.span_id, segment.choice.index]
                assert row.logprobs[segment.start : segment.end] == answer.logprobs
                assert set(row.loss_mask[segment.start : segment.end]) == {1}
                assert {row.span_of(at) for at in range(segment.start, segment.end)} == {answer.span_id}
        inside = {at for each in row.segments if each.trained for at in range(each.start, each.end)}
        for at, (mask, logprob) in enumerate(zip(row.loss_mask, row.logprobs, strict=True)):
            assert mask == (at in inside)
            assert mask == 1 or logprob == 0.0


@some
@given(anything)
def test_b4_every_answer_stands_behind_the_very_prompt_that_it_was_given(story: Story) -> None:
    answers = by_key(story)
    for row in rows_of(story):
        for segment in row.segments:
            answer = answers[segment.span_id, segment.choice.index]
            assert row.token_ids[: segment.start] == answer.prompt
            assert row.token_ids[segment.start : segment.end] == answer.output


@some
@given(stories)
def test_b5_what_was_not_built_on_an_answer_is_not_joined_to_it(story: Story) -> None:
    answers = by_key(story)
    rows = rows_of(story)
    for row in rows:
        chain = [None, *keys_of(row)]
        assert [answers[key].parent for key in keys_of(row)] == chain[:-1]
    broken = [answer for answer in story.ordered() if answer.parent is None and answer.choice == 0]
    counted = sum(each.prefix is not None and each.prefix.kind.value != "extends" for each in rows.decisions)
    assert counted >= len(broken)


def test_b5_a_drift_of_one_token_makes_a_second_row_and_keeps_what_was_sampled() -> None:
    spans = [ROOT, call(1, (1, 2), (3, 4, 5)), call(2, (1, 2, 3, 9, 5, 6), (7,))]

    rows = build_rows(spans)

    assert [(row.token_ids, row.loss_mask) for row in rows] == [
        ((1, 2, 3, 4, 5), (0, 0, 1, 1, 1)),
        ((1, 2, 3, 9, 5, 6, 7), (0, 0, 0, 0, 0, 0, 1)),
    ]
    assert sum(rows.breaks.values()) == 1


# ------------------------------------------------------------------ B6-B10


@some
@given(anything, st.randoms(use_true_random=False))
def test_b6_rows_do_not_depend_on_the_order_in_which_spans_arrive(
    story: Story, chance: random.Random
) -> None:
    expected = said(rows_of(story))
    arrived = story.spans[:]
    chance.shuffle(arrived)

    assert said(build_rows(arrived, NAMED)) == expected
    starts = [span.start_time for span in story.spans]
    # A store numbers spans as they come: of equal times the first is the first, and of an answer that was cut at its
    # limit the numbers tell what was asked for after it.
    cut = any(answer.finish == "length" for answer in story.answers)
    if len(set(starts)) == len(starts) and not cut:
        arrived = [
            span.model_copy(update={"sequence_id": number}) for number, span in enumerate(arrived, start=1)
        ]
        assert said(build_rows(arrived, NAMED)) == expected


def test_b6_an_answer_that_arrives_after_what_was_built_on_it_is_its_beginning_all_the_same() -> None:
    first, second = call(5, (1,), (2,), start=9.0), call(6, (1, 2, 3), (4,), start=1.0)

    (row,) = build_rows([ROOT, second, first])

    assert (row.token_ids, row.loss_mask) == ((1, 2, 3, 4), (0, 1, 0, 1))
    assert [segment.span_id for segment in row.segments] == [first.span_id, second.span_id]


STEADY = [
    clock for clock in CLOCKS if clock != "skewed"
]  # the others put two calls of one conversation in one order


@some
@given(steps, st.sampled_from(STEADY), st.sampled_from(["own", "shared", "none", "mixed"]))
def test_b7_conversations_that_are_mixed_in_time_give_the_rows_of_each_alone(
    mixed: list[Step], clock: str, agents: str
) -> None:
    # A call beside its agent is put under one by time, which is a guess: a root agent's may go under a sub-agent.
    policy = replace(NAMED, repair_hierarchy=agents != "mixed")
    together = said(build_rows(tell(mixed, clock=clock, agents=agents).spans, policy))
    apart = []
    for number in {step.conversation for step in mixed}:
        alone = tell([step for step in mixed if step.conversation == number], clock=clock, agents=agents)
        apart += said(build_rows(alone.spans, policy))

    assert sorted(together) == sorted(apart)


def test_b7_two_interleaved_sub_agents_give_two_rows() -> None:
    spans = [
        ROOT,
        call(1, (10, 1), (2,), agent="a" * 16),
        call(2, (20, 1), (2,), agent="b" * 16),
        call(3, (10, 1, 2, 3), (4,), agent="a" * 16),
        call(4, (20, 1, 2, 3), (4,), agent="b" * 16),
        work("a" * 16, ROOT_ID, 0.5, 9.0, {"gen_ai.agent.name": "planner"}),
        work("b" * 16, ROOT_ID, 0.6, 9.0, {"gen_ai.agent.name": "critic"}),
    ]

    assert [(row.token_ids, row.loss_mask) for row in build_rows(spans)] == [
        ((10, 1, 2, 3, 4), (0, 0, 1, 0, 1)),
        ((20, 1, 2, 3, 4), (0, 0, 1, 0, 1)),
    ]


def test_b7_an_agent_that_stops_where_another_goes_on_has_given_nothing_up() -> None:
    spans = [
        ROOT,
        call(1, (1,), (2,), agent="a" * 16),
        call(2, (1,), (3,), agent="b" * 16),
        call(3, (1, 2, 4), (5,), agent="a" * 16),
        work("a" * 16, ROOT_ID, 0.5, 9.0, {"gen_ai.agent.name": "solver"}),
        work("b" * 16, ROOT_ID, 0.6, 9.0, {"gen_ai.agent.name": "solver"}),
    ]

    rows = build_rows(spans)

    assert sorted(row.token_ids for row in rows) == [(1, 2, 4, 5), (1, 3)]
    assert rows.counts == {}


def test_b7_two_agents_that_were_told_the_same_go_on_from_their_own_answers() -> None:
    spans = [
        ROOT,
        call(1, (1,), (2,), agent="a" * 16),
        call(2, (1,), (2,), agent="b" * 16),
        call(3, (1, 2, 4), (5,), agent="a" * 16),
        call(4, (1, 2, 6), (7,), agent="b" * 16),
        work("a" * 16, ROOT_ID, 0.5, 9.0, {"gen_ai.agent.name": "solver"}),
        work("b" * 16, ROOT_ID, 0.6, 9.0, {"gen_ai.agent.name": "solver"}),
    ]

    assert [[key[0][-1] for key in keys_of(row)] for row in build_rows(spans)] == [["1", "3"], ["2", "4"]]


@pytest.mark.parametrize("agents", [("a" * 16, "b" * 16), (None, None)], ids=["two agents", "one agent"])
def test_b7_the_same_conversation_twice_side_by_side_is_two_rows(agents: tuple[str | None, ...]) -> None:
    spans, number = [ROOT], 0
    prompt: Ids = (1,)
    for _ in range(4):
        for agent in agents:
            number += 1
            spans.append(call(number, prompt, (2,), agent=agent))
        prompt += (2, 3)
    spans += [
        work(agent, ROOT_ID, 0.5, 99.0, {"gen_ai.agent.name": agent[0]})
        for agent in agents
        if agent is not None
    ]

    rows = build_rows(spans)

    assert [row.token_ids for row in rows] == [(1, 2, 3, 2, 3, 2, 3, 2)] * 2
    assert [row.trained_tokens for row in rows] == [4, 4]
    assert len(trained_once(rows)) == 8


@some
@given(stories)
def test_b8_an_answer_that_was_given_up_is_counted_and_not_trained(story: Story) -> None:
    rows = rows_of(story)
    answers = by_key(story)
    given_up = {key: code for key, code in story.given_up().items() if not answers[key].refused}

    decided = {(each.span_id, each.choice): each.code for each in rows.decisions}
    assert {key: code for key, code in decided.items() if code in GIVEN_UP} == given_up
    assert not trained_once(rows) & given_up.keys()
    wanted = rows_of(story, abandoned="train")
    assert trained_once(wanted) == trained_once(rows) | given_up.keys()


def test_b8_an_abandoned_retry_is_not_trained_and_two_answers_that_end_are_both_kept() -> None:
    prompt = (1, 2)
    retried = [ROOT, call(1, prompt, (3,)), call(2, prompt, (4,)), call(3, (1, 2, 4, 5), (6,))]

    rows = build_rows(retried)

    assert [(row.token_ids, row.loss_mask) for row in rows] == [((1, 2, 4, 5, 6), (0, 0, 1, 0, 1))]
    assert rows.counts == {"abandoned": 1}
    assert [row.token_ids for row in build_rows(retried[:3])] == [(1, 2, 3), (1, 2, 4)]


def test_b8_of_several_choices_the_one_that_went_on_is_trained() -> None:
    best_of = [ROOT, call(1, (1,), (2,), (3,), (4,)), call(2, (1, 3, 5), (6,))]

    rows = build_rows(best_of)

    assert [(row.token_ids, row.loss_mask) for row in rows] == [((1, 3, 5, 6), (0, 1, 0, 1))]
    assert rows.counts == {"abandoned": 2}
    assert [row.token_ids for row in build_rows(best_of[:2])] == [(1, 2), (1, 3), (1, 4)]


def test_b8_a_greedy_retry_is_continued_once_by_all_choices_of_a_call() -> None:
    spans = [ROOT, call(1, (1,), (2,)), call(2, (1,), (2,)), call(3, (1, 2, 3), (4,), (5,))]

    rows = build_rows(spans)

    assert [(row.token_ids, row.loss_mask) for row in rows] == [
        ((1, 2, 3, 4), (0, 1, 0, 1)),
        ((1, 2, 3, 5), (0, 0, 0, 1)),
    ]
    assert rows.counts == {"abandoned": 1}


@some
@given(stories)
def test_b9_tokens_that_several_rows_share_are_trained_in_the_first(story: Story) -> None:
    rows = rows_of(story)
    wanted = {answer.key for answer in story.trained()}
    places: dict[Key, list[bool]] = {}
    for row in rows:
        for segment in row.segments:
            places.setdefault((segment.span_id, segment.choice.index), []).append(segment.trained)

    assert places.keys() >= wanted
    for key, trained in places.items():
        assert trained == [key in wanted, *[False] * (len(trained) - 1)]


def test_b9_a_fork_is_two_rows_and_its_stem_is_trained_once() -> None:
    spans = [ROOT, call(1, (1,), (2, 3)), call(2, (1, 2, 3, 8), (4,)), call(3, (1, 2, 3, 9), (5,))]

    rows = build_rows(spans)

    assert [(row.token_ids, row.loss_mask) for row in rows] == [
        ((1, 2, 3, 8, 4), (0, 1, 1, 0, 1)),
        ((1, 2, 3, 9, 5), (0, 0, 0, 0, 1)),
    ]
    assert [row.logprobs[1] for row in rows] == [-1.125, 0.0]


@some
@given(anything)
def test_b10_converting_changes_nothing_and_twice_gives_the_same(story: Story) -> None:
    before = [span.model_dump_json() for span in story.spans]

    first = rows_of(story)
    second = rows_of(story)

    assert [span.model_dump_json() for span in story.spans] == before
    assert second == first
    assert build_rows(iter(story.spans), NAMED) == first


# ------------------------------------------------------------------ B12-B14


@some
@given(
    anything,
    st.integers(1, 14) | st.none(),
    st.integers(1, 14) | st.none(),
    st.sampled_from(["cut", "drop"]),
)
def test_b12_a_limit_cuts_everything_alike_and_trains_no_answer_without_its_prompt(
    story: Story, longest: int | None, longest_prompt: int | None, over_long: Any
) -> None:
    whole = trained_once(rows_of(story))
    rows = rows_of(story, max_tokens=longest, max_prompt_tokens=longest_prompt, over_long=over_long)
    answers = by_key(story)

    for row in rows:
        last = answers[keys_of(row)[-1]]
        assert len(row) == len(row.loss_mask) == len(row.logprobs) <= (longest or len(row))
        assert row.token_ids == (last.prompt + last.output)[: len(row)]
        assert row.prompt_length <= (longest_prompt or row.prompt_length)
        assert not (row.cut_tokens and over_long == "drop")
        cut_by_the_model = row.segments[-1].choice.finish_reason == "length"
        assert (row.finish_reason == "length") == (row.cut_tokens > 0 or cut_by_the_model)
        for segment in row.segments:
            answer = answers[segment.span_id, segment.choice.index]
            assert row.token_ids[: segment.start] == answer.prompt
            length = segment.end - segment.start
            assert 0 < length <= len(answer.output)
            assert length == len(answer.output) or (segment.end == len(row) == longest and row.cut_tokens)
            if segment.trained:
                assert row.logprobs[segment.start : segment.end] == answer.logprobs[:length]
            said_by = [part.version for part in segment.versions for _ in range(part.start, part.end)]
            assert said_by == [str(version) for version in answer.versions[:length]]
    codes = {(each.span_id, each.choice): each.code for each in rows.decisions}
    kept = trained_once(rows)
    assert kept <= whole
    assert {codes[key] for key in whole - kept} <= {"over_long", "over_long_prompt"}
    for key in whole - kept:
        answer = answers[key]
        assert longest is not None or longest_prompt is not None
        if codes[key] == "over_long":
            assert longest is not None
            assert len(answer.prompt) >= longest or over_long == "drop"


def test_b12_a_cut_is_recorded_and_an_over_long_prompt_is_dropped() -> None:
    spans = [ROOT, call(1, (1, 2, 3), (4, 5)), call(2, (1, 2, 3, 4, 5, 6), (7, 8))]

    (row,) = build_rows(spans, RowPolicy(max_tokens=7))
    assert (row.token_ids, row.loss_mask, row.cut_tokens) == (
        (1, 2, 3, 4, 5, 6, 7),
        (0, 0, 0, 1, 1, 0, 1),
        1,
    )
    (row,) = build_rows(spans, RowPolicy(max_tokens=6))  # the end of the environment's words is no use
    assert (row.token_ids, row.cut_tokens, row.finish_reason) == ((1, 2, 3, 4, 5), 3, "length")
    assert build_rows(spans, RowPolicy(max_tokens=3)).counts == {"over_long": 2}
    assert build_rows(spans, RowPolicy(max_tokens=7, over_long="drop")).counts == {"over_long": 2}
    assert build_rows(spans, RowPolicy(max_prompt_tokens=2)).counts == {"over_long_prompt": 2}


@some
@given(anything)
def test_b13_each_row_trains_something_and_ends_with_it(story: Story) -> None:
    answers = by_key(story)
    for row in rows_of(story):
        assert row.loss_mask[-1] == 1
        assert row.trained_tokens == sum(row.loss_mask) > 0
        assert all(answers[key].output for key in keys_of(row))


def test_b13_an_empty_answer_adds_nothing() -> None:
    spans = [ROOT, call(1, (1,), ()), call(2, (1,), (), (2,)), call(3, (1, 3), ())]

    rows = build_rows(spans)

    assert [(row.token_ids, row.loss_mask) for row in rows] == [((1, 2), (0, 1))]
    assert rows.counts == {"empty_response": 2}
    none = build_rows([ROOT, call(1, (1,), ())])
    assert (len(none), [each.code for each in none.reasons]) == (0, ["empty_response"])


def renamed(span: Span, names: dict[int, int]) -> Span:
    attributes = {
        key: [names[each] for each in value] if key.endswith("token_ids") else value
        for key, value in span.attributes.items()
    }
    return span.model_copy(update={"attributes": attributes})


@some
@given(anything, st.randoms(use_true_random=False))
def test_b14_no_token_is_special_also_not_one_that_pads_and_ends(story: Story, chance: random.Random) -> None:
    used = sorted({each for answer in story.answers for each in (*answer.prompt, *answer.output)})
    others = chance.sample(range(len(used) + 10), len(used))
    names = dict(zip(used, others, strict=True))

    rows = rows_of(story)
    again = build_rows([renamed(span, names) for span in story.spans], NAMED)

    assert said(again) == [(tuple(names[each] for each in ids), *others) for ids, *others in said(rows)]


@given(st.lists(st.integers(0, 3), max_size=4), st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_b14_rows_of_nothing_but_the_padding_token_have_their_true_lengths(
    heard: list[int], said_: list[int]
) -> None:
    prompt: Ids = (0,)
    spans, mask = [ROOT], [0]
    for number, length in enumerate(said_, start=1):
        output = (0,) * length
        spans.append(call(number, prompt, output))
        between = heard[number % len(heard)] if heard else 0
        prompt += output + (0,) * between
        mask += [1] * length + [0] * between
    while not mask[-1]:
        mask.pop()

    (row,) = build_rows(spans)

    assert row.token_ids == (0,) * len(mask)
    assert row.loss_mask == tuple(mask)


# ------------------------------------------------------------------ neighbours


def test_one_call_without_log_probabilities_does_not_cost_its_neighbours_theirs() -> None:
    spans = [
        ROOT,
        call(1, (1,), (2,)),
        call(2, (1, 2, 3), (4, 4), flaw="no_logprobs"),
        call(3, (1, 2, 3, 4, 4, 5), (6,)),
    ]

    (row,) = build_rows(spans, RowPolicy(require_logprobs=True))
    assert row.loss_mask == (0, 1, 0, 0, 0, 0, 1)
    assert row.logprobs == (0.0, -1.125, 0.0, 0.0, 0.0, 0.0, -3.125)
    assert row.unproven == ()
    (row,) = build_rows(spans)
    assert [code.code for code in row.unproven] == ["no_logprobs"]
    assert row.loss_mask == (0, 1, 0, 1, 1, 0, 1)
    assert row.logprobs == (0.0, -1.125, 0.0, None, None, 0.0, -3.125)


def test_a_prompt_that_is_all_of_an_answer_and_a_retry_of_it_keep_their_places() -> None:
    spans = [
        ROOT,
        call(1, (1,), (2,)),
        call(2, (1, 2), (3,)),
        call(3, (1, 2), (3,)),
        call(4, (1, 2, 3), (4,)),
    ]

    rows = build_rows(spans)

    assert [(row.token_ids, row.loss_mask) for row in rows] == [((1, 2, 3, 4), (0, 1, 1, 1))]
    assert rows.counts == {"abandoned": 1}


def test_calls_that_the_user_chooses_are_trained_and_the_others_are_their_context() -> None:
    spans = [ROOT, call(1, (1,), (2,)), call(2, (1, 2, 3), (4,))]
    chosen = RowPolicy(trains=lambda each: each.span.span_id == spans[2].span_id)

    (row,) = build_rows(spans, chosen)

    assert (row.loss_mask, [segment.trained for segment in row.segments]) == ((0, 0, 0, 1), [False, True])
    assert build_rows(spans, chosen).counts == {"not_wanted": 1}


def test_other_agents_judges_and_calls_of_a_reward_are_context_where_they_are_not_trained() -> None:
    spans = [
        ROOT,
        call(1, (1,), (2,), agent="a" * 16),
        call(2, (1, 2, 3), (4,), agent="b" * 16),
        call(3, (1, 2, 3, 4, 5), (6,), agent="a" * 16),
        work("a" * 16, ROOT_ID, 0.5, 9.0, {"gen_ai.agent.name": "planner"}),
        work("b" * 16, ROOT_ID, 0.6, 9.0, {"gen_ai.agent.name": "critic"}),
    ]
    judged = [each.model_copy(deep=True) for each in spans]
    judged[2].attributes["agentlightning.role"] = "judge"

    for given_, policy, code in (
        (spans, RowPolicy(agent_match="planner"), "other_agent"),
        (judged, RowPolicy(), "other_role"),
    ):
        rows = build_rows(given_, policy)
        assert [(row.token_ids, row.loss_mask) for row in rows] == [((1, 2, 3, 4, 5, 6), (0, 1, 0, 0, 0, 1))]
        assert rows.counts == {code: 1}
    assert build_rows(judged, RowPolicy(roles=None))[0].loss_mask == (0, 1, 0, 1, 0, 1)
    (only,) = build_rows(judged, RowPolicy(roles={"judge"}))
    assert (only.token_ids, only.loss_mask) == ((1, 2, 3, 4), (0, 0, 0, 1))


def test_a_response_that_two_spans_record_is_trained_once() -> None:
    spans = [ROOT, call(1, (1,), (2,)), call(2, (1,), (2,)), call(3, (1, 2, 3), (4,))]
    spans[2].attributes["gen_ai.response.id"] = spans[1].attributes["gen_ai.response.id"]

    rows = build_rows(spans)

    assert [(row.token_ids, row.loss_mask) for row in rows] == [((1, 2, 3, 4), (0, 1, 0, 1))]
    assert rows.counts == {"duplicate_response": 1}
    assert [segment.span_id for segment in rows[0].segments] == [spans[1].span_id, spans[3].span_id]


def test_attempts_have_rows_of_their_own() -> None:
    first = [ROOT, call(1, (1,), (2,)), call(2, (1, 2, 3), (4,))]
    second = [span.model_copy(update={"attempt_id": "at-2"}) for span in first]

    rows = build_rows([*first, *second])

    assert [(row.attempt_id, row.index, row.token_ids) for row in rows] == [
        ("at-1", 0, (1, 2, 3, 4)),
        ("at-2", 0, (1, 2, 3, 4)),
    ]


@some
@given(stories)
def test_a_lost_root_and_lost_agents_change_no_row_of_conversations_that_are_apart(story: Story) -> None:
    assume(not story.given_up())
    lost = [span for span in story.spans if span.name.startswith(("chat", "agentlightning"))]

    assert said(build_rows(lost, NAMED)) == said(rows_of(story))


@pytest.mark.soak
@settings(max_examples=3_000)
@given(stories)
def test_b1_to_b9_soak(story: Story) -> None:
    rows = rows_of(story)

    assert said(rows) == [
        (row.token_ids, row.loss_mask, row.logprobs, row.keys, row.trained, row.media) for row in story.rows()
    ]
    assert said(build_rows(list(reversed(story.spans)), NAMED)) == said(rows)


def grown(turns: int, prompt: int, heard: int, length: int) -> list[Span]:
    chance = random.Random(turns)
    ids: Ids = tuple(chance.randrange(50_000) for _ in range(prompt))
    spans = [ROOT]
    for number in range(1, turns + 1):
        output = tuple(chance.randrange(50_000) for _ in range(length))
        spans.append(call(number, ids, output, start=number / 1000))
        ids += output + tuple(chance.randrange(50_000) for _ in range(heard))
    return spans


@pytest.mark.parametrize(
    ("turns", "prompt"),
    [
        (200, 500),
        pytest.param(1_000, 1_000, marks=pytest.mark.soak),
        pytest.param(60, 100_000, marks=pytest.mark.soak),
    ],
)
def test_a_long_conversation_is_one_row(turns: int, prompt: int) -> None:
    spans = grown(turns, prompt, heard=20, length=10)

    (row,) = build_rows(spans)

    assert row.trained_tokens == turns * 10
    assert len(row) == prompt + turns * 30 - 20
    assert len(row.segments) == turns


def test_many_calls_with_one_long_beginning_are_rows_of_their_own() -> None:
    spans = grown(1, 20_000, 0, 1)
    shared = tuple(spans[1].attributes["agentlightning.prompt_token_ids"])
    spans += [call(number, (*shared, 60_000 + number), (number,)) for number in range(2, 80)]

    rows = build_rows(spans)

    assert len(rows) == 79
    assert {row.trained_tokens for row in rows} == {1}


def test_steps_are_the_same_whoever_talks_beside_them() -> None:
    alone = [Step(1, 0, "turn", "", seed) for seed in range(5)]
    beside = [each for step in alone for each in (step, moved(step))]

    assert [each.output for each in tell(alone).answers] == [
        each.output for each in tell(beside).answers if each.conversation == 1
    ]


def moved(step: Step) -> Step:
    return step._replace(conversation=2)
