"""Tinker's ``Datum``, for ``forward_backward(data, "importance_sampling")``; SkyRL's server takes the same.

Everything is shifted by one: the model's input is the row without its last token, and position ``i`` of every loss
input is about the token at ``i + 1`` of the row. Context has advantage 0.0 and log-probability 0.0. Where sampled
answers carry the id of their sampling, each run of tokens names where it comes from; the runs tile both fields.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import MissingExtra, NotExportable
from ..rows.advantage import AdvantageFunction, Formula, row_advantages
from ..rows.training import TrainingRow
from .checks import (
    Weights,
    by_rollout,
    exportable,
    group,
    numbers,
    refuse_steps,
    sampled_at,
    scored,
    shares,
)

if TYPE_CHECKING:
    import tinker

TESTED_WITH = "tinker 0.38.0, and 0.16.1 with the server of skyrl-tx 0.3.0"


class Run(NamedTuple):
    """Tokens of one sampling request: of its prompt, or of its answer."""

    sequence_id: str
    sampled: bool
    offset: int
    """Position in the prompt or in the answer of that request."""
    length: int


def loss_inputs(
    row: TrainingRow, advantage: float, *, temperature: float | None = 1.0
) -> dict[str, list[Any]]:
    """Return the shifted lists of one row, each one shorter than the row: plain numbers, without Tinker.

    Args:
        row: A row.
        advantage: Of its trained tokens.
        temperature: See :func:`to_datums`.

    Raises:
        NotExportable: A trained token has no log-probability, or the row saw media or was sampled otherwise than the
            trainer computes.
    """
    sampled_at(exportable([row]), temperature)
    logprobs = numbers(row)
    return {
        "target_tokens": list(row.token_ids[1:]),
        "logprobs": logprobs[1:],
        "advantages": [advantage if trained else 0.0 for trained in row.loss_mask[1:]],
    }


def provenance(row: TrainingRow) -> list[Run]:
    """Return where each token of a row comes from, in runs that tile it; empty where a response has no id."""
    runs: list[Run] = []
    at = 0
    for segment in row.segments:
        if segment.call.response_id is None:
            return []
        sequence_id = f"{segment.call.response_id}/{segment.choice.index}"
        runs += [Run(sequence_id, False, at, segment.start - at)] if segment.start > at else []
        runs.append(Run(sequence_id, True, 0, segment.end - segment.start))
        at = segment.end
    return runs


def to_datums(
    rows: Iterable[TrainingRow],
    *,
    advantage: Formula | str | AdvantageFunction | Sequence[float] = Formula.CENTER,
    with_provenance: bool = True,
    on_unscored: str = "drop",
    temperature: float | None = 1.0,
    weights: Weights = "rows",
) -> list[tinker.Datum]:
    """Return one ``Datum`` per row.

    Args:
        rows: Rows of whole groups: the baseline of a rollout is made of its group.
        advantage: A formula (default: Tinker's own, reward minus the mean of the group), a function of the rewards
            of a group, or the advantages themselves, one per row.
        with_provenance: Whether runs name the sampling requests that the tokens come from; clients before
            0.38 have no place for it (seen with 0.16.1), and their data goes without.
        on_unscored: ``drop`` leaves rows of unscored rollouts out, ``error`` refuses them.
        temperature: At which the trainer computes log-probabilities; rows that were sampled otherwise are refused.
            Tinker computes at 1 and has no setting for it. ``None`` compares nothing.
        weights: ``rows`` gives each row the advantage of its rollout, which in Tinker's sum over tokens is what one
            long row would have; ``rollouts`` divides it by the number of rows that the rollout has here.

    Raises:
        NotExportable: A trained token has no log-probability, a row saw media or was sampled otherwise than the
            trainer computes, a row is unscored and that is an error, or only single answers of it have rewards.
        ValueError: A row has no group, there are not as many advantages as rows, or ``weights`` is unknown.
        MissingExtra: Tinker is not installed.
    """
    try:
        import tinker
    except ImportError as error:
        raise MissingExtra("tinker", "tinker") from error
    given = exportable(rows)
    # Advantages that are given may well be made of rewards for answers; a formula knows rollouts only.
    if callable(advantage) or isinstance(advantage, str):
        refuse_steps(given)
    found = []
    values = _advantages(given, advantage)
    for row, value, share in zip(given, values, shares(given, weights), strict=True):
        # A formula gives unscored rollouts no advantage.
        if value is None:
            if on_unscored == "error":
                scored(row)
            continue
        datum = tinker.Datum(
            model_input=tinker.ModelInput.from_ints(list(row.token_ids[:-1])),
            loss_fn_inputs=loss_inputs(row, value * share, temperature=temperature),
        )
        # Older releases of Tinker have no provenance.
        runs = provenance(row) if with_provenance and hasattr(datum, "with_provenance") else []
        if runs:
            # Input and targets are shifted by one: the model predicts token n + 1 at token n.
            length = len(row)
            datum = datum.with_provenance(
                model_input=list(_spans(tinker, runs, 0, length - 1)),
                loss_fn_inputs=list(_spans(tinker, runs, 1, length)),
            )
        found.append(datum)
    return found


class Transition(NamedTuple):
    """One answer of a trajectory, with the names of the cookbook's ``Transition``."""

    ob: list[int]
    """The prompt: all tokens before the answer."""
    ac: dict[str, list[Any]]
    """``tokens`` and ``maybe_logprobs``, as its ``TokensWithLogprobs`` has them."""
    reward: float
    episode_done: bool


class TrajectoryGroup(NamedTuple):
    """The rollouts of one group; a trajectory is a row."""

    group_id: str
    trajectories: list[list[Transition]]
    final_rewards: list[float]
    """One per trajectory: the reward of its rollout."""


def to_trajectory_groups(
    rows: Iterable[TrainingRow], *, temperature: float | None = 1.0
) -> list[TrajectoryGroup]:
    """Return groups of trajectories as the cookbook (0.6) has them; the reward is given once, at the end.

    A rollout with several rows gives several trajectories with the same reward: where its baseline must not count
    it more than once, use :func:`to_datums`, which also says what ``temperature`` is.

    Raises:
        NotExportable: A row is unscored, has no group, saw media, was sampled otherwise than the trainer computes, or
            trains tokens without log-probabilities.
    """
    given = exportable(rows)
    sampled_at(given, temperature)
    groups: dict[str, TrajectoryGroup] = {}
    for _, own in by_rollout(given):
        for row in own:
            name = group(row)
            found = groups.setdefault(name, TrajectoryGroup(name, [], []))
            found.trajectories.append(list(_transitions(row)))
            found.final_rewards.append(scored(row))
    return list(groups.values())


def _advantages(
    rows: Sequence[TrainingRow], advantage: Formula | str | AdvantageFunction | Sequence[float]
) -> list[float | None]:
    if callable(advantage) or isinstance(advantage, str):
        return row_advantages(rows, advantage)
    given: list[float | None] = list(map(float, advantage))
    if len(given) != len(rows):
        raise ValueError(f"{len(given)} advantages for {len(rows)} rows")
    return given


def _spans(tinker: Any, runs: Sequence[Run], start: int, end: int) -> Iterator[Any]:
    """Yield Tinker's spans of the positions ``[start, end)`` of a row."""
    at = 0
    for run in runs:
        first, last = max(at, start), min(at + run.length, end)
        # Runs that lie outside of the positions asked for have no span.
        if first < last:
            kind = tinker.SampledProvenanceSpan if run.sampled else tinker.PromptProvenanceSpan
            yield kind(sequence_id=run.sequence_id, offset=run.offset + first - at, length=last - first)
        at += run.length


def _transitions(row: TrainingRow) -> Iterator[Transition]:
    logprobs = numbers(row)
    trained = [segment for segment in row.segments if segment.trained]
    for segment in trained:
        if segment.forced:
            raise NotExportable(
                f"span {segment.span_id} has tokens that were forced, not sampled, and a transition has no mask; "
                "use to_datums"
            )
        tokens = list(row.token_ids[segment.start : segment.end])
        yield Transition(
            ob=list(row.token_ids[: segment.start]),
            ac={"tokens": tokens, "maybe_logprobs": logprobs[segment.start : segment.end]},
            reward=0.0,
            # The cookbook gives the reward of a trajectory once, beside it.
            episode_done=segment is trained[-1],
        )
