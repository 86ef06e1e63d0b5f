"""What runs in several workers, and the callbacks around a rollout. Loads no pydantic."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

    from .core import Rollout
    from .tracer import Span


class ParallelWorkerBase:
    """Life cycle of what runs in several workers.

    ``init`` in the parent, ``init_worker`` in each worker, the work, ``teardown_worker``, ``teardown``.
    """

    def __init__(self) -> None:
        # ``None`` in the parent, which is no worker.
        self.worker_id: int | None = None

    def init(self, *args: Any, **kwargs: Any) -> None:
        """Prepare in the parent process, before workers start."""

    def init_worker(self, worker_id: int, *args: Any, **kwargs: Any) -> None:
        """Prepare in a worker."""
        # Subclasses take more arguments; here they mean nothing.
        del args, kwargs
        self.worker_id = worker_id

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Do the work."""

    def teardown_worker(self, worker_id: int, *args: Any, **kwargs: Any) -> None:
        """Undo ``init_worker``."""

    def teardown(self, *args: Any, **kwargs: Any) -> None:
        """Undo ``init``."""


class Hook(ParallelWorkerBase):
    """Callbacks around a rollout; every method may be left as it is."""

    async def on_trace_start(self, *, agent: Any, runner: Any, tracer: Any, rollout: Rollout) -> None:
        """Called after the tracer entered the trace context."""

    async def on_trace_end(self, *, agent: Any, runner: Any, tracer: Any, rollout: Rollout) -> None:
        """Called before the tracer leaves the trace context."""

    async def on_rollout_start(self, *, agent: Any, runner: Any, rollout: Rollout) -> None:
        """Called before the agent starts."""

    async def on_rollout_end(
        self, *, agent: Any, runner: Any, rollout: Rollout, spans: list[ReadableSpan] | list[Span]
    ) -> None:
        """Called when the rollout has ended, with its spans."""
