"""Identifiers in the form that Agent Lightning gave them: a prefix and lower-case hex digits.

0.3 gives attempts 8 hex digits; at 100,000 attempts that makes a collision likelier than not, so attempts
have 12 here. Ids are opaque: nothing reads them.
"""

from __future__ import annotations

import os


def generate_id(length: int) -> str:
    """Return ``length`` random lower-case hex digits."""
    # Two digits a byte; of an odd length, the last digit is cut off.
    return _hex((length + 1) // 2)[:length]


def new_rollout_id() -> str:
    """Return ``ro-`` and 12 hex digits."""
    return f"ro-{_hex(6)}"


def new_attempt_id() -> str:
    """Return ``at-`` and 12 hex digits."""
    return f"at-{_hex(6)}"


def new_resources_id() -> str:
    """Return ``rs-`` and 12 hex digits."""
    return f"rs-{_hex(6)}"


def _hex(count: int) -> str:
    """Return ``count`` random bytes as hex digits, as ``secrets.token_hex`` does, which imports OpenSSL for it."""
    # Not the ``random`` module: an agent that seeds it would get the same ids in every process.
    return os.urandom(count).hex()
