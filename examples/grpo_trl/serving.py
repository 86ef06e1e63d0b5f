"""The OpenAI API in the shape of vLLM, on loopback, inside of this process; a subclass says how to sample.

Requests become sequences that wait in a queue; one thread hands them on. What continues a conversation is rendered
with the ids of the replies that were sampled before, where ``keep_ids`` says so.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import threading
import time
import uuid
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from agentlightning.dialects.openai.errors import written_error
from agentlightning.dialects.sse import DONE, Event

from .chat import Conversations
from .sampling import Sequence
from .wire import Answer, Ask, RefusedError, read

GATHER_SECONDS = 0.005
"""How long a batch waits for one more request; a step costs about the same for one answer as for sixty."""


class ChatServer(ABC):
    """Serves inside a ``with``.

    Args:
        tokenizer: With a chat template.
        context: Positions that the model knows.
        seed: Of what is drawn.
        keep_ids: Whether replies keep the ids that they were sampled as when a conversation goes on. Without it,
            conversations are encoded anew for each request.
        max_batch: Answers that are sampled together.
        name: Of the model.
    """

    def __init__(
        self,
        tokenizer: Any,
        context: int,
        *,
        seed: int = 0,
        keep_ids: bool = True,
        max_batch: int = 64,
        name: str = "tiny",
    ) -> None:
        self.name = name
        self._tokenizer = tokenizer
        self._context = context
        self._seed = seed
        self._max_batch = max_batch
        self._conversations = Conversations(tokenizer, keep_ids=keep_ids)
        self._nonces = itertools.count()
        self._waiting: deque[Sequence] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._http = _Http(self)
        self._threads = [
            threading.Thread(target=self._run, name="engine-samples"),
            threading.Thread(target=self._http.serve_forever, args=(0.05,), name="engine-listens"),
        ]

    @property
    def url(self) -> str:
        """Base URL for a client."""
        return f"http://127.0.0.1:{self._http.server_port}/v1"

    @property
    @abstractmethod
    def version(self) -> str:
        """Of the weights as they are now."""

    @abstractmethod
    def sample(self, sequences: list[Sequence]) -> None:
        """Sample answers, or start to; each sequence is ended sooner or later."""

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._http.shutdown()
        for thread in self._threads:
            thread.join()
        self._http.server_close()

    # -- requests

    def begin(self, ask: Ask) -> Answer:
        """Start to answer a request; its choices grow from now on.

        Raises:
            RefusedError: The engine cannot do what it says, or the prompt is longer than the context.
        """
        prompts = self._prompts(ask)
        longest = max(map(len, prompts), default=0)
        if not all(prompts) or not prompts:
            raise RefusedError("a prompt is empty")
        sampling = ask.sampling(self._context - longest)
        nonce = f"unseeded {next(self._nonces)}" if ask.body.get("seed") is None else ask.body["seed"]
        choices = [
            Sequence(prompt, sampling, self._seed_of(prompt, nonce, number, choice))
            for number, prompt in enumerate(prompts)
            for choice in range(ask.n)
        ]
        head = {"id": f"cmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": self.name}
        with self._changed:
            self._waiting.extend(choices)
            self._changed.notify_all()
        return Answer(ask, head, self._tokenizer, choices)

    def end(self, answer: Answer) -> None:
        """Remember how the conversation can go on from an answer whose choices have ended."""
        if answer.ask.chat:
            for index, choice in enumerate(answer.choices):
                ids = choice.prompt + choice.ids
                self._conversations.remember(
                    answer.ask.messages, answer.ask.tools, answer.message(index), ids
                )

    def _prompts(self, ask: Ask) -> list[list[int]]:
        if ask.chat:
            try:
                return [self._conversations.prompt(ask.messages, ask.tools)]
            except Exception as error:  # whatever the template raises, it is the request's fault
                raise RefusedError(f"the messages are not readable: {error!r}") from error
        prompt = ask.body["prompt"]
        several = (
            prompt if isinstance(prompt, list) and not all(isinstance(e, int) for e in prompt) else [prompt]
        )
        return [self._ids(each) for each in several]

    def _ids(self, prompt: Any) -> list[int]:
        if isinstance(prompt, str):
            encoded: list[int] = self._tokenizer.encode(prompt, add_special_tokens=False)
            return encoded
        known = range(len(self._tokenizer))
        if not isinstance(prompt, list) or not all(
            isinstance(each, int) and each in known for each in prompt
        ):
            raise RefusedError(f"a prompt holds something else than text or ids below {known.stop}")
        return prompt

    def _seed_of(self, prompt: list[int], *more: Any) -> int:
        """Return the seed of one answer."""
        drawn_from = json.dumps([self._seed, self.version, prompt, *more])
        return int(hashlib.sha256(drawn_from.encode()).hexdigest()[:24], 16)

    # -- the thread that hands on

    def _run(self) -> None:
        for sequences in iter(self._take, []):
            try:
                self.sample(sequences)
            except Exception as error:  # noqa: BLE001 - it is told to those who wait, and the next are tried
                for each in sequences:
                    if each.finish_reason is None and each.error is None:
                        each.end(None, error)

    def _take(self) -> list[Sequence]:
        """Wait for sequences and return them; none when the engine closes."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closing)
            known = 0
            while known < len(self._waiting) < self._max_batch and not self._closing:
                known = len(self._waiting)
                self._changed.wait(GATHER_SECONDS)
            if self._closing:
                for each in self._waiting:
                    each.end("abort")
                return []
            count = min(len(self._waiting), self._max_batch)
            return [self._waiting.popleft() for _ in range(count)]


def chunks(engine: ChatServer, answer: Answer) -> Iterator[dict[str, Any]]:
    """Yield the chunks of a streamed answer as its choices grow, choice by choice."""
    for index, choice in enumerate(answer.choices):
        yield answer.first(index)
        for count in itertools.count(1):
            if choice.events.get() is None:
                break
            yield answer.more(index, count)
        raise_error(choice)
        if index == len(answer.choices) - 1:
            engine.end(answer)
        yield answer.last(index)
    if answer.ask.details.usage:
        yield answer.counts()


def wait(answer: Answer) -> None:
    """Return when all choices have ended."""
    for choice in answer.choices:
        while choice.events.get() is not None:
            pass
        raise_error(choice)


def raise_error(choice: Sequence) -> None:
    """Raise what went wrong while a choice was sampled."""
    if choice.error is not None:
        raise choice.error


# -- HTTP


class _Http(ThreadingHTTPServer):
    """The sockets and threads of a ``ChatServer``."""

    request_queue_size = 128  # connections that may arrive at once

    def __init__(self, engine: ChatServer) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.engine = engine

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a client that has gone."""


class _Handler(BaseHTTPRequestHandler):
    """The API over HTTP."""

    server: _Http
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # header and body leave in one packet
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        if self.path != "/v1/models":
            self._refuse(HTTPStatus.NOT_FOUND, f"there is no {self.path}")
            return
        model = {"id": self.server.engine.name, "object": "model", "created": 0, "owned_by": "nobody"}
        self._answer(HTTPStatus.OK, {"object": "list", "data": [model]})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chat = self.path == "/v1/chat/completions"
        if not chat and self.path != "/v1/completions":
            self._refuse(HTTPStatus.NOT_FOUND, f"there is no {self.path}")
            return
        engine = self.server.engine
        try:
            ask = read(json.loads(body), chat=chat)
            answer = engine.begin(ask)
        except ValueError as error:  # a refusal, a number that is none, or no JSON
            self._refuse(HTTPStatus.BAD_REQUEST, str(error))
            return
        if ask.stream:
            self._stream(answer)
            return
        try:
            wait(answer)
        except Exception as error:  # noqa: BLE001 - the client is told; the server goes on
            self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR, repr(error))
            return
        engine.end(answer)
        self._answer(HTTPStatus.OK, answer.whole())

    def _stream(self, answer: Answer) -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            for chunk in chunks(self.server.engine, answer):
                self._event(json.dumps(chunk))
        except Exception as error:
            for choice in answer.choices:
                choice.cancelled = True
            if isinstance(error, OSError):  # the client has gone
                raise
            self._event(json.dumps(written_error(repr(error), kind="server_error", code=500)))
        self._event(DONE)
        self.wfile.write(b"0\r\n\r\n")

    def _event(self, data: str) -> None:
        event = Event("", data).written()
        self.wfile.write(b"%x\r\n%b\r\n" % (len(event), event))
        self.wfile.flush()

    def _refuse(self, status: HTTPStatus, message: str) -> None:
        self._answer(status, written_error(message, kind=status.phrase, code=status.value))

    def _answer(self, status: HTTPStatus, value: Mapping[str, Any]) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name of the base class
        """Say nothing."""
