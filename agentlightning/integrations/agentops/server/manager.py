"""``AgentOpsServerManager``: the local AgentOps server in a process of its own, started and stopped from here.

The names and their meaning are those of Agent Lightning 0.2 and 0.3. Several workers and several trainers may share one
server by its URL: a pickled or forked copy of a manager talks to the same server and never stops it.
"""

from __future__ import annotations

import contextlib
import http.client
import importlib
import json
import logging
import os
import weakref
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlencode

from ...._locks import reentrant_lock
from ....errors import AgentOpsServerError
from .address import listen
from .process import START_SECONDS, ServerProcess, spawn

logger = logging.getLogger(__name__)

API_KEY = "00000000-0000-4000-8000-000000000000"
"""Versions 0.3.6 to 0.3.26 take only a UUID for a key; the server takes anything."""
ASK_SECONDS = 10.0


def environment_for(url: str) -> dict[str, str]:
    """Return the variables that lead every version of ``agentops`` to a server, and keep it from writing files."""
    return {
        "AGENTOPS_API_KEY": API_KEY,
        "AGENTOPS_API_ENDPOINT": url,
        "AGENTOPS_APP_URL": url,
        "AGENTOPS_EXPORTER_ENDPOINT": f"{url}/v1/traces",
        "AGENTOPS_LOGGING_TO_FILE": "false",
    }


class AgentOpsServerManager:
    """Starts, finds and stops a local AgentOps server.

    Args:
        daemon: Whether the server ends with this process, however that ends. If not, only :meth:`stop` ends it.
        port: Where to listen; default one that is free, a new one with each start.
        host: A loopback address.
        allow_remote: Whether ``host`` may be another address.
        log_level: Of the server's process.
        start_seconds: When :meth:`start` gives up on a process that lives and does not answer.
    """

    def __init__(
        self,
        daemon: bool = True,
        port: int | None = None,
        host: str = "127.0.0.1",
        *,
        allow_remote: bool = False,
        log_level: str = "WARNING",
        start_seconds: float = START_SECONDS,
    ) -> None:
        self.daemon = daemon
        self.host = host
        self.server_process: ServerProcess | None = None
        """The server's process, if this manager started it."""
        self.server_port: int | None = port
        """Where the server listens; after a stop, where it did."""
        self._wanted_port = port
        self._allow_remote = allow_remote
        self._log_level = log_level
        self._start_seconds = start_seconds
        self._begin()

    def _begin(self, *, is_copy: bool = False) -> None:
        self._is_copy = is_copy
        self._owner = os.getpid()
        # Guards the process and its finalizer: of threads that start at one moment one starts a server, and a server
        # is stopped once. It stays the same for as long as the manager lives, so that nobody waits for an old one.
        self._lock = reentrant_lock()
        self._finalizer: weakref.finalize[Any, Any] | None = None

    # ------------------------------------------------------------------ life

    def start(self, *, wait: bool = True) -> None:
        """Start the server and return when it can answer; without ``wait``, return at once.

        The address is known and can be connected to in either case; what is sent early is answered when the server
        is up, and :meth:`wait_until_ready` says when that is. A second start changes nothing and logs a warning; so
        does a start of a copy whose server runs.

        Raises:
            AgentOpsServerError: It cannot listen there, or died; the message has its stderr.
        """
        with self._lock:
            if self.is_alive():
                logger.warning("the AgentOps server is running already, at %s", self.url)
                return
            self._release()
            self._is_copy, self._owner = False, os.getpid()
            listener = listen(self.host, self._wanted_port or 0, allow_remote=self._allow_remote)
            with contextlib.closing(listener):
                options = {"log_level": self._log_level, "allow_remote": self._allow_remote}
                process = spawn(listener, options, daemon=self.daemon)
                self.server_port = listener.getsockname()[1]
            self.server_process = process
            self._finalizer = weakref.finalize(self, _end, process, os.getpid(), self.daemon)
            if wait:
                self.wait_until_ready()

    def wait_until_ready(self) -> None:
        """Return when the server of this manager can answer.

        Raises:
            AgentOpsServerError: It died or does not answer; the message has its stderr.
        """
        process = self.server_process
        if process is None:
            raise AgentOpsServerError("this manager started no AgentOps server; call start()")
        try:
            process.wait_until_ready(self._start_seconds)
        except AgentOpsServerError:
            with self._lock:
                self._release()
            raise
        logger.debug("the AgentOps server answers at %s, process %d", self.url, process.pid)

    def stop(self) -> None:
        """End the server that this manager started; without one, and in a copy, nothing happens."""
        with self._lock:
            process = self.server_process
            if process is None or not self._is_owner():
                logger.debug("no AgentOps server of this manager to stop")
                return
            if not process.is_alive():
                logger.warning(
                    "the AgentOps server had ended by itself: %s", process.complaint() or "no word"
                )
            self._release()

    def _release(self) -> None:
        if self._finalizer is not None:
            self._finalizer.detach()
            self._finalizer = None
        if self.server_process is not None:
            (self.server_process.stop if self._is_owner() else self.server_process.forget)()
            self.server_process = None

    def _is_owner(self) -> bool:
        return not self._is_copy and self._owner == os.getpid()

    def is_alive(self) -> bool:
        """Whether the server runs; a copy asks it."""
        process = self.server_process
        if self._is_owner():
            return process is not None and process.is_alive()
        return self.server_port is not None and self._answers()

    def get_port(self) -> int | None:
        """Return where the server listens, or did: then a warning is logged."""
        if self.server_port is not None and not self.is_alive():
            logger.warning("the AgentOps server on port %d is not running", self.server_port)
        return self.server_port

    @property
    def url(self) -> str:
        """``http://host:port``.

        Raises:
            AgentOpsServerError: It was never started.
        """
        if not self.server_port:
            raise AgentOpsServerError("the AgentOps server has no address yet; call start()")
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.server_port}"

    def environment(self) -> dict[str, str]:
        """Return the variables that lead every version of ``agentops`` to this server."""
        return environment_for(self.url)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.stop()

    # ------------------------------------------------------------------ what it received, and faults

    def recorded(self, kind: str | None = None, *, after: int = 0) -> Any:
        """Return what the server received: lists by kind, ``counts`` and ``last``; with ``kind``, that list only.

        Args:
            kind: One of ``spans``, ``requests``, ``sessions``, ``events``, ``agents``, ``logs``, ``objects``,
                ``metrics``, ``errors``.
            after: Leave out what came until this number, which an earlier answer had under ``last``.

        Raises:
            AgentOpsServerError: The server does not answer, or knows no such kind.
        """
        query: dict[str, str | int] = {"after": after} if kind is None else {"after": after, "kind": kind}
        found = self._ask("GET", f"/_recorded?{urlencode(query)}")
        return found if kind is None else found[kind]

    def spans(self) -> list[Any]:
        """Return the spans that the server received, as :class:`agentlightning.types.Span`."""
        # The rest of this module does without pydantic.
        types = importlib.import_module("agentlightning.types")
        json_text = importlib.import_module("agentlightning.codec.json_text")
        # The marks of codec.json_text, for values that JSON has no words for, are undone.
        return [
            types.Span.model_validate(json_text.loads(json.dumps(span))) for span in self.recorded("spans")
        ]

    def clear(self) -> None:
        """Forget what was received."""
        self._ask("DELETE", "/_recorded")

    def fail(
        self,
        status: int | None = None,
        *,
        n: int = 1,
        delay: float = 0.0,
        cut: bool = False,
        content_type: str | None = None,
        path: str = "",
    ) -> None:
        """Make the next requests go wrong; see ``faults.Fault`` for what each argument does.

        Raises:
            AgentOpsServerError: The server does not answer, or an argument is out of range.
        """
        order = {
            "status": status,
            "n": n,
            "delay": delay,
            "cut": cut,
            "content_type": content_type,
            "path": path,
        }
        self._ask("POST", "/_fail", {name: value for name, value in order.items() if value is not None})

    def recover(self) -> None:
        """Take back what :meth:`fail` ordered."""
        self._ask("DELETE", "/_fail")

    def _ask(self, method: str, target: str, body: Mapping[str, Any] | None = None) -> Any:
        """Ask the server directly: no proxy of the environment stands between this machine and itself."""
        url = self.url
        connection = http.client.HTTPConnection(self.host, self.server_port, timeout=ASK_SECONDS)
        try:
            content = None if body is None else json.dumps(body)
            connection.request(method, target, content, {"Content-Type": "application/json"})
            response = connection.getresponse()
            found = json.loads(response.read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise AgentOpsServerError(f"the AgentOps server at {url} does not answer: {error}") from error
        finally:
            connection.close()
        if response.status != http.client.OK:
            raise AgentOpsServerError(f"the AgentOps server refuses {method} {target}: {found.get('error')}")
        return found

    def _answers(self) -> bool:
        try:
            self._ask("GET", "/health")
        except AgentOpsServerError:
            return False
        return True

    # ------------------------------------------------------------------ copies

    def __getstate__(self) -> dict[str, Any]:
        kept = (
            "daemon",
            "host",
            "server_port",
            "_wanted_port",
            "_allow_remote",
            "_log_level",
            "_start_seconds",
        )
        state = {name: getattr(self, name) for name in kept}
        return {**state, "is_copy": self._is_copy or self.server_process is not None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        is_copy = state.pop("is_copy")
        self.__dict__.update(state)
        self.server_process = None
        self._begin(is_copy=is_copy)

    def __repr__(self) -> str:
        return f"<AgentOpsServerManager host={self.host!r} port={self.server_port} daemon={self.daemon}>"


def _end(process: ServerProcess, owner: int, daemon: bool) -> None:
    """End the server of a manager that was forgotten, or at the end of this process."""
    if owner != os.getpid() or not daemon:
        process.forget()
    else:
        process.stop()
