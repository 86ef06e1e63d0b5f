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

from .patterns import CLOSE, ComparedRow, Explanation, Values, fits
from .recompute import Scorer, ScoreRequest
from .statistics import distance
from .verdicts import Verdict

MAX_TEMPERATURES = 4
"""Temperatures that are solved for; each is tried on all rows."""
MAX_FITTED_TOKENS = 16
"""Tokens of a row that a temperature is solved from."""
COLDEST, HOTTEST, STEPS = 0.05, 10.0, 80
"""The grid of temperatures, by equal ratios."""
MAX_SEARCHED_ROWS = 8
"""Rows in which a missing token is looked for, at most."""
MAX_FRUITLESS_ROWS = 2
"""Rows in which none was found, after which the others are left alone."""
MAX_CANDIDATES = 512
"""Tokens that are tried in one place: the likeliest ones."""
MAX_TRIED_TOKENS = 2**18
"""Tokens of all sequences that are tried in one place together."""
WINDOW = 8
"""Tokens behind a place by which candidates are told apart."""


@dataclass(frozen=True, slots=True)
class RowTokens:
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

    def request(self) -> ScoreRequest:
        """Return what the model is asked: the values at the temperatures in effect, and at 1."""
        positions = self.positions
        return ScoreRequest(self.ids, positions, (self.temperatures, (1.0,) * len(positions)))

    def by_answer(self, values: Sequence[float]) -> tuple[Values, ...]:
        """Return values of all positions, apart by answer."""
        found, start = [], 0
        for answer in self.answers:
            found.append(tuple(values[start : start + len(answer)]))
            start += len(answer)
        return tuple(found)


def search(
    searched: Mapping[int, RowTokens], rows: Sequence[ComparedRow], scorer: Scorer, tolerance: float
) -> dict[int, list[Explanation]]:
    """Return row → causes that explain it, for as many of the rows in ``searched`` as can be explained so."""
    found: dict[int, list[Explanation]] = {}
    # The cheapest first; what one explains is not looked at by the next.
    for causes in (_beginnings, _temperatures, _missing_tokens):
        left = {at: row_tokens for at, row_tokens in searched.items() if at not in found}
        for at, cause in causes(left, rows, scorer, tolerance):
            if at not in found and fits(rows[at], cause, tolerance):
                found[at] = [cause]
    return found


Cause = tuple[int, Explanation]
"""Row, and a cause that may explain it."""


# -- the beginning


def _beginnings(
    searched: Mapping[int, RowTokens], rows: Sequence[ComparedRow], scorer: Scorer, tolerance: float
) -> Iterable[Cause]:
    """Try rows with the model's first token in front, or without it."""
    # All searches have one signature.
    del rows, tolerance
    first = scorer.first_token
    if first is None or not searched:
        return
    requests, details, tried = [], [], []
    for at, row_tokens in searched.items():
        by = -1 if row_tokens.ids[0] == first else 1
        ids = row_tokens.ids[1:] if by < 0 else (first, *row_tokens.ids)
        positions = tuple(position + by for position in row_tokens.positions)
        if positions[0] < 1:
            continue  # nothing would be left in front of its answer
        tried.append((at, row_tokens))
        requests.append(ScoreRequest(ids, positions, (row_tokens.temperatures,)))
        details.append(f"they fit {'without' if by < 0 else 'with'} token {first} in front of the row")
    for (at, row_tokens), detail, (values,) in zip(tried, details, scorer.score(requests), strict=True):
        yield at, Explanation(Verdict.WRONG_TEMPLATE, row_tokens.by_answer(values), detail, needed=1)


# -- the temperature


def _temperatures(
    searched: Mapping[int, RowTokens], rows: Sequence[ComparedRow], scorer: Scorer, tolerance: float
) -> Iterable[Cause]:
    left = dict(searched)
    for _ in range(MAX_TEMPERATURES):
        if not left:
            return
        at, row_tokens = next(iter(left.items()))
        del left[at]
        temperature = _solved_temperature(row_tokens, rows[at], scorer, tolerance)
        if temperature is None:
            continue
        tried = {at: row_tokens, **left}
        scores = scorer.score([each.request().at(temperature) for each in tried.values()])
        for (number, each), (values,) in zip(tried.items(), scores, strict=True):
            detail = f"they are those of temperature {temperature:g}, recorded is {_named(each.temperatures)}"
            cause = Explanation(Verdict.WRONG_TEMPERATURE, each.by_answer(values), detail)
            yield number, cause
            if fits(rows[number], cause, tolerance):
                left.pop(number, None)


def _named(temperatures: Sequence[float]) -> str:
    return ", ".join(f"{each:g}" for each in sorted(set(temperatures)))


def _solved_temperature(
    row_tokens: RowTokens, row: ComparedRow, scorer: Scorer, tolerance: float
) -> float | None:
    """Return the temperature at which the differing tokens of a row fit best, or ``None`` where none fits."""
    old, positions = [], []
    for where, answer in zip(row_tokens.answers, row.answers, strict=True):
        for at in answer.differing(tolerance):
            old.append(answer.old[at])
            positions.append(where[at])
    # A few tokens determine a temperature; whether it explains the row is decided on all of them.
    old, positions = old[:MAX_FITTED_TOKENS], positions[:MAX_FITTED_TOKENS]
    if not positions or not all(map(math.isfinite, old)):
        return None
    (logits,) = scorer.logits([ScoreRequest(row_tokens.ids, tuple(positions), ())])
    targets = torch.tensor([row_tokens.ids[position] for position in positions], device=logits.device)[
        :, None
    ]
    wanted = torch.tensor(old, dtype=torch.float64, device=logits.device)
    # The minimum is narrower than float32 resolves.
    logits = logits.double()

    def off(temperature: float) -> float:
        values = (logits / temperature).log_softmax(-1).gather(-1, targets)[:, 0]
        return float((values - wanted).abs().max())

    best = _minimum(off)
    # People write short numbers: the shortest that fits is the one that was set.
    rounded = (float(f"{best:.{digits}g}") for digits in range(1, 8))
    return next(
        (each for each in rounded if off(each) <= tolerance / 2), best if off(best) <= tolerance else None
    )


def _minimum(cost: Callable[[float], float]) -> float:
    """Return where a function of the temperature is least: on the grid, then by golden section around it."""
    step: float = (HOTTEST / COLDEST) ** (1 / STEPS)
    coarse: float = min((COLDEST * step**number for number in range(STEPS + 1)), key=cost)
    low, high = coarse / step, coarse * step
    share = (math.sqrt(5) - 1) / 2
    left, right = high - share * (high - low), low + share * (high - low)
    at_left, at_right = cost(left), cost(right)
    # Each step leaves 0.618 of the interval: forty leave 4e-9 of it.
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


def _missing_tokens(
    searched: Mapping[int, RowTokens], rows: Sequence[ComparedRow], scorer: Scorer, tolerance: float
) -> Iterable[Cause]:
    fruitless = 0
    far = [(at, row_tokens) for at, row_tokens in searched.items() if _largest_difference(rows[at]) > CLOSE]
    for at, row_tokens in far[:MAX_SEARCHED_ROWS]:
        if fruitless == MAX_FRUITLESS_ROWS:
            return
        causes = list(_missing_tokens_in(row_tokens, rows[at], scorer, tolerance))
        fruitless += not any(fits(rows[at], cause, tolerance) for cause in causes)
        yield from ((at, cause) for cause in causes)


def _largest_difference(row: ComparedRow) -> float:
    pairs = (pair for answer in row.answers for pair in zip(answer.old, answer.new, strict=True))
    return max(distance(old, new) for old, new in pairs)


def _missing_tokens_in(
    row_tokens: RowTokens, row: ComparedRow, scorer: Scorer, tolerance: float
) -> Iterable[Explanation]:
    """Yield the row with one token more, where it best fits."""
    number, inside = _first_difference(row, tolerance)
    start = row_tokens.answers[number][inside]
    spots = [start]
    # A token that is missing between two answers may be the last of the first one.
    if inside == 0 and number > 0:
        spots.append(row_tokens.answers[number - 1][-1] + 1)  # the end of the answer before
    for spot in spots:
        for token in _candidates(row_tokens, row, (number, inside), spot, scorer):
            yield from _with_token(row_tokens, spot, token, number, scorer)


def _first_difference(row: ComparedRow, tolerance: float) -> tuple[int, int]:
    """Return the first answer that differs, and where in it."""
    found = ((number, answer.differing(tolerance)) for number, answer in enumerate(row.answers))
    return next((number, differing[0]) for number, differing in found if differing)


def _candidates(
    row_tokens: RowTokens, row: ComparedRow, start: tuple[int, int], spot: int, scorer: Scorer
) -> tuple[int, ...]:
    """Return the tokens that, put in at ``spot``, make what follows fit best: with its own value, and without it."""
    number, inside = start
    window = row_tokens.answers[number][inside : inside + WINDOW]
    old = torch.tensor(row.answers[number].old[inside : inside + WINDOW], dtype=torch.float64)
    before = sum(len(answer) for answer in row_tokens.answers[:number]) + inside
    scale = row_tokens.temperatures[before : before + len(window)]
    end = window[-1] + 1
    tokens = scorer.likeliest(row_tokens.ids[:spot], max(1, min(MAX_CANDIDATES, MAX_TRIED_TOKENS // end)))
    # The token itself, where its value was kept, stands in front of the window.
    own = (spot, *(position + 1 for position in window))
    tails = [(token, *row_tokens.ids[spot:end]) for token in tokens]
    values = scorer.tails(row_tokens.ids[:spot], tails, own, (scale[0], *scale))
    scores = torch.tensor(values, dtype=torch.float64)
    lost = (scores[:, 1:] - old).abs().amax(1)
    kept = (scores[:, :-1] - old).abs().amax(1)
    return tuple(dict.fromkeys((tokens[int(lost.argmin())], tokens[int(kept.argmin())])))


def _with_token(
    row_tokens: RowTokens, spot: int, token: int, number: int, scorer: Scorer
) -> Iterable[Explanation]:
    """Yield the row with a token put in: its value lost with it, and its value kept and the last one lost."""
    ids = (*row_tokens.ids[:spot], token, *row_tokens.ids[spot:])
    moved = replace(
        row_tokens,
        ids=ids,
        answers=tuple(
            tuple(position + (position >= spot) for position in answer) for answer in row_tokens.answers
        ),
    )
    detail = f"they fit with token {token} in front of position {spot}"
    ((values, _),) = scorer.score([moved.request()])
    yield Explanation(Verdict.DROPPED_TOKEN, row_tokens.by_answer(values), detail)
    if spot in row_tokens.answers[number]:
        kept = tuple(
            answer if at == number else moved.answers[at] for at, answer in enumerate(row_tokens.answers)
        )
        ((values, _),) = scorer.score([replace(moved, answers=kept).request()])
        yield Explanation(
            Verdict.DROPPED_TOKEN, row_tokens.by_answer(values), f"{detail}; its own value is there"
        )
