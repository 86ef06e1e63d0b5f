"""Which policy sampled what: properties D1, D3 and D4."""

from __future__ import annotations

import json

import pytest
from conversations import ROOT_ID, Story, call, rows_of, stories, work
from hypothesis import given, settings
from hypothesis import strategies as st

from agentlightning.rows import RowPolicy, build_rows
from agentlightning.types import Span

some = settings(max_examples=40)
ROOT = work(ROOT_ID, None, 0.0, 1000.0)


@some
@given(stories)
def test_d1_each_sampled_token_has_its_version_and_a_row_the_oldest_and_the_newest(story: Story) -> None:
    answers = {answer.key: answer for answer in story.answers}
    for row in rows_of(story):
        for segment in row.segments:
            answer = answers[segment.span_id, segment.choice.index]
            named = [part.version for part in segment.versions for _ in range(part.start, part.end)]
            assert named == list(map(str, answer.versions))
            assert all(segment.start <= part.start < part.end <= segment.end for part in segment.versions)
        trained = [answers[each.span_id, each.choice.index] for each in row.segments if each.trained]
        versions = [version for answer in trained for version in answer.versions]
        known = all(answer.versions for answer in trained)
        assert row.versions == ((min(versions), max(versions)) if known else None)


@some
@given(stories, st.integers(0, 6))
def test_d3_stale_answers_are_context_and_counted(story: Story, oldest: int) -> None:
    rows = rows_of(story, min_version=oldest)

    codes = {(each.span_id, each.choice): each.code for each in rows.decisions}
    expected = {}
    for answer in story.trained():
        unknown = "version_unknown" if not answer.versions else None
        expected[answer.key] = "stale" if answer.versions and min(answer.versions) < oldest else unknown
    assert {key: codes[key] for key in expected} == expected
    for code in ("stale", "version_unknown"):
        assert rows.counts.get(code, 0) == list(expected.values()).count(code)
    assert rows.trained_tokens == sum(
        len(answer.output) for answer in story.trained() if expected[answer.key] is None
    )
    assert all((row.versions or (-1, -1))[0] >= oldest for row in rows)


def test_d3_a_stale_answer_stays_in_the_context_of_what_was_built_on_it() -> None:
    spans = [ROOT, call(1, (1,), (2,), versions=(3,)), call(2, (1, 2, 5), (6, 7), versions=(3, 4))]
    spans.append(call(3, (1, 2, 5, 6, 7), (8,), versions=(4,)))

    rows = build_rows(spans, RowPolicy(min_version=4))

    assert [(row.token_ids, row.loss_mask, row.versions) for row in rows] == [
        ((1, 2, 5, 6, 7, 8), (0, 0, 0, 0, 0, 1), (4, 4))
    ]
    assert rows.counts == {"stale": 2}
    assert [each.detail for each in rows.decisions] == ["version 3", "version 3", ""]


@given(st.lists(st.integers(1, 3), min_size=2, max_size=5), st.integers(0, 2))
def test_d4_a_generation_that_was_stopped_and_resumed_is_one_piece_of_several_versions(
    lengths: list[int], heard: int
) -> None:
    spans, prompt, versions = [ROOT], (9,) * (heard + 1), []
    for number, length in enumerate(lengths, start=1):
        spans.append(call(number, prompt, (number,) * length, versions=(number,) * length))
        prompt += (number,) * length
        versions += [str(number)] * length

    (row,) = build_rows(spans)

    assert row.token_ids == prompt
    assert row.loss_mask == (0,) * (heard + 1) + (1,) * len(versions)
    assert [(part.end - part.start) for each in row.segments for part in each.versions] == lengths
    assert [
        part.version for each in row.segments for part in each.versions for _ in range(part.start, part.end)
    ] == versions
    assert [each.end for each in row.segments[:-1]] == [each.start for each in row.segments[1:]]
    assert row.versions == (1, len(lengths))


def test_d4_a_stop_inside_of_one_call_keeps_both_versions() -> None:
    (row,) = build_rows([ROOT, call(1, (1,), (2, 3, 4), versions=(7, 7, 8))])

    (segment,) = row.segments
    assert [(part.version, part.start, part.end) for part in segment.versions] == [("7", 1, 3), ("8", 3, 4)]
    assert row.versions == (7, 8)


# ------------------------------------------------------------------ versions that are none


def with_versions(written: object) -> Span:
    span = call(1, (1, 2), (3, 4))
    span.attributes["agentlightning.policy_version"] = json.dumps([written])
    return span


@pytest.mark.parametrize("name", ["v1", "²", "٣", "--5", "-", "9" * 5_000, "1.5", ""])
def test_a_version_that_is_no_whole_number_has_no_order(name: str) -> None:
    spans = [ROOT, with_versions([{"version": name, "start": 0, "end": 2}])]

    (row,) = build_rows(spans)
    assert row.versions is None
    assert [part.version for part in row.segments[0].versions] == [name]
    assert build_rows(spans, RowPolicy(min_version=0)).counts == {"version_unknown": 1}


@pytest.mark.parametrize(
    "written",
    [
        [{"version": "1", "start": 0, "end": 1}],
        [{"version": "1", "start": 1, "end": 2}],
        [{"version": "1", "start": 0, "end": 3}],
        [{"version": "1", "start": 0, "end": 1}, {"version": "2", "start": 0, "end": 2}],
        [{"version": "1", "start": -1, "end": 2}],
        [{"version": "1", "start": 0.0, "end": 2.0}],
        [{"version": "1", "start": "x", "end": None}],
    ],
    ids=str,
)
def test_versions_from_a_file_that_do_not_tile_the_tokens_are_found(written: object) -> None:
    rows = build_rows([ROOT, with_versions(written)])

    assert (len(rows), rows.counts) == (0, {"versions": 1})
