"""Attempts as documents that others read and write: ATIF of Harbor and Terminal-Bench, Hugging Face's sessions.

``to_atif`` and ``to_sessions`` write what was recorded in the words of a format, ``read_documents`` reads a file of
either, and ``agentlightning.store.importing`` stores what it gives. All here are pure functions on spans and JSON
values; what is written and read, field by field, is in ``docs/reference/export.md``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import _lazy

if TYPE_CHECKING:
    from .documents import read_documents as read_documents
    from .imported import Imported as Imported
    from .writing import to_atif as to_atif
    from .writing import to_sessions as to_sessions

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    {
        ".documents": ("read_documents",),
        ".imported": ("Imported",),
        ".writing": ("to_atif", "to_sessions"),
    },
)
