"""A document that was imported is written again as it was; and what was recorded survives a way through each format."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import corpus_files
import pytest
from documents import asks, call, captured, check_atif, ours, says, span, tool, trajectories, user
from generated import SESSIONS, atif
from hypothesis import HealthCheck, given, settings

from agentlightning.dialects.model_call import ModelCall, Usage
from agentlightning.dialects.spans.genai import read_call
from agentlightning.exchange import Imported, read_documents, to_atif, to_sessions
from agentlightning.exchange.difference import applied, difference, same
from agentlightning.rows import build_rows
from agentlightning.rows.rewards import reward_attributes
from agentlightning.store.importing import store_document
from agentlightning.store.registry import open_store
from agentlightning.types import Rollout, Span

NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("documents")


def written(folder: Path, lines: Sequence[Any]) -> Path:
    path = folder / f"{next(NUMBERS)}.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def stored(folder: Path, document: Imported) -> list[Span]:
    """The spans of a document, as a store gives them back."""

    async def through() -> list[Span]:
        async with open_store(f"sqlite:///{folder}/store.db") as store:
            await store_document(store, document)
            return list(await store.query_spans(document.rollout_id, "latest"))

    return asyncio.run(through())


@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(document=atif())
def test_an_atif_document_is_written_again_as_it_was(folder: Path, document: dict[str, Any]) -> None:
    document["trajectory_id"] = f"document-{next(NUMBERS)}"
    (found,) = read_documents(written(folder, [document]))
    again = to_atif(stored(folder, found))
    assert again is not None
    assert same(again, document), difference(again, document)


@given(lines=SESSIONS)
def test_a_session_is_written_again_as_it_was(folder: Path, lines: list[dict[str, Any]]) -> None:
    lines[0]["id"] = f"session-{next(NUMBERS)}"
    (found,) = read_documents(written(folder, lines))
    (again,) = to_sessions(stored(folder, found))
    assert same(again, lines), (again, lines)


def said_by(record: ModelCall) -> Any:
    """What both formats have of a call."""
    return [
        [
            record.request_model,
            [
                (
                    choice.content or "",
                    choice.reasoning,
                    [(c.id, c.name, json.loads(c.arguments)) for c in choice.tool_calls],
                )
                for choice in record.choices
            ],
        ]
    ]


def test_a_recorded_attempt_keeps_in_atif_what_the_format_has(folder: Path) -> None:
    asked = [{"role": "system", "content": "sums"}, user("1 + 1?")]
    answer = asks("add")
    further = [*asked, answer.message(), tool("2")]
    spans = [
        call(1, asked, answer, usage=Usage(7, 3, 2)),
        captured(2, further, "two"),
        span(3, "agentlightning.annotation", attributes=reward_attributes({"primary": 0.5, "style": -1.0})),
    ]
    document = to_atif(spans)
    (found,) = read_documents(written(folder, [document]))
    back = stored(folder, found)
    before = [record for each in spans if (record := read_call(each)) is not None]
    after = [record for each in back if (record := read_call(each)) is not None]
    for one, other in zip(before, after, strict=True):
        assert said_by(one) == said_by(other)
        assert one.usage == other.usage
        assert [*one.request_messages] == [*other.request_messages]
        assert one.choices[0].token_ids == other.choices[0].token_ids
        assert one.choices[0].logprobs == other.choices[0].logprobs
        assert one.prompt_token_ids == other.prompt_token_ids
    assert [each.start_time for each in back if read_call(each)] == [each.start_time for each in spans[:2]]
    # Its ids are kept, and nobody trusts them: whoever wrote the file may have made them up.
    assert [record.token_capture for record in after] == ["none(imported)", "invalid(imported)"]
    rows = build_rows(back)
    assert (len(rows), rows.counts) == (0, {"imported": 2})
    assert build_rows(spans).counts.get("imported") is None
    rewards = [each for each in back if each.name == "agentlightning.annotation"]
    assert len(rewards) == 1
    assert to_atif(back) == document


@pytest.mark.parametrize(
    "name", ["own-openai-tools", "own-langgraph-agent", "strange-interleaved-agents", "own-openai-image"]
)
def test_recorded_traces_survive_both_formats(folder: Path, name: str) -> None:
    spans = corpus_files.load(name).spans
    document = to_atif(spans)
    assert document is not None
    document["trajectory_id"] = name
    (found,) = read_documents(written(folder, [document]))
    assert to_atif(stored(folder, found)) == document
    for session in to_sessions(spans):
        session[0]["id"] = f"{name}-{next(NUMBERS)}"
        (found,) = read_documents(written(folder, session))
        assert list(to_sessions(stored(folder, found))) == [session]


@pytest.mark.parametrize("kind", ["atif", "sts"])
def test_how_an_attempt_of_ours_ended_and_what_it_was_worth_comes_back(folder: Path, kind: str) -> None:
    given = reward_attributes({"primary": 0.25, "style": -1.0})
    spans = [
        call(1, [user("1 + 1?")], says("three")),
        span(2, "agentlightning.annotation", attributes=given),
    ]
    metadata = {"group_id": "g"}
    rollout = Rollout(
        rollout_id="ro-1", input="a", start_time=0.0, mode="train", status="failed", metadata=metadata
    )
    lines: Sequence[Any] = (
        [to_atif(spans, rollout=rollout)] if kind == "atif" else to_sessions(spans, rollout=rollout)[0]
    )
    lines[0]["trajectory_id" if kind == "atif" else "id"] = f"ours-{kind}"
    (found,) = read_documents(written(folder, lines))
    assert (found.ending, found.mode, found.group_id) == ("failed", "train", "g")
    back = stored(folder, found)
    again: Any = [to_atif(back)] if kind == "atif" else to_sessions(back)[0]
    assert again == lines
    (reward,) = [each for each in back if each.name == "agentlightning.annotation"]
    assert reward.attributes.items() >= given.items()
    later = reward.model_copy(
        update={"span_id": "f" * 16, "sequence_id": 99, "attributes": reward_attributes({"primary": 1.0})}
    )
    news: Any = to_atif([*back, later]) if kind == "atif" else to_sessions([*back, later])[0][0]
    said = (news["extra"] if kind == "atif" else news)["agentlightning"]
    assert (said["reward"], said["mode"]) == (1.0, "train")


def test_a_document_of_one_format_can_be_written_in_the_other(folder: Path) -> None:
    lines = [
        {"type": "session", "harness": "my-agent", "id": "abc123", "name": "what time is it"},
        {"type": "message", "message": {"role": "user", "content": "what time is it?"}},
        {
            "type": "message",
            "message": {
                "role": "assistant",
                "content": "",
                "toolCalls": [{"id": "t1", "function": {"name": "get_time", "arguments": "{}"}}],
            },
        },
        {
            "type": "message",
            "message": {"role": "tool", "toolCallId": "t1", "content": "2026-07-01T15:00:00Z"},
        },
        {"type": "message", "message": {"role": "assistant", "content": "it is 15:00 UTC"}},
    ]
    (found,) = read_documents(written(folder, lines))
    assert (found.format, found.task, found.name) == ("STS", "what time is it?", "what time is it")
    document = to_atif(stored(folder, found))
    assert document is not None
    check_atif(document)
    assert document["agent"]["name"] == "my-agent"
    assert [step["source"] for step in document["steps"]] == ["user", "agent", "agent"]
    assert document["steps"][1]["observation"]["results"][0]["content"] == "2026-07-01T15:00:00Z"
    # Nobody knows when, or how many tokens it took.
    assert not {"timestamp", "metrics"} & {key for step in document["steps"] for key in step}


def test_copied_steps_and_steps_without_a_model_are_no_calls(folder: Path) -> None:
    metrics = {"prompt_tokens": 5, "prompt_token_ids": [1], "completion_token_ids": [2]}
    document = {
        "schema_version": "ATIF-v1.7",
        "trajectory_id": "copied",
        "agent": {"name": "a", "version": "1"},
        "steps": [
            {"step_id": 1, "source": "user", "message": "go"},
            {
                "step_id": 2,
                "source": "agent",
                "message": "old",
                "is_copied_context": True,
                "metrics": metrics,
            },
            {"step_id": 3, "source": "agent", "message": "", "llm_call_count": 0},
            {"step_id": 4, "source": "agent", "message": "new", "metrics": metrics},
        ],
    }
    (found,) = read_documents(written(folder, [document]))
    spans = stored(folder, found)
    (record,) = [record for each in spans if (record := read_call(each)) is not None]
    assert record.choices[0].content == "new"
    assert [message["content"] for message in record.request_messages] == ["go", "old", ""]
    assert to_atif(spans) == document


def test_a_reward_that_was_given_here_is_written_with_the_document(folder: Path) -> None:
    document = to_atif([call(1, [user("a")], says("b"))])
    assert document is not None
    document["trajectory_id"] = "rewarded"
    (found,) = read_documents(written(folder, [document]))
    spans = stored(folder, found)
    given = span(9, "agentlightning.annotation", attributes=reward_attributes({"primary": 1.0}))
    again = to_atif(
        [
            *spans,
            given.model_copy(update={"rollout_id": spans[0].rollout_id, "attempt_id": spans[0].attempt_id}),
        ]
    )
    assert again is not None
    assert ours(again) == {**ours(document), "reward": 1.0, "rewards": {"primary": 1.0}}
    assert {**again, "extra": None} == {**document, "extra": None}


def test_sub_agents_stand_below_the_result_that_names_them(folder: Path) -> None:
    def work(name: str, **more: Any) -> dict[str, Any]:
        steps = [{"step_id": 1, "source": "agent", "message": name, **more}]
        return {
            "schema_version": "ATIF-v1.7",
            "trajectory_id": name,
            "agent": {"name": name, "version": "1"},
            "steps": steps,
        }

    result = {"source_call_id": "c", "subagent_trajectory_ref": [{"trajectory_id": "second"}]}
    asked = [{"tool_call_id": "c", "function_name": "delegate", "arguments": {}}]
    document = work("lead", tool_calls=asked, observation={"results": [result]})
    document["subagent_trajectories"] = [work("first"), work("second")]
    (found,) = read_documents(written(folder, [document]))
    spans = stored(folder, found)
    by_id = {each.span_id: each for each in spans}
    above = {
        each.attributes["gen_ai.agent.name"]: by_id[each.parent_id].name
        for each in spans
        if each.name.startswith("invoke_agent") and each.parent_id is not None
    }
    assert above == {"second": "execute_tool delegate", "first": "invoke_agent lead"}
    assert to_atif(spans) == document
    assert len(list(trajectories(document))) == 3


def test_a_difference_gives_back_what_it_was_made_of() -> None:
    made = {"a": 1, "b": {"c": [1, 2], "d": True}, "e": "x"}
    wanted = {"a": 1.0, "b": {"c": [1, 2], "d": 1, "f": None}, "g": {}}
    assert same(applied(made, difference(made, wanted)), wanted)
    assert difference(made, made) == {}
