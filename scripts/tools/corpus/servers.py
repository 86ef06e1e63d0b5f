"""The model that the programs talk to, which notes what it was asked and what it said; and what else they call."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from agentlightning.testing import FakeOpenAI
from agentlightning.testing.fake_openai import (
    Answer,
    AnswerChoice,
    Fault,
    ReceivedRequest,
    Scripted,
    Token,
    ToolCallAnswer,
    tokens_of,
)

Said = dict[str, Any]
"""A call as it was on the wire, in the form of ``corpus_files.view``."""

_PROMPT = (1, 2, 3, 4)
_CALLED = (10, 11)
_SHOWN: Any = {"ids": "always", "logprobs": "always", "model": "policy"}


def converse(request: ReceivedRequest) -> Answer:
    """Answer a greeting, a picture, or the sum: first with a call of the tool, then with words."""
    asked = request.json()
    messages = asked.get("messages", [])
    if "5 plus 2" not in json.dumps(messages):
        text = "A cat" if "What is this" in json.dumps(messages) else "Hello there"
        choices = tuple(AnswerChoice(tokens_of(each)) for each in (text, "Hi")[: asked.get("n") or 1])
        return Answer(choices, prompt_token_ids=_PROMPT, id="chatcmpl-0", **_SHOWN)
    results = [message for message in messages if message["role"] == "tool"]
    if results:
        prompt = (*_PROMPT, *_CALLED, 20, 21)
        return Answer.of("The sum is 7", prompt_token_ids=prompt, id="chatcmpl-2", **_SHOWN)
    call = ToolCallAnswer("add", json.dumps({"left": 5, "right": 2}), "call_5")
    tokens = tuple(Token("", each, -0.25) for each in _CALLED)
    choice = AnswerChoice(tokens, (call,), finish_reason="tool_calls")
    return Answer((choice,), prompt_token_ids=_PROMPT, id="chatcmpl-1", **_SHOWN)


def parsed(request: ReceivedRequest) -> Answer:
    """Answer in JSON."""
    del request
    return Answer.of('{"value": 7}', prompt_token_ids=_PROMPT, id="chatcmpl-0", **_SHOWN)


def reasoning(request: ReceivedRequest) -> Answer:
    """Think before the answer."""
    del request
    choice = AnswerChoice(tokens_of("Hello there"), reasoning="A greeting is wanted.")
    return Answer((choice,), prompt_token_ids=_PROMPT, id="chatcmpl-0", **_SHOWN)


def long(request: ReceivedRequest) -> Answer:
    """Stop at the limit of tokens."""
    del request
    choice = AnswerChoice(tokens_of("Hello there"), finish_reason="length")
    return Answer((choice,), prompt_token_ids=_PROMPT, id="chatcmpl-0", **_SHOWN)


def cut(request: ReceivedRequest) -> Answer:
    """Break the connection in the middle of the stream."""
    del request
    return Answer.of("Hello there, you", prompt_token_ids=_PROMPT, id="chatcmpl-0", die_after=3, **_SHOWN)


def refuse(request: ReceivedRequest) -> Fault:
    """Refuse."""
    del request
    return Fault(400)


SCRIPTS: dict[str, Callable[[ReceivedRequest], Scripted]] = {
    each.__name__: each for each in (converse, parsed, reasoning, long, cut, refuse)
}


class Wire:
    """The model server; ``said`` is the truth that traces are held against."""

    def __init__(self, script: str) -> None:
        self.said: list[Said] = []
        self._script = SCRIPTS[script]
        self.server = FakeOpenAI(self._answer)

    def _answer(self, request: ReceivedRequest) -> Scripted:
        answer = self._script(request)
        self.said.append(_call(request.json(), answer))
        return answer


def _call(asked: dict[str, Any], answer: Scripted) -> Said:
    said: Said = {"model": asked["model"]}
    if "messages" in asked:
        said["messages"] = asked["messages"]
    else:
        said["prompt"] = asked["prompt"]
    said["tools"] = [tool["function"]["name"] for tool in asked.get("tools") or []]
    if not isinstance(answer, Answer):
        return said
    assert answer.prompt_token_ids is not None
    said.update(response_id=answer.id, prompt_token_ids=list(answer.prompt_token_ids))
    sampled = sum(len(choice.tokens) for choice in answer.choices)
    if not asked.get("stream") or (asked.get("stream_options") or {}).get("include_usage"):
        said["usage"] = [len(answer.prompt_token_ids), sampled]
    said["answers"] = [_choice(choice) for choice in answer.choices]
    return said


def _choice(choice: AnswerChoice) -> Said:
    return {
        "text": choice.content,
        "reasoning": choice.reasoning,
        "tool_calls": [
            {"id": call.id, "name": call.name, "arguments": json.loads(call.arguments)}
            for call in choice.tool_calls
        ],
        "finish_reason": choice.finish_reason,
        "token_ids": [token.id for token in choice.tokens],
        "logprobs": [token.logprob for token in choice.tokens],
    }


# ---------------------------------------------------------------------- what else is called

_RESPONSE = {
    "id": "resp_1",
    "object": "response",
    "created_at": 1_700_000_000,
    "status": "completed",
    "model": "policy",
    "output": [
        {
            "type": "message",
            "id": "msg_1",
            "role": "assistant",
            "status": "completed",
            "content": [{"type": "output_text", "text": "Hello there", "annotations": []}],
        }
    ],
    "parallel_tool_calls": True,
    "tool_choice": "auto",
    "tools": [],
    "usage": {
        "input_tokens": 4,
        "output_tokens": 2,
        "total_tokens": 6,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens_details": {"reasoning_tokens": 0},
    },
}
_ANSWERS = {
    "/v3/auth/token": {"token": "t", "project_id": "p", "project_prem_status": "pro"},
    "/v2/create_session": {"status": "Success", "jwt": "j", "session_url": "http://localhost"},
    "/v2/update_session": {"status": "success", "token_cost": "0.00"},
    "/v1/responses": _RESPONSE,
}


class Helper:
    """OpenAI's Responses API, with one answer, and an AgentOps server that throws away what it gets."""

    def __init__(self) -> None:
        self.said: list[Said] = []
        helper = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                if self.path == "/v1/responses":
                    helper.said.append(_response_call(json.loads(body)))
                data = json.dumps(_ANSWERS.get(self.path, {"url": "http://localhost", "size": 0})).encode()
                self.send_response(200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_PUT = do_GET = do_POST  # noqa: N815

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name it has in the base
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def _response_call(asked: dict[str, Any]) -> Said:
    given = asked["input"]
    users = [{"role": "user", "content": given}] if isinstance(given, str) else given
    return {
        "model": asked["model"],
        "messages": [{"role": "system", "content": asked["instructions"]}, *users],
        "response_id": "resp_1",
        "usage": [4, 2],
        "answers": [{"text": "Hello there", "finish_reason": "stop"}],
    }
