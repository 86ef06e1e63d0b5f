"""How the tests of the pytest plugin run pytest."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import dedent

from warm import Warm

ASYNCIO = "asyncio_default_fixture_loop_scope = function\nasyncio_mode = "
NOT_NEEDED = ("anyio", "hypothesispytest", "randomly", "timeout")
"""Plugins of pytest that the environment of these tests has. To load them takes as long as all the rest of a short run."""

IMPORTED_BEFORE = "    ignore:Module already imported so cannot be rewritten; anyio\n"
"""pytest would have rewritten this one, which has a plugin, where openai had not been imported before pytest."""

SYNC_TESTS = """
    import pytest
    from agentlightning import OtelTracer, emit_reward
    from agentlightning.testing import Answer

    @pytest.mark.parametrize("number", range(6))
    def test_rows(number, lightning_store, captured_spans, fake_openai):
        ids = (1, 2, number)
        fake_openai.enqueue(Answer.of("Paris", prompt_token_ids=ids, ids="always", logprobs="always"))
        messages = [{"role": "user", "content": "Which city?"}]
        with OtelTracer().lifespan(lightning_store) as tracer, tracer.trace_context("city"):
            answer = fake_openai.client().chat.completions.create(model="m", messages=messages)
            emit_reward(float(number))
        (row,) = captured_spans.triplets()
        assert answer.choices[0].message.content == "Paris"
        assert row.prompt["token_ids"] == list(ids)
        assert row.reward == number
        assert len(captured_spans.model_calls()) == len(captured_spans.named("city")) == 1
"""

WATCHING_CONFTEST = """
    import builtins, concurrent.futures.thread, os, signal, sys, threading

    import openai, opentelemetry.trace, pytest, requests.sessions

    from agentlightning.testing import FakeOpenAI

    NAMES = ("builtins", "concurrent.futures.thread", "openai", "opentelemetry.trace", "requests", "threading")
    HTTP = ("httpx", "httpx2", "httpcore", "httpcore2", "urllib3", "anyio", "opentelemetry.context")

    def watched():
        roots = (*NAMES, *HTTP)
        return [name for name in sys.modules if name in roots or name.startswith(tuple(f"{r}." for r in HTTP))]

    def everything():
        # Module or class, name -> the very object, which the snapshot keeps alive.
        found = {}
        for module in watched():
            for name, value in list(vars(sys.modules[module]).items()):
                found[module, name] = value
                if issubclass(type(value), type):  # isinstance would wake the lazy proxies of openai
                    found.update({(module, name, inner): each for inner, each in list(vars(value).items())})
        environment = {("env", name): sys.intern(value) for name, value in os.environ.items()}
        environment.pop(("env", "PYTEST_CURRENT_TEST"), None)
        handlers = {("signal", number): signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        threads = {("thread", thread): thread for thread in threading.enumerate()}
        return {**found, **environment, **handlers, **threads}

    before = {}

    @pytest.fixture(scope="session", autouse=True)
    def snapshot():
        with FakeOpenAI() as server:  # what clients set up by themselves at their first call is no change of ours
            server.client().completions.create(model="m", prompt="x")
            with requests.Session() as session:
                [session.get(server.url) for _ in range(2)]
        before.update(everything())

    def changes():
        now = everything()
        kinds = ("env", "thread")
        changed = {key for key, value in before.items() if now.get(key) is not value}
        return changed | {key for key in now.keys() - before.keys() if key[0] in kinds}
"""
"""A conftest.py that tells which globals are not the objects that they were."""


def run_pytest(
    folder: Path,
    tests: str,
    *arguments: str,
    ini: str = "",
    env: Mapping[str, str] = {},
    before: Sequence[str] = ("-m", "pytest"),
    without: Sequence[str] = NOT_NEEDED,
    warm: Warm | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run pytest, in which every warning is an error, over one file of tests.

    Args:
        folder: Where the file is.
        tests: What it says.
        arguments: For pytest.
        ini: More of the file of settings.
        env: Variables beside those that are inherited.
        before: How the interpreter starts pytest.
        without: Plugins that are not loaded.
        warm: What starts it, in place of an interpreter of its own.
    """
    allowed = IMPORTED_BEFORE if warm is not None else ""
    (folder / "pytest.ini").write_text(
        f"[pytest]\nfilterwarnings =\n    error\n{allowed}{ini}\n", encoding="utf-8"
    )
    (folder / "test_sample.py").write_text(dedent(tests), encoding="utf-8")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    blocked = [f"-pno:{name}" for name in ("cacheprovider", *without)]
    command = [*before, "-q", *blocked, *arguments, "test_sample.py"]
    if warm is not None:
        return warm.run(command, cwd=folder, env={**inherited, **env})
    return subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env={**inherited, **env},
        capture_output=True,
        text=True,
        check=False,
    )


def assert_passed(done: subprocess.CompletedProcess[str], count: int) -> None:
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{count} passed" in done.stdout, done.stdout
