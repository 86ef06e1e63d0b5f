"""What ``trace_context`` and ``rollout`` return, as far as those need to know who enter and leave it."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import FrameType


class TraceContext(AbstractContextManager["Any"], AbstractAsyncContextManager["Any"]):
    """What ``trace_context`` returns: serves ``with`` and ``async with`` alike."""

    def rest(self) -> None:
        """Put back what was current before it, and stay open: what it is for goes on later, elsewhere."""

    def goes_on_until(self, future: Any) -> None:
        """Note that what it is for is done when this future is, in contexts that were copied while it was current."""

    def goes_on_in(self, frame: FrameType) -> None:
        """Note that from now on it is current only while this frame runs, in a context that nothing else has."""
