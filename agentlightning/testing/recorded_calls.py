"""A sink that keeps the model calls that the wire capture saw, for tests."""

from __future__ import annotations

import threading
from typing import Any

from ..dialects.model_call import ModelCall
from ..dialects.openai.reading import decode
from ..dialects.raw_call import CallStart, RawCall
from .clock import wait_until


class RecordedCalls:
    """A ``CallSink``; give it to ``instrument_model_calls``."""

    def __init__(self) -> None:
        # Guards both lists: a call may begin on one thread and end on another.
        self._lock = threading.Lock()
        self.starts: list[CallStart] = []
        """Every call that began, in order."""
        self.ends: list[tuple[int, RawCall]] = []
        """Every call that ended: its place in ``starts``, and what was seen."""

    def started(self, call: CallStart) -> int:
        """Keep the start."""
        with self._lock:
            self.starts.append(call)
            return len(self.starts) - 1

    def ended(self, token: Any, call: RawCall) -> None:
        """Keep the end."""
        with self._lock:
            self.ends.append((token, call))

    def reserve(self, size: int) -> bool:
        """Say that there is memory for ``size`` more bytes, however many."""
        del size
        return True

    def release(self, size: int) -> None:
        """Do nothing: no memory is counted."""

    @property
    def raw(self) -> list[RawCall]:
        """What was seen of the calls that ended, in the order of their starts."""
        with self._lock:
            return [raw for _, raw in sorted(self.ends, key=lambda end: end[0])]

    def calls(self, count: int = 1) -> list[ModelCall]:
        """Return the calls, decoded, when ``count`` have begun and each has ended once.

        Raises:
            AssertionError: More or fewer began, or one ended twice.
            TimeoutError: One has not ended within 60 s.
        """
        wait_until(lambda: len(self.ends) >= len(self.starts), what="every call has ended")
        tokens = sorted(token for token, _ in self.ends)
        assert len(self.starts) == count, f"{len(self.starts)} calls began, not {count}"
        assert tokens == list(range(count)), f"calls ended: {tokens}"
        return [decode(raw) for raw in self.raw]

    def call(self) -> ModelCall:
        """Return the one call."""
        return self.calls(1)[0]
