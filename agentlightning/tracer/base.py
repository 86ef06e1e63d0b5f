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
from os import PathLike
from typing import TYPE_CHECKING, Any, ParamSpec, Self, TypeVar, overload

from opentelemetry import context as otel_context

from ..errors import ActiveTracerError
from ..store.base import UNSET, Unset, awaited_store
from ..store.registry import open_store
from ..types.parallel import ParallelWorkerBase
from .contexts import TraceContext
from .rollouts import RolloutContext, rollout_context, rollout_metadata, sealing_of

if TYPE_CHECKING:
    from ..store.base import LightningStore, SyncStore
    from ..store.sealing import Sealing
    from ..types import (
        Attributes,
        RolloutConfig,
        RolloutMode,
        Span,
        SpanCoreFields,
        SpanRecordingContext,
        TaskInput,
        TraceStatus,
    )

P = ParamSpec("P")
T = TypeVar("T")

_ACTIVE_KEY = otel_context.create_key("agentlightning-active-tracer")


class Tracer(ParallelWorkerBase):
    """Records what an agent does while it works on an attempt.

    ``init`` → ``init_worker(worker_id, store)`` → ``trace_context`` … → ``teardown_worker`` → ``teardown``.
    """

    _store: LightningStore | None = None

    def init_worker(self, worker_id: int, store: LightningStore | SyncStore | None = None) -> None:
        """Prepare this process for tracing into ``store``."""
        super().init_worker(worker_id)
        self._store = None if store is None else awaited_store(store)

    def trace_context(
        self,
        name: str | None = None,
        *,
        store: LightningStore | SyncStore | None = None,
        rollout_id: str | None = None,
        attempt_id: str | None = None,
    ) -> TraceContext:
        """Record everything inside under one attempt; for ``with`` and ``async with``."""
        raise NotImplementedError(f"{type(self).__name__} has no trace_context")

    @overload
    def rollout(self, task: Callable[P, T], /) -> Callable[P, T]: ...
    @overload
    def rollout(
        self,
        task: TaskInput | Unset = UNSET,
        *,
        name: str | None = None,
        group: str | None = None,
        mode: RolloutMode | None = None,
        resources_id: str | None = None,
        config: RolloutConfig | None = None,
        metadata: dict[str, Any] | None = None,
        store: LightningStore | SyncStore | None = None,
        seal: bool | Sealing = False,
        rollout_id: str | None = None,
    ) -> RolloutContext: ...
    def rollout(
        self,
        task: TaskInput | Unset = UNSET,
        *,
        name: str | None = None,
        group: str | None = None,
        mode: RolloutMode | None = None,
        resources_id: str | None = None,
        config: RolloutConfig | None = None,
        metadata: dict[str, Any] | None = None,
        store: LightningStore | SyncStore | None = None,
        seal: bool | Sealing = False,
        rollout_id: str | None = None,
    ) -> Any:
        """Record one rollout with one attempt: a ``with`` or ``async with`` block, or each call of a function.

        ``with tracer.rollout(task) as rollout:``, ``async with tracer.rollout(task) as rollout:``, ``@tracer.rollout``,
        ``@tracer.rollout(group="7", mode="train")``. The rollout is started in the store, what starts inside is
        recorded under its attempt (see :meth:`trace_context`), and its status says how the body was left:

        * ``succeeded`` at its end, by ``return``, ``break`` or ``sys.exit()`` with code 0, and where the reader of a
          generator stops early;
        * ``failed`` by an exception, which is not swallowed, and by ``sys.exit`` with another code. Where ``config``
          allows a retry, the rollout is queued again;
        * ``cancelled`` where its task, or the one that reads a generator, is cancelled, by ``KeyboardInterrupt``, and
          where the iterator or awaitable that a plain function has returned is never used.

        A status that was set meanwhile by other code is kept, and an attempt that the store has given up, or after
        which another one has begun, cancels no rollout. Rollouts that run when recording ends keep their status.

        The functions that it decorates may be plain ones, coroutines, generators and asynchronous generators, and
        plain ones that return one of these, a task or a future: the rollout then ends with what they return. One that
        is never done, and that everybody has forgotten, is ``cancelled``. The rollout of a generator begins with its
        first step. Where a plain function returns an awaitable of another kind, the rollout ends before that is
        awaited, and a warning says so. A decorated function may be defined before ``init_worker``.

        Args:
            task: What the rollout is about: its ``input``. Default: of a function, its only argument, or its arguments
                by name, without ``self``; of what JSON cannot say, the type alone. Of a block: its name.
            name: Name of the root span, and in listings; default: the function's, else ``rollout``.
            group: Rollouts of one group are each other's baseline; it is kept as ``metadata["group_id"]``.
            mode: What it is for: ``train``, ``val`` or ``test``.
            resources_id: What it runs with; default: the latest resources, if there are any.
            config: How long an attempt may take, and when it is tried again.
            metadata: Whatever else is to be known of it.
            store: Default: the store of ``init_worker``. Without any, spans are kept in memory.
            seal: Whether an attempt that has succeeded is sealed, or refused with the reasons, before the next line:
                ``TraceHandle.sealed``. ``Sealing(reward="optional")`` says what it needs for that, as
                ``agentlightning.training.wait_sealed`` does.
            rollout_id: Its id, where you have one; default: a new one.

        Returns:
            A context manager that yields a ``TraceHandle``: ``rollout_id``, ``attempt_id``, ``reward()``, ``spans()``,
            ``rows()`` and ``sealed``. It is also a decorator.

        Raises:
            InvalidArgument, ResourcesNotFound, RolloutExists: When the block begins, of what was given here. What else
                a store raises keeps no agent from its work (see :meth:`trace_context`), unless ``seal`` says that its
                rows are what the rollout is for.
            ContextArgumentsError: ``group`` and ``metadata`` name different groups, a block begins twice, or there is
                ``seal`` and no store, or a plain ``with`` in an event loop, which must not wait for it.
            TracerNotReady: A block begins before ``init_worker``.
        """
        start = {"mode": mode, "resources_id": resources_id, "config": config, "rollout_id": rollout_id}
        sealing = sealing_of(seal)

        def opened(about: TaskInput | Unset, of_function: str | None) -> TraceContext:
            named = name or of_function
            given: dict[str, Any] = {key: value for key, value in start.items() if value is not None}
            kept = rollout_metadata(metadata, group, named)
            if kept:
                given["metadata"] = kept
            given["input"] = {"name": named or "rollout"} if about is UNSET else about
            own = None if store is None else awaited_store(store)
            return self._new_rollout(named or "rollout", own, given, sealing)

        return rollout_context(opened, task)

    def _new_rollout(
        self, name: str, store: LightningStore | None, start: dict[str, Any], sealing: Sealing | None
    ) -> TraceContext:
        """Return the context of one rollout, which is started when it is entered.

        Args:
            name: Name of its root span.
            store: Default: the store of ``init_worker``.
            start: Arguments for ``start_rollout``.
            sealing: How it is sealed at its end; ``None``: it is not.
        """
        raise NotImplementedError(f"{type(self).__name__} has no rollout")

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
    def lifespan(
        self, store: LightningStore | SyncStore | str | PathLike[str] | None = None
    ) -> Iterator[Self]:
        """``init`` and ``init_worker(0, store)`` around the body, torn down after it.

        Args:
            store: Where spans go; of a URL or a path, the store is opened here and closed at the end. ``None``:
                nowhere, spans are kept in memory.
        """
        if isinstance(store, (str, PathLike)):
            with open_store(store) as opened, self.lifespan(opened):
                yield self
            return
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
