"""Agent Lightning 0.3's triplets at its trajectory level: one per path, as its verl integration merges them.

Its transition level, one per call, is ``TracerTraceToTriplet``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import List

from ..adapter.training import TrainingRow
from ..adapter.transition import image_urls
from ..types import Triplet

TESTED_WITH = "Agent Lightning 0.3.0"


def to_trajectory_triplets(rows: Iterable[TrainingRow]) -> List[Triplet]:
    """Return one triplet per row: the first prompt, and everything behind it with a mask.

    ``response["token_ids"]`` holds answers and what the environment said between them;
    ``metadata["response_mask"]`` is 1 on the tokens that are trained.
    """
    return [_triplet(row) for row in rows]


def _triplet(row: TrainingRow) -> Triplet:
    messages = list(row.messages)
    return Triplet(
        prompt={
            "token_ids": list(row.prompt_ids),
            "raw_content": messages[:-1],
            "image_urls": image_urls(messages[:-1]),
        },
        response={
            "token_ids": list(row.completion_ids),
            "raw_content": messages[-1:],
            "logprobs": list(row.logprobs[row.prompt_length :]),
        },
        reward=row.reward,
        metadata={
            "rollout_id": row.rollout_id,
            "attempt_id": row.attempt_id,
            "row": row.index,
            "response_mask": list(row.loss_mask[row.prompt_length :]),
            "rewards": dict(row.rewards),
            "span_ids": [segment.span_id for segment in row.segments if segment.trained],
            "finish_reason": row.finish_reason,
        },
    )
