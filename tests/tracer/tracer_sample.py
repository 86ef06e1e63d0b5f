"""What the tests of the tracer share: attempts to record under, and reading them back."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

from opentelemetry import trace
from warm import Warm

from agentlightning.dialects.model_call import VALID, Choice, ModelCall
from agentlightning.dialects.spans.genai import call_attributes
from agentlightning.store import LightningStore
from agentlightning.types import Receipt, Span

_answers = itertools.count(1)


async def new_attempt(store: LightningStore, name: object = "task") -> tuple[str, str]:
    """Start a rollout; returns the ids of it and of its attempt."""
    started = await store.start_rollout(input=name)
    return started.rollout_id, started.attempt.attempt_id


def spans_in(store: LightningStore, ids: tuple[str, str]) -> list[Span]:
    """Read an attempt's spans from synchronous code."""
    return list(asyncio.run(read(store, ids)))


async def read(store: LightningStore, ids: tuple[str, str]) -> list[Span]:
    """Read an attempt's spans."""
    return list(await store.query_spans(*ids))


_RECORDING = """
import asyncio, os
from opentelemetry import trace
from agentlightning.store import open_store
from agentlightning.testing import FaultyStore
from agentlightning.tracer import OtelTracer
from agentlightning.recorder.settings import WriterSettings

store = open_store(args["url"])
started = asyncio.run(store.start_rollout(input=None))
ids = started.rollout_id, started.attempt.attempt_id
report(ids)
"""


def recorded_until_killed(recording: Warm, program: str, url: str, **args: Any) -> tuple[str, str]:
    """Run a program that records in a store, under ``ids``, and kills itself; returns the ids."""
    with recording.start_child(_RECORDING + program, args={"url": url, **args}) as child:
        ids = child.next_report(deadline=60)
        child.wait(deadline=60)
    assert child.reports == [ids], "it has survived"
    return tuple(ids)


def assert_balanced(receipt: Receipt) -> None:
    """Started = stored + dropped + open, whatever happened."""
    assert receipt.balanced, receipt


def model_call(*token_ids: int) -> dict[str, Any]:
    """Return what a span of a model call says that can be trained."""
    choice = Choice(0, "stop", token_ids=token_ids, logprobs=(-0.5,) * len(token_ids))
    call = ModelCall(
        token_capture=VALID,
        response_id=f"answer-{next(_answers)}",
        prompt_token_ids=(1, 2, 3),
        choices=(choice,),
        sampling_requested={"temperature": 1.0},
        sampling_effective={"temperature": 1.0},
        logprob_kind="processed",
    )
    return call_attributes(call)


def ask(*token_ids: int) -> None:
    """Call the model, as far as a trace shows it."""
    trace.get_tracer("agent").start_span("chat", attributes=model_call(*token_ids)).end()
