"""What a tracer is, and which one is active.

The active tracer travels in the OpenTelemetry context, so it reaches whatever that context reaches: tasks,
threads under OpenTelemetry's threading instrumentation, callbacks. Two tracers may be active in two tasks of
one process; one context has one.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
)
from typing import TYPE_CHECKING, Any, TypeVar

from opentelemetry import context as otel_context

from ..errors import ActiveTracerError
from ..types.parallel import ParallelWorkerBase

if TYPE_CHECKING:
    from ..store.base import LightningStore
    from ..types import Attributes, Span, SpanCoreFields, SpanRecordingContext, TraceStatus

T = TypeVar("T")

_ACTIVE_KEY = otel_context.create_key("agentlightning-active-tracer")


class TraceContext(AbstractContextManager["Any"], AbstractAsyncContextManager["Any"]):
    """What ``trace_context`` returns: serves ``with`` and ``async with`` alike."""


class Tracer(ParallelWorkerBase):
    """Records what an agent does while it works on an attempt.

    ``init`` → ``init_worker(worker_id, store)`` → ``trace_context`` … → ``teardown_worker`` → ``teardown``.
    """

    _store: LightningStore | None = None

    def init_worker(self, worker_id: int, store: LightningStore | None = None) -> None:
        """Prepare this process for tracing into ``store``."""
        super().init_worker(worker_id)
        self._store = store

    def trace_context(
        self,
        name: str | None = None,
        *,
        store: LightningStore | None = None,
        rollout_id: str | None = None,
        attempt_id: str | None = None,
    ) -> TraceContext:
        """Record everything inside under one attempt; for ``with`` and ``async with``."""
        raise NotImplementedError(f"{type(self).__name__} has no trace_context")

    def get_last_trace(self) -> list[Span]:
        """Return the spans of the last finished ``trace_context`` of this tracer."""
        raise NotImplementedError(f"{type(self).__name__} has no get_last_trace")

    def create_span(
        self,
        name: str,
        attributes: Attributes | None = None,
        timestamp: float | None = None,
        status: TraceStatus | None = None,
    ) -> SpanCoreFields:
        """Record a span that starts and ends at one moment (``timestamp`` in seconds, default now)."""
        raise NotImplementedError(f"{type(self).__name__} has no create_span")

    def operation_context(
        self,
        name: str,
        attributes: Attributes | None = None,
        start_time: float | None = None,
        end_time: float | None = None,
    ) -> AbstractContextManager[SpanRecordingContext]:
        """Record the body of a ``with`` as one span; an exception is recorded and goes on."""
        raise NotImplementedError(f"{type(self).__name__} has no operation_context")

    def trace_run(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call ``func`` inside a ``trace_context`` named after it, and return what it returns."""
        with self.trace_context(name=getattr(func, "__name__", None)):
            return func(*args, **kwargs)

    async def trace_run_async(self, func: Callable[..., Awaitable[T]], *args: Any, **kwargs: Any) -> T:
        """Await ``func`` inside a ``trace_context`` named after it, and return what it returns."""
        async with self.trace_context(name=getattr(func, "__name__", None)):
            return await func(*args, **kwargs)

    def get_langchain_handler(self, tags: list[str] | None = None) -> Any | None:
        """Return a LangChain callback handler, or ``None`` where this tracer has none."""
        del tags  # for subclasses that have one
        return None

    @contextmanager
    def lifespan(self, store: LightningStore | None = None) -> Iterator[Tracer]:
        """``init`` and ``init_worker(0, store)`` around the body, torn down after it."""
        self.init()
        try:
            self.init_worker(0, store)
            try:
                yield self
            finally:
                self.teardown_worker(0)
        finally:
            self.teardown()


def set_active_tracer(tracer: Tracer) -> None:
    """Make ``tracer`` the active one of this context.

    Raises:
        ActiveTracerError: A tracer is active in this context already, this one or another.
    """
    present = get_active_tracer()
    if present is not None:
        raise ActiveTracerError(
            f"{type(present).__name__} is already active in this context; leave its trace_context first"
        )
    otel_context.attach(otel_context.set_value(_ACTIVE_KEY, tracer))


def get_active_tracer() -> Tracer | None:
    """Return the tracer that records in this context, or ``None``."""
    tracer = otel_context.get_value(_ACTIVE_KEY)
    return tracer if isinstance(tracer, Tracer) else None


def clear_active_tracer() -> None:
    """Leave this context without an active tracer; harmless when there is none."""
    otel_context.attach(otel_context.set_value(_ACTIVE_KEY, None))


def context_with_active_tracer(tracer: Tracer, context: otel_context.Context) -> otel_context.Context:
    """Return ``context`` with ``tracer`` active in it."""
    return otel_context.set_value(_ACTIVE_KEY, tracer, context)


def with_active_tracer_context(
    func: Callable[..., AbstractAsyncContextManager[T]],
) -> Callable[..., AbstractAsyncContextManager[T]]:
    """Decorate a tracer's async context method so that the tracer is active inside (0.3)."""

    @asynccontextmanager
    async def wrapper(self: Tracer, *args: Any, **kwargs: Any) -> AsyncIterator[T]:
        token = otel_context.attach(context_with_active_tracer(self, otel_context.get_current()))
        try:
            async with func(self, *args, **kwargs) as value:
                yield value
        finally:
            otel_context.detach(token)

    return wrapper
