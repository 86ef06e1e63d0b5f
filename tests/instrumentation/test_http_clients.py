"""Each HTTP client, plain, streamed and compressed, observed and asked: the agent gets what it gets without us, and
the call is recorded once, with the ids that were sampled."""

from __future__ import annotations

import asyncio
import gzip
import http.client
import json
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any

import aiohttp
import httpx
import pytest
import requests
import urllib3

from agentlightning.dialects.model_call import VALID
from agentlightning.dialects.raw_call import Endpoint
from agentlightning.instrumentation.guard import Guard, reraise
from agentlightning.instrumentation.wire import instrument_model_calls
from agentlightning.testing import wait_until
from agentlightning.testing.fake_openai import Answer, FakeOpenAI, Fault, ReceivedRequest, Reset, Scripted
from agentlightning.testing.recorded_calls import RecordedCalls

pytestmark = pytest.mark.long

ANSWER = Answer.of("one two three", show_usage="asked")
IDS = tuple(token.id for token in ANSWER.choices[0].tokens)
ASKS = {"return_token_ids": True, "logprobs": True, "stream_options": {"include_usage": True}}
ADDED = {"return_token_ids", "logprobs", "stream_options"}
HEADERS = {"content-type": "application/json", "authorization": "Bearer sk-secret"}


def body_of(*, stream: bool, asks: bool) -> bytes:
    request: dict[str, Any] = {
        "model": "m",
        "messages": [{"role": "user", "content": "hi"}],
        "stream": stream,
    }
    return json.dumps(
        {**request, **(ASKS if asks and stream else {**ASKS, "stream_options": None} if asks else {})}
    ).encode()


# -- the clients; each returns the status and the body that the agent gets


def by_requests(server: FakeOpenAI, body: bytes, encoding: str) -> Any:
    headers = {**HEADERS, "accept-encoding": encoding}
    response = requests.post(f"{server.base_url}/chat/completions", data=body, headers=headers, timeout=120)
    return response.status_code, response.content


def by_requests_streamed(server: FakeOpenAI, body: bytes, encoding: str) -> Any:
    headers = {**HEADERS, "accept-encoding": encoding}
    with requests.Session() as session:
        session.trust_env = False
        url = f"{server.base_url}/chat/completions"
        with session.post(url, data=body, headers=headers, stream=True, timeout=120) as response:
            return response.status_code, list(response.iter_lines())


def by_urllib3(server: FakeOpenAI, body: bytes, encoding: str) -> Any:
    with urllib3.PoolManager() as pool:
        url = f"{server.base_url}/chat/completions"
        headers = {**HEADERS, "accept-encoding": encoding}
        response = pool.request("POST", url, body=body, headers=headers)
        return response.status, response.data


def by_urllib3_streamed(server: FakeOpenAI, body: bytes, encoding: str) -> Any:
    with urllib3.PoolManager() as pool:
        url = f"{server.base_url}/chat/completions"
        headers = {**HEADERS, "accept-encoding": encoding}
        response = pool.request("POST", url, body=body, headers=headers, preload_content=False)
        said = b"".join(response.stream(7, decode_content=True))
        response.release_conn()
        return response.status, said


@contextmanager
def connected(server: FakeOpenAI) -> Iterator[http.client.HTTPConnection]:
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=120)
    try:
        yield connection
    finally:
        connection.close()


def by_http_client(server: FakeOpenAI, body: bytes, encoding: str) -> Any:
    with connected(server) as connection:
        connection.request("POST", "/v1/chat/completions", body, {**HEADERS, "accept-encoding": encoding})
        response = connection.getresponse()
        return response.status, inflated(response.read(), response.getheader("content-encoding"))


def by_http_client_line_by_line(server: FakeOpenAI, body: bytes, encoding: str) -> Any:
    """Also a body that is made while it is sent, and two calls on one connection."""
    with connected(server) as connection:
        headers = {**HEADERS, "accept-encoding": encoding}
        connection.request(
            "POST", "/v1/chat/completions", iter([body[:9], body[9:]]), headers, encode_chunked=True
        )
        response = connection.getresponse()
        lines = []
        while line := response.readline():
            lines.append(line)
        assert response.read() == b""  # which frees the connection
        found = response.status, inflated(b"".join(lines), response.getheader("content-encoding"))
        connection.request("GET", "/v1/models")
        assert b"fake-model" in connection.getresponse().read()
        return found


def by_urllib(server: FakeOpenAI, body: bytes, encoding: str) -> Any:
    url = f"{server.base_url}/chat/completions"
    request = urllib.request.Request(url, body, {**HEADERS, "accept-encoding": encoding})
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
            request, timeout=120
        ) as response:
            return response.status, inflated(response.read(), response.headers.get("content-encoding"))
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def by_httpx(server: FakeOpenAI, body: bytes, encoding: str) -> Any:
    with httpx.Client(trust_env=False) as client:
        url = f"{server.base_url}/chat/completions"
        response = client.post(url, content=body, headers={**HEADERS, "accept-encoding": encoding})
        return response.status_code, response.content


def by_httpx_with_an_iterator(server: FakeOpenAI, body: bytes, encoding: str) -> Any:
    with httpx.Client(trust_env=False) as client:
        url = f"{server.base_url}/chat/completions"
        headers = {**HEADERS, "accept-encoding": encoding}
        response = client.post(url, content=iter([body[:9], body[9:]]), headers=headers)
        return response.status_code, response.content


def by_httpx_async(server: FakeOpenAI, body: bytes, encoding: str) -> Any:
    async def run() -> Any:
        async with httpx.AsyncClient(trust_env=False) as client:
            url = f"{server.base_url}/chat/completions"
            headers = {**HEADERS, "accept-encoding": encoding}
            async with client.stream("POST", url, content=body, headers=headers) as response:
                return response.status_code, b"".join([chunk async for chunk in response.aiter_bytes()])

    return asyncio.run(run())


class OverAiohttp(httpx.AsyncBaseTransport):
    """Sends with aiohttp, as the transports of LiteLLM and of ``httpx-aiohttp`` do."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        session = aiohttp.ClientSession(auto_decompress=False)
        body, headers = await request.aread(), dict(request.headers)
        try:
            response = await session.request(
                request.method, str(request.url), data=body, headers=headers, allow_redirects=False
            )
        except aiohttp.ClientError as error:
            await session.close()
            raise httpx.ReadError(str(error), request=request) from error

        class Chunks(httpx.AsyncByteStream):
            async def __aiter__(self) -> AsyncIterator[bytes]:
                async for chunk in response.content.iter_any():
                    yield chunk

            async def aclose(self) -> None:
                response.close()
                await session.close()

        return httpx.Response(response.status, headers=list(response.headers.items()), stream=Chunks())


def by_httpx_over_aiohttp(server: FakeOpenAI, body: bytes, encoding: str) -> Any:
    async def run() -> Any:
        async with httpx.AsyncClient(transport=OverAiohttp()) as client:
            url, headers = f"{server.base_url}/chat/completions", {**HEADERS, "accept-encoding": encoding}
            response = await client.post(url, content=body, headers=headers)
            return response.status_code, response.content

    return asyncio.run(run())


def aiohttp_run(
    server: FakeOpenAI, body: bytes, encoding: str, read: Callable[[Any], Any], **more: Any
) -> Any:
    async def run() -> Any:
        async with aiohttp.ClientSession() as session:
            url = f"{server.base_url}/chat/completions"
            headers = {**HEADERS, "accept-encoding": encoding}
            async with session.post(url, **{"data": body, **more}, headers=headers) as response:
                return response.status, await read(response)

    return asyncio.run(run())


def by_aiohttp(server: FakeOpenAI, body: bytes, encoding: str) -> Any:
    return aiohttp_run(server, body, encoding, lambda response: response.read())


def by_aiohttp_with_json(server: FakeOpenAI, body: bytes, encoding: str) -> Any:
    return aiohttp_run(
        server, b"", encoding, lambda response: response.text(), data=None, json=json.loads(body)
    )


def by_aiohttp_with_an_iterator(server: FakeOpenAI, body: bytes, encoding: str) -> Any:
    async def made() -> AsyncIterator[bytes]:
        yield body[:9]
        yield body[9:]

    return aiohttp_run(server, body, encoding, lambda response: response.read(), data=made())


def by_aiohttp_line_by_line(server: FakeOpenAI, body: bytes, encoding: str) -> Any:
    async def lines(response: Any) -> list[bytes]:
        return [line async for line in response.content]

    return aiohttp_run(server, body, encoding, lines)


def by_aiohttp_until_the_end(server: FakeOpenAI, body: bytes, encoding: str) -> Any:
    async def pieces(response: Any) -> bytes:
        found = b""
        while not response.content.at_eof():
            found += await response.content.read(11)
        return found

    return aiohttp_run(server, body, encoding, pieces)


def inflated(body: bytes, encoding: str | None) -> bytes:
    return gzip.decompress(body) if encoding == "gzip" else body


CLIENTS = (
    by_requests,
    by_requests_streamed,
    by_urllib3,
    by_urllib3_streamed,
    by_http_client,
    by_http_client_line_by_line,
    by_urllib,
    by_httpx,
    by_httpx_with_an_iterator,
    by_httpx_async,
    by_httpx_over_aiohttp,
    by_aiohttp,
    by_aiohttp_with_json,
    by_aiohttp_with_an_iterator,
    by_aiohttp_line_by_line,
    by_aiohttp_until_the_end,
)
MADE_WHILE_SENT = frozenset({by_httpx_with_an_iterator, by_aiohttp_with_an_iterator})
"""Bodies that cannot be sent twice are not asked for ids."""
ENCODINGS = ("", "gzip", "br", "zstd", "none")
READS_ITSELF = frozenset({by_http_client, by_http_client_line_by_line, by_urllib})
"""The caller of these undoes the encoding; the tests know gzip only."""


@contextmanager
def watching(
    mode: Any,
    endpoint_for: Callable[[str], Endpoint | None] = lambda url: Endpoint(url.rpartition("/v1/")[0]),
) -> Iterator[RecordedCalls]:
    """Record calls, and give all patches back."""
    sink = RecordedCalls()
    patch = instrument_model_calls(
        sink,
        capture_tokens=mode,
        endpoint_for=endpoint_for,
        guard=Guard(reraise),
    )
    try:
        yield sink
    finally:
        patch.undo()


def encoding_of(request: ReceivedRequest) -> Any:
    """Compress as the client has asked, and not otherwise."""
    asked = request.headers.get("accept-encoding", "")
    return asked if asked in ENCODINGS else ""


def answer(request: ReceivedRequest) -> Scripted:
    return Answer.of("one two three", content_encoding=encoding_of(request))


@pytest.mark.parametrize("mode", ["observe", "request"])
@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
@pytest.mark.parametrize("client", CLIENTS)
def test_a_call_is_recorded_exactly_and_the_agent_gets_what_it_gets_without_us(
    client: Callable[..., Any], stream: bool, encoding: str, mode: str
) -> None:
    if client in READS_ITSELF and encoding not in {"", "gzip", "none"}:
        encoding = "gzip"
    if "aiohttp" in client.__name__ and encoding == "none":
        encoding = ""
    body = body_of(stream=stream, asks=mode == "observe")
    with FakeOpenAI(answer) as server:
        without = client(server, body, encoding)
        with watching(mode) as sink:
            assert client(server, body, encoding) == without
        first, second = server.requests
        if mode == "observe" or client in MADE_WHILE_SENT:
            assert first.body == second.body
            assert sorted(first.raw) == sorted(second.raw)
    assert without[0] == 200
    call = sink.call()
    assert (call.request_model, call.stream, call.http_status, call.partial) == ("m", stream, 200, False)
    assert sink.raw[0].request_body == first.body
    if mode == "observe" or client not in MADE_WHILE_SENT:
        assert call.token_capture == VALID, call
        assert [choice.token_ids for choice in call.choices] == [IDS]


def by_aiohttp_that_compresses(server: FakeOpenAI, body: bytes, encoding: str) -> Any:
    plain = gzip.decompress(body)
    return aiohttp_run(server, plain, encoding, lambda response: response.read(), compress="gzip")


@pytest.mark.parametrize("mode", ["observe", "request"])
@pytest.mark.parametrize(
    "client", [*(each for each in CLIENTS if each is not by_aiohttp_with_json), by_aiohttp_that_compresses]
)
def test_a_request_that_is_compressed_arrives_as_it_left_and_is_read(
    client: Callable[..., Any], mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if client is not by_aiohttp_that_compresses:
        monkeypatch.setitem(HEADERS, "content-encoding", "gzip")
    body = gzip.compress(body_of(stream=False, asks=True), mtime=0)
    with FakeOpenAI(answer) as server:
        without = client(server, body, "")
        with watching(mode) as sink:
            assert client(server, body, "") == without
        first, second = server.requests
    assert without[0] == 200
    assert second.headers["content-encoding"] == "gzip"
    assert gzip.decompress(first.body) == gzip.decompress(second.body) == gzip.decompress(body)
    assert sorted(first.raw) == sorted(second.raw)
    call = sink.call()
    assert (call.request_model, list(call.request_messages)) == ("m", [{"role": "user", "content": "hi"}])
    assert call.issues == ()
    assert call.token_capture == VALID, call
    assert [choice.token_ids for choice in call.choices] == [IDS]


@pytest.mark.parametrize("client", [client for client in CLIENTS if client not in MADE_WHILE_SENT])
@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
@pytest.mark.parametrize(
    "refusal",
    [
        Fault(400),
        Fault(500, {"connection": "close"}),
        Fault(200, body=b'{"error": {"message": "no"}}'),
        Reset(),
    ],
    ids=str,
)
def test_a_refusal_is_followed_by_the_agents_own_request(
    client: Callable[..., Any], stream: bool, refusal: Scripted
) -> None:
    def script(request: ReceivedRequest) -> Scripted:
        return refusal if ADDED & request.json().keys() else answer(request)

    body = body_of(stream=stream, asks=False)
    with FakeOpenAI(script) as server:
        without = client(server, body, "gzip")
        with watching("request") as sink:
            assert client(server, body, "gzip") == without
        first, refused, own = server.requests
    assert ADDED & refused.json().keys()
    assert own.body == first.body
    assert (sink.call().http_status, sink.call().error, sink.call().partial) == (200, None, False)


def by_httpx_that_follows(server: FakeOpenAI, body: bytes, encoding: str) -> Any:
    with httpx.Client(trust_env=False, follow_redirects=True) as client:
        headers = {**HEADERS, "accept-encoding": encoding}
        response = client.post(f"{server.base_url}/chat/completions", content=body, headers=headers)
        return response.status_code, response.content


def by_httpx_async_that_follows(server: FakeOpenAI, body: bytes, encoding: str) -> Any:
    return asyncio.run(following(httpx.AsyncHTTPTransport(), server, body, encoding))


def by_httpx_over_aiohttp_that_follows(server: FakeOpenAI, body: bytes, encoding: str) -> Any:
    return asyncio.run(following(OverAiohttp(), server, body, encoding))


async def following(
    transport: httpx.AsyncBaseTransport, server: FakeOpenAI, body: bytes, encoding: str
) -> Any:
    async with httpx.AsyncClient(transport=transport, follow_redirects=True) as client:
        url, headers = f"{server.base_url}/chat/completions", {**HEADERS, "accept-encoding": encoding}
        response = await client.post(url, content=body, headers=headers)
        return response.status_code, response.content


@pytest.mark.parametrize("mode", ["observe", "request"])
@pytest.mark.parametrize(
    "client",
    [
        by_httpx_that_follows,
        by_httpx_async_that_follows,
        by_httpx_over_aiohttp_that_follows,
        by_aiohttp,
        by_requests,
    ],
)
def test_nothing_is_asked_where_a_redirect_leads_and_the_call_is_that_of_who_has_answered(
    client: Callable[..., Any], mode: Any
) -> None:
    body = body_of(stream=False, asks=False)
    with FakeOpenAI(answer) as stranger, FakeOpenAI() as named:
        target = f"{stranger.base_url}/chat/completions"
        named.enqueue(*[Fault(307, {"location": target}, b"")] * 3)
        asked_url = named.base_url
        without = client(named, body, "gzip")
        with watching(mode, lambda url: Endpoint(asked_url) if url.startswith(asked_url) else None) as sink:
            assert client(named, body, "gzip") == without
        assert without[0] == 200
        assert [request.json() for request in stranger.requests] == [json.loads(body)] * 2
        assert any(ADDED & request.json().keys() for request in named.requests) == (mode == "request")
        *hops, answered = sink.raw
        assert [hop.status for hop in hops] == ([307] if client is by_requests else [])
        assert (answered.status, answered.start.url) == (200, target)
        assert (answered.endpoint, answered.added) == (None, frozenset())


@pytest.mark.parametrize("mode", ["observe", "request"])
@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("fault", [Fault(429), Fault(500)], ids=["429", "500"])
def test_an_error_of_the_server_reaches_the_agent_and_the_record(
    client: Callable[..., Any], fault: Fault, mode: str
) -> None:
    body = body_of(stream=False, asks=False)
    with FakeOpenAI(fault) as server:
        without = client(server, body, "")
        with watching(mode) as sink:
            assert client(server, body, "") == without
    assert (sink.call().http_status, sink.call().token_capture) == (fault.status, "none(http_error)")


@pytest.mark.parametrize("client", CLIENTS)
def test_a_connection_that_breaks_is_a_call_that_failed(client: Callable[..., Any]) -> None:
    body = body_of(stream=False, asks=False)
    with FakeOpenAI(Answer.of("one two three", die_after=1)) as server:
        with pytest.raises(Exception) as without:
            client(server, body, "")
        with watching("observe") as sink:
            with pytest.raises(type(without.value)):
                client(server, body, "")
    wait_until(lambda: sink.ends)
    assert sink.call().error is not None
    # httpx reads a plain answer inside of the method that is watched, and says nothing of its head.
    assert (sink.call().http_status, sink.call().partial) in {(200, True), (None, False)}


@pytest.mark.parametrize("client", CLIENTS)
def test_a_server_that_is_not_there_is_a_call_without_an_answer(client: Callable[..., Any]) -> None:
    with FakeOpenAI() as server:
        gone: Any = SimpleNamespace(url=server.url, base_url=server.base_url)
    with watching("observe") as sink:
        with pytest.raises(Exception, match=r"."):
            client(gone, body_of(stream=False, asks=False), "")
    assert sink.call().token_capture == "none(no_response)"
    assert sink.call().error is not None


@pytest.mark.parametrize("how", ["meanwhile", "later"])
def test_a_call_that_a_hook_makes_with_another_library_is_a_call_of_its_own(how: str) -> None:
    tasks: list[asyncio.Task[Any]] = []

    async def run(server: FakeOpenAI) -> None:
        url, over = f"{server.base_url}/chat/completions", asyncio.Event()

        async def beside() -> None:
            if how == "later":
                await over.wait()
            async with aiohttp.ClientSession() as session:
                question = body_of(stream=how == "meanwhile", asks=True)
                async with session.post(url, data=question, headers=HEADERS) as response:
                    await response.read()

        async def hook(_request: httpx.Request) -> None:
            tasks.append(asyncio.create_task(beside()))
            if how == "meanwhile":
                await tasks[0]

        async with httpx.AsyncClient(transport=OverAiohttp(), event_hooks={"request": [hook]}) as client:
            await client.post(url, content=body_of(stream=False, asks=True), headers=HEADERS)
            over.set()
            await tasks[0]

    with FakeOpenAI(answer) as server:
        with watching("observe") as sink:
            asyncio.run(run(server))
    assert [call.token_capture for call in sink.calls(2)] == [VALID, VALID]


def test_an_answer_that_is_left_ends_its_call() -> None:
    body = body_of(stream=True, asks=True)
    with FakeOpenAI(answer) as server:
        with watching("observe") as sink:
            url = f"{server.base_url}/chat/completions"
            with requests.post(url, data=body, headers=HEADERS, stream=True, timeout=120) as response:
                next(response.iter_lines())
            with connected(server) as connection:
                connection.request("POST", "/v1/chat/completions", body, HEADERS)
                connection.getresponse().readline()

            async def leave() -> None:
                async with aiohttp.ClientSession() as session, session.post(url, data=body) as response:
                    await response.content.readline()

            asyncio.run(leave())
            wait_until(lambda: len(sink.ends) == 3)
    assert all(call.error is None for call in sink.calls(3))


def test_all_patches_are_taken_back() -> None:
    import gc

    places = [
        (http.client.HTTPConnection, "putrequest"),
        (http.client.HTTPConnection, "send"),
        (http.client.HTTPConnection, "getresponse"),
        (urllib3.connectionpool.HTTPConnectionPool, "urlopen"),
        (aiohttp.ClientSession, "_request"),
        (requests.Session, "send"),
    ]
    before, callbacks = [vars(owner)[name] for owner, name in places], list(gc.callbacks)
    one, two = ExitStack(), ExitStack()
    for each in (one, two):
        each.enter_context(watching("observe"))
    assert [vars(owner)[name] for owner, name in places] != before
    for each in (one, two):  # not the last one first
        each.close()
    assert all(vars(owner)[name] is was for (owner, name), was in zip(places, before, strict=True))
    assert gc.callbacks == callbacks


def test_the_retries_of_urllib3_are_one_call(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("ERROR", "urllib3")  # a record of the log keeps the connection that broke
    retries = urllib3.Retry(total=3, backoff_factor=0, status_forcelist=[500], allowed_methods=None)
    with FakeOpenAI(ANSWER) as server, urllib3.PoolManager(retries=retries) as pool:
        server.enqueue(Fault(500), Reset())
        with watching("observe") as sink:
            url = f"{server.base_url}/chat/completions"
            body = body_of(stream=False, asks=True)
            assert pool.request("POST", url, body=body, headers=HEADERS).status == 200
        assert len(server.requests) == 3
    assert (sink.call().token_capture, sink.call().retries) == (VALID, 2)
