"""``OTEL_TRACES_EXPORTER=lightning``: a stock OpenTelemetry program writes into a store.

An exporter sees spans after they ended, so it cannot decide where they began. It goes by what the spans carry: ids as
span or resource attributes, else ``AGL_ROLLOUT_ID`` and ``AGL_ATTEMPT_ID``, else one rollout that it starts for this
process, because whoever names this exporter wants the process recorded.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from .._locks import reentrant_lock
from .._threads import interpreter_ends
from ..env_var import LightningEnvVar
from ..pipeline.chain import Chain
from ..pipeline.policy import redaction_policy, stages_of
from ..recorder.converter import Converter
from ..recorder.recent_scopes import Ids, RecentScopes
from ..recorder.scope import FinishedSpan, Record, Scope, ids_among
from ..recorder.settings import WriterSettings
from ..recorder.sizes import size_of
from ..recorder.store_writes import within
from ..recorder.writer import Writer
from ..store.base import LightningStore
from ..store.registry import open_store
from ..types.attributes import attributes_of
from .event_loops import run_sync
from .process_end import EXIT_TIMEOUT

_log = logging.getLogger(__name__)


SCOPES_REMEMBERED = 1024


class LightningSpanExporter(SpanExporter):
    """Exports into ``store``, or into the one that ``AGL_STORE`` names; safe in any thread.

    ``export`` returns SUCCESS when the store has acknowledged the spans. What it does not take goes to the spool. With
    ``AGL_REDACTION=ingest`` what is stored is masked.
    """

    def __init__(
        self,
        store: LightningStore | None = None,
        *,
        settings: WriterSettings | None = None,
        timeout: float = 30.0,
    ) -> None:
        self._owns_store = store is None
        self._store = store if store is not None else open_store()
        self._timeout = timeout
        self._writer = Writer(Converter(Chain(stages_of(redaction_policy()))), settings)
        self._scopes = RecentScopes(SCOPES_REMEMBERED, self._new_scope, self._writer.close)
        self._own_attempt: tuple[str, str] | None = None
        self._started_by = os.getpid()
        # Guards that one rollout is started for this process, where several threads export first.
        self._lock = reentrant_lock()
        self._late = False
        self._writer.thread.begin()  # a short program's first span may come when it ends
        self._writer.deliver_spool(self._store)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Store finished spans under their attempts."""
        try:
            for span in spans:
                context = span.get_span_context()
                if context is not None:
                    record = Record(self._scope_of(span), context)
                    self._writer.ledger.start(record)
                    self._writer.end(FinishedSpan(span, record, size_of(span)))
            written = self._writer.flush().result(self._patience())
        except TimeoutError:
            self._late = interpreter_ends()  # then what else is exported at this end is not waited for
            written = False
        except Exception as error:  # noqa: BLE001 - the SDK only wants a result
            _log.error("spans could not be exported: %r", error)
            written = False
        return SpanExportResult.SUCCESS if written else SpanExportResult.FAILURE

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Wait until everything exported is stored; False when time ran out or something was not written."""
        try:
            return self._writer.flush().result(timeout_millis / 1000)
        except TimeoutError:
            return False

    def shutdown(self) -> None:
        """Write what is left, end the rollout that was started for this process, and close the store.

        Each of the three gets a second; a forked child leaves the rollout and the store to its parent.
        """
        for scope in self._scopes:
            self._writer.close(scope)
        # The spans first: whoever sees the attempt succeeded may seal it.
        self._writer.shutdown(EXIT_TIMEOUT)
        if self._started_by != os.getpid():
            return
        try:
            if self._own_attempt is not None:
                ended = self._store.update_attempt(*self._own_attempt, status="succeeded")
                run_sync(within(ended, EXIT_TIMEOUT))
        except Exception as error:  # noqa: BLE001 - shutting down must not fail the program
            _log.warning("the attempt of this process could not be ended: %r", error)
        try:
            if self._owns_store:
                run_sync(within(self._store.close(), EXIT_TIMEOUT))
        except Exception as error:  # noqa: BLE001 - as above
            _log.warning("the store could not be closed: %r", error)

    def _patience(self) -> float:
        """Return the seconds to wait for the store: at the end of a program once one, for all that it exports then."""
        if not interpreter_ends():
            return self._timeout
        return 0.0 if self._late else min(self._timeout, EXIT_TIMEOUT)

    def _scope_of(self, span: ReadableSpan) -> Scope:
        ids = (
            ids_among(attributes_of(span))
            or ids_among(span.resource.attributes)
            or _ids_in_environment()
            or self._own_attempt
        )
        if ids is None:
            with self._lock:
                ids = self._attempt_of_process()
        return self._scopes.get(ids)

    def _new_scope(self, ids: Ids) -> Scope:
        scope = Scope(self._store, *ids, counts=self._writer.ledger.new_counts())
        scope.trace.spans = None
        return scope

    def _attempt_of_process(self) -> tuple[str, str]:
        known = self._own_attempt
        if known is not None:
            return known
        program = sys.argv[:1]  # what follows may be a secret
        about = {"command": program, "pid": os.getpid()}
        started = run_sync(self._store.start_rollout(input=about, metadata={"name": Path(*program).name}))
        known = self._own_attempt
        if known is not None:  # a signal handler of this thread has exported meanwhile, and started another
            run_sync(self._store.update_rollout(started.rollout_id, status="cancelled"))
            return known
        self._own_attempt = started.rollout_id, started.attempt.attempt_id
        return self._own_attempt


def _ids_in_environment() -> tuple[str, str] | None:
    rollout_id = os.environ.get(LightningEnvVar.AGL_ROLLOUT_ID.value)
    attempt_id = os.environ.get(LightningEnvVar.AGL_ATTEMPT_ID.value)
    return (rollout_id, attempt_id) if rollout_id and attempt_id else None
