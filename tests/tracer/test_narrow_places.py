"""Places where a tracer could cost the agent something, or one span its neighbours."""

from __future__ import annotations

import asyncio
import importlib
import json
from itertools import permutations
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest
from opentelemetry import trace
from tracer_sample import new_attempt

from agentlightning.dialects.raw_call import Endpoint
from agentlightning.recorder.settings import WriterSettings
from agentlightning.store import InMemoryLightningStore, LightningStore
from agentlightning.testing import start_child
from agentlightning.tracer import OtelTracer
from agentlightning.tracer.exporter import LightningSpanExporter
from agentlightning.types import LLM, ProxyLLM


def test_a_rollout_that_is_started_for_a_context_leaves_the_agents_event_loop() -> None:
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        with OtelTracer().lifespan(InMemoryLightningStore()) as tracer, tracer.trace_context("x"):
            assert asyncio.get_event_loop() is loop
    finally:
        asyncio.set_event_loop(None)
        loop.close()


@pytest.mark.parametrize(
    ("endpoint", "asked", "others"),
    [
        ("http://gpu1", "http://gpu1/v1", ["http://gpu10/v1", "http://gpu1.stranger.com/v1"]),
        ("http://gpu2:80", "http://gpu2:80/v1", ["http://gpu2:8000/v1"]),
        ("http://gpu3/v1", "http://gpu3/v1", ["http://gpu3/v1beta"]),
        ("http://gpu3/v1/", "http://gpu3/v1", ["http://gpu3/v1beta"]),
        ("http://GPU4/v1", "http://gpu4/v1", ["http://gpu4/V1"]),
        ("HTTP://gpu4:80/v1", "http://gpu4/v1", ["https://gpu4/v1"]),
        ("https://gpu4/v1", "https://gpu4:443/v1", ["https://gpu4:80/v1"]),
        ("http://[::1]:80/v1", "http://[::1]/v1", ["http://[::2]/v1"]),
        ("http://gpu5/v1", "http://gpu5/v1", ["http://gpu5/rollout/r/attempt/a/v1"]),
    ],
)
def test_an_endpoint_is_a_whole_host_port_and_folder(endpoint: str, asked: str, others: list[str]) -> None:
    tracer = OtelTracer(capture_tokens="request", endpoints=[endpoint])
    assert tracer.endpoint_for(f"{asked}/chat/completions") is not None
    assert [tracer.endpoint_for(f"{other}/chat/completions") for other in others] == [None] * len(others)


@pytest.mark.parametrize(
    ("endpoint", "other"),
    [
        ("http://gw:80/v1", "http://gw2/rollout/r/attempt/a/v1"),
        ("http://gw/v1/", "http://gw/rollout/r/attempt/a/v2"),
        ("http://GW", "http://gw:81/rollout/r/attempt/a/v1"),
        ("http://gw/a/v1", "http://gw/rollout/r/attempt/a/v1"),
        ("http://gw/a", "http://gw/b/rollout/r/attempt/a"),
    ],
)
def test_a_call_through_a_proxy_goes_to_its_endpoint_with_and_without_the_attempt_in_its_url(
    endpoint: str, other: str
) -> None:
    proxy = ProxyLLM(endpoint=endpoint, model="m", sampling_defaults={}, logprob_kind="processed")
    tracer = OtelTracer(endpoints=[proxy])
    for base in (proxy.get_base_url(), proxy.get_base_url("ro-1", "at-1")):
        url = urlsplit(base)  # as a client sends it
        path = f"{url.path.rstrip('/')}/chat/completions"
        found = tracer.endpoint_for(f"{url.scheme}://{url.hostname}{path}")
        assert found is not None
        assert (found.sampling_defaults, found.logprob_kind) == ({}, "processed")
    assert tracer.endpoint_for(f"{other}/chat/completions") is None


def test_of_several_endpoints_the_nearest_one_speaks_of_a_call() -> None:
    whole, judge = Endpoint("http://gw/v1", {"top_k": 20}), Endpoint("http://gw/v1/judge", {})
    for known in ([whole, judge], [judge, whole]):
        tracer = OtelTracer(endpoints=known)
        assert tracer.endpoint_for("http://gw/v1/judge/chat/completions") == judge
        assert tracer.endpoint_for("http://gw/v1/chat/completions") == whole


def test_what_is_said_of_one_model_is_not_said_of_another_one_behind_the_same_server() -> None:
    url = "http://gw/v1"
    policy = LLM(endpoint=url, model="vllm/policy", sampling_defaults={}, logprob_kind="processed")
    adapter = LLM(endpoint=url, model="policy-lora", sampling_defaults={"top_k": 20}, logprob_kind="raw")
    unsaid = LLM(endpoint=url, model="judge")
    for known in permutations([policy, adapter, unsaid]):
        tracer = OtelTracer(endpoints=known)
        found = {
            model: tracer.endpoint_for(f"{url}/chat/completions", model)
            for model in ("policy", "vllm/policy", "policy-lora", "judge", "stranger", None)
        }
        said = {model: each and (each.sampling_defaults, each.logprob_kind) for model, each in found.items()}
        assert said == {
            "policy": ({}, "processed"),
            "vllm/policy": ({}, "processed"),
            "policy-lora": ({"top_k": 20}, "raw"),
            "judge": (None, "unknown"),
            "stranger": (None, "unknown"),
            None: (None, "unknown"),  # any of the three may have answered
        }
        assert all(each is not None and each.may_ask for each in found.values())


def test_what_is_said_of_an_endpoint_as_a_whole_is_said_of_its_other_models(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url = "http://gw/v1"
    whole = Endpoint(url, {"top_p": 0.9}, "raw")
    policy = LLM(endpoint=url, model="policy", sampling_defaults={})
    other = LLM(endpoint=url, model="other", sampling_defaults={"top_k": 1})

    def said(model: str | None, *known: LLM | Endpoint) -> Any:
        found = OtelTracer(endpoints=known).endpoint_for(f"{url}/chat/completions", model)
        return found and (found.sampling_defaults, found.logprob_kind)

    assert said("policy", whole, policy) == said("policy", policy, whole) == ({}, "raw")
    assert said("stranger", policy, whole) == ({"top_p": 0.9}, "raw")
    assert said(None, policy) == ({}, "unknown")  # there is only one
    assert said(None, policy, policy.model_copy(update={"model": "twin"})) == ({}, "unknown")  # both say it

    monkeypatch.setenv("AGL_SAMPLING_DEFAULTS", '{"min_p": 0.1}')
    assert said("stranger", policy) == ({"min_p": 0.1}, "unknown")  # nothing else is said of it
    assert said(None, policy, other) == (None, "unknown")  # something is, and nobody knows what


@pytest.mark.asyncio
async def test_a_second_span_of_a_call_in_a_context_without_a_store_costs_no_other_attempt_a_span(
    store: LightningStore,
) -> None:
    ids = await new_attempt(store)
    tracer = OtelTracer(settings=WriterSettings(flush_interval=10_000))
    asks = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "m"}
    with tracer.lifespan():
        async with tracer.trace_context("kept", store=store, rollout_id=ids[0], attempt_id=ids[1]) as handle:
            for number in range(5):
                handle.start_span(f"s{number}").end()
            async with tracer.trace_context("in memory"):
                theirs = trace.get_tracer("opentelemetry.instrumentation.openai")
                with (
                    theirs.start_as_current_span("chat", attributes=asks),
                    theirs.start_as_current_span("chat", attributes=asks),
                ):
                    pass
        names = [span.name for span in await store.query_spans(*ids)]
        assert sorted(names) == ["kept", *(f"s{number}" for number in range(5))]
        receipt = await store.get_receipt(*ids)
        assert receipt.whole


NO_FILES = """
import asyncio, os, resource
from contextlib import ExitStack, suppress
from opentelemetry import trace
from agentlightning.dialects.raw_call import Endpoint
from agentlightning.store import InMemoryLightningStore
from agentlightning.testing import wait_until
from agentlightning.tracer import OtelTracer

store = InMemoryLightningStore()
rollout = asyncio.run(store.start_rollout(input=None))
ids = rollout.rollout_id, rollout.attempt.attempt_id
with OtelTracer().lifespan(store):  # whatever is imported at first use
    pass
tracer = OtelTracer(fallback_attempt=ids)
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
with ExitStack() as files:
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 256), hard))
    files.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
    with suppress(OSError):
        while True:
            files.enter_context(open(os.devnull))
    tracer.init()
    tracer.init_worker(0, store)
    writer = tracer.processor.writer
    trace.get_tracer("agent").start_span("without a file").end()
    wait_until(lambda: not writer.thread.is_running)
trace.get_tracer("agent").start_span("later").end()
wait_until(lambda: len(asyncio.run(store.query_spans(*ids))) == 2)
tracer.teardown()
report("both stored")
"""


def test_a_writer_that_had_no_file_left_goes_on_with_the_next_span() -> None:
    with start_child(NO_FILES) as child:
        assert child.finish(deadline=60) == ["both stored"]


httpx: Any = importlib.import_module(openai.DefaultAsyncHttpxClient.__mro__[1].__module__.split(".")[0])
"""The one that this ``openai`` uses."""


def answer(request: Any) -> Any:
    """Say what was asked, under an id of that name."""
    text = json.loads(request.content)["messages"][0]["content"]
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    return httpx.Response(
        200,
        json={
            "id": f"r-{text}",
            "object": "chat.completion",
            "created": 1,
            "model": "m",
            "choices": [choice],
            "usage": usage,
        },
    )


@pytest.mark.asyncio
@pytest.mark.parametrize("how", ["inside", "later"])
async def test_a_call_that_is_made_inside_of_another_is_a_call_of_its_own(
    store: LightningStore, how: str
) -> None:
    tasks: list[asyncio.Task[Any]] = []
    over = asyncio.Event()

    async def side() -> None:
        if how == "later":
            await over.wait()
        question = {"model": "m", "messages": [{"role": "user", "content": "side"}]}
        await beside.post("http://localhost/v1/chat/completions", json=question)

    async def hook(request: Any) -> None:
        del request
        task = asyncio.create_task(side())
        tasks.append(task)
        if how == "inside":
            await task

    async with (
        httpx.AsyncClient(transport=httpx.MockTransport(answer)) as beside,
        httpx.AsyncClient(transport=httpx.MockTransport(answer), event_hooks={"request": [hook]}) as http,
    ):
        client = openai.AsyncOpenAI(api_key="k", base_url="http://localhost/v1", http_client=http)
        with OtelTracer().lifespan(store) as tracer:
            async with tracer.trace_context("x") as handle:
                question: Any = [{"role": "user", "content": "outer"}]
                reply = await client.chat.completions.create(model="m", messages=question)
                over.set()
                await asyncio.gather(*tasks)
            assert reply.id == "r-outer"
            calls = [span for span in handle.spans() if span.name.startswith("chat")]
    assert sorted(str(span.attributes["gen_ai.response.id"]) for span in calls) == ["r-outer", "r-side"]
    assert not any("http.request.resend_count" in span.attributes for span in calls)


@pytest.mark.asyncio
async def test_the_exporter_masks_what_it_stores_where_the_policy_says_so(
    store: LightningStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor

    for policy, kept in (("ingest", False), ("egress", True)):
        ids = await new_attempt(store)
        monkeypatch.setenv("AGL_REDACTION", policy)
        monkeypatch.setenv("AGL_ROLLOUT_ID", ids[0])
        monkeypatch.setenv("AGL_ATTEMPT_ID", ids[1])
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(LightningSpanExporter(store)))
        provider.get_tracer("x").start_span("write to ada@example.org").end()
        provider.shutdown()
        (span,) = await store.query_spans(*ids)
        assert ("ada@example.org" in span.name) is kept
