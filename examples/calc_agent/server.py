"""The policy behind the OpenAI chat API, on loopback, in the shape of vLLM.

An answer tells the version of the weights that it was sampled from. Asked for them, it also holds the ids of the
prompt and of the sampled tokens (``return_token_ids``) and their log-probabilities (``logprobs``). Each reply is
drawn from (seed of the run, ``seed`` of the request, messages) and the weights alone: whatever else the server does
at the same time, the same request gets the same answer.
"""

from __future__ import annotations

import hashlib
import json
import sys
import threading
import time
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

import numpy as np

from agentlightning.dialects.model_call import Choice, FinishReason, PolicySpan, ToolCall, Usage
from agentlightning.dialects.openai.errors import written_error
from agentlightning.dialects.openai.writing import AnswerWriter, Details, SampledToken, written_usage

from .policy import CALL, END, IDS, VOCABULARY, Policy, decode, read_call, render

MAX_TOKENS = 8
"""Where a request names no limit."""


class PolicyServer:
    """Serves ``policy`` inside a ``with``; nobody may change the weights while a request is under way."""

    def __init__(self, policy: Policy, run_seed: int) -> None:
        self.policy = policy
        self.run_seed = run_seed
        self._http = _Http(self)
        self._thread = threading.Thread(
            target=self._http.serve_forever, args=(0.05,), name="policy-server", daemon=True
        )

    @property
    def url(self) -> str:
        """Base URL for a client."""
        return f"http://127.0.0.1:{self._http.server_port}/v1"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()

    def chat(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Answer one request of the chat API."""
        drawn_from = json.dumps([self.run_seed, request.get("seed"), request["messages"]], sort_keys=True)
        digest = hashlib.sha256(drawn_from.encode()).hexdigest()
        random = np.random.default_rng(int(digest, 16))
        prompt = render(request["messages"], request.get("tools") or ())
        ids, logprobs = self.policy.sample(prompt, request.get("max_tokens") or MAX_TOKENS, random)

        said = reply(prompt, ids, f"call-{digest[:24]}", str(self.policy.version))
        tokens = [
            SampledToken(VOCABULARY[each], each, logprob) for each, logprob in zip(ids, logprobs, strict=True)
        ]
        asked = Details.asked(request, "chat")
        writer = AnswerWriter(
            "chat", f"chatcmpl-{digest[:24]}", request.get("model"), int(time.time()), asked
        )
        usage = written_usage(Usage(input_tokens=len(prompt), output_tokens=len(ids)))
        return writer.answer([writer.choice(said, tokens, prompt)], usage, prompt)


def reply(prompt: list[int], ids: list[int], call_id: str, version: str) -> Choice:
    """Return sampled tokens as a choice of the chat API: a text or a tool call, and why it ends."""
    policy = (PolicySpan(version, 0, len(ids)),)
    if prompt[-1] == IDS[CALL]:
        call = ToolCall(call_id, *read_call(ids))
        return Choice(tool_calls=(call,), finish_reason="tool_calls", policy=policy)
    reason: FinishReason = "stop" if ids[-1] == IDS[END] else "length"
    return Choice(content=decode(ids), finish_reason=reason, policy=policy)


def refusal(request: Mapping[str, Any]) -> str | None:
    """Return why this server cannot do what is asked, or ``None``."""
    if request.get("stream"):
        return "this server does not stream"
    for name in ("n", "temperature", "top_p"):
        if request.get(name) not in {None, 1}:
            return f"this server knows no {name} but 1"
    return None


class _Http(ThreadingHTTPServer):
    """The sockets and threads of a ``PolicyServer``."""

    request_queue_size = 128  # connections that may arrive at once

    def __init__(self, server: PolicyServer) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.policy_server = server

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a client that has gone; the base class prints the traceback of everything."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    """``PolicyServer.chat`` over HTTP."""

    server: _Http
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # header and body leave in one packet

    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        body = self.rfile.read(length)
        if len(body) < length:  # the client has gone, as at ctrl-C
            self.close_connection = True
            return
        request = json.loads(body)
        refused = refusal(request)
        if self.path != "/v1/chat/completions":
            self._refuse(HTTPStatus.NOT_FOUND, f"there is no {self.path}")
        elif refused:
            self._refuse(HTTPStatus.BAD_REQUEST, refused)
        else:
            self._answer(HTTPStatus.OK, self.server.policy_server.chat(request))

    def _refuse(self, status: HTTPStatus, message: str) -> None:
        self._answer(status, written_error(message, kind="invalid_request_error", code=status.value))

    def _answer(self, status: HTTPStatus, value: Mapping[str, Any]) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name of the base class
        """Say nothing."""
