"""The bounds of a recorder."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..env_var import LightningEnvVar, resolve_count, resolve_milliseconds
from .memory import queue_bytes


@dataclass(frozen=True)
class WriterSettings:
    """Bounds of a writer and of the queue in front of it.

    The first three are settings: without an argument the environment, ``[tool.agentlightning]`` or the default says.

    Raises:
        ConfigurationError: A value is out of range.
    """

    batch_size: int = field(default_factory=lambda: resolve_count(LightningEnvVar.AGL_BATCH_SIZE, None, 512))
    """So many finished spans leave at once, without waiting for more, and no batch has more (``AGL_BATCH_SIZE``)."""
    flush_interval: float = field(
        default_factory=lambda: resolve_milliseconds(LightningEnvVar.AGL_FLUSH_INTERVAL, None, 200)
    )
    """Milliseconds that a finished span, or the start of an open one, waits for its batch at most
    (``AGL_FLUSH_INTERVAL``)."""
    max_queue_size: int = field(
        default_factory=lambda: resolve_count(LightningEnvVar.AGL_MAX_QUEUE_SIZE, None, 50_000)
    )
    """Finished spans that wait for a batch (``AGL_MAX_QUEUE_SIZE``)."""
    max_batch_bytes: int = 4 * 1024 * 1024
    max_queue_bytes: int = field(
        default_factory=lambda: resolve_count(LightningEnvVar.AGL_MAX_QUEUE_BYTES, None, queue_bytes())
    )
    """Bytes of memory for finished spans and for answers that are arriving (``AGL_MAX_QUEUE_BYTES``; default a
    sixteenth of the memory of the control group or machine, between 64 MB and 1 GB). From half of it on, bodies of
    model calls are moved to disk. Threads with a running event loop, which may not wait, may exceed it to twice. A
    single larger span is still taken when the queue is empty."""
    block_timeout: float = 0.1
    """How many seconds threads of one attempt may wait, in all, for room in a full queue."""
    write_timeout: float = 30.0
    """A write that takes more seconds counts as failed and is tried again."""
    max_trace_bytes: int = 64 * 1024 * 1024
    """Finished spans of one ``trace_context`` that ``spans()`` can return."""

    def __post_init__(self) -> None:
        resolve_count(LightningEnvVar.AGL_BATCH_SIZE, self.batch_size, 0)
        resolve_count(LightningEnvVar.AGL_MAX_QUEUE_SIZE, self.max_queue_size, 0)
        resolve_count(LightningEnvVar.AGL_MAX_QUEUE_BYTES, self.max_queue_bytes, 0)
        resolve_milliseconds(LightningEnvVar.AGL_FLUSH_INTERVAL, self.flush_interval, 0)

    @property
    def whole_batch(self) -> int:
        """So many spans are written without waiting for more; the queue must be able to hold them."""
        return min(self.batch_size, self.max_queue_size)
