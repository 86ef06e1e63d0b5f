"""The newest finished spans that belong to no attempt, for whoever looks for them in this process."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from .._locks import reentrant_lock
from .sizes import size_of

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

MOST_SPANS = 1000
MOST_BYTES = 16 * 1024 * 1024


class KeptAside:
    """Unattributed spans, bounded by number and bytes; ``count`` goes on."""

    def __init__(self) -> None:
        self.spans: deque[ReadableSpan] = deque()
        self.count = 0
        self.bytes = 0
        """Bytes that the spans take, as far as they are estimated."""
        # Guards all three, which two threads that end spans change at once.
        self._lock = reentrant_lock()

    def add(self, span: ReadableSpan) -> None:
        """Keep a span, in place of the oldest where there is no room."""
        with self._lock:
            self.count += 1
            self.bytes += size_of(span)
            self.spans.append(span)
            while len(self.spans) > MOST_SPANS or self.bytes > MOST_BYTES:
                self.bytes -= size_of(self.spans.popleft())
