"""AgentOps 0.2 and 0.3 offline: a client that sends nothing, and sessions that belong to attempts.

Its HTTP client answers by itself, its threads and its handlers of signals and exceptions are not started, and its
instrumentation of model clients stays off. Sessions belong to the attempt that they were started in, so that
concurrent rollouts, which all call ``agentops.init()``, do not get into each other's way; an attempt that needs a
session and has none is given one.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import logging
import os
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, MutableSequence
from types import ModuleType
from typing import Any, Final, Generic, TypeVar
from weakref import WeakSet

from opentelemetry import baggage
from opentelemetry import context as otel_context
from opentelemetry.sdk.trace import SpanProcessor

from ..._locks import reentrant_lock
from ...instrumentation.guard import Guard
from ...instrumentation.patch import AttributePatch, Patch, Patches
from ...semconv import LightningResourceAttributes
from .server.manager import API_KEY

T = TypeVar("T")
Attempt = tuple[object, object] | None

_ROLLOUT: Final = LightningResourceAttributes.ROLLOUT_ID.value
_ATTEMPT: Final = LightningResourceAttributes.ATTEMPT_ID.value
_ATTEMPTS: Final = 1024
"""Attempts whose sessions are remembered, the newest of them."""
_NEED_A_SESSION: Final = ("add_tags", "set_tags", "end_session", "create_agent", "_record_event_sync")
"""Methods of the client; the last one, of 0.2.0 to 0.3.4, needs it to report the exception of a function."""


def client_class(client: ModuleType) -> type:
    """Return the class behind ``agentops.client.Client``, which is a function that gives the one instance."""
    return inspect.getclosurevars(client.Client).nonlocals["class_"]  # type: ignore[no-any-return]


def _instances(client: ModuleType) -> dict[type, Any]:
    """Return the table of that function: its own in 0.2, one for all such functions later."""
    seen = inspect.getclosurevars(client.Client)
    table: dict[type, Any] = {**seen.globals, **seen.nonlocals}[
        "instances" if "instances" in seen.nonlocals else "ao_instances"
    ]
    return table


# ---------------------------------------------------------------------- offline


def offline(agentops: ModuleType) -> Iterator[Patch]:
    """Replace what calls, listens, waits and looks around; each patch is handed out as soon as it is made."""
    http = importlib.import_module("agentops.http_client")
    client = importlib.import_module("agentops.client")
    session = importlib.import_module("agentops.session")
    worker = sys.modules.get("agentops.worker")  # the client imports it where the release has it
    answers = Patches("its HTTP client answers by itself; nothing is sent")
    yield answers
    for name in ("post", "get"):
        if name in vars(http.HttpClient):
            answers.add(AttributePatch(http.HttpClient, name, functools.partial(_answering, http)))
    no_handlers = "no handlers of signals, exceptions and the process's end"
    no_thread = "no thread for its queue"
    for description, owner, name, wrap in (
        (no_handlers, client_class(client), "_handle_unclean_exits", _nothing),
        ("no question to pypi.org", agentops, "check_agentops_update", _nothing),
        (no_thread, worker and worker.Worker, "run", _nothing),
        (no_thread, session.Session, "_run", _nothing),
        (no_thread, session, "BatchSpanProcessor", _idle_processor),  # since 0.3.21
        (
            "no handler for the process's end for every session",
            session,
            "TracerProvider",
            _without_exit_handler,
        ),
        ("no survey of this machine for every session", client, "get_host_env", _nothing),
    ):
        if owner is not None and name in vars(owner):
            yield Patches(description, [AttributePatch(owner, name, wrap)])


def _answering(http: ModuleType, original: Any, patch: Patch) -> Any:
    send = original.__get__(None, http.HttpClient)  # as it is called, whatever kind of method it is

    @functools.wraps(send)
    def answer(url: str, *args: Any, **kwargs: Any) -> Any:
        if not patch.active:
            return send(url, *args, **kwargs)
        response = http.Response(http.HttpStatus.SUCCESS, {"status": "Success"})
        # Without ``jwt`` in the answer the session counts as refused, and ``start_session`` returns None.
        if url.endswith(("/v2/create_session", "/v2/reauthorize_jwt")):
            response.body["jwt"] = "local"
        return response

    return staticmethod(answer)


def _nothing(original: Any, patch: Patch) -> Any:
    @functools.wraps(original)
    def nothing(*args: Any, **kwargs: Any) -> Any:
        return None if patch.active else original(*args, **kwargs)

    return nothing


def _idle_processor(original: Any, patch: Patch) -> Any:
    @functools.wraps(original, updated=())
    def make(*args: Any, **kwargs: Any) -> Any:
        return SpanProcessor() if patch.active else original(*args, **kwargs)

    return make


def _without_exit_handler(original: Any, patch: Patch) -> Any:
    @functools.wraps(original, updated=())
    def make(*args: Any, **kwargs: Any) -> Any:
        return original(*args, **{"shutdown_on_exit": False, **kwargs} if patch.active else kwargs)

    return make


def no_links_in_the_log() -> Patch:
    """Keep addresses of AgentOps' site out of the log: there is nothing to be seen at them."""
    logger = logging.getLogger("agentops")

    def keeps(record: logging.LogRecord) -> bool:
        return "Session Replay:" not in str(record.msg)

    logger.addFilter(keeps)
    return Patch("no links to sessions that its site does not have", lambda: logger.removeFilter(keeps))


# ---------------------------------------------------------------------- sessions of attempts


def attempt_in(context: otel_context.Context | None = None) -> Attempt:
    """Return the rollout and attempt that a context names (default: the current one), or ``None``."""
    ids = baggage.get_baggage(_ROLLOUT, context), baggage.get_baggage(_ATTEMPT, context)
    return None if None in ids else ids


class PerAttempt(Generic[T]):
    """One object for each attempt, made when it is first asked for; the oldest are forgotten."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._kept: OrderedDict[Attempt, T] = OrderedDict()
        # Guards ``_kept``. ``make`` runs under it, so that two threads of an attempt get the same object; it must not
        # ask for another object of this table.
        self._lock = reentrant_lock()

    def here(self) -> T:
        """Return the object of the present attempt."""
        key = attempt_in()
        with self._lock:
            if key not in self._kept:
                self._kept[key] = self._make()
                if len(self._kept) > _ATTEMPTS:
                    self._kept.popitem(last=False)
            return self._kept[key]

    def all(self) -> list[T]:
        """Return every object that is kept, the oldest first."""
        with self._lock:
            return list(self._kept.values())


class _Sessions(MutableSequence[Any]):
    """What 0.3's list of open sessions is for a guest: those of the current attempt."""

    def __init__(self) -> None:
        self._lists: PerAttempt[list[Any]] = PerAttempt(list)

    def __getitem__(self, index: Any) -> Any:
        return self._lists.here()[index]

    def __setitem__(self, index: Any, value: Any) -> None:
        self._lists.here()[index] = value

    def __delitem__(self, index: Any) -> None:
        del self._lists.here()[index]

    def __len__(self) -> int:
        return len(self._lists.here())

    def insert(self, index: int, value: Any) -> None:
        self._lists.here().insert(index, value)

    def remove(self, value: Any) -> None:
        """Forget a session of any attempt; one that is not known is none of ours."""
        for each in self._lists.all():
            if value in each:
                each.remove(value)

    def everywhere(self) -> Iterable[Any]:
        return [session for each in self._lists.all() for session in each]


class GuestClient:
    """The client of a managed AgentOps, and what is different about it; ``patches`` takes it back.

    Args:
        agentops: The package.
        guard: Where exceptions of our own code go.
    """

    def __init__(self, agentops: ModuleType, guard: Guard) -> None:
        self._agentops = agentops
        self._module = importlib.import_module("agentops.client")
        self._class = client_class(self._module)
        self._provided: WeakSet[Any] = WeakSet()
        """Sessions that were started here for an attempt that had none; the agent's own replaces them."""
        self._guard = guard
        self.patches = Patches("a client of its own, with the sessions of each attempt apart")
        try:
            self._start()
        except BaseException:
            self.patches.undo()
            raise

    def _start(self) -> None:
        self.patches.add(self._only_instance())
        client = self._make_client()
        if "_sessions" in vars(client):
            self._separate_sessions(client)
        else:
            for name in ("_session", "_worker"):
                self.patches.add(_slot_per_attempt(self._class, name))
        if "is_initialized" in vars(self._agentops):  # up to 0.3.4
            self.patches.add(_value(self._agentops, "is_initialized", True))
        for name in _NEED_A_SESSION:
            if name in vars(self._class):
                self.patches.add(AttributePatch(self._class, name, self._with_session))
        self.patches.add(AttributePatch(self._class, "start_session", self._in_place_of_provided))
        self.patches.add(AttributePatch(self._agentops, "init", self._agents_own_init))
        if "has_sessions" in vars(self._class):
            self.patches.add(AttributePatch(self._class, "has_sessions", _always))
        if "configure" in vars(self._class):
            self.patches.add(AttributePatch(self._class, "configure", _only_tags))

    # ------------------------------------------------------------------ the client

    def _only_instance(self) -> Patch:
        """Put the user's own client aside until the end."""
        # The decorator ``singleton`` keeps instances in a table; taken out, the class makes a new one for us.
        before = _instances(self._module).pop(self._class, None)

        def undo() -> None:
            table = _instances(self._module)
            table.pop(self._class, None)
            if before is not None:
                table[self._class] = before

        return Patch("the only instance of its client", undo)

    def _make_client(self) -> Any:
        # Nothing is sent while we record; what an agent keeps for longer sends to no other machine either.
        endpoint = os.environ.get("AGENTOPS_API_ENDPOINT", "http://127.0.0.1:9")
        options = {"api_key": API_KEY, "endpoint": endpoint, "auto_start_session": False}
        if not hasattr(self._class, "configure"):  # up to 0.3.4
            client = self._module.Client(instrument_llm_calls=False, **options)
            client.llm_tracker = None  # agentops.stop_instrumenting() asks for it
            return client
        client = self._module.Client()
        client.configure(instrument_llm_calls=False, env_data_opt_out=True, **options)
        client._initialized = True  # noqa: SLF001 - initialize() would also import autogen
        client.unsuppress_logs()
        return client

    def _separate_sessions(self, client: Any) -> None:
        sessions = _Sessions()
        client._sessions = sessions  # noqa: SLF001 - there is no other way
        module = importlib.import_module("agentops.session")
        if "active_sessions" in vars(module):
            self.patches.add(_value(module, "active_sessions", sessions))

        def close() -> None:
            for session in sessions.everywhere():
                session.is_running = False  # it would leave the list of a client that does not know it

        self.patches.add(Patch("sessions that are still open", close))

    # ------------------------------------------------------------------ its sessions

    def _own_session(self, client: Any) -> Any:
        """Return the newest session that the agent has started in this attempt and not ended, or ``None``."""
        sessions = getattr(client, "_sessions", None)
        found = list(sessions) if sessions is not None else [_only_session(client)]
        return next(
            (each for each in reversed(found) if each is not None and each not in self._provided), None
        )

    def _with_session(self, original: Any, patch: Patch) -> Any:
        """Give the attempt a session if it has none, so that what needs one is not lost."""

        @functools.wraps(original)
        def call(client: Any, *args: Any, **kwargs: Any) -> Any:
            if patch.active:
                with self._guard("starting a session of AgentOps"):
                    self._provide_session(client)
            return original(client, *args, **kwargs)

        return call

    def _provide_session(self, client: Any) -> None:
        sessions = getattr(client, "_sessions", None)
        if sessions is None:
            if _only_session(client) is None:
                client.start_session()
                self._provided.add(_only_session(client))
        elif not sessions:
            self._provided.add(client.start_session())

    def _in_place_of_provided(self, original: Any, patch: Patch) -> Any:
        @functools.wraps(original)
        def start_session(client: Any, *args: Any, **kwargs: Any) -> Any:
            if patch.active:
                self._withdraw_provided(client)
            return original(client, *args, **kwargs)

        return start_session

    def _withdraw_provided(self, client: Any) -> None:
        sessions = getattr(client, "_sessions", None)
        if sessions is not None:
            for session in [
                each for each in sessions if each in self._provided
            ]:  # a copy: they are removed below
                sessions.remove(session)
        elif _only_session(client) in self._provided:
            client._session = client._worker = None  # noqa: SLF001 - the public way would end the session

    def _agents_own_init(self, original: Any, patch: Patch) -> Any:
        """What an agent's own ``agentops.init(...)`` does: it gives the session that it asks for."""
        signature = inspect.signature(original)

        @functools.wraps(original)
        def init(*args: Any, **kwargs: Any) -> Any:
            if not patch.active:
                return original(*args, **kwargs)
            asked = signature.bind(*args, **kwargs).arguments
            client = self._module.Client()
            tags = asked.get("default_tags") or asked.get("tags")
            if asked.get("auto_start_session") is False:
                _keep_tags(client, tags)
                return None
            session = self._own_session(client)
            if session is None:
                inherited = asked.get("inherited_session_id")
                return self._agentops.start_session(tags=tags, inherited_session_id=inherited)
            return session if hasattr(client, "_sessions") else session.session_id

        return init


def _only_session(client: Any) -> Any:
    """Return the one session of a client that has no list of them, or ``None``; see :func:`_slot_per_attempt`."""
    return client._session  # noqa: SLF001 - nothing public tells whether there is one


def _keep_tags(client: Any, tags: Iterable[str] | None) -> None:
    """Remember tags for the sessions to come, as the original does."""
    if not tags:
        return
    if hasattr(client, "_config"):
        client._config.default_tags.update(tags)  # noqa: SLF001
    else:
        client._tags_for_future_session = list(tags)  # noqa: SLF001


def _only_tags(original: Any, patch: Patch) -> Any:
    @functools.wraps(original)
    def configure(client: Any, *args: Any, **options: Any) -> Any:
        if not patch.active:
            return original(client, *args, **options)
        _keep_tags(client, options.get("default_tags"))
        return None

    return configure


def _always(original: Any, patch: Patch) -> Any:
    """Let the functions of the package pass on what they are called with: a session is given where one is needed."""
    return property(lambda client: patch.active or original.__get__(client))


def _slot_per_attempt(owner: type, name: str) -> Patch:
    """Keep an attribute of 0.2's client for each attempt apart; what an instance has itself shows again later."""
    slots: PerAttempt[list[Any]] = PerAttempt(lambda: [None])

    def put(_client: Any, value: Any) -> None:
        slots.here()[0] = value

    ours = property(lambda _client: slots.here()[0], put)
    before = vars(owner).get(name)  # that of another recorder, or nothing
    setattr(owner, name, ours)

    def undo() -> None:
        if vars(owner).get(name) is not ours:
            return
        if before is None:
            delattr(owner, name)
        else:
            setattr(owner, name, before)

    return Patch(f"{owner.__name__}.{name} of each attempt", undo)


def _value(owner: ModuleType, name: str, value: Any) -> Patch:
    """Replace a value of a module; undoing leaves alone what somebody has put there since."""
    before = vars(owner)[name]
    setattr(owner, name, value)

    def undo() -> None:
        if vars(owner)[name] is value:
            setattr(owner, name, before)

    return Patch(f"{owner.__name__}.{name}", undo)
