"""SkyRL's ``GeneratorOutput``: a dict of lists, one entry per row.

The shape is ``skyrl.train.generators.base.GeneratorOutput`` of SkyRL 0.3.0 and 0.4.0. Rows of one trajectory stand
together and the last of them is flagged, as its step-wise training wants; rewards are floats throughout, or lists with
one for each token throughout: SkyRL takes no mixture.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Dict, List, Literal, Optional, Tuple, TypedDict, Union

from ..adapter.training import TrainingRow
from ..errors import NotExportable
from .checks import by_rollout, exportable, group, numbers, sampled_at, scored

TESTED_WITH = "skyrl 0.3.0 (its checks, merging, tensors and advantages); the documented shape of 0.4.0"


@dataclass(frozen=True, slots=True)
class TrajectoryID:
    """Which sample of which task; SkyRL's own class has these fields."""

    instance_id: str
    repetition_id: int

    def to_string(self) -> str:
        """Return ``<instance>_<repetition>``, as SkyRL's does."""
        return f"{self.instance_id}_{self.repetition_id}"


class GeneratorOutput(TypedDict):
    """What a SkyRL generator returns."""

    prompt_token_ids: List[List[int]]
    response_ids: List[List[int]]
    rewards: Union[List[float], List[List[float]]]
    loss_masks: List[List[int]]
    stop_reasons: Optional[List[str]]
    rollout_metrics: Optional[Dict[str, Any]]
    rollout_logprobs: Optional[List[List[float]]]
    trajectory_ids: Optional[List[TrajectoryID]]
    is_last_step: Optional[List[bool]]


def to_generator_output(
    rows: Iterable[TrainingRow],
    *,
    rewards: Literal["rollout", "steps"] = "rollout",
    temperature: Optional[float] = 1.0,
) -> GeneratorOutput:
    """Return the rows as SkyRL takes them.

    Args:
        rows: Rows.
        rewards: ``rollout``: each row has the reward of its rollout. ``steps``: each token of a response has one; the
            reward of an answer stands at its last token (or at the last of the tokens that it is for), that of the
            rollout at the last token of its last row, everything else is 0.0. Each reward stands once.
        temperature: SkyRL's ``generator.sampling_params.temperature``, at which it computes log-probabilities; rows
            that were sampled otherwise are refused. ``None`` compares nothing.

    Raises:
        NotExportable: A row is unscored (with ``steps``: a reward of an answer is no number, or a rollout has no reward
            at all), has no group, saw media, was sampled otherwise than the trainer computes, or
            trains tokens without log-probabilities.
    """
    given = exportable(rows)
    sampled_at(given, temperature)
    repetitions: Dict[str, int] = {}
    found: List[Tuple[TrainingRow, TrajectoryID, bool]] = []
    for _, own in by_rollout(given):
        instance = group(own[0])
        trajectory = TrajectoryID(instance, repetitions.setdefault(instance, 0))
        repetitions[instance] += 1
        found += [(row, trajectory, row is own[-1]) for row in own]
    return GeneratorOutput(
        prompt_token_ids=[list(row.prompt_ids) for row, _, _ in found],
        response_ids=[list(row.completion_ids) for row, _, _ in found],
        rewards=[scored(row) for row, _, _ in found] if rewards == "rollout" else _by_token(given),
        loss_masks=[list(row.loss_mask[row.prompt_length :]) for row, _, _ in found],
        stop_reasons=[row.finish_reason or "unknown" for row, _, _ in found],
        rollout_metrics=None,
        rollout_logprobs=[numbers(row)[row.prompt_length :] for row, _, _ in found],
        trajectory_ids=[trajectory for _, trajectory, _ in found],
        is_last_step=[last for _, _, last in found],
    )


def _by_token(rows: Sequence[TrainingRow]) -> List[List[float]]:
    """Return a reward for each token of each response, in the order of ``by_rollout``."""
    found: List[List[float]] = []
    for _, own in by_rollout(rows):
        if not any(segment.trained and segment.rewards for row in own for segment in row.segments):
            scored(own[0])
        found += map(_steps, own)
        found[-1][-1] += own[-1].reward or 0.0
    return found


def _steps(row: TrainingRow) -> List[float]:
    values = [0.0] * len(row.completion_ids)
    for segment in row.segments:
        for step in segment.rewards if segment.trained else ():
            if step.value is None:
                raise NotExportable(
                    f"row {row.index} of rollout {row.rollout_id}, attempt {row.attempt_id} has a reward for an answer "
                    f"(span {step.span_id}) that is no number, and 0.0 would train it as a failure"
                )
            end = segment.end if step.tokens is None else segment.start + step.tokens[1]
            values[min(end, segment.end) - 1 - row.prompt_length] += step.value
    return values
