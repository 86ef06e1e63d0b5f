"""Training rows ⇄ flat dicts of plain values, for files and data frames.

``triplet_row`` and ``triplet_of_row`` undo each other. Ids, log-probabilities and rewards pass as they are: no
rounding, ``None`` stays ``None``. What has no fixed shape (content, metadata) is a JSON value.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from typing import Any, Dict

from ..types import Triplet

_SIDE = ("token_ids", "logprobs")


def triplet_row(triplet: Triplet) -> Dict[str, Any]:
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
        "logprobs": response.get("logprobs"),
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
            "logprobs": None if logprobs is None else list(logprobs),
        },
        reward=None if reward is None else float(reward),
        metadata=_loaded(row.get("metadata")),
    )


def _side(value: Any) -> Dict[str, Any]:
    return value if isinstance(value, dict) else {"raw_content": value}


def _loaded(value: Any) -> Dict[str, Any]:
    found = json.loads(value) if isinstance(value, str) else copy.deepcopy(value)
    return found if isinstance(found, dict) else {}
