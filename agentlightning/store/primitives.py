"""The table of what a store is asked, and the one way to ask any store.

:data:`PRIMITIVES` names each primitive of :class:`~.base.LightningStore` once: what it takes, what it answers, whether
it writes, and whether it may be repeated. Whatever stands before a store (a wrapper, the fault injector, a client, a
route) is made from this table, and passes a call on with :func:`perform`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from ..types import (
    Attempt,
    AttemptedRollout,
    EnqueueRolloutRequest,
    NamedResources,
    PaginatedResult,
    Receipt,
    ResourcesUpdate,
    Rollout,
    Span,
    Worker,
)
from .arguments import (
    AttemptChange,
    AttemptQuery,
    AttemptRef,
    NewAttempt,
    NewRollout,
    NewSeal,
    ResourcesChange,
    ResourcesQuery,
    RolloutChange,
    RolloutClaim,
    RolloutQuery,
    RolloutWait,
    SpanBatch,
    SpanQuery,
    SpansOf,
    WorkerChange,
    WorkerQuery,
)
from .base import LightningStore, LightningStoreStatistics


@dataclass(frozen=True, slots=True)
class Primitive:
    """One thing that a store can be asked."""

    name: str
    """The method of 0.3's contract that asks for it."""
    takes: Any
    """Type of the one value that it takes: of ``store.arguments``, or a plain one; ``None`` = it takes nothing."""
    answers: Any
    """Type of what it returns."""
    writes: bool = False
    """Whether it changes the store. Time passes by itself in every call."""
    repeatable: bool = True
    """Whether a call whose answer was lost may be made again: the second leaves the store as the first has left it.

    What is returned may differ: a repeated ``add_many_spans`` has stored nothing new. A repeated
    ``get_many_span_sequence_ids`` reserves other ids; the first ones are gaps.
    """

    @property
    def method(self) -> str:
        """The method of a store that answers it: its name where that takes one plain value, else ``do_<name>``."""
        return f"do_{self.name}" if hasattr(self.takes, "_fields") else self.name


_Rollouts = PaginatedResult[AttemptedRollout | Rollout]

PRIMITIVES: Final[Mapping[str, Primitive]] = MappingProxyType(
    {
        row.name: row
        for row in (
            Primitive("statistics", None, LightningStoreStatistics),
            # A repeat would make a second rollout, claim others, or begin one more attempt.
            Primitive("start_rollout", NewRollout, AttemptedRollout, writes=True, repeatable=False),
            Primitive(
                "enqueue_many_rollouts",
                Sequence[EnqueueRolloutRequest],
                Sequence[Rollout],
                writes=True,
                repeatable=False,
            ),
            Primitive(
                "dequeue_many_rollouts",
                RolloutClaim,
                Sequence[AttemptedRollout],
                writes=True,
                repeatable=False,
            ),
            Primitive("start_attempt", NewAttempt, AttemptedRollout, writes=True, repeatable=False),
            # Queued by the first call and claimed by a worker since, it would be queued again by the second.
            Primitive(
                "update_rollout",
                RolloutChange,
                AttemptedRollout | Rollout,
                writes=True,
                repeatable=False,
            ),
            Primitive("get_rollout_by_id", str, AttemptedRollout | Rollout | None),
            Primitive("query_rollouts", RolloutQuery, _Rollouts),
            Primitive("wait_for_rollouts", RolloutWait, Sequence[AttemptedRollout | Rollout]),
            Primitive("update_attempt", AttemptChange, Attempt, writes=True),
            Primitive("seal_attempt", NewSeal, Attempt, writes=True),
            Primitive("get_latest_attempt", str, Attempt | None),
            Primitive("query_attempts", AttemptQuery, PaginatedResult[Attempt]),
            Primitive("add_many_spans", SpanBatch, Sequence[Span], writes=True),
            Primitive("query_spans", SpanQuery, PaginatedResult[Span]),
            Primitive("query_open_spans", SpansOf, Sequence[Span]),
            Primitive("query_late_spans", SpansOf, Sequence[Span]),
            Primitive("get_receipt", AttemptRef, Receipt),
            Primitive("get_many_span_sequence_ids", Sequence[tuple[str, str]], Sequence[int], writes=True),
            # A repeat would be a second set of resources, or one more version.
            Primitive("add_resources", NamedResources, ResourcesUpdate, writes=True, repeatable=False),
            Primitive("update_resources", ResourcesChange, ResourcesUpdate, writes=True, repeatable=False),
            Primitive("get_resources_by_id", str, ResourcesUpdate | None),
            Primitive("get_latest_resources", None, ResourcesUpdate | None),
            Primitive("query_resources", ResourcesQuery, PaginatedResult[ResourcesUpdate]),
            Primitive("update_worker", WorkerChange, Worker, writes=True),
            Primitive("get_worker_by_id", str, Worker | None),
            Primitive("query_workers", WorkerQuery, PaginatedResult[Worker]),
        )
    }
)
"""Name → primitive, in the order of the contract."""


_HINTS: Final = frozenset({"packed"})
"""Fields that say what whoever asks can also do with; a store that takes no such argument is not asked with it."""


async def packed_spans(
    store: LightningStore, rollout_id: str, attempt_id: str | None = None
) -> Sequence[Span]:
    """Return the spans of an attempt of any store for somebody who only reads them, as ``query_spans(packed=True)``."""
    query = SpanQuery(rollout_id, attempt_id, packed=True)
    found: Sequence[Span] = await perform(store, PRIMITIVES["query_spans"], query)
    return found


async def newest_spans(store: LightningStore, rollout_id: str, attempt_id: str, most: int) -> Sequence[Span]:
    """Return the last spans of an attempt, the last one first, as :func:`packed_spans`."""
    query = SpanQuery(
        rollout_id, attempt_id, limit=most, sort_by="sequence_id", sort_order="desc", packed=True
    )
    found: Sequence[Span] = await perform(store, PRIMITIVES["query_spans"], query)
    return found


def perform(store: LightningStore, primitive: Primitive, value: Any = None) -> Awaitable[Any]:
    """Ask any store for a primitive, also one that was written for 0.3's contract.

    A class that has a keyword method of its own is asked by that method: there is what its author wrote, and
    ``super()`` leads from it to the primitive. It gets only what was given, so that a signature of 0.3 is enough.

    Args:
        store: Any store.
        primitive: What it is asked.
        value: Of the type that ``primitive.takes`` says; ignored where it takes nothing.
    """
    if primitive.takes is None:
        return _call(store, primitive.name)
    if primitive.method == primitive.name:
        return _call(store, primitive.name, value)
    if not _has_own_keywords(store, primitive):
        return _call(store, primitive.method, value)
    given = given_fields(value)
    for name in _HINTS:
        given.pop(name, None)
    # The required ones by position: their names are not part of every signature that was written for 0.3.
    by_position = getattr(LightningStore, primitive.name).__code__.co_argcount - 1
    required = [name for name in value._fields if name not in value._field_defaults][:by_position]
    return _call(store, primitive.name, *[given.pop(name) for name in required], **given)


def given_fields(value: Any) -> dict[str, Any]:
    """Return the fields of a value of ``store.arguments`` that were given: all but those that are as by default."""
    defaults = value._field_defaults
    return {
        name: field
        for name, field in zip(value._fields, value, strict=True)
        if name not in defaults or field is not defaults[name]
    }


def _call(store: LightningStore, method: str, *args: Any, **kwargs: Any) -> Awaitable[Any]:
    answer: Awaitable[Any] = getattr(store, method)(*args, **kwargs)
    return answer


def _has_own_keywords(store: LightningStore, primitive: Primitive) -> bool:
    """Whether the keyword method comes from a class before the one that has the primitive."""
    for base in type(store).__mro__:
        if base is LightningStore or primitive.method in base.__dict__:
            return False
        own = base.__dict__.get(primitive.name)
        if own is not None and own is not LightningStore.__dict__[primitive.name]:
            return True
    return True  # no subclass of ours: it is known by what it can be called with
