"""Sixteen workers with ``AgentOpsTracer`` at once, beside the same processes that only import ``agentops``.

The clock runs from the first line of the trainer's ``init`` until every worker has said that it is ready. The workers
share one local server. ``HTTP_PROXY`` names a host that does not exist. Then one process: from ``init`` until its local
server answers and until its worker is ready, beside Agent Lightning 0.2.2; and a rollout of two spans under a server
that was killed, beside the same rollout under a server that lives.
"""

from __future__ import annotations

import base64
import importlib
import os
import pickle
import signal
import subprocess
import sys
import time
from statistics import median
from typing import Any

from harness import Aim, Figure, Line, Sample, Size, Subject

WORKER = """
import base64, pickle, sys, time
tracer = pickle.loads(base64.b64decode(sys.stdin.readline()))
from agentlightning.store import open_store
tracer.init_worker(0, open_store("memory://"))
print(time.process_time(), flush=True)
sys.stdin.readline()
tracer.teardown_worker(0)
"""
IMPORT_ONLY = """
import sys, time
sys.stdin.readline()
import agentops
print(time.process_time(), flush=True)
sys.stdin.readline()
"""
OPENAI = "import openai\n"
"""What an agent imports in any case; both sides of a line have it, or neither."""
DEAD_PROXY = {"HTTP_PROXY": "http://proxy.invalid:9", "http_proxy": "http://proxy.invalid:9"}


def _all_ready(code: str, count: int, told: str) -> tuple[list[subprocess.Popen[str]], float]:
    """Start processes, tell each the same, and wait for all; also return the processor seconds of one in the middle."""
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, **DEAD_PROXY, "AGENTOPS_LOGGING_TO_FILE": "false"},
        )
        for _ in range(count)
    ]
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write(f"{told}\n")
        worker.stdin.flush()
    used = []
    for worker in workers:
        assert worker.stdout is not None
        used.append(float(worker.stdout.readline()))
    return workers, median(used)


def _end(workers: list[subprocess.Popen[str]]) -> None:
    for worker in workers:
        worker.communicate("\n")
        assert worker.returncode == 0


def ours(size: Size) -> Sample:
    """Workers with a tracer each, and one server."""
    return _ours(size, WORKER)


def ours_openai(size: Size) -> Sample:
    """The same, in workers of agents that use ``openai``."""
    return _ours(size, OPENAI + WORKER)


def _ours(size: Size, code: str) -> Sample:
    from agentlightning.tracer import AgentOpsTracer

    began = time.perf_counter()
    tracer = AgentOpsTracer(strict=True)
    tracer.init()
    workers, processor = _all_ready(code, size["workers"], base64.b64encode(pickle.dumps(tracer)).decode())
    took = time.perf_counter() - began
    _end(workers)
    tracer.teardown()
    return {"s": took, "processor": processor * 1000}


def import_only(size: Size) -> Sample:
    """The same processes, which import ``agentops`` and nothing else."""
    return _imports(size, IMPORT_ONLY)


def import_openai(size: Size) -> Sample:
    """The same processes, which import ``openai`` and ``agentops``."""
    return _imports(size, OPENAI + IMPORT_ONLY)


def _imports(size: Size, code: str) -> Sample:
    began = time.perf_counter()
    workers, processor = _all_ready(code, size["workers"], "go")
    took = time.perf_counter() - began
    _end(workers)
    return {"s": took, "processor": processor * 1000}


def server(size: Size) -> Sample:
    """The local server alone: from ``init`` until it answers; and rollouts before and after it is killed."""
    from agentlightning.store import open_store
    from agentlightning.tracer import AgentOpsTracer

    tracer = AgentOpsTracer(strict=True)
    began = time.perf_counter()
    tracer.init()
    tracer.server.wait_until_ready()
    ready = time.perf_counter() - began
    tracer.init_worker(0, open_store("memory://"))

    def rollouts() -> float:
        start = time.perf_counter()
        for _ in range(size["rollouts"]):
            with tracer.trace_context() as trace, trace.start_as_current_span("work"):
                pass
        took: float = (time.perf_counter() - start) / size["rollouts"]
        return took

    rollouts()
    alive = rollouts()
    process = tracer.server.server_process
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    dead = rollouts()
    began = time.perf_counter()
    tracer.teardown_worker(0)
    torn_down = time.perf_counter() - began
    tracer.teardown()
    return {"ready": ready * 1000, "alive": alive * 1000, "dead": dead * 1000, "torn_down": torn_down * 1000}


def one_worker(_size: Size) -> Sample:
    """One process that is trainer and worker; ``agentops`` is imported before, as importing 0.2.2 does."""
    from agentlightning.store import open_store
    from agentlightning.tracer import AgentOpsTracer

    importlib.import_module("agentops")
    tracer = AgentOpsTracer(strict=True)
    store = open_store("memory://")
    began = time.perf_counter()
    tracer.init()
    tracer.server.wait_until_ready()
    answers = time.perf_counter() - began
    tracer.init_worker(0, store)
    ready = time.perf_counter() - began
    tracer.teardown_worker(0)
    tracer.teardown()
    return {"answers": answers * 1000, "ready": ready * 1000}


def one_worker_0_2_2(_size: Size) -> Sample:
    """The same with 0.2.2, whose ``init`` returns when its server answers."""
    os.environ["NO_PROXY"] = (
        "127.0.0.1,localhost"  # it asks its own server through the proxy of the environment
    )
    from agentlightning.tracer import AgentOpsTracer

    tracer: Any = AgentOpsTracer()
    began = time.perf_counter()
    tracer.init()
    answers = time.perf_counter() - began
    tracer.init_worker(0)
    ready = time.perf_counter() - began
    tracer.teardown_worker(0)
    tracer.teardown()
    return {"answers": answers * 1000, "ready": ready * 1000}


def flask(_size: Size) -> Sample:
    """An interpreter that imports Flask, which the server must do at least."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import flask"], check=True)
    return {"ready": (time.perf_counter() - began) * 1000}


FIGURE = Figure(
    name="agentops_workers",
    title="AgentOps: workers that start, and a server that dies",
    how="Workers share one local server; the proxy of the environment does not exist. A rollout has two spans.",
    subjects=(
        Subject("ours"),
        Subject("import_only"),
        Subject("ours_openai"),
        Subject("import_openai"),
        Subject("one_worker"),
        Subject("one_worker_0_2_2", peer="0.2.2"),
        Subject("server"),
        Subject("flask"),
    ),
    lines=(
        Line("all workers ready", "ours", "s", "s", "import_only", aim=Aim("<=", 1.3)),
        Line("… processor time of one of them until then", "ours", "processor", "ms", "import_only"),
        Line("… in workers that import `openai`, too", "ours_openai", "s", "s", "import_openai"),
        Line(
            "`init()` until the local server answers, beside 0.2.2",
            "one_worker",
            "answers",
            "ms",
            "one_worker_0_2_2",
            aim=Aim("<=", 0.3),
        ),
        Line(
            "`init()` until a worker is ready, beside 0.2.2",
            "one_worker",
            "ready",
            "ms",
            "one_worker_0_2_2",
            aim=Aim("<=", 0.3),
        ),
        Line("local server ready after `init()`", "server", "ready", "ms", "flask"),
        Line("rollout under a killed server", "server", "dead", "ms", "server", "alive"),
        Line("teardown under a killed server", "server", "torn_down", "ms"),
    ),
    sizes={
        "tiny": {"workers": 1, "rollouts": 5},
        "quick": {"workers": 16, "rollouts": 100},
        "normal": {"workers": 16, "rollouts": 500},
        "full": {"workers": 16, "rollouts": 1000},
    },
    rounds={"tiny": 1, "quick": 3, "normal": 7, "full": 15},
)
