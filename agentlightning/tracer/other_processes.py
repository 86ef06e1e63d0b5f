"""Jobs that are handed to a pool of processes carry the rollout of whoever handed them on.

The processes of a pool live on, and were started by the rollout that happened to come first. A forked one inherits its
context and a spawned one nothing, so neither says whose job it does: each job does. It takes along the ids of its
rollout, the span that was current, and for a process that does not record yet how to do so. What a job has recorded is
stored before its result goes back: whoever waits for it may then seal the attempt.
"""

from __future__ import annotations

import functools
import logging
import os
import pickle
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from opentelemetry import context as otel_context
from opentelemetry import trace

from .._locks import reentrant_lock
from ..dialects.raw_call import Endpoint
from ..env_var import LightningEnvVar
from ..recorder.counts import next_writer_id
from ..recorder.scope import Scope, context_with_scope, current_scope
from ..store.registry import open_store
from .base import Tracer, context_with_active_tracer

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

    from ..store.base import LightningStore
    from .processor import LightningSpanProcessor

_NO_AGENTS = frozenset({"multiprocessing", "concurrent", "agentlightning"})
"""Packages whose processes run no agent by themselves: they serve pools, managers and our own server."""

_log = logging.getLogger(__name__)

FLUSH_SECONDS = 5.0
"""How long the result of a job may wait for its spans."""


class RecordingTracer(Tracer, ABC):
    """A tracer that places spans by a span processor."""

    @property
    @abstractmethod
    def processor(self) -> LightningSpanProcessor:
        """The span processor of this worker."""


class _Recorder:
    """Who records in this process."""

    def __init__(self, tracer: RecordingTracer) -> None:
        self.tracer = tracer
        self.is_handed = False
        """Recording began here for the sake of a job."""

    @functools.cached_property
    def configuration(self) -> bytes | None:
        """The tracer, pickled; ``None`` where it cannot be."""
        try:
            return pickle.dumps(self.tracer)
        except Exception as error:  # noqa: BLE001 - a stage of the pipeline may be anything
            _log.debug("this tracer cannot be pickled: %r", error)
            return None


class Handed(NamedTuple):
    """What a job takes along."""

    recorder: str
    """Names the recorder, in the process that handed the job on and in those forked from it."""
    configuration: bytes | None
    url: str | None
    """The store of the rollout; ``None`` = it lives in the memory of the process."""
    ids: tuple[str, str] | None
    """``None`` = the job was handed on under no rollout."""
    endpoints: list[Endpoint] | None
    parent: tuple[int, int, int]
    """Trace id, span id and flags of the current span."""


_recorders: dict[str, _Recorder] = {}
_stores: dict[str, LightningStore] = {}
_said: set[str] = set()
"""What the log of this process has been told, and is not told again."""
_lock = reentrant_lock()
"""Guards ``_recorders`` and ``_stores`` while recording begins for the sake of a job: of threads that are handed items
at one moment, one makes the tracer, and the others find it."""


def register(tracer: RecordingTracer) -> Callable[[], None]:
    """Let jobs carry the rollouts of a tracer; returns what takes that back."""
    name = next_writer_id()
    _recorders[name] = _Recorder(tracer)

    def forget() -> None:
        _recorders.pop(name, None)

    return forget


def carried(work: Callable[..., Any]) -> Callable[..., Any]:
    """Return a job that is done in another process under the rollout that is open here."""
    handed = handed_here()
    return work if handed is None else _Job(work, handed)


def handed_here() -> Handed | None:
    """Return what goes along with something that is handed to another process; ``None`` where nobody records it."""
    scope = current_scope()
    for name, recorder in list(_recorders.items()):
        processor = recorder.tracer.processor
        if scope is None or scope.owner is processor:
            at_work, is_known = processor.routing.scope_at_work()
            if not is_known:
                processor.ledger.start_unplaced()  # what is done with it is seen by the other process alone
            return _handed(name, recorder, at_work)
    return None


def note_process(process: BaseProcess) -> None:
    """Note with the rollout that is open that a process which it starts records nothing.

    A forked one goes on with what its parent has. One that is spawned knows of no tracer, unless it is handed one, or
    the environment names its attempt, as under ``agl run``. The processes of pools are told with each job.
    """
    scope = current_scope()
    if scope is None or scope.closed or LightningEnvVar.AGL_ROLLOUT_ID.value in os.environ:
        return
    from multiprocessing import (
        get_start_method,
    )  # loaded since there is a process of it; most agents have none

    method = getattr(process, "_start_method", None) or get_start_method()
    target, handed = (vars(process).get(name) for name in ("_target", "_args"))
    package = str(getattr(target, "__module__", "")).partition(".")[0]
    if method == "fork" or package in _NO_AGENTS or any(isinstance(each, Tracer) for each in handed or ()):
        return
    if process.name not in scope.unrecorded:
        scope.unrecorded[process.name] = None
        _log.warning(
            "%s, started (%s) under rollout %s, records nothing: hand its work to a pool of processes, or give it a "
            "tracer of its own",
            process.name,
            method,
            scope.rollout_id,
        )


def _handed(name: str, recorder: _Recorder, scope: Scope | None) -> Handed:
    if scope is None or scope.closed or scope.store is None:
        return Handed(name, recorder.configuration, None, None, None, (0, 0, 0))
    span = trace.get_current_span().get_span_context()
    return Handed(
        name,
        recorder.configuration,
        scope.store.url,
        (scope.rollout_id, scope.attempt_id),
        scope.endpoints,
        (span.trace_id, span.span_id, int(span.trace_flags)),
    )


class _Job:
    """A function that takes its rollout along; picklable where the function is."""

    def __init__(self, work: Callable[..., Any], handed: Handed) -> None:
        functools.update_wrapper(self, work, updated=())
        self.work = work
        self.handed = handed
        self.pid = os.getpid()

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, (self.work, self.handed, self.pid)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.pid == os.getpid():  # the pool has no processes (a double of it, say)
            return self.work(*args, **kwargs)
        with _rollout(self.handed):
            return self.work(*args, **kwargs)


def _unpickled(work: Callable[..., Any], handed: Handed, pid: int) -> _Job:
    job = _Job(work, handed)
    job.pid = pid
    return job


@contextmanager
def _rollout(handed: Handed) -> Iterator[None]:
    """Do a job under its rollout, or under none, whatever this process was started in."""
    outside = otel_context.get_current()
    arrived = arrive(handed)
    if arrived is None:
        yield
        return
    otel_context.attach(arrived.context)
    try:
        yield
    finally:
        otel_context.attach(outside)
        arrived.end()


class Arrived:
    """The rollout of something that was handed to this process, as far as it is recorded here."""

    def __init__(self, tracer: RecordingTracer, scope: Scope | None, context: otel_context.Context) -> None:
        self.context = context
        self._processor = tracer.processor
        self._scope = scope
        self._stored = 0

    def store(self, timeout: float) -> None:
        """Wait until what has been recorded of it here is stored; whoever gets the result may seal the attempt."""
        scope = self._scope
        receipt = None if scope is None else self._processor.ledger.receipt(scope)
        if receipt is not None and receipt.started + receipt.unattributed > self._stored:
            self._stored = receipt.started + receipt.unattributed
            with suppress(TimeoutError):
                self._processor.writer.flush(scope).result(timeout)

    def end(self) -> None:
        """Note that nothing more is done for it here."""
        if self._scope is not None:
            self._processor.close_scope(self._scope)
            self._stored = 0  # the last account says that it is closed
            self.store(FLUSH_SECONDS)


def arrive(handed: Handed) -> Arrived | None:
    """Open the rollout of what was handed to this process; ``None`` where nobody records it."""
    tracer, store = _recorder(handed)
    if tracer is None:
        return None
    processor = tracer.processor
    processor.routing.begin_job()
    context = otel_context.Context()  # an empty one: a forked process has inherited that of its parent
    if handed.ids is None or store is None:
        return Arrived(tracer, None, context)
    scope = processor.new_scope(store, *handed.ids)
    scope.endpoints = handed.endpoints
    processor.open_scope(scope, context, None)
    parent = trace.SpanContext(*handed.parent[:2], True, trace.TraceFlags(handed.parent[2]))
    context = context_with_active_tracer(tracer, context_with_scope(scope, context))
    return Arrived(tracer, scope, trace.set_span_in_context(trace.NonRecordingSpan(parent), context))


def _recorder(handed: Handed) -> tuple[RecordingTracer | None, LightningStore | None]:
    """Return who records here, and where to; begins to record in a process that does not yet."""
    with _lock:
        return _found_or_begun(handed)


def _found_or_begun(handed: Handed) -> tuple[RecordingTracer | None, LightningStore | None]:
    try:
        # The recorder of a forked process has the name that it had in the parent. Any other one that records here on
        # its own account knows more of this process than what is handed to it.
        own = (recorder for recorder in _recorders.values() if not recorder.is_handed)
        known = _recorders.get(handed.recorder) or next(own, None)
        if known is not None:
            return known.tracer, _store(handed.url, known.tracer.processor.routing.default_store)
        if handed.ids is None or handed.url is None or handed.configuration is None:
            if handed.ids is not None:
                _say_that_jobs_are_not_recorded(
                    "their store lives in the memory of another process"
                    if handed.url is None
                    else "their tracer cannot be pickled"
                )
            return None, None
        tracer: RecordingTracer = pickle.loads(handed.configuration)  # noqa: S301 - from our own parent, as the job itself
        store = _store(handed.url, None)
        tracer.init()
        tracer.init_worker(0, store)
        for recorder in [each for each in _recorders.values() if each.tracer is tracer]:
            recorder.is_handed = True
            _recorders[handed.recorder] = recorder
    except Exception as error:  # noqa: BLE001 - a job is done where its recorder cannot be
        _say_that_jobs_are_not_recorded(f"{type(error).__name__}: {error}")
        return None, None
    return tracer, store


def _say_that_jobs_are_not_recorded(why: str) -> None:
    if not _said:
        from multiprocessing import current_process  # as above: jobs come to such processes

        _said.add("jobs are not recorded")
        _log.warning("jobs in process %s are not recorded: %s", current_process().name, why)


def _store(url: str | None, own: LightningStore | None) -> LightningStore | None:
    if own is not None and own.url == url:
        return own
    if url is None:
        return own
    if url not in _stores:
        _stores[url] = open_store(url)
    return _stores[url]
