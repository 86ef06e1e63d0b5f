"""Agent Lightning 0.3's triplets at its trajectory level: one per path, as its verl integration merges them.

Its transition level, one per call, is ``TracerTraceToTriplet``.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..dialects.openai.logprob_entries import logprob_entries
from ..errors import NotExportable
from ..rows.training import TrainingRow
from ..rows.transition import image_urls
from ..types import Triplet

TESTED_WITH = "Agent Lightning 0.3.0"


def to_trajectory_triplets(rows: Iterable[TrainingRow]) -> list[Triplet]:
    """Return one triplet per row: the first prompt, and everything behind it with a mask.

    ``response["token_ids"]`` holds answers and what the environment said between them;
    ``metadata["response_mask"]`` is 1 on the tokens that are trained. Images go with their row,
    as ``prompt["image_urls"]``: 0.3's trainer has a place for them, and for no other media.

    Raises:
        NotExportable: A row saw audio, files or other media than images.
    """
    return [_triplet(row) for row in rows]


def _triplet(row: TrainingRow) -> Triplet:
    messages = list(row.messages)
    # An image without a URL, or audio, has no place in a triplet, and its row would be trained as if it had none.
    urls = image_urls(messages[:-1])
    if len(urls) != len(row.media):
        kinds = ", ".join(dict.fromkeys(each.kind for each in row.media))
        raise NotExportable(
            f"row {row.index} of rollout {row.rollout_id}, attempt {row.attempt_id} saw media ({kinds}) that are not "
            "all images with a URL, and a triplet has a place for these only"
        )
    return Triplet(
        prompt={
            "token_ids": list(row.prompt_ids),
            "raw_content": messages[:-1],
            "image_urls": urls,
        },
        response={
            "token_ids": list(row.completion_ids),
            "raw_content": messages[-1:],
            "logprobs": logprob_entries(row.completion_ids, row.logprobs[row.prompt_length :]),
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
