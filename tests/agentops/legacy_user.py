"""A program that has set AgentOps 0.2 or 0.3 up itself, recorded beside it; one line of JSON on stdout.

    python legacy_user.py http://127.0.0.1:8002 before|after|guest http://127.0.0.1:9000/v1

The URL is that of the server that its AgentOps sends to. The word tells whether it starts AgentOps before or after we
begin to record; with ``guest`` before, and then we start ours beside it for a while. The last URL is that of a model server; its client is imported before AgentOps starts, so AgentOps
patches it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from importlib import import_module
from typing import Any

from opentelemetry import trace

from agentlightning.instrumentation.guard import Guard, reraise
from agentlightning.integrations.agentops.legacy import record_events
from agentlightning.integrations.agentops.probe import probe
from agentlightning.store import InMemoryLightningStore
from agentlightning.tracer import OtelTracer

KEY = "00000000-0000-4000-8000-000000000001"
EVENTS = 250
"""More than the queue holds by default up to 0.3.10: 100."""

lines: list[str] = []


class Listening(logging.Handler):
    """Keeps what we warn of."""

    def emit(self, record: logging.LogRecord) -> None:
        lines.append(record.getMessage())


def start(agentops: Any, url: str) -> None:
    """What the program does at its start; the question to pypi.org has no switch of its own."""
    if hasattr(agentops, "check_agentops_update"):
        agentops.check_agentops_update = lambda: None
    agentops.init(KEY, endpoint=url)


def agent(agentops: Any, model_url: str, events: int) -> None:
    """Fill the queue, fail, call a model and end."""
    for number in range(events):
        agentops.record(agentops.ActionEvent(action_type="step", params={"number": number}, agent_id=None))
    agentops.record(
        agentops.ErrorEvent(exception=ValueError("no"), trigger_event=agentops.ToolEvent(name="add"))
    )
    with import_module("openai").OpenAI(base_url=model_url, api_key="unused") as client:
        client.chat.completions.create(model="policy", messages=[{"role": "user", "content": "hi"}])
    agentops.end_session("Success", "done")


async def main(url: str, when: str, model_url: str) -> None:
    logging.getLogger("agentlightning").addHandler(Listening())
    import_module("openai")
    store = InMemoryLightningStore()
    tracer = OtelTracer(policy=reraise)
    tracer.init()
    tracer.init_worker(0, store)
    if when != "after":
        start(import_module("agentops"), url)
    as_guest = when == "guest"
    patches = record_events(probe(), trace.get_tracer_provider(), Guard(reraise), start=as_guest)
    imported = "agentops" in sys.modules
    agentops = import_module("agentops")
    if when == "after":
        start(agentops, url)
    attempt = await store.start_rollout(input="x")
    rollout_id, attempt_id = attempt.rollout_id, attempt.attempt.attempt_id
    async with tracer.trace_context(rollout_id=rollout_id, attempt_id=attempt_id):
        # A session from before has the lock that hangs, which we only warn of.
        agent(agentops, model_url, EVENTS if when == "after" else 20)
    spans = await store.query_spans(rollout_id, attempt_id)
    patches.undo()
    if as_guest:
        agentops.record(agentops.ActionEvent(action_type="of the user", agent_id=None))
        agentops.end_session("Success")
    tracer.teardown_worker(0)
    told = {
        "imported": imported,
        "names": [span.name for span in spans],
        "kinds": [span.attributes.get("agentops.span.kind") for span in spans],
        "spans": [[span.name, span.status.status_code, dict(span.attributes)] for span in spans],
        "lines": lines,
    }
    print(json.dumps(told, default=str))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
