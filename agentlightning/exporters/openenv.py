"""OpenEnv's ``TrainingTrace``, version 1, as plain JSON: one turn per engine call. TRL's harness worker takes it.

Turns stand row by row, in the order of each row, and not by time: a consumer that compares each call with the one
before it (TRL does) then joins them to the very rows that they came from, also where agents took turns. A call that
several rows share stands once, where it is trained. A call that no row trains has a mask of zeros; where the engine
gave it no log-probabilities they are 0.0, as everywhere on context.

>>> trace = openenv.core.harness.TrainingTrace.model_validate(to_training_trace(attempt.rows()))
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ..errors import NotExportable
from ..rows.training import Segment, TrainingRow
from .checks import exportable, numbers, sampled_at

TESTED_WITH = "openenv 0.10.0, and the harness worker of trl 1.16.0"


def to_training_trace(rows: Iterable[TrainingRow], *, temperature: float | None = 1.0) -> dict[str, Any]:
    """Return the rows of one rollout as a ``TrainingTrace``.

    Args:
        rows: Rows of one attempt.
        temperature: The ``temperature`` of the trainer's configuration, at which it computes log-probabilities; rows
            that were sampled otherwise are refused. ``None`` compares nothing.

    Raises:
        NotExportable: The rows are of several attempts, or one trains tokens without log-probabilities, saw media, or
            was sampled otherwise than the trainer computes.
    """
    given = exportable(rows)
    sampled_at(given, temperature)
    attempts = {(row.rollout_id, row.attempt_id) for row in given}
    if len(attempts) > 1:
        raise NotExportable(f"a TrainingTrace is of one attempt, and these rows are of {len(attempts)}")
    # Known beforehand, so that a call that an earlier row only shows is left to the row that trains it.
    trained = {_node_id(each) for row in given for each in row.segments if each.trained}
    seen: set[str] = set()
    turns: list[dict[str, Any]] = []
    for row in given:
        logprobs = numbers(row)
        for segment in row.segments:
            node_id = _node_id(segment)
            # A call in two rows is trained in one of them; its turn stands there.
            if node_id in seen or (node_id in trained and not segment.trained):
                continue
            seen.add(node_id)
            turns.append(_turn(row, segment, logprobs))
    return {"schema_version": 1, "turns": turns}


def _node_id(segment: Segment) -> str:
    return f"{segment.span_id}/{segment.choice.index}"


def _turn(row: TrainingRow, segment: Segment, logprobs: Sequence[float]) -> dict[str, Any]:
    start, end = segment.start, segment.end
    # Of a call that is context the row has 0.0; the trace has room for what the engine said.
    own = segment.choice.logprobs
    known = logprobs[start:end] if segment.trained or own is None else own[: end - start]
    return {
        "node_id": _node_id(segment),
        "prompt_token_ids": list(row.token_ids[:start]),
        "completion_token_ids": list(row.token_ids[start:end]),
        "per_token_logps": list(known),
        "loss_mask": [0] * start + list(row.loss_mask[start:end]),
        "request": _request(segment),
        "response": {
            "id": segment.call.response_id,
            "choices": [{"message": segment.choice.message(), "finish_reason": segment.finish_reason}],
        },
        "metadata": {
            "rollout_id": row.rollout_id,
            "attempt_id": row.attempt_id,
            "row": row.index,
            "versions": [[part.version, part.start - start, part.end - start] for part in segment.versions],
        },
    }


def _request(segment: Segment) -> dict[str, Any]:
    record = segment.call.record
    return {} if record is None else {"messages": [dict(message) for message in record.request_messages]}
