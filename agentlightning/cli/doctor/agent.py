"""The agent of the canary, in a process of its own: asks a model on this machine in every style, while it is recorded.

``python -m agentlightning.cli.doctor.agent STORE_URL RESULT`` writes what the agent saw to the file ``RESULT``. The
tracer is the one that a user would take: ``AgentOpsTracer`` where agentops is installed.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ...instrumentation.patch import Patch, Patches
from ...integrations.agentops.probe import probe
from ...integrations.agentops.tracer import AgentOpsTracer
from ...store.registry import open_store
from ...testing.fake_openai import FakeOpenAI
from ...tracer.otel import OtelTracer
from .calls import ASYNC, QUESTION, SYNC, TOOL, Call

MAX_WAIT_TIME = 300_000
"""Milliseconds; a busy machine is not a broken one."""
_TIMEOUT = 300.0
"""Seconds for an answer of the model, for the same reason."""


class _Log(logging.Handler):
    """Keeps what is said at WARNING and above: the person has to know."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[tuple[str, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append((record.levelname, record.getMessage()))


class _OpenAI:
    """Calls through the ``openai`` that is installed."""

    name = "openai"

    def __init__(self, server: FakeOpenAI) -> None:
        # Without retries: a second request would be a second span, and the canary counts them.
        self._sync: Any = server.client(max_retries=0)
        self._async: Any = server.async_client(max_retries=0)

    def ask(self, *, stream: bool) -> str:
        answer: Any = self._sync.chat.completions.create(**QUESTION, tools=[TOOL], stream=stream)
        return _joined(list(answer)) if stream else _said(answer.choices[0].message)

    async def ask_async(self, *, stream: bool) -> str:
        answer: Any = await self._async.chat.completions.create(**QUESTION, tools=[TOOL], stream=stream)
        return _joined([chunk async for chunk in answer]) if stream else _said(answer.choices[0].message)


def _said(message: Any) -> str:
    calls = "".join(f"{call.function.name}({call.function.arguments})" for call in message.tool_calls or ())
    return calls or str(message.content)


def _joined(chunks: list[Any]) -> str:
    """Return what a stream says in all."""
    text, names, arguments = "", "", ""
    for chunk in chunks:
        for choice in chunk.choices:
            text += choice.delta.content or ""
            for call in choice.delta.tool_calls or ():
                names += call.function.name or ""
                arguments += call.function.arguments or ""
    return f"{names}({arguments})" if names else text


class _Http:
    """Calls over HTTP where no ``openai`` is installed: plain ones only."""

    def __init__(self, server: FakeOpenAI, name: str) -> None:
        self.name = name
        self._library: Any = import_module(name)
        self._url = f"{server.base_url}/chat/completions"

    def ask(self, *, stream: bool) -> str:
        with self._library.Client(trust_env=False, timeout=_TIMEOUT) as client:
            return _of_http(client.post(self._url, json={**QUESTION, "stream": stream}).text, stream=stream)

    async def ask_async(self, *, stream: bool) -> str:
        async with self._library.AsyncClient(trust_env=False, timeout=_TIMEOUT) as client:
            answer = await client.post(self._url, json={**QUESTION, "stream": stream})
            return _of_http(answer.text, stream=stream)


def _of_http(body: str, *, stream: bool) -> str:
    texts = [line[5:] for line in body.splitlines() if line.startswith("data: {")] if stream else [body]
    text, names, arguments = "", "", ""
    for choice in (choice for each in texts for choice in json.loads(each)["choices"]):
        message: dict[str, Any] = choice.get("delta") or choice.get("message") or {}
        text += message.get("content") or ""
        for call in message.get("tool_calls") or ():
            names += call["function"].get("name") or ""
            arguments += call["function"]["arguments"]
    return f"{names}({arguments})" if names else text


def client_of(server: FakeOpenAI) -> Any | None:
    """Return what calls the model: ``openai``, else an HTTP library, else nothing."""
    if find_spec("openai") is not None:
        return _OpenAI(server)
    name = next((name for name in ("httpx", "httpx2") if find_spec(name) is not None), None)
    return _Http(server, name) if name else None


def in_force() -> list[str]:
    """Return what every patch that is in force now says of itself."""
    # Patches are not kept in a list anywhere; the garbage collector knows every object.
    # Their types are looked at: isinstance() reads __class__, with which what is lazy in openai loads half of it.
    found = [each for each in gc.get_objects() if _is_single_patch(type(each))]
    return sorted({each.description for each in found if each.active})


def _is_single_patch(kind: type) -> bool:
    return issubclass(kind, Patch) and not issubclass(kind, Patches)


def main(url: str, result: Path) -> None:
    """Be the agent."""
    log = _Log()
    logging.getLogger("agentlightning").addHandler(log)
    # As a user would choose; the two record by different ways.
    kind = OtelTracer if probe().range == "none" else AgentOpsTracer
    tracer: OtelTracer = kind(max_wait_time=MAX_WAIT_TIME)
    store = open_store(url)
    seen: dict[str, str] = {}
    with FakeOpenAI() as server, tracer.lifespan(store):
        client = client_of(server)
        patches = in_force()
        _work(tracer, server, client, seen)
    asyncio.run(store.close())
    found = {
        "tracer": kind.__name__,
        "client": client.name if client else None,
        "seen": seen,
        "patches": patches,
        "left": in_force(),
        "log": log.said,
    }
    result.write_text(json.dumps(found), encoding="ascii")


def _work(tracer: OtelTracer, server: FakeOpenAI, client: Any, seen: dict[str, str]) -> None:
    def answered(call: Call, ask: Callable[[], str]) -> None:
        server.enqueue(call.answer)
        seen[call.style] = ask()

    with tracer.trace_context("agl doctor"), ThreadPoolExecutor(1) as threads:
        for call in SYNC if client else ():
            stream = "streamed" in call.style
            if "thread" in call.style:
                answered(call, lambda: threads.submit(client.ask, stream=False).result())
            else:
                answered(call, partial(client.ask, stream=stream))

    async def later() -> None:
        async with tracer.trace_context("agl doctor, async"):
            for call in ASYNC if client else ():
                server.enqueue(call.answer)
                seen[call.style] = await client.ask_async(stream="streamed" in call.style)

    asyncio.run(later())


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
