"""Rows cut to what a trainer has room for (property B12): every list at the same place, and what is gone is counted.

Only the end is cut. A row whose prompt is too long is left out instead: with its beginning or its end gone, answers
would be trained to a prompt that nobody asked.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from ..rows.training import TrainingRow

OVER_LONG_PROMPT = "over_long_prompt"
NOTHING_FITS = "nothing_fits"
UNSCORED = "unscored"


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A row that is not exported."""

    rollout_id: str
    attempt_id: str
    index: int
    reason: str
    """``over_long_prompt``, ``nothing_fits`` (none of its trained tokens does) or ``unscored``."""


def left_out(row: TrainingRow, reason: str) -> LeftOut:
    """Return the record of a row that is not exported."""
    return LeftOut(row.rollout_id, row.attempt_id, row.index, reason)


def cut_to(
    rows: Iterable[TrainingRow], *, prompt_length: int | None = None, response_length: int | None = None
) -> tuple[list[TrainingRow], list[LeftOut]]:
    """Return the rows within the limits, and those that are left out.

    Args:
        rows: Rows.
        prompt_length: Tokens of the first prompt; ``None`` = any number.
        response_length: Tokens behind it; a longer row is cut. ``None`` = any number.

    Raises:
        ValueError: A limit is not positive.
    """
    for name, limit in (("prompt_length", prompt_length), ("response_length", response_length)):
        if limit is not None and limit < 1:
            raise ValueError(f"{name} is a number of tokens of at least 1, not {limit}")
    kept: list[TrainingRow] = []
    gone: list[LeftOut] = []
    for row in rows:
        # The prompt is looked at first: a row without a whole prompt is of no use, however short it is cut.
        if prompt_length is not None and row.prompt_length > prompt_length:
            gone.append(left_out(row, OVER_LONG_PROMPT))
            continue
        cut = row if response_length is None else _cut(row, row.prompt_length + response_length)
        if cut is None:
            gone.append(left_out(row, NOTHING_FITS))
        else:
            kept.append(cut)
    return kept, gone


def _cut(row: TrainingRow, limit: int) -> TrainingRow | None:
    if len(row) <= limit:
        return row
    # Only beginnings of trained answers count: a row that ends in context trains nothing at its end.
    ends = [min(segment.end, limit) for segment in row.segments if segment.trained and segment.start < limit]
    if not ends:
        return None
    end = max(ends)  # context behind the last trained token is of no use
    return replace(
        row,
        token_ids=row.token_ids[:end],
        loss_mask=row.loss_mask[:end],
        logprobs=row.logprobs[:end],
        # Positions do not move, because only the end is cut; what a segment says beside them is of its whole answer.
        segments=tuple(
            replace(segment, end=min(segment.end, end)) for segment in row.segments if segment.start < end
        ),
        cut_tokens=row.cut_tokens + len(row) - end,
    )
