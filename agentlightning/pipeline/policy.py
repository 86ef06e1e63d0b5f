"""Where what looks like a secret is masked."""

from __future__ import annotations

from enum import Enum


class RedactionPolicy(str, Enum):
    """How far secrets and personal data may go. Log lines of ours are masked in every case."""

    EGRESS = "egress"
    """The store keeps what the agent said and heard; copies that leave for another party are masked."""
    INGEST = "ingest"
    """What is stored is masked as well. A call with a match loses its token ids and is not trained on."""
    OFF = "off"
    """Copies are not masked either."""
