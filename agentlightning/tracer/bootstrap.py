"""How an unchanged program is recorded: what ``agl run`` makes a child process call at its start."""

from __future__ import annotations

import logging
import os

from ..env_var import LightningEnvVar
from ..store.registry import open_store
from .otel import OtelTracer

_log = logging.getLogger(__name__)


def start_from_environment() -> bool:
    """Record this process under ``AGL_ROLLOUT_ID`` and ``AGL_ATTEMPT_ID`` into ``AGL_STORE``.

    Spans outside of a ``trace_context`` belong to that attempt: whoever sets the variables says so.

    Returns:
        Whether recording began. Nothing is raised: a program must run where its recorder cannot.
    """
    rollout_id = os.environ.get(LightningEnvVar.AGL_ROLLOUT_ID.value)
    attempt_id = os.environ.get(LightningEnvVar.AGL_ATTEMPT_ID.value)
    if not rollout_id or not attempt_id:
        return False
    try:
        tracer = OtelTracer(fallback_attempt=(rollout_id, attempt_id), accept_context=True)
        tracer.init()
        tracer.init_worker(0, open_store())
    except Exception as error:  # noqa: BLE001 - see above
        _log.warning("this process is not recorded: %s: %s", type(error).__name__, error)
        return False
    return True
