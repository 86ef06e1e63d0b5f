"""Which attempt a span belongs to.

The order: ids that the span carries as attributes; the generator at work that has opened a ``trace_context`` (see
``tracer.generators``); a scope in the OpenTelemetry context that the span starts in (the parent, if it was started
inside the same ``trace_context``, has the same one); the trace of a parent that was started inside a
``trace_context``; ids in the context's baggage, sent by another process, where the user accepts them and no
``trace_context`` is open around them; the fallback attempt, if the user named one.

No guess is made: where none of these says it, the span belongs to no attempt.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ..recorder.recent_scopes import Ids, RecentScopes
from ..recorder.scope import (
    ROLLOUT_KEY,
    current_scope,
    current_worker,
    ids_among,
    ids_in_baggage,
    is_inside_any,
    scope_in,
)
from .generators import Generators, waits_at_yield

if TYPE_CHECKING:
    from types import FrameType

    from opentelemetry import context as otel_context
    from opentelemetry.sdk.trace import Span as SdkSpan

    from ..recorder.scope import Scope
    from ..store.base import LightningStore

TRACES_REMEMBERED = 1024
REMOTE_SCOPES = 1000
"""Attempts that are known by their ids only, at a time; whoever sends baggage can invent ids."""

NewScope = Callable[["LightningStore | None", str, str], "Scope"]


class Routing:
    """Where spans of one recorder belong.

    Args:
        new_scope: Makes the scope of an attempt that is known by its ids only.
        close_scope: Called with such a scope when it is forgotten.
        accept_context: Whether ids in incoming baggage choose the attempt of a span that starts outside of every
            ``trace_context``.
    """

    def __init__(
        self, new_scope: NewScope, close_scope: Callable[[Scope], None], *, accept_context: bool = False
    ) -> None:
        self.accept_context = accept_context
        self.fallback: Scope | None = None
        """Where spans belong that start outside of every ``trace_context``; ``None``: nowhere."""
        self.default_store: LightningStore | None = None
        """Store for attempts that are known by their ids only (baggage, attributes)."""
        self._new_scope = new_scope
        self._generators = Generators()
        self._traces: OrderedDict[int, Scope | None] = OrderedDict()
        self._named_by_ids = RecentScopes(REMOTE_SCOPES, self._new_scope_by_ids, close_scope)

    def opened(self, scope: Scope, frame: FrameType | None) -> None:
        """Note that a ``trace_context`` has been entered in a frame."""
        self._generators.opened(scope, frame)

    def goes_on_in(self, scope: Scope, frame: FrameType) -> None:
        """Note that a ``trace_context`` is current only while this frame runs, in a context that nothing else has."""
        self._generators.goes_on_in(scope, frame)

    def closed(self, scope: Scope) -> None:
        """Note that a ``trace_context`` is over, or rests."""
        self._generators.closed(scope)

    def remember_trace(self, trace_id: int, scope: Scope) -> None:
        """Let spans whose parent is in this trace find the scope without a context that carries it.

        A trace id that two scopes have (a program that seeds its ids) names neither.
        """
        if self._traces.setdefault(trace_id, scope) is not scope:  # one step, whatever threads open contexts
            self._traces[trace_id] = None
        while len(self._traces) > TRACES_REMEMBERED:
            self._traces.popitem(last=False)

    def route(
        self,
        span: SdkSpan,
        attributes: Mapping[str, Any],
        context: otel_context.Context,
        scope: Scope | None,
    ) -> tuple[Scope | None, Scope | None]:
        """Return the scope of a span; where it has none, the closed one that it is late of, if there is one.

        Args:
            span: It.
            attributes: Those that it starts with.
            context: The context that it starts in.
            scope: What that context carries.
        """
        # From the surest evidence to the weakest; the first that says anything decides (see the module's docstring).
        if ROLLOUT_KEY in attributes:
            ids = ids_among(attributes)
            if ids is not None:
                return self._scope_for(*ids, context), None
        if self._generators.scopes and scope is current_scope():  # nobody has named another context
            scope, is_known = self.scope_at_work()
            if not is_known:
                return None, None
        if scope is None and span.parent is not None:
            scope = self._traces.get(span.parent.trace_id)
        if scope is not None:
            return (None, scope) if scope.closed else (scope, None)
        # Inside of a trace_context, also of a closed one, baggage is what the agent sends and not what it was sent.
        ids = ids_in_baggage(context) if self.accept_context and not is_inside_any() else None
        scope = None if ids is None else self._scope_for(*ids, context)
        return (scope if scope is not None else self.fallback), None

    def begin_job(self) -> None:
        """Note that what runs here was handed on by another process, wherever this one was forked."""
        if self._generators.scopes:
            self._generators.forget_inherited()

    def scope_at_work(self) -> tuple[Scope | None, bool]:
        """Return the scope of the code that runs here, and whether that is known.

        It is not where the current scope was opened by a generator that is not at work.
        """
        scope = current_scope()
        at_work = self._generators.at_work() if self._generators.scopes else None
        if at_work is not None:
            return (scope if _is_open_inside(scope, at_work) else at_work), True
        if self._generators.scopes and scope is not None and _is_another_at_work(scope):
            return None, False
        return scope, True

    def _scope_for(self, rollout_id: str, attempt_id: str, context: otel_context.Context) -> Scope | None:
        for known in (scope_in(context), self.fallback):
            if known is not None and (known.rollout_id, known.attempt_id) == (rollout_id, attempt_id):
                return known
        return None if self.default_store is None else self._named_by_ids.get((rollout_id, attempt_id))

    def _new_scope_by_ids(self, ids: Ids) -> Scope:
        scope = self._new_scope(self.default_store, *ids)
        scope.standing.named_by_ids = True
        scope.trace.spans = None
        return scope


def _is_open_inside(scope: Scope | None, at_work: Scope) -> bool:
    """Whether a scope was opened by what a generator at work has called, so that it is the inner one."""
    if scope is None or scope.closed or scope.body.opened_inside is not at_work:
        return False
    return scope.body.generator is None or not waits_at_yield(scope.body.generator)


def _is_another_at_work(scope: Scope) -> bool:
    """Whether a scope that is current says nothing, because its generator is not at work here."""
    if scope.body.generator is None or scope.body.is_apart:
        return False
    return waits_at_yield(scope.body.generator) or (
        scope.body.is_mixed and scope.body.opened_by is not current_worker()
    )
