"""Spans around the runs of agno and smolagents that last until the run is over, and change nothing of it.

A run that is streamed is a generator, and has hardly begun when it is returned. AgentOps ends its span there, so that
model calls lie beside it; or it hands out an object that is no generator, or a coroutine where the agent awaits none
(``async for`` over agno's ``arun(stream=True)`` then raises TypeError). Here a generator stays a generator, a
coroutine a coroutine; each step runs in the context of the span, and the consumer's context is never touched.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Mapping
from dataclasses import dataclass
from types import AsyncGeneratorType, CoroutineType, GeneratorType, ModuleType
from typing import Any, Final

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.trace import SpanKind, Status, StatusCode

from ...instrumentation.guard import Guard
from ...instrumentation.patch import AttributePatch, Patch

_EFFECT: Final = "a streamed run is one span to its end, and stays what it is without AgentOps"

_AGNO: Final[Mapping[str, tuple[str, str]]] = {
    "create_streaming_agent_wrapper": ("agno.agent.run.agent", "get_agent_run_attributes"),
    "create_streaming_agent_async_wrapper": ("agno.agent.run.agent", "get_agent_run_attributes"),
    "create_streaming_workflow_wrapper": ("agno.workflow.run.workflow", "get_workflow_run_attributes"),
    "create_streaming_workflow_async_wrapper": ("agno.workflow.run.workflow", "get_workflow_run_attributes"),
    "create_team_wrapper": ("agno.team.run.workflow", "get_team_run_attributes"),
    "create_team_async_wrapper": ("agno.team.run.workflow", "get_team_run_attributes"),
}
"""What makes a wrapper → the name of its spans, and what reads their attributes off a call."""


def lasting_runs(name: str, module: ModuleType, guard: Guard) -> list[Patch]:
    """Replace what makes AgentOps' wrappers of runs, before it wraps anything.

    Args:
        name: The framework.
        module: AgentOps' module with its instrumentor.
        guard: Where exceptions of what reads attributes go.
    """
    if name == "agno":
        return [
            AttributePatch(module, maker, functools.partial(_agno, module, what, guard), _EFFECT)
            for maker, what in _AGNO.items()
            if maker in vars(module) and what[1] in vars(module)
        ]
    if name == "smolagents":
        owner: Any = module.SmolagentsInstrumentor
        return [
            AttributePatch(owner, maker, functools.partial(replacement, module, guard), _EFFECT)
            for maker, replacement in (
                ("_agent_run_wrapper", _smolagents),
                ("_llm_wrapper", _smolagents_model),
            )
            if maker in vars(owner)
        ]
    return []


@dataclass(frozen=True)
class _SpannedCall:
    """A call of a framework that gets a span, and how the span is described."""

    tracer: Any
    name: str
    kind: SpanKind
    describe: Callable[[Any], dict[str, Any]]
    """Reads attributes off the call, and off its result where there is one."""
    guard: Guard


def _agno(module: Any, what: tuple[str, str], guard: Guard, original: Any, patch: Patch) -> Any:
    def make(tracer: Any, contexts: Any) -> Any:
        theirs = original(tracer, contexts)
        if not patch.active:
            return theirs

        def wrapper(wrapped: Any, instance: Any, args: Any, kwargs: Any) -> Any:
            if wrapped.__name__ == "print_response":  # it runs the team by ``run``, which has its span
                return wrapped(*args, **kwargs)
            name = getattr(instance, "name", None)
            read = getattr(module, what[1])
            call = _SpannedCall(
                tracer,
                f"{name}.{what[0]}" if name else what[0],
                SpanKind.INTERNAL,
                lambda result: read(args=(instance, *args), kwargs=kwargs, return_value=result),
                guard,
            )
            return _spanned(call, wrapped, args, kwargs)

        return wrapper

    return make


def _smolagents(module: Any, guard: Guard, original: Any, patch: Patch) -> Any:
    def make(instrumentor: Any, tracer: Any) -> Any:
        if not patch.active:
            return original(instrumentor, tracer)

        def wrapper(wrapped: Any, instance: Any, args: Any, kwargs: Any) -> Any:
            def describe(result: Any) -> dict[str, Any]:
                if result is not None:
                    return {"agentops.entity.output": str(result)}
                found: dict[str, Any] = module.get_agent_attributes(args=(instance, *args), kwargs=kwargs)
                return found

            name = getattr(instance, "name", None) or type(instance).__name__
            call = _SpannedCall(tracer, f"{name}.run", SpanKind.CLIENT, describe, guard)
            return _spanned(call, wrapped, args, kwargs)

        return wrapper

    return make


def _smolagents_model(module: Any, guard: Guard, original: Any, patch: Patch) -> Any:
    def make(instrumentor: Any, tracer: Any) -> Any:
        if not patch.active:
            return original(instrumentor, tracer)

        def wrapper(wrapped: Any, instance: Any, args: Any, kwargs: Any) -> Any:
            model = getattr(instance, "model_id", "unknown")

            def describe(result: Any) -> dict[str, Any]:
                if result is not None:
                    return {"gen_ai.completion.0.content": getattr(result, "content", None)}
                found: dict[str, Any] = module.get_model_attributes(args=(instance, *args), kwargs=kwargs)
                return {**found, "gen_ai.operation.name": "chat", "gen_ai.request.model": model}

            call = _SpannedCall(
                tracer, f"litellm.{wrapped.__name__} ({model})", SpanKind.CLIENT, describe, guard
            )
            return _spanned(call, wrapped, args, kwargs)

        return wrapper

    return make


# ---------------------------------------------------------------------- a span for as long as it runs


class _Running:
    """The span of a run, and the context in which the run's own code is executed.

    The context is attached for one step at a time and detached before the consumer gets the item: a context that stayed
    attached would become the parent of whatever the consumer does between two items.
    """

    def __init__(self, call: _SpannedCall) -> None:
        self._call = call
        self._span = call.tracer.start_span(call.name, kind=call.kind, attributes=self._read(None))
        self._context = trace.set_span_in_context(self._span)

    def _read(self, result: Any) -> dict[str, Any]:
        with self._call.guard("reading attributes as AgentOps does"):
            return {key: value for key, value in self._call.describe(result).items() if value is not None}
        return {}

    def run(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        token = otel_context.attach(self._context)
        try:
            return function(*args, **kwargs)
        finally:
            otel_context.detach(token)

    async def run_async(self, step: Any) -> Any:
        token = otel_context.attach(self._context)
        try:
            return await step
        finally:
            otel_context.detach(token)

    def returned(self, result: Any) -> None:
        for key, value in self._read(result).items() if result is not None else ():
            self._span.set_attribute(key, value)
        self._span.set_status(Status(StatusCode.OK))
        self.end()

    def raised(self, error: BaseException) -> None:
        if isinstance(error, Exception):
            self._span.record_exception(error)
            self._span.set_status(Status(StatusCode.ERROR, str(error)))
        self.end()

    def end(self) -> None:
        if self._span.is_recording():
            self._span.end()


def _spanned(call: _SpannedCall, wrapped: Any, args: Any, kwargs: Any) -> Any:
    """Call ``wrapped``; the span ends when what it returns has come to its end, or is thrown away."""
    running = _Running(call)
    try:
        result = running.run(wrapped, *args, **kwargs)
    except BaseException as error:
        running.raised(error)
        raise
    follow = {GeneratorType: _steps, AsyncGeneratorType: _async_steps, CoroutineType: _outcome}.get(
        type(result)
    )
    if follow is None:
        running.returned(result)
        return result
    followed: Any = follow(running, result)
    # A generator that is collected before its first step runs none of its code, so no ``finally`` of it ends the span.
    thrown_away: Any = weakref.finalize(followed, running.end)
    thrown_away.atexit = False
    return followed


def _steps(running: _Running, inner: Any) -> Generator[Any, Any, Any]:
    step = functools.partial(next, inner)
    try:
        while True:
            try:
                item = running.run(step)
            except StopIteration as end:
                running.returned(None)
                return end.value
            try:
                step = functools.partial(inner.send, (yield item))
            except GeneratorExit:
                running.run(inner.close)
                raise
            except BaseException as error:  # noqa: BLE001 - it is thrown into the run, as it would be without us
                step = functools.partial(inner.throw, error)
    except BaseException as error:
        running.raised(error)
        raise


async def _async_steps(running: _Running, inner: Any) -> AsyncGenerator[Any, Any]:
    step = functools.partial(inner.__anext__)
    try:
        while True:
            try:
                item = await running.run_async(step())
            except StopAsyncIteration:
                running.returned(None)
                return
            try:
                step = functools.partial(inner.asend, (yield item))
            except GeneratorExit:
                await running.run_async(inner.aclose())
                raise
            except BaseException as error:  # noqa: BLE001 - as above
                step = functools.partial(inner.athrow, error)
    except BaseException as error:
        running.raised(error)
        raise


async def _outcome(running: _Running, inner: Coroutine[Any, Any, Any]) -> Any:
    try:
        result = await running.run_async(inner)
    except BaseException as error:
        running.raised(error)
        raise
    running.returned(result)
    return result
