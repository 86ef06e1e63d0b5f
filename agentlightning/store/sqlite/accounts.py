"""What a writer says of an attempt, from a row of the table of accounts."""

from __future__ import annotations

from typing import Any

from ...codec.json_text import loads
from ...types import Account
from ...types.tracer import build


def account_of(attempt: tuple[str, str], row: tuple[Any, ...]) -> Account:
    """Return the account of a row; nothing is validated, as the store has written it.

    Args:
        attempt: The ids of the rollout and of the attempt.
        row: The columns from ``writer_id`` to ``unstored``, in their order.
    """
    writer_id, revision, started, late, unattributed, closed, dropped, late_dropped, unstored = row
    return build(
        Account,
        {
            "rollout_id": attempt[0],
            "attempt_id": attempt[1],
            "writer_id": writer_id,
            "revision": revision,
            "started": started,
            "late": late,
            "unattributed": unattributed,
            "closed": bool(closed),
            "dropped": _loaded(dropped),
            "late_dropped": _loaded(late_dropped),
            "unstored": _loaded(unstored),
        },
    )


def _loaded(text: str) -> Any:
    """Return the value of a JSON text, of which most say that there is nothing."""
    return {} if text == "{}" else [] if text == "[]" else loads(text)
