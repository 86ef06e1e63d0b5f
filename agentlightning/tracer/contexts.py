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

    def goes_on_until(self, future: Any) -> bool:
        """Put back what was current before it, and end with a future, whose work has contexts copied while it was.

        Returns:
            Whether it can be told when that is done; if not, it is for the caller to end it.
        """
        del future
        return True

    def give_up(self) -> None:
        """End it if it still rests: nobody is left to go on with it. The garbage collector may call this anywhere."""

    def goes_on_in(self, frame: FrameType) -> None:
        """Note that from now on it is current only while this frame runs, in a context that nothing else has."""
