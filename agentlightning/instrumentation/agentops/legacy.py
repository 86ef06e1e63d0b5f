"""AgentOps 0.2 and 0.3: its events and sessions as spans, and AgentOps itself as a guest with nobody to call.

*Recording* is the same in both modes: ``record`` on the class that owns it (0.2: the client; 0.3: ``Session``) and the
end of a session make spans, see :mod:`.legacy_events`. Where the user has started AgentOps, its own ``record`` runs
too, and its queue gets a lock that does not hang.

*As a guest* its own ``record`` does not run: there is no queue to fill. Its HTTP client answers by itself, its threads
and its handlers of signals and exceptions are not started, and its instrumentation of model clients stays off. What
remains is what agents use: events, decorators, sessions, tags, agents. Sessions belong to the attempt that they were
started in, so that concurrent rollouts, which all call ``agentops.init()``, do not get into each other's way; an
attempt that needs a session and has none is given one. A session that is never ended leaves no span.

Every replacement is a :class:`~agentlightning.instrumentation.patch.Patch` that says what it does.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import logging
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, MutableSequence
from contextvars import ContextVar
from types import ModuleType
from typing import Any, Dict, Final, Generic, List, Optional, Tuple, TypeVar
from weakref import WeakKeyDictionary, WeakSet

from opentelemetry import baggage
from opentelemetry import context as otel_context
from opentelemetry.sdk.trace import SpanProcessor

from ...semconv import LightningResourceAttributes
from ..guard import Guard
from ..imports import when_imported
from ..patch import AttributePatch, Patch, Patches
from .legacy_events import EventRecorder
from .managed import _logger_as_it_was as logger_as_it_was
from .probe import Found
from .server.manager import API_KEY

_log = logging.getLogger(__name__)

T = TypeVar("T")
Wrap = Callable[[Any, Patch], Any]
Attempt = Optional[Tuple[object, object]]

_ROLLOUT: Final = LightningResourceAttributes.ROLLOUT_ID.value
_ATTEMPT: Final = LightningResourceAttributes.ATTEMPT_ID.value
_ATTEMPTS: Final = 1024
"""Attempts whose sessions are remembered, the newest of them."""
_HOOKED: Final = ("agentops.session", "agentops.client", "agentops.worker")
"""Modules whose classes are patched, where a release has them."""
_NEED_A_SESSION: Final = ("add_tags", "set_tags", "end_session", "create_agent", "_record_event_sync")
"""Methods of the client; the last one, of 0.2.0 to 0.3.4, needs it to report the exception of a function."""
_PLAIN_LOCK: Final = type(threading.Lock())


def record_events(found: Found, provider: Any, guard: Guard, *, start: bool) -> Patches:
    """Record the events and sessions of AgentOps 0.2 or 0.3.

    Args:
        found: What the probe found: ``L1`` to ``L4``.
        provider: The tracer provider that the spans go to.
        guard: Where exceptions of our own code go.
        start: Import AgentOps and start it as a guest. If not, nothing is imported, and an AgentOps that its user
            starts is recorded beside what it sends.

    Raises:
        Exception: Of the guest's import or start, whatever it is; everything is undone then.
    """
    recorder = EventRecorder(provider, found.version)
    recording = _Recording(recorder, guard, alone=start)
    hooked = [name for name in _HOOKED if found.has(f"{name.rpartition('.')[2]}.py")]
    if not start:
        patches = Patches(f"AgentOps {found.version} as its user has set it up")
        patches.add(when_imported(dict.fromkeys(hooked, recording.hook), guard))
        patches.add(recording.patches)
        return patches
    patches = Patches(f"AgentOps {found.version} on our provider")
    try:
        agentops = importlib.import_module("agentops")
        patches.add(logger_as_it_was("agentops"))
        patches.add(_no_links_in_the_log())
        for patch in _offline(agentops):
            patches.add(patch)
        for name in hooked:
            recording.hook(importlib.import_module(name))
        patches.add(recording.patches)
        patches.add(_Guest(agentops, recording).patches)
    except BaseException:
        recording.patches.undo()
        patches.undo()
        raise
    return patches


# ---------------------------------------------------------------------- recording


class _Recording:
    """The patches on what an agent calls.

    Args:
        recorder: Makes the spans.
        guard: Where exceptions of our own code go.
        alone: Whether AgentOps' own ``record`` stays away.
    """

    def __init__(self, recorder: EventRecorder, guard: Guard, *, alone: bool) -> None:
        self.patches = Patches("its events and sessions as spans")
        self.recorder = recorder
        self.guard = guard
        self._alone = alone
        self._started: WeakKeyDictionary[Any, otel_context.Context] = WeakKeyDictionary()
        self._ended: WeakSet[Any] = WeakSet()
        self._under_way: ContextVar[Any] = ContextVar("agentlightning_agentops_event", default=None)
        self._warned = False

    def hook(self, module: ModuleType) -> None:
        """Patch one of ``_HOOKED``."""
        name = module.__name__
        if name == "agentops.session":
            session = module.Session
            self._patch(session, "__init__", self._starts)
            self._patch(session, "end_session", self._ends)
            if "record" in vars(session):
                self._patch(session, "record", self._records)
        elif name == "agentops.worker":
            self._patch(module.Worker, "__init__", self._with_a_sound_lock)
        else:
            client = client_class(module)
            self._patch(client, "create_agent", self._learns_agents)
            if self._alone or not hasattr(module.Session, "record"):
                self._patch(client, "record", self._records)

    def _patch(self, owner: Any, name: str, wrap: Wrap) -> None:
        self.patches.add(AttributePatch(owner, name, wrap))

    # ------------------------------------------------------------------ events

    def _records(self, original: Any, patch: Patch) -> Any:
        @functools.wraps(original)
        def record(owner: Any, event: Any, *args: Any, **kwargs: Any) -> Any:
            if not patch.active:
                return original(owner, event, *args, **kwargs)
            if self._under_way.get() is event:  # 0.3.0 records an error again where it means its trigger
                return original(owner, event.trigger_event, *args, **kwargs)
            with self.guard("recording an event of AgentOps"):
                session = _session_of(owner)
                self.recorder.event(event, getattr(session, "session_id", None))
                if self._alone:
                    _count(session, event)
                    _end(event)
            if self._alone:
                return None
            self._warn_of_a_full_queue(owner)
            token = self._under_way.set(event)
            try:
                return original(owner, event, *args, **kwargs)
            finally:
                self._under_way.reset(token)

        return record

    def _learns_agents(self, original: Any, patch: Patch) -> Any:
        @functools.wraps(original)
        def create_agent(client: Any, name: Any, agent_id: Any = None, **kwargs: Any) -> Any:
            made = original(client, name, agent_id, **kwargs)
            if patch.active and (made or agent_id) is not None and name is not None:
                with self.guard("noting an agent of AgentOps"):
                    self.recorder.agent(made or agent_id, name)
            return made

        return create_agent

    # ------------------------------------------------------------------ sessions

    def _starts(self, original: Any, patch: Patch) -> Any:
        with_lock = self._with_a_sound_lock(original, patch)

        @functools.wraps(original)
        def __init__(session: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807 - it stands for one
            if patch.active:
                self._started[session] = otel_context.get_current()
            with_lock(session, *args, **kwargs)

        return __init__

    def _ends(self, original: Any, patch: Patch) -> Any:
        @functools.wraps(original)
        def end_session(session: Any, *args: Any, **kwargs: Any) -> Any:
            reason = getattr(session, "end_state_reason", None)  # 0.3.0's client leaves it here, and loses it
            try:
                return original(session, *args, **kwargs)
            finally:
                if patch.active:
                    with self.guard("recording the end of a session of AgentOps"):
                        self._note_end(session, _state(original, session, args, kwargs), reason)

        return end_session

    def _note_end(self, session: Any, state: Any, reason: Any) -> None:
        """Record a session once, if its end was accepted: a state that AgentOps does not know is refused."""
        if session.end_timestamp is None or session.end_state != state or session in self._ended:
            return
        self._ended.add(session)
        context = self._started.pop(session, None)
        if context is None or attempt_in(context) is None:
            context = otel_context.get_current()
        told = session.end_state_reason
        self.recorder.session(session, reason if told is None else told, context)

    # ------------------------------------------------------------------ the queue

    def _with_a_sound_lock(self, original: Any, patch: Patch) -> Any:
        """Give a queue a lock that its own thread may take twice.

        Up to 0.3.18 the call that fills the queue (``max_queue_size``) flushes it while it holds the queue's lock,
        and flushing takes that lock again: the agent hangs for ever.
        """

        @functools.wraps(original)
        def __init__(owner: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807 - it stands for one
            original(owner, *args, **kwargs)
            if patch.active and _hangs(owner):
                owner.lock = threading.RLock()  # nobody has it: the flushing thread sleeps first

        return __init__

    def _warn_of_a_full_queue(self, owner: Any) -> None:
        queue = getattr(owner, "_worker", None) or owner
        if self._warned or not _hangs(queue):
            return
        self._warned = True
        _log.warning(
            "this release of agentops hangs for ever once %s events wait in its queue; a session that starts while "
            "we record is repaired, this one was there before: call agentops.init(max_queue_size=1_000_000), or "
            "start it after init_worker",
            getattr(getattr(queue, "config", None), "max_queue_size", "max_queue_size"),
        )


def _hangs(queue: Any) -> bool:
    """Whether an object has the queue and the lock of 0.2.0 to 0.3.18."""
    return hasattr(queue, "queue") and isinstance(getattr(queue, "lock", None), _PLAIN_LOCK)


def _state(end_session: Any, session: Any, args: Any, kwargs: Any) -> Any:
    """Return the state that a call of ``end_session`` asks for."""
    bound = inspect.signature(end_session).bind(session, *args, **kwargs)
    bound.apply_defaults()
    return bound.arguments["end_state"]


def _session_of(owner: Any) -> Any:
    """Return the session that ``record`` was called on, or the client's only one, or ``None``."""
    if hasattr(owner, "session_id"):
        return owner
    if hasattr(owner, "_sessions"):
        open_now = list(owner._sessions)  # noqa: SLF001 - it has no public way that does not log or raise
        return open_now[0] if len(open_now) == 1 else None
    return getattr(owner, "_session", None)


def _count(session: Any, event: Any) -> None:
    """Count an event as the original does (since 0.3.11): it logs the counts when a session ends."""
    counts = getattr(session, "event_counts", None)
    if counts is not None and event.event_type in counts:
        counts[event.event_type] += 1


def _end(event: Any) -> None:
    """Give an event without an end one, as the original does; a program may read it."""
    if hasattr(event, "end_timestamp") and event.end_timestamp in {None, event.init_timestamp}:
        event.end_timestamp = sys.modules["agentops.helpers"].get_ISO_time()


def client_class(client: ModuleType) -> type:
    """Return the class behind ``agentops.client.Client``, which is a function that gives the one instance."""
    return inspect.getclosurevars(client.Client).nonlocals["class_"]  # type: ignore[no-any-return]


def _instances(client: ModuleType) -> Dict[type, Any]:
    """Return the table of that function: its own in 0.2, one for all such functions later."""
    seen = inspect.getclosurevars(client.Client)
    table: Dict[type, Any] = {**seen.globals, **seen.nonlocals}[
        "instances" if "instances" in seen.nonlocals else "ao_instances"
    ]
    return table


# ---------------------------------------------------------------------- nobody to call


def _offline(agentops: ModuleType) -> List[Patch]:
    """Replace what calls, listens, waits and looks around."""
    http = importlib.import_module("agentops.http_client")
    client = importlib.import_module("agentops.client")
    session = importlib.import_module("agentops.session")
    worker = sys.modules.get("agentops.worker")
    answers = [
        AttributePatch(http.HttpClient, name, functools.partial(_answering, http))
        for name in ("post", "get")
        if name in vars(http.HttpClient)
    ]
    patches: List[Patch] = [Patches("its HTTP client answers by itself; nothing is sent", answers)]
    for description, owner, name in (
        (
            "no handlers of signals, exceptions and the process's end",
            client_class(client),
            "_handle_unclean_exits",
        ),
        ("no question to pypi.org", agentops, "check_agentops_update"),
        ("no thread for its queue", worker and worker.Worker, "run"),
        ("no thread for its queue", session.Session, "_run"),
        ("no survey of this machine for every session", client, "get_host_env"),
    ):
        if owner is not None and name in vars(owner):
            patches.append(Patches(description, [AttributePatch(owner, name, _nothing)]))
    if "BatchSpanProcessor" in vars(session):  # since 0.3.21
        patches.append(
            Patches(
                "no thread for its queue, and no handler for the process's end",
                [
                    AttributePatch(session, "BatchSpanProcessor", _idle_processor),
                    AttributePatch(session, "TracerProvider", _without_exit_handler),
                ],
            )
        )
    return patches


def _answering(http: ModuleType, original: Any, patch: Patch) -> Any:
    send = original.__get__(None, http.HttpClient)

    @functools.wraps(send)
    def answer(url: str, *args: Any, **kwargs: Any) -> Any:
        if not patch.active:
            return send(url, *args, **kwargs)
        response = http.Response(http.HttpStatus.SUCCESS, {"status": "Success"})
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


def _no_links_in_the_log() -> Patch:
    """Keep addresses of AgentOps' site out of the log: there is nothing to be seen at them."""
    logger = logging.getLogger("agentops")

    def keeps(record: logging.LogRecord) -> bool:
        return "Session Replay:" not in str(record.msg)

    logger.addFilter(keeps)
    return Patch("no links to sessions that its site does not have", lambda: logger.removeFilter(keeps))


# ---------------------------------------------------------------------- sessions of attempts


def attempt_in(context: Optional[otel_context.Context] = None) -> Attempt:
    """Return the rollout and attempt that a context names (default: the current one), or ``None``."""
    ids = baggage.get_baggage(_ROLLOUT, context), baggage.get_baggage(_ATTEMPT, context)
    return None if None in ids else ids


class _PerAttempt(Generic[T]):
    """One object for each attempt, made when it is first asked for; the oldest are forgotten."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._kept: OrderedDict[Attempt, T] = OrderedDict()
        self._lock = threading.Lock()

    def here(self) -> T:
        key = attempt_in()
        with self._lock:
            if key not in self._kept:
                self._kept[key] = self._make()
                if len(self._kept) > _ATTEMPTS:
                    self._kept.popitem(last=False)
            return self._kept[key]

    def all(self) -> List[T]:
        with self._lock:
            return list(self._kept.values())


class _Sessions(MutableSequence[Any]):
    """What 0.3's list of open sessions is for a guest: those of the current attempt."""

    def __init__(self) -> None:
        self._lists: _PerAttempt[List[Any]] = _PerAttempt(list)

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


class _Guest:
    """The client of a managed AgentOps, and what is different about it."""

    def __init__(self, agentops: ModuleType, recording: _Recording) -> None:
        self._agentops = agentops
        self._module = importlib.import_module("agentops.client")
        self._class = client_class(self._module)
        self._given: WeakSet[Any] = WeakSet()
        """Sessions that nobody has asked for."""
        self._guard = recording.guard
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
            self._apart(client)
        else:
            for name in ("_session", "_worker"):
                self.patches.add(_slot_per_attempt(self._class, name))
        if "is_initialized" in vars(self._agentops):  # up to 0.3.4
            self.patches.add(_value(self._agentops, "is_initialized", True))
        for name in _NEED_A_SESSION:
            if name in vars(self._class):
                self.patches.add(AttributePatch(self._class, name, self._with_session))
        self.patches.add(AttributePatch(self._class, "start_session", self._instead_of_a_given_one))
        self.patches.add(AttributePatch(self._agentops, "init", self._agents_own_init))
        if "has_sessions" in vars(self._class):
            self.patches.add(AttributePatch(self._class, "has_sessions", _always))
        if "configure" in vars(self._class):
            self.patches.add(AttributePatch(self._class, "configure", _only_tags))

    # ------------------------------------------------------------------ the client

    def _only_instance(self) -> Patch:
        """Put the user's own client aside until the end."""
        before = _instances(self._module).pop(self._class, None)

        def undo() -> None:
            table = _instances(self._module)
            table.pop(self._class, None)
            if before is not None:
                table[self._class] = before

        return Patch("the only instance of its client", undo)

    def _make_client(self) -> Any:
        if hasattr(self._class, "configure"):  # since 0.3.6
            client = self._module.Client()
            client.configure(
                api_key=API_KEY, instrument_llm_calls=False, auto_start_session=False, env_data_opt_out=True
            )
            client._initialized = True  # noqa: SLF001 - initialize() would also import autogen
            client.unsuppress_logs()
        else:
            client = self._module.Client(
                api_key=API_KEY, instrument_llm_calls=False, auto_start_session=False
            )
            client.llm_tracker = None  # agentops.stop_instrumenting() asks for it
        return client

    def _apart(self, client: Any) -> None:
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
        found = list(sessions) if sessions is not None else [client._session]  # noqa: SLF001
        return next((each for each in reversed(found) if each is not None and each not in self._given), None)

    def _with_session(self, original: Any, patch: Patch) -> Any:
        """Give the attempt a session if it has none, so that what needs one is not lost."""

        @functools.wraps(original)
        def call(client: Any, *args: Any, **kwargs: Any) -> Any:
            if patch.active:
                with self._guard("starting a session of AgentOps"):
                    self._give_session(client)
            return original(client, *args, **kwargs)

        return call

    def _give_session(self, client: Any) -> None:
        sessions = getattr(client, "_sessions", None)
        if sessions is None:
            if client._session is None:  # noqa: SLF001
                client.start_session()
                self._given.add(client._session)  # noqa: SLF001
        elif not sessions:
            self._given.add(client.start_session())

    def _instead_of_a_given_one(self, original: Any, patch: Patch) -> Any:
        @functools.wraps(original)
        def start_session(client: Any, *args: Any, **kwargs: Any) -> Any:
            if patch.active:
                self._take_back(client)
            return original(client, *args, **kwargs)

        return start_session

    def _take_back(self, client: Any) -> None:
        sessions = getattr(client, "_sessions", None)
        if sessions is not None:
            for session in [each for each in sessions if each in self._given]:
                sessions.remove(session)
        elif client._session in self._given:  # noqa: SLF001
            client._session = client._worker = None  # noqa: SLF001

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


def _keep_tags(client: Any, tags: Optional[Iterable[str]]) -> None:
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
    slots: _PerAttempt[List[Any]] = _PerAttempt(lambda: [None])

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
