"""Model calls captured where no client library can lose anything: at the HTTP client.

``Client.send`` and ``AsyncClient.send`` of httpx (openai 1.x and 2.x, LiteLLM) and of httpx2 (openai 3.x) are
replaced by methods that recognise OpenAI-compatible calls and note their bytes. Everything else passes untouched.
The agent gets the very response object, bytes and exceptions that it would have got. On its thread bytes are
noted and nothing is decoded; what fails in our own code ends in a ``Guard``.

With ``capture_tokens='request'`` calls to known endpoints ask for token ids on the agent's behalf, and what that
brings is taken out before the client parses (``codec.token_request``). With ``'observe'`` no byte is touched.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
from collections.abc import Callable, Generator
from types import ModuleType
from typing import Any, Literal, Optional, Protocol

from opentelemetry import context

from ..codec import token_request
from ..codec.raw_call import CallStart, Endpoint, Operation
from .exchange import MAX_BODY_BYTES, Call, Exchange, close_scope, open_scope, scope_of
from .guard import Guard
from .imports import when_imported
from .own_hosts import Baggage, IsOwnHost, is_loopback
from .patch import AttributePatch, Patch, Patches, defining_class
from .sink import CallSink
from .tee import Stripper, Tees

CaptureTokens = Literal["observe", "request"]
EndpointFor = Callable[[str], Optional[Endpoint]]

# "suppress_instrumentation" is the name that OpenTelemetry's instrumentations have always used; newer releases of
# the API also have a key of their own.
_SUPPRESS = ("suppress_instrumentation", getattr(context, "_SUPPRESS_INSTRUMENTATION_KEY", None))
_REFUSALS = frozenset({400, 422})
"""How servers refuse a field that they do not know: vLLM and SGLang with 400, a strict pydantic model with 422."""


class ModelCallPatches(Patches):
    """The patches of one capture, and the calls that are under way in it."""

    def __init__(self, under_way: set[Exchange]) -> None:
        super().__init__("model calls captured at the wire")
        self._under_way = under_way

    def leave(self) -> None:
        """End calls whose answers nobody has read to the end, as cut off; the agent may read on, unseen."""
        for exchange in list(self._under_way):
            exchange.leave()


def no_endpoint(url: str) -> Optional[Endpoint]:
    """Know no endpoint."""
    del url
    return None


def instrument_model_calls(
    sink: CallSink,
    *,
    capture_tokens: CaptureTokens = "observe",
    endpoint_for: EndpointFor = no_endpoint,
    is_own_host: IsOwnHost = is_loopback,
    guard: Optional[Guard] = None,
    max_body_bytes: int = MAX_BODY_BYTES,
) -> ModelCallPatches:
    """Tell ``sink`` of every OpenAI-compatible call that this process makes from now on.

    Libraries that are imported already are patched at once, others right after their import; none is imported
    here. Calls in a context that suppresses instrumentation are not seen.

    Args:
        sink: Hears of each call twice: when it leaves, and once when it is over.
        capture_tokens: ``request`` asks endpoints that ``endpoint_for`` knows for token ids.
        endpoint_for: URL without query → what is known of its endpoint.
        is_own_host: Hosts that may see our baggage.
        guard: Where exceptions of our own code go (also those of ``sink``); by default they are logged once.
        max_body_bytes: How much of a response is remembered; of a longer one, its beginning.

    Returns:
        The patch; ``undo()`` puts back the objects that were there and stops waiting for imports. Calls that are
        under way go on being noted until they are over, or until ``leave()``.
    """
    guard = guard or Guard()
    capture = _Capture(sink, capture_tokens, endpoint_for, Baggage(is_own_host, guard), guard, max_body_bytes)
    patches = ModelCallPatches(capture.under_way)

    def adding(patch_module: Callable[[ModuleType], list[Patch]]) -> Callable[[ModuleType], None]:
        def callback(module: ModuleType) -> None:
            for patch in patch_module(module):
                patches.add(patch)

        return callback

    patches.add(
        when_imported(
            {
                "httpx": adding(capture.patch_http),
                "httpx2": adding(capture.patch_http),
                "openai._base_client": adding(capture.patch_openai),
                "requests.sessions": adding(capture.baggage.patch_requests),
                "aiohttp.client": adding(capture.baggage.patch_aiohttp),
            },
            guard,
        )
    )
    return patches


def operation_of(method: str, path: str) -> Optional[Operation]:
    """Return the operation of a request, or ``None`` where it is no model call.

    A base URL may have any path before these: ``/v1``, Azure's ``/openai/deployments/<name>``, a gateway's.
    """
    path = path.rstrip("/")
    if method != "POST" or not path.endswith("/completions"):
        return None
    return "chat" if path.endswith("/chat/completions") else "text_completion"


class _Capture:
    """What all patches of one instrumentation share."""

    def __init__(
        self,
        sink: CallSink,
        capture_tokens: CaptureTokens,
        endpoint_for: EndpointFor,
        baggage: Baggage,
        guard: Guard,
        max_body_bytes: int,
    ) -> None:
        self._sink = sink
        self._asks = capture_tokens == "request"
        self._endpoint_for = endpoint_for
        self.baggage = baggage
        self._guard = guard
        self._max_body_bytes = max_body_bytes
        self._refusing: set[tuple[str, Operation, bool]] = set()
        self._patched: set[type] = set()
        self.under_way: set[Exchange] = set()

    # -- patches

    def patch_http(self, library: ModuleType) -> list[Patch]:
        """Patch the two clients of httpx or httpx2."""
        tees = Tees(library)
        patches: list[Patch] = []
        for name, wrap in (("Client", self._sync_send), ("AsyncClient", self._async_send)):
            owner = defining_class(getattr(library, name), "send")
            if owner is None or owner in self._patched:  # httpx2 can stand in for httpx, as the same classes
                continue
            self._patched.add(owner)
            patches.append(
                AttributePatch(owner, "send", functools.partial(wrap, tees), "notes the bytes of model calls")
            )
        return patches + (self.baggage.patch_http(library) if patches else [])

    def patch_openai(self, base_client: ModuleType) -> list[Patch]:
        """Patch the methods of the openai client inside which it retries, where it has them."""
        patches: list[Patch] = []
        for name, wrap in (("SyncAPIClient", self._sync_request), ("AsyncAPIClient", self._async_request)):
            owner = getattr(base_client, name, None)
            request = vars(owner).get("request") if isinstance(owner, type) else None
            expected = inspect.iscoroutinefunction(request) == (name == "AsyncAPIClient")
            if inspect.isfunction(request) and expected:
                patches.append(AttributePatch(owner, "request", wrap, "a call and its retries are one call"))
        return patches

    def _sync_request(self, original: Any, patch: Patch) -> Any:
        @functools.wraps(original)
        def request(*args: Any, **kwargs: Any) -> Any:
            if not patch.active:
                return original(*args, **kwargs)
            opened = open_scope(self)
            try:
                return original(*args, **kwargs)
            finally:
                close_scope(opened)

        return request

    def _async_request(self, original: Any, patch: Patch) -> Any:
        @functools.wraps(original)
        async def request(*args: Any, **kwargs: Any) -> Any:
            if not patch.active:
                return await original(*args, **kwargs)
            opened = open_scope(self)
            try:
                return await original(*args, **kwargs)
            finally:
                close_scope(opened)

        return request

    def _sync_send(self, tees: Tees, original: Any, patch: Patch) -> Any:
        @functools.wraps(original)
        def send(client: Any, request: Any, **kwargs: Any) -> Any:
            if not patch.active or _is_suppressed():
                return original(client, request, **kwargs)
            exchange = self._begin(request)  # in the agent's own context, by which the sink may route
            token = self.baggage.enter(_host(request))
            try:
                if exchange is None:
                    return original(client, request, **kwargs)
                steps, response = self._steps(tees, exchange, request, kwargs), None
                while (step := self._next(steps, response)) is not None:
                    try:
                        response = step.perform(original, client)
                    except BaseException as error:
                        exchange.failed(error)
                        raise
                return response
            finally:
                self.baggage.leave(token)

        return send

    def _async_send(self, tees: Tees, original: Any, patch: Patch) -> Any:
        @functools.wraps(original)
        async def send(client: Any, request: Any, **kwargs: Any) -> Any:
            if not patch.active or _is_suppressed():
                return await original(client, request, **kwargs)
            exchange = self._begin(request)  # in the agent's own context, by which the sink may route
            token = self.baggage.enter(_host(request))
            try:
                if exchange is None:
                    return await original(client, request, **kwargs)
                steps, response = self._steps(tees, exchange, request, kwargs), None
                while (step := self._next(steps, response)) is not None:
                    try:
                        response = await step.aperform(original, client)
                    except BaseException as error:
                        exchange.failed(error)
                        raise
                return response
            finally:
                self.baggage.leave(token)

        return send

    # -- one exchange

    def _begin(self, request: Any) -> Optional[Exchange]:
        """Tell the sink that a call leaves; ``None`` where ``request`` is no model call."""
        with self._guard("noting a request"):
            operation = operation_of(request.method, request.url.path)
            body = None if operation is None else _json_object(request)
            if operation is None or body is None:
                return None
            model = body.get("model")
            start = CallStart(
                operation=operation,
                url=f"{request.url.scheme}://{request.url.netloc.decode('ascii')}{request.url.path}",
                model=model if isinstance(model, str) else None,
                stream=bool(body.get("stream")),
            )
            scope = scope_of(self)
            call = scope.begin() if scope is not None else None
            if call is None:
                call = Call(self._sink, self._guard, self._sink.started(start), scope)
            if scope is not None:
                scope.call = call
            return Exchange(
                call,
                start,
                request,
                endpoint=self._endpoint(start.url),
                retries=_client_retries(request) if scope is None else None,
                max_body_bytes=self._max_body_bytes,
                under_way=self.under_way,
            )
        return None

    def _endpoint(self, url: str) -> Optional[Endpoint]:
        with self._guard("finding an endpoint"):
            return self._endpoint_for(url)
        return None

    def _steps(
        self, tees: Tees, exchange: Exchange, request: Any, kwargs: dict[str, Any]
    ) -> Generator[_Step, Any, None]:
        """What to do with one request, without doing it; what the last step returns is for the agent."""
        asking = self._asking(exchange, request)
        if asking is None:
            response = yield _Send(request, kwargs)
            self._answered(tees, exchange, response)
            return
        # The body has to pass through a tee before the client reads it, so the response comes unread.
        response = yield _Send(asking, {**kwargs, "stream": True}, instead_of=request)
        if response.status_code in _REFUSALS:
            yield _Close(response)
            exchange.added = frozenset()
            response = yield _Send(request, kwargs)
            if response.status_code < 400:
                self._refusing.add(_kind(exchange))
            self._answered(tees, exchange, response)
            return
        response.request = request
        self._answered(tees, exchange, response)
        length = response.headers.pop("content-length", None)  # it counts what is taken out as well
        if not kwargs.get("stream"):
            response = yield _Read(response)
            if length is not None:
                response.headers["content-length"] = str(len(response.content))

    def _next(self, steps: Generator[_Step, Any, None], outcome: Any) -> Optional[_Step]:
        """Return the next step; after a fault of ours there is none, and the agent gets the last outcome."""
        with self._guard("following a call"):
            try:
                return steps.send(outcome)
            except StopIteration:
                return None
        return None

    def _asking(self, exchange: Exchange, request: Any) -> Optional[Any]:
        """Return a request that also asks for token ids, or ``None`` where nothing is to be asked."""
        if not self._asks or exchange.endpoint is None or _kind(exchange) in self._refusing:
            return None
        with self._guard("asking for token ids"):
            body, added = token_request.ask(_json_object(request) or {}, exchange.start.operation)
            if not added:
                return None
            headers = request.headers.copy()
            headers["content-length"] = str(len(body))
            headers["accept-encoding"] = "identity"
            asking = type(request)(
                request.method,
                request.url,
                headers=headers,
                content=body,
                extensions=dict(request.extensions),
            )
            exchange.added = added
            return asking
        return None

    def _answered(self, tees: Tees, exchange: Exchange, response: Any) -> None:
        """Note a response: its body if the client has read it, else through a tee as it is read."""
        with self._guard("noting a response"):
            headers = response.headers
            exchange.answered(
                response.status_code, headers.get("content-type", ""), headers.get("content-encoding", "")
            )
            stripper = self._stripper(exchange, response)
            if response.is_closed:
                exchange.note_whole(response.content)
                if stripper is not None:
                    _replace_content(response, stripper.feed(response.content) + stripper.finish())
                exchange.over(complete=True)
                return
            if tees.put(response, exchange, self._guard, stripper):
                return
        exchange.over(complete=False)

    def _stripper(self, exchange: Exchange, response: Any) -> Optional[Stripper]:
        if not exchange.added or response.status_code >= 400:
            return None
        if response.headers.get("content-encoding", "identity") != "identity":
            exchange.notes.append("added_fields_visible")  # the server compresses although asked not to
            return None
        events = response.headers.get("content-type", "").startswith("text/event-stream")
        return (token_request.EventStripper if events else token_request.BodyStripper)(exchange.added)


# -- steps: what a sync and an async client do alike


class _Step(Protocol):
    def perform(self, original: Any, client: Any) -> Any: ...

    async def aperform(self, original: Any, client: Any) -> Any: ...


class _Send:
    """Send a request with the client's own method."""

    def __init__(self, request: Any, kwargs: dict[str, Any], instead_of: Any = None) -> None:
        self._request = request
        self._kwargs = kwargs
        self._instead_of = instead_of

    def perform(self, original: Any, client: Any) -> Any:
        try:
            return original(client, self._request, **self._kwargs)
        except Exception as error:
            self._restore(error)
            raise

    async def aperform(self, original: Any, client: Any) -> Any:
        try:
            return await original(client, self._request, **self._kwargs)
        except Exception as error:
            self._restore(error)
            raise

    def _restore(self, error: Any) -> None:
        """Let the exception name the agent's request, and not the one that asked for more."""
        if self._instead_of is not None and getattr(error, "_request", None) is self._request:
            error.request = self._instead_of


class _Read:
    """Read a response as the client's ``send`` does where the agent did not ask for a stream."""

    def __init__(self, response: Any) -> None:
        self._response = response

    def perform(self, _original: Any, _client: Any) -> Any:
        try:
            self._response.read()
        except BaseException:
            self._response.close()
            raise
        return self._response

    async def aperform(self, _original: Any, _client: Any) -> Any:
        try:
            await self._response.aread()
        except BaseException:
            await self._response.aclose()
            raise
        return self._response


class _Close:
    """Give a connection back; what that raises is nobody's business: another request follows."""

    def __init__(self, response: Any) -> None:
        self._response = response

    def perform(self, _original: Any, _client: Any) -> None:
        with contextlib.suppress(Exception):
            self._response.close()

    async def aperform(self, _original: Any, _client: Any) -> None:
        with contextlib.suppress(Exception):
            await self._response.aclose()


# -- what is known of a request


def _is_suppressed() -> bool:
    return any(key is not None and context.get_value(key) for key in _SUPPRESS)


def _host(request: Any) -> Optional[str]:
    url = getattr(request, "url", None)
    host = getattr(url, "host", None)
    return host if isinstance(host, str) else None


def _json_object(request: Any) -> Optional[dict[str, Any]]:
    try:
        found = json.loads(request.content)
    except (ValueError, RuntimeError):  # no JSON; a body that is streamed and cannot be read twice
        return None
    return found if isinstance(found, dict) else None


def _client_retries(request: Any) -> int:
    """Return the number that clients made by Stainless, such as openai, put into a header."""
    count = request.headers.get("x-stainless-retry-count", "")
    return int(count) if count.isascii() and count.isdigit() else 0


def _kind(exchange: Exchange) -> tuple[str, Operation, bool]:
    """Servers may refuse a field in one kind of call only: SGLang gives no token ids in a streamed chat."""
    endpoint = exchange.endpoint.url if exchange.endpoint is not None else ""
    return endpoint, exchange.start.operation, exchange.start.stream


def _replace_content(response: Any, content: bytes) -> None:
    """Replace a body that came without a stream, as mock transports make them."""
    if hasattr(response, "_content"):
        response._content = content  # noqa: SLF001 - the libraries have no public way
