"""SkyRL's ``GeneratorOutput``: a dict of lists, one entry per row.

The shape is ``skyrl.train.generators.base.GeneratorOutput`` of SkyRL 0.3.0 and 0.4.0. Rows of one trajectory stand
together and the last of them is flagged, as its step-wise training wants; rewards are floats throughout, or lists with
one for each token throughout: SkyRL takes no mixture.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict

from ..rows.training import TrainingRow
from .checks import (
    Rewards,
    by_rollout,
    by_step,
    exportable,
    group,
    numbers,
    rewards_by_token,
    sampled_at,
    scored,
)
from .experts import same_shape

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

    prompt_token_ids: list[list[int]]
    response_ids: list[list[int]]
    rewards: list[float] | list[list[float]]
    loss_masks: list[list[int]]
    stop_reasons: list[str] | None
    rollout_metrics: dict[str, Any] | None
    rollout_logprobs: list[list[float]] | None
    trajectory_ids: list[TrajectoryID] | None
    is_last_step: list[bool] | None
    rollout_expert_indices: NotRequired[list[list[list[list[int]]]]]
    """For each token of prompt and response, for each layer, its experts; 0 for the last token, as SkyRL has it."""


def to_generator_output(
    rows: Iterable[TrainingRow],
    *,
    rewards: Rewards = "rollout",
    temperature: float | None = 1.0,
    with_routed_experts: bool = False,
    experts_per_token: int | None = None,
) -> GeneratorOutput:
    """Return the rows as SkyRL takes them.

    Args:
        rows: Rows.
        rewards: ``rollout``: each row has the reward of its rollout. ``steps``: each token of a response has one; the
            reward of an answer stands at its last token (or at the last of the tokens that it is for), that of the
            rollout at the last token of its last row, everything else is 0.0. Each reward stands once.
        temperature: SkyRL's ``generator.sampling_params.temperature``, at which it computes log-probabilities; rows
            that were sampled otherwise are refused. ``None`` compares nothing.
        with_routed_experts: Whether ``rollout_expert_indices`` is in it, for SkyRL's router replay
            (``enable_return_routed_experts``), which goes with neither its step-wise training nor its merging.
        experts_per_token: See :func:`~agentlightning.exporters.experts.routed_experts`.

    Raises:
        NotExportable: A row is unscored (with ``steps``: a reward of an answer is no number, or a rollout has no reward
            at all), has no group, saw media, was sampled otherwise than the trainer computes, or
            trains tokens without log-probabilities; or its routed experts are wanted and not known.
        ValueError: ``experts_per_token`` is not positive, or there is no such choice of ``rewards``.
    """
    by_steps = by_step(rewards)
    given = exportable(rows)
    sampled_at(given, temperature)
    repetitions: dict[str, int] = {}
    found: list[tuple[TrainingRow, TrajectoryID, bool]] = []
    for _, own in by_rollout(given):
        instance = group(own[0])
        trajectory = TrajectoryID(instance, repetitions.setdefault(instance, 0))
        # Repetitions number the samples of one task in the order in which they come, as SkyRL does.
        repetitions[instance] += 1
        found += [(row, trajectory, row is own[-1]) for row in own]
    output = GeneratorOutput(
        prompt_token_ids=[list(row.prompt_ids) for row, _, _ in found],
        response_ids=[list(row.completion_ids) for row, _, _ in found],
        rewards=[scored(row) for row, _, _ in found] if not by_steps else rewards_by_token(given),
        loss_masks=[list(row.loss_mask[row.prompt_length :]) for row, _, _ in found],
        stop_reasons=[row.finish_reason or "unknown" for row, _, _ in found],
        rollout_metrics=None,
        rollout_logprobs=[numbers(row)[row.prompt_length :] for row, _, _ in found],
        trajectory_ids=[trajectory for _, trajectory, _ in found],
        is_last_step=[last for _, _, last in found],
    )
    if with_routed_experts:
        output["rollout_expert_indices"] = _expert_indices([row for row, _, _ in found], experts_per_token)
    return output


def _expert_indices(
    rows: Sequence[TrainingRow], experts_per_token: int | None
) -> list[list[list[list[int]]]]:
    found = []
    for row, routed in zip(rows, same_shape(rows, experts_per_token), strict=True):
        indices = routed.nested()
        indices += [[[0] * routed.top_k for _ in range(routed.layers)]] * (len(row) - routed.tokens)
        found.append(indices)
    return found
