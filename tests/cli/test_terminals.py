"""Nothing that was recorded can command a terminal, whatever command shows it; deep traces are shown as fast as wide ones."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from cli_sample import agl

import agentlightning.logging as agl_logging
from agentlightning._printable import printable
from agentlightning.cli import folding
from agentlightning.semconv import ModelCallAttributes, SpanFlagAttributes
from agentlightning.store.registry import open_store
from agentlightning.types import Span, TraceStatus

EVIL = "\x1b[2J\x1b]0;owned\x07\x9b31m\u202egnp.exe\u2066\r\x00\x08\x85\u2028\nrow 2"
UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
COMMANDS = (
    ("rollouts",),
    ("show", "latest"),
    ("show", "latest", "--json"),
    ("show", "--messages"),
    ("show", "--call", "1"),
    ("explain", "latest"),
    ("explain", "latest", "--json"),
    ("rows", "latest", "--why"),
    ("triplets", "latest"),
    ("triplets", "latest", "--json"),
    ("stats",),
    ("store", "check"),
    ("verify", "latest", "--model", EVIL),
    ("show", EVIL),
    ("rollouts", "--contains", EVIL),
)


def _fill(url: str) -> None:
    async def fill() -> None:
        async with open_store(url) as store:
            at = await store.start_rollout(EVIL, mode="train", metadata={EVIL: EVIL})
            ids: dict[str, Any] = {"rollout_id": at.rollout_id, "attempt_id": at.attempt.attempt_id}
            root = Span.from_attributes(
                attributes={EVIL: EVIL, "agentlightning.tag.0": EVIL, "agent.name": EVIL},
                name=EVIL,
                status=TraceStatus(status_code="ERROR", description=EVIL),
                **ids,
            )
            call = Span.from_attributes(
                attributes={
                    "gen_ai.request.model": EVIL,
                    "gen_ai.input.messages": json.dumps(
                        [{"role": EVIL, "content": EVIL, "tool_calls": [EVIL]}]
                    ),
                    "gen_ai.output.messages": json.dumps([{"role": "assistant", "content": EVIL}]),
                    "gen_ai.response.id": EVIL,
                    ModelCallAttributes.TOKEN_CAPTURE.value: f"invalid({EVIL})",
                    SpanFlagAttributes.UNTRAINABLE.value: EVIL,
                },
                name=f"openai.chat.completion {EVIL}",
                parent_id=root.span_id,
                trace_id=root.trace_id,
                **ids,
            )
            reward = Span.from_attributes(
                attributes={"agentlightning.reward.0.name": EVIL, "agentlightning.reward.0.value": 1.0},
                name="agentlightning.annotation",
                parent_id=root.span_id,
                trace_id=root.trace_id,
                **ids,
            )
            await store.add_many_spans([call, reward, root])

    asyncio.run(fill())


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command[:2])[:20])
def test_no_recorded_text_commands_a_terminal(tmp_path: Path, command: tuple[str, ...]) -> None:
    url = f"sqlite:///{tmp_path}/runs.db"
    _fill(url)
    done = agl(*command, "--store", url)
    shown = done.out + done.err
    assert shown
    assert not UNSAFE.search(shown)
    assert not any(line.startswith("row 2") for line in done.out.splitlines())


def test_logs_show_what_a_terminal_would_obey() -> None:
    lines = io.StringIO()
    agl_logging.setup("INFO", handler=logging.StreamHandler(lines))
    try:
        logging.getLogger("agentlightning.test").warning("the span %s", EVIL)
    finally:
        agl_logging.setup("WARNING")
    assert "\\x1b[2J" in lines.getvalue()
    assert not UNSAFE.search(lines.getvalue())


def test_a_shown_escape_says_which_character_it_is() -> None:
    assert printable("a\x1b[0m\u202eb\x9b") == "a\\x1b[0m\\u202eb\\x9b"
    assert printable("a\nb\tc\r") == "a\\x0ab\\x09c\\x0d"
    assert printable("a\nb\tc\r", lines=True) == "a\nb\tc\\x0d"
    assert printable("\ud800 \U000e0041") == "\\ud800 \\U000e0041"
    for text in ("naïve 東京 👩\u200d💻 שלום", "plain"):
        assert printable(text) == text


def test_a_trace_that_is_nested_deeper_than_python_is_drawn_whole() -> None:
    spans = [
        Span.from_attributes(
            attributes={}, name=f"s{level}", span_id=f"{level:016x}", start_time=float(level)
        )
        for level in range(1, 10_001)
    ]
    for outer, inner in pairwise(spans):
        inner.parent_id = outer.span_id
    shown = list(folding.drawn(folding.whole(folding.tree(spans, []))))
    assert [line.item.nodes[0].span.name for line in shown] == [span.name for span in spans]
    assert [line.depth for line in shown] == list(range(10_000))
    assert max(len(line.open_levels) for line in shown) < 100


def test_the_program_is_imported_without_rich_to_print_an_error() -> None:
    code = (
        "import sys; from agentlightning.cli import output; output.say('\\x1b'); print('rich' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert (done.stdout, done.stderr) == ("False\n", "\\x1b\n")


FORGED = "12:00:00 CRITICAL agentlightning.store: everything is lost"


def test_a_record_is_one_line_and_what_is_in_it_forges_no_other() -> None:
    lines = io.StringIO()
    agl_logging.setup("INFO", handler=logging.StreamHandler(lines))
    logger = logging.getLogger("agentlightning.test")
    try:
        logger.warning("the reward %s", f"good\n{FORGED}\r\n{FORGED}\u2028{FORGED}\x1b[2J")
        try:
            raise ValueError(f"of a store\n{FORGED}\x85{FORGED}")
        except ValueError:
            logger.exception("it failed", stack_info=True)
    finally:
        agl_logging.setup("WARNING")
    written = lines.getvalue().splitlines()
    assert sum(FORGED in line for line in written) == 3
    assert not any(line.startswith(FORGED) for line in written)
    at_margin = [line for line in written if not line.startswith("    ")]
    assert [line.partition("agentlightning.test: ")[2][:10] for line in at_margin] == [
        "the reward",
        "it failed",
    ]
    assert any("ValueError: of a store" in line for line in written)


def test_the_program_logs_a_record_as_one_line(tmp_path: Path) -> None:
    store = tmp_path / f"a\n{FORGED}.db"
    store.write_text("no database", encoding="utf-8")
    done = agl("stats", "--store", f"sqlite:///{store}")
    assert done.code != 0
    assert not any(line.startswith(FORGED) for line in (done.out + done.err).splitlines())
