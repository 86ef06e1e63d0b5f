"""SkyRL's server with the Tinker API (``skyrl-tx``), as a process of its own, on loopback and on the CPU."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

START_SECONDS = 120.0
"""It imports JAX, FastAPI and the tables of its database before it listens."""
END_SECONDS = 10.0
LOOK_SECONDS = 0.5
SHOWN = 3_000
"""Characters of its log that an error shows."""


class SkyRLServer:
    """Serves a model inside a ``with``; what it writes goes to ``folder``, which also keeps its log.

    Args:
        model: Folder of a Llama, a Qwen 3 or a DeepSeek V3, with its tokenizer.
        folder: An empty one. No project file may lie in it or above it: ``uv run`` would install that project.
        adapters: LoRA adapters that can be trained at a time, and one more.
        batch: Answers that are sampled together, and twice the rows of a pass: JAX compiles for these sizes.

    Raises:
        RuntimeError: It does not come up; the message ends with its log.
    """

    def __init__(
        self, model: Path, folder: Path, *, adapters: int = 2, rank: int = 32, batch: int = 32
    ) -> None:
        self._folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        backend: dict[str, Any] = {
            "max_lora_adapters": adapters,
            "max_lora_rank": rank,
            "sample_max_num_sequences": batch,
            "train_micro_batch_size": batch // 2,
        }
        self._command = [
            sys.executable, "-m", "tx.tinker.api", "--base-model", str(model),
            "--host", "127.0.0.1", "--port", str(self._port), "--backend-config", json.dumps(backend),
            "--checkpoints-base", str(folder / "checkpoints"), "--database-url", f"sqlite:///{folder / 'tinker.db'}",
        ]  # fmt: skip

    @property
    def url(self) -> str:
        """For ``tinker.ServiceClient(base_url=…)``."""
        return f"http://127.0.0.1:{self._port}"

    async def ended(self) -> NoReturn:
        """Wait until the server ends by itself, which Tinker's client takes for a bad connection, and tries on.

        Raises:
            RuntimeError: It has ended; the message ends with its log.
        """
        while self._process.poll() is None:  # noqa: ASYNC110 - it tells nobody of its end
            await asyncio.sleep(LOOK_SECONDS)
        raise self._ended()

    def __enter__(self) -> Self:
        environment = {
            **os.environ,
            # It starts its engine by "uv run", which has to be found, and has to find this Python.
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
            "VIRTUAL_ENV": sys.prefix,
            "JAX_PLATFORMS": "cpu",
            "HF_HUB_OFFLINE": "1",
            "COLUMNS": "200",  # of its log
        }
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command,
                cwd=self._folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # so that its engine ends with it
            )
        try:
            self._wait()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._end()

    @property
    def _log(self) -> Path:
        return self._folder / "server.log"

    def _wait(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise self._ended()
            try:
                with urllib.request.urlopen(f"{self.url}/api/v1/healthz", timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        raise RuntimeError(f"SkyRL's server did not answer within {START_SECONDS:.0f} s:\n{self._said()}")

    def _ended(self) -> RuntimeError:
        return RuntimeError(f"SkyRL's server ended with {self._process.returncode}:\n{self._said()}")

    def _said(self) -> str:
        return self._log.read_text(errors="replace")[-SHOWN:]

    def _end(self) -> None:
        self._process.terminate()
        try:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(END_SECONDS)
        finally:
            # Whatever is left of its session: the engine does not always follow.
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
