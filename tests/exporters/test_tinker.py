"""Tinker takes our rows: everything shifted by one, and runs that tile (property E4)."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sample_rows import FORKED, LINEAR, rows_of, two_groups

from agentlightning.errors import NotExportable
from agentlightning.exporters.tinker import (
    loss_inputs,
    provenance,
    to_datums,
    to_trajectory_groups,
)

lengths = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=4)


def conversation(turns: list[Any]) -> list[Any]:
    """Return turns of one conversation: so many new prompt tokens, so many sampled ones, each turn."""
    history: list[int] = []
    found = []
    for asked, answered in turns:
        prompt = [*history, *range(100 + len(history), 100 + len(history) + asked)]
        answer = list(range(500 + len(prompt), 500 + len(prompt) + answered))
        found.append((tuple(prompt), tuple(answer)))
        history = [*prompt, *answer]
    return found


@given(lengths)
def test_e4_everything_is_shifted_by_one_and_runs_tile(turns: list[Any]) -> None:
    (row,) = rows_of(conversation(turns))
    inputs = loss_inputs(row, 2.0)

    assert {name: len(values) for name, values in inputs.items()} == dict.fromkeys(inputs, len(row) - 1)
    for place, token in enumerate(row.token_ids[1:]):
        assert inputs["target_tokens"][place] == token
        assert inputs["logprobs"][place] == row.logprobs[place + 1]
        assert inputs["advantages"][place] == (2.0 if row.loss_mask[place + 1] else 0.0)
    runs = provenance(row)
    assert sum(run.length for run in runs) == len(row)
    sampled = [run for run in runs if run.sampled]
    assert [run.length for run in sampled] == [segment.end - segment.start for segment in row.segments]


def test_a_token_without_a_log_probability_is_refused() -> None:
    rows = rows_of(LINEAR)
    (row,) = rows
    broken = type(row)(
        **{**{name: getattr(row, name) for name in row.__slots__}, "logprobs": (None,) * len(row)}
    )
    with pytest.raises(NotExportable, match="without log-probabilities"):
        loss_inputs(broken, 1.0)


def test_the_cookbooks_groups_have_a_trajectory_per_row() -> None:
    groups = to_trajectory_groups(two_groups())

    assert [group.group_id for group in groups] == ["g1", "g2"]
    assert groups[0].final_rewards == [1.0, 0.0, 0.0]
    first = groups[0].trajectories[0]
    assert [step.ob for step in first] == [list(prompt) for prompt, _ in LINEAR]
    assert [step.ac["tokens"] for step in first] == [list(answer) for _, answer in LINEAR]
    assert [step.episode_done for step in first] == [False, False, True]
    with pytest.raises(NotExportable, match="unscored"):
        to_trajectory_groups(rows_of(LINEAR, reward=None))


def test_e4_with_the_real_tinker() -> None:
    tinker = pytest.importorskip("tinker", reason="scripts/trainers installs tinker")
    rows = two_groups()
    datums = to_datums(rows)

    assert len(datums) == len(rows)
    for row, datum in zip(rows, datums, strict=True):
        assert datum.model_input.to_ints() == list(row.token_ids[:-1])
        assert datum.loss_fn_inputs["target_tokens"].data == list(row.token_ids[1:])
        assert datum.loss_fn_inputs["target_tokens"].dtype == "int64"
        assert datum.loss_fn_inputs["logprobs"].data == list(row.logprobs[1:])  # exact in float32
        if hasattr(tinker, "SampledProvenanceSpan"):  # SkyRL's server takes older clients only
            assert datum.model_input_spans is not None
            assert datum.loss_fn_input_spans is not None
            assert sum(span.length for span in datum.loss_fn_input_spans) == len(row) - 1
    advantages = [max(datum.loss_fn_inputs["advantages"].data, key=abs) for datum in datums]
    assert advantages == [0.5, -0.5, -0.5, -0.25, 0.25, 0.25]


def test_with_the_real_tinker_the_rows_of_a_rollout_may_share_its_advantage() -> None:
    pytest.importorskip("tinker", reason="scripts/trainers installs tinker")
    rows = [*rows_of(LINEAR, "a", 1.0), *rows_of(FORKED, "b", 0.0)]
    found = [
        [max(datum.loss_fn_inputs["advantages"].data, key=abs) for datum in datums]
        for datums in (to_datums(rows, weights="rows"), to_datums(rows, weights="rollouts"))
    ]
    assert found == [[0.5, -0.5, -0.5], [0.5, -0.25, -0.25]]


def test_with_the_real_tinker_unscored_rollouts_are_dropped_or_refused() -> None:
    pytest.importorskip("tinker", reason="scripts/trainers installs tinker")
    rows = [*rows_of(LINEAR, "ro-1", None), *rows_of(LINEAR, "ro-2", 1.0), *rows_of(FORKED, "ro-3", 0.0)]

    assert len(to_datums(rows)) == 3
    with pytest.raises(NotExportable, match="unscored"):
        to_datums(rows, on_unscored="error")
    with pytest.raises(ValueError, match="has no group"):
        to_datums(rows_of(LINEAR, group_id=None))
    with pytest.raises(ValueError, match="1 advantages for 4 rows"):
        to_datums(rows, advantage=[1.0])
    given = to_datums(rows_of(LINEAR), advantage=[0.75])
    assert max(given[0].loss_fn_inputs["advantages"].data) == 0.75
