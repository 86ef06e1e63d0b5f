"""Why there are no token ids, in sentences of their own; the command that is printed is run, and there are some."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import openai
import pytest
from cli_sample import agl

from agentlightning import OtelTracer, open_store
from agentlightning.cli.doctor.finding import subject
from agentlightning.cli.doctor.tokens import tokens
from agentlightning.testing import Answer, FakeOpenAI
from agentlightning.testing.fake_openai import ReceivedRequest, Script

pytestmark = pytest.mark.long

AGENT = """
import json, os, urllib.request
for url in os.environ["MODEL_URLS"].split():
    body = {"model": "policy", "messages": [{"role": "user", "content": "Hi"}]}
    request = urllib.request.Request(url + "/chat/completions", json.dumps(body).encode())
    urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request).read()
"""
CLIENT = """
import openai, os
http = openai.DefaultHttpxClient(trust_env=False)
client = openai.OpenAI(base_url=os.environ["MODEL_URLS"], api_key="x", http_client=http, max_retries=0)
client.chat.completions.create(model="policy", messages=[{"role": "user", "content": "Hi"}])
"""
EMPTY = "no token ids to train on"


def said(request: ReceivedRequest, **changes: Any) -> Answer:
    """Answer under an id that no other engine gives."""
    return Answer.of("It is Paris", id=f"chatcmpl-{request.headers['host']}", **changes)


class Shell:
    """A shell in a folder with an agent, and engines on this machine."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch, stack: ExitStack) -> None:
        self._patch = patch
        self._stack = stack
        self._engines: dict[int | None, FakeOpenAI] = {}
        (folder / "agent.py").write_text(AGENT, encoding="utf-8")
        patch.chdir(folder)
        patch.setenv("AGL_STORE", "sqlite:///runs.db")
        for name in ("AGL_CAPTURE_TOKENS", "AGL_ENDPOINTS"):
            patch.delenv(name, raising=False)
        self.program = f"{shlex.quote(sys.executable)} agent.py"

    def serve(self, script: Script, port: int = 0) -> str:
        """Start an engine and return its URL."""
        engine = self._stack.enter_context(FakeOpenAI(script, port=port))
        self._engines[urlsplit(engine.url).port] = engine
        return engine.base_url

    def run(self, command: str) -> str:
        """Run a command as it was printed, and return what it prints."""
        words = shlex.split(command)
        if words[0] == "export":
            for word in words[1:]:
                name, _, value = word.partition("=")
                self._patch.setenv(name, value.replace(f"${name}", os.environ.get(name, "")))
            return ""
        if words[0] == "vllm":  # in the place of what listens there
            assert words[1:3] == ["serve", "policy"]
            assert {"--generation-config", "vllm", "--logprobs-mode", "processed_logprobs"} < {*words}
            port = int(words[words.index("--port") + 1])
            self._engines[port].close()
            self.serve(said, port)
            return ""
        assert words.pop(0) == "agl"
        done = agl(*words)
        assert "Traceback" not in done.err
        return done.err + done.out

    def call(self, *urls: str, stream: bool = False) -> None:
        """Be an agent with a tracer of its own, which reads its settings from the environment."""

        async def agent() -> None:
            async with open_store("sqlite:///runs.db") as store:
                with OtelTracer().lifespan(store) as tracer:
                    async with tracer.trace_context("a"):
                        for url in urls:
                            ask(url)

        def ask(url: str) -> None:
            http: Any = openai.DefaultHttpxClient(trust_env=False)
            with openai.OpenAI(base_url=url, api_key="x", http_client=http) as client:
                question: Any = [{"role": "user", "content": "Hi"}]
                answer: Any = client.chat.completions.create(model="policy", messages=question, stream=stream)
                if stream:
                    list(answer)

        asyncio.run(agent())


def cures(printed: str) -> list[str]:
    """Return the commands that stand beneath sentences."""
    return re.findall(r"^\S*\s*(?:→|->) ((?:agl|export|vllm) .*)$", printed, re.MULTILINE)


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shell]:
    with ExitStack() as stack:
        yield Shell(tmp_path, monkeypatch, stack)


def test_who_only_observes_is_told_to_ask(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    url = shell.serve(said)
    monkeypatch.setenv("MODEL_URLS", url)
    sentence = (
        f"no token ids were asked for: the tracer only observes, and the agent did not ask itself ({url})"
    )
    summary = shell.run(f"agl run --name 'a b' -- {shell.program}")
    assert f"1 of 1 model call has {EMPTY}: {sentence}" in summary
    (cure,) = cures(summary)
    assert cure == f"agl run --name 'a b' --capture-tokens request -- {shell.program}"
    explained = shell.run("agl explain latest")
    assert sentence in explained
    assert cures(explained) == [f"agl run --capture-tokens request -- {shell.program}"]
    assert EMPTY not in shell.run(cure)
    assert "1 row of 1 model call" in shell.run("agl explain latest")


def test_an_agent_whose_engine_is_not_there_is_led_to_the_doctor(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FakeOpenAI() as engine:
        url = engine.base_url
    monkeypatch.setenv("MODEL_URLS", url)
    agent = f"{shlex.quote(sys.executable)} -c {shlex.quote(CLIENT)}"
    summary = shell.run(f"agl run --capture-tokens request -- {agent}")
    assert f"1 of 1 model call came to nothing: no response came ({url})" in summary
    (cure,) = cures(summary)
    assert cure == f"agl doctor --endpoint {url} --model policy"
    assert f"nobody answers at {url}" in shell.run(cure)


def test_of_four_endpoints_each_is_cured_by_the_command_that_is_printed(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = shell.serve(said).replace("127.0.0.1", "0.0.0.0")
    refuses = shell.serve(partial(said, refuses=frozenset({"return_token_ids"})))
    silent = shell.serve(partial(said, dialect="openai"))
    loses = shell.serve(partial(said, usage={"completion_tokens": 4}))
    monkeypatch.setenv("MODEL_URLS", f"{elsewhere} {refuses} {silent} {loses}")
    sentences = {
        elsewhere: "the endpoint was not asked for token ids: it is not on loopback, no resource of the rollout names "
        "it, and nobody else did",
        refuses: "the endpoint was asked for token ids and refused, now or at an earlier request like this one; the "
        "agent's own request was sent",
        silent: "the endpoint was asked for token ids and answered without",
        loses: "token ids came and are not believed: the number of sampled ids differs from usage.completion_tokens",
    }
    commands = {
        elsewhere: f"agl run --capture-tokens request --endpoint {elsewhere} -- {shell.program}",
        **{url: f"agl doctor --endpoint {url} --model policy" for url in (refuses, silent, loses)},
    }
    summary = shell.run(f"agl run --capture-tokens request -- {shell.program}")
    explained = shell.run("agl explain latest")
    for url, sentence in sentences.items():
        assert f"1 of 4 model calls has {EMPTY}: {sentence} ({url})\nagl:   → {commands[url]}\n" in summary
        assert f": {sentence} ({url})\n  → {commands[url]}\n" in explained
    for url in (refuses, silent, loses):  # what the engine gives, and what to set
        found = shell.run(commands[url])
        assert "has no ids that are believed" in found
        (cure, *_) = cures(found)
        shell.run(cure)
    assert EMPTY not in shell.run(commands[elsewhere])
    assert "4 rows of 4 model calls" in shell.run("agl explain latest")


def test_ids_that_nobody_counts_are_asked_to_be_counted(shell: Shell) -> None:
    def uncounted(request: ReceivedRequest) -> Answer:
        asks = "stream_options" in request.json()
        return said(request, ids="always", show_usage="always" if asks else "never")

    url = shell.serve(uncounted)
    shell.call(url, stream=True)
    explained = shell.run("agl explain latest")
    assert (
        "token ids came and are not believed: the response has no usage, so nothing says how many tokens were sampled "
        f"({url})"
    ) in explained
    (cure,) = cures(explained)
    shell.run(cure)
    shell.call(url, stream=True)
    assert "1 row of 1 model call" in shell.run("agl explain latest")


def test_a_tracer_in_code_is_told_the_variables_for_each_endpoint(shell: Shell) -> None:
    here = shell.serve(said)
    there = here.replace("127.0.0.1", "0.0.0.0")
    shell.call(here, there)
    assert cures(shell.run("agl explain latest")) == [
        "export AGL_CAPTURE_TOKENS=request",
        f'export AGL_CAPTURE_TOKENS=request AGL_ENDPOINTS="$AGL_ENDPOINTS",{there}',
    ]
    shell.run("export AGL_ENDPOINTS=http://gpu1:8000/v1")
    shell.run(f'export AGL_CAPTURE_TOKENS=request AGL_ENDPOINTS="$AGL_ENDPOINTS",{there}')
    assert os.environ["AGL_ENDPOINTS"].split(",") == ["http://gpu1:8000/v1", there]  # it takes none away
    shell.call(there)
    assert "1 row of 1 model call" in shell.run("agl explain latest")


def test_other_arguments_of_a_program_are_not_stored(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL_URLS", shell.serve(said))
    summary = shell.run(f"agl run -q --endpoint http://gpu1/v1 -- {shell.program} --key s3cret")
    assert summary == ""
    assert cures(shell.run("agl explain latest")) == [
        f"agl run --endpoint http://gpu1/v1 --capture-tokens request -- {shell.program} ..."
    ]


def test_what_looks_like_a_key_is_not_printed(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL_URLS", shell.serve(said))
    name = "sk-proj-abcdefghijklmnopqrstuvwxyz0123456789"
    summary = shell.run(f"agl run --name {name} --input '{{\"password\": 1}}' -- {shell.program} --top-k 5")
    cure = f"agl run --input ... --name ... --capture-tokens request -- {shell.program} --top-k 5"
    assert cures(summary) == [cure]
    summary = shell.run(f"agl run --input 5 -- {shell.program} --max-tokens 9 --api_key s3cret")
    assert cures(summary) == [f"agl run --input 5 --capture-tokens request -- {shell.program} ..."]
    assert "s3cret" not in summary


def test_a_request_that_cannot_be_changed_is_said_to_be_so(shell: Shell) -> None:
    url = shell.serve(said)
    shell.run("export AGL_CAPTURE_TOKENS=request")

    async def agent() -> None:
        async with open_store("sqlite:///runs.db") as store:
            with OtelTracer().lifespan(store) as tracer, httpx.Client(trust_env=False) as client:
                async with tracer.trace_context("a"):
                    body = {"model": "policy", "messages": []}
                    client.post(f"{url}/chat/completions", json=body, headers={"Idempotency-Key": "1"})

    asyncio.run(agent())
    explained = shell.run("agl explain latest")
    assert "has an Idempotency-Key" in explained
    assert "send it unsigned, uncompressed, whole" in explained


def test_the_doctor_says_it_of_the_newest_attempt_and_of_the_environment(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://gpu1:8000/v1/")
    monkeypatch.setenv("OPENAI_API_BASE", "https://api.openai.com/v1")  # it gives none, whoever names it

    def found() -> list[tuple[str, str]]:
        # The check alone: the others take a minute of a busy machine, and are other tests' matter.
        return [(each.level, each.cure) for each in tokens(subject(None))]

    assert found() == [("ok", "")]  # there is no store, and nobody wants ids
    silent = shell.serve(partial(said, dialect="openai"))
    shell.call(silent.replace("127.0.0.1", "0.0.0.0"))
    assert [level for level, _ in found()] == ["ok"]
    shell.run(found()[0][1])
    assert ("warn", f"export AGL_ENDPOINTS='{os.environ['AGL_ENDPOINTS']} http://gpu1:8000/v1'") in found()
    shell.run(found()[0][1])
    shell.call(silent)
    assert found() == [("warn", f"agl doctor --endpoint {silent} --model policy")]
