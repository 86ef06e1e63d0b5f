"""What every exporter asks of rows before it reshapes them: trainers validate almost nothing."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Literal

from ..errors import NotExportable
from ..rows.training import Segment, TrainingRow

Unit = tuple[str, str]
"""``(rollout_id, attempt_id)``."""

Weights = Literal["rows", "rollouts"]
"""What counts as one where advantages are passed on: each row, or each rollout, whose rows then share it (1/N each)."""


Rewards = Literal["rollout", "steps"]
"""Whose rewards are passed on: the one of the rollout, or those of its answers as well."""


def exportable(rows: Iterable[TrainingRow]) -> list[TrainingRow]:
    """Return the rows, each of them sound.

    Raises:
        NotExportable: Lists of a row differ in length, it trains nothing, its mask trains what was not sampled, or the
            policy saw images, audio or files, of which its ids hold placeholders only.
    """
    return [_checked(row) for row in rows]


def sampled_at(rows: Iterable[TrainingRow], temperature: float | None) -> None:
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


def numbers(row: TrainingRow) -> list[float]:
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


def by_rollout(rows: Sequence[TrainingRow]) -> Iterator[tuple[Unit, list[TrainingRow]]]:
    """Yield the rows of each rollout together, in the order in which the rollouts first come."""
    units: dict[Unit, int] = {}
    for row in rows:
        units.setdefault(_unit(row), len(units))
    # ``groupby`` only joins neighbours, and rows of two rollouts may be mixed.
    in_order = sorted(rows, key=lambda row: (units[_unit(row)], row.index))
    for unit, own in groupby(in_order, key=_unit):
        yield unit, list(own)


def scored(row: TrainingRow) -> float:
    """Return the reward of a row.

    Raises:
        NotExportable: It is unscored, and the target knows no unscored rollouts.
    """
    if row.reward is None:
        # Where single answers have rewards, that is the better word for what is missing.
        refuse_steps([row])
        raise NotExportable(
            f"{_name(row)} is unscored, and 0.0 would train it as a failure; leave it out, or give it a reward"
        )
    return row.reward


def refuse_steps(rows: Iterable[TrainingRow]) -> None:
    """Refuse rows of rollouts of which single answers have rewards and the rollout has none.

    Raises:
        NotExportable: There is such a row: a trainer of rollouts would take it for unscored, and say nothing.
    """
    for row in rows:
        if row.reward is None and has_steps(row):
            raise NotExportable(
                f"{_name(row)} has rewards for single answers, and its rollout has none; what is written here has one "
                "reward for the rollout: give it one (emit_reward() without a target), or use a trainer that takes "
                "rewards per step (SkyRL or verl with rewards='steps')"
            )


def by_step(rewards: Rewards) -> bool:
    """Whether the rewards of single answers are handed on.

    Raises:
        ValueError: ``rewards`` is neither ``rollout`` nor ``steps``.
    """
    if rewards not in ("rollout", "steps"):
        raise ValueError(f"rewards is 'rollout' or 'steps', not {rewards!r}")
    return rewards == "steps"


def has_steps(row: TrainingRow) -> bool:
    """Whether an answer that the row trains has a reward of its own."""
    return any(segment.trained and segment.rewards for segment in row.segments)


def rewards_by_token(rows: Sequence[TrainingRow]) -> list[list[float]]:
    """Return a reward for each token behind the first prompt of each row, in the order of :func:`by_rollout`.

    The reward of an answer stands at its last token (or at the last of the tokens that it is for), that of the rollout
    at the last token of its last row; everything else is 0.0, and each reward stands once.

    Raises:
        NotExportable: A reward of an answer is no number, or a rollout has no reward at all.
    """
    found: list[list[float]] = []
    for _, own in by_rollout(rows):
        # Rewards of answers are enough; without any, the rollout has to have one.
        if not any(map(has_steps, own)):
            scored(own[0])
        found += map(_steps, own)
        # Added, not set: the last answer may have a reward of its own at the same token.
        found[-1][-1] += own[-1].reward or 0.0
    return found


def shares(rows: Sequence[TrainingRow], weights: Weights) -> list[float]:
    """Return the weight of each row: 1, or one over the number of rows of its rollout.

    Raises:
        ValueError: ``weights`` is neither ``rows`` nor ``rollouts``.
    """
    if weights not in ("rows", "rollouts"):
        raise ValueError(f"weights is 'rows' or 'rollouts', not {weights!r}")
    counts = Counter(map(_unit, rows))
    return [1.0 if weights == "rows" else 1.0 / counts[_unit(row)] for row in rows]


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
    # Whether a distribution of unknown cuts was whole is not asked for: ``cut`` is ``None`` then.
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
    # An engine writes the same placeholder ids for any image of one size.
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
    # A mask may have been changed by hand: it must be that of the sampled tokens, and there must be a prompt.
    sampled = sum(segment.trained_tokens for segment in row.segments)
    if sampled != row.trained_tokens or not 0 < row.prompt_length < length:
        raise NotExportable(f"{_name(row)} has a mask that is not that of its answers")
    return row


def _steps(row: TrainingRow) -> list[float]:
    values = [0.0] * len(row.completion_ids)
    for segment in row.segments:
        for step in segment.rewards if segment.trained else ():
            if step.value is None:
                raise NotExportable(
                    f"{_name(row)} has a reward for an answer (span {step.span_id}) that is no number, and 0.0 would "
                    "train it as a failure"
                )
            # A cut row ends before the tokens that the reward is for: then it stands at the last one that is left.
            end = segment.end if step.tokens is None else segment.start + step.tokens[1]
            values[min(end, segment.end) - 1 - row.prompt_length] += step.value
    return values


def _unit(row: TrainingRow) -> Unit:
    return row.rollout_id, row.attempt_id


def _name(row: TrainingRow) -> str:
    return f"row {row.index} of rollout {row.rollout_id}, attempt {row.attempt_id}"
