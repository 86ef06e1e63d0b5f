"""Our ids stay with hosts of ours.

The ids of a rollout travel as W3C baggage in the OpenTelemetry context, and OpenTelemetry's HTTP instrumentations
write all baggage into every request. Around a request to a stranger the context is one without our two entries;
everybody else's baggage goes where it went.

The Model Context Protocol carries baggage inside of messages (SEP-414: ``params._meta.baggage``), and whoever writes it
there does not know yet where the message goes. Our entries are taken out of it where the HTTP client makes the request
of it; a server that is a child process, reached by its pipes, gets them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextvars import Token
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

from opentelemetry import baggage, context
from opentelemetry.context import Context

from ..dialects import endpoint_urls
from ..semconv import LightningResourceAttributes
from .guard import Guard
from .patch import AttributePatch, Patch, defining_class

IsOwnHost = Callable[[str], bool]

_EFFECT = "rollout and attempt ids stay out of requests to strangers"
_KEYS = (LightningResourceAttributes.ROLLOUT_ID.value, LightningResourceAttributes.ATTEMPT_ID.value)


def is_loopback(host: str) -> bool:
    """Whether ``host`` is this machine: the hosts that are ours where nobody says otherwise."""
    return host.endswith(".localhost") or endpoint_urls.is_loopback(host)


class Baggage:
    """Hides our baggage around requests; ``leave`` in the frame that called ``enter``."""

    def __init__(self, is_own_host: IsOwnHost, guard: Guard) -> None:
        self._is_own_host = is_own_host
        self._guard = guard

    def enter(self, host: str | None) -> Token[Context] | None:
        """Go on in a context without our baggage, unless it has none or ``host`` is ours; ``None`` is nobody's."""
        with self._guard("hiding baggage"):
            current = context.get_current()
            # Most requests leave without any: those pay for two look-ups and keep their context.
            present = [key for key in _KEYS if baggage.get_baggage(key, current) is not None]
            if not present or (host is not None and self._is_own_host(host)):
                return None
            for key in present:
                current = baggage.remove_baggage(key, current)
            return context.attach(current)
        return None

    def leave(self, token: Token[Context] | None) -> None:
        """Come back to the context before ``enter``."""
        if token is not None:
            context.detach(token)

    def patch_http(self, library: ModuleType) -> list[Patch]:
        """Patch the method of httpx or httpx2 that makes requests, by which clients of the protocol send messages."""
        owner = defining_class(library.Client, "build_request")
        return [] if owner is None else [AttributePatch(owner, "build_request", self._around_build, _EFFECT)]

    def patch_requests(self, sessions: ModuleType) -> list[Patch]:
        """Patch ``requests.sessions``: ``request`` as well as ``send``.

        OpenTelemetry's instrumentation wraps ``send`` and injects there; patched after us, it would be outside.
        """
        return [
            AttributePatch(sessions.Session, "request", self._around_request, _EFFECT),
            AttributePatch(sessions.Session, "send", self._around_send, _EFFECT),
        ]

    def patch_aiohttp(self, aiohttp: ModuleType) -> list[Patch]:
        """Patch the method of ``aiohttp.ClientSession`` through which all its requests go."""
        owner = defining_class(aiohttp.ClientSession, "_request")
        return [] if owner is None else [AttributePatch(owner, "_request", self._around_aiohttp, _EFFECT)]

    def _around_build(self, original: Any, patch: Patch) -> Any:
        def build_request(client: Any, method: Any, url: Any, **kwargs: Any) -> Any:
            request = original(client, method, url, **kwargs)
            cleaned = self._without_ids(request, kwargs.get("json")) if patch.active else None
            return (
                request if cleaned is None else original(client, method, url, **{**kwargs, "json": cleaned})
            )

        return functools.wraps(original)(build_request)

    def _without_ids(self, request: Any, message: Any) -> dict[str, Any] | None:
        """Return a message to a stranger without our baggage, or ``None`` where it may go as it is."""
        with self._guard("hiding baggage"):
            params = _inside(message, "params")
            meta = _inside(params, "_meta")
            written = meta.get("baggage")
            if not isinstance(written, str) or self._is_own_host(request.url.host):
                return None
            entries = written.split(",")
            kept = [entry for entry in entries if entry.partition("=")[0].strip() not in _KEYS]
            if len(kept) == len(entries):
                return None
            others = {name: value for name, value in meta.items() if name != "baggage"}
            cleaned = {**others, "baggage": ",".join(kept)} if kept else others
            return {**message, "params": {**params, "_meta": cleaned}}
        return None

    def _around_request(self, original: Any, patch: Patch) -> Any:
        def request(session: Any, method: Any, url: Any, *args: Any, **kwargs: Any) -> Any:
            if not patch.active:
                return original(session, method, url, *args, **kwargs)
            token = self.enter(_host(url))
            try:
                return original(session, method, url, *args, **kwargs)
            finally:
                self.leave(token)

        return functools.wraps(original)(request)

    def _around_send(self, original: Any, patch: Patch) -> Any:
        def send(session: Any, request: Any, **kwargs: Any) -> Any:
            if not patch.active:
                return original(session, request, **kwargs)
            token = self.enter(_host(getattr(request, "url", None)))
            try:
                return original(session, request, **kwargs)
            finally:
                self.leave(token)

        return functools.wraps(original)(send)

    def _around_aiohttp(self, original: Any, patch: Patch) -> Any:
        async def _request(session: Any, method: Any, str_or_url: Any, **kwargs: Any) -> Any:
            if not patch.active:
                return await original(session, method, str_or_url, **kwargs)
            url = str_or_url if _host(str_or_url) else getattr(session, "_base_url", None)
            token = self.enter(_host(url))
            try:
                return await original(session, method, str_or_url, **kwargs)
            finally:
                self.leave(token)

        return functools.wraps(original)(_request)


def _inside(value: Any, name: str) -> dict[str, Any]:
    found = value.get(name) if isinstance(value, dict) else None
    return found if isinstance(found, dict) else {}


def _host(url: Any) -> str | None:
    try:
        return urlsplit(str(url)).hostname
    except ValueError:
        return None
