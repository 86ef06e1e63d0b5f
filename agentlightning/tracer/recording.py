"""What a tracer puts into a process while it records there, and takes out again.

``OtelTracer.init_worker`` imports this module, and with it all that watches a program: a process that imports the
tracer and never records loads none of it.
"""

from __future__ import annotations

import contextvars
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from .._handover import Future
from ..instrumentation.connections import Connections
from ..instrumentation.guard import Guard, Policy
from ..instrumentation.own_hosts import IsOwnHost, is_loopback
from ..instrumentation.wire import ModelCallPatches, instrument_model_calls
from ..pipeline.chain import Chain
from ..recorder.converter import EndpointOf
from ..recorder.settings import WriterSettings
from .event_loops import in_event_loop
from .handed_work import carry_handed_work
from .model_calls import ModelCallRecorder
from .other_processes import RecordingTracer, register
from .process_end import EXIT_TIMEOUT, ProcessEnd
from .processor import LightningSpanProcessor
from .provider import ProviderSession
from .questions import Questions

if TYPE_CHECKING:
    from ..instrumentation.watch import CaptureTokens, EndpointFor
    from ..store.base import LightningStore
    from .known_endpoints import KnownEndpoints
    from .shared_spans import Sharing


IN_EVENT_LOOP = 0.1
"""Seconds that recording that ends in an event loop waits for other threads that are ending rollouts just then."""


class _LastingProcessor(LightningSpanProcessor):
    """A tracer's processor, which does not end with a provider that the program shares with others.

    A program may shut that down, Logfire's for one, and begin its next rollout after it.
    """

    def shutdown(self) -> None:
        """Write what is queued, for at most 5 s; ``Recording.close`` ends it."""
        self.force_flush(5_000)


class OpenContext(Protocol):
    """A ``trace_context`` that was entered and not left."""

    def end_unread(self) -> Future[Any] | None:
        """End it where it waits for a reader who will never come.

        Returns:
            What is done when it has ended, by whichever thread; ``None``: it goes on.
        """


class Recording:
    """Everything that ``init_worker`` put into the process; ``close`` takes it out, last in first out.

    Args:
        tracer: Whose recording it is.
        store: Where spans go that no ``trace_context`` with a store of its own has made.
        endpoints: Model endpoints that are known, whose hosts may see our baggage.
        endpoint_for: URL → what is known of its endpoint.
        capture_tokens: ``None``: model calls are not recorded, and no HTTP client is touched.
        policy: What happens to an error of ours inside user code.
        max_wait: Seconds that its end may wait for another thread that is about to end a rollout.
        endpoint_of: See :class:`LightningSpanProcessor`, as for ``settings``, ``chain``, ``accept_context``,
            ``write_0_3`` and ``sharing``.
    """

    close: Callable[[], None]

    def __init__(
        self,
        tracer: RecordingTracer,
        store: LightningStore | None,
        *,
        endpoints: KnownEndpoints,
        endpoint_for: EndpointFor,
        capture_tokens: CaptureTokens | None,
        policy: Policy | None,
        max_wait: float,
        endpoint_of: EndpointOf | None,
        settings: WriterSettings,
        chain: Chain,
        accept_context: bool,
        write_0_3: bool,
        sharing: Sharing,
    ) -> None:
        self.processor = _LastingProcessor(
            settings=settings,
            chain=chain,
            policy=policy,
            accept_context=accept_context,
            write_0_3=write_0_3,
            endpoint_of=endpoint_of,
            sharing=sharing,
        )
        self.processor.routing.default_store = store
        self.questions = Questions()
        self._max_wait = max_wait
        self.open_contexts: set[OpenContext] = set()
        """Those that were entered and not left; changed by single operations alone."""
        self._calls: ModelCallPatches | None = None
        with ExitStack() as undo:  # what raises half way leaves nothing behind
            undo.callback(self.questions.close)
            # First in, last out: it watches until all is written.
            undo.callback(ProcessEnd(self._finish_at_exit).close)
            undo.callback(self._finish, 5.0)
            self.session = ProviderSession(self.processor)
            undo.callback(self.processor.disarm)
            undo.callback(self.session.close)
            undo.callback(self._end_unread, 5.0)  # while the provider still tells our processor of ends
            undo.callback(carry_handed_work())
            undo.callback(register(tracer))
            self.guard = Guard(policy)
            self.recorder = ModelCallRecorder(self.processor, lambda: self.session.tracer)
            if capture_tokens is not None:
                self._calls = instrument_model_calls(
                    self.recorder,
                    capture_tokens=capture_tokens,
                    endpoint_for=endpoint_for,
                    is_own_host=_is_own_host(endpoints),
                    guard=self.guard,
                )
                undo.callback(self._calls.leave)  # while the provider still tells our processor of ends
                undo.callback(self._calls.undo)
                connections = Connections(
                    lambda: [known.url for known in endpoints.known_here()],
                    self.recorder.connected,
                    self.guard,
                )
                for patch in connections.patches():
                    undo.callback(patch.undo)
            self.processor.writer.thread.begin()  # the first span may come when the program ends
            if store is not None:
                self.processor.writer.deliver_spool(store)
            self.close = undo.pop_all().close

    def _finish_at_exit(self) -> None:
        # Before anything is torn down: a generator that is never asked for more is closed by Python after that.
        self._end_unread(EXIT_TIMEOUT / 2)
        self._finish(EXIT_TIMEOUT)

    def _finish(self, timeout: float) -> None:
        if self.processor.routing.fallback is not None:
            with self.guard("naming model servers"):
                self.recorder.name_uncaptured(self.processor.routing.fallback)
            self.processor.close_scope(self.processor.routing.fallback)
        if self._calls is not None:
            self._calls.leave()
        self.processor.call_matching.release()
        self.processor.writer.shutdown(timeout)

    def _end_unread(self, timeout: float) -> None:
        # In an event loop every task is held up, and an exporter that hands the other thread's span to it waits for us.
        allowed = IN_EVENT_LOOP if in_event_loop() else timeout
        give_up = time.monotonic() + min(allowed, self._max_wait)
        closing: list[Future[Any] | None] = []
        for context in list(self.open_contexts):
            with self.guard("ending a rollout that nobody reads"):
                closing.append(contextvars.Context().run(context.end_unread))
        for each in closing:
            if each is not None:
                with suppress(TimeoutError):
                    each.result(max(0.0, give_up - time.monotonic()))


def _is_own_host(endpoints: KnownEndpoints) -> IsOwnHost:
    def is_own(host: str) -> bool:
        host = host.lower()
        return is_loopback(host) or any(
            urlsplit(endpoint.url).hostname == host for endpoint in endpoints.known_here()
        )

    return is_own
