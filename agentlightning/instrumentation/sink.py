"""What the wire capture hands to whoever records: a call began, a call ended.

``instrumentation/`` knows HTTP libraries and nothing of spans; the tracer knows spans and nothing of HTTP. This
protocol is the seam. Both methods are called on the agent's own thread and must only note and return; decoding
of ``RawCall`` is left to the writer's thread.
"""

from __future__ import annotations

from typing import Any, Protocol

from ..dialects.raw_call import CallStart, RawCall


class CallSink(Protocol):
    """Receives model calls as they are seen on the wire."""

    def started(self, call: CallStart) -> Any:
        """A call is about to leave; the returned token is handed back to :meth:`ended`."""
        ...

    def ended(self, token: Any, call: RawCall) -> None:
        """The call is over: answered, failed, or its stream exhausted, closed or garbage-collected.

        Called exactly once per started call, possibly on another thread and in another context.
        """
        ...

    def reserve(self, size: int) -> bool:
        """Take memory for a piece of an answer; ``False`` where there is none, and the piece is to be forgotten."""
        ...

    def release(self, size: int) -> None:
        """Give memory back that was reserved: the call ends, and what was noted is the sink's next."""
        ...
