"""What a reward names is what gets it, also where names are shared, wrong, or another rollout's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from agentlightning.adapter import TracerTraceToTriplet
from agentlightning.codec.attributes import make_link_attributes
from agentlightning.dialects.model_call import VALID, Choice, ModelCall, invalid
from agentlightning.dialects.spans.genai import call_attributes
from agentlightning.rows import RowPolicy, build_rows
from agentlightning.rows.completeness import incomplete
from agentlightning.rows.rewards import reward_target
from agentlightning.semconv import AGL_ANNOTATION, AGL_WRITE_BACK
from agentlightning.types import Span

IDS: Any = {"rollout_id": "ro", "attempt_id": "at"}


def call(number: int, prompt: Sequence[int], sampled: Sequence[int], **fields: Any) -> Span:
    """The call of a second, by default with the response id ``same``."""
    verdict = fields.pop("verdict", VALID)
    choice = Choice(
        content=f"answer {number}",
        token_ids=tuple(sampled),
        logprobs=(-0.5,) * len(sampled),
        finish_reason="stop",
        token_capture=verdict,
    )
    record = ModelCall(
        prompt_token_ids=tuple(prompt),
        choices=(choice,),
        token_capture=verdict,
        response_id=fields.pop("response_id", "same"),
        request_messages=({"role": "user", "content": fields.pop("question", f"question {number}")},),
        sampling_effective={"temperature": 1.0},
        sampling_defaults={},
        logprob_kind="processed",
    )
    at = {"start_time": float(number), "end_time": number + 0.5, **fields}
    span_id = at.pop("span_id", f"{number:016x}")
    return Span.from_attributes(attributes=call_attributes(record), name="chat", span_id=span_id, **IDS, **at)


def reward(value: float, attributes: Any = None, at: float = 100.0) -> Span:
    named = {"agentlightning.reward.0.name": "primary", "agentlightning.reward.0.value": value}
    return Span.from_attributes(
        attributes={**named, **(attributes or {})}, name=AGL_ANNOTATION, start_time=at, end_time=at, **IDS
    )


def triplet_rewards(spans: list[Span]) -> list[float | None]:
    return [each.reward for each in TracerTraceToTriplet().adapt(spans)]


def test_the_reward_of_a_part_is_not_the_reward_of_the_answer() -> None:
    answer = call(1, (1, 2), (10, 11, 12))
    whole = reward(1.0, reward_target(span_id=answer.span_id), 50.0)
    part = reward(-1.0, reward_target(span_id=answer.span_id, tokens=(0, 1)), 60.0)
    assert triplet_rewards([answer, whole, part]) == [1.0]
    assert triplet_rewards([answer, part]) == [None]


def test_a_reward_for_a_choice_that_does_not_exist_is_unknown_and_keeps_the_attempt_open() -> None:
    answer = call(1, (1, 2), (10, 11))
    rows = build_rows([answer, reward(1.0, reward_target(span_id=answer.span_id, choice=7))])
    assert [match.reason.code for match in rows.unknown_rewards if match.reason] == ["tokens_unknown"]
    assert [reason.code for reason in incomplete(rows)] != []
    assert (
        build_rows([answer, reward(1.0, reward_target(span_id=answer.span_id, choice=0))])[0]
        .segments[0]
        .rewards
    )


@pytest.mark.parametrize("key", ["agentlightning.rollout_id", "agentlightning.attempt_id"])
def test_a_reward_for_another_rollout_is_no_outcome_here(key: str) -> None:
    answer = call(1, (1, 2), (10, 11))
    foreign = reward(1.0, make_link_attributes({key: "another"}))
    own = reward(0.25, make_link_attributes({key: {"agentlightning.rollout_id": "ro"}.get(key, "at")}), 50.0)
    adapter = TracerTraceToTriplet()
    assert triplet_rewards([answer, foreign]) == [None]
    assert adapter.adapt([answer, foreign])[0].metadata["final_reward"] is None
    assert adapter.adapt([answer, own, foreign])[0].metadata["final_reward"] == 0.25
    assert [each.code for each in adapter.explain([answer, foreign]).rewards] == ["link_unresolved"]


def test_a_reward_from_outside_leaves_the_repair_of_a_trace_as_it_was() -> None:
    root = Span.from_attributes(
        attributes={}, name="session", span_id="e" * 16, start_time=0.0, end_time=20.0, **IDS
    )
    planner = Span.from_attributes(
        attributes={"gen_ai.agent.name": "planner"},
        name="agent",
        span_id="a" * 16,
        parent_id=root.span_id,
        start_time=0.0,
        end_time=10.0,
        **IDS,
    )
    lost = call(1, (1, 2), (10, 11), parent_id=root.span_id)
    back = Span.from_attributes(attributes={}, name=AGL_WRITE_BACK, start_time=90.0, end_time=90.0, **IDS)
    policy = RowPolicy(agent_match="planner", repair_hierarchy=True)
    for outside in ([], [reward(1.0)], [reward(1.0), back]):
        spans = [root, planner, lost, *outside]
        assert len(build_rows(spans, policy)) == 1
        assert len(TracerTraceToTriplet(agent_match="planner").adapt(spans)) == 1


def test_a_server_that_gives_all_responses_one_id_loses_and_doubles_nothing() -> None:
    first, second = call(1, (1, 2), (5,)), call(2, (1, 3), (6, 7))
    again = second.model_copy(update={"span_id": "3" * 16, "start_time": 2.1})
    rows = build_rows([first, second, again])
    assert sorted(row.token_ids for row in rows) == [(1, 2, 5), (1, 3, 6, 7)]
    assert rows.trained_tokens == 3
    triplets = TracerTraceToTriplet().adapt([first, second, again])
    assert [each.response["token_ids"] for each in triplets] == [[5], [6, 7]]
    named = reward(0.5, reward_target(response_id="same"))
    assert [
        match.reason.code for match in build_rows([first, second, named]).unknown_rewards if match.reason
    ] == ["link_unresolved"]
    by_span = reward(0.5, reward_target(span_id=first.span_id))
    assert [step.call for step in build_rows([first, second, by_span]).step_rewards] == [first.span_id]


@pytest.mark.parametrize("response_id", ["same", "other"])
@pytest.mark.parametrize("place", [0, 2])
def test_a_call_that_cannot_be_trusted_is_counted_whatever_its_response_id(
    response_id: str, place: int
) -> None:
    bad = call(place, (1, 2, 9), (6, 7), verdict=invalid("response_length"), response_id=response_id)
    rows = build_rows([call(1, (1, 2), (5,)), bad, reward(1.0)])
    assert [row.token_ids for row in rows] == [(1, 2, 5)]
    assert rows.counts == {"response_length": 1}
    assert incomplete(rows) == []
    assert "token_capture_invalid" in {reason.code for reason in incomplete(build_rows([bad, reward(1.0)]))}


def test_a_second_capture_of_one_call_stands_for_it_although_the_first_cannot_be_trusted() -> None:
    bad = call(1, (1, 2), (5,), verdict=invalid("partial"), question="?")
    good = call(2, (1, 2), (5,), question="?", start_time=1.1)
    rows = build_rows([bad, good, reward(1.0)])
    assert [row.token_ids for row in rows] == [(1, 2, 5)]
    assert incomplete(rows) == []


@pytest.mark.parametrize("wrong", [-1, 2**31, 2**32, 2**40, True, 1.0, "1"])
def test_what_is_no_token_id_is_not_trained(wrong: Any) -> None:
    good = call(1, (2**31 - 1, 0), (5,), response_id="good")
    bad = call(2, (1, 2), (5,), response_id="bad")
    bad.attributes = {**bad.attributes, "agentlightning.prompt_token_ids": [wrong, 2]}
    rows = build_rows([good, bad])
    assert [row.token_ids for row in rows] == [(2**31 - 1, 0, 5)]
    assert rows.counts == {"token_id_type": 1}
