"""The base of our pydantic models: each is built when it is first used, and not when it is imported.

A worker imports some thirty of them and uses a handful; building all took a third of its imports. pydantic builds
deferred models safely under threads since 2.11.
"""

from __future__ import annotations

from pydantic import VERSION, BaseModel, ConfigDict


class Model(BaseModel):
    """A model that is built at its first use."""

    # Older pydantic has the setting, and two threads that use a model for the first time at once may see it
    # half built.
    model_config = ConfigDict(defer_build=tuple(map(int, VERSION.split(".")[:2])) >= (2, 11))


class OpenModel(Model):
    """A model that keeps fields that it does not know, as 0.3's models of spans do (``model_extra``)."""

    model_config = ConfigDict(extra="allow")
