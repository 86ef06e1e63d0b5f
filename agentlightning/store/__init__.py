"""Where rollouts, attempts, spans and resources are kept: one contract, several backends."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import _lazy

if TYPE_CHECKING:
    from .arguments import UNSET as UNSET
    from .arguments import Unset as Unset
    from .base import LightningStore as LightningStore
    from .base import LightningStoreCapabilities as LightningStoreCapabilities
    from .base import LightningStoreStatistics as LightningStoreStatistics
    from .base import is_finished as is_finished
    from .base import is_queuing as is_queuing
    from .base import is_running as is_running
    from .memory import InMemoryLightningStore as InMemoryLightningStore
    from .registry import open_store as open_store
    from .sqlite import SqliteLightningStore as SqliteLightningStore
    from .sync import SyncStore as SyncStore
    from .threading import LightningStoreThreaded as LightningStoreThreaded

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    {
        ".arguments": ("UNSET", "Unset"),
        ".base": (
            "LightningStore",
            "LightningStoreCapabilities",
            "LightningStoreStatistics",
            "is_finished",
            "is_queuing",
            "is_running",
        ),
        ".memory": ("InMemoryLightningStore",),
        ".registry": ("open_store",),
        ".sqlite": ("SqliteLightningStore",),
        ".sync": ("SyncStore",),
        ".threading": ("LightningStoreThreaded",),
    },
)
