"""What runs in the server's process: serve on the inherited socket until the parent is gone."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import resource
import select
import signal
import socket
import threading
from typing import Any

from setproctitle import setproctitle

from ...._printable import PrintableFormatter
from .app import create_app
from .process import READY, TITLE
from .wsgi import WsgiServer

CHECK_SECONDS = 0.5
"""How often to look for the parent where the system cannot tell its end (pidfd_open: Linux 5.3)."""


def main(told: str) -> None:
    """Serve; ``told`` is JSON from ``process.spawn``."""
    options: dict[str, Any] = json.loads(told)
    setproctitle(TITLE)
    _own_signals()
    _allow_many_connections()
    handler = logging.StreamHandler()
    handler.setFormatter(PrintableFormatter("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=options.get("log_level", "WARNING"), handlers=[handler])
    channel = socket.socket(fileno=options["channel"])
    listener = socket.socket(fileno=options["listener"])
    server = WsgiServer(listener, create_app(local_only=not options.get("allow_remote")))
    serving = threading.Thread(target=server.serve_forever, name="serve", daemon=True)
    serving.start()
    try:
        channel.sendall(READY)
    except OSError:
        os._exit(0)  # the parent is gone already
    if not options["daemon"]:
        channel.close()
        serving.join()
        return
    _wait_for_end(channel, options["parent"])
    os._exit(0)  # nothing to keep: threads may be in the middle of an answer that nobody waits for


def _own_signals() -> None:
    """Undo what a parent may have blocked or ignored; Ctrl-C is for the parent."""
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def _allow_many_connections() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (max(soft, min(hard, 65_536) if hard > 0 else 65_536), hard)
        )


def _wait_for_end(channel: socket.socket, parent: int) -> None:
    poll = select.poll()
    poll.register(channel, select.POLLIN)
    pidfd = _pidfd(parent)
    if pidfd is not None:
        poll.register(pidfd, select.POLLIN)
    # Looked at after the pidfd was opened: a parent that died before has left us to another.
    while os.getppid() == parent:
        if poll.poll(None if pidfd is not None else CHECK_SECONDS * 1000):
            return


def _pidfd(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return None
