"""The SDKs of Langfuse, Logfire and Phoenix in one process with ours: our store is whole, and their side gets the calls whole.

Which of both starts first, and which ends first, makes no difference. What is not installed is skipped;
``scripts/matrix-viewers`` has all.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from otlp_receiver import Receiver
from viewer_agent import MASKED, NAMES, PARAMETERS, REWARD, SECRET, TASK

from agentlightning.types import Span

PROGRAM = Path(__file__).parent / "sdk_beside.py"
LANGFUSE = pytest.mark.skipif(find_spec("langfuse") is None, reason="not installed: langfuse")
PHOENIX = pytest.mark.skipif(find_spec("phoenix") is None, reason="not installed: arize-phoenix-otel")
LOGFIRE = pytest.mark.skipif(find_spec("logfire") is None, reason="not installed: logfire")

WHOLE = {"rollout", "step", "add", "chat policy", "agentlightning.annotation"}
"""What is to be seen of a rollout."""
PASSED = {"langfuse": WHOLE - {"step"}, "langfuse-all": WHOLE, "logfire": WHOLE, "phoenix": WHOLE}
"""What each SDK lets through; Langfuse's own filter drops other libraries' spans that are none of GenAI."""


@pytest.mark.parametrize(
    ("sdk", "first", "down"),
    [
        pytest.param("langfuse", "theirs", "ours", marks=LANGFUSE),
        pytest.param("langfuse-all", "ours", "theirs", marks=LANGFUSE),
        pytest.param("logfire", "theirs", "theirs", marks=LOGFIRE),
        pytest.param("logfire", "ours", "ours", marks=LOGFIRE),
        pytest.param("phoenix", "theirs", "ours", marks=PHOENIX),
        # The others show the same of the pieces that are shown above.
        pytest.param("langfuse", "theirs", "theirs", marks=[LANGFUSE, pytest.mark.soak]),
        pytest.param("langfuse", "ours", "ours", marks=[LANGFUSE, pytest.mark.soak]),
        pytest.param("logfire", "theirs", "ours", marks=[LOGFIRE, pytest.mark.soak]),
        pytest.param("logfire", "ours", "theirs", marks=[LOGFIRE, pytest.mark.soak]),
        pytest.param("phoenix", "ours", "theirs", marks=[PHOENIX, pytest.mark.soak]),
    ],
)
def test_both_sides_are_whole(sdk: str, first: str, down: str) -> None:
    stored, receiver = beside(sdk, first, down)
    for rollout in stored:
        assert set(rollout["names"]) == NAMES
        assert len(rollout["names"]) == 6  # both calls, each once
        assert rollout["captured"] == ["valid", "valid"]
        assert rollout["whole"]
    spans = receiver.all_spans()
    seen_whole(spans, stored[0]["ids"], PASSED[sdk])
    if down == "ours":  # else their exporter had stopped before
        seen_whole(spans, stored[1]["ids"], PASSED[sdk])
    assert SECRET not in str([body for *_, body in receiver.requests]) + str(spans)
    assert all(path.endswith("/v1/traces") for path, *_ in receiver.requests)


@pytest.mark.soak
@LANGFUSE
def test_a_call_of_langfuses_client_is_one_span_on_both_sides() -> None:
    stored, receiver = beside("langfuse-openai", "theirs", "ours")
    for rollout in stored:
        assert set(rollout["names"]) == (NAMES - {"chat policy"}) | {"OpenAI-generation"}
        assert len(rollout["names"]) == 6
        assert rollout["captured"] == ["valid", "valid"]
    names = [span.name for span in receiver.all_spans()]
    assert names.count("OpenAI-generation") == 4
    assert "chat policy" not in names


def beside(sdk: str, first: str, down: str) -> tuple[list[dict[str, Any]], Receiver]:
    """Return what the program has stored, and what the SDK has sent."""
    receiver = Receiver()
    # No setting of the machine names another host.
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("LANGFUSE_", "LOGFIRE_"))
    }
    done = subprocess.run(
        [sys.executable, str(PROGRAM), receiver.url, sdk, first, down],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        timeout=240,
    )
    receiver.close()
    assert done.returncode == 0, done.stderr
    assert "Overriding of current" not in done.stderr
    assert "Traceback" not in done.stderr
    return json.loads(done.stdout), receiver


def seen_whole(spans: list[Span], ids: list[str], names: set[str]) -> None:
    """Assert that a receiver got a rollout whole, by the GenAI conventions, each span once."""
    mine = [span for span in spans if [span.rollout_id, span.attempt_id] == ids]
    assert {span.name for span in mine} == names
    assert len({span.span_id for span in mine}) == len(mine) == len(names) + 1
    first, second = sorted(
        (span for span in mine if span.name == "chat policy"), key=lambda span: span.start_time or 0
    )
    asked = json.loads(first.attributes["gen_ai.input.messages"])
    assert [each["role"] for each in asked] == ["system", "user"]
    assert MASKED in asked[0]["parts"][0]["content"]
    (said,) = json.loads(first.attributes["gen_ai.output.messages"])
    assert (said["parts"][-1]["name"], said["parts"][-1]["arguments"]) == ("add", '{"a": 2, "b": 3}')
    assert json.loads(first.attributes["gen_ai.tool.definitions"]) == [
        {"type": "function", "name": "add", "description": "Adds", "parameters": PARAMETERS}
    ]
    (answered,) = json.loads(second.attributes["gen_ai.output.messages"])
    assert answered["parts"] == [{"type": "text", "content": "It is 5"}]
    assert [list(span.attributes["gen_ai.response.finish_reasons"]) for span in (first, second)] == [
        ["tool_calls"],
        ["stop"],
    ]
    usages = [
        (span.attributes["gen_ai.usage.input_tokens"], span.attributes["gen_ai.usage.output_tokens"])
        for span in (first, second)
    ]
    assert usages == [(3, 1), (4, 3)]
    by_name: dict[str, Any] = {span.name: span.attributes for span in mine}
    assert TASK in by_name["rollout"]["gen_ai.input.messages"]
    assert by_name["add"]["gen_ai.operation.name"] == "execute_tool"
    (reward,) = [span for span in mine if span.name == "agentlightning.annotation"]
    scores = {
        event.attributes["gen_ai.evaluation.name"]: event.attributes["gen_ai.evaluation.score.value"]
        for event in reward.events
    }
    assert scores == REWARD
