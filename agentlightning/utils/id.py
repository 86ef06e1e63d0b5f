"""0.3's import path of the id generator."""

from __future__ import annotations

from .. import _lazy

# Resolved on first use: importing an old path loads nothing of the new one.
__getattr__, __dir__, __all__ = _lazy.attach(
    "agentlightning.utils.id", {"agentlightning.types.ids": ("generate_id",)}
)
