"""verl takes our rows: lengths agree, padding is by length, and rows split off change no advantage (B14, C2, C5, E2)."""

from __future__ import annotations

import asyncio
import math
import warnings
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pages import blocks, run
from sample_rows import FORKED, LINEAR, rollout_of, rows_of, spans_of, two_groups
from test_skyrl import for_the_call
from test_tinker import conversation, lengths

from agentlightning.errors import NotExportable
from agentlightning.exporters.experts import routed_experts
from agentlightning.exporters.verl import padded_batch, to_agent_loop_outputs, to_dataproto
from agentlightning.rows import build_rows

SIZES: Any = {"max_prompt_length": 4, "max_response_length": 10, "pad_token_id": 0}


@given(lengths, st.integers(1, 30))
def test_e2_lists_are_equally_long_and_within_the_limit(turns: list[Any], response_length: int) -> None:
    rows = rows_of(conversation(turns))
    (output,) = to_agent_loop_outputs(rows, response_length=response_length)

    assert output["response_logprobs"] is not None
    length = len(output["response_ids"])
    assert 0 < length <= response_length
    assert len(output["response_mask"]) == len(output["response_logprobs"]) == length
    assert set(output["response_mask"]) <= {0, 1}
    whole = rows[0]
    assert output["prompt_ids"] + output["response_ids"] == list(
        whole.token_ids[: len(whole.prompt_ids) + length]
    )
    assert output["extra_fields"]["cut_tokens"] == len(whole.completion_ids) - length


def test_e2_only_the_last_output_of_a_session_has_the_reward_and_all_have_the_same_keys() -> None:
    outputs = to_agent_loop_outputs(rows_of(FORKED, reward=0.5))
    single = to_agent_loop_outputs(rows_of(LINEAR))

    assert [output["reward_score"] for output in outputs] == [None, 0.5]
    assert len({frozenset(output) for output in [*outputs, *single]}) == 1
    assert len({frozenset(output["extra_fields"]) for output in [*outputs, *single]}) == 1
    steps = [
        (output["extra_fields"]["min_global_steps"], output["extra_fields"]["max_global_steps"])
        for output in [*outputs, *single]
    ]
    assert steps == [(0, 1), (2, 2), (0, 2)]
    assert [output["num_turns"] for output in [*outputs, *single]] == [4, 4, 6]
    assert all(output["response_logprobs"] is not None for output in outputs)
    assert [
        output["response_logprobs"] for output in to_agent_loop_outputs(rows_of(FORKED), with_logprobs=False)
    ] == [
        None,
        None,
    ]


def test_the_reward_goes_to_the_last_output_that_is_left() -> None:
    (output,) = to_agent_loop_outputs(rows_of(FORKED, reward=0.5), response_length=3)

    assert output["reward_score"] == 0.5
    assert output["response_ids"] == [20, 21]  # without 7, which nothing trained follows
    assert output["extra_fields"]["left_out_rows"] == [1]


def test_an_unscored_session_is_scored_by_verl() -> None:
    (output,) = to_agent_loop_outputs(rows_of(LINEAR, reward=None))

    assert output["reward_score"] is None
    assert output["extra_fields"]["reward_extra_info"] == {}


def test_rows_of_two_attempts_are_no_session() -> None:
    with pytest.raises(NotExportable, match="several attempts"):
        to_agent_loop_outputs(two_groups())


@given(lengths, st.integers(0, 3), st.sampled_from([0, 2, 500, 501]))
def test_b14_attention_is_made_of_lengths_whatever_the_pad_token(
    turns: list[Any], more: int, pad: int
) -> None:
    rows = rows_of(conversation(turns))
    row = rows[0]
    wide: Any = {"max_prompt_length": row.prompt_length + more, "max_response_length": len(row) + more}
    batch = padded_batch(rows, pad_token_id=pad, **wide)
    other = padded_batch(rows, pad_token_id=9999, **wide)

    assert batch.attention_mask == other.attention_mask
    assert batch.response_mask == other.response_mask
    (attention,), tokens = batch.attention_mask, batch.prompts[0] + batch.responses[0]
    seen = [token for token, attended in zip(tokens, attention, strict=True) if attended]
    assert seen == list(row.token_ids)
    assert [token for token, attended in zip(tokens, attention, strict=True) if not attended] == [pad] * (
        len(tokens) - len(row)
    )
    assert len(batch.response_mask[0]) == len(batch.rm_scores[0]) == wide["max_response_length"]
    assert sum(batch.response_mask[0]) == row.trained_tokens
    assert batch.rm_scores[0][len(row.completion_ids) - 1] == row.reward
    assert sum(batch.rm_scores[0]) == row.reward


def test_c2_the_advantage_of_a_rollout_does_not_depend_on_its_rows() -> None:
    split = padded_batch([*rows_of(LINEAR, "a", 1.0), *rows_of(FORKED, "b", 0.0)], **SIZES)
    whole = padded_batch([*rows_of(LINEAR, "a", 1.0), *rows_of(LINEAR, "b", 0.0)], **SIZES)

    assert split.advantages is not None
    assert whole.advantages is not None
    value = 0.5 / (math.sqrt(0.5) + 1e-6)
    assert [max(row, key=abs) for row in split.advantages] == pytest.approx([value, -value, -value])
    assert [max(row, key=abs) for row in whole.advantages] == pytest.approx([value, -value])
    assert split.batch_keys == ["g_0_0", "g_1_0", "g_1_1"]


def test_what_is_left_out_is_named_and_still_counts_in_the_baseline() -> None:
    long = [((*range(1, 6),), (10, 11))]
    rows = [*rows_of(LINEAR, "a", 1.0), *rows_of(long, "b", 0.0), *rows_of(FORKED, "c", None)]
    batch = padded_batch(rows, **SIZES)

    assert [row.rollout_id for row in batch.rows] == ["a"]
    assert [(each.rollout_id, each.index, each.reason) for each in batch.left_out] == [
        ("c", 0, "unscored"),
        ("c", 1, "unscored"),
        ("b", 0, "over_long_prompt"),
    ]
    assert batch.advantages is not None
    assert max(batch.advantages[0]) == pytest.approx(0.5 / (math.sqrt(0.5) + 1e-6))
    with pytest.raises(NotExportable, match="has no group"):
        padded_batch(rows_of(LINEAR, group_id=None), **SIZES)
    with pytest.raises(NotExportable, match="no row is left"):
        to_dataproto(rows_of(LINEAR, reward=None), **SIZES)


def test_rewards_of_answers_stand_at_their_last_tokens_and_take_no_formula() -> None:
    rows = rows_with_steps(LINEAR, {0: 0.5, 1: 0.25})
    sizes = {**SIZES, "advantage": None}
    (scores,) = padded_batch(rows, **sizes, rewards="steps").rm_scores

    ends = [segment.end - 1 - rows[0].prompt_length for segment in rows[0].segments]
    assert {place: score for place, score in enumerate(scores) if score} == {
        ends[0]: 0.5,
        ends[1]: 0.25,
        ends[2]: 1.0,
    }
    with pytest.raises(ValueError, match="goes with advantage=None"):
        padded_batch(rows, **SIZES, rewards="steps")
    with pytest.raises(NotExportable, match="has 2 rows and rewards for single answers"):
        padded_batch(rows_with_steps(FORKED, {0: 0.5}), **sizes, rewards="steps")


def test_a_rollout_with_rewards_for_single_answers_alone_is_not_left_out_in_silence() -> None:
    rows = rows_with_steps(LINEAR, {0: 0.5}, outcome=None)

    assert len(padded_batch(rows, **{**SIZES, "advantage": None}, rewards="steps").rows) == 1
    for write in (padded_batch, to_dataproto):
        with pytest.raises(NotExportable, match="has rewards for single answers, and its rollout has none"):
            write(rows, **SIZES)


def test_rows_of_a_rollout_share_its_advantage_where_they_shall_count_once() -> None:
    rows = [*rows_of(LINEAR, "a", 1.0), *rows_of(FORKED, "b", 0.0)]
    whole, shared = (
        padded_batch(rows, **SIZES, weights="rows"),
        padded_batch(rows, **SIZES, weights="rollouts"),
    )

    assert whole.advantages is not None
    assert shared.advantages is not None
    for each, half, weight in zip(whole.advantages, shared.advantages, (1.0, 0.5, 0.5), strict=True):
        assert half == [value * weight for value in each]
    with pytest.raises(ValueError, match="weights are in advantages"):
        padded_batch(rows, **{**SIZES, "advantage": None}, weights="rollouts")
    # The row that does not fit takes no share.
    (_, alone) = padded_batch(rows, **{**SIZES, "max_response_length": 2}, weights="rollouts").rows
    cut = padded_batch(rows, **{**SIZES, "max_response_length": 2}, weights="rollouts").advantages
    plain = padded_batch(rows, **{**SIZES, "max_response_length": 2}).advantages
    assert alone.rollout_id == "b"
    assert cut == plain


# ---------------------------------------------------------------------- the installed verl


@pytest.fixture(scope="module")
def agent_loop() -> Any:
    """Return verl's module of agent loops."""
    reason = "scripts/trainers installs verl"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of each engine that is not there
        pytest.importorskip("verl.trainer.ppo.v1.utils", reason=reason)
        return pytest.importorskip("verl.experimental.agent_loop.agent_loop", reason=reason)


def test_e2_the_real_agent_loop_output_takes_ours(agent_loop: Any) -> None:
    import torch

    rows = rows_of(FORKED, reward=0.1)
    outputs = [agent_loop.AgentLoopOutput(**output) for output in to_agent_loop_outputs(rows)]
    fields = [output.as_dict() for output in outputs]

    for row, own in zip(rows, fields, strict=True):
        assert own["prompts"].tolist() == list(row.prompt_ids)
        assert own["responses"].tolist() == list(row.completion_ids)
        assert own["response_mask"].tolist() == list(row.loss_mask[row.prompt_length :])
        assert own["rollout_log_probs"].dtype == torch.float32
        # Exact in float32.
        assert own["rollout_log_probs"].tolist() == list(row.logprobs[row.prompt_length :])
    assert "rm_scores" not in fields[0]
    assert fields[1]["rm_scores"].dtype == torch.float32
    assert fields[1]["rm_scores"][-1] == torch.tensor(0.1)  # C7
    # Its V1 trainer gives the last output's reward, and this key, to the others.
    assert outputs[-1].extra_fields["reward_extra_info"] == {"primary": 0.1}


def test_verls_router_replay_gets_the_experts_of_each_token(agent_loop: Any) -> None:
    import torch

    rows = [*rows_with_experts(LINEAR, "ro-1"), *rows_with_experts(FORKED, "ro-2")]
    data = to_dataproto(rows, **SIZES, with_routed_experts=True)
    outputs = [
        output
        for own in (rows[:1], rows[1:])
        for output in to_agent_loop_outputs(own, with_routed_experts=True)
    ]
    experts = data.batch["routed_experts"]
    assert experts.shape == (3, 14, 2, 2)
    for row, output, own in zip(rows, outputs, experts, strict=True):
        nested = torch.tensor(routed_experts(row).nested())
        start = 4 - row.prompt_length
        assert torch.equal(own[start : start + len(row) - 1], nested.to(torch.int16))
        assert not own[start + len(row) - 1 :].any()
        theirs = agent_loop.AgentLoopOutput(**output).as_dict()["routed_experts"]
        assert torch.equal(theirs[:-1], nested.to(torch.int16))
        assert not theirs[-1].any()
        # Its padded path wants an array with a shape, on which it calls from_numpy.
        assert output["routed_experts"].shape == (len(row) - 1, 2, 2)
        assert output["routed_experts"].flags.writeable
    assert "routed_experts" not in to_dataproto(rows, **SIZES).batch.keys()
    with pytest.raises(NotExportable, match="has no routed experts"):
        to_agent_loop_outputs(rows_of(LINEAR), with_routed_experts=True)


def test_verls_gae_takes_the_rewards_of_answers(agent_loop: Any) -> None:
    import torch
    from verl.trainer.ppo.core_algos import compute_gae_advantage_return

    rows = rows_with_steps(LINEAR, {0: 0.5, 1: 0.25})
    data = to_dataproto(rows, **SIZES, advantage=None, rewards="steps")
    scores, mask = data.batch["rm_scores"], data.batch["response_mask"]
    _, returns = compute_gae_advantage_return(
        scores, torch.zeros_like(scores), mask, gamma=torch.tensor(1.0), lam=torch.tensor(1.0)
    )
    first, second, third = (segment.start - rows[0].prompt_length for segment in rows[0].segments)
    assert [returns[0][at].item() for at in (first, second, third)] == [1.75, 1.25, 1.0]


def test_verls_own_padding_gives_the_same_batch(agent_loop: Any) -> None:
    """The legacy path of verl pads with a tokenizer and takes the attention from it."""
    from types import SimpleNamespace

    import torch
    from verl.utils.model import compute_position_id_with_mask

    rows = two_groups()
    ours = to_dataproto(rows, **SIZES)
    pad = agent_loop.AgentLoopWorker._pad_token_ids
    worker = SimpleNamespace(tokenizer=_Padding())
    for place, row in enumerate(rows):
        prompt = pad(
            worker, list(row.prompt_ids), max_length=4, padding_side="left", return_attention_mask=True
        )
        response = pad(
            worker, list(row.completion_ids), max_length=10, padding_side="right", return_attention_mask=True
        )
        own = ours.batch[place]
        assert torch.equal(own["prompts"], prompt["input_ids"][0])
        assert torch.equal(own["responses"], response["input_ids"][0])
        attention = torch.cat([prompt["attention_mask"][0], response["attention_mask"][0]])
        assert torch.equal(own["attention_mask"], attention)
        assert torch.equal(own["position_ids"], compute_position_id_with_mask(attention[None])[0])


def test_e2_a_real_data_proto(agent_loop: Any) -> None:
    import torch

    data = to_dataproto([*two_groups(), *rows_of(LINEAR, "ro-5", None, "g2")], **SIZES)

    data.check_consistency()
    assert data.batch["input_ids"].shape == (6, 14)
    assert data.batch["rollout_log_probs"].dtype == data.batch["rm_scores"].dtype == torch.float32
    assert data.non_tensor_batch["uid"].tolist() == ["g1", "g1", "g1", "g2", "g2", "g2"]
    assert data.non_tensor_batch["max_global_steps"].tolist() == [2, 1, 2, 2, 1, 2]
    assert data.meta_info["left_out"] == [("ro-5", "at-ro-5", 0, "unscored")]
    assert data.meta_info["temperature"] == 1.0
    again = type(data).concat([data[:3], data[3:]])  # its batches are cut and joined on the way
    assert torch.equal(again.batch["advantages"], data.batch["advantages"])


@pytest.mark.parametrize("by_std", [True, False])
def test_c2_verls_own_advantages_of_several_rows_equal_ours(agent_loop: Any, by_std: bool) -> None:
    import torch
    from verl.trainer.ppo.core_algos import AdvantageEstimator
    from verl.trainer.ppo.v1.utils import compute_advantage_for_multi_trajectories

    rows = [*two_groups(), *rows_of(FORKED, "alone", 0.7, "g_3")]  # C5: alone in its group
    ours = to_dataproto(rows, **SIZES, advantage="verl" if by_std else _verl_without_std)
    data = to_dataproto(rows, **SIZES, advantage=None)
    data.batch["token_level_rewards"] = data.batch["rm_scores"]
    keys = data.non_tensor_batch["batch_keys"].tolist()
    theirs = compute_advantage_for_multi_trajectories(
        data, keys, AdvantageEstimator.GRPO, norm_adv_by_std_in_grpo=by_std
    )

    assert "advantages" in ours.batch.keys()
    assert torch.allclose(ours.batch["advantages"], theirs.batch["advantages"], rtol=1e-6, atol=0)


def test_verls_grpo_over_rows_would_count_a_split_rollout_twice(agent_loop: Any) -> None:
    """Why the advantages are in the batch: the plain formula takes each row for a rollout."""
    import torch
    from verl.trainer.ppo.core_algos import compute_grpo_outcome_advantage

    data = to_dataproto(two_groups(), **SIZES)
    plain, _ = compute_grpo_outcome_advantage(
        data.batch["rm_scores"], data.batch["response_mask"], data.non_tensor_batch["uid"]
    )

    assert not torch.allclose(plain, data.batch["advantages"])
    whole = [
        *rows_of(LINEAR, "ro-1", 1.0, "g1"),
        *rows_of(LINEAR, "ro-2", 0.0, "g1"),
        *rows_of(LINEAR, "ro-3", 0.25, "g1"),
    ]
    same = to_dataproto(whole, **SIZES)
    plain, _ = compute_grpo_outcome_advantage(
        same.batch["rm_scores"], same.batch["response_mask"], same.non_tensor_batch["uid"]
    )
    assert torch.allclose(plain, same.batch["advantages"], rtol=1e-6, atol=0)


def rows_with_steps(turns: Any, steps: Any, outcome: Any = 1.0) -> Any:
    """Return rows of calls of which some, by number, have a reward of their own."""
    spans = spans_of(turns, "ro-1", outcome)
    return build_rows(
        [*spans, *(for_the_call(number, value) for number, value in steps.items())],
        rollout=rollout_of("ro-1", "g"),
    )


def rows_with_experts(turns: Any, rollout_id: str) -> Any:
    """Return rows of calls that say which experts their tokens went through."""
    return rows_of(
        turns,
        rollout_id,
        more=lambda _, turn: {"routed_experts": [[[token, 1], [2, 3]] for token in sum(turn, ())[:-1]]},
    )


class _Padding:
    """A tokenizer's ``pad``, without a vocabulary."""

    pad_token_id = 0
    padding_side = "right"

    def pad(self, inputs: Any, *, max_length: int, **_: Any) -> Any:
        import torch

        ids = inputs["input_ids"]
        rest = [0] * (max_length - len(ids))
        ones = [1] * len(ids)
        padded, attention = (
            (rest + ids, rest + ones) if self.padding_side == "left" else (ids + rest, ones + rest)
        )
        return {"input_ids": torch.tensor(padded), "attention_mask": torch.tensor(attention)}


def _verl_without_std(rewards: Any) -> list[Any]:
    """Return verl's advantages with ``norm_adv_by_std_in_grpo=False``: a group of one keeps its reward."""
    mean = sum(rewards) / len(rewards) if len(rewards) > 1 else 0.0
    return [reward - mean for reward in rewards]


def test_the_page_on_verl_runs(agent_loop: Any) -> None:
    from types import SimpleNamespace

    (block,) = blocks("train-with-verl.md")
    made = asyncio.run(run(block, rows=two_groups(), tokenizer=SimpleNamespace(pad_token_id=0)))

    assert len(made["data"]) == 6
    assert made["data"].meta_info["left_out"] == []


def test_a_choice_of_rewards_that_there_is_not_is_refused() -> None:
    with pytest.raises(ValueError, match="rewards is 'rollout' or 'steps', not 'step'"):
        padded_batch([], **{**SIZES, "advantage": None}, rewards="step")  # type: ignore[arg-type]
