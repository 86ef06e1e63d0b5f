"""``AgentOpsTracer`` with the real ``agentops`` that is installed."""

from __future__ import annotations

import asyncio
import builtins
import importlib
import logging
import os
import pickle
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from opentelemetry import metrics, trace

from agentlightning.adapter import TracerTraceToTriplet
from agentlightning.emitter import emit_reward
from agentlightning.errors import AgentOpsUnsupported
from agentlightning.instrumentation.guard import reraise
from agentlightning.integrations.agentops import AgentOpsServerManager
from agentlightning.integrations.agentops.probe import probe
from agentlightning.integrations.agentops.span_mirror import SpanMirror
from agentlightning.semconv import ModelCallAttributes
from agentlightning.store import InMemoryLightningStore, LightningStore
from agentlightning.testing import FakeOpenAI, wait_until
from agentlightning.testing.fake_openai import Answer
from agentlightning.tracer import AgentOpsTracer
from agentlightning.types import Span

agentops: Any = pytest.importorskip("agentops")
if probe().legacy:
    pytest.skip("events of 0.2 and 0.3 have tests of their own", allow_module_level=True)
decorators: Any = importlib.import_module("agentops.sdk.decorators")

ASK: Any = {"model": "policy", "messages": [{"role": "user", "content": "hi"}]}
IDS = (5, 6, 7)
PROMPT_IDS = ModelCallAttributes.PROMPT_TOKEN_IDS.value
END_STATE = "agentops.session.end_state"


@pytest.fixture(scope="module")
def shared_server() -> Iterator[AgentOpsServerManager]:
    """One local server for this file: 20 processes would be 20 seconds."""
    with AgentOpsServerManager() as manager:
        yield manager


@pytest.fixture
def agentops_server(shared_server: AgentOpsServerManager) -> AgentOpsServerManager:
    """The local server, empty."""
    shared_server.clear()
    return shared_server


@pytest.fixture
def recorder(store: LightningStore, agentops_server: AgentOpsServerManager) -> Iterator[AgentOpsTracer]:
    """A worker in managed mode; errors of ours come out."""
    tracer = AgentOpsTracer(server=agentops_server, strict=True, policy=reraise, max_wait_time=60_000)
    with tracer.lifespan(store):
        yield tracer


@pytest.fixture
def model() -> Iterator[FakeOpenAI]:
    """A model with token ids."""
    with FakeOpenAI(
        lambda _request: Answer.of("hello you", prompt_token_ids=IDS, ids="always", logprobs="always")
    ) as server:
        yield server


async def spans_of(store: LightningStore, handle: Any) -> dict[str, Span]:
    """Return the spans of a rollout by name; each name once, and the receipt whole."""
    receipt = await store.get_receipt(handle.rollout_id, handle.attempt_id)
    assert receipt.whole, receipt
    spans = await store.query_spans(handle.rollout_id)
    found = {span.name: span for span in spans}
    assert len(found) == len(spans), [span.name for span in spans]
    return found


def globals_of_process() -> tuple[Any, ...]:
    """Return what a tracer could change for others."""
    logger = logging.getLogger("agentops")
    return (
        builtins.print,
        builtins.__import__,
        dict(os.environ),
        trace._TRACER_PROVIDER,
        metrics._internal._METER_PROVIDER,
        threading.excepthook,
        {thread.name for thread in threading.enumerate()},
        logger.propagate,
        list(logger.handlers),
    )


# ---------------------------------------------------------------------- what is recorded


@pytest.mark.asyncio
async def test_decorators_model_calls_and_rewards_are_one_tree_that_can_be_trained_on(
    store: LightningStore, recorder: AgentOpsTracer, model: FakeOpenAI
) -> None:
    @decorators.tool  # type: ignore[untyped-decorator]
    def add(left: int, right: int) -> int:
        return left + right

    @decorators.operation  # type: ignore[untyped-decorator]
    def ask() -> str:
        with model.client() as client:
            reply = client.chat.completions.create(**ASK, temperature=1.0, top_p=1.0)
        return str(reply.choices[0].message.content)

    @decorators.agent
    class Agent:
        def run(self) -> tuple[str, int]:
            return ask(), add(1, 2)

    async with recorder.trace_context() as handle:
        assert Agent().run() == ("hello you", 3)
        emit_reward(1.0)
    spans = await spans_of(store, handle)
    call = spans["chat policy"]
    asked = next(span for name, span in spans.items() if name.startswith("ask."))
    assert call.parent_id == asked.span_id
    assert call.attributes[PROMPT_IDS] == list(IDS)
    assert any(name.startswith("add.") for name in spans)
    (row,) = TracerTraceToTriplet().adapt(await store.query_spans(handle.rollout_id))
    assert row.prompt["token_ids"] == list(IDS)
    assert row.reward == 1.0


@pytest.mark.asyncio
async def test_a_context_that_cannot_wait_in_a_running_loop_says_so(
    recorder: AgentOpsTracer, caplog: pytest.LogCaptureFixture
) -> None:
    with recorder.trace_context():
        pass
    assert "'async with', and the end of lifespan, do" in caplog.text


@pytest.mark.asyncio
async def test_a_failing_agent_leaves_an_error_span_and_its_own_exception(
    store: LightningStore, recorder: AgentOpsTracer
) -> None:
    error = ValueError("mine")

    @decorators.operation  # type: ignore[untyped-decorator]
    def fail() -> None:
        raise error

    with pytest.raises(ValueError, match="mine") as caught:
        async with recorder.trace_context() as handle:
            fail()
    assert caught.value is error
    spans = await spans_of(store, handle)
    failed = next(span for name, span in spans.items() if name.startswith("fail."))
    assert failed.status.status_code == "ERROR"
    assert spans["rollout"].status.status_code == "ERROR"


@pytest.mark.asyncio
@pytest.mark.skipif(not hasattr(agentops, "start_trace"), reason="start_trace came with 0.4.13")
async def test_states_of_end_trace_arrive_as_words_and_as_status(
    store: LightningStore, recorder: AgentOpsTracer
) -> None:
    states: list[tuple[str, Any, str, str]] = [
        ("said_so", "Success", "Success", "OK"),
        ("own_word", "Indeterminate", "Indeterminate", "UNSET"),
        ("failed", "Error", "Error", "ERROR"),
        ("failed_as_of_old", "Fail", "Fail", "ERROR"),
    ]
    if hasattr(agentops, "TraceState"):
        states += [
            ("enum_success", agentops.TraceState.SUCCESS, "Success", "OK"),
            ("enum_error", agentops.TraceState.ERROR, "Error", "ERROR"),
            ("enum_unset", agentops.TraceState.UNSET, "Indeterminate", "UNSET"),
            ("status_ok", trace.StatusCode.OK, "Success", "OK"),
            ("status_error", trace.StatusCode.ERROR, "Error", "ERROR"),
        ]
    async with recorder.trace_context() as handle:
        for name, state, _, _ in states:
            agentops.end_trace(agentops.start_trace(name), state)
        if hasattr(agentops, "TraceState"):
            agentops.end_trace(agentops.start_trace("by_default"))
    spans = await spans_of(store, handle)
    for name, _, word, status in states:
        span = spans[f"{name}.session"]
        assert (span.attributes[END_STATE], span.status.status_code) == (word, status), name
    if hasattr(agentops, "TraceState"):
        assert spans["by_default.session"].attributes[END_STATE] == "Success"


@pytest.mark.asyncio
async def test_an_agents_own_init_gives_it_a_session_and_changes_nothing_else(
    store: LightningStore, recorder: AgentOpsTracer, model: FakeOpenAI
) -> None:
    async with recorder.trace_context():  # starts the thread on which stores are asked
        pass
    before = globals_of_process()
    async with recorder.trace_context() as handle:
        agentops.init("11111111-1111-4111-8111-111111111111", default_tags=["mine"])
        with model.client() as client:
            client.chat.completions.create(**ASK)
        agentops.end_session("Success")
    spans = await spans_of(store, handle)
    session = next(span for name, span in spans.items() if name.endswith(".session"))
    assert spans["chat policy"].parent_id == session.span_id
    assert globals_of_process() == before


@pytest.mark.asyncio
async def test_a_session_that_the_agent_leaves_open_does_not_swallow_the_next_rollout(
    store: LightningStore, recorder: AgentOpsTracer, model: FakeOpenAI
) -> None:
    async with recorder.trace_context() as first:
        agentops.init()
    async with recorder.trace_context() as second:
        with model.client() as client:
            client.chat.completions.create(**ASK)
    assert {span.name for span in await store.query_spans(second.rollout_id)} == {"chat policy", "rollout"}
    assert len(await store.query_open_spans(first.rollout_id)) == 1


# ---------------------------------------------------------------------- nothing changes for the agent


@pytest.mark.asyncio
async def test_every_call_style_returns_what_it_returns_without_us(
    store: LightningStore, recorder: AgentOpsTracer, model: FakeOpenAI
) -> None:
    with model.client() as client:
        async with recorder.trace_context() as handle:
            completions = client.chat.completions
            stream = completions.create(**ASK, stream=True)
            assert type(stream).__name__ == "Stream"
            assert stream.response.status_code == 200
            assert [chunk.id for chunk in stream]
            raw = completions.with_raw_response.create(**ASK)
            assert type(raw).__name__ == "LegacyAPIResponse"
            assert raw.parse().choices[0].message.content == "hello you"
            with completions.create(**ASK, stream=True) as left:
                next(left)
            assert completions.parse(**ASK).choices[0].message.content == "hello you"
            with completions.stream(**ASK) as helper:
                helper.until_done()
        assert "_wrapper" not in type(completions.create).__name__.lower()
    calls = [span for span in await store.query_spans(handle.rollout_id) if span.name == "chat policy"]
    assert len(calls) == 5
    assert "stream_options" not in model.requests[0].json()


@pytest.mark.asyncio
async def test_what_is_sent_to_the_local_server_is_the_tree_with_a_key(
    store: LightningStore, recorder: AgentOpsTracer, agentops_server: AgentOpsServerManager, model: FakeOpenAI
) -> None:
    async with recorder.trace_context() as handle:
        with model.client() as client:
            client.chat.completions.create(**ASK)
    wait_until(lambda: len(agentops_server.spans()) >= 2)
    sent = {span.name: span for span in agentops_server.spans()}
    stored = await spans_of(store, handle)
    assert set(sent) == set(stored)
    assert sent["chat policy"].span_id == stored["chat policy"].span_id
    (first, *_) = agentops_server.recorded("requests")
    assert first["headers"]["Authorization"] == "Bearer dummy"


@pytest.mark.asyncio
async def test_without_model_calls_no_client_is_touched(
    store: LightningStore, agentops_server: AgentOpsServerManager, model: FakeOpenAI
) -> None:
    send = httpx.Client.send
    tracer = AgentOpsTracer(server=agentops_server, instrument_llm_calls=False)
    with tracer.lifespan(store):
        async with tracer.trace_context() as handle:
            assert httpx.Client.send is send
            with model.client() as client:
                client.chat.completions.create(**ASK)
    assert set(await spans_of(store, handle)) == {"rollout"}


# ---------------------------------------------------------------------- life cycle


def test_three_rounds_in_one_process_leave_everything_as_it_was(
    agentops_server: AgentOpsServerManager, model: FakeOpenAI
) -> None:
    @decorators.operation  # type: ignore[untyped-decorator]
    def ask() -> None:
        with model.client() as client:
            client.chat.completions.create(**ASK)

    os.environ["AGENTOPS_API_KEY"] = "the user's own"
    before = globals_of_process()
    for _ in range(3):
        store = InMemoryLightningStore()
        tracer = AgentOpsTracer(server=agentops_server, strict=True)
        with tracer.lifespan(store):
            assert os.environ["AGENTOPS_EXPORTER_ENDPOINT"].startswith(agentops_server.url)
            provider: Any = trace.get_tracer_provider()
            present = provider._active_span_processor._span_processors
            ours = [each for each in present if each is tracer.processor]
            assert len(ours) == 1
            with tracer.trace_context() as handle:
                ask()
            names = [span.name.partition(".")[0] for span in handle.spans()]
            assert sorted(names) == ["ask", "chat policy", "rollout"]
        assert provider._active_span_processor._span_processors == ()
        assert globals_of_process() == before


def test_a_dead_server_costs_the_rollouts_nothing(model: FakeOpenAI) -> None:
    store = InMemoryLightningStore()
    tracer = AgentOpsTracer(strict=True)
    with tracer.lifespan(store):
        with model.client() as client:
            with tracer.trace_context() as first:
                client.chat.completions.create(**ASK)
            process = tracer.server.server_process
            assert process is not None
            os.kill(process.pid, 9)
            wait_until(lambda: not process.is_alive())
            with tracer.trace_context() as second:
                client.chat.completions.create(**ASK)
                if hasattr(agentops, "start_trace"):
                    agentops.end_trace(agentops.start_trace("t"), "Success")
        assert first.receipt().stored == 2
        assert second.receipt().stored == (3 if hasattr(agentops, "start_trace") else 2)


@pytest.mark.asyncio
async def test_a_server_that_is_killed_amid_a_hundred_rollouts_changes_nothing_in_the_store(
    store: LightningStore, model: FakeOpenAI
) -> None:
    tracer = AgentOpsTracer(strict=True, max_wait_time=60_000)
    finished: list[Any] = []
    with tracer.lifespan(store):
        process = tracer.server.server_process
        assert process is not None
        async with model.async_client() as client:

            async def rollout(number: int) -> Any:
                async with tracer.trace_context(f"task {number}") as handle:
                    await client.chat.completions.create(**ASK)
                    if len(finished) == 30:
                        os.kill(process.pid, 9)
                    await client.chat.completions.create(**ASK)
                finished.append(number)
                return handle

            handles = await asyncio.gather(*map(rollout, range(100)))
    assert not process.is_alive()
    for handle in handles:
        receipt = await store.get_receipt(handle.rollout_id, handle.attempt_id)
        assert receipt.whole
        assert receipt.stored == 3


def test_nobody_waits_for_the_copy_of_the_spans(agentops_server: AgentOpsServerManager) -> None:
    copies = SpanMirror(agentops_server.url)
    try:
        agentops_server.fail(delay=30.0, n=100)
        assert copies.force_flush()
        assert agentops_server.recorded("requests") == []
    finally:
        agentops_server.recover()
        copies.shutdown()


def test_a_pickled_tracer_shares_the_server_and_does_not_stop_it(
    agentops_server: AgentOpsServerManager,
) -> None:
    tracer = AgentOpsTracer(server=agentops_server)
    copy = pickle.loads(pickle.dumps(tracer))
    store = InMemoryLightningStore()
    copy.init_worker(3, store)
    try:
        with copy.trace_context() as handle:
            pass
        assert handle.receipt().stored == 1
        assert copy.server.url == agentops_server.url
    finally:
        copy.teardown_worker(3)
        copy.teardown()
    assert agentops_server.is_alive()
    pickle.loads(pickle.dumps(copy)).teardown()


# ---------------------------------------------------------------------- no agentops that we know


@pytest.fixture
def unknown_release(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """Another package called ``agentops`` comes first."""
    folder = tmp_path / "agentops"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in __import__("sys").modules if name.partition(".")[0] == "agentops"]:
        monkeypatch.delitem(__import__("sys").modules, name)


@pytest.mark.usefixtures("unknown_release")
def test_an_unknown_release_is_said_once_and_the_wire_capture_works(
    agentops_server: AgentOpsServerManager, model: FakeOpenAI, caplog: pytest.LogCaptureFixture
) -> None:
    tracer = AgentOpsTracer(server=agentops_server)
    store = InMemoryLightningStore()
    for _ in range(2):
        with tracer.lifespan(store), model.client() as client, tracer.trace_context() as handle:
            client.chat.completions.create(**ASK)
        assert [span.name for span in handle.spans()] == ["chat policy", "rollout"]
    said = [record.message for record in caplog.records if "AgentOps is not recorded" in record.message]
    assert len(said) == 1
    assert "install agentops 0.4" in said[0]


@pytest.mark.usefixtures("unknown_release")
def test_strict_raises_and_leaves_nothing_behind(agentops_server: AgentOpsServerManager) -> None:
    before = globals_of_process()
    tracer = AgentOpsTracer(server=agentops_server, strict=True)
    with pytest.raises(AgentOpsUnsupported, match=r"install agentops 0\.4"):
        tracer.init_worker(0, InMemoryLightningStore())
    tracer.teardown()
    assert globals_of_process() == before
