"""Training rows ⇄ flat dicts of plain values, for files and data frames.

``triplet_row`` and ``triplet_of_row`` undo each other; ``training_row`` is the row of one path. Ids,
log-probabilities and rewards pass as they are: no rounding, ``None`` stays ``None``. What has no fixed shape
(content, metadata) is a JSON value.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from typing import Any

from ..dialects.openai.logprob_entries import logprob_entries
from ..types import Triplet
from .training import Segment, TrainingRow

_SIDE = ("token_ids", "logprobs")


def triplet_row(triplet: Triplet) -> dict[str, Any]:
    """Return the row of a triplet: ids, log-probabilities, reward, and what the metadata says of each row."""
    prompt, response, metadata = _side(triplet.prompt), _side(triplet.response), triplet.metadata
    return {
        "rollout_id": metadata.get("rollout_id"),
        "attempt_id": metadata.get("attempt_id"),
        "span_id": metadata.get("span_id"),
        "response_id": metadata.get("response_id"),
        "call": metadata.get("call"),
        "choice": metadata.get("choice"),
        "agent": metadata.get("agent_name"),
        "model": metadata.get("model"),
        "prompt_token_ids": prompt.get("token_ids"),
        "response_token_ids": response.get("token_ids"),
        "logprobs": _numbers(response.get("logprobs")),
        "reward": triplet.reward,
        "rewards": copy.deepcopy(metadata.get("rewards")),
        "final_reward": metadata.get("final_reward"),
        "finish_reason": metadata.get("finish_reason"),
        "policy_version": copy.deepcopy(metadata.get("policy_version")),
        "prompt": {name: copy.deepcopy(value) for name, value in prompt.items() if name not in _SIDE},
        "response": {name: copy.deepcopy(value) for name, value in response.items() if name not in _SIDE},
        "metadata": copy.deepcopy(metadata),
    }


def triplet_of_row(row: Mapping[str, Any]) -> Triplet:
    """Return the triplet of a row that ``triplet_row`` or ``agl export`` wrote.

    ``prompt``, ``response`` and ``metadata`` may be JSON values or JSON text, as Parquet files hold them.

    Raises:
        KeyError: The row has no token ids.
        ValueError: A text is not JSON.
    """
    prompt, response = _loaded(row.get("prompt")), _loaded(row.get("response"))
    logprobs, reward = row.get("logprobs"), row.get("reward")
    return Triplet(
        prompt={"token_ids": list(row["prompt_token_ids"]), **prompt},
        response={
            "token_ids": list(row["response_token_ids"]),
            **response,
            "logprobs": None if logprobs is None else logprob_entries(row["response_token_ids"], logprobs),
        },
        reward=None if reward is None else float(reward),
        metadata=_loaded(row.get("metadata")),
    )


def _numbers(entries: Any) -> Any:
    """Return the numbers of entries as in ``logprobs.content`` of the OpenAI API; numbers stay as they are."""
    if entries is None:
        return None
    return [entry["logprob"] if isinstance(entry, Mapping) else entry for entry in entries]


def training_row(row: TrainingRow) -> dict[str, Any]:
    """Return a training row as a flat dict; see :class:`~agentlightning.rows.TrainingRow` for the fields."""
    return {
        "rollout_id": row.rollout_id,
        "attempt_id": row.attempt_id,
        "row": row.index,
        "group_id": row.group_id,
        "mode": row.mode,
        "token_ids": list(row.token_ids),
        "prompt_length": row.prompt_length,
        "loss_mask": list(row.loss_mask),
        "logprobs": list(row.logprobs),
        "unproven": [code.code for code in row.unproven],
        "reward": row.reward,
        "rewards": dict(row.rewards),
        "finish_reason": row.finish_reason,
        "cut_tokens": row.cut_tokens,
        "media": [{"kind": each.kind, "sha256": each.sha256} for each in row.media],
        "segments": [_segment(segment) for segment in row.segments],
        "messages": [copy.deepcopy(message) for message in row.messages],
    }


def _segment(segment: Segment) -> dict[str, Any]:
    record, truncation, why = segment.call.record, segment.truncation, segment.unproven
    return {
        "start": segment.start,
        "end": segment.end,
        "trained": segment.trained,
        "span_id": segment.span_id,
        "choice": segment.choice.index,
        "response_id": segment.call.response_id,
        "agent": segment.call.agent,
        "model": None if record is None else record.response_model or record.request_model,
        "finish_reason": segment.choice.finish_reason,
        "logprob_kind": None if record is None else record.logprob_kind,
        "unproven": None if why is None else {"code": why.code, "detail": why.detail},
        "forced": list(segment.forced),
        "temperature": segment.temperature,
        "truncation": None if truncation is None else dict(truncation),
        "sampling": {} if record is None else dict(record.sampling_effective),
        "versions": [
            {"version": part.version, "start": part.start, "end": part.end} for part in segment.versions
        ],
        "rewards": [
            {
                "value": step.value,
                "rewards": dict(step.dimensions),
                "tokens": step.tokens,
                "span_id": step.span_id,
            }
            for step in segment.rewards
        ],
    }


def _side(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {"raw_content": value}


def _loaded(value: Any) -> dict[str, Any]:
    found = json.loads(value) if isinstance(value, str) else copy.deepcopy(value)
    return found if isinstance(found, dict) else {}
