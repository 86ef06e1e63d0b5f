"""The fake model answers any request in one way, and a conversation that is sent back goes on where it ended."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from agentlightning.testing import Answer, FakeOpenAI, fake_model, tokens_of

SCHEMA = {
    "type": "object",
    "properties": {
        "a": {"type": "integer"},
        "b": {"type": "number"},
        "unit": {"enum": ["cm", "in"]},
        "about": {"anyOf": [{"$ref": "#/$defs/About"}, {"type": "null"}]},
        "words": {"type": "array", "items": {"type": "string"}},
        "left out": {"type": "string"},
    },
    "required": ["a", "b", "unit", "about", "words"],
    "$defs": {"About": {"type": "object", "properties": {"sure": {"type": "boolean"}}}},
}
FILLED = {"a": 6, "b": 7.5, "unit": "cm", "about": {"sure": True}, "words": ["6 by 7.5?"]}
TOOLS = [{"type": "function", "function": {"name": "measure", "parameters": SCHEMA}}]
ASKED = {"role": "user", "content": "6 by 7.5?"}


@pytest.fixture
def server() -> Iterator[FakeOpenAI]:
    with FakeOpenAI(fake_model) as running:
        yield running


def post(url: str, body: Any) -> Any:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"})
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request) as answer:
        return json.load(answer)


def chat(server: FakeOpenAI, *messages: Any, **more: Any) -> Any:
    asked = {"model": "m", "messages": [*messages], "return_token_ids": True, **more}
    return post(f"{server.base_url}/chat/completions", asked)


def test_a_tool_is_called_with_what_its_schema_asks_for_and_its_result_is_repeated(
    server: FakeOpenAI,
) -> None:
    called = chat(server, ASKED, tools=TOOLS)
    (choice,) = called["choices"]
    (call,) = choice["message"]["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == FILLED
    assert (call["function"]["name"], choice["finish_reason"], called["model"]) == (
        "measure",
        "tool_calls",
        "m",
    )
    # As clients do: the same call with its arguments written in another way.
    spaced = {**call, "function": {**call["function"], "arguments": json.dumps(FILLED, indent=1)}}
    sent = {"role": "assistant", "content": None, "tool_calls": [spaced]}
    result = {"role": "tool", "tool_call_id": call["id"], "content": "45"}
    said = chat(server, ASKED, sent, result, tools=TOOLS)
    assert said["choices"][0]["message"]["content"] == "The answer is 45."
    before = called["prompt_token_ids"] + choice["token_ids"]
    assert said["prompt_token_ids"][: len(before)] == before


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({}, "You said: 6 by 7.5?"),
        ({"tools": TOOLS, "tool_choice": "none"}, "You said: 6 by 7.5?"),
        ({"max_tokens": 2}, "You said:"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}},
            json.dumps(FILLED),
        ),
    ],
)
def test_what_is_said_fits_what_is_asked(server: FakeOpenAI, asked: Any, said: str) -> None:
    (choice,) = chat(server, ASKED, **asked)["choices"]
    assert choice["message"]["content"] == said
    assert choice["token_ids"] == [token.id for token in tokens_of(said)]
    assert choice["finish_reason"] == ("length" if "max_tokens" in asked else "stop")


def test_a_tool_that_is_named_is_called_again_and_again(server: FakeOpenAI) -> None:
    other = {"type": "function", "function": {"name": "other", "parameters": {}}}
    result = {"role": "tool", "tool_call_id": "call_1", "content": "45"}
    named = {"type": "function", "function": {"name": "other"}}
    answer = chat(server, ASKED, result, tools=[*TOOLS, other], tool_choice=named)
    assert answer["choices"][0]["message"]["tool_calls"][0]["function"] == {
        "name": "other",
        "arguments": "{}",
    }


def test_a_call_that_is_always_required_is_of_the_last_tool_once_there_is_a_result(
    server: FakeOpenAI,
) -> None:
    tools = [*TOOLS, {"type": "function", "function": {"name": "final_answer"}}]
    first = chat(server, ASKED, tools=tools, tool_choice="required")["choices"][0]["message"]
    then = chat(server, ASKED, first, RESULT, tools=tools, tool_choice="required")["choices"][0]["message"]
    names = [each["tool_calls"][0]["function"]["name"] for each in (first, then)]
    assert names == ["measure", "final_answer"]


def test_several_choices_and_completions(server: FakeOpenAI) -> None:
    assert len(chat(server, ASKED, n=3)["choices"]) == 3
    found = post(f"{server.base_url}/completions", {"model": "m", "prompt": "Say hello"})
    assert found["choices"][0]["text"] == "You said: Say hello"


def test_a_path_that_is_not_served_is_told(server: FakeOpenAI) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        post(f"{server.base_url}/responses", {"model": "m", "input": "Say hello"})
    assert caught.value.code == 404
    assert "chat/completions and completions" in json.load(caught.value)["error"]["message"]
    caught.value.close()


def test_a_request_that_is_no_json_is_refused_with_a_sentence(server: FakeOpenAI) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        post(f"{server.base_url}/chat/completions", b"{'model': 'm'}")
    assert caught.value.code == 400
    assert json.load(caught.value)["error"]["message"] == "the body is no JSON object"
    caught.value.close()


def refused(server: FakeOpenAI, body: Any) -> tuple[int, str]:
    """Return the status and the sentence of a refusal."""
    with pytest.raises(urllib.error.HTTPError) as caught:
        post(f"{server.base_url}/chat/completions", body)
    with caught.value as answer:
        message: str = json.load(answer)["error"]["message"]
        return answer.code, message


def offering(schema: Any, name: Any = "measure") -> dict[str, Any]:
    function = {"name": name, "parameters": schema}
    return {"messages": [ASKED], "tools": [{"type": "function", "function": function}]}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"messages": 5}, "messages must be a list"),
        ({"messages": [ASKED], "tools": 5}, "tools must be a list"),
        ({"messages": [ASKED], "n": 30_000_000}, "n must be a whole number from 1 to 128"),
        (offering({}, name=["measure"]), "the name of a tool must be a text"),
        (offering({"properties": ["a"]}), "properties must be an object"),
        (offering({"required": 5}), "required must be a list"),
        (offering({"allOf": {"a": 1}}), "allOf must be a list"),
        (offering({"type": {"a": 1}}), "type must be a name, or a list of names"),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', "a surrogate without its pair"),
        (b"[" * 100_000, "the body is no JSON object"),
    ],
)
def test_what_no_model_can_answer_is_refused_with_a_sentence(
    server: FakeOpenAI, body: Any, said: str
) -> None:
    status, sentence = refused(server, body)
    assert status == 400
    assert said in sentence


def test_a_script_that_raises_is_told_to_its_client() -> None:
    def script(_: object) -> Answer:
        raise LookupError("no such answer")

    with FakeOpenAI(script) as broken:
        assert refused(broken, {"messages": []}) == (
            500,
            "no answer could be made: LookupError: no such answer",
        )


def filled(server: FakeOpenAI, question: str, schema: Any) -> Any:
    body = {**offering(schema), "messages": [{"role": "user", "content": question}]}
    (choice,) = post(f"{server.base_url}/chat/completions", body)["choices"]
    return json.loads(choice["message"]["tool_calls"][0]["function"]["arguments"])


def test_numbers_are_those_of_the_question_to_the_last_digit(server: FakeOpenAI) -> None:
    schema = {"properties": {"a": {"type": "integer"}, "b": {"type": "number"}}}
    assert filled(server, "12345678901234567 by 2.5", schema) == {"a": 12345678901234567, "b": 2.5}
    assert filled(server, "9" * 400, schema) == {"a": 1, "b": 1.0}  # too large for most readers


def test_a_schema_that_names_itself_or_a_name_with_a_slash_is_filled(server: FakeOpenAI) -> None:
    schema = {"properties": {"a": {"$ref": "#/$defs/A~1B%20C"}}, "$defs": {"A/B C": {"type": "integer"}}}
    assert filled(server, "6", schema) == {"a": 6}
    wide: dict[str, Any] = {
        "type": "object",
        "properties": {f"p{number}": {"$ref": "#"} for number in range(50)},
    }
    assert list(filled(server, "6", wide)) == [*wide["properties"]]


RESULT = {"role": "tool", "tool_call_id": "call_1", "content": "45"}


@pytest.mark.parametrize(
    "results",
    [
        [RESULT, {"role": "user", "content": "Go on."}],
        [RESULT, {"role": "assistant", "content": "I see:"}],
        [{"role": "user", "content": "45"}],
        [{"role": "function", "name": "measure", "content": "45"}],
    ],
)
def test_a_result_is_repeated_also_where_something_is_said_after_it_or_in_another_role(
    server: FakeOpenAI, results: list[Any]
) -> None:
    called = chat(server, ASKED, tools=TOOLS)["choices"][0]["message"]
    said = chat(server, ASKED, called, *results, tools=TOOLS)["choices"][0]["message"]
    assert said["content"] == "The answer is 45."
    again = chat(server, ASKED, called, *results, said, ASKED, tools=TOOLS)["choices"][0]
    assert again["finish_reason"] == "tool_calls"


def test_the_command_serves_until_it_is_told_to_end_and_names_a_port_that_is_taken() -> None:
    command = [sys.executable, "-m", "agentlightning.cli", "fake-model", "--port"]
    with subprocess.Popen([*command, "0"], stdout=subprocess.PIPE, text=True) as serving:
        assert serving.stdout is not None
        url = serving.stdout.readline().split()[5].rstrip(";")
        answer = post(f"{url}/chat/completions", {"model": "m", "messages": [ASKED]})
        port = url.split(":")[2].split("/")[0]
        second = subprocess.run([*command, port], capture_output=True, text=True, check=False)
        serving.send_signal(signal.SIGTERM)
    assert answer["choices"][0]["message"]["content"] == "You said: 6 by 7.5?"
    assert (second.returncode, serving.returncode) == (2, 0)
    assert f"port {port} is in use by another program; choose another with --port" in second.stderr
