"""0.3's names for two rules of ``store.lifecycle``. Nothing inside imports this module."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from .. import _lazy
from ..types import Attempt, AttemptedRollout, AttemptStatus, RolloutConfig, RolloutStatus
from . import lifecycle

if not TYPE_CHECKING:  # a checker would take any name for one of this module
    __getattr__ = _lazy.without_absent(__name__)


async def rollout_status_from_attempt(attempt: Attempt, config: RolloutConfig) -> RolloutStatus:
    """Return the status that the latest attempt gives its rollout; see :func:`.lifecycle.rollout_status`."""
    return lifecycle.rollout_status(attempt, config)


async def scan_unhealthy_rollouts(rollouts: list[AttemptedRollout]) -> dict[tuple[str, str], AttemptStatus]:
    """Return ``(rollout_id, attempt_id)`` → new status of the attempts that are overdue now."""
    now = time.time()
    found: dict[tuple[str, str], AttemptStatus] = {}
    for rollout in rollouts:
        status = lifecycle.overdue(rollout.attempt, rollout.config, now)
        if status is not None:
            found[rollout.rollout_id, rollout.attempt.attempt_id] = status
    return found
