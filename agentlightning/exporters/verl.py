"""verl's two shapes: the ``AgentLoopOutput`` of one session, and a whole batch as a ``DataProto``.

A session is an attempt, and may have several rows. verl's own trainer gives the reward of a session's last output to
the others and takes its baseline from the last ones alone; rows split off change no advantage (property C2), because
a batch made here either holds the advantages already, computed per rollout, or names each row's session for verl's
``compute_advantage_for_multi_trajectories``. verl checks none of the lengths; they are checked here (property E2).
Padding and attention come from lengths, so that a sampled pad token stays a token (property B14).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

from ..errors import MissingExtra, NotExportable
from ..rows.advantage import AdvantageFunction, Formula, row_advantages
from ..rows.training import TrainingRow
from .checks import (
    Rewards,
    Weights,
    by_rollout,
    by_step,
    exportable,
    group,
    has_steps,
    numbers,
    refuse_steps,
    rewards_by_token,
    sampled_at,
    scored,
    shares,
)
from .cutting import UNSCORED, LeftOut, cut_to, left_out
from .experts import RoutedExperts, same_shape

if TYPE_CHECKING:
    import verl

TESTED_WITH = "verl 0.9.1"


class AgentLoopOutput(TypedDict):
    """The fields of verl's ``AgentLoopOutput``, which takes them as keyword arguments."""

    prompt_ids: list[int]
    response_ids: list[int]
    response_mask: list[int]
    response_logprobs: list[float] | None
    reward_score: float | None
    num_turns: int
    """Each answer, and what came before it: two of each."""
    metrics: dict[str, float]
    extra_fields: dict[str, Any]
    routed_experts: NotRequired[Any]
    """An array of NumPy, ``int16[tokens, layers, experts]``, over prompt and response without its last token."""


def to_agent_loop_outputs(
    rows: Iterable[TrainingRow],
    *,
    response_length: int | None = None,
    with_logprobs: bool = True,
    temperature: float | None = 1.0,
    with_routed_experts: bool = False,
    experts_per_token: int | None = None,
) -> list[AgentLoopOutput]:
    """Return what an agent loop returns for one session: one output per row, the reward on the last.

    ``extra_fields`` has the same keys in every output: the policy versions as ``min_global_steps`` and
    ``max_global_steps``, the named rewards as ``reward_extra_info``, the row's ids, ``cut_tokens``, and the indices
    of rows that are left out because none of their trained tokens fits.

    Args:
        rows: Rows of one attempt.
        response_length: verl's ``rollout.response_length``: what is longer is cut, as its loops must do themselves.
        with_logprobs: Whether every output has log-probabilities, or none: verl takes them from all or from none.
        temperature: verl's ``rollout.temperature``, at which it computes log-probabilities; rows that were sampled
            otherwise are refused. ``None`` compares nothing.
        with_routed_experts: Whether every output has ``routed_experts``, for verl's router replay (``R3``).
        experts_per_token: See :func:`~agentlightning.exporters.experts.routed_experts`.

    Raises:
        NotExportable: The rows are of several attempts, a trained token has no log-probability, a row saw media
            or was sampled otherwise than the trainer computes, or its routed experts are wanted and not known.
        ValueError: ``response_length`` or ``experts_per_token`` is not positive.
        MissingExtra: Routed experts are wanted, and NumPy, which verl brings, is not installed.
    """
    given = exportable(rows)
    if len({(row.rollout_id, row.attempt_id) for row in given}) > 1:
        raise NotExportable("these rows are of several attempts; an agent loop returns one at a time")
    sampled_at(given, temperature)
    kept, gone = cut_to(sorted(given, key=lambda row: row.index), response_length=response_length)
    indices = [each.index for each in gone]
    outputs = [_output(row, row is kept[-1], indices, with_logprobs) for row in kept]
    if with_routed_experts:
        for output, routed in zip(outputs, same_shape(kept, experts_per_token), strict=True):
            output["routed_experts"] = _as_array(routed)
    return outputs


def _as_array(routed: RoutedExperts) -> Any:
    try:
        import numpy as np
    except ImportError as error:
        raise MissingExtra("numpy", "verl") from error
    return np.asarray(routed.values, dtype=np.int16).reshape(routed.tokens, *routed.shape)


def _output(row: TrainingRow, is_last: bool, gone: Sequence[int], with_logprobs: bool) -> AgentLoopOutput:
    oldest, newest = row.versions or (None, None)
    seconds = [
        segment.call.span.end_time - segment.call.span.start_time
        for segment in row.segments
        if segment.trained
        and segment.call.span.end_time is not None
        and segment.call.span.start_time is not None
    ]
    return AgentLoopOutput(
        prompt_ids=list(row.prompt_ids),
        response_ids=list(row.completion_ids),
        response_mask=list(row.loss_mask[row.prompt_length :]),
        response_logprobs=numbers(row)[row.prompt_length :] if with_logprobs else None,
        reward_score=row.reward if is_last else None,
        num_turns=2 * len(row.segments),
        metrics={"generate_sequences": sum(seconds)},
        extra_fields={
            "min_global_steps": oldest,
            "max_global_steps": newest,
            "reward_extra_info": {} if row.reward is None else dict(row.rewards),
            "rollout_id": row.rollout_id,
            "attempt_id": row.attempt_id,
            "row": row.index,
            "cut_tokens": row.cut_tokens,
            "left_out_rows": list(gone),
        },
    )


@dataclass(frozen=True, slots=True)
class PaddedBatch:
    """A batch as plain lists, one entry per row: prompts padded on the left, responses on the right."""

    prompts: list[list[int]]
    responses: list[list[int]]
    attention_mask: list[list[int]]
    """Over prompt and response: 1 = a token, whatever its id."""
    response_mask: list[list[int]]
    rollout_log_probs: list[list[float]] | None
    rm_scores: list[list[float]]
    """The reward of the rollout at the last token of each of its rows; with ``rewards="steps"`` each reward once."""
    advantages: list[list[float]] | None
    """0.0 where ``response_mask`` is 0."""
    rows: list[TrainingRow]
    """As they were cut."""
    batch_keys: list[str]
    """``<group>_<session>_<row>``, as verl's V1 trainer names its rows."""
    left_out: list[LeftOut]
    routed_experts: list[RoutedExperts] | None
    """Of each row, where they are wanted."""
    temperature: float | None
    """At which verl is to compute log-probabilities: the one that was given, else the only one at which the rows were
    sampled; ``None`` where they were sampled at several, or at an unknown one."""


def padded_batch(
    rows: Iterable[TrainingRow],
    *,
    max_prompt_length: int,
    max_response_length: int,
    pad_token_id: int,
    advantage: Formula | str | AdvantageFunction | None = Formula.VERL,
    with_logprobs: bool = True,
    temperature: float | None = 1.0,
    weights: Weights = "rows",
    rewards: Rewards = "rollout",
    with_routed_experts: bool = False,
    experts_per_token: int | None = None,
) -> PaddedBatch:
    """Return the batch of :func:`to_dataproto` without verl and without torch; same arguments, same errors."""
    given = [row for _, own in by_rollout(exportable(rows)) for row in own]
    sampled_at(given, temperature)
    # Every row needs a group, also one that is left out below: it is part of a baseline.
    for row in given:
        group(row)
    by_steps = by_step(rewards)
    if advantage is None and weights != "rows":
        raise ValueError("weights are in advantages: pass a formula, or leave them out")
    if by_steps and advantage is not None:
        raise ValueError("a formula knows rollouts only: rewards='steps' goes with advantage=None")
    if by_steps:
        _refuse_several(given)
    else:
        refuse_steps(given)
    # Before anything is cut or left out: the baseline of a group is made of all of its rollouts.
    values = [None] * len(given) if advantage is None else row_advantages(given, advantage)
    known = {_key(row): value for row, value in zip(given, values, strict=True)}
    is_scored = [row.reward is not None or (by_steps and has_steps(row)) for row in given]
    scored_rows = [row for row, has_reward in zip(given, is_scored, strict=True) if has_reward]
    unscored = [
        left_out(row, UNSCORED) for row, has_reward in zip(given, is_scored, strict=True) if not has_reward
    ]
    # Unscored rows go first: what is cut and what does not fit is told of scored ones only.
    kept, gone = cut_to(scored_rows, prompt_length=max_prompt_length, response_length=max_response_length)
    width = max_response_length
    return PaddedBatch(
        prompts=[_left(row.prompt_ids, max_prompt_length, pad_token_id) for row in kept],
        responses=[_right(row.completion_ids, width, pad_token_id) for row in kept],
        attention_mask=[
            _left([1] * row.prompt_length, max_prompt_length, 0)
            + _right([1] * len(row.completion_ids), width, 0)
            for row in kept
        ],
        response_mask=[_right(row.loss_mask[row.prompt_length :], width, 0) for row in kept],
        rollout_log_probs=(
            [_right(numbers(row)[row.prompt_length :], width, 0.0) for row in kept] if with_logprobs else None
        ),
        rm_scores=[_right(values, width, 0.0) for values in _scores(kept, by_steps=by_steps)],
        advantages=(
            None
            if advantage is None
            else [
                _spread(row, (known[_key(row)] or 0.0) * share, width)
                for row, share in zip(kept, shares(kept, weights), strict=True)
            ]
        ),
        rows=kept,
        batch_keys=_batch_keys(kept),
        left_out=[*unscored, *gone],
        routed_experts=same_shape(kept, experts_per_token) if with_routed_experts and kept else None,
        temperature=_only_temperature(kept) if temperature is None else temperature,
    )


def to_dataproto(
    rows: Iterable[TrainingRow],
    *,
    max_prompt_length: int,
    max_response_length: int,
    pad_token_id: int,
    advantage: Formula | str | AdvantageFunction | None = Formula.VERL,
    with_logprobs: bool = True,
    temperature: float | None = 1.0,
    weights: Weights = "rows",
    rewards: Rewards = "rollout",
    with_routed_experts: bool = False,
    experts_per_token: int | None = None,
) -> verl.DataProto:
    """Return the rows as a batch, with the tensors that verl's agent loops give, and ``uid`` = the group.

    Rows of one rollout stand together. Unscored rollouts, prompts that are too long, and rows of which no trained
    token fits are left out: ``meta_info["left_out"]`` names each, with the reason. ``meta_info["temperature"]``, which
    verl's actor divides its logits by, is ``temperature``; where that is ``None``, the only one that the rows were
    sampled at, and left out where there are several.

    Args:
        rows: Rows of whole groups: the baseline of a rollout is made of its group, before anything is cut.
        max_prompt_length: Width of the prompts.
        max_response_length: Width of the responses; longer ones are cut.
        pad_token_id: What stands in the padding; attention does not depend on it.
        advantage: A formula (default: verl's own for GRPO), or a function of the rewards of a group: the batch then
            holds ``advantages`` and ``returns``. ``None`` leaves them to verl: give
            ``non_tensor_batch["batch_keys"]`` to its ``compute_advantage_for_multi_trajectories``, so that a rollout
            with several rows counts once.
        with_logprobs: Whether ``rollout_log_probs`` is in it.
        temperature: verl's ``rollout.temperature``, at which it computes log-probabilities; rows that were sampled
            otherwise are refused. ``None`` compares nothing.
        weights: ``rows`` gives each row the advantage of its rollout: right where verl's loss is a mean over all tokens
            (``loss_agg_mode="token-mean"``). ``rollouts`` divides it by the number of rows of the rollout in the batch,
            so that in a mean over sequences (``seq-mean-*``) a rollout counts once; a KL term is not divided.
        rewards: ``rollout``: ``rm_scores`` has the reward of the rollout at the last token of each of its rows.
            ``steps``: the reward of an answer at its last token (or at the last of the tokens that it is for), and that
            of the rollout at the end, for estimators that take scores per token (GAE, REINFORCE++); with
            ``advantage=None``. What is cut off a row takes the rewards of its answers with it.
        with_routed_experts: Whether ``routed_experts`` is in it, for verl's router replay (``R3``).
        experts_per_token: See :func:`~agentlightning.exporters.experts.routed_experts`.

    Raises:
        NotExportable: A row has no group, saw media or was sampled otherwise than the trainer computes, a trained
            token has no log-probability, or no row is left; single answers have rewards and the rollout has none, or
            (``steps``) has several rows; routed experts are wanted and not known.
        ValueError: A limit is not positive, there is no such choice of ``weights`` or ``rewards``, ``weights`` is given
            without a formula, or ``steps`` with one.
        MissingExtra: verl is not installed.
    """
    batch = padded_batch(
        rows,
        max_prompt_length=max_prompt_length,
        max_response_length=max_response_length,
        pad_token_id=pad_token_id,
        advantage=advantage,
        with_logprobs=with_logprobs,
        temperature=temperature,
        weights=weights,
        rewards=rewards,
        with_routed_experts=with_routed_experts,
        experts_per_token=experts_per_token,
    )
    if not batch.rows:
        raise NotExportable(f"no row is left of these: {batch.left_out}")
    # Last: whatever is wrong with the rows is said without verl as well.
    try:
        import torch
        from verl import DataProto
    except ImportError as error:
        raise MissingExtra("verl", "verl") from error
    prompts, responses = torch.tensor(batch.prompts), torch.tensor(batch.responses)
    attention = torch.tensor(batch.attention_mask)
    tensors = {
        "prompts": prompts,
        "responses": responses,
        "input_ids": torch.cat([prompts, responses], dim=1),
        "attention_mask": attention,
        # Padding on the left has position 0, and the first token too.
        "position_ids": torch.clip(torch.cumsum(attention, dim=-1) - 1, min=0),
        "response_mask": torch.tensor(batch.response_mask),
        "rm_scores": torch.tensor(batch.rm_scores, dtype=torch.float32),
    }
    if batch.rollout_log_probs is not None:
        tensors["rollout_log_probs"] = torch.tensor(batch.rollout_log_probs, dtype=torch.float32)
    if batch.advantages is not None:
        tensors["advantages"] = torch.tensor(batch.advantages, dtype=torch.float32)
        # verl's GRPO has no critic: returns are the advantages, in a tensor of their own.
        tensors["returns"] = tensors["advantages"].clone()
    if batch.routed_experts is not None:
        tensors["routed_experts"] = torch.from_numpy(_routing(batch, max_prompt_length, max_response_length))
    left = [(each.rollout_id, each.attempt_id, each.index, each.reason) for each in batch.left_out]
    meta: dict[str, Any] = {"left_out": left}
    if batch.temperature is not None:
        meta["temperature"] = batch.temperature
    return DataProto.from_dict(tensors=tensors, non_tensors=_objects(batch), meta_info=meta)


def _objects(batch: PaddedBatch) -> dict[str, Any]:
    """Return the columns that are no tensors, each an array of objects."""
    import numpy as np

    versions = [row.versions or (None, None) for row in batch.rows]
    columns: dict[str, Sequence[Any]] = {
        "uid": [group(row) for row in batch.rows],
        "batch_keys": batch.batch_keys,
        "rollout_id": [row.rollout_id for row in batch.rows],
        "attempt_id": [row.attempt_id for row in batch.rows],
        "row": [row.index for row in batch.rows],
        "cut_tokens": [row.cut_tokens for row in batch.rows],
        "min_global_steps": [oldest for oldest, _ in versions],
        "max_global_steps": [newest for _, newest in versions],
        "__num_turns__": [2 * len(row.segments) for row in batch.rows],
    }
    found = {}
    for name, values in columns.items():
        # An array made of a list of lists or of equal lengths would get a second dimension.
        found[name] = np.empty(len(values), dtype=object)
        found[name][:] = values
    return found


def _batch_keys(rows: Sequence[TrainingRow]) -> list[str]:
    """Return verl's names: sessions are counted within their group, rows within their session."""
    sessions: dict[str, int] = {}
    keys: list[str] = []
    for _, own in by_rollout(rows):
        name = group(own[0])
        session = sessions.get(name, 0)
        sessions[name] = session + 1
        keys += [f"{name}_{session}_{index}" for index in range(len(own))]
    return keys


def _only_temperature(rows: Sequence[TrainingRow]) -> float | None:
    """Return the temperature that all rows were sampled at; ``None`` where there is none to divide logits by."""
    found = {each for row in rows for each in row.temperatures}
    return (found.pop() or None) if len(found) == 1 else None


def _key(row: TrainingRow) -> tuple[str, str, int]:
    return row.rollout_id, row.attempt_id, row.index


def _left(values: Sequence[Any], width: int, padding: Any) -> list[Any]:
    return [padding] * (width - len(values)) + list(values)


def _right(values: Sequence[Any], width: int, padding: Any) -> list[Any]:
    return list(values) + [padding] * (width - len(values))


def _spread(row: TrainingRow, value: float, width: int) -> list[float]:
    mask = row.loss_mask[row.prompt_length :]
    return _right([value if trained else 0.0 for trained in mask], width, 0.0)


def _scores(rows: Sequence[TrainingRow], *, by_steps: bool) -> list[list[float]]:
    if by_steps:
        return rewards_by_token(rows)
    return [[0.0] * (len(row.completion_ids) - 1) + [scored(row)] for row in rows]


def _refuse_several(rows: Sequence[TrainingRow]) -> None:
    for (rollout_id, _), own in by_rollout(rows):
        if len(own) > 1 and any(map(has_steps, own)):
            raise NotExportable(
                f"rollout {rollout_id} has {len(own)} rows and rewards for single answers; verl takes the score of a "
                "session from its last row alone, so those of the others would be lost"
            )


def _routing(batch: PaddedBatch, prompt_width: int, response_width: int) -> Any:
    """Return the experts of the batch; 0 on padding and on the last token of each row, as verl has them."""
    import numpy as np

    routed = batch.routed_experts or []
    found = np.zeros(
        (len(routed), prompt_width + response_width, *routed[0].shape),
        dtype=np.int16,
    )
    for place, (row, own) in enumerate(zip(batch.rows, routed, strict=True)):
        # Prompts are padded on the left, so the first token of the row stands here.
        start = prompt_width - row.prompt_length
        found[place, start : start + own.tokens] = _as_array(own)
    return found
