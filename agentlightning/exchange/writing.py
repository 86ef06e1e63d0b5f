"""From the spans of an attempt to documents of each format."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ..types import Attempt, Rollout, SpanLike
from . import atif_reading, atif_writing, sts_reading, sts_writing
from .trajectories import Mask, masked, recorded


def to_atif(
    spans: Iterable[SpanLike],
    *,
    rollout: Rollout | None = None,
    attempt: Attempt | None = None,
    mask: Mask | None = None,
) -> dict[str, Any] | None:
    """Return the ATIF document of an attempt, ready for ``json.dumps``; ``None`` where no call of a model was recorded.

    One that was imported from such a document is that document, with the reward that it has been given here since.

    Args:
        spans: Those of one attempt that have ended, as a store gives them. Of several attempts, the first is written.
        rollout: Its rollout, for mode, group and status.
        attempt: The attempt itself, for how it ended.
        mask: What each span passes first, such as ``Redactor().span``. A call in which something is masked loses its
            token ids.
    """
    kept = masked(spans, mask)
    found = recorded(kept)
    return atif_reading.document_of(kept, found) or (
        None if found is None else atif_writing.to_document(found, rollout=rollout, attempt=attempt)
    )


def to_sessions(
    spans: Iterable[SpanLike],
    *,
    rollout: Rollout | None = None,
    name: str | None = None,
    mask: Mask | None = None,
) -> Sequence[list[dict[str, Any]]]:
    """Return the sessions of an attempt in Hugging Face's STS-Format, each as the lines of its file.

    The main conversation is the first; empty where no call of a model was recorded. One that was imported from such a
    session is that session.

    Args:
        spans: As for :func:`to_atif`.
        rollout: Its rollout, for the status.
        name: A title for a person.
        mask: As for :func:`to_atif`.
    """
    kept = masked(spans, mask)
    session = sts_reading.session_of(kept)
    if session is not None:
        return [session]
    found = recorded(kept)
    return [] if found is None else sts_writing.to_sessions(found, rollout=rollout, name=name)
