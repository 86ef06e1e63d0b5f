"""What every exporter asks of rows before it reshapes them: trainers validate almost nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Dict, List, Optional, Tuple

from ..adapter.training import Segment, TrainingRow
from ..errors import NotExportable

Unit = Tuple[str, str]
"""``(rollout_id, attempt_id)``."""


def exportable(rows: Iterable[TrainingRow]) -> List[TrainingRow]:
    """Return the rows, each of them sound.

    Raises:
        NotExportable: Lists of a row differ in length, it trains nothing, its mask trains what was not sampled, or the
            policy saw images, audio or files, of which its ids hold placeholders only.
    """
    return [_checked(row) for row in rows]


def sampled_at(rows: Iterable[TrainingRow], temperature: Optional[float]) -> None:
    """Refuse rows that a trainer would train on another distribution than the one that they were sampled from.

    A trainer divides its logits by one temperature of its own and normalises over the whole vocabulary. Whether the
    distribution was cut need not be known: what servers do where a request says nothing about it often is not. The
    temperature must be.

    Args:
        rows: Rows.
        temperature: The trainer's; ``None`` compares nothing.

    Raises:
        NotExportable: A trained answer was sampled at another temperature, greedily, at one that nobody knows, or from
            a distribution that is known to have been cut (``top_p``, ``top_k``, ``min_p`` …).
    """
    if temperature is None:
        return
    for row in rows:
        for segment in row.segments:
            if segment.trained:
                _check_sampling(row, segment, temperature)


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


def _check_sampling(row: TrainingRow, segment: Segment, temperature: float) -> None:
    found, cut = segment.temperature, segment.truncation
    if found is None:
        what = "at a temperature that nobody knows (name it in the request)"
    elif found == 0 or not math.isclose(found, temperature, rel_tol=1e-6):
        what = f"at temperature {found:g}"
    elif cut:
        what = f"with {', '.join(f'{name}={value:g}' for name, value in cut.items())}"
    else:
        return
    raise NotExportable(
        f"{_name(row)} has an answer (span {segment.span_id}) that was sampled {what}, and this trainer computes "
        f"log-probabilities at temperature {temperature:g} over the whole vocabulary; sample as it does, pass its "
        "setting as temperature=…, or temperature=None to train on them all the same"
    )


def _checked(row: TrainingRow) -> TrainingRow:
    if row.media:
        kinds = ", ".join(dict.fromkeys(each.kind for each in row.media))
        raise NotExportable(
            f"{_name(row)} saw media ({kinds}), of which its token ids hold placeholders only, and this shape has no "
            "place for them: leave out rows with row.media"
        )
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
