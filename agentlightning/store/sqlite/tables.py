"""The tables of a store in one SQLite transaction: values ⇄ rows, and nothing of what they mean."""

# ruff: noqa: D102 - the methods of the tables are specified in store.tables

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Final, TypeVar

from pydantic import TypeAdapter

from ...codec.json_text import dumps, is_utf8, loads
from ...codec.rows import SpanRow, decode_span
from ...types import (
    Account,
    Attempt,
    NamedResources,
    PaginatedResult,
    ResourcesUpdate,
    Rollout,
    RolloutConfig,
    Seal,
    Span,
    Worker,
)
from ..base import LightningStoreStatistics
from ..query import Query
from ..tables import AttemptKey, NewSpan, SpanCounts, Tables
from ..values import copy_model
from .accounts import account_of
from .audit import AttemptAudit, audited
from .long_values import Beginnings, BrokenValueError, Reader, broken, broken_values, is_long, where_it_is
from .marks import LACKS, MIXED
from .statements import SQL, in_parts, order, page, where

T = TypeVar("T")
Row = tuple[Any, ...]

_RESOURCES: TypeAdapter[NamedResources] = TypeAdapter(NamedResources)
_ARRAYS_OF_A_SPAN: Final = 256  # array_key = span_key * 256 + n, see migrations/0001_initial.sql
_MOST_RESOURCE_KEYS: Final = 1_000  # kept in memory; a process has one or two
_SLOT: Final = '{"$array"'
_SLOT_NUMBER: Final = re.compile(r'\{"\$array":(\d+)\}')
"""A place of a value; inside of texts the quotes are escaped."""


class Remembered:
    """What a connection remembers of its file across transactions; emptied after a rollback."""

    def __init__(self) -> None:
        self.resource_keys: dict[str, int] = {}
        """Text of an OpenTelemetry resource → its key."""
        self.beginnings = Beginnings()

    def clear(self) -> None:
        """Forget everything."""
        self.resource_keys.clear()
        self.beginnings.clear()


class SqliteTables(Tables):
    """The tables as one transaction sees them."""

    def __init__(self, connection: sqlite3.Connection, remembered: Remembered) -> None:
        """Prepare.

        Args:
            connection: In a transaction.
            remembered: Of this connection; the owner empties it after a rollback.
        """
        self._connection = connection
        self._resource_keys = remembered.resource_keys
        self._beginnings = remembered.beginnings
        self._attempt_keys: dict[AttemptKey, int] = {}
        self._deadlines: dict[int, float | None] = {}
        self._counters: dict[int, int] = {}
        """Of the attempts that this transaction has read."""
        self._inputs: dict[str, Any] = {}
        """Rollout → its input as this transaction has read it; written back only where it was replaced."""
        self._next_span_key = 0
        self._nothing_open: bool | None = None

    def _all(self, sql: str, parameters: Sequence[Any] = ()) -> list[Row]:
        return self._connection.execute(sql, parameters).fetchall()

    def _one(self, name: str, *parameters: Any) -> Row | None:
        found: Row | None = self._connection.execute(SQL[name], parameters).fetchone()
        return found

    def _run(self, name: str, *parameters: Any) -> None:
        self._connection.execute(SQL[name], parameters)

    def _page(self, kind: str, creation: str, query: Query, decode: Callable[[Row], T]) -> PaginatedResult[T]:
        condition = where(query)
        if condition is None:
            everything = self._all(f"{SQL[f'find_{kind}']} ORDER BY {creation}")
            return query.select(map(decode, everything))
        clause, parameters = condition
        rows = self._all(f"{SQL[f'find_{kind}']}{clause}{order(query, creation)}{page(query)}", parameters)
        total = len(rows)
        if page(query):
            ((total,),) = self._all(f"{SQL[f'count_{kind}']}{clause}", parameters)
        return query.result([decode(row) for row in rows], total)

    # ------------------------------------------------------------------ rollouts and their queue

    def get_rollout(self, rollout_id: str) -> Rollout | None:
        row = self._one("get_rollout", rollout_id) if _can_be_id(rollout_id) else None
        return None if row is None else self._rollout(row)

    def put_rollout(self, rollout: Rollout) -> None:
        fields = (
            rollout.status,
            rollout.mode,
            rollout.resources_id,
            rollout.start_time,
            rollout.end_time,
            dumps(rollout.config.model_dump()),
            _optional_dumps(rollout.metadata),
        )
        if rollout.rollout_id in self._inputs and self._inputs[rollout.rollout_id] is rollout.input:
            self._run("move_rollout", *fields, rollout.rollout_id)
        else:
            self._run("put_rollout", rollout.rollout_id, *fields, dumps(rollout.input))
            self._inputs[rollout.rollout_id] = rollout.input

    def add_tags(self, rollout_id: str, tags: Collection[str]) -> None:
        self._connection.executemany(SQL["add_tag"], [(dumps(tag), rollout_id) for tag in tags])

    def find_rollouts(self, query: Query) -> PaginatedResult[Rollout]:
        return self._page("rollouts", "rollout_key", query, self._rollout)

    def _rollout(self, row: Row) -> Rollout:
        rollout_id, status, mode, resources_id, start_time, end_time, config, metadata, task, tags = row
        rollout = Rollout.model_construct(
            rollout_id=rollout_id,
            input=loads(task),
            start_time=start_time,
            end_time=end_time,
            mode=mode,
            resources_id=resources_id,
            status=status,
            config=copy_model(_config(config)),
            metadata=_optional_loads(metadata),
            tags=[] if tags == "[]" else sorted(loads(tags)),
        )
        self._inputs[rollout_id] = rollout.input
        return rollout

    def enqueue(self, rollout_id: str) -> None:
        self._run("enqueue", rollout_id)

    def leave_queue(self, rollout_id: str) -> None:
        self._run("leave_queue", rollout_id)

    def take_from_queue(self, limit: int) -> Sequence[str]:
        taken = [rollout_id for (rollout_id,) in self._all(SQL["head_of_queue"], (limit,))]
        self._connection.executemany(SQL["leave_queue"], [(rollout_id,) for rollout_id in taken])
        return taken

    def finished_among(self, rollout_ids: Collection[str]) -> list[str]:
        """Return those of the rollouts that are finished."""
        return [
            rollout_id
            for places, part in in_parts(list(rollout_ids))
            for (rollout_id,) in self._all(f"{SQL['finished_among']} {places}", part)
        ]

    # ------------------------------------------------------------------ attempts

    def get_attempt(self, key: AttemptKey) -> Attempt | None:
        row = self._one("get_attempt", *key) if all(map(_can_be_id, key)) else None
        return None if row is None else self._attempt(row)

    def get_attempts(self, rollout_id: str) -> Sequence[Attempt]:
        rows = self._all(SQL["get_attempts"], (rollout_id,)) if _can_be_id(rollout_id) else []
        return [self._attempt(row) for row in rows]

    def get_latest_attempts(self, rollout_ids: Sequence[str]) -> Mapping[str, Attempt]:
        found: dict[str, Attempt] = {}
        for rollout_id in rollout_ids:
            row = self._one("latest_attempt", rollout_id) if _can_be_id(rollout_id) else None
            if row is not None:
                found[rollout_id] = self._attempt(row)
        return found

    def put_attempt(self, attempt: Attempt, deadline: float | None) -> None:
        changing = (
            attempt.end_time,
            attempt.worker_id,
            attempt.last_heartbeat_time,
            _optional_dumps(attempt.metadata),
            deadline,
        )
        attempt_key = self._find_attempt_key((attempt.rollout_id, attempt.attempt_id))
        if attempt_key is not None:
            self._run("change_attempt", attempt.status, *changing, attempt_key)
            self._deadlines[attempt_key] = deadline
            if (seal := attempt.seal) is not None:
                counted = _optional_dumps(seal.unproven)
                self._run(
                    "seal_attempt", attempt_key, seal.time, seal.spans, seal.sequence_id, seal.late, counted
                )
            return
        self._run(
            "add_attempt",
            attempt.rollout_id,
            attempt.attempt_id,
            attempt.sequence_id,
            attempt.status,
            attempt.start_time,
            *changing,
        )

    def get_deadline(self, key: AttemptKey) -> float | None:
        return self._deadlines.get(self._attempt_key(key))

    def get_overdue(self, now: float) -> Sequence[Attempt]:
        return [self._attempt(row) for row in self._all(SQL["overdue_attempts"], (now,))]

    def next_deadline(self) -> float | None:
        row = self._one("next_deadline")
        return None if row is None else row[0]

    def _attempt(self, row: Row) -> Attempt:
        (
            attempt_key,
            rollout_id,
            attempt_id,
            sequence_id,
            status,
            start_time,
            end_time,
            worker_id,
            heartbeat,
            metadata,
            deadline,
            counter,
            *seal,
        ) = row
        self._attempt_keys[rollout_id, attempt_id] = attempt_key
        self._deadlines[attempt_key] = deadline
        self._counters[attempt_key] = counter
        return Attempt.model_construct(
            rollout_id=rollout_id,
            attempt_id=attempt_id,
            sequence_id=sequence_id,
            start_time=start_time,
            end_time=end_time,
            status=status,
            worker_id=worker_id,
            last_heartbeat_time=heartbeat,
            metadata=_optional_loads(metadata),
            seal=None
            if seal[0] is None
            else Seal(
                time=seal[0],
                spans=seal[1],
                sequence_id=seal[2],
                late=seal[3],
                unproven=_optional_loads(seal[4]),
            ),
        )

    def _find_attempt_key(self, key: AttemptKey) -> int | None:
        if key not in self._attempt_keys:
            self.get_attempt(key)
        return self._attempt_keys.get(key)

    def _attempt_key(self, key: AttemptKey) -> int:
        attempt_key = self._find_attempt_key(key)
        assert attempt_key is not None
        return attempt_key

    # ------------------------------------------------------------------ spans

    def get_counter(self, key: AttemptKey) -> int:
        return self._counters.get(self._attempt_key(key), 0)

    def put_counter(self, key: AttemptKey, value: int) -> None:
        attempt_key = self._attempt_key(key)
        self._run("put_counter", value, attempt_key)
        self._counters[attempt_key] = value

    def get_stored(self, key: AttemptKey, span_ids: Collection[str]) -> Mapping[str, bool]:
        return self._among("stored_among", key, span_ids)

    def get_open(self, key: AttemptKey, span_ids: Collection[str]) -> Mapping[str, bool]:
        # Asked once in a transaction: mostly no span of any attempt is open, and then no batch looks for its own.
        if self._nothing_open is None:
            self._nothing_open = self._one("any_open_span") is None
        return {} if self._nothing_open else self._among("open_among", key, span_ids)

    def _among(self, name: str, key: AttemptKey, span_ids: Collection[str]) -> dict[str, bool]:
        attempt_key = self._attempt_key(key)
        return {
            span_id: bool(declared)
            for places, part in in_parts(list(span_ids))
            for span_id, declared in self._all(f"{SQL[name]} {places}", (attempt_key, *part))
        }

    def add_spans(self, spans: Sequence[NewSpan]) -> None:
        if not self._next_span_key:
            ((last,),) = self._all(SQL["last_span_key"])
            self._next_span_key = last + 1
        # Read once: the transaction was begun as one that writes, so no other process takes these keys meanwhile.
        first = self._next_span_key
        self._next_span_key += len(spans)
        # The first twelve columns of a ``SpanRow``, in its order; what follows has tables of its own. The rows go in
        # by one call: SQLite prepares the statement once, and no line of Python runs between two rows.
        keys = [self._attempt_key((new.span.rollout_id, new.span.attempt_id)) for new in spans]
        self._connection.executemany(
            SQL["add_span"],
            [
                (
                    span_key,
                    attempt_key,
                    new.sequence_id,
                    new.declared,
                    self._resource_key(new.encoded.resource),
                    *new.encoded[:12],
                )
                for span_key, attempt_key, new in zip(
                    range(first, first + len(spans)), keys, spans, strict=True
                )
            ],
        )
        lists = []
        for span_key, attempt_key, new in zip(range(first, first + len(spans)), keys, spans, strict=True):
            for number, value in enumerate(new.encoded.packed):
                value_key = span_key * _ARRAYS_OF_A_SPAN + number
                if is_long(value):
                    # One after the other: the next may continue it.
                    row = self._beginnings.row(self._connection, attempt_key, value_key, value)
                    self._run("add_long_value", *row)
                else:
                    lists.append((value_key, *value))
        if lists:
            self._connection.executemany(SQL["add_array"], lists)

    def declare_spans(self, key: AttemptKey, span_ids: Collection[str]) -> None:
        rows = [(self._attempt_key(key), span_id) for span_id in span_ids]
        if rows:
            self._connection.executemany(SQL["declare_span"], rows)
            self._connection.executemany(SQL["declare_open_span"], rows)

    def add_open_spans(self, spans: Sequence[NewSpan]) -> None:
        self._nothing_open = False
        self._connection.executemany(
            SQL["add_open_span"],
            [
                (
                    self._attempt_key((new.span.rollout_id, new.span.attempt_id)),
                    new.declared,
                    self._resource_key(new.encoded.resource),
                    *new.encoded[:12],
                )
                for new in spans
            ],
        )

    def remove_open_spans(self, key: AttemptKey, span_ids: Collection[str]) -> None:
        rows = [(self._attempt_key(key), span_id) for span_id in span_ids if is_utf8(span_id)]
        self._connection.executemany(SQL["remove_open_span"], rows)

    def get_late(self, key: AttemptKey, span_ids: Collection[str]) -> Collection[str]:
        attempt_key = self._attempt_key(key)
        return {
            span_id
            for places, part in in_parts(list(span_ids))
            for (span_id,) in self._all(f"{SQL['late_among']} {places}", (attempt_key, *part))
        }

    def add_late_spans(self, spans: Sequence[NewSpan]) -> None:
        self._connection.executemany(
            SQL["add_late_span"],
            [
                (
                    self._attempt_key((new.span.rollout_id, new.span.attempt_id)),
                    self._resource_key(new.encoded.resource),
                    *new.encoded[:12],
                )
                for new in spans
            ],
        )

    def get_late_spans(self, keys: Sequence[AttemptKey]) -> Sequence[Span]:
        return self._unpacked("get_late_spans", keys)

    def find_spans(
        self, keys: Sequence[AttemptKey], query: Query, *, packed: bool = False
    ) -> PaginatedResult[Span]:
        known = [key for key in keys if self._find_attempt_key(key) is not None]
        if len(known) == 1 and page(query):
            found = self._find_page(known[0], query, packed)
            if found is not None:
                return found
        arranged: list[Span] = []
        for key in known:
            arranged += query.arrange(self._find_all(key, query, packed))
        return query.page(arranged)

    def _find_page(self, key: AttemptKey, query: Query, packed: bool) -> PaginatedResult[Span] | None:
        condition = where(query, "attempt_key = ?")
        if condition is None or query.sort_by in ("rollout_id", "attempt_id"):
            return None
        clause, parameters = condition
        parameters = [self._attempt_key(key), *parameters]
        # Keys first, so that sorting and skipping move no texts; rows are read for the page alone.
        span_keys = [
            span_key
            for (span_key,) in self._all(
                f"{SQL['find_span_keys']}{clause}{order(query, 'span_key')}{page(query)}", parameters
            )
        ]
        ((total,),) = self._all(f"{SQL['count_spans']}{clause}", parameters)
        reader = Reader(self._connection, packed=packed)
        by_key = {
            row[0]: self._span(key, row, reader)
            for places, part in in_parts(span_keys)
            for row in self._all(f"{SQL['get_spans']} {places}", part)
        }
        return query.result([by_key[span_key] for span_key in span_keys], total)

    def _find_all(self, key: AttemptKey, query: Query, packed: bool) -> Iterator[Span]:
        condition = where(query, "attempt_key = ?") if query.conditions else None
        if condition is None:
            rows = self._all(f"{SQL['get_attempt_spans']} ORDER BY span_key", (self._attempt_key(key),))
        else:
            clause, parameters = condition
            sql = SQL["get_attempt_spans"].removesuffix("WHERE attempt_key = ?")
            rows = self._all(f"{sql}{clause} ORDER BY span_key", (self._attempt_key(key), *parameters))
        reader = Reader(self._connection, packed=packed)
        return (self._span(key, row, reader) for row in rows)

    def _span(self, key: AttemptKey, row: Row, reader: Reader) -> Span:
        span_key, _, sequence_id, _, span_id = row[:5]
        values: Mapping[int, Any] = {}
        # Two queries less for the spans that have nothing beside their rows, which are most.
        if "$" in row[11] and _SLOT in row[11]:
            values = self._values(span_key, (*key, span_id), reader)
        return decode_span(*key, sequence_id, SpanRow._make((*row[3:], ())), values)

    def _values(self, span_key: int, span: tuple[str, str, str], reader: Reader) -> Mapping[int, Any]:
        """Return the values that stand beside the row of a span, by their numbers."""
        first = span_key * _ARRAYS_OF_A_SPAN
        of_span = (first, first + _ARRAYS_OF_A_SPAN - 1)
        values = _Values(span)
        for array_key, _, kind, data in self._all(SQL["get_arrays"], of_span):
            values[array_key - first] = reader.array(kind, data)
        for row in self._connection.execute(SQL["get_long_values"], of_span).fetchall():
            try:
                values[row[0] - first] = reader.value(row)
            except BrokenValueError as error:
                raise broken(row[1], span, error) from error
        return values

    def get_open_spans(self, keys: Sequence[AttemptKey]) -> Sequence[Span]:
        return self._unpacked("get_open_spans", keys)

    def _unpacked(self, name: str, keys: Sequence[AttemptKey]) -> list[Span]:
        """Return the spans of a table whose rows have everything in them, and no place in the attempt."""
        return [
            decode_span(*key, 0, SpanRow._make((*row, ())))
            for key in keys
            if (attempt_key := self._find_attempt_key(key)) is not None
            for row in self._all(SQL[name], (attempt_key,))
        ]

    def count_spans(self, key: AttemptKey) -> SpanCounts:
        row = self._one("count_attempt_spans", self._attempt_key(key))
        assert row is not None
        return SpanCounts(*row)

    def get_accounts(self, key: AttemptKey) -> Sequence[Account]:
        return [account_of(key, row) for row in self._all(SQL["get_accounts"], (self._attempt_key(key),))]

    def last_seen(self, process: str) -> float | None:
        ((seen,),) = self._all(SQL["last_seen"], (process,))
        return seen or 0.0

    def get_revision(self, key: AttemptKey, writer_id: str) -> int | None:
        row = self._one("get_revision", self._attempt_key(key), writer_id)
        return None if row is None else row[0]

    def put_account(self, account: Account) -> None:
        self._run(
            "put_account",
            self._attempt_key((account.rollout_id, account.attempt_id)),
            account.writer_id,
            account.revision,
            account.started,
            account.late,
            account.unattributed,
            account.closed,
            dumps(account.dropped),
            dumps(account.late_dropped),
            dumps(account.unstored),
        )

    def _resource_key(self, resource: str) -> int:
        key = self._resource_keys.get(resource)
        if key is None:
            digest = blake2b(resource.encode(), digest_size=16).digest()
            row = self._one("get_resource_key", digest)
            if row is None:
                key = self._connection.execute(SQL["add_resource"], (digest, resource)).lastrowid
                assert key is not None
            else:
                key = int(row[0])
            if len(self._resource_keys) >= _MOST_RESOURCE_KEYS:
                self._resource_keys.clear()
            self._resource_keys[resource] = key
        return key

    # ------------------------------------------------------------------ resources and workers

    def get_resources(self, resources_id: str) -> ResourcesUpdate | None:
        row = self._one("get_resources", resources_id) if _can_be_id(resources_id) else None
        return None if row is None else _resources(row)

    def get_latest_resources(self) -> ResourcesUpdate | None:
        row = self._one("latest_resources")
        return None if row is None else _resources(row)

    def put_resources(self, update: ResourcesUpdate) -> None:
        self._run(
            "put_resources",
            update.resources_id,
            update.create_time,
            update.update_time,
            update.version,
            dumps(_RESOURCES.dump_python(update.resources, mode="python")),
        )

    def find_resources(self, query: Query) -> PaginatedResult[ResourcesUpdate]:
        return self._page("resources", "resources_key", query, _resources)

    def get_worker(self, worker_id: str) -> Worker | None:
        row = self._one("get_worker", worker_id) if _can_be_id(worker_id) else None
        return None if row is None else _worker(row)

    def put_worker(self, worker: Worker) -> None:
        self._run(
            "put_worker",
            worker.worker_id,
            worker.status,
            _optional_dumps(worker.heartbeat_stats),
            worker.last_heartbeat_time,
            worker.last_dequeue_time,
            worker.last_busy_time,
            worker.last_idle_time,
            worker.current_rollout_id,
            worker.current_attempt_id,
        )

    def find_workers(self, query: Query) -> PaginatedResult[Worker]:
        return self._page("workers", "worker_key", query, _worker)

    # ------------------------------------------------------------------ counts

    def count(self) -> LightningStoreStatistics:
        by_status: dict[str, int] = dict(self._all(SQL["count_by_status"]))
        names = ("count_attempts", "count_spans", "count_open_spans", "count_resources", "count_workers")
        attempts, spans, open_spans, resources, workers = (self._all(SQL[name])[0][0] for name in names)
        return LightningStoreStatistics(
            total_rollouts=sum(by_status.values()),
            total_attempts=attempts,
            total_spans=spans,
            total_open_spans=open_spans,
            total_resources=resources,
            total_workers=workers,
            rollouts_by_status=by_status,
        )

    def check(self) -> list[str]:
        """Return what is wrong with the file, a sentence each."""
        problems = [f"integrity: {text}" for (text,) in self._all("PRAGMA integrity_check") if text != "ok"]
        for table, row, parent, _ in self._all("PRAGMA foreign_key_check"):
            problems.append(f"row {row} of {table} refers to a row of {parent} that does not exist")
        problems += [sentence for sentence, with_log in self._copies() if not with_log]
        problems += broken_values(self._connection)
        problems += self._missing_values()
        return problems

    def last_attempt_key(self) -> int:
        """Return the highest key of an attempt, 0 where there is none."""
        ((last,),) = self._all(SQL["last_attempt_key"])
        return int(last)

    def audited(self, keys: tuple[int, int]) -> list[AttemptAudit]:
        """Return the attempts with keys in a range, each beside what its writers say of it."""
        return audited(self._connection, keys, self.last_seen, self._is_unreadable)

    def _is_unreadable(self, key: AttemptKey, row: Row) -> bool:
        try:
            self._span(key, row, Reader(self._connection, packed=False))
        except Exception:  # noqa: BLE001 - whatever was put into the file
            return True
        return False

    def _missing_values(self) -> Iterator[str]:
        for rollout_id, attempt_id, span_id, attributes, *found in self._connection.execute(
            SQL["spans_beside"]
        ):
            there = {number for numbers in found for number in loads(numbers)}
            for number in sorted(set(map(int, _SLOT_NUMBER.findall(attributes))) - there):
                yield f"{where_it_is(f'value {number}', rollout_id, attempt_id, span_id)}: it is missing"

    def doubts(self) -> list[str]:
        """Return what cannot be told about the file, a sentence each."""
        return [sentence for sentence, with_log in self._copies() if with_log] + [
            f"at {noticed_at} it lacked commits that had been in it: {MIXED if with_log else LACKS}"
            for noticed_at, with_log in self._all(SQL["get_setbacks"])
        ]

    def _copies(self) -> list[tuple[str, bool]]:
        return [
            (
                f"it began as a copy that was made while the store was open (noticed at {noticed_at}), "
                + (
                    "with a log, which may be of another moment"
                    if with_log
                    else "without its log: its last commits are missing"
                )
                + "; `agl backup` makes copies of one moment",
                bool(with_log),
            )
            for noticed_at, with_log in self._all(SQL["get_copies"])
        ]


class _Values(dict[int, Any]):
    """Values of a span by their numbers; one that is missing is no other one."""

    def __init__(self, span: tuple[str, str, str]) -> None:
        super().__init__()
        self._span = span

    def __missing__(self, number: int) -> Any:
        raise broken(f"value {number}", self._span, BrokenValueError("it is missing"))


def _can_be_id(value: Any) -> bool:
    """Whether SQL can be asked for it; what is no text, or has lone surrogates, is the id of nothing."""
    return isinstance(value, str) and is_utf8(value)


@lru_cache(maxsize=256)  # rollouts of one run share one config, mostly the default
def _config(text: str) -> RolloutConfig:
    return RolloutConfig.model_validate(loads(text))


def _resources(row: Row) -> ResourcesUpdate:
    resources_id, create_time, update_time, version, resources = row
    return ResourcesUpdate.model_construct(
        resources_id=resources_id,
        create_time=create_time,
        update_time=update_time,
        version=version,
        resources=_RESOURCES.validate_python(loads(resources)),
    )


def _worker(row: Row) -> Worker:
    worker_id, status, stats, heartbeat, dequeue, busy, idle, rollout_id, attempt_id = row
    return Worker.model_construct(
        worker_id=worker_id,
        status=status,
        heartbeat_stats=_optional_loads(stats),
        last_heartbeat_time=heartbeat,
        last_dequeue_time=dequeue,
        last_busy_time=busy,
        last_idle_time=idle,
        current_rollout_id=rollout_id,
        current_attempt_id=attempt_id,
    )


def _optional_dumps(value: Any) -> str | None:
    return None if value is None else dumps(value)


def _optional_loads(text: str | None) -> Any:
    return None if text is None else loads(text)
