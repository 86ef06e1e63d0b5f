"""What a trainer did with the tokens of a row, as spans beside the spans that the tokens come from.

A trainer stores, for each token of a row, its advantage, the log-probability that its own weights give it, and
the mask that it used. :func:`write_back_spans` cuts that at the borders of the sampled answers and makes one span for
each trained one, linked to the span of its call. A hand-back that does not fit its row is refused: a training run
whose tokens are not those of the row has gone wrong, and must not look right afterwards.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ..codec.attributes import extract_links_from_attributes
from ..errors import MisalignedWriteBack
from ..semconv import AGL_WRITE_BACK, WriteBackAttributes
from ..types import Span, SpanLike
from .rewards import CHOICE_INDEX, reward_target
from .training import Segment, TrainingRow
from .tree import as_spans

PerToken = float | Sequence[float | None]
"""One number for every trained token, or one for each token of the row (anything where the mask is 0)."""


@dataclass(frozen=True, slots=True)
class WriteBack:
    """What a trainer stored for one sampled answer; lists have one entry per sampled token."""

    call: str
    """Span id of the call."""
    choice: int
    run_id: str
    step: int
    token_ids: tuple[int, ...]
    mask: tuple[int, ...]
    """What the trainer trained: 1, or 0 where it left a token out."""
    advantages: tuple[float, ...] | None
    logprobs: tuple[float, ...] | None
    """Of the trainer's weights."""


def write_back_spans(
    row: TrainingRow,
    *,
    run_id: str,
    step: int,
    token_ids: Sequence[int],
    advantages: PerToken | None = None,
    logprobs: PerToken | None = None,
    mask: Sequence[int] | None = None,
) -> list[Span]:
    """Return the spans of a hand-back, one per trained answer. Giving it again makes the same spans.

    Args:
        row: The row that was trained.
        run_id: Your training run.
        step: Its optimiser step, from 0.
        token_ids: The tokens as the trainer had them, the whole row: the proof that it is this row.
        advantages: What the trainer used.
        logprobs: What its weights gave, before or after the step as you decide.
        mask: What it trained, one per token of the row; default: all that the row trains.

    Raises:
        MisalignedWriteBack: Tokens differ from those of the row, a list has another length, the mask trains a token
            that the row does not, or a number for a trained token is not finite.
    """
    # Trainers pad, cut and join; equal ids prove that the numbers are for these tokens.
    if tuple(token_ids) != row.token_ids:
        raise MisalignedWriteBack(_where(row, token_ids))
    kept = _mask(row, mask)
    given = {"advantages": advantages, "logprobs": logprobs}
    numbers = {name: _numbers(row, name, value, kept) for name, value in given.items() if value is not None}
    return [_span(row, segment, run_id, step, kept, numbers) for segment in row.segments if segment.trained]


def read_write_backs(spans: Iterable[SpanLike]) -> list[WriteBack]:
    """Return what trainers stored for an attempt, by step; other spans are passed over."""
    found = [_read(span) for span in as_spans(spans) if span.name == AGL_WRITE_BACK]
    return sorted((each for each in found if each is not None), key=lambda each: (each.run_id, each.step))


def _where(row: TrainingRow, token_ids: Sequence[int]) -> str:
    pairs = enumerate(zip(row.token_ids, token_ids, strict=False))
    first = next((place for place, (own, given) in pairs if own != given), None)
    name = f"row {row.index} of attempt {row.attempt_id}"
    if first is None:
        return f"{name} has {len(row)} tokens, {len(token_ids)} were handed back"
    return f"{name} has token {row.token_ids[first]} at {first}, {token_ids[first]} was handed back"


def _mask(row: TrainingRow, mask: Sequence[int] | None) -> tuple[int, ...]:
    if mask is None:
        return row.loss_mask
    kept = tuple(int(bool(value)) for value in mask)
    if len(kept) != len(row):
        raise MisalignedWriteBack(f"the mask has {len(kept)} entries for {len(row)} tokens")
    foreign = next(
        (
            place
            for place, (ours, theirs) in enumerate(zip(row.loss_mask, kept, strict=True))
            if theirs > ours
        ),
        None,
    )
    if foreign is not None:
        raise MisalignedWriteBack(f"the mask trains the token at {foreign}, which the row does not")
    return kept


def _numbers(row: TrainingRow, name: str, given: PerToken, mask: Sequence[int]) -> tuple[float, ...]:
    if isinstance(given, (int, float)):
        listed: list[float | None] = [float(given)] * len(row)
    else:
        listed = [None if value is None else float(value) for value in given]
    if len(listed) != len(row):
        raise MisalignedWriteBack(f"{name} has {len(listed)} entries for {len(row)} tokens")
    for place, (value, trained) in enumerate(zip(listed, mask, strict=True)):
        # On context trainers leave what they like, NaN as well.
        if trained and (value is None or not math.isfinite(value)):
            raise MisalignedWriteBack(f"{name} is {value} for the trained token at {place}")
    return tuple(
        value if trained and value is not None else 0.0 for value, trained in zip(listed, mask, strict=True)
    )


def _span(
    row: TrainingRow,
    segment: Segment,
    run_id: str,
    step: int,
    mask: Sequence[int],
    numbers: dict[str, tuple[float, ...]],
) -> Span:
    start, end = segment.start, segment.end
    target = reward_target(span_id=segment.span_id, choice=segment.choice.index)
    attributes: dict[str, Any] = {
        **target,
        WriteBackAttributes.RUN_ID.value: run_id,
        WriteBackAttributes.STEP.value: step,
        WriteBackAttributes.TOKEN_IDS.value: list(row.token_ids[start:end]),
        WriteBackAttributes.MASK.value: list(mask[start:end]),
    }
    names = {"advantages": WriteBackAttributes.ADVANTAGES, "logprobs": WriteBackAttributes.LOGPROBS}
    attributes |= {names[name].value: list(values[start:end]) for name, values in numbers.items()}
    # The ids follow from what is handed back, so that a store takes it once, however often it comes.
    key = "\n".join((run_id, str(step), row.attempt_id, segment.span_id, str(segment.choice.index)))
    digest = hashlib.blake2b(key.encode(), digest_size=24).hexdigest()
    return Span.from_attributes(
        attributes=attributes,
        rollout_id=row.rollout_id,
        attempt_id=row.attempt_id,
        trace_id=digest[:32],
        span_id=digest[32:],
        name=AGL_WRITE_BACK,
    )


def _read(span: Span) -> WriteBack | None:
    links = {link.key_match: link.value_match for link in extract_links_from_attributes(span.attributes)}
    found = {each: span.attributes.get(each.value) for each in WriteBackAttributes}
    try:
        return WriteBack(
            call=links["span_id"],
            choice=int(links[CHOICE_INDEX]),
            run_id=str(found[WriteBackAttributes.RUN_ID]),
            step=int(found[WriteBackAttributes.STEP]),  # type: ignore[arg-type]
            token_ids=_tuple(found[WriteBackAttributes.TOKEN_IDS], int) or (),
            mask=_tuple(found[WriteBackAttributes.MASK], int) or (),
            advantages=_tuple(found[WriteBackAttributes.ADVANTAGES], float),
            logprobs=_tuple(found[WriteBackAttributes.LOGPROBS], float),
        )
    except (KeyError, TypeError, ValueError):  # a span of somebody else with that name
        return None


def _tuple(values: Any, kind: Any) -> tuple[Any, ...] | None:
    return None if values is None else tuple(map(kind, values))
