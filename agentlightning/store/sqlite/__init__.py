"""A store in one SQLite file."""

from __future__ import annotations

from .store import SqliteLightningStore, open_url

__all__ = ["SqliteLightningStore", "open_url"]
