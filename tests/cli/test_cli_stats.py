"""``agl stats``: rewards over time and by version, and why calls were refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_sample import agl, build

from agentlightning import open_store
from agentlightning.cli.outcomes import columns, drawn, versions_in_order


@pytest.mark.parametrize(
    ("rewards", "width", "shown"),
    [
        ([0.0, 0.5, 1.0], 10, "▁▅█"),
        ([0.0, None, 1.0], 10, "▁·█"),
        ([0.0, 1.0, 1.0, 1.0], 2, "▁█"),
        ([0.3, 0.3], 10, "▅▅"),
        ([-1.0, 1.0], 10, "▁█"),
        ([None, None], 10, "··"),
        ([-1.79e308, -1.79e308, 1.79e308, 1.79e308], 2, "▁█"),
        ([], 10, ""),
    ],
)
def test_a_column_is_a_mean_and_a_reward_that_is_missing_is_not_0(
    rewards: list[float | None], width: int, shown: str
) -> None:
    assert drawn(columns(rewards, width)) == shown


def test_versions_stand_in_the_order_of_their_numbers() -> None:
    assert versions_in_order({"10": [], "unknown": [], "9": [], "abc": []}) == ["9", "10", "abc", "unknown"]


def test_rewards_and_refusals_are_told_of_the_rollouts_that_are_meant(tmp_path: Path) -> None:
    sample = build(tmp_path)
    shown = agl("stats", "--store", sample.url, columns=60)
    assert shown.code == 0
    assert max(map(len, shown.out.splitlines())) <= 80
    assert "rewards of 3 rollouts, oldest first" in shown.out
    assert "2 without a reward (·)" in shown.out
    assert "▅··" in shown.out
    newest = agl("stats", "--limit", "1", "--store", sample.url).out
    assert "rewards of 1 rollout of 3" in newest, "what waits in a queue is newer, and has nothing to count"
    assert "unknown" in shown.out, "of which version the weights were nobody said"
    refused = agl("stats", "--model", "other", "--store", sample.url)
    assert refused.code == 0
    assert "2 of 2 model calls give no row:" in refused.out
    assert "(other_model)" in refused.out
    none = agl("stats", "--name", "no such", "--store", sample.url)
    assert (none.code, none.err) == (0, "none of 4 rollouts matches; leave out a filter\n")
    url = f"sqlite:///{tmp_path / 'queue.db'}"
    with open_store(url) as queue:
        queue.enqueue_rollout("a")
    waits = agl("stats", "--store", url)
    assert (waits.code, waits.err.partition(";")[0]) == (0, "none of 1 rollout has begun")
    outcomes = json.loads(agl("stats", "--json", sample.solved, "--store", sample.url).out)["outcomes"]
    assert outcomes["rewards"] == [1.0]
    assert outcomes["by_version"] == {"unknown": {"rollouts": 1, "mean": 1.0}}
