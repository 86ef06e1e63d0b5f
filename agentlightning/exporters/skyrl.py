"""SkyRL's ``GeneratorOutput``: a dict of lists, one entry per row.

The shape is ``skyrl.train.generators.base.GeneratorOutput`` of SkyRL 0.3.0 and 0.4.0. Rows of one trajectory stand
together and the last of them is flagged, as its step-wise training wants; rewards are floats throughout.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Tuple, TypedDict

from ..adapter.training import TrainingRow
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
    rewards: List[float]
    loss_masks: List[List[int]]
    stop_reasons: Optional[List[str]]
    rollout_metrics: Optional[Dict[str, Any]]
    rollout_logprobs: Optional[List[List[float]]]
    trajectory_ids: Optional[List[TrajectoryID]]
    is_last_step: Optional[List[bool]]


def to_generator_output(
    rows: Iterable[TrainingRow], *, temperature: Optional[float] = 1.0
) -> GeneratorOutput:
    """Return the rows as SkyRL takes them.

    Args:
        rows: Rows.
        temperature: SkyRL's ``generator.sampling_params.temperature``, at which it computes log-probabilities; rows
            that were sampled otherwise are refused. ``None`` compares nothing.

    Raises:
        NotExportable: A row is unscored, has no group, saw media, was sampled otherwise than the trainer computes, or
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
        rewards=[scored(row) for row, _, _ in found],
        loss_masks=[list(row.loss_mask[row.prompt_length :]) for row, _, _ in found],
        stop_reasons=[row.finish_reason or "unknown" for row, _, _ in found],
        rollout_metrics=None,
        rollout_logprobs=[numbers(row)[row.prompt_length :] for row, _, _ in found],
        trajectory_ids=[trajectory for _, trajectory, _ in found],
        is_last_step=[last for _, _, last in found],
    )
