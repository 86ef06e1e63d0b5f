"""A process that calls a server on this machine as agents do, with the proxies of its environment.

``made`` only makes the clients; ``calls PORT`` calls. What a client raises when it is made is a line of its output.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any

HOSTS = ("127.0.0.1", "localhost")
TIMEOUT = 60.0
"""Seconds; the server is on this machine and answers at once, but the machine may be slow."""
LIBRARIES = ("httpx", "httpx2", "requests")


def clients() -> Iterator[tuple[str, Any]]:
    """Yield every library with a client of it, or with what making one raises."""
    for name in LIBRARIES:
        if find_spec(name) is None:
            continue
        library: Any = import_module(name)
        try:
            yield name, library.Session() if name == "requests" else library.Client(timeout=TIMEOUT)
        except Exception as error:  # noqa: BLE001 - such as a SOCKS proxy without its package
            yield name, error


def main(arguments: Sequence[str]) -> None:
    """Make the clients, and call."""
    for name, client in clients():
        if isinstance(client, Exception):
            sys.stdout.write(f"{name} refuses to start: {client}\n")
            continue
        # Both names, as libraries treat them differently in NO_PROXY.
        for host in HOSTS if arguments[0] == "calls" else ():
            with contextlib.suppress(Exception):  # what counts is who was asked
                client.post(f"http://{host}:{arguments[1]}/v1/chat/completions", json={}, timeout=TIMEOUT)
        client.close()


if __name__ == "__main__":
    main(sys.argv[1:])
