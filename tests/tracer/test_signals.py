"""Exceptions from signal handlers, at every moment at which CPython can run one.

A handler runs in the main thread where a Python function begins or a call of a built-in returns. A profile function is
called at exactly these moments, and what it raises takes the same way as what a handler raises; so each moment of an
operation can be tried, one after the other, and none is left to chance.
"""

from __future__ import annotations

import pytest
from warm import Warm

EVERY_MOMENT = """
import asyncio, sys, threading, time
from opentelemetry import trace
from agentlightning.store import open_store
from agentlightning.tracer import OtelTracer

class Interrupted(KeyboardInterrupt):
    pass

def interrupt_at(moment):
    seen = 0
    def look(frame, event, arg):
        nonlocal seen
        if event not in ("call", "c_return", "c_exception"):
            return
        if frame.f_code.co_filename.endswith(("logging/__init__.py", "weakref.py")):
            return  # the standard library's own lock, which it cannot protect either
        seen += 1
        if seen == moment:
            sys.setprofile(None)
            raise Interrupted
    return look

def interrupted(operation, moment):
    # whether the operation was long enough to be interrupted at this moment
    sys.setprofile(interrupt_at(moment))
    try:
        operation()
        return False
    except Interrupted:
        return True
    finally:
        sys.setprofile(None)

store = open_store(args["url"])
started = asyncio.run(store.start_rollout(input=None))
ids = started.rollout_id, started.attempt.attempt_id
tracer = OtelTracer(max_wait_time=20_000)

def enter():
    with tracer.trace_context("task", store=store, rollout_id=ids[0], attempt_id=ids[1]):
        trace.get_tracer("agent").start_span("step").end()

def enter_and_start():
    with tracer.trace_context("task"):
        trace.get_tracer("agent").start_span("step").end()

def record():
    trace.get_tracer("agent").start_span("step").end()

def flush():
    trace.get_tracer("agent").start_span("step").end()
    tracer.processor.force_flush(20_000)

def works():
    # from a thread: whether store and writer answer to others
    answers = []
    def ask():
        asyncio.run(store.update_attempt(*ids, worker_id="w"))
        answers.append(tracer.processor.force_flush(20_000) or True)
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(120)
    return bool(answers)

tracer.init()
tracer.init_worker(0, store)
operation = {f.__name__: f for f in (enter, enter_and_start, record, flush)}[args["operation"]]
operation()  # imports, and threads that are made once
moment, tried = args["first"], 0
while interrupted(operation, moment):
    tried += 1
    if tried % 10 == 0 and not works():
        report({"stuck after": moment})
        break
    moment += args["step"]
report({"tried": tried, "works": works()})
record()
tracer.teardown()
spans = asyncio.run(store.query_spans(*ids))
receipt = asyncio.run(store.get_receipt(*ids))
report({"balanced": receipt.balanced, "twice": len(spans) - len({s.span_id for s in spans})})
asyncio.run(store.close())
report("ended")
"""


@pytest.mark.parametrize(
    ("operation", "step"),
    [
        ("record", 5),
        ("flush", 5),
        ("enter", 13),
        ("enter_and_start", 19),
        *(
            pytest.param(operation, 1, marks=pytest.mark.soak)
            for operation in ("record", "flush", "enter", "enter_and_start")
        ),
    ],
)
def test_an_interruption_at_any_moment_stops_neither_store_nor_writer(
    recording: Warm, tmp_path: object, operation: str, step: int
) -> None:
    arguments = {"url": f"sqlite:///{tmp_path}/runs.db", "operation": operation, "first": 1, "step": step}
    with recording.start_child(EVERY_MOMENT, args=arguments) as child:
        tried, kept, ended = child.finish(deadline=600)
    assert tried["works"], tried
    assert tried["tried"] > 5
    assert kept == {"balanced": True, "twice": 0}
    assert ended == "ended"
