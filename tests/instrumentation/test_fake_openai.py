"""The scripted server itself: what it promises to those who test their agents with it."""

from __future__ import annotations

import json

import openai
import pytest
import requests

from agentlightning.testing.fake_openai import (
    Answer,
    AnswerChoice,
    FakeOpenAI,
    Fault,
    ReceivedRequest,
    Scripted,
    Token,
    tokens_of,
)


def test_requests_are_kept_byte_by_byte() -> None:
    with FakeOpenAI() as server:
        body = b'{"model": "m",  "messages": []}'
        requests.post(
            f"{server.base_url}/chat/completions", data=body, headers={"X-Odd": "two  words"}, timeout=120
        )
        [received] = server.requests
    assert received.body == body
    assert received.raw.startswith(b"POST /v1/chat/completions HTTP/1.1\r\n")
    assert received.raw.endswith(b"\r\n\r\n" + body)
    assert received.headers["x-odd"] == "two  words"


def test_answers_come_in_the_order_of_the_script_then_by_the_function() -> None:
    def script(request: ReceivedRequest) -> Scripted:
        return Answer.of(f"for {request.json()['model']}")

    with (
        FakeOpenAI(script) as server,
        openai.OpenAI(base_url=server.base_url, api_key="k", max_retries=0) as client,
    ):
        server.enqueue(Answer.of("first"), Fault(418))
        assert client.completions.create(model="m", prompt="x").choices[0].text == "first"
        with pytest.raises(openai.APIStatusError):
            client.completions.create(model="m", prompt="x")
        assert client.completions.create(model="m", prompt="x").choices[0].text == "for m"


def test_a_text_is_an_answer_that_shows_everybody_its_tokens() -> None:
    with FakeOpenAI() as server:
        server.enqueue("It is Paris")
        url = f"{server.base_url}/chat/completions"
        said = requests.post(url, json={"model": "m"}, timeout=120).json()["choices"][0]
    assert said["message"]["content"] == "It is Paris"
    assert said["token_ids"] == [token.id for token in tokens_of("It is Paris")]
    assert len(said["logprobs"]["content"]) == 3


def test_token_ids_and_log_probabilities_are_shown_to_those_who_ask() -> None:
    answer = Answer((AnswerChoice((Token("a", 5, -0.5), Token("b", 6, -1.0))),), (1, 2))
    with FakeOpenAI(answer) as server:
        url = f"{server.base_url}/chat/completions"
        plain = requests.post(url, json={"model": "m"}, timeout=120).json()
        asked = requests.post(url, json={"return_token_ids": True, "logprobs": True}, timeout=120).json()
    assert "prompt_token_ids" not in plain
    assert plain["choices"][0]["logprobs"] is None
    assert (asked["prompt_token_ids"], asked["choices"][0]["token_ids"]) == ([1, 2], [5, 6])
    assert [entry["logprob"] for entry in asked["choices"][0]["logprobs"]["content"]] == [-0.5, -1.0]


def test_a_stream_is_cut_as_the_script_says() -> None:
    answer = Answer((AnswerChoice(tokens_of("a b c d e")),), chunking=(2, 0, 1), ids="always")
    with FakeOpenAI(answer) as server:
        response = requests.post(f"{server.base_url}/completions", json={"stream": True}, timeout=120)
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line]
    assert lines.pop() == "[DONE]"
    assert [len(json.loads(line)["choices"][0]["token_ids"]) for line in lines] == [2, 0, 1, 2]


def test_a_broken_connection_is_broken_and_closing_twice_is_harmless() -> None:
    server = FakeOpenAI(Answer.of("a b c", die_after=1)).start()
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        requests.post(f"{server.base_url}/completions", json={"stream": True}, timeout=120)
    server.close()
    server.close()
