"""What the primitives of a store are asked, each as one immutable value.

The keyword methods of :class:`~.base.LightningStore` build these values and hand them to the store's primitives, which
``store.primitives`` lists. A value says what the caller gave, and nothing is checked yet: a store checks and copies
before it writes. A field that is :data:`UNSET` was not given, where ``None`` would be a value of its own.

These are named tuples: they are made for every call, and nothing that is as plain costs less to make and to import.
Annotations name models through the module of types, so that what only imports the contract loads no pydantic.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any, Final, Literal, NamedTuple

from .. import types


class Unset(Enum):
    """Type of :data:`UNSET`; a singleton that pickles to itself."""

    UNSET = "UNSET"

    def __repr__(self) -> str:
        return "UNSET"


UNSET: Final = Unset.UNSET
"""Default of arguments for which ``None`` is a value: the field is left as it is."""


# ---------------------------------------------------------------------- rollouts


class NewRollout(NamedTuple):
    """A rollout that begins with an attempt, past the queue."""

    input: types.TaskInput
    mode: types.RolloutMode | None = None
    resources_id: str | None = None
    config: types.RolloutConfig | None = None
    metadata: dict[str, Any] | None = None
    worker_id: str | None = None
    rollout_id: str | None = None


class RolloutClaim(NamedTuple):
    """How many rollouts a worker takes from the queue."""

    limit: int = 1
    worker_id: str | None = None


class RolloutChange(NamedTuple):
    """The fields of one rollout that change."""

    rollout_id: str
    input: types.TaskInput | Unset = UNSET
    mode: types.RolloutMode | None | Unset = UNSET
    resources_id: str | None | Unset = UNSET
    status: types.RolloutStatus | Unset = UNSET
    config: types.RolloutConfig | Unset = UNSET
    metadata: dict[str, Any] | None | Unset = UNSET


class RolloutQuery(NamedTuple):
    """Which rollouts, in which order, which page of them."""

    status_in: Sequence[types.RolloutStatus] | None = None
    rollout_id_in: Sequence[str] | None = None
    rollout_id_contains: str | None = None
    tags: Sequence[str] | None = None
    filter_logic: Literal["and", "or"] = "and"
    sort_by: str | None = None
    sort_order: Literal["asc", "desc"] = "asc"
    limit: int = -1
    offset: int = 0


class RolloutWait(NamedTuple):
    """Rollouts to wait for, and for how many seconds; ``None`` = for ever."""

    rollout_ids: Sequence[str]
    timeout: float | None = None


# ---------------------------------------------------------------------- attempts


class NewAttempt(NamedTuple):
    """One more attempt of a rollout."""

    rollout_id: str
    worker_id: str | None = None


class AttemptRef(NamedTuple):
    """One attempt of a rollout; ``attempt_id`` may be ``latest``."""

    rollout_id: str
    attempt_id: str


class AttemptChange(NamedTuple):
    """The fields of one attempt that change; ``attempt_id`` may be ``latest``."""

    rollout_id: str
    attempt_id: str
    status: types.AttemptStatus | Unset = UNSET
    worker_id: str | Unset = UNSET
    last_heartbeat_time: float | Unset = UNSET
    metadata: dict[str, Any] | None | Unset = UNSET


class NewSeal(NamedTuple):
    """What somebody who has read an attempt says of it for good; ``attempt_id`` may be ``latest``."""

    rollout_id: str
    attempt_id: str
    spans: int
    unproven: Mapping[str, int] | None = None


class AttemptQuery(NamedTuple):
    """Which attempts of a rollout, in which order, which page of them."""

    rollout_id: str
    sort_by: str | None = "sequence_id"
    sort_order: Literal["asc", "desc"] = "asc"
    limit: int = -1
    offset: int = 0


# ---------------------------------------------------------------------- spans


class SpanBatch(NamedTuple):
    """Spans of any attempts, starts of spans, and what their writers say of the attempts."""

    spans: Sequence[types.Span]
    opened: Sequence[types.Span] = ()
    accounts: Sequence[types.Account] = ()


class SpanQuery(NamedTuple):
    """Which stored spans of a rollout, in which order, which page of them."""

    rollout_id: str
    attempt_id: str | None = None
    trace_id: str | None = None
    trace_id_contains: str | None = None
    span_id: str | None = None
    span_id_contains: str | None = None
    parent_id: str | None = None
    parent_id_contains: str | None = None
    name: str | None = None
    name_contains: str | None = None
    filter_logic: Literal["and", "or"] = "and"
    limit: int = -1
    offset: int = 0
    sort_by: str | None = "sequence_id"
    sort_order: Literal["asc", "desc"] = "asc"
    packed: bool = False
    """Whether long lists of token ids may come as ``codec.token_ids.TokenIds``; a store may give lists all the same."""


class SpansOf(NamedTuple):
    """The spans of one attempt of a rollout (``latest`` is one), or of every attempt: ``None``."""

    rollout_id: str
    attempt_id: str | None = None


# ---------------------------------------------------------------------- resources and workers


class ResourcesChange(NamedTuple):
    """New resources under an id."""

    resources_id: str
    resources: types.NamedResources


class ResourcesQuery(NamedTuple):
    """Which resources, in which order, which page of them."""

    resources_id: str | None = None
    resources_id_contains: str | None = None
    sort_by: str | None = None
    sort_order: Literal["asc", "desc"] = "asc"
    limit: int = -1
    offset: int = 0


class WorkerChange(NamedTuple):
    """A heartbeat of a worker, and what it says of itself."""

    worker_id: str
    heartbeat_stats: dict[str, Any] | Unset = UNSET


class WorkerQuery(NamedTuple):
    """Which workers, in which order, which page of them."""

    status_in: Sequence[types.WorkerStatus] | None = None
    worker_id_contains: str | None = None
    filter_logic: Literal["and", "or"] = "and"
    sort_by: str | None = None
    sort_order: Literal["asc", "desc"] = "asc"
    limit: int = -1
    offset: int = 0
