"""What difference a fault leaves: recorded log-probabilities beside recomputed ones, as pure functions of numbers.

A cause is named only where it explains every token that differs, and where enough tokens differ that chance does not.
Causes that need the model again (another temperature, another context) come as :class:`Explains`, made by ``search``;
the others are seen in the two lists alone. Values near 0 say nothing: a token that is certain is certain in most
contexts. No input makes these functions raise.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from .statistics import distance
from .verdicts import Verdict

Values = tuple[float, ...]

MIN_EXPLAINED = 3
"""Differing tokens that a cause with a free choice (a temperature, a token, a place) must explain. At a tolerance of
1e-4, one value agrees by chance in about one of ten thousand cases, and there are as many places and tokens to try."""
ALL_OVER_SHARE = 0.75
"""Share of the tokens that can tell which has to differ before differences are "all over"."""
CLOSE = 0.05
"""Nats. bfloat16 keeps 8 bits: a log-probability of 10 is off by up to 0.03, by its last rounding alone."""


@dataclass(frozen=True, slots=True)
class ComparedAnswer:
    """The compared tokens of one sampled answer."""

    old: Values
    """As recorded."""
    new: Values
    """As recomputed, one for each."""
    versions: tuple[str | None, ...] = ()
    """Version of the weights that sampled each; empty where none is named."""

    def differing(self, tolerance: float) -> list[int]:
        """Return the places of tokens that differ by more than the tolerance."""
        pairs = zip(self.old, self.new, strict=True)
        return [at for at, (old, new) in enumerate(pairs) if not distance(old, new) <= tolerance]


@dataclass(frozen=True, slots=True)
class ComparedRow:
    """One row: its trained answers by position."""

    answers: tuple[ComparedAnswer, ...]
    missing: int = 0
    """Trained tokens without a recorded value; they stand in no answer."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """A cause, and the values that a row would have because of it."""

    verdict: Verdict
    values: tuple[Values, ...]
    """One tuple for each answer of the row."""
    detail: str = ""
    needed: int = MIN_EXPLAINED
    """Differing tokens that it must explain."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """The verdict on one row."""

    verdict: Verdict
    detail: str = ""
    sure: bool = False
    """Whether the model need not be asked for a better explanation: versions tell."""


def judge(
    rows: Sequence[ComparedRow],
    tolerance: float,
    explanations: Mapping[int, Sequence[Explanation]] | None = None,
    version: str | None = None,
) -> list[Judgement]:
    """Return the verdict on each row.

    Args:
        rows: The rows that were trained together: values may have been exchanged among them.
        tolerance: In nats; smaller differences are ignored.
        explanations: Row → causes that the model was asked for, the first that fits counts.
        version: Of the weights that the values were recomputed with.
    """
    elsewhere = _AnswerIndex(rows, tolerance)
    proven: set[str | None] = set()
    for row in rows:
        if not any(answer.differing(tolerance) for answer in row.answers):
            # Versions of answers that agree: the weights that are compared with are surely theirs.
            proven.update(*(answer.versions for answer in row.answers))
    given = explanations or {}
    return [
        _judged(row, tolerance, given.get(at, ()), elsewhere, frozenset(proven), version)
        for at, row in enumerate(rows)
    ]


def overall(findings: Sequence[Judgement]) -> Judgement:
    """Return the verdict on all rows: exact if each is, else the cause of most rows that are not."""
    found = Counter(finding.verdict for finding in findings)
    weights = found.copy()
    # The search for a missing token is bounded, so rows that it did not reach count with those in which it found one.
    if found[Verdict.DROPPED_TOKEN]:  # it is looked for in some of the rows that break off
        weights[Verdict.DROPPED_TOKEN] += found[Verdict.BREAKS_OFF]
    if not set(found) - {Verdict.EXACT}:
        return Judgement(Verdict.EXACT)
    causes = [verdict for verdict in Verdict if found[verdict] and verdict is not Verdict.EXACT]
    # What says nothing of a cause stands first only where nothing else was found.
    vague = (Verdict.NO_LOGPROBS, Verdict.UNKNOWN)
    first = max(causes, key=lambda verdict: (verdict not in vague, weights[verdict]))  # of equals, the first
    parts = [f"{first.code} in {found[first]} of {len(findings)} rows"]
    parts += [f"{verdict.code} in {found[verdict]}" for verdict in causes if verdict is not first]
    details = Counter(each.detail for each in findings if each.verdict is first and each.detail)
    said = f"; {details.most_common(1)[0][0]}" if details else ""
    return Judgement(first, ", ".join(parts) + said)


def fits(row: ComparedRow, explanation: Explanation, tolerance: float) -> bool:
    """Whether a cause explains every answer of ``row`` that differs, by enough tokens."""
    explained = 0
    for answer, values in zip(row.answers, explanation.values, strict=True):
        differing = answer.differing(tolerance)
        if differing and not _same(answer.old, values, tolerance):
            return False
        explained += len(differing)
    return explained >= explanation.needed


def _judged(
    row: ComparedRow,
    tolerance: float,
    explanations: Sequence[Explanation],
    elsewhere: _AnswerIndex,
    proven: frozenset[str | None],
    version: str | None,
) -> Judgement:
    differing = sum(len(answer.differing(tolerance)) for answer in row.answers)
    if not differing:
        return (
            Judgement(Verdict.NO_LOGPROBS, f"{row.missing} tokens")
            if row.missing
            else Judgement(Verdict.EXACT)
        )
    fitting = [each for each in explanations if fits(row, each, tolerance)]
    for each in fitting:
        if each.verdict is Verdict.RAW_LOGPROBS:
            return Judgement(each.verdict, each.detail)
    # What the two lists alone show goes before causes that the model was asked for, which choose among many values.
    for by in (1, -1):
        if _is_shifted(row, by, tolerance):
            return Judgement(
                Verdict.SHIFTED, f"each value is that of the {'next' if by > 0 else 'previous'} token"
            )
    owners = _owners(row, elsewhere, tolerance)
    if owners:
        named = ", ".join(map(str, sorted(owners)))
        return Judgement(Verdict.EXCHANGED_ROLLOUTS, f"the values are of answers in row {named}")
    if fitting:
        return Judgement(fitting[0].verdict, fitting[0].detail)
    return _pattern(row, tolerance, differing, proven, version)


def _same(one: Values, other: Values, tolerance: float) -> bool:
    return len(one) == len(other) and all(
        distance(left, right) <= tolerance for left, right in zip(one, other, strict=True)
    )


def _is_shifted(row: ComparedRow, by: int, tolerance: float) -> bool:
    """Whether the recorded value at ``i`` is the recomputed one at ``i + by``, in each answer that differs."""
    explained = 0
    for answer in row.answers:
        differing = answer.differing(tolerance)
        if not differing:
            continue
        places = range(max(0, -by), len(answer.old) - max(0, by))
        if any(not distance(answer.old[at], answer.new[at + by]) <= tolerance for at in places):
            return False
        # The value at the end has no neighbour, so that it neither confirms the shift nor speaks against it.
        explained += sum(at in places for at in differing)
    return explained >= MIN_EXPLAINED


class _AnswerIndex:
    """Finds answers by their recomputed values."""

    def __init__(self, rows: Sequence[ComparedRow], tolerance: float) -> None:
        self._tolerance = tolerance
        # Twice the tolerance: two values within it are in one cell or in neighbouring ones, which ``owner`` looks at.
        self._width = max(2 * tolerance, 1e-12)
        self._found: dict[tuple[int, int], list[tuple[int, Values]]] = {}
        for at, row in enumerate(rows):
            for answer in row.answers:
                place = self._place(answer.new)
                if place is not None:
                    self._found.setdefault((len(answer.new), place), []).append((at, answer.new))

    def owner(self, values: Values) -> int | None:
        """Return the row of an answer whose recomputed values are these, or ``None``."""
        place = self._place(values)
        if place is None:
            return None
        for near in (place, place - 1, place + 1):
            for at, new in self._found.get((len(values), near), ()):
                if _same(values, new, self._tolerance):
                    return at
        return None

    def _place(self, values: Values) -> int | None:
        scaled = values[0] / self._width if values else math.nan
        return math.floor(scaled) if math.isfinite(scaled) else None


def _owners(row: ComparedRow, elsewhere: _AnswerIndex, tolerance: float) -> set[int]:
    """Return the rows whose answers have the values of this one's; empty unless all that differ are found."""
    owners: set[int] = set()
    explained = 0
    for answer in row.answers:
        differing = answer.differing(tolerance)
        if not differing:
            continue
        owner = elsewhere.owner(answer.old)
        # One answer that is nobody's speaks against an exchange: a cause explains all or nothing.
        if owner is None:
            return set()
        owners.add(owner)
        explained += len(differing)
    return owners if explained >= MIN_EXPLAINED else set()


# -- what no single cause explains


@dataclass(frozen=True, slots=True)
class _Token:
    differs: bool
    size: float
    version: str | None
    begins: bool
    """Whether it is the first of an answer."""


def _tokens(row: ComparedRow, tolerance: float) -> list[_Token]:
    """Return the tokens that can tell: those that are not certain on both sides."""
    found = []
    for answer in row.answers:
        versions = answer.versions or (None,) * len(answer.old)
        for at, (old, new, version) in enumerate(zip(answer.old, answer.new, versions, strict=True)):
            size = distance(old, new)
            # A token that is certain on both sides is certain in most contexts, and would make every share look small.
            if not (abs(old) <= tolerance and abs(new) <= tolerance):
                found.append(_Token(not size <= tolerance, size, version, at == 0))
    return found


def _pattern(
    row: ComparedRow,
    tolerance: float,
    differing: int,
    proven: frozenset[str | None],
    version: str | None,
) -> Judgement:
    tokens = _tokens(row, tolerance)
    # Versions are the only evidence that needs no number of tokens: they are looked at first.
    by_version = _stale(tokens, version)
    if by_version is not None:
        return by_version
    share = differing / len(tokens)
    told = f"{differing} of {len(tokens)} tokens that can tell differ"
    if differing < MIN_EXPLAINED:
        return Judgement(Verdict.UNKNOWN, told)
    # Small everywhere: precision. Small in some places: whatever it is, its trace is too faint to name it.
    if max(token.size for token in tokens) <= CLOSE:
        return Judgement(Verdict.CLOSE if share >= ALL_OVER_SHARE else Verdict.UNKNOWN, told)
    first = next(at for at, token in enumerate(tokens) if token.differs)
    after = tokens[first:]
    # Good from the beginning up to one place and bad from there on: something is missing or added at that place.
    if first >= MIN_EXPLAINED and differing >= ALL_OVER_SHARE * len(after):
        where = f"the first {first} of {len(tokens)} tokens fit"
        if tokens[first].begins:
            return Judgement(Verdict.WRONG_TEMPLATE, f"{where}, up to the end of an answer")
        return Judgement(Verdict.BREAKS_OFF, where)
    if share < ALL_OVER_SHARE:
        return Judgement(Verdict.UNKNOWN, told)
    versions = {token.version for token in tokens}
    # The weights are known to fit, so that it is the context that does not.
    if None not in versions and versions <= proven:
        return Judgement(Verdict.WRONG_TEMPLATE, f"{told}, and other rows of the same weights fit")
    return Judgement(Verdict.STALE_WEIGHTS, told)


def _stale(tokens: Sequence[_Token], version: str | None) -> Judgement | None:
    """Return the finding where versions alone tell which tokens differ and which do not."""
    bad = {token.version for token in tokens if token.differs}
    good = {token.version for token in tokens if not token.differs}
    # A version on both sides, or a token without one, and versions decide nothing.
    if None in bad or None in good or bad & good:
        return None
    if version is not None and version not in bad:
        return Judgement(
            Verdict.STALE_WEIGHTS, f"sampled by version {_named(bad)}, compared with {version}", sure=True
        )
    if good:
        return Judgement(
            Verdict.STALE_WEIGHTS,
            f"what version {_named(bad)} sampled differs, what {_named(good)} sampled fits",
        )
    return None


def _named(versions: Collection[str | None]) -> str:
    return ", ".join(sorted(map(str, versions)))
