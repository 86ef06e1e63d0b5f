from __future__ import annotations

import json
import logging
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from agentlightning.codec.attributes import make_link_attributes, make_tag_attributes
from agentlightning.emitter import (
    emit_annotation,
    emit_exception,
    emit_message,
    emit_object,
    emit_reward,
    encode_object,
    find_final_reward,
    find_reward_spans,
    get_message_value,
    get_object_value,
    get_reward_value,
    get_rewards_from_span,
    is_reward_span,
    reward,
)
from agentlightning.tracer.base import Tracer, clear_active_tracer, set_active_tracer
from agentlightning.tracer.otel import OtelTracer
from agentlightning.types import Span, SpanCoreFields
from agentlightning.types.semconv import RewardPydanticModel


@pytest.fixture
def tracer() -> Iterator[OtelTracer]:
    tracer = OtelTracer()
    with tracer.lifespan():
        yield tracer


def recorded(tracer: OtelTracer, work: Callable[[], Any]) -> list[Span]:
    with tracer.trace_context():
        work()
    return [span for span in tracer.get_last_trace() if span.name.startswith("agentlightning.")]


def a_span(name: str = "agentlightning.annotation", /, **attributes: Any) -> Span:
    return Span.from_attributes(attributes=attributes, name=name)


# ------------------------------------------------------------------ rewards


def test_a_number_is_recorded_as_the_primary_reward(tracer: OtelTracer) -> None:
    (span,) = recorded(tracer, lambda: emit_reward(0.5))

    assert span.name == "agentlightning.annotation"
    assert span.attributes == {
        "agentlightning.reward.0.name": "primary",
        "agentlightning.reward.0.value": 0.5,
    }
    assert span.status.status_code == "OK"
    assert get_reward_value(span) == 0.5


def test_several_dimensions_are_recorded_with_the_primary_one_first(tracer: OtelTracer) -> None:
    (span,) = recorded(tracer, lambda: emit_reward({"speed": 0.1, "done": 1.0}, primary_key="done"))

    assert get_reward_value(span) == 1.0
    assert get_rewards_from_span(span) == [
        RewardPydanticModel(name="done", value=1.0),
        RewardPydanticModel(name="speed", value=0.1),
    ]


def test_links_and_tags_go_along(tracer: OtelTracer) -> None:
    attributes = {
        **make_link_attributes({"gen_ai.response.id": "r-1"}),
        **make_tag_attributes(["judge"]),
        "n": {"m": 1},
    }

    (span,) = recorded(tracer, lambda: emit_reward(1.0, attributes=attributes))

    assert span.attributes["agentlightning.link.0.key_match"] == "gen_ai.response.id"
    assert span.attributes["agentlightning.link.0.value_match"] == "r-1"
    assert span.attributes["agentlightning.tag.0"] == "judge"
    assert span.attributes["n.m"] == 1


@pytest.mark.parametrize(
    ("given", "value"),
    [
        (True, 1.0),
        (False, 0.0),
        (3, 3.0),
        (np.float32(0.5), 0.5),
        (np.int64(2), 2.0),
        (np.bool_(True), 1.0),
        (np.array(0.25), 0.25),
        (np.array([0.25]), 0.25),
        (Decimal("0.5"), 0.5),
        (Fraction(1, 2), 0.5),
    ],
)
def test_whatever_is_a_number_is_a_reward(given: Any, value: float) -> None:
    assert get_reward_value_of(emit_reward(given, propagate=False)) == value


def get_reward_value_of(fields: SpanCoreFields) -> Any:
    return fields.attributes["agentlightning.reward.0.value"]


@pytest.mark.parametrize("given", ["0.5", None, b"1", object(), [1.0], np.array([1.0, 2.0]), 1j])
def test_what_is_no_number_is_refused(given: Any) -> None:
    with pytest.raises(TypeError, match="Reward must be a float, got"):
        emit_reward(given, propagate=False)


def test_a_dict_needs_a_primary_key_that_it_holds() -> None:
    with pytest.raises(ValueError, match="primary_key="):
        emit_reward({"a": 1.0}, propagate=False)
    with pytest.raises(ValueError, match="'b' is not one of the rewards: a"):
        emit_reward({"a": 1.0}, primary_key="b", propagate=False)
    with pytest.raises(TypeError, match="Reward must be a float"):
        emit_reward({"a": "bad"}, primary_key="a", propagate=False)
    with pytest.raises(ValueError, match="too large"):
        emit_reward(10**400, propagate=False)


@pytest.mark.parametrize("given", [math.nan, math.inf, -math.inf])
def test_a_reward_that_is_not_finite_is_recorded_and_read_as_unscored(
    tracer: OtelTracer, given: float
) -> None:
    (span,) = recorded(tracer, lambda: emit_reward(given))

    assert str(span.attributes["agentlightning.reward.0.value"]) == str(given)
    assert is_reward_span(span)
    assert get_reward_value(span) is None
    assert find_final_reward([span]) is None


def test_without_propagate_the_tracer_records_nothing_and_the_span_is_returned(tracer: OtelTracer) -> None:
    given: list[SpanCoreFields] = []

    spans = recorded(tracer, lambda: given.append(emit_reward(0.5, propagate=False)))

    assert spans == []
    assert given[0].name == "agentlightning.annotation"
    assert given[0].attributes["agentlightning.reward.0.value"] == 0.5


def test_the_outcome_is_the_last_reward_that_was_given() -> None:
    first, last = a_reward(0.1), a_reward(0.9)
    nothing = a_span("work", **{"agentops.task.output": '{"type": "reward", "value": null}'})

    assert find_final_reward([first, last, nothing]) == 0.9
    assert find_final_reward([last, a_reward(math.nan)]) is None
    assert find_final_reward([]) is None
    assert find_reward_spans([a_span("other"), first, nothing]) == [first, nothing]


def a_reward(value: float) -> Span:
    return a_span(**{"agentlightning.reward.0.name": "primary", "agentlightning.reward.0.value": value})


@pytest.mark.parametrize(
    "span",
    [
        a_span("reward", **{"agentops.task.output": json.dumps({"type": "reward", "value": 0.5})}),
        a_span("reward", **{"agentops.entity.output": {"type": "reward", "value": 0.5}}),
        a_span("agentlightning.reward", reward=0.5),
        a_span(
            "agentlightning.operation",
            **{
                "agentlightning.operation.name": "agentlightning.reward",
                "agentlightning.reward.0.name": "primary",
                "agentlightning.reward.0.value": 0.5,
            },
        ),
    ],
)
def test_older_forms_of_rewards_are_read(span: Span) -> None:
    assert get_reward_value(span) == 0.5


@pytest.mark.parametrize(
    "span",
    [
        a_span("other", **{"agentlightning.reward.0.name": "p", "agentlightning.reward.0.value": 1.0}),
        a_span(
            "agentlightning.operation",
            **{
                "agentlightning.operation.name": "else",
                "agentlightning.reward.0.name": "p",
                "agentlightning.reward.0.value": 1.0,
            },
        ),
        a_span("work", **{"agentops.task.output": '{"type": "result", "value": 1}'}),
        a_span("work", **{"agentops.task.output": "{broken"}),
        a_span("work", **{"agentops.task.output": "[" * 100_000}),
        a_span(),
    ],
)
def test_what_is_no_reward_is_not_read_as_one(span: Span) -> None:
    assert get_reward_value(span) is None
    assert not is_reward_span(span)


def test_readers_take_opentelemetry_spans() -> None:
    attributes: dict[str, Any] = {"agentlightning.reward.0.name": "p", "agentlightning.reward.0.value": 0.5}
    span = ReadableSpan("agentlightning.annotation", attributes=attributes)

    assert get_reward_value(span) == 0.5
    assert get_message_value(ReadableSpan("agentlightning.message", attributes={"message": "old"})) == "old"


# ------------------------------------------------------------------ the reward decorator


def test_the_decorator_records_the_result_and_returns_it(tracer: OtelTracer) -> None:
    @reward
    def judge(answer: str) -> float:
        return float(len(answer))

    results: list[float] = []
    (span,) = recorded(tracer, lambda: results.append(judge("abc")))

    assert results == [3.0]
    assert span.name == "agentlightning.operation"
    assert span.attributes["agentlightning.operation.name"] == "agentlightning.reward"
    assert span.attributes["agentlightning.operation.input.answer"] == "abc"
    assert get_reward_value(span) == 3.0


def test_a_decorated_function_that_returns_no_number_gives_no_reward(tracer: OtelTracer) -> None:
    @reward
    def judge() -> None:
        return None

    (span,) = recorded(tracer, judge)

    assert not is_reward_span(span)


def test_reward_is_a_decorator_and_a_module_in_whatever_order_it_is_imported() -> None:
    code = """
import agentlightning.emitter.reward, agentlightning.reward
from agentlightning.emitter import reward as first
from agentlightning import reward as second
import agentlightning.reward as third
from agentlightning.reward import reward as fourth, emit_reward
for decorate in (first, second, third, fourth, agentlightning.emitter.reward):
    assert decorate(lambda: 1.0)() == 1.0
assert agentlightning.reward.emit_reward is agentlightning.emitter.reward.emit_reward is emit_reward
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# ------------------------------------------------------------------ messages, objects, exceptions, annotations


def test_a_message_round_trips(tracer: OtelTracer) -> None:
    (span,) = recorded(tracer, lambda: emit_message("hello", attributes={"a": {"b": None}}))

    assert span.name == "agentlightning.message"
    assert get_message_value(span) == "hello"
    assert span.attributes["a.b"] == "null"
    with pytest.raises(TypeError, match="message must be a str, got int"):
        emit_message(1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "value", ["text", 1, 1.5, True, False, b"\x00\xff", {"a": [1, None]}, [1, "x"], None, [], math.inf]
)
def test_an_object_round_trips(tracer: OtelTracer, value: Any) -> None:
    (span,) = recorded(tracer, lambda: emit_object(value))

    assert span.name == "agentlightning.object"
    assert get_object_value(span) == value
    assert type(get_object_value(span)) is type(value)


def test_what_is_no_json_value_is_refused() -> None:
    with pytest.raises(RuntimeError, match="object must be a JSON value, got object"):
        emit_object(object(), propagate=False)


def test_objects_have_the_attributes_of_0_3() -> None:
    assert encode_object("x") == {"agentlightning.object.type": "str", "agentlightning.object.literal": "x"}
    assert encode_object({"a": 1}) == {
        "agentlightning.object.type": "dict",
        "agentlightning.object.json": '{"a": 1}',
    }


def test_a_broken_object_span_is_read_as_text() -> None:
    assert get_object_value(a_span("x", **{"agentlightning.object.json": "{"})) == "{"
    literal = {"agentlightning.object.type": "int", "agentlightning.object.literal": "x"}
    assert get_object_value(a_span("x", **literal)) == "x"
    assert get_object_value(a_span("agentlightning.object", object='{"a": 1}')) == {"a": 1}
    assert get_object_value(a_span("other", object='{"a": 1}')) is None


def test_an_exception_is_recorded_and_leaves_the_status_ok(tracer: OtelTracer) -> None:
    (span,) = recorded(tracer, lambda: emit_exception(ValueError("wrong"), {"step": 3}))

    assert span.name == "agentlightning.exception"
    assert span.attributes["exception.type"] == "ValueError"
    assert span.attributes["exception.message"] == "wrong"
    assert span.attributes["step"] == 3
    assert span.status.status_code == "OK"
    with pytest.raises(TypeError, match="must be an exception, got str"):
        emit_exception("text")  # type: ignore[arg-type]


def test_annotations_are_flattened(tracer: OtelTracer) -> None:
    (span,) = recorded(tracer, lambda: emit_annotation({"a": {"b": [1, 2]}, "c": object}))

    assert span.attributes["a.b"] == [1, 2]
    assert span.attributes["c"] == "\"<class 'object'>\""
    with pytest.raises(TypeError, match="annotation must be a dict, got list"):
        emit_annotation([1])  # type: ignore[arg-type]


def test_odd_annotations_are_recorded_all_the_same() -> None:
    loop: dict[Any, Any] = {1: "one"}
    loop["self"] = loop

    fields = emit_annotation(loop, propagate=False)

    assert fields.attributes["1"] == "one"
    assert "self" in fields.attributes


# ------------------------------------------------------------------ without a tracer of ours


class BrokenTracer(Tracer):
    def create_span(self, *args: Any, **kwargs: Any) -> SpanCoreFields:
        raise OSError("disk full")


def test_a_tracer_that_fails_does_not_reach_the_agent() -> None:
    set_active_tracer(BrokenTracer())
    try:
        fields = emit_reward(0.5)
    finally:
        clear_active_tracer()

    assert fields.attributes["agentlightning.reward.0.value"] == 0.5


SILENT = """
import logging, sys
from agentlightning.emitter import emit_reward, emit_message, operation
logging.basicConfig(stream=sys.stdout, format="%(levelname)s %(message)s")
emit_message("one")
assert emit_reward(1.0).attributes["agentlightning.reward.0.value"] == 1.0
with operation(name="x") as op:
    op.set_output(1)
assert op.span().attributes["agentlightning.operation.output"] == 1
"""

FOREIGN = """
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
exporter = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
from agentlightning.emitter import emit_reward, operation, get_reward_value
from agentlightning.utils.otel import get_tracer, get_tracer_provider
emit_reward(0.5)
try:
    with operation(name="outer") as op:
        op.set_input(1, x="y")
        emit_reward(0.7)
        raise KeyError("k")
except KeyError:
    pass
first, inner, outer = exporter.get_finished_spans()
assert get_reward_value(first) == 0.5 and first.status.is_ok
assert inner.parent.span_id == outer.context.span_id
assert outer.name == "agentlightning.operation"
assert outer.attributes["agentlightning.operation.input.args.0"] == 1
assert outer.attributes["agentlightning.operation.input.x"] == "y"
assert not outer.status.is_ok and outer.events[0].name == "exception"
assert op.span().status.status_code == "ERROR"
assert get_tracer_provider() is provider
get_tracer(use_active_span_processor=False).start_span("aside").end()
get_tracer().start_span("seen").end()
assert [span.name for span in exporter.get_finished_spans()[3:]] == ["seen"]
"""


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, timeout=60, capture_output=True, text=True
    )
    return done.stdout


def test_where_nothing_records_a_log_line_says_so_once() -> None:
    lines = run(SILENT).splitlines()

    assert len(lines) == 1
    assert lines[0].startswith("WARNING no tracer is active here")


def test_without_a_tracer_of_ours_the_global_provider_records() -> None:
    run(FOREIGN)


def test_the_debug_switch_logs_every_emitted_span(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGL_EMITTER_DEBUG", "1")
    with caplog.at_level(logging.DEBUG, "agentlightning"):
        emit_reward(0.5, propagate=False)
    monkeypatch.setenv("AGL_EMITTER_DEBUG", "perhaps")
    emit_reward(0.5, propagate=False)

    assert [record.getMessage() for record in caplog.records if "emitting" in record.getMessage()] == [
        "emitting agentlightning.annotation with attributes "
        "['agentlightning.reward.0.name', 'agentlightning.reward.0.value']"
    ]


def test_a_foreign_provider_is_left_as_it_was() -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with provider.get_tracer("t").start_as_current_span("theirs"):
        emit_reward(0.5, propagate=False)
    provider.shutdown()

    assert [span.name for span in exporter.get_finished_spans()] == ["theirs"]
