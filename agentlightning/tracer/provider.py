"""Which tracer provider is recorded, and how it gets back to what it was.

If the process has an SDK provider already, our processor joins it and leaves it at teardown; its own exporters
keep getting their spans. Otherwise a provider of ours, without limits on attributes, becomes the global one. There
is one such provider per process: tracers that were obtained through the API hold on to the provider that they met
first, so a second ``init_worker`` must bring back the same one.

OpenTelemetry has no public way to take a processor out or to unset the global provider. Both are done where a probe
finds the layout that all releases from 1.35 to 1.45 have; elsewhere what remains is inert.
"""

from __future__ import annotations

import logging
import os
import random
import weakref
from collections.abc import Callable
from functools import wraps
from typing import Any, Final

from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON

from .._locks import reentrant_lock
from ..instrumentation.patch import AttributePatch, Patch

_log = logging.getLogger(__name__)

TRACER_NAME = "agentlightning"
SetProvider = Callable[[trace.TracerProvider], None]

_own: list[TracerProvider] = []
"""The provider of ours, once somebody has asked for it."""
_sessions: list[ProviderSession] = []
"""Those of this process: several tracers may share our provider."""
_lock = reentrant_lock()
"""Guards both, and the global provider while a session takes or leaves it. Of two sessions that begin at one moment one
makes our provider the global one, and of two that end the last one takes it off."""
_random = random.Random()  # noqa: S311 - ids, not secrets
os.register_at_fork(after_in_child=_random.seed)


class OwnIds(RandomIdGenerator):
    """Ids from a generator of our own: an agent that seeds the shared one at every rollout would repeat them."""

    def generate_span_id(self) -> int:
        """Return 64 random bits that are not all zero."""
        return _random.getrandbits(64) or self.generate_span_id()

    def generate_trace_id(self) -> int:
        """Return 128 random bits that are not all zero."""
        return _random.getrandbits(128) or self.generate_trace_id()


def own_provider() -> TracerProvider:
    """Return the provider of ours: every span, with no limit on its attributes, events and links.

    What the environment says of sampling and limits is meant for telemetry; a rollout with holes teaches nothing.
    ``OTEL_SDK_DISABLED`` is obeyed.
    """
    with _lock:
        if not _own:
            unset = SpanLimits.UNSET
            provider = TracerProvider(
                resource=Resource.create({"telemetry.distro.name": "agentlightning-otel"}),
                shutdown_on_exit=False,
                sampler=ALWAYS_ON,
                id_generator=OwnIds(),
                span_limits=SpanLimits(
                    max_attributes=unset,
                    max_events=unset,
                    max_links=unset,
                    max_span_attributes=unset,
                    max_event_attributes=unset,
                    max_link_attributes=unset,
                    max_attribute_length=unset,
                    max_span_attribute_length=unset,
                ),
            )
            _own.append(provider)
        return _own[0]


class ProviderSession:
    """Our processor's stay on a provider, from ``init_worker`` to ``teardown_worker``."""

    def __init__(self, processor: SpanProcessor) -> None:
        self._processor = processor
        self._patch: Patch | None = None
        self._global_was_set = False
        with _lock:
            present = _global_provider()
            known = _sdk_provider(present)
            if known is not None:
                self.provider = known
            else:
                self.provider = own_provider()
                self._become_global(present)
            self._joined = [weakref.ref(self.provider)]
            """Weakly: one that the program has replaced, with its exporters, is not kept by us."""
            self._followed = self._joined[0]
            _sessions.append(self)
        add_processor(self.provider, processor)
        self.tracer = self.provider.get_tracer(TRACER_NAME)
        """Makes our spans, on the provider that the program uses now; see ``follow``."""

    def join(self, provider: Any) -> None:
        """Record the spans of one more provider, until the stay ends; a second time changes nothing."""
        if isinstance(provider, TracerProvider) and all(each() is not provider for each in self._joined):
            add_processor(provider, self._processor)
            self._joined = [each for each in self._joined if each() is not None]
            self._joined.append(weakref.ref(provider))

    def follow(self) -> None:
        """Go over to the provider that the program uses now, if it has installed another one since.

        Its spans are recorded, and its exporters get ours. A wrapper may hold another provider than when it was
        installed: Logfire's does each time that it is configured.
        """
        provider = _sdk_provider(_global_provider())
        if provider is None or provider is self._followed() or provider in _own:
            return
        with _lock:
            self.join(provider)
            self._followed = weakref.ref(provider)
            self.tracer = provider.get_tracer(TRACER_NAME)

    def _become_global(self, present: Any) -> None:
        if present is not None:
            _log.warning(
                "the global tracer provider %s is not OpenTelemetry's SDK; only spans made through this tracer, and "
                "model calls, are recorded",
                type(present).__name__,
            )
            return
        trace.set_tracer_provider(self.provider)
        self.keep_global()

    def keep_global(self) -> None:
        """Answer for the global provider, which is ours: take it off in the end, and follow who replaces it."""
        self._global_was_set = True
        self._patch = AttributePatch(
            trace,
            "set_tracer_provider",
            self._follow,
            "a program's own provider replaces ours, and is recorded",
        )

    def _follow(self, original: SetProvider, patch: Patch) -> SetProvider:
        @wraps(original)
        def set_tracer_provider(tracer_provider: trace.TracerProvider) -> None:
            """Let the program install its own provider over ours, and follow it there."""
            with _lock:
                if not patch.active or _global_provider() is not self.provider or not _unset_global():
                    original(tracer_provider)
                    return
                self._global_was_set = False
                original(tracer_provider)
                for session in _sessions:
                    if session.provider is self.provider:
                        session.follow()

        return set_tracer_provider

    def close(self) -> None:
        """Take our processor out of every provider that it joined, and the global one off if it is ours."""
        with _lock:
            if self._patch is not None:
                self._patch.undo()
            if self in _sessions:
                _sessions.remove(self)
            if self._global_was_set and _global_provider() is self.provider:
                heir = next((each for each in _sessions if each.provider is self.provider), None)
                if heir is None:
                    _unset_global()
                else:
                    heir.keep_global()
        for each in self._joined:
            provider = each()
            if provider is not None and not remove_processor(provider, self._processor):
                _log.info("our span processor stays on %s as an inert object", type(provider).__name__)


# OpenTelemetry keeps the global provider in a private variable of its API, beside an object that lets it be set once.
# The public getter may make one, and nothing public takes one off. All releases from 1.35 to 1.45 have these names;
# they are read and written through ``vars``, where they are there.
_GLOBAL: Final = "_TRACER_PROVIDER"


def _global_provider() -> Any:
    """Return the provider that was set, or ``None``; never creates one."""
    if _GLOBAL in vars(trace):
        return vars(trace)[_GLOBAL]
    present = trace.get_tracer_provider()
    return None if isinstance(present, trace.ProxyTracerProvider) else present


def _sdk_provider(present: Any) -> TracerProvider | None:
    """Return the SDK's provider that was set, or that a wrapper (Logfire's) holds; ``None``: there is none."""
    try:
        inner = present if isinstance(present, TracerProvider) else getattr(present, "provider", None)
    except Exception as error:  # noqa: BLE001 - a stranger's property may raise anything
        _log.debug("the tracer provider inside of %s is not known: %r", type(present).__name__, error)
        return None
    return inner if isinstance(inner, TracerProvider) else None


def _unset_global() -> bool:
    once = getattr(trace, f"{_GLOBAL}_SET_ONCE", None)
    if _GLOBAL not in vars(trace) or not hasattr(once, "_done"):
        return False
    setattr(trace, _GLOBAL, None)
    vars(once)["_done"] = False
    return True


def add_processor(provider: TracerProvider, processor: SpanProcessor) -> None:
    """Add a processor beside those that a provider has.

    By the SDK's own method: a subclass may replace what is there. Phoenix's takes its exporter out at the first
    processor that somebody adds.
    """
    TracerProvider.add_span_processor(provider, processor)


def remove_processor(provider: TracerProvider, processor: SpanProcessor) -> bool:
    """Take a processor out of a provider; false where this SDK keeps its processors in another way."""
    multi = getattr(provider, "_active_span_processor", None)
    of_multi = {} if multi is None else vars(multi)
    if "_lock" not in of_multi or not isinstance(of_multi.get("_span_processors"), tuple):
        return False
    with of_multi["_lock"]:  # the SDK replaces the tuple under it, and reads it without
        kept = tuple(each for each in of_multi["_span_processors"] if each is not processor)
        of_multi["_span_processors"] = kept
    return True
