"""What the patches of all HTTP libraries share: which requests are model calls, and what becomes of each exchange.

A patch of a library turns a request into an :class:`~.exchange.Outgoing`, begins an exchange with it here, and asks
here whether the request may ask for token ids as well, whether an answer is a refusal of that, and what takes out of
it what was asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from contextvars import ContextVar
from dataclasses import replace
from typing import Literal
from urllib.parse import urlsplit

from ..dialects.model_call import ASKING_REFUSED, ENDPOINT_NOT_NAMED, ONLY_OBSERVED, REQUEST_FIXED
from ..dialects.openai import token_request
from ..dialects.openai.request import operation_of
from ..dialects.raw_call import CallStart, Endpoint
from .exchange import ActiveCall, Exchange, Outgoing, current_request_scope
from .guard import Guard
from .own_hosts import Baggage
from .refusals import ErrorDetector, Refusals, is_fixed, is_refusal, request_kind
from .sink import CallSink
from .tee import Stripper

CaptureTokens = Literal["observe", "request"]
EndpointFor = Callable[[str], Endpoint | None]

NO_ENCODING = frozenset({"", "identity", "none"})

_being_sent: ContextVar[tuple[_Sending, ...]] = ContextVar("agentlightning_being_sent", default=())
"""Requests that a patched library is sending in this context."""


class _Sending:
    """A request that a patched library is sending, perhaps by means of another patched one.

    A task that is started meanwhile gets a copy of the context, in which this object stays for ever. So the context
    variable alone does not say whether a request was noted above: ``_is_open`` says whether it is still being sent, and
    its body whether it is the same one, also where a redirect has led it to another URL. Of a body that is made while
    it is sent, the URL says it.
    """

    def __init__(self, watch: CallWatch, url: str, body: bytes | None) -> None:
        self._watch = watch
        self._url = url
        self._body = body
        self._is_open = False

    def __enter__(self) -> None:
        self._is_open = True
        self._token = _being_sent.set((*_being_sent.get(), self))

    def __exit__(self, *_: object) -> None:
        self._is_open = False
        with suppress(ValueError):  # left in another context than entered in, which has no such request
            _being_sent.reset(self._token)

    def is_same_request(self, watch: CallWatch, url: str, body: bytes | None) -> bool:
        """Whether the request of a library below is this one."""
        if not self._is_open or self._watch is not watch:
            return False
        return self._url == url if None in (body, self._body) else self._body == body


class CallWatch:
    """One capture: its sink, what it asks for, and the exchanges that are under way."""

    def __init__(
        self,
        sink: CallSink,
        *,
        capture_tokens: CaptureTokens,
        endpoint_for: EndpointFor,
        baggage: Baggage,
        guard: Guard,
        max_body_bytes: int,
        refusals: Refusals,
    ) -> None:
        self._sink = sink
        self._asks = capture_tokens == "request"
        self._endpoint_for = endpoint_for
        self.baggage = baggage
        self.guard = guard
        self._max_body_bytes = max_body_bytes
        self._refusals = refusals
        self.open_exchanges: set[Exchange] = set()
        self.patched_clients: set[type] = set()
        """Classes of httpx that are patched for this capture: httpx2 can stand in for httpx, as the same classes."""

    def begin(
        self, request: Outgoing, *, retries: int | None = None, may_be_nested: bool = False
    ) -> Exchange | None:
        """Tell the sink that a call leaves; ``None`` where ``request`` is no model call or was noted already.

        Args:
            request: What leaves.
            retries: How many exchanges of the same call the client says it has made before.
            may_be_nested: Whether another library may send its requests by means of this one, as httpx does with the
                transports of LiteLLM and ``httpx-aiohttp``. Such a request has been noted above.
        """
        with self.guard("noting a request"):
            operation = operation_of(request.method, request.path)
            if operation is None:
                return None
            body = request.json()
            if body is None and request.body is not None:
                return None
            # A body that is made while it is sent is not known yet: ``Exchange`` reads the model from what was sent.
            model = (body or {}).get("model")
            start = CallStart(
                operation=operation,
                url=request.url,
                model=model if isinstance(model, str) else None,
                stream=bool((body or {}).get("stream")),
            )
            if may_be_nested and any(
                it.is_same_request(self, start.url, request.body) for it in _being_sent.get()
            ):
                return None
            scope = current_request_scope(self)
            call = scope.retry() if scope is not None else None
            if call is None:
                call = ActiveCall(self._sink, self.guard, self._sink.started(start), scope)
            if scope is not None:
                scope.call = call
            exchange = Exchange(
                call,
                start,
                request,
                endpoint=self.endpoint(start.url),
                retries=retries if scope is None else None,
                max_body_bytes=self._max_body_bytes,
                open_exchanges=self.open_exchanges,
            )
            exchange.not_asked = self._why_not_asked(exchange.endpoint)
            return exchange
        return None

    def _why_not_asked(self, endpoint: Endpoint | None) -> str:
        """Return why the endpoint is not asked; of one that may be asked, what keeps a request from being changed."""
        if not self._asks:
            return ONLY_OBSERVED
        return REQUEST_FIXED if endpoint is not None and endpoint.may_ask else ENDPOINT_NOT_NAMED

    def sending(self, exchange: Exchange, body: bytes | None) -> AbstractContextManager[None]:
        """While ``body`` is sent, the libraries below do not note it again."""
        return _Sending(self, exchange.start.url, body)

    def endpoint(self, url: str) -> Endpoint | None:
        """Return what is known of the endpoint of ``url``."""
        with self.guard("finding an endpoint"):
            return self._endpoint_for(url)
        return None

    # -- asking

    def may_request_tokens(self, request: Outgoing) -> bool:
        """Whether ``request``, of which the body may still come, could be changed at all."""
        if not self._asks or operation_of(request.method, request.path) is None:
            return False
        known = self.endpoint(request.url)
        return not is_fixed(request.headers, request.query) and known is not None and known.may_ask

    def token_request_body(self, exchange: Exchange, request: Outgoing) -> bytes | None:
        """Return the body that also asks for token ids, or ``None`` where the request leaves as it is."""
        if not self._asks or exchange.endpoint is None or not exchange.endpoint.may_ask:
            return None
        with self.guard("asking for token ids"):
            asked = request.json()
            if asked is None or is_fixed(request.headers, request.query):
                return None
            url, operation = exchange.endpoint.url, exchange.start.operation
            for way in token_request.ways(asked, operation):
                kind = request_kind(url, operation, asked, way)
                if self._refusals.applies_to(kind):
                    continue
                body, added = token_request.ask(asked, operation, way)
                exchange.not_asked = ""
                if not added:
                    return None
                exchange.added = added
                exchange.kind = kind
                return body
            exchange.notes.append(ASKING_REFUSED)
        return None

    def is_refusal(self, status: int, headers: Mapping[str, str]) -> bool:
        """Whether the response to a changed request is thrown away, and the agent's own request sent."""
        return is_refusal(status, headers)

    def error_detector(self, exchange: Exchange, content_encoding: str) -> ErrorDetector | None:
        """Return what finds errors in a response of status 200; ``None`` where its bytes are compressed."""
        if content_encoding.strip().lower() not in NO_ENCODING:
            return None
        return ErrorDetector(stream=exchange.start.stream)

    def withdraw_token_request(self, exchange: Exchange) -> None:
        """Note that the agent's unchanged request is sent now, after the one that asked for token ids was refused."""
        exchange.added = frozenset()
        exchange.notes.append(ASKING_REFUSED)

    def record_outcome(self, exchange: Exchange, *, refused: bool, status: int | None, own: int = 0) -> None:
        """Remember whether the server has answered a request that asked for token ids.

        Args:
            exchange: The exchange whose request was changed.
            refused: Whether the agent's own request was sent after it.
            status: The status of the refusal; ``None`` for a broken connection, 200 for an error in the body.
            own: The status of the response to the agent's own request. If that failed too, the added fields were not
                the reason, and nothing is remembered.
        """
        kind = exchange.kind
        if kind is None:
            return
        if not refused:  # what an earlier refusal was suspected of is not so
            self._refusals.accepted(kind)
        elif own < 400:
            self._refusals.refused(kind, status)

    def note_redirect(self, exchange: Exchange, url: str) -> None:
        """Note where the client was led: what is known of the first endpoint is not known of that one."""
        parts = urlsplit(url)
        url = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
        exchange.start = replace(exchange.start, url=url)
        exchange.endpoint = self.endpoint(url)

    def note_response_head(
        self, exchange: Exchange, status: int, headers: Mapping[str, str]
    ) -> Stripper | None:
        """Note the head of the answer that the agent gets; return what takes out of it what was asked for."""
        encoding = headers.get("content-encoding", "")
        exchange.note_response_head(status, headers.get("content-type", ""), encoding)
        if not exchange.added or status >= 400:
            return None
        if encoding.strip().lower() not in NO_ENCODING:
            exchange.notes.append("added_fields_visible")  # the server compresses although asked not to
            return None
        return token_request.AnswerStripper(exchange.added, stream=exchange.start.stream)
