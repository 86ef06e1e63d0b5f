"""A receipt in words."""

from __future__ import annotations

from ..types import Receipt


def state(receipt: Receipt | None) -> str:
    """Return ``whole``, nothing where no span was started, or what is missing: ``3 open, 2 dropped``."""
    if receipt is None:
        return "not counted"
    if not receipt.started and not receipt.interrupted:
        return ""
    if receipt.whole:
        return "whole"
    dropped = sum(receipt.dropped.values())
    words = [f"{receipt.open} open"] if receipt.open else []
    words += [f"{dropped} dropped"] if dropped else []
    # An interrupted attempt is never "whole", even where the numbers add up: what its writer had not committed
    # is in none of them.
    words += ["interrupted"] if receipt.interrupted else []
    words += [] if receipt.balanced else ["out of balance"]
    return ", ".join(words)


def line(receipt: Receipt | None) -> str:
    """Return the identity that proves an attempt whole, with its numbers; ``None`` = the store keeps no receipts."""
    if receipt is None:
        return "unknown: this store does not count what was started"
    reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(receipt.dropped.items()))
    dropped = f"{sum(receipt.dropped.values())} dropped{f' ({reasons})' if reasons else ''}"
    notes = [f"{receipt.late} late, of no attempt{_of_late(receipt)}"] if receipt.late else []
    notes += (
        [f"{receipt.unattributed} unattributed, which it could have made"] if receipt.unattributed else []
    )
    notes += ["truncated: the tail is missing"] if receipt.truncated else []
    notes += (
        ["interrupted: a writer died, what it had not committed is not counted"]
        if receipt.interrupted
        else []
    )
    # Never seen in a sound store; in capitals, since it means that the counts contradict each other.
    notes += [] if receipt.balanced else ["OUT OF BALANCE"]
    text = f"{receipt.started} started = {receipt.stored} stored + {dropped} + {receipt.open} open"
    return "; ".join([text, *notes])


def _of_late(receipt: Receipt) -> str:
    words = [f"{receipt.late_stored} stored"]
    words += [f"{reason} {count}" for reason, count in sorted(receipt.late_dropped.items())]
    return f" ({', '.join(words)})"
