"""Groups of rollouts for TRL's ``AsyncGRPOTrainer``, without TRL."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from sample_rows import FORKED, LINEAR, rows_of

from agentlightning.rows.advantage import Formula
from agentlightning.training.trl import groups
from agentlightning.training.trl.groups import Barren, Group, Groups, NothingToTrain, Scoring


def test_a_group_is_due_when_it_is_complete_and_the_rest_at_the_end() -> None:
    open_groups = Groups(2)
    first = open_groups.add("a", ())
    assert open_groups.take_due("a") is None
    other = open_groups.add("b", ())
    assert open_groups.add("a", ()) is first
    assert open_groups.take_due("a") is first
    assert list(open_groups.take_all()) == [other]
    assert (first.number, other.number) == (0, 1)
    assert list(open_groups.take_all()) == []


def test_of_too_many_open_groups_the_oldest_is_due() -> None:
    open_groups = Groups(2)
    made = [open_groups.add(str(number), ()) for number in range(groups.OPEN_GROUPS)]
    assert open_groups.take_due("0") is None
    open_groups.add("one more", ())
    assert open_groups.take_due("one more") is made[0]


@pytest.mark.parametrize(("weights", "share"), [("rows", 1.0), ("rollouts", 0.5)])
def test_rows_share_the_advantage_of_their_rollout_and_unscored_ones_take_no_part(
    weights: str, share: float
) -> None:
    rollouts: list[Sequence[object]] = [
        rows_of(LINEAR, "ro-1", 1.0),
        (),  # refused
        rows_of(FORKED, "ro-2", 0.0),
        rows_of(LINEAR, "ro-3", None),
    ]
    scoring = Scoring(lambda rows: rows[0].reward, Formula.TRL_ASYNC, weights)  # type: ignore[arg-type]
    found, spread = scoring.score(Group(0, rollouts))  # type: ignore[arg-type]

    assert [each.reward for each in found] == [1.0, 0.0, None]
    assert spread == 0.5
    assert [advantage for _, advantage in found[0].rows] == pytest.approx([1.0])
    assert [advantage for _, advantage in found[1].rows] == pytest.approx([-share, -share])
    assert list(found[2].rows) == []


def test_groups_without_anything_to_train_end_it_with_their_reasons() -> None:
    barren = Barren(3)
    lost = Group(0, [(), ()])
    lost.reasons["agent_failed"] = 2
    barren.note(lost, trained=False)
    barren.note(lost, trained=True)
    barren.note(lost, trained=False)
    with pytest.raises(NothingToTrain, match=r"none of the last 4 .* \{'agent_failed': 4\}"):
        barren.note(lost, trained=False)
    for _ in range(100):
        Barren(None).note(lost, trained=False)
