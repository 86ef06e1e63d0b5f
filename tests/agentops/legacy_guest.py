"""An agent under a managed AgentOps 0.2 or 0.3, and what the process looks like around it; one line of JSON."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import threading
from importlib import import_module
from typing import Any

from opentelemetry import trace

from agentlightning.instrumentation.guard import Guard, reraise
from agentlightning.integrations.agentops.legacy import record_events
from agentlightning.integrations.agentops.probe import probe
from agentlightning.store import InMemoryLightningStore
from agentlightning.tracer import OtelTracer

calls: list[str] = []


def note(event: str, arguments: Any) -> None:
    """Note whatever goes to the network; that urllib3 tries to bind to ::1 when it is imported goes nowhere."""
    if event in {"socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"}:
        calls.append(f"{event} {arguments[1:]}")


def surroundings() -> dict[str, Any]:
    """What a guest leaves as it is."""
    return {
        "SIGINT": signal.getsignal(signal.SIGINT),
        "SIGTERM": signal.getsignal(signal.SIGTERM),
        "excepthook": sys.excepthook,
        "threads": set(threading.enumerate()),
    }


def agent(agentops: Any, imported_before: Any) -> None:
    """Use everything that may want to call home, also an ``init`` that the agent had imported by name before."""
    agentops.init("00000000-0000-4000-8000-000000000001", max_wait_time=10)
    agentops.add_tags(["one"])
    agentops.set_tags(["two"])
    agentops.create_agent("worker")
    for number in range(5):
        agentops.record(agentops.ActionEvent(action_type="step", params={"number": number}))
    agentops.record(
        agentops.ErrorEvent(exception=ValueError("no"), trigger_event=agentops.ToolEvent(name="add"))
    )
    agentops.end_session("Success", "done")
    if agentops.start_session() is None:
        raise RuntimeError("no second session")
    agentops.end_session("not a state")
    imported_before("00000000-0000-4000-8000-000000000001")
    agentops.stop_instrumenting()
    agentops.set_parent_key("00000000-0000-4000-8000-000000000002")
    if agentops.get_api_key() is None:
        raise RuntimeError("no key")


async def main() -> None:
    store = InMemoryLightningStore()
    tracer = OtelTracer(policy=reraise)
    tracer.init()
    tracer.init_worker(0, store)
    imported_before = import_module("agentops").init
    before = surroundings()
    sys.addaudithook(note)
    patches = record_events(probe(), trace.get_tracer_provider(), Guard(reraise), start=True)
    attempt = await store.start_rollout(input="x")
    rollout_id, attempt_id = attempt.rollout_id, attempt.attempt.attempt_id
    async with tracer.trace_context(rollout_id=rollout_id, attempt_id=attempt_id):
        agent(import_module("agentops"), imported_before)
    for thread in set(threading.enumerate()) - before["threads"]:
        thread.join(5)  # a thread that has nothing to do may be about to end
    within = surroundings()
    patches.undo()
    told = {
        "calls": list(calls),
        "changed": [name for name, value in before.items() if within[name] != value],
        "spans": [
            span.name for span in await store.query_spans(rollout_id, attempt_id) if span.name != "rollout"
        ],
    }
    tracer.teardown_worker(0)
    print(json.dumps(told))


if __name__ == "__main__":
    asyncio.run(main())
