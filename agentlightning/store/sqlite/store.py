"""``sqlite:///path``: a store in one SQLite file, for any number of processes of one machine.

*Acknowledged* means committed to the write-ahead log: it survives ``kill -9`` of every process. After a loss of
power the last fractions of a second may be missing, never half a transaction; ``?synchronous=full`` waits for
the disk at every commit and keeps those too. The file is read with any SQLite tool; ``schema.sql`` describes it,
and the views ``attempt_spans``, ``token_ids`` and ``logprobs`` unpack what is packed.
"""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast
from urllib.parse import parse_qsl, quote, unquote

from ..._handover import Future
from ..._weak_objects import WeakObjects
from ...codec.recorded_span import AnySpan
from ...codec.rows import SpanRow, encode_span
from ...errors import InvalidArgument, StoreError
from ..base import LightningStoreCapabilities
from ..clock_steps import Clock
from ..tables import Tables
from ..transaction import Command, TransactionalStore
from .audit import AttemptAudit, Range, ranges
from .connection import Synchronous, prepare_file, store_id_at
from .engine import Engine
from .log import state_of
from .tables import SqliteTables

T = TypeVar("T")

BUSY_TIMEOUT = 30.0
"""Seconds that a write waits for other processes before it raises ``StoreBusy``."""


class SqliteLightningStore(TransactionalStore):
    """A store in a SQLite file; any thread, any event loop, several processes, picklable."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        synchronous: Synchronous = "normal",
        busy_timeout: float = BUSY_TIMEOUT,
        clock: Clock = time.time,
        steady: Clock | None = None,
    ) -> None:
        """Open a file, and create or migrate it where needed.

        Args:
            path: The file; its folder must exist.
            synchronous: ``normal`` survives the death of every process, ``full`` also a loss of power.
            busy_timeout: Seconds that a write waits for other processes.
            clock: Seconds since the epoch.
            steady: Seconds of a clock that nobody sets, by which attempts become overdue where ``clock`` is set;
                default: the monotonic one where ``clock`` is the system's, else none.

        Raises:
            StoreFileError: The file cannot be opened as a store; it was left as it was.
            StoreBusy: Another process held the file for longer than ``busy_timeout``.
            InvalidArgument: An option has no such value, or the path is ``:memory:``.
        """
        super().__init__(clock=clock, steady=steady)
        if Path(path).name == ":memory:":
            raise InvalidArgument(
                f"{os.fspath(path)!r} is SQLite's word for no file, which other threads and processes could not share; "
                "write memory:// for a store in memory"
            )
        if synchronous not in ("normal", "full"):
            raise InvalidArgument(f"synchronous is 'normal' or 'full', not {synchronous!r}")
        if not busy_timeout >= 0:
            raise InvalidArgument(f"busy_timeout must be at least 0 seconds, not {busy_timeout!r}")
        # The file itself and not a link to it: SQLite keeps its log there, and so do we the spool.
        self.path = Path(os.path.realpath(path))
        self._synchronous: Synchronous = synchronous
        self._busy_timeout = busy_timeout
        prepared = prepare_file(self.path, busy_timeout)
        self._store_id = prepared.store_id
        self._engine = Engine(self.path, prepared.store_id, synchronous, busy_timeout, self._waits)
        # Not at the end of the interpreter: whoever is shut down after this store still has spans to write. Callers
        # wait for what they ask for, so nothing unacknowledged is promised; the next open reads the write-ahead log.
        self._finalizer = weakref.finalize(self, self._engine.shutdown)
        self._finalizer.atexit = False
        _stores.add(self)
        if prepared.deadline is not None:
            self._watchdog.expect(prepared.deadline)

    def __reduce__(self) -> tuple[Callable[..., SqliteLightningStore], tuple[Any, ...]]:
        return _reopened, (str(self.path), self._synchronous, self._busy_timeout, self._clock, self._steady)

    @property
    def url(self) -> str:
        """URL under which any process of this machine opens the same data."""
        options = "?synchronous=full" if self._synchronous == "full" else ""
        return f"sqlite:///{quote(str(self.path))}{options}"

    @property
    def local_path(self) -> str:
        """The file; spans that cannot be written wait in a folder beside it."""
        return str(self.path)

    @property
    def store_id(self) -> str:
        """Identity of the data, which stands in the file."""
        return self._store_id

    def has_copy_at(self, url: str) -> bool:
        """Whether the file at that URL is another one, with the same identity in it."""
        place = path_of(url)
        if place is None or (path := Path(os.path.realpath(place))) == self.path:
            return False
        try:
            if not path.exists() or path.samefile(self.path):
                return False
            return store_id_at(path) == self._store_id
        except (OSError, StoreError):
            return True

    @property
    def capabilities(self) -> LightningStoreCapabilities:
        """What callers may rely on."""
        return LightningStoreCapabilities(
            thread_safe=True,
            async_safe=True,
            zero_copy=True,
            otlp_traces=False,
            durable=True,
            receipts=True,
        )

    async def close(self) -> None:
        """Finish what is queued, end the threads, close the file; a repeat is harmless."""
        self._finalizer.detach()
        threads = self._engine.stop()
        self._waits.settle_all(self)
        for thread in threads:
            await thread.ended.in_loop()
            thread.join()
        self._watchdog.stop()
        self._engine.close_connections()

    async def check(self) -> list[str]:
        """Return what is wrong with the file, a sentence each; nothing where it is sound. Reads all of it."""

        def work(tables: Tables) -> list[str]:
            assert isinstance(tables, SqliteTables)
            return tables.check()

        return await self._read(work)

    async def audit(self) -> AsyncIterator[list[AttemptAudit]]:
        """Yield all attempts beside what their writers say of them, thousands at a time, each part of one moment."""
        last = await self._read(lambda tables: cast("SqliteTables", tables).last_attempt_key())
        for keys in ranges(last):
            yield await self._read(partial(_audited, keys))

    async def doubts(self) -> list[str]:
        """Return what is worth knowing about the file, a sentence each: what a copy may lack, how large its log is."""

        def work(tables: Tables) -> list[str]:
            assert isinstance(tables, SqliteTables)
            return tables.doubts()

        state = state_of(self.path)
        return await self._read(work) + ([state.sentence()] if state.is_large else [])

    def _encode(self, span: AnySpan) -> SpanRow:
        return encode_span(span)

    def _encode_open(self, span: AnySpan) -> SpanRow:
        return encode_span(span, packed=False)

    def _watch_others(self) -> None:
        self._engine.watch_others()

    async def _write(self, command: Command[T]) -> T:
        return await _awaited(self._engine.write(command))

    async def _read(self, work: Callable[[Tables], T]) -> T:
        return await _awaited(self._engine.read(work))


def _audited(keys: Range, tables: Tables) -> list[AttemptAudit]:
    return cast("SqliteTables", tables).audited(keys)


_stores: WeakObjects[SqliteLightningStore] = WeakObjects()


async def _awaited(future: Future[T]) -> T:
    return await future.in_loop()


def _reopened(
    path: str, synchronous: Synchronous, busy_timeout: float, clock: Clock, steady: Clock | None
) -> SqliteLightningStore:
    return SqliteLightningStore(
        path, synchronous=synchronous, busy_timeout=busy_timeout, clock=clock, steady=steady
    )


def _after_fork_in_child() -> None:
    for store in _stores:
        store.after_fork_in_child()


os.register_at_fork(after_in_child=_after_fork_in_child)


def path_of(url: str) -> str | None:
    """Return the path that a ``sqlite:///`` URL names, ``None`` where it names none."""
    scheme, _, place = url.partition("?")[0].partition(":///")
    return unquote(place) if scheme == "sqlite" and place else None


def open_url(url: str) -> SqliteLightningStore:
    """Open ``sqlite:///relative.db`` or ``sqlite:////absolute.db``.

    Options: ``?synchronous=normal|full`` and ``&busy_timeout=<seconds>``, see :class:`SqliteLightningStore`.
    Characters may be percent-encoded; ``?``, ``#`` and ``%`` in a path must be.

    Raises:
        InvalidArgument: The URL names no path or has an unknown option.
        StoreFileError: The file cannot be opened as a store.
    """
    address, _, query = url.partition("?")
    place = address.partition("://")[2]
    if not place.startswith("/"):
        raise InvalidArgument(
            f"{url!r} names a host; a file has three slashes. Did you mean sqlite:///{place} ?"
        )
    path = path_of(url)
    if not path:
        raise InvalidArgument(
            f"{url!r} names no file; write sqlite:///agentlightning.db, or memory:// for no file"
        )
    options = dict(parse_qsl(query, keep_blank_values=True))
    synchronous = options.pop("synchronous", "normal")
    busy_timeout = options.pop("busy_timeout", str(BUSY_TIMEOUT))
    if options:
        raise InvalidArgument(
            f"{url!r} has the unknown option {next(iter(options))!r}; there are synchronous and busy_timeout"
        )
    if synchronous not in ("normal", "full"):
        raise InvalidArgument(f"synchronous is 'normal' or 'full', not {synchronous!r}")
    try:
        seconds = float(busy_timeout)
    except ValueError:
        raise InvalidArgument(f"busy_timeout is a number of seconds, not {busy_timeout!r}") from None
    return SqliteLightningStore(
        path, synchronous="full" if synchronous == "full" else "normal", busy_timeout=seconds
    )
