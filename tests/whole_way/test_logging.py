"""Logs for people and for programs, which can be put beside spans."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from agentlightning import logging as ours  # not by name: pytest takes a ``setup_module`` for its own
from agentlightning.store import LightningStore
from agentlightning.tracer import OtelTracer


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """Where the lines go; the loggers are as before afterwards."""
    names = ("agentlightning", "agentlightning.store", "my.agent")
    before = {
        name: (each.level, list(each.handlers), each.propagate)
        for name in names
        for each in [logging.getLogger(name)]
    }
    yield io.StringIO()
    for name, (level, handlers, propagate) in before.items():
        logger = logging.getLogger(name)
        logger.setLevel(level)
        logger.handlers[:] = handlers
        logger.propagate = propagate


def parsed(lines: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines.getvalue().splitlines()]


@pytest.mark.asyncio
async def test_every_line_is_json_and_names_the_span_and_the_rollout(
    store: LightningStore, tracer: OtelTracer, lines: io.StringIO
) -> None:
    ours.setup("INFO", format="json", handler=logging.StreamHandler(lines), apply_to=["my.agent"])
    agent = logging.getLogger("my.agent")
    agent.info("before")
    async with tracer.trace_context() as trace:
        with trace.start_as_current_span("work") as span:
            agent.warning("two\nlines \ud800 %s", {"a": 1}, extra={"reward": 0.5, "odd": object()})
            try:
                raise ValueError("no")
            except ValueError:
                agent.exception("failed")
    outside, inside, failed = parsed(lines)
    assert "trace_id" not in outside
    assert inside["message"].startswith("two\nlines")
    assert inside["reward"] == 0.5
    assert inside["trace_id"] == f"{span.get_span_context().trace_id:032x}"
    assert inside["span_id"] == f"{span.get_span_context().span_id:016x}"
    assert (inside["rollout_id"], inside["attempt_id"]) == (trace.rollout_id, trace.attempt_id)
    assert inside["level"] == "WARNING"
    assert "ValueError: no" in failed["exception"]


def test_the_level_changes_at_run_time_and_a_repeat_does_not_double_lines(lines: io.StringIO) -> None:
    logger = logging.getLogger("agentlightning.store")
    ours.setup("WARNING", format="json", handler=logging.StreamHandler(lines))
    logger.info("not yet")
    ours.setup(
        "WARNING",
        format="json",
        handler=logging.StreamHandler(lines),
        submodule_levels={logger.name: "DEBUG"},
    )
    logger.info("now")
    assert [line["message"] for line in parsed(lines)] == ["now"]


def test_the_names_of_old(lines: io.StringIO) -> None:
    assert ours.configure_logger(logging.DEBUG).level == logging.DEBUG
    assert ours.setup_module("ERROR", name="my.agent").level == logging.ERROR
    assert logging.getLogger("agentlightning").level == logging.DEBUG
    assert lines.getvalue() == ""


@pytest.mark.parametrize(("level", "form"), [("LOUD", "json"), ("INFO", "xml")])
def test_what_is_unknown_is_said(level: str, form: Any, lines: io.StringIO) -> None:
    with pytest.raises(ValueError, match=r"LOUD|xml"):
        ours.setup(level, format=form, handler=logging.StreamHandler(lines))


def test_a_record_that_cannot_be_written_as_json_is_written_all_the_same() -> None:
    record = logging.makeLogRecord({"msg": "%s", "args": (b"\xff",), "value": {1: {2, 3}}})
    assert json.loads(ours.JsonFormatter().format(record))["message"] == "b'\\xff'"


KEY = "sk-proj-Ab12Cd34Ef56Gh78Ij90Kl"


@pytest.mark.parametrize("form", ["text", "json"])
def test_no_key_is_written_whatever_carries_it(form: Any, lines: io.StringIO) -> None:
    handler = logging.StreamHandler(lines)
    for _ in range(2):
        ours.setup("INFO", format=form, handler=handler, apply_to=["my.agent"])
    assert len(handler.filters) == 1
    agent = logging.getLogger("my.agent")
    agent.info("key %s", KEY, extra={"api_key": "hunter2", "odd": [KEY, {KEY: 1}]})
    try:
        raise ValueError(KEY)
    except ValueError:
        agent.exception("with its stack", stack_info=True)
    written = lines.getvalue()
    assert KEY not in written
    assert "hunter2" not in written
    assert "[redacted:" in written
    assert "with its stack" in written
    if form == "json":
        assert len(parsed(lines)) == 2
