"""A model server for tests: real HTTP on loopback, the OpenAI API in the dialects of several engines, all scripted.

    with FakeOpenAI() as server:
        server.enqueue(Answer.of("Hello there", prompt_token_ids=(1, 2, 3)))
        client = openai.OpenAI(base_url=server.base_url, api_key="unused")

What the server answers is written down before it is asked, token by token, so a test knows what was sampled and
can hold every record against it. It keeps the exact bytes of the requests that came. Times are events, not
seconds: a ``gate`` holds a stream until the test opens it.
"""

from __future__ import annotations

import functools
import importlib
import io
import itertools
import json
import socket
import struct
import threading
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, Self
from urllib.parse import urlsplit

from ..dialects.model_call import Choice, PolicySpan, ToolCall, Usage
from ..dialects.openai.errors import written_error
from ..dialects.openai.request import operation_of
from ..dialects.openai.writing import (
    AnswerWriter,
    Details,
    Engine,
    SampledToken,
    choice_chunks,
    written_usage,
)
from ..dialects.raw_call import Endpoint, Operation
from ..dialects.sse import DONE, Event
from ..errors import MissingExtra

if TYPE_CHECKING:
    import openai

Shown = Literal["asked", "always", "never"]


@dataclass(frozen=True)
class Token(SampledToken):
    """One sampled token."""

    logprob: float | None = -0.5


@dataclass(frozen=True)
class ToolCallAnswer:
    """A tool call in an answer."""

    name: str
    arguments: str = "{}"
    id: str = "call_1"


@dataclass(frozen=True)
class AnswerChoice:
    """One choice of an answer; the texts of its tokens are its content unless it calls tools."""

    tokens: tuple[Token, ...] = ()
    tool_calls: tuple[ToolCallAnswer, ...] = ()
    finish_reason: str | None = "stop"
    reasoning: str | None = None
    versions: tuple[tuple[str, int, int], ...] = ()
    """``(version, start, end)`` of the weights that sampled the tokens."""

    @property
    def content(self) -> str | None:
        """The text that the client sees."""
        return None if self.tool_calls else "".join(token.text for token in self.tokens)


@dataclass(frozen=True)
class Answer:
    """What the server says to one request."""

    choices: tuple[AnswerChoice, ...]
    prompt_token_ids: tuple[int, ...] | None = (1, 2, 3)
    """``None``: those of the request's messages, so that a conversation that is sent back goes on exactly."""
    dialect: Engine = "vllm"
    model: str = "fake-model"
    id: str | None = "chatcmpl-1"
    """``None``: ``chatcmpl-<number of the request>``, from 1."""
    ids: Shown = "asked"
    """Whether token ids are in the answer."""
    logprobs: Shown = "asked"
    token_strings: bool = False
    """Write ``token_id:N`` in place of the text of a token beside its log-probability."""
    usage: Mapping[str, int] | None = None
    """Counts in place of the right ones; to leave usage out, ``show_usage='never'``."""
    show_usage: Shown = "asked"
    """In a stream; a plain answer has usage unless ``never``. Where ids are shown to everybody and usage to those who
    ask, the last chunk of the choices has it for the others."""
    chunking: Sequence[int] | None = None
    """Tokens of each chunk of a choice, 0 for a chunk without any; what is left comes in a last chunk."""
    interleave: bool = True
    """Whether the chunks of several choices come in turns, or choice by choice."""
    cumulative: bool = False
    """Whether each chunk repeats the ids of those before it."""
    done: bool = True
    """Whether ``[DONE]`` ends the stream."""
    die_after: int | None = None
    """Events to send before the connection breaks in the middle of the next one; a plain answer breaks half way."""
    gates: Mapping[int, threading.Event] = field(default_factory=dict)
    """Number of an event → what must be set before it is sent; -1 waits before the head of the response."""
    write_sizes: Sequence[int] | None = None
    """Sizes, in turns, of the pieces in which the body of a stream is written; default one piece per event."""
    content_encoding: Literal["", "gzip", "deflate", "br", "zstd", "none"] = ""
    """``br`` and ``zstd`` need ``brotli`` and ``zstandard``."""
    content_type: str = "text/event-stream; charset=utf-8"
    """Of a stream."""
    indent: int | None = None
    """White space of a plain answer."""
    refuses: frozenset[str] = frozenset()
    """Request fields that are answered with status 400."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """More top-level fields."""

    @classmethod
    def of(cls, text: str, **changes: Any) -> Answer:
        """Return an answer of one choice that says ``text``, word by word."""
        return cls(choices=(AnswerChoice(tokens_of(text)),), **changes)


@dataclass(frozen=True)
class Fault:
    """An HTTP error."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    """Default: an error object in the shape of the OpenAI API."""


@dataclass(frozen=True)
class Reset:
    """The connection is reset before any answer."""


Scripted = Answer | Fault | Reset
Script = Callable[["ReceivedRequest"], Scripted]


@dataclass(frozen=True)
class ReceivedRequest:
    """A request as it arrived."""

    method: str
    path: str
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes
    raw: bytes
    """Everything from the request line to the end of the body."""

    def json(self) -> Any:
        """Return the body as JSON; one that is compressed by gzip is read, too."""
        is_gzip = self.headers.get("content-encoding") == "gzip"
        return json.loads(zlib.decompress(self.body, zlib.MAX_WBITS | 16) if is_gzip else self.body)


def tokens_of(text: str) -> tuple[Token, ...]:
    """Return ``text`` as one token per word, with ids and log-probabilities that depend on the words alone."""
    # The space belongs to the word behind it, as in most vocabularies, so that the texts of tokens join to the
    # text.
    words = text.replace(" ", "\0 ").split("\0") if text else []
    return tuple(Token(word, zlib.crc32(word.encode()) % 50_000, -0.125 * (1 + len(word))) for word in words)


def tokens_of_calls(calls: Iterable[ToolCallAnswer]) -> tuple[Token, ...]:
    """Return what a model samples that calls tools: one token per word of the calls as JSON.

    In the prompt of a conversation that is sent back, such a message has the same tokens.
    """
    return tokens_of(_written_calls((call.name, call.arguments) for call in calls))


def _written_calls(calls: Iterable[tuple[Any, Any]]) -> str:
    return " ".join(
        json.dumps({"name": name, "arguments": _plain(arguments)}, sort_keys=True)
        for name, arguments in calls
    )


def _plain(arguments: Any) -> Any:
    """Return the arguments of a call without their white space and order, which clients write anew."""
    try:
        return json.loads(arguments)
    except (TypeError, ValueError):
        return arguments


class FakeOpenAI:
    """A server on ``127.0.0.1``; use it as a context manager, or ``start`` and ``close`` it."""

    api_key = "fake"
    """Any key will do."""

    def __init__(
        self, script: Script | Scripted | None = None, *, port: int = 0, owned_by: str = "us"
    ) -> None:
        """Make a server that has not started.

        Args:
            script: What answers when nothing is enqueued: a function of the request, or always the same.
            port: Where it listens; 0 = on a free one.
            owned_by: Whose the listed model is, by which engines tell their name: ``vllm``, ``sglang``, ``llamacpp`` …
        """
        self.port = port
        self.owned_by = owned_by
        self._script: Script | Scripted = Answer.of("Hello there") if script is None else script
        self._queue: deque[Scripted] = deque()
        # Guards the queue and ``requests``: each answer is said once, and a request has the number of its place.
        self._lock = threading.Lock()
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None
        # Set when the server closes: streams that wait at a gate go on then, so that their threads end.
        self.closing = threading.Event()
        self.requests: list[ReceivedRequest] = []
        """Every request, in the order of arrival."""

    def enqueue(self, *answers: Scripted | str) -> None:
        """Answer the next requests with these, in this order.

        Args:
            *answers: What is said; a text is an answer that shows its token ids and log-probabilities to everybody.
        """
        said = [_trainable(each) if isinstance(each, str) else each for each in answers]
        with self._lock:
            self._queue.extend(said)

    @property
    def url(self) -> str:
        """``http://127.0.0.1:port``."""
        assert self._server is not None, "the server has not started"
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def base_url(self) -> str:
        """What a client of the OpenAI API takes as its base URL."""
        return f"{self.url}/v1"

    @property
    def endpoint(self) -> Endpoint:
        """What a tracer is to know of this server: the script's log-probabilities are those of its tokens.

        No setting is applied that a request does not name, because none is applied at all.
        """
        return Endpoint(self.url, sampling_defaults={}, logprob_kind="processed")

    def client(self, **options: Any) -> openai.OpenAI:
        """Return a client of this server; nothing of it has to be closed.

        Args:
            **options: Those of ``openai.OpenAI``, such as ``max_retries=0``.

        Raises:
            MissingExtra: ``openai`` is not installed.
        """
        library = _openai()
        client: openai.OpenAI = library.OpenAI(**self._client_options(library.DefaultHttpxClient, options))
        return client

    def async_client(self, **options: Any) -> openai.AsyncOpenAI:
        """Return an asynchronous client of this server; see :meth:`client`."""
        library = _openai()
        options = self._client_options(library.DefaultAsyncHttpxClient, options)
        client: openai.AsyncOpenAI = library.AsyncOpenAI(**options)
        return client

    def _client_options(self, http_client: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
        chosen = {"base_url": self.base_url, "api_key": self.api_key, **options}
        if "http_client" not in chosen:
            # A proxy of the environment does not know this server; a connection that is closed after its answer is
            # not left to an event loop that has ended. This server has no certificate: reading those of authorities
            # would take longer than a call.
            chosen["http_client"] = http_client(
                trust_env=False,
                verify=chosen["base_url"] != self.base_url,
                headers={"connection": "close"},
            )
        return chosen

    def start(self) -> Self:
        """Listen on a free port."""
        self._server = _Server(self)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), name="fake-openai")
        self._thread.start()
        return self

    def close(self) -> None:
        """Break the connections that are left and wait for all threads; a second time does nothing."""
        server, self._server = self._server, None
        if server is None or self._thread is None:
            return
        # The order matters: no new connection is taken before those that are left are broken, and all
        # threads have ended before ``close`` returns.
        self.closing.set()
        server.shutdown()
        self._thread.join()
        server.break_connections()
        server.server_close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def answer_to(self, request: ReceivedRequest) -> Scripted:
        """Note ``request`` and return what it is answered with."""
        with self._lock:
            self.requests.append(request)
            number = len(self.requests)
            queued = self._queue.popleft() if self._queue else None
        # Called outside of the lock: a script may look at ``requests``, or wait.
        if queued is None:
            queued = self._script(request) if callable(self._script) else self._script
        return _complete(queued, request, number) if isinstance(queued, Answer) else queued


def _trainable(text: str) -> Answer:
    return Answer.of(text, ids="always", logprobs="always", prompt_token_ids=None, id=None)


def _complete(answer: Answer, request: ReceivedRequest, number: int) -> Answer:
    """Return the answer with what it leaves to the request."""
    if answer.id is None:
        answer = replace(answer, id=f"chatcmpl-{number}")
    if answer.prompt_token_ids is None:
        answer = replace(answer, prompt_token_ids=tuple(_prompt_ids(request.json())))
    return answer


_TURN = 0
"""Token that ends each message of a prompt."""


def _prompt_ids(request: Any) -> Iterator[int]:
    messages = request.get("messages") if isinstance(request, dict) else None
    for message in messages if isinstance(messages, list) else [request]:
        yield from (token.id for token in tokens_of(_text_of(message)))
        yield _TURN


def _text_of(message: Any) -> str:
    said = message.get("content") if isinstance(message, dict) else message
    if isinstance(said, str) and said:
        return said
    calls = message.get("tool_calls") if isinstance(message, dict) else None
    functions = [each["function"] for each in calls or () if isinstance(each.get("function"), dict)]
    if functions:
        return _written_calls((each.get("name"), each.get("arguments")) for each in functions)
    return said if isinstance(said, str) else json.dumps(message, sort_keys=True)


# Imported when a client is asked for: the server itself needs no openai.
def _openai() -> ModuleType:
    try:
        import openai
    except ImportError as error:
        raise MissingExtra("openai", "pytest") from error
    return openai


# -- what is said, in the dialect of an engine

_CREATED = 1_700_000_000


def plain_answer(answer: Answer, request: Mapping[str, Any], *, chat: bool) -> dict[str, Any]:
    """Return the JSON of an answer that is not streamed."""
    writer, prompt = _writer(answer, request, chat), answer.prompt_token_ids or ()
    choices = [
        writer.choice(_said(index, choice, chat), choice.tokens, prompt)
        for index, choice in enumerate(answer.choices)
    ]
    usage = _usage(answer) if answer.show_usage != "never" else None
    return {**writer.answer(choices, usage, prompt), **_beside(writer, answer), **answer.extra}


def streamed_answer(answer: Answer, request: Mapping[str, Any], *, chat: bool) -> list[dict[str, Any]]:
    """Return the JSON of each chunk of a streamed answer."""
    writer = _writer(answer, request, chat)
    per_choice = [
        [*_chunks(writer, answer, choice, _said(index, choice, chat))]
        for index, choice in enumerate(answer.choices)
    ]
    in_order = _in_turns(per_choice) if answer.interleave else itertools.chain.from_iterable(per_choice)
    chunks = [chunk for chunk in in_order if chunk is not None]
    # SGLang says ids of a stream once, in a chunk of its own at the end (its field ``sglext``).
    if writer.engine == "sglang" and writer.details.output_ids_in_sglext:
        chunks.append(writer.closing(**_beside(writer, answer)))
    if answer.show_usage == "always" or (answer.show_usage == "asked" and writer.details.usage):
        chunks.append(writer.closing(usage=_usage(answer)))
    # Whoever did not ask for usage gets no chunk of its own for it, as a client may not expect one.
    elif answer.show_usage == "asked" and answer.ids == "always" and writer.tells_ids and chunks:
        chunks[-1] = {**chunks[-1], "usage": _usage(answer)}
    return chunks


def _writer(answer: Answer, request: Mapping[str, Any], chat: bool) -> AnswerWriter:
    operation: Operation = "chat" if chat else "text_completion"
    asked = Details.asked(request, operation)
    details = replace(
        asked,
        token_ids=_shown(answer.ids, asked.token_ids),
        logprobs=_shown(answer.logprobs, asked.logprobs),
        id_names=answer.token_strings,
    )
    return AnswerWriter(operation, answer.id, answer.model, _CREATED, details, answer.dialect)


def _said(index: int, choice: AnswerChoice, chat: bool) -> Choice:
    """Return what a choice says; a completion has no tool calls, and its text is that of all its tokens."""
    calls = [ToolCall(call.id, call.name, call.arguments) for call in choice.tool_calls]
    return Choice(
        index=index,
        content=choice.content if chat else "".join(token.text for token in choice.tokens),
        reasoning=choice.reasoning,
        tool_calls=tuple(calls) if chat else (),
        finish_reason_raw=choice.finish_reason,
        policy=tuple(PolicySpan(*span) for span in choice.versions),
    )


def _usage(answer: Answer) -> dict[str, Any]:
    sampled = sum(len(choice.tokens) for choice in answer.choices)
    counts = Usage(input_tokens=len(answer.prompt_token_ids or ()), output_tokens=sampled)
    return {**written_usage(counts), **(answer.usage or {})}


def _beside(writer: AnswerWriter, answer: Answer) -> dict[str, Any]:
    """Return the fields of the whole answer beside its choices."""
    versions = _said(0, answer.choices[0], True).policy if answer.choices else ()
    return writer.beside(answer.prompt_token_ids, [choice.tokens for choice in answer.choices], versions)


def _chunks(
    writer: AnswerWriter, answer: Answer, choice: AnswerChoice, said: Choice
) -> Iterator[dict[str, Any] | None]:
    """Yield the chunks of a choice.

    ``None`` stands for a turn in which an engine has nothing to say: its text is held back and nobody asks for ids.
    """
    pieces = [*_pieces(choice.tokens, answer.chunking)]
    prompt = answer.prompt_token_ids or ()
    for chunk in choice_chunks(writer, said, pieces, prompt, is_cumulative=answer.cumulative):
        (found,) = chunk["choices"]
        is_silent = found.get("delta") == {} and not writer.tells_ids and found["finish_reason"] is None
        yield None if is_silent else chunk


def _shown(shown: Shown, asked: bool) -> bool:
    return shown == "always" or (shown == "asked" and asked)


def _pieces(tokens: Sequence[Token], chunking: Sequence[int] | None) -> Iterator[tuple[Token, ...]]:
    position = 0
    for size in chunking if chunking is not None else [1] * len(tokens):
        yield tuple(tokens[position : position + size])
        position += size
    if position < len(tokens) or not (chunking if chunking is not None else tokens):
        yield tuple(tokens[position:])


def _in_turns(many: Sequence[Sequence[Any]]) -> Iterator[Any]:
    for number in range(max(map(len, many), default=0)):
        for each in many:
            if number < len(each):
                yield each[number]


# -- HTTP


class _Server(ThreadingHTTPServer):
    daemon_threads = False  # so that closing waits for them
    request_queue_size = 128  # connections that may wait while others are accepted

    def __init__(self, fake: FakeOpenAI) -> None:
        self.fake = fake
        self._connections: set[socket.socket] = set()
        super().__init__(("127.0.0.1", fake.port), _Handler)

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        # Kept so that ``close`` can break those that a client keeps open.
        self._connections.add(connection)
        return connection, address

    def shutdown_request(self, request: Any) -> None:
        self._connections.discard(request)
        super().shutdown_request(request)

    def break_connections(self) -> None:
        for connection in tuple(self._connections):
            try:
                # Wakes the thread that reads from it; closing the socket under it would leave it
                # waiting.
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is part of many tests."""


class _RecordingReader(io.RawIOBase):
    """Remembers what is read, so that a request is known byte by byte."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.seen = bytearray()

    def readline(self, size: Any = -1, /) -> bytes:
        line: bytes = self._inner.readline(size)
        self.seen += line
        return line

    def read(self, size: int = -1, /) -> bytes:
        data: bytes = self._inner.read(size)
        self.seen += data
        return data

    def close(self) -> None:
        self._inner.close()
        super().close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Without it, small pieces of a stream wait for the acknowledgement of those before them (40 ms on Linux).
    disable_nagle_algorithm = True
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.reader = _RecordingReader(self.rfile)
        # In place of the buffered file of the base class, which would have read on before it is asked.
        self.rfile = self.reader  # type: ignore[assignment]

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name it has in the base
        """Say nothing."""

    def do_GET(self) -> None:
        self.reader.seen.clear()
        models = {
            "object": "list",
            "data": [
                {"id": "fake-model", "object": "model", "created": 1, "owned_by": self.server.fake.owned_by}
            ],
        }
        self._reply(200, {"content-type": "application/json"}, json.dumps(models).encode())

    def do_POST(self) -> None:
        try:
            body = self._body()
        except ValueError:
            self.close_connection = True  # nobody knows where the next request begins
            self._reply_error(400, "the length of the body is no number", kind="invalid_request_error")
            return
        raw = bytes(self.reader.seen)
        self.reader.seen.clear()
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = ReceivedRequest(self.command, self.path, headers, body, raw)
        operation = operation_of("POST", urlsplit(self.path).path)
        if operation is None:
            self._reply_error(
                404, f"no answer at {self.path}: this server knows chat/completions and completions"
            )
            return
        try:
            scripted, said = _said_to(request, self.server.fake.answer_to(request), chat=operation == "chat")
        except Exception as error:  # noqa: BLE001 - a connection that only closes tells nobody why
            self._reply_error(500, f"no answer could be made: {type(error).__name__}: {error}")
            return
        self._say(scripted, said)

    def _body(self) -> bytes:
        if self.headers.get("transfer-encoding", "").lower() != "chunked":
            length = int(self.headers.get("content-length", 0))
            if length < 0:
                raise ValueError("less than nothing")
            return self.rfile.read(length)
        chunks = []
        # Chunked transfer coding (RFC 9112, 7.1): a size in hexadecimal, the data, an empty line; size 0
        # ends it.
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _say(self, scripted: Scripted, said: bytes | list[bytes]) -> None:
        if isinstance(scripted, Reset):
            self._reset()
            return
        if isinstance(scripted, Fault):
            if scripted.body is None:
                self._reply_error(scripted.status, "scripted", headers=scripted.headers)
            else:
                headers = {"content-type": "application/json", **scripted.headers}
                self._reply(scripted.status, headers, scripted.body)
            return
        self._wait(scripted, -1)
        if isinstance(said, list):
            self._stream(scripted, said)
            return
        body, headers = _encoded(said, scripted)
        if scripted.die_after is not None:
            self._reply(
                200, {"content-type": "application/json", **headers}, body[: len(body) // 2], len(body)
            )
            self._break()
            return
        self._reply(200, {"content-type": "application/json", **headers}, body)

    def _stream(self, answer: Answer, events: list[bytes]) -> None:
        if answer.done:
            events = [*events, Event("", DONE).written()]
        if answer.die_after is not None:
            # Half of the next event, so that the client sees a connection that breaks in the middle of
            # one.
            cut = events[answer.die_after] if answer.die_after < len(events) else b""
            events = [*events[: answer.die_after], cut[: len(cut) // 2]]
        self.send_response(200)
        self.send_header("content-type", answer.content_type)
        if answer.content_encoding:
            self.send_header("content-encoding", answer.content_encoding)
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for number, piece in enumerate(_written(events, answer)):
            self._wait(answer, number)
            if piece:
                # Each piece is a chunk of its own and leaves at once: what arrives when is what
                # such a test is about.
                self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
                self.wfile.flush()
        if answer.die_after is not None:
            self._break()
        else:
            self.wfile.write(b"0\r\n\r\n")

    def _wait(self, answer: Answer, number: int) -> None:
        # It looks again and again whether the server closes, since nobody might open the gate any more.
        gate = answer.gates.get(number)
        while gate is not None and not gate.wait(0.01) and not self.server.fake.closing.is_set():
            continue

    def _reply(self, status: int, headers: Mapping[str, str], body: bytes, length: int | None = None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def _reply_error(
        self, status: int, message: str, *, kind: str = "fake_error", headers: Mapping[str, str] | None = None
    ) -> None:
        body = json.dumps(written_error(message, kind=kind, code=status)).encode()
        self._reply(status, {"content-type": "application/json", **(headers or {})}, body)

    def _break(self) -> None:
        self.close_connection = True

    def _reset(self) -> None:
        # With a linger time of 0, closing sends RST.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()


def _said_to(
    request: ReceivedRequest, scripted: Scripted, *, chat: bool
) -> tuple[Scripted, bytes | list[bytes]]:
    """Return what a request is answered with: the body of a plain answer, or the events of a stream."""
    if not isinstance(scripted, Answer):
        return scripted, b""  # not read: an error may be about what is no JSON
    asked = request.json()
    refusal = _refusal(scripted, asked, chat=chat)
    if refusal is not None:
        return refusal, b""
    if asked.get("stream"):
        chunks = streamed_answer(scripted, asked, chat=chat)
        return scripted, [Event("", json.dumps(chunk, separators=(",", ":"))).written() for chunk in chunks]
    found = plain_answer(scripted, asked, chat=chat)
    separators = (",", ":") if scripted.indent is None else None
    text = json.dumps(found, indent=scripted.indent, separators=separators, ensure_ascii=False)
    return scripted, text.encode()


def _refusal(scripted: Answer, asked: Mapping[str, Any], *, chat: bool) -> Fault | None:
    refuses = set(scripted.refuses)
    if scripted.dialect == "sglang" and chat and asked.get("stream"):
        refuses.add("return_token_ids")  # as SGLang does
    return Fault(400) if refuses & asked.keys() else None


def _encoded(body: bytes, answer: Answer) -> tuple[bytes, dict[str, str]]:
    if not answer.content_encoding:
        return body, {}
    compressed = b"".join(_compressed([body], answer.content_encoding))
    return compressed, {"content-encoding": answer.content_encoding}


def _compressed(pieces: Iterable[bytes], name: str) -> Iterator[bytes]:
    """Compress a body piece by piece, so that each can be read when it arrives."""
    feed, flush, finish = _compressor(name)
    for piece in pieces:
        # Flushed after each piece: a compressor keeps what is small until more comes.
        yield feed(piece) + flush()
    yield finish()


def _compressor(name: str) -> tuple[Callable[[bytes], bytes], Callable[[], bytes], Callable[[], bytes]]:
    """Return what compresses a piece, what lets it go, and what ends the body."""
    if name in {"gzip", "deflate"}:
        zipping = zlib.compressobj(wbits=zlib.MAX_WBITS | (16 if name == "gzip" else 0))
        return zipping.compress, functools.partial(zipping.flush, zlib.Z_SYNC_FLUSH), zipping.flush
    if name == "br":
        brotli: Any = importlib.import_module("brotli").Compressor()
        return brotli.process, brotli.flush, brotli.finish
    if name == "zstd":
        zstandard: Any = importlib.import_module("zstandard")
        compressor = zstandard.ZstdCompressor().compressobj()
        block = functools.partial(compressor.flush, zstandard.COMPRESSOBJ_FLUSH_BLOCK)
        return compressor.compress, block, compressor.flush
    return bytes, bytes, bytes


def _written(events: Iterable[bytes], answer: Answer) -> Iterator[bytes]:
    """Return the pieces in which the body of a stream goes out."""
    pieces = list(events)
    if answer.content_encoding:
        pieces = list(_compressed(pieces, answer.content_encoding))
    if not answer.write_sizes:
        yield from pieces
        return
    body, position, turn = b"".join(pieces), 0, 0
    while position < len(body):
        size = max(1, answer.write_sizes[turn % len(answer.write_sizes)])
        yield body[position : position + size]
        position, turn = position + size, turn + 1
