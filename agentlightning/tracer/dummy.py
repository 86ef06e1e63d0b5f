"""A tracer that records nothing anywhere: spans are made, returned, and forgotten."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ..codec.attributes import format_exception_attributes
from ..errors import ContextArgumentsError
from ..rows.rewards import reward_dimensions
from ..types import Attributes, Span, SpanCoreFields, StatusCode, TraceStatus
from ..types.attributes import to_attributes
from .base import Tracer
from .contexts import TraceContext

if TYPE_CHECKING:
    from ..rows.policy import RowPolicy
    from ..rows.training import RowSet
    from ..store.base import LightningStore, SyncStore
    from ..store.sealing import Sealing


class DummySpanRecordingContext:
    """A span in memory."""

    def __init__(
        self, name: str, attributes: Attributes | None = None, start_time: float | None = None
    ) -> None:
        self._name = name
        self._attributes = to_attributes(attributes)
        self._start_time = time.time() if start_time is None else start_time
        self._end_time: float | None = None
        self._status = TraceStatus(status_code="UNSET")

    def record_attributes(self, attributes: Attributes) -> None:
        """Set attributes."""
        self._attributes.update(to_attributes(attributes))

    def record_exception(self, exception: BaseException) -> None:
        """Record an exception and the status ERROR."""
        self.record_attributes(format_exception_attributes(exception))
        self.record_status("ERROR", str(exception))

    def record_status(self, status_code: StatusCode, description: str | None = None) -> None:
        """Set the status."""
        self._status = TraceStatus(status_code=status_code, description=description)

    def finalize(self, end_time: float | None = None) -> None:
        """End the span."""
        self._end_time = time.time() if end_time is None else end_time

    def get_recorded_span(self) -> SpanCoreFields:
        """Return what is recorded so far."""
        return SpanCoreFields(
            name=self._name,
            status=self._status,
            attributes=self._attributes,
            start_time=self._start_time,
            end_time=self._end_time,
        )


class DummyTracer(Tracer):
    """See the module's docstring."""

    def create_span(
        self,
        name: str,
        attributes: Attributes | None = None,
        timestamp: float | None = None,
        status: TraceStatus | None = None,
    ) -> SpanCoreFields:
        """Return a span that starts and ends at ``timestamp`` (default now)."""
        moment = time.time() if timestamp is None else timestamp
        return SpanCoreFields(
            name=name,
            status=status or TraceStatus(status_code="OK"),
            attributes=to_attributes(attributes),
            start_time=moment,
            end_time=moment,
        )

    @contextmanager
    def operation_context(
        self,
        name: str,
        attributes: Attributes | None = None,
        start_time: float | None = None,
        end_time: float | None = None,
    ) -> Iterator[DummySpanRecordingContext]:
        """Yield a span in memory that spans the body."""
        recording = DummySpanRecordingContext(name, attributes, start_time)
        try:
            yield recording
        except Exception as error:
            recording.record_exception(error)
            raise
        finally:
            recording.finalize(end_time)

    def trace_context(
        self,
        name: str | None = None,
        *,
        store: LightningStore | SyncStore | None = None,
        rollout_id: str | None = None,
        attempt_id: str | None = None,
    ) -> TraceContext:
        """Run the body without recording anything."""
        del name, store, rollout_id, attempt_id
        return _NothingRecorded(self)

    def _new_rollout(
        self, name: str, store: LightningStore | None, start: dict[str, Any], sealing: Sealing | None
    ) -> TraceContext:
        del name, store, start
        if sealing is not None:
            raise ContextArgumentsError("seal= needs a tracer that records, and DummyTracer does not")
        return _NothingRecorded(UnrecordedRollout())

    def get_last_trace(self) -> list[Span]:
        """Return nothing: nothing was recorded."""
        return []


class UnrecordedRollout:
    """What ``rollout`` yields where nothing is recorded: a rollout without ids, spans and rows."""

    rollout_id = attempt_id = ""
    sealed = None

    def reward(
        self, reward: float | dict[str, Any], *, primary_key: str | None = None, attributes: Any = None
    ) -> None:
        """Check a reward as a tracer does that records it."""
        del attributes
        reward_dimensions(reward, primary_key)

    def spans(self) -> list[Span]:
        """Return nothing."""
        return []

    def rows(self, policy: RowPolicy | None = None) -> RowSet:
        """Return no rows."""
        from ..rows.training import build_rows  # loads what makes rows, which most agents never ask for

        return build_rows((), policy)


class _NothingRecorded(TraceContext):
    def __init__(self, yields: DummyTracer | UnrecordedRollout) -> None:
        self._yields = yields

    def __enter__(self) -> DummyTracer | UnrecordedRollout:
        return self._yields

    async def __aenter__(self) -> DummyTracer | UnrecordedRollout:
        return self._yields

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
        /,
    ) -> None:
        return None

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
        /,
    ) -> None:
        return None
