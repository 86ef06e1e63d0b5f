"""Annotations: facts about a moment of a rollout; operations: a piece of the agent's own work as a span.

``operation`` decorates functions, coroutines and generators of both kinds, and serves as a context manager.
It looks for the active tracer when the work begins, not when the module is imported. Inputs and outputs are
recorded as flat attributes; a value that cannot be recorded costs itself, never the call.
"""

from __future__ import annotations

import contextvars
import functools
import inspect
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from types import FrameType, NoneType, TracebackType
from typing import Any, Self, TypeVar, cast, overload

from opentelemetry import context as otel_context

from ..codec.attributes import flatten_attributes, sanitize_attributes
from ..env_var import LightningEnvVar, resolve_bool_env_var
from ..semconv import AGL_ANNOTATION, AGL_OPERATION, LightningSpanAttributes
from ..tracer.dummy import DummySpanRecordingContext, DummyTracer
from ..tracer.steps import Steps, async_generator, generator, raised
from ..types import SpanCoreFields, SpanRecordingContext, TraceStatus
from .provider import guard, tracer_in_use

logger = logging.getLogger(__name__)

FnType = TypeVar("FnType", bound=Callable[..., Any])
T = TypeVar("T")
Observer = Callable[[SpanRecordingContext, Any], None]
"""Called with the recording and what the wrapped function returned."""

VAR_POSITIONAL = inspect.Parameter.VAR_POSITIONAL
_NAME = LightningSpanAttributes.OPERATION_NAME.value
_INPUT = LightningSpanAttributes.OPERATION_INPUT.value
_OUTPUT = LightningSpanAttributes.OPERATION_OUTPUT.value


def emit_annotation(annotation: dict[str, Any], propagate: bool = True) -> SpanCoreFields:
    """Record a span ``agentlightning.annotation`` with these attributes; nested values are flattened.

    Args:
        annotation: Attribute name → value. Values that OpenTelemetry does not take become JSON text.
        propagate: Whether the tracer records it; without, the span is only returned.

    Raises:
        TypeError: ``annotation`` is not a mapping.
    """
    return record_span(AGL_ANNOTATION, to_flat(annotation, "annotation"), propagate=propagate)


def to_flat(attributes: Mapping[str, Any] | None, noun: str = "attributes") -> dict[str, Any]:
    """Return nested attributes flat and in a form that OpenTelemetry takes.

    Raises:
        TypeError: ``attributes`` is neither a mapping nor ``None``.
    """
    if attributes is None:
        return {}
    if not isinstance(attributes, Mapping):
        raise TypeError(f"{noun} must be a dict, got {type(attributes).__name__}")
    try:
        return sanitize_attributes(flatten_attributes(dict(attributes)))
    except ValueError:  # a key that is no string, or a cycle
        # Flat then, with nested values as JSON text: less can be searched, and nothing is lost.
        return sanitize_attributes({str(key): value for key, value in attributes.items()})


def record_span(
    name: str, attributes: dict[str, Any], *, propagate: bool, status: TraceStatus | None = None
) -> SpanCoreFields:
    """Record a span of one moment through the tracer in use; a tracer that fails costs a log line."""
    status = status or TraceStatus(status_code="OK")
    _debug(name, attributes)
    with guard("emitting a span"):
        return tracer_in_use(propagate).create_span(name, attributes, status=status)
    # The caller gets its span all the same, since emitters promise one.
    return DummyTracer().create_span(name, attributes, status=status)


def _debug(name: str, attributes: Mapping[str, Any]) -> None:
    try:
        wanted = resolve_bool_env_var(LightningEnvVar.AGL_EMITTER_DEBUG, fallback=False)
    except ValueError:  # a typo in the environment is no reason to stop an agent
        wanted = False
    if wanted:
        logger.debug("emitting %s with attributes %s", name, sorted(attributes))


class _Entry:
    """One ``with`` block of an operation: its span, until the block is left. Compared by identity."""

    def __init__(
        self, context: AbstractContextManager[SpanRecordingContext], recording: SpanRecordingContext
    ) -> None:
        self.context, self.recording = context, recording


_entered: contextvars.ContextVar[tuple[_Entry, ...]] = contextvars.ContextVar(
    "agentlightning_operations", default=()
)
"""The blocks of all operations that this context is in, innermost last. One variable for all: a variable of each object
would never be freed. Tasks inherit the tuple, and it may hold blocks that were left since."""


class OperationContext:
    """One operation as a span: a context manager, and a decorator that makes one span per call.

    As a context manager it may be entered by several threads and tasks at once, and inside of itself: each entry makes
    a span of its own, and ``set_input`` and ``set_output`` mean the block in which they are called.
    """

    def __init__(self, name: str, attributes: dict[str, Any], propagate: bool = True) -> None:
        self.name = name
        self.initial_attributes = to_flat(attributes)
        self.propagate = propagate
        self._open: list[_Entry] = []
        self._span: SpanCoreFields | None = None

    def __enter__(self) -> Self:
        context = recording_of(self.name, self.initial_attributes, propagate=self.propagate)
        entry = _Entry(context, context.__enter__())
        self._open.append(entry)
        _entered.set((*_entered.get(), entry))
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        # A generator may be closed in a context other than that in which it entered: then one of those that are open
        # ends, so that none stays open for ever.
        entry = self._innermost() or (self._open[-1] if self._open else None)
        if entry is None:
            return
        # Before the span is ended: whatever that raises, the entry is over.
        self._open.remove(entry)
        _entered.set(tuple(each for each in _entered.get() if each is not entry))
        try:
            entry.context.__exit__(exc_type, exc, tb)
        finally:
            self._span = entry.recording.get_recorded_span()

    def _innermost(self) -> _Entry | None:
        """Return the entry that the caller is in, or ``None`` where that cannot be told."""
        open_here = [entry for entry in _entered.get() if entry in self._open]
        if open_here:
            return open_here[-1]
        # A thread of an executor has not inherited the context; where one entry is open, that one is meant.
        return self._open[0] if len(self._open) == 1 else None

    def span(self) -> SpanCoreFields:
        """Return the span of the last time that this context was left, by whichever thread or task.

        Raises:
            RuntimeError: It was never left.
        """
        if self._span is None:
            raise RuntimeError("the operation has not ended yet; ask for its span after the with block")
        return self._span

    def set_input(self, *args: Any, **kwargs: Any) -> None:
        """Record ``…input.args.<i>`` and ``…input.<name>``.

        Raises:
            RuntimeError: Outside of the ``with`` block.
        """
        recording = self._inside("set_input")
        record(recording, _INPUT, {**({"args": _by_index(args)} if args else {}), **kwargs})

    def set_output(self, output: Any) -> None:
        """Record ``…output``.

        Raises:
            RuntimeError: Outside of the ``with`` block.
        """
        record(self._inside("set_output"), _OUTPUT, output)

    def _inside(self, method: str) -> SpanRecordingContext:
        entry = self._innermost()
        if entry is not None:
            return entry.recording
        if not self._open:
            raise RuntimeError(f"{method}() works inside the with block of the operation")
        # No reason to stop an agent, and none to guess: what is recorded on the wrong span is worse than what is lost.
        logger.warning(
            "%s() of an operation is called outside of its with block while several of them are open: not recorded. "
            "Call it in the block, or carry the context over (contextvars.copy_context().run)",
            method,
        )
        return DummySpanRecordingContext(self.name)

    def __call__(self, fn: FnType) -> FnType:
        """Return ``fn``, which then makes a span of each call with its arguments and its result."""
        return traced(
            fn, self.name, {_NAME: _name_of(fn), **self.initial_attributes}, propagate=self.propagate
        )


def _name_of(fn: Callable[..., Any]) -> str:
    return getattr(fn, "__name__", type(fn).__name__)


@overload
def operation(
    fn: FnType, *, propagate: bool = True, name: str | None = None, **additional_attributes: Any
) -> FnType: ...
@overload
def operation(
    fn: None = None, *, propagate: bool = True, name: str | None = None, **additional_attributes: Any
) -> OperationContext: ...
def operation(
    fn: FnType | None = None,
    *,
    propagate: bool = True,
    name: str | None = None,
    **additional_attributes: Any,
) -> FnType | OperationContext:
    """Make spans ``agentlightning.operation`` of a function's calls, or of a ``with`` block.

    ``@operation``, ``@operation(name="search", kind="tool")``, ``with operation(name="search") as op:``.

    Args:
        fn: The function, where it is used as a bare decorator.
        propagate: Whether the tracer records it; without, ``OperationContext.span()`` is all there is.
        name: ``agentlightning.operation.name``; default: the function's name.
        **additional_attributes: Further attributes; nested values are flattened.

    Raises:
        ValueError: The name is given twice, or ``fn`` is not callable.
    """
    if name is not None:
        if _NAME in additional_attributes:
            raise ValueError(f"give the name either as name= or as {_NAME}, not as both")
        additional_attributes[_NAME] = name
    if not isinstance(fn, (Callable, classmethod, NoneType)):  # type: ignore[arg-type]
        noun = type(fn).__name__
        raise ValueError(f"operation() takes a function or keyword arguments, got {noun}")  # noqa: TRY004 - 0.3's
    context = OperationContext(AGL_OPERATION, additional_attributes, propagate=propagate)
    return context if fn is None else context(fn)


# ---------------------------------------------------------------------- recording


@contextmanager
def recording_of(name: str, attributes: dict[str, Any], *, propagate: bool) -> Iterator[SpanRecordingContext]:
    """Record the body as one span; where the tracer fails to begin or end it, the body runs all the same."""
    _debug(name, attributes)
    context, recording = _begin(name, attributes, propagate=propagate)
    try:
        yield recording
    except BaseException as exception:
        _leave(context, exception)
        raise
    _leave(context, None)


def _begin(
    name: str, attributes: dict[str, Any], *, propagate: bool
) -> tuple[AbstractContextManager[SpanRecordingContext], SpanRecordingContext]:
    with guard("beginning an operation"):
        context = tracer_in_use(propagate).operation_context(name, attributes)
        return context, context.__enter__()
    forgotten = DummyTracer().operation_context(name, attributes)
    return forgotten, forgotten.__enter__()


def _leave(context: AbstractContextManager[SpanRecordingContext], exception: BaseException | None) -> None:
    kind, trace = (None, None) if exception is None else (type(exception), exception.__traceback__)
    try:
        context.__exit__(kind, exception, trace)
    except BaseException as raised:
        if raised is exception:
            return  # the caller raises it
        with guard("ending an operation"):
            raise


def record(recording: SpanRecordingContext, prefix: str, value: Any) -> None:
    """Record ``value`` under ``prefix``, flattened where it is nested; never raises."""
    with guard(f"recording {prefix}"):
        recording.record_attributes(to_flat({prefix: value}))


def _record_output(recording: SpanRecordingContext, result: Any) -> None:
    record(recording, _OUTPUT, result)


def _record_input(
    recording: SpanRecordingContext,
    signature: inspect.Signature | None,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> None:
    arguments: dict[str, Any] = {**({"args": _by_index(args)} if args else {}), **kwargs}
    if signature is not None:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError:  # the call itself is about to raise it
            pass
        else:
            # What was not given is recorded as well: it is what the function has worked with.
            bound.apply_defaults()
            arguments = {
                name: _by_index(value) if signature.parameters[name].kind is VAR_POSITIONAL else value
                for name, value in bound.arguments.items()
            }
    for name, value in _without_instance(arguments).items():
        # One by one: an argument that cannot be recorded does not take the others along.
        record(recording, f"{_INPUT}.{name}", value)


def _by_index(args: tuple[Any, ...]) -> dict[str, Any]:
    return {str(index): value for index, value in enumerate(args)}


def _without_instance(arguments: dict[str, Any]) -> dict[str, Any]:
    """Leave out ``self`` and ``cls``: their repr says nothing of the call and may hold a client's key."""
    first = next(iter(arguments), "")
    return {name: value for name, value in arguments.items() if name != first or name not in {"self", "cls"}}


# ---------------------------------------------------------------------- decorated functions


_step_ended: contextvars.ContextVar[None] = contextvars.ContextVar(
    "agentlightning_step_of_generator", default=None
)
"""Set at the end of each step of a generator: only in the same context does it let itself be reset before the next."""


class _Steps(Steps):
    """The steps of a generator, whose span is current only while it runs, and not while it waits for its consumer.

    The span is begun and ended inside a copy of the context: a generator may be continued from several
    contexts and closed from yet another, where a context token of the first would be refused.
    """

    def __init__(self, recorded: AbstractContextManager[SpanRecordingContext], observe: Observer) -> None:
        self._recorded = recorded
        self._observe = observe
        self._context = contextvars.copy_context()

    def begin(self, frame: FrameType) -> None:
        """Begin the span."""
        del frame
        self._recording = self._context.run(self._recorded.__enter__)
        # The context with this span as the current one, to be put in force for the first step.
        self._begun = self._inside = self._context.run(otel_context.get_current)
        self._step: contextvars.Token[None] | None = None

    def run(self, step: Callable[..., T], *args: Any) -> T:
        """Take a step; of what its driver has in the context, only OpenTelemetry's own is another one.

        What the body has made current, as a span or a rollout of its own, is current again in its next step. Where
        that is taken in another context (a task for each step, as ``asyncio.wait_for`` makes before 3.12), the body
        could not take it back there, and what is current is the generator's own span.
        """
        last, self._step = self._step, None
        if last is not None:
            try:
                _step_ended.reset(last)
            except (ValueError, RuntimeError):  # of another context; or reset by another thread a moment ago
                self._inside = self._begun
        token = otel_context.attach(self._inside)
        try:
            return step(*args)
        finally:
            self._inside = otel_context.get_current()
            otel_context.detach(token)
            self._step = _step_ended.set(None)

    def returned(self, result: Any) -> None:
        """Take note of what the generator has returned."""
        self._observe(self._recording, result)

    def end(self, error: BaseException | None) -> None:
        """End the span."""
        if isinstance(error, GeneratorExit):  # a consumer that stops early is no error
            error = None
        self._context.run(self._recorded.__exit__, *raised(error))


Recorder = Callable[[tuple[Any, ...], dict[str, Any]], AbstractContextManager[SpanRecordingContext]]
"""Arguments of one call → the recording of that call."""


def traced(
    fn: FnType,
    name: str,
    attributes: dict[str, Any],
    *,
    propagate: bool = True,
    observe: Observer = _record_output,
) -> FnType:
    """Return a function of the same kind as ``fn`` that makes one span ``name`` per call.

    A generator's span begins with its first value and ends with its last; while the generator rests, the span
    is not the current one. ``observe`` sees what the function returned.
    """
    if isinstance(fn, (staticmethod, classmethod)):
        # The function behind the descriptor is wrapped, and the descriptor made anew around it.
        inner = traced(fn.__func__, name, attributes, propagate=propagate, observe=observe)
        return type(fn)(inner)
    try:
        signature: inspect.Signature | None = inspect.signature(fn)
    except (TypeError, ValueError):  # builtins without one
        signature = None

    @contextmanager
    def recorded(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[SpanRecordingContext]:
        with recording_of(name, attributes, propagate=propagate) as recording:
            _record_input(recording, signature, args, kwargs)
            yield recording

    # Functions that return a coroutine or a generator without being one are timed until they return it.
    if inspect.isasyncgenfunction(fn):
        return cast("FnType", async_generator(fn, lambda *call: _Steps(recorded(*call), observe)))
    if inspect.isgeneratorfunction(fn):
        return cast("FnType", generator(fn, lambda *call: _Steps(recorded(*call), observe)))
    wrap = _coroutine if inspect.iscoroutinefunction(fn) else _function
    return cast("FnType", wrap(fn, recorded, observe))


def _function(fn: Callable[..., Any], recorded: Recorder, observe: Observer) -> Callable[..., Any]:
    @functools.wraps(fn)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        with recorded(args, kwargs) as recording:
            result = fn(*args, **kwargs)
            observe(recording, result)
            return result

    return wrapper


def _coroutine(fn: Callable[..., Any], recorded: Recorder, observe: Observer) -> Callable[..., Any]:
    @functools.wraps(fn)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        with recorded(args, kwargs) as recording:
            result = await fn(*args, **kwargs)
            observe(recording, result)
            return result

    return wrapper
