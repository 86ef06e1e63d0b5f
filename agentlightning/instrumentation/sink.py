"""The interface between the wire capture and what records its calls.

``instrumentation/`` knows HTTP libraries and no spans; the tracer knows spans and no HTTP. All methods are called on
the agent's threads, and some of them by each chunk of a response: they must return at once, so a ``RawCall`` is decoded
later, on the writer's thread.
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
        """Reserve ``size`` bytes for a chunk of a response; ``False`` where none are left: it is not kept then."""
        ...

    def release(self, size: int) -> None:
        """Give back ``size`` reserved bytes; called before :meth:`ended` hands the chunks over."""
        ...
