"""Which model servers a process connects to, whatever client it uses.

Clients that are not watched (raw sockets, clients over a transport of their own) leave one trace: a socket of Python
connects. ``socket.getaddrinfo`` and ``socket.socket.connect`` are replaced by functions that compare one address with a
few, so that a server that was connected to, and whose calls nobody saw, can be named. Clients in C or Rust connect
unseen, and so does uvloop's event loop.
"""

from __future__ import annotations

import functools
import os
import socket
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import urlsplit

from .guard import Guard
from .patch import AttributePatch, Patch
from .suppression import is_own_work

_SETTINGS = ("_BASE_URL", "_API_BASE", "_ENDPOINT", "OLLAMA_HOST")
_NO_MODELS = ("OTEL_", "AGL_", "AGENTOPS_", "LANGFUSE_", "LANGSMITH_", "PHOENIX_", "AWS_", "HF_", "SENTRY_")
_PUBLIC = frozenset(
    {
        "api.openai.com",
        "api.anthropic.com",
        "api.mistral.ai",
        "api.deepseek.com",
        "api.groq.com",
        "api.together.xyz",
        "generativelanguage.googleapis.com",
        "openrouter.ai",
    }
)
_REMEMBERED = 1_000
_EFFECT = "notes which model servers are connected to"


def urls_of_environment() -> dict[str, str]:
    """Return variable → URL of the servers that settings of model clients name."""
    return {
        name: value
        for name, value in os.environ.items()
        if name.endswith(_SETTINGS) and not name.startswith(_NO_MODELS)
    }


def servers_of_environment() -> frozenset[str]:
    """Return ``host:port`` of the servers that settings of model clients name."""
    return frozenset(filter(None, map(server_of, urls_of_environment().values())))


@functools.lru_cache(maxsize=256)
def server_of(url: str) -> str | None:
    """Return ``host:port`` of a URL; ``None`` where it is none."""
    try:
        parts = urlsplit(url)
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError:
        return None
    return f"{_canonical(parts.hostname)}:{port}" if parts.hostname and port else None


class Connections:
    """Tells ``connected`` of each connection to a model server.

    Args:
        endpoints: URLs of the endpoints that are known where the connection is made.
        connected: Called with ``host:port``, on the agent's thread.
        guard: Where exceptions of our own go.
    """

    def __init__(
        self, endpoints: Callable[[], Iterable[str]], connected: Callable[[str], None], guard: Guard
    ) -> None:
        self._endpoints = endpoints
        self._connected = connected
        self._guard = guard
        self._of_environment = servers_of_environment()
        self._names: dict[str, str] = {}
        """Address → the name that it was looked up by."""

    def patches(self) -> list[Patch]:
        """Begin to watch; what is returned takes it back."""
        return [
            AttributePatch(socket, "getaddrinfo", self._getaddrinfo, _EFFECT),
            _patch_connect(self._connecting),
        ]

    def _getaddrinfo(self, original: Any, patch: Patch) -> Any:
        @functools.wraps(original)
        def getaddrinfo(host: Any, port: Any, *args: Any, **kwargs: Any) -> Any:
            found = original(host, port, *args, **kwargs)
            if patch.active and isinstance(host, str):
                with self._guard("noting a connection"):
                    self._remember(_canonical(host), found)
            return found

        return getaddrinfo

    def _remember(self, host: str, found: Any) -> None:
        if host not in _PUBLIC and not any(each.rpartition(":")[0] == host for each in self._servers()):
            return
        for *_, address in found:
            if len(self._names) < _REMEMBERED:
                self._names[str(address[0])] = host

    def _servers(self) -> set[str]:
        return {*self._of_environment, *filter(None, map(server_of, self._endpoints()))}

    def _connecting(self, address: Any) -> None:
        with self._guard("noting a connection"):
            if not isinstance(address, tuple) or is_own_work():  # a path of a Unix socket, or our own request
                return
            host, port = str(address[0]), address[1]
            name = self._names.get(host, _canonical(host))
            if (name in _PUBLIC and port == 443) or f"{name}:{port}" in self._servers():
                self._connected(f"{name}:{port}")


def _canonical(host: str | None) -> str:
    """Return one name for this machine, and others in lower case."""
    host = (host or "").lower()
    return "localhost" if host in {"127.0.0.1", "::1"} else host


_listeners: list[Callable[[Any], None]] = []


def _patch_connect(listener: Callable[[Any], None]) -> Patch:
    """Let ``listener`` hear of each connection; ``connect`` is inherited from C, so there is nothing to put back."""

    def undo() -> None:
        _listeners.remove(listener)
        if not _listeners and vars(socket.socket).get("connect") is _connect:
            del socket.socket.connect

    if not _listeners and "connect" not in vars(socket.socket):
        socket.socket.connect = _connect  # type: ignore[method-assign, assignment]
    _listeners.append(listener)
    return Patch(f"socket.socket.connect: {_EFFECT}", undo)


def _connect(self: socket.socket, address: Any) -> None:
    for listener in tuple(_listeners):
        listener(address)
    super(socket.socket, self).connect(address)
