"""AgentOps 0.4 in managed mode: its decorators and traces work offline, on the tracer provider of the recorder.

Its own start would install a second provider, an exporter and a metric reader with a thread each, replace ``print`` and
``__import__``, wrap the model clients so that streams change their type, and wait for a server. Here its ``init`` runs
with the few functions replaced that do these things. What remains is what agents use: ``@operation`` and the
other decorators, ``start_trace`` and ``end_trace``, sessions, and its instrumentations of agent frameworks. Model calls
are captured at the HTTP client, so its instrumentations of model clients stay off.

Every replacement is a :class:`~agentlightning.instrumentation.patch.Patch` that says what it does.
"""

from __future__ import annotations

import atexit
import functools
import importlib
import logging
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from opentelemetry import trace
from opentelemetry.trace import Status, StatusCode

from ...instrumentation.guard import Guard
from ...instrumentation.patch import AttributePatch, Patch, Patches
from .frameworks import instrument_frameworks
from .probe import Found
from .server.manager import API_KEY

_log = logging.getLogger(__name__)

_ONE_PROVIDER = "its spans go to our provider; no exporter, no metrics, no other print"
_NO_WAIT = "ending a trace waits for nobody"
_NO_SERVER = "it is authenticated without asking a server"
_END_STATE = "agentops.session.end_state"
_FAILED = frozenset({"error", "fail", "failure", "failed"})
_SUCCEEDED = frozenset({"success", "ok"})


def manage(found: Found, provider: Any, url: str, guard: Guard) -> Patches:
    """Import AgentOps 0.4, and start it as a guest on ``provider``.

    Args:
        found: What the probe found: ``A1``, ``A2`` or ``A3``.
        provider: The tracer provider that its spans go to.
        url: The server that it is told of, should the agent use its client by itself.
        guard: Where exceptions of our own code go.

    Raises:
        Exception: Whatever its import or its start raises; everything is undone then.
    """
    patches = Patches(f"AgentOps {found.version} on our provider")
    try:
        agentops = importlib.import_module("agentops")
        core = importlib.import_module("agentops.sdk.core")
        for patch in _without_own_telemetry(core, provider):
            patches.add(patch)
        client = agentops.get_client()
        for patch in _offline(type(client)):
            patches.add(patch)
        patches.add(_state_of_client(core, client))
        client.init(
            api_key=API_KEY,
            endpoint=url,
            exporter_endpoint=f"{url}/v1/traces",
            auto_start_session=False,
            instrument_llm_calls=False,
        )
        _check_started(core)
        for exit_handler in _exit_handlers(core):
            atexit.unregister(exit_handler)
        patches.add(
            AttributePatch(
                type(client),
                "init",
                functools.partial(_agents_own_init, agentops),
                "an agent's own init gives it a session, and starts nothing else",
            )
        )
        patches.add(end_states(core))
        frameworks = instrument_frameworks(found, provider, guard)
        if frameworks is not None:
            patches.add(frameworks)
    except BaseException:
        patches.undo()
        raise
    return patches


def _check_started(core: ModuleType) -> None:
    # ``init`` logs what fails in it and returns.
    if not core_object(core).initialized:
        raise RuntimeError("its tracing core did not start")


def core_object(core: ModuleType) -> Any:
    """Return the one ``TracingCore``: a singleton of the class up to 0.4.14, a global of the module since."""
    get_instance = getattr(core.TracingCore, "get_instance", None)
    return get_instance() if get_instance is not None else core.tracer


def core_provider(core: ModuleType) -> Any:
    """Return the provider of AgentOps' own, or ``None`` before its start."""
    held = core_object(core)
    return getattr(held, "provider", None) or getattr(held, "_provider", None)


# ---------------------------------------------------------------------- its start


def _without_own_telemetry(core: ModuleType, provider: Any) -> list[Patch]:
    """Replace what would install a provider, threads, and a ``print`` of its own; and flushes that wait."""
    patches: list[Patch] = []
    if "setup_telemetry" in vars(core):
        patches.append(AttributePatch(core, "setup_telemetry", _on_our_provider(provider), _ONE_PROVIDER))
    else:  # 0.4.2, 0.4.3
        patches.append(AttributePatch(core.TracingCore, "initialize", _initialize(provider), _ONE_PROVIDER))
    if "_flush_span_processors" in vars(core.TracingCore):
        patches.append(AttributePatch(core.TracingCore, "_flush_span_processors", _nothing, _NO_WAIT))
    legacy = sys.modules.get("agentops.legacy")
    if legacy is not None and "_flush_span_processors" in vars(legacy):
        patches.append(AttributePatch(legacy, "_flush_span_processors", _nothing, _NO_WAIT))
    client = importlib.import_module("agentops.client.client")
    if "intercept_opentelemetry_logging" in vars(client):
        patches.append(
            AttributePatch(
                client,
                "intercept_opentelemetry_logging",
                _nothing,
                "OpenTelemetry's loggers stay as they are",
            )
        )
    patches.append(logger_as_it_was("agentops"))
    return patches


def _on_our_provider(provider: Any) -> Callable[[Any, Patch], Any]:
    def wrap(original: Any, patch: Patch) -> Any:
        @functools.wraps(original)
        def setup_telemetry(*args: Any, **kwargs: Any) -> Any:
            return (provider, None) if patch.active else original(*args, **kwargs)

        return setup_telemetry

    return wrap


def _initialize(provider: Any) -> Callable[[Any, Patch], Any]:
    def wrap(original: Any, patch: Patch) -> Any:
        @functools.wraps(original)
        def initialize(core: Any, *args: Any, **kwargs: Any) -> None:
            if not patch.active:
                original(core, *args, **kwargs)
                return
            # The attributes that the original sets.
            vars(core).update(
                _provider=provider, _config={"max_wait_time": 5000, **kwargs}, _initialized=True
            )

        return initialize

    return wrap


def _nothing(original: Any, patch: Patch) -> Any:
    @functools.wraps(original)
    def nothing(*args: Any, **kwargs: Any) -> Any:
        return None if patch.active else original(*args, **kwargs)

    return nothing


def _offline(client_class: type) -> list[Patch]:
    """Let its client be authenticated without a request to any server."""
    if "_start_auth_task" in vars(client_class):  # since 0.4.19, in the background
        return [AttributePatch(client_class, "_start_auth_task", _authenticated_offline, _NO_SERVER)]
    v3 = importlib.import_module("agentops.client.api.versions.v3")
    return [AttributePatch(v3.V3Client, "fetch_auth_token", _token, _NO_SERVER)]


def _authenticated_offline(original: Any, patch: Patch) -> Any:
    @functools.wraps(original)
    def _start_auth_task(client: Any, api_key: str) -> None:
        if not patch.active:
            original(client, api_key)
            return
        client._set_auth_data("local", "local")  # noqa: SLF001 - what the original does with an answer
        client.api.v4.set_auth_token("local")

    return _start_auth_task


def _token(original: Any, patch: Patch) -> Any:
    @functools.wraps(original)
    def fetch_auth_token(*args: Any, **kwargs: Any) -> Any:
        if not patch.active:
            return original(*args, **kwargs)
        return {"token": "local", "project_id": "local", "project_prem_status": "pro"}

    return fetch_auth_token


def _state_of_client(core: ModuleType, client: Any) -> Patch:
    """Return a patch whose undoing lets AgentOps be started again, by us or by its user, and ends open spans.

    It changes nothing now. It has to be added before ``init`` runs, so that a start that fails is undone too.
    """

    def undo() -> None:
        held = core_object(core)
        # First: it finds the spans that are open in what is emptied below.
        _end_what_is_open(held)
        held._initialized = False  # noqa: SLF001 - its shutdown would shut our provider down
        for name in ("provider", "_provider", "_meter_provider"):
            if name in vars(held):
                setattr(held, name, None)
        client._initialized = False  # noqa: SLF001 - the property refuses False up to 0.4.12
        # What it keeps of a trace that it has begun by itself, and that was ended above.
        for name in ("_init_trace_context", "_legacy_session_for_init_trace"):
            if hasattr(client, name):
                setattr(client, name, None)
        getattr(held, "_active_traces", {}).clear()

    return Patch("state of AgentOps' client and core", undo)


def _end_what_is_open(held: Any) -> None:
    legacy = sys.modules.get("agentops.legacy")
    owners = [*getattr(held, "_active_traces", {}).values(), getattr(legacy, "_current_session", None)]
    for owner in owners:
        span = getattr(owner, "span", None)
        if span is not None and span.is_recording():
            span.end()
    if legacy is not None and hasattr(legacy, "_current_session"):
        legacy._current_session = None  # type: ignore[attr-defined]  # noqa: SLF001


def _exit_handlers(core: ModuleType) -> list[Callable[..., Any]]:
    """Return its handlers for the end of the process: they would shut our provider down before it is flushed."""
    module = importlib.import_module("agentops.client.client")
    names = ("_end_init_trace_atexit", "_end_active_session", "_end_init_trace")
    found = [getattr(module, name) for name in names if hasattr(module, name)]
    return [core_object(core).shutdown, *found]


def logger_as_it_was(name: str) -> Patch:
    """Undoing gives a logger its handlers, level and propagation back."""
    logger = logging.getLogger(name)
    before = logger.propagate, logger.level, list(logger.handlers), logger.disabled

    def undo() -> None:
        logger.propagate, logger.disabled = before[0], before[3]
        logger.setLevel(before[1])
        for handler in [each for each in logger.handlers if each not in before[2]]:
            logger.removeHandler(handler)
            handler.close()
        for handler in before[2]:
            logger.addHandler(handler)

    return Patch(f"logger {name}", undo)


def _agents_own_init(agentops: ModuleType, original: Any, patch: Patch) -> Any:
    """What an agent's own ``agentops.init(...)`` does: it keeps to this machine and gives the session it asks for."""

    @functools.wraps(original)
    def init(client: Any, **kwargs: Any) -> Any:
        if not patch.active:
            return original(client, **kwargs)
        if kwargs.get("auto_start_session") is False:
            return None
        tags = kwargs.get("default_tags")
        return agentops.start_session(tags=list(tags)) if tags else agentops.start_session()

    return init


# ---------------------------------------------------------------------- what its users say


def end_states(core: ModuleType) -> Patch:
    """Store the states of ``end_trace`` as their words, and as the status of the span.

    ``TraceState`` and OpenTelemetry's ``StatusCode``, which 0.4.15 and later take, are no attribute values: they are
    dropped, or stored as ``StatusCode.OK``. The span's own status stays UNSET in all releases.
    """
    patches = Patches("end states of AgentOps' traces as words and as status")
    if "get_session_end_attributes" in vars(core):
        patches.add(
            AttributePatch(core, "get_session_end_attributes", _words, "end states are stored as words")
        )
    owner = core.TracingCore
    if "finalize_span" in vars(owner):
        patches.add(
            AttributePatch(
                owner, "finalize_span", _with_status, "end states are the status of the span as well"
            )
        )
    return patches


def state_word(state: Any) -> str:
    """Return the word of an end state: ``Success``, ``Error``, ``Indeterminate``, or a user's own string."""
    if isinstance(state, str) and type(state) is str:
        return state
    name = str(getattr(state, "name", state))
    return {"OK": "Success", "SUCCESS": "Success", "ERROR": "Error", "UNSET": "Indeterminate"}.get(name, name)


def _words(original: Any, patch: Patch) -> Any:
    @functools.wraps(original)
    def get_session_end_attributes(end_state: Any) -> Any:
        return original(state_word(end_state) if patch.active else end_state)

    return get_session_end_attributes


def _with_status(original: Any, patch: Patch) -> Any:
    @functools.wraps(original)
    def finalize_span(core: Any, span: Any, *args: Any, **kwargs: Any) -> Any:
        if patch.active:
            set_status_of_state(span)
        return original(core, span, *args, **kwargs)

    return finalize_span


def set_status_of_state(span: Any) -> None:
    """Give a span the status that its end state says, unless it has one."""
    state = (getattr(span, "attributes", None) or {}).get(_END_STATE)
    status: Status | None = getattr(span, "status", None)
    if not isinstance(state, str) or (status is not None and status.status_code is not StatusCode.UNSET):
        return
    word = state.lower()
    if word in _FAILED:
        span.set_status(trace.Status(StatusCode.ERROR, state))
    elif word in _SUCCEEDED:
        span.set_status(trace.Status(StatusCode.OK))
