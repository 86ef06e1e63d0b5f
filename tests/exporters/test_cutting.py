"""Rows within a trainer's limits: every list cut at the same place, over-long prompts left out (property B12)."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sample_rows import FORKED, LINEAR, rows_of
from test_tinker import conversation, lengths

from agentlightning.exporters.cutting import LeftOut, cut_to


@given(lengths, st.integers(1, 40), st.integers(1, 40))
def test_b12_after_cutting_everything_has_one_length(
    turns: list[Any], prompt_length: int, response_length: int
) -> None:
    (row,) = rows_of(conversation(turns))
    kept, gone = cut_to([row], prompt_length=prompt_length, response_length=response_length)

    if row.prompt_length > prompt_length:
        assert not kept
        assert [each.reason for each in gone] == ["over_long_prompt"]
        return
    (cut,) = kept  # the first answer begins right behind the prompt: something of it fits
    assert not gone
    assert len(cut.token_ids) == len(cut.loss_mask) == len(cut.logprobs) == len(row) - cut.cut_tokens
    assert len(cut.completion_ids) <= response_length
    assert cut.prompt_ids == row.prompt_ids
    assert cut.token_ids == row.token_ids[: len(cut)]
    assert cut.loss_mask == row.loss_mask[: len(cut)]
    assert cut.logprobs == row.logprobs[: len(cut)]
    assert cut.loss_mask[-1] == 1
    assert sum(row.loss_mask[: row.prompt_length + response_length]) == cut.trained_tokens
    assert sum(each.end - each.start for each in cut.segments) == cut.trained_tokens
    versions = [part for segment in cut.segments for part in segment.versions]
    assert sum(part.end - part.start for part in versions) == cut.trained_tokens
    assert (cut.finish_reason == "length") == (len(cut) < len(row))


def test_of_a_row_whose_trained_tokens_lie_behind_the_limit_nothing_is_left() -> None:
    first, second = rows_of(FORKED)
    kept, gone = cut_to([first, second], response_length=3)

    assert [row.index for row in kept] == [0]
    assert gone == [LeftOut("ro-1", "at-ro-1", 1, "nothing_fits")]


def test_without_limits_rows_stay_as_they_are() -> None:
    rows = list(rows_of(LINEAR))

    assert cut_to(rows) == (rows, [])
    assert cut_to(rows, prompt_length=3, response_length=9)[0][0] is rows[0]
    with pytest.raises(ValueError, match="response_length is a number of tokens of at least 1, not 0"):
        cut_to(rows, response_length=0)
