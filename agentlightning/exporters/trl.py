"""TRL: rollouts as the lists that its ``GRPOTrainer`` takes, one entry per prompt, and what is refused before that.

A rollout without a row gets one that trains nothing: one token, masked, unscored, out of every baseline; one with
several rows gives its longest. TRL checks next to nothing of what it is given (short masks train the environment's
tokens), so everything is checked here. :mod:`agentlightning.training.trl` runs the rollouts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

from ..errors import NotExportable
from ..rows.policy import RowPolicy
from ..rows.sealed import RefusedAttempt, SealedAttempt
from ..rows.training import RowSet, TrainingRow
from .checks import exportable, sampled_at

TESTED_WITH = "trl 1.16.0"

OnFork = Literal["longest", "error"]
Rollouts = SealedAttempt | RefusedAttempt | Sequence[TrainingRow]
"""One rollout: as the store gives it, or its rows."""

SENTINEL = -9999.0
"""vLLM's log-probability of a token that it has none for."""

EXTRA = ("trace_reward", "rollout_id", "trace_refused", "trace_rows_left_out")


def rollout_dict(
    rollouts: Iterable[Rollouts],
    *,
    on_fork: OnFork = "longest",
    policy: RowPolicy | None = None,
    placeholder: int = 0,
    vocabulary: int | None = None,
    temperature: float | None = 1.0,
) -> dict[str, list[Any]]:
    """Return what a ``rollout_func`` returns: lists with one entry per rollout, in the order given.

    Beside TRL's own ``prompt_ids``, ``completion_ids``, ``logprobs`` and ``env_mask`` there are lists that reward
    functions get: ``trace_reward`` (``None`` = unscored), ``rollout_id``, ``trace_refused`` (``None``, or the codes
    of why the row trains nothing) and ``trace_rows_left_out``.

    Args:
        rollouts: One for each prompt.
        on_fork: What to do with a rollout of several rows: ``longest`` takes the one that trains most tokens, the
            first of equals; ``error`` refuses it.
        policy: Which calls of sealed attempts are trained.
        placeholder: Token of rows that train nothing.
        vocabulary: Size of the model's vocabulary, where it is known.
        temperature: TRL's ``temperature``, at which it computes log-probabilities, also where a row has none; rows
            that were sampled otherwise are refused. ``None`` compares nothing.

    Raises:
        NotExportable: A row is not sound, saw media or was sampled otherwise than the trainer computes, or a rollout
            has several rows and that is an error.
    """
    found: dict[str, list[Any]] = {
        name: [] for name in ("prompt_ids", "completion_ids", "logprobs", "env_mask", *EXTRA)
    }
    for rollout in rollouts:
        rows = rows_of(rollout, policy)
        entry = (
            _entry(rows, on_fork, vocabulary, temperature)
            if rows
            else _nothing(id_of(rollout), placeholder, ",".join(why_none(rollout, rows)))
        )
        for name, value in entry.items():
            found[name].append(value)
    return found


def trace_reward(
    prompts: Any = None,
    completions: Any = None,
    *,
    trace_reward: Sequence[float | None],
    trace_refused: Sequence[str | None] = (),
    trace_rows_left_out: Sequence[int] = (),
    log_metric: Callable[[str, float], None] | None = None,
    **_: Any,
) -> list[float | None]:
    """Return what the rollouts earned, for ``GRPOTrainer(reward_funcs=[trace_reward])``; ``None`` = unscored.

    It logs the share of rollouts that train nothing, and how many rows were left out of those that fork.
    """
    # TRL passes them by name to every reward function.
    del prompts, completions
    if log_metric is not None and trace_refused:
        refused = sum(code is not None for code in trace_refused)
        log_metric("trace/refused_frac", refused / len(trace_refused))
        log_metric("trace/rows_left_out", float(sum(trace_rows_left_out)))
    return list(trace_reward)


def _entry(
    rows: Sequence[TrainingRow], on_fork: OnFork, vocabulary: int | None, temperature: float | None
) -> dict[str, Any]:
    if len(rows) > 1 and on_fork == "error":
        raise NotExportable(
            f"rollout {rows[0].rollout_id} has {len(rows)} rows, and TRL's GRPOTrainer takes one; use "
            "on_fork='longest', or AsyncGRPOTrainer with a TraceRolloutWorker"
        )
    # ``max`` takes the first of equals.
    row = max(rows, key=lambda each: each.trained_tokens)
    check_tokens(row, vocabulary)
    sampled_at([row], temperature)
    start = row.prompt_length
    return {
        "prompt_ids": list(row.prompt_ids),
        "completion_ids": list(row.completion_ids),
        "logprobs": list(row.logprobs[start:]),
        "env_mask": list(row.loss_mask[start:]),
        "trace_reward": row.reward,
        "rollout_id": row.rollout_id,
        "trace_refused": None,
        "trace_rows_left_out": len(rows) - 1,
    }


def _nothing(rollout_id: str, token: int, why: str) -> dict[str, Any]:
    """Return a row that trains nothing: TRL wants at least one token, and takes it for padding where it is masked."""
    return {
        "prompt_ids": [token],
        "completion_ids": [token],
        "logprobs": [0.0],
        "env_mask": [0],
        "trace_reward": None,
        "rollout_id": rollout_id,
        "trace_refused": why,
        "trace_rows_left_out": 0,
    }


def check_tokens(row: TrainingRow, vocabulary: int | None = None) -> None:
    """Refuse what TRL would train on without a word.

    Raises:
        NotExportable: A token id is not one of the vocabulary, a log-probability is positive, not finite or the
            engine's placeholder, one stands on a token that is not trained, or the policy saw images or other media.
    """
    limit = math.inf if vocabulary is None else vocabulary
    where = f"row {row.index} of rollout {row.rollout_id}"
    exportable([row])
    for token, trained, logprob in zip(row.token_ids, row.loss_mask, row.logprobs, strict=True):
        # A boolean is an ``int``, and TRL would make a token of it.
        if type(token) is not int or not 0 <= token < limit:
            raise NotExportable(f"{where} has the token id {token!r}; the vocabulary has {vocabulary}")
        if type(trained) is not int or trained not in {0, 1}:
            raise NotExportable(f"{where} has {trained!r} in its mask; it is made of 0 and 1")
        if logprob is None and trained:
            continue  # declared by RowPolicy(require_logprobs=False); TRL takes None
        if logprob is None or not math.isfinite(logprob) or logprob > 0 or logprob == SENTINEL:
            raise NotExportable(f"{where} has the log-probability {logprob!r}")
        # Rows have 0.0 on context; another number says that mask and log-probabilities are not of one row.
        if not trained and logprob:
            raise NotExportable(f"{where} has a log-probability on a token that nobody sampled")


def rows_of(rollout: Rollouts, policy: RowPolicy | None) -> Sequence[TrainingRow]:
    """Return the rows of a rollout; none where it was refused."""
    if isinstance(rollout, RefusedAttempt):
        return ()
    return rollout.rows(policy) if isinstance(rollout, SealedAttempt) else rollout


def id_of(rollout: Rollouts) -> str:
    """Return its id; empty where it is given as rows."""
    return rollout.rollout.rollout_id if isinstance(rollout, (SealedAttempt, RefusedAttempt)) else ""


def why_none(rollout: Rollouts, rows: Sequence[TrainingRow]) -> Sequence[str]:
    """Return the codes of why a rollout gives no row."""
    if isinstance(rollout, RefusedAttempt):
        return rollout.codes
    codes = [code.code for code in rows.reasons] if isinstance(rows, RowSet) else []
    return codes or ["no_rows"]
