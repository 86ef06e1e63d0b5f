"""``OtelTracer``: OpenTelemetry spans of an unmodified agent, under the right attempt, into a store."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import os
import sys
import time
import weakref
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Literal, cast

from opentelemetry import context as otel_context
from opentelemetry import trace

from .. import _lazy, types
from .._garbage import collector_paused
from .._handover import Future
from ..codec.attributes import flatten_attributes, format_exception_attributes, sanitize_attributes
from ..dialects.conventions import conventions_of
from ..dialects.raw_call import Endpoint
from ..env_var import LightningEnvVar, resolve_milliseconds, resolve_setting
from ..errors import (
    ConfigurationError,
    ContextArgumentsError,
    InvalidArgument,
    ResourcesNotFound,
    RolloutEnded,
    RolloutExists,
    SpansNotKept,
    TracerNotReady,
)
from ..instrumentation.guard import Policy
from ..pipeline.chain import NO_STAGES, Chain
from ..pipeline.policy import RedactionPolicy, redaction_policy, stages_of
from ..pipeline.tags import Tagging
from ..recorder.scope import (
    ATTEMPT_KEY,
    ROLLOUT_KEY,
    FinishedSpan,
    Scope,
    context_with_scope,
    current_worker,
    live_context,
)
from ..recorder.settings import WriterSettings
from ..recorder.store_writes import within
from ..semconv import AGL_ANNOTATION, SpanFlagAttributes
from ..store.base import awaited_store
from ..types.attributes import attributes_of, name_of, to_attributes
from ..types.ids import new_attempt_id, new_rollout_id
from .base import context_with_active_tracer
from .contexts import TraceContext
from .endings import Ending, end_attempt, ending_of, error_of
from .event_loops import in_event_loop, wait_for_future
from .generators import waits_at_yield
from .known_endpoints import RESOURCES_TIMEOUT, Endpoints, KnownEndpoints, resource_endpoints
from .opening import Opened, Opening, patience
from .other_processes import RecordingTracer
from .root_task import context_with_task
from .steps import raised
from .workers import (
    SPANS_REMEMBERED,
    let_tasks_end,
    let_threads_end,
    let_workers_end,
    names_of,
    spans_of_living_workers,
)

if TYPE_CHECKING:
    from ..rows.policy import RowPolicy
    from ..rows.sealed import RefusedAttempt, SealedAttempt
    from ..rows.training import RowSet
    from ..store.base import LightningStore, SyncStore
    from ..store.sealing import Sealing
    from ..types import Attributes, Receipt, Rollout, Span, SpanCoreFields, StatusCode, TraceStatus
    from .processor import LightningSpanProcessor
    from .recording import Recording

# 0.3 has it here. It watches what a program imports, so it is loaded when it is asked for.
__getattr__, __dir__, _ = _lazy.attach(
    __name__, {"agentlightning.tracer.processor": ("LightningSpanProcessor",)}
)

_log = logging.getLogger(__name__)

CaptureTokens = Literal["observe", "request"]
SEAL_TIMEOUT = 60.0
"""Seconds that sealing may take beside the wait for spans: reading them, and making rows of them."""
_NS = 1_000_000_000

ONLY_NAMED = (
    "which endpoints the resources of rollout %s name is not known, so only named ones and those on loopback are asked "
    "for token ids: %r"
)
"""What the log is told where a store does not answer."""


class OtelTracer(RecordingTracer):
    """Records OpenTelemetry spans and model calls.

    A tracer is picklable before ``init_worker``: workers that are spawned get it as it was configured.

    Args:
        fallback_attempt: ``(rollout_id, attempt_id)`` for spans that start outside of every ``trace_context``.
            Without it they are kept aside as unattributed.
        capture_tokens: ``observe`` leaves requests and responses as they are; ``request`` asks endpoints on loopback
            and those that are known for token ids, and takes out again what the agent did not ask for. Default:
            ``AGL_CAPTURE_TOKENS``, else ``observe``.
        endpoints: Model endpoints that are known beside the rollout's resources and those of ``AGL_ENDPOINTS``: URLs,
            ``LLM`` resources, or ``Endpoint`` values, one or several. The last two say of which distribution the
            log-probabilities are (``sampling_defaults``, ``logprob_kind``); for those that do not,
            ``AGL_SAMPLING_DEFAULTS`` and ``AGL_LOGPROB_KIND`` do.
        chain: Stages that every span passes before it is stored, such as ``pipeline.redact``.
        max_wait_time: Milliseconds that leaving ``trace_context`` may wait for its spans to be stored. Default:
            ``AGL_MAX_WAIT_TIME``, else 5,000.
        settings: Bounds of the writer.
        policy: What happens to an error of ours inside user code; by default each kind is logged once.
        instrument_llm_calls: Whether model calls are recorded. Without it no HTTP client is touched.
        default_tags: Tags that every span gets, as ``agentlightning.tag.<i>``.
        accept_context: Whether the ids in the baggage of an incoming request choose the attempt of what starts in its
            context, outside of every ``trace_context``. Whoever can reach the agent's server can then name an attempt
            of the store; accept it only where all clients are yours. A process that ``agl run`` starts accepts it.
        span_names: ``0.3`` names model calls as Agent Lightning 0.3 did, ``openai.chat.completion``, and writes its
            attributes beside ours, for programs that look for them; what is read from spans stays the same. It stores
            messages and ids twice. Default: ``AGL_SPAN_NAMES``, else ours alone.
        redaction: Where secrets are masked; ``ingest`` adds a ``Redactor`` of the default rules behind ``chain``.
            Default: ``AGL_REDACTION``, else ``egress``.
        conventions: What other exporters of the same provider see model calls in: ``gen_ai`` (OpenTelemetry's), or
            ``openinference`` beside it. Default: ``AGL_CONVENTIONS``, else ``gen_ai``.

    Raises:
        ConfigurationError: An option or setting has a value that cannot be used; an endpoint is no URL.
    """

    def __init__(
        self,
        *,
        fallback_attempt: tuple[str, str] | None = None,
        capture_tokens: CaptureTokens | None = None,
        endpoints: Endpoints = (),
        chain: Chain = NO_STAGES,
        max_wait_time: float | None = None,
        settings: WriterSettings | None = None,
        policy: Policy | None = None,
        instrument_llm_calls: bool = True,
        default_tags: Sequence[str] = (),
        accept_context: bool = False,
        span_names: str | None = None,
        redaction: RedactionPolicy | str | None = None,
        conventions: str | None = None,
    ) -> None:
        super().__init__()
        self._fallback_attempt = fallback_attempt
        self._accept_context = accept_context
        mode = _capture_mode(capture_tokens)
        self._capture_tokens = mode if instrument_llm_calls else None
        self._writes_0_3 = _writes_names_of_0_3(span_names)
        self._conventions = conventions_of(conventions)
        self._endpoints = KnownEndpoints(endpoints)
        self._redaction = redaction_policy(redaction)
        self._chain = _with_own_stages(chain, default_tags, self._redaction)
        milliseconds = resolve_milliseconds(LightningEnvVar.AGL_MAX_WAIT_TIME, max_wait_time, 5_000)
        self._flush_timeout = milliseconds / 1_000
        self._settings = settings or WriterSettings()
        self._policy = policy
        self._worker: Recording | None = None
        self._last: TraceHandle | None = None
        self._said: set[str] = set()
        """What the log has been told, and is not told again."""

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_worker": None, "_last": None, "_store": None}

    # ------------------------------------------------------------------ life cycle

    def init_worker(self, worker_id: int, store: LightningStore | SyncStore | None = None) -> None:
        """Begin to record in this process; spans that an earlier process left in the spool are sent.

        Raises:
            TracerNotReady: ``init_worker`` was called before without ``teardown_worker``.
        """
        if self._worker is not None:
            raise TracerNotReady("init_worker was called twice; call teardown_worker first")
        super().init_worker(worker_id, store)
        store = self._store
        # Here, because most processes that import the tracer never record: this loads whatever watches a program. A
        # process that is forked while this import is under way on another thread could never do the same import.
        with collector_paused():
            from .recording import Recording
            from .shared_spans import Sharing

            self._worker = Recording(
                self,
                store,
                endpoints=self._endpoints,
                endpoint_for=self.endpoint_for,
                capture_tokens=self._capture_tokens,
                policy=self._policy,
                max_wait=self._flush_timeout,
                # When asking, the rollout's resources are read before its body begins.
                endpoint_of=self._endpoints.of_call if self._capture_tokens == "observe" else None,
                settings=self._settings,
                chain=self._chain,
                accept_context=self._accept_context,
                write_0_3=self._writes_0_3,
                sharing=Sharing(self._conventions, self._chain, self._redaction),
            )
        _say_what_gevent_does()
        if self._fallback_attempt is not None:
            self._worker.processor.routing.fallback = self._worker.processor.new_scope(
                store, *self._fallback_attempt
            )
            if store is not None and self._capture_tokens == "request":
                self._endpoints.of_fallback = self._endpoints_of_fallback(store, self._fallback_attempt[0])

    def _endpoints_of_fallback(self, store: LightningStore, rollout_id: str) -> list[Endpoint]:
        """Learn which endpoints the rollout's resources name, once, before the program calls any."""
        question = self._ready().questions.ask(lambda: resource_endpoints(store, rollout_id))
        try:
            return question.result(patience(RESOURCES_TIMEOUT))
        except Exception as error:  # noqa: BLE001 - a store may raise anything, and the agent has work to do
            _log.warning(ONLY_NAMED, rollout_id, error)
            return []

    def teardown_worker(self, worker_id: int) -> None:
        """Write what is queued and leave the process as it was; a repeat is harmless."""
        super().teardown_worker(worker_id)
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.close()
        self._store = None

    def teardown(self, *args: Any, **kwargs: Any) -> None:
        """Undo ``init``; tears the worker down if that was forgotten."""
        super().teardown(*args, **kwargs)
        if self._worker is not None:
            self.teardown_worker(self.worker_id or 0)
        self._last = None

    @property
    def processor(self) -> LightningSpanProcessor:
        """The span processor of this worker."""
        return self._ready().processor

    def _ready(self) -> Recording:
        if self._worker is None:
            raise TracerNotReady(
                "call init_worker(worker_id, store) before recording, and teardown_worker after it"
            )
        return self._worker

    # ------------------------------------------------------------------ recording

    def trace_context(
        self,
        name: str | None = None,
        *,
        store: LightningStore | SyncStore | None = None,
        rollout_id: str | None = None,
        attempt_id: str | None = None,
    ) -> _TraceContext:
        """Record everything that starts inside under one attempt; for ``with`` and ``async with``.

        The body runs in a new trace whose root span has this ``name`` and links to the span that was current.
        An exception in the body marks the root span ERROR and goes on. Leaving flushes the attempt's spans: after
        it they can be read from the store, or the log says what could not be written within ``max_wait_time``.
        ``with`` inside of a running event loop only starts the flush.

        Args:
            name: Name of the root span; default ``rollout``.
            store: Default: the store of ``init_worker``. Without any store, spans are kept in memory.
            rollout_id: Rollout to record under; goes together with ``attempt_id``.
            attempt_id: Attempt to record under. Without ids, a rollout is started in the store, and it succeeds or
                fails with the body. Where the store does not start it within 5 s, the body runs all the same, under ids
                that the store does not know; its spans are counted as dropped (``no_rollout``), and the log says so.

        Yields:
            A :class:`TraceHandle`.

        Raises:
            ContextArgumentsError: Only one of the ids, or ids without any store.
            TracerNotReady: Before ``init_worker``.
        """
        if (rollout_id is None) != (attempt_id is None):
            raise ContextArgumentsError("give both rollout_id and attempt_id to trace_context, or neither")
        if rollout_id is not None and store is None and self._store is None:
            raise ContextArgumentsError(
                "trace_context has ids but no store: pass store=, or give one to init_worker"
            )
        ids = (rollout_id, attempt_id) if rollout_id is not None and attempt_id is not None else None
        name = name or "rollout"
        own = self._store if store is None else awaited_store(store)
        return _TraceContext(self, self._ready(), name, own, ids or {"input": {"name": name}})

    def _new_rollout(
        self, name: str, store: LightningStore | None, start: dict[str, Any], sealing: Sealing | None
    ) -> _TraceContext:
        own = store or self._store
        if sealing is not None and own is None:
            raise ContextArgumentsError("seal= needs a store: pass store=, or give one to init_worker")
        # Of a rollout whose rows are asked for, whatever a store raises; else what it finds wrong with the arguments.
        refused = (InvalidArgument, ResourcesNotFound, RolloutExists) if sealing is None else (Exception,)
        return _TraceContext(self, self._ready(), name, own, start, refused=refused, sealing=sealing)

    def get_last_trace(self) -> list[Span]:
        """Return the spans of the ``trace_context`` that ended last."""
        return self._last.spans() if self._last is not None else []

    def create_span(
        self,
        name: str,
        attributes: Attributes | None = None,
        timestamp: float | None = None,
        status: TraceStatus | None = None,
    ) -> SpanCoreFields:
        """Record a span that starts and ends at ``timestamp`` (seconds; default now)."""
        moment = time.time() if timestamp is None else timestamp
        kept = sanitize_attributes(to_attributes(attributes))
        status = status or types.TraceStatus(status_code="OK")
        span = self._ready().session.tracer.start_span(name, attributes=kept, start_time=int(moment * _NS))
        span.set_status(_otel_status(status))
        span.end(int(moment * _NS))
        return types.SpanCoreFields(
            name=name, status=status, attributes=kept, start_time=moment, end_time=moment
        )

    @contextmanager
    def operation_context(
        self,
        name: str,
        attributes: Attributes | None = None,
        start_time: float | None = None,
        end_time: float | None = None,
    ) -> Iterator[OtelSpanRecordingContext]:
        """Record the body as one span, current inside; an exception is recorded and goes on."""
        span = self._ready().session.tracer.start_span(
            name,
            attributes=sanitize_attributes(to_attributes(attributes)),
            start_time=None if start_time is None else int(start_time * _NS),
        )
        recording = OtelSpanRecordingContext(span)
        try:
            with trace.use_span(span, record_exception=False, set_status_on_exception=False):
                yield recording
        except BaseException as error:
            recording.record_exception(error)
            raise
        finally:
            span.end(None if end_time is None else int(end_time * _NS))

    def _say_that_nobody_waits(self) -> None:
        if "nobody waits" not in self._said:
            self._said.add("nobody waits")
            _log.warning(
                "a 'with' block of a rollout that ends in a running event loop (a coroutine, a notebook) does not wait "
                "until its spans are stored; 'async with', and the end of lifespan, do"
            )

    def _say_that_workers_live_on(self, rollout_id: str, names: list[str]) -> None:
        if "workers live on" not in self._said:
            self._said.add("workers live on")
            _log.warning(
                "%s lived longer than rollout %s that started it, and made calls while other rollouts were open; such "
                "calls are in no row: end workers inside of the trace_context, or start them before the first rollout "
                "and open a trace_context around each item",
                ", ".join(names),
                rollout_id,
            )

    def endpoint_for(self, url: str, model: str | None = None) -> Endpoint | None:
        """Return what is known of the endpoint that a request goes to, or ``None``; see ``tracer.known_endpoints``."""
        return self._endpoints.find(url, model)


class TraceHandle(trace.Tracer):
    """What ``trace_context`` yields: 0.2's ``spans()`` and 0.3's OpenTelemetry tracer, in one."""

    def __init__(
        self,
        processor: LightningSpanProcessor,
        tracer: trace.Tracer,
        scope: Scope,
        inside: otel_context.Context,
        rollout: Rollout | None,
    ) -> None:
        self._processor = processor
        self._tracer = tracer
        self._scope = scope
        self._inside = inside
        self._rollout = rollout
        self.sealed: SealedAttempt | RefusedAttempt | None = None
        """What became of an attempt that ``rollout(seal=…)`` was to seal; ``None`` before, and where it was not."""
        self._entries: list[FinishedSpan] = scope.trace.spans if scope.trace.spans is not None else []
        # The tracer's own, so that no span pays for a call in between.
        self.start_span = tracer.start_span  # type: ignore[method-assign]
        self.start_as_current_span = tracer.start_as_current_span  # type: ignore[method-assign]

    @property
    def rollout_id(self) -> str:
        """The rollout that is recorded; empty where there is no store."""
        return self._scope.rollout_id

    @property
    def attempt_id(self) -> str:
        """The attempt that is recorded; empty where there is no store."""
        return self._scope.attempt_id

    def spans(self) -> list[Span]:
        """Return the finished spans so far, in the order in which they ended, as this process saw them."""
        return self._processor.spans_of(self._entries)

    def rows(self, policy: RowPolicy | None = None) -> RowSet:
        """Return the training rows of the finished spans so far, as this process saw them; see ``build_rows``.

        What other processes have recorded of the attempt is in the store alone, and so is the word that an attempt is
        complete: ``build_rows(await store.query_spans(…))`` and ``agentlightning.training.wait_sealed`` read it there.

        Raises:
            SpansNotKept: There were more spans than this process keeps in memory.
        """
        if self._scope.trace.is_cut:
            raise SpansNotKept(
                f"rollout {self.rollout_id} has more spans than this process keeps in memory; read them from the "
                "store: build_rows(await store.query_spans(rollout_id, attempt_id))"
            )
        from ..rows.training import build_rows  # loads what makes rows, which most agents never ask for

        return build_rows(self.spans(), policy, rollout=self._rollout)

    def reward(
        self,
        reward: float | dict[str, Any],
        *,
        primary_key: str | None = None,
        attributes: Mapping[str, Any] | None = None,
    ) -> None:
        """Record a reward of this attempt, also inside of another one's block and from any thread.

        It only puts a span into the queue, so there is nothing to await, in ``async with`` either. (If it were a
        coroutine, forgetting to await it would lose the reward.)

        Args:
            reward: A number, or name → number; see ``emit_reward``.
            primary_key: With named rewards, the one that counts.
            attributes: Such as ``reward_target(…)``; default: it is for the rollout.

        Raises:
            RolloutEnded: The block has been left: ``agentlightning.training.add_reward`` gives later rewards.
            TypeError: A reward is not a number.
            ValueError: Named rewards without ``primary_key``, or with one that they do not hold.
        """
        from ..rows.rewards import reward_attributes, reward_dimensions  # as in ``rows``

        given = reward_attributes(reward_dimensions(reward, primary_key))
        if self._scope.closed:
            raise RolloutEnded(
                f"rollout {self.rollout_id} has ended; agentlightning.training.add_reward gives a later reward"
            )
        # Named by ids: what is current may be another rollout, or none.
        ids = {ROLLOUT_KEY: self.rollout_id, ATTEMPT_KEY: self.attempt_id}
        kept = sanitize_attributes({**flatten_attributes(dict(attributes or {})), **given, **ids})
        span = self._tracer.start_span(AGL_ANNOTATION, context=self._inside, attributes=kept)
        span.set_status(trace.StatusCode.OK)
        span.end()

    def receipt(self) -> Receipt:
        """Return this process's count: what is stored, dropped, and not (yet) stored."""
        return self._processor.ledger.receipt(self._scope)

    def start_span(self, *args: Any, **kwargs: Any) -> trace.Span:
        """Start a span; see ``opentelemetry.trace.Tracer.start_span``."""
        return self._tracer.start_span(*args, **kwargs)

    def start_as_current_span(self, *args: Any, **kwargs: Any) -> Any:
        """Start a span and make it current; see ``opentelemetry.trace.Tracer.start_as_current_span``."""
        return self._tracer.start_as_current_span(*args, **kwargs)


class OtelSpanRecordingContext:
    """A span that is being recorded."""

    def __init__(self, span: trace.Span) -> None:
        self._span = span

    def get_otel_span(self) -> trace.Span:
        """Return the OpenTelemetry span."""
        return self._span

    def record_attributes(self, attributes: Attributes) -> None:
        """Set attributes."""
        self._span.set_attributes(sanitize_attributes(to_attributes(attributes)))

    def record_exception(self, exception: BaseException) -> None:
        """Record an exception, as an event and as attributes, and the status ERROR."""
        attributes = format_exception_attributes(exception)
        with suppress(Exception):  # a stranger's broken __str__ must not replace the exception
            self._span.record_exception(exception)
        self._span.set_attributes(attributes)
        self.record_status("ERROR", f"{attributes['exception.type']}: {attributes['exception.message']}")

    def record_status(self, status_code: StatusCode, description: str | None = None) -> None:
        """Set the status."""
        self._span.set_status(
            _otel_status(types.TraceStatus(status_code=status_code, description=description))
        )

    def get_recorded_span(self) -> SpanCoreFields:
        """Return what is recorded so far."""
        span: Any = self._span
        return types.SpanCoreFields(
            name=name_of(span),
            status=types.TraceStatus.from_opentelemetry(span.status)
            if hasattr(span, "status")
            else types.TraceStatus(status_code="UNSET"),
            # As recorded: what other exporters see is not made on this thread.
            attributes=dict(attributes_of(span)),
            start_time=_seconds(getattr(span, "start_time", None)),
            end_time=_seconds(getattr(span, "end_time", None)),
        )


class _TraceContext(TraceContext):
    """One ``trace_context``: what it does before and after its body, for ``with`` and ``async with``."""

    def __init__(
        self,
        tracer: OtelTracer,
        worker: Recording,
        name: str,
        store: LightningStore | None,
        attempt: tuple[str, str] | Mapping[str, Any],
        *,
        refused: tuple[type[Exception], ...] = (),
        sealing: Sealing | None = None,
    ) -> None:
        """Take up the ids of an attempt, or the arguments with which a rollout is to be started.

        ``refused``: what a store may raise instead of letting the body begin. ``sealing``: how it is sealed at the end.
        """
        self._tracer = tracer
        self._worker = worker
        self._name = name
        self._store = store
        self._opened = Opened(attempt if isinstance(attempt, tuple) else None, None)
        """What the store has said, with the ids that the caller named or that were made here."""
        self._start = attempt if not isinstance(attempt, tuple) and store is not None else None
        self._refused = refused
        self._sealing = sealing
        self._owns_attempt = self._start is not None
        self._is_resting = False
        self._closing: Future[Future[bool]] = Future()
        """Claimed by the one who ends it; then the flush that was asked for."""
        self._pid = os.getpid()

    def __enter__(self) -> TraceHandle:
        if self._sealing is not None and in_event_loop():
            raise ContextArgumentsError("seal= waits for the store: use 'async with' in an event loop")
        if self._needs_store():
            try:
                self._is_opened(self._opening().result())
            except self._refused:
                raise
            except Exception as error:  # noqa: BLE001 - a store may raise anything, and the agent has work to do
                self._without_store(error)
        return self._open(sys._getframe(1))

    async def __aenter__(self) -> TraceHandle:
        frame = sys._getframe(1)
        if self._needs_store():
            try:
                self._is_opened(await self._opening().result_async())
            except self._refused:
                raise
            except Exception as error:  # noqa: BLE001 - as above
                self._without_store(error)
        return self._open(frame)

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
        /,
    ) -> None:
        if self._closing.is_begun():
            return
        try:
            if not in_event_loop():
                let_threads_end(self._scope)
        finally:
            flush = self._close(exc)
        if in_event_loop():  # waiting here would hold up every task of the loop
            self._tracer._say_that_nobody_waits()
            self._say_that_it_is_not_sealed(exc, "it ended in a running event loop")
            return
        try:
            written = flush.result(patience(self._tracer._flush_timeout))
        except TimeoutError:
            written = None
        self._report(written)
        if self._is_to_be_sealed(exc):
            self._handle.sealed = self._worker.questions.ask(self._seal).result(self._sealing_timeout)

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
        /,
    ) -> None:
        if self._closing.is_begun():
            return
        try:
            if in_event_loop():
                await let_tasks_end(self._scope)
        finally:  # also where that is cancelled
            flush = self._close(exc)
        in_time = flush.done() or await wait_for_future(flush, self._tracer._flush_timeout)
        self._report(flush.result() if in_time else None)
        if self._is_to_be_sealed(exc):
            asked = self._worker.questions.ask(self._seal)
            self._handle.sealed = await asked.result_async(self._sealing_timeout)

    def _is_to_be_sealed(self, error: BaseException | None) -> bool:
        return self._sealing is not None and error is None and self._pid == os.getpid()

    def _say_that_it_is_not_sealed(self, error: BaseException | None, why: str) -> None:
        if self._is_to_be_sealed(error):
            _log.warning(
                "attempt %s of rollout %s is not sealed as seal= asks, since %s, where nobody waits for the store; "
                "agentlightning.training.seal does it",
                self._scope.attempt_id,
                self._scope.rollout_id,
                why,
            )

    @property
    def _sealing_timeout(self) -> float:
        assert self._sealing is not None
        return self._sealing.settle + SEAL_TIMEOUT

    async def _seal(self) -> SealedAttempt | RefusedAttempt:
        from ..store.sealing import seal_settled  # loads what makes rows; only who seals has asked for it

        assert self._sealing is not None
        assert self._store is not None
        return await seal_settled(self._store, self._scope.rollout_id, self._scope.attempt_id, self._sealing)

    def _needs_store(self) -> bool:
        return self._store is not None and (self._owns_attempt or self._tracer._capture_tokens == "request")

    def _opening(self) -> Opening:
        """Start the rollout if none was named, and learn the rollout's model endpoints if they are asked for ids."""
        assert self._store is not None
        asks_for_tokens = self._tracer._capture_tokens == "request"
        return Opening(
            self._store,
            self._start,
            self._endpoints_of_rollout if asks_for_tokens else None,
            self._worker.questions,
        )

    def _is_opened(self, opened: Opened) -> None:
        self._opened = opened._replace(ids=opened.ids or self._opened.ids)

    def _without_store(self, error: Exception) -> None:
        """Go on with ids that are made here where the store has started no rollout: its spans are counted as lost."""
        self._opened = Opened(self._opened.ids, [])
        if not self._owns_attempt:
            return
        self._opened = Opened((new_rollout_id(), new_attempt_id()), [])
        self._owns_attempt = False
        why = "no answer in time" if isinstance(error, TimeoutError) else f"{type(error).__name__}: {error}"
        _log.warning(
            "the store started no rollout %r, whose spans will be lost and counted: %s", self._name, why
        )

    async def _endpoints_of_rollout(self, started: str | None) -> list[Endpoint]:
        """Ask for the rollout's endpoints; where the store does not say, only named ones are asked for token ids."""
        rollout_id = started or (self._opened.ids or ("", ""))[0]
        store = self._store
        assert store is not None
        try:
            return await within(resource_endpoints(store, rollout_id), self._tracer._flush_timeout)
        except Exception as error:  # noqa: BLE001 - a store may raise anything, and the agent has work to do
            _log.warning(ONLY_NAMED, rollout_id, error)
            return []

    def _open(self, frame: FrameType) -> TraceHandle:
        processor = self._worker.processor
        is_unopened = self._start is not None and not self._owns_attempt
        self._scope = processor.new_scope(
            None if is_unopened else self._store, *(self._opened.ids or ("", ""))
        )
        self._scope.standing.unopened = is_unopened
        self._scope.standing.is_known = self._owns_attempt  # the store has just started it
        self._scope.endpoints = self._opened.endpoints
        before = live_context(otel_context.get_current())
        processor.open_scope(self._scope, before, frame)
        outer = trace.get_current_span(before).get_span_context()
        context = context_with_active_tracer(self._tracer, context_with_scope(self._scope, before))
        links = [trace.Link(outer)] if outer.is_valid else []
        with self._worker.guard("following the program's tracer provider"):
            self._worker.session.follow()
        started = self._opened.rollout
        self._root = self._worker.session.tracer.start_span(
            self._name,
            context=context if started is None else context_with_task(started.input, context),
            links=links,
        )
        if self._root.is_recording():
            processor.routing.remember_trace(self._root.get_span_context().trace_id, self._scope)
        else:
            _log.warning(
                "OTEL_SDK_DISABLED or the provider's sampler leaves out rollout %r: its spans are not recorded",
                self._name,
            )
        inside = trace.set_span_in_context(self._root, context)
        otel_context.attach(inside)
        self._worker.open_contexts.add(self)
        self._handle = TraceHandle(
            processor, self._worker.session.tracer, self._scope, inside, self._opened.rollout
        )
        return self._handle

    def end_unread(self) -> Future[Any] | None:
        """End it where its generator waits for somebody to ask for more, and recording ends: nobody will.

        Returns:
            What is done when it has ended, by whichever thread; ``None``: it goes on.
        """
        if self._pid != os.getpid():
            return None
        generator, future = self._scope.body.generator, self._scope.body.future()
        if not self._closing.is_begun():
            if future is not None:
                if not future.done():
                    return None
                error = error_of(future)
                self._close(error)  # done in another thread, whose callback has not come so far
                self._say_that_it_is_not_sealed(error, "recording ended just then")
            elif self._is_resting:  # not a step of it was ever asked for
                self._close(asyncio.CancelledError())
            elif generator is not None and waits_at_yield(generator):
                self._close(GeneratorExit())
            else:
                return None
        return self._closing

    def rest(self) -> None:
        """Put back what was current before it, and stay open; see :meth:`TraceContext.rest`."""
        processor = self._worker.processor
        processor.leave_scope(self._scope)
        processor.routing.closed(self._scope)  # a generator that has called it works for itself meanwhile
        self._is_resting = True
        self._worker.questions.begin()  # for ``give_up``

    def goes_on_until(self, future: Any) -> bool:
        """Rest, and end with a future; see :meth:`TraceContext.goes_on_until`."""
        self.rest()
        self._is_resting = False
        try:
            self._scope.body.future = weakref.ref(future, self._is_forgotten)
            if future.done():
                self._is_done(future)
            else:  # of this context nothing is kept: a future that is among its variables could never be forgotten
                contextvars.Context().run(future.add_done_callback, self._is_done)
        except Exception:  # noqa: BLE001 - somebody else's future lacks what those of asyncio have
            return False
        return True

    def _is_done(self, future: Any) -> None:
        """End it on whatever thread its future is done, which has work of its own, and waits only to seal."""
        if self._pid != os.getpid():
            return
        with self._worker.guard("ending the rollout of a future"):
            error = error_of(future)
            if self._is_to_be_sealed(error):
                contextvars.Context().run(self.__exit__, *raised(error))
            elif spans_of_living_workers(self._scope):
                contextvars.Context().run(self._end_after_workers, future, current_worker())
            else:
                self._end_without_waiting(error)

    def _is_forgotten(self, future: weakref.ref[Any]) -> None:
        """Give it up: its future is gone, and was not done."""
        del future
        self._is_resting = True
        self.give_up()

    def give_up(self) -> None:
        """Have a thread of ours end it; see :meth:`TraceContext.give_up`."""
        if self._is_resting and not self._closing.is_begun() and self._pid == os.getpid():
            self._worker.questions.remind(self._end_given_up)

    async def _end_given_up(self) -> None:
        with self._worker.guard("ending a rollout that was given up"):
            self._end_without_waiting(asyncio.CancelledError())

    def _end_after_workers(self, future: Any, ended_by: object) -> None:
        """Have a thread of ours end it, once threads that are about to end have done so.

        The future is kept until then: one that is forgotten is given up.
        """

        async def end() -> None:
            with self._worker.guard("ending the rollout of a future"):
                await let_workers_end(self._scope, ended_by)
                self._end_without_waiting(error_of(future), ended_by)

        self._worker.questions.ask(end)

    def _end_without_waiting(self, error: BaseException | None, ended_by: object = None) -> None:
        """End it in a context that holds nothing else; the log is told of spans that cannot be stored."""
        flush = contextvars.Context().run(self._close, error, ended_by)

        def report() -> None:
            # On the writer's thread, which everybody waits for; a log filter of the program may raise.
            with self._worker.guard("reporting what is stored"):
                self._report(flush.result(0))

        flush.add_done_callback(report)

    def goes_on_in(self, frame: FrameType) -> None:
        """Note whose steps alone are its own; see :meth:`TraceContext.goes_on_in`."""
        self._is_resting = False
        if not self._closing.is_begun():  # recording may have ended meanwhile
            self._worker.processor.routing.goes_on_in(self._scope, frame)

    def _close(self, error: BaseException | None, ended_by: object = None) -> Future[bool]:
        """End the root span, restore the context, and ask for the flush.

        One of those who come to it does so, on whatever threads they are; the flush is the same for all. ``ended_by``:
        the thread or task on whose behalf it is done; default: this one.
        """
        if self._closing.set_running_or_notify_cancel():
            try:
                self._end(error, ended_by)
            finally:
                self._closing.set_result(self._worker.processor.writer.flush(self._scope))
                self._worker.open_contexts.discard(self)
        if self._closing.done():
            return self._closing.result(0)
        flushed: Future[bool] = Future()

        def follow() -> None:
            flush = self._closing.result(0)
            flush.add_done_callback(lambda: flushed.set_result(flush.result(0)))

        self._closing.add_done_callback(follow)
        return flushed

    def _end(self, error: BaseException | None, ended_by: object) -> None:
        in_this_process = self._pid == os.getpid()  # a forked child may unwind through its parent's block
        processor = self._worker.processor
        processor.leave_scope(self._scope)
        ending = ending_of(error, self._scope.body.opened_by)
        if in_this_process:
            if error is not None and ending != "succeeded":
                OtelSpanRecordingContext(self._root).record_exception(error)
            with self._worker.guard("naming model servers"):
                self._worker.recorder.name_uncaptured(self._scope, self._inside)
            if self._scope.unrecorded:
                unrecorded = list(self._scope.unrecorded)
                self._root.set_attribute(SpanFlagAttributes.UNRECORDED_PROCESSES.value, unrecorded)
            doubted = self._name_shared_workers(ended_by)
            if self._scope.alternates:
                self._root.set_attribute(SpanFlagAttributes.ALTERNATES.value, True)
            self._root.end()
        if not in_this_process:
            return
        processor.close_scope(self._scope, doubted=doubted)
        self._tracer._last, previous = self._handle, self._tracer._last
        if previous is not None:
            previous._scope.trace.spans = None  # the handle keeps its own list
        if self._owns_attempt:  # after its last span is stored: whoever sees the status may read the attempt
            processor.writer.after(self._scope, *self._end_of_attempt(ending))

    def _inside(self) -> otel_context.Context:
        """Return the current context with this scope and its root span, also after they were left."""
        inside = context_with_scope(self._scope, otel_context.get_current())
        return trace.set_span_in_context(self._root, inside)

    def _name_shared_workers(self, ended_by: object) -> int:
        """Name the spans that may be of other rollouts, on the root span; returns their number."""
        doubted = spans_of_living_workers(self._scope, ended_by)
        if not doubted:
            return 0
        names = names_of(doubted)
        self._root.set_attribute(SpanFlagAttributes.SHARED_WORKERS.value, names)
        ids = [f"{self._scope.stands_for(span_id):016x}" for span_id in doubted]
        self._root.set_attribute(SpanFlagAttributes.SHARED_WORKER_SPANS.value, ids)
        if len(doubted) > SPANS_REMEMBERED:  # not all of them are known
            self._scope.alternates = True
        self._tracer._say_that_workers_live_on(self._scope.rollout_id, names)
        return len(doubted)

    def _end_of_attempt(self, ending: Ending) -> tuple[Callable[[], Awaitable[Any]], str]:
        store, ids = self._store, self._opened.ids
        assert store is not None
        assert ids is not None
        otherwise = f"attempt {ids[1]} of rollout {ids[0]} could not be marked {ending}"
        return lambda: end_attempt(store, *ids, ending), otherwise

    def _report(self, written: bool | None) -> None:
        if written:
            return
        receipt = self._worker.processor.ledger.receipt(self._scope)
        _log.warning(
            "attempt %s of rollout %s: %d of %d spans stored, %d %s, dropped %s",
            receipt.attempt_id,
            receipt.rollout_id,
            receipt.stored,
            receipt.started,
            receipt.open,
            "still queued or open after the flush timeout" if written is None else "queued or open",
            receipt.dropped or "none",
        )


def _say_what_gevent_does() -> None:
    monkey: Any = sys.modules.get("gevent.monkey")
    if monkey is not None and monkey.is_module_patched("threading"):
        _log.warning(
            "gevent has put greenlets in the place of threads, the recorder's too: rollouts may not be started in the "
            "store, and spans that start in other greenlets are unattributed; record in a process that is not patched"
        )


def _with_own_stages(chain: Chain, tags: Sequence[str], redaction: RedactionPolicy) -> Chain:
    own = (*((Tagging(tuple(tags)),) if tags else ()), *stages_of(redaction))
    return Chain((*chain.stages, *own)) if own else chain


def _capture_mode(value: str | None) -> CaptureTokens:
    mode = resolve_setting(LightningEnvVar.AGL_CAPTURE_TOKENS, value, "observe")
    if mode in {"observe", "request"}:
        return cast("CaptureTokens", mode)
    raise ConfigurationError(f"capture_tokens is 'observe' or 'request', not {mode!r}")


def _writes_names_of_0_3(value: str | None) -> bool:
    names = resolve_setting(LightningEnvVar.AGL_SPAN_NAMES, value)
    if names not in {None, "0.3"}:
        raise ConfigurationError(f"span_names (AGL_SPAN_NAMES) is '0.3' or left out, not {names!r}")
    return names is not None


def _otel_status(status: TraceStatus) -> trace.Status:
    code = trace.StatusCode[status.status_code]
    return trace.Status(code, status.description if code is trace.StatusCode.ERROR else None)


def _seconds(nanoseconds: int | None) -> float | None:
    return None if nanoseconds is None else nanoseconds / _NS
