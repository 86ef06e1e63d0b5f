"""Where the server listens: loopback, unless somebody says otherwise in so many words."""

from __future__ import annotations

import errno
import logging
import socket

from ....errors import AgentOpsServerError
from ....remote.rule import is_loopback

logger = logging.getLogger(__name__)

BACKLOG = 1024
"""Connections that may wait while the process starts; the system caps it (net.core.somaxconn)."""


def listen(host: str, port: int, *, allow_remote: bool = False) -> socket.socket:
    """Return a socket that listens; port 0 lets the system choose one that is free.

    Raises:
        AgentOpsServerError: The port is taken, the address is not this machine's, or not loopback without
            ``allow_remote``.
    """
    if not (allow_remote or is_loopback(host)):
        raise AgentOpsServerError(
            f"{host!r} is not a loopback address: prompts and answers would be open to the network without a key. "
            "Use 127.0.0.1, or allow it with --allow-remote (allow_remote=True)"
        )
    listener = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except (OSError, OverflowError) as error:
        if listener is not None:
            listener.close()
        raise AgentOpsServerError(_why(error, host, port)) from error
    if not is_loopback(host):
        logger.warning(
            "whoever reaches port %d of %s reads, adds and deletes all prompts and answers that are sent here: there "
            "is no key and no encryption; let a firewall or a tunnel (ssh -L) decide who does",
            listener.getsockname()[1],
            host,
        )
    return listener


def _why(error: Exception, host: str, port: int) -> str:
    if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
        return (
            f"port {port} on {host} is in use by another program; choose another, or 0 for any that is free"
        )
    return f"cannot listen on {host} port {port}: {error}"
