"""From the spans of an attempt to documents of each format."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ..types import Attempt, Rollout, SpanLike
from . import atif_reading, atif_writing, sts_reading, sts_writing
from .masking import MaskValue, masked_document, masked_session
from .trajectories import as_ours, recorded


def to_atif(
    spans: Iterable[SpanLike],
    *,
    rollout: Rollout | None = None,
    attempt: Attempt | None = None,
    mask: MaskValue | None = None,
) -> dict[str, Any] | None:
    """Return the ATIF document of an attempt, ready for ``json.dumps``; ``None`` where no call of a model was recorded.

    One that was imported from such a document is that document, with the reward that it has been given here since.

    Args:
        spans: Those of one attempt that have ended, as a store gives them. Of several attempts, the first is written.
        rollout: Its rollout, for mode, group and status.
        attempt: The attempt itself, for how it ended.
        mask: Masks a JSON value, such as ``Redactor().value``. Token ids that decode to what is masked are left out.
    """
    kept = as_ours(spans)
    found = recorded(kept)
    document = atif_reading.document_of(kept, found)
    if document is None and found is not None:
        document = atif_writing.to_document(found, rollout=rollout, attempt=attempt)
    return document if mask is None or document is None else masked_document(document, mask)


def to_sessions(
    spans: Iterable[SpanLike],
    *,
    rollout: Rollout | None = None,
    attempt: Attempt | None = None,
    name: str | None = None,
    mask: MaskValue | None = None,
) -> Sequence[list[dict[str, Any]]]:
    """Return the sessions of an attempt in Hugging Face's STS-Format, each as the lines of its file.

    The main conversation is the first; empty where no call of a model was recorded. One that was imported from such a
    session is that session, with the reward that it has been given here since.

    Args:
        spans: As for :func:`to_atif`.
        rollout: As for :func:`to_atif`.
        attempt: As for :func:`to_atif`.
        name: A title for a person.
        mask: As for :func:`to_atif`.
    """
    kept = as_ours(spans)
    found = recorded(kept)
    session = sts_reading.session_of(kept, found)
    sessions = [] if session is None else [session]
    if session is None and found is not None:
        sessions = sts_writing.to_sessions(found, rollout=rollout, attempt=attempt, name=name)
    return sessions if mask is None else [masked_session(each, mask) for each in sessions]
