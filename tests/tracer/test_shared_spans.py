"""What other exporters of a provider see of a rollout: the whole call, masked. The store gets what it gets without."""

from __future__ import annotations

import contextvars
import copy
import gc
import io
import json
import re
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import agentlightning as agl
from agentlightning.errors import ConfigurationError
from agentlightning.pipeline.chain import Chain
from agentlightning.pipeline.redact import Redactor
from agentlightning.pipeline.rules import RedactionRule
from agentlightning.store import LightningStore
from agentlightning.store.memory import InMemoryLightningStore
from agentlightning.testing.fake_openai import Answer, AnswerChoice, FakeOpenAI, Token, ToolCallAnswer
from agentlightning.tracer.event_loops import run_sync
from agentlightning.tracer.masking_exporter import MaskingExporter
from agentlightning.tracer.provider import own_provider, remove_processor
from agentlightning.utils.otel import make_link_attributes

SECRET = "sk-proj-abcdefghijklmnopqrstuvwxyz0123456789ABCD"
MESSAGES: Any = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "2 and 3?"}]
TOOLS: Any = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
CALLS = Answer(
    choices=(
        AnswerChoice((Token("", 7),), (ToolCallAnswer("add", '{"a": 2}'),), finish_reason="tool_calls"),
    ),
    prompt_token_ids=(1, 2, 3),
    id="chatcmpl-1",
)
SAYS = Answer.of("5", id="chatcmpl-2", prompt_token_ids=(1, 2, 3, 4))


@contextmanager
def exporting(*exporters: SpanExporter) -> Iterator[None]:
    """Have other exporters on the provider that the tracer will join."""
    processors = [SimpleSpanProcessor(each) for each in exporters]
    for each in processors:
        own_provider().add_span_processor(each)
    try:
        yield
    finally:
        for each in processors:
            remove_processor(own_provider(), each)


def record(*answers: Answer, messages: Any = MESSAGES, ask: Any = None, **options: Any) -> list[agl.Span]:
    """Return the stored spans of an agent that asks for each answer, works under another library, and is rewarded."""
    with FakeOpenAI() as server:
        server.enqueue(*answers)
        tracer = agl.OtelTracer(capture_tokens="request", **options)
        with tracer.lifespan(InMemoryLightningStore()), server.client(max_retries=0) as client:
            with tracer.trace_context() as handle:
                for _ in answers:
                    with trace.get_tracer("another.library").start_as_current_span("step"):
                        client.chat.completions.create(
                            model="policy", messages=messages, tools=TOOLS, **(ask or {})
                        )
                agl.emit_reward(
                    {"right": 1.0, "short": float("nan")},
                    primary_key="right",
                    attributes=make_link_attributes({"gen_ai.response.id": answers[-1].id}),
                )
            return handle.spans()


def seen(exporter: InMemorySpanExporter, name: str) -> list[ReadableSpan]:
    """Return the spans of a name that an exporter got."""
    return [span for span in exporter.get_finished_spans() if span.name == name]


def attributes_of(span: ReadableSpan) -> dict[str, Any]:
    """Return the attributes as an exporter reads them."""
    return dict((span.attributes or {}).items())


def test_another_exporter_sees_the_whole_call_by_the_genai_conventions() -> None:
    theirs = InMemorySpanExporter()
    with exporting(theirs):
        stored = record(CALLS, SAYS)
    first, second = map(attributes_of, seen(theirs, "chat policy"))
    assert json.loads(first["gen_ai.input.messages"]) == [
        {"role": each["role"], "parts": [{"type": "text", "content": each["content"]}]} for each in MESSAGES
    ]
    (said,) = json.loads(first["gen_ai.output.messages"])
    assert said["finish_reason"] == "tool_calls"
    assert said["parts"][-1] == {
        "type": "tool_call",
        "id": "call_1",
        "name": "add",
        "arguments": '{"a": 2}',
    }
    assert json.loads(first["gen_ai.tool.definitions"]) == [
        {"type": "function", "name": "add", "parameters": {"type": "object"}}
    ]
    assert first["gen_ai.response.finish_reasons"] == ["tool_calls"]
    assert (first["gen_ai.usage.input_tokens"], first["gen_ai.usage.output_tokens"]) == (3, 1)
    assert first["gen_ai.response.id"] == "chatcmpl-1"
    assert json.loads(second["gen_ai.output.messages"])[0]["parts"] == [{"type": "text", "content": "5"}]
    ids = stored[0].rollout_id, stored[0].attempt_id
    for span in theirs.get_finished_spans():  # also the root, the reward, and spans of other libraries
        found = attributes_of(span)
        assert (found["agentlightning.rollout_id"], found["agentlightning.attempt_id"]) == ids
        assert not [name for name in found if "token_ids" in name or "logprobs" in name]
    assert first["agentlightning.token_capture"] == "valid"


def test_the_root_says_what_was_asked_and_a_function_has_its_own_name() -> None:
    theirs, out = InMemorySpanExporter(), io.StringIO()
    tracer = agl.OtelTracer(conventions="openinference")

    @agl.operation(kind="tool")
    def search(words: str, limits: dict[str, int]) -> str:
        return f"found {words} {limits['most']}"

    @agl.operation
    def think(how: str) -> None:
        del how

    with exporting(theirs, ConsoleSpanExporter(out=out)), tracer.lifespan(InMemoryLightningStore()):
        with tracer.rollout({"question": f"Where is {SECRET}?"}) as rollout:
            search("it", {"most": 3})
            think("hard")
        stored = {span.name for span in rollout.spans()}
    assert stored == {"rollout", "agentlightning.operation"}
    root, tool, step = (attributes_of(seen(theirs, name)[0]) for name in ("rollout", "search", "think"))
    asked = "Where is [redacted:openai_key]?"
    assert root["gen_ai.operation.name"] == "invoke_agent"
    assert json.loads(root["gen_ai.input.messages"]) == [
        {"role": "user", "parts": [{"type": "text", "content": asked}]}
    ]
    assert (root["openinference.span.kind"], root["input.value"]) == ("AGENT", asked)
    assert "agentlightning.task" not in root
    assert (tool["gen_ai.operation.name"], tool["gen_ai.tool.name"]) == ("execute_tool", "search")
    assert json.loads(tool["gen_ai.tool.call.arguments"]) == {"words": "it", "limits": {"most": 3}}
    assert tool["gen_ai.tool.call.result"] == tool["output.value"] == "found it 3"
    assert tool["openinference.span.kind"] == "TOOL"
    assert "gen_ai.operation.name" not in step
    assert (step["openinference.span.kind"], json.loads(step["input.value"])) == ("CHAIN", {"how": "hard"})
    assert '"name": "search"' in out.getvalue()


def test_names_and_links_are_masked_and_stored_as_they_are() -> None:
    theirs, out = InMemorySpanExporter(), io.StringIO()
    tracer = agl.OtelTracer()
    with exporting(theirs, ConsoleSpanExporter(out=out)), tracer.lifespan(InMemoryLightningStore()):
        with tracer.trace_context() as handle:
            link = trace.Link(trace.get_current_span().get_span_context(), {"why": SECRET})
            with handle.start_as_current_span("before", links=[link]) as span:
                span.update_name(f"of {SECRET}")
                span.add_link(link.context, {"also": SECRET})
        stored = next(span for span in handle.spans() if span.links)
    (shown,) = [span for span in theirs.get_finished_spans() if span.links]
    assert shown.name == "of [redacted:openai_key]"
    assert [dict(each.attributes or {}) for each in shown.links] == [
        {"why": "[redacted:openai_key]"},
        {"also": "[redacted:openai_key]"},
    ]
    copied = copy.deepcopy(shown)
    assert copied.name == shown.name
    assert SECRET not in out.getvalue() + copied.to_json() + str(vars(copied))
    assert stored.name == f"of {SECRET}"
    assert [each.attributes for each in stored.links] == [{"why": SECRET}, {"also": SECRET}]


def without_words_of_links(span: agl.Span) -> agl.Span:
    """Mask the attributes of links, and take out those that say that they are to go."""
    kept = [link for link in span.links if "go" not in (link.attributes or {})]
    masked = [
        link.model_copy(update={"attributes": dict.fromkeys(link.attributes or {}, "***")}) for link in kept
    ]
    return span.model_copy(update={"links": masked})


def test_every_exporter_sees_the_links_that_a_stage_leaves() -> None:
    theirs, masking = InMemorySpanExporter(), InMemorySpanExporter()
    tracer = agl.OtelTracer(chain=Chain((without_words_of_links,)))
    state = trace.TraceState([("vendor", "1")])
    gone, stays = (
        trace.SpanContext(1, number, is_remote=True, trace_flags=trace.TraceFlags(1), trace_state=state)
        for number in (2, 3)
    )
    with exporting(theirs, MaskingExporter(masking)), tracer.lifespan(InMemoryLightningStore()):
        with tracer.trace_context() as handle:
            links = [trace.Link(gone, {"go": "ACME"}), trace.Link(stays, {"customer": "ACME", "key": SECRET})]
            handle.start_span("linked", attributes={"key": SECRET}, links=links).end()
    for exporter in (theirs, masking):
        (span,) = seen(exporter, "linked")
        assert attributes_of(span)["key"] == "[redacted:openai_key]"
        (link,) = span.links
        assert (link.context, link.context.trace_state) == (stays, state)
        assert dict(link.attributes or {}) == {"customer": "***", "key": "***"}


def test_a_secret_that_only_its_key_tells_is_masked_in_the_task() -> None:
    theirs, tracer = InMemorySpanExporter(), agl.OtelTracer()
    with exporting(theirs), tracer.lifespan(InMemoryLightningStore()):
        with tracer.rollout({"password": "hunter2-hunter2", "n": 3}):
            pass
        with tracer.rollout({"password": "hunter2-hunter2", "user": "bob"}):
            pass
    first, second = (attributes_of(span)["gen_ai.input.messages"] for span in seen(theirs, "rollout"))
    assert "hunter2" not in str((first, second))
    assert "[redacted:" in str(first)
    assert "bob" in str(second)


def test_stages_judge_spans_and_a_task_is_masked_by_redactors_alone() -> None:
    rule = RedactionRule("customer", re.compile("ACME"))
    met: list[str] = []

    def looking(span: agl.Span) -> agl.Span:
        met.append(str(span.attributes))
        return span

    shown = []
    for stages in ((Chain((Redactor((rule,)),)),), (looking,)):
        theirs, tracer = InMemorySpanExporter(), agl.OtelTracer(chain=Chain(stages))
        with exporting(theirs), tracer.lifespan(InMemoryLightningStore()), tracer.rollout("pay ACME"):
            pass
        shown.append(attributes_of(seen(theirs, "rollout")[0]))
    masked, without = shown
    assert "pay [redacted:customer]" in masked["gen_ai.input.messages"]
    assert (without["gen_ai.operation.name"], "gen_ai.input.messages" in without) == ("invoke_agent", False)
    assert met
    assert "ACME" not in str(met)


class ReadingNames(SpanProcessor):
    """Reads the name of each span that ends, as filters do."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def on_end(self, span: ReadableSpan) -> None:
        """Read it."""
        self.names.append(span.name)


def test_who_reads_a_name_alone_has_nothing_else_masked() -> None:
    looked_at: list[str] = []

    def look(text: str) -> bool:
        looked_at.append(text)
        return False

    rule = RedactionRule("any", re.compile("needle.*"), check=look)
    tracer, reader = agl.OtelTracer(chain=Chain((Redactor((rule,)),))), ReadingNames()
    own_provider().add_span_processor(reader)
    try:
        with tracer.lifespan(), tracer.trace_context():

            @agl.operation(name=f"search for {SECRET}")
            def search(words: str) -> str:
                return words

            search("needle in a call")
            with tracer.operation_context("needle in a name"):
                pass
            while_it_runs = list(looked_at)
    finally:
        remove_processor(own_provider(), reader)
    assert reader.names[:2] == ["search for [redacted:openai_key]", "needle in a name"]
    assert set(while_it_runs) == {"needle in a name"}


def test_a_reward_is_an_evaluation_and_one_that_is_unscored_has_no_score() -> None:
    theirs = InMemorySpanExporter()
    with exporting(theirs):
        record(SAYS)
    (span,) = seen(theirs, "agentlightning.annotation")
    results = [(event.name, dict(event.attributes or {})) for event in span.events]
    linked = {"gen_ai.response.id": "chatcmpl-2"}
    assert results == [
        (
            "gen_ai.evaluation.result",
            {"gen_ai.evaluation.name": "right", "gen_ai.evaluation.score.value": 1.0, **linked},
        ),
        ("gen_ai.evaluation.result", {"gen_ai.evaluation.name": "short", **linked}),
    ]
    assert attributes_of(span)["gen_ai.evaluation.score.value"] == 1.0


def test_what_is_stored_is_the_same_whoever_else_exports() -> None:
    alone = record(CALLS, SAYS)
    with exporting(InMemorySpanExporter(), ConsoleSpanExporter(out=io.StringIO())):
        beside = record(CALLS, SAYS)
    varying = {"server.port", "agentlightning.endpoint", "gen_ai.response.time_to_first_chunk"}

    def comparable(spans: list[agl.Span]) -> Any:
        return [
            (
                span.name,
                {name: repr(value) for name, value in span.attributes.items() if name not in varying},
                [(event.name, event.attributes) for event in span.events],
            )
            for span in spans
        ]

    assert comparable(alone) == comparable(beside)


@pytest.mark.parametrize("policy", ["egress", "ingest", "off"])
def test_secrets_are_masked_by_the_policy_and_unknown_is_absent(policy: str) -> None:
    theirs, out = InMemorySpanExporter(), io.StringIO()
    question = [{"role": "user", "content": f"My key is {SECRET}."}]
    unsaid = Answer(
        choices=(AnswerChoice((Token("5", 7),), finish_reason=None),), prompt_token_ids=(1,), id="chatcmpl-3"
    )
    with exporting(theirs, ConsoleSpanExporter(out=out)):
        stored = record(unsaid, messages=question, redaction=policy)
    found = attributes_of(seen(theirs, "chat policy")[0])
    said = json.loads(found["gen_ai.input.messages"])[0]["parts"][0]["content"]
    assert (SECRET in said) == (policy == "off")
    assert (SECRET in out.getvalue()) == (policy == "off")
    assert (SECRET in str([span.attributes for span in stored])) == (policy != "ingest")
    assert "gen_ai.response.finish_reasons" not in found
    assert "finish_reason" not in json.loads(found["gen_ai.output.messages"])[0]
    assert not [name for name, value in found.items() if name.startswith("gen_ai.usage.") and value == 0]


class WrappedProvider(trace.TracerProvider):
    """A provider around the SDK's, as Logfire has one."""

    def __init__(self, provider: TracerProvider) -> None:
        self.provider = provider

    def get_tracer(self, *args: Any, **kwargs: Any) -> trace.Tracer:
        return self.provider.get_tracer(*args, **kwargs)


def test_a_provider_inside_of_another_is_recorded_and_sees_the_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs, inner = InMemorySpanExporter(), TracerProvider()
    inner.add_span_processor(SimpleSpanProcessor(theirs))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", WrappedProvider(inner))
    stored = record(SAYS)
    names = {"rollout", "step", "chat policy", "agentlightning.annotation"}
    assert {span.name for span in stored} == {span.name for span in theirs.get_finished_spans()} == names
    assert "gen_ai.output.messages" in attributes_of(seen(theirs, "chat policy")[0])


@pytest.mark.parametrize("is_wrapped", [False, True])
def test_a_provider_that_is_installed_later_sees_the_calls_of_the_next_rollout(
    is_wrapped: bool, store: LightningStore
) -> None:
    theirs, later = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    later.add_span_processor(SimpleSpanProcessor(theirs))
    wrapper = WrappedProvider(TracerProvider(shutdown_on_exit=False))
    tracer = agl.OtelTracer(capture_tokens="request")
    try:
        with FakeOpenAI() as server, tracer.lifespan(store), server.client(max_retries=0) as client:
            server.enqueue(SAYS)
            if is_wrapped:
                trace.set_tracer_provider(wrapper)
                wrapper.provider = later  # Logfire does so when it is configured a second time
            else:
                trace.set_tracer_provider(later)
            with tracer.trace_context() as handle:
                with trace.get_tracer("another.library").start_as_current_span("step"):
                    client.chat.completions.create(model="policy", messages=MESSAGES)
            stored = {span.name for span in handle.spans()}
    finally:
        trace._TRACER_PROVIDER, trace._TRACER_PROVIDER_SET_ONCE._done = None, False
    assert stored == {span.name for span in theirs.get_finished_spans()} == {"rollout", "step", "chat policy"}
    assert "gen_ai.output.messages" in attributes_of(seen(theirs, "chat policy")[0])


def test_a_provider_that_a_wrapper_has_left_is_not_kept_and_one_that_raises_breaks_nothing(
    store: LightningStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(WrappedProvider):
        """Not configured."""

        @property
        def provider(self) -> Any:
            raise RuntimeError("not configured")

        @provider.setter
        def provider(self, _: Any) -> None:
            """Take it."""

    first, last = TracerProvider(shutdown_on_exit=False), TracerProvider(shutdown_on_exit=False)
    wrapper = WrappedProvider(first)
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", wrapper)
    tracer, left = agl.OtelTracer(), []
    with tracer.lifespan(store):
        for _ in range(2):
            wrapper.provider = TracerProvider(shutdown_on_exit=False)
            left.append(weakref.ref(wrapper.provider))
            kept = wrapper.provider.get_tracer("kept")
            with tracer.trace_context():
                pass
        wrapper.provider = last
        with tracer.trace_context():
            pass
        gc.collect()
        assert [each() for each in left] == [None, None]
        monkeypatch.setattr(trace, "_TRACER_PROVIDER", Broken(first))
        with tracer.trace_context() as handle:
            agl.emit_reward(1.0)
        processor = tracer.processor
    assert len(handle.spans()) == 2
    kept.start_span("of a provider that is gone").end()
    assert processor.unattributed_count == 0
    for provider in (first, last):  # our processor has left both
        assert not provider._active_span_processor._span_processors


class ReplacingProvider(TracerProvider):
    """A provider whose first exporter goes at the next that is added, as Phoenix's does."""

    def add_span_processor(self, span_processor: SpanProcessor) -> None:
        for each in list(self._active_span_processor._span_processors):
            remove_processor(self, each)
        super().add_span_processor(span_processor)


@pytest.mark.parametrize("is_first", [True, False])
def test_joining_a_provider_takes_no_exporter_of_its_own_out(
    is_first: bool, store: LightningStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, provider = InMemorySpanExporter(), ReplacingProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(theirs))
    if is_first:
        monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    tracer = agl.OtelTracer()
    try:
        with tracer.lifespan(store):
            if not is_first:
                trace.set_tracer_provider(provider)
            with tracer.trace_context() as handle:
                trace.get_tracer("another.library").start_span("step").end()
            stored = {span.name for span in handle.spans()}
    finally:
        if not is_first:
            trace._TRACER_PROVIDER, trace._TRACER_PROVIDER_SET_ONCE._done = None, False
    assert stored == {span.name for span in theirs.get_finished_spans()} == {"rollout", "step"}


def test_a_provider_that_is_shut_down_does_not_end_our_recording(
    store: LightningStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider = TracerProvider(shutdown_on_exit=False)
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    tracer = agl.OtelTracer()
    with tracer.lifespan(store):
        with tracer.trace_context("first") as first:
            agl.emit_reward(1.0)
        provider.shutdown()  # as logfire.shutdown() does
        with tracer.trace_context("second") as second:
            agl.emit_reward(1.0)
    for handle, name in ((first, "first"), (second, "second")):
        found = run_sync(store.query_spans(handle.rollout_id, handle.attempt_id))
        assert {span.name for span in found} == {name, "agentlightning.annotation"}


def test_openinference_where_it_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = InMemorySpanExporter()
    with exporting(theirs):
        stored = record(CALLS, SAYS, conventions="openinference")
    found = attributes_of(seen(theirs, "chat policy")[0])
    assert found["openinference.span.kind"] == "LLM"
    assert found["session.id"] == stored[0].rollout_id
    assert found["llm.input_messages.1.message.content"] == "2 and 3?"
    tool = "llm.output_messages.0.message.tool_calls.0.tool_call"
    assert (found[f"{tool}.function.name"], found[f"{tool}.function.arguments"]) == ("add", '{"a": 2}')
    assert [found[f"llm.token_count.{kind}"] for kind in ("prompt", "completion", "total")] == [3, 1, 4]
    assert json.loads(found["llm.tools.0.tool.json_schema"]) == TOOLS[0]
    kinds = {
        span.name: attributes_of(span).get("openinference.span.kind") for span in theirs.get_finished_spans()
    }
    assert kinds == {
        "rollout": "AGENT",
        "step": None,
        "chat policy": "LLM",
        "agentlightning.annotation": "EVALUATOR",
    }
    monkeypatch.setenv("AGL_CONVENTIONS", "openllmetry")
    with pytest.raises(ConfigurationError, match="AGL_CONVENTIONS"):
        agl.OtelTracer()


def test_the_variable_of_opentelemetry_keeps_what_was_said_to_us(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "false")
    theirs = InMemorySpanExporter()
    with exporting(theirs):
        record(SAYS, conventions="openinference")
        tracer = agl.OtelTracer()
        with tracer.lifespan(InMemoryLightningStore()), tracer.rollout("said aloud") as handle:
            agl.emit_message("said aloud")
            agl.emit_object({"thing": "said aloud"})
            agl.emit_object("said aloud")
            with agl.operation(name="work", kind="tool") as work:
                work.set_input("said aloud", why="said aloud")
                work.set_output(["said aloud"])
            assert str(handle.spans()).count("said aloud") == 6
    found = attributes_of(seen(theirs, "chat policy")[0])
    assert "2 and 3" not in str(found)
    assert found["gen_ai.usage.output_tokens"] == 1
    shown = [attributes_of(span) for span in theirs.get_finished_spans()]
    assert "said aloud" not in str(shown)
    assert "work" in [each.get("agentlightning.operation.name") for each in shown]


def test_a_secret_of_an_error_is_masked_in_events_and_status_and_stored() -> None:
    theirs, out = InMemorySpanExporter(), io.StringIO()
    tracer = agl.OtelTracer()
    with exporting(theirs, ConsoleSpanExporter(out=out)), tracer.lifespan(InMemoryLightningStore()):
        with suppress(ValueError), tracer.trace_context() as handle:
            with handle.start_as_current_span("inner") as inner:
                inner.add_event("asked", {"with": ["a key", SECRET]}, timestamp=1_234_567_890_123_456_789)
                raise ValueError(f"bad key {SECRET}")
        stored = {span.name: span for span in handle.spans()}
    for span in theirs.get_finished_spans():
        events = [(event.name, dict(event.attributes or {})) for event in span.events]
        copies = copy.deepcopy((span._events, span.status))
        told = str((events, span._events, span.status.description, list(copies[0]), copies[1].description))
        assert SECRET not in told + str([event.attributes for event in copies[0]])
        assert events[-1][0] == "exception"
        assert "bad key [redacted:" in str(events[-1][1]["exception.message"])
        assert str(span.status.description).startswith("ValueError: bad key [redacted:")
        own = stored[span.name]
        assert own.status.description == f"ValueError: bad key {SECRET}"
        assert own.events[-1].attributes["exception.message"] == f"bad key {SECRET}"
    assert seen(theirs, "inner")[0].events[0].timestamp == 1_234_567_890_123_456_789
    assert SECRET not in out.getvalue()


def test_a_span_of_no_attempt_is_masked_too_and_names_none() -> None:
    theirs, tracer = InMemorySpanExporter(), agl.OtelTracer()
    with exporting(theirs), tracer.lifespan(InMemoryLightningStore()):
        with tracer.trace_context():
            carried = contextvars.copy_context()
        carried.run(agl.emit_message, f"late {SECRET}")
        agl.emit_message(f"outside {SECRET}")
        with trace.get_tracer("another.library").start_as_current_span("theirs") as span:
            span.set_attribute("key", SECRET)
    late, outside = map(attributes_of, seen(theirs, "agentlightning.message"))
    for found, word in ((late, "late"), (outside, "outside")):
        assert found == {"agentlightning.message.body": f"{word} [redacted:openai_key]"} | {
            "agentlightning.redacted": True
        }
    assert attributes_of(seen(theirs, "theirs")[0]) == {"key": SECRET}


def test_an_operation_reads_what_was_recorded_and_not_what_others_see() -> None:
    tracer = agl.OtelTracer()
    with exporting(InMemorySpanExporter()), tracer.lifespan(InMemoryLightningStore()):
        with suppress(ValueError), tracer.trace_context():
            with agl.operation(name="work") as work:
                work.set_input(key=SECRET)
                raise ValueError(SECRET)
    found = work.span()
    assert found.attributes["agentlightning.operation.input.key"] == SECRET
    assert "agentlightning.rollout_id" not in found.attributes
    assert SECRET in str(found.status.description)


def test_a_reward_passes_the_exporter_that_masks_with_its_evaluation() -> None:
    theirs = InMemorySpanExporter()
    tracer = agl.OtelTracer()
    with exporting(MaskingExporter(theirs)), tracer.lifespan(InMemoryLightningStore()):
        with tracer.trace_context():
            agl.emit_reward(1.0, attributes={"note": SECRET})
    (span,) = seen(theirs, "agentlightning.annotation")
    assert [event.name for event in span.events] == ["gen_ai.evaluation.result"]
    assert "[redacted:" in str(attributes_of(span)["note"])
    assert SECRET not in str(attributes_of(span))


def test_a_span_with_dropped_attributes_is_stored_without_the_events_that_others_see(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    theirs, provider = InMemorySpanExporter(), TracerProvider(span_limits=SpanLimits(max_span_attributes=8))
    provider.add_span_processor(SimpleSpanProcessor(theirs))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    tracer = agl.OtelTracer()
    with tracer.lifespan(InMemoryLightningStore()), tracer.trace_context() as handle:
        with handle.start_as_current_span("work", attributes={f"x{n}": n for n in range(20)}) as span:
            span.set_attributes({"agentlightning.reward.0.name": "a", "agentlightning.reward.0.value": 1.0})
            span.add_event("mine")
    shown, mine = seen(theirs, "work")[0], next(each for each in handle.spans() if each.name == "work")
    assert [event.name for event in shown.events] == ["mine", "gen_ai.evaluation.result"]
    assert [event.name for event in mine.events] == ["mine"]
