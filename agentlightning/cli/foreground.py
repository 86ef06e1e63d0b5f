"""What commands share that serve in the foreground: a port to listen on, and the signals that end them."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

ENDING = (signal.SIGINT, signal.SIGTERM)


def port(text: str) -> int:
    """Return a port.

    Raises:
        ValueError: It is none.
    """
    number = int(text)
    if not 0 <= number <= 65535:
        raise ValueError(text)
    return number


@contextmanager
def blocked(signals: Iterable[signal.Signals]) -> Iterator[None]:
    """Keep signals pending for ``sigwait``; one that comes twice must not end the program half way."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        # Those that came meanwhile are taken here; unblocked, they would end the program with an exit code
        # other than 0.
        while pending := signal.sigpending() & set(signals):
            signal.sigwait(pending)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
