"""What every exporter asks of rows before it reshapes them: trainers validate almost nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Dict, List, Tuple

from ..adapter.training import TrainingRow
from ..errors import NotExportable

Unit = Tuple[str, str]
"""``(rollout_id, attempt_id)``."""


def exportable(rows: Iterable[TrainingRow]) -> List[TrainingRow]:
    """Return the rows, each of them sound.

    Raises:
        NotExportable: Lists of a row differ in length, it trains nothing, or its mask trains what was not sampled.
    """
    return [_checked(row) for row in rows]


def numbers(row: TrainingRow) -> List[float]:
    """Return the log-probabilities of a row as numbers, 0.0 on context.

    Raises:
        NotExportable: A trained token has none.
    """
    found = [value for value in row.logprobs if value is not None]
    if len(found) != len(row.logprobs):
        why = "; ".join(f"{code.code}: {code.sentence}" for code in row.unproven) or "it has none"
        raise NotExportable(
            f"{_name(row)} trains tokens without log-probabilities ({why}), and this trainer needs them; "
            "agl explain says what to add, RowPolicy(require_logprobs=True) leaves such answers out"
        )
    return found


def by_rollout(rows: Sequence[TrainingRow]) -> Iterator[Tuple[Unit, List[TrainingRow]]]:
    """Yield the rows of each rollout together, in the order in which the rollouts first come."""
    units: Dict[Unit, int] = {}
    for row in rows:
        units.setdefault(_unit(row), len(units))
    in_order = sorted(rows, key=lambda row: (units[_unit(row)], row.index))
    for unit, own in groupby(in_order, key=_unit):
        yield unit, list(own)


def scored(row: TrainingRow) -> float:
    """Return the reward of a row.

    Raises:
        NotExportable: It is unscored, and the target knows no unscored rollouts.
    """
    if row.reward is None:
        raise NotExportable(
            f"{_name(row)} is unscored, and 0.0 would train it as a failure; leave it out, or give it a reward"
        )
    return row.reward


def group(row: TrainingRow) -> str:
    """Return the group of a row.

    Raises:
        NotExportable: It has none.
    """
    if row.group_id is None:
        raise NotExportable(f"{_name(row)} has no group: enqueue its rollout with metadata={{'group_id': …}}")
    return row.group_id


def _checked(row: TrainingRow) -> TrainingRow:
    length = len(row.token_ids)
    if not len(row.loss_mask) == len(row.logprobs) == length:
        raise NotExportable(f"{_name(row)} has {length} tokens and lists of other lengths")
    if not row.trained_tokens:
        raise NotExportable(f"{_name(row)} trains nothing")
    sampled = sum(segment.trained_tokens for segment in row.segments)
    if sampled != row.trained_tokens or not 0 < row.prompt_length < length:
        raise NotExportable(f"{_name(row)} has a mask that is not that of its answers")
    return row


def _unit(row: TrainingRow) -> Unit:
    return row.rollout_id, row.attempt_id


def _name(row: TrainingRow) -> str:
    return f"row {row.index} of rollout {row.rollout_id}, attempt {row.attempt_id}"
