"""What capturing a chat call at the wire costs: the ``openai`` client against a loopback server, with and without us.

The server runs in a process of its own and answers the same bytes every time: 512 ids of the prompt, some dozens of
sampled tokens with ids and log-probabilities, plain or streamed in one chunk per token. Whoever is measured asks for
them itself, so that both cases see the same bytes.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from harness import Figure, Line, Sample, Size, Subject, percentile, served

if TYPE_CHECKING:
    from openai import OpenAI

WARM_UP = 10
ANSWER_TOKENS = 48


def serve(size: Size) -> Sample:
    """Serve until standard input ends."""
    del size
    from agentlightning.testing.fake_openai import Answer, FakeOpenAI

    text = " ".join(f"word{number}" for number in range(ANSWER_TOKENS))
    answer = Answer.of(text, prompt_token_ids=tuple(range(512)), ids="always", logprobs="always")
    with FakeOpenAI(answer) as server:
        print(server.base_url, flush=True)
        sys.stdin.read()
    return {}


@contextmanager
def server(size: Size) -> Iterator[Size]:
    """Run the server beside the rounds."""
    with served("wire_capture", "serve", size) as base_url:
        yield {**size, "base_url": base_url}


def _calls(client: OpenAI, count: int) -> Sample:
    messages: Any = [{"role": "user", "content": "What is 2 + 2? Think, then answer with one number."}]

    def plain() -> None:
        answer = client.chat.completions.create(model="fake-model", messages=messages, logprobs=True)
        assert answer.choices[0].message.content

    def streamed() -> None:
        stream = client.chat.completions.create(
            model="fake-model", messages=messages, logprobs=True, stream=True
        )
        assert sum(1 for _ in stream) >= ANSWER_TOKENS

    sample: dict[str, float] = {}
    for kind, call in (("plain", plain), ("streamed", streamed)):
        for _ in range(min(WARM_UP, count)):
            call()
        taken = []
        cpu, thread = time.process_time(), time.thread_time()
        for _ in range(count):
            began = time.perf_counter()
            call()
            taken.append((time.perf_counter() - began) * 1000)
        sample[f"{kind}_thread"] = (time.thread_time() - thread) / count * 1000
        sample[f"{kind}_cpu"] = (time.process_time() - cpu) / count * 1000
        sample[f"{kind}_p50"] = percentile(taken, 50)
        sample[f"{kind}_p99"] = percentile(taken, 99)
    return sample


def without(size: Size) -> Sample:
    """The client alone."""
    from openai import OpenAI

    with OpenAI(base_url=size["base_url"], api_key="unused") as client:
        return _calls(client, size["calls"])


def ours(size: Size) -> Sample:
    """The client inside ``trace_context``, spans into SQLite."""
    import asyncio

    from openai import OpenAI

    from agentlightning import OtelTracer
    from agentlightning.store import open_store

    store = open_store(f"sqlite:///{size['folder']}/spans.db")
    with (
        OtelTracer(max_wait_time=60_000).lifespan(store) as tracer,
        OpenAI(base_url=size["base_url"], api_key="unused") as client,
    ):
        with tracer.trace_context("rollout") as trace:
            sample = _calls(client, size["calls"])
        spans = trace.spans()
    made = 1 + 2 * (size["calls"] + min(WARM_UP, size["calls"]))
    assert len(spans) == made, f"{len(spans)} spans of {made} calls"
    assert "valid" in spans[0].attributes.values(), spans[0].attributes
    asyncio.run(store.close())
    return sample


def _lines(kind: str) -> list[Line]:
    return [
        Line(f"{kind}, p50", "ours", f"{kind}_p50", "ms", "without", by="difference"),
        Line(f"{kind}, p50", "ours", f"{kind}_p50", "ms", "without"),
        Line(f"{kind}, p99", "ours", f"{kind}_p99", "ms", "without", by="difference"),
        Line(f"{kind}, thread", "ours", f"{kind}_thread", "ms", "without", by="difference"),
        Line(f"{kind}, processor", "ours", f"{kind}_cpu", "ms", "without", by="difference"),
    ]


FIGURE = Figure(
    name="wire_capture",
    title="A model call, captured at the wire",
    how=(
        "One chat call of the `openai` client to a server on loopback that answers at once (512 prompt ids, 48 sampled "
        "tokens with log-probabilities). With us: inside `trace_context`, spans into SQLite by the writer's thread of "
        "the same process. A real model takes a hundred times longer, so it is the difference that counts. `thread` is "
        "processor time of the agent's thread; `processor` that of all threads, the writer's decoding and SQLite "
        "included."
    ),
    subjects=(Subject("without"), Subject("ours")),
    lines=tuple(line for kind in ("plain", "streamed") for line in _lines(kind)),
    sizes={
        "tiny": {"calls": 5},
        "quick": {"calls": 100},
        "normal": {"calls": 400},
        "full": {"calls": 1000},
    },
    rounds={"tiny": 1, "quick": 3, "normal": 9, "full": 15},
    prepare=server,
)
