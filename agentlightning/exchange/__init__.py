"""Attempts as documents that others read and write: ATIF of Harbor and Terminal-Bench, Hugging Face's sessions.

``to_atif`` and ``to_sessions`` write what was recorded in the words of a format. All of it are pure functions on spans
and JSON values; what is written, field by field, is in ``docs/reference/export.md``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import _lazy

if TYPE_CHECKING:
    from .writing import to_atif as to_atif
    from .writing import to_sessions as to_sessions

__getattr__, __dir__, __all__ = _lazy.attach(__name__, {".writing": ("to_atif", "to_sessions")})
