"""Phoenix and MLflow as programs of their own environments, on loopback, with a database in a folder.

Their interpreters stand in ``AGL_PHOENIX_PYTHON`` and ``AGL_MLFLOW_PYTHON``; ``scripts/matrix-viewers`` sets both.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests

from agentlightning.testing import wait_until

# Read at once: no test sees a variable of ours.
PHOENIX, MLFLOW = (os.environ.get(name, "") for name in ("AGL_PHOENIX_PYTHON", "AGL_MLFLOW_PYTHON"))
_QUIET = {
    "PHOENIX_TELEMETRY_ENABLED": "false",
    "PHOENIX_ALLOW_EXTERNAL_RESOURCES": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "DO_NOT_TRACK": "true",
}
"""Nothing is sent home."""


@contextmanager
def phoenix(folder: Path) -> Iterator[str]:
    """Yield the URL of a Phoenix with an empty database."""
    http, grpc = _free_port(), _free_port()
    settings = {
        "PHOENIX_HOST": "127.0.0.1",
        "PHOENIX_PORT": str(http),
        "PHOENIX_GRPC_PORT": str(grpc),
        "PHOENIX_WORKING_DIR": str(folder),
    }
    command = [PHOENIX, "-m", "phoenix.server.main", "serve"]
    with _running(command, settings, folder, f"http://127.0.0.1:{http}/healthz"):
        yield f"http://127.0.0.1:{http}"


@contextmanager
def mlflow(folder: Path) -> Iterator[str]:
    """Yield the URL of an MLflow with an empty database."""
    port = _free_port()
    command = [MLFLOW, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"]
    with _running(command, {}, folder, f"http://127.0.0.1:{port}/health"):
        yield f"http://127.0.0.1:{port}"


@contextmanager
def _running(command: list[str], settings: dict[str, str], folder: Path, health: str) -> Iterator[None]:
    environment = {**os.environ, **_QUIET, **settings, "HOME": str(folder)}
    with (folder / "log").open("wb") as log:
        # A session of its own: all of its workers can be ended.
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        wait_until(lambda: _is_up(process, health, folder), deadline=300, what=f"{health} answers")
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _is_up(process: subprocess.Popen[bytes], health: str, folder: Path) -> bool:
    assert process.poll() is None, (folder / "log").read_text(encoding="utf-8", errors="replace")[-3000:]
    try:
        return requests.get(health, timeout=10).ok
    except requests.ConnectionError:
        return False


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def phoenix_spans(url: str) -> list[dict[str, Any]]:
    """Return the spans that Phoenix has."""
    return _get(f"{url}/v1/projects/default/spans", {"limit": 1000})


def phoenix_annotations(url: str, span_ids: list[str]) -> list[dict[str, Any]]:
    """Return the annotations of spans in Phoenix."""
    return _get(f"{url}/v1/projects/default/span_annotations", {"span_ids": span_ids, "limit": 1000})


def _get(url: str, asked: dict[str, Any]) -> list[dict[str, Any]]:
    answer = requests.get(url, params=asked, timeout=60)
    if answer.status_code == 404:  # no project before the first span
        return []
    answer.raise_for_status()
    found: list[dict[str, Any]] = answer.json()["data"]
    return found


def mlflow_traces(url: str) -> list[dict[str, Any]]:
    """Return the traces that MLflow has, as its own client reads them."""
    done = subprocess.run(
        [MLFLOW, str(Path(__file__).with_name("mlflow_reader.py")), url],
        stdout=subprocess.PIPE,
        check=True,
        env={**os.environ, **_QUIET},
    )
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found
