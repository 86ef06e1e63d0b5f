"""``verify_onpolicy``: are the recorded log-probabilities those of the model that is about to be trained?

Trainers divide the probability that the model gives a token now by the one that was recorded when it was sampled. On
the first step the two are the same, so every ratio is 1 and every KL 0; where they are not, training is off policy from
the start, and no length check sees it. This function does the division before the trainer does.

>>> found = verify_onpolicy(build_rows(spans), model)
>>> found.exact, found.verdict.code, found.total.ratio
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ..errors import NotVerifiable
from ..rows.training import Segment, TrainingRow
from .patterns import ComparedAnswer, ComparedRow, Explanation, Judgement, judge, overall
from .statistics import Agreement, Difference, agreement
from .verdicts import Verdict

if TYPE_CHECKING:
    from .recompute import Scorer
    from .search import RowTokens

TOLERANCE = 1e-4
"""Nats. What float32 costs where engine and trainer batch differently."""

_REPLACEABLE = frozenset(Verdict) - {
    Verdict.EXACT,
    Verdict.NO_LOGPROBS,
    Verdict.RAW_LOGPROBS,
    Verdict.SHIFTED,
    Verdict.EXCHANGED_ROLLOUTS,
}
"""Verdicts that asking the model again may replace by a better one."""


@dataclass(frozen=True, slots=True)
class RowVerification:
    """What was found in one row."""

    rollout_id: str
    attempt_id: str
    index: int
    """Of the row within its attempt."""
    verdict: Verdict
    detail: str
    """What was seen, in a few words."""
    agreement: Agreement


@dataclass(frozen=True, slots=True)
class Verification:
    """What was found in all rows together."""

    verdict: Verdict
    """``EXACT`` where every row is, else the cause of most rows that are not."""
    detail: str
    total: Agreement
    rows: tuple[RowVerification, ...] = field(repr=False)
    tolerance: float
    """In nats; smaller differences are ignored."""
    dtype: str
    """What the model calculated in."""

    @property
    def exact(self) -> bool:
        """Whether every recorded log-probability is the one that the model gives."""
        return self.verdict is Verdict.EXACT

    @property
    def counts(self) -> dict[str, int]:
        """Code → rows with this verdict."""
        return dict(Counter(row.verdict.code for row in self.rows))

    def __str__(self) -> str:
        """Return the verdict, its numbers and its cure, for people."""
        total = self.total
        lines = [f"{self.verdict.code}: {self.verdict.sentence}"]
        lines += [f"  ({self.detail})"] if self.detail else []
        lines.append(
            f"  ratio {total.ratio:.6f}, KL {total.k3:.6f} (k1 {total.k1:+.6f}), "
            f"{total.differing:,} of {total.tokens:,} tokens differ by more than {self.tolerance:g}"
        )
        worst = total.largest
        if worst is not None and not self.exact:
            lines.append(
                f"  largest difference {worst.size:.6g}: row {worst.row}, position {worst.position}, "
                f"span {worst.span_id or 'unknown'} (recorded {worst.old:.6g}, recomputed {worst.new:.6g})"
            )
        lines += [] if self.exact else [f"  → {self.verdict.cure}"]
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        """Return everything as JSON values; numbers that are not finite as Python writes them."""
        return {
            "verdict": self.verdict.code,
            "sentence": self.verdict.sentence,
            "cure": self.verdict.cure,
            "detail": self.detail,
            "tolerance": self.tolerance,
            "dtype": self.dtype,
            "total": _agreement_as_json(self.total),
            "rows": [
                {
                    "rollout_id": row.rollout_id,
                    "attempt_id": row.attempt_id,
                    "index": row.index,
                    "verdict": row.verdict.code,
                    "detail": row.detail,
                    **_agreement_as_json(row.agreement),
                }
                for row in self.rows
            ],
        }


def verify_onpolicy(
    rows: Iterable[TrainingRow],
    model: Any,
    *,
    tolerance: float = TOLERANCE,
    temperature: float | None = None,
    version: str | int | None = None,
    batch_size: int = 8,
    device: Any = None,
) -> Verification:
    """Recompute the log-probability of every trained token and say how and why the recorded ones differ.

    Each token is compared at the temperature that its call was sampled at, over the whole vocabulary. The model is
    asked in evaluation mode without gradients, and is left as it was; give it in float32 for the tolerance to make
    sense. Rows that are not exact cost further passes, a bounded number of them.

    Args:
        rows: Rows of one or several attempts (``build_rows``).
        model: A causal language model in the manner of Hugging Face, or a callable that takes token ids
            ``[1, length]`` and returns logits or log-probabilities ``[1, length, vocabulary]``.
        tolerance: In nats; smaller differences are ignored.
        temperature: That the tokens were sampled at, in place of the recorded one.
        version: Of the model's weights, as the engine names it: with it, stale answers are told for sure.
        batch_size: Rows in a forward pass; of rows shorter than 512 tokens, more.
        device: Where to calculate, the model is moved there; default: where it is.

    Raises:
        NotVerifiable: There are no rows, or the model does not know one of their tokens.
        MissingExtra: ``torch`` is not installed.
        ValueError: A number is out of range.
    """
    from .recompute import Scorer

    if not 0 <= tolerance < float("inf"):
        raise ValueError(f"tolerance is a difference in nats, not {tolerance}")
    if temperature is not None and not 0 < temperature < float("inf"):
        raise ValueError(f"temperature is a number above 0, not {temperature}")
    if batch_size < 1:
        raise ValueError(f"batch_size is a number of rows of at least 1, not {batch_size}")
    readings = [_Reading.of(row, temperature) for row in rows]
    if not readings:
        raise NotVerifiable(
            "there is no row to verify; agl rows ROLLOUT --why says why an attempt gives none"
        )
    # Before the model is asked: an unknown id is an index error deep inside of it, on a GPU an abort of the process.
    scorer = Scorer(model, batch_size, device)
    _check_vocabulary(readings, scorer.vocabulary)
    with scorer.quiet():
        compared, findings = _judged(readings, scorer, tolerance, None if version is None else str(version))
    return _verification(readings, compared, findings, tolerance, scorer.dtype)


@dataclass(frozen=True, slots=True)
class _Reading:
    """A row, and which of its tokens are compared."""

    row: TrainingRow
    tokens: RowTokens
    old: tuple[tuple[float, ...], ...]
    """Recorded values of each answer."""
    versions: tuple[tuple[str | None, ...], ...]
    spans: tuple[str, ...]
    """Span of each answer."""
    missing: int

    @classmethod
    def of(cls, row: TrainingRow, temperature: float | None) -> _Reading:
        """Read a row: its trained answers, so far as they have recorded values."""
        from .search import RowTokens

        answers, old, versions, spans, temperatures = [], [], [], [], []
        compared = 0
        for segment in row.segments:
            # The first token of all has no context that it could be scored in.
            trained = [at for at in range(max(segment.start, 1), segment.end) if row.loss_mask[at]]
            places = [at for at in trained if row.logprobs[at] is not None]
            if not places:
                continue
            answers.append(tuple(places))
            # No value here is ``None``: such places were left out above.
            old.append(tuple(float(row.logprobs[at] or 0.0) for at in places))
            versions.append(_versions(segment, places))
            spans.append(segment.span_id)
            temperatures += [temperature or _temperature(segment)] * len(places)
            compared += len(places)
        tokens = RowTokens(row.token_ids, tuple(answers), tuple(temperatures))
        return cls(row, tokens, tuple(old), tuple(versions), tuple(spans), row.trained_tokens - compared)

    def compared(self, new: Sequence[float]) -> ComparedRow:
        """Return the recorded values beside recomputed ones."""
        by_answer = self.tokens.by_answer(new)
        return ComparedRow(tuple(map(ComparedAnswer, self.old, by_answer, self.versions)), self.missing)

    def raw(self, values: Sequence[float]) -> list[Explanation]:
        """Return the cause that values are from before the temperature, where that can be."""
        recorded = sorted({each for each in self.tokens.temperatures if each != 1.0})
        if not recorded:
            return []
        detail = f"recorded is temperature {', '.join(f'{each:g}' for each in recorded)}"
        return [Explanation(Verdict.RAW_LOGPROBS, self.tokens.by_answer(values), detail, needed=1)]

    def differences(self, compared: ComparedRow, number: int) -> list[Difference]:
        """Return every compared token."""
        return [
            Difference(number, position, span, old, new)
            for where, span, answer in zip(self.tokens.answers, self.spans, compared.answers, strict=True)
            for position, old, new in zip(where, answer.old, answer.new, strict=True)
        ]


def _temperature(segment: Segment) -> float:
    """Return the temperature that an answer was sampled at; 1 where that is not known, and greedy has none."""
    return segment.temperature or 1.0


def _versions(segment: Segment, places: Sequence[int]) -> tuple[str | None, ...]:
    named: dict[int, str] = {}
    for part in segment.versions:
        named.update(dict.fromkeys(range(part.start, part.end), part.version))
    return tuple(named.get(at) for at in places)


def _check_vocabulary(readings: Sequence[_Reading], known: int | None) -> None:
    for reading in readings:
        largest = max(reading.row.token_ids)
        if known is not None and largest >= known:
            raise NotVerifiable(
                f"the model knows {known:,} tokens, and row {reading.row.index} of rollout {reading.row.rollout_id} "
                f"has token {largest:,}: this is another model than the one that sampled"
            )


def _judged(
    readings: Sequence[_Reading], scorer: Scorer, tolerance: float, version: str | None
) -> tuple[list[ComparedRow], list[Judgement]]:
    """Compare all rows; ask the model again for those that the numbers alone do not explain."""
    from .search import search

    # Rows without recorded values are not asked for: they cost a forward pass and tell nothing.
    asked = [number for number, reading in enumerate(readings) if reading.old]
    scores = dict(
        zip(asked, scorer.score([readings[number].tokens.request() for number in asked]), strict=True)
    )
    compared, causes = [], {}
    for number, reading in enumerate(readings):
        now, at_one = scores.get(number, ((), ()))
        compared.append(reading.compared(now))
        causes[number] = reading.raw(at_one)
    # All rows at once, because values may have been exchanged among them.
    findings = judge(compared, tolerance, causes, version)
    # The model is asked again only where that may give a better verdict: each cause costs forward passes.
    unclear = [
        number for number in asked if findings[number].verdict in _REPLACEABLE and not findings[number].sure
    ]
    left = {number: readings[number].tokens for number in unclear}
    if left:
        for number, found in search(left, compared, scorer, tolerance).items():
            causes[number] += found
        findings = judge(compared, tolerance, causes, version)
    return compared, findings


def _verification(
    readings: Sequence[_Reading],
    compared: Sequence[ComparedRow],
    findings: Sequence[Judgement],
    tolerance: float,
    dtype: str,
) -> Verification:
    rows, everything = [], []
    for number, (reading, numbers, finding) in enumerate(zip(readings, compared, findings, strict=True)):
        differences = reading.differences(numbers, number)
        everything += differences
        row = reading.row
        rows.append(
            RowVerification(
                row.rollout_id,
                row.attempt_id,
                row.index,
                finding.verdict,
                finding.detail,
                agreement(differences, tolerance, reading.missing),
            )
        )
    total = agreement(everything, tolerance, sum(reading.missing for reading in readings))
    found = overall(findings)
    return Verification(found.verdict, found.detail, total, tuple(rows), tolerance, dtype)


def _agreement_as_json(found: Agreement) -> dict[str, Any]:
    largest = found.largest
    return {
        # ``asdict`` would copy the difference without its size, which is a property.
        **{name: value for name, value in asdict(replace(found, largest=None)).items() if name != "largest"},
        "largest": None if largest is None else {**asdict(largest), "size": largest.size},
    }
