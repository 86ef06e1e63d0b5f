"""Sets for supervised and preference training: each conversation once, and TRL's own preparation takes them."""

from __future__ import annotations

import dataclasses
import json
import os
import warnings
from pathlib import Path
from typing import Any

import pytest
from sample_rows import rollout_of, spans_of

from agentlightning.dialects.model_call import VALID, Choice, ModelCall, ToolCall
from agentlightning.dialects.spans.genai import call_attributes
from agentlightning.errors import InvalidArgument
from agentlightning.exporters.sft import (
    Conversation,
    conversations,
    to_dataset,
    to_dpo,
    to_sft,
    write_examples,
)
from agentlightning.rows import RowPolicy, build_rows
from agentlightning.types import Span

TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds.",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}},
    },
}
USER = {"role": "user", "content": "1 + 1?"}
CALL = Choice(
    tool_calls=(ToolCall(id="c1", name="add", arguments='{"a":1,"b":1}'),), reasoning="two ones", content=None
)
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "2"}


def calls_of(
    calls: list[tuple[Any, Choice]],
    rollout_id: str = "ro-1",
    reward: float | None = 1.0,
    group_id: str | None = "g",
) -> list[Conversation]:
    """Return the conversations of an attempt that made these calls: messages and answer; no token ids."""
    spans = [
        Span.from_attributes(
            attributes=call_attributes(
                ModelCall(request_messages=tuple(asked), choices=(choice,), tools=(TOOL,), request_model="m")
            ),
            name="chat",
            rollout_id=rollout_id,
            attempt_id=f"at-{rollout_id}",
            span_id=f"{number:016x}",
            start_time=float(number),
            end_time=number + 0.5,
        )
        for number, (asked, choice) in enumerate(calls)
    ]
    spans += spans_of([], rollout_id, reward)
    return conversations(spans, rollout=rollout_of(rollout_id, group_id))


def agent_of(answer: str, rollout_id: str, reward: float | None) -> list[Conversation]:
    """Return the conversation of an agent that calls a tool and answers."""
    return calls_of(
        [([USER], CALL), ([USER, CALL.message(), RESULT], Choice(content=answer))], rollout_id, reward
    )


ECHOES: dict[str, dict[str, Any]] = {
    "as it was": CALL.message(),
    "without reasoning": {key: value for key, value in CALL.message().items() if key != "reasoning_content"},
    "without content": {key: value for key, value in CALL.message().items() if key != "content"},
    "empty content": {**CALL.message(), "content": ""},
    "with fields of nothing": {**CALL.message(), "refusal": None, "function_call": None, "audio": None},
    "in another order": dict(reversed(CALL.message().items())),
    "arguments written otherwise": {
        **CALL.message(),
        "tool_calls": [
            {"id": "c1", "type": "function", "function": {"arguments": '{"b": 1, "a": 1}', "name": "add"}}
        ],
    },
}


@pytest.mark.parametrize("echo", ECHOES.values(), ids=ECHOES.keys())
def test_a_conversation_is_there_once_however_the_client_sends_the_answer_back(echo: dict[str, Any]) -> None:
    found = calls_of([([USER], CALL), ([USER, echo, RESULT], Choice(content="2"))])

    assert [[message["role"] for message in each.messages] for each in found] == [
        ["user", "assistant", "tool", "assistant"]
    ]
    assert found[0].span_id == f"{1:016x}"


def test_text_in_parts_says_the_same() -> None:
    parts = {"role": "user", "content": [{"type": "text", "text": "1 + "}, {"type": "text", "text": "1?"}]}
    found = calls_of([([USER], CALL), ([parts, CALL.message(), RESULT], Choice(content="2"))])

    assert len(found) == 1


def test_a_fork_gives_both_conversations() -> None:
    other = {**RESULT, "content": "3"}
    found = calls_of(
        [
            ([USER], CALL),
            ([USER, CALL.message(), RESULT], Choice(content="2")),
            ([USER, CALL.message(), other], Choice(content="3")),
        ]
    )

    assert [each.messages[-1]["content"] for each in found] == ["2", "3"]


def test_supervised_examples_are_of_attempts_that_earned_enough() -> None:
    found = [*agent_of("2", "ro-1", 1.0), *agent_of("3", "ro-2", 0.0), *agent_of("4", "ro-3", None)]

    assert [example["messages"][-1]["content"] for example in to_sft(found)] == ["2", "3", "4"]
    assert [example["messages"][-1]["content"] for example in to_sft(found, min_reward=0.5)] == ["2"]
    assert to_sft(found)[0]["tools"] == [TOOL]


def test_preferences_are_within_a_group_and_unscored_attempts_take_no_part() -> None:
    found = [*agent_of("2", "ro-1", 1.0), *agent_of("3", "ro-2", 0.0), *agent_of("4", "ro-3", None)]
    (pair,) = to_dpo(found)

    assert pair["prompt"] == [USER]
    assert (pair["chosen"][-1]["content"], pair["rejected"][-1]["content"]) == ("2", "3")
    assert to_dpo(found, margin=1.0) == []
    elsewhere = calls_of([([USER], Choice(content="5"))], "ro-4", 0.5, group_id="h")
    assert len(to_dpo([*found, *elsewhere])) == 1


def test_examples_are_written_one_per_line(tmp_path: Path) -> None:
    examples = to_sft(agent_of("2", "ro-1", 1.0))
    write_examples(examples, tmp_path / "set.jsonl")

    lines = (tmp_path / "set.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == examples


# ---------------------------------------------------------------------- the installed datasets and TRL


@pytest.fixture(scope="module")
def trl() -> Any:
    """Return TRL, told not to send home what it is used for: the sender is a thread that would stay."""
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own dependencies
        return pytest.importorskip("trl", reason="scripts/trainers installs TRL")


def test_a_real_dataset_and_parquet_hold_what_was_said(trl: Any, tmp_path: Path) -> None:
    import datasets

    plain = calls_of([([USER], Choice(content="no tool"))], "ro-2")
    parts = {"role": "user", "content": [{"type": "text", "text": "1 + 1?"}]}
    examples = to_sft([*agent_of("2", "ro-1", 1.0), *plain, *calls_of([([parts], CALL)], "ro-3")])
    found = to_dataset(examples)

    assert [each["messages"][0]["content"] for each in found] == ["1 + 1?"] * 3
    call = found[0]["messages"][1]["tool_calls"][0]
    assert call["function"] == {"name": "add", "arguments": {"a": 1, "b": 1}}
    assert json.loads(found[0]["tools"]) == [TOOL]
    write_examples(examples, tmp_path / "set.parquet")
    again = datasets.Dataset.from_parquet(str(tmp_path / "set.parquet"), cache_dir=str(tmp_path))
    assert again.to_list() == found.to_list()


def test_arguments_that_are_no_object_stay_text() -> None:
    for arguments in ("", "[1]", '{"a":', "null"):
        broken = Choice(tool_calls=(ToolCall(id="c1", name="add", arguments=arguments),))
        ((example),) = to_sft(calls_of([([USER], broken)]))
        assert example["messages"][1]["tool_calls"][0]["function"]["arguments"] == arguments


def test_templates_that_want_text_get_the_arguments_as_they_were_said() -> None:
    found = [*agent_of("2", "ro-1", 1.0), *agent_of("3", "ro-2", 0.0)]
    (example, _), (pair,) = to_sft(found, arguments="text"), to_dpo(found, arguments="text")
    for messages in (example["messages"][1:], pair["chosen"]):
        assert messages[0]["tool_calls"][0]["function"]["arguments"] == '{"a":1,"b":1}'
    with pytest.raises(InvalidArgument, match="'json'"):
        to_sft(found, arguments="json")  # type: ignore[arg-type]


def test_two_that_say_the_same_are_no_pair() -> None:
    again = dataclasses.replace(CALL, tool_calls=(dataclasses.replace(CALL.tool_calls[0], id="c2"),))
    same = [*calls_of([([USER], CALL)], "ro-1", 1.0), *calls_of([([USER], again)], "ro-2", 0.0)]
    assert to_dpo(same) == []
    other = calls_of([([USER], Choice(content="2"))], "ro-3", 0.5)
    assert [pair["rejected"][0]["content"] for pair in to_dpo([same[0], *other])] == ["2"]


def test_a_data_set_keeps_the_arguments_of_different_tools_apart(trl: Any) -> None:
    find = Choice(tool_calls=(ToolCall(id="c1", name="find", arguments='{"city":"Bonn"}'),))
    found = [*calls_of([([USER], CALL)], "ro-1"), *calls_of([([USER], find)], "ro-2")]
    calls = [row["messages"][1]["tool_calls"][0]["function"] for row in to_dataset(to_sft(found))]
    assert [call["arguments"] for call in calls] == [{"a": 1, "b": 1}, {"city": "Bonn"}]


@pytest.mark.filterwarnings("ignore")
def test_trl_prepares_the_supervised_set(trl: Any, tmp_path: Path) -> None:
    from examples.grpo_trl.model import make_model, make_tokenizer

    tokenizer = make_tokenizer()
    examples = to_sft(agent_of("2", "ro-1", 1.0))
    config = trl.SFTConfig(output_dir=str(tmp_path), report_to=[], use_cpu=True, bf16=False, max_steps=1)
    trainer = trl.SFTTrainer(
        model=make_model(tokenizer, 0),
        args=config,
        train_dataset=to_dataset(examples),
        processing_class=tokenizer,
    )

    (prepared,) = trainer.train_dataset
    text = tokenizer.decode(prepared["input_ids"])
    assert text == tokenizer.apply_chat_template(examples[0]["messages"], tools=[TOOL], tokenize=False)
    assert "add(a, b)" in text
    assert trainer.train().training_loss > 0


@pytest.mark.filterwarnings("ignore")
def test_trl_prepares_the_preference_set(trl: Any, tmp_path: Path) -> None:
    from examples.grpo_trl.model import make_model, make_tokenizer

    tokenizer = make_tokenizer()
    pairs = to_dpo([*agent_of("2", "ro-1", 1.0), *agent_of("3", "ro-2", 0.0)])
    config = trl.DPOConfig(output_dir=str(tmp_path), report_to=[], use_cpu=True, bf16=False, max_steps=1)
    trainer = trl.DPOTrainer(
        model=make_model(tokenizer, 0),
        ref_model=make_model(tokenizer, 0),
        args=config,
        train_dataset=to_dataset(pairs),
        processing_class=tokenizer,
    )

    (prepared,) = trainer.train_dataset
    prompt = tokenizer.apply_chat_template([USER], tools=[TOOL], tokenize=False, add_generation_prompt=True)
    assert tokenizer.decode(prepared["prompt_ids"]) == prompt
    for name, answer in (("chosen", "2"), ("rejected", "3")):
        assert f"assistant\n{answer}<|im_end|>" in tokenizer.decode(prepared[f"{name}_ids"])
    assert trainer.train().training_loss > 0


def said(number: int, asked: list[Any], answer: str, prompt: tuple[int, ...], **fields: Any) -> Span:
    """A call with token ids: what it was asked, and its answer, whose only token is its number."""
    choice = Choice(
        content=answer, token_ids=(number,), logprobs=(-0.5,), finish_reason="stop", token_capture=VALID
    )
    record = ModelCall(
        request_messages=tuple(asked),
        choices=(choice,),
        prompt_token_ids=prompt,
        token_capture=VALID,
        sampling_effective={"temperature": 1.0},
        sampling_defaults={},
        logprob_kind="processed",
    )
    place: Any = {"rollout_id": "ro-1", "attempt_id": "at-ro-1", "span_id": f"{number:016x}"}
    times: Any = {"start_time": float(number), "end_time": number + 0.5}
    return Span.from_attributes(
        attributes={**call_attributes(record), **fields.pop("attributes", {})},
        name="chat",
        **{**place, **times, **fields},
    )


def answers(found: list[Conversation]) -> list[str]:
    return [str(each.messages[-1]["content"]) for each in found]


@pytest.mark.parametrize("mark", ["redacted", "untrainable", True])
def test_what_is_marked_untrainable_is_no_example(mark: Any) -> None:
    marked = said(1, [USER], "SECRET", (1,), attributes={"agentlightning.untrainable": mark})
    other = said(2, [{"role": "user", "content": "2 + 2?"}], "4", (2,))
    assert answers(conversations([marked, other])) == ["4"]


def test_an_answer_that_was_given_up_is_an_example_only_if_rows_train_it() -> None:
    later = [USER, {"role": "assistant", "content": "kept"}, {"role": "user", "content": "more"}]
    spans = [
        said(5, [USER], "GIVEN UP", (1,)),
        said(6, [USER], "kept", (1,)),
        said(7, later, "end", (1, 6, 3)),
    ]
    assert answers(conversations(spans)) == ["end"]
    assert sorted(answers(conversations(spans, RowPolicy(abandoned="train")))) == ["GIVEN UP", "end"]


def test_the_policy_of_the_rows_says_whether_a_lost_call_is_the_agents() -> None:
    place: Any = {"rollout_id": "ro-1", "attempt_id": "at-ro-1", "start_time": 0.0, "end_time": 20.0}
    root = Span.from_attributes(attributes={}, name="session", span_id="e" * 16, **place)
    planner = Span.from_attributes(
        attributes={"gen_ai.agent.name": "planner"},
        name="agent",
        span_id="a" * 16,
        parent_id="e" * 16,
        **place,
    )
    planner.end_time = 10.0
    lost = said(1, [USER], "by somebody", (1,), parent_id="e" * 16)
    for repairs in (False, True):
        policy = RowPolicy(agent_match="planner", repair_hierarchy=repairs)
        assert len(conversations([root, planner, lost], policy)) == repairs
        assert len(build_rows([root, planner, lost], policy)) == repairs


def test_an_example_in_the_question_is_not_what_the_model_chose() -> None:
    shots = [{"role": "user", "content": "ex"}, {"role": "assistant", "content": "FEWSHOT"}, USER]
    found = [
        *calls_of([(shots, Choice(content="good"))], "ro-1", 1.0),
        *calls_of([(shots, Choice(content="bad"))], "ro-2", 0.0),
    ]
    (pair,) = to_dpo(found)
    assert [message["content"] for message in pair["prompt"]] == ["ex", "FEWSHOT", USER["content"]]
    assert [pair[side][-1]["content"] for side in ("chosen", "rejected")] == ["good", "bad"]
    assert [len(pair[side]) for side in ("chosen", "rejected")] == [1, 1]
