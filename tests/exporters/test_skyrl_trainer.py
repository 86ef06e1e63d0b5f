"""SkyRL's own code takes our rows: its checks, its merging, its tensors and its advantages (properties E3, C2, C5)."""

from __future__ import annotations

import copy
import sys
import typing
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_rows import FORKED, LINEAR, Turn, rows_of, two_groups
from test_verifiers import trees

from agentlightning.exporters.experts import routed_experts
from agentlightning.exporters.skyrl import to_generator_output
from agentlightning.rows.advantage import Formula, row_advantages
from agentlightning.rows.training import TrainingRow

pytest.importorskip("skyrl", reason="scripts/trainers installs skyrl")

with pytest.MonkeyPatch.context() as patch:
    if sys.version_info < (3, 12):
        # pydantic refuses typing's TypedDict below 3.12, and SkyRL's servers of inference use it.
        import typing_extensions

        patch.setattr(typing, "TypedDict", typing_extensions.TypedDict)
    from skyrl.train.dataset.preprocess import convert_prompts_responses_to_batch_tensors
    from skyrl.train.generators.utils import merge_stepwise_output
    from skyrl.train.trainer import RayPPOTrainer
    from skyrl.train.utils.trainer_utils import validate_generator_output

CONFIGURATION = SimpleNamespace(
    generator=SimpleNamespace(
        step_wise_trajectories=True, merge_stepwise_output=True, n_samples_per_prompt=2
    ),
    trainer=SimpleNamespace(
        algorithm=SimpleNamespace(
            zero_variance_filter=False,
            advantage_estimator="grpo",
            gamma=1.0,
            lambd=1.0,
            grpo_norm_by_std=True,
        )
    ),
)
PADDING = SimpleNamespace(pad_token_id=0)


class Batch(dict[str, Any]):
    """As much of SkyRL's batch as its advantages read."""

    metadata: dict[str, Any]

    def to(self, device: str) -> Batch:
        """Stay."""
        del device
        return self


def tensors(rows: Sequence[TrainingRow]) -> Batch:
    """Let SkyRL check the rows, merge them, make tensors of them and compute advantages by GRPO."""
    output: Any = to_generator_output(rows)
    uids = [each.instance_id for each in output["trajectory_ids"]]
    validate_generator_output(len(uids), output, step_wise=True)
    trainer: Any = SimpleNamespace(cfg=CONFIGURATION, all_metrics={})
    output, uids = RayPPOTrainer.postprocess_generator_output(trainer, output, uids)
    names = ("sequences", "attention_mask", "response_mask", "rewards", "loss_mask", "logprobs", "experts")
    made = convert_prompts_responses_to_batch_tensors(
        PADDING,
        output["prompt_token_ids"],
        output["response_ids"],
        output["rewards"],
        output["loss_masks"],
        output["rollout_logprobs"],
    )
    batch = Batch(zip(names, made, strict=True), values=None)
    batch.metadata = {
        "uids": uids,
        "is_last_step": output["is_last_step"],
        "avg_response_length": sum(map(len, output["response_ids"])) / len(uids),
    }
    return RayPPOTrainer.compute_advantages_and_returns(trainer, batch)  # type: ignore[no-any-return, unused-ignore]


@settings(deadline=None, max_examples=50)
@given(st.lists(trees(), min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_e3_skyrl_accepts_what_it_gets_and_merges_nothing_further(turns: Any, random: Any) -> None:
    rows = [
        row
        for number, each in enumerate(turns)
        for row in rows_of(each, f"ro-{number}", 0.5, f"g{number % 2}")
    ]
    random.shuffle(rows)
    output: Any = to_generator_output(rows)

    validate_generator_output(len(rows), output, step_wise=True)
    merged = merge_stepwise_output(copy.deepcopy(output))
    for name in (
        "prompt_token_ids",
        "response_ids",
        "loss_masks",
        "rewards",
        "rollout_logprobs",
        "is_last_step",
    ):
        assert merged[name] == output[name], name


def test_e3_every_trained_token_gets_the_advantage_of_its_rollout_once_in_its_group() -> None:
    rows = two_groups()
    batch = tensors(rows)

    for place, (row, advantage) in enumerate(zip(rows, row_advantages(rows, Formula.VERL), strict=True)):
        length = len(row.completion_ids)
        assert batch["sequences"][place][-len(row) :].tolist() == list(row.token_ids)
        assert batch["loss_mask"][place][-length:].tolist() == list(row.loss_mask[row.prompt_length :])
        assert batch["logprobs"][place][-length:].tolist() == list(row.logprobs[row.prompt_length :])
        assert batch["advantages"][place][-length:].tolist() == pytest.approx([advantage] * length, abs=1e-5)
        padding: list[float] = batch["loss_mask"][place][:-length].tolist()
        assert not any(padding)


def test_c5_a_rollout_with_several_rows_counts_once_in_its_baseline() -> None:
    split = [*rows_of(LINEAR, "ro-1", 1.0), *rows_of(FORKED, "ro-2", 0.0)]
    whole = [*rows_of(LINEAR, "ro-1", 1.0), *rows_of(LINEAR, "ro-2", 0.0)]

    assert tensors(split)["advantages"][0].max() == tensors(whole)["advantages"][0].max()


def test_router_replay_gets_the_experts_of_each_token_and_zeros_for_the_last() -> None:
    def more(_: int, turn: Turn) -> dict[str, Any]:
        return {"routed_experts": [[[token, 1], [2, 3]] for token in (*turn[0], *turn[1])[:-1]]}

    rows = [*rows_of(LINEAR, "ro-1", more=more), *rows_of(FORKED, "ro-2", more=more)]
    output: Any = to_generator_output(rows, rewards="steps", with_routed_experts=True)
    validate_generator_output(len(rows), output, step_wise=False)
    *_, experts = convert_prompts_responses_to_batch_tensors(
        PADDING,
        output["prompt_token_ids"],
        output["response_ids"],
        output["rewards"],
        output["loss_masks"],
        output["rollout_logprobs"],
        output["rollout_expert_indices"],
    )
    for row, own in zip(rows, experts.tolist(), strict=True):
        assert own[len(own) - len(row) : -1] == routed_experts(row).nested()
        assert own[-1] == [[0, 0], [0, 0]]
