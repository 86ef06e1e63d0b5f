"""Asking never costs the agent an answer: a refusal, however it is said, is followed by the agent's own request."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import openai
import pytest

from agentlightning.dialects.model_call import VALID
from agentlightning.dialects.raw_call import Endpoint
from agentlightning.instrumentation.guard import Guard, reraise
from agentlightning.instrumentation.refusals import REMEMBERED_SECONDS, Refusals, RequestKind, is_fixed
from agentlightning.instrumentation.wire import instrument_model_calls
from agentlightning.testing.fake_openai import Answer, FakeOpenAI, Fault, ReceivedRequest, Reset, Scripted
from agentlightning.testing.recorded_calls import RecordedCalls

MESSAGES: Any = [{"role": "user", "content": "hi"}]
ANSWER = Answer.of("Hello there")
ERROR = b'{"error": {"type": "invalid_request_error", "message": "unknown field"}}'
ADDED = {"return_token_ids", "logprobs", "stream_options"}


def asked(request: ReceivedRequest) -> bool:
    return bool(ADDED & request.json().keys())


def refusing(refusal: Scripted) -> Callable[[ReceivedRequest], Scripted]:
    return lambda request: refusal if asked(request) else ANSWER


@pytest.fixture
def sink() -> RecordedCalls:
    return RecordedCalls()


def asking(sink: RecordedCalls, clock: Callable[[], float] = lambda: 0.0) -> Any:
    return instrument_model_calls(
        sink,
        capture_tokens="request",
        endpoint_for=lambda url: Endpoint(url.rpartition("/v1/")[0]),
        guard=Guard(reraise),
        refusals=Refusals(clock),
    )


def plain(server: FakeOpenAI, **more: Any) -> Any:
    with server.client(max_retries=0) as client:
        return client.chat.completions.create(**{"model": "m", "messages": MESSAGES, **more}).model_dump()


def streamed(server: FakeOpenAI, **more: Any) -> Any:
    with server.client(max_retries=0) as client:
        create = client.chat.completions.create
        return [c.model_dump() for c in create(**{"model": "m", "messages": MESSAGES, **more}, stream=True)]


def plain_async(server: FakeOpenAI, **more: Any) -> Any:
    async def run() -> Any:
        async with server.async_client(max_retries=0) as client:
            create = client.chat.completions.create
            return (await create(**{"model": "m", "messages": MESSAGES, **more})).model_dump()

    return asyncio.run(run())


def streamed_async(server: FakeOpenAI, **more: Any) -> Any:
    async def run() -> Any:
        async with server.async_client(max_retries=0) as client:
            create = client.chat.completions.create
            chunks = await create(**{"model": "m", "messages": MESSAGES, **more}, stream=True)
            return [chunk.model_dump() async for chunk in chunks]

    return asyncio.run(run())


ACTS = (plain, streamed, plain_async, streamed_async)
REFUSALS: list[Any] = [
    *(Fault(status) for status in (400, 401, 403, 404, 405, 409, 413, 422, 500, 501, 502, 503, 504)),
    Fault(200, body=ERROR),
    Fault(200, {"content-type": "text/event-stream"}, b"data: " + ERROR + b"\n\ndata: [DONE]\n\n"),
    Fault(200, {"content-type": "text/event-stream"}, b": ping\n\nevent: error\r\ndata: no\r\n\r\n"),
    Reset(),
    Answer.of("Hello there", die_after=0),
]


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("refusal", REFUSALS, ids=str)
def test_the_agent_never_sees_a_failure_that_it_would_not_have_had(
    sink: RecordedCalls, act: Callable[..., Any], refusal: Scripted
) -> None:
    with FakeOpenAI(refusing(refusal)) as server:
        without = act(server)
        patch = asking(sink)
        try:
            assert act(server) == without
        finally:
            patch.undo()
        assert [asked(request) for request in server.requests] == [False, True, False]
        assert server.requests[0].json() == server.requests[2].json()
    assert (sink.call().http_status, sink.call().error, sink.call().partial) == (200, None, False)
    assert "asking_refused" in [issue.code for issue in sink.call().issues]


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize(
    "patience",
    [Fault(408), Fault(429), Fault(503, {"retry-after": "7"})],
    ids=lambda fault: str(fault.status),
)
def test_a_server_that_asks_for_patience_is_not_asked_twice(
    sink: RecordedCalls, act: Callable[..., Any], patience: Fault
) -> None:
    with FakeOpenAI(patience) as server:
        with pytest.raises(openai.APIStatusError) as without:
            act(server)
        patch = asking(sink)
        try:
            with pytest.raises(openai.APIStatusError) as failed:
                act(server)
        finally:
            patch.undo()
        assert len(server.requests) == 2
    assert (failed.value.status_code, str(failed.value)) == (patience.status, str(without.value))


@pytest.mark.parametrize("act", [streamed, streamed_async])
def test_after_the_first_event_an_error_passes_as_it_came(
    sink: RecordedCalls, act: Callable[..., Any]
) -> None:
    chunk = {"choices": [{"index": 0, "delta": {"content": "He"}, "finish_reason": None}]}
    body = b"data: " + json.dumps(chunk).encode() + b"\n\ndata: " + ERROR + b"\n\n"
    failing = Fault(200, {"content-type": "text/event-stream"}, body)
    with FakeOpenAI(failing) as server:
        with pytest.raises(openai.APIError) as without:
            act(server)
        patch = asking(sink)
        try:
            with pytest.raises(openai.APIError) as failed:
                act(server)
        finally:
            patch.undo()
        assert len(server.requests) == 2
    assert str(failed.value) == str(without.value)


def test_a_refusal_is_remembered_for_an_hour_by_model_and_kind_of_request(sink: RecordedCalls) -> None:
    now = [0.0]

    def judge_refuses(request: ReceivedRequest) -> Scripted:
        found = request.json()
        return Fault(400) if asked(request) and (found["model"] == "judge" or "tools" in found) else ANSWER

    tools: Any = [{"type": "function", "function": {"name": "f"}}]

    def times_asked(act: Callable[..., Any], **more: Any) -> tuple[int, int]:
        """How many requests asked, and how many there were."""
        before = len(server.requests)
        act(server, **more)
        made = server.requests[before:]
        return sum(map(asked, made)), len(made)

    with FakeOpenAI(judge_refuses) as server:
        patch = asking(sink, lambda: now[0])
        try:
            assert times_asked(plain, model="judge") == (1, 2)
            assert times_asked(plain, model="judge") == (0, 1)
            assert times_asked(plain) == (1, 1)  # another model
            assert times_asked(plain, tools=tools) == (1, 2)  # another kind of request
            assert times_asked(plain, tools=tools) == (0, 1)
            assert times_asked(streamed) == (1, 1)
            now[0] = REMEMBERED_SECONDS - 1
            assert times_asked(plain, model="judge") == (0, 1)
            now[0] = REMEMBERED_SECONDS
            assert times_asked(plain, model="judge") == (1, 2)
        finally:
            patch.undo()


def test_one_accident_of_the_server_does_not_stop_the_asking_and_two_do(sink: RecordedCalls) -> None:
    failures = [Fault(500)]

    def script(request: ReceivedRequest) -> Scripted:
        return failures.pop() if asked(request) and failures else ANSWER

    with FakeOpenAI(script) as server:
        patch = asking(sink)
        try:
            plain(server)
            plain(server)
            failures += [Fault(500)]
            plain(server)
            failures += [Fault(500)]
            plain(server)
            plain(server)
        finally:
            patch.undo()
        pattern = [asked(request) for request in server.requests]
    assert pattern == [True, False, True, True, False, True, False, False]


@pytest.mark.parametrize(
    ("headers", "query"),
    [
        ({"authorization": "AWS4-HMAC-SHA256 Credential=a, SignedHeaders=host, Signature=b"}, ""),
        ({"authorization": 'Signature keyId="k"'}, ""),
        ({"authorization": "hmac user:abc"}, ""),
        ({"content-md5": "x"}, ""),
        ({"digest": "SHA-256=x"}, ""),
        ({"content-digest": "sha-256=:x:"}, ""),
        ({"signature": "sig=:x:"}, ""),
        ({"x-hub-signature-256": "x"}, ""),
        ({"x-acme-hmac": "x"}, ""),
        ({"x-amz-content-sha256": "x"}, ""),
        ({"x-amz-checksum-crc32": "x"}, ""),
        ({"idempotency-key": "x"}, ""),
        ({"content-encoding": "gzip"}, ""),
        ({}, "X-Amz-Signature=x"),
        ({}, "a=1&sig=x"),
    ],
)
def test_a_body_that_is_signed_or_compressed_is_never_changed(headers: dict[str, str], query: str) -> None:
    assert is_fixed(headers, query)


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Bearer sk-signature"},
        {"x-stainless-lang": "python"},
        {"content-type": "application/json"},
    ],
)
def test_an_ordinary_body_may_be_changed(headers: dict[str, str]) -> None:
    assert not is_fixed(headers, "api-version=1&design=x")


def test_a_signed_request_leaves_as_the_agent_made_it(sink: RecordedCalls) -> None:
    with FakeOpenAI(Answer.of("hi", ids="always", logprobs="always")) as server:
        more: Any = {"extra_headers": {"x-signature": "of the body"}}
        plain(server, **more)
        patch = asking(sink)
        try:
            plain(server, **more)
        finally:
            patch.undo()
        first, second = server.requests
        assert first.raw == second.raw
    assert sink.call().token_capture == VALID


def test_the_table_of_refusals_is_bounded() -> None:
    refusals = Refusals(lambda: 0.0)
    kinds = [
        RequestKind("e", str(number), "chat", False, False, False, False, "return_token_ids")
        for number in range(10_001)
    ]
    for kind in kinds:
        refusals.refused(kind, 400)
    assert not refusals.applies_to(kinds[0])
    assert refusals.applies_to(kinds[-1])


@pytest.mark.parametrize("content_type", ["text/plain", "application/octet-stream", "application/json"])
@pytest.mark.parametrize("act", [streamed, streamed_async])
def test_a_stream_of_unexpected_type_is_edited_as_it_passes(
    sink: RecordedCalls, act: Callable[..., Any], content_type: str
) -> None:
    with FakeOpenAI(Answer.of("Hello there", content_type=content_type)) as server:
        without = act(server)
        patch = asking(sink)
        try:
            assert act(server) == without
        finally:
            patch.undo()
    assert sink.call().token_capture == VALID
