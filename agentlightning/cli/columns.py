"""The rows that ``agl export`` writes: one table of columns for both formats.

Token ids are integers and log-probabilities doubles, exactly as captured. What has no fixed shape (messages,
attributes, metadata) is an object in JSON Lines and JSON text in Parquet. ``docs/reference/export.md``
documents the columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final, Literal

from ..rows import RowSet
from ..rows.flat import training_row, triplet_row
from ..types import Rollout, Span, Triplet

Row = dict[str, Any]
Kind = Literal["text", "integer", "number", "integers", "numbers", "json"]

TRIPLET_COLUMNS: Final[dict[str, Kind]] = {
    "rollout_id": "text",
    "attempt_id": "text",
    "row": "integer",
    "mode": "text",
    "call": "integer",
    "choice": "integer",
    "span_id": "text",
    "response_id": "text",
    "agent": "text",
    "model": "text",
    "prompt_token_ids": "integers",
    "response_token_ids": "integers",
    "logprobs": "numbers",
    "finish_reason": "text",
    "policy_version": "json",
    "reward": "number",
    "rewards": "json",
    "final_reward": "number",
    "prompt": "json",
    "response": "json",
    "metadata": "json",
}
"""One row per model call. ``prompt`` and ``response`` are those of the triplet without its token columns."""

TRAINING_COLUMNS: Final[dict[str, Kind]] = {
    "rollout_id": "text",
    "attempt_id": "text",
    "row": "integer",
    "group_id": "text",
    "mode": "text",
    "token_ids": "integers",
    "prompt_length": "integer",
    "loss_mask": "integers",
    "logprobs": "numbers",
    "unproven": "json",
    "reward": "number",
    "rewards": "json",
    "finish_reason": "text",
    "cut_tokens": "integer",
    "media": "json",
    "segments": "json",
    "messages": "json",
}
"""One row per path through an attempt."""

SPAN_COLUMNS: Final[dict[str, Kind]] = {
    "rollout_id": "text",
    "attempt_id": "text",
    "sequence_id": "integer",
    "trace_id": "text",
    "span_id": "text",
    "parent_id": "text",
    "name": "text",
    "status_code": "text",
    "status_description": "text",
    "start_time": "number",
    "end_time": "number",
    "attributes": "json",
    "events": "json",
    "links": "json",
    "context": "json",
    "parent": "json",
    "resource": "json",
}
"""One row per ended span."""


def triplet_rows(rollout: Rollout, attempt_id: str, triplets: Sequence[Triplet]) -> Iterator[Row]:
    """Yield a row per triplet, numbered from 0 within the attempt."""
    for index, triplet in enumerate(triplets):
        place = {
            "rollout_id": rollout.rollout_id,
            "attempt_id": attempt_id,
            "row": index,
            "mode": rollout.mode,
        }
        # The place last: its ``rollout_id`` is that of the store, whatever a span says of itself.
        row = {**triplet_row(triplet), **place}
        yield {name: row[name] for name in TRIPLET_COLUMNS}


def training_rows(rows: RowSet) -> Iterator[Row]:
    """Yield a row per training row."""
    for each in rows:
        row = training_row(each)
        yield {name: row[name] for name in TRAINING_COLUMNS}


def span_rows(spans: Sequence[Span]) -> Iterator[Row]:
    """Yield a row per span."""
    for span in spans:
        fields = span.model_dump()
        status = fields.pop("status")
        # Flat, since a Parquet column of its own can be filtered, and JSON inside of one cannot.
        fields |= {"status_code": status["status_code"], "status_description": status["description"]}
        yield {name: fields[name] for name in SPAN_COLUMNS}
