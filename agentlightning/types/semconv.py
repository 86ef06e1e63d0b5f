"""The two pydantic models of 0.3's ``semconv``, apart from its constants so that those load no pydantic."""

from __future__ import annotations

from ._model import Model


class RewardPydanticModel(Model):
    """One named reward dimension."""

    name: str
    value: float


class LinkPydanticModel(Model):
    """A link to spans by attribute."""

    key_match: str
    value_match: str
