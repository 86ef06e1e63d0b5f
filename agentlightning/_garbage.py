"""Python's garbage collector held back while many modules are imported."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_pauses: list[None] = []
"""One for each block that is under way; changed by ``append`` and ``pop`` alone, so two threads may do it at once."""


@contextmanager
def collector_paused() -> Iterator[None]:
    """Collect no garbage in the block; afterwards the collector is on if it was on before.

    Importing makes hundreds of thousands of objects that stay. The collector looks at all of them again and again
    meanwhile, which is a tenth of the time of ``import agentops``. What is in no cycle is freed as ever.
    """
    if not gc.isenabled():  # the program's choice, or another thread's block, which switches it on again
        yield
        return
    _pauses.append(None)
    gc.disable()
    try:
        yield
    finally:
        with suppress(IndexError):  # forked in the block
            _pauses.pop()
        gc.enable()


def _after_fork_in_child() -> None:
    # The block may be another thread's, which does not exist in the child and never comes to its end there.
    if _pauses:
        _pauses.clear()
        gc.enable()


os.register_at_fork(after_in_child=_after_fork_in_child)
