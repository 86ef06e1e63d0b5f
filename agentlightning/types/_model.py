"""The base of our pydantic models: each is built when it is first used, and not when it is imported.

A worker imports some thirty of them and uses a handful; building all took a third of its imports. pydantic builds
deferred models safely under threads since 2.11.
"""

from __future__ import annotations

import os
from typing import Any

import pydantic.main
from pydantic import VERSION, BaseModel, ConfigDict

FORK_SECONDS = 10.0
"""Seconds that a fork waits for a model that another thread builds: far longer than any takes."""


class Model(BaseModel):
    """A model that is built at its first use."""

    # Older pydantic has the setting, and two threads that use a model for the first time at once may see it
    # half built.
    model_config = ConfigDict(defer_build=tuple(map(int, VERSION.split(".")[:2])) >= (2, 11))


class OpenModel(Model):
    """A model that keeps fields that it does not know, as 0.3's models of spans do (``model_extra``)."""

    model_config = ConfigDict(extra="allow")


# ---------------------------------------------------------------------- fork

# pydantic builds deferred models under one lock of the process. A child that is forked while another thread builds one
# would find that lock taken for ever, and stop at the first model that it builds itself. Releases without the lock need
# no wait. The stores' hooks are registered later, so theirs are called first, and no thread that builds a model waits
# for a store.
_building: Any = getattr(pydantic.main, "_rebuild_lock", None)
_held: list[Any] = []


def _before_fork() -> None:
    if _building is not None and _building.acquire(timeout=FORK_SECONDS):
        _held.append(_building)


def _after_fork() -> None:
    while _held:
        _held.pop().release()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)
