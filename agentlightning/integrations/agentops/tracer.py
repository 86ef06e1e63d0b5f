"""``AgentOpsTracer``: whatever ``agentops`` is installed, on this machine only, recorded under the right attempt."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from contextlib import ExitStack
from difflib import get_close_matches
from inspect import signature
from typing import TYPE_CHECKING, Any

from ..._garbage import collector_paused
from ...errors import AgentOpsConfigurationError, AgentOpsError, AgentOpsUnsupported, UnknownOption
from ...instrumentation.guard import Guard
from ...pipeline.policy import RedactionPolicy
from ...remote.rule import checked_url
from ...tracer.otel import OtelTracer
from ...tracer.processor import LightningSpanProcessor
from ...tracer.provider import add_processor, remove_processor
from . import attach
from .attach import instrument_all, uninstrument_all
from .environment import around_proxies, set_environment
from .foreign_errors import translated
from .probe import Found, probe
from .processors import nothing_to_openai
from .server.manager import AgentOpsServerManager, environment_for
from .span_mirror import SpanMirror
from .table import support

if TYPE_CHECKING:
    from ...store.base import LightningStore, SyncStore

__all__ = ["AgentOpsTracer", "LightningSpanProcessor"]

_log = logging.getLogger(__name__)


class AgentOpsTracer(OtelTracer):
    """Records an agent that uses ``agentops``, or does not.

    Model calls are always recorded from their HTTP responses. AgentOps adds its decorators, traces, sessions and
    legacy events, and its instrumentations of agent frameworks. Where no ``agentops`` is installed, or an unknown
    release, only the model calls are recorded, and the log says so once.

    Args:
        agentops_managed: Start a local server in place of AgentOps' cloud, point the environment at it, and let
            AgentOps record into this tracer: nothing leaves the machine, and the default processor of
            openai-agents takes nothing for OpenAI, whether AgentOps is installed or not. With ``False`` the user's own
            set-up of AgentOps keeps working and gets its spans, and the store gets them too.
        instrument_managed: Record model calls and AgentOps. With ``False``, only spans of your program and of other
            libraries are recorded.
        daemon: Whether the local server ends with this process.
        strict: Raise an error where AgentOps cannot be recorded, instead of logging it.
        server: A local server that runs already: its manager, or its URL.
        export_to_server: Whether the local server gets a copy of the spans, for its web page.
        allow_insecure: Whether a ``server`` on another machine may be talked to without TLS.
        **options: Those of :class:`~agentlightning.tracer.OtelTracer`.

    Raises:
        UnknownOption: There is no such option.
        InsecureEndpoint: ``server`` is another machine's, and without TLS.
        ConfigurationError: An option or setting has a value that cannot be used;
            :class:`~agentlightning.errors.AgentOpsConfigurationError` where it is one of AgentOps'.
    """

    def __init__(
        self,
        *,
        agentops_managed: bool = True,
        instrument_managed: bool = True,
        daemon: bool = True,
        strict: bool = False,
        server: AgentOpsServerManager | str | None = None,
        export_to_server: bool = True,
        allow_insecure: bool = False,
        **options: Any,
    ) -> None:
        _check_names(options)
        if not (server is None or isinstance(server, (str, AgentOpsServerManager))):
            raise AgentOpsConfigurationError(
                f"server is an AgentOpsServerManager or a URL, not {type(server).__qualname__}"
            )
        super().__init__(**{"instrument_llm_calls": instrument_managed, **options})
        self._agentops_managed = agentops_managed
        self._instrument_managed = instrument_managed
        self._strict = strict
        self._export_to_server = export_to_server
        self._starts_server = server is None
        self._server = server if isinstance(server, AgentOpsServerManager) else AgentOpsServerManager(daemon)
        self._server_url = (
            checked_url(server, allow_insecure=allow_insecure).rstrip("/")
            if isinstance(server, str)
            else None
        )
        # A server that was started here listens where its own switch lets it.
        self._allow_insecure = allow_insecure or self._server_url is None
        self._undo = ExitStack()
        self._starting_in: int | None = None
        self._has_said_why = False

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_undo": ExitStack(), "_starting_in": None}

    @property
    def server(self) -> AgentOpsServerManager:
        """The local server of managed mode; a copy of this tracer in another process has a copy of it."""
        return self._server

    # ------------------------------------------------------------------ life cycle

    def init(self, *args: Any, **kwargs: Any) -> None:
        """Start the local server, for this process and all workers that get a copy of this tracer.

        ``init_worker`` waits until it answers; its address is known at once.

        Raises:
            AgentOpsServerError: It cannot listen.
        """
        super().init(*args, **kwargs)
        self._start_server()

    def init_worker(self, worker_id: int, store: LightningStore | SyncStore | None = None) -> None:
        """Begin to record in this process.

        Raises:
            TracerNotReady: ``init_worker`` was called before without ``teardown_worker``.
            AgentOpsUnsupported: ``strict``, and there is no ``agentops`` that can be recorded.
            APIError, SessionError, AgentOpsConfigurationError: ``strict``, and the start of ``agentops`` raised what
                means this; its own exception is the cause.
            AgentOpsServerError: The local server died, or does not answer; the message has its stderr.
        """
        super().init_worker(worker_id, store)
        try:
            self._start_server()
            with collector_paused():  # most of it is the import of agentops
                self._attach()
            self._wait_for_server()
        except BaseException:
            self.teardown_worker(worker_id)
            raise

    def teardown_worker(self, worker_id: int) -> None:
        """Write what is queued and leave the process as it was: AgentOps, the environment, the providers."""
        self._undo.close()
        super().teardown_worker(worker_id)

    def teardown(self, *args: Any, **kwargs: Any) -> None:
        """Undo ``init``: end the local server, if this tracer started it in this process."""
        super().teardown(*args, **kwargs)
        if self._agentops_managed and self._starts_server:
            self._server.stop()

    def instrument(self, worker_id: int) -> None:
        """Record what ``instrumentation.instrument_all`` records, outside of ``init_worker`` (0.3)."""
        del worker_id
        instrument_all()

    def uninstrument(self, worker_id: int) -> None:
        """Take back what ``instrument`` did (0.3)."""
        del worker_id
        uninstrument_all()

    def get_langchain_callback_handler(self, tags: list[str] | None = None) -> Any | None:
        """Return :meth:`get_langchain_handler` (0.2's name)."""
        return self.get_langchain_handler(tags)

    def get_langchain_handler(self, tags: list[str] | None = None) -> Any | None:
        """Return AgentOps' LangChain callback handler, or ``None`` where there is none or LangChain is missing.

        Args:
            tags: Given on to AgentOps' handler.

        Given as ``config={"callbacks": [handler]}``, it adds the runs of chains, graphs and tools to the tree; each
        model call stays one span.
        """
        from .langchain import callback_handler

        try:
            return callback_handler(tags)
        except ImportError:
            return None

    # ------------------------------------------------------------------ AgentOps

    def _start_server(self) -> None:
        if self._agentops_managed and self._server_url is None and not self._server.is_alive():
            self._server.start(wait=False)  # it comes up while ``agentops`` is imported
            self._starting_in = os.getpid()

    def _wait_for_server(self) -> None:
        if self._starting_in == os.getpid():
            self._starting_in = None
            self._server.wait_until_ready()

    def _attach(self) -> None:
        """Record AgentOps too, or say why not."""
        if not self._instrument_managed:
            return
        session = self._ready().session
        guard = Guard(self._policy)
        if self._agentops_managed:
            url = self._server_url or self._server.url
            variables = {**environment_for(url), **around_proxies()}
            self._undo.callback(set_environment(variables).undo)
            self._copy_to(url)
            self._undo.callback(nothing_to_openai(guard).undo)
        found = probe()
        known = support(found)
        if known.verdict != "captured":
            self._not_recorded(AgentOpsUnsupported(known.sentence), missing=known.verdict == "absent")
            return
        try:
            patches = (
                attach.managed(found, session.provider, url, guard)
                if self._agentops_managed
                else attach.unmanaged(found, session.provider, session.join, guard)
            )
        except Exception as error:  # noqa: BLE001 - an import of a stranger's package may raise anything
            self._not_recorded(translated(error, _sentence(found, error)), error)
            return
        self._undo.callback(patches.undo)
        for patch in patches:
            _log.debug("agentops %s: %s", found.version, patch.description)

    def _copy_to(self, url: str) -> None:
        if not self._export_to_server:
            return
        try:
            copies = SpanMirror(
                url,
                self.processor,
                allow_insecure=self._allow_insecure,
                masks=self._redaction is not RedactionPolicy.OFF,
            )
        except ImportError:
            _log.debug("no OTLP exporter is installed, so the local AgentOps server gets no spans")
            return
        provider = self._ready().session.provider
        add_processor(provider, copies)
        self._undo.callback(copies.shutdown)
        self._undo.callback(remove_processor, provider, copies)

    def _not_recorded(
        self, reason: AgentOpsError, cause: Exception | None = None, *, missing: bool = False
    ) -> None:
        if self._strict:
            raise reason from cause
        if not self._has_said_why:
            self._has_said_why = True
            (_log.info if missing else _log.error)("AgentOps is not recorded: %s", reason)


_OPTIONS = frozenset(signature(OtelTracer.__init__).parameters) - {"self"}


def _check_names(options: Mapping[str, Any]) -> None:
    for name in options:
        if name not in _OPTIONS:
            near = get_close_matches(name, _OPTIONS, 1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(_OPTIONS))}"
            raise UnknownOption(f"AgentOpsTracer has no option {name!r}; {hint}")


def _sentence(found: Found, error: Exception) -> str:
    return (
        f"agentops {found.version} does not start here ({type(error).__name__}: {error}); model calls are "
        "recorded from the HTTP response"
    )
