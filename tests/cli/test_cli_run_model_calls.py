"""The whole way from the command line: an unchanged script with the official client, run, shown, made into rows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from cli_sample import agl
from warm import Warm

from agentlightning.testing import FakeOpenAI

SCRIPT = """
from openai import OpenAI

with OpenAI() as client:
    answer = client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "2 + 3?"}])
    print(answer.choices[0].message.content)
"""

ANSWER = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 0,
    "model": "tiny",
    "prompt_token_ids": [11, 12, 13],
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "five"},
            "finish_reason": "stop",
            "token_ids": [21, 22],
            "logprobs": {
                "content": [
                    {"token": "fi", "logprob": -0.25, "bytes": None, "top_logprobs": []},
                    {"token": "ve", "logprob": -0.5, "bytes": None, "top_logprobs": []},
                ]
            },
        }
    ],
    "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
}


class Model(BaseHTTPRequestHandler):
    """Answers every request with the same completion."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        body = json.dumps(ANSWER).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Say nothing."""


@pytest.fixture
def endpoint() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Model) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("said", "logprobs", "codes"),
    [
        ({}, None, ["logprobs_unproven", "no_reward"]),
        ({"AGL_SAMPLING_DEFAULTS": "{}"}, [-0.25, -0.5], ["no_reward"]),
        ({"AGL_SAMPLING_DEFAULTS": '{"top_k": 20}'}, None, ["logprobs_unproven", "no_reward"]),
    ],
    ids=["nothing", "no defaults", "cut"],
)
def test_an_unchanged_script_becomes_training_rows(
    recording: Warm,
    endpoint: str,
    tmp_path: Path,
    said: dict[str, str],
    logprobs: list[float] | None,
    codes: list[str],
) -> None:
    url = f"sqlite:///{tmp_path}/runs.db"
    (tmp_path / "agent.py").write_text(SCRIPT, encoding="utf-8")
    done = recording.run(
        ["-m", "agentlightning.cli", "run", "--store", url, "--", sys.executable, "agent.py"],
        cwd=tmp_path,
        env={**os.environ, "OPENAI_BASE_URL": endpoint, "OPENAI_API_KEY": "none", **said},
    )
    assert (done.returncode, done.stdout) == (0, "five\n"), done.stderr
    assert "3 → 2" in agl("show", "latest", "--store", url).out
    assert "valid: the ids are those that were sampled" in agl("show", "--call", "1", "--store", url).out
    (row,) = json.loads(agl("triplets", "latest", "--json", "--store", url).out)
    assert row["prompt"]["token_ids"] == [11, 12, 13]
    assert row["response"]["token_ids"] == [21, 22]
    entries = row["response"]["logprobs"]
    assert (entries and [entry["logprob"] for entry in entries]) == logprobs
    assert row["reward"] is None
    explained = agl("explain", "latest", "--store", url)
    assert explained.code == 0
    assert all(code in explained.out for code in codes)
    assert ("AGL_SAMPLING_DEFAULTS=" in explained.out) == ("logprobs_unproven" in codes and not said)


def test_the_summary_names_a_model_server_whose_calls_nobody_saw(recording: Warm, tmp_path: Path) -> None:
    with FakeOpenAI() as server:
        port = server.url.rpartition(":")[2]
        code = (
            f"import socket; s = socket.create_connection(('127.0.0.1', {port})); "
            "s.sendall(b'GET /v1/models HTTP/1.1\\r\\nhost: x\\r\\n\\r\\n'); s.recv(9); s.close()"
        )
        done = _run(recording, tmp_path, code, {"OPENAI_BASE_URL": server.base_url})
    assert (
        f"connected to the model server localhost:{port}, and no model call of it was captured" in done.stderr
    )


def test_the_summary_says_where_a_program_with_spans_called_no_model(recording: Warm, tmp_path: Path) -> None:
    done = _run(
        recording,
        tmp_path,
        "from opentelemetry import trace; trace.get_tracer('t').start_span('agent').end()",
        {},
    )
    assert "none of them is a model call" in done.stderr
    assert "cache" in done.stderr


def _run(recording: Warm, tmp_path: Path, code: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    url = f"sqlite:///{tmp_path}/runs.db"
    done = recording.run(
        ["-m", "agentlightning.cli", "run", "--store", url, "--", sys.executable, "-c", code],
        env={**os.environ, **env},
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    return done
