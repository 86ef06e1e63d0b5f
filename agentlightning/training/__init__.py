"""Between a store and a trainer: record rollouts, seal complete ones, add late rewards, store what was trained."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import _lazy

if TYPE_CHECKING:
    from ..rows.sealed import RefusedAttempt as RefusedAttempt
    from ..rows.sealed import SealedAttempt as SealedAttempt
    from ..store.sealing import SealedBatch as SealedBatch
    from ..store.sealing import Sealing as Sealing
    from ..store.sealing import resources_of as resources_of
    from ..store.sealing import seal as seal
    from ..store.sealing import wait_sealed as wait_sealed
    from .hand_back import write_back as write_back
    from .late_rewards import add_reward as add_reward
    from .rollouts import Job as Job
    from .rollouts import Played as Played
    from .rollouts import Player as Player
    from .rollouts import RunAgent as RunAgent
    from .rollouts import rollout_source as rollout_source

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    {
        "..rows.sealed": ("RefusedAttempt", "SealedAttempt"),
        "..store.sealing": ("SealedBatch", "Sealing", "resources_of", "seal", "wait_sealed"),
        ".hand_back": ("write_back",),
        ".late_rewards": ("add_reward",),
        ".rollouts": ("Job", "Played", "Player", "RunAgent", "rollout_source"),
    },
)
