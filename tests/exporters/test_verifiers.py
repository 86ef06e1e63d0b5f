"""verifiers takes our rows: the branches that its own code rebuilds equal them bit for bit."""

from __future__ import annotations

import asyncio
import base64
import json
import warnings
from datetime import date
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pages import blocks, run
from sample_rows import FORKED, LINEAR, rollout_of, rows_of, spans_of, two_groups

from agentlightning.dialects.model_call import VALID, Choice, ModelCall, ToolCall, Usage
from agentlightning.dialects.spans.genai import call_attributes
from agentlightning.errors import InvalidArgument, NotExportable
from agentlightning.exporters.verifiers import to_wire_traces
from agentlightning.rows import RowPolicy, RowSet, build_rows
from agentlightning.semconv import AGL_ANNOTATION
from agentlightning.types import Span

GROUPS = [rollout_of(f"ro-{number}", "g1" if number < 3 else "g2") for number in range(1, 5)]
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {"name": "add", "description": "Adds.", "parameters": {"type": "object"}},
}


def trace_of(rows: Any, **keywords: Any) -> dict[str, Any]:
    """Return the only trace of rows."""
    (trace,) = to_wire_traces(rows, GROUPS, **keywords)
    return trace


@st.composite
def trees(draw: st.DrawFn) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Return turns of a conversation that forks at random: each goes on with one before it, or begins anew."""
    turns: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    for number in range(draw(st.integers(1, 6))):
        before = draw(st.sampled_from([None, *turns]))
        asked = tuple(1000 * (number + 1) + place for place in range(draw(st.integers(1, 3))))
        answer = tuple(1000 * (number + 1) + 500 + place for place in range(draw(st.integers(1, 3))))
        turns.append(((*(() if before is None else before[0] + before[1]), *asked), answer))
    return turns


def test_a_node_holds_only_what_it_adds_and_a_shared_answer_is_there_once() -> None:
    rows = rows_of(FORKED)
    nodes = [node for node in trace_of(rows)["nodes"] if node["sampled"]]

    assert [node["token_ids"] for node in nodes] == [[1, 2, 3, 20, 21], [7, 22], [8, 23, 24]]
    assert [node["mask"] for node in nodes] == [[False] * 3 + [True] * 2, [False, True], [False, True, True]]
    assert [len(node["logprobs"]) for node in nodes] == [2, 1, 2]
    assert sum(sum(node["mask"]) for node in nodes) == rows.trained_tokens
    assert nodes[1]["parent"] == nodes[2]["parent"]


def test_a_row_that_another_goes_on_with_is_the_beginning_of_its_branch() -> None:
    turns = [((1,), (2,)), ((1, 2, 3), (4,)), ((1, 2, 3, 4, 5), (6,)), ((1, 2, 3, 4, 7), (8,))]
    policy = RowPolicy(trains=lambda call: call.span.span_id != f"{2:016x}")
    rows = build_rows(spans_of(turns, "ro-1", 1.0), policy, rollout=GROUPS[0])

    assert [row.token_ids for row in rows] == [(1, 2, 3, 4), (1, 2, 3, 4, 7, 8)]
    nodes = [node for node in trace_of(rows)["nodes"] if node["sampled"]]
    assert [node["token_ids"] for node in nodes] == [[1, 2], [3, 4], [7, 8]]
    assert [node["mask"] for node in nodes] == [[False, True]] * 3


def test_rewards_have_names_and_weights_that_make_the_reward() -> None:
    spans = spans_of(LINEAR, "ro-1", None)
    given = {
        "agentlightning.reward.0.name": "right",
        "agentlightning.reward.0.value": 1.0,
        "agentlightning.reward.1.name": "short",
        "agentlightning.reward.1.value": 0.5,
        "agentlightning.reward.2.name": "seen",
        "agentlightning.reward.2.value": 3.0,
    }
    times: dict[str, Any] = {"start_time": 100.0, "end_time": 100.0}
    spans.append(
        Span.from_attributes(
            attributes=given, name=AGL_ANNOTATION, rollout_id="ro-1", attempt_id="at-ro-1", **times
        )
    )
    weights = {"right": 1.0, "short": 0.25}
    rows = build_rows(spans, RowPolicy(reward_weights=weights), rollout=GROUPS[0])

    assert trace_of(rows, reward_weights=weights)["rewards"] == {
        "right": {"score": 1.0, "weight": 1.0},
        "short": {"score": 0.5, "weight": 0.25},
        "seen": {"score": 3.0, "weight": 0.0},
    }
    with pytest.raises(NotExportable, match="has the rewards right, short, seen: pass reward_weights"):
        trace_of(rows)
    with pytest.raises(NotExportable, match=r"make 1\.0 of the rewards"):
        trace_of(rows, reward_weights={"right": 1.0})


def test_unscored_rows_and_unknown_rollouts_are_refused() -> None:
    with pytest.raises(NotExportable, match="unscored"):
        trace_of(rows_of(LINEAR, reward=None))
    with pytest.raises(NotExportable, match="rollout ro-9 is not among the rollouts"):
        trace_of(rows_of(LINEAR, "ro-9"))


def test_a_task_is_what_json_can_say_of_the_input() -> None:
    of_memory = [*GROUPS[1:], GROUPS[0].model_copy(update={"input": {"due": date(2026, 1, 2)}})]
    (trace, *_) = to_wire_traces(rows_of(LINEAR), of_memory)
    assert trace["task"]["data"]["input"] == {"due": "2026-01-02"}
    unsayable = [*GROUPS[1:], GROUPS[0].model_copy(update={"input": {"due": object()}})]
    with pytest.raises(InvalidArgument, match=r"input\.due"):
        to_wire_traces(rows_of(LINEAR), unsayable)


def test_whether_it_ended_well_is_the_rollouts_word() -> None:
    failed = GROUPS[0].model_copy(update={"status": "failed"})
    running = GROUPS[0].model_copy(update={"status": "running"})
    rows = rows_of(LINEAR)

    ends = [to_wire_traces(rows, [each])[0] for each in (GROUPS[0], failed, running)]
    assert [(each["is_completed"], each["ok"]) for each in ends] == [
        (True, True),
        (True, False),
        (False, False),
    ]


def tool_conversation() -> RowSet:
    """Return the row of an agent that calls a tool, with messages as clients write them."""
    call = ToolCall(id="c1", name="add", arguments='{"a": 1}')
    asked: tuple[dict[str, Any], ...] = (
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "1 + 1?"}]},
        {"role": "critic", "content": "a role of nobody"},
    )
    first = Choice(
        tool_calls=(call,),
        reasoning="hm",
        token_ids=(10, 11),
        logprobs=(-0.1, -0.2),
        finish_reason="tool_calls",
        token_capture=VALID,
    )
    result = {"role": "tool", "tool_call_id": "c1", "content": "2"}
    second = Choice(
        content="2", token_ids=(13,), logprobs=(-1 / 3,), finish_reason="stop", token_capture=VALID
    )
    calls = [
        _call(asked, (1, 2), first, Usage(2, 2, cached_input_tokens=1)),
        _call((*asked, first.message(), result), (1, 2, 10, 11, 12), second, Usage(5, 1)),
    ]
    spans = [
        Span.from_attributes(
            attributes=call_attributes(each),
            name="chat",
            rollout_id="ro-1",
            attempt_id="at-ro-1",
            span_id=f"{number:016x}",
            start_time=float(number),
            end_time=number + 0.5,
        )
        for number, each in enumerate(calls)
    ]
    return build_rows([*spans, spans_of([], "ro-1", 0.5)[0]], rollout=GROUPS[0])


def _call(asked: Any, prompt: tuple[int, ...], choice: Choice, usage: Usage) -> ModelCall:
    return ModelCall(
        endpoint="http://127.0.0.1:8000/v1/chat/completions",
        prompt_token_ids=prompt,
        choices=(choice,),
        token_capture=VALID,
        request_model="policy",
        request_messages=asked,
        tools=(TOOL,),
        usage=usage,
        sampling_effective={"temperature": 1.0},
        sampling_defaults={},
        logprob_kind="processed",
    )


def test_messages_calls_and_tools_are_in_verifiers_shape() -> None:
    trace = trace_of(tool_conversation())

    assert [node["message"]["role"] for node in trace["nodes"]] == [
        "system",
        "user",
        "assistant",
        "tool",
        "assistant",
    ]
    assert [node["parent"] for node in trace["nodes"]] == [None, 0, 1, 2, 3]
    assert trace["nodes"][2]["message"]["tool_calls"] == [
        {"id": "c1", "name": "add", "arguments": '{"a": 1}'}
    ]
    assert trace["info"]["messages_left_out"] == 1
    assert [call["node"] for call in trace["calls"]] == [2, 4]
    assert trace["calls"][0]["endpoint"] == "/v1/chat/completions"
    assert trace["calls"][0]["usage"]["prompt_tokens"] == 1  # without what was cached
    assert trace["tools"] == [
        {"type": "function", "name": "add", "description": "Adds.", "parameters": {"type": "object"}}
    ]


# ---------------------------------------------------------------------- the installed verifiers


@pytest.fixture(scope="module")
def verifiers() -> Any:
    """Return verifiers' module of traces."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own dependencies
        return pytest.importorskip("verifiers.v1.trace", reason="scripts/trainers installs verifiers")


@settings(deadline=None, max_examples=30)
@given(turns=trees())
def test_branches_rebuilt_by_verifiers_equal_the_rows(verifiers: Any, turns: Any) -> None:
    rows = rows_of(turns)
    sent = json.dumps(trace_of(rows))
    trace = verifiers.WireTrace.model_validate_json(sent)

    assert len(trace.branches) == len(rows)
    seen: list[int] = []
    for branch, row in zip(trace.branches, rows, strict=True):
        new = [id(node) not in seen for node in branch.nodes for _ in node.token_ids]
        seen += [id(node) for node in branch.nodes]
        assert branch.token_ids == list(row.token_ids)
        # A node that an earlier branch has is trained there.
        mask = [int(each and is_new) for each, is_new in zip(branch.sampled_mask, new, strict=True)]
        assert mask == list(row.loss_mask)
        logprobs = [each if is_new else 0.0 for each, is_new in zip(branch.logprobs, new, strict=True)]
        assert logprobs == list(row.logprobs)
    assert trace.reward == rows[0].reward
    assert trace.num_turns == len(turns)


@settings(deadline=None, max_examples=30)
@given(turns=trees())
def test_verifiers_own_builder_makes_the_same_branches_of_the_same_calls(verifiers: Any, turns: Any) -> None:
    from verifiers.v1.graph import prepare_turn
    from verifiers.v1.types import AssistantMessage, Response, TurnTokens, UserMessage

    ours = verifiers.WireTrace.model_validate(trace_of(rows_of(turns)))
    theirs = verifiers.WireTrace.model_validate({"task": {"type": "T", "data": {}}, "agent": {"config": {}}})
    said: dict[Any, list[Any]] = {}
    for number, (prompt, answer) in enumerate(turns):
        before = max((each for each in said if each == prompt[: len(each)]), key=len, default=())
        asked = [*said.get(before, []), UserMessage(content=f"{number}")]
        message = AssistantMessage(content=f"answer {number}")
        logprobs = [-0.125 * (place + 1) for place in range(len(answer))]
        tokens = TurnTokens(
            prompt_ids=list(prompt), completion_ids=list(answer), completion_logprobs=logprobs
        )
        response = Response(
            id="r", created=0, model="m", message=message, finish_reason="stop", tokens=tokens
        )
        prepare_turn(theirs, asked).commit(response)
        said[prompt + answer] = [*asked, message]

    def seen(trace: Any) -> Any:
        return sorted((each.token_ids, each.sampled_mask, each.logprobs) for each in trace.branches)

    assert seen(ours) == seen(theirs)


def test_a_real_wire_trace_keeps_every_digit_on_its_wire(verifiers: Any) -> None:
    rows = tool_conversation()
    trace = verifiers.WireTrace.model_validate(trace_of(rows))
    exact = list(rows[0].logprobs)

    again = verifiers.WireTrace.model_validate(trace.model_dump(mode="python"))
    assert again.branches[0].logprobs == exact
    record = verifiers.WireTrace.model_validate(trace.to_record(float_decimals=None))
    assert record.branches[0].logprobs == exact
    rounded = verifiers.WireTrace.model_validate(trace.to_record())
    assert rounded.branches[0].logprobs != exact  # its default, for readers


def test_a_real_wire_trace_says_what_the_agent_did(verifiers: Any) -> None:
    trace = verifiers.WireTrace.model_validate(trace_of(tool_conversation()))

    assert trace.last_reply == "2"
    assert [message.role for message in trace.messages] == [
        "system",
        "user",
        "assistant",
        "tool",
        "assistant",
    ]
    assert (trace.num_turns, trace.num_branches, trace.reward) == (2, 1, 0.5)
    assert trace.num_output_tokens == 3
    assert not trace.has_error
    assert trace.task.key == "g1"
    groups = [verifiers.WireTrace.model_validate(each) for each in to_wire_traces(two_groups(), GROUPS)]
    assert [each.num_branches for each in groups] == [1, 2, 1, 2]
    assert [each.info["versions"] for each in groups] == [[0, 2]] * 4


def test_the_page_on_verifiers_runs(verifiers: Any) -> None:
    (block,) = blocks("train-with-verifiers.md")
    rows = two_groups()
    made = asyncio.run(run(block, rows=rows, rollouts=GROUPS, to_wire_traces=to_wire_traces))

    assert [trace.reward for trace in made["traces"]] == [1.0, 0.0, 0.25, 0.75]


def routed(_: int, turn: Any) -> dict[str, Any]:
    """Return experts, and the ids that each token was sampled from, of a call."""
    prompt, answer = turn
    return {
        "routed_experts": [[[token % 300, 1]] for token in (*prompt, *answer)[:-1]],
        "sampling_mask": [[token, token + 1] for token in answer],
    }


@settings(deadline=None, max_examples=20)
@given(turns=trees())
def test_verifiers_own_builder_attributes_the_same_experts_and_masks(verifiers: Any, turns: Any) -> None:
    import numpy as np
    from verifiers.v1.graph import prepare_turn
    from verifiers.v1.types import AssistantMessage, Response, SamplingMask, TurnTokens, UserMessage

    rows = rows_of(turns, more=routed)
    trace = trace_of(rows, with_routed_experts=True, with_sampling_masks=True)
    ours = verifiers.WireTrace.model_validate(trace)
    ours = verifiers.WireTrace.model_validate(ours.model_dump(mode="python"))  # as its wire has it
    theirs = verifiers.WireTrace.model_validate({"task": {"type": "T", "data": {}}, "agent": {"config": {}}})
    said: dict[Any, list[Any]] = {}
    for number, turn in enumerate(turns):
        prompt, answer = turn
        before = max((each for each in said if each == prompt[: len(each)]), key=len, default=())
        asked = [*said.get(before, []), UserMessage(content=f"{number}")]
        message = AssistantMessage(content=f"answer {number}")
        experts = np.asarray(routed(0, turn)["routed_experts"], dtype=np.uint16)
        tokens = TurnTokens.model_construct(
            prompt_ids=list(prompt),
            completion_ids=list(answer),
            completion_logprobs=[-0.5] * len(answer),
            routed_experts={
                "data": base64.b64encode(experts.tobytes()),
                "shape": list(experts.shape),
                "dtype": "uint16",
                "start": 0,
            },
            sampling_mask=SamplingMask.from_sampling_mask(routed(0, turn)["sampling_mask"]),
            message_spans=None,
            is_content=None,
        )
        response = Response(
            id="r", created=0, model="m", message=message, finish_reason="stop", tokens=tokens
        )
        prepare_turn(theirs, asked).commit(response)
        said[prompt + answer] = [*asked, message]

    def seen(trace: Any) -> Any:
        return sorted(
            (
                branch.token_ids,
                branch.routed_experts.tolist(),
                branch.sampling_mask.ids.tolist(),
                branch.sampling_mask.counts.tolist(),
            )
            for branch in trace.branches
        )

    assert seen(ours) == seen(theirs)


def test_experts_and_masks_that_are_wanted_and_not_known_are_refused() -> None:
    for keyword, words in (
        ("with_routed_experts", "has no routed experts"),
        ("with_sampling_masks", "without the ids that each of its tokens was sampled from"),
    ):
        with pytest.raises(NotExportable, match=words):
            trace_of(rows_of(FORKED), **{keyword: True})
    for mask in ([[10]], [[10], [12]], [[10], None], [[10], [True, 11]]):  # none for 11, or not of it
        with pytest.raises(NotExportable, match="each of its tokens was sampled from"):
            trace_of(
                rows_of(LINEAR[:1], more=lambda *_, m=mask: {"sampling_mask": m}), with_sampling_masks=True
            )
