"""Lines of programs that were written for Agent Lightning 0.3 do here what they did there."""

from __future__ import annotations

import asyncio
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import TracerProvider

import agentlightning as agl
from agentlightning import setup_logging, setup_module_logging
from agentlightning.logging import setup
from agentlightning.store import LightningStore
from agentlightning.tracer import AgentOpsTracer, DummyTracer
from agentlightning.tracer.agentops import LightningSpanProcessor
from agentlightning.types import Span


@pytest.fixture
def _quiet() -> Iterator[None]:
    yield
    setup("WARNING")
    logging.getLogger("agentlightning.store").setLevel(logging.NOTSET)
    logging.captureWarnings(False)


# ---------------------------------------------------------------------- emitters


def test_an_annotation_named_reward_is_a_reward(tracer: agl.OtelTracer) -> None:
    with tracer.trace_context() as handle:
        agl.emit_annotation({"reward": 0.5})
        agl.emit_annotation({"note": "no reward"})
    spans = handle.spans()
    assert [agl.get_reward_value(span) for span in spans[:2]] == [0.5, None]
    assert agl.find_final_reward(spans) == 0.5


@pytest.mark.parametrize("literal", [False, True, 0, 0.0, "", b"", "False"])
def test_an_object_comes_back_as_it_was_given(tracer: agl.OtelTracer, literal: object) -> None:
    with tracer.trace_context() as handle:
        agl.emit_object(literal)
    value = agl.get_object_value(handle.spans()[0])
    assert (type(value), value) == (type(literal), literal)


@pytest.mark.parametrize(("written", "value"), [("false", False), ("False", False), ("true", True)])
def test_a_boolean_is_read_in_any_spelling(written: str, value: bool) -> None:
    attributes = {"agentlightning.object.type": "bool", "agentlightning.object.literal": written}
    assert agl.get_object_value(Span.from_attributes(attributes=attributes)) is value


# ---------------------------------------------------------------------- tracers


def test_a_second_active_tracer_is_a_value_error() -> None:
    first = DummyTracer()
    agl.set_active_tracer(first)
    try:
        for tracer in (DummyTracer(), first):
            with pytest.raises(ValueError, match="already active"):
                agl.set_active_tracer(tracer)
        assert agl.get_active_tracer() is first
    finally:
        agl.clear_active_tracer()
    agl.set_active_tracer(first)
    agl.clear_active_tracer()


def test_a_processor_alone_keeps_the_spans_of_its_body() -> None:
    processor = LightningSpanProcessor()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(processor)
    with processor:
        with provider.get_tracer("agent").start_as_current_span("outer"):
            provider.get_tracer("agent").start_span("inner").end()
    assert [span.name for span in processor.spans()] == ["inner", "outer"]
    with processor:
        assert processor.spans() == []
    provider.shutdown()


def test_a_span_that_only_ended_under_a_processor_belongs_to_the_attempt_that_was_named(
    store: LightningStore,
) -> None:
    rollout = asyncio.run(store.start_rollout("task"))
    ids = rollout.rollout_id, rollout.attempt.attempt_id
    processor = LightningSpanProcessor()
    started = TracerProvider(shutdown_on_exit=False).get_tracer("agent").start_span("begun before")
    started.end()
    with processor.with_context(store, *ids):
        processor.on_end(started)  # type: ignore[arg-type]
    assert processor.force_flush(10_000)
    assert [span.name for span in asyncio.run(store.query_spans(*ids))] == ["begun before"]
    assert asyncio.run(store.get_receipt(*ids)).whole
    processor.on_end(started)  # type: ignore[arg-type]
    assert [span.name for span in processor.spans()] == ["begun before"]
    processor.shutdown()


def test_handlers_of_langchain_take_tags_under_both_names() -> None:
    tracer = AgentOpsTracer(agentops_managed=False, instrument_managed=False)
    assert type(tracer.get_langchain_handler(tags=["a"])) is type(
        tracer.get_langchain_callback_handler(["a"])
    )
    assert DummyTracer().get_langchain_handler(["a"]) is None


def test_a_user_instruments_by_hand() -> None:
    tracer = AgentOpsTracer(agentops_managed=False, instrument_managed=False)
    tracer.instrument(0)
    tracer.uninstrument(0)


# ---------------------------------------------------------------------- stores


def test_the_memory_store_takes_every_argument_of_0_3() -> None:
    store = agl.InMemoryLightningStore(
        thread_safe=True,
        eviction_memory_threshold=None,
        safe_memory_threshold=None,
        span_size_estimator=None,
        tracker=None,
        scan_debounce_seconds=0.0,
    )
    assert asyncio.run(store.dequeue_rollout()) is None
    asyncio.run(store.close())


# ---------------------------------------------------------------------- logging


@pytest.mark.usefixtures("_quiet")
def test_logging_takes_every_argument_of_0_3(tmp_path: Path) -> None:
    extra, other = io.StringIO(), io.StringIO()
    handler = logging.StreamHandler(extra)
    handler.setFormatter(logging.Formatter("mine %(message)s"))
    setup_logging(
        "INFO",
        console=False,
        color=False,
        propagate=False,
        disable_existing_loggers=False,
        capture_warnings=True,
        submodule_levels={"agentlightning.store": "DEBUG"},
        extra_handlers=[handler, logging.StreamHandler(other)],
        formatter=logging.Formatter("all %(message)s"),
        apply_to=["py.warnings"],
        files={"agentlightning.store": str(tmp_path / "store.log")},
    )
    logging.getLogger("agentlightning.store").debug("deep")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("odd", stacklevel=1)
    assert extra.getvalue().startswith("mine deep\n")
    assert "odd" in extra.getvalue()
    assert other.getvalue().startswith("all deep\n")
    assert (tmp_path / "store.log").read_text(encoding="utf-8") == "all deep\n"


@pytest.mark.usefixtures("_quiet")
def test_a_file_gets_the_lines_and_a_repeat_closes_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    setup_logging(files=str(tmp_path / "one.log"))
    logging.getLogger("agentlightning.x").info("first")
    setup_logging(console=False)
    logging.getLogger("agentlightning.x").info("second")
    assert (tmp_path / "one.log").read_text(encoding="utf-8").endswith("first\n")
    assert capsys.readouterr().err.endswith("first\n")


@pytest.mark.usefixtures("_quiet")
def test_one_module_logs_by_itself(capsys: pytest.CaptureFixture[str]) -> None:
    logger = setup_module_logging("DEBUG", name="my.module", console=True, color=False)
    logger.debug("here")
    assert capsys.readouterr().err.endswith("here\n")
    setup_module_logging("WARNING", name="my.module", console=False)
    assert logger.handlers == []
