"""From the spans of an attempt to documents of each format."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ..types import Attempt, Rollout, SpanLike
from . import atif_writing, sts_writing
from .trajectories import Mask, recorded


def to_atif(
    spans: Iterable[SpanLike],
    *,
    rollout: Rollout | None = None,
    attempt: Attempt | None = None,
    mask: Mask | None = None,
) -> dict[str, Any] | None:
    """Return the ATIF document of an attempt, ready for ``json.dumps``; ``None`` where no call of a model was recorded.

    Args:
        spans: Those of one attempt that have ended, in any order. Of several attempts, the first is written.
        rollout: Its rollout, for mode, group and status.
        attempt: The attempt itself, for how it ended.
        mask: What each span passes first, such as ``Redactor().span``. A call in which something is masked loses its
            token ids.
    """
    found = recorded(spans, mask=mask)
    return None if found is None else atif_writing.to_document(found, rollout=rollout, attempt=attempt)


def to_sessions(
    spans: Iterable[SpanLike],
    *,
    rollout: Rollout | None = None,
    name: str | None = None,
    mask: Mask | None = None,
) -> Sequence[list[dict[str, Any]]]:
    """Return the sessions of an attempt in Hugging Face's STS-Format, each as the lines of its file.

    The main conversation is the first; empty where no call of a model was recorded.

    Args:
        spans: As for :func:`to_atif`.
        rollout: Its rollout, for the status.
        name: A title for a person.
        mask: As for :func:`to_atif`.
    """
    found = recorded(spans, mask=mask)
    return [] if found is None else sts_writing.to_sessions(found, rollout=rollout, name=name)
