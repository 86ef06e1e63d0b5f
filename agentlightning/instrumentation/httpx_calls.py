"""Model calls of httpx and httpx2 (openai, LiteLLM, anthropic's kin), and the scope of openai's own retries.

``Client.send`` and ``AsyncClient.send`` are replaced by methods that note the bytes of model calls. What a synchronous
and an asynchronous client do alike is one generator of steps, without I/O of its own.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Generator
from types import ModuleType
from typing import Any, Protocol

from .exchange import Exchange, Outgoing, close_request_scope, open_request_scope
from .patch import AttributePatch, Patch, defining_class
from .refusals import ErrorDetector, is_redirect
from .suppression import is_own_work
from .tee import Tees
from .watch import CallWatch


class HttpxCalls:
    """The patches of httpx, httpx2 and openai."""

    def __init__(self, watch: CallWatch) -> None:
        self._watch = watch
        self._guard = watch.guard

    def patch_http(self, library: ModuleType) -> list[Patch]:
        """Patch the two clients of httpx or httpx2."""
        tees = Tees(library)
        patches: list[Patch] = []
        for name, wrap in (("Client", self._sync_send), ("AsyncClient", self._async_send)):
            owner = defining_class(getattr(library, name), "send")
            if owner is None or owner in self._watch.patched_clients:
                continue
            self._watch.patched_clients.add(owner)
            patches.append(
                AttributePatch(owner, "send", functools.partial(wrap, tees), "notes the bytes of model calls")
            )
        return patches + (self._watch.baggage.patch_http(library) if patches else [])

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
            opened = open_request_scope(self._watch)
            try:
                return original(*args, **kwargs)
            finally:
                close_request_scope(opened)

        return request

    def _async_request(self, original: Any, patch: Patch) -> Any:
        @functools.wraps(original)
        async def request(*args: Any, **kwargs: Any) -> Any:
            if not patch.active:
                return await original(*args, **kwargs)
            opened = open_request_scope(self._watch)
            try:
                return await original(*args, **kwargs)
            finally:
                close_request_scope(opened)

        return request

    def _sync_send(self, tees: Tees, original: Any, patch: Patch) -> Any:
        @functools.wraps(original)
        def send(client: Any, request: Any, **kwargs: Any) -> Any:
            if not patch.active or is_own_work():
                return original(client, request, **kwargs)
            # Before the baggage is entered: the sink may route by the agent's own context.
            outgoing, exchange = self._begin(tees, request)
            token = self._watch.baggage.enter(_host(request))
            try:
                if exchange is None:
                    return original(client, request, **kwargs)
                steps = _Steps(self._steps(tees, exchange, outgoing, request, kwargs))
                while (step := self._next(steps)) is not None:
                    try:
                        steps.outcome = step.perform(original, client)
                    except BaseException as error:
                        exchange.fail(error)
                        raise
                return steps.response
            finally:
                self._watch.baggage.leave(token)

        return send

    def _async_send(self, tees: Tees, original: Any, patch: Patch) -> Any:
        @functools.wraps(original)
        async def send(client: Any, request: Any, **kwargs: Any) -> Any:
            if not patch.active or is_own_work():
                return await original(client, request, **kwargs)
            # Before the baggage is entered: the sink may route by the agent's own context.
            outgoing, exchange = self._begin(tees, request)
            token = self._watch.baggage.enter(_host(request))
            try:
                if exchange is None:
                    return await original(client, request, **kwargs)
                steps = _Steps(self._steps(tees, exchange, outgoing, request, kwargs))
                while (step := self._next(steps)) is not None:
                    try:
                        steps.outcome = await step.aperform(original, client)
                    except BaseException as error:
                        exchange.fail(error)
                        raise
                return steps.response
            finally:
                self._watch.baggage.leave(token)

        return send

    def _begin(self, tees: Tees, request: Any) -> tuple[Any, Exchange | None]:
        with self._guard("noting a request"):
            outgoing = _outgoing(request)
            exchange = self._watch.begin(outgoing, retries=_client_retries(request))
            if exchange is not None and outgoing.body is None:
                tees.note_request(request, exchange)
            return outgoing, exchange
        return None, None

    def _steps(
        self, tees: Tees, exchange: Exchange, outgoing: Outgoing, request: Any, kwargs: dict[str, Any]
    ) -> Generator[_Step, Any, None]:
        """What to do with one request, without doing it; :class:`_Steps` has what is for the agent."""
        asking_body = self._watch.token_request_body(exchange, outgoing)
        own = _Send(request, kwargs, self._watch.sending(exchange, outgoing.body))
        if asking_body is None:
            response = yield own
            self._answered(tees, exchange, response)
            return
        # The body has to pass through a tee before the client reads it, so the response comes unread.
        asking = _with_body(request, asking_body)
        sending = self._watch.sending(exchange, asking_body)
        changes = {"stream": True, "follow_redirects": False}
        answer = yield _Ask(asking, {**kwargs, **changes}, sending, instead_of=request)
        status = None if isinstance(answer, Exception) else answer.status_code
        refused = status is None or is_redirect(status) or self._watch.is_refusal(status, answer.headers)
        if status is not None and status < 400 and not refused:
            detector = self._watch.error_detector(exchange, answer.headers.get("content-encoding", ""))
            if detector is not None:
                broken = yield _Look(tees, answer, detector, request)
                refused = broken is not None or detector.is_error
        if refused:
            if status is not None:
                yield _Close(answer)
            self._watch.withdraw_token_request(exchange)
            response = yield own
            self._watch.record_outcome(exchange, refused=True, status=status, own=response.status_code)
            self._answered(tees, exchange, response)
            return
        self._watch.record_outcome(exchange, refused=False, status=status)
        answer.request = request
        self._answered(tees, exchange, answer)
        length = answer.headers.pop("content-length", None)  # it counts what is taken out as well
        if not kwargs.get("stream"):
            yield _Read(answer)
            if length is not None:
                answer.headers["content-length"] = str(len(answer.content))

    def _next(self, steps: _Steps) -> _Step | None:
        """Return the next step; after a fault of ours there is none, and the agent gets what came last."""
        with self._guard("following a call"):
            return steps.next()
        return None

    def _answered(self, tees: Tees, exchange: Exchange, response: Any) -> None:
        """Note a response: its body if the client has read it, else through a tee as it is read."""
        with self._guard("noting a response"):
            if response.history:
                self._watch.note_redirect(exchange, str(response.url))
            stripper = self._watch.note_response_head(exchange, response.status_code, response.headers)
            if response.is_closed:
                exchange.note_decoded_body(response.content)
                if stripper is not None:
                    _replace_content(response, stripper.feed(response.content) + stripper.finish())
                exchange.finish(complete=True)
                return
            if tees.install(response, exchange, self._guard, stripper):
                return
        exchange.finish(complete=False)


# -- steps: what a sync and an async client do alike


class _Steps:
    """The steps of one request, and the response that the agent gets in the end.

    The caller performs the step that :meth:`next` returns and puts its outcome into ``outcome`` before the next call of
    ``next``. Only the outcome of a ``_Send`` can become the agent's response.
    """

    def __init__(self, steps: Generator[_Step, Any, None]) -> None:
        self._steps = steps
        self._last: _Step | None = None
        self.outcome: Any = None
        self._response: Any = None

    def next(self) -> _Step | None:
        """Return the next step; ``None`` at the end."""
        outcome, self.outcome = self.outcome, None
        if isinstance(self._last, _Send):
            self._response = outcome
        try:
            self._last = self._steps.send(outcome)
        except StopIteration:
            self._last = None
        return self._last

    @property
    def response(self) -> Any:
        """What the last request was answered with; an exception that was held back is raised."""
        if isinstance(self._response, Exception):
            raise self._response
        return self._response


class _Step(Protocol):
    def perform(self, original: Any, client: Any) -> Any: ...

    async def aperform(self, original: Any, client: Any) -> Any: ...


class _Send:
    """Send a request with the client's own method."""

    def __init__(
        self, request: Any, kwargs: dict[str, Any], sending: contextlib.AbstractContextManager[None]
    ) -> None:
        self._request = request
        self._kwargs = kwargs
        self._sending = sending

    def perform(self, original: Any, client: Any) -> Any:
        with self._sending:
            return original(client, self._request, **self._kwargs)

    async def aperform(self, original: Any, client: Any) -> Any:
        with self._sending:
            return await original(client, self._request, **self._kwargs)


class _Ask(_Send):
    """Send a request that asks for more; a connection that breaks is an outcome, since the agent's own follows."""

    def __init__(
        self,
        request: Any,
        kwargs: dict[str, Any],
        sending: contextlib.AbstractContextManager[None],
        instead_of: Any,
    ) -> None:
        super().__init__(request, kwargs, sending)
        self._instead_of = instead_of

    def perform(self, original: Any, client: Any) -> Any:
        try:
            return super().perform(original, client)
        except Exception as error:
            if not self._is_outcome(error):
                raise
            return error

    async def aperform(self, original: Any, client: Any) -> Any:
        try:
            return await super().aperform(original, client)
        except Exception as error:
            if not self._is_outcome(error):
                raise
            return error

    def _is_outcome(self, error: Exception) -> bool:
        """Whether the agent's own request follows; an exception that the agent gets is made to name its request."""
        if _is_break(error):
            return True
        _name_request(error, self._instead_of, instead_of=self._request)
        return False


class _Look:
    """Read the beginning of an answer, so far as it takes to know whether it is an error."""

    def __init__(self, tees: Tees, response: Any, detector: ErrorDetector, request: Any) -> None:
        self._tees = tees
        self._response = response
        self._detector = detector
        self._request = request

    def perform(self, _original: Any, _client: Any) -> Exception | None:
        stream = self._tees.peekable(self._response)
        if stream is None:
            self._look_at_whole()
            return None
        try:
            stream.peek(self._detector)
        except BaseException as error:  # noqa: BLE001 - judged below
            self._response.close()
            return self._outcome(error)
        return None

    async def aperform(self, _original: Any, _client: Any) -> Exception | None:
        stream = self._tees.peekable(self._response)
        if stream is None:
            self._look_at_whole()
            return None
        try:
            await stream.peek(self._detector)
        except BaseException as error:  # noqa: BLE001 - judged below
            await self._response.aclose()
            return self._outcome(error)
        return None

    def _look_at_whole(self) -> None:
        """Look at a body that came without a stream, as mock transports make them."""
        if self._response.is_closed:
            self._detector.feed(self._response.content)
            self._detector.finish()

    def _outcome(self, error: BaseException) -> Exception:
        if isinstance(error, Exception) and _is_break(error):
            return error
        _name_request(error, self._request)
        raise error


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
    """Give a connection back; an exception of that is ignored, since another request follows on another connection."""

    def __init__(self, response: Any) -> None:
        self._response = response

    def perform(self, _original: Any, _client: Any) -> None:
        with contextlib.suppress(Exception):
            self._response.close()

    async def aperform(self, _original: Any, _client: Any) -> None:
        with contextlib.suppress(Exception):
            await self._response.aclose()


# -- what is known of a request and of its failure


def _outgoing(request: Any) -> Outgoing:
    url = request.url
    try:
        body: bytes | None = request.content
    except RuntimeError:  # it is streamed, and cannot be read twice
        body = None
    return Outgoing(
        method=request.method,
        scheme=url.scheme,
        host=url.netloc.decode("ascii"),
        path=url.path,
        query=url.query.decode("ascii", "replace"),
        headers=request.headers,
        body=body,
    )


def _with_body(request: Any, body: bytes) -> Any:
    """Return a request as the agent's, with another body."""
    headers = request.headers.copy()
    headers["content-length"] = str(len(body))
    # What was added is taken out of the answer before the client reads it, so the answer may not be compressed.
    headers["accept-encoding"] = "identity"
    extensions = dict(request.extensions)
    return type(request)(request.method, request.url, headers=headers, content=body, extensions=extensions)


_BREAKS = frozenset({"RemoteProtocolError", "ReadError", "WriteError"})


def _is_break(error: Exception) -> bool:
    """Whether a server broke off, which it may have done because of what was added; one that is slow has not."""
    return type(error).__name__ in _BREAKS


def _name_request(error: BaseException, request: Any, instead_of: Any = None) -> None:
    """Let an exception of the library name the agent's request, and not the one that asked for more."""
    # The public property raises where no request is set.
    if hasattr(error, "_request") and getattr(error, "_request", None) is instead_of:
        error.request = request  # type: ignore[attr-defined]


def _host(request: Any) -> str | None:
    url = getattr(request, "url", None)
    host = getattr(url, "host", None)
    return host if isinstance(host, str) else None


def _client_retries(request: Any) -> int:
    """Return the number that clients made by Stainless, such as openai, put into a header."""
    count = request.headers.get("x-stainless-retry-count", "")
    return int(count) if count.isascii() and count.isdigit() else 0


def _replace_content(response: Any, content: bytes) -> None:
    """Replace a body that came without a stream, as mock transports make them."""
    if hasattr(response, "_content"):
        response._content = content  # noqa: SLF001 - the libraries have no public way
