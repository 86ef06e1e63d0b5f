"""Files that are no documents are refused with their place, and leave the store as it was; others are imported once."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from agentlightning.errors import DocumentDiffers, NotADocument
from agentlightning.exchange import Imported, read_documents
from agentlightning.store.importing import StoredDocument, store_document
from agentlightning.store.registry import open_store
from agentlightning.types import Attempt, Span


def document(**fields: Any) -> dict[str, Any]:
    steps = [
        {"step_id": 1, "source": "user", "message": "go"},
        {"step_id": 2, "source": "agent", "message": "went"},
    ]
    return {"schema_version": "ATIF-v1.7", "agent": {"name": "a", "version": "1"}, "steps": steps, **fields}


def refusal(path: Path, content: str | bytes, **options: Any) -> str:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(NotADocument) as caught:
        list(read_documents(path, **options))
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    return text.removeprefix(f"{path}: ")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda d: d.update(schema_version="ATIF-v2.0", news=1),
            "schema_version: 'ATIF-v2.0' is none of the versions",
        ),
        (lambda d: d.pop("agent"), "agent: it is missing"),
        (lambda d: d["agent"].pop("version"), "agent.version: it is missing"),
        (lambda d: d.update(agent=[]), "agent: it is no JSON object"),
        (lambda d: d.update(steps={"a": 1}), "steps: it is no list"),
        (lambda d: d.update(steps=[]), "steps: list should have at least 1 item"),
        (lambda d: d["steps"][1].update(observations=[]), "steps[1].observations: ATIF has no such field"),
        (
            lambda d: d["steps"][1].update(step_id=3),
            "steps[1].step_id: steps are numbered from 1, so it is 2, not 3",
        ),
        (lambda d: d["steps"][0].update(message=None), "steps[0].message: input should be a valid string"),
        (
            lambda d: d["steps"][0].update(message=[{"type": "text"}]),
            "steps[0].message[0]: a part of type 'text'",
        ),
        (
            lambda d: d["steps"][0].update(timestamp="yesterday"),
            "steps[0].timestamp: 'yesterday' is no time of ISO 8601",
        ),
        (lambda d: d["steps"][0].update(metrics={}), "steps[0].metrics: only a step of the agent has it"),
        (
            lambda d: d["steps"][1].update(llm_call_count=0, metrics={"prompt_tokens": 1}),
            "steps[1].metrics: no model was called for this step",
        ),
        (
            lambda d: d["steps"][1].update(metrics={"prompt_token_ids": [3, -1]}),
            "steps[1].metrics.prompt_token_ids[1]: input should be greater than or equal to 0",
        ),
        (
            lambda d: d["steps"][1].update(observation={"results": [{"source_call_id": "x"}]}),
            "steps[1].observation.results[0].source_call_id: the step has no tool call 'x'",
        ),
        (
            lambda d: d["steps"][1].update(observation={"results": [{"subagent_trajectory_ref": [{}]}]}),
            "steps[1].observation.results[0].subagent_trajectory_ref[0]: it has neither trajectory_id nor",
        ),
        (
            lambda d: d.update(subagent_trajectories=[document()]),
            "subagent_trajectories[0].trajectory_id: it is missing, and an embedded trajectory needs one",
        ),
        (
            lambda d: d.update(subagent_trajectories=[document(trajectory_id="t")] * 2),
            "subagent_trajectories[1].trajectory_id: 't' is there twice",
        ),
        (
            lambda d: d["steps"][1].update(message="\ud800"),
            "line 1: steps[1].message: it has half of a character",
        ),
        (
            lambda d: d.update(extra={"a": float("nan")}),
            "line 1: extra.a: it is NaN, an infinity or more than",
        ),
    ],
)
def test_a_document_is_refused_with_the_place(
    tmp_path: Path, change: Callable[[dict[str, Any]], Any], said: str
) -> None:
    bad = document()
    change(bad)
    assert refusal(tmp_path / "t.json", json.dumps(bad)).startswith(said)


def test_what_older_versions_allow_is_read(tmp_path: Path) -> None:
    result = {"source_call_id": "c", "subagent_trajectory_ref": [{"session_id": "s-1"}]}
    asked = [{"tool_call_id": "c", "function_name": "delegate", "arguments": {}}]
    old = document(schema_version="ATIF-v1.4", session_id="s", extra={})
    old["steps"][1] |= {"tool_calls": asked, "observation": {"results": [result]}}
    # The lengths should be those of the counts, says the RFC, and in its own example they are not.
    old["steps"][1]["metrics"] = {"completion_tokens": 3, "completion_token_ids": [1, 2], "logprobs": [-0.1]}
    assert found_in(tmp_path / "t.json", old).format == "ATIF-v1.4"
    said = refusal(tmp_path / "t.json", json.dumps({**old, "schema_version": "ATIF-v1.7"}))
    assert "subagent_trajectory_ref[0]: it has neither trajectory_id nor trajectory_path" in said


def test_sub_agents_that_work_for_each_other_in_a_circle_are_refused(tmp_path: Path) -> None:
    def naming(other: str) -> dict[str, Any]:
        observation = {"results": [{"subagent_trajectory_ref": [{"trajectory_id": other}]}]}
        return {"step_id": 1, "source": "agent", "message": "", "observation": observation}

    one, other = (document(trajectory_id=name, steps=[naming(its)]) for name, its in (("a", "b"), ("b", "a")))
    said = refusal(tmp_path / "t.json", json.dumps(document(subagent_trajectories=[one, other])))
    assert "subagent_trajectory_ref[0]: a trajectory works for itself" in said
    own = document(trajectory_id="own", steps=[naming("own")])
    assert "a trajectory works for itself" in refusal(tmp_path / "t.json", json.dumps(own))


GOOD = json.dumps(document())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "it is empty"),
        (b"\x89PNG\r\n\x1a\n", "line 1: byte 0 is no UTF-8"),
        ("hello", "line 1, column 1: it is no JSON"),
        (
            GOOD[:60],
            "line 1, column 56: it is no JSON: Unterminated string starting at; it ends in the middle",
        ),
        (
            f"{GOOD}\n{GOOD[:-1]}\n",
            "line 2, column 187: it is no JSON: Expecting ',' delimiter; it ends in the middle",
        ),
        ("[1]", "it is neither an ATIF document nor a session in STS-Format"),
        ('{"a": 1, "a": 2}', "line 1: an object has the key 'a' twice"),
        ('{"a": ' + "1" * 5000 + "}", "line 1: a number has 5,000 digits"),
        ('{"a": 1e999}', "line 1: a: it is NaN, an infinity or more than a number holds"),
        ("[" * 100_000, "line 1: it is nested deeper than 200 levels"),
        ('{"a":' * 300 + "1" + "}" * 300, "line 1: a.a.a.a: it is nested deeper than 200 levels"),
        (
            '{"sessionId": "1", "type": "user"}',
            "it is a session file of Claude Code, which is not read here yet",
        ),
        ('{"type": "session_meta"}', "it is a session file of Codex, which is not read here yet"),
        ('{"type": "session", "id": "1"}', "line 1: harness: it is missing"),
        (
            '{"type": "session", "harness": "h", "id": "1"}\n\n{"type": "message", "message": {"role": "bot"}}',
            "line 3: message.role: it is 'bot', and none of user, assistant, system, tool",
        ),
        (
            '{"type": "session", "harness": "h", "id": "1"}\n{"type": "message", "message": {"role": "user", "content": []}}',
            "line 2: message.content: it is no text; is it a session of Pi, which has parts there?",
        ),
        (
            '{"type": "session", "harness": "h", "id": "1"}\n{"type": "model_change"}',
            "line 2: type: it is 'model_change', and behind the first line there are only messages",
        ),
    ],
)
def test_a_file_is_refused_with_the_place(tmp_path: Path, content: str | bytes, said: str) -> None:
    assert refusal(tmp_path / "file.json", content).startswith(said)


def test_documents_are_found_over_lines_and_one_a_line(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_text("\ufeff" + json.dumps(document(trajectory_id="a"), indent=2), encoding="utf-8")
    assert [found.own_id for found in read_documents(path)] == ["a"]
    path.write_text("\n".join(json.dumps(document(trajectory_id=name)) for name in "abc"))
    assert [found.own_id for found in read_documents(path)] == ["a", "b", "c"]


def found_in(path: Path, value: Any) -> Imported:
    path.write_text(json.dumps(value))
    (found,) = read_documents(path)
    return found


@pytest.mark.asyncio
async def test_a_document_is_imported_once_and_another_with_its_id_is_refused(tmp_path: Path) -> None:
    one = found_in(tmp_path / "a.json", document(trajectory_id="t"))
    async with open_store("memory://") as store:
        first = await store_document(store, one)
        again = await store_document(store, found_in(tmp_path / "b.json", document(trajectory_id="t")))
        assert (first.is_new, again.is_new, first.rollout_id) == (True, False, again.rollout_id)
        with pytest.raises(DocumentDiffers, match="another document with the id 't' says something else"):
            await store_document(
                store, found_in(tmp_path / "c.json", document(trajectory_id="t", notes="new"))
            )
        rollouts = await store.query_rollouts()
        assert [each.rollout_id for each in rollouts] == [first.rollout_id]
        (attempt,) = await store.query_attempts(first.rollout_id)
        assert (rollouts[0].status, attempt.status) == ("succeeded", "succeeded")
        said = {"format": "ATIF-v1.7", "id": "t", "sha256": one.digest, "ending": "not said"}
        assert rollouts[0].metadata == {"imported": said}
        # Without an id of its own it is known by what it says; a session's id may be several documents'.
        for text in ("x", "y", "x"):
            await store_document(store, found_in(tmp_path / "d.json", document(session_id="s", notes=text)))
        assert len(await store.query_rollouts()) == 3


@pytest.mark.asyncio
async def test_an_import_that_broke_off_is_completed_by_the_next(tmp_path: Path) -> None:
    one = found_in(tmp_path / "a.json", document())

    def breaks(span: Span) -> Span | None:
        if span.name.startswith("chat"):
            raise OSError("the disk is gone")
        return span

    async with open_store("memory://") as store:
        with pytest.raises(OSError, match="the disk is gone"):
            await store_document(store, one, stages=(breaks,))
        assert [each.status for each in await store.query_rollouts()] == ["preparing"]
        stored = await store_document(store, one)
        assert (stored.is_new, stored.spans) == (True, 3)
        assert [each.status for each in await store.query_rollouts()] == ["succeeded"]


def test_what_is_written_of_an_attempt_while_a_slower_import_runs_stays(tmp_path: Path) -> None:
    one = found_in(tmp_path / "a.json", document(extra={"agentlightning": {"rollout_status": "cancelled"}}))
    url = f"sqlite:///{tmp_path}/s.db"
    begun, go_on = threading.Event(), threading.Event()

    def waits(span: Span) -> Span:
        begun.set()
        assert go_on.wait(60)
        return span

    async def slower() -> StoredDocument:
        async with open_store(url) as store:
            return await store_document(store, one, stages=(waits,))

    async def faster() -> dict[str, Any]:
        async with open_store(url) as store:
            first = await store_document(store, one)
            assert first.is_new
            (attempt,) = await store.query_attempts(first.rollout_id)
            said = {**(attempt.metadata or {}), "score": 1}
            await store.update_attempt(first.rollout_id, attempt.attempt_id, metadata=said)
            return said

    async def left() -> Attempt:
        async with open_store(url) as store:
            (attempt,) = await store.query_attempts(one.rollout_id)
            return attempt

    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(asyncio.run, slower())
        try:
            assert begun.wait(60)
            said = asyncio.run(faster())
        finally:
            go_on.set()
        assert not slow.result(60).is_new
    attempt = asyncio.run(left())
    assert attempt.metadata == said
    assert attempt.was_cancelled


def test_a_result_is_of_a_call_that_alone_has_its_id(tmp_path: Path) -> None:
    def tools(calls: list[str], results: list[dict[str, Any]]) -> list[str]:
        asked = [
            {"tool_call_id": own, "function_name": f"tool-{number}", "arguments": {}}
            for number, own in enumerate(calls)
        ]
        step = {
            "step_id": 1,
            "source": "agent",
            "message": "",
            "tool_calls": asked,
            "observation": {"results": results},
        }
        found = found_in(tmp_path / "a.json", document(steps=[step]))
        return [span.name for span in found.parts("r", "a")][2:]

    one, message = {"source_call_id": "c", "content": "x"}, "agentlightning.message"
    assert tools(["c", "d"], [one, one]) == ["execute_tool tool-0"] * 2
    assert tools(["c", "c"], [one, one]) == [message, message]
    assert tools([""], [{"content": "of nobody"}, {"source_call_id": "", "content": "x"}]) == [
        message,
        "execute_tool tool-0",
    ]
    function = {"name": "f", "arguments": "{}"}
    lines = [
        {"type": "session", "harness": "h", "id": "i"},
        {"type": "message", "message": {"role": "assistant", "content": "", "toolCalls": [{"id": "", "function": function}]}},
        {"type": "message", "message": {"role": "tool", "content": "of nobody"}},
    ]  # fmt: skip
    path = tmp_path / "s.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    (session,) = read_documents(path)
    assert [span.name for span in session.parts("r", "a")][2:] == [message]
