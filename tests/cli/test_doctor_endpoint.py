"""``agl doctor --endpoint``: what an engine gives, asked as the recorder asks, and what to set."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from cli_sample import Outcome, agl

from agentlightning.testing import Answer, AnswerChoice, FakeOpenAI, Fault
from agentlightning.testing.fake_openai import ReceivedRequest, Script, Scripted, Token

VLLM = "--generation-config vllm --logprobs-mode processed_logprobs"


def examine(
    script: Script, owned_by: str = "us", *options: str
) -> tuple[Outcome, dict[str, dict[str, Any]], FakeOpenAI]:
    """Return what the command does, check → finding, and the engine with its requests."""
    with FakeOpenAI(script, owned_by=owned_by) as engine:
        done = agl("doctor", "--endpoint", engine.base_url, "--json", *options)
    document = json.loads(done.out)
    assert (done.code == 0) == document["sound"]
    found = {each["check"]: each for each in document["findings"]}
    assert all(each["cure"] for each in found.values() if each["level"] != "ok")
    return done, found, engine


def answer(request: ReceivedRequest, kind: str = "processed", **changes: Any) -> Answer:
    """Answer as an engine does whose two likeliest first tokens are apart by 1 at temperature 1."""
    heat = request.json()["temperature"] if kind == "processed" else 1.0
    top = (Token("a", 7, -0.3), Token("b", 8, -0.3 - 1 / heat), Token("c", 9, -9999.0))
    choice = AnswerChoice((Token("a", 7, -0.3, top), Token(" b", 8, -0.5)), versions=(("v1", 0, 2),))
    return Answer(**{"choices": (choice,), **changes})


def test_an_engine_that_gives_all_is_told_how_it_is_recorded() -> None:
    done, found, engine = examine(answer, "vllm")
    assert (done.code, {each["level"] for each in found.values()}) == (0, {"ok"})
    assert "vLLM, model fake-model" in found["endpoint"]["sentence"]
    assert "ids of its prompt (3) and of what was sampled (2)" in found["ids"]["sentence"]
    assert "a streamed answer has the ids" in found["ids_streamed"]["sentence"]
    assert "processed" in found["logprobs"]["sentence"]
    assert "2 likeliest" in found["top_logprobs"]["sentence"]
    assert "for each token" in found["versions"]["sentence"]
    assert found["use"]["cure"] == "AGL_LOGPROB_KIND=processed agl run --capture-tokens request -- PROGRAM"
    assert len(engine.requests) == 4
    assert all("authorization" not in each.headers for each in engine.requests)


def test_raw_log_probabilities_are_told_from_processed_ones() -> None:
    _, found, _ = examine(partial(answer, kind="raw"), "vllm", "--model", "policy")
    assert found["logprobs"]["level"] == "warn"
    assert "raw" in found["logprobs"]["sentence"]
    assert found["logprobs"]["cure"].startswith("vllm serve policy --host 127.0.0.1 --port ")
    assert found["logprobs"]["cure"].endswith(VLLM)
    assert found["use"]["cure"].startswith("AGL_LOGPROB_KIND=raw ")


def test_where_one_token_is_certain_nothing_is_said_of_the_kind() -> None:
    def certain(request: ReceivedRequest) -> Answer:
        choice = AnswerChoice((Token("a", 7, 0.0, (Token("a", 7, 0.0), Token("b", 8, -9999.0))),))
        return Answer((choice,))

    _, found, _ = examine(certain)
    assert found["logprobs"]["level"] == "warn"
    assert "does not show" in found["logprobs"]["sentence"]
    assert "AGL_LOGPROB_KIND" not in found["use"]["cure"]


def test_an_engine_that_gives_ids_of_streams_in_another_way_is_asked_in_that() -> None:
    done, found, _ = examine(partial(answer, dialect="sglang"), "sglang")
    assert done.code == 0
    assert "SGLang" in found["endpoint"]["sentence"]
    assert (
        "a streamed answer has the ids of its prompt (3) and of what was sampled (2)"
        in found["ids_streamed"]["sentence"]
    )


def test_an_engine_that_gives_ids_of_whole_answers_only_is_used_without_streams() -> None:
    old = frozenset({"return_output_ids_in_sglext"})  # a release that does not take it
    done, found, _ = examine(partial(answer, dialect="sglang", refuses=old), "sglang")
    assert done.code == 0
    assert found["ids"]["level"] == "ok"
    assert found["ids_streamed"]["level"] == "warn"
    assert "refuses return_token_ids (HTTP 400" in found["ids_streamed"]["sentence"]
    assert "stream=False" in found["ids_streamed"]["cure"]


@pytest.mark.parametrize(
    ("owned_by", "cure"),
    [
        ("vllm", "pip install --upgrade 'vllm>=0.10.2'"),  # an older one ignores the field, or refuses it
        ("sglang", "pip install --upgrade sglang"),
        ("llamacpp", f"vllm serve fake-model --host 127.0.0.1 --port PORT {VLLM}"),
        ("library", f"vllm serve fake-model --host 127.0.0.1 --port PORT {VLLM}"),
    ],
)
@pytest.mark.parametrize("refuses", [frozenset(), frozenset({"return_token_ids", "return_weight_versions"})])
def test_an_engine_without_ids_is_brought_up_to_date_or_replaced(
    owned_by: str, cure: str, refuses: frozenset[str]
) -> None:
    done, found, _ = examine(partial(answer, dialect="openai", refuses=refuses), owned_by)
    assert done.code == 1
    assert found["ids"]["level"] == "fail"
    assert ("refuses return_token_ids" in found["ids"]["sentence"]) == bool(refuses)
    assert found["ids"]["cure"] == cure.replace("PORT", engine_port(found))
    assert "use" not in found
    assert found["logprobs"]["level"] == "ok"  # what it gives is said all the same


def engine_port(found: dict[str, dict[str, Any]]) -> str:
    return str(found["endpoint"]["endpoint"]).rpartition(":")[2].partition("/")[0]


def test_log_probabilities_that_are_refused_are_named_as_what_is_refused() -> None:
    # As llama.cpp does beside tools in streams, and LiteLLM before Ollama.
    _, found, _ = examine(partial(answer, refuses=frozenset({"logprobs"})), "llamacpp")
    assert "refuses logprobs (HTTP 400" in found["ids"]["sentence"]


def test_ids_of_the_prompt_alone_are_not_enough() -> None:
    def prompt_only(request: ReceivedRequest) -> Scripted:
        made = answer(request, dialect="openai")
        return Answer(made.choices, dialect="openai", extra={"prompt_token_ids": [1, 2, 3]})

    _, found, _ = examine(prompt_only, "vllm")
    assert "ids of the prompt only" in found["ids"]["sentence"]


def test_a_gateway_that_loses_tokens_of_streams_is_noticed() -> None:
    def loses(request: ReceivedRequest) -> Answer:
        usage = {"completion_tokens": 3} if request.json().get("stream") else None
        return answer(request, usage=usage)

    done, found, _ = examine(loses)
    assert done.code == 0
    assert "differs from usage.completion_tokens" in found["ids_streamed"]["sentence"]


def test_a_key_is_sent_where_its_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "s3cret")

    def guarded(request: ReceivedRequest) -> Scripted:
        return answer(request) if request.headers.get("authorization") == "Bearer s3cret" else Fault(401)

    done, found, engine = examine(guarded)
    assert done.code == 1
    assert all("authorization" not in each.headers for each in engine.requests)
    assert found["endpoint"]["cure"].endswith(" --model fake-model --api-key-env OPENAI_API_KEY")
    done, found, _ = examine(guarded, "us", "--api-key-env", "OPENAI_API_KEY")
    assert done.code == 0
    assert "s3cret" not in done.out


class Front:
    """A server on loopback that answers each GET by its path as it is told, else with 404."""

    def __init__(self) -> None:
        self.answers: dict[str, tuple[int, dict[str, str]]] = {}
        self.asked: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append(self.path)
                status, headers = outer.answers.get(self.path, (404, {}))
                self.send_response(status)
                for name, value in {"Content-Length": "0", **headers}.items():
                    self.send_header(name, value)
                self.end_headers()

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def front() -> Iterator[Front]:
    made = Front()
    yield made
    made.close()


def test_no_key_goes_where_an_endpoint_redirects(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "s3cret")
    elsewhere = Fault(302, {"location": f"{front.url}/login?state=abc"})
    done, found, _ = examine(lambda _: elsewhere, "us", "--api-key-env", "OPENAI_API_KEY")
    assert done.code == 1
    assert f"redirects to {front.url}/login, where nothing was sent" in found["endpoint"]["sentence"]
    assert front.asked == []
    # Its list of models is not looked for there either.
    front.answers = dict.fromkeys(("/models", "/v1/models"), (307, {"Location": "/login"}))
    done = agl("doctor", "--endpoint", front.url, "--api-key-env", "OPENAI_API_KEY")
    assert f"redirects to {front.url}/login" in done.out
    assert front.asked == ["/models", "/v1/models"]


def test_an_engine_with_a_key_leads_to_its_key_step_by_step(
    front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    front.answers = {"/v1/models": (401, {})}  # an engine of which only /v1 is guarded
    first = agl("doctor", "--endpoint", front.url)
    assert f"{front.url}/v1 wants a key: HTTP 401" in first.out
    command = f"agl doctor --endpoint {front.url}/v1 --api-key-env OPENAI_API_KEY"
    assert f"-> {command}\n" in first.out
    front.asked.clear()
    second = agl(*command.split()[1:])
    assert "OPENAI_API_KEY is not set, which --api-key-env names" in second.out
    assert "-> export OPENAI_API_KEY=KEY\n" in second.out
    assert front.asked == []
    monkeypatch.setenv("OPENAI_API_KEY", "s3cret\n")
    third = agl(*command.split()[1:])
    assert f"{front.url}/v1 refuses the key in OPENAI_API_KEY: HTTP 401" in third.out
    assert "-> export OPENAI_API_KEY=KEY\n" in third.out
    assert [each.code for each in (first, second, third)] == [1, 1, 1]


def test_a_model_that_is_not_served_is_answered_with_one_that_is() -> None:
    def known(request: ReceivedRequest) -> Scripted:
        body = json.dumps({"error": {"message": "no model 'x'"}}).encode()
        return answer(request) if request.json()["model"] == "fake-model" else Fault(404, body=body)

    _, found, _ = examine(known, "us", "--model", "x")
    assert "HTTP 404: no model 'x'" in found["endpoint"]["sentence"]
    assert found["endpoint"]["cure"].endswith(" --model fake-model")


def test_nobody_there_is_said_and_text_has_the_command_on_one_line() -> None:
    with FakeOpenAI(partial(answer, kind="raw"), owned_by="vllm") as engine:
        url = engine.url  # without /v1, which is found
        done = agl("doctor", "--endpoint", f"{url}/", columns=60)
    assert done.code == 0
    assert f"vllm serve fake-model --host 127.0.0.1 --port {url.rpartition(':')[2]} {VLLM}\n" in done.out
    assert "Rows can be made" in done.out
    gone = agl("doctor", "--endpoint", url)
    assert gone.code == 1
    assert "nobody answers" in gone.out


def test_a_proxy_that_keeps_agents_from_a_local_engine_is_told_beside_what_the_engine_gives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("http_proxy", "http://192.0.2.1:3128")
    done, found, _ = examine(answer, "vllm")
    assert done.code == 0
    assert found["ids"]["level"] == "ok"
    assert "would go to the proxy and not arrive" in found["proxies"]["sentence"]
    assert found["proxies"]["cure"].startswith("export NO_PROXY=127.0.0.1,localhost,::1")


def test_a_provider_without_token_ids_is_not_asked() -> None:
    done = agl("doctor", "--endpoint", "https://api.openai.com/v1", "--model", "gpt-5")
    assert done.code == 1
    assert "api.openai.com gives no token ids" in done.out
    assert f"-> vllm serve MODEL {VLLM}" in done.out
