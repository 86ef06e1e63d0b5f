"""The real Phoenix and the real MLflow show a rollout whole, sent live by an exporter of theirs and from the store.

They are asked by their own interfaces. ``scripts/matrix-viewers`` runs this with both installed.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import viewer_servers
from viewer_agent import MASKED, NAMES, REWARD, SECRET, TASK, TOOLS, work

import agentlightning as agl
from agentlightning.cli import main
from agentlightning.testing import wait_until
from agentlightning.testing.fake_openai import FakeOpenAI

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        not (viewer_servers.PHOENIX and viewer_servers.MLFLOW), reason="scripts/matrix-viewers runs it"
    ),
]
AGENT = Path(__file__).with_name("viewer_agent.py")
SHOWN = (NAMES - {"agentlightning.operation"}) | {"add"}
WAYS = ["live gen_ai", "live openinference", "stored"]


@dataclass
class Sent:
    """A rollout that a viewer has."""

    ids: tuple[str, str]
    url: str
    store: str

    def again(self, kind: str) -> None:
        """Send it from the store."""
        assert main(["export", self.ids[0], "--store", self.store, "--to", kind, self.url]) == 0


def send(way: str, kind: str, url: str, folder: Path) -> Sent:
    """Do a rollout, and send it."""
    folder.mkdir()
    store = f"sqlite:///{folder / 'store.db'}"
    if way == "stored":
        with FakeOpenAI() as server, agl.open_store(store) as opened:
            tracer = agl.OtelTracer(capture_tokens="request")
            with tracer.lifespan(opened):
                rollout = work(tracer, server)
        sent = Sent((rollout.rollout_id, rollout.attempt_id), url, store)
        sent.again(kind)
        return sent
    headers = json.dumps({"x-mlflow-experiment-id": "0"} if kind == "mlflow" else {})
    command = [sys.executable, str(AGENT), f"{url}/v1/traces", headers, store, way.partition(" ")[2]]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rollout_id, attempt_id = json.loads(done.stdout)
    return Sent((rollout_id, attempt_id), url, store)


@pytest.fixture(scope="module")
def phoenix(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with viewer_servers.phoenix(tmp_path_factory.mktemp("phoenix")) as url:
        yield url


@pytest.fixture(scope="module")
def mlflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with viewer_servers.mlflow(tmp_path_factory.mktemp("mlflow")) as url:
        yield url


def of_rollout(spans: list[dict[str, Any]], ids: tuple[str, str]) -> list[dict[str, Any]]:
    """Return the spans that name a rollout and attempt."""
    names = ("agentlightning.rollout_id", "agentlightning.attempt_id")
    return [span for span in spans if tuple(span["attributes"].get(name) for name in names) == ids]


@pytest.mark.parametrize("way", WAYS)
def test_phoenix_shows_it_whole(phoenix: str, way: str, tmp_path: Path) -> None:
    sent = send(way, "phoenix", phoenix, tmp_path / "agent")

    def arrived() -> list[dict[str, Any]]:  # it answers before it has written
        found = of_rollout(viewer_servers.phoenix_spans(phoenix), sent.ids)
        return found if len(found) >= 6 else []

    spans = wait_until(arrived)
    assert len(spans) == 6
    by_name = {span["name"]: span for span in spans}
    assert by_name.keys() == SHOWN
    kinds = {span["name"]: span["span_kind"] for span in spans}
    assert (kinds["rollout"], kinds["add"], kinds["chat policy"]) == ("AGENT", "TOOL", "LLM")
    first, second = (
        span["attributes"]
        for span in sorted(spans, key=lambda span: span["start_time"])
        if span["name"] == "chat policy"
    )
    asked = "llm.input_messages"
    assert first[f"{asked}.0.message.content"] == f"Be short. Your key is {MASKED}."
    assert (first[f"{asked}.1.message.role"], first[f"{asked}.1.message.content"]) == ("user", TASK)
    tool = "message.tool_calls.0.tool_call"
    assert first[f"llm.output_messages.0.{tool}.function.name"] == "add"
    assert json.loads(first[f"llm.output_messages.0.{tool}.function.arguments"]) == {"a": 2, "b": 3}
    assert second[f"{asked}.3.message.content"] == "5"
    assert second[f"{asked}.3.message.tool_call_id"] == second[f"{asked}.2.{tool}.id"] == "call_1"
    assert second["llm.output_messages.0.message.content"] == "It is 5"
    assert [json.loads(each["llm.tools.0.tool.json_schema"]) for each in (first, second)] == TOOLS * 2
    assert [each["llm.finish_reason"] for each in (first, second)] == ["tool_calls", "stop"]
    counts = [
        [each[f"llm.token_count.{kind}"] for kind in ("prompt", "completion", "total")]
        for each in (first, second)
    ]
    assert counts == [[3, 1, 4], [4, 3, 7]]
    assert "token_ids" not in str(spans)
    assert SECRET not in str(spans)
    assert scores_of_events(by_name) == REWARD

    for _ in range(2):
        sent.again("phoenix")
    root = by_name["rollout"]["context"]["span_id"]
    given = wait_until(lambda: viewer_servers.phoenix_annotations(phoenix, [root]))
    assert {each["name"]: each["result"]["score"] for each in given} == REWARD
    assert len(given) == len(REWARD)
    assert {each["metadata"]["agentlightning.rollout_id"] for each in given} == {sent.ids[0]}
    assert len(of_rollout(viewer_servers.phoenix_spans(phoenix), sent.ids)) == 6


@pytest.mark.parametrize("way", WAYS)
def test_mlflow_shows_it_whole(mlflow: str, way: str, tmp_path: Path) -> None:
    sent = send(way, "mlflow", mlflow, tmp_path / "agent")
    (shown,) = [each for each in viewer_servers.mlflow_traces(mlflow) if of_rollout(each["spans"], sent.ids)]
    assert TASK in shown["request"]
    assert shown["usage"] == {"input_tokens": 7, "output_tokens": 4, "total_tokens": 11}
    spans = of_rollout(shown["spans"], sent.ids)
    assert len(spans) == len(shown["spans"]) == 6
    by_name = {span["name"]: span for span in spans}
    assert by_name.keys() == SHOWN
    assert (by_name["rollout"]["type"], by_name["add"]["type"]) == ("AGENT", "TOOL")
    assert (by_name["add"]["inputs"], str(by_name["add"]["outputs"])) == ({"a": 2, "b": 3}, "5")
    first, second = (span for span in spans if span["name"] == "chat policy")
    assert {span["type"] for span in (first, second)} <= {"CHAT_MODEL", "LLM"}
    attributes = first["attributes"]
    assert attributes["gen_ai.input.messages"][0]["parts"][0]["content"].endswith(f"{MASKED}.")
    assert attributes["gen_ai.output.messages"][0]["parts"][-1]["name"] == "add"
    assert attributes["mlflow.chat.tools"] == [{"type": "function", **TOOLS[0]["function"]}]
    assert TASK in str(first["inputs"])
    assert "add" in str(first["outputs"])
    assert "It is 5" in str(second["outputs"])
    assert [span["attributes"]["gen_ai.response.finish_reasons"] for span in (first, second)] == [
        ["tool_calls"],
        ["stop"],
    ]
    usages = [span["attributes"]["mlflow.chat.tokenUsage"] for span in (first, second)]
    assert [(each["input_tokens"], each["output_tokens"]) for each in usages] == [(3, 1), (4, 3)]
    assert "token_ids" not in str(spans)
    assert SECRET not in str(shown)
    assert scores_of_events(by_name) == REWARD

    for _ in range(2):
        sent.again("mlflow")
    (after,) = [each for each in viewer_servers.mlflow_traces(mlflow) if each["id"] == shown["id"]]
    assert {each["name"]: each["value"] for each in after["assessments"]} == REWARD
    assert len(after["assessments"]) == len(REWARD)
    assert {each["span"] for each in after["assessments"]} == {by_name["rollout"]["id"]}
    assert len(after["spans"]) == 6


def scores_of_events(by_name: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Return the evaluations among the events of the reward's span."""
    return {
        event["attributes"]["gen_ai.evaluation.name"]: event["attributes"]["gen_ai.evaluation.score.value"]
        for event in by_name["agentlightning.annotation"]["events"]
    }
