"""What filters, sort orders and pages mean: a query is a value, and answering it a pure function.

A backend may answer a :class:`Query` any way it likes, for instance in SQL, as long as the answer is the one
that :meth:`Query.select` gives. Conditions and sort fields are plain data for that reason, and only fields
of one scalar type can be sorted by, so that text and numbers have the same order everywhere: text by code
point, ``None`` (and NaN) last in both directions, ties in the order of creation.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeVar

from ..errors import InvalidArgument
from ..types import PaginatedResult
from .values import list_of_ids, whole

T = TypeVar("T")

ROLLOUT_SORT: Final = ("rollout_id", "start_time", "end_time", "mode", "resources_id", "status")
ATTEMPT_SORT: Final = (
    "rollout_id",
    "attempt_id",
    "sequence_id",
    "start_time",
    "end_time",
    "status",
    "worker_id",
    "last_heartbeat_time",
)
SPAN_SORT: Final = (
    "rollout_id",
    "attempt_id",
    "sequence_id",
    "trace_id",
    "span_id",
    "parent_id",
    "name",
    "start_time",
    "end_time",
)
RESOURCES_SORT: Final = ("resources_id", "create_time", "update_time", "version")
WORKER_SORT: Final = (
    "worker_id",
    "status",
    "last_heartbeat_time",
    "last_dequeue_time",
    "last_busy_time",
    "last_idle_time",
    "current_rollout_id",
    "current_attempt_id",
)
"""Fields that each kind can be sorted by: those of one scalar type."""

Kind = Literal["equals", "within", "contains", "has"]


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition on one field of text, or of a list of texts; a field that is ``None`` fulfils none."""

    field: str
    kind: Kind
    value: Any
    """A string; for ``within`` and ``has`` a tuple of strings (an empty one is fulfilled by nothing)."""

    def holds(self, item: Any) -> bool:
        """Whether ``item`` fulfils the condition."""
        value = getattr(item, self.field)
        if value is None:
            return False
        if self.kind == "equals":
            return bool(value == self.value)
        if self.kind == "within":
            return value in self.value
        if self.kind == "has":  # the field is a list of texts, and none of them is looked into
            return bool(self.value) and all(text in value for text in self.value)
        return self.value in value


@dataclass(frozen=True, slots=True)
class Query:
    """Which items, in which order, which page of them."""

    conditions: tuple[Condition, ...] = ()
    logic: Literal["and", "or"] = "and"
    """Joins the conditions; with no condition everything matches."""
    sort_by: str | None = None
    """``None``: in the order of creation, whatever ``descending`` says."""
    descending: bool = False
    limit: int = -1
    """-1 = all."""
    offset: int = 0

    def matches(self, item: Any) -> bool:
        """Whether ``item`` belongs to the answer."""
        if not self.conditions:
            return True
        join = all if self.logic == "and" else any
        return join(condition.holds(item) for condition in self.conditions)

    def arrange(self, items: Iterable[T]) -> list[T]:
        """Return the items that match, sorted; ``items`` come in the order of creation."""
        found = [item for item in items if self.matches(item)]
        if self.sort_by is None:
            return found
        field = self.sort_by
        # Two lists: `reverse` would bring what is missing to the front.
        present = [item for item in found if not _is_missing(getattr(item, field))]
        missing = [item for item in found if _is_missing(getattr(item, field))]
        present.sort(key=lambda item: getattr(item, field), reverse=self.descending)
        return present + missing

    def page(self, arranged: Sequence[T]) -> PaginatedResult[T]:
        """Cut the page out of the whole answer."""
        end = None if self.limit < 0 else self.offset + self.limit
        return self.result(list(arranged[self.offset : end]), len(arranged))

    def select(self, items: Iterable[T]) -> PaginatedResult[T]:
        """Answer the query over ``items``, which come in the order of creation."""
        return self.page(self.arrange(items))

    def result(self, items: list[T], total: int) -> PaginatedResult[T]:
        """Wrap one page; ``total`` counts the whole answer."""
        page: PaginatedResult[T] = PaginatedResult.model_construct(
            items=items, limit=self.limit, offset=self.offset, total=total
        )
        return page


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def make_query(
    *conditions: Condition | None,
    sortable: Sequence[str],
    filter_logic: str = "and",
    sort_by: str | None = None,
    sort_order: str = "asc",
    limit: int = -1,
    offset: int = 0,
) -> Query:
    """Build a query from the arguments of a ``query_*`` method; a condition of ``None`` was not given.

    Raises:
        InvalidArgument: ``sort_by`` names no sortable field, or another argument is out of range.
    """
    if filter_logic not in ("and", "or"):
        raise InvalidArgument(f"filter_logic must be 'and' or 'or', not {filter_logic!r}")
    if sort_order not in ("asc", "desc"):
        raise InvalidArgument(f"sort_order must be 'asc' or 'desc', not {sort_order!r}")
    if sort_by is not None and sort_by not in sortable:
        raise InvalidArgument(f"cannot sort by {sort_by!r}; sort_by is one of {', '.join(sortable)}")
    return Query(
        conditions=tuple(condition for condition in conditions if condition is not None),
        logic="and" if filter_logic == "and" else "or",
        sort_by=sort_by,
        descending=sort_order == "desc",
        limit=whole("limit", limit, -1),
        offset=whole("offset", offset, 0),
    )


def equals(field: str, value: str | None) -> Condition | None:
    """The field is this text."""
    return None if value is None else Condition(field, "equals", _text(field, value))


def contains(field: str, value: str | None) -> Condition | None:
    """The field contains this text (case counts)."""
    return None if value is None else Condition(field, "contains", _text(f"{field}_contains", value))


def within(
    field: str, values: Sequence[str] | None, allowed: frozenset[Any] | None = None
) -> Condition | None:
    """The field is one of these texts.

    Raises:
        InvalidArgument: ``values`` is one string, or holds something outside of ``allowed``.
    """
    if values is None:
        return None
    chosen = tuple(list_of_ids(f"{field}_in", values))
    unknown = [] if allowed is None else [value for value in chosen if value not in allowed]
    if unknown and allowed is not None:
        raise InvalidArgument(f"{unknown[0]!r} is no {field}; it is one of {', '.join(sorted(allowed))}")
    return Condition(field, "within", chosen)


def has(field: str, values: Sequence[str] | None) -> Condition | None:
    """The field, a list of texts, has every one of these.

    Raises:
        InvalidArgument: ``values`` is one string, or holds something else than text.
    """
    if values is None:
        return None
    return Condition(field, "has", tuple(list_of_ids(field, values)))


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise InvalidArgument(f"{name} takes text, not {type(value).__name__}")
    return value
