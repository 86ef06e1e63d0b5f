"""Causes that only the model can tell: another temperature, another beginning, a token that is missing.

Each is put right, the model is asked again, and what it says then stands beside what was recorded: ``patterns`` decides
whether that explains the row. The search is bounded by constants; rows that it does not reach keep the verdict that
the numbers alone give.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from ..errors import MissingExtra

try:
    import torch
except ImportError as error:
    raise MissingExtra("torch", "trl") from error

from .patterns import CLOSE, Compared, Explains, Values, fits
from .recompute import Ask, Scorer
from .statistics import distance
from .verdicts import Verdict

FITS = 4
"""Temperatures that are solved for; each is tried on all rows."""
FITTED_TOKENS = 16
"""Tokens of a row that a temperature is solved from."""
COLDEST, HOTTEST, STEPS = 0.05, 10.0, 80
"""The grid of temperatures, by equal ratios."""
SEARCHED_ROWS = 8
"""Rows in which a missing token is looked for, at most."""
IN_VAIN = 2
"""Rows in which none was found, after which the others are left alone."""
CANDIDATES = 512
"""Tokens that are tried in one place: the likeliest ones."""
TRIED_TOKENS = 2**18
"""Tokens of all sequences that are tried in one place together."""
PEEK = 8
"""Tokens behind a place by which candidates are told apart."""


@dataclass(frozen=True, slots=True)
class Place:
    """A row as the model is asked for it: its tokens, and where its compared answers are."""

    ids: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]
    """Positions of the tokens of each answer."""
    temperatures: tuple[float, ...]
    """In effect at each of these positions."""

    @property
    def positions(self) -> tuple[int, ...]:
        """All compared positions."""
        return tuple(position for answer in self.answers for position in answer)

    def ask(self) -> Ask:
        """Return what the model is asked: the values at the temperatures in effect, and at 1."""
        positions = self.positions
        return Ask(self.ids, positions, (self.temperatures, (1.0,) * len(positions)))

    def by_answer(self, values: Sequence[float]) -> tuple[Values, ...]:
        """Return values of all positions, apart by answer."""
        found, start = [], 0
        for answer in self.answers:
            found.append(tuple(values[start : start + len(answer)]))
            start += len(answer)
        return tuple(found)


def search(
    places: Mapping[int, Place], rows: Sequence[Compared], scorer: Scorer, tolerance: float
) -> dict[int, list[Explains]]:
    """Return row → causes that explain it, for as many of the rows in ``places`` as can be explained so."""
    found: dict[int, list[Explains]] = {}
    for causes in (_beginnings, _temperatures, _missing):
        left = {at: place for at, place in places.items() if at not in found}
        for at, cause in causes(left, rows, scorer, tolerance):
            if at not in found and fits(rows[at], cause, tolerance):
                found[at] = [cause]
    return found


Cause = tuple[int, Explains]
"""Row, and a cause that may explain it."""


# -- the beginning


def _beginnings(
    places: Mapping[int, Place], rows: Sequence[Compared], scorer: Scorer, tolerance: float
) -> Iterable[Cause]:
    """Try rows with the model's first token in front, or without it."""
    del rows, tolerance
    first = scorer.first_token
    if first is None or not places:
        return
    asks, details, tried = [], [], []
    for at, place in places.items():
        by = -1 if place.ids[0] == first else 1
        ids = place.ids[1:] if by < 0 else (first, *place.ids)
        positions = tuple(position + by for position in place.positions)
        if positions[0] < 1:
            continue  # nothing would be left in front of its answer
        tried.append((at, place))
        asks.append(Ask(ids, positions, (place.temperatures,)))
        details.append(f"they fit {'without' if by < 0 else 'with'} token {first} in front of the row")
    for (at, place), detail, (values,) in zip(tried, details, scorer.score(asks), strict=True):
        yield at, Explains(Verdict.WRONG_TEMPLATE, place.by_answer(values), detail, needed=1)


# -- the temperature


def _temperatures(
    places: Mapping[int, Place], rows: Sequence[Compared], scorer: Scorer, tolerance: float
) -> Iterable[Cause]:
    left = dict(places)
    for _ in range(FITS):
        if not left:
            return
        at, place = next(iter(left.items()))
        del left[at]
        temperature = _solved(place, rows[at], scorer, tolerance)
        if temperature is None:
            continue
        tried = {at: place, **left}
        scores = scorer.score([each.ask().at(temperature) for each in tried.values()])
        for (number, each), (values,) in zip(tried.items(), scores, strict=True):
            detail = f"they are those of temperature {temperature:g}, recorded is {_named(each.temperatures)}"
            cause = Explains(Verdict.WRONG_TEMPERATURE, each.by_answer(values), detail)
            yield number, cause
            if fits(rows[number], cause, tolerance):
                left.pop(number, None)


def _named(temperatures: Sequence[float]) -> str:
    return ", ".join(f"{each:g}" for each in sorted(set(temperatures)))


def _solved(place: Place, row: Compared, scorer: Scorer, tolerance: float) -> float | None:
    """Return the temperature at which the differing tokens of a row fit best, or ``None`` where none fits."""
    old, positions = [], []
    for where, answer in zip(place.answers, row.answers, strict=True):
        for at in answer.differing(tolerance):
            old.append(answer.old[at])
            positions.append(where[at])
    old, positions = old[:FITTED_TOKENS], positions[:FITTED_TOKENS]
    if not positions or not all(map(math.isfinite, old)):
        return None
    (logits,) = scorer.logits([Ask(place.ids, tuple(positions), ())])
    targets = torch.tensor([place.ids[position] for position in positions], device=logits.device)[:, None]
    wanted = torch.tensor(old, dtype=torch.float64, device=logits.device)
    logits = logits.double()

    def off(temperature: float) -> float:
        values = (logits / temperature).log_softmax(-1).gather(-1, targets)[:, 0]
        return float((values - wanted).abs().max())

    best = _least(off)
    rounded = (float(f"{best:.{digits}g}") for digits in range(1, 8))
    return next(
        (each for each in rounded if off(each) <= tolerance / 2), best if off(best) <= tolerance else None
    )


def _least(cost: Callable[[float], float]) -> float:
    """Return where a function of the temperature is least: on the grid, then by golden section around it."""
    step: float = (HOTTEST / COLDEST) ** (1 / STEPS)
    coarse: float = min((COLDEST * step**number for number in range(STEPS + 1)), key=cost)
    low, high = coarse / step, coarse * step
    share = (math.sqrt(5) - 1) / 2
    left, right = high - share * (high - low), low + share * (high - low)
    at_left, at_right = cost(left), cost(right)
    for _ in range(40):
        if at_left < at_right:
            high, right, at_right = right, left, at_left
            left = high - share * (high - low)
            at_left = cost(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + share * (high - low)
            at_right = cost(right)
    return (low + high) / 2


# -- a missing token


def _missing(
    places: Mapping[int, Place], rows: Sequence[Compared], scorer: Scorer, tolerance: float
) -> Iterable[Cause]:
    in_vain = 0
    far = [(at, place) for at, place in places.items() if _furthest(rows[at]) > CLOSE]
    for at, place in far[:SEARCHED_ROWS]:
        if in_vain == IN_VAIN:
            return
        causes = list(_missing_in(place, rows[at], scorer, tolerance))
        in_vain += not any(fits(rows[at], cause, tolerance) for cause in causes)
        yield from ((at, cause) for cause in causes)


def _furthest(row: Compared) -> float:
    pairs = (pair for answer in row.answers for pair in zip(answer.old, answer.new, strict=True))
    return max(distance(old, new) for old, new in pairs)


def _missing_in(place: Place, row: Compared, scorer: Scorer, tolerance: float) -> Iterable[Explains]:
    """Yield the row with one token more, where it best fits."""
    number, inside = _first(row, tolerance)
    start = place.answers[number][inside]
    spots = [start]
    if inside == 0 and number > 0:
        spots.append(place.answers[number - 1][-1] + 1)  # the end of the answer before
    for spot in spots:
        for token in _candidates(place, row, (number, inside), spot, scorer):
            yield from _with(place, spot, token, number, scorer)


def _first(row: Compared, tolerance: float) -> tuple[int, int]:
    """Return the first answer that differs, and where in it."""
    found = ((number, answer.differing(tolerance)) for number, answer in enumerate(row.answers))
    return next((number, differing[0]) for number, differing in found if differing)


def _candidates(
    place: Place, row: Compared, start: tuple[int, int], spot: int, scorer: Scorer
) -> tuple[int, ...]:
    """Return the tokens that, put in at ``spot``, make what follows fit best: with its own value, and without it."""
    number, inside = start
    window = place.answers[number][inside : inside + PEEK]
    old = torch.tensor(row.answers[number].old[inside : inside + PEEK], dtype=torch.float64)
    before = sum(len(answer) for answer in place.answers[:number]) + inside
    scale = place.temperatures[before : before + len(window)]
    end = window[-1] + 1
    tokens = scorer.likeliest(place.ids[:spot], max(1, min(CANDIDATES, TRIED_TOKENS // end)))
    # The token itself, where its value was kept, stands in front of the window.
    own = (spot, *(position + 1 for position in window))
    tails = [(token, *place.ids[spot:end]) for token in tokens]
    values = scorer.tails(place.ids[:spot], tails, own, (scale[0], *scale))
    scores = torch.tensor(values, dtype=torch.float64)
    lost = (scores[:, 1:] - old).abs().amax(1)
    kept = (scores[:, :-1] - old).abs().amax(1)
    return tuple(dict.fromkeys((tokens[int(lost.argmin())], tokens[int(kept.argmin())])))


def _with(place: Place, spot: int, token: int, number: int, scorer: Scorer) -> Iterable[Explains]:
    """Yield the row with a token put in: its value lost with it, and its value kept and the last one lost."""
    ids = (*place.ids[:spot], token, *place.ids[spot:])
    moved = replace(
        place,
        ids=ids,
        answers=tuple(
            tuple(position + (position >= spot) for position in answer) for answer in place.answers
        ),
    )
    detail = f"they fit with token {token} in front of position {spot}"
    ((values, _),) = scorer.score([moved.ask()])
    yield Explains(Verdict.DROPPED_TOKEN, place.by_answer(values), detail)
    if spot in place.answers[number]:
        kept = tuple(answer if at == number else moved.answers[at] for at, answer in enumerate(place.answers))
        ((values, _),) = scorer.score([replace(moved, answers=kept).ask()])
        yield Explains(Verdict.DROPPED_TOKEN, place.by_answer(values), f"{detail}; its own value is there")
