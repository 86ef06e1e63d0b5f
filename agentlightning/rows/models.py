"""Which model a call was made to, and which of an attempt's models is the policy.

Rows are of one model. It is the user's choice (``RowPolicy.model``), else a model of the rollout's resources, else the
only one whose token ids came. A simulated user, a judge or a frozen copy that speaks the same API is another model, and
nothing in its tokens tells it apart from the policy.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from ..dialects.model_call import ModelCall
from ..types.resources import LLM, Resource

UNNAMED = "(unnamed)"
"""Name of a model that neither the request nor the answer names."""


def model_name(record: ModelCall, wanted: Collection[str] | None = None) -> str:
    """Return the name of the model that was called: the one that is wanted, else the server's, else the request's."""
    named = None if wanted is None else wanted_name(record, wanted)
    return named or record.response_model or record.request_model or UNNAMED


def wanted_name(record: ModelCall, wanted: Collection[str]) -> str | None:
    """Return which of the wanted models was called, by the server's name for it or the request's; ``None`` = none.

    A wanted name may have a provider before it (``hosted_vllm/policy``), which clients take off before they send it.
    """
    names = [name for name in (record.response_model, record.request_model) if name]
    # The server's own name before the request's: a proxy may answer for another model than was asked for.
    exact = (name for name in names if name in wanted)
    prefixed = (each for each in wanted for name in names if each.endswith(f"/{name}"))
    return next(exact, None) or next(prefixed, None)


def resource_models(resources: Mapping[str, Resource] | None) -> frozenset[str] | None:
    """Return the models of a rollout's resources; ``None`` where they name none."""
    found: Iterable[Resource] = () if resources is None else resources.values()
    return frozenset(each.model for each in found if isinstance(each, LLM)) or None
