"""Attempts in the words of ATIF and of Hugging Face's sessions: all that they have a place for, and nothing guessed."""

from __future__ import annotations

from typing import Any

import corpus_files
import pytest
from documents import (
    agent,
    asks,
    call,
    captured,
    check_atif,
    ours,
    results,
    sampled,
    says,
    span,
    tool,
    trajectories,
    user,
)

from agentlightning.dialects.model_call import VALID, Usage, invalid
from agentlightning.exchange import to_atif, to_sessions
from agentlightning.pipeline.redact import Redactor
from agentlightning.rows.rewards import reward_attributes, reward_target
from agentlightning.types import Span


def atif(*spans: Span, **options: Any) -> dict[str, Any]:
    document = to_atif(spans, **options)
    assert document is not None
    check_atif(document)
    return document


def test_a_conversation_with_a_tool_is_one_trajectory() -> None:
    asked = [user("1 + 1?")]
    answer = asks("add")
    document = atif(
        call(1, asked, answer, usage=Usage(7, 3)),
        call(2, [*asked, answer.message(), tool("2")], says("two"), usage=Usage(12, 1)),
        span(3, "agentlightning.annotation", attributes=reward_attributes({"primary": 0.5, "style": -1.0})),
    )
    first, second, third = document["steps"]
    assert (first["source"], first["message"]) == ("user", "1 + 1?")
    assert second["tool_calls"] == [{"tool_call_id": "c1", "function_name": "add", "arguments": {"a": 1}}]
    assert results(second) == [{"source_call_id": "c1", "content": "2"}]
    assert (second["reasoning_content"], second["llm_call_count"]) == ("hm", 1)
    assert second["timestamp"] == "2023-11-14T22:13:21Z"
    assert (third["message"], third["metrics"]) == ("two", {"prompt_tokens": 12, "completion_tokens": 1})
    assert document["agent"] == {"name": "unknown", "version": "unknown", "model_name": "policy"}
    assert document["final_metrics"] == {
        "total_prompt_tokens": 19,
        "total_completion_tokens": 4,
        "total_steps": 3,
    }
    assert (document["session_id"], document["trajectory_id"]) == ("ro-1", "ro-1/at-1")
    assert ours(document)["rewards"] == {"primary": 0.5, "style": -1.0}


def test_token_ids_are_written_where_they_are_vouched_for_and_nowhere_else() -> None:
    good = captured(1, [user("a")], "b")
    refused = call(
        2, [user("c")], sampled("d", (1, 2)), prompt_token_ids=(3,), token_capture=invalid("prompt_length")
    )
    document = atif(good, refused)
    first, second = [each["steps"][-1] for each in trajectories(document)]
    assert first["metrics"]["prompt_token_ids"] == [10, 11]
    assert first["metrics"]["completion_token_ids"] == [5, 6, 7]
    assert first["metrics"]["logprobs"] == [-0.5] * 3
    assert first["metrics"]["cached_tokens"] == 1
    assert ours(first)["token_capture"] == VALID
    assert "metrics" not in second
    assert ours(second)["token_capture"] == "invalid(prompt_length)"


def test_what_is_masked_takes_the_token_ids_with_it_that_decode_to_it() -> None:
    key = "sk-proj-" + "a1B2" * 12
    asked = [user("hello")]
    secret = [*asked, says("hi").message(), user(f"use {key}")]
    later = [*secret, says("done").message(), user("thanks")]
    spans = [captured(1, asked, "hi"), captured(2, secret, "done"), captured(3, later, "bye")]
    document = atif(*spans, mask=Redactor().value)
    assert key not in str(document)
    assert "[redacted:" in document["steps"][2]["message"]
    first, second, third = [step for step in document["steps"] if step["source"] == "agent"]
    assert first == atif(*spans)["steps"][1]
    for step in (second, third):
        assert not {"prompt_token_ids", "completion_token_ids", "logprobs"} & step["metrics"].keys()
        assert step["metrics"]["completion_tokens"] == 3
        assert ours(step)["token_capture"] == "invalid(redacted)"
    (session,) = to_sessions(spans, mask=Redactor().value)
    assert key not in str(session)


def test_ids_and_times_stay_where_they_are_ids_and_times_and_nowhere_else() -> None:
    answer = asks(
        "mail",
        arguments='{"id": "jane@example.com", "span_id": "jane@example.com", "timestamp": "jane@example.com"}',
    )
    spans = [call(1, [user("a")], answer)]
    document = atif(*spans, mask=Redactor().value)
    assert "jane@example.com" not in str(document)
    assert document["trajectory_id"] == "ro-1/at-1"
    assert document["steps"][1]["timestamp"] == "2023-11-14T22:13:21Z"
    (session,) = to_sessions(spans, mask=Redactor().value)
    assert "jane@example.com" not in str(session)
    assert session[2]["message"]["timestamp"] == 1_700_000_001_000


def test_ids_without_a_text_cannot_be_checked_and_are_left_out() -> None:
    silent = call(
        1, [], says("", token_ids=(1,), token_capture=VALID), prompt_token_ids=(2,), token_capture=VALID
    )
    assert "prompt_token_ids" in atif(silent)["steps"][0]["metrics"]
    assert "prompt_token_ids" not in atif(silent, mask=Redactor().value)["steps"][0]["metrics"]


def test_sub_agents_are_inside_and_named_where_their_work_came_back() -> None:
    lead = [user("build")]
    answer = asks("delegate")
    attributes = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.call.id": "c1"}
    document = atif(
        agent(1, "lead"),
        call(2, lead, answer, parent=1),
        span(3, "execute_tool delegate", parent=1, attributes=attributes),
        agent(4, "helper", parent=3),
        captured(5, [user("look")], "found", parent=4),
        call(6, [*lead, answer.message(), tool("found it")], says("done"), parent=1),
    )
    (inner,) = document["subagent_trajectories"]
    assert (document["agent"]["name"], inner["agent"]["name"]) == ("lead", "helper")
    assert results(document["steps"][1]) == [
        {
            "source_call_id": "c1",
            "content": "found it",
            "subagent_trajectory_ref": [{"trajectory_id": inner["trajectory_id"]}],
        }
    ]
    # Its tokens are its own: whoever adds up trajectories counts them once.
    assert "total_prompt_tokens" not in document["final_metrics"]
    assert inner["final_metrics"]["total_prompt_tokens"] == 2


def test_what_was_said_before_in_another_conversation_is_copied_context() -> None:
    asked = [user("a")]
    document = atif(
        captured(1, asked, "b"),
        captured(2, [*asked, says("b").message(), user("c")], "d"),
        captured(3, [*asked, says("b").message(), user("another")], "e"),
    )
    (branch,) = document["subagent_trajectories"]
    assert [step.get("is_copied_context") for step in branch["steps"]] == [None, True, None, None]
    assert "metrics" not in branch["steps"][1]
    assert branch["final_metrics"]["total_completion_tokens"] == 3
    assert ours(branch) == {"kind": "conversation"}


def test_several_answers_to_one_question_are_counted_once() -> None:
    document = atif(
        call(
            1,
            [user("a")],
            sampled("b", (1, 2)),
            says("c", index=1, token_ids=(3,), logprobs=(-1.0,), token_capture=VALID),
            prompt_token_ids=(9,),
            token_capture=VALID,
            usage=Usage(1, 3),
        )
    )
    both = [each["steps"][-1]["metrics"] for each in trajectories(document)]
    assert [each["completion_token_ids"] for each in both] == [[1, 2], [3]]
    assert [each["completion_tokens"] for each in both] == [2, 1]
    assert [each.get("prompt_tokens") for each in both] == [1, None]


def test_an_unknown_count_leaves_its_total_out() -> None:
    asked = [user("a")]
    document = atif(
        call(1, asked, says("b"), usage=Usage(4, 2)),
        call(2, [*asked, says("b").message(), user("c")], says("d")),
    )
    assert document["final_metrics"] == {"total_steps": 4}


def test_a_failed_call_is_a_step_that_says_why() -> None:
    document = atif(call(1, [user("a")], error="TimeoutError: too long"), call(2, [user("a")], says("b")))
    failed, answered = document["steps"][1:]
    assert (failed["message"], ours(failed)["error"]) == ("", "TimeoutError: too long")
    assert answered["message"] == "b"


def test_a_tool_result_that_nobody_asked_for_names_no_call() -> None:
    document = atif(call(1, [user("a"), tool("lost", "c9")], says("b")))
    step = document["steps"][1]
    assert (step["source"], results(step)) == ("system", [{"content": "lost"}])
    assert ours(step)["tool_call_id"] == "c9"


@pytest.mark.parametrize("arguments", ["{", "[1]", '{"a": NaN}', '{"a": 1e999}', "\ud800"])
def test_arguments_that_are_no_object_stay_as_the_model_wrote_them(arguments: str) -> None:
    (made,) = atif(call(1, [user("a")], asks("add", None, arguments)))["steps"][1]["tool_calls"]
    assert made["arguments"] == {}
    assert ours(made)["arguments"] == arguments.replace("\ud800", "\\ud800")
    assert (made["tool_call_id"], ours(made)["id"]) == ("unnamed-1", "was not given")


def test_images_and_sound_have_their_places_and_other_parts_stand_aside() -> None:
    parts = [
        {"type": "text", "text": "look"},
        {"type": "image_url", "image_url": {"url": "https://x.test/a.PNG?size=1"}},
        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
        {"type": "file", "file": {"file_id": "f1"}},
    ]
    document = atif(call(1, [{"role": "user", "content": parts}], says("b")))
    text, image, sound = document["steps"][0]["message"]
    assert text == {"type": "text", "text": "look"}
    assert image["source"] == {"media_type": "image/png", "path": "https://x.test/a.PNG?size=1"}
    assert sound["source"] == {"media_type": "audio/wav", "path": "data:audio/wav;base64,AAAA"}
    assert ours(document["steps"][0])["parts"] == [parts[3]]
    assert document["schema_version"] == "ATIF-v1.8"
    (session,) = to_sessions([call(1, [{"role": "user", "content": parts}], says("b"))])
    assert session[1]["message"]["content"] == "look"
    assert session[0]["agentlightning"]["left_out"] == {"image_url": 1, "input_audio": 1, "file": 1}


def test_a_reward_of_one_answer_stands_at_its_step() -> None:
    target = reward_target(span_id=f"{1:016x}")
    document = atif(
        captured(1, [user("a")], "b"),
        span(2, "agentlightning.annotation", attributes={**reward_attributes({"primary": 1.0}), **target}),
    )
    assert ours(document["steps"][1])["rewards"] == [{"value": 1.0, "dimensions": {"primary": 1.0}}]
    assert "reward" not in ours(document)


def test_a_session_has_a_message_for_each_thing_that_was_said() -> None:
    asked = [user("1 + 1?")]
    answer = asks("add")
    header, *lines = to_sessions(
        [call(1, asked, answer), call(2, [*asked, answer.message(), tool("2")], says("two"))], name="sum"
    )[0]
    assert header == {
        "type": "session",
        "harness": "agentlightning",
        "id": "ro-1/at-1",
        "name": "sum",
        "agentlightning": {"rollout_id": "ro-1", "attempt_id": "at-1"},
    }
    assert [line["type"] for line in lines] == ["message"] * 4
    assert [line["message"] for line in lines] == [
        {"role": "user", "content": "1 + 1?"},
        {
            "role": "assistant",
            "content": "",
            "reasoningContent": "hm",
            "toolCalls": [{"id": "c1", "function": {"name": "add", "arguments": '{"a": 1}'}}],
            "timestamp": 1_700_000_001_000,
            "model": "policy",
        },
        {"role": "tool", "toolCallId": "c1", "content": "2"},
        {"role": "assistant", "content": "two", "timestamp": 1_700_000_002_000, "model": "policy"},
    ]


@pytest.mark.parametrize("name", corpus_files.names())
def test_every_recorded_trace_gives_a_valid_document(name: str) -> None:
    spans = corpus_files.load(name).spans
    document = to_atif(spans)
    if document is None:
        assert name == "strange-zero-calls"
        return
    check_atif(document)
    assert len(to_sessions(spans)) == len(list(trajectories(document)))
