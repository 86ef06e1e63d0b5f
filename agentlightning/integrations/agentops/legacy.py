"""AgentOps 0.2 and 0.3: its events and sessions as spans, and AgentOps itself run offline.

*Recording* is the same in both modes: ``record`` on the class that owns it (0.2: the client; 0.3: ``Session``) and the
end of a session make spans, see :mod:`.legacy_events`. Where the user has started AgentOps, its own ``record`` runs
too, and its queue gets a lock that does not hang.

*Offline* (managed mode) its own ``record`` does not run, so there is no queue to fill, and nothing is sent, see
:mod:`.legacy_guest`. What remains is what agents use: events, decorators, sessions, tags, agents. A session that is
never ended leaves no span.

Every replacement is a :class:`~agentlightning.instrumentation.patch.Patch` that says what it does.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import logging
import sys
import threading
from collections.abc import Callable
from contextvars import ContextVar
from types import ModuleType
from typing import Any, Final
from weakref import WeakKeyDictionary, WeakSet

from opentelemetry import context as otel_context

from ...instrumentation.guard import Guard
from ...instrumentation.imports import when_imported
from ...instrumentation.patch import AttributePatch, Patch, Patches
from .legacy_events import EventRecorder
from .legacy_guest import GuestClient, attempt_in, client_class, no_links_in_the_log, offline
from .managed import logger_as_it_was
from .probe import Found

_log = logging.getLogger(__name__)

Wrap = Callable[[Any, Patch], Any]

_HOOKED: Final = ("agentops.session", "agentops.client", "agentops.worker")
"""Modules whose classes are patched, where a release has them."""
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
    recording = _Recording(recorder, guard, replaces_record=start)
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
        patches.add(no_links_in_the_log())
        for patch in offline(agentops):
            patches.add(patch)
        for name in hooked:
            recording.hook(importlib.import_module(name))
        patches.add(recording.patches)
        patches.add(GuestClient(agentops, guard).patches)
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
        replaces_record: Whether AgentOps' own ``record`` is not run.
    """

    def __init__(self, recorder: EventRecorder, guard: Guard, *, replaces_record: bool) -> None:
        self.patches = Patches("its events and sessions as spans")
        self.recorder = recorder
        self.guard = guard
        self._replaces_record = replaces_record
        self._started: WeakKeyDictionary[Any, otel_context.Context] = WeakKeyDictionary()
        self._ended: WeakSet[Any] = WeakSet()
        self._event_being_recorded: ContextVar[Any] = ContextVar(
            "agentlightning_agentops_event", default=None
        )
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
            self._patch(module.Worker, "__init__", self._with_reentrant_lock)
        else:
            client = client_class(module)
            self._patch(client, "create_agent", self._learns_agents)
            if self._replaces_record or not hasattr(module.Session, "record"):
                self._patch(client, "record", self._records)

    def _patch(self, owner: Any, name: str, wrap: Wrap) -> None:
        self.patches.add(AttributePatch(owner, name, wrap))

    # ------------------------------------------------------------------ events

    def _records(self, original: Any, patch: Patch) -> Any:
        @functools.wraps(original)
        def record(owner: Any, event: Any, *args: Any, **kwargs: Any) -> Any:
            if not patch.active:
                return original(owner, event, *args, **kwargs)
            # 0.3.0 records an error a second time where it means the event that triggered the error.
            if self._event_being_recorded.get() is event:
                return original(owner, event.trigger_event, *args, **kwargs)
            with self.guard("recording an event of AgentOps"):
                session = _session_of(owner)
                self.recorder.event(event, getattr(session, "session_id", None))
                if self._replaces_record:
                    _count(session, event)
                    _end(event)
            if self._replaces_record:
                return None
            self._warn_of_a_full_queue(owner)
            token = self._event_being_recorded.set(event)
            try:
                return original(owner, event, *args, **kwargs)
            finally:
                self._event_being_recorded.reset(token)

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
        with_lock = self._with_reentrant_lock(original, patch)

        @functools.wraps(original)
        def init(session: Any, *args: Any, **kwargs: Any) -> None:
            if patch.active:
                self._started[session] = otel_context.get_current()
            with_lock(session, *args, **kwargs)

        return init

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

    def _with_reentrant_lock(self, original: Any, patch: Patch) -> Any:
        """Give a queue a lock that its own thread may take twice.

        Up to 0.3.18 the call that fills the queue (``max_queue_size``) flushes it while it holds the queue's lock,
        and flushing takes that lock again: the agent hangs for ever.
        """

        @functools.wraps(original)
        def init(owner: Any, *args: Any, **kwargs: Any) -> None:
            original(owner, *args, **kwargs)
            if patch.active and _has_plain_lock(owner):
                # Nobody holds the old lock: the object is new, and its thread sleeps before its first flush.
                owner.lock = threading.RLock()

        return init

    def _warn_of_a_full_queue(self, owner: Any) -> None:
        queue = getattr(owner, "_worker", None) or owner
        if self._warned or not _has_plain_lock(queue):
            return
        self._warned = True
        _log.warning(
            "this release of agentops hangs for ever once %s events wait in its queue; a session that starts while "
            "we record is repaired, this one was there before: call agentops.init(max_queue_size=1_000_000), or "
            "start it after init_worker",
            getattr(getattr(queue, "config", None), "max_queue_size", "max_queue_size"),
        )


def _has_plain_lock(queue: Any) -> bool:
    """Whether an object has the queue of 0.2.0 to 0.3.18, whose lock its own thread cannot take twice."""
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
